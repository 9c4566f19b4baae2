"""The trail proves itself: every alteration, cut or forgery is found, on both databases."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine

import etl.verify
from etl.database import misspelled_times, writing
from etl.database.integrity import WRITTEN_AS
from etl.domain import chain
from etl.domain.model import Flow, Target
from etl.schema import UtcTime, metadata
from etl.verify import Progress, against, heads, verify
from etl.verify.chain import ReplayedState
from tests.support import checker, verify_rows, verify_story
from tests.support.builders import STEADY, Diary, flow, states
from tests.support.databases import Fill
from tests.support.histories import World
from tests.support.intruder import PROVEN, Intruder, Row, tamper
from tests.support.tamperings import IN_DATABASE
from tests.support.trails import Kept
from tests.support.verify_story import APPROVED, DOUBTED, FAILING, OTHER_LIST, PLANT, QUIET, UNKNOWN, Story

STORY = {"asked_at", "held_asked_at", "held_at", "counts_since", "away_since", "projected_version"}
"""The tables that judging organisations uses internally."""
NOW = dt.datetime(2026, 4, 1, tzinfo=dt.UTC)
pytestmark = pytest.mark.usefixtures("one_run_for_all")
DOCUMENT = Path(__file__).parents[2] / "docs" / "verify.md"


@pytest.fixture
def story(engine: Engine, database_url: str, fill: Fill) -> Story:
    """Everything that can happen, once."""

    def write(engine: Engine, url: str) -> tuple[list[checker.Delivered], dt.datetime]:
        told = verify_story.write(Diary(engine, url))
        return told.diary.deliveries, told.now

    deliveries, now = fill("verify_story", write)
    diary = Diary(engine, database_url)
    diary.deliveries = list(deliveries)
    return Story(diary, now)


@pytest.fixture
def intruder(engine: Engine) -> Iterator[Intruder]:
    with Intruder(engine) as intruder:
        yield intruder


def found(engine: Engine) -> list[str]:
    return [str(finding) for finding in verify(engine)]


def kept(engine: Engine) -> list[str]:
    return [json.dumps(head) for head in heads(engine, NOW)]


# ------------------------------------------------------------------------------------------- whatever is altered


@pytest.mark.parametrize("seed", [1, 2])
def test_no_history_raises_a_false_alarm(engine: Engine, seed: int) -> None:
    """Holds, failures, silences, a clock that goes back, targets that leave and return; kept heads hold."""
    world = World(engine, seed)
    lines: list[str] = []
    for _ in range(3):
        world.live(8)
        assert found(engine) == []
        lines += kept(engine)
        assert list(against(engine, lines)) == []


def test_an_alteration_in_any_column_of_any_row_is_found(engine: Engine, story: Story, intruder: Intruder) -> None:
    """Each column in every third row on SQLite; on PostgreSQL, which is slower, in every tenth."""
    names = {row["id"]: Target(row["org_id"], row["user_id"], row["expression"]) for row in intruder.rows("target")}
    alterations = itertools.chain.from_iterable(_alterations(intruder, table) for table in PROVEN)
    unfound = set()
    for table, row, column, other in alterations:
        altered = intruder.set(table, row, **{column: other})
        if not found(engine):
            whose = row["id"] if table == "target" else row.get("target_id")
            unfound.add((table, column, names.get(whose), row.get("version"), row[column] is None, other is None))
        intruder.set(table, altered, **{column: row[column]})
    assert {each for each in unfound if not _is_not_proven(*each)} == set()
    assert found(engine) == []


def found_in_chains(engine: Engine) -> list[str]:
    return [str(finding) for finding in verify(engine) if finding.run_id is None]


def _is_not_proven(table: str, column: str, of: Target | None, version: int, was_null: bool, is_null: bool) -> bool:
    """What docs/verify.md says: nothing more may go unnoticed."""
    current = {PLANT: 3, QUIET: 2, OTHER_LIST: 1, APPROVED: 3, FAILING: 1}
    if table == "change_set":
        return column == "run_id" or column in STORY
    if table == "observation":
        measured = {"last_asked_at", "last_at", "observations", "longest_gap_seconds", "interrupted"}
        return column in measured and of is not None and current.get(of) == version
    if table == "workflow":
        return column == "missing_since" and of in (DOUBTED, OTHER_LIST) and not was_null and not is_null
    if column in STORY or column == "asked_as":
        return True
    told = not was_null and not is_null
    return told and (
        column in {"fence", "data_hash"}
        or (column in {"consecutive_failures", "last_error_code", "last_error"} and of in (UNKNOWN, FAILING))
        or (column == "answer_digest" and of in (DOUBTED, OTHER_LIST))
        or (column in {"org_id", "user_id", "expression"} and of == UNKNOWN)
    )


def _alterations(intruder: Intruder, table: str) -> Iterator[tuple[str, Row, str, Any]]:
    for (r, row), (c, column) in itertools.product(
        enumerate(intruder.rows(table)), enumerate(metadata.tables[table].columns)
    ):
        if (r + c) % (3 if intruder.on_sqlite else 10) == 0:
            value = row[column.name]
            yield table, row, column.name, intruder.different(column, value)
            if column.nullable and value is not None:
                yield table, row, column.name, None


def test_any_deleted_row_is_found(engine: Engine, story: Story, intruder: Intruder) -> None:
    """But for a target that was never observed."""
    for table in PROVEN:
        for row in intruder.rows(table):
            intruder.delete(table, row)
            if (table, row.get("user_id")) != ("target", UNKNOWN.user_id):
                assert found(engine), (table, row)
            intruder.insert(table, row)
    assert found(engine) == []


def test_any_row_copied_to_another_key_is_found(engine: Engine, story: Story, intruder: Intruder) -> None:
    for table in ("change_set", "workflow_change", "observation", "workflow"):
        row = intruder.rows(table)[0]
        others: Row = {"id": 1000} if "id" in row else {"flow_id": "copy"}
        if table == "change_set":
            others |= {"version": 4}
        copy = {**row, **others}
        intruder.insert(table, copy)
        assert found(engine), (table, copy)
        intruder.delete(table, copy)
    assert found(engine) == []


def test_two_rows_that_are_swapped_are_found(engine: Engine, story: Story, intruder: Intruder) -> None:
    """Two change sets swap their versions, two change sets their changes, two targets their users."""
    first, second, *_ = intruder.rows("change_set")
    intruder.set("change_set", first, version=99)
    intruder.set("change_set", second, version=1)
    intruder.set("change_set", first, version=2)
    assert "o1/u1, version 1: change_set.kind should be 'baseline', but is 'delta'" in found(engine)
    intruder.set("change_set", first, version=99)
    intruder.set("change_set", second, version=2)
    intruder.set("change_set", first, version=1)
    assert found(engine) == []
    _swap_changes(intruder, 6, 8)
    assert found(engine) == [], "both baselines have the same changes"
    _swap_changes(intruder, 1, 6)
    assert len(found(engine)) == 2
    _swap_changes(intruder, 1, 6)
    _, _, doubted, other_list, *_ = intruder.rows("target")
    intruder.set("target", doubted, user_id="u0")
    intruder.set("target", other_list, user_id="u1")
    assert len(found(engine)) == 2


def _swap_changes(intruder: Intruder, one: int, other: int) -> None:
    for old, new in ((one, 99), (other, one), (99, other)):
        intruder.run("UPDATE workflow_change SET change_set_id = :new WHERE change_set_id = :old", old=old, new=new)


# ---------------------------------------------------------------------------------------------------------- cut


def test_a_tail_that_was_cut_is_found_with_kept_heads_and_cannot_be_without(
    engine: Engine, diary: Diary, intruder: Intruder
) -> None:
    """Whether the last 1, 2 or all versions are cut: the rest is a sound trail, as an older backup is."""
    story, saved = Story(diary), []
    for number in range(4):
        saved.append(intruder.save())
        story.answer(PLANT, flow(1), flow(number + 2))
    lines = kept(engine)
    assert list(against(engine, lines)) == []
    for backup in reversed(saved):
        intruder.restore(backup)
        assert found(engine) == []
        (finding,) = against(engine, lines)
        assert (finding.target, finding.version, finding.found) == (PLANT, 4, "missing")


# ----------------------------------------------------------------------------------------------- kept heads


def test_heads_name_each_observed_target_with_its_last_hash_and_the_spans_no_hash_proves(
    engine: Engine, story: Story
) -> None:
    printed = {(head["org_id"], head["user_id"]): head for head in heads(engine, NOW)}
    assert printed.keys() == {target[:2] for target in (PLANT, QUIET, DOUBTED, OTHER_LIST, APPROVED, FAILING)}
    plant = printed["o1", "u1"]
    assert (plant["version"], plant["open"], plant["taken_at"]) == (3, True, "2026-04-01T00:00:00Z")
    assert [span["observations"] for span in plant["spans"]] == [3]
    assert plant["spans"][0]["first_at"] == "2026-03-04T13:45:00Z"
    assert (printed["o2", "u1"]["spans"], printed["o3", "u1"]["open"]) == ([], False)


def test_kept_heads_hold_while_the_trail_goes_on(engine: Engine, story: Story) -> None:
    """The open span grows, is sealed by a new version, and later versions follow."""
    lines = kept(engine)
    listed = (flow(10, "reduce all", "H", editable=False), flow(3, "new", "W"), flow("é", None, None, None))
    rest = (flow("𝄞", "join", "H"), flow(2))
    for answer in ([*listed, *rest], [*listed, *rest], [*listed], [*listed, flow(2)]):
        story.answer(PLANT, *answer)
        assert list(against(engine, lines)) == []
        lines += kept(engine)
    story.answer(FAILING, flow(1))
    assert [found(engine), list(against(engine, lines))] == [[], []]


def test_a_span_that_was_not_open_must_not_have_grown(engine: Engine, story: Story) -> None:
    lines = [line.replace('"open": true', '"open": false') for line in kept(engine)]
    story.answer(QUIET, flow(7, 'na"me\\\n\u2028\x7f', "mi", None))
    (finding,) = against(engine, lines)
    assert finding.target == QUIET
    assert "1 observations" in finding.expected
    assert "2 observations" in finding.found


WRITTEN = pytest.mark.parametrize(
    ("target", "listed"),
    [
        pytest.param(PLANT, flow(1), id="a new version"),
        pytest.param(QUIET, flow(7, 'na"me\\\n\u2028\x7f', "mi", None), id="a longer span"),
        pytest.param(FAILING, flow(1), id="a new span"),
        pytest.param(Target("o9", "nobody"), flow(1), id="a new target"),
    ],
)


@WRITTEN
def test_a_version_dated_before_the_kept_heads_but_not_in_them_was_inserted(
    engine: Engine, story: Story, intruder: Intruder, target: Target, listed: Flow
) -> None:
    """A sound trail, whose newest part claims to be older than heads that do not have it."""
    lines = kept(engine)
    intruder.run("UPDATE sync_run SET finished_at = started_at")
    story.answer(target, listed)
    assert found_in_chains(engine) == []
    assert list(against(engine, lines)) == [], "a run was under way, and committed it after the heads were taken"
    intruder.run("UPDATE sync_run SET finished_at = started_at")
    (finding,) = against(engine, lines)
    assert finding.target == target
    assert finding.what in ("change_set.observed_at", "observation")
    assert "2026-04-01 00:00:00" in finding.expected


@WRITTEN
def test_what_is_dated_after_the_heads_were_kept_is_what_they_wait_for(
    engine: Engine, story: Story, intruder: Intruder, target: Target, listed: Flow
) -> None:
    lines = kept(engine)
    story.now = NOW
    story.answer(target, listed)
    intruder.run("UPDATE sync_run SET finished_at = started_at")
    assert list(against(engine, lines)) == []


def test_a_version_that_the_next_heads_do_not_name_was_inserted_later(
    engine: Engine, story: Story, intruder: Intruder
) -> None:
    """A file that gets only the heads that moved proves that the others did not."""
    later = NOW + dt.timedelta(days=2)
    lines = kept(engine)
    story.now = NOW
    story.answer(QUIET, flow(8))
    lines += [json.dumps(head) for head in heads(engine, later) if head["user_id"] == QUIET.user_id]
    intruder.run("UPDATE sync_run SET finished_at = started_at")
    assert list(against(engine, lines)) == []
    story.answer(PLANT, flow(1))
    intruder.run("UPDATE sync_run SET finished_at = started_at")
    (finding,) = against(engine, lines)
    assert (finding.target, finding.version, finding.what) == (PLANT, 4, "change_set.observed_at")
    assert list(against(engine, lines, is_whole=lambda: False)) == [], "whose end is missing names less"


def test_invalid_lines_of_heads_are_named_by_their_number(engine: Engine, story: Story) -> None:
    line = kept(engine)[0]
    lines = [
        line,
        "",
        line[:-9],
        b"\xff",
        "[]",
        line.replace('"version": 3', '"version": "3"'),
        re.sub(r'"hash": "....', '"hash": "', line),
        line.replace("2026-04-01T00:00:00Z", "2026-04-01T00:00:00"),
        line.encode(),
    ]
    named = [finding.what for finding in against(engine, lines)]
    assert named == [f"line {number}" for number in range(3, 9)]


def test_a_file_without_heads_proves_nothing(engine: Engine, story: Story) -> None:
    assert len(list(against(engine, ["\n"]))) == 1


def test_many_kept_lines_are_compared_in_pieces(engine: Engine, story: Story) -> None:
    lines = kept(engine) * 200
    assert list(against(engine, lines)) == []


# --------------------------------------------------------------------------------------- orphans, odd values


@pytest.mark.parametrize("number", [-5, 77, 2**63 - 1])
def test_rows_that_belong_to_nothing_are_named(engine: Engine, story: Story, intruder: Intruder, number: int) -> None:
    run = intruder.rows("sync_run")[0]["id"]
    if not intruder.on_sqlite and number > 77:  # a partition as only a person could have made it
        intruder.run("CREATE TABLE beyond PARTITION OF workflow_change FOR VALUES FROM (10000000) TO (MAXVALUE)")
    change = {**intruder.rows("workflow_change")[0], "change_set_id": number}
    others = {
        "change_set": {**intruder.rows("change_set")[0], "id": 13, "target_id": number},
        "observation": {**intruder.rows("observation")[0], "id": 13, "target_id": number},
        "workflow": {**intruder.rows("workflow")[0], "target_id": number},
        "sync_issue": {"run_id": run, "target_id": number, "verdict": "failed", "message": "m"},
    }
    intruder.insert("workflow_change", change)
    for table, row in others.items():
        intruder.insert(table, row)
    parents = {"workflow_change": "change_set"}
    assert {sentence for sentence in found(engine) if "without rows of" in sentence} == {
        f"{table} should be without rows of {parents.get(table, 'target')} {number}, which does not exist, "
        "but is with some"
        for table in ("workflow_change", *others)
    }


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("change_set", "observed_at", "replace(observed_at, ' ', 'T')"),
        ("change_set", "observed_at", "'2026-W10-3 00:00:00.000000'"),
        ("change_set", "observed_at", "'yesterday'"),
        ("change_set", "approved_by", "CAST(x'ff41' AS TEXT)"),
        ("change_set", "version", "'v' || version"),
        ("change_set", "flow_count", "'four'"),
        ("workflow_change", "new_name", "CAST(x'ff41' AS TEXT)"),
        ("workflow_change", "new_name", "x'6d6170'"),
        ("workflow_change", "new_editable", "7"),
        ("observation", "interrupted", "'perhaps'"),
        ("observation", "version", "'first'"),
        ("observation", "observations", "2.5"),
        ("workflow", "flow_name", "x'6d6170'"),
        ("workflow", "first_listed_at", "replace(first_listed_at, '.', ',')"),
        ("target", "state_digest", "CAST(x'ff41' AS TEXT)"),
        ("target", "held_since", "1"),
        ("target", "consecutive_failures", "'many'"),
    ],
)
def test_values_that_a_column_does_not_allow_are_findings_of_their_target_and_no_other(
    engine: Engine, story: Story, intruder: Intruder, table: str, column: str, value: str
) -> None:
    whose = {"target": "id = 2", "workflow_change": "change_set_id = 5"}.get(table, "target_id = 2")
    intruder.run(f"UPDATE {table} SET {column} = {value} WHERE {whose}")
    findings = [finding for finding in verify(engine) if finding.target is not None]
    assert [finding.target for finding in findings] == [QUIET]
    assert str(findings[0]).isprintable()


OTHER_SPELLINGS: dict[str, Callable[[str], str]] = {
    "a week": lambda time: dt.date.fromisoformat(time[:10]).strftime("%G-W%V-%u") + time[10:],
    "T": lambda time: time.replace(" ", "T"),
    "a comma": lambda time: time.replace(".", ","),
    "no such day": lambda time: time[:5] + "02-30" + time[10:],
    "24 hours": lambda time: time[:11] + "24" + time[13:],
}


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
@pytest.mark.parametrize("spelling", OTHER_SPELLINGS)
def test_a_time_that_is_written_in_another_way_is_named_whatever_table_it_is_in(
    engine: Engine, story: Story, intruder: Intruder, monkeypatch: pytest.MonkeyPatch, spelling: str
) -> None:
    """Also where nothing else reads it; in however many pieces a table is read."""
    monkeypatch.setattr(sys.modules["etl.database.integrity"], "_AT_ONCE", 2)
    said = set()
    for table in metadata.sorted_tables:
        key = table.primary_key.columns.keys()
        for row in intruder.rows(table.name)[-1:]:
            others = {
                column.name: OTHER_SPELLINGS[spelling](row[column.name])
                for column in table.c
                if isinstance(column.type, UtcTime) and row[column.name] is not None
            }
            place = ", ".join(f"{name} {row[name]}" for name in key)
            for column, other in others.items():
                intruder.set(table.name, row, **{column: other})
                row[column] = other
                said.add(f"{table}.{column} of {place} should be {WRITTEN_AS}, but is '{other}'")
    assert len(said) > 15
    assert said == set(map(str, misspelled_times(engine)))
    assert said <= set(found(engine))


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_times_of_a_column_that_are_written_in_another_way_are_one_finding(
    engine: Engine, story: Story, intruder: Intruder
) -> None:
    intruder.run("UPDATE observation SET first_at = replace(first_at, ' ', 'T')")
    (one,) = misspelled_times(engine)
    assert one.others == len(intruder.rows("observation")) - 1
    assert str(one).endswith(f", and {one.others} more are not so either")


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_bytes_do_not_pass_for_the_text_that_encodes_them(engine: Engine, story: Story, intruder: Intruder) -> None:
    """JSON libraries write bytes as base64, so the digest of the blob `map` would be that of the text `bWFw`."""
    story.answer(QUIET, flow(7, "bWFw"))
    assert found(engine) == []
    intruder.run("UPDATE workflow_change SET new_name = x'6d6170' WHERE new_name = 'bWFw'")
    intruder.run("UPDATE workflow SET flow_name = x'6d6170' WHERE flow_name = 'bWFw'")
    assert [finding.target for finding in verify(engine)] == [QUIET]


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
@pytest.mark.parametrize("value", ["infinity", "-infinity", "4713-01-01 BC", "20000-01-01"])
@pytest.mark.parametrize(
    "place", ["change_set.observed_at", "change_set.last_unchanged_at", "observation.last_at", "target.held_since"]
)
def test_times_beyond_the_calendar_are_findings(
    engine: Engine, story: Story, intruder: Intruder, place: str, value: str
) -> None:
    table, column = place.split(".")
    row = intruder.rows(table)[0]
    intruder.set(table, row, **{column: value})
    assert {finding.target for finding in verify(engine)} == {PLANT}


def test_a_finding_is_one_sentence_that_no_name_can_forge(engine: Engine, story: Story, intruder: Intruder) -> None:
    intruder.run("UPDATE target SET user_id = :evil WHERE id = 1", evil="u\x1b[2J\nall is well")
    (finding,) = verify(engine)
    assert str(finding).startswith("o1/u\\x1b[2J\\x0aall is well, version 1: change_set.hash should be '")
    assert finding.as_object().keys() == {
        "org_id", "user_id", "expression", "version", "run_id", "seal_id", "what", "expected", "found", "message"
    }  # fmt: skip
    assert msgspec.json.encode(finding.as_object())


# ----------------------------------------------------------------------------------- progress, cuts, memory


def test_an_untouched_trail_has_no_findings_and_progress_ends_with_the_total(engine: Engine, story: Story) -> None:
    """Neither for `verify` nor for the independent checker."""
    reports: list[Progress] = []
    assert not list(verify(engine, progress=reports.append))
    assert [report.targets for report in reports if report.targets] == list(range(1, 8))
    assert reports[-1] == Progress(targets=7, of_targets=7, change_sets=12, changes=33)
    story.diary.check(settled=False)


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_the_reading_may_be_cut_after_any_target(
    engine: Engine, story: Story, intruder: Intruder, monkeypatch: pytest.MonkeyPatch
) -> None:
    intruder.run("UPDATE change_set SET approved_by = 'eve' WHERE target_id IN (1, 3, 7)")
    whole = found(engine)
    monkeypatch.setattr(etl.verify, "_ROWS_A_TRANSACTION", 1)
    assert len(whole) == 3
    assert found(engine) == whole


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_a_writer_gets_its_turn_between_two_pieces(
    engine: Engine, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its additions to later targets are no finding."""
    monkeypatch.setattr(etl.verify, "_ROWS_A_TRANSACTION", 1)
    verification = verify(engine)
    assert next(verification, None) is None
    story.answer(FAILING, flow(1), flow(2))
    assert found(engine) == []


def _peak_bytes(engine: Engine) -> int:
    tracemalloc.start()
    assert not list(verify(engine))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_memory_does_not_grow_with_the_length_of_the_trail(engine: Engine) -> None:
    with writing(engine) as connection:
        verify_rows.begin_run(connection)
        for number in (1, 2):
            verify_rows.Made(connection, number).write()
    short = _peak_bytes(engine)
    with writing(engine) as connection:
        for number in range(3, 7):
            verify_rows.Made(connection, number).write()
    assert _peak_bytes(engine) < short * 1.3


@STEADY
@given(states, st.lists(states, max_size=3))
def test_a_list_that_is_updated_has_the_digest_of_its_workflows(
    first: dict[str, Flow], others: list[dict[str, Flow]]
) -> None:
    listing = ReplayedState()
    for state in (first, *others):
        for flow_id in listing.flows.keys() - state.keys():
            listing.drop(flow_id)
        for each in state.values():
            listing.put(each)
        assert listing.digest() == chain.state_digest(state.values())


# ---------------------------------------------------------------------------------------------- the document


def _auditor(engine: Engine, folder: Path) -> subprocess.CompletedProcess[str]:
    (script,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)
    file = folder / "check.py"
    file.write_text(script, "utf-8")
    command = [sys.executable, "-I", "-X", "utf8", file, engine.url.database]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8")


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_the_documents_script_agrees_and_prints_the_heads(engine: Engine, story: Story, tmp_path: Path) -> None:
    done = _auditor(engine, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    printed = {line.split()[-1] for line in done.stdout.splitlines()}
    assert printed == {head["hash"] for head in heads(engine, NOW)} | {"0" * 64}


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    "what",
    [
        "a former cycle altered",
        "an approval of somebody else",
        "a span that is over with an observation more",
        "a cycle altered in a list",
        "a first version deleted",
    ],
)
def test_the_documents_script_finds_what_was_altered(lived: Kept, engine: Engine, tmp_path: Path, what: str) -> None:
    tamper(engine, IN_DATABASE[what].statements)
    done = _auditor(engine, tmp_path)
    assert done.returncode == 1
    assert "version" in done.stderr
    assert "Traceback" not in done.stderr
