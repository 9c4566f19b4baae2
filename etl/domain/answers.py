"""What EnOS said, as it is kept beside the trail: the bytes of answers, and the details of changed workflows. Pure.

An answer's ``data`` is kept compressed, by its hash, and only once.

A detail only proves what EnOS said at that moment: somebody may have updated the workflow again between the change and
the request. If the time zone of EnOS's server is configured, or EnOS said it, ``update_time`` is compared with the
interval in which the change lies:

| ``update_time`` is | shown as |
|---|---|
| within the interval, or unreadable, or its zone is not known | who updated it last, and when |
| before the interval | the same, "before this change": EnOS does not count it as an update |
| after the interval | the same, "after this change was seen": perhaps somebody else's |
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re
import zlib
from collections.abc import Callable
from typing import Final

import msgspec

ENCODING: Final = "zlib"
_LONGEST: Final = 2**31
_SECOND: Final = dt.timedelta(seconds=1)
_FARTHEST: Final = dt.timedelta(hours=14)
"""No place on earth is farther from Greenwich."""


class KeptAnswer(msgspec.Struct, frozen=True, gc=False):
    """An answer that is to be kept, or was."""

    data_hash: str
    """SHA-256 (hex) of the bytes as they came."""
    body: bytes
    length: int
    """Of the bytes as they came."""
    encoding: str = ENCODING


def kept(data_hash: str, data: bytes) -> KeptAnswer:
    """``data``, with its known hash, in the form in which it is kept."""
    return KeptAnswer(data_hash, zlib.compress(data), len(data))


def data_of(answer: KeptAnswer) -> bytes:
    """The original bytes. Raises ValueError, which says what is wrong, if these are not they."""
    if answer.encoding != ENCODING:
        raise ValueError(f"encoded as {answer.encoding!r}, which nobody can read")
    if not 0 <= answer.length <= _LONGEST:
        raise ValueError(f"said to be {answer.length} bytes long")
    opener = zlib.decompressobj()
    try:
        data = opener.decompress(answer.body, answer.length + 1)
    except zlib.error as error:
        raise ValueError(f"damaged: {error}") from None
    if len(data) != answer.length or not opener.eof or opener.unused_data:
        raise ValueError("of another length than its row says")
    found = hashlib.sha256(data).hexdigest()
    if found != answer.data_hash:
        raise ValueError(f"the bytes of {found}")
    return data


class Detail(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One valid answer of Get Flow. EnOS's own times are kept as text."""

    org_id: str
    flow_id: str
    asked_at: dt.datetime
    observed_at: dt.datetime
    update_user: str | None
    update_time: str | None
    creator: str | None
    create_time: str | None
    owner: str | None
    freq: str | None
    active: int | None
    type: int | None
    locked: bool | None
    enos_timezone: str | None = None
    """The zone of EnOS's clock as it said in the same run, such as "GMT+8"; None where it did not say."""
    detail_hash: str
    """SHA-256 (hex) of the bytes of ``data`` as they came."""
    body: bytes
    """Those bytes."""


def sentence(
    update_user: str | None,
    update_time: str | None,
    old_freq: str | None,
    new_freq: str | None,
    enos_timezone: str | None,
    interval: tuple[dt.datetime | None, dt.datetime],
    zone: dt.tzinfo | None,
    in_words: Callable[[str], str] = "`{}`".format,
) -> str:
    """What EnOS said, in a sentence; "" where it said nothing about it. ``in_words``: a schedule for people."""
    parts = []
    if update_user or update_time:
        by, at = f" by {update_user}" if update_user else "", f" at {update_time}" if update_time else ""
        parts.append(f"last updated{by}{at}{_relation(update_time, interval, zone or zone_of(enos_timezone))}")
    if new_freq and old_freq and old_freq != new_freq:
        parts.append(f"cron {in_words(new_freq)}, was {in_words(old_freq)}")
    elif new_freq:
        parts.append(f"cron {in_words(new_freq)}")
    return f"EnOS: {'; '.join(parts)}" if parts else ""


def _relation(update_time: str | None, interval: tuple[dt.datetime | None, dt.datetime], zone: dt.tzinfo | None) -> str:
    at = None if zone is None or update_time is None else moment(update_time, zone)
    if at is None:
        return ""
    since, until = interval
    if at > until:
        return " (after this change was seen)"
    return " (before this change)" if since is not None and at + _SECOND <= since else ""


def zone_of(name: str | None) -> dt.tzinfo | None:
    """EnOS's ``GMT+8`` as a time zone; None for anything that is none, such as ``GMT+25``."""
    found = re.fullmatch(r"GMT(?:([+-])(\d{1,2})(?::?([0-5]\d))?)?", name or "", re.ASCII)
    if found is None:
        return None
    sign, hours, minutes = found.groups(default="0")
    offset = dt.timedelta(hours=int(hours), minutes=int(minutes))
    return dt.timezone(-offset if sign == "-" else offset) if offset <= _FARTHEST else None


def moment(text: str, zone: dt.tzinfo) -> dt.datetime | None:
    """EnOS's ``2019-07-22 08:56:58.0`` as a time, if it is one; the earlier of two when clocks are put back."""
    try:
        found = dt.datetime.fromisoformat(text.strip())
        return (found if found.tzinfo else found.replace(tzinfo=zone)).astimezone(dt.UTC)
    except (OverflowError, ValueError):
        return None
