"""What EnOS said about a workflow when asked for its details, and how that is shown next to an event. Pure.

A detail only proves what EnOS said at that moment: somebody may have updated the workflow again between the change and
the request. If the time zone of EnOS's server is configured, ``update_time`` is compared with the interval in which the
change lies:

| ``update_time`` is | shown as |
|---|---|
| within the interval, or unreadable, or its zone is not known | who updated it last, and when |
| before the interval | the same, "before this change": EnOS does not count it as an update |
| after the interval | the same, "after this change was seen": perhaps somebody else's |
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable

import msgspec

_SECOND = dt.timedelta(seconds=1)


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
    detail_hash: str
    """SHA-256 (hex) of the bytes of ``data`` as they came."""
    body: bytes
    """Those bytes."""


def sentence(
    update_user: str | None,
    update_time: str | None,
    old_freq: str | None,
    new_freq: str | None,
    interval: tuple[dt.datetime | None, dt.datetime],
    zone: dt.tzinfo | None,
    in_words: Callable[[str], str] = "`{}`".format,
) -> str:
    """What EnOS said, in a sentence; "" where it said nothing about it. ``in_words``: a schedule for people."""
    parts = []
    if update_user or update_time:
        by, at = f" by {update_user}" if update_user else "", f" at {update_time}" if update_time else ""
        parts.append(f"last updated{by}{at}{_relation(update_time, interval, zone)}")
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


def moment(text: str, zone: dt.tzinfo) -> dt.datetime | None:
    """EnOS's ``2019-07-22 08:56:58.0`` as a time, if it is one; the earlier of two when clocks are put back."""
    try:
        found = dt.datetime.fromisoformat(text.strip())
        return (found if found.tzinfo else found.replace(tzinfo=zone)).astimezone(dt.UTC)
    except (OverflowError, ValueError):
        return None
