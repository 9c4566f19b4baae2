"""The commands sync and plan, and what others that ask the gateway share with them: rosters, signals, reports."""

from __future__ import annotations

import contextlib
import datetime as dt
import signal
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence, Set
from concurrent.futures import Future, wait
from itertools import islice
from typing import TYPE_CHECKING, Final

import click
from click.exceptions import Exit

from etl import database, sync
from etl.cli import console
from etl.cli.application import Application
from etl.cli.options import Options, chosen_schedules, matching, schedules_argument, shared
from etl.config import Configured, Schedule, directories
from etl.config.rules import signature as has_rules
from etl.domain.kinds import CHANGE_KINDS
from etl.domain.model import VERDICTS, Outcome
from etl.errors import FlowtrailError, GatewayError
from etl.printable import counted
from etl.store import Store
from etl.sync import Refreshed, RunReport, Tally, organisations
from etl.system import disk
from etl.system.clock import utc_now

if TYPE_CHECKING:
    from etl.report.rows import ListChange

_ISSUES_SHOWN = 50
_PATIENCE_SECONDS: Final = 5.0
"""How long a sync waits for rosters if older ones are stored; a later answer counts for the next sync."""
_STOP_SECONDS: Final = 5.0
_NAMED: Final = 10
"""How many users a sentence names."""


@click.command("sync")
@schedules_argument
@click.option("--retire", is_flag=True, help="Retire targets that are no longer configured, however many.")
@shared("org", "user", "upgrade", "json", "config")
def sync_now(options: Options, schedules: Sequence[str], retire: bool) -> None:
    """Run once now: fetch every target and record what changed."""
    with options.application(asks_gateway=True) as app:
        named = chosen_schedules(app, schedules)
        if not organisations(named):
            matching(named, options.org, options.user)
        app.ready(upgrade=options.upgrade)
        if app.cluster is not None:
            app.cluster.connect()
        store = app.sealing_store()
        store.abort_abandoned_runs(utc_now())
        with refreshed(app, store, named, accept=retire) as chosen:
            targets = matching(chosen, options.org, options.user)
            if not (schedules or options.org or options.user):
                app.rosters(store).keep_only(chosen)
                _retire(app, store, Configured(chosen), everything=retire)
            with app.telling_webhooks(store):
                with (
                    interruptible(app),
                    console.progress("fetching", len(targets), hidden=options.json) as arrived,
                ):
                    report = app.run(
                        "command",
                        targets,
                        chosen,
                        org_id=options.org,
                        user_id=options.user,
                        context=app.run_context(store, arrived),
                        remote=app.cluster,
                        details=app.details(chosen),
                    )
                app.keep_heads()
                show_report(report, options.json)
                if has_rules(app.settings.rules_dir):
                    from etl.cli.rules import evaluate_after_sync  # see etl/cli/application.py

                    with interruptible(app):
                        evaluate_after_sync(app, store)
    end_as(app, int(report.status != "succeeded" or any(schedule.unlisted for schedule in chosen)))


def _retire(app: Application, store: Store, configured: Configured, *, everything: bool) -> None:
    share = None if everything else app.settings.guard.max_emptied_share
    done = store.retire_others(configured, utc_now(), share, configured.names)
    if done.retired:
        console.complain(f"No longer configured, and retired: {counted(len(done.retired), 'target')}.", "yellow")
    if done.refused:
        console.complain(
            f"No longer configured: {counted(len(done.refused), 'target')}, too many to retire unconfirmed: nothing is "
            "retired. Put them back into a schedule, or run `flowtrail sync --retire`.",
            "yellow",
        )


@click.command()
@schedules_argument
@shared("org", "user", "timezone", "limit", "json", "config")
def plan(options: Options, schedules: Sequence[str]) -> None:
    """Like sync, but write nothing and show what would change; --json prints each change as it is found."""
    zone = options.zone
    with (
        options.application(asks_gateway=True) as app,
        _existing_or_empty_database(app) as store,
        interruptible(app),
    ):
        planned = _Planned(app, options.most(), zone, as_json=options.json)
        chosen, rosters = _planned_rosters(app, store, chosen_schedules(app, schedules))
        targets = matching(chosen, options.org, options.user)
        with console.progress("fetching", len(targets), hidden=options.json) as arrived:
            tally = sync.plan(app.run_context(store, arrived), targets, app.batches, planned.add, directories(chosen))
    planned.show(tally, len(targets), rosters)
    lacking = tally.verdicts["failed"] or tally.verdicts["held"] or any(each.error for each in rosters)
    end_as(app, int(bool(lacking or tally.interrupted)))


@contextlib.contextmanager
def interruptible(app: Application) -> Iterator[None]:
    """Ctrl-C and SIGTERM stop the run cleanly: complete answers are committed, the rest is abandoned. See
    ``end_as``."""

    def stop(number: int, _: object) -> None:
        app.stopped_by = number
        app.stop.set()

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, stop) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def end_as(app: Application, code: int) -> None:
    """Exit with ``code``; or, if a signal stopped the command, with the usual exit code for that signal."""
    if app.stopped_by is not None:
        raise Exit(128 + app.stopped_by)
    if code:
        raise Exit(code)


def show_report(report: RunReport, as_json: bool) -> None:
    """Print what a run did."""
    for note in report.notes:
        console.complain(f"Note: {note}.", "yellow")
    if as_json:
        console.json(report.summary())
        return
    show_tally(f"Run {report.run_id} {report.status}", report.tally, report.targets, report.duration_seconds)


def show_tally(head: str, tally: Tally, targets: int, seconds: float | None = None) -> None:
    """Print the sums of a run or a plan, and the targets with issues."""
    verdicts = ", ".join(f"{tally.verdicts[name]} {name}" for name in VERDICTS if tally.verdicts[name])
    timing = "" if seconds is None else f" in {seconds:.1f} s"
    console.say(f"{head}: {counted(targets, 'target')}{timing}; {verdicts or 'none was asked'}.", "bold")
    changes = ", ".join(f"{tally.changes[kind]} {kind}" for kind in CHANGE_KINDS if tally.changes[kind])
    console.say(f"Changes in lists: {changes or 'none'}.")
    if tally.issues:
        console.table(
            "\nProblems",
            ("org_id", "user_id", "expression", "verdict", "error_code", "message"),
            (
                (*p.target, p.verdict, p.issue.error_code, p.issue.message)
                for p in tally.sorted_issues()[:_ISSUES_SHOWN]
            ),
        )
    if more := tally.causes.total() - len(tally.issues[:_ISSUES_SHOWN]):
        console.say(f"And {more} more: the table sync_issue lists all of them by run_id.", "yellow")
        console.table("\nBy cause", ("cause", "targets"), tally.causes.most_common())
    if tally.verdicts["held"]:
        console.say("What is held waits for a person: `flowtrail guard list` shows it.", "yellow")


@contextlib.contextmanager
def refreshed(
    app: Application, store: Store, schedules: Sequence[Schedule], *, accept: bool
) -> Iterator[Sequence[Schedule]]:
    """The schedules with the users of their rosters as targets; rosters that are due are asked for first.

    If a roster fails or is slow, the last one stays in force, unless a person waits for the answer (``accept``). Raises
    FlowtrailError if none ever came and there is nothing else to ask. Requests for rosters that are still under way are
    cut off at the block's end.
    """
    orgs = organisations(schedules)
    if not orgs:
        yield schedules
        return
    stored = store.rosters(orgs)
    all_stand = all(org in stored and stored[org].answered_at is not None for org in orgs)
    answer: Future[list[Refreshed]] = Future()

    def ask() -> None:
        try:
            answer.set_result(app.rosters(store).refresh(orgs, accept=accept))
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=ask, name="rosters", daemon=True).start()  # one that hangs holds up no exit
    try:
        _await_rosters(answer, _PATIENCE_SECONDS if all_stand and not accept else None)
        expanded = app.rosters(store).expand(schedules)
        _require_targets(expanded)
        yield expanded
    finally:
        if not answer.done():
            app.stop.set()
            wait([answer], _STOP_SECONDS)


def _await_rosters(answer: Future[list[Refreshed]], seconds: float | None) -> None:
    """Wait at most this long (None: until they are there). A stop cuts the requests off, which ends the wait."""
    try:
        rosters = answer.result(seconds)
    except TimeoutError:
        console.complain(f"The roster did not come within {seconds:g} s; the last one stays in force.", "yellow")
        return
    for each in rosters:
        if each.error:
            console.complain(f"No roster of {each.org_id}: {each.error}", "yellow")
        if each.moves.newly_missing:
            console.complain(
                f"The roster of {each.org_id} lacks {len(each.moves.newly_missing)} users: too many to believe "
                "without confirmation, so they stay. If it is right, run `flowtrail sync --retire`.",
                "yellow",
            )


def _require_targets(schedules: Sequence[Schedule]) -> None:
    unlisted = {roster.org_id for schedule in schedules for roster in schedule.unlisted}
    for org in sorted(unlisted):
        console.complain(f"The users of {org} are not known, so none of them is asked for.", "red")
    if not any(schedule.targets for schedule in schedules):
        raise FlowtrailError(
            "There is no target to ask for: no roster has come yet. `flowtrail check` says what is wrong."
        )


def _planned_rosters(
    app: Application, store: Store, schedules: Sequence[Schedule]
) -> tuple[Sequence[Schedule], list[Refreshed]]:
    """The schedules with the users that their rosters have now, and what that would change; nothing is written.

    If a roster does not come, the last one stays in force.
    """
    users, found = {}, []
    rosters = app.rosters(store)
    stored_rosters = store.rosters(organisations(schedules))
    for org in sorted(organisations(schedules)):
        try:
            members, moves = rosters.planned(org)
        except GatewayError as error:
            found.append(Refreshed(org, error=str(error)))
            members = stored_rosters[org].users if org in stored_rosters else set()
        else:
            found.append(Refreshed(org, moves))
        if members:
            users[org] = members
    return [schedule.with_users(users) for schedule in schedules], found


def _show_moves(rosters: Sequence[Refreshed]) -> None:
    """Print a sentence on who would join and leave each organisation."""
    for each in rosters:
        if each.error:
            console.complain(f"No roster of {each.org_id}: {each.error}", "yellow")
            continue
        would = {"would join": each.moves.joined, "would leave": each.moves.left, "lacking": each.moves.newly_missing}
        differences = "; ".join(f"{len(users)} {what} ({_some(users)})" for what, users in would.items() if users)
        console.say(f"Roster of {each.org_id}: {differences or 'as before'}.")


def _moves_of(each: Refreshed) -> dict[str, object]:
    """The same as JSON values."""
    moves = each.moves
    return {
        "org_id": each.org_id,
        "error": each.error or None,
        "joins": sorted(moves.joined),
        "leaves": sorted(moves.left),
        "missing": sorted(moves.newly_missing),
    }


def _some(users: Set[str]) -> str:
    return ", ".join(sorted(users)[:_NAMED]) + (", ..." if len(users) > _NAMED else "")


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


class _Planned:
    """What would change: for a table the first changes, by target and workflow; as JSON all, printed as they come, in
    one object that ends with the sums."""

    def __init__(self, app: Application, most: int | None, zone: dt.tzinfo, *, as_json: bool) -> None:
        self._app, self._most, self._zone = app, most, zone
        self._shown: list[ListChange] = []
        self._printed = console.JsonList(b'{"planned": [') if as_json else None
        self._left = most
        self._lock = threading.Lock()

    def add(self, outcomes: Sequence[Outcome]) -> None:
        with self._lock:
            if self._printed is None:
                self._shown = sorted([*self._shown, *_changes(outcomes)], key=_order)[: self._most]
                return
            found = list(islice(_changes(outcomes), self._left))
            self._left = self._left and self._left - len(found)
            try:
                for change in found:
                    self._printed.add(change._asdict())
            except BaseException:
                self._app.stop.set()  # the reader of the output has gone
                raise

    def show(self, tally: Tally, targets: int, rosters: Sequence[Refreshed]) -> None:
        if self._printed is not None:
            report = RunReport(run_id=0, status="running", duration_seconds=0, targets=targets, tally=tally)
            sums = {key: value for key, value in report.summary().items() if key in ("targets", "changes", "issues")}
            moves = {"rosters": [_moves_of(each) for each in rosters]} if rosters else {}
            self._printed.close(b"],\n" + console.encoded(sums | moves).removeprefix(b"{\n"))
            return
        from etl.cli.lists import CHANGE_COLUMNS, change_cells  # see etl/cli/application.py

        _show_moves(rosters)
        show_tally("Planned", tally, targets)
        console.table("\nWould be recorded", CHANGE_COLUMNS, change_cells(self._shown), None, zone=self._zone)
        left_out = tally.changes.total() - len(self._shown)
        if left_out > 0:
            console.complain(f"And {left_out} more: --limit 0 shows all, --json gives every column.", "dim")


def _order(change: ListChange) -> tuple[str, ...]:
    return (change.org_id, change.user_id, change.expression, change.flow_id, change.kind)


def _changes(outcomes: Iterable[Outcome]) -> Iterator[ListChange]:
    """What the outcomes would add to the trail, without the ids that only a commit assigns."""
    from etl.report.rows import ListChange

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
                ticket=None,
                acknowledged_by=None,
                acknowledged_at=None,
            )
