"""How far each webhook is in what happened, and what happened besides the trail, for webhooks.

| what | in the order of | that is the order of commits, because |
|---|---|---|
| events of organisations | their runs' seals, then numbers | a seal is numbered under the lock on the trail's head |
| notices: what began or ended | numbers | they are numbered under the same lock, which also says after which seal |

A sealed run gets no more events. So a place can be kept as numbers: nothing is ever committed before it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import Connection, and_, delete, exists, func, or_, select, update

from etl.schema import org_event, run_seal, trail, webhook, webhook_notice
from etl.store import seals
from etl.store.bulk import insert_into, insert_rows

_NOTICE: Final = ("kind", "at", "subject", "org_id", "data", "id", "after_seal")
_SEALS_AT_ONCE: Final = 200
"""How many seals a statement looks behind, so that it reads and sorts a limited number of events."""
_KEPT: Final = dt.timedelta(days=400)
"""A webhook that is away for longer is not told of conditions and findings from before; events stay in the trail."""


class Place(NamedTuple):
    """Which events are still due: those of seals from ``seal_id`` on, of this one only those after ``event_id``, and
    the notices after ``notice_id``."""

    seal_id: int
    event_id: int
    notice_id: int


class Webhook(NamedTuple):
    """What is known of a webhook."""

    name: str
    since: dt.datetime
    """It was first known then, and begins with what happened afterwards."""
    delivered: int
    delivered_at: dt.datetime | None
    failing_since: dt.datetime | None
    why: str | None
    not_before: dt.datetime | None
    """Nothing is sent before."""
    place: Place


class NewNotice(NamedTuple):
    """Something besides the trail began or ended. ``org_id``: of which organisation it is, if of one."""

    kind: str
    at: dt.datetime
    subject: str
    data: Mapping[str, Any]
    org_id: str | None = None


class Notice(NamedTuple):
    """A stored one; ``data`` is JSON."""

    id: int
    after_seal: int
    kind: str
    at: dt.datetime
    subject: str
    data: str


class Due(NamedTuple):
    """An event, by its number, or a notice; and the place after it."""

    happened: int | Notice
    after: Place


_STATE: Final = (*(webhook.c[name] for name in Webhook._fields[:-1]), *(webhook.c[name] for name in Place._fields))


def webhooks(connection: Connection) -> dict[str, Webhook]:
    """Every webhook that was ever known, by name."""
    rows = connection.execute(select(*_STATE).order_by(webhook.c.name)).all()
    width = len(Place._fields)
    return {row.name: Webhook(*[*row[:-width], Place(*row[-width:])]) for row in rows}


def begin_webhooks(connection: Connection, names: Collection[str], now: dt.datetime) -> None:
    """Let those that are not known yet begin with what is committed from now on."""
    last = seals.locked_head(connection, now).last_seal
    place = Place(last + 1, 0, _last_notice(connection))
    rows = [{"name": name, "since": now, **place._asdict()} for name in sorted(names)]
    connection.execute(insert_into(connection, webhook).on_conflict_do_nothing(), rows)


def has_webhooks(connection: Connection) -> bool:
    """Whether anything is to be kept for webhooks."""
    return bool(connection.execute(select(exists().where(webhook.c.name.is_not(None)))).scalar())


def note(connection: Connection, found: Sequence[NewNotice], now: dt.datetime) -> None:
    """Keep for webhooks what began or ended; nothing is kept while there are none. Call it last in a transaction: it
    locks the head of the trail, for which runs wait that are sealed meanwhile."""
    if not found or not has_webhooks(connection):
        return
    kept = [(e.kind, e.at, e.subject, e.org_id, msgspec.json.encode(e.data).decode()) for e in found]
    after_seal, last = seals.locked_head(connection, now).last_seal, _last_notice(connection)
    rows = ((*each, number, after_seal) for number, each in enumerate(kept, last + 1))
    insert_rows(connection, webhook_notice, _NOTICE, rows)


def _last_notice(connection: Connection) -> int:
    """The highest number that a notice ever had, or a webhook knows: those that all know are gone."""
    highest = (func.max(webhook_notice.c.id), func.max(webhook.c.notice_id))
    return max(connection.execute(select(each)).scalar() or 0 for each in highest)


def source(connection: Connection) -> str:
    """The id of the first trail here: copies of a database keep it."""
    found: str = connection.execute(select(trail.c.trail_id).order_by(trail.c.id).limit(1)).scalar_one()
    return found


def due(
    connection: Connection, place: Place, kinds: Collection[str], orgs: Sequence[str], most: int
) -> tuple[list[Due], Place]:
    """At most so many events and notices of these ``kinds`` and organisations (none: all), in the order of their
    commits; and the place after the last of them, or after everything that is there."""
    last = connection.execute(select(func.max(run_seal.c.id))).scalar() or 0
    found: list[tuple[int, int, int | Notice]] = []
    for seal_id, event_id in _events(connection, place, last, (kinds, orgs), most):
        found.append((seal_id, 0, event_id))
    notices = _notices(connection, place.notice_id, kinds, orgs, most)
    found += [(each.after_seal, 1, each) for each in notices]
    found.sort(key=lambda each: each[:2])  # stable: each kind keeps its order
    done: list[Due] = []
    for seal_id, _, happened in found[:most]:
        place = (
            place._replace(notice_id=happened.id) if isinstance(happened, Notice)
            else place._replace(seal_id=seal_id, event_id=happened)
        )  # fmt: skip
        done.append(Due(happened, place))
    if len(done) < most:
        if place.seal_id <= last:
            place = place._replace(seal_id=last + 1, event_id=0)
        last_notice = connection.execute(select(func.max(webhook_notice.c.id))).scalar() or 0
        place = place._replace(notice_id=max(place.notice_id, last_notice))
    return done, place


def _events(
    connection: Connection, place: Place, last: int, wanted: tuple[Collection[str], Sequence[str]], most: int
) -> Iterator[tuple[int, int]]:
    kinds, orgs = wanted
    conditions = [
        org_event.c.kind.in_(kinds),
        or_(run_seal.c.id > place.seal_id, org_event.c.event_id > place.event_id),
        *([org_event.c.org_id.in_(orgs)] if orgs else []),
    ]
    events = select(run_seal.c.id, org_event.c.event_id).join(org_event, org_event.c.run_id == run_seal.c.run_id)
    events = events.where(*conditions).order_by(run_seal.c.id, org_event.c.event_id)
    for first in range(place.seal_id, last + 1, _SEALS_AT_ONCE):
        some = events.where(run_seal.c.id.between(first, first + _SEALS_AT_ONCE - 1)).limit(most)
        for row in connection.execute(some):
            yield row[0], row[1]
            most -= 1
        if not most:
            break


def _notices(
    connection: Connection, after: int, kinds: Collection[str], orgs: Sequence[str], most: int
) -> list[Notice]:
    conditions = [webhook_notice.c.id > after, webhook_notice.c.kind.in_(kinds)]
    conditions += [webhook_notice.c.org_id.in_(orgs)] if orgs else []
    columns = [webhook_notice.c[name] for name in Notice._fields]
    found = connection.execute(select(*columns).where(*conditions).order_by(webhook_notice.c.id).limit(most))
    return [Notice(*row) for row in found]


def move_webhook(
    connection: Connection, name: str, before: Place, after: Place, delivered: int, now: dt.datetime
) -> bool:
    """Record that a webhook has ``delivered`` more events; False if it is no longer where it was."""
    there = and_(webhook.c.name == name, *(webhook.c[column] == value for column, value in before._asdict().items()))
    values: dict[str, Any] = after._asdict()
    if delivered:
        values |= {"delivered": webhook.c.delivered + delivered, "delivered_at": now}
        values |= dict.fromkeys(("failing_since", "why", "not_before"))
    if not connection.execute(update(webhook).where(there).values(values)).rowcount:
        return False
    if after.notice_id != before.notice_id:
        known = webhook_notice.c.id <= select(func.min(webhook.c.notice_id)).scalar_subquery()
        connection.execute(delete(webhook_notice).where(or_(known, webhook_notice.c.at < now - _KEPT)))
    return True


def delay_webhook(connection: Connection, name: str, why: str, now: dt.datetime, not_before: dt.datetime) -> None:
    """Record why a webhook could not be sent anything, and when it is tried again."""
    values = {"why": why, "failing_since": func.coalesce(webhook.c.failing_since, now), "not_before": not_before}
    connection.execute(update(webhook).where(webhook.c.name == name).values(values))
