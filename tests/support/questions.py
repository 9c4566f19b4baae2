"""A gateway in this process, for runs over many targets. It answers immediately and counts requests."""

from __future__ import annotations

import datetime as dt
import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import msgspec
from sqlalchemy import Engine, text

from etl import sync
from etl.domain.approvals import Approval
from etl.domain.guard import Limits
from etl.domain.model import Flow, Snapshot, Target
from etl.errors import GatewayError, Interrupted
from etl.store import NewRun, Store
from etl.store.seals import Sign
from tests.support.builders import LIMITS, run_context

Lists = dict[Target, Sequence[Flow]]


class Upstream:
    """The list of each user. ``says(target, n)`` may replace the answer to the n-th request for a user in a run; None
    stops the run.
    """

    def __init__(self, lists: Mapping[Target, Sequence[Flow]]) -> None:
        self.lists = dict(lists)
        self.says: Callable[[Target, int], Sequence[Flow] | GatewayError | None] = lambda target, n: self.lists[target]
        self.asked: Counter[Target] = Counter()
        self.stop = threading.Event()
        self.clock: Callable[[], dt.datetime] = now
        self.slowed_seconds = 0.0

    def fetch(
        self,
        target: Target,
        known_data_hash: str | None = None,
        *,
        own_connection: bool = False,
        before: object = None,
        asked_as: str | None = None,
    ) -> Snapshot:
        asked_at = self.clock()
        self.asked[target] += 1
        said = self.says(target, self.asked[target])
        if said is None:
            self.stop.set()
            raise Interrupted
        if isinstance(said, GatewayError):
            raise said
        flows = tuple(sorted(said, key=lambda flow: flow.flow_id))
        data = msgspec.json.encode([_item(flow) for flow in flows])
        digest = hashlib.sha256(data).hexdigest()
        return Snapshot(
            target=target,
            flows=None if digest == known_data_hash else flows,
            data_hash=digest,
            asked_at=asked_at,
            observed_at=self.clock(),
            attempts=1,
            body=b"",
            sole_answer=own_connection,
            data=data,
        )


def _item(flow: Flow) -> dict[str, Any]:
    return {"flowId": flow.flow_id, "flowName": flow.flow_name, "cycle": flow.cycle, "editable": flow.editable}


class Runs:
    """Runs over an upstream, on a database."""

    def __init__(self, engine: Engine, upstream: Upstream, limits: Limits = LIMITS, sign: Sign | None = None) -> None:
        self.engine = engine
        self.upstream = upstream
        self.limits = limits
        self.sign = sign
        self.keeps_answers = False

    def run_context(self, in_flight: int = 4) -> AbstractContextManager[tuple[sync.RunContext, ThreadPoolExecutor]]:
        given = {"limits": self.limits, "stop": self.upstream.stop, "keeps_answers": self.keeps_answers}
        return run_context(Store(self.engine, sign=self.sign), self.upstream, in_flight, **given)

    def run(self, targets: Sequence[Target], *, by: str | None = None) -> sync.RunReport:
        self.upstream.asked.clear()
        self.upstream.stop.clear()
        return self.beside(targets, by=by)

    def beside(self, targets: Sequence[Target], *, by: str | None = None) -> sync.RunReport:
        """Run, without resetting what other runs use."""
        new = NewRun(origin="approval" if by else "command", host="here", pid=1, targets=len(targets))
        with self.run_context() as (context, batches):
            report = sync.run(
                context,
                new,
                targets,
                batches,
                clock=self.upstream.clock,
                approval=Approval(by, None) if by else None,
            )
        assert report is not None
        return report

    def rows(self, select: str) -> list[tuple[Any, ...]]:
        with self.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(select))]

    def removed(self) -> int:
        return int(self.rows("SELECT coalesce(sum(removed), 0) FROM change_set")[0][0])

    def age_counts(self, hours: float) -> None:
        """Let time pass for the guard's window, which uses the database's clock."""
        moved = (
            f"strftime('%Y-%m-%d %H:%M:%f', counted_at, '{-hours:+} hours') || '000'"
            if self.engine.dialect.name == "sqlite"
            else f"counted_at - interval '{hours} hours'"
        )
        with self.engine.begin() as connection:
            connection.execute(text(f"UPDATE org_turnover SET counted_at = {moved}"))


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def users(count: int, org: str = "o1") -> list[Target]:
    return [Target(org, f"u{number:03}") for number in range(count)]


def verdicts(report: sync.RunReport) -> dict[str, int]:
    return dict(report.tally.verdicts)
