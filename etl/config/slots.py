"""When a schedule is due, and EnOS's own schedules in words; the only importer of cronsim.

A slot is an instant at which a schedule should run. Slots lie on whole minutes for Cron and on multiples of the
interval since the epoch for Every; they strictly increase in every time zone, whatever its clocks do.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from itertools import count, pairwise, takewhile
from typing import Final
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError
from cronsim.cronsim import Field

UTC: Final = dt.UTC
EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=UTC)
LEEWAY: Final = dt.timedelta(seconds=2)
"""How far a clock may be slewed back while a slot is due; beyond that it counts as set."""
MOST_COUNTED: Final = 10_000
"""Slots are counted up to this number, a week of minutes; a higher count would be of no use."""

_CRON_FIELDS: Final = {
    Field.MINUTE: ("minute", "0-59"),
    Field.HOUR: ("hour", "0-23"),
    Field.DAY: ("day of month", "1-31"),
    Field.MONTH: ("month", "1-12 or JAN-DEC"),
    Field.DOW: ("day of week", "0-7 (0 and 7 are Sunday) or SUN-SAT"),
}
_STEPPED_RANGE: Final = re.compile(r"([0-9A-Z]+)-([0-9A-Z]+)/0*[1-9][0-9]*")
_NOTHING: Final = dt.timedelta(0)
_SECOND: Final = dt.timedelta(seconds=1)
_MINUTE: Final = dt.timedelta(minutes=1)
_DAY: Final = dt.timedelta(days=1)
# All possible calendars: in these years 29 February falls on each day of the week.
_ALL_CALENDARS: Final = dt.datetime(2000, 1, 1), dt.datetime(2028, 1, 1)  # noqa: DTZ001 - clocks on a wall


def is_served(slot: dt.datetime, latest: dt.datetime | None, now: dt.datetime) -> bool:
    """Whether ``slot``, which is due ``now``, needs no run; ``latest`` is the slot that the latest run is for.

    | the latest run is for | the slot is | because |
    |---|---|---|
    | none, or an earlier slot | not served | |
    | this slot, or a later one until now | served | |
    | a slot that lies ahead of now | not served | the clock has gone back since |
    """
    return latest is not None and slot <= latest <= now + LEEWAY


@dataclass(frozen=True, slots=True)
class Every:
    """Slots at multiples of ``interval`` since 1970-01-01 00:00 UTC, so that a restart does not move them.

    As with Cron, instants are timezone-aware, and those that come out are UTC.
    """

    interval: dt.timedelta

    def __post_init__(self) -> None:
        if self.interval <= _NOTHING:
            raise ValueError("an interval must be longer than zero")

    def next_after(self, instant: dt.datetime) -> dt.datetime:
        """The first slot strictly after ``instant``."""
        return EPOCH + ((instant - EPOCH) // self.interval + 1) * self.interval

    def latest_until(self, instant: dt.datetime) -> dt.datetime | None:
        """The latest slot at or before ``instant``, if any."""
        return EPOCH + (instant - EPOCH) // self.interval * self.interval

    def count_between(self, after: dt.datetime, until: dt.datetime) -> int:
        """How many slots lie between the two, both exclusive, up to MOST_COUNTED; 0 if ``until`` is earlier."""
        first = (after - EPOCH) // self.interval + 1
        end = -((EPOCH - until) // self.interval)
        return min(max(0, end - first), MOST_COUNTED)

    def shortest_gap(self) -> dt.timedelta:
        """The shortest time between two slots, apart from clocks that are put forward."""
        return self.interval


@dataclass(frozen=True)
class Cron:
    """Slots of a five-field cron ``expression`` on the clocks of ``timezone`` (an IANA name).

    Fields mean the same as in Debian's cron: Sunday is 0 or 7; names, lists, ranges and steps; day of month and day of
    week must both match if either starts with ``*``, otherwise one of them is enough. In addition, ``9/5`` is 9-59/5.
    Clock changes are handled as in Debian's cron: with fixed times (neither minute nor hour starts with ``*``), slots
    in a gap are due at its end, and slots that come twice are due the first time only. Otherwise slots follow the real
    time.

    cronsim finds the times on the clock, without a zone; the instants are decided here. Given a zone, cronsim leaves
    slots out where clocks are put back by half an hour (Lord Howe), and, backwards, over midnight.

    Raises ValueError, with one clear sentence, if this is not a cron expression, never fires, or has no such time zone.
    """

    expression: str
    timezone: str = "UTC"

    def __post_init__(self) -> None:
        with suppress(CronSimError):  # it finds some that never fire by itself
            if next(CronSim(self._cron, _ALL_CALENDARS[0]), None) and self._zone:
                return
        raise ValueError(f'"{self.expression}" never fires: no month of it has that day')

    @cached_property
    def _cron(self) -> str:
        return " ".join(_fields(self.expression))

    @cached_property
    def _zone(self) -> ZoneInfo:
        return time_zone(self.timezone)

    @cached_property
    def _fixed(self) -> bool:
        return not any(field.startswith("*") for field in self._cron.split()[:2])

    def next_after(self, instant: dt.datetime) -> dt.datetime:
        found: list[dt.datetime] = []
        for slots in self._forwards(instant):
            found += (slot for slot in slots if slot > instant)
            if slots[0] > instant:
                return min(found)
        raise ValueError(f'"{self.expression}" has no slot after {instant}')

    def latest_until(self, instant: dt.datetime) -> dt.datetime | None:
        found: list[dt.datetime] = []
        for slots in self._backwards(instant):
            found += (slot for slot in slots if slot <= instant)
            if slots[-1] <= instant:
                return max(found)
        return None

    def count_between(self, after: dt.datetime, until: dt.datetime) -> int:
        found: set[dt.datetime] = set()
        for slots in takewhile(lambda slots: slots[0] < until, self._forwards(after)):
            found.update(slot for slot in slots if after < slot < until)
            if len(found) >= MOST_COUNTED:
                return MOST_COUNTED
        return len(found)

    def shortest_gap(self) -> dt.timedelta:
        """On a clock that is never changed."""
        first, last = _ALL_CALENDARS
        minute, hour, days = self._cron.split(maxsplit=2)
        times = _clock_times(f"{minute} {hour} * * *", first, first + _DAY)
        nights = _gaps(_clock_times(f"0 0 {days}", first, last))
        over_night = [times[0] - times[-1] + min(nights)] if nights else []
        return min(_gaps(times) + over_night, default=_DAY)

    def _forwards(self, instant: dt.datetime) -> Iterator[list[dt.datetime]]:
        """The slots for each time on the clock, from the first that may be after ``instant``; see ``_slots``.

        The first slots of these lists increase, and so do the last ones. Times that come twice overlap: if clocks are
        soon put back, an earlier time on the clock comes again after ``instant``.
        """
        here, tomorrow = (at.astimezone(self._zone) for at in (instant, instant + _DAY))
        start = here.replace(tzinfo=None) - _put_back(here, tomorrow)
        return filter(None, map(self._slots, CronSim(self._cron, start)))

    def _backwards(self, instant: dt.datetime) -> Iterator[list[dt.datetime]]:
        """The same backwards, from the last that may be at or before ``instant``."""
        here, yesterday = (at.astimezone(self._zone) for at in (instant, instant - _DAY))
        start = here.replace(tzinfo=None, microsecond=0) + _put_back(yesterday, here)
        return filter(None, map(self._slots, CronSim(self._cron, start + _SECOND, reverse=True)))

    def _slots(self, clock: dt.datetime) -> list[dt.datetime]:
        """The slots, in order, at which the zone's clocks show ``clock``.

        | the clocks show it | with fixed times | otherwise |
        |---|---|---|
        | once | that instant | that instant |
        | twice, because they are put back | the first | both |
        | never, because they are put forward | the moment of the change | none |
        """
        first, second = (clock.replace(tzinfo=self._zone, fold=fold).astimezone(UTC) for fold in (0, 1))
        if first == second:
            return [first]
        if first < second:
            return [first] if self._fixed else [first, second]
        return [self._end_of_gap(second, first)] if self._fixed else []

    def _end_of_gap(self, before: dt.datetime, after: dt.datetime) -> dt.datetime:
        """The instant between the two, whole minutes after ``before``, at which clocks are put forward."""
        then = after.astimezone(self._zone).utcoffset()
        minutes = (before + number * _MINUTE for number in count())
        return next(at for at in minutes if at.astimezone(self._zone).utcoffset() == then)


Slots = Every | Cron


def _clock_times(cron: str, first: dt.datetime, end: dt.datetime) -> list[dt.datetime]:
    """The times on the clock that match, from ``first`` on and before ``end``."""
    return [*takewhile(lambda time: time < end, CronSim(cron, first - _SECOND))]


def _gaps(times: list[dt.datetime]) -> list[dt.timedelta]:
    return [later - earlier for earlier, later in pairwise(times)]


def _put_back(earlier: dt.datetime, later: dt.datetime) -> dt.timedelta:
    """How far the clocks are put back between two times of a zone."""
    return max(_NOTHING, (earlier.utcoffset() or _NOTHING) - (later.utcoffset() or _NOTHING))


def _fields(expression: str) -> list[str]:
    """The five fields, written so that cronsim reads them correctly."""
    fields = expression.split()
    if len(fields) != len(_CRON_FIELDS):
        names = ", ".join(name for name, _ in _CRON_FIELDS.values())
        raise ValueError(f'a cron expression has five fields ({names}); "{expression}" has {len(fields)}')
    return [_readable(text, field) for text, field in zip(fields, _CRON_FIELDS, strict=True)]


def _readable(text: str, field: Field) -> str:
    try:
        plain = _without_idle_steps(text, field)
        field.parse(plain)
    except (CronSimError, ValueError, TypeError, AssertionError):
        name, allowed = _CRON_FIELDS[field]
        raise ValueError(f'"{text}" is not a valid {name} of a cron expression: {allowed}, *, lists, steps') from None
    return plain


def _without_idle_steps(text: str, field: Field) -> str:
    """Drop a step through a range of one value: cronsim takes ``9-9/5`` for ``9/5``."""
    return ",".join(
        found[1] if (found := _STEPPED_RANGE.fullmatch(term)) and field.int(found[1]) == field.int(found[2]) else term
        for term in text.upper().split(",")
    )


def time_zone(name: str) -> ZoneInfo:
    """The zone with this IANA name; ValueError names a similar one."""
    try:
        return ZoneInfo(name)
    except (LookupError, ValueError, OSError):
        pass
    raise ValueError(f'"{name}" is not a time zone: use an IANA name such as "{_nearest_zone(name)}"')


def _nearest_zone(name: str) -> str:
    lowered = {zone.lower(): zone for zone in available_timezones()}
    near = get_close_matches(name.lower(), lowered, n=1)
    return lowered[near[0]] if near else "Asia/Shanghai"


# EnOS's schedules

_DAYS: Final = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
_ANY: Final = ("*", "?")
_YEAR: Final = re.compile(r"[0-9]{4}")
_ENDINGS: Final = {"1": "st", "2": "nd", "3": "rd"}
_ORDINAL: Final = re.compile(r"\b([0-9]*?)(1?)([123])th\b")


def quartz_in_words(expression: str) -> str:
    """A Quartz cron (6 or 7 fields, Sunday is 1) as cronsim describes it: "at 02:00 every day" for ``0 0 2 * * ? *``.

    "" for what cronsim does not know, or would read differently: no words are better than wrong ones.
    """
    fields = expression.upper().split()
    if len(fields) not in (6, 7):
        return ""
    second, minute, hour, day, month, weekday, *years = fields
    year = years[0] if years else "*"
    if (year != "*" and not _YEAR.fullmatch(year)) or (day not in _ANY and weekday not in _ANY):
        return ""
    try:
        days = "*" if weekday in _ANY else ",".join(map(_day_of_week, weekday.split(",")))
        cron = CronSim(" ".join((second, minute, hour, "*" if day == "?" else day, month, days)), EPOCH)
    except (CronSimError, ValueError, LookupError):
        return ""
    words = _ORDINAL.sub(_ordinal, cron.explain())
    return words[0].lower() + words[1:] + ("" if year == "*" else f", only in {year}")


def _day_of_week(term: str) -> str:
    """A term of Quartz's day of week, 1 (Sunday) to 7, in cron's terms. Raises ValueError if cron has no such term."""
    if term.endswith("L") and term[:-1].isdigit():  # the last Friday of the month
        return f"{_number(term[:-1])}L"
    base, mark, rest = term.partition("#")
    if "/" in term and not base.startswith("*"):  # cron goes on to a second Sunday
        raise ValueError(term)
    return "-".join(_DAYS[_number(each)] if each.isdigit() else each for each in base.split("-")) + mark + rest


def _number(digits: str) -> int:
    if not 1 <= int(digits) <= 7:
        raise ValueError(digits)
    return int(digits) - 1


def _ordinal(found: re.Match[str]) -> str:
    """Correct ordinals: cronsim writes 21th."""
    tens, teen, last = found.groups()
    return found[0] if teen else f"{tens}{last}{_ENDINGS[last]}"
