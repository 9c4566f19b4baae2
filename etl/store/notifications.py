"""What receivers have been told of: runs, overdue targets, and the conditions that the active service stores."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, and_, bindparam, delete, func, or_, select, update

from etl.domain.model import Origin, RunStatus, Target
from etl.schema import TARGET_KEY, condition, finding, overdue_notice, rule, sync_run, target
from etl.store import webhooks
from etl.store.bulk import insert_into
from etl.store.webhooks import NewNotice


class UnnotifiedRun(NamedTuple):
    """A run that has ended without all receivers being known to have heard of it."""

    id: int
    schedule: str | None
    origin: Origin
    status: RunStatus
    started_at: dt.datetime
    finished_at: dt.datetime


class NotifiableTarget(NamedTuple):
    """A target with its id, and since when receivers know that it is overdue (None: they do not)."""

    id: int
    target: Target
    notified_at: dt.datetime | None


def unnotified_runs(connection: Connection, since: dt.datetime) -> list[UnnotifiedRun]:
    """The runs that finished ``since`` then, in that order, whatever the order of their ids."""
    columns = [sync_run.c[name] for name in UnnotifiedRun._fields]
    unnotified = (sync_run.c.notified_at.is_(None), sync_run.c.finished_at >= since)
    found = select(*columns).where(*unnotified).order_by(sync_run.c.finished_at, sync_run.c.id)
    return [UnnotifiedRun(*row) for row in connection.execute(found)]


def mark_notified(connection: Connection, run_id: int, now: dt.datetime) -> bool:
    """Record that every receiver was told of the run; False if another process has done so."""
    mine = update(sync_run).where(sync_run.c.id == run_id, sync_run.c.notified_at.is_(None))
    return connection.execute(mine.values(notified_at=now)).rowcount == 1


def known_targets(connection: Connection) -> list[NotifiableTarget]:
    """Every target that is not retired, and retired ones that receivers know to be overdue."""
    listed = (
        select(target.c.id, *TARGET_KEY, overdue_notice.c.notified_at)
        .join_from(target, overdue_notice, overdue_notice.c.target_id == target.c.id, isouter=True)
        .where(target.c.retired_at.is_(None) | overdue_notice.c.notified_at.is_not(None))
    )
    return [NotifiableTarget(id_, Target(*named), at) for id_, *named, at in connection.execute(listed)]


def mark_overdue(connection: Connection, target_ids: Sequence[int], now: dt.datetime) -> None:
    """Record that receivers know these targets to be overdue."""
    rows = [{"target_id": target_id, "notified_at": now} for target_id in sorted(target_ids)]
    connection.execute(insert_into(connection, overdue_notice).on_conflict_do_nothing(), rows)


def clear_overdue(connection: Connection, target_ids: Sequence[int]) -> None:
    """Record that these targets are no longer overdue."""
    rows = [{"gone": target_id} for target_id in sorted(target_ids)]
    connection.execute(delete(overdue_notice).where(overdue_notice.c.target_id == bindparam("gone")), rows)


class OpenCondition(NamedTuple):
    """Something that is wrong. ``code`` and ``cause`` identify it; ``named`` is a JSON list of subjects."""

    code: str
    cause: str
    since: dt.datetime
    subjects: int
    named: str
    said: str
    remedy: str


class ConditionChanges(NamedTuple):
    """The conditions that began and ended since the last call of ``keep``."""

    began: Sequence[OpenCondition]
    ended: Sequence[OpenCondition]


class UnnotifiedCondition(NamedTuple):
    """A condition whose beginning, or end, receivers do not know yet."""

    condition: OpenCondition
    ended_at: dt.datetime | None


_COLUMNS = tuple(condition.c[name] for name in OpenCondition._fields)


def open_conditions(connection: Connection) -> list[OpenCondition]:
    """The conditions that have not ended."""
    return [OpenCondition(*row) for row in connection.execute(select(*_COLUMNS).where(condition.c.ended_at.is_(None)))]


def keep_conditions(connection: Connection, found: Sequence[OpenCondition], now: dt.datetime) -> ConditionChanges:
    """Store what is wrong now. A condition that comes back before receivers knew of its end has never ended."""
    known = {each[:2]: each for each in open_conditions(connection)}
    wrong = {each[:2]: each for each in found}
    began = [each for key, each in wrong.items() if key not in known]
    ended = [each for key, each in known.items() if key not in wrong]
    for each in began:
        new = insert_into(connection, condition).values(each._asdict())
        connection.execute(new.on_conflict_do_update(index_elements=condition.primary_key, set_={"ended_at": None}))
    for each in wrong.values():
        before = known.get(each[:2])
        if before is not None and before != each._replace(since=before.since):
            connection.execute(update(condition).where(_is(each)).values(**each._replace(since=before.since)._asdict()))
    for each in ended:
        unnotified = and_(_is(each), condition.c.begin_told_at.is_(None))
        if not connection.execute(delete(condition).where(unnotified)).rowcount:
            connection.execute(update(condition).where(_is(each)).values(ended_at=now))
    notices = [_notice("condition.began", each, each.since) for each in began]
    notices += [_notice("condition.ended", each, now, ended_at=now) for each in ended]
    webhooks.note(connection, notices, now)
    return ConditionChanges(began, ended)


def _notice(kind: str, each: OpenCondition, at: dt.datetime, ended_at: dt.datetime | None = None) -> NewNotice:
    known = {name: getattr(each, name) for name in ("code", "cause", "since", "subjects", "remedy")}
    data = {**known, "first": json.loads(each.named), "summary": each.said, "ended_at": ended_at}
    return NewNotice(kind, at, each.code, data)


def unnotified_conditions(connection: Connection) -> list[UnnotifiedCondition]:
    """The beginnings and ends that receivers do not know yet."""
    is_pending = or_(condition.c.begin_told_at.is_(None), condition.c.ended_at.is_not(None))
    rows = connection.execute(
        select(*_COLUMNS, condition.c.ended_at).where(is_pending).order_by(*condition.primary_key)
    )
    return [UnnotifiedCondition(OpenCondition(*row[:-1]), row.ended_at) for row in rows]


def mark_conditions_notified(connection: Connection, notified: Sequence[UnnotifiedCondition], now: dt.datetime) -> None:
    """Record that every receiver knows of these; ended ones are deleted."""
    for each in notified:
        if each.ended_at is not None:
            connection.execute(delete(condition).where(_is(each.condition), condition.c.ended_at.is_not(None)))
        else:
            connection.execute(update(condition).where(_is(each.condition)).values(begin_told_at=now))


def _is(each: OpenCondition) -> ColumnElement[bool]:
    return and_(condition.c.code == each.code, condition.c.cause == each.cause)


class UntoldRule(NamedTuple):
    """A rule that has findings which receivers do not know, or none any more although they know of some."""

    rule: str
    title: str
    severity: str
    open: int
    new: int
    """Open findings that receivers do not know."""
    newest: int
    """The highest id of an open finding, or else the one that they know."""
    ended_by: str | None
    """How the finding that ended last did."""


def untold_rules(connection: Connection) -> list[UntoldRule]:
    """The rules of which receivers must be told."""
    is_open = and_(finding.c.rule == rule.c.rule, finding.c.until.is_(None))
    of_rule = (rule.c.rule, rule.c.title, rule.c.severity, rule.c.broken_told_at)
    many, new = func.count(finding.c.id), func.count().filter(finding.c.id > rule.c.told_id)
    newest = func.coalesce(func.max(finding.c.id), rule.c.told_id)
    last = select(finding.c.ended_by).where(finding.c.rule == rule.c.rule, finding.c.until.is_not(None))
    last = last.order_by(finding.c.until.desc(), finding.c.id.desc()).limit(1).correlate(rule)
    found = select(*of_rule, many, new, newest, last.scalar_subquery()).join_from(rule, finding, is_open, isouter=True)
    rows = connection.execute(found.group_by(rule.c.rule).order_by(rule.c.rule))
    return [UntoldRule(*row[:3], *row[4:]) for row in rows if row[5] or (row.broken_told_at and not row[4])]


def mark_rules_notified(connection: Connection, notified: Sequence[UntoldRule], now: dt.datetime) -> None:
    """Record that every receiver knows of these."""
    for each in notified:
        known = update(rule).where(rule.c.rule == each.rule)
        connection.execute(known.values(told_id=each.newest, broken_told_at=now if each.open else None))
