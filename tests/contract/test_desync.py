"""No answer names its user: whatever a gateway sends and when, no target gets the answer of another."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from etl import sync
from etl.domain.guard import Limits
from etl.domain.model import Target
from etl.gateway import Gateway
from etl.store import NewRun, Store
from etl.system.clock import utc_now
from tests.support.builders import run_context
from tests.support.desync import HARMLESS, HOSTILE, Mixer
from tests.support.gateways import settings_for
from tests.support.hostile import NO_OPENSSL, Certificates

THREADS = 64
USERS = [f"user{number:03}" for number in range(400)]
BELIEVE_ALL = Limits(min_removed=1_000_000, max_emptied_targets=1_000_000)


EVERYBODYS = ["shared-1", "shared-2"]
"""In every list, so that another user's does not look like one that lost everything."""


class Life:
    """Users whose lists change from run to run; no id is ever in two lists, but for those that are everybody's."""

    def __init__(self, engine: Engine, server: Mixer, **settings: Any) -> None:
        self.engine = engine
        self.desyncs = 0
        self._settings = {"concurrency": THREADS, "deadline": 0.5, "timeout": 0.5} | settings
        self._server = server
        self._dice = random.Random(1)
        self._store = Store(engine)

    def run(self, context: sync.RunContext, batches: ThreadPoolExecutor) -> sync.RunReport:
        self._change()
        targets = [Target("org", user) for user in self._dice.sample(USERS, len(USERS))]
        begun = NewRun(targets=len(targets), origin="command", host="here", pid=1)
        report = sync.run(context, begun, targets, batches, clock=utc_now)
        assert report is not None
        return report

    def _change(self) -> None:
        for user in self._dice.sample(USERS, len(USERS) // 10):
            own = self._server.lists[user][len(EVERYBODYS) :]
            self._server.lists[user] = [*EVERYBODYS, *own[-3:], f"{user}-{self._dice.randrange(10**9)}"]

    @contextmanager
    def run_context(self) -> Iterator[tuple[sync.RunContext, ThreadPoolExecutor]]:
        settings = settings_for(self._server.url, **self._settings)
        with (
            Gateway(settings, desynced=self._count) as gateway,
            run_context(self._store, gateway, settings.concurrency, limits=BELIEVE_ALL, down_after=1_000_000) as made,
        ):
            yield made

    def _count(self) -> None:
        self.desyncs += 1

    def strangers(self) -> list[tuple[str, str]]:
        """Workflows that a user was ever said to have, and that are another's."""
        seen = (
            "SELECT DISTINCT t.user_id, c.flow_id FROM workflow_change c"
            " JOIN change_set s ON s.id = c.change_set_id JOIN target t ON t.id = s.target_id"
        )
        with self.engine.connect() as connection:
            rows = connection.execute(text(seen)).all()
        assert len({row.user_id for row in rows}) > len(USERS) // 2
        return [
            (row.user_id, row.flow_id)
            for row in rows
            if row.flow_id not in EVERYBODYS and not row.flow_id.startswith(f"{row.user_id}-")
        ]


@pytest.fixture
def lists() -> dict[str, list[str]]:
    return {user: [*EVERYBODYS, *(f"{user}-{n}" for n in range(3))] for user in USERS}


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_no_user_ever_has_an_id_of_another(engine: Engine, lists: dict[str, list[str]]) -> None:
    with Mixer(lists, HOSTILE, every=4, unasked=True) as server:
        life = Life(engine, server)
        with life.run_context() as made:
            while server.played < 10_000:
                life.run(*made)
        assert life.strangers() == []
        assert life.desyncs > 100


@NO_OPENSSL
@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_no_user_has_an_id_of_another_over_connections_opened_ahead(
    engine: Engine, lists: dict[str, list[str]], tmp_path: Path
) -> None:
    made_by = Certificates(tmp_path)
    with Mixer(lists, HOSTILE, every=8, unasked=True, tls=made_by.server("good")) as server:
        life = Life(engine, server, concurrency=16, deadline=5, ca_bundle=made_by.path("ca.pem"))
        with life.run_context() as made:
            while server.played < 1_500:
                life.run(*made)
        assert life.strangers() == []
        assert life.desyncs > 50


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_interim_answers_and_odd_splits_fail_no_target(engine: Engine, lists: dict[str, list[str]]) -> None:
    with Mixer(lists, HARMLESS, every=1) as server:
        life = Life(engine, server, deadline=10, timeout=10)
        with life.run_context() as made:
            while server.played < 2_000:
                report = life.run(*made)
                assert report.status == "succeeded", report.tally.issues
        assert (life.strangers(), life.desyncs) == ([], 0)
