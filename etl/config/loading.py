"""From ``flowtrail.toml``, the environment and the schedule files to values, every problem at once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from etl.config import settings as shape
from etl.config.addresses import database_url
from etl.config.rules import apply_rules
from etl.config.schedules import Schedule, is_schedule_name, read_schedules
from etl.config.secret import read_secret_file
from etl.config.settings import Settings
from etl.config.tables import read_toml
from etl.config.units import holds_password
from etl.config.values import FILE_VARIABLE, Values
from etl.errors import ConfigError, Problem


def load(path: Path | None = None, environ: Mapping[str, str] | None = None, *, asks_gateway: bool = True) -> Settings:
    """The settings of ``path`` (None: FLOWTRAIL_CONFIG, else ./flowtrail.toml), overridden by ``environ``.

    ``environ`` None is the environment of this process. Settings that only the gateway needs may be missing unless
    ``asks_gateway``. Raises ConfigError with every problem.
    """
    values = _read(path, environ)
    warnings = apply_rules(values, asks_gateway=asks_gateway)
    _refuse(values.problems)
    return _settings(values, warnings)


def load_all(
    path: Path | None = None, environ: Mapping[str, str] | None = None
) -> tuple[Settings, tuple[Schedule, ...]]:
    """The settings and the schedules; a ConfigError has the problems of both."""
    values = _read(path, environ)
    warnings = apply_rules(values)
    lost = values.is_faulty("schedules_dir")
    schedules, problems = ((), []) if lost else read_schedules(Path(values["schedules_dir"]))
    _refuse([*values.problems, *problems])
    return _settings(values, warnings), schedules


def load_schedules(settings: Settings) -> tuple[Schedule, ...]:
    """The schedules in ``settings.schedules_dir``, by name; ConfigError has the problems of all files."""
    schedules, problems = read_schedules(settings.schedules_dir)
    _refuse(problems)
    return schedules


class Supervisor(NamedTuple):
    """What systemd wants to be told of the service, and where: its variables NOTIFY_SOCKET and WATCHDOG_USEC."""

    socket: str
    """The address of a datagram socket; "" where nobody wants to be told."""
    watchdog_seconds: float
    """Within this time it must hear of the service again and again; 0: it need not."""


def supervisor(environ: Mapping[str, str] | None = None) -> Supervisor:
    """What the environment says of the supervisor of this process."""
    given = os.environ if environ is None else environ
    microseconds = given.get("WATCHDOG_USEC", "")
    address = given.get("NOTIFY_SOCKET", "")
    address = "\0" + address[1:] if address.startswith("@") else address
    return Supervisor(address, int(microseconds) / 1e6 if microseconds.isdecimal() else 0)


def schedule_names(path: Path | None = None, environ: Mapping[str, str] | None = None) -> list[str]:
    """The names of the schedules, for shell completion: files are not checked, and errors give no names."""
    try:
        values = _read(path, environ)
        files = (values.folder / values["schedules_dir"]).glob("[!.]*.toml")
        return sorted(file.stem for file in files if is_schedule_name(file.stem))  # a shell gets no other characters
    except (ConfigError, OSError):
        return []


def may_colour(environ: Mapping[str, str] | None = None) -> bool:
    """Whether a terminal may be sent colours (no-color.org)."""
    environ = os.environ if environ is None else environ
    return not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"


def shell_name(environ: Mapping[str, str] | None = None) -> str:
    """The name of the user's shell, such as bash; "" if it is unknown."""
    return Path((os.environ if environ is None else environ).get("SHELL", "")).name


def another_database(url: str | None, file: Path | None) -> str:
    """The second database that a command line names, by its URL or by a file that contains it.

    A relative SQLite path is relative to the working directory. Raises ConfigError, which shows no password: one in
    ``url`` is refused, since other users can read the arguments of a process.
    """
    try:
        if (url is None) == (file is None):
            raise ValueError("name the database by either --to URL or --to-file FILE")
        if file is not None:
            return database_url(read_secret_file(file).reveal(), Path.cwd())
        if url is not None and holds_password(url):
            raise ValueError("contains a password, which everybody on this machine could read: write it to a --to-file")
        return database_url(url, Path.cwd())
    except ValueError as error:
        raise ConfigError([Problem("--to" if file is None else "--to-file", str(error))]) from None


def _refuse(problems: list[Problem]) -> None:
    if problems:
        raise ConfigError(problems)


def _read(path: Path | None, environ: Mapping[str, str] | None) -> Values:
    environ = os.environ if environ is None else environ
    path = path or Path(environ.get(FILE_VARIABLE) or "flowtrail.toml")
    table, problems = read_toml(path, "`flowtrail init` writes a sample, `--config` names another file")
    _refuse(problems)
    return Values(path, table, environ)


def _settings(values: Values, warnings: tuple[str, ...]) -> Settings:
    sections: dict[str, Any] = {name: values.section(name, kind) for name, kind in shape.SECTIONS.items()}
    return Settings(
        path=values.path.absolute(),
        schedules_dir=Path(values["schedules_dir"]),
        coverage_gap=values["coverage_gap"],
        notify=tuple(values.section(each, shape.NotifySettings) for each in values.receivers),
        warnings=warnings,
        **sections,
    )
