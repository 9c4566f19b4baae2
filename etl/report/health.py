"""What the database says of the service's work: who is overdue, refused, failing or held, and what went through last.

`/freshness`, `/metrics` and `status` all tell this one reading, so that they cannot disagree. What lies ahead of now
was recorded while a clock was ahead. It is no observation, no change and no success: a target that was last observed
then is judged as one that was never observed, by its failures and by whether its schedule's runs end.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import Connection, Engine, bindparam, text

from etl import database
from etl.config import Schedule
from etl.database import reading
from etl.domain.model import REFUSED_FOR_GOOD, Target
from etl.schema import UtcTime

SLOTS_ALLOWED: Final = 3
"""So many due slots in a row may pass without an observation of a target; then it is overdue."""
REFUSED_NAMED_AT_MOST: Final = 100
_TIME_TO_START: Final = dt.timedelta(minutes=1)
"""A slot has passed when its run has had so long to start; half the way to the next slot, where that is shorter."""
RESOLUTION: Final = dt.timedelta(microseconds=1)
CLOCKS_DIFFER_BY: Final = dt.timedelta(minutes=1)
"""So far ahead of now a time may lie before anything is said: machines that share a database differ a little."""


class Condition(NamedTuple):
    """Something that is wrong, in one sentence, and what to do about it."""

    code: str
    sentence: str
    remedy: str


CONDITIONS: Final = ("database_damaged", "clock_off")
"""The codes that there are."""


def clock_went_back(targets: int, until: dt.datetime) -> Condition:
    """So many targets have observations that lie ahead of now, up to ``until``."""
    who = "a target has an observation that lies" if targets == 1 else f"{targets} targets have observations that lie"
    return Condition(
        "clock_off",
        f"The clock went back: {who} ahead of now, up to {until.astimezone(dt.UTC):%Y-%m-%d %H:%M:%S} UTC, "
        "and what is seen until then is recorded as seen just after it.",
        "See that the clock of this machine is right (NTP). If it is, nothing else is to be done: nothing is lost, "
        "nothing waits, and from that time on what is recorded is right again.",
    )


def damage_of(engine: Engine) -> Condition | None:
    """What keeps a database from being written to, if anything does."""
    found = database.damage_of(engine)
    if found is None:
        return None
    said, _, remedy = database.damage_sentence(engine, found).partition(". ")
    return Condition("database_damaged", f"{said}.", remedy)


class Overdue(NamedTuple):
    """A target that nobody has observed for the last three due slots of one of its schedules."""

    schedule: str
    target: Target
    last_observed_at: dt.datetime | None
    last_error_code: str | None
    held_since: dt.datetime | None
    """While a person has to decide, answers are no observations."""


class HealthSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """One reading; retired targets are left out. Times are aware, in UTC."""

    targets: int
    never_observed: int
    failing: int
    """Got no valid answer at the last attempt, and may get one at the next."""
    refused: int
    """EnOS says no to them until somebody changes a right or the schedule."""
    held: int
    held_removals: int
    listed: int
    """Workflows in the lists of all targets; one that two targets see counts twice."""
    damage: Condition | None
    """Where nothing is written, since damage was found."""
    ahead: int
    """Targets whose latest observation lies ahead of now, by more than clocks differ."""
    ahead_until: dt.datetime | None
    """The latest of those observations."""
    last_observation_at: dt.datetime | None
    last_change_at: dt.datetime | None
    overdue: tuple[Overdue, ...]
    refused_targets: tuple[Target, ...]
    """The first hundred."""
    last_success_at: Mapping[str, dt.datetime | None]
    """When the last run of each schedule ended in which some target went through; None: there was none yet."""

    @property
    def fresh(self) -> bool:
        """Whether no target is overdue. One that EnOS refuses for good is not: it is named, but pages nobody."""
        return not self.overdue

    @property
    def conditions(self) -> Sequence[Condition]:
        """What is wrong beside the targets, the worst first."""
        clock = None if self.ahead_until is None else clock_went_back(self.ahead, self.ahead_until)
        return [condition for condition in (self.damage, clock) if condition is not None]

    @property
    def overdue_by_schedule(self) -> dict[str, int]:
        """How many targets of each schedule are overdue."""
        counts = Counter(each.schedule for each in self.overdue)
        return {name: counts[name] for name in self.last_success_at}


class _Record(NamedTuple):
    """What ``sync_run`` knows of a schedule."""

    succeeded_at: dt.datetime | None
    asked_at: dt.datetime | None
    """When its latest run that came to an end began; where none did, its first one; None where it never ran."""
    under_way: bool


class _Known(NamedTuple):
    """What ``target_health`` knows of a target."""

    last_observed_at: dt.datetime | None
    last_error_code: str | None
    held_since: dt.datetime | None
    consecutive_failures: int


def read(
    engine: Engine,
    schedules: Sequence[Schedule],
    now: dt.datetime,
    known_since: Mapping[str, dt.datetime] | None = None,
) -> HealthSnapshot:
    """The vitals of ``schedules`` now, in one short transaction.

    ``known_since``: since when the asking service has known each schedule; it counts where one never ran at all.
    Raises DatabaseError.
    """
    with reading(engine) as connection:
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql("SET LOCAL jit = off; SET LOCAL statement_timeout = '30s'")
        records = _records(connection, schedules, now)
        overdue = tuple(_overdue(connection, schedules, records, now, known_since or {}))
        sums = connection.execute(_SUMS, {**_CODES, "now": now, "ahead": now + CLOCKS_DIFFER_BY}).one()
        refused = connection.execute(_REFUSED, {**_CODES, "most": REFUSED_NAMED_AT_MOST})
        return HealthSnapshot(
            **dict(sums._mapping),
            damage=damage_of(engine),
            held_removals=connection.execute(_HELD_REMOVALS).scalar_one(),
            last_change_at=connection.execute(_LAST_CHANGE, {"now": now}).scalar_one(),
            overdue=overdue,
            refused_targets=tuple(Target(*row) for row in refused),
            last_success_at={name: record.succeeded_at for name, record in records.items()},
        )


_CODES: Final[dict[str, Any]] = {"codes": sorted(REFUSED_FOR_GOOD)}
_EACH_CODE: Final[Any] = bindparam("codes", expanding=True)
_SUMS: Final = (
    text("""
    SELECT count(*) AS targets, coalesce(sum(CASE WHEN version = 0 THEN 1 ELSE 0 END), 0) AS never_observed,
           coalesce(sum(CASE WHEN last_error_code IN :codes THEN 0 WHEN consecutive_failures > 0 THEN 1 ELSE 0 END), 0)
               AS failing,
           coalesce(sum(CASE WHEN last_error_code IN :codes THEN 1 ELSE 0 END), 0) AS refused,
           coalesce(sum(CASE WHEN held_since IS NOT NULL THEN 1 ELSE 0 END), 0) AS held,
           coalesce(sum(flow_count), 0) AS listed,
           max(CASE WHEN last_observed_at <= :now THEN last_observed_at END) AS last_observation_at,
           coalesce(sum(CASE WHEN last_observed_at > :ahead THEN 1 ELSE 0 END), 0) AS ahead,
           max(CASE WHEN last_observed_at > :ahead THEN last_observed_at END) AS ahead_until
      FROM target_health WHERE retired_at IS NULL
    """)
    .bindparams(_EACH_CODE, bindparam("now", type_=UtcTime), bindparam("ahead", type_=UtcTime))
    .columns(last_observation_at=UtcTime, ahead_until=UtcTime)
)
_HELD_REMOVALS: Final = text("""
    SELECT count(*) FROM workflow w JOIN target t ON t.id = w.target_id
     WHERE w.missing_since IS NOT NULL AND t.held_since IS NOT NULL AND t.retired_at IS NULL
    """)
_LAST_CHANGE: Final = (
    text("SELECT max(observed_at) AS at FROM change_set WHERE observed_at <= :now")
    .bindparams(bindparam("now", type_=UtcTime))
    .columns(at=UtcTime)
)
_REFUSED: Final = text("""
    SELECT org_id, user_id, expression FROM target WHERE retired_at IS NULL AND last_error_code IN :codes
     ORDER BY org_id, user_id, expression LIMIT :most
    """).bindparams(_EACH_CODE)
_SUSPECTS: Final = (
    text("""
    SELECT org_id, user_id, expression, last_observed_at, last_error_code, held_since, consecutive_failures
      FROM target_health
     WHERE retired_at IS NULL AND (last_observed_at IS NULL OR last_observed_at < :since OR last_observed_at > :now)
    """)
    .bindparams(bindparam("since", type_=UtcTime), bindparam("now", type_=UtcTime))
    .columns(last_observed_at=UtcTime, held_since=UtcTime)
)
_REGISTERED: Final = text("SELECT org_id, user_id, expression FROM target WHERE retired_at IS NULL")


def _latest(column: str, condition: str) -> str:
    """A time, not ahead of now, of the schedule's own run that began last; of ``asked.value``, one of many names."""
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
_UNDER_WAY: Final = text("SELECT DISTINCT schedule FROM sync_run WHERE status = 'running' AND schedule IS NOT NULL")


def _records(connection: Connection, schedules: Sequence[Schedule], now: dt.datetime) -> dict[str, _Record]:
    """All of them by one statement: with ten thousand schedules, a statement for each took seconds."""
    under_way = set(connection.scalars(_UNDER_WAY))
    names = msgspec.json.encode([each.name for each in schedules]).decode()
    found = connection.execute(_RECORDS[connection.dialect.name], {"names": names, "now": now})
    return {row.name: _Record(row.succeeded_at, row.asked_at, row.name in under_way) for row in found}


def _overdue(
    connection: Connection,
    schedules: Sequence[Schedule],
    records: Mapping[str, _Record],
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
                known = _Known(None, None, None, 0)
            if known is not None and _is_overdue(known, since, idle=schedule.name in idle):
                yield Overdue(schedule.name, target, *known[:3])


def _not_ahead(known: _Known, now: dt.datetime) -> _Known:
    at = known.last_observed_at
    return known if at is None or at <= now else known._replace(last_observed_at=None)


def _is_overdue(known: _Known, since: dt.datetime, *, idle: bool) -> bool:
    """A target that was never observed has had its three chances where so many attempts failed, or no run ended."""
    if known.last_error_code in REFUSED_FOR_GOOD:
        return False
    if known.last_observed_at is None:
        return idle or known.consecutive_failures >= SLOTS_ALLOWED
    return known.last_observed_at < since


def _limits(
    schedules: Sequence[Schedule], records: Mapping[str, _Record], now: dt.datetime
) -> dict[str, dt.datetime | None]:
    """Since when each schedule's targets should have been observed. Many share their slots: each is worked out once."""
    known: dict[object, dt.datetime | None] = {}
    limits = {}
    for each in schedules:
        under_way = records[each.name].under_way
        key = each.slots, each.jitter, under_way
        if key not in known:
            known[key] = third_last_slot(each, now, under_way)
        limits[each.name] = known[key]
    return limits


def third_last_slot(schedule: Schedule, now: dt.datetime, under_way: bool = False) -> dt.datetime | None:
    """The third last of the slots that have passed: none of the coming ones is to be waited for.

    A slot has passed once its run has had its time to start. A run under way may still observe, so it excuses one
    slot; no more, so that a run that hangs is noticed.
    """
    now -= schedule.jitter
    slot = schedule.slots.latest_until(now)
    if slot is not None and now < slot + min(_TIME_TO_START, (schedule.slots.next_after(slot) - slot) / 2):
        slot = _before(schedule, slot)
    for _ in range(SLOTS_ALLOWED - 1 + under_way):
        slot = slot and _before(schedule, slot)
    return slot


def _before(schedule: Schedule, slot: dt.datetime) -> dt.datetime | None:
    return schedule.slots.latest_until(slot - RESOLUTION)
