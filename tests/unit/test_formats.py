"""Chain and seal format 1: hashes never change, cover every field, and are unambiguous."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import random
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.domain import chain, seal
from etl.domain.chain import microseconds, state_digest
from etl.domain.diff import diff
from etl.domain.kinds import CHANGE_KINDS
from etl.domain.model import Change, ChangeSet, Doubt, Flow, Span, Target
from tests.support.builders import STEADY, states
from tests.support.golden.calculation import calculated

GOLDEN = Path(__file__).parents[1] / "support" / "golden"
UNALTERED = {
    "change-1.json": "2dd8e45ef91caaa972d8e0113b292e0359675e5381198b953e753319a86c0efc",
    "seal-1.json": "c2aec9b17462235ba731ee0bf24dd1eab0ca1220fc003d6a6739f10156ff233e",
}
CASES = {file: json.loads((GOLDEN / file).read_text("utf-8")) for file in UNALTERED}


@pytest.mark.parametrize(("file", "digest"), UNALTERED.items())
def test_golden_files_are_never_altered(file: str, digest: str) -> None:
    assert hashlib.sha256((GOLDEN / file).read_bytes()).hexdigest() == digest


@pytest.mark.parametrize(("file", "name"), [(file, name) for file in CASES for name in CASES[file]])
def test_the_program_and_twenty_lines_of_plain_python_give_the_golden_hash(file: str, name: str) -> None:
    case = CASES[file][name]
    computed = COMPUTE[name](case.get("parent", ""), read(case["content"]))
    assert (computed, calculated(case)) == (case["sha256"], case["sha256"])


def read(value: Any) -> Any:
    if isinstance(value, dict):
        return dt.datetime.fromisoformat(value["time"])
    return [read(each) for each in value] if isinstance(value, list) else value


def change_set_of(content: list[Any]) -> ChangeSet:
    tag, org, user, expression, version, kind, at, since, spans, by, scope, data_hash, digest, changes = content
    assert tag == "change/1"
    return ChangeSet(
        target=Target(org, user, expression),
        version=version,
        kind=kind,
        observed_at=at,
        last_unchanged_at=since,
        spans=tuple(Span(*span) for span in spans),
        approved_by=by,
        approved_scope=scope,
        data_hash=data_hash,
        state_digest=digest,
        changes=[Change(*change) for change in changes],
    )


def seal_of(content: list[Any]) -> tuple[str, int, seal.SealedRun, seal.Digests, dt.datetime]:
    tag, trail_id, number, *run, targets, change_sets, issues, events, acknowledgements, sealed_at = content
    assert tag == "seal/1"
    digests = seal.Digests(
        targets=targets, change_sets=change_sets, issues=issues, events=events, acknowledgements=acknowledgements
    )
    return trail_id, number, seal.SealedRun(**dict(zip(RUN_FIELDS, run, strict=True))), digests, sealed_at


def digest_of_events(content: list[list[Any]]) -> str:
    return seal.digest_of_lists(map(seal.encoded_row, rows) for rows in content)


RUN_FIELDS = seal.SealedRun.__struct_fields__


def hash_change_set(parent: str, content: list[Any]) -> str:
    return chain.change_set_hash(parent, change_set_of(content))


def hash_seal(parent: str, content: list[Any]) -> str:
    return seal.seal_hash(parent, *seal_of(content))


COMPUTE: dict[str, Callable[[str, Any], str]] = {
    **dict.fromkeys(("state", "state of nothing"), lambda _, c: chain.state_digest([Flow(*f) for f in c])),
    "approved scope": lambda _, c: chain.approved_scope(Target(*c[:3]), *c[3:5], [Doubt(*each) for each in c[5]]),
    **dict.fromkeys(("baseline", "delta", "approval"), hash_change_set),
    **dict.fromkeys(("trail", "copied trail"), lambda _, c: seal.genesis(*c[1:])),
    **dict.fromkeys(("no targets", "targets"), lambda _, c: seal.targets_digest([Target(*t) for t in c])),
    "change sets": lambda _, c: seal.digest_of(map(chain.encode, c)),
    "issues": lambda _, c: seal.digest_of(map(seal.encoded_row, c)),
    **dict.fromkeys(("no events", "events"), lambda _, c: digest_of_events(c)),
    **dict.fromkeys(("acknowledgement", "revocation"), lambda _, c: seal.acknowledgement_hash(c)),
    "acknowledgements": lambda _, c: seal.digest_of(map(chain.encode, c)),
    **dict.fromkeys(("seal", "seal of a maintenance run"), hash_seal),
}


# ---------------------------------------------------------------------------------------- every field moves the hash

DELTA = change_set_of(read(CASES["change-1.json"]["delta"]["content"]))
SEAL = seal_of(read(CASES["seal-1.json"]["seal"]["content"]))
EVENTS = read(CASES["seal-1.json"]["events"]["content"])


def another(value: Any) -> Any:
    """Some other value of the same type; of a list, one without its first item."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, dt.datetime):
        return value + dt.timedelta(microseconds=1)
    if isinstance(value, str):
        return value + "\u00ad"
    return value[1:]


@pytest.mark.parametrize("field", ChangeSet.__struct_fields__)
def test_every_field_of_a_change_set_is_in_its_hash(field: str) -> None:
    value = getattr(DELTA, field)
    other = Target("o", "u") if field == "target" else "x" if value is None else another(value)
    altered = msgspec.structs.replace(DELTA, **{field: other})
    assert chain.change_set_hash(chain.GENESIS, altered) != chain.change_set_hash(chain.GENESIS, DELTA)
    assert chain.change_set_hash("f" * 64, DELTA) != chain.change_set_hash(chain.GENESIS, DELTA)


@pytest.mark.parametrize(
    ("parts", "field"),
    [(parts, field) for parts, kind in (("spans", Span), ("changes", Change)) for field in kind.__struct_fields__],
)
def test_every_field_of_a_span_and_of_a_change_is_in_the_hash(parts: str, field: str) -> None:
    first, *rest = getattr(DELTA, parts)
    value = getattr(first, field)
    altered = msgspec.structs.replace(first, **{field: "x" if value is None else another(value)})
    moved = msgspec.structs.replace(DELTA, **{parts: [altered, *rest]})
    assert chain.change_set_content(moved) != chain.change_set_content(DELTA)


@pytest.mark.parametrize("field", [*RUN_FIELDS, *seal.Digests.__struct_fields__])
def test_every_field_of_a_run_is_in_its_seal(field: str) -> None:
    trail_id, number, run, digests, at = SEAL
    if field == "sums":
        for n in range(len(run.sums)):
            sums = [value + (place == n) for place, value in enumerate(run.sums)]
            altered = msgspec.structs.replace(run, sums=sums)
            assert seal.seal_content(trail_id, number, altered, digests, at) != seal.seal_content(*SEAL)
    elif field in RUN_FIELDS:
        altered = msgspec.structs.replace(run, **{field: another(getattr(run, field))})
        assert seal.seal_content(trail_id, number, altered, digests, at) != seal.seal_content(*SEAL)
    else:
        moved = msgspec.structs.replace(digests, **{field: another(getattr(digests, field))})
        assert seal.seal_content(trail_id, number, run, moved, at) != seal.seal_content(*SEAL)


@pytest.mark.parametrize("place", [0, 1, 4])
def test_trail_number_and_time_are_in_a_seal(place: int) -> None:
    altered = [another(value) if n == place else value for n, value in enumerate(SEAL)]
    assert seal.seal_content(*altered) != seal.seal_content(*SEAL)


@pytest.mark.parametrize("place", range(len(seal.EVENTS)))
def test_every_column_of_every_event_is_in_the_digest(place: int) -> None:
    def digest_with(rows: list[list[Any]]) -> str:
        return digest_of_events([*EVENTS[:place], rows, *EVENTS[place + 1 :]])

    first, *rest = EVENTS[place]
    assert len(first) == len([*seal.EVENTS.values()][place])
    for column, value in enumerate(first):
        altered = [*first[:column], "x" if value is None else another(value), *first[column + 1 :]]
        assert digest_with([altered, *rest]) != digest_of_events(EVENTS)
    assert digest_with(rest) != digest_of_events(EVENTS)


def test_an_event_of_one_kind_is_not_one_of_another() -> None:
    *others, details, organisation, pruned = EVENTS
    assert digest_of_events([*others, [*details, *pruned], organisation, []]) != digest_of_events(EVENTS)


def test_the_digest_of_acknowledgements_is_that_of_their_hashes() -> None:
    given = [CASES["seal-1.json"][name] for name in ("acknowledgement", "revocation", "acknowledgements")]
    one, other, both = ([read(each["content"]), each["sha256"]] for each in given)
    assert seal.acknowledgements_digest([one[0], other[0]]) == both[1] == CASES["seal-1.json"]["seal"]["content"][-2]
    assert len(one[0]) == len(seal.ACKNOWLEDGEMENT)


def test_a_seal_with_too_few_sums_is_refused() -> None:
    trail_id, number, run, digests, at = SEAL
    short = msgspec.structs.replace(run, sums=run.sums[:-1])
    with pytest.raises(ValueError, match="12 sums"):
        seal.seal_content(trail_id, number, short, digests, at)


# ----------------------------------------------------------------------- no two values encode to the same bytes

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
times = st.datetimes(timezones=st.just(dt.UTC))
counts = st.integers(0, 2**62)
hashes = st.text(string.hexdigits[:16], min_size=64, max_size=64)
targets = st.builds(Target, texts, texts, texts)
spans = st.builds(Span, times, times, times, counts, counts, st.booleans())


@st.composite
def change_sets(draw: st.DrawFn) -> ChangeSet:
    flat = [*draw(targets), draw(counts), draw(st.sampled_from(["baseline", "delta"])), draw(times)]
    seen = sorted(draw(st.lists(spans, max_size=3, unique_by=lambda s: s.first_at)), key=lambda s: s.first_at)
    changes = diff(draw(states), draw(states))
    rest = [draw(times | st.none()), seen, draw(texts | st.none()), draw(hashes | st.none()), draw(hashes)]
    listed = [msgspec.structs.astuple(span) for span in rest[1]]
    columns = [msgspec.structs.astuple(change) for change in changes]
    return change_set_of(["change/1", *flat, rest[0], listed, *rest[2:], draw(hashes), columns])


@STEADY
@given(change_sets())
def test_a_change_set_can_be_read_back_from_the_bytes_that_are_hashed(change_set: ChangeSet) -> None:
    """What can be read back from its bytes shares them with nothing else."""
    content = json.loads(chain.change_set_content(change_set))
    for place in (6, 7):
        content[place] = moment(content[place])
    content[8] = [[*map(moment, span[:3]), *span[3:]] for span in content[8]]
    assert change_set_of(content) == change_set


@STEADY
@given(texts, counts, counts, texts | st.none(), texts, times | st.none(), times, times, st.lists(counts, min_size=12, max_size=12), st.lists(hashes, min_size=5, max_size=5), times)  # fmt: skip  # noqa: E501
def test_a_seal_can_be_read_back_from_the_bytes_that_are_hashed(
    trail_id: str, number: int, run_id: int, schedule: str | None, origin: str, slot: dt.datetime | None,
    started_at: dt.datetime, finished_at: dt.datetime, sums: list[int], digests: list[str], sealed_at: dt.datetime,
) -> None:  # fmt: skip
    flat = [trail_id, number, run_id, schedule, origin, slot, 0, "partial", started_at, finished_at, sums]
    one = seal_of(["seal/1", *flat, *digests, sealed_at])
    content = json.loads(seal.seal_content(*one))
    for place in (6, 9, 10, 17):
        content[place] = moment(content[place])
    assert seal_of(content) == one


def moment(microseconds: int | None) -> dt.datetime | None:
    epoch = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    return None if microseconds is None else epoch + dt.timedelta(microseconds=microseconds)


@STEADY
@given(st.lists(targets, max_size=5), st.lists(targets, max_size=5))
def test_lists_of_targets_have_the_same_digest_exactly_where_they_hold_the_same(
    one: list[Target], other: list[Target]
) -> None:
    assert (seal.targets_digest(one) == seal.targets_digest(other)) == (sorted(one) == sorted(other))


def test_targets_that_are_sorted_in_parts_have_the_digest_of_the_sorted_list() -> None:
    targets = [Target(f"o{number % 7}", f"u{number}", "" if number % 3 else "é\n") for number in range(25_000)]
    random.Random(1).shuffle(targets)
    assert seal.targets_digest(iter(targets)) == chain.digest(sorted(targets))


@STEADY
@given(*([st.tuples(targets, st.datetimes(timezones=st.just(dt.UTC)), st.lists(texts, max_size=4))] * 2))
def test_an_approved_scope_is_that_of_one_hold_of_one_target(
    one: tuple[Target, dt.datetime, list[str]], other: tuple[Target, dt.datetime, list[str]]
) -> None:
    same = (*one[:2], set(one[2])) == (*other[:2], set(other[2]))
    assert (chain.approved_scope(*one) == chain.approved_scope(*other)) == same


# ----------------------------------------------------------------------------------------------- orders, and lines


def test_a_copied_trail_begins_elsewhere_than_a_new_one() -> None:
    at = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
    assert len({seal.genesis("t", at), seal.genesis("t", at, "ab" * 32), seal.genesis("u", at)}) == 3


def test_a_lone_surrogate_has_no_hash() -> None:
    with pytest.raises(UnicodeEncodeError):
        chain.state_digest([Flow("\ud800", None, None, None)])


def test_a_kept_line_and_the_bytes_that_are_signed_name_trail_number_and_seal() -> None:
    at = dt.datetime(2026, 3, 4, 10, 0, 0, 250000, tzinfo=dt.timezone(dt.timedelta(hours=8)))
    line = {"trail_id": "t", "id": 7, "seal": "ab" * 32, "sealed_at": "2026-03-04T02:00:00.250000Z"}
    assert seal.kept_line("t", 7, "ab" * 32, at) == line
    assert seal.signed_bytes("t", 7, "ab" * 32) == b"flowtrail-seal-1\nt\n7\n" + b"ab" * 32


def test_the_sums_of_a_seal_are_those_of_a_run() -> None:
    verdicts = ("targets", "changed", "unchanged", "held", "failed", "stale")
    assert (*verdicts, *CHANGE_KINDS) == seal.SUMS


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
