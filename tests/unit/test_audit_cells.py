"""Cell by cell and row by row: nothing in a bundle can be altered, left out or added without a finding."""

from __future__ import annotations

import copy
import datetime as dt
import hashlib
import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from etl.audit import check
from tests.support import bundles
from tests.support.bundles import Row, Rows

STORY = bundles.some_days(lambda _: ("AAAA", "0" * 64))
"""Signatures are another matter: here they only must not vanish."""
FILES = [name for name in check.FILES if STORY.rows[name]]
UNPROVEN = {
    "seals": {"signature", "key_id"},
    "runs": {"scope", "opened"},
    "memberships": {"id"},
    "spans": {"last_asked_at", "longest_gap_seconds", "interrupted"},
}
"""What is only looked at for its shape (docs/formats.md): each has a test of its own below, or in test_audit.py."""


def findings(rows: Rows, folder: Path, answers: dict[str, bytes] = STORY.answers, **fields: object) -> list[str]:
    file = bundles.pack(folder / "bundle.zip", rows, answers, **fields)
    printed = io.StringIO()
    with redirect_stdout(printed):
        code = check.main([str(file)])
    assert code in (0, 1)
    return printed.getvalue().splitlines() if code else []


def altered(value: Any, tick: dt.timedelta = dt.timedelta(microseconds=1)) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, dt.datetime):
        return value + tick
    if isinstance(value, str):
        return ("1" if value[0] == "0" else "0") + value[1:] if len(value) == 64 else value + "x"
    return [*value, "x"]


def columns_of(name: str) -> dict[str, str]:
    return dict(column.split(":") for column in check.FILES[name].split())


CELLS = [(name, column) for name in FILES for column in columns_of(name) if column not in UNPROVEN.get(name, ())]


@pytest.mark.parametrize(("name", "column"), CELLS, ids=map("-".join, CELLS))
def test_no_cell_can_be_altered(tmp_path: Path, name: str, column: str) -> None:
    """In the first, a middle and the last row; where a column may be null, null is tried, too."""
    kind, rows = columns_of(name)[column], copy.deepcopy(STORY.rows)
    tick = dt.timedelta(hours=1) if name == "spans" else dt.timedelta(microseconds=1)
    listed = rows[name]
    for place in {0, len(listed) // 2, len(listed) - 1}:
        right = listed[place][column]
        others = {"text": "x", "int": 7, "bool": True, "time": bundles.START, "hash": "0" * 64}
        wrong = [altered(right, tick)] if right is not None else [others[kind.rstrip("?")]]
        for value in [*wrong, None] if kind.endswith("?") and right is not None else wrong:
            listed[place][column] = value
            assert findings(rows, tmp_path), f"{name} {place}: {right!r} -> {value!r}"
        listed[place][column] = right


@pytest.mark.parametrize("name", FILES)
def test_no_row_can_be_left_out_or_be_there_twice(tmp_path: Path, name: str) -> None:
    for place in range(len(STORY.rows[name])):
        for much in (0, 2):
            rows = {**STORY.rows, name: copy.copy(STORY.rows[name])}
            rows[name][place : place + 1] = [rows[name][place]] * much
            assert findings(rows, tmp_path), f"{name} {place} x {much}"


@pytest.mark.parametrize("column", check.SPAN)
def test_a_span_is_proven_as_far_as_the_next_version_covers_it(tmp_path: Path, column: str) -> None:
    rows = copy.deepcopy(STORY.rows)
    for span in rows["spans"]:
        if span["version"] < max(row["version"] for row in rows["spans"] if same(row, span)):
            right = span[column]
            span[column] = altered(right)
            assert findings(rows, tmp_path), span
            span[column] = right


def same(row: Row, other: Row) -> bool:
    return bundles.target_of(row) == bundles.target_of(other)


@pytest.mark.parametrize("scope", [{}, {"targets": "x"}, {"targets": [["o1"]]}, {"schedules": ["plants"]}, {"x": 1}])
def test_an_invalid_scope_is_named(tmp_path: Path, scope: Row) -> None:
    rows = copy.deepcopy(STORY.rows)
    rows["runs"][3]["scope"] = scope
    assert findings(rows, tmp_path)[-2].startswith("run 4 (seal 4): scope ")
    rows["runs"][3]["scope"] = scope | {"membership_id": 2}
    assert findings(rows, tmp_path)[-2].startswith("run 4 (seal 4): scope is none")


def test_the_memberships_of_a_run_are_proven_by_its_targets(tmp_path: Path) -> None:
    rows = copy.deepcopy(STORY.rows)
    rows["runs"][3]["scope"]["membership_id"] = 1
    assert any(line.startswith("run 4 (seal 4): targets_digest") for line in findings(rows, tmp_path))


@pytest.mark.parametrize("data_hash", sorted(STORY.answers))
def test_a_kept_answer_is_that_of_its_hash_and_gives_its_version(tmp_path: Path, data_hash: str) -> None:
    other = next(data for name, data in STORY.answers.items() if name != data_hash)
    assert findings(STORY.rows, tmp_path, {**STORY.answers, data_hash: STORY.answers[data_hash] + b" "})
    assert findings(STORY.rows, tmp_path, {**STORY.answers, data_hash: other})
    left_out = {name: data for name, data in STORY.answers.items() if name != data_hash}
    assert not findings(STORY.rows, tmp_path, left_out)


@pytest.mark.parametrize(
    "data",
    [
        b"{}",
        b"[",
        b"[5]",
        b"\xff",
        b'[{"flowId": ""}]',
        b'[{"flowId": true}]',
        b'[{"flowId": 1.5}]',
        b'[{"flowId": 1, "flowId": 2}]',
        b'[{"flowId": "1"}, {"flowId": 1, "cycle": "D"}]',
        b"[" * 100_000,
    ],
    ids=lambda data: data[:20],
)
def test_an_answer_that_cannot_be_read_is_a_finding(tmp_path: Path, data: bytes) -> None:
    rows = copy.deepcopy(STORY.rows)
    data_hash = hashlib.sha256(data).hexdigest()
    rows["change_sets"][0]["data_hash"] = data_hash
    bundles.forge(rows)
    assert any(": its answer cannot be read" in line for line in findings(rows, tmp_path, {data_hash: data}))


def test_another_list_under_the_hash_of_an_answer_is_named_with_its_workflow(tmp_path: Path) -> None:
    rows = copy.deepcopy(STORY.rows)
    two = next(row for row in rows["change_sets"] if row["org_id"] == "o1" and row["version"] == 2)
    two["data_hash"] = rows["change_sets"][0]["data_hash"]
    bundles.forge(rows)
    named = [line for line in findings(rows, tmp_path) if "in its answer should be" in line]
    assert named
    assert named[0].startswith("o1/ann, version 2, workflow '1': in its answer")


BEGIN = STORY.rows["seals"][8]["sealed_at"]
PART = bundles.between(STORY, BEGIN, BEGIN + dt.timedelta(days=9))
"""A bundle that does not begin with the trail: it has openings, and hashes of runs that are not opened."""


def part_findings(rows: Rows, folder: Path) -> bool:
    return bool(findings(rows, folder, since=BEGIN))


def test_no_opening_and_no_list_of_hashes_can_be_altered(tmp_path: Path) -> None:
    assert not part_findings(PART, tmp_path)
    for name in ("openings", "hashes"):
        assert PART[name]
        for place, row in enumerate(PART[name]):
            for column, value in row.items():
                rows = {**PART, name: copy.deepcopy(PART[name])}
                rows[name][place][column] = altered(value) if column != "flows" else value[1:]
                assert part_findings(rows, tmp_path), (name, place, column)
            for much in (0, 2):
                rows = {**PART, name: copy.copy(PART[name])}
                rows[name][place : place + 1] = [row] * much
                assert part_findings(rows, tmp_path), (name, place, much)


def test_every_flow_of_an_opening_is_proven(tmp_path: Path) -> None:
    for place, column in ((0, 0), (0, 1), (0, 2), (-1, 3)):
        rows = {**PART, "openings": copy.deepcopy(PART["openings"])}
        flow = rows["openings"][0]["flows"][place]
        flow[column] = "x" if column < 3 else not flow[column]
        assert part_findings(rows, tmp_path), (place, column)
    reversed_flows = {**PART, "openings": copy.deepcopy(PART["openings"])}
    reversed_flows["openings"][0]["flows"].reverse()
    assert part_findings(reversed_flows, tmp_path)


def test_an_opening_is_proven_by_the_seal_of_its_run(tmp_path: Path) -> None:
    for number in [row["run_id"] for row in PART["hashes"]]:
        rows = copy.deepcopy(PART)
        rows["hashes"] = [row for row in rows["hashes"] if row["run_id"] != number]
        rows["runs"][number - 1]["opened"] = "no"
        named = [line for line in findings(rows, tmp_path, since=BEGIN) if f"is not in run {number} (seal" in line]
        assert named, number
