"""Whole runs in one process: the real client, the local gateway and a database, checked by the independent checker."""

from __future__ import annotations

import contextlib
import datetime as dt
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import psycopg
from sqlalchemy import Engine, text

from etl import sync
from etl.config import GatewaySettings, Secret
from etl.domain.approvals import Approval
from etl.domain.model import Flow, Target
from etl.gateway import Gateway
from etl.store import NewRun, Store
from etl.system.clock import utc_now
from etl.verify import verify
from tests.support import checker
from tests.support.builders import run_context
from tests.support.enos import Fault, Kind, LocalGateway, Order


class House:
    """A gateway, a client and a database. ``sync`` runs once; ``check`` runs the independent checker."""

    def __init__(self, engine: Engine, url: str, upstream: LocalGateway, concurrency: int, **settings: float) -> None:
        seconds = {"deadline": 20.0, "timeout": 10.0} | settings
        self.engine = engine
        self.url = url
        self.upstream = upstream
        self.world = upstream.world
        self.stop = threading.Event()
        self.offset = dt.timedelta(0)
        self.arrived: Callable[[], None] = lambda: None
        self.concurrency = concurrency
        self.keeps_answers = False
        self.settings = GatewaySettings(
            url=upstream.url,
            access_key="demo-access-key",
            secret_key=Secret("demo-secret-key"),
            concurrency=concurrency,
            deadline=dt.timedelta(seconds=seconds["deadline"]),
            timeout=dt.timedelta(seconds=seconds["timeout"]),
        )

    def hurry(self, deadline_seconds: float) -> None:
        """From now on a target has this deadline, including retries."""
        deadline = dt.timedelta(seconds=deadline_seconds)
        self.settings = msgspec.structs.replace(self.settings, deadline=deadline)

    def now(self) -> dt.datetime:
        return utc_now() + self.offset

    def see(self, target: Target, flows: Sequence[Flow]) -> None:
        self.world.set_flows(target.org_id, target.user_id, flows)

    def fault(self, kind: Kind, target: Target | None = None, **how: Any) -> Order:
        whose: dict[str, Any] = {} if target is None else {"org": target.org_id, "user": target.user_id}
        return self.upstream.order(Fault(kind, **whose, **how))

    @contextlib.contextmanager
    def run_context(self, store: Store | None = None) -> Iterator[tuple[sync.RunContext, ThreadPoolExecutor]]:
        given = {"stop": self.stop, "arrived": self.arrived, "keeps_answers": self.keeps_answers}
        with (
            Gateway(self.settings, clock=self.now, stop=self.stop) as gateway,
            run_context(
                store or Store(self.engine), gateway, self.concurrency, down_after=3 * self.concurrency, **given
            ) as made,
        ):
            yield made

    def run(
        self,
        *targets: Target,
        by: str | None = None,
        scopes: dict[Target, str] | None = None,
        store: Store | None = None,
        details: sync.DetailLimits | None = None,
        **new: Any,
    ) -> sync.RunReport | None:
        known: dict[str, Any] = {"origin": "command" if by is None else "approval", "host": "here", "pid": 1, **new}
        with self.run_context(store) as (context, batches):
            begun = NewRun(targets=len(targets), **known)
            approval = None if by is None else Approval(by, scopes)
            return sync.run(context, begun, targets, batches, clock=self.now, approval=approval, details=details)

    def sync(
        self, *targets: Target, by: str | None = None, scopes: dict[Target, str] | None = None, **verdicts: int
    ) -> sync.RunReport:
        """Run once; the verdicts must be exactly these."""
        report = self.run(*targets, by=by, scopes=scopes)
        assert report is not None
        assert dict(report.tally.verdicts) == verdicts, report.tally.issues
        return report

    def deliveries(self) -> list[checker.Delivered]:
        return checker.delivered(self.upstream.deliveries.entries())

    def check(self, *, settled: bool = True, every_answer: bool = False) -> None:
        findings = checker.check(
            self.url, self.deliveries(), settled=settled, every_answer=every_answer, guard=checker.Guard()
        )
        findings += map(str, verify(self.engine))
        assert not findings, "\n".join(findings)

    def rows(self, select: str) -> list[tuple[Any, ...]]:
        with self.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(select))]

    def state(self, target: Target) -> set[str]:
        rows = self.rows(
            "SELECT w.flow_id FROM workflow w JOIN target t ON t.id = w.target_id WHERE t.org_id = "
            f"'{target.org_id}' AND t.user_id = '{target.user_id}' AND t.expression = '{target.expression}'"
        )
        return {flow_id for (flow_id,) in rows}


@contextlib.contextmanager
def gone(engine: Engine) -> Iterator[None]:
    """The database answers no statement."""
    real = engine.dialect.do_execute

    def refuse(*_: Any, **named: Any) -> None:
        if engine.dialect.name == "sqlite":
            busy = sqlite3.OperationalError("the database went away")
            busy.sqlite_errorcode = sqlite3.SQLITE_BUSY
            raise busy
        raise psycopg.OperationalError("the database went away")

    engine.dialect.do_execute = refuse  # type: ignore[method-assign]
    try:
        yield
    finally:
        engine.dialect.do_execute = real  # type: ignore[method-assign]
