"""Page, /freshness, /metrics and `status` are views of one reading: over one database, they agree."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import requests
from click.testing import CliRunner
from sqlalchemy import Engine

from etl.cli import app
from etl.config import Schedule, load, load_schedules
from etl.domain.model import Target
from etl.report.health import read_within
from etl.service.metrics import Metrics, ServiceStatus
from etl.web.health import Health, health_routes
from tests.support.browser import site
from tests.support.builders import START, Diary, numbered
from tests.support.program import SECRET, Program

HOUR = dt.timedelta(hours=1)
NOW = START + 40 * HOUR + dt.timedelta(minutes=2)
FRESH, FAILING, LATE, REFUSED, HELD, NEW = (
    Target("o1", user) for user in ("fresh", "failing", "late", "refused", "held", "new")
)
Counts = Mapping[str, int]
EXPECTED: Counts = {
    "targets": 6,
    "overdue": 2,
    "failing": 2,
    "refused": 1,
    "held": 1,
    "held_workflows": 20,
    "never_observed": 1,
}
"""Late and held are overdue: an answer that is held is no observation."""


@pytest.fixture
def schedules(engine: Engine, diary: Diary, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A target of each kind, and their hourly schedule."""
    for target in (FRESH, FAILING, LATE, REFUSED, HELD):
        diary.answer(numbered(1, 30), START, target)
    for target in (FRESH, FAILING):
        diary.answer(numbered(1, 30), NOW - HOUR, target)
    diary.answer(numbered(1, 10), START + 36 * HOUR, HELD)
    diary.fail(REFUSED, "62101")
    diary.fail(FAILING, "62109")
    diary.fail(NEW, "62109")
    program = Program(tmp_path, "http://127.0.0.1:9", database_url)
    program.schedule("plants", [("o1", [target.user_id for target in (FRESH, FAILING, LATE, REFUSED, HELD, NEW)])])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLOWTRAIL_GATEWAY__SECRET_KEY", SECRET)
    monkeypatch.setattr("etl.cli.status.utc_now", lambda: NOW)
    return load_schedules(load())


@pytest.fixture
def health(engine: Engine, schedules: tuple[Schedule, ...]) -> Health:
    return Health(
        engine,
        now=lambda: NOW,
        is_progressing=lambda: True,
        role=lambda: "active",
        schedules=lambda: schedules,
        known_since=dict,
    )


def of_freshness(engine: Engine, schedules: tuple[Schedule, ...], health: Health) -> Counts:
    with site(engine, NOW, routes=health_routes(health)) as server:
        answer = requests.get(server.url + "/freshness", timeout=30)
    assert answer.status_code == 503
    return {name: value for name, value in answer.json().items() if name in EXPECTED and name != "targets"}


def of_metrics(engine: Engine, schedules: tuple[Schedule, ...], health: Health) -> Counts:
    status = ServiceStatus(
        role="active",
        alive=True,
        ready=True,
        database_up=True,
        runs_under_way=0,
        clock_skew_seconds=None,
        conditions={},
        snapshot=health.snapshot(),
    )
    metrics = Metrics()
    metrics.watch(lambda: status)
    exposed = metrics.render("")[0].decode()
    found = dict(re.findall(r"^flowtrail_(?:targets_)?(\w+)(?:{schedule=.*})? (\d+)\.0$", exposed, re.MULTILINE))
    return {name: int(value) for name, value in found.items() if name in EXPECTED}


def of_status(engine: Engine, schedules: tuple[Schedule, ...], health: Health) -> Counts:
    told = json.loads(CliRunner().invoke(app, ["status", "--json"]).stdout)
    assert len(told["overdue"]) == told["freshness"]["overdue"]
    return {name: value for name, value in told["freshness"].items() if name in EXPECTED}


def of_page(engine: Engine, schedules: tuple[Schedule, ...], health: Health) -> Counts:
    with site(engine, NOW, read_health=lambda connection, at: read_within(connection, schedules, at)) as server:
        page = requests.get(server.url + "/", timeout=30).text
    said = {
        "targets": r"<dt>Targets</dt>\n<dd>(\d+)<",
        "overdue": r"(\d+) targets overdue",
        "refused": r"(\d+) target: 62101 \(",
        "held": r"(\d+) target: \d+ workflows held",
        "held_workflows": r": (\d+) workflows held",
        "never_observed": r"(\d+) target was never observed",
    }
    found = {name: re.search(sentence, page) for name, sentence in said.items()}
    assert "3 failed when last asked, 1 of them refused" in page, "in the tile, too"
    return {name: int(match[1]) for name, match in found.items() if match}


@pytest.mark.parametrize("reader", [of_page, of_metrics, of_status, of_freshness])
def test_every_reader_counts_the_same(
    engine: Engine,
    schedules: tuple[Schedule, ...],
    health: Health,
    reader: Callable[[Engine, tuple[Schedule, ...], Health], Counts],
) -> None:
    counts = reader(engine, schedules, health)
    assert len(counts) >= 4
    assert counts == {name: EXPECTED[name] for name in counts}


@pytest.mark.parametrize(("gap_hours", "said"), [(50, False), (30, True)])
def test_the_page_calls_a_silence_long_once_it_is_longer_than_the_coverage_gap(
    engine: Engine, diary: Diary, gap_hours: int, said: bool
) -> None:
    diary.answer(numbered(1, 3), START, FRESH)
    with site(engine, NOW, coverage_gap=gap_hours * HOUR) as server:
        assert ("Nobody has looked for long" in requests.get(server.url + "/", timeout=30).text) == said


def test_each_choice_of_targets_shows_those_that_the_page_counts(
    engine: Engine, schedules: tuple[Schedule, ...]
) -> None:
    with site(engine, NOW) as server:
        shown = {
            show: [row["user_id"] for row in requests.get(server.url + "/targets", params=asked, timeout=30).json()]
            for show in ("problems", "never_observed", "retired", "")
            if (asked := {"show": show, "format": "json"})
        }
    assert shown == {
        "problems": ["failing", "held", "new", "refused"],
        "never_observed": ["new"],
        "retired": [],
        "": ["failing", "fresh", "held", "late", "new", "refused"],
    }
