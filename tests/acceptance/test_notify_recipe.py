"""docs/notify.md: its settings load, and a program that follows its SQL misses nothing in any order of commits."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text

from etl import config
from etl.errors import RunClosed
from tests.support.builders import flow
from tests.support.run_history import ANN, BOB, EVE, RunHistory

PAGE = (Path(__file__).parents[2] / "docs" / "notify.md").read_text(encoding="utf-8")
CREATE, NEW, CHANGES, NOTE = re.findall(r"```sql\n(.*?);\n```", PAGE, re.DOTALL)
SETTINGS, SCHEDULE = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)


def test_the_settings_on_the_page_are_settings(tmp_path: Path) -> None:
    secret = tmp_path / "notify"
    secret.write_text("slack://a/b/c\n")
    (tmp_path / "schedules").mkdir()
    (tmp_path / "schedules" / "plants.toml").write_text(SCHEDULE)
    given = SETTINGS.replace("/run/secrets/notify", str(secret))
    file = tmp_path / "flowtrail.toml"
    file.write_text(f'[gateway]\nurl = "https://gw.example.com"\nauth = "none"\n{given}')
    settings, schedules = config.load_all(file, {})
    assert [receivers.on for receivers in settings.notify] == [
        ("held", "failed", "overdue"),
        ("cycle_changed", "removed"),
    ]
    assert settings.notify[1].orgs == ("o15427722038191",)
    assert schedules[0].ping_url is not None


@pytest.fixture
def reader(engine: Engine, tmp_path: Path) -> Iterator[Connection]:
    """Another program's connection, with a schema of its own."""
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            connection.connection.driver_connection.execute(f"ATTACH DATABASE '{tmp_path / 'own.db'}' AS reporting")
        else:
            connection.execute(text("CREATE SCHEMA reporting"))
        connection.execute(text(CREATE))
        connection.commit()
        yield connection


class Reader:
    """A program that does what the page says."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.stored: dict[Any, str] = {}

    def take(self) -> list[int]:
        """The runs that were new."""
        since = dt.datetime.now(dt.UTC) - dt.timedelta(days=7)
        new = self.connection.execute(text(NEW), {"since": f"{since:%Y-%m-%d %H:%M:%S}.000000"}).all()
        for run_id, change_sets in new:
            for row in self.connection.execute(text(CHANGES), {"run_id": run_id}):
                self.stored[(row.change_set_id, row.flow_id, row.kind)] = row.kind
            self.connection.execute(text(NOTE), {"run_id": run_id, "change_sets": change_sets})
        self.connection.commit()
        return [run_id for run_id, _ in new]


def test_a_program_that_takes_runs_as_the_page_says_gets_every_change(engine: Engine, reader: Connection) -> None:
    history, taker = RunHistory(engine), Reader(reader)
    first = history.run({ANN: [flow(1)], EVE: [flow(1)]})
    slow, quick = history.begin(schedule="plants"), history.begin(schedule="wind")
    history.apply(quick, {EVE: [flow(1), flow(2)]})
    history.finish(quick)
    assert taker.take() == [first, quick]
    history.apply(slow, {ANN: [flow(1), flow(2)]})
    history.finish(slow, "aborted")
    assert taker.take() == [slow]
    assert taker.take() == []
    with pytest.raises(RunClosed):
        history.apply(slow, {BOB: [flow(3)]})
    assert taker.take() == []
    with engine.connect() as connection:
        everything = connection.execute(text("SELECT change_set_id, flow_id, kind FROM workflow_change")).all()
    assert taker.stored.keys() == {tuple(row) for row in everything}
