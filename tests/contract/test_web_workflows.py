"""The pages of the workflows over HTTP: an organisation's list at any time, and one workflow with its history."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections import Counter

import pytest
from sqlalchemy import select, text

from etl.database import reading
from etl.report import Report, workflow_page
from etl.report.listings import FLOWS, WORKFLOWS
from etl.report.rows import OrgWorkflow, view
from etl.web.labels import COVERAGE, workflow_path
from etl.web.page import PAGE_ROWS
from tests.support.browser import HOSTILE_ORG, NOW
from tests.support.builders import after
from tests.support.month_pages import engine, get, month, rows, server

__all__ = ["engine", "month", "server"]


def test_an_organisations_list_is_that_of_the_view(server, engine) -> None:
    seen = view("org_workflow", OrgWorkflow)
    with reading(engine) as connection:
        known = connection.execute(select(seen).where(seen.c.org_id == "o1").order_by(seen.c.flow_id)).all()
        assert WORKFLOWS.page(connection, 9999, org="=o1") == known
    assert {row.users_in_gap for row in known} == {0, 1}
    found = rows(server, "/workflows", org="=o1")
    assert [(row["flow_id"], row["users"], row["editors"]) for row in found] == [
        (row.flow_id, row.users, row.editors) for row in known
    ]
    assert f"{len(known)} workflows that users see now" in get(server, "/workflows", org="o1").text


@pytest.mark.parametrize("at", [after(days=9), after(days=10, hours=6), after(days=21), after(days=37)], ids=str)
def test_an_organisations_list_at_a_moment_is_that_of_the_command_with_the_users_of_that_moment(
    server, engine, at
) -> None:
    for org in ("o1", "o2", HOSTILE_ORG.org_id):
        known = list(Report(engine).workflows_as_of(at, org=org))
        found = rows(server, "/workflows", org="=" + org, as_of=at.isoformat())
        assert [(row["flow_id"], row["cycle"], row["from_kind"], row["proven_for_all"]) for row in found] == [
            (state.flow_id, state.cycle, state.from_kind, state.proven_for_all) for state in known
        ]
        lists = Counter(row.flow_id for row in Report(engine).flows_as_of(at, org=org))
        page = get(server, "/workflows", org="=" + org, as_of=at.isoformat()).text
        shown = re.findall(r'<td data-label="Users" class="number">(\d+)<', page)
        assert list(map(int, shown)) == [lists[state.flow_id] for state in known[:PAGE_ROWS]]
        for coverage, number in Counter(row.coverage for row in Report(engine).targets_as_of(at, org=org)).items():
            assert f"{number} {'was' if number == 1 else 'were'} {COVERAGE[coverage]}" in page


def test_a_list_at_a_moment_is_joined_from_the_lists_of_few_users_only(server, monkeypatch) -> None:
    then = {"org": "=o2", "as_of": after(days=20).isoformat()}
    assert len(rows(server, "/workflows", **then, user="a")) == 15
    monkeypatch.setattr(workflow_page, "LISTS_THEN", 1)
    assert len(rows(server, "/workflows", **then, user="dav")) == 12
    refused = get(server, "/workflows", **then, user="a")
    assert (refused.status_code, "name one" in refused.text) == (400, True), "carol and dave"


def test_two_lists_of_an_organisation_are_compared(server, engine) -> None:
    old, new = after(days=15), after(days=37)
    before, then = ({row.flow_id: row for row in Report(engine).workflows_as_of(at, org="o1")} for at in (old, new))
    moments = {"since": old.isoformat(), "as_of": new.isoformat()}
    found = rows(server, "/workflows", org="=o1", table="difference", **moments)
    kinds = {kind: {row["flow_id"] for row in found if row["kind"] == kind} for kind in ("appeared", "disappeared")}
    assert kinds == {"appeared": then.keys() - before.keys(), "disappeared": before.keys() - then.keys()}
    assert all(kinds.values())
    for row in found:
        sides = [side.get(row["flow_id"]) for side in (before, then)]
        assert [row["old_cycle"], row["new_cycle"]] == [side and side.cycle for side in sides]
        assert [row["old_name"], row["new_name"]] == [side and side.flow_name for side in sides]
    page = get(server, "/workflows", org="=o1", **moments).text
    assert page.count('<span class="kind kind-disappeared">') == len(kinds["disappeared"])
    assert "the first look was at" in get(server, "/workflows", org="=o1", since="2026-01-01").text


def test_workflows_are_found_by_name_id_user_cycle_and_by_who_may_edit_them(server) -> None:
    def found(**query: object) -> list[str]:
        return [row["flow_id"] for row in rows(server, "/workflows", **query)]

    every = rows(server, "/workflows", org="=o1")
    assert found(org="=o1", find="PUMP_3") == [row["flow_id"] for row in every if "pump_3" in row["flow_name"]]
    assert found(org="=o1", find="13") == [row["flow_id"] for row in every if "13" in row["flow_id"] + row["flow_name"]]
    assert found(org="=o1", cycle="W") == [row["flow_id"] for row in every if row["cycle"] == "W"]
    assert found(org="=o1", which="single") == [row["flow_id"] for row in every if row["users"] == 1]
    assert found(org="=o2", which="uneditable") == [
        row["flow_id"] for row in rows(server, "/workflows", org="=o2") if not row["editors"]
    ]
    assert "1" in found(org="=o1", user="alice")
    assert "1" not in found(org="=o1", user="=bob")
    then = {"org": "=o1", "as_of": after(days=20).isoformat()}
    assert "1" in found(**then, user="ALI")
    assert "1" not in found(**then, user="=bob")
    assert found(**then, user="=nobody") == []


def test_the_cycles_are_counted_whichever_is_chosen(server) -> None:
    def counts(page: str) -> list[str]:
        facets = page.partition('<ul class="facets">')[2].partition("</ul>")[0]
        return re.findall(r'class="number">(\d+)<', facets)

    every = rows(server, "/workflows", org="=o1")
    numbers = counts(get(server, "/workflows", org="o1").text)
    assert sum(map(int, numbers)) == len(every)
    assert counts(get(server, "/workflows", org="o1", cycle="W").text) == numbers


def test_an_organisation_is_chosen_by_a_part_of_its_id(server) -> None:
    page = get(server, "/workflows").text
    assert "choose it" in page
    assert all(f">{org}<" in page for org in ("o1", "o2", "o3"))
    assert "that users see now" in get(server, "/workflows", org="3").text, "the only one with a 3"
    assert "No organisation has such an id" in get(server, "/workflows", org="o7").text
    assert get(server, "/workflows", format="csv").status_code == 400


def test_the_files_of_a_workflow_are_the_reports(server, engine) -> None:
    path = workflow_path("5", "o2")
    states = list(Report(engine).history(flow="5", org="o2"))
    assert [(row["user_id"], row["cycle"], row["from_kind"]) for row in rows(server, path)] == [
        (state.user_id, state.cycle, state.from_kind) for state in states
    ]
    for at in (after(days=9), after(days=15), after(days=37)):
        known = [(row.user_id, row.coverage) for row in Report(engine).flows_as_of(at, org="o2", flow="5")]
        found = rows(server, path, table="seen", as_of=at.isoformat())
        assert [(row["user_id"], row["coverage"]) for row in found] == known
    with reading(engine) as connection:
        kinds = connection.execute(
            text("SELECT kind FROM org_workflow_event WHERE org_id = 'o2' AND flow_id = '5' ORDER BY kind")
        ).scalars()
        assert sorted(row["kind"] for row in rows(server, path, table="story")) == list(kinds) != []


@pytest.mark.parametrize(("org", "flow"), [("o1", "40"), ("o1", "136"), ("o2", "5"), ("o2", "13")])
def test_who_sees_a_workflow_now_is_who_sees_it_as_of_now(engine, org, flow) -> None:
    with reading(engine) as connection:
        now = FLOWS.page(connection, 9999, org="=" + org, flow="=" + flow)
        then = connection.execute(workflow_page.seen_by(connection, org, flow, NOW)).all()
    shown = ("user_id", "flow_name", "cycle", "editable", "first_listed_at", "last_observed_at")
    now, then = ([[getattr(row, column) for column in shown] for row in found] for found in (now, then))
    assert now == then != []


def test_the_timeline_draws_gaps_that_ended_and_gaps_that_did_not(server) -> None:
    page = get(server, workflow_path("5", "o2")).text
    figure = json.loads(re.search(r'id="life-figure">(.*?)</script>', page)[1])
    (silence,) = (trace for trace in figure["data"] if trace["name"] == "nobody looked")
    shown = {(row, said[2]) for row, said in zip(silence["y"], silence["customdata"], strict=True)}
    assert ("dave", "not ended") in shown
    assert ("carol", "changed inside") in shown
    assert ("dave", "the same before and after") in shown
    ends = [dt.datetime.fromisoformat(said[1]) for said in silence["customdata"] if said[2] == "not ended"]
    assert ends == [dt.datetime.fromisoformat("2026-04-08 17:00:00")], "an open silence lasts until now"


REFUSED = {
    workflow_path("5", "o3"): 404,
    workflow_path("..", "o1"): 404,
    "/workflow": 404,
    workflow_path("5", "o1") + "?as_of=gestern": 400,
    workflow_path("5", "o1") + "?format=csv&table=none": 400,
    "/workflows?as_of=gestern": 400,
    "/workflows?org=o1&format=xml": 400,
    "/workflows?org=o1&which=single&as_of=2026-04-01": 400,
    "/workflows?org=o1&as_of=2026-04-01&since=2026-04-02": 400,
}


def test_an_invalid_question_about_workflows_is_refused_in_one_sentence(server) -> None:
    for path, status in REFUSED.items():
        answer = get(server, path)
        assert (answer.status_code, 'role="alert"' in answer.text) == (status, True), path
