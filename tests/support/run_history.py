"""Runs described in one line each, and what a receiver is notified of."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Engine, update

from etl.database import writing
from etl.domain import verdict
from etl.domain.kinds import DELTA_KINDS, TARGET_ISSUE_KINDS
from etl.domain.model import Flow, Outcome, RunStatus, Target
from etl.errors import Refused
from etl.notify.digest import Digest, digest_of
from etl.schema import sync_run
from etl.store import NewRun, Store, UnnotifiedRun
from tests.support.builders import UNCHECKED, judged, snapshot

ON = (*DELTA_KINDS, *TARGET_ISSUE_KINDS)
ANN, BOB, EVE = Target("o1", "ann"), Target("o1", "bob"), Target("o2", "eve")
Answer = Sequence[Flow] | str
"""A list, or the code of an error."""


class RunHistory:
    """A database with runs a minute apart, since twenty minutes ago."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.store = Store(engine)
        self._next = dt.datetime.now(dt.UTC) - dt.timedelta(minutes=20)

    def run(self, answers: dict[Target, Answer], *, schedule: str | None = "plants", by: str | None = None) -> int:
        """A complete run."""
        run_id = self.begin(schedule=schedule, approves=by is not None)
        self.apply(run_id, answers, by)
        self.finish(run_id)
        return run_id

    def begin(self, *, schedule: str | None = "plants", approves: bool = False) -> int:
        self._next += dt.timedelta(minutes=1)
        slot = self._next if schedule else None
        origin: Any = "schedule" if schedule else "approval" if approves else "command"
        new = NewRun(origin=origin, host="here", pid=1, targets=0, schedule=schedule, scheduled_for=slot)
        run_id = self.store.begin_run(new, self._next)
        assert run_id is not None
        return run_id

    def apply(self, run_id: int, answers: dict[Target, Answer], by: str | None = None) -> None:
        at = self._next + dt.timedelta(seconds=5)
        fences = dict(zip(answers, self.store.fences(list(answers)), strict=True))
        outcomes = [self._outcome(fences[target], answer, at, by) for target, answer in answers.items()]
        assert self.store.apply(run_id, outcomes, UNCHECKED) == set()

    def finish(self, run_id: int, status: RunStatus = "succeeded") -> None:
        end = self._next + dt.timedelta(seconds=10)
        self.store.derive_events(run_id, self._next, lambda: end)
        assert self.store.finish_run(run_id, status, {}, end)
        with writing(self.engine) as connection:  # the heartbeat uses the database's clock, not the test's
            connection.execute(update(sync_run).where(sync_run.c.id == run_id).values(heartbeat_at=end))

    def _outcome(self, fence: Any, answer: Answer, at: dt.datetime, by: str | None) -> Outcome:
        if isinstance(answer, str):
            return verdict.failed(fence, Refused(f"EnOS said {answer}", code=answer))
        return judged(self.store, fence, snapshot(answer, at, target=fence.target), by=by)

    # --------------------------------------------------------------------------------------- what receivers get

    def unnotified(self) -> list[UnnotifiedRun]:
        return self.store.unnotified_runs(dt.datetime.now(dt.UTC) - dt.timedelta(days=1))

    def digest(
        self, run_id: int, on: Sequence[str] = ON, orgs: Sequence[str] = (), unacknowledged: bool = False
    ) -> Digest | None:
        run = next(run for run in self.unnotified() if run.id == run_id)
        return digest_of(self.engine, run, on, orgs, unacknowledged)

    def lines(self, run_id: int, *wanted: Any, **more: Any) -> dict[str, list[str]]:
        """The lines of each kind."""
        digest = self.digest(run_id, *wanted, **more)
        return {kind: list(part.lines) for kind, part in digest.parts.items()} if digest else {}
