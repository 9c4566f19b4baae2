"""When a schedule is due: pure arithmetic on instants, and the only importer of cronsim.

A slot is an instant at which a schedule should run. Slots lie on whole seconds for Cron and on multiples of the
interval since the epoch for Every; they strictly increase in every time zone, whatever its clocks do.
"""

from __future__ import annotations

import datetime as dt
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import pairwise
from typing import Final, Protocol
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError
from cronsim.cronsim import Field

UTC: Final = dt.UTC
EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=UTC)
LEEWAY: Final = dt.timedelta(seconds=2)
"""By so much a clock may be steered back while a slot is due; more than that, and it has been set."""

_CRON_FIELDS: Final = {
    "minute": "0-59",
    "hour": "0-23",
    "day-of-month": "1-31",
    "month": "1-12 or JAN-DEC",
    "day-of-week": "0-7 (0 and 7 are Sunday) or SUN-SAT",
}
_CRONSIM_FIELDS: Final = (Field.MINUTE, Field.HOUR, Field.DAY, Field.MONTH, Field.DOW)
_STEPPED_RANGE: Final = re.compile(r"([0-9A-Z]+)-([0-9A-Z]+)/0*[1-9][0-9]*")
_NAIVE_EPOCH: Final = dt.datetime(1970, 1, 1)  # noqa: DTZ001  (a wall clock, on purpose)
_EPOCH_DAY: Final = _NAIVE_EPOCH.toordinal()
_DAY: Final = 86_400
_NOTHING: Final = dt.timedelta(0)
_SECOND: Final = dt.timedelta(seconds=1)
# Every calendar there is: in these years 29 February falls on each day of the week.
_ALL_CALENDARS: Final = range(dt.date(2000, 1, 1).toordinal(), dt.date(2028, 1, 1).toordinal())
# 29 February on a given weekday can be 40 years away, where a year such as 2100 has none.
_LONGEST_WAIT_DAYS: Final = 41 * 366


class Slots(Protocol):
    """The slots of one schedule. Instants are timezone-aware; those that come out are UTC."""

    def next_after(self, instant: dt.datetime) -> dt.datetime:
        """The first slot strictly after ``instant``."""
        ...

    def latest_until(self, instant: dt.datetime) -> dt.datetime | None:
        """The latest slot at or before ``instant``; None where there was none."""
        ...

    def count_between(self, after: dt.datetime, until: dt.datetime) -> int:
        """How many slots lie between ``after`` and ``until``, both exclusive; 0 where ``until`` is earlier."""
        ...

    def shortest_gap(self) -> dt.timedelta:
        """The shortest time between two slots, but for clocks that are put forward."""
        ...


def is_served(slot: dt.datetime, latest: dt.datetime | None, now: dt.datetime) -> bool:
    """Whether ``slot``, which is due ``now``, needs no run; ``latest`` is the slot that the latest run is for.

    | the latest run is for | the slot is | because |
    |---|---|---|
    | none, or an earlier slot | not served | |
    | this slot, or a later one until now | served | |
    | a slot that lies ahead of now | not served | the clock went back since |
    """
    return latest is not None and slot <= latest <= now + LEEWAY


@dataclass(frozen=True, slots=True)
class Every:
    """Slots at the multiples of ``interval`` since 1970-01-01 00:00 UTC, so that a restart moves nothing."""

    interval: dt.timedelta

    def __post_init__(self) -> None:
        if self.interval <= _NOTHING:
            raise ValueError("an interval must be longer than nothing")

    def next_after(self, instant: dt.datetime) -> dt.datetime:
        return EPOCH + ((instant - EPOCH) // self.interval + 1) * self.interval

    def latest_until(self, instant: dt.datetime) -> dt.datetime | None:
        return EPOCH + (instant - EPOCH) // self.interval * self.interval

    def count_between(self, after: dt.datetime, until: dt.datetime) -> int:
        first = (after - EPOCH) // self.interval + 1
        end = -((EPOCH - until) // self.interval)
        return max(0, end - first)

    def shortest_gap(self) -> dt.timedelta:
        return self.interval


@dataclass(frozen=True)
class Cron:
    """Slots of a five-field cron ``expression`` on the clocks of ``timezone`` (an IANA name).

    Fields mean what they mean to Debian's cron: Sunday is 0 or 7; names, lists, ranges and steps; day of month and
    day of week must both match if either starts with ``*``, otherwise one of them is enough. Beyond it, ``9/5`` is
    9-59/5. Where clocks change, again as Debian does it: with fixed times (neither minute nor hour starts with ``*``)
    what a gap swallows is due at its end, and what comes twice is due the first time only; otherwise slots follow
    the real time.

    Raises ValueError, with one clear sentence, for what is no cron expression, never fires, or no time zone. The
    time taken grows by some microseconds with each day between the instants, never with the number of slots.
    """

    expression: str
    timezone: str = "UTC"
    _cron: CronSim = field(init=False, repr=False, compare=False)
    _zone: ZoneInfo = field(init=False, repr=False, compare=False)
    _times: tuple[int, ...] = field(init=False, repr=False, compare=False)
    _fixed: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        cron = _parse(self.expression)
        minute, hour = self.expression.split()[:2]
        keep = object.__setattr__  # the way of a frozen dataclass to fill what it derives
        keep(self, "_cron", cron)
        keep(self, "_zone", time_zone(self.timezone))
        keep(self, "_times", tuple(h * 3600 + m * 60 for h in sorted(cron.hours) for m in sorted(cron.minutes)))
        keep(self, "_fixed", not minute.startswith("*") and not hour.startswith("*"))
        if next(self._days(_ALL_CALENDARS), None) is None:
            raise ValueError(f'"{self.expression}" never fires: no month of it has that day')

    def next_after(self, instant: dt.datetime) -> dt.datetime:
        floor = (instant - EPOCH) // _SECOND
        start = self._local_day(instant) - 1
        for day in self._days(range(start, start + _LONGEST_WAIT_DAYS)):
            if max(self._slots_of(day), default=floor) > floor:
                near = self._slots_near(day, day + 1)
                return EPOCH + near[bisect_right(near, floor)] * _SECOND
        raise ValueError(f'"{self.expression}" has no slot after {instant}')

    def latest_until(self, instant: dt.datetime) -> dt.datetime | None:
        ceiling = (instant - EPOCH) // _SECOND
        start = self._local_day(instant) + 1
        for day in self._days(range(start, start - _LONGEST_WAIT_DAYS, -1)):
            if min(self._slots_of(day), default=ceiling + 1) <= ceiling:
                near = self._slots_near(day - 1, day)
                return EPOCH + near[bisect_right(near, ceiling) - 1] * _SECOND
        return None

    def count_between(self, after: dt.datetime, until: dt.datetime) -> int:
        low, high = (after - EPOCH) // _SECOND, -((EPOCH - until) // _SECOND)
        first, last = self._local_day(after) - 1, self._local_day(until) + 1
        whole, calm_until, listed = 0, 0, set[int]()
        for day in self._days(range(first, last + 1)):
            if day > calm_until:
                calm_until = day + 6 if self._is_calm(day, days=7) else day if self._is_calm(day, days=1) else 0
            if first + 2 < day < last - 2 and day <= calm_until:
                whole += len(self._times)
            else:
                listed.update(slot for slot in self._slots_of(day) if low < slot < high)
        return whole + len(listed)

    def shortest_gap(self) -> dt.timedelta:
        within = [later - earlier for earlier, later in pairwise(self._times)]
        nights = [(later - earlier) * _DAY for earlier, later in pairwise(self._days(_ALL_CALENDARS))]
        over_night = [self._times[0] - self._times[-1] + min(nights)] if nights else []
        return min(within + over_night, default=_DAY) * _SECOND

    def _days(self, ordinals: range) -> Iterator[int]:
        """Those of ``ordinals`` (days of the proleptic calendar) whose date matches, in their order."""
        months, matches = self._cron.months, self._cron.match_day
        for ordinal in ordinals:
            if 0 < ordinal <= dt.date.max.toordinal():
                date = dt.date.fromordinal(ordinal)
                if date.month in months and matches(date):
                    yield ordinal

    def _slots_near(self, day: int, next_day: int) -> list[int]:
        # Where clocks are put back over midnight, the slots of two days interleave.
        return sorted(slot for each in self._days(range(day, next_day + 1)) for slot in self._slots_of(each))

    def _slots_of(self, day: int) -> list[int]:
        """The slots of a matching local ``day``, sorted, in seconds since the epoch."""
        midnight = (day - _EPOCH_DAY) * _DAY
        walls = [midnight + time for time in self._times]
        before, after = self._offsets(midnight, midnight + _DAY)
        if before == after:
            return [wall - after for wall in walls]
        turn = self._turn(midnight, after)
        first = [wall - before for wall in walls if wall - before < turn]
        if not self._fixed:
            return sorted(first + [wall - after for wall in walls if wall - after >= turn])
        return sorted({*first, *(max(turn, wall - after) for wall in walls if wall - before >= turn)})

    def _is_calm(self, day: int, days: int) -> bool:
        midnight = (day - _EPOCH_DAY) * _DAY
        before, after = self._offsets(midnight, midnight + days * _DAY)
        return before == after

    def _offsets(self, start: int, end: int) -> tuple[int, int]:
        """The offsets from UTC, in seconds, just before the midnight ``start`` and at the midnight ``end``."""
        return self._offset(start - 1, fold=0), self._offset(end, fold=1)

    def _offset(self, wall: int, fold: int) -> int:
        naive = _NAIVE_EPOCH + dt.timedelta(seconds=wall)
        offset = naive.replace(tzinfo=self._zone, fold=fold).utcoffset()
        return (offset or _NOTHING) // _SECOND

    def _turn(self, midnight: int, after: int) -> int:
        """The instant near ``midnight`` from which on the offset is ``after``."""
        around = range(midnight - 3 * _DAY, midnight + 4 * _DAY)
        return around[bisect_left(around, True, key=lambda second: self._offset_at(second) == after)]

    def _offset_at(self, second: int) -> int:
        offset = (EPOCH + dt.timedelta(seconds=second)).astimezone(self._zone).utcoffset()
        return (offset or _NOTHING) // _SECOND

    def _local_day(self, instant: dt.datetime) -> int:
        return instant.astimezone(self._zone).toordinal()


def _parse(expression: str) -> CronSim:
    fields = expression.split()
    if len(fields) != len(_CRON_FIELDS):
        names = ", ".join(_CRON_FIELDS).replace("-", " ")
        raise ValueError(f'a cron expression has five fields ({names}); "{expression}" has {len(fields)}')
    for position, (name, allowed) in enumerate(_CRON_FIELDS.items()):
        alone = ["*"] * len(fields)
        alone[position] = fields[position]
        if _cronsim(alone) is None:
            spoken = name.replace("-", " ")
            raise ValueError(f'"{fields[position]}" is no {spoken} of a cron expression: {allowed}, *, lists, steps')
    cron = _cronsim(fields)
    if cron is None:
        raise ValueError(f'"{expression}" never fires: no month of it has that day')
    return cron


def _cronsim(fields: list[str]) -> CronSim | None:
    try:
        plain = [_without_idle_steps(text, field) for text, field in zip(fields, _CRONSIM_FIELDS, strict=True)]
        return CronSim(" ".join(plain), EPOCH)
    except (CronSimError, ValueError, TypeError, AssertionError):
        return None


def _without_idle_steps(text: str, field: Field) -> str:
    """A step through a range of one value goes nowhere: cronsim takes ``9-9/5`` for ``9/5``, and goes on to the end."""
    return ",".join(
        found[1] if (found := _STEPPED_RANGE.fullmatch(term)) and field.int(found[1]) == field.int(found[2]) else term
        for term in text.upper().split(",")
    )


def time_zone(name: str) -> ZoneInfo:
    """The zone of an IANA name; ValueError names one that looks like it."""
    try:
        return ZoneInfo(name)
    except (LookupError, ValueError, OSError):
        pass
    raise ValueError(f'"{name}" is no time zone: use an IANA name such as "{_nearest_zone(name)}"')


def _nearest_zone(name: str) -> str:
    lowered = {zone.lower(): zone for zone in available_timezones()}
    near = get_close_matches(name.lower(), lowered, n=1)
    return lowered[near[0]] if near else "Asia/Shanghai"
