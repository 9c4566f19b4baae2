"""The text of a notification: a title with the sums, a few lines per kind, commands that show the rest. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from etl.domain.kinds import DELTA_KINDS, LABELS, ORGANISATION_KINDS, TARGET_ISSUE_KINDS
from etl.domain.model import CYCLE_LABELS
from etl.printable import printable

LINES: Final = 20
"""Lines per message; if several kinds share them, each has at least a few."""
_FEWEST_LINES: Final = 3
_LONGEST_NAME: Final = 80
_LONGEST_MESSAGE: Final = 200
_MARKUP: Final = re.compile(
    r"@(?=everyone|here|channel|all\b|room\b)"  # mentions people, also in the middle of a word
    r"|(?<!\w)@|@(?!\w)"  # mentions somebody, or a role; an address such as a@b stays
    r"|<(?=[A-Za-z/@!#:])"  # a tag, a mention or a link in chats and in HTML
    r"|(?<=\])\("  # a link whose text hides where it leads
    r"|`|\|(?=\|)|~(?=~)",  # code, and what hides or strikes out other lines
    re.IGNORECASE,
)
"""What a chat could render as markup or a mention. Single ``_`` and ``*`` are common in names, and harmless."""
_MORE: Final = "\nTo see more:"
_CUT: Final = "  and more than fits here"


class DigestPart(NamedTuple):
    """What happened of one kind: how often, and the first lines."""

    total: int
    lines: tuple[str, ...]


class Digest(msgspec.Struct, frozen=True, kw_only=True):
    """What happened in a run (or since the last check), as far as one receiver subscribes to it."""

    name: str
    """What ran: a schedule, "sync" or "approval"; "" if it was not a run."""
    summary: str
    """A sentence about the run."""
    parts: Mapping[str, DigestPart]
    changes_between: tuple[str, str] | None = None
    """The period for which `flowtrail changes` shows these changes."""


class Message(NamedTuple):
    """Plain text. The title is one line."""

    title: str
    body: str
    needs_attention: bool = False
    """Whether somebody should look."""


def gather(found: Iterable[tuple[str, str]]) -> dict[str, DigestPart]:
    """Parts from (kind, line), in the order of LABELS; only the first lines of each are kept in memory."""
    counts = dict.fromkeys(LABELS, 0)
    lines: dict[str, list[str]] = {kind: [] for kind in LABELS}
    for kind, line in found:
        counts[kind] += 1
        if counts[kind] <= LINES:
            lines[kind].append(line)
    return {kind: DigestPart(count, tuple(lines[kind])) for kind, count in counts.items() if count}


def message(digest: Digest) -> Message:
    """The message for ``digest``."""
    needs_attention = bool(digest.parts.keys() & {*TARGET_ISSUE_KINDS})
    return Message(_title(digest.name, digest.parts), "\n".join(_body(digest)), needs_attention)


def together(digests: Sequence[Digest]) -> Message:
    """One message for many runs, so that a receiver does not get a hundred after an outage."""
    found: dict[str, DigestPart] = {}
    for kind in LABELS:
        parts = [digest.parts[kind] for digest in digests if kind in digest.parts]
        if parts:
            lines = [line for part in parts for line in part.lines]
            found[kind] = DigestPart(sum(part.total for part in parts), tuple(lines[:LINES]))
    spans = [digest.changes_between for digest in digests if digest.changes_between]
    between = (min(span[0] for span in spans), max(span[1] for span in spans)) if spans else None
    names = ", ".join(sorted({digest.name for digest in digests}))
    summary = f"{len(digests)} runs ({names}) that could not be reported to this receiver before."
    return message(Digest(name=f"{len(digests)} runs", summary=summary, parts=found, changes_between=between))


def shortened(full: Message, fits: Callable[[str], bool]) -> Message:
    """The message with as many lines as fit; the commands that show the rest stay."""
    if fits(full.body):
        return full
    listed, mark, commands = full.body.partition(_MORE)
    lines = listed.splitlines()
    while len(lines) > 1 and not fits("\n".join([*lines, _CUT, mark + commands])):
        lines.pop()
    return full._replace(body="\n".join([*lines, _CUT, mark + commands]))


def quoted(foreign: str | None, longest: int = _LONGEST_NAME) -> str:
    """A foreign name as plain text: on one line, shortened, with markup and mentions escaped."""
    text = _MARKUP.sub(lambda match: f"\\x{ord(match[0]):02x}", printable(foreign or ""))
    return text if len(text) <= longest else text[: longest - 1] + "…"


def cut(text: str) -> str:
    """A sentence that may quote foreign text, escaped the same way."""
    return quoted(text, _LONGEST_MESSAGE)


def cycle(code: str | None) -> str:
    """A cycle for people: "day"; undocumented cycles stay as they are."""
    return "none" if code is None else CYCLE_LABELS.get(code) or quoted(code)


def _title(name: str, parts: Mapping[str, DigestPart]) -> str:
    sums = ", ".join(f"{part.total} {LABELS[kind][part.total != 1]}" for kind, part in parts.items())
    return f"Flowtrail {name}: {sums}" if name else f"Flowtrail: {sums}"


def _body(digest: Digest) -> Iterable[str]:
    yield digest.summary
    share = max(_FEWEST_LINES, LINES // max(1, len(digest.parts)))
    for kind, part in digest.parts.items():
        yield f"\n{LABELS[kind].heading} ({part.total}):"
        yield from (f"  {line}" for line in part.lines[:share])
        if part.total > share:
            yield f"  and {part.total - share} more"
    yield _MORE
    yield from (f"  {command}" for command in _commands(digest))


def _commands(digest: Digest) -> Iterable[str]:
    if digest.changes_between and digest.parts.keys() & {*DELTA_KINDS}:
        since, until = digest.changes_between
        yield f"flowtrail changes --since {since} --until {until}"
    if "held" in digest.parts:
        yield "flowtrail guard list"
    if digest.changes_between and digest.parts.keys() & {*ORGANISATION_KINDS}:
        since, _ = digest.changes_between
        yield f"flowtrail events --since {since}"
    if digest.parts.keys() - {*DELTA_KINDS, *ORGANISATION_KINDS, "held"} or not digest.parts:
        yield "flowtrail status"
