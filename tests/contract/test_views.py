"""The views for reporting: a small history with known answers, and random histories against an oracle in Python."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import Boolean, Date, DateTime, Engine, Integer, String, column, inspect, select, table, text

from etl.database import reading
from etl.domain import verdict
from etl.domain.guard import Decision
from etl.domain.model import Target
from etl.schema import UtcTime
from tests.organisation.mirror import Small
from tests.support.builders import ALICE, Diary, after, flow, snapshot
from tests.support.histories import COVERAGE_GAP, Oracle, World

BOB, CAROL = Target("o1", "bob"), Target("o2", "carol")
TIMES = {
    *("first_listed_at", "changed_at", "last_observed_at", "missing_since", "valid_from", "valid_to", "last_listed_at"),
    *("last_unchanged_at", "observed_at", "held_since", "retired_at", "gap_from", "gap_to"),
    *("decided_at", "waiting_since", "asked_at", "acknowledged_at", "unlisted_since"),
}
FLAGS = {"locked", "editable", "old_editable", "new_editable", "changed_inside", "proven_for_all", "in_directory"}
NUMBERS = {
    *("change_set_id", "run_id", "seal_id", "event_id", "users", "editors", "users_before", "users_after", "unheard"),
    *("waits_for", "active", "type", "versions", "flow_count", "consecutive_failures", "held_workflows"),
    "users_in_gap",
}
VIEWS = {
    "list_workflow": "org_id user_id expression flow_id flow_name cycle cycle_label editable first_listed_at "
    "changed_at last_observed_at missing_since",
    "list_change": "change_set_id run_id org_id user_id expression flow_id kind old_name new_name old_cycle "
    "new_cycle old_editable new_editable last_unchanged_at observed_at ticket acknowledged_by acknowledged_at",
    "list_history": "org_id user_id expression flow_id flow_name cycle editable valid_from valid_to from_kind "
    "last_unchanged_at last_listed_at",
    "org_workflow": "org_id flow_id flow_name cycle users editors first_listed_at changed_at last_listed_at "
    "users_in_gap in_directory",
    "org_workflow_event": "org_id flow_id kind user_id old_name new_name old_cycle new_cycle old_editable "
    "new_editable last_unchanged_at observed_at users_before users_after proven_for_all unheard decided_at run_id "
    "seal_id event_id update_user update_time old_freq new_freq enos_timezone in_directory ticket acknowledged_by "
    "acknowledged_at",
    "unlisted_workflow": "org_id flow_id flow_name first_listed_at unlisted_since",
    "org_workflow_history": "org_id flow_id flow_name cycle valid_from last_unchanged_at valid_to from_kind "
    "proven_for_all",
    "org_pending": "org_id flow_id user_id waiting_since waits_for",
    "workflow_detail_latest": "org_id flow_id run_id asked_at observed_at update_user update_time creator create_time "
    "owner freq active type locked enos_timezone detail_hash",
    "target_health": "org_id user_id expression versions flow_count last_observed_at consecutive_failures "
    "last_error_code last_error held_since held_workflows retired_at",
    "coverage_gap": "org_id user_id expression gap_from gap_to changed_inside",
    "column_comment": "view_name column_name comment",
}


def rows(engine: Engine, view: str, *wanted: str, **found: str) -> list[Any]:
    """The rows of a view, or some of its columns, with times as times; in the order of their text."""
    kinds = dict.fromkeys(TIMES, UtcTime()) | dict.fromkeys(FLAGS, Boolean())
    columns = [column(name, kinds.get(name)) for name in VIEWS[view].split()]
    source = table(view, *columns)
    query = select(*(source.c[name] for name in wanted or source.c.keys()))
    with reading(engine) as connection:
        found_rows = connection.execute(query.where(*(source.c[name] == value for name, value in found.items())))
        return sorted((tuple(row) for row in found_rows), key=repr)


def hour(number: float) -> dt.datetime:
    return after(hours=number)


# -------------------------------------------------------------------------------------------------- the contract


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_has_exactly_the_columns_of_the_contract_and_says_what_a_row_is(engine: Engine, view: str) -> None:
    with reading(engine) as connection:
        assert " ".join(connection.execute(text(f"SELECT * FROM {view}")).keys()) == VIEWS[view]
        if engine.dialect.name == "sqlite":
            comment = connection.scalar(text("SELECT sql FROM sqlite_master WHERE name = :view"), {"view": view})
            assert comment.split("\n")[1].startswith("-- ")
        else:
            comment = connection.scalar(text("SELECT obj_description(CAST(:view AS regclass))"), {"view": view})
            assert comment


# ------------------------------------------------------------------------------------------------------ a story


@pytest.fixture
def story(engine: Engine, diary: Diary) -> Engine:
    """Alice and Bob of one organisation, and Carol of another, through a day."""
    seen, sort = flow("2", "reduce", "H"), flow("3", "sort", "X", None)
    diary.answer([flow("1"), seen], hour(0))
    diary.answer([flow("1"), seen], hour(1))
    diary.answer([flow("1", editable=False)], hour(1.1), BOB)
    diary.answer([flow("1", "join", "mi"), seen], hour(2))
    diary.answer([flow("1", "join", "mi", False)], hour(2.1), BOB)
    diary.fail()
    diary.answer([flow("1", "join", "mi")], hour(4))
    diary.answer([flow("1", "join", "mi", False), sort], hour(4.1), BOB)
    diary.answer([flow("1", "join", "mi"), sort], hour(5))
    diary.answer([sort], hour(12.5), BOB)
    diary.answer([flow("1", "other", "M", None), flow("9", "old", "W")], hour(13), CAROL)
    before, answer = diary.fence(CAROL), snapshot([flow("1", "other", "M")], hour(14), target=CAROL)
    state = diary.store.states([before.target_id])[before.target_id]
    doubted = Decision(frozenset({"9"}), reason="doubted")
    diary.apply(verdict.decided(before, state, answer, doubted, dt.timedelta(hours=36)))
    diary.store.retire_others([ALICE, CAROL], hour(20), None)
    return engine


def test_list_change_has_a_row_for_each_kind_of_change_at_once(story: Engine) -> None:
    columns = ("change_set_id", "run_id", "kind", "old_name", "new_cycle", "last_unchanged_at", "observed_at")
    asked = hour(1) - dt.timedelta(seconds=2)
    [first, *both] = rows(story, "list_change", *columns, user_id="alice", flow_id="1")
    assert first[2:] == ("baseline", None, "D", None, hour(0))
    assert [change[2:] for change in both] == [
        ("cycle_changed", "map", "mi", asked, hour(2)),
        ("renamed", "map", "mi", asked, hour(2)),
    ]
    assert first[:2] < both[0][:2] == both[1][:2], "one version of one run"


def test_a_state_begins_in_the_interval_of_the_change_that_made_it(story: Engine) -> None:
    mine = ("user_id", "flow_id")
    states = rows(story, "list_history", *mine, "valid_from", "last_unchanged_at")
    changes = rows(story, "list_change", *mine, "observed_at", "last_unchanged_at")
    assert set(states) <= set(changes)
    assert any(known is not None for *_, known in states)


def test_list_history_ends_a_state_where_the_next_begins_or_its_target_retired(story: Engine) -> None:
    columns = ("user_id", "flow_id", "flow_name", "valid_from", "valid_to", "from_kind", "last_listed_at")
    assert rows(story, "list_history", *columns) == [
        ("alice", "1", "join", hour(2), None, "cycle_changed", hour(5)),
        ("alice", "1", "map", hour(0), hour(2), "baseline", hour(1)),
        ("alice", "2", "reduce", hour(0), hour(4), "baseline", hour(2)),
        ("alice", "3", "sort", hour(5), None, "added", hour(5)),
        ("bob", "1", "join", hour(2.1), hour(12.5), "cycle_changed", hour(4.1)),
        ("bob", "1", "map", hour(1.1), hour(2.1), "baseline", hour(1.1)),
        ("bob", "3", "sort", hour(4.1), hour(20), "added", hour(12.5)),
        ("carol", "1", "other", hour(13), hour(14), "baseline", hour(13)),
        ("carol", "1", "other", hour(14), None, "editable_changed", hour(14)),
        ("carol", "9", "old", hour(13), None, "baseline", hour(13)),
    ]


@pytest.fixture
def organisation(engine: Engine) -> Engine:
    """Ann and Bob of one organisation, in six runs; the last one did not hear Bob."""
    story = Small(engine)
    story.hear(ann="12", bob="1")
    story.end()
    story.hear(ann="123", bob="13")
    story.end()
    story.hear(ann="123", bob="123")
    story.end()
    story.hear(ann="13", bob="23")
    story.end()
    story.hear(ann="1", bob="2")
    story.end()
    story.state.fail("bob")
    story.hear(ann="14")
    story.end()
    return engine


def test_org_workflow_event_has_each_event_once(organisation: Engine) -> None:
    columns = ("kind", "flow_id", "user_id", "new_name", "users_before", "users_after", "proven_for_all", "unheard")
    assert rows(organisation, "org_workflow_event", *columns) == [
        ("access_granted", "2", "bob", "name 2", 1, 2, True, 0),
        ("access_lost", "1", "bob", None, 2, 1, True, 0),
        ("access_lost", "2", "ann", None, 2, 1, True, 0),
        ("appeared", "3", None, "name 3", 0, 2, True, 0),
        ("appeared", "4", None, "name 4", 0, 1, True, 1),
        ("disappeared", "3", None, None, 2, 0, True, 1),
    ]
    last = rows(organisation, "org_workflow_event", "decided_at", "observed_at", "seal_id", flow_id="4")
    assert [(decided_at > observed_at, seal_id) for decided_at, observed_at, seal_id in last] == [(True, None)]


def test_org_workflow_counts_present_users_and_those_without_an_answer(organisation: Engine) -> None:
    columns = ("flow_id", "flow_name", "users", "editors", "users_in_gap")
    assert rows(organisation, "org_workflow", *columns) == [
        ("1", "name 1", 1, 1, 0),
        ("2", "name 2", 1, 1, 1),
        ("4", "name 4", 1, 1, 0),
    ]
    first, changed, last = rows(
        organisation, "org_workflow", "first_listed_at", "changed_at", "last_listed_at", flow_id="1"
    )[0]
    assert first == changed < last


def test_org_pending_has_the_workflows_that_wait_and_for_how_many_users(engine: Engine) -> None:
    """Both lost it, and Ann, who was asked first, must be heard once more."""
    story = Small(engine)
    story.hear(ann="1", bob="1")
    story.end()
    story.hear(ann="-", bob="-")
    story.end()
    waiting = rows(engine, "org_pending", "flow_id", "user_id", "waits_for")
    assert waiting == [("1", "ann", 1), ("1", "bob", 1)]


def test_every_column_of_every_view_is_explained_in_the_database(engine: Engine) -> None:
    expected = {(view, name) for view, names in VIEWS.items() if view != "column_comment" for name in names.split()}
    with reading(engine) as connection:
        rows = connection.execute(text("SELECT view_name, column_name, comment FROM column_comment")).all()
        explained = {(view, name): comment for view, name, comment in rows}
        assert (explained.keys(), len(rows)) == (expected, len(expected))
        for view in sorted({view for view, _ in expected}):
            if engine.dialect.name == "sqlite":
                lines = connection.scalar(text("SELECT sql FROM sqlite_master WHERE name = :view"), {"view": view})
                said = dict(line[3:].split(": ", 1) for line in lines.split("\n")[2:] if line.startswith("-- "))
            else:
                query = "SELECT attname, col_description(attrelid, attnum) FROM pg_attribute "
                query += "WHERE attrelid = CAST(:view AS regclass) AND attnum > 0"
                said = dict(connection.execute(text(query), {"view": view}).all())
            assert said == {name: comment for (of, name), comment in explained.items() if of == view}


# -------------------------------------------------------------------------------------------------- the oracle


def expected_gaps(oracle: Oracle) -> Iterator[tuple[Any, ...]]:
    """Between two answers that were believed as a whole: an attempt without one, or too long a silence."""
    seen = [(number, entry) for number, entry in enumerate(oracle.log) if entry.what == "seen"]
    for (number, before), (following, found) in pairwise(seen):
        if following > number + 1 or found.at - before.at > COVERAGE_GAP:
            yield *oracle.target, before.at, found.at, before.version != found.version
    number, latest = seen[-1]
    if number + 1 < len(oracle.log) and not oracle.is_away:
        yield *oracle.target, latest.at, None, latest.version != oracle.log[-1].version


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_gaps_agree_with_an_oracle_on_random_histories(engine: Engine, seed: int) -> None:
    world = World(engine, seed)
    world.live(40)
    expected = [gap for oracle in world.oracles.values() for gap in expected_gaps(oracle)]
    assert rows(engine, "coverage_gap") == sorted(expected, key=repr) != []


@pytest.mark.parametrize("dialect", ["sqlite"])
@pytest.mark.parametrize(
    "view",
    [
        "org_workflow_event",
        "org_workflow_history",
        "org_pending",
        "list_history",
        "org_workflow",
        "list_workflow",
    ],
)
def test_a_condition_on_the_organisation_reaches_the_tables(engine: Engine, view: str) -> None:
    with reading(engine) as connection:
        plan = connection.execute(text(f"EXPLAIN QUERY PLAN SELECT * FROM {view} WHERE org_id = 'o1'")).all()
    steps = [step.detail for step in plan]
    assert any(step.startswith("SEARCH") and "(org_id=?" in step for step in steps)
    assert not [step for step in steps if step.startswith("SCAN") and step.split()[1] in set("tcswef")]


def test_programs_that_reflect_the_schema_find_the_type_of_every_column_of_every_view(engine: Engine) -> None:
    """SQLite has no types for times (text) and flags (integers)."""
    kinds = {**dict.fromkeys(NUMBERS, Integer), **dict.fromkeys(FLAGS, Boolean), **dict.fromkeys(TIMES, DateTime)}
    if engine.dialect.name == "sqlite":
        kinds = dict.fromkeys(NUMBERS | FLAGS, Integer)
    else:
        kinds["day"] = Date
    for view, names in VIEWS.items():
        found = {each["name"]: each["type"] for each in inspect(engine).get_columns(view)}
        assert list(found) == names.split()
        wrong = {name for name, kind in found.items() if not isinstance(kind, kinds.get(name, String))}
        assert wrong == set(), view
