"""Seal format 1: the proof of a run that has ended, chained to the run that was sealed before.

A seal covers the run's own row and five digests: which targets were to be asked, which versions were made, which
targets did not go through, what happened besides, and what people acknowledged since the seal before. The encoding is
that of the chain. ``docs/verify.md`` gives the rules.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import heapq
import io
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Final

import msgspec

from etl.domain.chain import digest, encode, in_microseconds, linked, microseconds
from etl.domain.kinds import CHANGE_KINDS
from etl.domain.model import VERDICTS, Target

FORMAT: Final = 1
TAG: Final = f"seal/{FORMAT}"
TRAIL_TAG: Final = "trail/1"
SUMS: Final = ("targets", *VERDICTS, *CHANGE_KINDS)
"""The counts of a run, in the order of the seal."""
_AT_ONCE: Final = 10_000
_decode: Final = msgspec.json.Decoder(tuple[str, str, str]).decode


class SealedRun(msgspec.Struct, frozen=True, kw_only=True):
    """What a seal says about its run, in the order of the seal. ``sums`` are in the order of ``SUMS``."""

    run_id: int
    schedule: str | None
    origin: str
    scheduled_for: dt.datetime | None
    missed_slots: int
    status: str
    started_at: dt.datetime
    finished_at: dt.datetime
    sums: Sequence[int]


class Digests(msgspec.Struct, frozen=True, kw_only=True):
    """The five digests of a run, in the order of the seal."""

    targets: str
    change_sets: str
    issues: str
    events: str
    acknowledgements: str


ISSUE: Final = (*Target._fields, "verdict", "error_code", "missing")
"""The columns of a target that did not succeed, as a seal covers it; by target, and those of one by their ids."""
EVENTS: Final[Mapping[str, tuple[str, ...]]] = {
    "target_membership": (*Target._fields, "run_id", "schedule", "kind", "at", "coverage_gap_seconds"),
    "hold_event": (*Target._fields, "run_id", "kind", "at", "flow_ids", "doubted", "data_hash"),
    "workflow_detail": (
        *("org_id", "flow_id", "run_id", "asked_at", "observed_at", "update_user", "update_time", "creator"),
        *("create_time", "owner", "freq", "active", "type", "locked", "enos_timezone", "detail_hash"),
    ),
    "org_event": (
        *("run_id", "org_id", "flow_id", "kind", "user_id", "old_name", "new_name", "old_cycle", "new_cycle"),
        *("old_editable", "new_editable", "last_unchanged_at", "observed_at", "users_before", "users_after"),
        *("proven_for_all", "unheard", "decided_at"),
    ),
    "pruned_issues": ("run_id", "pruned_run_id", "at"),
}
"""What a run wrote besides versions and issues: by table, the columns that a seal covers, all in the order of the seal.

The rows of a table are in the order of their ids. ``flow_ids`` and ``doubted`` are arrays, sorted.
"""

ACKNOWLEDGEMENT: Final = (
    *("id", "made_at", "made_by", "ticket", "note", "org_id", "flow_id", "user_id", "kind"),
    *("after", "until", "revokes"),
)
"""The columns of an acknowledgement, as a seal covers it."""


def genesis(trail_id: str, created_at: dt.datetime, parent: str | None = None) -> str:
    """The parent of a trail's first seal.

    ``parent`` is given for a copy: the last seal that the copy took over, or, where there was none, the parent that
    the first seal would have had in the trail it was copied from.
    """
    begun = [TRAIL_TAG, trail_id, microseconds(created_at)]
    return digest(begun if parent is None else [*begun, parent])


def targets_digest(targets: Iterable[Target]) -> str:
    """The digest of the targets that were to be asked, in whatever order they are given.

    Of a million of them, 55 MB are in memory at once: they are sorted in parts, which are kept as JSON and merged. As a
    sorted list they would take 250 MB.
    """
    waiting, parts = iter(targets), list[bytes]()
    while some := sorted(islice(waiting, _AT_ONCE)):
        parts.append(b"\n".join(map(encode, some)))
    return digest_of(map(encode, heapq.merge(*(map(_decode, io.BytesIO(part)) for part in parts))))


def digest_of(encoded: Iterable[bytes]) -> str:
    """The digest of an array of encoded values, in constant memory."""
    computed = hashlib.sha256()
    _feed(computed, encoded)
    return computed.hexdigest()


def digest_of_lists(lists: Iterable[Iterable[bytes]]) -> str:
    """As ``digest_of``, of an array of arrays, such as the rows of each table in ``EVENTS``."""
    computed = hashlib.sha256(b"[")
    for number, encoded in enumerate(lists):
        computed.update(b"," if number else b"")
        _feed(computed, encoded)
    computed.update(b"]")
    return computed.hexdigest()


def encoded_row(values: Iterable[Any]) -> bytes:
    """The bytes of a row in a digest."""
    return encode(in_microseconds(values))


def acknowledgements_digest(rows: Iterable[Iterable[Any]]) -> str:
    """The digest of the hashes of acknowledgements, so that a bundle can prove some without showing the others."""
    return digest_of(encode(acknowledgement_hash(row)) for row in rows)


def acknowledgement_hash(row: Iterable[Any]) -> str:
    """SHA-256 (hex) of an acknowledgement, whose values are in the order of ``ACKNOWLEDGEMENT``."""
    return hashlib.sha256(encoded_row(row)).hexdigest()


def _feed(computed: Any, encoded: Iterable[bytes]) -> None:
    between = b"["
    for value in encoded:
        computed.update(between + value)
        between = b","
    computed.update(b"]" if between == b"," else b"[]")


def seal_content(trail_id: str, number: int, run: SealedRun, digests: Digests, sealed_at: dt.datetime) -> bytes:
    """The bytes of a seal that are hashed after its parent."""
    if len(run.sums) != len(SUMS):
        raise ValueError(f"a seal has {len(SUMS)} sums, not {len(run.sums)}")
    of_run = (*msgspec.structs.astuple(run), *msgspec.structs.astuple(digests))
    return encoded_row((TAG, trail_id, number, *of_run, sealed_at))


def seal_hash(parent: str, trail_id: str, number: int, run: SealedRun, digests: Digests, sealed_at: dt.datetime) -> str:
    """The seal with the id ``number``; ``parent`` is the seal before, or the trail's ``genesis``."""
    return linked(parent, seal_content(trail_id, number, run, digests, sealed_at))


def signed_bytes(trail_id: str, number: int, seal: str) -> bytes:
    """The bytes that are signed and time-stamped."""
    return f"flowtrail-seal-1\n{trail_id}\n{number}\n{seal}".encode()


def kept_line(trail_id: str, number: int, seal: str, sealed_at: dt.datetime) -> dict[str, Any]:
    """A seal as it is kept elsewhere, one JSON object per line."""
    kept: dict[str, Any] = msgspec.to_builtins(
        {"trail_id": trail_id, "id": number, "seal": seal, "sealed_at": sealed_at.astimezone(dt.UTC)}
    )
    return kept
