"""Chain format 1: the digests and hashes of a target's versions.

Everything hashed is JSON without spaces, in UTF-8, its strings escaped as RFC 8785 does (which is what msgspec
writes), its times integer microseconds since the epoch, or null. ``docs/verify.md`` gives the rules.

The hashes of a format never change: a new field makes a new format, with its own tag in front.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Iterable
from operator import attrgetter
from typing import Any, Final

import msgspec

from etl.domain.model import ChangeSet, Doubt, Flow, Snapshot, Target

FORMAT: Final = 1
TAG: Final = f"change/{FORMAT}"
GENESIS: Final = "0" * 64
"""The parent hash of a target's first change set."""

_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND: Final = dt.timedelta(microseconds=1)
_flow_id, _kind = attrgetter("flow_id"), attrgetter("kind")
change_order: Final = attrgetter("flow_id", "kind")
"""The order of changes in a change set."""
_first_at = attrgetter("first_at")

encode: Final = msgspec.json.Encoder().encode
"""A value as the bytes that are hashed. Raises UnicodeEncodeError on a lone surrogate, which no text may contain."""


def microseconds(instant: dt.datetime) -> int:
    """Whole microseconds since the epoch."""
    return (instant - _EPOCH) // _MICROSECOND


def in_microseconds(values: Iterable[Any]) -> list[Any]:
    """The values, with each time in microseconds."""
    return [microseconds(value) if isinstance(value, dt.datetime) else value for value in values]


def digest(value: Any) -> str:
    """SHA-256 (hex) of a value's JSON."""
    return hashlib.sha256(encode(value)).hexdigest()


def linked(parent: str, content: bytes) -> str:
    """SHA-256 (hex) of a parent's hash, as 64 characters, followed by ``content``."""
    return hashlib.sha256(parent.encode("ascii") + content).hexdigest()


def state_digest(flows: Iterable[Flow]) -> str:
    """The digest of a target's workflows, in whatever order they are given."""
    return digest(sorted(flows, key=_flow_id))


def answer_digest_of(snapshot: Snapshot) -> str:
    """The same of an answer's workflows, which whoever read it may have computed already."""
    return snapshot.digest or state_digest(snapshot.flows or ())


def approved_scope(
    target: Target, held_since: dt.datetime | None, flow_ids: Iterable[str], doubted: Iterable[Doubt] = ()
) -> str:
    """The digest of the hold that a person approved: when it began, and which removals and changes are held."""
    held = (held_since, sorted(set(flow_ids)), sorted(set(doubted), key=change_order))
    return digest(in_microseconds((*target, *held)))


def change_set_content(change_set: ChangeSet) -> bytes:
    """The bytes of a change set that are hashed after its parent's hash."""
    spans = [in_microseconds(msgspec.structs.astuple(span)) for span in sorted(change_set.spans, key=_first_at)]
    values = (
        *(TAG, *change_set.target, change_set.version, change_set.kind),
        *(change_set.observed_at, change_set.last_unchanged_at, spans, change_set.approved_by),
        *(change_set.approved_scope, change_set.data_hash, change_set.state_digest),
        sorted(sorted(change_set.changes, key=_kind), key=_flow_id),  # as by change_order, without a tuple each
    )
    return encode(in_microseconds(values))


def change_set_hash(parent_hash: str, change_set: ChangeSet) -> str:
    """The hash that chains a change set to the one before."""
    return linked(parent_hash, change_set_content(change_set))
