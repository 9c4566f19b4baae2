"""The command `status`: problems by cause, and the first targets that have them, however many there are."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple

import click

from etl.cli import console
from etl.cli.application import Application
from etl.cli.options import Given, shared
from etl.config import Schedule
from etl.errors import ConfigError
from etl.printable import counted
from etl.report import ProblemCause, Report, SyncRun, TargetHealth, health
from etl.report.condition_checks import LastCheck
from etl.report.conditions import Condition, DetectedCondition
from etl.report.health import HealthSnapshot, TargetSummary
from etl.report.overdue import Overdue
from etl.report.reading import short_transaction
from etl.service.replica import LEASE
from etl.store import Store
from etl.system.clock import utc_now

_SHOWN: Final = 50
_PRINTED: Final = 1000
_RUNS: Final = 10
_LIMIT: Final = f"At most this many rows per list; tables show {_SHOWN} by default, --json prints {_PRINTED}, 0 is all."
_STYLES: Final = {"down": "red", "degraded": "red", "notice": "yellow"}
_RUN_COLUMNS: Final = ("id", "schedule", "origin", "status", "started_at", "targets", "changed", "unchanged", "held",
                       "failed", "stale", "missed")  # fmt: skip
_TARGET_COLUMNS: Final = ("org_id", "user_id", "expression", "last_observed_at", "consecutive_failures",
                          "last_error_code", "last_error", "held_workflows", "held_since")  # fmt: skip


class _Status(NamedTuple):
    """What `status` shows; the lists have at most as many rows as were asked for."""

    active: str | None
    conditions: Sequence[Condition]
    checked: LastCheck | None
    snapshot: HealthSnapshot | None
    """None if the schedules are not known."""
    schedules: Sequence[dict[str, Any]]
    runs: Sequence[SyncRun]
    causes: Sequence[ProblemCause]


@click.command()
@shared("timezone", "limit", "json", "config", limit=_LIMIT)
def status(given: Given) -> None:
    """Show the last runs, problems by cause, targets with problems, holds, and the next runs.

    Exits with 0 whatever is wrong: the conditions say it. Schedules that cannot be read are one of them.
    """
    zone = given.zone
    most = given.most(_SHOWN, _PRINTED)
    with given.reading(logs=True) as app:
        report = Report(app.engine)
        configured, broken = configured_schedules(app)
        found = _gather(app, report, configured, broken, most)
        if given.json:
            _print(found, report.problems(limit=most), most)
        else:
            _show(found, list(report.problems(limit=most)), len(configured or ()), most, zone)


def configured_schedules(app: Application) -> tuple[Sequence[Schedule] | None, ConfigError | None]:
    """The schedules, or None if they are not known, with the error if there is one."""
    folder = app.settings.schedules_dir
    if not folder.exists():
        console.complain(
            f"There is no folder {folder}, so the next runs and overdue targets are not known here.", "yellow"
        )
        return None, None
    try:
        return app.listed_schedules(), None
    except ConfigError as error:
        return None, error


def _gather(
    app: Application,
    report: Report,
    configured: Sequence[Schedule] | None,
    broken: ConfigError | None,
    most: int | None,
) -> _Status:
    now = utc_now()
    summary: TargetSummary
    found: HealthSnapshot | None = None
    with short_transaction(app.engine) as connection:
        if configured is None:
            summary = health.summary_within(connection, now)
        else:
            summary = found = health.read_within(connection, configured, now)
    return _Status(
        active=Store(app.engine).lease_holder(LEASE),
        conditions=summary.conditions(_broken(broken)),
        checked=summary.checked,
        snapshot=found,
        schedules=list(islice(_schedules(configured or (), found, now), most)) if found else [],
        runs=list(report.runs(limit=_RUNS)),
        causes=report.causes(),
    )


def _broken(error: ConfigError | None) -> list[DetectedCondition]:
    if error is None:
        return []
    more = f" (and {len(error.problems) - 1} more)" if len(error.problems) > 1 else ""
    return [
        DetectedCondition("schedules_broken", f"The schedules cannot be read: {error.problems[0]}{more}".rstrip("."))
    ]


def _schedules(configured: Sequence[Schedule], found: HealthSnapshot, now: dt.datetime) -> Iterator[dict[str, Any]]:
    """The schedules, those with most overdue targets first."""
    overdue = found.overdue_by_schedule
    for each in sorted(configured, key=lambda schedule: (-overdue[schedule.name], schedule.name)):
        yield {
            "schedule": each.name,
            "targets": len(each.targets),
            "overdue": overdue[each.name],
            "last_success_at": found.last_success_at[each.name],
            "next_run_at": each.slots.next_after(now),
        }


def _freshness(found: HealthSnapshot) -> dict[str, Any]:
    """What ``/freshness`` says, without the names, which the problems have."""
    counts = {name: getattr(found, name) for name in ("refused", "failing", "held", "held_workflows", "never_observed")}
    return {"status": found.freshness, "overdue": len(found.overdue), **counts}


def _named(overdue: Overdue) -> dict[str, Any]:
    """An overdue target as one flat object."""
    columns = overdue._asdict()
    return {"schedule": columns.pop("schedule"), **columns.pop("target")._asdict(), **columns}


def _print(found: _Status, problems: Iterator[TargetHealth], most: int | None) -> None:
    """Print one JSON object; its last list, the longest, is printed as it is read."""
    head = {
        "active": found.active,
        "conditions": [each.as_object() for each in found.conditions],
        "verified": found.checked and found.checked._asdict(),
        "freshness": found.snapshot and _freshness(found.snapshot),
        "schedules": found.schedules,
        "overdue": [_named(each) for each in found.snapshot.overdue[:most]] if found.snapshot else [],
        "runs": [run._asdict() for run in found.runs],
        "causes": [cause._asdict() for cause in found.causes],
    }
    printed = console.JsonList(console.encoded(head).removesuffix(b"\n}\n") + b',\n  "problems": [')
    for problem in problems:
        printed.add(problem._asdict())
    printed.close(b"]\n}\n")


def _show(found: _Status, problems: Sequence[TargetHealth], schedules: int, most: int | None, zone: dt.tzinfo) -> None:
    console.say(f"Service: {f'active on {found.active}' if found.active else 'not running'}.", "bold")
    overdue: Sequence[Overdue] = ()
    for condition in found.conditions:
        console.say(f"{condition.sentence} {condition.remedy}", _STYLES[condition.severity])
    if found.snapshot is not None:
        overdue = found.snapshot.overdue
        numbers = {name: count for name, count in _freshness(found.snapshot).items() if count and name != "status"}
        counts = "".join(f", {count} {name.replace('_', ' ')}" for name, count in numbers.items())
        fresh = found.snapshot.fresh
        console.say(
            f"Targets: {found.snapshot.targets}{counts or ('' if found.conditions else ', all of them fresh')}.",
            "" if fresh else "red",
        )
    if found.checked is not None:
        console.say(_checked(found.checked, zone))
    if found.snapshot is not None:  # otherwise the schedules are unknown
        names = ("schedule", "targets", "overdue", "last_success_at", "next_run_at")
        console.table("\nSchedules", names, ([*each.values()] for each in found.schedules), zone=zone)
    _more(schedules - len(found.schedules))
    if overdue:
        rows = [_named(each) for each in overdue[:most]]
        optional = ("expression", "last_error_code", "held_since")
        console.table("\nOverdue", [*rows[0]], ([*row.values()] for row in rows), zone=zone, if_any=optional)
        _more(len(overdue) - len(rows))
    console.rows("\nLast runs", _RUN_COLUMNS, found.runs, zone=zone)
    console.rows("\nProblems by cause", ProblemCause._fields, found.causes)
    console.rows("\nTargets with problems", _TARGET_COLUMNS, problems, zone=zone)
    if len(problems) == most:
        console.complain(f"These are the first {most}: --limit 0 shows all, the causes above count them.", "dim")


def _checked(check: LastCheck, zone: dt.tzinfo) -> str:
    result = counted(check.findings, "finding") if check.findings else "everything holds"
    return f"Trail: verified at {console.cell(check.ended_at, zone)}, up to seal {check.last_seal}: {result}."


def _more(left_out: int) -> None:
    if left_out > 0:
        console.complain(f"And {left_out} more: --limit 0 shows all.", "dim")
