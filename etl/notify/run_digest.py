"""What receivers are told of a run, read from the trail: the same whenever, and however often, it is read."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from importlib.resources import files
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Engine, Select, String, TextClause, bindparam, distinct, func, select, text

from etl.config.slots import quartz_in_words
from etl.domain.answers import sentence
from etl.domain.kinds import DELTA_KINDS, ORGANISATION_KINDS, TARGET_ISSUE_KINDS
from etl.domain.model import VERDICTS, Target
from etl.notify import digest
from etl.notify.digest import Digest
from etl.report.details import ChangeDetail, freq_before
from etl.report.reading import stream
from etl.schema import CHANGE_KIND, UtcTime, change_set, org_event, target, workflow_change, workflow_detail
from etl.store import UnnotifiedRun

ISSUE_VERDICTS: Final = tuple(kind for kind in TARGET_ISSUE_KINDS if kind in VERDICTS)
"""Those that a run finds; the others come from ``overdue_notices``."""
_ORIGINS: Final = {"command": "sync", "approval": "approval"}


class _Change(NamedTuple):
    """A change of one workflow of an organisation, and how many users saw it."""

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
    update_user: str | None
    update_time: str | None
    old_freq: str | None
    new_freq: str | None

    def line(self, enos_zone: dt.tzinfo | None) -> str:
        name = digest.quoted(self.old_name if self.kind == "removed" else self.new_name)
        who = digest.quoted(self.user_id) if self.users == 1 else f"{self.users} users"
        what = f"{digest.quoted(self.org_id)} {digest.quoted(self.flow_id)} {name}{self._what()} ({who})"
        return what + _detail_of(self, enos_zone)

    def _what(self) -> str:
        match self.kind:
            case "cycle_changed":
                return f": {digest.cycle(self.old_cycle)} to {digest.cycle(self.new_cycle)}"
            case "renamed":
                return f", before: {digest.quoted(self.old_name)}"
            case "editable_changed":
                return {True: ": editable", False: ": not editable", None: ": editability unknown"}[self.new_editable]
        return f", cycle: {digest.cycle(self.new_cycle or self.old_cycle)}"


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
    update_user: str | None
    update_time: str | None
    old_freq: str | None
    new_freq: str | None

    def line(self, enos_zone: dt.tzinfo | None) -> str:
        name = digest.quoted(self.new_name or self.old_name)
        what = f"{digest.quoted(self.org_id)} {digest.quoted(self.flow_id)} {name}{self._who()}"
        return f"{what}{'' if self.proven_for_all else ', not proven'}{_detail_of(self, enos_zone)}"

    def _who(self) -> str:
        if self.user_id is not None:
            return f": {digest.quoted(self.user_id)}"
        users = self.users_before if self.kind == "disappeared" else self.users_after
        return f", seen by {users} user{'' if users == 1 else 's'}{' before' if self.kind == 'disappeared' else ''}"


def _detail_of(of: _Change | _Event, zone: dt.tzinfo | None) -> str:
    """What EnOS said about it, if it was asked; ``zone``: EnOS's."""
    detail = ChangeDetail(of.update_user, of.update_time, of.old_freq, of.new_freq)
    text = sentence(*detail, (of.last_unchanged_at, of.observed_at), zone, _schedule)
    return f"; {digest.cut(text)}" if text else ""


def _schedule(freq: str) -> str:
    """Without quotation marks that a chat takes for markup."""
    words = quartz_in_words(freq)
    return f"{freq} ({words})" if words else freq


class _Issue(NamedTuple):
    kind: str
    org_id: str
    user_id: str
    expression: str
    message: str
    error_code: str | None

    def __str__(self) -> str:
        code = f" ({digest.quoted(self.error_code)})" if self.error_code else ""
        return f"{_label(self)}: {digest.cut(self.message)}{code}"


class _Recovery(NamedTuple):
    org_id: str
    user_id: str
    expression: str
    verdict: str

    def __str__(self) -> str:
        ended = "gives valid answers again" if self.verdict == "failed" else "no longer holds removals"
        return f"{_label(self)}: {ended}"


def digest_of(
    engine: Engine,
    run: UnnotifiedRun,
    on: Sequence[str],
    orgs: Sequence[str],
    enos_zone: dt.tzinfo | None = None,
) -> Digest | None:
    """The digest of ``run`` for a subscription to these kinds and organisations (none: all); None if nothing happened.

    A failure or a hold is reported when it begins: not if the target's previous attempt ended in the same way.
    """
    found = digest.gather(_found(engine, run, on, orgs, enos_zone))
    if not found:
        return None
    name = run.schedule or _ORIGINS.get(run.origin, run.origin)
    summary = f"Run {run.id} of {name} {run.status} at {run.finished_at.astimezone(dt.UTC):%Y-%m-%d %H:%M:%S} UTC."
    until = run.finished_at + dt.timedelta(seconds=1)
    return Digest(name=name, summary=summary, parts=found, changes_between=(_moment(run.started_at), _moment(until)))


def _found(
    engine: Engine, run: UnnotifiedRun, on: Sequence[str], orgs: Sequence[str], enos_zone: dt.tzinfo | None
) -> Iterator[tuple[str, str]]:
    if kinds := [kind for kind in on if kind in DELTA_KINDS]:
        changes = stream(engine, _changes(run, kinds, orgs), _Change)
        yield from ((change.kind, change.line(enos_zone)) for change in changes)
    if event_kinds := [kind for kind in on if kind in ORGANISATION_KINDS]:
        events = stream(engine, _events(run, event_kinds, orgs), _Event)
        yield from ((event.kind, event.line(enos_zone)) for event in events)
    verdicts = [kind for kind in on if kind in ISSUE_VERDICTS]
    given = {"run_id": run.id, "finished_at": run.finished_at, "orgs": list(orgs), "of_all": not orgs}
    for kind in verdicts:
        known = [kind] if kind == "held" else ISSUE_VERDICTS
        issues = stream(engine, _NEW_ISSUES.params(kind=kind, known=known, **given), _Issue)
        yield from ((kind, str(each)) for each in issues)
    if verdicts:
        ended = _ENDED_ISSUES.params(verdicts=verdicts, started_at=run.started_at, **given)
        yield from (("recovered", str(each)) for each in stream(engine, ended, _Recovery))


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


def _changes(run: UnnotifiedRun, kinds: Sequence[str], orgs: Sequence[str]) -> Select[Any]:
    of_orgs = [target.c.org_id.in_(orgs)] if orgs else []
    what = [workflow_change.c[name] for name in _Change._fields[2:8]]
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
        .where(change_set.c.run_id == run.id, CHANGE_KIND.in_(kinds), *of_orgs)
        .group_by(workflow_change.c.kind, target.c.org_id, *what)
        .order_by(target.c.org_id, workflow_change.c.flow_id, workflow_change.c.kind)
    )


def _events(run: UnnotifiedRun, kinds: Sequence[str], orgs: Sequence[str]) -> Select[Any]:
    found = [org_event.c.run_id == run.id, org_event.c.kind.in_(kinds)]
    found += [org_event.c.org_id.in_(orgs)] if orgs else []
    columns = [org_event.c[name] for name in _Event._fields if name in org_event.c]
    details = _detail_columns(run.id, org_event.c.org_id, org_event.c.flow_id)
    return select(*columns, *details).where(*found).order_by(org_event.c.event_id)


def _detail_columns(run_id: int, org_id: ColumnElement[str], flow_id: ColumnElement[str]) -> list[ColumnElement[Any]]:
    """The columns of ChangeDetail: what EnOS said about a changed workflow at the end of the run."""
    detail = workflow_detail
    mine = (detail.c.org_id == org_id, detail.c.flow_id == flow_id, detail.c.run_id == run_id)
    columns = (detail.c.update_user, detail.c.update_time, freq_before(detail), detail.c.freq)
    return [
        select(column).select_from(detail).where(*mine).limit(1).scalar_subquery().label(name)
        for name, column in zip(ChangeDetail._fields, columns, strict=True)
    ]


def _label(row: _Issue | _Recovery) -> str:
    return digest.quoted(str(Target(row.org_id, row.user_id, row.expression)))


def _moment(at: dt.datetime) -> str:
    return f"{at.astimezone(dt.UTC):%Y-%m-%dT%H:%M:%SZ}"
