"""Moments as people type them: "2026-03-31", "2026-03-31 14:00 +08:00", "yesterday", "7 days ago". Pure."""

from __future__ import annotations

import datetime as dt
import re
from calendar import monthrange
from collections.abc import Mapping
from typing import Final
from zoneinfo import ZoneInfo

EXAMPLES: Final = '"2026-03-31", "2026-03-31 14:00", "2026-03-31T14:00:00+08:00", "yesterday" or "7 days ago"'

_DAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_ISO: Final = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})"
    r"(?:[Tt ]\s*((?:[01][0-9]|2[0-3]):[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,6})?)?)"
    r"(?:\s*([Zz]|[+-](?:[01][0-9]|2[0-3])(?::?[0-5][0-9])?))?)?"
)
"""A date; with a time; with an offset."""
_AGO: Final = re.compile(r"(?P<count>[0-9]{1,7}|an?)\s*(?P<unit>[a-z]+)\s+ago")
_ZONE: Final = re.compile(r"(?P<moment>.*\S)\s+(?P<zone>UTC|[A-Za-z_]+(?:/[A-Za-z0-9_+-]+)+)", re.DOTALL)
_DAY: Final = dt.timedelta(days=1)
_UNITS: Final[Mapping[str, dt.timedelta | int]] = {
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), dt.timedelta(seconds=1)),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), dt.timedelta(minutes=1)),
    **dict.fromkeys(("h", "hour", "hours"), dt.timedelta(hours=1)),
    **dict.fromkeys(("d", "day", "days"), _DAY),
    **dict.fromkeys(("w", "week", "weeks"), 7 * _DAY),
    **dict.fromkeys(("month", "months"), 1),
    **dict.fromkeys(("y", "year", "years"), 12),
}
"""By name: how long they are, or how many months of the calendar."""


def parse_moment(text: str, now: dt.datetime, zone: dt.tzinfo = dt.UTC) -> dt.datetime:
    """The moment that ``text`` means, in UTC; ``now`` is aware, ``zone`` is where a time without a zone is.

    - a date with or without a time, which may end in ``Z``, an offset or the name of a zone. A date alone is the
      first moment of that day.
    - ``now``; ``today``, ``yesterday``, ``tomorrow`` and the days of the week (the latest, today included): their
      first moment.
    - ``N seconds|minutes|hours ago``: exactly so long. ``N days|weeks|months|years ago``: the same time of day in
      the zone, the last day of a month where there is none such.

    A time that a change of the clocks skipped or repeated is refused where somebody typed it; where it was computed
    ("7 days ago") it is moved on by what was skipped, or is the first of the two. Raises ValueError with one sentence.
    """
    wanted = text.strip()
    named = _ZONE.fullmatch(wanted)
    if named:
        wanted, zone = named["moment"], _zone(named["zone"])
    try:
        found = _iso(wanted, zone) or _relative(wanted.lower(), now.astimezone(zone), zone)
        moment = None if found is None else found.astimezone(dt.UTC)
    except OverflowError:
        raise ValueError(f"{_shown(text)} is too far away: write a time in the years 1 to 9999") from None
    if moment is None:
        raise ValueError(f"{_shown(text)} is not a time that can be understood: write {EXAMPLES}")
    return moment


def _zone(name: str) -> dt.tzinfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError(
            f'{_shown(name)} is no time zone: write a name such as "Asia/Shanghai", or an offset'
        ) from None


def _iso(text: str, zone: dt.tzinfo) -> dt.datetime | None:
    match = _ISO.fullmatch(text)
    if match is None:
        return None
    day, time, offset = match.groups(default="")
    try:
        written = dt.datetime.fromisoformat(f"{day}T{time or '00:00'}{offset.upper()}")
    except ValueError as error:
        raise ValueError(f"{_shown(text)} is not on the calendar or the clock: {error}") from None
    if offset:
        return written
    return _typed(written, zone) if time else _first_moment(written.date(), zone)


def _relative(text: str, now: dt.datetime, zone: dt.tzinfo) -> dt.datetime | None:
    if text == "now":
        return now
    days_back = {name: (now.weekday() - number) % 7 for number, name in enumerate(_DAYS)}
    days_back |= {"tomorrow": -1, "today": 0, "yesterday": 1}
    if text in days_back:
        return _first_moment(now.date() - dt.timedelta(days=days_back[text]), zone)
    match = _AGO.fullmatch(text)
    unit = _UNITS.get(match["unit"]) if match else None
    if match is None or unit is None:
        return None
    return _ago(now, 1 if match["count"] in ("a", "an") else int(match["count"]), unit, zone)


def _ago(now: dt.datetime, count: int, unit: dt.timedelta | int, zone: dt.tzinfo) -> dt.datetime:
    wall = now.replace(tzinfo=None, fold=0)
    if isinstance(unit, dt.timedelta):
        return now.astimezone(dt.UTC) - count * unit if unit < _DAY else (wall - count * unit).replace(tzinfo=zone)
    months = wall.year * 12 + wall.month - 1 - count * unit
    year, month = divmod(months, 12)
    if year < dt.MINYEAR:
        raise OverflowError
    day = min(wall.day, monthrange(year, month + 1)[1])
    return wall.replace(year=year, month=month + 1, day=day, tzinfo=zone)


def _first_moment(day: dt.date, zone: dt.tzinfo) -> dt.datetime:
    """Midnight (the first, if there are two); if clocks skip it, the moment of the change."""
    midnight = dt.datetime.combine(day, dt.time())
    early, late = _readings(midnight, zone)
    if early.utcoffset() == late.utcoffset() or _is_repeated(early, late):
        return early
    earliest, latest = late.astimezone(dt.UTC), early.astimezone(dt.UTC)
    while latest - earliest > dt.timedelta(microseconds=1):
        middle = earliest + (latest - earliest) // 2
        if middle.astimezone(zone).date() < day:
            earliest = middle
        else:
            latest = middle
    return latest


def _typed(written: dt.datetime, zone: dt.tzinfo) -> dt.datetime:
    early, late = _readings(written, zone)
    if early.utcoffset() == late.utcoffset():
        return early
    shown = written.isoformat(" ", "minutes")
    if _is_repeated(early, late):
        raise ValueError(
            f'{shown} came twice in {zone}: write "{early.isoformat()}" for the first or "{late.isoformat()}" '
            "for the second"
        )
    after = early.astimezone(dt.UTC).astimezone(zone)
    raise ValueError(f'{shown} never came in {zone}, the clocks skipped it: write "{after.isoformat()}"')


def _readings(wall: dt.datetime, zone: dt.tzinfo) -> tuple[dt.datetime, dt.datetime]:
    return wall.replace(tzinfo=zone, fold=0), wall.replace(tzinfo=zone, fold=1)


def _is_repeated(early: dt.datetime, late: dt.datetime) -> bool:
    """For two readings of a time that differ: True if both occurred, False if neither did (PEP 495)."""
    return early.astimezone(dt.UTC) < late.astimezone(dt.UTC)


def _shown(text: str) -> str:
    return '"' + "".join(char if char.isprintable() else "?" for char in text.strip()[:60]) + '"'
