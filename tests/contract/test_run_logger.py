"""The log of a run: one line, problems at WARNING with the remedy, run and target in every line."""

from __future__ import annotations

import io
import json
from collections import Counter
from typing import Any

import pytest
from sqlalchemy import Engine

from etl import log, sync
from etl.domain.model import Issue, Target, Verdict
from etl.store import NewRun, Store
from etl.sync import RunLogger, RunReport, Tally, TargetIssue
from tests.support.builders import START, run_context

NEW = NewRun(origin="schedule", host="here", pid=1, targets=1, schedule="plants")


@pytest.fixture
def lines() -> io.StringIO:
    stream = io.StringIO()
    log.configure("INFO", "json", stream)
    return stream


def entries(lines: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines.getvalue().splitlines()]


def problem(number: int, verdict: Verdict = "failed", code: str | None = "http_503") -> TargetIssue:
    return TargetIssue(Target("o1", f"user-{number:03}"), verdict, Issue(code, "it did not go through"))


def ended(*problems: TargetIssue, status: Any = "partial", run_id: int = 7) -> RunReport:
    tally = Tally(verdicts=Counter(each.verdict for each in problems))
    tally.add_issues(problems)
    return RunReport(run_id=run_id, status=status, duration_seconds=1.0, targets=1, tally=tally)


def told(lines: io.StringIO, *reports: RunReport) -> list[tuple[str, str]]:
    """The events and targets that reports of one process lead to, without the line about each run."""
    run_logger = RunLogger(log.get_logger("etl.test"))
    for report in reports:
        run_logger.log(report, NEW)
    return [(each["event"], each.get("target", "")) for each in entries(lines) if each["event"] != "run_ended"]


@pytest.mark.parametrize(
    ("status", "level"), [("succeeded", "info"), ("aborted", "info"), ("partial", "warning"), ("failed", "warning")]
)
def test_a_run_with_trouble_is_logged_as_a_warning(lines: io.StringIO, status: str, level: str) -> None:
    told(lines, ended(status=status))
    assert [each["level"] for each in entries(lines)] == [level]


def test_a_run_with_trouble_is_a_warning_and_so_is_each_problem_with_its_remedy(lines: io.StringIO) -> None:
    told(lines, ended(problem(1), problem(2, "held", None), problem(3, "stale", None)))
    run, failed, held = entries(lines)
    assert (run["event"], run["level"], run["run_id"], run["status"]) == ("run_ended", "warning", 7, "partial")
    assert (run["failed"], run["held"], run["stale"]) == (1, 1, 1), "a newer observation that won is no problem"
    assert (failed["level"], failed["target"], failed["error_code"]) == ("warning", "o1/user-001", "http_503")
    assert "asked again" in failed["remedy"]
    assert (held["level"], held["verdict"]) == ("warning", "held")
    assert "flowtrail guard list" in held["remedy"]


def test_many_targets_with_one_cause_are_one_line(lines: io.StringIO) -> None:
    outage = [problem(0, code="deadline"), *(problem(number) for number in range(1, 20)), problem(20, code="timeout")]
    not_asked = [problem(number, code="gateway_down") for number in range(21, 50)]
    told(lines, ended(*outage, *not_asked, problem(50, code="malformed")))
    _, many, single = entries(lines)
    assert (many["event"], many["targets"], many["error_code"]) == ("targets_not_through", 50, "http_503")
    assert many["first"] == ["o1/user-000", "o1/user-001", "o1/user-002"]
    assert (single["event"], single["target"]) == ("target_not_through", "o1/user-050")


def test_a_run_full_of_causes_tells_the_first_and_counts_the_rest(lines: io.StringIO) -> None:
    found = told(lines, ended(*(problem(number, code=f"code-{number:02}") for number in range(50))))
    assert [event for event, _ in found] == ["target_not_through"] * 20 + ["more_not_through"]
    assert entries(lines)[-1]["targets"] == 30


def test_a_target_that_is_refused_for_good_is_logged_once_until_that_changes(lines: io.StringIO) -> None:
    refused, other = problem(1, code="62101"), problem(1, code="62103")
    stopped = ended(status="aborted")
    named = told(lines, ended(refused), stopped, ended(refused), ended(other), ended(), ended(refused))
    assert named == [("target_not_through", "o1/user-001")] * 3


def test_what_waits_for_a_person_makes_no_later_run_a_warning_until_something_is_new(lines: io.StringIO) -> None:
    refused, held, outage = problem(1, code="62101"), problem(2, "held", None), problem(1)
    more = TargetIssue(held.target, "held", Issue(None, "it did not go through", missing=40))
    told(
        lines, *(ended(*found) for found in ([refused, held], [refused, held], [outage, held], [refused, held], [more]))
    )
    said = [(each["event"], each["level"], each.get("target")) for each in entries(lines)]
    ok = ("run_ended", "info", None)
    warning = ("run_ended", "warning", None)
    assert said == [
        *(warning, ("target_not_through", "warning", "o1/user-001"), ("target_not_through", "warning", "o1/user-002")),
        ok,
        *(warning, ("target_not_through", "warning", "o1/user-001")),
        ok,
        *(warning, ("target_not_through", "warning", "o1/user-002")),
    ]
    assert "knows none of this id" in entries(lines)[1]["remedy"]
    assert "Grant" not in entries(lines)[1]["remedy"]


def test_every_record_about_a_request_names_its_target_and_run(engine: Engine, lines: io.StringIO) -> None:
    """Here it is a fault of our own, in a thread that asks."""

    class Faulty:
        slowed_seconds = 0.0

        def fetch(
            self,
            target: Target,
            known_data_hash: str | None = None,
            *,
            own_connection: bool = False,
            asked_as: str | None = None,
            before: object = None,
        ) -> None:
            raise RuntimeError("a fault of ours")

    targets = [Target("o1", "ann"), Target("o1", "bob")]
    with run_context(Store(engine), Faulty()) as (context, batches):
        new = NewRun(origin="command", host="here", pid=1, targets=2)
        report = sync.run(context, new, targets, batches, clock=lambda: START)
    assert report is not None
    crashed = [each for each in entries(lines) if each["event"] == "target_crashed"]
    assert {(each["run_id"], each["target"]) for each in crashed} == {
        (report.run_id, "o1/ann"),
        (report.run_id, "o1/bob"),
    }
    assert "a fault of ours" in crashed[0]["traceback"]
    assert log.bound() == {}
