"""The conditions that the active service stores: each begins once and ends once."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, and_, delete, insert, or_, select, update

from etl.schema import condition


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


def listed(connection: Connection) -> list[OpenCondition]:
    """The conditions that have not ended."""
    return [OpenCondition(*row) for row in connection.execute(select(*_COLUMNS).where(condition.c.ended_at.is_(None)))]


def keep(connection: Connection, found: Sequence[OpenCondition], now: dt.datetime) -> ConditionChanges:
    """Store what is wrong now. A condition that comes back before receivers knew of its end has never ended."""
    rows = {row[:2]: row for row in connection.execute(select(*_COLUMNS, condition.c.ended_at))}
    known = {key: OpenCondition(*row[:-1]) for key, row in rows.items() if row.ended_at is None}
    wrong = {each[:2]: each for each in found}
    began = [each for key, each in wrong.items() if key not in known]
    ended = [each for key, each in known.items() if key not in wrong]
    for each in began:
        if each[:2] in rows:
            connection.execute(update(condition).where(_is(each)).values(ended_at=None))
        else:
            connection.execute(insert(condition).values(each._asdict()))
    for each in wrong.values():
        before = known.get(each[:2])
        if before is not None and before != each._replace(since=before.since):
            connection.execute(update(condition).where(_is(each)).values(**each._replace(since=before.since)._asdict()))
    for each in ended:
        unnotified = and_(_is(each), condition.c.begin_told_at.is_(None))
        if not connection.execute(delete(condition).where(unnotified)).rowcount:
            connection.execute(update(condition).where(_is(each)).values(ended_at=now))
    return ConditionChanges(began, ended)


def unnotified(connection: Connection) -> list[UnnotifiedCondition]:
    """The beginnings and ends that receivers do not know yet."""
    is_pending = or_(condition.c.begin_told_at.is_(None), condition.c.ended_at.is_not(None))
    rows = connection.execute(
        select(*_COLUMNS, condition.c.ended_at).where(is_pending).order_by(*condition.primary_key)
    )
    return [UnnotifiedCondition(OpenCondition(*row[:-1]), row.ended_at) for row in rows]


def mark_notified(connection: Connection, notified: Sequence[UnnotifiedCondition], now: dt.datetime) -> None:
    """Record that every receiver knows of these; ended ones are deleted."""
    for each in notified:
        if each.ended_at is not None:
            connection.execute(delete(condition).where(_is(each.condition), condition.c.ended_at.is_not(None)))
        else:
            connection.execute(update(condition).where(_is(each.condition)).values(begin_told_at=now))


def _is(each: OpenCondition) -> ColumnElement[bool]:
    return and_(condition.c.code == each.code, condition.c.cause == each.cause)
