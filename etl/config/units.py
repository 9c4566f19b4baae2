"""Durations and sizes as people write them: "90s", "1h30m", "64MiB"."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable
from difflib import SequenceMatcher
from typing import Final

ZERO: Final = dt.timedelta(0)
_LONGEST: Final = dt.timedelta(days=36_500)
_LONGEST_WINDOW: Final = dt.timedelta(days=30)
_UNITS: Final = {
    "ms": dt.timedelta(milliseconds=1),
    "s": dt.timedelta(seconds=1),
    "m": dt.timedelta(minutes=1),
    "h": dt.timedelta(hours=1),
    "d": dt.timedelta(days=1),
    "w": dt.timedelta(weeks=1),
}
_PART: Final = re.compile(r"\s*([0-9]{1,12}(?:\.[0-9]{1,6})?)\s*(ms|[smhdw])")
_SIZE: Final = re.compile(r"\s*([0-9]{1,15}(?:\.[0-9]{1,6})?)\s*(?:(?:([kmgt])(i?))?b)?\s*", re.IGNORECASE)
_POWERS: Final = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def duration(value: object) -> dt.timedelta:
    """A duration longer than zero, from text such as "90s" or "1h30m"; ValueError says what is wrong."""
    length = duration_or_zero(value)
    if length <= ZERO:
        raise ValueError('must be longer than zero: a duration such as "90s", "15m" or "1h30m"')
    return length


def duration_or_zero(value: object) -> dt.timedelta:
    """As ``duration``, but 0 (as text or number) is allowed."""
    if isinstance(value, int | float | str) and not isinstance(value, bool) and str(value).strip() in ("0", "0.0"):
        return ZERO
    length = _sum_of_parts(value) if isinstance(value, str) else None
    if length is None:
        raise ValueError(
            f'must be a duration such as "90s", "15m", "36h" or "1h30m" (ms, s, m, h, d, w), not {shown(value)}'
        )
    if length > _LONGEST:
        raise ValueError(f"must be shorter than 100 years, not {shown(value)}")
    return length


def guard_window(value: object) -> dt.timedelta:
    """How far back removals are added up; at most a month, because counts are kept no longer."""
    length = duration(value)
    if not _UNITS["m"] <= length <= _LONGEST_WINDOW:
        raise ValueError(f'must be from "1m" to "30d", not {shown(value)}')
    return length


def retention_period(value: object) -> dt.timedelta | None:
    """How long something is kept, at least a day; None (for ever) from "" or "forever"."""
    return _unless(("", "forever"), value, _UNITS["d"], 'must be at least a day, such as "400d", or "forever"')


def interval_or_off(value: object) -> dt.timedelta | None:
    """How often something is done, at least a minute; None (never) from "off"."""
    return _unless(("off",), value, _UNITS["m"], 'must be a minute at least, such as "1d", or "off"')


def _unless(none: tuple[str, ...], value: object, least: dt.timedelta, message: str) -> dt.timedelta | None:
    if isinstance(value, str) and value.strip().lower() in none:
        return None
    length = duration_or_zero(value)
    if length < least:
        raise ValueError(message)
    return length


def _sum_of_parts(text: str) -> dt.timedelta | None:
    parts = _PART.findall(text)
    if not parts or _PART.sub("", text).strip() or len({unit for _, unit in parts}) < len(parts):
        return None
    try:
        return sum((float(number) * _UNITS[unit] for number, unit in parts), ZERO)
    except OverflowError:
        return dt.timedelta.max


def size(value: object) -> int:
    """A number of bytes, at least 1, from text such as "64MiB", "10MB" or "4096", or from a whole number."""
    match = _SIZE.fullmatch(str(value)) if isinstance(value, int | str) and not isinstance(value, bool) else None
    if match is None:
        raise ValueError(f'must be a size such as "64MiB", "10MB" or "4096" (bytes), not {shown(value)}')
    number, prefix, binary = match[1], (match[2] or "").lower(), match[3]
    amount = float(number) * (1024 if binary else 1000) ** _POWERS[prefix]
    if not 1 <= amount <= 2**40:
        raise ValueError(f'must be at least one byte and at most "1TiB", not {shown(value)}')
    return int(amount)


def shown(value: object) -> str:
    """A wrong value as an error message shows it: short, in one line, without a password."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, bool):
        return str(value).lower()
    text = without_password(str(value))
    quoted = text if isinstance(value, int | float) else f'"{text}"'
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in quoted[:80])


def nearest(name: str, candidates: Iterable[str]) -> str:
    """The candidate that looks most like ``name``."""
    return max(candidates, key=lambda each: SequenceMatcher(None, name.lower(), each.lower()).ratio())


_SENSITIVE: Final = r"[a-z_]*(?:pass|secret|token|key)[a-z_]*"
_FILES: Final = r"(?:passfile|sslkey|sslkeylogfile)="
"""Parameters of libpq that name a file with a secret."""


def without_password(text: str) -> str:
    """``text`` with ``***`` for every password, secret and key of a URL in it, and for the user unless it is a
    database's URL: it may be a token."""
    return _masked(text, _SENSITIVE)


def holds_password(text: str) -> bool:
    """Whether a URL in ``text`` has a password or a secret (the name of a file with one does not count)."""
    return _masked(text, rf"(?!{_FILES}){_SENSITIVE}") != text


def _masked(text: str, parameter: str) -> str:
    hidden = re.sub(r"(://[^:/?#\s]*):.*@", r"\1:***@", text, flags=re.DOTALL)
    hidden = re.sub(r"(?i)(?<![a-z0-9+.-])((?!postgres|sqlite)[a-z][a-z0-9+.-]*://)[^/?#\s]+@", r"\1***@", hidden)
    return re.sub(rf"(?i)([?&]{parameter}=)[^&#\s]*", r"\1***", hidden)
