"""Digests and hashes of the trail, so that an auditor can recompute them with twenty lines of any language.

Everything hashed is JSON without spaces, in UTF-8, its strings escaped as RFC 8785 does (which is what msgspec
writes), its times integer microseconds since the epoch. ``docs/verify.md`` gives the rules and a plain-Python checker.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Iterable
from operator import attrgetter
from typing import Final

import msgspec

from etl.domain.model import ChangeSet, Flow, Span

GENESIS: Final = "0" * 64
"""The parent hash of a target's first change set."""

_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND: Final = dt.timedelta(microseconds=1)
_flow_id = attrgetter("flow_id")
_encode = msgspec.json.Encoder().encode


def microseconds(instant: dt.datetime) -> int:
    """Whole microseconds since the epoch."""
    return (instant - _EPOCH) // _MICROSECOND


def state_digest(flows: Iterable[Flow]) -> str:
    """SHA-256 (hex) of a target's workflows, whatever their order."""
    return hashlib.sha256(_encode(sorted(flows, key=_flow_id))).hexdigest()


def change_set_hash(parent_hash: str, change_set: ChangeSet) -> str:
    """SHA-256 (hex) that chains a change set to the one before."""
    content = (
        *change_set.target,
        change_set.version,
        change_set.kind,
        microseconds(change_set.observed_at),
        None if change_set.last_unchanged_at is None else microseconds(change_set.last_unchanged_at),
        [_span(span) for span in change_set.spans],
        change_set.approved_by,
        change_set.state_digest,
        change_set.changes,
    )
    return hashlib.sha256(parent_hash.encode() + _encode(content)).hexdigest()


def _span(span: Span) -> tuple[int, int, int, int, int, bool]:
    return (
        microseconds(span.first_at),
        microseconds(span.last_asked_at),
        microseconds(span.last_at),
        span.observations,
        span.longest_gap_seconds,
        span.interrupted,
    )
