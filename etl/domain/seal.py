"""Seal format 1: the proof of a run that has ended, chained to the run that was sealed before.

A seal covers the run's own row and four digests: which targets were to be asked, which versions were made, which
targets did not go through, and what happened besides. The encoding is that of the chain. ``docs/verify.md`` gives
the rules.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import heapq
import io
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, Final, Literal, NamedTuple

import msgspec

from etl.domain.chain import digest, encode, linked, microseconds, optional_microseconds
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
    """What a seal says about its run. ``sums`` are in the order of ``SUMS``."""

    run_id: int
    schedule: str | None
    origin: str
    scheduled_for: dt.datetime | None
    missed: int
    status: str
    started_at: dt.datetime
    finished_at: dt.datetime
    sums: Sequence[int]


class Digests(msgspec.Struct, frozen=True, kw_only=True):
    """The four digests of a run, in the order of the seal."""

    targets: str
    change_sets: str
    issues: str
    events: str


class IssueRow(NamedTuple):
    """A target that did not succeed, as the seal covers it."""

    org_id: str
    user_id: str
    expression: str
    verdict: str
    error_code: str | None
    missing: int


class VersionHash(NamedTuple):
    """A version that a run made."""

    target: Target
    version: int
    hash: str


class MembershipEvent(NamedTuple):
    """A row of ``target_membership``."""

    org_id: str
    user_id: str
    expression: str
    run_id: int
    schedule: str | None
    kind: Literal["joined", "left", "retired", "resumed"]
    at: dt.datetime
    coverage_gap_seconds: int | None
    """The schedule's; only with ``joined``."""


class HoldEvent(NamedTuple):
    """A row of ``hold_event``; ``flow_ids`` and ``doubted`` are sorted."""

    org_id: str
    user_id: str
    expression: str
    run_id: int
    kind: Literal["held", "back", "approved"]
    at: dt.datetime
    flow_ids: Sequence[str]
    doubted: Sequence[Any]
    """Held changes, each ``[flow_id, kind, new value]``."""
    data_hash: str
    """The hash of the answer that showed it."""


class DetailEvent(NamedTuple):
    """A row of ``workflow_detail``, without its body. EnOS's own times are text."""

    org_id: str
    flow_id: str
    run_id: int
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


class OrganisationEvent(NamedTuple):
    """A row of ``org_event``."""

    run_id: int
    org_id: str
    flow_id: str
    kind: str
    user_id: str | None
    old_name: str | None
    new_name: str | None
    old_cycle: str | None
    new_cycle: str | None
    old_editable: bool | None
    new_editable: bool | None
    last_unchanged_at: dt.datetime | None
    observed_at: dt.datetime
    users_before: int
    users_after: int
    proven_for_all: bool
    unheard: int
    decided_at: dt.datetime


class PrunedIssues(NamedTuple):
    """A row of ``pruned_issues``."""

    run_id: int
    pruned_run_id: int
    at: dt.datetime


class Events(NamedTuple):
    """What a run wrote besides versions and issues, each kind in the order of its ids."""

    memberships: Sequence[MembershipEvent] = ()
    holds: Sequence[HoldEvent] = ()
    details: Sequence[DetailEvent] = ()
    organisation: Sequence[OrganisationEvent] = ()
    pruned: Sequence[PrunedIssues] = ()


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


def change_sets_digest(versions: Iterable[VersionHash]) -> str:
    """The digest of the versions that a run made, in whatever order they are given."""
    return digest([each.hash for each in sorted(versions)])


def issues_digest(issues: Iterable[IssueRow]) -> str:
    """The digest of a run's issues. Those of one target are given in the order of their ids."""
    return digest(sorted(issues, key=_by_target))


def events_digest(events: Events) -> str:
    """The digest of everything else that a run wrote."""
    return digest([[_columns(event) for event in kind] for kind in events])


def digest_of(encoded: Iterable[bytes]) -> str:
    """The digest of an array of encoded values, in constant memory."""
    computed = hashlib.sha256()
    _feed(computed, encoded)
    return computed.hexdigest()


def digest_of_lists(lists: Iterable[Iterable[bytes]]) -> str:
    """As ``digest_of``, of an array of arrays."""
    computed = hashlib.sha256(b"[")
    for number, encoded in enumerate(lists):
        computed.update(b"," if number else b"")
        _feed(computed, encoded)
    computed.update(b"]")
    return computed.hexdigest()


def encoded_event(columns: Iterable[Any]) -> bytes:
    """The bytes of a row in ``events_digest``."""
    return encode(_columns(list(columns)))


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
    return encode(
        (
            TAG,
            trail_id,
            number,
            run.run_id,
            run.schedule,
            run.origin,
            optional_microseconds(run.scheduled_for),
            run.missed,
            run.status,
            microseconds(run.started_at),
            microseconds(run.finished_at),
            run.sums,
            digests.targets,
            digests.change_sets,
            digests.issues,
            digests.events,
            microseconds(sealed_at),
        )
    )


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


def _by_target(issue: IssueRow) -> tuple[str, str, str]:
    return issue[:3]


def _columns(event: Sequence[Any]) -> list[Any]:
    return [microseconds(value) if isinstance(value, dt.datetime) else value for value in event]
