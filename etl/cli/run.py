"""The commands that ask the gateway and record or check: sync, serve, check."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.exceptions import Exit

from etl import __version__, config, log
from etl.cli import console
from etl.cli.application import Application, a_run
from etl.cli.checks import CheckResult, run_checks
from etl.cli.maintenance import maintenance_running, timestamps_of, verification_of
from etl.cli.notify import Notifications
from etl.cli.options import FILE, Given, chosen_schedules, matching, schedules_argument, shared
from etl.cli.rosters import refreshed
from etl.config import Configured, Schedule
from etl.domain.kinds import CHANGE_KINDS
from etl.domain.model import VERDICTS, Target
from etl.errors import UsageError
from etl.gateway import Recorder
from etl.printable import counted
from etl.service.replica import Service
from etl.service.runs import Identity, RunHooks
from etl.store import NewRun, Store
from etl.sync import RunReport, Tally, organisations, run
from etl.system.clock import utc_now

if TYPE_CHECKING:
    from etl.cli.own_conditions import OwnConditions
    from etl.service.metrics import Metrics
    from etl.system.background import BackgroundLoop

_ISSUES_SHOWN = 50
_LAST_SECONDS = 1.0
"""Time after the grace period for closing what was opened."""


@click.command("sync")
@schedules_argument
@click.option("--retire", is_flag=True, help="Retire targets that are no longer configured, however many.")
@shared("org", "user", "upgrade", "json", "config")
def sync_now(given: Given, schedules: Sequence[str], retire: bool) -> None:
    """Run once now: fetch every target and record what changed."""
    with given.application(asks_gateway=True) as app:
        named = chosen_schedules(app, schedules)
        if not organisations(named):
            matching(named, given.org, given.user)
        app.ready(upgrade=given.upgrade)
        if app.cluster is not None:
            app.cluster.connect()
        store = app.sealing_store()
        store.abort_abandoned_runs(utc_now())
        with refreshed(app, store, named, accept=retire) as chosen:
            targets = matching(chosen, given.org, given.user)
            if not (schedules or given.org or given.user):
                app.rosters(store).keep_only(chosen)
                _retire(app, store, Configured(chosen), everything=retire)
            scope, gap = {"org_id": given.org, "user_id": given.user}, app.settings.coverage_gap
            new_run = a_run("command", len(targets), chosen, **scope, coverage_gap=gap)
            report = _run(app, store, new_run, chosen, targets, quiet=given.json)
        app.keep_heads()
    show_report(report, given.json)
    end_as(app, int(report.status != "succeeded" or any(schedule.unlisted for schedule in chosen)))


def _run(
    app: Application,
    store: Store,
    new_run: NewRun,
    schedules: Sequence[Schedule],
    targets: Sequence[Target],
    *,
    quiet: bool,
) -> RunReport:
    with interruptible(app), console.progress("fetching", len(targets), hidden=quiet) as arrived:
        report = run(
            app.run_context(store, arrived),
            new_run,
            targets,
            app.batches,
            clock=utc_now,
            remote=app.cluster,
            details=app.details(schedules),
        )
    assert report is not None  # noqa: S101 - a command's run has no slot that another could have taken
    return report


def _retire(app: Application, store: Store, configured: Configured, *, everything: bool) -> None:
    share = None if everything else app.settings.guard.max_emptied_share
    done = store.retire_others(configured, utc_now(), share)
    if done.retired:
        console.complain(f"No longer configured, and retired: {counted(len(done.retired), 'target')}.", "yellow")
    if done.refused:
        console.complain(
            f"No longer configured: {counted(len(done.refused), 'target')}, too many to retire unconfirmed: nothing is "
            "retired. Put them back into a schedule, or run `flowtrail sync --retire`.",
            "yellow",
        )


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
    console.say(f"Changes: {changes or 'none'}.")
    if tally.issues:
        console.table(
            "\nProblems",
            ("organisation", "user", "expression", "verdict", "code", "why"),
            (
                (*p.target, p.verdict, p.issue.error_code, p.issue.message)
                for p in tally.sorted_issues()[:_ISSUES_SHOWN]
            ),
            if_any=("expression",),
        )
    if more := tally.causes.total() - len(tally.issues[:_ISSUES_SHOWN]):
        console.say(f"And {more} more: the table sync_issue lists all of them by run_id.", "yellow")
        console.table("\nBy cause", ("cause", "targets"), tally.causes.most_common())
    if tally.verdicts["held"]:
        console.say("What is held waits for a person: `flowtrail guard list` shows it.", "yellow")


@click.command()
@click.option("--no-standby", is_flag=True, help="Exit with 4 if another replica is active.")
@shared("upgrade", "config")
def serve(given: Given, no_standby: bool) -> None:
    """Run the schedules in the background until SIGTERM; SIGHUP reloads them."""
    with given.application(asks_gateway=True) as app:
        app.schedules  # noqa: B018 - a broken schedule is reported before the database is touched
        app.ready(upgrade=given.upgrade)
        served = _serve(app, standby=not no_standby)
    if not served:
        console.complain("Another replica is active, and --no-standby was given.")
        raise Exit(4)


def _serve(app: Application, *, standby: bool) -> bool:
    """Run the service and everything beside it; False if another replica is active and ``standby`` is off."""
    from etl.cli.listen import listening
    from etl.cli.own_conditions import OwnConditions
    from etl.service.metrics import Metrics

    metrics = Metrics()
    app.exchanged, app.desynced = metrics.exchanged, metrics.desynced
    store = app.sealing_store(applied=metrics.applied)
    notifications = Notifications(app, store)
    own = OwnConditions(app, notifications)
    service = _replica(app, store, metrics, notifications, own)
    own.service, own.verification = service, verification_of(app, store, service)
    own.timestamps = timestamps_of(app, store, service)
    threading.Thread(target=_end_in_time, args=(service, app.settings.service.grace), daemon=True).start()
    with (
        service.signals(),
        listening(app, service, metrics, own),
        notifications.running(service),
        _watching(app, store, service, notifications, own),
        own.verification.running(),
        own.timestamps.running() if own.timestamps is not None else contextlib.nullcontext(),
        maintenance_running(app, service),
    ):
        served = service.serve(standby=standby)
    if not service.ended:
        os._exit(0)  # a thread is stuck after the grace period: what it was doing was not committed
    return served


def _watching(
    app: Application, store: Store, service: Service, notifications: Notifications, own: OwnConditions
) -> BackgroundLoop:
    from etl.report import health
    from etl.service.maintenance import ConditionWatcher

    return ConditionWatcher(
        store,
        active=lambda: service.role == "active",
        read=lambda: health.read(app.engine, service.schedules, utc_now(), service.known_since),
        own=own,
        clock=utc_now,
        changed=notifications.wake,
    ).running()


def _replica(
    app: Application, store: Store, metrics: Metrics, notifications: Notifications, own: OwnConditions
) -> Service:
    def finished(report: RunReport, schedule: Schedule) -> None:
        _count(metrics, report, schedule)
        own.finished(report, schedule)
        notifications.finished(report, schedule)

    return Service(
        app.run_context(store),
        Identity(socket.gethostname(), os.getpid(), secrets.token_hex(4)),
        lambda: _load_schedules(app, metrics),
        coverage_gap=app.settings.coverage_gap,
        grace=app.settings.service.grace,
        max_retired_share=app.settings.guard.max_emptied_share,
        batches=app.batches,
        clock=utc_now,
        hooks=RunHooks(started=notifications.started, finished=finished, crashed=notifications.crashed),
        became=notifications.role_changed,
        remote=own.remote,
        rosters=app.rosters(store),
        details=lambda schedule: app.details([schedule]),
    )


def _end_in_time(service: Service, grace: dt.timedelta) -> None:
    """End the process after the grace period, even if a silent database blocks its threads."""
    service.wait_for_stop()
    time.sleep(grace.total_seconds() + _LAST_SECONDS)
    service.log.warning("ended_by_force", why="the grace period is over", remedy="what was not committed is caught up")
    os._exit(0)


def _count(metrics: Metrics, report: RunReport, schedule: Schedule) -> None:
    tally = report.tally
    metrics.run_ended(
        schedule.name,
        report.status,
        report.duration_seconds,
        verdicts=tally.verdicts,
        changes=tally.changes,
        failures={cause: count for cause, count in tally.causes.items() if cause not in VERDICTS},
        asked_again=tally.asked_again,
    )


def _load_schedules(app: Application, metrics: Metrics) -> Sequence[Schedule]:
    schedules = config.load_schedules(app.settings)
    metrics.know(schedule.name for schedule in schedules)
    return schedules


@click.command()
@click.option("--record", type=FILE, help="Write what the gateway answered, without texts and ids, to this new file.")
@shared("json", "config")
def check(given: Given, record: Path | None) -> None:
    """Test everything that a run needs, and list every problem."""
    recorder = Recorder() if record else None
    if record and record.exists():
        raise UsageError(f"{record} already exists: name a new file.")
    settings, schedules = config.load_all(given.config)
    log.configure(settings.log.level, settings.log.format)
    problems = 0

    def counted(findings: Iterable[CheckResult]) -> Iterator[CheckResult]:
        nonlocal problems
        for finding in findings:
            problems += not finding.ok
            yield finding

    with Application(settings) as app, interruptible(app):
        app.recorded = recorder
        findings = counted(run_checks(app, schedules))
        if given.json:
            console.json_list(finding._asdict() for finding in findings)
        else:
            for finding in findings:
                _show_finding(finding)
    if record and recorder:
        _write_new(record, recorder.encoded(__version__, utc_now()))
        console.complain(f"{record} written: what was answered, without texts, ids and secrets.", "green")
    end_as(app, int(problems > 0))


def _write_new(path: Path, content: bytes) -> None:
    """Write a new file, for its owner only. Raises UsageError if it cannot be written."""
    try:
        with open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(content)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from None


def _show_finding(finding: CheckResult) -> None:
    console.say(f"{'ok ' if finding.ok else 'BAD'} {finding.what}: {finding.said}", "" if finding.ok else "red")
