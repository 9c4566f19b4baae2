"""An organisation's directory beside its users' lists: what the digest, the terminal and the page say of both."""

from __future__ import annotations

import datetime as dt
import re
from collections import Counter
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, event

from etl.cli.lists import what_happened
from etl.database import reading
from etl.domain.model import Flow, Target
from etl.report import health
from etl.report.conditions import Condition
from etl.report.listings import CHANGES, EVENTS, UNLISTED
from etl.web.labels import target_path, workflow_path
from etl.web.server import HttpServer
from tests.support.browser import get, rows, site
from tests.support.builders import flow
from tests.support.run_history import ANN, BOB, RunHistory
from tests.support.trails import ANN as HOUSE_ANN
from tests.support.trails import BEN as HOUSE_BEN
from tests.support.trails import House

DIRECTORY = Target("o1", "")
KINDS = ("disappeared", "removed")


def in_directory(*numbers: int) -> list[Flow]:
    return [Flow(str(number), "map", None, None) for number in numbers]


@pytest.fixture
def history(engine: Engine) -> RunHistory:
    """2 is taken from everybody, 3 is deleted, and nobody ever sees 9."""
    history = RunHistory(engine)
    history.run({ANN: [flow(1), flow(2), flow(3)], BOB: [flow(1), flow(2)], DIRECTORY: in_directory(1, 2, 3, 9)})
    for _ in range(2):  # that they were without it at one moment is known from the second on
        history.run({ANN: [flow(1)], BOB: [flow(1)], DIRECTORY: in_directory(1, 2, 9)})
    return history


@pytest.fixture
def server(history: RunHistory) -> Iterator[HttpServer]:
    with site(history.engine, now=dt.datetime.now(dt.UTC)) as running:
        yield running


def text_of(html: str, table: str) -> list[str]:
    """The rows of a table, as text."""
    body = html.partition(f'<table id="{table}"')[2].partition("<tbody>")[2].partition("</tbody>")[0]
    shown = (" ".join(re.sub("<[^>]*>", " ", row).split()) for row in body.split("</tr>"))
    return [row for row in shown if row]


def test_the_digest_tells_the_directory_from_users_and_what_is_still_in_it(history: RunHistory) -> None:
    *_, second, third = (run.id for run in history.unnotified())
    assert history.lines(second, KINDS) == {
        "removed": [
            "o1 2 map, cycle: day (2 users)",
            "o1 3 map, cycle: day (ann)",
            "o1 3 map (directory)",
        ],
    }
    assert history.lines(third, KINDS) == {
        "disappeared": [
            "o1 2 map, seen by 2 users before: gone from every list, still in the directory",
            "o1 3 map, seen by 1 user before: gone from every list, and not in the directory",
        ],
    }


def test_the_terminal_says_the_same(history: RunHistory) -> None:
    assert [what_happened(event) for event in EVENTS.rows(history.engine)] == [
        "gone from every list, still in the directory, cycle day",
        "gone from every list, and not in the directory, cycle day",
    ]
    changes = CHANGES.rows(history.engine, kind=["removed"], user="")
    assert [(change.flow_id, what_happened(change)) for change in changes] == [("3", "removed")]
    assert [row.flow_id for row in UNLISTED.rows(history.engine)] == ["2", "9"]


def test_a_directory_that_lacks_what_a_user_lists_twice_is_no_complete_witness(history: RunHistory) -> None:
    def said() -> list[str]:
        return [each.summary for each in conditions_of(history.engine) if each.code == "directory_incomplete"]

    told = []
    for numbers, listed in (((9,), (1,)), ((9,), (1,)), ((9,), (1, 4)), ((9,), (1, 4)), ((1, 4), (1, 4))):
        history.run({ANN: [flow(each) for each in listed], BOB: [flow(1)], DIRECTORY: in_directory(*numbers)})
        told.append([each.removeprefix("The directory of o1 lacks ") for each in said()])
    assert told == [
        [],
        ["1 workflow that users list, such as 1 (of ann)"],
        ["1 workflow that users list, such as 1 (of ann)"],
        ["2 workflows that users list, such as 1 (of ann), 4 (of ann)"],
        [],
    ]


def test_of_what_a_directory_lacks_all_is_counted_and_what_most_users_list_is_named(engine: Engine) -> None:
    history = RunHistory(engine)
    lists = {ANN: [flow(each) for each in range(1, 31)], BOB: [flow(each) for each in range(20, 25)]}
    for _ in range(2):
        history.run({**lists, DIRECTORY: in_directory(1, 2)})
    (said,) = (each for each in conditions_of(engine) if each.code == "directory_incomplete")
    lacks = "The directory of o1 lacks 28 workflows that users list, such as 20 (of ann), 21 (of ann), 22 (of ann)"
    assert (said.summary, said.subjects) == (lacks, 28)
    with site(engine, now=dt.datetime.now(dt.UTC)) as server:
        assert [lacks in get(server, "/unlisted", org=org).text for org in ("", "o1", "o2")] == [True, True, False]


def test_a_user_who_is_not_heard_proves_no_directory_incomplete(engine: Engine) -> None:
    """It may have been deleted since."""
    history = RunHistory(engine)
    for _ in range(2):
        history.run({ANN: [flow(1)], BOB: [flow(2)], DIRECTORY: in_directory(1, 2)})
    for _ in range(3):
        history.run({ANN: [flow(1)], BOB: "62101", DIRECTORY: in_directory(1)})
    assert "directory_incomplete" not in {each.code for each in conditions_of(engine)}


def conditions_of(engine: Engine) -> list[Condition]:
    return health.read(engine, [], dt.datetime.now(dt.UTC)).conditions()


def test_what_the_directory_said_of_an_event_is_looked_up_by_the_workflow(history: RunHistory) -> None:
    """Not version by version: a directory may have a new one each hour for years."""
    with reading(history.engine) as connection:
        if history.engine.dialect.name == "sqlite":
            asked = "EXPLAIN QUERY PLAN SELECT in_directory FROM org_workflow_event"
            plan = [row[-1] for row in connection.exec_driver_sql(asked)]
            assert "SEARCH c USING INDEX ix_workflow_change_directory (flow_id=?)" in plan
        else:
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
            plan = [
                row[0].strip()
                for row in connection.exec_driver_sql("EXPLAIN SELECT in_directory FROM org_workflow_event")
            ]
            assert "Index Cond: (flow_id = e.flow_id)" in plan


def test_targets_without_a_directory_take_no_statement_more_where_others_have_one(engine: Engine) -> None:
    """In a quiet run, and in a look at the health after it."""
    house, directory = House(engine), Target("o9", "")
    house.upstream.lists[directory] = in_directory(*range(1, 7))
    lists = {"plants": [HOUSE_ANN, HOUSE_BEN], "wind": [Target("o9", "eve")]}
    house.upstream.lists[lists["wind"][0]] = [flow(1)]

    def sent() -> Counter[str]:
        statements: list[str] = []
        event.listen(engine, "before_cursor_execute", listen := lambda *given: statements.append(given[2]))
        house.serve(lists, org=HOUSE_ANN.org_id)
        health.read(engine, [], dt.datetime.now(dt.UTC))
        event.remove(engine, "before_cursor_execute", listen)
        return Counter(statements)

    house.serve(lists)
    alone = sent()
    lists["wind"].append(directory)
    house.serve(lists, asked_as={"o9": "eve"})
    assert sent() == alone


def test_the_page_shows_the_directory_as_a_target_and_what_no_user_sees(server: HttpServer) -> None:
    page = get(server, "/unlisted", org="=o1").text
    assert [row.split()[:3] for row in text_of(page, "unlisted")] == [["o1", "2", "map"], ["o1", "9", "map"]]
    assert "(directory)" in text_of(page, "directories")[0]
    assert [row["flow_id"] for row in rows(server, "/unlisted", find="9")] == ["9"]
    assert "No directory is asked for there" in get(server, "/unlisted", org="=o2").text
    assert "2 more workflows" in get(server, "/workflows", org="=o1").text
    events = text_of(get(server, "/events").text, "story")
    assert ["still in the directory" in row for row in events] == [False, True]
    assert ["and not in the directory" in row for row in events] == [True, False]
    assert "(directory)" not in " ".join(events), "it is no user behind an event"
    for asked in ("=", "(directory)"):
        shown = text_of(get(server, "/targets", user=asked).text, "targets")
        assert [row.split()[1] for row in shown] == ["(directory)"]
        assert [row["flow_id"] for row in rows(server, "/trail", user=asked, kind="removed")] == ["3"]
    target = get(server, target_path(*DIRECTORY))
    assert "<h1>The directory</h1>" in target.text
    assert [row.split()[0] for row in text_of(target.text, "workflows")] == ["1", "2", "9"]
    assert "none" not in " ".join(text_of(target.text, "workflows")), "it says no cycle"
    unseen = get(server, workflow_path("9", "o1")).text
    assert "no user’s list ever showed it" in unseen
    assert "(directory)" in " ".join(text_of(unseen, "seen"))
    assert "Who sees it" not in unseen, "it is nobody"
