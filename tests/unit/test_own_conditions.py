"""The conditions that only the serving process can detect."""

from __future__ import annotations

from pathlib import Path

import pytest

from etl.cli.application import Application
from etl.cli.notify import Notifications
from etl.cli.serve import OwnConditions
from etl.config import load, load_schedules
from etl.store import Store
from etl.sync import RunReport, Tally
from etl.sync.result import Details
from tests.support.program import Program


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
