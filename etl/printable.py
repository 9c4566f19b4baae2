"""Text for people: foreign text made safe for a terminal or a log line, and counts with their noun."""

from __future__ import annotations

import re
from typing import Final

_HARMFUL: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
"""Control characters, line separators, and characters that hide text or change its direction."""


def printable(text: str) -> str:
    """``text`` on one line, each harmful character written as its escape (``\\x1b``, ``\\u202e``)."""
    return _HARMFUL.sub(_escape, text)


def printable_lines(text: str) -> str:
    """``text`` with its lines as they are, each other harmful character as JSON writes it (``\\u001b``).

    JSON stays the same JSON: in it such characters stand in strings only.
    """
    return _HARMFUL.sub(lambda match: match[0] if match[0] in "\r\n\t" else f"\\u{ord(match[0]):04x}", text)


def counted(number: int, one: str, many: str = "") -> str:
    """``3,000 targets``, ``1 target``, ``2 entries``."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
