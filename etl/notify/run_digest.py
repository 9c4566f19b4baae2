"""What receivers are told of a run, read from the trail: the same whenever, and however often, it is read."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Engine,
    FromClause,
    ScalarSelect,
    Select,
    and_,
    distinct,
    exists,
    func,
    or_,
    select,
)

from etl.config.slots import quartz_in_words
from etl.database import reading
from etl.domain.detail import sentence
from etl.domain.kinds import DELTA_KINDS, ORGANISATION_KINDS, TARGET_ISSUE_KINDS
from etl.domain.model import VERDICTS, Target
from etl.notify import digest
from etl.notify.digest import Digest
from etl.report.details import ChangeDetail, freq_before
from etl.report.reading import stream
from etl.schema import (
    CHANGE_KIND,
    TARGET_KEY,
    change_set,
    observation,
    org_event,
    sync_issue,
    sync_run,
    target,
    workflow_change,
    workflow_detail,
)
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
        return f"{_named(self)}: {digest.cut(self.message)}{code}"


class _Recovery(NamedTuple):
    org_id: str
    user_id: str
    expression: str
    verdict: str
    since: dt.datetime
    schedule: str | None
    """The schedule of the last run with the issue."""
    at: dt.datetime

    def __str__(self) -> str:
        ended = "gives valid answers again" if self.verdict == "failed" else "no longer holds removals"
        return f"{_named(self)}: {ended}"


class _Period(NamedTuple):
    """The time of a run; without an end it is still under way."""

    id: int
    schedule: str | None
    started_at: dt.datetime
    finished_at: dt.datetime | None


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
    of_orgs = [target.c.org_id.in_(orgs)] if orgs else []
    kinds, verdicts = [kind for kind in on if kind in DELTA_KINDS], [kind for kind in on if kind in ISSUE_VERDICTS]
    if kinds:
        changes = stream(engine, _changes(run, kinds, of_orgs), _Change)
        yield from ((change.kind, change.line(enos_zone)) for change in changes)
    if organisation_kinds := [kind for kind in on if kind in ORGANISATION_KINDS]:
        events = stream(engine, _events(run, organisation_kinds, orgs), _Event)
        yield from ((event.kind, event.line(enos_zone)) for event in events)
    for kind in verdicts:
        yield from ((kind, str(each)) for each in stream(engine, _new_issues(run, kind, of_orgs), _Issue))
    if verdicts:
        yield from (("recovered", str(each)) for each in _recoveries(engine, run, verdicts, of_orgs))


def _changes(run: UnnotifiedRun, kinds: Sequence[str], of_orgs: Sequence[ColumnElement[bool]]) -> Select[Any]:
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


def _new_issues(run: UnnotifiedRun, kind: str, of_orgs: Sequence[ColumnElement[bool]]) -> Select[Any]:
    """The run's issues of one kind whose target did not have one before.

    After a failure or a hold, a valid answer that is not doubted always opens a span: so a span since the previous
    issue shows that there was one. Failures do not end a hold; a held answer is valid, and ends a series of failures.
    """
    before, its_run = sync_issue.alias("before"), sync_run.alias("its_run")
    known = (kind,) if kind == "held" else ISSUE_VERDICTS
    latest = (
        select(func.max(before.c.id))
        .where(before.c.target_id == sync_issue.c.target_id, before.c.id < sync_issue.c.id)
        .where(before.c.verdict.in_(known))
        .correlate(sync_issue)
        .scalar_subquery()
    )
    good_since = (
        select(observation.c.first_at)
        .where(observation.c.target_id == sync_issue.c.target_id, observation.c.first_at < run.finished_at)
        .order_by(observation.c.id.desc())
        .limit(1)
        .correlate(sync_issue)
        .scalar_subquery()
    )
    is_new = or_(before.c.id.is_(None), before.c.verdict != kind, good_since > its_run.c.started_at)
    return (
        select(
            sync_issue.c.verdict,
            target.c.org_id,
            target.c.user_id,
            target.c.expression,
            sync_issue.c.message,
            sync_issue.c.error_code,
        )
        .join_from(sync_issue, target, target.c.id == sync_issue.c.target_id)
        .join(before, before.c.id == latest, isouter=True)
        .join(its_run, its_run.c.id == before.c.run_id, isouter=True)
        .where(sync_issue.c.run_id == run.id, sync_issue.c.verdict == kind, is_new, *of_orgs)
        .order_by(*TARGET_KEY)
    )


def _recoveries(
    engine: Engine, run: UnnotifiedRun, verdicts: Sequence[str], of_orgs: Sequence[ColumnElement[bool]]
) -> Iterator[_Recovery]:
    """Targets whose failures or hold ended during the run, except those that a concurrent run reports."""
    found = list(stream(engine, _ended_issues(run, verdicts, of_orgs), _Recovery))
    if not found:
        return
    with reading(engine) as connection:
        meanwhile = select(*(sync_run.c[name] for name in _Period._fields)).where(
            sync_run.c.started_at <= run.finished_at,
            or_(sync_run.c.finished_at.is_(None), sync_run.c.finished_at >= run.started_at),
        )
        periods = [_Period(*row) for row in connection.execute(meanwhile)]
    yield from (each for each in found if _owner(each, periods) == run.id)


def _owner(recovery: _Recovery, periods: Sequence[_Period]) -> int:
    """The run that reports it: one of the schedule that had the issue, else the first."""
    covering = [p for p in periods if p.started_at <= recovery.at <= (p.finished_at or recovery.at)]
    same = [period.id for period in covering if period.schedule == recovery.schedule]
    return min(same or [period.id for period in covering])


def _ended_issues(run: UnnotifiedRun, verdicts: Sequence[str], of_orgs: Sequence[ColumnElement[bool]]) -> Select[Any]:
    """Targets with a span that opened during the run, and an issue since the span before it."""
    opened, earlier = observation.alias("opened"), observation.alias("earlier")
    issue, its_run = sync_issue.alias("issue"), sync_run.alias("its_run")
    # not finished_at: for an abandoned run, that is when it was noticed
    seen_between = exists().where(
        earlier.c.target_id == target.c.id,
        earlier.c.id < opened.c.id,
        earlier.c.first_at > its_run.c.heartbeat_at,
    )
    return (
        select(
            target.c.org_id,
            target.c.user_id,
            target.c.expression,
            issue.c.verdict,
            its_run.c.started_at,
            its_run.c.schedule,
            opened.c.first_at,
        )
        .join_from(target, opened, and_(opened.c.id == _latest_span(run), opened.c.first_at >= run.started_at))
        .join(issue, issue.c.id == _latest_issue_before(opened, run, verdicts))
        .join(its_run, its_run.c.id == issue.c.run_id)
        .where(~seen_between, *of_orgs)
        .order_by(*TARGET_KEY)
    )


def _latest_span(run: UnnotifiedRun) -> ScalarSelect[int]:
    """The last span of ``target`` that had opened when the run ended."""
    return (
        select(observation.c.id)
        .where(observation.c.target_id == target.c.id, observation.c.first_at <= run.finished_at)
        .order_by(observation.c.id.desc())
        .limit(1)
        .correlate(target)
        .scalar_subquery()
    )


def _latest_issue_before(opened: FromClause, run: UnnotifiedRun, verdicts: Sequence[str]) -> ScalarSelect[int]:
    """The last issue of ``target`` from another run, which began before the span ``opened``."""
    issue, its_run = sync_issue.alias("older"), sync_run.alias("older_run")
    return (
        select(issue.c.id)
        .join_from(issue, its_run, its_run.c.id == issue.c.run_id)
        .where(issue.c.target_id == target.c.id, issue.c.verdict.in_(verdicts))
        .where(issue.c.run_id != run.id, its_run.c.started_at < opened.c.first_at)
        .order_by(issue.c.id.desc())
        .limit(1)
        .correlate(target, opened)
        .scalar_subquery()
    )


def _named(row: _Issue | _Recovery) -> str:
    return digest.quoted(str(Target(row.org_id, row.user_id, row.expression)))


def _moment(at: dt.datetime) -> str:
    return f"{at.astimezone(dt.UTC):%Y-%m-%dT%H:%M:%SZ}"
