"""The pages over HTTP: they agree with the views, and reveal nothing to strangers. On both databases."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import html
import itertools
import json
import re
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote
from zoneinfo import ZoneInfo

import pytest
import requests
from requests import Response
from sqlalchemy import Engine, text
from starlette.responses import PlainTextResponse
from starlette.routing import Route

import etl.web
from etl.database import connect, reading
from etl.domain.approvals import code
from etl.domain.kinds import CHANGE_KINDS, DELTA_KINDS
from etl.domain.model import CYCLE_LABELS
from etl.errors import FlowtrailError, UsageError
from etl.report import summaries, trail_page
from etl.report.asof import targets_as_of
from etl.report.conditions import Condition
from etl.report.listings import CHANGES, EVENTS, GAPS, STATES, held_sets
from etl.report.summaries import CYCLES, OTHER, Scope
from etl.report.trail_page import Position
from etl.web.labels import workflow_path
from etl.web.overview import KNOWN, counting_ahead, report_html
from etl.web.server import HttpServer
from tests.support.browser import (
    BOB,
    CAROL,
    COVERAGE_GAP,
    HOSTILE_FLOWS,
    HOSTILE_NAME,
    HOSTILE_ORG,
    NOW,
    PAGES,
    site,
    write_month,
)
from tests.support.builders import START, Diary, after, numbered
from tests.support.databases import Connect, Fill
from tests.support.histories import TICK, World
from tests.support.served import wait_until

DAY = dt.timedelta(days=1)
TEMPLATES = Path(etl.web.__file__).parent / "templates"
FIELD = re.compile(r'<(?:input|select)[^>]* name="(\w+)"')
HOSTILE_PLACES = {"org": HOSTILE_ORG.org_id, "user": HOSTILE_ORG.user_id, "since": ""}


@pytest.fixture
def now(fill: Fill) -> dt.datetime:
    """The end of a random history of some two weeks."""

    def write(engine: Engine, url: str) -> dt.datetime:
        made = World(engine, 3)
        made.live(120)
        return made.now

    return fill("two_weeks", write)


@pytest.fixture
def server(engine: Engine, fill: Fill) -> Iterator[HttpServer]:
    """The pages over the story."""
    fill("month", write_month)
    with site(engine) as running:
        yield running


@pytest.fixture
def empty(engine: Engine) -> Iterator[HttpServer]:
    """The pages over a database without rows."""
    routes = [Route("/healthz", lambda request: PlainTextResponse("fine"))]
    with site(engine, routes=routes, hosts=["Flow.example"]) as running:
        yield running


def get(server: HttpServer, path: str, **more: object) -> Response:
    return requests.get(server.url + path, timeout=30, **more)


# ------------------------------------------------------------------------------------------------ what the sums are


ZONES = [dt.UTC, ZoneInfo("Asia/Shanghai"), ZoneInfo("Europe/Berlin")]


def evenings(scope: Scope) -> Iterator[tuple[dt.date, dt.datetime]]:
    """The days of a scope, and the last moment of each."""
    for number in range((scope.until - scope.since).days + 1):
        day = scope.since + number * DAY
        yield day, dt.datetime.combine(day + DAY, dt.time(), scope.zone) - dt.timedelta(microseconds=1)


@pytest.mark.parametrize("zone", ZONES, ids=str)
def test_the_sums_are_those_of_the_organisations_events_and_lists(engine: Engine, fill: Fill, zone: dt.tzinfo) -> None:
    """Each event and each workflow counts once, on the days of any time zone, also where its clocks change."""
    fill("month", write_month)
    every = list(EVENTS.rows(engine))
    for org in ("", "o1"):
        scope = Scope(dt.date(2026, 3, 5), dt.date(2026, 4, 8), org, zone=zone)
        with reading(engine) as connection:
            days, snapshots = summaries.days(connection, scope), summaries.day_snapshots(connection, scope)
            churn, orgs = summaries.churn(connection, scope, 2)
        events = [event for event in every if org in ("", event.org_id)]
        by_day = Counter((event.observed_at.astimezone(zone).date(), event.kind) for event in events)
        assert (
            Counter({(day, kind): number for day, counts in days.items() for kind, number in counts.items()}) == by_day
        )
        by_org = Counter(event.org_id for event in events)
        assert orgs == len(by_org)
        assert [(row.org_id, sum(row.events.values())) for row in churn] == sorted(
            by_org.items(), key=lambda item: (-item[1], item[0])
        )[:2]
        for (day, evening), found in zip(evenings(scope), snapshots, strict=True):
            states = list(STATES.rows(engine, at=evening, org=org or None))
            cycles = Counter(state.cycle if state.cycle in CYCLE_LABELS else OTHER for state in states)
            assert found.by_cycle == {cycle: cycles[cycle] for cycle in CYCLES}, day


def test_an_evening_has_the_targets_observed_by_then_and_those_in_a_gap_that_hides_something(
    engine: Engine, now: dt.datetime
) -> None:
    until = now.date()
    past = Scope(until - 12 * DAY, until - 5 * DAY)
    with reading(engine) as connection:
        found = summaries.day_snapshots(connection, Scope(until - 20 * DAY, until))
        gaps = GAPS.page(connection, 10_000)
        open_gaps = sum(gap.gap_to is None for gap in gaps)
        assert GAPS.count(connection) == len(gaps)
        assert summaries.open_gap_count(connection) == open_gaps
        days = summaries.day_snapshots(connection, past)
        assert days == [each for each in found if past.since <= each.day <= past.until]
        of_orgs = zip(*(summaries.day_snapshots(connection, past._replace(org=f"o{n}")) for n in range(3)), strict=True)
        for day, parts in zip(days, of_orgs, strict=True):
            assert (day.unobserved, day.targets) == tuple(sum(each[number] for each in parts) for number in (2, 3))
        inside = [g for g in gaps if g.gap_from < past.ends_at and (g.gap_to is None or g.gap_to > past.begins_at)]
        assert GAPS.page(connection, 10_000, since=past.begins_at, until=past.ends_at) == inside != []
    for evening in found[:-1]:
        at = dt.datetime.combine(evening.day + DAY, dt.time(), dt.UTC)
        hidden = [g for g in gaps if g.gap_from < at and (g.gap_to is None or (g.gap_to >= at and g.changed_inside))]
        assert evening.unobserved == len(hidden), evening.day
        known = [row for row in targets_as_of(engine, at - TICK) if row.observed_before]
        assert evening.targets == len(known), evening.day
    assert found[-1].targets
    assert len({evening.unobserved for evening in found}) > 1
    assert all(evening.share_unobserved == evening.unobserved / evening.targets for evening in found if evening.targets)


def figure(page: str, name: str) -> dict[str, Any]:
    return json.loads(re.search(rf'id="{name}-figure">(.*?)</script>', page)[1])


def test_a_plot_has_all_its_days_and_marks_where_looking_began(engine: Engine, diary: Diary) -> None:
    diary.answer(numbered(1, 3), NOW - 2 * DAY)
    diary.derive_events(NOW - 2 * DAY)
    with site(engine) as server:
        page = get(server, "/").text
    drawn = figure(page, "by-cycle")
    (trace,) = drawn["data"]
    assert (trace["x"][0], trace["y"]) == ("2026-04-06", [3, 3, 3])
    begin, end = map(dt.datetime.fromisoformat, drawn["layout"]["xaxis"]["range"])
    assert end - begin == 30 * DAY
    (mark,) = drawn["layout"]["annotations"]
    assert (mark["text"], mark["x"][:10]) == ("looking began", "2026-04-05"), "between two days"


def test_one_refused_target_of_six_is_a_sixth_of_a_day(server: HttpServer) -> None:
    page = get(server, "/?days=7").text
    drawn = figure(page, "by-cycle")
    assert "shapes" not in drawn["layout"], "looking began before"
    (share,) = (trace for trace in drawn["data"] if trace["name"] == "targets not observed")
    assert share["y"][-1] == round(2 / 6, 4)


def test_a_change_is_visible_on_the_next_request(engine: Engine, diary: Diary, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums over everything are counted again when the database has changed, if that is quick."""
    monkeypatch.setattr("etl.web.overview._QUICK_SECONDS", 3600)
    diary.answer(numbered(1, 3), NOW - 2 * DAY)
    with site(engine) as server:
        assert "1 disappeared" not in get(server, "/").text
        diary.answer(numbered(2, 3), NOW - DAY)
        diary.derive_events(NOW - DAY)
        assert "1 disappeared" in get(server, "/").text


FILTERS = [
    {},
    {"org": "=o1"},
    {"org": "=o0", "user": "=u0"},
    {"flow": "=7"},
    {"name": "E_eNt"},
    {"user": "=u1", "name": "map"},
]


def whole(filters: dict[str, str]) -> dict[str, str]:
    """The filters as the report takes them."""
    return {name: value.removeprefix("=") for name, value in filters.items()}


def test_paging_through_the_trail_gives_every_change_once(engine: Engine, now: dt.datetime) -> None:
    times = {"since": now - 5 * DAY, "until": now - DAY}
    for filters, kinds in itertools.product(FILTERS, (CHANGE_KINDS, DELTA_KINDS, ("renamed",))):
        expected = list(CHANGES.rows(engine, **times, kind=kinds, newest_first=True, **whole(filters)))
        assert expected or kinds == ("renamed",)
        found, after = [], None
        with reading(engine) as connection:
            while page := trail_page.newest(connection, **filters, **times, kind=kinds, after=after, limit=7):
                found += page
                assert len(found) <= len(expected), (filters, kinds)
                last = page[-1]
                after = Position(last.observed_at, last.change_set_id, last.flow_id, last.kind)
        assert found == expected, (filters, kinds)


# ---------------------------------------------------------------------------------------------------- what is shown


def test_problems_come_first_with_their_cause(server: HttpServer, engine: Engine) -> None:
    first, _, _ = get(server, "/").text.partition("Events per day")
    said = "".join(Reader(first.partition('<ul class="problems">')[2].partition("</ul>")[0]).texts).split("\n")
    assert [line.partition(", since")[0] for line in said if line] == [
        "1 target: 62109 (the gateway said no)",
        "1 target: 40 workflows held",
    ]  # not their coverage gaps, too: an outage is one line
    assert 'href="/targets?show=problems&amp;cause=62109">Show which' in first
    causes = first.partition('<table id="causes">')[2].partition("</table>")[0]
    links = map(html.unescape, re.findall(r'href="([^"]+)"', causes))
    users = {link: [row["user_id"] for row in get(server, f"{link}&format=json").json()] for link in links}
    assert users == {
        "/targets?show=problems&cause=62109": ["dave"],
        "/targets?show=problems&cause=held": ["alice"],
    }
    (held,) = held_sets(engine)
    command = f"flowtrail guard approve --expect={code(held.scope)} o1 alice"
    assert command in "".join(Reader(get(server, "/held").text).texts)
    assert command in "".join(Reader(get(server, "/").text).texts)
    assert "62109" in get(server, "/targets?show=problems").text
    assert "bob" not in get(server, "/targets?show=problems").text


def test_a_remedy_that_several_problems_share_is_told_once(engine: Engine, diary: Diary) -> None:
    for target, error in ((BOB, "62109"), (CAROL, "malformed")):
        diary.answer(numbered(1, 3), START, target)
        diary.fail(target, error)
    with site(engine, now=after(hours=1)) as running:
        first = get(running, "/").text.partition('<ul class="problems">')[2].partition("</ul>")[0]
    assert first.count("<li>1 target:") == 2
    assert first.count("docs/enos.md says") == 1


def test_what_the_service_knows_of_itself_is_shown_and_only_an_outage_explains_that_nobody_looks(
    engine: Engine, diary: Diary
) -> None:
    diary.answer(numbered(1, 3), START)
    ours, outage = (Condition(code, f"{code} is so") for code in ("receiver_failing", "gateway_down"))
    for own, is_told in ([], True), ([ours], True), ([outage], False), ([ours, outage], False):
        with site(engine, now=after(days=9), own=lambda own=own: own) as running:
            problems = get(running, "/").text.partition('<ul class="problems">')[2].partition("</ul>")[0]
        assert ("Nobody has looked for long" in problems) is is_told, own
        assert all(each.sentence in problems for each in own)


def test_a_clock_that_went_back_is_a_problem_and_times_ahead_of_now_are_no_observations(
    engine: Engine, fill: Fill
) -> None:
    fill("month", write_month)
    with site(engine, now=after(days=20, hours=1)) as running:
        first = get(running, "/").text
    assert "6 targets have observations that lie ahead of now, up to 2026-04-08 12:00:00 UTC" in first
    assert "<dd>not known<small>the clock went back</small></dd>" in first


@pytest.mark.parametrize("ahead", [False, True], ids=["asked for", "ahead"])
def test_slow_sums_are_counted_in_a_thread_while_the_pages_say_so(
    server: HttpServer, engine: Engine, monkeypatch: pytest.MonkeyPatch, connected: Connect, ahead: bool
) -> None:
    known = get(server, "/").text
    monkeypatch.setattr("etl.web.overview.MANY", 0)
    other = connected(engine.url.render_as_string(hide_password=False))
    with site(other) as running, counting_ahead(other, lambda: NOW) if ahead else nullcontext():
        if not ahead:
            first = get(running, "/").text
            assert "are being counted" in first
            assert 'http-equiv="refresh"' in first
        wait_until(lambda: other in KNOWN and bool(KNOWN[other].sums))
        assert get(running, "/").text == known


def test_an_empty_database_has_pages_too(empty: HttpServer) -> None:
    assert {path: get(empty, path).status_code for path in PAGES[:8]} == dict.fromkeys(PAGES[:8], 200)
    first = get(empty, "/").text
    assert "There are no targets yet" in first
    assert "was looked at" not in first, "nobody looked"
    assert first.count("Nothing was observed yet.") == 4
    assert "There are no targets yet" in get(empty, "/targets").text
    assert "No target is like that" in get(empty, "/targets?user=ann").text
    assert "There was no run yet." in get(empty, "/runs").text
    assert "data-figure" not in first, "nothing to draw is said, not drawn as nothing"


class Reader(HTMLParser):
    """A page as a browser parses it: its elements, and their text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_hostile_text_makes_no_element_and_no_attribute(server: HttpServer) -> None:
    found = [get(server, "/trail", params=HOSTILE_PLACES), *(get(server, path) for path in PAGES)]
    found.append(get(server, "/trail", params={"since": HOSTILE_NAME, "org": HOSTILE_NAME, "name": HOSTILE_NAME}))
    for answer in found:
        read = Reader(answer.text)
        scripts = [attributes for tag, attributes in read.elements if tag == "script"]
        assert all(s.get("type") == "application/json" or s["src"].startswith("/static/") for s in scripts), answer.url
        assert not {tag for tag, _ in read.elements} & {"img", "b", "i", "iframe", "style"}, answer.url
        names = {name for _, attributes in read.elements for name in attributes}
        assert not [name for name in names if name.startswith("on") or name == "style"], answer.url
        addresses = [a[name] for _, a in read.elements for name in ("href", "action") if name in a]
        assert all(address.startswith(("/", "?", "#")) for address in addresses), answer.url
    assert any(HOSTILE_NAME in text for text in Reader(found[-3].text).texts)
    assert "\\u202egnp.exe\\x07" in get(server, "/trail?flow=javascript:alert(1)&since=&kind=baseline").text


def test_odd_workflows_have_an_address_and_end_somewhere(server: HttpServer) -> None:
    for flow in HOSTILE_FLOWS:
        answer = get(server, workflow_path(flow.flow_id, HOSTILE_ORG.org_id))
        assert answer.ok, flow
        assert f"Workflow {flow.flow_id}" in " ".join("".join(Reader(answer.text).texts).split()), flow
        assert "x" * 300 not in answer.text


PARAMETERS = {
    "/": "days zone",
    "/trail": "org user flow name since until kind after format",
    "/held": "org user page format",
    "/gaps": "page format",
    "/rules": "format",
    "/rules/daily": "show page format",
    "/rules/{}": "page",
    "/targets": "org user show cause as_of page format",
    "/targets/o1/alice": "as_of since find cycle expression table page format",
    "/targets/{}/{}": "page",
    "/target": "org user expression",
    "/workflows": "org",
    "/workflows?org=o1": "as_of since find user cycle which order table page format",
    "/workflow": "org flow as_of table format",
    "/workflows/{}/{}": "as_of",
    "/events": "org user flow name since until kind acknowledged page format",
    "/events/{}": "format",
    "/runs": "schedule status page format",
    "/runs/{}": "table format",
    "/search": "q",
}
"""Every path, and every parameter that it takes."""
NASTY = [
    *("00000000199999999999999999999", "9" * 19, "²", "\0", "\udcff", "!_%", "9999-12-31T23:59:59-14:00"),
    *("9999-12-31T23:59:59-14:00~1~a~b", "2026-01-01~" + "9" * 19 + "~a~b"),
]


def test_nothing_that_a_browser_sends_looks_like_an_outage(server: HttpServer) -> None:
    """Whatever a parameter or a part of the path contains, the answer is a page, or a refusal in one sentence."""
    known = {name for template in TEMPLATES.glob("*.html") for name in FIELD.findall(template.read_text("utf-8"))}
    assert known <= set(" ".join(PARAMETERS.values()).split())
    with requests.Session() as browser:
        for (path, names), value in itertools.product(PARAMETERS.items(), NASTY):
            sent = quote(value, safe="", errors="surrogatepass")
            for name in names.split() if "{}" not in path else [names]:
                address = f"{path.format(sent, sent)}{'&' if '?' in path else '?'}{name}={sent}"
                answer = browser.get(server.url + address, timeout=30)
                assert answer.status_code in (200, 400, 404), address
                assert answer.ok or "The database" not in answer.text, address


def test_an_unreachable_database_is_reported(tmp_path: Path) -> None:
    engine = connect(f"sqlite:///{tmp_path / 'nothing.db'}")
    with site(engine) as server:
        answer = get(server, "/")
    assert answer.status_code == 503
    assert "database cannot be read" in answer.text
    assert str(tmp_path) not in answer.text


# ------------------------------------------------------------------------------------------------------- strangers


def test_every_answer_carries_the_strict_headers(server: HttpServer) -> None:
    for path in [*PAGES, "/nowhere", "/static/app.js", "/static/plotly-basic.min.js"]:
        headers = get(server, path).headers
        policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
        assert policy.pop("default-src") == policy.pop("base-uri") == policy.pop("frame-ancestors") == "'none'"
        assert set(policy.values()) == {"'self'"}, "nothing inline, nothing from elsewhere, no eval"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cache-Control"] == (
            "public, max-age=31536000, immutable" if path.startswith("/static") else "no-store"
        )
        assert "server" not in headers


HOSTS = {
    "127.0.0.1:8787": 200,
    "localhost": 200,
    "LOCALHOST.:80": 200,
    "[::1]:8787": 200,
    "10.2.3.4:8787": 200,
    "flow.example:8787": 200,
    "other.example": 421,
    "evil.example:8787": 421,
    "localhost.evil.example": 421,
    "127.0.0.1.evil.example": 421,
    "[::1].evil.example": 421,
    "2130706433": 421,
    "": 421,
}


def test_pages_and_additional_routes_answer_to_our_own_names_only(empty: HttpServer) -> None:
    for (host, status), path in itertools.product(HOSTS.items(), ("/gaps", "/static/app.js", "/healthz")):
        assert get(empty, path, headers={"Host": host}).status_code == status, (host, path)
    answer = get(empty, "/healthz")
    assert (answer.text, answer.headers.get("Content-Security-Policy")) == ("fine", None)


def test_the_pages_only_read(empty: HttpServer) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        answer = requests.request(method, empty.url + "/trail", timeout=30)
        assert (answer.status_code, {*answer.headers["Allow"].split(", ")}) == (405, {"GET", "HEAD"}), method
    assert requests.head(empty.url + "/trail", timeout=30).ok


def test_reading_the_pages_writes_nothing(server: HttpServer, engine: Engine) -> None:
    with reading(engine) as connection:
        before = connection.execute(text("SELECT count(*), max(heartbeat_at) FROM sync_run")).one()
    for path in PAGES:
        get(server, path)
    with reading(engine) as connection:
        assert connection.execute(text("SELECT count(*), max(heartbeat_at) FROM sync_run")).one() == before


# -------------------------------------------------------------------------------------------------------- the report


def test_the_report_is_one_private_file_that_loads_nothing_else(server, engine, tmp_path) -> None:
    file = tmp_path / "report.html"
    report_html(engine, now=NOW, coverage_gap=COVERAGE_GAP, file=file)
    page = file.read_text("utf-8")
    read = Reader(page)
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.glob("*.html*")] == ["report.html"]
    assert not [a for tag, a in read.elements if tag in ("img", "iframe", "b") or "src" in a or tag == "link"]
    assert all((a.get("href") or "#").startswith("#") for _, a in read.elements)
    policy = next(a["content"] for _, a in read.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert "unsafe" not in policy
    assert "'self'" not in policy
    for inline in re.findall(r"<(?:script|style)>(.*?)</(?:script|style)>", page, re.DOTALL):
        assert base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode() in policy
    assert BOB.user_id in page


def test_a_report_may_be_limited_to_a_period_and_an_organisation(
    server: HttpServer, engine: Engine, tmp_path: Path
) -> None:
    scope = Scope(dt.date(2026, 3, 12), dt.date(2026, 3, 20), "o2", everything=False)
    report_html(engine, now=NOW, coverage_gap=COVERAGE_GAP, file=tmp_path / "o2.html", scope=scope)
    written = (tmp_path / "o2.html").read_text("utf-8")
    assert "The time from 2026-03-12 to 2026-03-20, of organisation <bdi>o2</bdi>" in written
    trail = written.partition('<table id="events"')[2].partition("</table>")[0]
    assert "<bdi>o1</bdi>" not in trail
    seen = set(re.findall(r"<tr>\s*<td[^>]*><time datetime=\"([0-9-]{10})", trail))
    assert seen
    assert all("2026-03-12" <= day <= "2026-03-20" for day in seen)


def test_a_report_that_cannot_be_written_leaves_nothing_behind(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="create the folder"):
        report_html(engine, now=NOW, coverage_gap=COVERAGE_GAP, file=tmp_path / "none" / "report.html")
    with pytest.raises(UsageError, match="is a folder"):
        report_html(engine, now=NOW, coverage_gap=COVERAGE_GAP, file=tmp_path)


# -------------------------------------------------------------------------------------------------------- the server


def test_a_server_frees_its_port_and_can_be_followed_by_another(engine: Engine) -> None:
    with site(engine) as first:
        assert get(first, "/gaps").ok
    with pytest.raises(requests.ConnectionError):
        get(first, "/gaps")
    with HttpServer(PlainTextResponse("next"), "127.0.0.1", first.port) as second:
        assert get(second, "/").text == "next"
    second.stop()


def test_a_taken_port_is_reported_in_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(FlowtrailError) as caught:
            HttpServer(PlainTextResponse(""), "127.0.0.1", port).start()
    assert str(caught.value) == (
        f"Cannot listen on 127.0.0.1:{port}: another program listens there: stop it, or set another [service] listen."
    )
    with pytest.raises(FlowtrailError, match="this machine has no such address"):
        HttpServer(PlainTextResponse(""), "192.0.2.1", 0).start()
