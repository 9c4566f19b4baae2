"""From ``flowtrail.toml``, the environment and the schedule files to values, every problem at once.

Also the rules that span several settings, or what they name: addresses, files, secrets, permissions.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from etl.config import addresses
from etl.config import settings as shape
from etl.config.schedules import Schedule, is_schedule_name, read_schedules
from etl.config.secret import openness, read_secret_file, read_webhook_secrets
from etl.config.settings import Settings
from etl.config.units import holds_password, shown
from etl.config.values import FILE_VARIABLE, Values, read_toml, variable
from etl.errors import ConfigError, Problem
from etl.system.disk import MIB, open_regular

_PATHS: Final = (
    "gateway.ca_bundle",
    "gateway.secret_key_file",
    "database.url_file",
    "retention.heads_file",
    "seal.key_file",
    "schedules_dir",
    "rules_dir",
)
_WEBHOOK_PATHS: Final = ("url_file", "secret_file", "ca_bundle")
_LARGEST_BUNDLE: Final = 64 * MIB


def load(path: Path | None = None, environ: Mapping[str, str] | None = None, *, asks_gateway: bool = True) -> Settings:
    """The settings of ``path`` (None: FLOWTRAIL_CONFIG, else ./flowtrail.toml), overridden by ``environ``.

    ``environ`` None is the environment of this process. Settings that only the gateway needs may be missing unless
    ``asks_gateway``. Raises ConfigError with every problem.
    """
    values = _read(path, environ)
    return _settings(values, _apply_rules(values, asks_gateway=asks_gateway))


def load_all(
    path: Path | None = None, environ: Mapping[str, str] | None = None
) -> tuple[Settings, tuple[Schedule, ...]]:
    """The settings and the schedules; a ConfigError has the problems of both."""
    values = _read(path, environ)
    warnings = _apply_rules(values)
    lost = values.is_faulty("schedules_dir")
    schedules, problems = ((), []) if lost else read_schedules(Path(values["schedules_dir"]))
    values.problems += problems
    return _settings(values, warnings), schedules


def load_schedules(settings: Settings) -> tuple[Schedule, ...]:
    """The schedules in ``settings.schedules_dir``, by name; ConfigError has the problems of all files."""
    schedules, problems = read_schedules(settings.schedules_dir)
    _refuse(problems)
    return schedules


def supervisor() -> tuple[str, float]:
    """The address of the datagram socket where systemd wants to be told of the service ("": nowhere), and within how
    many seconds it must hear of it again and again (0: it need not). Its variables NOTIFY_SOCKET and WATCHDOG_USEC."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    address = os.environ.get("NOTIFY_SOCKET", "")
    address = "\0" + address[1:] if address.startswith("@") else address
    return address, int(microseconds) / 1e6 if microseconds.isdecimal() else 0


def schedule_names(path: Path | None = None) -> list[str]:
    """The names of the schedules, for shell completion: files are not checked, and errors give no names."""
    try:
        values = _read(path, None)
        files = (values.folder / values["schedules_dir"]).glob("[!.]*.toml")
        return sorted(file.stem for file in files if is_schedule_name(file.stem))  # a shell gets no other characters
    except (ConfigError, OSError):
        return []


def may_colour() -> bool:
    """Whether a terminal may be sent colours (no-color.org)."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def shell_name() -> str:
    """The name of the user's shell, such as bash; "" if it is unknown."""
    return Path(os.environ.get("SHELL", "")).name


def another_database(url: str | None, file: Path | None) -> str:
    """The second database that a command line names, by its URL or by a file that contains it.

    A relative SQLite path is relative to the working directory. Raises ConfigError, which shows no password: one in
    ``url`` is refused, since other users can read the arguments of a process.
    """
    try:
        if (url is None) == (file is None):
            raise ValueError("name the database by either --to URL or --to-file FILE")
        if file is not None:
            return addresses.database_url(read_secret_file(file).reveal(), Path.cwd())
        if url is not None and holds_password(url):
            raise ValueError("contains a password, which everybody on this machine could read: write it to a --to-file")
        return addresses.database_url(url, Path.cwd())
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
    _refuse(values.problems)
    sections: dict[str, Any] = {name: values.section(name, kind) for name, kind in shape.SECTIONS.items()}
    return Settings(
        path=values.path.absolute(),
        schedules_dir=Path(values["schedules_dir"]),
        rules_dir=Path(values["rules_dir"]),
        coverage_gap=values["coverage_gap"],
        notify=tuple(values.section(each, shape.NotifySettings) for each in values.given["notify"]),
        webhook=tuple(values.section(each, shape.WebhookSettings) for each in values.given["webhook"]),
        warnings=warnings,
        **sections,
    )


def _apply_rules(values: Values, *, asks_gateway: bool = True) -> tuple[str, ...]:
    """Add problems to ``values.problems``, make paths absolute, and return the warnings.

    A command that only reads the database (``asks_gateway`` False) may lack the gateway's address, key and files.
    """
    of_lists = [f"{section}.urls_file" for section in values.given["notify"]]
    of_lists += [f"{section}.{name}" for section in values.given["webhook"] for name in _WEBHOOK_PATHS]
    for name in (*_PATHS, *of_lists):
        if values[name]:
            values[name] = str(values.folder / values[name])
    values["verify.public_keys"] = tuple(str(values.folder / name) for name in values["verify.public_keys"])
    _require_tls(values, "gateway", values["gateway.url"])
    if asks_gateway:
        _require_gateway(values)
    files = _database(values) + [file for section in values.given["notify"] for file in _receivers(values, section)]
    files += _webhooks(values)
    if values["scale.dask"] and str(values["database.url"]).startswith("sqlite"):
        values.fault("scale.dask", "needs PostgreSQL: workers on other machines cannot share a SQLite file")
    files += [Path(path)] if (path := values["gateway.secret_key_file"]) else []
    return tuple(warning for file in files if (warning := openness(file)))


def _require_gateway(values: Values) -> None:
    """Require everything that is needed to ask the gateway."""
    bundle = values["gateway.ca_bundle"]
    if not values["gateway.url"]:
        wanted = 'the address of the EnOS API gateway, such as "https://apim.example.com"'
        values.fault("gateway.url", f"is missing: {wanted}")
    if bundle and not Path(bundle).is_dir():
        values.attempt("gateway.ca_bundle", lambda: _require_readable(Path(bundle)))
    if values["gateway.auth"] == "token" and not values.is_faulty("gateway.auth"):
        _require_access(values)


def _require_readable(file: Path) -> None:
    """Raise ValueError if a file of certificates cannot be read."""
    try:
        open_regular(file, _LARGEST_BUNDLE).close()
    except FileNotFoundError:
        raise ValueError(f"there is no file {file}") from None
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from None


def _require_access(values: Values) -> None:
    """Require the key and the secret for auth = "token"; the secret file is read to check that it can be."""
    key, secret, file = "gateway.access_key", "gateway.secret_key", "gateway.secret_key_file"
    if not values[key]:
        values.fault(key, 'is missing: the access key of the EnOS application (or set auth = "none")')
    if values[file] and not values[secret]:
        values.attempt(file, lambda: read_secret_file(Path(values[file])))
    elif not values[secret] and not values.is_faulty(file):
        values.fault(secret, f"is missing: set {variable(secret)} in the environment, or secret_key_file to a file")


def _database(values: Values) -> list[Path]:
    """Decide between url and url_file; return the files that contain its password."""
    url = "database.url"

    def completed(text: str) -> str:
        return addresses.database_url(text, values.folder)

    if files := _from_file(values, url, "database.url_file", lambda file: completed(read_secret_file(file).reveal())):
        return files
    values[url] = values.attempt(url, lambda: completed(values[url]))
    return [values.path] if values.source(url) == "file" and values[url] and holds_password(values[url]) else []


def _receivers(values: Values, section: str) -> list[Path]:
    """Decide between urls and urls_file; return the files that contain addresses."""
    urls = f"{section}.urls"
    if files := _from_file(values, urls, f"{section}.urls_file", addresses.receiver_urls_file):
        return files
    if not values[urls] and not values.is_faulty(f"{section}.urls_file"):
        values.fault(urls, 'is missing: the addresses to write to, such as ["mailto://..."], or urls_file with them')
    return [values.path] if values.source(urls) == "file" else []


def _webhooks(values: Values) -> list[Path]:
    """Decide between url and url_file, and read the secrets to check that they can be; return the secret files."""
    files: list[Path] = []
    for section in (given := values.given["webhook"]):
        name, url, secret_file = (f"{section}.{key}" for key in ("name", "url", "secret_file"))
        if not values[name]:
            values.fault(name, 'is missing: a name such as "tickets", under which its place in the events is kept')
        elif any(values[name] == values[f"{other}.name"] for other in given[: given.index(section)]):
            values.fault(name, f"{shown(values[name])} is the name of another [[webhook]]: each needs its own")
        if found := _from_file(values, url, f"{section}.url_file", addresses.webhook_url_file):
            files += found
        elif not values[url] and not values.is_faulty(f"{section}.url_file"):
            values.fault(url, 'is missing: the address to send to, such as "https://...", or url_file with it')
        elif values.source(url) == "file":
            files.append(values.path)
        if values[url]:
            _require_tls(values, section, values[url].reveal())
        if not values[secret_file]:
            values.fault(secret_file, "is missing: a file with the secret that the receiver knows, such as whsec_...")
        else:
            values.attempt(secret_file, partial(read_webhook_secrets, Path(values[secret_file])))
            files.append(Path(values[secret_file]))
        if (bundle := values[f"{section}.ca_bundle"]) and not Path(bundle).is_dir():
            values.attempt(f"{section}.ca_bundle", partial(_require_readable, Path(bundle)))
    return files


def _require_tls(values: Values, section: str, url: str) -> None:
    if url.lower().startswith("http:") and not values[f"{section}.allow_http"] and not addresses.is_loopback(url):
        remedy = "must start with https:// (http only to this machine, or with allow_http = true)"
        values.fault(f"{section}.url", remedy)


def _from_file(values: Values, plain: str, file: str, read: Callable[[Path], Any]) -> list[Path]:
    """Take the value of ``plain`` from the file that ``file`` names, and return that file; [] if none is to be read.

    At most one of the two may be given, but one from the environment overrides the other.
    """
    if not values[file] or values.is_faulty(plain) or values.is_faulty(file):
        return []
    if values.source(plain) == values.source(file):
        values.fault(file, f"cannot be combined with {plain.rpartition('.')[2]}: keep one of the two")
        return []
    if values.source(plain) == "environment":
        values[file] = ""
        return []
    values[plain] = values.attempt(file, lambda: read(Path(values[file])))
    return [Path(values[file])]
