"""The codes of held sets: one code, one set of one target."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.domain.holds import FEWEST_DIGITS, Approval, HeldSet, code, fits, held_set, is_code, scope_of_all
from etl.domain.model import Target
from tests.support.builders import START, STEADY, after

ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=3)
targets = st.builds(Target, ids, ids, st.sampled_from(["", "x"]))
held_sets = st.builds(held_set, targets, st.sampled_from([START, after(hours=1)]), st.sets(ids, min_size=1, max_size=4))


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
