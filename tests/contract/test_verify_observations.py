"""A span that no hash covers yet counts exactly the runs with requests in its time, on both databases."""

from __future__ import annotations

import datetime as dt
import sys

import pytest
from sqlalchemy import Engine

from etl.store import NewRun
from etl.verify.observations import Between, Count, RunGroup, RunTime, listed_by, observations
from tests.support.builders import flow, numbered
from tests.support.intruder import tamper
from tests.support.questions import now
from tests.support.trails import ANN, BEN, CAT, House, die

START = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
AGO, NEVER = dt.datetime.min.replace(tzinfo=dt.UTC), dt.datetime.max.replace(tzinfo=dt.UTC)


@pytest.fixture
def house(engine: Engine) -> House:
    return House(engine)


def found(house: House) -> list[str]:
    return [str(finding) for finding in observations(house.engine)]


def test_observations_of_a_running_and_of_a_dead_run_may_count(house: House) -> None:
    house.serve({"plants": [ANN]})
    run_id = house.store.begin_run(NewRun(origin="command", host="h", pid=1, targets=1), now(), [ANN])
    assert run_id is not None
    assert found(house) == []
    die(house)
    house.serve({"plants": [ANN, BEN], "wind": [ANN]})
    assert found(house) == []


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_nothing_is_compared_while_a_run_cannot_be_read(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["etl.verify.observations"], "_AT_ONCE", 1)
    for _ in range(3):
        house.serve({"plants": [ANN, BEN, CAT]})
    tamper(house.engine, "UPDATE sync_run SET scope = '{}' WHERE id = 2")
    assert found(house) == []


def test_a_user_counts_from_the_membership_that_his_run_saw(house: House) -> None:
    house.serve({"plants": [BEN]})
    house.serve({"plants": [ANN, BEN]})
    house.serve({"plants": [BEN]})
    house.serve({"wind": [ANN, CAT]})
    house.upstream.lists[BEN] = [*numbered(1, 6), flow(7)]
    house.serve({"plants": [ANN, BEN], "wind": [ANN, CAT]})
    house.serve({"plants": [ANN, BEN], "wind": [ANN, CAT]}, org="o1")
    assert found(house) == []


# ---------------------------------------------------------------------------------------------------------- counting


def at(minutes: float) -> dt.datetime:
    return START + dt.timedelta(minutes=minutes)


def run(seen: int, start: float, end: float) -> RunTime:
    return RunTime(seen, at(start), at(end), certain=True)


def span(first: float, last: float, before: float | None = None, after: float | None = None) -> Between:
    return Between(at(first), at(last), AGO if before is None else at(before), NEVER if after is None else at(after))


NAMED = {"schedules": ["plants"], "org_id": None, "user_id": None}


def slowly(runs: list[RunTime], of: Between, listed: list[tuple[int, int]]) -> Count:
    met = [each for each in runs if each.meets(of) and any(a <= each.seen < b for a, b in listed)]
    return Count(sum(each.meets_no_other(of) for each in met), len(met))


def test_runs_are_counted_as_if_one_went_through_them_all() -> None:
    """Runs that overlap, one that lasts for hours, memberships that come and go; and a clock that went back."""
    steady = [run(n // 4, 15 * n, 15 * n + (200 if n == 7 else 3 + n % 3 * 9)) for n in range(40)]
    back = [*steady, *(run(20 + n, 15 * n, 15 * n + 2) for n in range(5))]
    spans = [span(a, b, before, after) for a in range(0, 700, 17) for b in range(a, 720, 83)
             for before in (None, a - 1, a - 60) for after in (None, b + 1, b + 60)]  # fmt: skip
    for runs in (steady, back, []):
        group = RunGroup(NAMED, runs, certain=True)
        for listed in ([(0, 2**63)], [(0, 3), (5, 8)], [(4, 25)], []):
            for each in spans:
                assert group.count(each, listed) == slowly(runs, each, listed)


def test_a_user_is_listed_while_any_of_the_schedules_lists_him() -> None:
    moves = [(1, "a", True), (3, "b", True), (4, "a", False), (6, "b", False), (7, "c", True), (9, "a", True)]
    expected = {"ab": [(1, 6), (9, 2**63)], "c": [(7, 2**63)], "x": []}
    assert {schedules: list(listed_by(moves, frozenset(schedules))) for schedules in expected} == expected
