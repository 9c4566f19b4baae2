"""A real browser, a site to open in it, and the history that the site shows."""

from __future__ import annotations

import datetime as dt
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import psycopg
import pytest
import requests
from playwright.sync_api import Browser, BrowserContext, Dialog, Page, expect, sync_playwright
from requests import Response
from sqlalchemy import Engine
from starlette.routing import BaseRoute

from etl.database import connect
from etl.domain import verdict
from etl.domain.model import Flow, Outcome, RunStatus, Target
from etl.domain.rules import as_json
from etl.errors import Refused
from etl.store import NewAcknowledgement, NewRun
from etl.store.findings import Evaluation
from etl.web.app import create_app
from etl.web.labels import target_path, workflow_path
from etl.web.page import Site
from etl.web.server import HttpServer
from tests.support.builders import UNCHECKED, Diary, after, flow, numbered

NOW = after(days=38, hours=5)
COVERAGE_GAP = dt.timedelta(hours=36)
ALICE, BOB = Target("o1", "alice"), Target("o1", "bob")
CAROL, DAVE = Target("o2", "carol"), Target("o2", "dave")
ERIN = Target("o3", "erin")
"""A target whose list never changes."""
HOSTILE_NAME = """</script><script>document.title="owned"</script><img src=x onerror="alert(1)">'"{{7*7}}%{y}"""
HOSTILE_FLOWS = [
    Flow("66", HOSTILE_NAME, "<b>D</b>", True),
    Flow("javascript:alert(1)", "\u202egnp.exe\u0007 مضخة", "H", None),
    Flow("..", "dots", "D", True),
    Flow('a/b?c#d%25 "é"', "odd id", "D", False),
    Flow("long", "x" * 5000, "mi", True),
]
HOSTILE_ORG = Target('</script><b onmouseover="alert(1)">o9</b>', "<i>u</i>", '"><script>alert(1)</script>')


PAGES = [
    *("/", "/?days=7", "/trail", "/held", "/targets", "/workflows", "/gaps", "/rules"),
    *("/?days=365", "/events", "/events/2", "/runs", "/runs/5", "/search?q=1", "/rules/daily"),
    *("/targets?as_of=2026-03-20", target_path("o1", "alice"), target_path("o2", "carol")),
    target_path(*HOSTILE_ORG, as_of="2026-03-20") + "&since=2026-03-15",
    *("/workflows?org=o2", "/workflows?org=o2&as_of=2026-03-20"),
    *(workflow_path("66", HOSTILE_ORG.org_id), workflow_path("5", "o2")),
]
"""One of each kind; the first eight are there without any rows, too."""


def write_month(engine: Engine, url: str) -> None:
    """Write a month: changes of every kind, hostile names, an outage, a waiting hold, a failing target."""
    diary = Diary(engine, url)
    lists = {ALICE: numbered(1, 40), BOB: numbered(20, 60), CAROL: numbered(1, 15), DAVE: numbered(1, 12)}
    lists[ERIN] = numbered(1, 3)
    for day in range(10, 40, 2):
        lists[BOB] = [*lists[BOB][1:], flow(100 + day, f"pump_{day}", "MWDH"[day % 4])]
        lists[CAROL][day % 15] = flow(day % 15 + 1, f"name {day}", "DH"[day // 2 % 2], day % 4 == 0)
        lists[HOSTILE_ORG] = HOSTILE_FLOWS if day > 20 else HOSTILE_FLOWS[1:]
        if day >= 36:
            lists[ALICE] = []
        outcomes = []
        for target, listed in lists.items():
            fence = diary.fence(target)
            if (target is CAROL and 16 <= day <= 20) or (target is DAVE and day >= 30):
                outcomes.append(verdict.failed(fence, Refused("the gateway said no", code="62109")))
            else:
                outcomes.append(diary.judge(fence, listed, after(days=day)))
        _run(diary, after(days=day), outcomes)
    agreed = NewAcknowledgement(made_by="ada <b>", org_id="o2", kind="renamed", until=after(days=30), ticket="CHG-<1>")
    diary.store.acknowledge([agreed], after(days=40))
    hostile = {"org_id": HOSTILE_ORG.org_id, "flow_id": "66", "flow_name": HOSTILE_NAME}
    rows = [as_json(row) for row in ({"org_id": "o2", "user_id": "carol", "flow_id": "5", "n": 1.5}, hostile)]
    looked = None
    for day, found in ((30, rows), (36, rows[1:])):
        said = ("daily", "Flows run <b>daily</b>", "error", "SELECT", looked, after(days=day), 0, 7)
        diary.store.write_evaluation(Evaluation(*said, found={row: row for row in found}))
        looked = after(days=day)


def _run(diary: Diary, at: dt.datetime, outcomes: list[Outcome]) -> None:
    """A scheduled run that ends a minute after ``at``."""
    new = NewRun(origin="schedule", schedule="plants", scheduled_for=at, host="here", pid=1, targets=len(outcomes))
    run_id = diary.store.begin_run(new, at - dt.timedelta(minutes=1))
    assert run_id is not None
    assert diary.store.apply(run_id, outcomes, UNCHECKED) == set()
    counts = Counter[str](outcome.verdict for outcome in outcomes)
    status: RunStatus = "partial" if counts["failed"] or counts["held"] else "succeeded"
    diary.store.derive_events(run_id, at - dt.timedelta(minutes=1), lambda: at + dt.timedelta(seconds=30))
    diary.store.finish_run(run_id, status, counts, at + dt.timedelta(minutes=1))


@pytest.fixture(scope="session")
def month(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Engine]:
    """The history in a database of a kind, written once, for tests that only read."""

    @cache
    def written(dialect: str) -> Engine:
        if dialect == "sqlite":
            file = shutil.copy(request.getfixturevalue("migrated_sqlite"), tmp_path_factory.mktemp("month"))
            url = f"sqlite:///{file}"
        else:
            server, template = request.getfixturevalue("postgres"), request.getfixturevalue("migrated_postgres")
            with psycopg.connect(server.conninfo("postgres"), autocommit=True) as admin:
                admin.execute(f"CREATE DATABASE month_to_read TEMPLATE {template}")
            url = server.url("month_to_read")
        engine = connect(url)
        request.addfinalizer(engine.dispose)
        write_month(engine, url)
        return engine

    return written


def site(
    engine: Engine, now: dt.datetime = NOW, routes: Sequence[BaseRoute] = (), hosts: Sequence[str] = (), **more: Any
) -> HttpServer:
    """A server of the pages on a free port, not started yet."""
    fires = {"plants": now + dt.timedelta(minutes=7)}
    given = {"coverage_gap": COVERAGE_GAP, **more}
    known = Site(engine, now=lambda: now, next_fire_times=lambda: fires, role=lambda: "active", **given)
    return HttpServer(create_app(known, routes, hosts), "127.0.0.1", 0)


@pytest.fixture
def engine(dialect: str, month: Callable[[str], Engine]) -> Engine:
    return month(dialect)


@pytest.fixture
def server(engine: Engine) -> Iterator[HttpServer]:
    with site(engine) as running:
        yield running


def get(server: HttpServer, path: str, **query: Any) -> Response:
    return requests.get(server.url + path, params=query, timeout=30)


def rows(server: HttpServer, path: str, **query: Any) -> list[dict[str, Any]]:
    answer = get(server, path, format="json", **query)
    assert answer.ok, answer.text
    found: list[dict[str, Any]] = answer.json()
    return found


class Watched(NamedTuple):
    """The complaints of a browser, and its requests."""

    complaints: list[str]
    requests: list[str]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium. Without one, CI fails and a laptop skips, with the remedy."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        said = "no Chromium: apt-get install chromium"
        if os.environ.get("CI"):
            pytest.fail(f"CI must test the page in a browser: {said}")
        pytest.skip(said)
    quiet = ("quic", "background-networking", "component-update", "sync", "gpu")
    arguments = ["--headless", "--no-sandbox", "--no-first-run", *(f"--disable-{what}" for what in quiet)]
    expect.set_options(timeout=30_000)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=arguments)
        yield started
        started.close()


def watch(context: BrowserContext) -> Watched:
    """Collect the complaints (errors, violations of the policy) and requests of every page of the context."""
    watched = Watched([], [])
    context.expose_function("complain", lambda said: watched.complaints.append(said))
    context.add_init_script(
        "addEventListener('securitypolicyviolation', e => complain(e.violatedDirective + ' ' + e.blockedURI))"
    )
    context.on("console", lambda message: watched.complaints.append(f"{message.type}: {message.text}"))
    context.on("weberror", lambda error: watched.complaints.append(str(error.error)))

    def dismiss(dialog: Dialog) -> None:
        watched.complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    context.on("dialog", dismiss)
    context.on("request", lambda request: watched.requests.append(request.url))
    return watched


def drawn(page: Page) -> None:
    """Wait until every plot is drawn."""
    expect(page.locator(".plot:not(:has(.main-svg))")).to_have_count(0)
