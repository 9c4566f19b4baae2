"""The guard: which part of an answer is believed, and which waits for a person."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.domain.approvals import FEWEST_DIGITS, Approval, HeldSet, code, fits, held_set, is_code, scope_of_all
from etl.domain.diff import compare
from etl.domain.guard import (
    Decision,
    Limits,
    Sum,
    approve,
    emptied_targets,
    hold,
    keys_lost,
    refuse_approval,
    weigh,
    weigh_changes,
    weigh_first,
    weigh_together,
)
from etl.domain.kinds import ChangeKind
from etl.domain.model import Doubt, Flow, State, Target
from tests.support.builders import START, STEADY, after

LIMITS = Limits()
"""10 workflows and 30 percent of a list; 5 targets and 20 percent of a run."""


def ids(first: int, last: int) -> frozenset[str]:
    return frozenset(map(str, range(first, last + 1)))


def weighed(known: int, removed: int, added: int = 0, held: int = 0, limits: Limits = LIMITS):
    """An answer to a list of ``known`` that lacks the first ``removed``, the first ``held`` of which wait already."""
    answered = ids(removed + 1, known) | ids(1001, 1000 + added)
    return weigh(compare(listed(*ids(1, known)), listed(*answered)), ids(1, held), limits)


@pytest.mark.parametrize(
    ("known", "removed", "held"),
    [
        pytest.param(20, 9, False, id="below the number, far over the share"),
        pytest.param(20, 10, True, id="exactly the number"),
        pytest.param(20, 11, True, id="over the number"),
        pytest.param(41, 12, False, id="over the number, just below the share (12.3)"),
        pytest.param(41, 13, True, id="just over the share (12.3)"),
        pytest.param(40, 11, False, id="below the share (12)"),
        pytest.param(40, 12, True, id="exactly the share"),
        pytest.param(10, 10, True, id="everything, and enough of it"),
        pytest.param(30, 9, False, id="exactly the share, below the number"),
    ],
)
def test_removals_are_held_from_both_limits_on(known, removed, held):
    decision = weighed(known, removed)
    assert decision.held == (ids(1, removed) if held else frozenset())
    assert not decision.whole
    assert bool(decision.reason) == held


@pytest.mark.parametrize("share", [0.07, 0.14, 0.28, 0.29, 0.55, 0.57, 0.58])
def test_exactly_the_share_is_held_whatever_binary_fractions_make_of_it(share):
    """0.07 * 100 is 7.000000000000001 in floating point: 7 of 100 are still seven percent."""
    limits = Limits(min_removed=5, max_removed_share=share)
    count = round(share * 100)
    assert weighed(100, count, limits=limits).held == ids(1, count)
    assert not weighed(100, count - 1, limits=limits).held


@pytest.mark.parametrize(("added", "whole"), [(11, False), (12, True), (13, True), (40, True)])
def test_an_answer_with_as_many_additions_as_removals_would_need_is_another_list(added, whole):
    decision = weighed(40, 12, added)
    assert decision.whole is whole
    assert decision.held == ids(1, 12)


@STEADY
@given(st.sets(st.integers(1, 40)), st.sets(st.integers(1, 40)), st.sets(st.integers(1, 60)), st.booleans())
def test_nothing_approves_itself(known, missing, answered, whole_again):
    """A held workflow that is still missing stays held, whatever the verdict on the answer."""
    known, missing, answered = (frozenset(map(str, each)) for each in (known, missing & known, answered))
    decision = weigh(compare(listed(*known), listed(*answered)), missing, LIMITS)
    assert missing - answered <= decision.held <= known - answered
    assert decision.whole <= bool(decision.held)


@STEADY
@given(st.sets(st.integers(1, 40)), st.sets(st.integers(1, 60)), st.integers(0, 20), st.floats(0, 1))
def test_fewer_than_the_limits_are_never_held_and_as_many_always_are(known, answered, number, share):
    limits = Limits(min_removed=number, max_removed_share=share)
    gone = known - answered
    decision = weigh(compare(*(listed(*map(str, each)) for each in (known, answered))), frozenset(), limits)
    if not gone or len(gone) < number:
        assert not decision.held
    if gone and len(gone) >= number and len(gone) >= share * len(known) + 0.001:
        assert len(decision.held) == len(gone)


@pytest.mark.parametrize(
    ("listed", "held", "removes"),
    [
        pytest.param({"known": 30, "removed": 10, "held": 9}, 10, 0, id="what is held already counts as removed"),
        pytest.param({"known": 30, "removed": 9, "held": 8}, 8, 1, id="below the number with what is held"),
        pytest.param({"known": 100, "removed": 11, "held": 10}, 10, 1, id="however small the rest has become"),
        pytest.param({"known": 30, "removed": 4, "held": 10}, 4, 0, id="some of what is held are back"),
        pytest.param({"known": 30, "removed": 0, "held": 10}, 0, 0, id="all of what is held is back"),
        pytest.param({"known": 3, "removed": 3, "held": 3}, 3, 0, id="everything is held already"),
        pytest.param({"known": 3, "removed": 3, "held": 2}, 2, 1, id="the rest of a list beside a hold"),
        pytest.param({"known": 10, "removed": 10}, 10, 0, id="all of many"),
        pytest.param({"known": 9, "removed": 9}, 0, 9, id="all of few"),
        pytest.param({"known": 1, "removed": 1}, 0, 1, id="the only one"),
        pytest.param({"known": 9, "removed": 9, "added": 1}, 0, 9, id="all of few, and another comes"),
        pytest.param({"known": 9, "removed": 1}, 0, 1, id="one of few"),
        pytest.param({"known": 9, "removed": 1, "added": 50}, 0, 1, id="one, and many come"),
        pytest.param({"known": 40, "removed": 11, "added": 500}, 0, 11, id="many additions are not another list"),
        pytest.param({"known": 0, "removed": 0}, 0, 0, id="an empty list stays empty"),
    ],
)
def test_what_is_held_stays_and_any_other_removal_makes_a_list_uncertain(listed, held, removes):
    decision = weighed(**listed)
    assert (decision.held, decision.removes) == (ids(1, held), removes)
    assert (decision.whole, decision.uncertain) == (False, removes > 0)


@pytest.mark.parametrize(("answer", "uncertain"), [(frozenset(), True), (ids(1, 1), False), (ids(1, 100), False)])
def test_a_first_list_is_uncertain_where_it_is_empty(answer, uncertain):
    assert weigh_first(compare({}, listed(*answer))) == Decision(uncertain=uncertain)


@pytest.mark.parametrize(
    ("had", "absent", "lost"),
    [
        pytest.param(5, {"cycle"}, "no workflow has the key cycle, and 5 of them had a value of it before", id="a few"),
        pytest.param(4, {"cycle"}, None, id="fewer can have lost their values"),
        pytest.param(20, {"flow_name"}, "no workflow has the key flowName, and 20 of them had", id="a name"),
        pytest.param(20, {"editable"}, None, id="never known"),
        pytest.param(20, set(), None, id="no key is absent"),
    ],
)
def test_a_key_that_no_workflow_has_any_more_is_lost_where_several_had_a_value(had, absent, lost):
    known = {str(n): Flow(str(n), "a", "D" if n <= had else None, None) for n in range(1, 21)}
    problem = keys_lost(known, [Flow(str(n), None, None, None) for n in range(1, 25)], absent)
    assert (problem or "").startswith(lost or "")
    assert (problem is None) is (lost is None)


@pytest.mark.parametrize(
    ("emptied", "targets", "too_many"),
    [(4, 4, False), (5, 5, True), (5, 25, True), (5, 26, False), (6, 26, True), (20, 100, True), (19, 100, False)],
)
def test_targets_that_emptied_together_are_doubted_from_both_limits_on(emptied, targets, too_many):
    assert (emptied_targets(targets, LIMITS).plus(seen=emptied).ruling == "hold") is too_many


def test_exactly_the_share_of_emptied_targets_is_too_many_whatever_binary_fractions_make_of_it():
    of_hundred = emptied_targets(100, Limits(max_emptied_targets=5, max_emptied_share=0.07))
    assert of_hundred.limit == 7


@pytest.mark.parametrize(("added", "whole"), [(0, False), (2, False), (3, True), (9, True)])
def test_a_list_that_is_doubted_with_others_is_held_whole_where_as_much_is_new(added, whole):
    own, answered = Decision(removes=5, uncertain=True), ids(6, 9) | ids(101, 100 + added)
    difference = compare(listed(*ids(1, 9)), listed(*answered))
    decision = weigh_together(own, difference, LIMITS, Sum(100, 160), Sum(5, 20, seen=5))
    assert (decision.held, decision.whole) == (ids(1, 5), whole)
    assert decision.reason == "5 of 9 workflows are missing; 5 of the run's 20 targets have become empty"


def test_holding_keeps_everything_that_is_absent_and_says_how_much():
    decision = hold(5, ids(1, 5))
    assert decision.held == ids(1, 5)
    assert "5 of 5" in decision.reason


def listed(*ids_: str, **changed: Iterable[str]) -> dict[str, Flow]:
    """Workflows; ``name``, ``cycle`` and ``editable`` have those with another value, ``unnamed`` those without one."""
    other = {kind: set(flow_ids) for kind, flow_ids in changed.items()}
    return {
        each: Flow(
            each,
            None if each in other.get("unnamed", ()) else "new" if each in other.get("name", ()) else "old",
            "H" if each in other.get("cycle", ()) else "D",
            each not in other.get("editable", ()),
        )
        for each in ids_
    }


def doubts(kind: ChangeKind, new: str | bool | None, flow_ids: Iterable[str]) -> frozenset[Doubt]:
    return frozenset(Doubt(each, kind, new) for each in flow_ids)


TWENTY, FORTY = sorted(ids(1, 20)), sorted(ids(1, 40))
RENAMED = doubts("renamed", "new", ids(1, 15))
FIRST, SECOND = None, dict[ChangeKind, Sum]()
TOGETHER = {"renamed": Sum(10, 20, seen=10)}
CHANGES = [
    ("C1 fewer than the share", FORTY, (), listed(*FORTY, name=ids(1, 19)), FIRST, ()),
    ("C1 in two answers", FORTY, (), listed(*FORTY, name=ids(1, 19)), SECOND, ()),
    ("C1 each attribute for itself", FORTY, (), listed(*FORTY, name=ids(1, 19), cycle=ids(1, 19)), SECOND, ()),
    ("C2 the only one", ["1"], (), listed("1", name=ids(1, 1)), FIRST, "asked again"),
    ("C2 all", TWENTY, (), listed(*TWENTY, name=ids(1, 20)), FIRST, "asked again"),
    ("C3 exactly both", TWENTY, (), listed(*TWENTY, name=ids(1, 10)), SECOND, doubts("renamed", "new", ids(1, 10))),
    ("C3 no value", TWENTY, (), listed(*TWENTY, unnamed=ids(1, 20)), SECOND, doubts("renamed", None, ids(1, 20))),
    ("C3 a right", TWENTY, (), listed(*TWENTY, editable=TWENTY), SECOND, doubts("editable_changed", False, TWENTY)),
    ("C3 not the other attribute", TWENTY, (), listed(*TWENTY, cycle=ids(1, 10), name=ids(1, 9)), SECOND,
     doubts("cycle_changed", "H", ids(1, 10))),
    ("C4 with others", ["1"], (), listed("1", name=["1"]), TOGETHER, doubts("renamed", "new", ["1"])),
    ("C4 another attribute", ["1"], (), listed("1", cycle=["1"]), TOGETHER, ()),
    ("C5 alone", ["1"], (), listed("1", name=["1"]), SECOND, ()),
    ("C5 not enough others", ["1"], (), listed("1", name=["1"]), {"renamed": Sum(10, 20, seen=9)}, ()),
    ("C6 some are back", TWENTY, RENAMED, listed(*TWENTY, name=["1"]), FIRST, doubts("renamed", "new", ["1"])),
    ("C6 and one more", TWENTY, RENAMED, listed(*TWENTY, name=ids(15, 16)), FIRST,
     doubts("renamed", "new", ids(15, 16))),
    ("C6 to a third value", TWENTY, RENAMED, listed(*TWENTY, unnamed=["1"]), FIRST, doubts("renamed", None, ["1"])),
    ("C7 all are back", TWENTY, RENAMED, listed(*TWENTY), FIRST, ()),
    ("C7 and others change", TWENTY, RENAMED, listed(*TWENTY, name=["16"], cycle=["1"]), FIRST, ()),
    ("C8 some are missing", TWENTY, (), listed(*TWENTY[2:], name=TWENTY[8:]), SECOND,
     doubts("renamed", "new", TWENTY[8:])),
]  # fmt: skip


@pytest.mark.parametrize(
    ("known", "held", "answer", "second", "expected"), [c[1:] for c in CHANGES], ids=[c[0] for c in CHANGES]
)
def test_many_changes_at_once_are_asked_again_and_held_whole(known, held, answer, second, expected):
    state = State(listed(*known), doubted=frozenset(held))
    difference = compare(state.flows, answer)
    of_removals = weigh(difference, frozenset(), LIMITS)
    decision = weigh_changes(of_removals, difference, state.doubted, LIMITS, second)
    if expected == "asked again":
        assert (decision.uncertain, decision.doubted) == (True, frozenset())
        assert {doubt.flow_id for doubt in decision.many} == set(known)
    elif expected:
        assert (decision.doubted, decision.whole, decision.uncertain) == (expected, True, False)
        assert decision.held == state.flows.keys() - answer.keys()
        assert decision.removes == 0
        assert decision.reason
    else:
        assert decision == of_removals


@STEADY
@given(st.sets(st.integers(1, 30)), st.sets(st.integers(1, 30)), st.sets(st.integers(1, 30)), st.booleans())
def test_no_change_approves_itself(before, now, gone, is_second):
    """A held change that is still there stays held, whatever the verdict on the answer."""
    before, now = ({str(n) for n in each} for each in (before, now))
    answer = listed(*({str(n) for n in range(1, 31)} - {str(n) for n in gone}), name=now)
    state = State(listed(*map(str, range(1, 31))), doubted=doubts("renamed", "new", before))
    sums = SECOND if is_second else FIRST
    decision = weigh_changes(Decision(), compare(state.flows, answer), state.doubted, LIMITS, sums)
    lasting = {d for d in state.doubted if d.flow_id in now and d.flow_id in answer}
    assert lasting <= decision.doubted
    assert decision.whole == bool(decision.doubted)


@pytest.mark.parametrize(
    ("answer", "doubted"),
    [
        pytest.param(listed(*TWENTY, name=ids(1, 15)), None, id="C10 as it was held"),
        pytest.param(listed(*TWENTY, "new", name=ids(1, 15), cycle=ids(1, 9)), None, id="C10 with everything else"),
        pytest.param(listed(*TWENTY, name=ids(1, 14)), None, id="C12 one is back"),
        pytest.param(listed(*TWENTY), None, id="C12 all are back"),
        pytest.param(listed(*TWENTY, name=ids(1, 16)), doubts("renamed", "new", ids(1, 16)), id="C11 one more"),
        pytest.param(
            listed(*TWENTY, name=ids(2, 15), unnamed=["1"]),
            doubts("renamed", "new", ids(2, 15)) | doubts("renamed", None, ["1"]),
            id="C11 another value",
        ),
        pytest.param(
            listed(*TWENTY, name=ids(1, 15), cycle=ids(1, 10)),
            RENAMED | doubts("cycle_changed", "H", ids(1, 10)),
            id="C11 another attribute",
        ),
        pytest.param(
            listed(*TWENTY[1:], name=ids(1, 15)), doubts("renamed", "new", ids(2, 15)), id="C11 one is missing"
        ),
    ],
)
def test_an_approval_of_changes_covers_exactly_those_that_were_held(answer, doubted):
    state = State(listed(*TWENTY), doubted=RENAMED)
    decision = approve(compare(state.flows, answer), state, LIMITS)
    assert decision.doubted == (doubted or frozenset())
    assert decision.whole is (doubted is not None)


@pytest.mark.parametrize(
    ("known", "missing", "answered", "held"),
    [
        pytest.param(30, 12, ids(13, 30), 0, id="what was held is still missing"),
        pytest.param(30, 12, ids(10, 40), 0, id="some came back"),
        pytest.param(3, 3, frozenset(), 0, id="all of few need no second answer"),
        pytest.param(30, 12, ids(14, 30), 13, id="something else is missing, too"),
    ],
)
def test_an_approval_of_removals_covers_exactly_those_that_were_held(known, missing, answered, held):
    state = State(listed(*ids(1, known)), ids(1, missing))
    decision = approve(compare(state.flows, listed(*answered)), state, LIMITS)
    assert (decision.held, decision.whole, decision.uncertain) == (ids(1, held), held > 0, False)
    assert not held or str(held) in decision.reason


def test_an_approval_of_another_set_applies_nothing_while_anything_is_missing():
    known = listed(*ids(1, 30))
    decision = refuse_approval(compare(known, listed(*ids(13, 40))), frozenset(), "3f9a01c277e2")
    assert (decision.held, decision.whole) == (ids(1, 12), True)
    assert "3f9a01c277e2" in decision.reason
    assert refuse_approval(compare(known, listed(*ids(1, 31))), frozenset(), "3f9a01c277e2") == Decision()


flow_ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=3)
targets = st.builds(Target, flow_ids, flow_ids, st.sampled_from(["", "x"]))
held_sets = st.builds(
    held_set, targets, st.sampled_from([START, after(hours=1)]), st.sets(flow_ids, min_size=1, max_size=4)
)


@STEADY
@given(held_sets, held_sets)
def test_two_held_sets_share_a_code_only_where_they_are_the_same(one, other):
    assert (code(one.scope) == code(other.scope)) == (one == other)


@STEADY
@given(st.lists(held_sets, max_size=3, unique_by=lambda each: each.target))
def test_one_code_over_several_targets_changes_with_each_of_them(listed):
    whole = scope_of_all(listed)
    grown = [each._replace(scope=held_set(each.target, START, ["another"]).scope) for each in listed]
    assert all(scope_of_all([*listed[:n], grown[n], *listed[n + 1 :]]) != whole for n in range(len(listed)))
    assert all(scope_of_all([*listed[:n], *listed[n + 1 :]]) != whole for n in range(len(listed)))


@pytest.mark.parametrize(
    ("given_code", "may_be"),
    [
        ("0123abcd", True),
        ("0123abc", False),
        ("0" * 64, True),
        ("0" * 65, False),
        ("0123ABCD", False),
        ("0123abcg", False),
        ("0123abcd\n", False),
        ("", False),
    ],
)
def test_a_code_is_eight_to_sixty_four_hex_digits(given_code, may_be):
    assert is_code(given_code) is may_be


def test_a_code_is_compared_as_far_as_it_is_given():
    scope = held_set(Target("o1", "ann"), START, ["1"]).scope
    assert [fits(scope[:digits], scope) for digits in (FEWEST_DIGITS - 1, FEWEST_DIGITS, 12, 64)] == [
        *(False, True, True, True)
    ]
    assert not fits("0" * 64, scope)


def test_an_approval_covers_the_sets_it_names_or_any():
    ann, bob = (held_set(Target("o1", name), START, ["1"]) for name in ("ann", "bob"))
    assert ann == HeldSet(ann.target, ann.scope, 1)
    named = Approval("Zoë", {ann.target: ann.scope})
    assert named.covers(ann.target, ann.scope)
    assert not named.covers(ann.target, bob.scope)
    assert not named.covers(bob.target, bob.scope)
    assert Approval("Zoë", None).covers(bob.target, bob.scope)
