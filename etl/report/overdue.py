"""Which targets are overdue: they gave no valid answer for the last three due slots of one of their schedules."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec
from sqlalchemy import Connection, bindparam, text

from etl.config import Schedule
from etl.domain.model import REFUSED_FOR_GOOD, Target
from etl.schema import UtcTime

SLOTS_ALLOWED: Final = 3
"""A target is overdue once this many due slots in a row have passed without an observation."""
RESOLUTION: Final = dt.timedelta(microseconds=1)
_TIME_TO_START: Final = dt.timedelta(minutes=1)
"""How long a run may take to start before its slot counts as passed; at most half the time to the next slot."""


class Overdue(NamedTuple):
    """A target without a valid answer for the last three due slots of one of its schedules."""

    schedule: str
    target: Target
    last_observed_at: dt.datetime | None
    last_error_code: str | None = None
    held_since: dt.datetime | None = None
    """Set while removals are held: then answers do not count as observations, and only silence makes it overdue."""


class RunRecord(NamedTuple):
    """What ``sync_run`` says about a schedule."""

    succeeded_at: dt.datetime | None
    asked_at: dt.datetime | None
    """When its latest ended run began; if none has ended, when its first run began; None if it never ran."""
    under_way: dt.datetime | None
    """The slot of its run under way; for a run by hand, when it began; None if none is."""


class _Known(NamedTuple):
    """What the database says about a target."""

    last_observed_at: dt.datetime | None
    last_error_code: str | None
    held_since: dt.datetime | None
    consecutive_failures: int
    last_answered_at: dt.datetime | None
    """The same as ``last_observed_at``, or the latest answer whose removals are held."""


_SUSPECTS: Final = (
    text("""
    SELECT * FROM (
        SELECT t.org_id, t.user_id, t.expression, o.last_at AS last_observed_at, t.last_error_code, t.held_since,
               t.consecutive_failures,
               CASE WHEN t.held_since IS NOT NULL AND t.held_at > o.last_at THEN t.held_at ELSE o.last_at END
                   AS last_answered_at
          FROM target t
          LEFT JOIN observation o
               ON o.id = (SELECT max(latest.id) FROM observation latest WHERE latest.target_id = t.id)
         WHERE t.retired_at IS NULL) AS known
     WHERE last_answered_at IS NULL OR last_answered_at < :since OR last_answered_at > :now
    """)
    .bindparams(bindparam("since", type_=UtcTime), bindparam("now", type_=UtcTime))
    .columns(last_observed_at=UtcTime, held_since=UtcTime, last_answered_at=UtcTime)
)
_REGISTERED: Final = text("SELECT org_id, user_id, expression FROM target WHERE retired_at IS NULL")


def _latest(column: str, condition: str) -> str:
    """A time (not ahead of now) of the latest own run of a schedule; ``asked.value`` is the schedule's name."""
    return f"""(
    SELECT {column} FROM sync_run
     WHERE schedule = asked.value AND origin IN ('schedule', 'catch_up') AND status <> 'aborted' AND {condition}
       AND {column} <= :now
     ORDER BY id DESC LIMIT 1)"""  # noqa: S608 - made of constants of this file


_NAMES: Final = {"sqlite": "json_each(:names)", "postgresql": "json_array_elements_text(CAST(:names AS json))"}
_RECORDS: Final = {
    dialect: text(f"""
    SELECT asked.value AS name, {_latest("finished_at", "status IN ('succeeded', 'partial')")} AS succeeded_at,
           coalesce({_latest("started_at", "status <> 'running'")},
                    (SELECT min(started_at) FROM sync_run
                      WHERE schedule = asked.value AND started_at <= :now)) AS asked_at
      FROM {names} AS asked
    """)  # noqa: S608 - as above
    .bindparams(bindparam("now", type_=UtcTime))
    .columns(succeeded_at=UtcTime, asked_at=UtcTime)
    for dialect, names in _NAMES.items()
}
_UNDER_WAY: Final = text("""
    SELECT schedule, min(coalesce(scheduled_for, started_at)) AS slot FROM sync_run
     WHERE status = 'running' AND schedule IS NOT NULL GROUP BY schedule
    """).columns(slot=UtcTime)


def records_of(connection: Connection, schedules: Sequence[Schedule], now: dt.datetime) -> dict[str, RunRecord]:
    """The record of each schedule, by name; one statement for all, because one for each of 10,000 took seconds."""
    under_way = {row.schedule: row.slot for row in connection.execute(_UNDER_WAY)}
    names = msgspec.json.encode([each.name for each in schedules]).decode()
    found = connection.execute(_RECORDS[connection.dialect.name], {"names": names, "now": now})
    return {row.name: RunRecord(row.succeeded_at, row.asked_at, under_way.get(row.name)) for row in found}


def overdue_targets(
    connection: Connection,
    schedules: Sequence[Schedule],
    records: Mapping[str, RunRecord],
    now: dt.datetime,
    known_since: Mapping[str, dt.datetime],
) -> Iterator[Overdue]:
    limits = _limits(schedules, records, now)
    latest = max((limit for limit in limits.values() if limit is not None), default=None)
    if latest is None:
        return
    found = connection.execute(_SUSPECTS, {"since": latest, "now": now})
    suspects = {Target(*row[:3]): _not_ahead(_Known(*row[3:]), now) for row in found}
    asked = {each.name: records[each.name].asked_at or known_since.get(each.name) for each in schedules}
    idle = {name for name, at in asked.items() if at is not None and (limit := limits[name]) and at < limit}
    registered = {Target(*row) for row in connection.execute(_REGISTERED)} if idle else set()
    for schedule in schedules:
        since = limits[schedule.name]
        if since is None or not (suspects or schedule.name in idle):
            continue
        for target in schedule.targets:
            known = suspects.get(target)
            if known is None and schedule.name in idle and target not in registered:
                known = _Known(None, None, None, 0, None)
            if known is not None and _is_overdue(known, since, idle=schedule.name in idle):
                yield Overdue(schedule.name, target, *known[:3])


def _not_ahead(known: _Known, now: dt.datetime) -> _Known:
    observed, answered = (
        at if at is None or at <= now else None for at in (known.last_observed_at, known.last_answered_at)
    )
    return known._replace(last_observed_at=observed, last_answered_at=answered)


def _is_overdue(known: _Known, since: dt.datetime, *, idle: bool) -> bool:
    """A target that was never observed is overdue after three failures, or if no run has ended for three slots."""
    if known.last_error_code in REFUSED_FOR_GOOD:
        return False
    if known.last_answered_at is None:
        return idle or known.consecutive_failures >= SLOTS_ALLOWED
    return known.last_answered_at < since


def _limits(
    schedules: Sequence[Schedule], records: Mapping[str, RunRecord], now: dt.datetime
) -> dict[str, dt.datetime | None]:
    """Since when each schedule's targets should have been observed. Schedules with the same slots share the result."""
    known: dict[object, dt.datetime | None] = {}
    limits = {}
    for each in schedules:
        under_way = records[each.name].under_way
        key = each.slots, each.jitter, under_way
        if key not in known:
            known[key] = third_last_slot(each, now, under_way)
        limits[each.name] = known[key]
    return limits


def third_last_slot(schedule: Schedule, now: dt.datetime, under_way: dt.datetime | None = None) -> dt.datetime | None:
    """The third-last slot that has passed.

    A slot has passed once its run has had time to start. A run under way for a passed slot may still observe, so it
    excuses one slot; only one, so that a run that hangs is noticed.
    """
    now -= schedule.jitter
    slot = schedule.slots.latest_until(now)
    if slot is not None and now < slot + min(_TIME_TO_START, (schedule.slots.next_after(slot) - slot) / 2):
        slot = _before(schedule, slot)
    excused = slot is not None and under_way is not None and under_way <= slot
    for _ in range(SLOTS_ALLOWED - 1 + excused):
        slot = slot and _before(schedule, slot)
    return slot


def _before(schedule: Schedule, slot: dt.datetime) -> dt.datetime | None:
    return schedule.slots.latest_until(slot - RESOLUTION)
