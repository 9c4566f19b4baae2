"""Values of ``[[notify]]`` and ``ping_url``. Their addresses contain keys, so no message repeats one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from etl.config import addresses
from etl.config.secret import Secret, read_secret_lines
from etl.config.tables import nearest
from etl.config.units import shown
from etl.domain.kinds import DELTA_KINDS, ORGANISATION_KINDS, TARGET_ISSUE_KINDS

USUAL_KINDS: Final = ("cycle_changed", "removed", "held", "failed", "overdue")
KINDS: Final = tuple(dict.fromkeys((*USUAL_KINDS, *DELTA_KINDS, *TARGET_ISSUE_KINDS, *ORGANISATION_KINDS)))
"""Every kind of notification, first those that receivers get by default."""
_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\x00-\x20\x7f]+")


def receiver_urls(value: object) -> tuple[Secret, ...]:
    """Addresses of receivers: a list, or text separated by white space."""
    return tuple(_receiver_url(text) for text in dict.fromkeys(names(value)))


def receiver_urls_file(path: Path) -> tuple[Secret, ...]:
    """Addresses in a file, one per line; lines that begin with ``#`` are comments."""
    lines = read_secret_lines(path)
    if not lines:
        raise ValueError(f"{path} is empty: write one address per line")
    try:
        return receiver_urls(lines)
    except ValueError:
        raise ValueError(
            f"{path} must have one address per line, such as mailto://..., and one line is not an address"
        ) from None


def _receiver_url(text: str) -> Secret:
    if not _URL.fullmatch(text):
        raise ValueError('must be a list of addresses such as "mailto://..." or "slack://...", and one of them is not')
    return Secret(text)


def kinds(value: object) -> tuple[str, ...]:
    """The kinds that a receiver is notified of."""
    chosen = tuple(dict.fromkeys(names(value)))
    for name in chosen:
        if name not in KINDS:
            raise ValueError(f"there is no kind {shown(name)}: did you mean {nearest(name, KINDS)}?")
    if not chosen:
        raise ValueError(f"must name at least one of {', '.join(KINDS)}")
    return chosen


def names(value: object) -> tuple[str, ...]:
    """A list of texts that are not empty, or one text separated by white space."""
    parts: Sequence[object] = value.split() if isinstance(value, str) else value if isinstance(value, list) else ()
    if not isinstance(value, str | list) or not all(isinstance(part, str) and part.strip() for part in parts):
        raise ValueError('must be a list of strings, such as ["one", "another"]')
    return tuple(str(part).strip() for part in parts)


def ping_url(value: object) -> Secret:
    """Where a schedule's runs are reported; the path is as secret as a password."""
    try:
        return Secret(addresses.ping_url(value))
    except ValueError:
        raise ValueError('must be an address such as "https://hc-ping.com/..."') from None
