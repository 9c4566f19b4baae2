"""The options that several commands share, each declared once, and the settings they lead to."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from functools import wraps
from pathlib import Path
from typing import Any, Final

import click
from click.shell_completion import CompletionItem

from etl import config, database, log
from etl.cli import console
from etl.cli.application import Application
from etl.config import Schedule, TargetList
from etl.config.slots import time_zone
from etl.domain.model import DIRECTORY, Target
from etl.errors import UsageError
from etl.system import descriptors
from etl.system.clock import utc_now
from etl.timeparse import parse_moment

SHOWN: Final = 200
"""Rows of a table on a screen, unless another --limit is asked for."""
_MOST: Final = 10**9
"""The largest --limit: more than any database here has rows, and a number that each can count to."""
FILE: Final = click.Path(path_type=Path)


def _option(words: str, default: Any = None, **more: Any) -> Any:
    return field(default=default, metadata={"help": words, "default": default, **more})


def typed_user(_: click.Context, __: click.Parameter, given: str | None) -> str | None:
    """A user's id; a directory has none, and is named as tables show it."""
    return "" if given == DIRECTORY else given


@dataclass(frozen=True, kw_only=True)
class Options:
    """The shared options, as they were typed; those that a command does not take are as if omitted.

    Each field declares one, with what Click is told of it.
    """

    org: str | None = _option("Only this organisation.")
    user: str | None = _option(f"Only this user; '{DIRECTORY}': only directories.", callback=typed_user)
    flow: str | None = _option("Only this workflow id.")
    name: str | None = _option("Only names that contain this.")
    cycle: str | None = _option("Only this cycle: month, week, day, hour, minute, or as EnOS has it (M, W, D, H, mi).")
    since: str | None = _option("From then on: 'yesterday', '7 days ago', ISO.")
    until: str | None = _option("Before then.")
    as_of: str | None = _option("The list at that time: 2026-03-31, yesterday, '7 days ago'.")
    timezone: str = _option("The zone of times, typed and shown, such as Asia/Shanghai.", "UTC")
    limit: int | None = _option(
        f"At most this many rows; tables show {SHOWN} by default, 0 shows all.", type=click.IntRange(0, _MOST)
    )
    expression: str = _option("The target's search expression.", "", show_default=False)
    force: bool = _option("Replace an existing file.", False, is_flag=True)
    upgrade: bool = _option("Bring the database's schema up to date first.", False, is_flag=True)
    json: bool = _option("Print JSON instead of a table.", False, is_flag=True)
    config: Path | None = _option(  # noqa: RUF009 - it makes a field
        "The settings file (else $FLOWTRAIL_CONFIG, else ./flowtrail.toml).", type=FILE
    )

    @property
    def zone(self) -> dt.tzinfo:
        """The zone of times, typed and shown. Raises UsageError with one sentence."""
        try:
            return time_zone(self.timezone)
        except ValueError as error:
            raise UsageError(str(error)) from error

    def moment(self, text: str | None) -> dt.datetime | None:
        """The moment that a person typed. Raises UsageError with one sentence."""
        try:
            return None if text is None else parse_moment(text, utc_now(), self.zone)
        except ValueError as error:
            raise UsageError(str(error)) from error

    def period(self) -> tuple[dt.datetime | None, dt.datetime | None]:
        """The period that a person typed, open where nothing was. Raises UsageError with one sentence."""
        begin, end = self.moment(self.since), self.moment(self.until)
        if begin is not None and end is not None and begin >= end:
            raise UsageError("--since must lie before --until.")
        return begin, end

    def filters(self) -> dict[str, Any]:
        """What narrows a list, by the names that its filters have. Raises UsageError with one sentence."""
        since, until = self.period()
        same = {name: getattr(self, name) for name in ("org", "user", "flow", "name", "cycle")}
        return {name: value for name, value in {**same, "since": since, "until": until}.items() if value is not None}

    def most(self, shown: int = SHOWN, printed: int | None = None) -> int | None:
        """How many rows a table shows, or JSON prints; None: all."""
        usual = printed if self.json else shown
        return (usual if self.limit is None else self.limit) or None

    def one_more(self) -> int | None:
        """How many rows to read, so that a table can say whether there are more."""
        most = self.most()
        return most and most + 1

    def application(self, *, asks_gateway: bool = False) -> Application:
        """Load the settings, say what deserves a warning, and hand out the application.

        A command that asks the gateway says so: any other works on a machine that has the database only, and with few
        file descriptors.
        """
        if asks_gateway:
            descriptors.raise_limit()
        settings = config.load(self.config, asks_gateway=asks_gateway)
        log.configure(settings.log.level, settings.log.format)
        for warning in settings.warnings:
            console.complain(warning, "yellow")
        return Application(settings)

    def reading(self) -> Application:
        """The application, for a command that reads a database whose schema is current. Raises SchemaMismatch."""
        app = self.application()
        try:
            database.require_current(app.engine)
        except BaseException:
            app.close()
            raise
        return app


def shared(*names: str, **helps: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command these shared options, as its first argument; ``helps`` are other words for some of them."""
    declared = {each.name: dict(each.metadata) for each in fields(Options)}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def called(**own: Any) -> None:
            given = {name: own.pop(name) for name in names}
            if "config" in given:
                given["config"] = given["config"] or click.get_current_context().obj
            command(Options(**given), **own)

        for name in reversed(names):
            told = declared[name] | ({"help": helps[name]} if name in helps else {})
            called = click.option(f"--{name.replace('_', '-')}", name, **told)(called)
        return called

    return decorate


def kinds_option(kinds: Sequence[str]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """``--kind``, one of these; may be repeated."""
    text = f"Only this kind; may be repeated: {', '.join(kinds)}."
    return click.option("--kind", "kinds", type=click.Choice(kinds), multiple=True, metavar="KIND", help=text)


def schedules_argument(command: Callable[..., None]) -> Callable[..., None]:
    """The names of schedules; a shell completes them from the folder alone."""

    def names(context: click.Context, _: click.Parameter, incomplete: str) -> list[str | CompletionItem]:
        above = context.parent.params.get("config") if context.parent else None
        found = config.schedule_names(context.params.get("config") or above)
        return [name for name in found if name.startswith(incomplete)]

    text = "Schedules to run; all if omitted."
    return click.argument("schedules", nargs=-1, shell_complete=names, help=text)(command)


def chosen_schedules(app: Application, names: Sequence[str]) -> list[Schedule]:
    """The schedules that were named, or all. Raises UsageError for a name that is no schedule's."""
    known = {schedule.name: schedule for schedule in app.schedules}
    for name in names:
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
