"""The list of conditions: a pure function of what is known to be wrong, grouped by cause."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from etl.cli.application import Application
from etl.cli.notify import Notifications
from etl.cli.serve import OwnConditions
from etl.config import load, load_schedules
from etl.report.conditions import (
    Condition,
    Failing,
    by_cause,
    conditions,
    failing,
)
from etl.store import Store
from etl.sync import RunReport, Tally
from etl.sync.result import Details
from tests.support.program import Program

AT = dt.datetime(2026, 11, 24, 10, 15, tzinfo=dt.UTC)


def test_targets_that_fail_for_one_cause_are_one_condition_with_their_number_and_the_first_few() -> None:
    parts = [Failing("malformed", f"the body of 'u{n}' is an HTML login page", 1, [f"o1/u{n}"]) for n in range(3000)]
    [cause] = by_cause(parts)
    [condition] = conditions([failing(cause, AT)])
    assert condition.sentence == (
        "3,000 targets: malformed (the body of 'u0' is an HTML login page), at least since 2026-11-24 10:15:00 UTC."
    )
    assert (condition.code, condition.severity, condition.subjects) == ("targets_failing", "degraded", 3000)
    assert condition.first == ("o1/u0", "o1/u1", "o1/u10")


@pytest.mark.parametrize(("targets", "when"), [(3, "since"), (4, "at least since")])
def test_a_cause_may_have_begun_earlier_if_not_all_its_targets_were_looked_at(targets: int, when: str) -> None:
    cause = Failing("dns", "no such host", targets, ["o1/u1", "o1/u2", "o1/u3"])
    detected = [failing(cause, AT), failing(cause, AT, asked=targets, gave_up=False)]
    said = f"{targets} targets: dns (no such host), {when} 2026-11-24 10:15:00 UTC."
    assert [each.sentence for each in conditions(detected)] == [said, said]


def test_conditions_are_listed_once_with_the_worst_first() -> None:
    detected = [
        Condition("targets_held", "held", since=AT, subjects=2),
        Condition("targets_overdue", "overdue", subjects=3),
        Condition("database_full", "The disk is full", since=AT),
        Condition("targets_overdue", "overdue", subjects=4),
        Condition("receiver_failing", "away", "mail", subjects=1),
        Condition("receiver_failing", "away", "chat", subjects=1),
    ]
    assert [(each.code, each.cause) for each in conditions(detected)] == [
        ("database_full", ""),
        ("targets_overdue", ""),
        ("receiver_failing", "chat"),
        ("receiver_failing", "mail"),
        ("targets_held", ""),
    ]
    assert conditions(detected)[1].subjects == 3


def test_a_condition_began_when_its_trouble_says_or_when_it_was_first_stored() -> None:
    later = AT + dt.timedelta(hours=1)
    known = {("targets_overdue", ""): AT, ("targets_held", ""): AT}
    detected = [Condition("targets_overdue", "overdue"), Condition("targets_held", "held", since=later)]
    late, waiting = conditions(detected, known)
    assert (late.since, waiting.since) == (AT, later)


@pytest.mark.parametrize("later", [Details(asked=1), None])
def test_unavailable_details_are_a_condition_until_some_arrive(tmp_path: Path, later: Details | None) -> None:
    """A run without details reports nothing about them."""
    program = Program(tmp_path, "http://127.0.0.1:9")
    program.schedule("plants", [("o1", ["ann"])])
    settings = load(tmp_path / "flowtrail.toml", {"FLOWTRAIL_GATEWAY__SECRET_KEY": "s"})
    [schedule] = load_schedules(settings)
    with Application(settings) as app:
        own = OwnConditions(app, Notifications(app, Store(app.engine)))
        own.finished(ended(Details(asked=3, failed=2, codes={"99404": 2})), schedule)
        [found] = own()
        assert (found.code, found.cause, found.subjects) == ("details_failing", "plants", 2)
        assert "99404 (2)" in found.summary
        own.finished(ended(later), schedule)
        assert len(own()) == (later is None)


def ended(details: Details | None) -> RunReport:
    return RunReport(run_id=1, status="succeeded", duration_seconds=0, targets=1, tally=Tally(), details=details)
