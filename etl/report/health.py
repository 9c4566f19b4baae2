"""The state of the targets and of the service: which targets fail, are refused, held or overdue, and what ran last.

Only this module reads these facts. `/freshness`, `/metrics`, `status`, the page and the report show its result, so they
cannot disagree. A time ahead of now was recorded while a clock was ahead. It counts neither as an observation, nor as a
change or a success: a target that was last observed then is treated like one that was never observed, by its failures
and by whether the runs of its schedule end.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Final, Literal, NamedTuple

import msgspec
from sqlalchemy import Connection, Engine, bindparam, func, select, text

from etl.config import Schedule
from etl.config.slots import Slots
from etl.domain.model import REFUSED_FOR_GOOD, Target
from etl.printable import counted
from etl.report import condition_checks
from etl.report.conditions import SUBJECTS_NAMED, Condition, conditions
from etl.report.reading import short_transaction, sql
from etl.report.rules import RuleState, failing_rules, states_within
from etl.schema import TARGET_KEY, UtcTime, change_set, target

REFUSED_NAMED_AT_MOST: Final = 100
CLOCKS_DIFFER_BY: Final = dt.timedelta(minutes=1)
"""How far ahead of now a time may lie without being reported: the clocks of machines differ a little."""
SLOTS_ALLOWED: Final = 3
"""A target is overdue once this many due slots in a row have passed without an observation."""
_RESOLUTION: Final = dt.timedelta(microseconds=1)
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


class TargetSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What the database alone says about the targets that are not retired. Times are aware, in UTC.

    No target is both ``failing`` and ``refused``; any target may be held as well.
    """

    targets: int
    never_observed: int
    failing: int
    """Targets whose last attempt got no valid answer, but whose next one may."""
    refused: int
    """Targets that EnOS refuses until somebody changes a right or the schedule."""
    held: int
    held_workflows: int
    listed: int
    """Workflows in the lists of all targets; one that two targets see counts twice."""
    checked: condition_checks.LastCheck | None = None
    """The service's last check of the trail."""
    rules: Sequence[RuleState] = ()
    detected: Sequence[Condition] = ()
    """What is wrong with the targets and in general."""
    began: Mapping[tuple[str, str], dt.datetime] = {}
    """When conditions began, by code and cause, as the active service has stored it."""
    ahead: int
    """Targets whose latest observation lies ahead of now, by more than clocks differ."""
    ahead_until: dt.datetime | None
    """The latest of those observations."""
    last_observation_at: dt.datetime | None
    oldest_observation_at: dt.datetime | None
    """The latest observation of the target that was observed least recently."""
    overdue: tuple[Overdue, ...] | None = None
    """None: the schedules are not known."""

    def conditions(self, own: Sequence[Condition] = ()) -> list[Condition]:
        """What is wrong, the worst first; ``own``: what only the calling process knows."""
        return conditions([*own, *self.detected], self.began)


class HealthSnapshot(TargetSummary, frozen=True, kw_only=True):
    """The same, plus what needs the schedules: which targets are overdue."""

    last_change_at: dt.datetime | None
    overdue: tuple[Overdue, ...]
    refused_targets: tuple[Target, ...]
    """The first hundred."""
    last_success_at: Mapping[str, dt.datetime | None]
    """When the last run of each schedule ended in which some target succeeded; None: there was none yet."""

    @property
    def fresh(self) -> bool:
        """Whether no target is overdue. A refused target never is: it is reported, but pages nobody."""
        return not self.overdue

    @property
    def freshness(self) -> Literal["fresh", "overdue"]:
        return "fresh" if self.fresh else "overdue"

    @property
    def overdue_by_schedule(self) -> dict[str, int]:
        """How many targets of each schedule are overdue."""
        counts = Counter(each.schedule for each in self.overdue)
        return {name: counts[name] for name in self.last_success_at}


_FOR_GOOD: Final = sorted(REFUSED_FOR_GOOD)
_SUMMARY: Final = (
    text(sql("target_summary"))
    .bindparams(
        bindparam("codes", _FOR_GOOD, expanding=True),
        bindparam("now", type_=UtcTime),
        bindparam("ahead", type_=UtcTime),
    )
    .columns(oldest_observation_at=UtcTime, last_observation_at=UtcTime, ahead_until=UtcTime)
)


def read(
    engine: Engine,
    schedules: Sequence[Schedule],
    now: dt.datetime,
    known_since: Mapping[str, dt.datetime] | None = None,
) -> HealthSnapshot:
    """The health of ``schedules`` at ``now``, in one short transaction.

    ``known_since``: since when the service has known each schedule; used for schedules that never ran. Raises
    DatabaseError.
    """
    with short_transaction(engine) as connection:
        return read_within(connection, schedules, now, known_since)


def read_within(
    connection: Connection,
    schedules: Sequence[Schedule],
    now: dt.datetime,
    known_since: Mapping[str, dt.datetime] | None = None,
) -> HealthSnapshot:
    """The same, within the caller's transaction."""
    records = _records_of(connection, schedules, now)
    summary = _summary(connection, now)
    late = tuple(_overdue_targets(connection, schedules, records, now, known_since or {}))
    summary["detected"] += condition_checks.of_schedules(connection, schedules, summary["targets"])
    if late:
        named = [str(each.target) for each in late[:SUBJECTS_NAMED]]
        said = f"{counted(len(late), 'target')} overdue"
        summary["detected"].append(Condition("targets_overdue", said, "", None, len(late), named))
    refused = select(*TARGET_KEY).where(target.c.retired_at.is_(None), target.c.last_error_code.in_(_FOR_GOOD))
    refused = refused.order_by(*TARGET_KEY).limit(REFUSED_NAMED_AT_MOST)
    last_change = select(func.max(change_set.c.observed_at)).where(change_set.c.observed_at <= now)
    return HealthSnapshot(
        **summary,
        last_change_at=connection.execute(last_change).scalar(),
        overdue=late,
        refused_targets=tuple(Target(*row) for row in connection.execute(refused)),
        last_success_at={name: record.succeeded_at for name, record in records.items()},
    )


def summary_within(connection: Connection, now: dt.datetime) -> TargetSummary:
    """The part that needs no schedules. Raises DatabaseError."""
    return TargetSummary(**_summary(connection, now))


def _summary(connection: Connection, now: dt.datetime) -> dict[str, Any]:
    found = connection.execute(_SUMMARY, {"now": now, "ahead": now + CLOCKS_DIFFER_BY}).one()
    of_the_service, began = condition_checks.stored(connection, now)
    damage = condition_checks.damage_of(connection.engine)
    check, rules = condition_checks.last_check(connection), states_within(connection)
    wrong = [
        *([damage] if damage else condition_checks.of_the_disk(connection.engine)),
        *of_the_service,
        *condition_checks.of_the_trail(check),
        *failing_rules(rules),
        *condition_checks.of_targets(connection, found.targets - found.refused, found.held, found.held_workflows),
        *_of_the_clock(found.ahead, found.ahead_until),
    ]
    return {**found._mapping, "detected": wrong, "began": began, "checked": check, "rules": rules}


def _of_the_clock(targets: int, until: dt.datetime | None) -> Iterator[Condition]:
    """Targets have observations ahead of now, the latest at ``until``."""
    if until is None:
        return
    who = "a target has an observation that lies" if targets == 1 else f"{targets} targets have observations that lie"
    yield Condition(
        "clock_off",
        f"The clock went back: {who} ahead of now, up to {until.astimezone(dt.UTC):%Y-%m-%d %H:%M:%S} UTC, "
        "and what is observed until then is recorded as observed just after it",
        subjects=targets,
        remedy="Make sure that this machine's clock is right (NTP). If it is, there is nothing else to do: nothing is "
        "lost, nothing waits, and times are recorded correctly again from then on.",
    )


# ------------------------------------------------------------------------------------------------- overdue targets


_SUSPECTS: Final = (
    text(sql("overdue_suspects"))
    .bindparams(bindparam("since", type_=UtcTime), bindparam("now", type_=UtcTime))
    .columns(last_observed_at=UtcTime, held_since=UtcTime, last_answered_at=UtcTime)
)
_NAMES: Final = {"sqlite": "json_each(:names)", "postgresql": "json_array_elements_text(CAST(:names AS json))"}
_RECORDS: Final = {
    dialect: text(sql("schedule_records").format(names=names))
    .bindparams(bindparam("now", type_=UtcTime))
    .columns(succeeded_at=UtcTime, asked_at=UtcTime, under_way=UtcTime)
    for dialect, names in _NAMES.items()
}


def _records_of(connection: Connection, schedules: Sequence[Schedule], now: dt.datetime) -> dict[str, Any]:
    """The record of each schedule, by name; one statement for all, because one for each of 10,000 took seconds."""
    names = msgspec.json.encode([each.name for each in schedules]).decode()
    return {
        row.name: row for row in connection.execute(_RECORDS[connection.dialect.name], {"names": names, "now": now})
    }


def _overdue_targets(
    connection: Connection,
    schedules: Sequence[Schedule],
    records: Mapping[str, Any],
    now: dt.datetime,
    known_since: Mapping[str, dt.datetime],
) -> Iterator[Overdue]:
    third_last: Any = cache(third_last_slot)  # many schedules have the same slots
    limits = {each.name: third_last(each.slots, each.jitter, now, records[each.name].under_way) for each in schedules}
    latest = max((limit for limit in limits.values() if limit is not None), default=None)
    if latest is None:
        return
    found = connection.execute(_SUSPECTS, {"since": latest, "now": now})
    suspects = {Target(*row[:3]): row for row in found}
    asked = {each.name: records[each.name].asked_at or known_since.get(each.name) for each in schedules}
    idle = {name for name, at in asked.items() if at is not None and (limit := limits[name]) and at < limit}
    everyone = select(*TARGET_KEY).where(target.c.retired_at.is_(None))
    registered = {Target(*row) for row in connection.execute(everyone)} if idle else set()
    for schedule in schedules:
        since, is_idle = limits[schedule.name], schedule.name in idle
        if since is None or not (suspects or is_idle):
            continue
        for each in schedule.targets:
            known = suspects.get(each)
            if known is None and is_idle and each not in registered:
                yield Overdue(schedule.name, each, None)
            elif known is not None and _is_overdue(known, since, idle=is_idle):
                yield Overdue(schedule.name, each, known.last_observed_at, known.last_error_code, known.held_since)


def _is_overdue(known: Any, since: dt.datetime, *, idle: bool) -> bool:
    """A target that was never observed is overdue after three failures, or if no run has ended for three slots."""
    if known.last_error_code in REFUSED_FOR_GOOD:
        return False
    answered_at: dt.datetime | None = known.last_answered_at
    if answered_at is None:
        return bool(idle or known.consecutive_failures >= SLOTS_ALLOWED)
    return answered_at < since


def third_last_slot(
    slots: Slots, jitter: dt.timedelta, now: dt.datetime, under_way: dt.datetime | None = None
) -> dt.datetime | None:
    """The third-last slot of a schedule that has passed: since then its targets should have been observed.

    A slot has passed once its run has had time to start. A run under way for a passed slot may still observe, so it
    excuses one slot; only one, so that a run that hangs is noticed.
    """
    now -= jitter
    slot = slots.latest_until(now)
    if slot is not None and now < slot + min(_TIME_TO_START, (slots.next_after(slot) - slot) / 2):
        slot = slots.latest_until(slot - _RESOLUTION)
    excused = slot is not None and under_way is not None and under_way <= slot
    for _ in range(SLOTS_ALLOWED - 1 + excused):
        slot = slot and slots.latest_until(slot - _RESOLUTION)
    return slot
