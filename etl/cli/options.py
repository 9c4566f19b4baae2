"""The options that several commands share, and the settings they lead to."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import typer

from etl import config, log
from etl.cli import console
from etl.cli.application import Application
from etl.config import Schedule, TargetList
from etl.config.slots import time_zone
from etl.domain.model import Target
from etl.errors import UsageError
from etl.system import descriptors
from etl.system.clock import utc_now
from etl.timeparse import parse_moment

SHOWN = 200
"""Rows of a table on a screen, unless another --limit is asked for."""
MOST = 10**9
"""The largest --limit: more than any database here has rows, and a number that each can count to."""
CONFIG_HELP = "The settings file (else $FLOWTRAIL_CONFIG, else ./flowtrail.toml)."

Config = Annotated[Path | None, typer.Option("--config", help=CONFIG_HELP, show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Org = Annotated[str | None, typer.Option("--org", help="Only this organisation.", show_default=False)]
User = Annotated[str | None, typer.Option("--user", help="Only this user.", show_default=False)]
Flow = Annotated[str | None, typer.Option("--flow", help="Only this workflow id.", show_default=False)]
Name = Annotated[str | None, typer.Option("--name", help="Only names that contain this.", show_default=False)]
Cycle = Annotated[
    str | None, typer.Option("--cycle", help="Only this cycle: M, W, D, H, mi, or its name.", show_default=False)
]
Since = Annotated[
    str | None, typer.Option("--since", help="From then on: 'yesterday', '7 days ago', ISO.", show_default=False)
]
AsOf = Annotated[
    str | None,
    typer.Option("--as-of", help="The list at that time: 2026-03-31, yesterday, '7 days ago'.", show_default=False),
]
Until = Annotated[str | None, typer.Option("--until", help="Before then.", show_default=False)]
Limit = Annotated[
    int | None,
    typer.Option(
        "--limit",
        min=0,
        max=MOST,
        help=f"At most this many rows; tables show {SHOWN} by default, 0 shows all.",
        show_default=False,
    ),
]
Zone = Annotated[str, typer.Option("--timezone", help="The zone of times, typed and shown, such as Asia/Shanghai.")]
Upgrade = Annotated[bool, typer.Option("--upgrade", help="Bring the database's schema up to date first.")]


def moment(text: str, zone: str) -> dt.datetime:
    """The moment that a person typed. Raises UsageError with one sentence."""
    try:
        return parse_moment(text, utc_now(), time_zone(zone))
    except ValueError as error:
        raise UsageError(str(error)) from error


def period(since: str | None, until: str | None, zone: str) -> tuple[dt.datetime | None, dt.datetime | None]:
    """The period that a person typed, open where nothing was. Raises UsageError with one sentence."""
    begin, end = (None if text is None else moment(text, zone) for text in (since, until))
    if begin is not None and end is not None and begin >= end:
        raise UsageError("--since must lie before --until.")
    return begin, end


def time_zone_named(name: str) -> dt.tzinfo:
    """The time zone with this name. Raises UsageError with one sentence."""
    try:
        return time_zone(name)
    except ValueError as error:
        raise UsageError(str(error)) from error


def kind_option(kinds: Sequence[str]) -> Any:
    """``--kind``, one of these; may be repeated."""
    text = f"Only this kind; may be repeated: {', '.join(kinds)}."
    return typer.Option("--kind", help=text, autocompletion=lambda: list(kinds))


def require_kinds(given: Sequence[str] | None, kinds: Sequence[str]) -> tuple[str, ...]:
    """The kinds that were given. Raises UsageError for one that does not exist."""
    for kind in given or ():
        if kind not in kinds:
            raise UsageError(f"There is no kind {kind!r}: choose from {', '.join(kinds)}.")
    return tuple(given or ())


def schedule_names(context: typer.Context, incomplete: str) -> list[str]:
    """For the shell that completes a schedule: the names that begin so, from the folder alone."""
    above = context.parent.params.get("config") if context.parent else None
    names = config.schedule_names(context.params.get("config_file") or above)
    return [name for name in names if name.startswith(incomplete)]


def open_application(
    context: typer.Context, path: Path | None, *, asks_gateway: bool = False, logs: bool = True
) -> Application:
    """Load the settings, say what deserves a warning, and hand out the application.

    A command that asks the gateway says so: any other works on a machine that has the database only, and with few file
    descriptors. One that only reads does without the log, whose libraries are slow to load (``logs``).
    """
    if asks_gateway:
        descriptors.raise_limit()
    settings = config.load(path or context.obj, asks_gateway=asks_gateway)
    configure = log.configure if logs else log.configure_for_libraries
    configure(settings.log.level, settings.log.format)
    for warning in settings.warnings:
        console.complain(warning, "yellow")
    return Application(settings)


def chosen(app: Application, names: list[str] | None) -> list[Schedule]:
    """The schedules that were named, or all. Raises UsageError for a name that is no schedule's."""
    known = {schedule.name: schedule for schedule in app.schedules}
    for name in names or ():
        if name not in known:
            close = get_close_matches(name, known, 1, 0)
            raise UsageError(f"There is no schedule {name!r}: did you mean {close[0]!r}?")
    return [known[name] for name in dict.fromkeys(names or known)]


def matching(schedules: Sequence[Schedule], org: str | None, user: str | None) -> Sequence[Target]:
    """The targets of ``schedules`` that the filters leave, each once. Raises UsageError where none is left."""
    targets = TargetList.union([schedule.targets for schedule in schedules])
    if org is not None or user is not None:
        targets = [t for t in targets if org in (None, t.org_id) and user in (None, t.user_id)]
    if not targets:
        raise UsageError("No configured target matches --org and --user: `flowtrail status` lists the schedules.")
    return targets
