"""Events, runs, the search, and the tables that are files: over HTTP, on both databases."""

from __future__ import annotations

import json
import re

import msgspec
import pytest
from sqlalchemy import Engine, text

from etl.database import reading
from etl.report import Report, listings
from tests.support.builders import after
from tests.support.month_pages import engine, get, month, rows, server

__all__ = ["engine", "month", "server"]


def ids(engine: Engine, condition: str) -> list[int]:
    with reading(engine) as connection:
        chosen = f"SELECT event_id FROM org_workflow_event WHERE {condition} ORDER BY event_id DESC"
        return list(connection.execute(text(chosen)).scalars())


EVENTS = [
    ({}, "1 = 1"),
    ({"org": "=o2"}, "org_id = 'o2'"),
    ({"org": "2", "kind": "renamed"}, "org_id = 'o2' AND kind = 'renamed'"),
    ({"flow": "=5"}, "flow_id = '5'"),
    ({"name": "PUMP_2"}, "old_name LIKE '%pump_2%' OR new_name LIKE '%pump_2%'"),
    ({"org": "=nobody"}, "1 = 0"),
]


def test_events_are_those_of_the_view(server, engine) -> None:
    for filters, condition in EVENTS:
        known = ids(engine, condition)
        assert [row["event_id"] for row in rows(server, "/events", **filters)] == known, filters
        assert bool(known) == (condition != "1 = 0")


def test_events_of_a_time_begin_with_it_and_end_before_it(server) -> None:
    since, until = after(days=14), after(days=20)
    found = rows(server, "/events", since=since.isoformat(), until=until.isoformat())
    times = [row["observed_at"] for row in found]
    assert min(times) == since.isoformat().replace("+00:00", "Z")
    assert max(times) < until.isoformat()


def test_the_users_behind_an_event_are_a_step_away(server, engine) -> None:
    page = get(server, "/events", org="=o1", kind="disappeared").text
    known = ids(engine, "org_id = 'o1' AND kind = 'disappeared'")
    assert page.count("<summary>1 list</summary>") == len(known) > 1
    assert ">bob<" in page.partition('<ul class="behind">')[2].partition("</ul>")[0]


def test_an_event_has_a_page_with_the_lists_behind_it_also_as_a_file(server, engine) -> None:
    number = ids(engine, "org_id = 'o1' AND kind = 'disappeared'")[0]
    page = get(server, f"/events/{number}").text
    assert ">bob<" in page.partition('<table id="lists">')[2]
    assert [row["user_id"] for row in rows(server, f"/events/{number}")] == ["bob"]
    assert {path: get(server, path).status_code for path in ("/events/0", "/events/x", f"/events/{9**30}")} == {
        "/events/0": 404,
        "/events/x": 404,
        f"/events/{9**30}": 404,
    }


def test_users_of_an_event_of_many_are_a_page_away(server, engine, monkeypatch) -> None:
    monkeypatch.setattr("etl.web.app._FEW", 0)
    number = ids(engine, "kind = 'disappeared'")[0]
    assert f'<a href="/events/{number}">whose</a>' in get(server, "/events", kind="disappeared").text


def test_the_first_page_tells_what_happened_last_once_however_many_saw_it(server, engine) -> None:
    told = get(server, "/").text.partition('<table id="latest-events"')[2].partition("</table>")[0]
    with reading(engine) as connection:
        last = "SELECT flow_id, users_after FROM org_workflow_event ORDER BY event_id DESC LIMIT 10"
        known = connection.execute(text(last)).all()
    assert re.findall(r"<th [^>]*>.*?<bdi>(.*?)</bdi>", told, re.DOTALL) == [row.flow_id for row in known]
    assert max(row.users_after for row in known) > 1, "several users see one of them"


def test_a_run_shows_its_failures_by_cause(server, engine) -> None:
    partial = [run.id for run in Report(engine).runs() if run.status == "partial"]
    assert [row["id"] for row in rows(server, "/runs", status="partial")] == partial != []
    page = get(server, f"/runs/{partial[0]}").text
    causes = page.partition('<table id="causes">')[2].partition("</table>")[0]
    assert causes.count("<tr>") - 1 == 2, "held and 62109"
    issues = [(row["user_id"], row["verdict"]) for row in rows(server, f"/runs/{partial[0]}", table="issues")]
    assert issues == [("alice", "held"), ("dave", "failed")]
    assert "bob" in [row["user_id"] for row in rows(server, f"/runs/{partial[0]}")]


def test_a_search_finds_by_part_and_puts_the_whole_id_first(server) -> None:
    page = get(server, "/search", q="2").text
    organisations = page.partition('<table id="organisations">')[2].partition("</table>")[0]
    assert ">o2<" in organisations
    assert ">o1<" not in organisations
    workflows = page.partition('<table id="workflows">')[2].partition("</table>")[0]
    assert workflows.index(">2<") < workflows.index(">12<")
    assert "Nothing has “zzz”" in get(server, "/search", q="zzz").text
    assert "At most" not in get(server, "/search").text, "nothing was asked"


EVERY_KIND = {"kind": listings.CHANGES.filters["kind"].known}
FILES = [
    ("/trail", {"since": "", **EVERY_KIND}, listings.CHANGES, {"newest_first": True}),
    (
        "/trail",
        {"since": "", "org": "2", "kind": "renamed"},
        listings.CHANGES,
        {"org": "2", "kind": ["renamed"], "newest_first": True},
    ),
    ("/held", {"user": "ali"}, listings.HELD_WORKFLOWS, {"user": "ali"}),
    ("/held", {"user": "=ali"}, listings.HELD_WORKFLOWS, {"user": "=ali"}),
    ("/gaps", {}, listings.GAPS, {}),
    ("/events", {"org": "=o2"}, listings.EVENTS, {"org": "=o2", "newest_first": True}),
    ("/runs", {}, listings.RUNS, {}),
    ("/targets", {"show": "problems"}, listings.TARGETS, {"show": "problems"}),
    ("/workflows", {"org": "=o1"}, listings.WORKFLOWS, {"org": "=o1"}),
]


@pytest.mark.parametrize(("path", "query", "listing", "asked"), FILES)
def test_every_table_is_a_file_with_the_columns_and_the_rows_of_its_list(server, engine, path, query, listing, asked):
    known = json.loads(msgspec.json.encode([row._asdict() for row in listing.rows(engine, **asked)]))
    assert rows(server, path, **query) == known
    assert bool(known) == (asked.get("user") != "=ali")


def test_a_missing_run_is_reported(server) -> None:
    for path in ("/runs/99999", "/runs/x", "/runs/" + "9" * 30):
        assert get(server, path).status_code == 404, path
    assert get(server, "/runs", status="odd").status_code == 400
