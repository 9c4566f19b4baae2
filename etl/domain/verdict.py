"""From an answer to a verdict, and to everything that must be written for it. Pure."""

from __future__ import annotations

import datetime as dt
from typing import Final, NamedTuple, Protocol

from etl.domain.approvals import Approval, held_set
from etl.domain.chain import GENESIS, answer_digest_of, change_set_hash, state_digest
from etl.domain.diff import Difference, baseline, by_id, changes_of, compare
from etl.domain.guard import Decision
from etl.domain.model import Change, ChangeSet, Fence, Issue, Outcome, Snapshot, Span, State

RESOLUTION: Final = dt.timedelta(microseconds=1)


class Failure(Protocol):
    """Why a target got no valid answer."""

    code: str
    message: str
    attempts: int


class ObservationTimes(NamedTuple):
    """When an answer was requested and observed; within a target these times never decrease."""

    asked_at: dt.datetime
    observed_at: dt.datetime
    clock_went_back: bool


def observation_times(fence: Fence, asked_at: dt.datetime, observed_at: dt.datetime) -> ObservationTimes:
    """The times of an observation: as measured, or just after the latest recorded time if the clock went back."""
    latest = fence.latest_at
    observed_at = max(observed_at, fence.run_began_at or observed_at)
    earliest = asked_at if latest is None else latest + RESOLUTION
    if earliest <= asked_at <= observed_at:
        return ObservationTimes(asked_at, observed_at, False)
    asked_at = max(asked_at, earliest)
    return ObservationTimes(asked_at, max(observed_at, asked_at), True)


def unchanged(fence: Fence, snapshot: Snapshot, coverage_gap: dt.timedelta) -> Outcome:
    """The answer is the known one, and nothing is held: extend its span, or open a new one."""
    times = observation_times(fence, snapshot.asked_at, snapshot.observed_at)
    span, extends = _next_span(fence, times, coverage_gap, new_version=False)
    return Outcome(
        fence=fence,
        verdict="unchanged",
        asked_at=times.asked_at,
        observed_at=times.observed_at,
        span=span,
        extends=extends,
        flow_count=fence.flow_count,
        clock_went_back=times.clock_went_back,
    )


def failed(fence: Fence, error: Failure) -> Outcome:
    """No valid answer: the span ends, and nothing else changes."""
    return Outcome(fence=fence, verdict="failed", issue=Issue(error.code, error.message, error.attempts))


def decided(
    fence: Fence,
    state: State,
    snapshot: Snapshot,
    decision: Decision,
    coverage_gap: dt.timedelta,
    approval: Approval | None = None,
    difference: Difference | None = None,
) -> Outcome:
    """What ``decision`` makes of an answer that differs from the state, or that ends or prolongs a hold.

    ``snapshot.flows`` must be there; ``difference`` is that between the state and these, where the caller has it.
    Raises ValueError for a snapshot that is not the only answer of its connection: it may be another user's.
    """
    assert snapshot.flows is not None  # noqa: S101 - the caller decoded it
    if not snapshot.sole_answer:
        raise ValueError(f"the answer for {fence.target} is not the only one of its connection")
    difference = difference or compare(state.flows, by_id(snapshot.flows))
    answer_digest, digest = answer_digest_of(snapshot), None
    times = observation_times(fence, snapshot.asked_at, snapshot.observed_at)
    if fence.version == 0:
        changes = baseline(difference.added)
    else:
        changes = [] if decision.whole else changes_of(difference, decision.held)
    if changes and decision.held:
        digest = state_digest([*snapshot.flows, *map(difference.absent.__getitem__, decision.held)])
    change_set = _change_set(fence, state, snapshot, times, digest or answer_digest, changes, approval)
    held = bool(decision.held or decision.doubted)
    span, extends = (None, False) if held else _next_span(fence, times, coverage_gap, new_version=bool(change_set))
    return Outcome(
        fence=fence,
        verdict="held" if held else "changed" if change_set else "unchanged",
        asked_at=None if decision.whole else times.asked_at,
        observed_at=times.observed_at,
        span=span,
        extends=extends,
        answer_digest=answer_digest,
        data_hash=snapshot.data_hash,
        change_set=change_set,
        hash=change_set_hash(fence.head_hash or GENESIS, change_set) if change_set else None,
        flow_count=difference.known if decision.whole else len(snapshot.flows) + len(decision.held),
        missing=decision.held,
        missing_before=state.missing,
        doubted=decision.doubted,
        doubted_before=state.doubted,
        issue=Issue("guard", decision.reason, snapshot.attempts, len(decision.held)) if held else None,
        clock_went_back=times.clock_went_back,
        kept=snapshot.kept if held or change_set or fence.held else None,
    )


def _change_set(
    fence: Fence,
    state: State,
    snapshot: Snapshot,
    times: ObservationTimes,
    digest: str,
    changes: list[Change],
    approval: Approval | None,
) -> ChangeSet | None:
    if not changes and fence.version > 0:
        return None
    signs = approval and any(c.kind == "removed" or c.as_doubted() in state.doubted for c in changes)
    signed = approval if signs else None
    return ChangeSet(
        target=fence.target,
        version=fence.version + 1,
        kind="delta" if fence.version else "baseline",
        observed_at=times.observed_at,
        last_unchanged_at=fence.span.last_asked_at if fence.span else None,
        spans=state.spans,
        approved_by=signed.by if signed else None,
        approved_scope=held_set(fence.target, fence.held_since, state.missing, state.doubted).scope if signed else None,
        data_hash=snapshot.data_hash,
        state_digest=digest,
        changes=changes,
    )


def _next_span(
    fence: Fence, times: ObservationTimes, coverage_gap: dt.timedelta, *, new_version: bool
) -> tuple[Span, bool]:
    extended = _extended(fence, times, coverage_gap)
    if extended and not new_version:
        return extended, True
    return _opened(fence, times, interrupted=extended is None), False


def _extended(fence: Fence, times: ObservationTimes, coverage_gap: dt.timedelta) -> Span | None:
    """The open span, extended; None if none is open or the silence since was too long."""
    span = fence.span
    if span is None or fence.observation_id is None:
        return None
    silence = times.observed_at - span.last_at
    if silence > coverage_gap:
        return None
    return Span(
        first_at=span.first_at,
        last_asked_at=times.asked_at,
        last_at=times.observed_at,
        observations=span.observations + 1,
        longest_gap_seconds=max(span.longest_gap_seconds, silence // dt.timedelta(seconds=1)),
        interrupted=span.interrupted,
    )


def _opened(fence: Fence, times: ObservationTimes, *, interrupted: bool) -> Span:
    """A new span; a target's first is never called interrupted."""
    return Span(
        first_at=times.observed_at,
        last_asked_at=times.asked_at,
        last_at=times.observed_at,
        observations=1,
        longest_gap_seconds=0,
        interrupted=interrupted and fence.span is not None,
    )
