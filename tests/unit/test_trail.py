"""The encoding that is hashed: escapes, order and times as the written rule says. ``test_formats`` has the hashes."""

from __future__ import annotations

import datetime as dt
import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.domain.chain import microseconds, state_digest
from etl.domain.model import Flow
from tests.support.builders import STEADY, states

SHORT = {"\b": r"\b", "\t": r"\t", "\n": r"\n", "\f": r"\f", "\r": r"\r", '"': r"\"", "\\": r"\\"}
"""RFC 8785, section 3.2.2.2: these have short forms, other characters below U+0020 are \\u00xx in lower case."""


@pytest.mark.parametrize("character", [*map(chr, range(1, 32)), '"', "\\", "/", "\x7f", "\x85", "é", "流", "\u2028"])
def test_strings_are_escaped_as_rfc_8785_says(character):
    written = SHORT.get(character) or (f"\\u{ord(character):04x}" if character < " " else character)
    expected = f'[["1","{written}",null,null]]'.encode()
    assert state_digest([Flow("1", character, None, None)]) == hashlib.sha256(expected).hexdigest()


@pytest.mark.parametrize("character", ["\U0001d7d9", "\U0010ffff", "\ufffd", "e\u0301"])
def test_characters_beyond_the_basic_plane_stay_as_they_are(character):
    expected = f'[["{character}",null,"{character}",false]]'.encode()
    assert state_digest([Flow(character, None, character, False)]) == hashlib.sha256(expected).hexdigest()


@STEADY
@given(states, st.randoms(use_true_random=False))
def test_any_state_has_the_digest_that_plain_python_gives_it_in_any_order(state, chance):
    listed = list(state.values())
    chance.shuffle(listed)
    rows = sorted([each.flow_id, each.flow_name, each.cycle, each.editable] for each in listed)
    written = json.dumps(rows, ensure_ascii=False, separators=(",", ":")).encode()
    assert state_digest(listed) == hashlib.sha256(written).hexdigest()


@STEADY
@given(states, states)
def test_digests_differ_exactly_where_states_do(one, other):
    assert (state_digest(one.values()) == state_digest(other.values())) == (one == other)


def test_sorting_is_by_code_points_and_not_by_utf_16_units():
    """U+FFFF sorts before U+1D7D9, although the latter's first UTF-16 unit is smaller."""
    digest = hashlib.sha256('[["\uffff",null,null,null],["\U0001d7d9",null,null,null]]'.encode()).hexdigest()
    flows = [Flow("\U0001d7d9", None, None, None), Flow("\uffff", None, None, None)]
    assert state_digest(flows) == digest


def test_times_are_whole_microseconds_in_any_zone_and_before_the_epoch():
    assert microseconds(dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) == 0
    assert microseconds(dt.datetime(1969, 12, 31, 23, 59, 59, 999999, dt.UTC)) == -1
    shanghai = dt.timezone(dt.timedelta(hours=8))
    assert microseconds(dt.datetime(2026, 3, 1, 20, 0, 0, 1, shanghai)) == 1772366400000001
    assert microseconds(dt.datetime(9999, 12, 31, 23, 59, 59, 999999, dt.UTC)) == 253402300799999999
