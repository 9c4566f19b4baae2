"""EnOS's schedules in words: a Quartz cron (6 or 7 fields, Sunday is 1) as cronsim describes it.

What cronsim does not know, or would read differently, is not described at all: no words are better than wrong ones.
"""

from __future__ import annotations

import datetime as dt
import re
from typing import Final

from cronsim import CronSim, CronSimError

_DAYS: Final = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
_ANY: Final = ("*", "?")
_YEAR: Final = re.compile(r"[0-9]{4}")
_BEGIN: Final = dt.datetime(2000, 1, 1)  # noqa: DTZ001 - a clock on a wall; the words do not depend on it
_ENDINGS: Final = {"1": "st", "2": "nd", "3": "rd"}
_ORDINAL: Final = re.compile(r"\b([0-9]*?)(1?)([123])th\b")


def quartz_in_words(expression: str) -> str:
    """ "at 02:00 every day" for ``0 0 2 * * ? *``; "" where it cannot be said with certainty."""
    fields = expression.upper().split()
    if len(fields) not in (6, 7):
        return ""
    second, minute, hour, day, month, weekday, *years = fields
    year = years[0] if years else "*"
    if (year != "*" and not _YEAR.fullmatch(year)) or (day not in _ANY and weekday not in _ANY):
        return ""
    try:
        days = "*" if weekday in _ANY else ",".join(map(_day_of_week, weekday.split(",")))
        cron = CronSim(" ".join((second, minute, hour, "*" if day == "?" else day, month, days)), _BEGIN)
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
