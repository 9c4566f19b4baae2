"""From an answer to a verdict and to what is written for it: times, spans, versions, holds."""

from __future__ import annotations

import datetime as dt

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.domain import verdict
from etl.domain.approvals import Approval
from etl.domain.chain import change_set_hash, state_digest
from etl.domain.guard import Decision
from etl.domain.model import Fence, Span, State
from tests.support.builders import (
    ALICE,
    GAP,
    START,
    STEADY,
    after,
    by_id,
    fence,
    flow,
    numbered,
    replay,
    snapshot,
    span,
    states,
)

TICK = dt.timedelta(microseconds=1)
TWENTY = numbered(1, 20)
NEW = Fence(target=ALICE, target_id=7)
HOURLY = span(START, after(hours=2), 3)
THREE_O_CLOCK = after(hours=3)
BELIEVED = Decision()


def judge(seen_before: Fence, known, answer, decision=BELIEVED, *, at=THREE_O_CLOCK, missing=(), spans=(HOURLY,)):
    state = State(by_id(known), frozenset(missing), tuple(spans))
    return verdict.decided(seen_before, state, snapshot(answer, at), decision, GAP)


def test_an_answer_over_a_shared_connection_is_never_judged():
    """It may be another user's: nothing in it says whose it is."""
    doubtful = msgspec.structs.replace(snapshot([]), sole_answer=False)
    with pytest.raises(ValueError, match="not the only one"):
        verdict.decided(NEW, State({}), doubtful, BELIEVED, GAP)


# Time


@STEADY
@given(
    st.none() | st.integers(-5_000_000, 5_000_000),
    st.none() | st.integers(-5_000_000, 5_000_000),
    st.integers(-5_000_000, 5_000_000),
    st.integers(-5_000_000, 5_000_000),
)
def test_times_of_a_target_never_go_back_and_are_kept_where_they_did_not(span_end, head, asked, observed):
    known = fence(TWENTY, None if span_end is None else span(START, START + span_end * TICK))
    known = msgspec.structs.replace(known, head_observed_at=None if head is None else START + head * TICK)
    asked_at, observed_at = START + asked * TICK, START + observed * TICK
    times = verdict.observation_times(known, asked_at, observed_at)
    latest = known.latest_at
    assert latest is None or latest < times.asked_at
    assert times.asked_at <= times.observed_at
    sound = asked <= observed and (latest is None or latest < asked_at)
    assert times.clock_went_back is not sound
    assert (times.asked_at, times.observed_at) == (asked_at, observed_at) or not sound


HELD_AT = after(hours=30)
HELD = msgspec.structs.replace(fence(TWENTY, HOURLY), held_asked_at=HELD_AT, held_at=HELD_AT)


@pytest.mark.parametrize(
    ("known", "asked_at", "observed_at", "moment"),
    [
        pytest.param(
            fence(TWENTY, HOURLY), after(hours=1), after(hours=1, seconds=2), HOURLY.last_at + TICK, id="span"
        ),
        pytest.param(HELD, HELD_AT - TICK, HELD_AT, HELD_AT + TICK, id="an answer that was held dates, too"),
        pytest.param(NEW, after(seconds=2), START, after(seconds=2), id="within one request"),
    ],
)
def test_where_the_clock_went_back_the_time_is_one_moment_after_the_latest(known, asked_at, observed_at, moment):
    assert verdict.observation_times(known, asked_at, observed_at) == (moment, moment, True)


def test_an_outcome_says_that_the_clock_went_back():
    known = fence(TWENTY, HOURLY)
    assert verdict.unchanged(known, snapshot(None, after(hours=1)), GAP).clock_went_back
    assert judge(known, TWENTY, numbered(1, 21), at=after(hours=1)).clock_went_back
    assert not judge(known, TWENTY, numbered(1, 21)).clock_went_back


# A quiet answer


def test_an_unchanged_answer_extends_the_open_span():
    outcome = verdict.unchanged(fence(TWENTY, HOURLY), snapshot(None, after(hours=5)), GAP)
    assert (outcome.verdict, outcome.extends, outcome.change_set, outcome.answer_digest) == (
        "unchanged",
        True,
        None,
        None,
    )
    assert outcome.span == Span(START, after(hours=5, seconds=-2), after(hours=5), 4, 3 * 3600, False)


@pytest.mark.parametrize(
    ("silence", "gap"),
    [
        pytest.param(dt.timedelta(seconds=7200), 7200, id="as long as before"),
        pytest.param(dt.timedelta(seconds=7199.999999), 7200, id="shorter than the longest"),
        pytest.param(dt.timedelta(seconds=7201.999999), 7201, id="rounded down"),
    ],
)
def test_the_longest_gap_is_whole_seconds_rounded_down(silence, gap):
    outcome = verdict.unchanged(fence(TWENTY, HOURLY), snapshot(None, after(hours=2) + silence), GAP)
    assert outcome.span.longest_gap_seconds == gap


def test_a_span_keeps_that_it_was_opened_after_an_interruption():
    known = fence(TWENTY, span(START, after(hours=2), interrupted=True))
    assert verdict.unchanged(known, snapshot(None, after(hours=3)), GAP).span.interrupted


@pytest.mark.parametrize(("beyond", "extends"), [(-TICK, True), (0 * TICK, True), (TICK, False)])
def test_a_silence_over_the_coverage_gap_ends_the_span(beyond, extends):
    outcome = verdict.unchanged(fence(TWENTY, HOURLY), snapshot(None, after(hours=2) + GAP + beyond), GAP)
    assert outcome.extends is extends
    assert outcome.span.interrupted is not extends
    assert outcome.span.observations == (4 if extends else 1)


# Versions


@pytest.mark.parametrize("listed", [[], numbered(1, 3)], ids=["empty", "three"])
def test_the_first_observation_is_a_baseline_even_of_nothing(listed):
    outcome = verdict.decided(NEW, State({}), snapshot(listed), Decision(), GAP)
    made = outcome.change_set
    assert (outcome.verdict, made.kind, made.version, made.last_unchanged_at, made.spans) == (
        "changed",
        "baseline",
        1,
        None,
        (),
    )
    assert [change.kind for change in made.changes] == ["baseline"] * len(listed)
    assert (outcome.flow_count, outcome.extends) == (len(listed), False)
    assert outcome.span == Span(START, after(seconds=-2), START, 1, 0, False)
    assert outcome.hash == change_set_hash("0" * 64, made)


def test_a_first_answer_after_failures_opens_a_span_that_is_not_called_interrupted():
    outcome = verdict.decided(msgspec.structs.replace(NEW, number=3), State({}), snapshot(TWENTY), Decision(), GAP)
    assert not outcome.span.interrupted


@STEADY
@given(states, states)
def test_a_changed_answer_makes_the_next_version_and_seals_the_spans_of_the_one_before(known, answer):
    before = fence(known.values(), HOURLY)
    outcome = judge(before, known.values(), answer.values())
    made = outcome.change_set
    if known == answer:
        assert made is None
        return
    assert (outcome.verdict, made.kind, made.version) == ("changed", "delta", 4)
    assert (made.spans, made.last_unchanged_at) == ((HOURLY,), HOURLY.last_asked_at)
    assert replay(known, made.changes) == answer
    assert made.state_digest == outcome.answer_digest == state_digest(answer.values())
    assert outcome.hash == change_set_hash("a" * 64, made)
    assert (outcome.span.observations, outcome.span.interrupted, outcome.extends) == (1, False, False)


def test_last_unchanged_at_is_of_the_latest_span_whatever_its_version():
    """A version that a partial hold made has no span: the fence then knows the one of the version before."""
    outcome = judge(fence(TWENTY, HOURLY, is_open=False), TWENTY, numbered(1, 21), spans=())
    assert outcome.change_set.last_unchanged_at == HOURLY.last_asked_at
    assert outcome.change_set.spans == ()


@pytest.mark.parametrize(
    ("known", "at"),
    [
        pytest.param(fence(TWENTY, HOURLY, is_open=False), after(hours=3), id="failure"),
        pytest.param(fence(TWENTY, HOURLY), HOURLY.last_at + GAP + TICK, id="silence"),
    ],
)
def test_a_change_after_a_failure_or_a_silence_opens_an_interrupted_span(known, at):
    outcome = judge(known, TWENTY, numbered(1, 21), at=at)
    assert outcome.verdict == "changed"
    assert outcome.span.interrupted


# Holds


def test_an_approval_signs_no_version_that_removes_nothing():
    known = fence(TWENTY, HOURLY, held=True)
    state = State(by_id(TWENTY), frozenset({"1", "2"}), (HOURLY,))
    answer = snapshot(numbered(1, 21), after(hours=3))
    outcome = verdict.decided(known, state, answer, Decision(), GAP, approval=Approval("Zoë", None))
    assert (outcome.change_set.approved_by, outcome.change_set.approved_scope) == (None, None)


def test_what_is_held_and_has_come_back_changed_is_a_change():
    outcome = judge(fence(TWENTY, HOURLY, held=True), TWENTY, [flow(1, "other"), *numbered(2, 20)], missing={"1"})
    assert [(c.flow_id, c.kind) for c in outcome.change_set.changes] == [("1", "renamed")]
    assert (outcome.verdict, outcome.missing) == ("changed", frozenset())
