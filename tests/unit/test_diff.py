"""From two states to changes, and back."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.domain.diff import baseline, diff
from tests.support.builders import STEADY, by_id, flow, replay, states


@STEADY
@given(states, states)
def test_replaying_the_changes_on_the_old_state_gives_the_new_one(old, new):
    assert replay(old, diff(old, new)) == new


@STEADY
@given(states)
def test_replaying_a_baseline_on_nothing_gives_the_state(new):
    changes = baseline(new)
    assert replay({}, changes) == new
    assert {change.kind for change in changes} <= {"baseline"}


@STEADY
@given(states, states, st.randoms(use_true_random=False))
def test_the_order_of_the_answer_never_matters(old, new, chance):
    assert diff(_shuffled(old, chance), _shuffled(new, chance)) == diff(old, new)
    assert baseline(_shuffled(new, chance)) == baseline(new)


@STEADY
@given(states, states)
def test_there_is_no_change_exactly_where_the_states_are_equal(old, new):
    assert (diff(old, new) == []) == (old == new)
    assert diff(old, dict(old)) == []


@STEADY
@given(states, states)
def test_changes_come_sorted_by_flow_id_in_code_points_and_then_by_kind(old, new):
    keys = [(change.flow_id, change.kind) for change in diff(old, new)]
    assert keys == sorted(set(keys))


@STEADY
@given(states, states)
def test_every_change_carries_the_full_before_and_after(old, new):
    for change in diff(old, new):
        before, after = old.get(change.flow_id), new.get(change.flow_id)
        assert (change.old_name, change.old_cycle, change.old_editable) == _attributes(before)
        assert (change.new_name, change.new_cycle, change.new_editable) == _attributes(after)


@STEADY
@given(states, states)
def test_each_kind_says_what_it_means_and_nothing_else(old, new):
    for change in diff(old, new):
        before, after = old.get(change.flow_id), new.get(change.flow_id)
        assert {
            "added": before is None,
            "removed": after is None,
            "cycle_changed": change.old_cycle != change.new_cycle,
            "renamed": change.old_name != change.new_name,
            "editable_changed": change.old_editable is not change.new_editable,
        }[change.kind]


def test_a_workflow_that_changes_three_attributes_gives_three_changes():
    changes = diff(by_id([flow(1, "a", "D", True)]), by_id([flow(1, "b", "H", False)]))
    assert [change.kind for change in changes] == ["cycle_changed", "editable_changed", "renamed"]
    assert (
        len({(c.old_name, c.new_name, c.old_cycle, c.new_cycle, c.old_editable, c.new_editable) for c in changes}) == 1
    )


@pytest.mark.parametrize(("old", "new"), [(None, False), (False, None), (None, ""), ("", None)])
def test_null_is_neither_false_nor_empty(old, new):
    """A missing name or a missing permission is a state of its own."""
    if isinstance(old, str) or isinstance(new, str):
        changes = diff(by_id([flow(1, old, old)]), by_id([flow(1, new, new)]))
        assert [change.kind for change in changes] == ["cycle_changed", "renamed"]
    else:
        changes = diff(by_id([flow(1, editable=old)]), by_id([flow(1, editable=new)]))
        assert [change.kind for change in changes] == ["editable_changed"]


def _shuffled(state, chance: random.Random):
    listed = list(state.items())
    chance.shuffle(listed)
    return dict(listed)


def _attributes(shown):
    return (None, None, None) if shown is None else (shown.flow_name, shown.cycle, shown.editable)
