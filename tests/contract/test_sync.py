"""Whole runs: the real client against the real local gateway, on SQLite and PostgreSQL, each judged by the checker."""

from __future__ import annotations

import contextlib
import datetime as dt
import itertools
import random
import string
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import Engine, event, make_url

from etl import sync
from etl.database import writing
from etl.demo.world import World
from etl.domain.approvals import code, held_set
from etl.domain.model import Flow, Outcome, Target
from etl.errors import DatabaseUnreachable
from etl.report.listings import held_sets
from etl.store import NewRun, Store
from etl.sync import fetching
from etl.sync.batch import Batch
from etl.verify import verify
from tests.support.builders import dump, flow, numbered, written
from tests.support.enos import LocalGateway
from tests.support.house import House, gone
from tests.support.sessions import ON_POSTGRESQL

ORG = "o1"
ALICE, BOB, CAROL = (Target(ORG, name) for name in ("alice", "bob", "carol"))
TRAIL = {"workflow", "change_set", "workflow_change"}
SAFETY_NET_SECONDS = 60


@pytest.fixture
def make(engine: Engine, database_url: str) -> Iterator[Callable[..., House]]:
    with contextlib.ExitStack() as open_gateways:

        def build(world: World | None = None, *, concurrency: int = 4, **settings: float) -> House:
            upstream = open_gateways.enter_context(LocalGateway(world or World(orgs=0)))
            return House(engine, database_url, upstream, concurrency, **settings)

        yield build


@pytest.fixture
def house(make: Callable[..., House]) -> House:
    """Alice sees 40 workflows, Bob half of them; the first sync has been."""
    house = make()
    house.see(ALICE, numbered(1, 40))
    house.see(BOB, numbered(1, 20))
    house.sync(ALICE, BOB, changed=2)
    return house


@pytest.fixture
def held(house: House) -> House:
    """The first twelve of Alice's workflows are missing, which is held."""
    house.see(ALICE, numbered(13, 40))
    house.sync(ALICE, held=1)
    return house


# What was observed is what is there


def test_a_first_sync_is_a_baseline_of_every_target(house):
    assert house.rows("SELECT kind, count(*) FROM workflow_change GROUP BY kind") == [("baseline", 60)]
    assert house.rows("SELECT status, targets, changed, baseline, added FROM sync_run") == [("succeeded", 2, 2, 60, 0)]
    assert house.state(BOB) == {str(number) for number in range(1, 21)}
    house.check(every_answer=True)


def test_a_quiet_sync_costs_one_request_a_target_and_writes_no_row_of_the_trail(house):
    before, calls = dump(house.engine), house.upstream.calls("flows")
    for _ in range(3):
        report = house.sync(ALICE, BOB, unchanged=2)
    assert report.status == "succeeded"
    assert written(before, dump(house.engine)) == {"observation"}
    assert house.upstream.calls("flows") == calls + 6
    assert house.rows("SELECT observations FROM observation") == [(4,), (4,)]
    house.check(every_answer=True)


def test_every_kind_of_change_is_recorded_for_everyone_who_sees_it(house):
    world = house.world
    world.add_flow(ORG, flow("new", "fresh", "mi"), ["alice"])
    world.remove_flow(ORG, "2")
    world.rename(ORG, "3", "other")
    world.set_cycle(ORG, "4", "H")
    world.set_editable(ORG, "bob", "5", False)
    world.rename(ORG, "6", None)
    world.set_cycle(ORG, "6", None)
    report = house.sync(ALICE, BOB, changed=2)
    kinds = dict(house.rows("SELECT kind, count(*) FROM workflow_change WHERE kind <> 'baseline' GROUP BY kind"))
    assert kinds == {"added": 1, "removed": 2, "renamed": 4, "cycle_changed": 4, "editable_changed": 1}
    assert {**dict.fromkeys(kinds, 0), **report.tally.changes} == kinds
    house.check(every_answer=True)


def test_expressions_are_targets_of_their_own(house):
    searched = ALICE._replace(expression="name 1")
    house.sync(ALICE, searched, changed=1, unchanged=1)
    assert house.state(searched) == {"1", *map(str, range(10, 20))}
    house.world.rename(ORG, "2", "name 1 again")
    house.sync(ALICE, searched, BOB, changed=3)
    assert "2" in house.state(searched)
    house.check(every_answer=True)


def test_foreign_text_is_kept_unchanged(make):
    house = make()
    strange = [
        "'; DROP TABLE target; --",
        "a\nb\r\x01\x1b[31m",
        "\u202e\u2028\x85",
        "e\u0301é",
        "\U0001d7d9",
        " ",
        "\\N",
    ]
    house.see(ALICE, [Flow(name, name, name, None) for name in strange])
    house.sync(ALICE, changed=1)
    house.see(ALICE, [Flow(name, name + "x", name, True) for name in [*strange, "\t", "a ", "A"]])
    house.sync(ALICE, changed=1)
    assert house.state(ALICE) == {*strange, "\t", "a ", "A"}
    house.check(every_answer=True)


def test_a_token_that_dies_in_mid_run_is_renewed(house):
    house.fault("expired", times=1)
    house.sync(ALICE, BOB, unchanged=2)
    assert house.upstream.calls("token") == 3
    assert house.upstream.bad_signatures == 0
    house.check(every_answer=True)


def test_a_cycle_that_enos_does_not_document_is_kept_and_reported(house):
    house.world.set_cycle(ORG, "1", "fortnight")
    report = house.sync(ALICE, BOB, changed=2)
    assert any("fortnight" in note for note in report.notes)
    assert house.sync(ALICE, BOB, unchanged=2).notes == ()
    house.check(every_answer=True)


def test_a_clock_that_went_back_is_reported_and_times_go_on(house):
    house.offset = dt.timedelta(seconds=-90)
    house.world.rename(ORG, "30", "other")
    report = house.sync(ALICE, BOB, changed=1, unchanged=1)
    assert any("clock went back" in note for note in report.notes)
    house.check(every_answer=True)


# What is judged was the only answer of its connection

KEPT, OWN = True, False


def asked(house: House, run: Callable[[], object]) -> list[bool]:
    """For each request for Alice's list in that run: whether its connection was kept open for others."""
    before = len(house.upstream.deliveries.entries())
    run()
    entries = house.upstream.deliveries.entries(after=before)
    return [entry.kept_open for entry in entries if entry.user == "alice"]


@pytest.mark.parametrize(
    ("what", "connections"),
    [
        ("the same list", [KEPT]),
        ("another list", [KEPT, OWN]),
        ("a list that is held", [KEPT, OWN]),
        ("a list that empties", [KEPT, OWN]),
        ("a list with one in place of another", [KEPT, OWN, OWN]),
        ("a refusal", [KEPT, OWN]),
        ("nonsense", [KEPT, OWN]),
        ("a gateway that is busy once", [KEPT, KEPT]),
    ],
)
def test_an_answer_with_changes_is_requested_again_over_its_own_connection(make, what, connections):
    house = make()
    house.see(ALICE, numbered(1, 4 if what == "a list that empties" else 20))
    house.sync(ALICE, changed=1)
    match what:
        case "another list":
            house.see(ALICE, numbered(1, 21))
        case "a list that is held":
            house.see(ALICE, numbered(1, 9))
        case "a list that empties":
            house.see(ALICE, [])
        case "a list with one in place of another":
            house.see(ALICE, numbered(2, 21))
        case "a refusal":
            house.fault("code", ALICE, code=62101, times=None)
        case "nonsense":
            house.fault("html", ALICE, times=None)
        case "a gateway that is busy once":
            house.fault("status", ALICE)
    assert asked(house, lambda: house.run(ALICE)) == connections


# Failures change nothing

DOUBTFUL = b'{"code":0,"msg":"OK","data":[{"flowId":"1","flowName":"a","cycle":"D","editable":true%s}]}'
REFUSED = {
    "unknown user": ({"kind": "code", "code": 62101}, "62101"),
    "no privilege": ({"kind": "code", "code": 62103}, "62103"),
    "forbidden": ({"kind": "status", "status": 403}, "http_403"),
    "redirect": ({"kind": "redirect", "location": "http://127.0.0.1:1/"}, None),
    "page": ({"kind": "html"}, None),
    "code is false": ({"kind": "raw", "body": b'{"code":false,"data":[]}'}, "malformed"),
    "code is missing": ({"kind": "raw", "body": b'{"data":[]}'}, "malformed"),
    "data is null": ({"kind": "raw", "body": b'{"code":0,"data":null}'}, "malformed"),
    "a key twice": ({"kind": "raw", "body": DOUBTFUL % b',"cycle":"H"'}, "malformed"),
    "an empty id": ({"kind": "raw", "body": b'{"code":0,"data":[{"flowId":""}]}'}, "malformed"),
    "one id, two workflows": (
        {"kind": "raw", "body": b'{"code":0,"data":[{"flowId":"1"},{"flowId":1,"cycle":"D"}]}'},
        "malformed",
    ),
    "NUL in a name": ({"kind": "raw", "body": DOUBTFUL.replace(b'"a"', b'"a\\u0000"') % b""}, "malformed"),
    "wrong date": ({"kind": "date", "seconds": 3600}, "clock_skew"),
}
FLEETING = {
    "service error": ({"kind": "code", "code": 62109}, "62109"),
    "too many requests": ({"kind": "status", "status": 429}, None),
    "unavailable": ({"kind": "status", "status": 503}, None),
    "cut": ({"kind": "cut"}, None),
    "outage": ({"kind": "outage", "reset": True}, None),
}


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
@pytest.mark.parametrize("name", [*REFUSED, *FLEETING])
def test_a_target_that_fails_keeps_its_state_and_touches_no_other(make, name):
    """Whether it is refused, or fails until its deadline."""
    house = make()
    fault, code = {**REFUSED, **FLEETING}[name]
    if name in FLEETING:
        house.hurry(1.5)
    house.see(ALICE, numbered(1, 12))
    house.see(BOB, numbered(1, 12))
    house.sync(ALICE, BOB, changed=2)
    before = dump(house.engine)
    house.fault(**fault, target=ALICE, times=None)
    house.world.rename(ORG, "1", "other")
    report = house.sync(ALICE, BOB, changed=1, failed=1)
    assert report.status == "partial"
    [issue] = report.tally.issues
    assert (issue.target, issue.verdict, issue.issue.error_code) == (ALICE, "failed", code or issue.issue.error_code)
    assert len(dump(house.engine)["workflow"]) == len(before["workflow"])
    assert house.rows("SELECT version, consecutive_failures, last_error_code FROM target ORDER BY user_id") == [
        (1, 1, issue.issue.error_code),
        (2, 0, None),
    ]
    house.upstream.clear_faults()
    assert house.sync(ALICE, BOB, changed=1, unchanged=1).status == "succeeded"
    assert house.rows("SELECT count(*) FROM observation WHERE interrupted") == [(1,)]
    house.check(every_answer=True)


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_half_a_list_leaves_a_refused_target_refused(house):
    """Also where only its text shows that it is half a list: that says nothing about the target."""
    house.fault("code", ALICE, code=62101, times=None)
    house.sync(ALICE, failed=1)
    house.upstream.clear_faults()
    house.hurry(0.3)
    house.fault("raw", ALICE, body=DOUBTFUL[:-9], times=None)
    [issue] = house.sync(ALICE, failed=1).tally.issues
    assert issue.issue.error_code in ("truncated", "deadline")
    assert house.rows("SELECT last_error_code, consecutive_failures FROM target ORDER BY user_id LIMIT 1") == [
        ("62101", 2)
    ]


def test_a_target_that_the_database_refuses_fails_alone(house):
    refuse(house.engine, "bad")
    house.see(ALICE, [flow("bad"), *numbered(1, 40)])
    house.see(BOB, numbered(1, 21))
    house.see(CAROL, [flow("bad")])
    report = house.sync(ALICE, BOB, CAROL, changed=1, failed=2)
    assert {issue.issue.error_code for issue in report.tally.issues} == {"not_stored"}
    assert house.state(ALICE) == {str(number) for number in range(1, 41)}
    assert len(house.state(BOB)) == 21
    house.check(settled=False)


@pytest.mark.parametrize("dialect", ON_POSTGRESQL)
def test_an_id_that_postgresql_cannot_index_fails_its_target_alone(house):
    chance = random.Random(1)
    house.see(ALICE, [flow("".join(chance.choices(string.ascii_letters, k=6000)))])
    house.see(BOB, numbered(1, 21))
    report = house.sync(ALICE, BOB, changed=1, failed=1)
    (issue,) = report.tally.issues
    assert (issue.target, issue.issue.error_code) == (ALICE, "not_stored")
    assert "index row size" in issue.issue.message


def refuse(engine: Engine, flow_id: str) -> None:
    """From now on the database refuses this workflow."""
    with writing(engine) as connection:
        if engine.dialect.name == "sqlite":
            body = f"WHEN NEW.flow_id = '{flow_id}' BEGIN SELECT RAISE(ABORT, 'refused by the test'); END"
            connection.exec_driver_sql(f"CREATE TRIGGER refuse BEFORE INSERT ON workflow {body}")
        else:
            connection.exec_driver_sql(f"ALTER TABLE workflow ADD CHECK (flow_id <> '{flow_id}')")


def test_a_gateway_that_is_down_is_left_alone_after_three_times_the_concurrency(make):
    house = make(concurrency=2)
    targets = [Target(ORG, f"u{number:02}") for number in range(30)]
    for target in targets:
        house.see(target, numbered(1, 3))
    house.sync(*targets, changed=30)
    before = dump(house.engine)
    house.fault("outage", times=None)
    house.hurry(0.5)
    report = house.sync(*targets, failed=30)
    house.hurry(20)
    assert report.status == "failed"
    unasked = [issue for issue in report.tally.issues if issue.issue.error_code == "gateway_down"]
    assert 30 - 6 - 2 <= len(unasked) <= 30 - 6
    assert {issue.issue.attempts for issue in unasked} == {0}
    assert written(before, dump(house.engine)) == {"target", "sync_issue"}
    house.upstream.clear_faults()
    assert house.sync(*targets, unchanged=30).status == "succeeded"
    house.check(every_answer=True)


def test_an_answer_in_between_shows_that_the_gateway_is_up(make):
    """A token that is not accepted, even a new one, is evidence as good as an outage."""
    house = make(concurrency=1)
    targets = [Target(ORG, f"u{number}") for number in range(7)]
    for target in targets:
        house.see(target, numbered(1, 3))
    for number in (0, 1, 3, 4, 6):
        house.fault("status", targets[number], status=401, times=None)
    report = house.sync(*targets, changed=2, failed=5)
    assert "gateway_down" not in {issue.issue.error_code for issue in report.tally.issues}
    house.check(every_answer=True)


# The guard


@pytest.mark.parametrize(("gone", "held"), [(11, False), (12, True), (30, True)])
def test_removals_from_both_limits_on_are_held(house, gone, held):
    """Of 40 workflows, 12 are thirty percent."""
    house.see(ALICE, [flow(40, "other"), *numbered(1, 39), flow("new")][gone:])
    report = house.sync(ALICE, BOB, unchanged=1, **{"held" if held else "changed": 1})
    assert report.status == ("partial" if held else "succeeded")
    assert len(house.state(ALICE)) == (41 if held else 41 - gone)
    assert "new" in house.state(ALICE)
    assert house.rows("SELECT count(*) FROM workflow WHERE missing_since IS NOT NULL") == [(gone * held,)]
    house.check(every_answer=not held)


def test_a_hold_waits_through_quiet_runs_and_failures_until_everything_is_back(house):
    shown = house.world.flows(ORG, "alice")
    house.see(ALICE, shown[12:])
    house.sync(ALICE, BOB, held=1, unchanged=1)
    house.sync(ALICE, BOB, held=1, unchanged=1)
    house.fault("html", ALICE)
    house.sync(ALICE, BOB, failed=1, unchanged=1)
    house.see(ALICE, shown[1:])
    house.sync(ALICE, BOB, held=1, unchanged=1)
    house.see(ALICE, shown)
    house.sync(ALICE, BOB, unchanged=2)
    assert house.rows("SELECT version, held_since, observation_id IS NULL FROM target WHERE user_id = 'alice'") == [
        (1, None, 0)
    ]
    house.sync(ALICE, BOB, unchanged=2)
    house.check()


def test_an_empty_answer_in_place_of_a_long_list_is_held(house):
    """Its approval needs no second answer."""
    house.see(ALICE, [])
    house.sync(ALICE, held=1)
    assert len(house.state(ALICE)) == 40
    calls = house.upstream.calls("flows")
    house.sync(ALICE, by="Zoë", changed=1)
    assert house.upstream.calls("flows") == calls + 1
    assert house.state(ALICE) == set()
    house.check()


def test_a_list_whose_workflows_have_all_lost_a_key_is_malformed_and_records_nothing(house):
    """EnOS documents all four keys; a key that a few workflows lack is a null."""
    known, shown = house.state(ALICE), house.world.flows(ORG, "alice")
    without = [{"flowId": f.flow_id, "flowName": f.flow_name, "editable": f.editable} for f in shown]
    body = msgspec.json.encode({"code": 0, "data": without})
    house.fault("raw", ALICE, body=body, times=None)
    report = house.sync(ALICE, BOB, failed=1, unchanged=1)
    assert "no workflow has the key cycle, and 40 of them had" in report.tally.issues[0].issue.message
    assert house.rows("SELECT count(*) FROM workflow_change WHERE kind = 'cycle_changed'") == [(0,)]
    assert house.state(ALICE) == known


RENAMED = [flow(n, "other") for n in range(1, 31)] + numbered(31, 40)
"""Alice's list: 30 of 40 have another name."""


def test_many_changes_at_once_are_held_whole_until_the_old_values_are_back(house):
    """Nothing of such an answer is recorded, not even what is new or gone."""
    house.see(ALICE, [*RENAMED[:38], flow("new")])
    calls = house.upstream.calls("flows")
    report = house.sync(ALICE, BOB, held=1, unchanged=1)
    assert house.upstream.calls("flows") == calls + 3, "hers is shorter, so it was asked for again at the end"
    assert report.tally.issues[0].issue.message == "2 of 40 workflows are missing; 30 of 38 workflows have another name"
    assert house.state(ALICE) == {str(number) for number in range(1, 41)}
    assert house.rows('SELECT count(*) FROM workflow WHERE doubted = \'[["renamed","other"]]\'') == [(30,)]
    house.check()
    house.see(ALICE, [*numbered(1, 29), flow(30, "other"), *numbered(31, 40)])
    house.sync(ALICE, held=1)
    house.check()
    house.see(ALICE, numbered(1, 40))
    house.sync(ALICE, unchanged=1)
    kinds = "SELECT kind, count(*) FROM hold_event GROUP BY kind ORDER BY kind"
    assert house.rows(kinds) == [("back", 2), ("held", 1)]
    assert house.rows("SELECT version, held_since FROM target WHERE user_id = 'alice'") == [(1, None)]
    house.check()
    assert list(verify(house.engine)) == []


def test_an_approval_of_many_changes_records_them_and_its_scope(house):
    house.see(ALICE, RENAMED)
    house.sync(ALICE, held=1)
    (shown,) = held_sets(house.engine)
    house.see(ALICE, [*RENAMED[:-1], flow(40, "other")])
    house.sync(ALICE, by="Zoë", scopes={ALICE: shown.scope}, held=1)
    house.check()
    house.see(ALICE, [*RENAMED, flow("new")])
    house.sync(ALICE, by="Zoë", scopes={ALICE: shown.scope}, held=1)
    (now,) = held_sets(house.engine)
    house.sync(ALICE, by="Zoë", scopes={ALICE: now.scope}, changed=1)
    assert house.rows("SELECT renamed, added, approved_scope FROM change_set WHERE approved_by IS NOT NULL") == [
        (30, 1, now.scope)
    ]
    house.check()
    assert list(verify(house.engine)) == []


def few(house: House, count: int) -> list[Target]:
    targets = [Target(ORG, f"few{number:02}") for number in range(count)]
    for target in targets:
        house.see(target, numbered(1, 3))
    house.sync(*targets, changed=count)
    return targets


def test_an_empty_first_answer_is_requested_again_and_the_second_counts(make):
    house = make()
    house.see(ALICE, numbered(1, 30))
    house.see(BOB, [])
    house.fault("empty", ALICE, times=1)
    calls = house.upstream.calls("flows")
    house.sync(ALICE, BOB, changed=2)
    assert house.upstream.calls("flows") == calls + 4
    assert (len(house.state(ALICE)), len(house.state(BOB))) == (30, 0)
    house.sync(ALICE, BOB, unchanged=2)
    assert house.upstream.calls("flows") == calls + 6, "a list that is known to be empty is nothing to doubt"
    assert house.rows("SELECT kind, count(*) FROM workflow_change GROUP BY kind") == [("baseline", 30)]
    house.check()


@pytest.mark.parametrize(
    ("targets", "emptied", "believed"),
    [pytest.param(25, 5, False, id="exactly"), (26, 5, True), (20, 4, True), (5, 5, False)],
)
def test_targets_that_empty_together_are_decided_together(make, targets, emptied, believed):
    """Five, and a fifth of the run: then none of them is believed."""
    house = make()
    known = few(house, targets)
    for target in known[:emptied]:
        house.see(target, [])
    kinds = {"changed" if believed else "held": emptied, "unchanged": targets - emptied}
    house.sync(*known, **{kind: number for kind, number in kinds.items() if number})
    assert {len(house.state(target)) for target in known[:emptied]} == {0 if believed else 3}
    house.check()


def test_emptied_targets_are_held_as_soon_as_they_are_too_many(make, monkeypatch):
    """Answers that can no longer be believed are not kept in memory until the end of the run."""
    monkeypatch.setattr("etl.sync.runner.BATCH_SIZE", 10)
    house = make(concurrency=1)
    known = few(house, 30)
    for target in known:
        house.see(target, [])
    answers, early = itertools.count(1), []

    def arrived() -> None:
        if next(answers) == 45:  # of 60: each is asked twice, and the first batch is through
            give_up = time.monotonic() + SAFETY_NET_SECONDS
            while not early and time.monotonic() < give_up:
                early.extend(house.rows("SELECT id FROM sync_issue WHERE verdict = 'held'"))

    house.arrived = arrived
    house.sync(*known, held=30)
    assert early
    house.check()


def test_a_run_reports_the_first_issues_and_counts_them_all(house, monkeypatch):
    monkeypatch.setattr("etl.sync.result.MOST_ISSUES", 3)
    unknown = [Target(ORG, f"nobody{n}") for n in range(5)]
    report = house.sync(*unknown, failed=5)
    assert (len(report.tally.issues), report.tally.issues_left_out) == (3, 2)
    assert (report.tally.causes, report.tally.causes_left_out) == ({"62101": 5}, {"62101": 2})
    assert (len(report.summary()["issues"]), report.summary()["causes"]) == (3, {"62101": 5})
    assert house.rows("SELECT count(*) FROM sync_issue") == [(5,)]


def test_a_batch_that_was_begun_before_is_counted_as_it_was_written(house):
    """Its process was killed after some targets were committed: the retry requests only the others."""
    dave, erin, nobody = (Target(ORG, name) for name in ("dave", "erin", "nobody"))
    house.see(dave, numbered(1, 3))
    house.see(erin, numbered(1, 2))
    with house.run_context() as (context, _):
        run_id = context.store.begin_run(NewRun(origin="command", host="here", pid=1, targets=3), house.now())
        order = sync.RunOptions(run_id=run_id)
        first = Batch(context, order, sync.CircuitBreaker(9)).settle_remaining([dave, nobody])
        asked = len(house.upstream.deliveries.entries())
        again = Batch(context, order, sync.CircuitBreaker(9)).settle_remaining([dave, erin, nobody])
    assert len(house.upstream.deliveries.entries()) == asked + 1
    assert dict(first.tally.verdicts) == {"changed": 1, "failed": 1}
    assert dict(again.tally.verdicts) == {"changed": 2, "failed": 1}
    assert again.tally.causes == first.tally.causes == {"62101": 1}
    assert again.tally.changes["baseline"] == len(house.state(dave)) + len(house.state(erin))
    assert again.tally.issues == first.tally.issues


def test_a_batch_that_was_begun_before_does_not_observe_an_unchanged_target_again(house):
    """A run observes a target once: verify counts the runs behind a span. Where another run may have, it asks again."""
    with house.run_context() as (context, _):
        began_at = house.now()
        run_id = context.store.begin_run(NewRun(origin="command", host="here", pid=1, targets=1), began_at, [ALICE])
        order = sync.RunOptions(run_id=run_id, began_at=began_at)
        for _ in range(2):
            settled = Batch(context, order, sync.CircuitBreaker(9)).settle_remaining([ALICE])
            assert dict(settled.tally.verdicts) == {"unchanged": 1}
        context.store.finish_run(run_id, "succeeded", settled.tally.sums(), house.now())
        assert house.rows("SELECT max(observations) FROM observation") == [(2,)]
        assert context.store.observed_by(run_id, began_at, [ALICE, BOB]) == {ALICE}
        other = context.store.begin_run(NewRun(origin="command", host="here", pid=1, targets=0), house.now())
        assert context.store.observed_by(run_id, began_at, [ALICE]) == set()
        context.store.finish_run(other, "succeeded", {}, house.now())
    assert list(verify(house.engine)) == []


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
def test_what_a_lost_process_writes_after_the_look_is_not_observed_again(house):
    """The look finds nothing of the run yet; then the lost process commits, and the answer here is stale."""
    with house.run_context() as (context, _):
        began_at = house.now()
        run_id = context.store.begin_run(NewRun(origin="command", host="here", pid=1, targets=1), began_at, [ALICE])
        order = sync.RunOptions(run_id=run_id, began_at=began_at)
        lost = [Batch(context, order, sync.CircuitBreaker(9))]

        def commit_meanwhile(connection, cursor, statement, *rest):
            if "observation.last_at >=" in statement and lost:
                assert dict(lost.pop().settle([ALICE]).tally.verdicts) == {"unchanged": 1}

        event.listen(house.engine, "after_cursor_execute", commit_meanwhile)
        settled = Batch(context, order, sync.CircuitBreaker(9)).settle_remaining([ALICE])
        event.remove(house.engine, "after_cursor_execute", commit_meanwhile)
        assert (lost, dict(settled.tally.verdicts)) == ([], {"stale": 1})
        context.store.finish_run(run_id, "succeeded", settled.tally.sums(), house.now())
    assert list(verify(house.engine)) == []


# Approval


def test_an_approval_requests_the_list_again_and_removes_what_was_held(house):
    house.see(ALICE, numbered(13, 41))
    house.sync(ALICE, held=1)
    house.see(ALICE, [flow(13, "other"), *numbered(14, 42)])
    report = house.sync(ALICE, by="Zoë", changed=1)
    assert report.status == "succeeded"
    assert house.state(ALICE) == {str(number) for number in range(13, 43)}
    made = "SELECT approved_by, removed, added, renamed FROM change_set WHERE version = 3"
    assert house.rows(made) == [("Zoë", 12, 1, 1)]
    assert house.rows("SELECT held_since FROM target WHERE user_id = 'alice'") == [(None,)]
    assert list(held_sets(house.engine)) == []
    house.sync(ALICE, unchanged=1)
    house.check()


def scope(house: House, target: Target, first: int, last: int) -> dict[Target, str]:
    (fence,) = Store(house.engine).fences([target])
    return {target: held_set(target, fence.held_since, map(str, range(first, last + 1))).scope}


def test_an_approval_of_a_hold_that_has_ended_does_not_cover_the_same_set_held_again(held):
    ended = scope(held, ALICE, 1, 12)
    held.see(ALICE, numbered(1, 40))
    held.sync(ALICE, unchanged=1)
    held.see(ALICE, numbered(13, 40))
    held.sync(ALICE, held=1)
    report = held.sync(ALICE, by="Zoë", scopes=ended, held=1)
    assert code(scope(held, ALICE, 1, 12)[ALICE]) in report.tally.issues[0].issue.message
    assert held.state(ALICE) == {str(number) for number in range(1, 41)}
    held.sync(ALICE, by="Zoë", scopes=scope(held, ALICE, 1, 12), changed=1)
    held.check()


def test_a_hold_that_grew_and_shrank_again_is_the_same_hold(held):
    shown = scope(held, ALICE, 1, 12)
    held.see(ALICE, numbered(14, 40))
    held.sync(ALICE, held=1)
    held.sync(ALICE, by="Zoë", scopes=shown, held=1)
    held.see(ALICE, numbered(13, 40))
    held.sync(ALICE, held=1)
    held.sync(ALICE, by="Zoë", scopes=shown, changed=1)
    held.check()


def test_an_approval_removes_nothing_where_the_held_set_grows_meanwhile(held):
    """The set is compared under the lock under which the removal is written."""
    held.see(ALICE, numbered(31, 40))
    hanging = held.fault("delay", ALICE, seconds=0.5, times=1)
    with ThreadPoolExecutor(1) as thread:
        approving = thread.submit(held.run, ALICE, by="Zoë", scopes=scope(held, ALICE, 1, 12))
        assert hanging.reached.wait(SAFETY_NET_SECONDS)
        held.sync(ALICE, held=1)
        report = approving.result(SAFETY_NET_SECONDS)
    assert dict(report.tally.verdicts) == {"stale": 1}
    assert held.state(ALICE) == {str(number) for number in range(1, 41)}
    assert held.rows("SELECT approved_by FROM change_set WHERE approved_by IS NOT NULL") == []
    held.check()


# Stops, and a database that goes away


def test_nothing_is_written_for_a_target_that_a_stop_interrupts(house):
    hanging = house.fault("hang", ALICE, times=None)
    before = dump(house.engine)
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(house.run, ALICE)
        assert hanging.reached.wait(SAFETY_NET_SECONDS)
        house.stop.set()
        report = running.result(SAFETY_NET_SECONDS)
    assert (report.status, report.tally.interrupted, report.tally.settled) == ("aborted", 1, 0)
    assert written(before, dump(house.engine)) == set()
    house.stop.clear()
    house.upstream.clear_faults()
    house.sync(ALICE, BOB, unchanged=2)
    house.check(every_answer=True)


def test_a_database_that_goes_away_in_mid_run_ends_it_and_the_next_run_goes_on(house):
    house.see(ALICE, numbered(1, 41))
    impatient = threading.Event()
    impatient.set()
    hanging = house.fault("delay", BOB, seconds=0.2)
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(house.run, ALICE, BOB, store=Store(house.engine, impatient))
        assert hanging.reached.wait(SAFETY_NET_SECONDS)
        with gone(house.engine), pytest.raises(DatabaseUnreachable):
            running.result(SAFETY_NET_SECONDS)
    assert house.rows("SELECT status FROM sync_run ORDER BY id") == [("succeeded",), ("running",)]
    house.sync(ALICE, BOB, changed=1, unchanged=1)
    house.check()


def test_a_slot_that_was_taken_is_not_served_again(house):
    slot = {"origin": "schedule", "schedule": "plants", "scheduled_for": house.now()}
    calls = house.upstream.calls("flows")
    assert house.run(ALICE, **slot) is not None
    assert house.run(ALICE, **slot) is None
    assert house.upstream.calls("flows") == calls + 1
    house.check(every_answer=True)


def test_two_runs_at_once_over_the_same_targets_lose_and_double_nothing(house):
    targets = [ALICE, BOB]
    for _ in range(3):
        house.world.evolve()
        with ThreadPoolExecutor(3) as threads:
            reports = [each.result() for each in [threads.submit(house.run, *targets) for _ in range(3)]]
        assert {report.status for report in reports} == {"succeeded"}
    assert house.run(*targets).status == "succeeded"
    house.check()


def test_groups_that_are_written_beside_each_other_lose_and_double_nothing(make, monkeypatch):
    monkeypatch.setattr(fetching, "FLOWS_A_GROUP", 1)
    house = make(World(5, orgs=1, users=30, flows=100), concurrency=8)
    (org,) = house.world.orgs()
    targets = [Target(org, user) for user in house.world.users(org)]
    for _ in range(4):
        house.world.evolve()
        assert house.run(*targets).tally.verdicts.keys() <= {"changed", "unchanged"}
    house.check(every_answer=True)


def test_lists_are_decided_on_a_few_at_a_time_and_their_few_changes_written_together(make, monkeypatch):
    for module in ("fetching", "batch"):
        monkeypatch.setattr(f"etl.sync.{module}.FLOWS_A_GROUP", 9)
    house = make(concurrency=1)
    targets, sent = few(house, 6), []
    for target in targets:
        house.see(target, [flow("1", "renamed"), *numbered(2, 3)])
    event.listen(house.engine, "before_cursor_execute", lambda *given: sent.append(given[2].split()[:2]))
    house.sync(*targets, changed=6)
    assert sent.count(["UPDATE", "target"]) == 2, "in one transaction, and then for the organisation"
    assert sum(words == ["SELECT", "target_id,"] for words in sent) == 2, "six lists of three, nine at a time"


# A plan


def test_a_plan_writes_nothing_and_says_what_a_run_would_do(make):
    house = make()
    known = few(house, 6)
    house.see(ALICE, numbered(1, 40))
    house.sync(ALICE, changed=1)
    house.see(ALICE, numbered(13, 41))
    house.see(known[0], [])
    house.see(known[1], numbered(1, 4))
    house.fault("code", known[2], code=62103, times=None)
    house.see(BOB, numbered(1, 2))
    before = contents(house)
    with house.run_context() as (context, batches):
        outcomes: list[Outcome] = []
        tally = sync.plan(context, [*known, ALICE, BOB], batches, outcomes.extend)
    assert contents(house) == before
    assert dict(tally.verdicts) == {"changed": 3, "held": 1, "failed": 1, "unchanged": 3}
    planned = {(outcome.fence.target, outcome.verdict) for outcome in outcomes}
    assert {(BOB, "changed"), (ALICE, "held"), (known[0], "changed"), (known[2], "failed")} <= planned
    report = house.sync(*known, ALICE, BOB, changed=3, held=1, failed=1, unchanged=3)
    issues = {outcome.issue.message for outcome in outcomes if outcome.issue}
    assert issues == {problem.issue.message for problem in report.tally.issues}
    house.check()


def contents(house: House) -> object:
    """The bytes of the database file, or what is in the tables of the server."""
    if house.engine.dialect.name == "sqlite":
        return Path(str(make_url(house.url).database)).read_bytes()
    return dump(house.engine), house.rows("SELECT * FROM sync_run"), house.rows("SELECT xmin::text FROM target")
