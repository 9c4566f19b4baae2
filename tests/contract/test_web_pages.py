"""The pages of events, runs, targets and workflows over HTTP: they agree with the report, on the page and as files."""

from __future__ import annotations

import asyncio
import csv
import datetime as dt
import io
import json
import re
from collections import Counter

import msgspec
import pytest
import requests
from sqlalchemy import Engine, select, text
from starlette.responses import StreamingResponse

from etl.database import reading
from etl.domain.diff import by_id, diff
from etl.domain.model import Flow, Target
from etl.report import listings, workflow_page
from etl.report.asof import flows_as_of, targets_as_of
from etl.report.listings import FLOWS, HISTORY, RUNS, STATES, WORKFLOWS
from etl.report.rows import COVERAGE_LABELS, Difference, OrgWorkflow, columns_of, view
from etl.web.labels import target_path, workflow_path
from etl.web.page import PAGE_ROWS, rows_file
from etl.web.server import HttpServer
from tests.support.browser import ALICE, BOB, CAROL, HOSTILE_NAME, HOSTILE_ORG, engine, get, month, rows, server
from tests.support.builders import after

__all__ = ["engine", "month", "server"]


# ------------------------------------------------------------------------------------------- events, runs, the search


def ids(engine: Engine, condition: str) -> list[int]:
    with reading(engine) as connection:
        chosen = f"SELECT event_id FROM org_workflow_event WHERE {condition} ORDER BY event_id DESC"
        return list(connection.execute(text(chosen)).scalars())


def test_the_users_behind_an_event_are_beside_it_and_on_its_page_and_in_its_file(server, engine, monkeypatch) -> None:
    known = ids(engine, "org_id = 'o1' AND kind = 'disappeared'")
    listed = get(server, "/events", org="=o1", kind="disappeared").text
    assert listed.count("<summary>1 list</summary>") == len(known) > 1
    assert ">bob<" in listed.partition('<ul class="behind">')[2].partition("</ul>")[0]
    assert ">bob<" in get(server, f"/events/{known[0]}").text.partition('<table id="lists">')[2]
    assert [row["user_id"] for row in rows(server, f"/events/{known[0]}")] == ["bob"]
    monkeypatch.setattr("etl.web.app._FEW", 0)
    listed = get(server, "/events", kind="disappeared").text
    assert f'<a href="/events/{known[0]}">whose</a>' in listed, "of an event of many"


def test_who_agreed_is_beside_an_event_and_where_nobody_did_the_command_to_copy(server, engine) -> None:
    (agreed, *_), (other, *_) = (ids(engine, f"acknowledged_at IS {null}") for null in ("NOT NULL", "NULL"))
    page = get(server, f"/events/{agreed}").text
    assert "CHG-&lt;1&gt;" in page
    assert "ada &lt;b&gt;" in page
    assert "nobody" not in page
    assert (
        f"<code>flowtrail ack --event {other} --by NAME --ticket TICKET</code>" in get(server, f"/events/{other}").text
    )
    trail = get(server, "/trail", org="=o2", kind="renamed", since="").text
    told = [("CHG-" in row, "nobody" in row) for row in trail.partition("<tbody>")[2].split("<tr>")[1:]]
    assert set(told) == {(True, False), (False, True)}


def test_the_first_page_tells_what_happened_last_once_however_many_saw_it(server, engine) -> None:
    told = get(server, "/").text.partition('<table id="latest-events"')[2].partition("</table>")[0]
    with reading(engine) as connection:
        last = "SELECT flow_id, users_after FROM org_workflow_event ORDER BY event_id DESC LIMIT 10"
        known = connection.execute(text(last)).all()
    assert re.findall(r"<th [^>]*>.*?<bdi>(.*?)</bdi>", told, re.DOTALL) == [row.flow_id for row in known]
    assert max(row.users_after for row in known) > 1, "several users see one of them"


def test_a_run_shows_its_failures_by_cause(server, engine) -> None:
    partial = [run.id for run in RUNS.rows(engine) if run.status == "partial"]
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
    (
        "/events",
        {"org": "2", "flow": "=5", "name": "NAME", "kind": "renamed"},
        listings.EVENTS,
        {"org": "2", "flow": "=5", "name": "NAME", "kind": ["renamed"], "newest_first": True},
    ),
    (
        "/events",
        {"since": after(days=14).isoformat(), "until": after(days=20).isoformat()},
        listings.EVENTS,
        {"since": after(days=14), "until": after(days=20), "newest_first": True},
    ),
    ("/events", {"acknowledged": "no"}, listings.EVENTS, {"acknowledged": "no", "newest_first": True}),
    ("/events", {"acknowledged": "yes"}, listings.EVENTS, {"acknowledged": "yes", "newest_first": True}),
    ("/runs", {}, listings.RUNS, {}),
    ("/targets", {"show": "problems"}, listings.TARGETS, {"show": "problems"}),
    ("/workflows", {"org": "=o1"}, listings.WORKFLOWS, {"org": "=o1"}),
]


@pytest.mark.parametrize(("path", "query", "listing", "asked"), FILES)
def test_every_table_is_a_file_with_the_columns_and_the_rows_of_its_list(server, engine, path, query, listing, asked):
    with reading(engine) as connection:
        found = listing.page(connection, 10**6, **asked)
    known = json.loads(msgspec.json.encode([row._asdict() for row in found]))
    assert rows(server, path, **query) == known
    assert bool(known) == (asked.get("user") != "=ali")


PAGES_OF_TWO_MOMENTS = ("/targets/o1/bob?", "/workflows?org=o1&")
ANSWERED = {
    404: [
        *("/nowhere", "/static/nothing.js", "/static/..%2Fapp.py", "/target", "/workflow"),
        *("/runs/99999", "/runs/x", "/runs/" + "9" * 30, "/events/0", "/events/x", f"/events/{9**30}"),
        *("/targets/o1/nobody", "/targets/o1/bob?expression=none"),
        *(workflow_path("no such", "o1"), workflow_path("5", "o3"), workflow_path("..", "o1")),
    ],
    400: [
        *("/?days=31", "/runs?status=odd"),
        *("/trail?since=gestern", "/trail?until=2026-02-30", "/trail?org=%00", "/trail?name=" + "x" * 2001),
        *("/trail?after=nonsense", "/trail?after=2026-03-01T00:00:00%2B00:00~" + "9" * 30 + "~added~1"),
        *("/targets?page=0", "/targets?page=x", "/targets?page=" + "1" * 2001, "/targets?as_of=2026-02-30"),
        *(f"/targets/o1/bob?{each}" for each in ("as_of=gestern", "format=xls", "page=0", "format=csv&table=none")),
        *(
            f"{of}table=difference&format=csv{when}"
            for of in PAGES_OF_TWO_MOMENTS
            for when in ("", "&since=2026-01-01")
        ),
        *(f"{of}as_of=2026-04-01&since=2026-04-02" for of in PAGES_OF_TWO_MOMENTS),
        *(f"{workflow_path('5', 'o1')}?{each}" for each in ("as_of=gestern", "format=csv&table=none")),
        *("/workflows?as_of=gestern", "/workflows?format=csv", "/workflows?org=o1&format=xml"),
        "/workflows?org=o1&as_of=2026-04-01&which=single",
    ],
    200: [
        "/trail?after=2026-03-01T00:00:00%2B00:00~" + "9" * 18 + "~added~1",
        *("/targets?page=100000", "/trail?kind=nothing"),
    ],
}


def test_an_invalid_question_is_refused_in_one_sentence(server) -> None:
    for status, paths in ANSWERED.items():
        for path in paths:
            answer = requests.get(server.url + path, timeout=30)
            assert (answer.status_code, answer.headers["Content-Type"]) == (status, "text/html; charset=utf-8"), path
            assert ('role="alert"' in answer.text) == (status != 200), path


# ------------------------------------------------------------------------------------------------------- the targets


MOMENTS = [after(days=9), after(days=10), after(days=15), after(days=20, hours=3), after(days=37), after(days=40)]


def flows_of(found: list[dict[str, object]]) -> list[Flow]:
    return [Flow(row["flow_id"], row["flow_name"], row["cycle"], row["editable"]) for row in found]


def known_list(engine: Engine, target: Target, at: dt.datetime | None) -> list[Flow]:
    whose = {"org": target.org_id, "user": target.user_id}
    found = FLOWS.rows(engine, **whose) if at is None else flows_as_of(engine, at, **whose)
    return [Flow(row.flow_id, row.flow_name, row.cycle, row.editable) for row in found]


@pytest.mark.parametrize("target", [ALICE, CAROL, HOSTILE_ORG], ids=["alice", "carol", "hostile"])
def test_the_list_of_a_target_is_the_reports_now_and_at_every_moment(server, engine, target) -> None:
    path = target_path(*target)
    whole = path if "?" not in path else path + "&x="
    assert flows_of(rows(server, whole)) == known_list(engine, target, None)
    for at in MOMENTS:
        assert flows_of(rows(server, whole, as_of=at.isoformat())) == known_list(engine, target, at), at


def test_the_difference_between_two_moments_is_what_their_lists_differ_in(server, engine) -> None:
    lists = {at: by_id(known_list(engine, BOB, at)) for at in MOMENTS}
    for since in MOMENTS[1:]:
        for at in {MOMENTS[2], MOMENTS[4]} - {each for each in MOMENTS if each < since}:
            query = {"since": since.isoformat(), "as_of": at.isoformat(), "table": "difference"}
            found = [(row["flow_id"], row["kind"]) for row in rows(server, target_path(*BOB), **query)]
            assert found == [(change.flow_id, change.kind) for change in diff(lists[since], lists[at])]


def test_a_csv_has_the_rows_of_the_json(server) -> None:
    query = {"as_of": "2026-03-20", "cycle": "D"}
    answer = get(server, target_path(*CAROL), format="csv", **query)
    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"
    assert answer.headers["Cache-Control"] == "no-store"
    found = list(csv.DictReader(io.StringIO(answer.text)))
    same = rows(server, target_path(*CAROL), **query)
    assert [row["flow_id"] for row in found] == [row["flow_id"] for row in same]
    assert found[0].keys() == same[0].keys()
    assert {row["cycle"] for row in same} == {"D"}


def test_a_part_of_the_id_or_the_name_finds_a_workflow_in_the_list(server, engine) -> None:
    wanted = [flow for flow in known_list(engine, BOB, None) if "UMP_3".lower() in (flow.flow_name or "")]
    assert wanted
    assert flows_of(rows(server, target_path(*BOB), find="UMP_3")) == wanted
    assert [row["flow_id"] for row in rows(server, target_path(*BOB), find="138")] == ["138"]


def test_the_page_says_how_well_a_moment_is_known(server) -> None:
    said = {
        after(days=9): "Not observed then.",
        after(days=20): "Observed:",
        after(days=21): "Unobserved.",
    }
    for at, sentence in said.items():
        assert sentence in get(server, target_path(*BOB), as_of=at.isoformat()).text, at
    assert "The same before and after." in get(server, target_path(*ALICE), as_of=after(days=21).isoformat()).text
    assert "Nothing can be compared" in get(server, target_path(*BOB), since="2026-03-02").text


def test_a_target_has_a_tick_for_each_run(server) -> None:
    page = get(server, target_path(*CAROL)).text
    strip = page.partition('<div class="strip"')[2].partition("</div>")[0]
    assert strip.count('"tick tick-failed"') == 3
    assert strip.count('"tick tick-changed"') == 12
    assert strip.count('"tick tick-missed"') == 14, "two days apart is longer than the coverage gap"
    assert "12 saw the list" in page
    assert get(server, target_path(*ALICE)).text.count('<span class="tick tick-held" title') == 2


def test_the_versions_are_those_of_the_trail(server, engine) -> None:
    with reading(engine) as connection:
        hashes = connection.execute(
            text("SELECT hash FROM change_set s JOIN target t ON t.id = target_id WHERE user_id = 'bob' ORDER BY s.id")
        ).scalars()
        known = list(hashes)[::-1]
    assert [row["hash"] for row in rows(server, target_path(*BOB), table="versions")] == known
    until = rows(server, target_path(*BOB), table="versions", as_of=after(days=14).isoformat())
    assert [row["version"] for row in until] == [3, 2, 1]


def test_targets_are_found_by_all_or_part_of_an_id(server) -> None:
    def users(**query: object) -> list[object]:
        return [row["user_id"] for row in rows(server, "/targets", **query)]

    assert users(user="A") == ["alice", "carol", "dave"]
    assert users(org="2", user="a") == ["carol", "dave"]
    assert users(org="=o") == []
    assert users(org="=o1") == ["alice", "bob"]
    assert users(user="=dave", show="problems") == ["dave"]
    assert users(user="%") == []
    listed = {row["user_id"]: row["flow_count"] for row in rows(server, "/targets")}
    assert users(show="empty") == [user for user, workflows in listed.items() if not workflows]
    assert "No target has such ids" in get(server, "/targets", user="nobody", as_of="yesterday").text


def test_targets_at_a_moment_are_those_of_the_report_with_unobserved_ones_marked(server, engine) -> None:
    at = after(days=21)
    known = [(row.user_id, row.coverage, row.flow_count) for row in targets_as_of(engine, at)]
    found = rows(server, "/targets", as_of=at.isoformat())
    assert [(row["user_id"], row["coverage"], row["flow_count"]) for row in found] == known
    page = get(server, "/targets", as_of=at.isoformat()).text
    assert page.count("coverage coverage-unobserved") == sum(row[1] == "unobserved" for row in known)
    early = get(server, "/targets", as_of=after(days=1).isoformat()).text
    assert early.count("not observed yet") == len(rows(server, "/targets"))


def test_a_long_table_is_one_array() -> None:
    """More rows than are sent at once."""
    columns = columns_of(Difference)
    changes = [("o1", str(number), "added", *[None] * (len(columns) - 3)) for number in range(2500)]
    body = asyncio.run(_body(rows_file("long", columns, changes, "json")))
    assert [row["flow_id"] for row in json.loads(body)] == [change[1] for change in changes]
    assert json.loads(asyncio.run(_body(rows_file("none", columns, [], "json")))) == []


async def _body(response: StreamingResponse) -> bytes:
    return b"".join([part async for part in response.body_iterator])


def test_every_user_has_an_address() -> None:
    assert target_path("a/b", "..", "e", "now") == "/target?org=a%2Fb&user=..&expression=e&as_of=now"


# ----------------------------------------------------------------------------------------------------- the workflows


def test_an_organisations_list_is_that_of_the_view(server, engine) -> None:
    seen = view("org_workflow", OrgWorkflow)
    with reading(engine) as connection:
        known = connection.execute(select(seen).where(seen.c.org_id == "o1").order_by(seen.c.flow_id)).all()
        assert WORKFLOWS.page(connection, 9999, org="=o1") == known
    assert {row.users_in_gap for row in known} == {0, 1}
    assert f"{len(known)} workflows that users see now" in get(server, "/workflows", org="o1").text


@pytest.mark.parametrize("at", [after(days=9), after(days=10, hours=6), after(days=21), after(days=37)], ids=str)
def test_an_organisations_list_at_a_moment_is_that_of_the_command_with_the_users_of_that_moment(
    server, engine, at
) -> None:
    for org in ("o1", "o2", HOSTILE_ORG.org_id):
        known = list(STATES.rows(engine, at=at, org=org))
        found = rows(server, "/workflows", org="=" + org, as_of=at.isoformat())
        assert [(row["flow_id"], row["cycle"], row["from_kind"], row["proven_for_all"]) for row in found] == [
            (state.flow_id, state.cycle, state.from_kind, state.proven_for_all) for state in known
        ]
        lists = Counter(row.flow_id for row in flows_as_of(engine, at, org=org))
        page = get(server, "/workflows", org="=" + org, as_of=at.isoformat()).text
        shown = re.findall(r'<td data-label="Users" class="number">(\d+)<', page)
        assert list(map(int, shown)) == [lists[state.flow_id] for state in known[:PAGE_ROWS]]
        for coverage, number in Counter(row.coverage for row in targets_as_of(engine, at, org=org)).items():
            assert f"{number} {'was' if number == 1 else 'were'} {COVERAGE_LABELS[coverage]}" in page


def test_a_list_at_a_moment_is_joined_from_the_lists_of_few_users_only(server, monkeypatch) -> None:
    then = {"org": "=o2", "as_of": after(days=20).isoformat()}
    assert len(rows(server, "/workflows", **then, user="a")) == 15
    monkeypatch.setattr(workflow_page, "LISTS_THEN", 1)
    assert len(rows(server, "/workflows", **then, user="dav")) == 12
    refused = get(server, "/workflows", **then, user="a")
    assert (refused.status_code, "name one" in refused.text) == (400, True), "carol and dave"


def test_two_lists_of_an_organisation_are_compared(server, engine) -> None:
    old, new = after(days=15), after(days=37)
    before, then = ({row.flow_id: row for row in STATES.rows(engine, at=at, org="o1")} for at in (old, new))
    moments = {"since": old.isoformat(), "as_of": new.isoformat()}
    found = rows(server, "/workflows", org="=o1", table="difference", **moments)
    kinds = {kind: {row["flow_id"] for row in found if row["kind"] == kind} for kind in ("appeared", "disappeared")}
    assert kinds == {"appeared": then.keys() - before.keys(), "disappeared": before.keys() - then.keys()}
    assert all(kinds.values())
    for row in found:
        if row["user_id"]:
            continue  # it has the values of the user's list
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


def test_the_files_of_a_workflow_are_the_reports(server, engine) -> None:
    path = workflow_path("5", "o2")
    states = list(HISTORY.rows(engine, flow="5", org="o2"))
    assert [(row["user_id"], row["cycle"], row["from_kind"]) for row in rows(server, path)] == [
        (state.user_id, state.cycle, state.from_kind) for state in states
    ]
    for at in (after(days=9), after(days=15), after(days=37)):
        known = [(row.user_id, row.coverage) for row in flows_as_of(engine, at, org="o2", flow="5")]
        found = rows(server, path, table="seen", as_of=at.isoformat())
        assert [(row["user_id"], row["coverage"]) for row in found] == known
    with reading(engine) as connection:
        kinds = connection.execute(
            text("SELECT kind FROM org_workflow_event WHERE org_id = 'o2' AND flow_id = '5' ORDER BY kind")
        ).scalars()
        assert sorted(row["kind"] for row in rows(server, path, table="story")) == list(kinds) != []


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


def test_a_rule_shows_what_it_found_and_on_which_days(server: HttpServer) -> None:
    (line,) = rows(server, "/rules")
    assert (line["rule"], line["severity"], line["open"]) == ("daily", "error", 1)
    found = [json.loads(row["row"])["flow_id"] for row in rows(server, "/rules/daily")]
    assert found == ["66", "5"]
    assert [row["ended_by"] for row in rows(server, "/rules/daily", show="ended")] == ["mended"]
    page = get(server, "/rules/daily").text
    days = re.findall(r'class="tick tick-(\w+)" title="[-0-9]+: (\d+) finding', page)
    assert days == [("failed", "2")] * 7 + [("failed", "1")] * 2
    assert workflow_path("66", HOSTILE_ORG.org_id).replace("&", "&amp;") in page
    assert HOSTILE_NAME not in page
    assert get(server, "/rules/weekly").status_code == 404
