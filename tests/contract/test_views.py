"""The views for reporting: a small history with known answers, and random histories against an oracle in Python."""

from __future__ import annotations

import datetime as dt
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
from sqlalchemy import (
    Boolean,
    Connection,
    Date,
    DateTime,
    Engine,
    Integer,
    String,
    column,
    insert,
    inspect,
    select,
    table,
    text,
    update,
)

from etl.database import reading, writing
from etl.schema import UtcTime, metadata, target
from tests.organisation.mirror import Small

START = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
ALICE, BOB, CAROL = ("o1", "alice", ""), ("o1", "bob", ""), ("o2", "carol", "")
Key = tuple[str, str, str]
State = tuple["str | None", "str | None", "bool | None"]
"""Name, cycle, editable."""
NOTHING: State = (None, None, None)
TIMES = {
    *("first_listed_at", "changed_at", "last_observed_at", "missing_since", "valid_from", "valid_to", "last_listed_at"),
    *("last_unchanged_at", "observed_at", "held_since", "retired_at", "gap_from", "gap_to"),
    *("decided_at", "waiting_since", "asked_at"),
}
FLAGS = {"locked", "editable", "old_editable", "new_editable", "changed_inside", "proven_for_all"}
NUMBERS = {
    *("change_set_id", "run_id", "seal_id", "event_id", "users", "editors", "users_before", "users_after", "unheard"),
    *("waits_for", "active", "type", "versions", "flow_count", "consecutive_failures", "held_workflows"),
    "users_in_gap",
}
VIEWS = {
    "list_workflow": "org_id user_id expression flow_id flow_name cycle cycle_label editable first_listed_at "
    "changed_at last_observed_at missing_since",
    "list_change": "change_set_id run_id org_id user_id expression flow_id kind old_name new_name old_cycle "
    "new_cycle old_editable new_editable last_unchanged_at observed_at",
    "list_history": "org_id user_id expression flow_id flow_name cycle editable valid_from valid_to from_kind "
    "last_unchanged_at last_listed_at",
    "org_workflow": "org_id flow_id flow_name cycle users editors first_listed_at changed_at last_listed_at "
    "users_in_gap",
    "org_workflow_event": "org_id flow_id kind user_id old_name new_name old_cycle new_cycle old_editable "
    "new_editable last_unchanged_at observed_at users_before users_after proven_for_all unheard decided_at run_id "
    "seal_id event_id update_user update_time old_freq new_freq",
    "org_workflow_history": "org_id flow_id flow_name cycle valid_from last_unchanged_at valid_to from_kind "
    "proven_for_all",
    "org_pending": "org_id flow_id user_id waiting_since waits_for",
    "workflow_detail_latest": "org_id flow_id run_id asked_at observed_at update_user update_time creator create_time "
    "owner freq active type locked detail_hash",
    "target_health": "org_id user_id expression versions flow_count last_observed_at consecutive_failures "
    "last_error_code last_error held_since held_workflows retired_at",
    "coverage_gap": "org_id user_id expression gap_from gap_to changed_inside",
    "column_comment": "view_name column_name comment",
}


class Report(NamedTuple):
    """One workflow of one target in one change set."""

    key: Key
    flow_id: str
    run_id: int
    change_set_id: int
    version: int
    since: dt.datetime | None
    at: dt.datetime
    kinds: tuple[str, ...]
    old: State | None
    new: State | None


class Seen(NamedTuple):
    version: int
    first: dt.datetime
    last: dt.datetime
    interrupted: bool


class Trail:
    """Writes histories as runs would, by its own rules, and records them for the oracle."""

    def __init__(self) -> None:
        self.rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.ids: dict[Key, int] = {}
        self.lists: dict[Key, dict[str, State]] = {}
        self.stamps: dict[tuple[Key, str], tuple[dt.datetime, dt.datetime]] = {}
        self.missing: dict[Key, set[str]] = defaultdict(set)
        self.reports: list[Report] = []
        self.versions: Counter[Key] = Counter()
        self.spans: dict[Key, list[Seen]] = defaultdict(list)
        self.is_open: dict[Key, bool] = defaultdict(bool)
        self.held: dict[Key, dt.datetime] = {}
        self.retired: dict[Key, dt.datetime] = {}

    def see(self, run_id: int, key: Key, at: dt.datetime, flows: dict[str, State], *, hold: Iterable[str] = ()) -> None:
        """A valid answer; ``hold`` are workflows that it lacks and that stay, their removal held."""
        self.ids.setdefault(key, len(self.ids) + 1)
        before, hold = self.lists.get(key, {}), set(hold)
        flows = {**flows, **{flow_id: before[flow_id] for flow_id in hold}}
        changed = self._commit(run_id, key, at, before, flows)
        self.missing[key] = hold
        self.held = (
            {**self.held, key: self.held.get(key, at)} if hold else {k: v for k, v in self.held.items() if k != key}
        )
        if hold:
            self.is_open[key] = False
        else:
            self._span(key, at, changed)

    def _commit(
        self, run_id: int, key: Key, at: dt.datetime, before: dict[str, State], after: dict[str, State]
    ) -> bool:
        baseline = key not in self.lists
        self.lists[key] = after
        ids = [flow_id for flow_id in {**before, **after} if before.get(flow_id) != after.get(flow_id)]
        if not ids and not baseline:
            return False
        self.versions[key] += 1
        since = None if baseline else self.spans[key][-1].last - dt.timedelta(seconds=1)
        number = len(self.rows["change_set"]) + 1
        made = [
            Report(key, flow_id, run_id, number, self.versions[key], since, at, kinds(old, new, baseline), old, new)
            for flow_id in sorted(ids)
            for old, new in [(before.get(flow_id), after.get(flow_id))]
        ]
        self.reports += made
        self._write(made, key, run_id, at, since, len(after), baseline)
        return True

    def _write(
        self,
        made: list[Report],
        key: Key,
        run_id: int,
        at: dt.datetime,
        since: dt.datetime | None,
        size: int,
        first: bool,
    ) -> None:
        counts = Counter(kind for report in made for kind in report.kinds)
        self.rows["change_set"].append(
            {"id": len(self.rows["change_set"]) + 1, "target_id": self.ids[key], "version": self.versions[key]}
            | {
                "run_id": run_id,
                "kind": "baseline" if first else "delta",
                "observed_at": at,
                "last_unchanged_at": since,
                "asked_at": at,
                "previous_at": since,
            }
            | {"flow_count": size, "format": 1}
            | dict.fromkeys(("state_digest", "data_hash", "parent_hash", "hash"), "0" * 64)
            | {kind: counts[kind] for kind in KINDS}
        )
        for report in made:
            old, new = report.old or NOTHING, report.new or NOTHING
            values = dict(zip(CHANGE_COLUMNS, (x for pair in zip(old, new, strict=True) for x in pair), strict=True))
            for kind in report.kinds:
                row = {"change_set_id": report.change_set_id, "flow_id": report.flow_id, "kind": kind, **values}
                self.rows["workflow_change"].append(row)
            first_seen = at if report.old is None else self.stamps[key, report.flow_id][0]
            self.stamps[key, report.flow_id] = (first_seen, at)

    def _span(self, key: Key, at: dt.datetime, changed: bool) -> None:
        spans = self.spans[key]
        if self.is_open[key] and not changed:
            spans[-1] = spans[-1]._replace(last=at)
        else:
            spans.append(Seen(self.versions[key], at, at, bool(spans) and not self.is_open[key]))
        self.is_open[key] = True

    def fail(self, key: Key) -> None:
        self.is_open[key] = False

    def retire(self, key: Key, at: dt.datetime) -> None:
        self.retired[key] = at

    def write(self, connection: Connection) -> None:
        numbers = {key: [] for key in self.ids}
        spans = [(key, each) for key in self.ids for each in self.spans[key]]
        for number, (key, _) in enumerate(spans, 1):
            numbers[key].append(number)
        for key, target_id in self.ids.items():
            self.rows["target"].append(self._target_row(key, target_id, numbers[key]))
            self.rows["workflow"] += [self._workflow_row(key, flow_id) for flow_id in self.lists[key]]
        self.rows["observation"] = [
            {"target_id": self.ids[key], "version": each.version, "first_at": each.first, "last_at": each.last}
            | {"last_asked_at": each.last - dt.timedelta(seconds=1), "interrupted": each.interrupted}
            for key, each in spans
        ]
        self.rows["target_membership"] = [
            {"target_id": self.ids[key], "run_id": 1, "kind": "retired", "at": at} for key, at in self.retired.items()
        ]
        for each in metadata.sorted_tables:
            if self.rows[each.name]:
                connection.execute(insert(each), self.rows[each.name])

    def _target_row(self, key: Key, target_id: int, spans: list[int]) -> dict[str, Any]:
        row = dict(zip(("org_id", "user_id", "expression"), key, strict=True))
        row |= {
            "id": target_id,
            "version": self.versions[key],
            "state_digest": "0" * 64,
            "flow_count": len(self.lists[key]),
        }
        row |= {"observation_id": spans[-1] if self.is_open[key] else None}
        return row | {"held_since": self.held.get(key), "retired_at": self.retired.get(key)}

    def _workflow_row(self, key: Key, flow_id: str) -> dict[str, Any]:
        values = dict(zip(("flow_name", "cycle", "editable"), self.lists[key][flow_id], strict=True))
        first, last = self.stamps[key, flow_id]
        missing = self.held.get(key) if flow_id in self.missing[key] else None
        where = {"target_id": self.ids[key], "flow_id": flow_id, "first_listed_at": first, "changed_at": last}
        return where | values | {"missing_since": missing}


KINDS = ("baseline", "added", "removed", "cycle_changed", "renamed", "editable_changed")
CHANGE_COLUMNS = ("old_name", "new_name", "old_cycle", "new_cycle", "old_editable", "new_editable")


def kinds(old: State | None, new: State | None, baseline: bool) -> tuple[str, ...]:
    if new is None:
        return ("removed",)
    if old is None:
        return ("baseline" if baseline else "added",)
    changed = zip(("renamed", "cycle_changed", "editable_changed"), old, new, strict=True)
    return tuple(kind for kind, before, after in changed if before != after)


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
    return START + dt.timedelta(hours=number)


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
def story(engine: Engine) -> Engine:
    """Alice and Bob of one organisation, and Carol of another, through a day."""
    trail = Trail()
    trail.see(1, ALICE, hour(0), {"1": ("map", "D", True), "2": ("reduce", "H", True)})
    trail.see(2, ALICE, hour(1), {"1": ("map", "D", True), "2": ("reduce", "H", True)})
    trail.see(2, BOB, hour(1.1), {"1": ("map", "D", False)})
    trail.see(3, ALICE, hour(2), {"1": ("join", "mi", True), "2": ("reduce", "H", True)})
    trail.see(3, BOB, hour(2.1), {"1": ("join", "mi", False)})
    trail.fail(ALICE)
    trail.see(4, ALICE, hour(4), {"1": ("join", "mi", True)})
    trail.see(4, BOB, hour(4.1), {"1": ("join", "mi", False), "3": ("sort", "X", None)})
    trail.see(5, ALICE, hour(5), {"1": ("join", "mi", True), "3": ("sort", "X", None)})
    trail.see(6, BOB, hour(12.5), {"3": ("sort", "X", None)})
    trail.see(7, CAROL, hour(13), {"1": ("other", "M", None), "9": ("old", "W", True)})
    trail.see(8, CAROL, hour(14), {"1": ("other", "M", True)}, hold=["9"])
    trail.retire(BOB, hour(20))
    with writing(engine) as connection:
        trail.write(connection)
        failing = {"consecutive_failures": 3, "last_error_code": "62103", "last_error": "no privilege"}
        connection.execute(update(target).where(target.c.user_id == "alice").values(failing))
    return engine


def test_list_workflow_leaves_retired_targets_out_and_keeps_what_is_held(story: Engine) -> None:
    columns = ("user_id", "flow_id", "flow_name", "cycle_label", "editable", "changed_at", "last_observed_at")
    assert rows(story, "list_workflow", *columns, "missing_since") == [
        ("alice", "1", "join", "minute", True, hour(2), hour(5), None),
        ("alice", "3", "sort", "X", None, hour(5), hour(5), None),
        ("carol", "1", "other", "month", True, hour(14), hour(13), None),
        ("carol", "9", "old", "week", True, hour(13), hour(13), hour(14)),
    ]


def test_list_change_has_a_row_for_each_kind_of_change_at_once(story: Engine) -> None:
    columns = ("change_set_id", "run_id", "kind", "old_name", "new_cycle", "last_unchanged_at", "observed_at")
    second = dt.timedelta(seconds=1)
    assert rows(story, "list_change", *columns, user_id="alice", flow_id="1") == [
        (1, 1, "baseline", None, "D", None, hour(0)),
        (3, 3, "cycle_changed", "map", "mi", hour(1) - second, hour(2)),
        (3, 3, "renamed", "map", "mi", hour(1) - second, hour(2)),
    ]


def test_list_history_ends_a_state_where_the_next_begins_or_its_target_retired(story: Engine) -> None:
    columns = ("user_id", "flow_id", "flow_name", "valid_from", "valid_to", "from_kind", "last_listed_at")
    assert rows(story, "list_history", *columns, org_id="o1") == [
        ("alice", "1", "join", hour(2), None, "cycle_changed", hour(5)),
        ("alice", "1", "map", hour(0), hour(2), "baseline", hour(1)),
        ("alice", "2", "reduce", hour(0), hour(4), "baseline", hour(2)),
        ("alice", "3", "sort", hour(5), None, "added", hour(5)),
        ("bob", "1", "join", hour(2.1), hour(12.5), "cycle_changed", hour(4.1)),
        ("bob", "1", "map", hour(1.1), hour(2.1), "baseline", hour(1.1)),
        ("bob", "3", "sort", hour(4.1), hour(20), "added", hour(12.5)),
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


def test_org_workflow_history_has_one_state_at_a_time(organisation: Engine) -> None:
    columns = ("flow_id", "flow_name", "from_kind", "valid_to")
    states = rows(organisation, "org_workflow_history", *columns)
    assert [(*state[:3], state[3] is None) for state in states] == [
        ("1", "name 1", "baseline", True),
        ("2", "name 2", "baseline", True),
        ("3", "name 3", "appeared", False),
        ("4", "name 4", "appeared", True),
    ]


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


def test_target_health_counts_what_is_held(story: Engine) -> None:
    columns = ("user_id", "versions", "flow_count", "last_observed_at", "consecutive_failures", "last_error_code")
    assert rows(story, "target_health", *columns, "held_since", "held_workflows", "retired_at") == [
        ("alice", 4, 2, hour(5), 3, "62103", None, 0, None),
        ("bob", 4, 1, hour(12.5), 0, None, None, 0, hour(20)),
        ("carol", 2, 2, hour(13), 0, None, hour(14), 1, None),
    ]


def test_coverage_gap_says_whether_something_changed_inside(story: Engine) -> None:
    assert rows(story, "coverage_gap") == [
        ("o1", "alice", "", hour(2), hour(4), True),
        ("o2", "carol", "", hour(13), None, True),
    ]


# -------------------------------------------------------------------------------------------------- the oracle


def a_random_trail(seeds: Iterable[int]) -> Trail:
    """An organisation a seed: a few users, some with two expressions, that see a small world change."""
    trail, runs = Trail(), iter(range(1, 1_000_000))
    for seed in seeds:
        live_randomly(trail, f"o{seed:04}", random.Random(seed), runs)
    return trail


def live_randomly(trail: Trail, org: str, dice: random.Random, runs: Iterator[int]) -> None:
    users = [f"u{number}" for number in range(dice.randint(1, 3))]
    keys = [(org, user, expression) for user in users for expression in ("", "x")[: dice.randint(1, 2)]]
    world, now = {flow_id: a_state(dice) for flow_id in "123"}, START
    for run_id in (next(runs) for _ in range(dice.randint(1, 12))):
        if dice.random() < 0.6:
            world[dice.choice("123")] = a_state(dice)
        for key in dice.sample(keys, dice.randint(1, len(keys))):
            now += dt.timedelta(seconds=dice.choice([0, 7, 4000]) + 7)
            if key not in trail.retired:
                ask_randomly(trail, run_id, key, now, world, dice)
        now += dt.timedelta(seconds=5)
        for key in keys:
            if key in trail.ids and key not in trail.retired and dice.random() < 0.04:
                trail.retire(key, now)


def ask_randomly(
    trail: Trail, run_id: int, key: Key, at: dt.datetime, world: dict[str, State], dice: random.Random
) -> None:
    luck, listed = dice.random(), {flow_id: state for flow_id, state in world.items() if dice.random() < 0.7}
    gone = trail.lists.get(key, {}).keys() - listed.keys()
    if luck < 0.15 and key in trail.ids:
        trail.fail(key)
    elif luck < 0.3 and gone:
        trail.see(run_id, key, at, listed, hold=gone)
    else:
        trail.see(run_id, key, at, listed)


def a_state(dice: random.Random) -> State:
    return dice.choice(["map", "join", None]), dice.choice(["D", "H", None]), dice.choice([True, False, None])


def expected_history(trail: Trail) -> Iterator[tuple[Any, ...]]:
    lives: dict[tuple[Key, str], list[Report]] = defaultdict(list)
    for report in trail.reports:
        lives[report.key, report.flow_id].append(report)
    for (key, flow_id), life in lives.items():
        for report, following in zip(life, [*life[1:], None], strict=True):
            if report.new is None:
                continue
            until = following.at if following else trail.retired.get(key)
            kind = next(
                kind for kind in (*KINDS[:3], "cycle_changed", "renamed", "editable_changed") if kind in report.kinds
            )
            before = [each.last for each in trail.spans[key] if not following or each.version < following.version]
            last_seen = max([report.at, *before])
            yield (*key, flow_id, *report.new, report.at, until, kind, report.since, last_seen)


def expected_gaps(trail: Trail) -> Iterator[tuple[Any, ...]]:
    for key, spans in trail.spans.items():
        for before, after in pairwise(spans):
            if after.interrupted:
                yield *key, before.last, after.first, before.version != after.version
        if not trail.is_open[key] and key not in trail.retired:
            yield *key, spans[-1].last, None, spans[-1].version != trail.versions[key]


ORGANISATIONS = 150


@pytest.fixture
def histories(engine: Engine) -> tuple[Engine, Trail]:
    trail = a_random_trail(range(ORGANISATIONS))
    with writing(engine) as connection:
        trail.write(connection)
    return engine, trail


def test_the_views_agree_with_an_oracle_on_random_histories(histories: tuple[Engine, Trail]) -> None:
    engine, trail = histories
    assert rows(engine, "list_history") == sorted(expected_history(trail), key=repr)
    assert rows(engine, "coverage_gap") == sorted(expected_gaps(trail), key=repr)


def test_one_organisation_alone_gives_what_it_gives_among_all(histories: tuple[Engine, Trail]) -> None:
    engine, _ = histories
    everything = rows(engine, "list_history")
    for number in range(0, ORGANISATIONS, 40):
        org = f"o{number:04}"
        assert rows(engine, "list_history", org_id=org) == [row for row in everything if row[0] == org]


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
