"""The command plan: ask as sync does, write nothing, and show what would change."""

from __future__ import annotations

import contextlib
import datetime as dt
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence

import click

from etl import database, sync
from etl.cli import console
from etl.cli.application import Application
from etl.cli.options import Given, chosen_schedules, matching, schedules_argument, shared
from etl.cli.run import end_as, interruptible, moves_of, planned_rosters, show_moves, show_tally
from etl.cli.tables import event_table
from etl.domain.model import Outcome
from etl.report import ListChange
from etl.store import Store
from etl.sync import Refreshed, RunReport, Tally
from etl.system import disk


@click.command()
@schedules_argument
@shared("org", "user", "timezone", "limit", "json", "config")
def plan(given: Given, schedules: Sequence[str]) -> None:
    """Like sync, but write nothing and show what would change; --json prints each change as it is found."""
    zone = given.zone
    with (
        given.application(asks_gateway=True) as app,
        _existing_or_empty_database(app) as store,
        interruptible(app),
    ):
        planned = _PlanStream(app, given.most()) if given.json else _PlanTable(given.most(), zone)
        chosen, rosters = planned_rosters(app, store, chosen_schedules(app, schedules))
        targets = matching(chosen, given.org, given.user)
        with console.progress("fetching", len(targets), hidden=given.json) as arrived:
            tally = sync.plan(app.run_context(store, arrived), targets, app.batches, planned.add)
    planned.show(tally, len(targets), rosters)
    lacking = tally.verdicts["failed"] or tally.verdicts["held"] or any(each.error for each in rosters)
    end_as(app, int(bool(lacking or tally.interrupted)))


@contextlib.contextmanager
def _existing_or_empty_database(app: Application) -> Iterator[Store]:
    """The database; if there is none yet, a temporary empty one."""
    if database.current(app.engine) is not None or app.engine.dialect.name != "sqlite":
        database.require_current(app.engine)
        yield Store(app.engine, app.stop)
        return
    with disk.temporary_files():
        temporary = tempfile.TemporaryDirectory(prefix="flowtrail-plan-")
    with temporary as folder:
        engine = database.connect(f"sqlite:///{folder}/empty.db")
        try:
            database.upgrade(engine)
            yield Store(engine, app.stop)
        finally:
            engine.dispose()


class _PlanTable:
    """Keeps the first changes, by target and workflow, for a table; at most twice as many are in memory."""

    def __init__(self, limit: int | None, zone: dt.tzinfo) -> None:
        self._limit = limit
        self._zone = zone
        self._kept: list[ListChange] = []
        self._lock = threading.Lock()

    def add(self, outcomes: Sequence[Outcome]) -> None:
        with self._lock:
            for event in _events(outcomes):
                self._kept.append(event)
                if self._limit and len(self._kept) >= 2 * self._limit:
                    self._kept = self._first()

    def show(self, tally: Tally, targets: int, rosters: Sequence[Refreshed]) -> None:
        show_moves(rosters)
        show_tally("Planned", tally, targets)
        first = self._first()
        if first:
            event_table("\nWould be recorded", first, zone=self._zone)
        left_out = tally.changes.total() - len(first)
        if left_out > 0:
            console.complain(f"And {left_out} more: --limit 0 shows all, --json gives every column.", "dim")

    def _first(self) -> list[ListChange]:
        return sorted(self._kept, key=_order)[: self._limit]


class _PlanStream:
    """Prints changes as they come, in one JSON object that ends with the sums, and keeps none."""

    def __init__(self, app: Application, limit: int | None) -> None:
        self._app = app
        self._left = limit
        self._printed = console.JsonList(b'{"planned": [')
        self._lock = threading.Lock()

    def add(self, outcomes: Sequence[Outcome]) -> None:
        with self._lock, self._stopping():
            for event in _events(outcomes):
                if self._left == 0:
                    return
                self._left = self._left and self._left - 1
                self._printed.add(event._asdict())

    def show(self, tally: Tally, targets: int, rosters: Sequence[Refreshed]) -> None:
        report = RunReport(run_id=0, status="running", duration_seconds=0, targets=targets, tally=tally)
        summary = {key: value for key, value in report.summary().items() if key in ("targets", "changes", "issues")}
        if rosters:
            summary["rosters"] = [moves_of(each) for each in rosters]
        self._printed.close(b"],\n" + console.encoded(summary).removeprefix(b"{\n"))

    @contextlib.contextmanager
    def _stopping(self) -> Iterator[None]:
        """Stop the plan when the reader of the output has gone."""
        try:
            yield
        except BaseException:
            self._app.stop.set()
            raise


def _order(event: ListChange) -> tuple[str, ...]:
    return (event.org_id, event.user_id, event.expression, event.flow_id, event.kind)


def _events(outcomes: Iterable[Outcome]) -> Iterator[ListChange]:
    """What the outcomes would add to the trail, without the ids that only a commit assigns."""
    for made in (outcome.change_set for outcome in outcomes):
        for change in made.changes if made else ():
            assert made is not None  # noqa: S101 - it has changes
            fields = {name: getattr(change, name) for name in change.__struct_fields__}
            yield ListChange(
                change_set_id=0,
                run_id=0,
                **made.target._asdict(),
                **fields,
                last_unchanged_at=made.last_unchanged_at,
                observed_at=made.observed_at,
            )
