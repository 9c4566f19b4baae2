"""The pages of the targets over HTTP: their tables agree with the report, on the page and as files."""

from __future__ import annotations

import asyncio
import csv
import datetime as dt
import io
import json

import pytest
from sqlalchemy import Engine, text
from starlette.responses import StreamingResponse

from etl.database import reading
from etl.domain.diff import by_id, diff
from etl.domain.model import Flow, Target
from etl.report import Report, columns_of
from etl.report.rows import ListDifference
from etl.web.labels import target_path
from etl.web.page import rows_file
from tests.support.browser import ALICE, BOB, CAROL, DAVE, HOSTILE_ORG
from tests.support.builders import after
from tests.support.month_pages import engine, get, month, rows, server

MOMENTS = [after(days=9), after(days=10), after(days=15), after(days=20, hours=3), after(days=37), after(days=40)]


__all__ = ["engine", "month", "server"]


def flows_of(found: list[dict[str, object]]) -> list[Flow]:
    return [Flow(row["flow_id"], row["flow_name"], row["cycle"], row["editable"]) for row in found]


def known_list(engine: Engine, target: Target, at: dt.datetime | None) -> list[Flow]:
    report, whose = Report(engine), {"org": target.org_id, "user": target.user_id}
    found = report.flows(**whose) if at is None else report.flows_as_of(at, **whose)
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
        for at in (MOMENTS[2], MOMENTS[4]):
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
    assert "No target has such ids" in get(server, "/targets", user="nobody", as_of="yesterday").text


def test_targets_at_a_moment_are_those_of_the_report_with_unobserved_ones_marked(server, engine) -> None:
    at = after(days=21)
    known = [(row.user_id, row.coverage, row.flow_count) for row in Report(engine).targets_as_of(at)]
    found = rows(server, "/targets", as_of=at.isoformat())
    assert [(row["user_id"], row["coverage"], row["flow_count"]) for row in found] == known
    page = get(server, "/targets", as_of=at.isoformat()).text
    assert page.count("coverage coverage-unobserved") == sum(row[1] == "unobserved" for row in known)
    early = get(server, "/targets", as_of=after(days=1).isoformat()).text
    assert early.count("not observed yet") == len(rows(server, "/targets"))


def test_a_long_table_is_one_array() -> None:
    """More rows than are sent at once."""
    columns = columns_of(ListDifference)
    changes = [(str(number), "added", None, None, None, None, None, None) for number in range(2500)]
    body = asyncio.run(_body(rows_file("long", columns, changes, "json")))
    assert [row["flow_id"] for row in json.loads(body)] == [change[0] for change in changes]
    assert json.loads(asyncio.run(_body(rows_file("none", columns, [], "json")))) == []


async def _body(response: StreamingResponse) -> bytes:
    return b"".join([part async for part in response.body_iterator])


REFUSED = {
    "/targets/o1/nobody": 404,
    "/targets/o1/bob?expression=none": 404,
    "/target": 404,
    "/targets/o1/bob?as_of=gestern": 400,
    "/targets/o1/bob?format=xls": 400,
    "/targets/o1/bob?format=csv&table=none": 400,
    "/targets/o1/bob?page=0": 400,
    "/targets?as_of=2026-02-30": 400,
}


def test_an_invalid_question_about_a_target_is_refused_in_one_sentence(server) -> None:
    for path, status in REFUSED.items():
        answer = get(server, path)
        assert (answer.status_code, 'role="alert"' in answer.text) == (status, True), path


def test_every_user_has_an_address(server) -> None:
    for target in (ALICE, DAVE, HOSTILE_ORG):
        answer = get(server, target_path(*target))
        assert answer.ok, target
    assert target_path("a/b", "..", "e", "now") == "/target?org=a%2Fb&user=..&expression=e&as_of=now"
