"""Query plans of PostgreSQL for changes: a plan that suits a small trail must not read all of a large one."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from sqlalchemy import Engine, event, text

from etl.database import reading
from etl.report import trail_page
from etl.report.asof import Way, flows_as_of
from etl.report.listings import CHANGES
from tests.support.builders import flow
from tests.support.run_history import ANN, BOB, RunHistory

VIEWS = {
    "list_change": "org_id = 'o1' AND kind IN ('added', 'removed')",
    "list_history": "org_id = 'o1' AND from_kind = 'added'",
}

pytestmark = pytest.mark.parametrize("dialect", ["postgresql"])


@pytest.fixture
def plans(engine: Engine) -> Iterator[dict[str, str]]:
    """How each statement that asks for changes of given change sets finds them, where it has to use indexes."""
    found: dict[str, str] = {}

    def explain(connection: Any, cursor: Any, statement: str, parameters: Any, *_: object) -> None:
        if re.search("workflow_change|list_change|list_history", statement):
            with connection.connection.driver_connection.cursor() as planner:
                planner.execute("SET enable_seqscan = off")
                planner.execute(f"EXPLAIN {statement}", parameters)
                found[statement] = "\n".join(line for (line,) in planner)

    event.listen(engine, "before_cursor_execute", explain)
    yield found
    event.remove(engine, "before_cursor_execute", explain)


def test_no_condition_on_the_kind_of_a_change_reaches_an_index(engine: Engine, plans: dict[str, str]) -> None:
    """PostgreSQL 18 prices that as a scan that skips, and reads whole partitions instead."""
    room = RunHistory(engine)
    room.run({ANN: [flow(1), flow(2)], BOB: [flow(1), flow(2)]})
    run_id = room.run({ANN: [flow(1, cycle="H"), flow(3)], BOB: [flow(1, name="other"), flow(3)]})
    assert {"cycle_changed", "removed", "added", "renamed"} <= room.lines(run_id).keys()
    assert [*CHANGES.rows(engine, org="o1", kind=("removed", "cycle_changed"))]
    for way in get_args(Way):
        assert [*flows_as_of(engine, dt.datetime.now(dt.UTC) - dt.timedelta(minutes=18.5), org="o1", way=way)]
    with reading(engine) as connection:
        assert trail_page.newest(connection, org="o1", kind=("removed",), limit=10)
        for view, condition in VIEWS.items():
            assert connection.execute(text(f"SELECT * FROM {view} WHERE {condition}")).all()
    conditions = [line for plan in plans.values() for line in plan.splitlines() if "Index Cond" in line]
    assert len([line for line in conditions if "change_set_id" in line]) > len(plans)
    assert not [statement for statement, plan in plans.items() if re.search(r"Index Cond: .*\bkind\b", plan)]
