"""A year of runs with everything that may go wrong, by a clock that a test sets."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import Engine

from etl.domain.model import Outcome, Target
from etl.errors import Refused, RunClosed
from etl.store import NewRun
from etl.store.seals import Sign
from tests.support.builders import flow, numbered
from tests.support.trails import ANN, BEN, CAT, DAN, House, change, stamp

EVE = Target("o2", "eve")
BEGIN = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
RUNS_A_MONTH = 6


class Clock:
    """A clock that advances by a millisecond per reading, and by ``move``."""

    def __init__(self) -> None:
        self._now = BEGIN
        self._lock = threading.Lock()

    def __call__(self) -> dt.datetime:
        with self._lock:
            self._now += dt.timedelta(milliseconds=1)
            return self._now

    def move(self, **by: float) -> None:
        with self._lock:
            self._now += dt.timedelta(**by)


class Year:
    """Twelve months, each with quiet runs and one special event; ``monthly`` is called at the end of each."""

    def __init__(self, engine: Engine, sign: Sign, monthly: Callable[[House], None] = lambda house: None) -> None:
        self.house = House(engine, sign)
        self.clock = Clock()
        self.house.upstream.clock = self.clock
        self.house.keeps_answers = True
        self.lists = self.house.upstream.lists
        self.lists[EVE] = numbered(1, 4)
        self.plants: Sequence[Target] = [ANN, BEN, CAT, DAN]
        self._monthly = monthly

    def live(self) -> None:
        """Run the whole year."""
        months = (
            *(self.nothing_special, self.an_outage, self.a_hold_that_comes_back, self.an_approved_hold),
            *(self.a_retirement, self.a_return, self.commands, self.stopped_and_dead_runs),
            *(self.two_replicas, self.a_clock_that_goes_back, self.empty_lists, self.pruned_issues),
        )
        for number, month in enumerate(months):
            self.lists[ANN] = [*numbered(1, 6), flow(100 + number, cycle="W")]
            for _ in range(RUNS_A_MONTH):
                self.serve()
            month()
            self._monthly(self.house)
            self.house.age_counts(30)
            self.clock.move(days=20)

    def serve(self) -> str:
        """A run of both schedules, a day after the one before."""
        self.clock.move(days=1)
        return self.house.serve({"plants": self.plants, "wind": [EVE]}).status

    def nothing_special(self) -> None:
        assert self.serve() == "succeeded"

    def an_outage(self) -> None:
        self.house.upstream.says = lambda target, n: Refused("no", code="62101")
        assert [self.serve(), self.serve()] == ["failed", "failed"]
        self._works_again()
        self.house.upstream.says = lambda target, n: (
            Refused("no", code="99500") if target == CAT else self.lists[target]
        )
        assert self.serve() == "partial"
        self._works_again()

    def a_hold_that_comes_back(self) -> None:
        self.lists[BEN] = [flow(1, "renamed meanwhile"), flow(77)]
        assert [self.serve(), self.serve()] == ["partial", "partial"]
        self.lists[BEN] = numbered(1, 6)
        self.serve()

    def an_approved_hold(self) -> None:
        self.lists[DAN] = numbered(1, 2)
        assert self.serve() == "partial"
        self.clock.move(hours=1)
        assert self.house.approve(DAN).status == "succeeded"

    def a_retirement(self) -> None:
        self.plants = [ANN, BEN, DAN]
        self.serve()
        self.house.store.retire_others({*self.plants, EVE}, self.clock(), None)

    def a_return(self) -> None:
        self.plants = [ANN, BEN, CAT, DAN]
        self.lists[CAT] = [*numbered(1, 6), flow(55)]
        assert self.serve() == "succeeded"

    def commands(self) -> None:
        self.clock.move(hours=1)
        self.house.serve({"plants": self.plants, "wind": [EVE]}, org="o2")
        self.house.run([ANN, EVE])

    def stopped_and_dead_runs(self) -> None:
        self.house.upstream.says = lambda target, n: None if target == CAT else self.lists[target]
        assert self.serve() == "aborted"
        self._works_again()
        self._comes_back_to_life()

    def two_replicas(self) -> None:
        """Both request every list at the same time; when one commits, the answer of the other is stale."""
        self.lists[BEN] = numbered(1, 7)
        other = House(self.house.engine, self.house.sign)
        other.upstream, other.keeps_answers = self.house.upstream, True
        lists = {"plants": self.plants, "wind": [EVE]}
        with ThreadPoolExecutor(2) as both:
            list(both.map(lambda house: house.serve(lists), (self.house, other)))

    def a_clock_that_goes_back(self) -> None:
        self.clock.move(days=-2)
        self.serve()
        self.lists[BEN] = numbered(1, 8)
        self.serve()
        self.clock.move(days=5)

    def empty_lists(self) -> None:
        self.lists[EVE] = []
        self.serve()
        self.lists[EVE] = numbered(1, 5)
        self.serve()

    def pruned_issues(self) -> None:
        change(self.house.engine, "UPDATE sync_run SET notified_at = started_at")
        gone = self.house.store.prune_runs(self.clock() - dt.timedelta(days=200), self.clock(), has_receivers=True)
        assert gone.issues

    def _works_again(self) -> None:
        self.house.upstream.says = lambda target, n: self.lists[target]

    def _comes_back_to_life(self) -> None:
        """A run that was declared dead while it waited for an answer cannot write it."""
        store, new = self.house.store, NewRun(origin="command", host="h", pid=1, targets=1)
        run_id = store.begin_run(new, self.clock(), [ANN])
        assert run_id is not None
        [fence] = store.fences([ANN])
        long_ago = stamp(self.house, dt.datetime.now(dt.UTC) - dt.timedelta(hours=1))
        change(self.house.engine, "UPDATE sync_run SET heartbeat_at = :at WHERE id = :id", at=long_ago, id=run_id)
        assert store.abort_abandoned_runs(self.clock()) == [run_id]
        try:
            store.apply(run_id, [Outcome(fence=fence, verdict="unchanged", span=fence.span, extends=True)])
        except RunClosed:
            assert not store.finish_run(run_id, "succeeded", {}, self.clock())
        else:
            raise AssertionError("it wrote something")
