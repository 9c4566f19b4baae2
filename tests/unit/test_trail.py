"""Digests and hashes as the written rule says, recomputed here with json and hashlib alone."""

from __future__ import annotations

import datetime as dt
import hashlib
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.domain.chain import GENESIS, change_set_hash, microseconds, state_digest
from etl.domain.diff import diff
from etl.domain.model import ChangeSet, Flow, Span, Target
from tests.support.builders import STEADY, flow, states

FLOWS = [Flow("3318", "reduce_entity", "D", True), Flow("2809", 'the "map"\n', None, None)]
STATE_JSON = r'[["2809","the \"map\"\n",null,null],["3318","reduce_entity","D",true]]'
CONTENT_JSON = (
    r'["change/1","o15427722038191","u15426865866571","",2,"delta",1772366400000001,1772366398500000,'
    r"[[1772280000000000,1772362800000000,1772362801000000,24,3600,false],"
    r"[1772364000000000,1772364000000000,1772366000000000,2,2000,true]],"
    rf'null,null,"{"d" * 64}","¶",[["2809","cycle_changed","the \"map\"\n","the \"map\"\n","D",null,null,null],'
    r'["3318","added",null,"reduce_entity",null,"D",null,true]]]'
)


def test_a_state_digest_is_the_sha256_of_its_json():
    assert state_digest(FLOWS) == hashlib.sha256(STATE_JSON.encode()).hexdigest()
    assert state_digest([]) == hashlib.sha256(b"[]").hexdigest()


def test_a_change_set_hash_is_the_sha256_of_parent_and_json():
    digest = state_digest(FLOWS)
    content = CONTENT_JSON.replace("¶", digest)
    assert change_set_hash("ab" * 32, change_set(digest)) == hashlib.sha256(("ab" * 32 + content).encode()).hexdigest()


def change_set(digest: str) -> ChangeSet:
    def at(seconds: float) -> dt.datetime:
        return dt.datetime.fromtimestamp(1772280000, dt.UTC) + dt.timedelta(seconds=seconds)

    before = Flow("2809", 'the "map"\n', "D", None)
    return ChangeSet(
        target=Target("o15427722038191", "u15426865866571"),
        version=2,
        kind="delta",
        observed_at=at(86400.000001),
        last_unchanged_at=at(86398.5),
        spans=(
            Span(at(0), at(82800), at(82801), 24, 3600, False),
            Span(at(84000), at(84000), at(86000), 2, 2000, True),
        ),
        approved_by=None,
        data_hash="d" * 64,
        state_digest=digest,
        changes=diff({"2809": before}, {each.flow_id: each for each in FLOWS}),
    )


def test_a_baseline_has_null_for_the_observation_before_and_zeros_for_its_parent():
    first = msgspec.structs.replace(
        change_set("0" * 64),
        version=1,
        kind="baseline",
        last_unchanged_at=None,
        spans=(),
        changes=[],
        approved_by="Zoë",
        approved_scope="a" * 64,
    )
    content = (
        '["change/1","o15427722038191","u15426865866571","",1,"baseline",1772366400000001,null,[],"Zoë",'
        f'"{"a" * 64}","{"d" * 64}","{"0" * 64}",[]]'
    )
    assert GENESIS == "0" * 64
    assert change_set_hash(GENESIS, first) == hashlib.sha256(("0" * 64 + content).encode()).hexdigest()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("target", Target("o15427722038191", "u15426865866571", "x")),
        ("version", 3),
        ("kind", "baseline"),
        ("observed_at", dt.datetime(2026, 3, 1, 12, 0, 0, 2, dt.UTC)),
        ("last_unchanged_at", None),
        ("spans", ()),
        ("approved_by", "somebody"),
        ("approved_scope", "1" * 64),
        ("data_hash", "1" * 64),
        ("state_digest", "1" * 64),
        ("changes", []),
    ],
)
def test_everything_of_a_change_set_is_in_its_hash(field, value):
    known = change_set("0" * 64)
    altered = msgspec.structs.replace(known, **{field: value})
    assert change_set_hash(GENESIS, altered) != change_set_hash(GENESIS, known)
    assert change_set_hash("f" * 64, known) != change_set_hash(GENESIS, known)


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


def test_a_workflow_is_one_flow_and_not_its_concatenation():
    assert state_digest([flow("a", "bc")]) != state_digest([flow("ab", "c")])
