"""The text of a notification: a title with the sums, a few lines per kind, commands that show the rest.

What a run is reported with is read from the trail: it is the same whenever, and however often, it is read.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import (
    ColumnElement,
    Engine,
    Select,
    String,
    TextClause,
    bindparam,
    distinct,
    exists,
    func,
    literal_column,
    select,
    text,
)

from etl.config.slots import quartz_in_words
from etl.domain.answers import sentence
from etl.domain.kinds import DELTA_KINDS, GONE, LABELS, ORGANISATION_KINDS, TARGET_ISSUE_KINDS
from etl.domain.model import CYCLE_LABELS, DIRECTORY, VERDICTS, Target
from etl.printable import printable
from etl.report.details import ChangeDetail, freq_before
from etl.report.reading import stream
from etl.report.rows import ListChange, OrgWorkflowEvent, view
from etl.schema import CHANGE_KIND, UtcTime, change_set, target, workflow_change, workflow_detail
from etl.store import UnnotifiedRun

LINES: Final = 20
"""Lines per message; if several kinds share them, each has at least a few."""
_FEWEST_LINES: Final = 3
_LONGEST_NAME: Final = 80
_LONGEST_MESSAGE: Final = 200
_MARKUP: Final = re.compile(
    r"@(?=everyone|here|channel|all\b|room\b)"  # mentions people, also in the middle of a word
    r"|(?<!\w)@|@(?!\w)"  # mentions somebody, or a role; an address such as a@b stays
    r"|<(?=[A-Za-z/@!#:])"  # a tag, a mention or a link in chats and in HTML
    r"|(?<=\])\("  # a link whose text hides where it leads
    r"|`|\|(?=\|)|~(?=~)",  # code, and what hides or strikes out other lines
    re.IGNORECASE,
)
"""What a chat could render as markup or a mention. Single ``_`` and ``*`` are common in names, and harmless."""
_MORE: Final = "\nTo see more:"
_CUT: Final = "  and more than fits here"


class DigestPart(NamedTuple):
    """What happened of one kind: how often, and the first lines."""

    total: int
    lines: tuple[str, ...]


class Digest(msgspec.Struct, frozen=True, kw_only=True):
    """What happened in a run (or since the last check), as far as one receiver subscribes to it."""

    name: str
    """What ran: a schedule, "sync" or "approval"; "" if it was not a run."""
    summary: str
    """A sentence about the run."""
    parts: Mapping[str, DigestPart]
    changes_between: tuple[str, str] | None = None
    """The period for which `flowtrail changes` shows these changes."""


class Message(NamedTuple):
    """Plain text. The title is one line."""

    title: str
    body: str
    needs_attention: bool = False
    """Whether somebody should look."""


def gather(found: Iterable[tuple[str, str]]) -> dict[str, DigestPart]:
    """Parts from (kind, line), in the order of LABELS; only the first lines of each are kept in memory."""
    counts = dict.fromkeys(LABELS, 0)
    lines: dict[str, list[str]] = {kind: [] for kind in LABELS}
    for kind, line in found:
        counts[kind] += 1
        if counts[kind] <= LINES:
            lines[kind].append(line)
    return {kind: DigestPart(count, tuple(lines[kind])) for kind, count in counts.items() if count}


def message(digest: Digest) -> Message:
    """The message for ``digest``."""
    needs_attention = bool(digest.parts.keys() & {*TARGET_ISSUE_KINDS})
    return Message(_title(digest.name, digest.parts), "\n".join(_body(digest)), needs_attention)


def together(digests: Sequence[Digest]) -> Message:
    """One message for many runs, so that a receiver does not get a hundred after an outage."""
    found: dict[str, DigestPart] = {}
    for kind in LABELS:
        parts = [digest.parts[kind] for digest in digests if kind in digest.parts]
        if parts:
            lines = [line for part in parts for line in part.lines]
            found[kind] = DigestPart(sum(part.total for part in parts), tuple(lines[:LINES]))
    spans = [digest.changes_between for digest in digests if digest.changes_between]
    between = (min(span[0] for span in spans), max(span[1] for span in spans)) if spans else None
    names = ", ".join(sorted({digest.name for digest in digests}))
    summary = f"{len(digests)} runs ({names}) that could not be reported to this receiver before."
    return message(Digest(name=f"{len(digests)} runs", summary=summary, parts=found, changes_between=between))


def shortened(full: Message, fits: Callable[[str], bool]) -> Message:
    """The message with as many lines as fit; the commands that show the rest stay."""
    if fits(full.body):
        return full
    listed, mark, commands = full.body.partition(_MORE)
    lines = listed.splitlines()
    while len(lines) > 1 and not fits("\n".join([*lines, _CUT, mark + commands])):
        lines.pop()
    return full._replace(body="\n".join([*lines, _CUT, mark + commands]))


def quoted(foreign: str | None, longest: int = _LONGEST_NAME) -> str:
    """A foreign name as plain text: on one line, shortened, with markup and mentions escaped."""
    text = _MARKUP.sub(lambda match: f"\\x{ord(match[0]):02x}", printable(foreign or ""))
    return text if len(text) <= longest else text[: longest - 1] + "…"


def cut(text: str) -> str:
    """A sentence that may quote foreign text, escaped the same way."""
    return quoted(text, _LONGEST_MESSAGE)


def cycle(code: str | None) -> str:
    """A cycle for people: "day"; undocumented cycles stay as they are."""
    return "none" if code is None else CYCLE_LABELS.get(code) or quoted(code)


def _title(name: str, parts: Mapping[str, DigestPart]) -> str:
    sums = ", ".join(f"{part.total} {LABELS[kind][part.total != 1]}" for kind, part in parts.items())
    return f"Flowtrail {name}: {sums}" if name else f"Flowtrail: {sums}"


def _body(digest: Digest) -> Iterable[str]:
    yield digest.summary
    share = max(_FEWEST_LINES, LINES // max(1, len(digest.parts)))
    for kind, part in digest.parts.items():
        yield f"\n{LABELS[kind].heading} ({part.total}):"
        yield from (f"  {line}" for line in part.lines[:share])
        if part.total > share:
            yield f"  and {part.total - share} more"
    yield _MORE
    yield from (f"  {command}" for command in _commands(digest))


def _commands(digest: Digest) -> Iterable[str]:
    if digest.changes_between and digest.parts.keys() & {*DELTA_KINDS}:
        since, until = digest.changes_between
        yield f"flowtrail changes --since {since} --until {until}"
    if "held" in digest.parts:
        yield "flowtrail guard list"
    if digest.changes_between and digest.parts.keys() & {*ORGANISATION_KINDS}:
        since, _ = digest.changes_between
        yield f"flowtrail events --since {since}"
    if digest.parts.keys() - {*DELTA_KINDS, *ORGANISATION_KINDS, "held"} or not digest.parts:
        yield "flowtrail status"


# What a run is reported with

ISSUE_VERDICTS: Final = tuple(kind for kind in TARGET_ISSUE_KINDS if kind in VERDICTS)
"""Those that a run finds; the others come from ``overdue_notices``."""
_ENDED: Final = {"failed": "gives valid answers again", "held": "no longer holds removals"}
_ORIGINS: Final = {"command": "sync", "approval": "approval"}


class _Change(NamedTuple):
    """A change of one workflow of an organisation, and how many users saw it; or (``user_id`` '') in its directory."""

    kind: str
    org_id: str
    flow_id: str
    old_name: str | None
    new_name: str | None
    old_cycle: str | None
    new_cycle: str | None
    new_editable: bool | None
    users: int
    user_id: str
    last_unchanged_at: dt.datetime | None
    observed_at: dt.datetime

    def line(self) -> str:
        name = quoted(self.old_name if self.kind == "removed" else self.new_name)
        one = f"({quoted(self.user_id)})" if self.user_id else DIRECTORY
        who = one if self.users == 1 else f"({self.users} users)"
        return f"{quoted(self.org_id)} {quoted(self.flow_id)} {name}{self._what()} {who}"

    def _what(self) -> str:
        match self.kind:
            case "cycle_changed":
                return f": {cycle(self.old_cycle)} to {cycle(self.new_cycle)}"
            case "renamed":
                return f", before: {quoted(self.old_name)}"
            case "editable_changed":
                return {True: ": editable", False: ": not editable", None: ": editability unknown"}[self.new_editable]
        return f", cycle: {cycle(self.new_cycle or self.old_cycle)}" if self.user_id else ""


class _Event(NamedTuple):
    """Something that happened to a workflow in its organisation."""

    kind: str
    org_id: str
    flow_id: str
    user_id: str | None
    old_name: str | None
    new_name: str | None
    users_before: int
    users_after: int
    proven_for_all: bool
    last_unchanged_at: dt.datetime | None
    observed_at: dt.datetime
    in_directory: bool | None

    def line(self) -> str:
        name = quoted(self.new_name or self.old_name)
        what = f"{quoted(self.org_id)} {quoted(self.flow_id)} {name}{self._who()}"
        if self.kind == "disappeared" and self.in_directory is not None:
            what += f": {GONE[self.in_directory]}"
        return what if self.proven_for_all else f"{what}, not proven"

    def _who(self) -> str:
        if self.user_id is not None:
            return f": {quoted(self.user_id)}"
        users = self.users_before if self.kind == "disappeared" else self.users_after
        return f", seen by {users} user{'' if users == 1 else 's'}{' before' if self.kind == 'disappeared' else ''}"


def _schedule(freq: str) -> str:
    """Without quotation marks that a chat takes for markup."""
    words = quartz_in_words(freq)
    return f"{freq} ({words})" if words else freq


def digest_of(
    engine: Engine,
    run: UnnotifiedRun,
    on: Sequence[str],
    orgs: Sequence[str],
    unacknowledged: bool = False,
    *,
    enos_zone: dt.tzinfo | None = None,
) -> Digest | None:
    """The digest of ``run`` for a subscription to these kinds and organisations (none: all); None if nothing happened.

    ``unacknowledged``: without changes and events that somebody has acknowledged by now.
    A failure or a hold is reported when it begins: not if the target's previous attempt ended in the same way.
    """
    found = gather(_found(engine, run, on, orgs, unacknowledged, enos_zone))
    if not found:
        return None
    name = run.schedule or _ORIGINS.get(run.origin, run.origin)
    summary = f"Run {run.id} of {name} {run.status} at {run.finished_at.astimezone(dt.UTC):%Y-%m-%d %H:%M:%S} UTC."
    until = run.finished_at + dt.timedelta(seconds=1)
    return Digest(name=name, summary=summary, parts=found, changes_between=(_moment(run.started_at), _moment(until)))


def _found(
    engine: Engine,
    run: UnnotifiedRun,
    on: Sequence[str],
    orgs: Sequence[str],
    unacknowledged: bool,
    enos_zone: dt.tzinfo | None,
) -> Iterator[tuple[str, str]]:
    if kinds := [kind for kind in on if kind in DELTA_KINDS]:
        yield from _lines(engine, _changes(run, kinds, orgs, unacknowledged), _Change, enos_zone)
    if event_kinds := [kind for kind in on if kind in ORGANISATION_KINDS]:
        yield from _lines(engine, _events(run, event_kinds, orgs, unacknowledged), _Event, enos_zone)
    given = {"run_id": run.id, "finished_at": run.finished_at, "orgs": list(orgs), "of_all": not orgs}
    for kind in (verdicts := [kind for kind in on if kind in ISSUE_VERDICTS]):
        known = [kind] if kind == "held" else ISSUE_VERDICTS
        issues = _NEW_ISSUES.params(kind=kind, known=known, **given)
        for *names, what, error_code in stream(engine, issues, tuple[Any, ...]):
            code = f" ({quoted(error_code)})" if error_code else ""
            yield kind, f"{quoted(str(Target(*names)))}: {cut(what)}{code}"
    if verdicts:
        ended = _ENDED_ISSUES.params(verdicts=verdicts, started_at=run.started_at, **given)
        for *names, verdict in stream(engine, ended, tuple[Any, ...]):
            yield "recovered", f"{quoted(str(Target(*names)))}: {_ENDED[verdict]}"


def _lines(
    engine: Engine, rows: Select[Any], record: type[_Change | _Event], zone: dt.tzinfo | None
) -> Iterator[tuple[str, str]]:
    """Kind and line of each, with what EnOS said about it, if it was asked; ``zone``: EnOS's."""
    width = len(record._fields)
    for row in stream(engine, rows, tuple[Any, ...]):
        it, detail = record(*row[:width]), ChangeDetail(*row[width:])
        said = sentence(*detail, (it.last_unchanged_at, it.observed_at), zone, _schedule)
        yield it.kind, f"{it.line()}; {cut(said)}" if said else it.line()


def _statement(name: str, kinds: str) -> TextClause:
    """What the file has, for a list of ``kinds`` and of organisations."""
    statement = text((files("etl.notify") / f"{name}.sql").read_text("utf-8"))
    return statement.bindparams(
        bindparam(kinds, expanding=True, type_=String),
        bindparam("orgs", expanding=True, type_=String),
        bindparam("finished_at", type_=UtcTime),
    )


_NEW_ISSUES: Final = _statement("new_issues", "known")
_ENDED_ISSUES: Final = _statement("ended_issues", "verdicts").bindparams(bindparam("started_at", type_=UtcTime))


def _changes(run: UnnotifiedRun, kinds: Sequence[str], orgs: Sequence[str], unacknowledged: bool) -> Select[Any]:
    wanted: list[ColumnElement[bool]] = [target.c.org_id.in_(orgs)] if orgs else []
    if unacknowledged:
        listed, same = view("list_change", ListChange), ("change_set_id", "flow_id", "kind")
        mine = (listed.c[name] == workflow_change.c[name] for name in same)
        wanted.append(exists().where(*mine, listed.c.acknowledged_at.is_(None)))
    what = [workflow_change.c[name] for name in _Change._fields[2:8]]
    # the directory is no user: its changes are lines of their own
    of_directory: ColumnElement[int] = literal_column("CASE WHEN target.user_id = '' THEN 1 ELSE 0 END")
    return (
        select(
            workflow_change.c.kind,
            target.c.org_id,
            *what,
            func.count(distinct(target.c.user_id)).label("users"),
            func.min(target.c.user_id).label("user_id"),
            func.min(change_set.c.last_unchanged_at).label("last_unchanged_at"),
            func.max(change_set.c.observed_at).label("observed_at"),
            *_detail_columns(run.id, target.c.org_id, workflow_change.c.flow_id),
        )
        .join_from(change_set, workflow_change, workflow_change.c.change_set_id == change_set.c.id)
        .join(target, target.c.id == change_set.c.target_id)
        .where(change_set.c.run_id == run.id, CHANGE_KIND.in_(kinds), *wanted)
        .group_by(workflow_change.c.kind, target.c.org_id, *what, of_directory)
        .order_by(target.c.org_id, workflow_change.c.flow_id, workflow_change.c.kind, of_directory)
    )


def _events(run: UnnotifiedRun, kinds: Sequence[str], orgs: Sequence[str], unacknowledged: bool) -> Select[Any]:
    event = view("org_workflow_event", OrgWorkflowEvent).c
    found = [event.run_id == run.id, event.kind.in_(kinds)]
    found += [event.org_id.in_(orgs)] if orgs else []
    found += [event.acknowledged_at.is_(None)] if unacknowledged else []
    columns = [*(event[name] for name in _Event._fields), *_detail_columns(run.id, event.org_id, event.flow_id)]
    return select(*columns).where(*found).order_by(event.event_id)


def _detail_columns(run_id: int, org_id: ColumnElement[str], flow_id: ColumnElement[str]) -> list[ColumnElement[Any]]:
    """The columns of ChangeDetail: what EnOS said about a changed workflow at the end of the run."""
    detail = workflow_detail
    mine = (detail.c.org_id == org_id, detail.c.flow_id == flow_id, detail.c.run_id == run_id)
    columns = (detail.c.update_user, detail.c.update_time, freq_before(detail), detail.c.freq, detail.c.enos_timezone)
    return [
        select(column).select_from(detail).where(*mine).limit(1).scalar_subquery().label(name)
        for name, column in zip(ChangeDetail._fields, columns, strict=True)
    ]


def _moment(at: dt.datetime) -> str:
    return f"{at.astimezone(dt.UTC):%Y-%m-%dT%H:%M:%SZ}"
