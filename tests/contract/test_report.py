"""The views as the reports give them: rows, filters, order, and readers that block nobody."""

from __future__ import annotations

import datetime as dt
import sys
from copy import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import Engine, text

from etl.cli import app
from etl.database import upgrade, writing
from etl.errors import FlowtrailError
from etl.report.asof import flows_as_of
from etl.report.listings import CHANGES, FLOWS, HELD_WORKFLOWS, HISTORY, RUNS, TARGETS
from etl.report.rows import (
    ListChange,
    ListState,
    ListWorkflow,
    ListWorkflowAsOf,
    SyncRun,
    TargetAsOf,
    TargetHealth,
    columns_of,
)
from etl.schema import sync_run
from etl.store import Store
from tests.support.builders import run_row
from tests.support.databases import Connect, Fill
from tests.support.histories import START, TICK, World
from tests.support.program import SECRET, Program


@pytest.fixture
def world(engine: Engine, fill: Fill) -> World:
    def write(engine: Engine, url: str) -> World:
        world = World(engine, 7)
        world.live(30)
        return world

    world = copy(fill("thirty_rounds", write))
    world.engine, world.store = engine, Store(engine)
    return world


@pytest.mark.parametrize(
    ("view", "row_type"),
    [
        ("list_workflow", ListWorkflow),
        ("list_change", ListChange),
        ("list_history", ListState),
        ("target_health", TargetHealth),
        ("sync_run", SyncRun),
    ],
)
def test_a_row_has_exactly_the_columns_of_its_view(engine: Engine, view: str, row_type: type) -> None:
    """In the same order; but for what is of use to a seal alone."""
    with engine.connect() as connection:
        names = list(connection.execute(text(f"SELECT * FROM {view}")).keys())
    assert [column.name for column in columns_of(row_type)] == [
        n for n in names if n not in ("scope", "targets_digest")
    ]


def test_the_columns_as_of_are_those_of_now_and_then_how_well_they_are_known() -> None:
    """`list_workflow`, then coverage, observed_before, observed_after."""
    known = ("coverage", "observed_before", "observed_after")
    assert ListWorkflowAsOf._fields == ListWorkflow._fields + known
    assert TargetAsOf._fields == ("org_id", "user_id", "expression", *known, "flow_count")


def test_the_present_list_agrees_with_the_oracle(world: World) -> None:
    """Every column, held removals and retired targets considered."""
    expected = [row for _, oracle in sorted(world.oracles.items()) for row in oracle.now()]
    assert list(FLOWS.rows(world.engine)) == expected != []
    assert any(row.missing_since for row in expected)


def test_filters_of_the_list_of_now(world: World) -> None:
    """Whole ids, a part of the name in any case, a cycle by its code or its label."""

    def flows(**asked: Any) -> list[tuple[Any, ...]]:
        return list(FLOWS.rows(world.engine, **asked))

    rows = flows()
    assert flows(org="o1") == [row for row in rows if row.org_id == "o1"] != []
    assert flows(user="u2", flow="3") == [r for r in rows if (r.user_id, r.flow_id) == ("u2", "3")] != []
    assert flows(cycle="D") == flows(cycle="day") == [r for r in rows if r.cycle == "D"] != []
    assert flows(name="REDUCE_") == [r for r in rows if "reduce_" in (r.flow_name or "")] != []
    assert flows(name="描") == [r for r in rows if r.flow_name == "描述"] != []
    assert flows(name="REDUCE_", limit=1) == flows(name="REDUCE_")[:1]
    assert flows(name="_") == flows(name="reduce_")
    assert flows(org="o1' OR '1'='1") == []


def test_the_trail_is_given_in_its_order_and_filtered(world: World) -> None:
    """`since` is in, `until` is out; `kinds` are any of several; a name is found before and after."""

    def changes(**asked: Any) -> list[tuple[Any, ...]]:
        return list(CHANGES.rows(world.engine, **asked))

    rows = changes()
    assert all(isinstance(row, ListChange) for row in rows)
    assert all(
        (a.observed_at, a.change_set_id, a.flow_id, a.kind) < (b.observed_at, b.change_set_id, b.flow_id, b.kind)
        for a, b in pairwise(rows)
    )
    since, until = rows[len(rows) // 4].observed_at, rows[-20].observed_at
    assert changes(since=since, until=until) == [r for r in rows if since <= r.observed_at < until] != []
    kinds = ("cycle_changed", "renamed")
    assert changes(kind=kinds) == [row for row in rows if row.kind in kinds] != []
    org, user, flow = rows[-1].org_id, rows[-1].user_id, rows[-1].flow_id
    of_one = [row for row in rows if (row.org_id, row.user_id, row.flow_id) == (org, user, flow)]
    assert changes(org=org, user=user, flow=flow) == of_one != []
    assert changes(name="Map") == [r for r in rows if "map" in ((r.old_name or ""), (r.new_name or ""))]
    assert changes(newest_first=True) == rows[::-1]
    assert changes(newest_first=True, limit=7) == rows[:-8:-1]
    assert changes(limit=7) == rows[:7]


def test_booleans_and_times_are_themselves_on_both_databases(world: World) -> None:
    """No 0 for false, no text for a time, no time without a zone."""
    rows = list(CHANGES.rows(world.engine))
    assert {row.new_editable for row in rows} == {True, False, None}
    assert {type(row.new_editable) for row in rows} == {bool, type(None)}
    assert {row.observed_at.tzinfo for row in rows} == {dt.UTC}


def test_the_history_has_at_every_moment_the_list_of_that_moment(world: World) -> None:
    """valid_from is in, valid_to is out."""
    spans = list(HISTORY.rows(world.engine))
    for moment in world.moments(8):
        then = [s for s in spans if s.valid_from <= moment and (s.valid_to is None or moment < s.valid_to)]
        assert [(*s[:6], s.editable) for s in then] == [(*f[:6], f.editable) for f in flows_as_of(world.engine, moment)]


def test_the_history_of_one_workflow(world: World) -> None:
    """For every user who saw it, of one organisation or of all."""

    def history(**asked: Any) -> list[tuple[Any, ...]]:
        return list(HISTORY.rows(world.engine, **asked))

    spans = history()
    assert history(flow="3") == [row for row in spans if row.flow_id == "3"] != []
    assert history(flow="3", org="o2") == [s for s in spans if (s.flow_id, s.org_id) == ("3", "o2")] != []
    assert history(user="u0") == [row for row in spans if row.user_id == "u0"] != []


def test_held_workflows_are_listed_with_the_reason(world: World) -> None:
    """One row a missing workflow, until it came back or was removed; retired targets wait for nobody."""
    holds = list(HELD_WORKFLOWS.rows(world.engine))
    waiting = {
        (*target, flow_id): since
        for target, oracle in world.oracles.items()
        if not oracle.is_away
        for flow_id, since in oracle.missing.items()
    }
    assert {(*row[:3], row.flow_id): row.missing_since for row in holds} == waiting != {}
    assert all(row.held_since <= row.missing_since and "missing" in (row.reason or "") for row in holds)
    org = holds[0].org_id
    assert list(HELD_WORKFLOWS.rows(world.engine, org=org)) == [row for row in holds if row.org_id == org]


def test_problems_are_the_targets_that_failed_last_or_are_held(world: World) -> None:
    """As `target_health` has them, without those that retired."""
    health = list(TARGETS.rows(world.engine))
    active = {target for target, oracle in world.oracles.items() if not oracle.is_away}
    assert {row[:3] for row in health} == active
    problems = list(TARGETS.rows(world.engine, show="problems"))
    assert problems == [row for row in health if row.consecutive_failures or row.held_since]
    failed = {target for target in active if world.oracles[target].log[-1].what == "failed"}
    held = {target for target in active if world.oracles[target].missing}
    assert {row[:3] for row in problems} == failed | held
    assert list(TARGETS.rows(world.engine, show="problems", limit=1)) == problems[:1]


def test_a_slow_reader_blocks_no_writer(world: World) -> None:
    """A commit succeeds while rows are being read, and the reader still sees the moment at which it began."""
    expected = list(CHANGES.rows(world.engine))
    rows = CHANGES.rows(world.engine)
    begun = [next(rows)]
    with writing(world.engine) as connection:
        connection.execute(text("DELETE FROM workflow"))
        connection.execute(text("UPDATE target SET org_id = org_id || '-renamed'"))
    assert begun + list(rows) == expected
    assert all(row.org_id.endswith("-renamed") for row in CHANGES.rows(world.engine))


def test_a_reader_that_stops_half_way_returns_its_connection(world: World) -> None:
    """More often than there are connections."""
    for _ in range(12):
        rows = CHANGES.rows(world.engine)
        next(rows)
        rows.close()
    assert next(FLOWS.rows(world.engine))


def test_more_rows_than_a_page_come_complete_and_runs_the_latest_first(engine: Engine) -> None:
    """With every column of the table."""
    with writing(engine) as connection:
        connection.execute(sync_run.insert(), [run_row(START + n * TICK) for n in range(2500)])
    runs = list(RUNS.rows(engine))
    assert [run.started_at for run in runs] == [START + n * TICK for n in reversed(range(2500))]
    assert runs[-1]._asdict().items() >= run_row(START).items()
    assert list(RUNS.rows(engine, limit=3)) == runs[:3]


def test_without_room_for_temporary_files_a_list_ends_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, connected: Connect
) -> None:
    """SQLite's rows pass through one, so that a reader keeps no writer waiting."""
    engine = connected(tmp_path / "flowtrail.db")
    upgrade(engine)
    World(engine, 1).live(20)
    monkeypatch.setattr(sys.modules["etl.report.reading"], "_IN_MEMORY_BYTES", 1)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.raises(FlowtrailError, match=r"Temporary files cannot be written .*TMPDIR"):
        list(CHANGES.rows(engine))


@pytest.mark.parametrize("command", ["plan", "demo"])
def test_without_room_for_temporary_files_a_command_ends_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    Program(tmp_path, "http://127.0.0.1:9").schedule("plants", [("o1", ["ann"])])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLOWTRAIL_GATEWAY__SECRET_KEY", SECRET)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    ended = CliRunner().invoke(app, [command])
    assert isinstance(ended.exception, FlowtrailError)
    assert "TMPDIR" in str(ended.exception)
