"""The commands about targets: status, targets list, coverage."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple

import click

from etl.cli import CommandGroup, console
from etl.cli.application import Application
from etl.cli.lists import require_names
from etl.cli.options import SHOWN, Options, shared
from etl.config import Schedule, TargetList
from etl.errors import ConfigError
from etl.printable import counted
from etl.report import health
from etl.report.conditions import Condition
from etl.report.coverage import MEMBERSHIPS, UNANSWERED, Coverage, CoveredTarget, Hold, SealedGap, coverage
from etl.report.health import HealthSnapshot, Overdue, TargetSummary
from etl.report.listings import CAUSE_COLUMNS, RUNS, TARGETS, causes
from etl.report.reading import short_transaction
from etl.report.rows import RUN_COUNTS
from etl.report.targets import known_targets
from etl.service.replica import LEASE
from etl.service.runs import was_killed
from etl.store import Store
from etl.sync import organisations
from etl.system.clock import utc_now

_SHOWN: Final = 50
_PRINTED: Final = 1000
_RUNS: Final = 10
_LIMIT: Final = f"At most this many rows per list; tables show {_SHOWN} by default, --json prints {_PRINTED}, 0 is all."
_STYLES: Final = {"down": "red", "degraded": "red", "notice": "yellow"}
_RUN: Final = ("id", "schedule", "origin", "status", "started_at", *RUN_COUNTS)
_TARGET_COLUMNS: Final = ("org_id", "user_id", "expression", "last_observed_at", "consecutive_failures",
                          "last_error_code", "last_error", "held_workflows", "held_since")  # fmt: skip
targets = CommandGroup("targets", help="The targets: whose lists are asked for.")
_HOLD_COLUMNS: Final = (*Hold._fields[:-2], "workflows")
_SCHEDULE: Final = ("schedule", "targets", "overdue", "last_success_at", "next_run_at")
_ALL_SHOWN: Final = "--limit 0 shows all"


@click.command()
@shared("timezone", "limit", "json", "config", limit=_LIMIT)
def status(options: Options) -> None:
    """Show the last runs, problems by cause, targets with problems, holds, and the next runs.

    Exits with 0 whatever is wrong: the conditions say it. Schedules that cannot be read are one of them.
    """
    most, zone = options.most(_SHOWN, _PRINTED), options.zone
    limit = most if options.json else most and most + 1
    with options.reading() as app:
        configured, broken = configured_schedules(app)
        now = utc_now()
        with short_transaction(app.engine) as connection:
            snapshot = None if configured is None else health.read_within(connection, configured, now)
            summary: TargetSummary = snapshot or health.summary_within(connection, now)
            runs, why = RUNS.page(connection, _RUNS), causes(connection)
        holder = Store(app.engine).lease_holder(LEASE)
        killed = holder is not None and was_killed(holder)
        found: dict[str, Any] = {
            "active": None if killed else holder,
            "conditions": [each.as_object() for each in summary.conditions(_broken(broken))],
            "verified": summary.checked and summary.checked._asdict(),
            "freshness": snapshot and _freshness(snapshot),
            "schedules": _schedules(configured, snapshot, now)[:limit] if configured and snapshot else [],
            "webhooks": _webhooks(app),
            "overdue": [_as_json(each) for each in snapshot.overdue[:limit]] if snapshot else [],
            "runs": [run._asdict() for run in runs],
            "causes": [cause._asdict() for cause in why],
        }
        problems = TARGETS.rows(app.engine, show="problems", limit=limit)
        if options.json:
            opening = console.encoded(found).removesuffix(b"\n}\n") + b',\n  "problems": ['
            console.json_list((problem._asdict() for problem in problems), opening, b"]\n}\n")
            return
        gone = f"not running: the process of {holder} is gone" if killed else "not running"
        console.say(f"Service: {gone if killed or not holder else f'active on {holder}'}.", "bold")
        _show_summary(found, snapshot, zone)
        if snapshot is not None:  # otherwise the schedules are unknown
            console.rows("\nSchedules", _SCHEDULE, found["schedules"], zone=zone, most=most, more=_ALL_SHOWN)
        if found["webhooks"]:
            console.rows("\nWebhooks", [*found["webhooks"][0]], found["webhooks"], zone=zone)
        console.rows("\nLast runs", _RUN, runs, zone=zone)
        console.rows("\nProblems by cause", CAUSE_COLUMNS, why)
        if late := found["overdue"]:
            console.rows("\nOverdue", [*late[0]], late, zone=zone, most=most, more=_ALL_SHOWN)
        more = f"{_ALL_SHOWN}, the causes above count them"
        console.rows("\nTargets with problems", _TARGET_COLUMNS, problems, zone=zone, most=most, more=more)


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


def _broken(error: ConfigError | None) -> list[Condition]:
    if error is None:
        return []
    more = f" (and {len(error.problems) - 1} more)" if len(error.problems) > 1 else ""
    return [Condition("schedules_broken", f"The schedules cannot be read: {error.problems[0]}{more}".rstrip("."))]


def _schedules(configured: Sequence[Schedule], found: HealthSnapshot, now: dt.datetime) -> list[dict[str, Any]]:
    """Those with most overdue targets first."""
    overdue = found.overdue_by_schedule
    return [
        {
            "schedule": each.name,
            "targets": len(each.targets),
            "overdue": overdue[each.name],
            "last_success_at": found.last_success_at[each.name],
            "next_run_at": each.slots.next_after(now),
        }
        for each in sorted(configured, key=lambda schedule: (-overdue[schedule.name], schedule.name))
    ]


def _webhooks(app: Application) -> list[dict[str, Any]]:
    """Those in the settings, and what they have got so far."""
    known = Store(app.engine, app.stop).known_webhooks() if app.settings.webhook else {}
    columns = ("since", "delivered", "delivered_at", "failing_since", "why")
    return [
        {"webhook": each.name, **{name: getattr(known.get(each.name), name, None) for name in columns}}
        for each in app.settings.webhook
    ]


def _freshness(found: HealthSnapshot) -> dict[str, Any]:
    """What ``/freshness`` says, without the names, which the problems have."""
    counts = {name: getattr(found, name) for name in ("refused", "failing", "held", "held_workflows", "never_observed")}
    return {"status": found.freshness, "overdue": len(found.overdue), **counts}


def _as_json(overdue: Overdue) -> dict[str, Any]:
    """An overdue target as one flat object."""
    columns = overdue._asdict()
    return {"schedule": columns.pop("schedule"), **columns.pop("target")._asdict(), **columns}


def _show_summary(found: Mapping[str, Any], snapshot: HealthSnapshot | None, zone: dt.tzinfo) -> None:
    for condition in found["conditions"]:
        console.say(f"{condition['sentence']} {condition['remedy']}", _STYLES[condition["severity"]])
    if snapshot is not None:
        numbers = {name: count for name, count in found["freshness"].items() if count and name != "status"}
        counts = "".join(f", {count} {name.replace('_', ' ')}" for name, count in numbers.items())
        console.say(
            f"Targets: {snapshot.targets}{counts or ('' if found['conditions'] else ', all of them fresh')}.",
            "" if snapshot.fresh else "red",
        )
    if check := found["verified"]:
        result = counted(check["findings"], "finding") if check["findings"] else "everything holds"
        at = console.cell(check["ended_at"], zone)
        console.say(f"Trail: verified at {at}, up to seal {check['last_seal']}: {result}.")


class Row(NamedTuple):
    """A target, configured or known to the database.

    ``source``: the schedules that have it, with "(roster)" after those that have it by ``users = "all"``; "" if none
    has. ``since``: for a roster, since when it lists the user; otherwise ``first_observed_at``. ``missing_since``:
    since when the roster lacks the user, if that is not believed.
    """

    org_id: str
    user_id: str
    expression: str
    source: str
    since: dt.datetime | None
    first_observed_at: dt.datetime | None
    missing_since: dt.datetime | None
    retired_at: dt.datetime | None


@targets.command("list")
@shared("org", "user", "limit", "json", "config")
def list_targets(options: Options) -> None:
    """Show all targets, where each comes from (a list, a file, the organisation's roster), and since when."""
    with options.reading() as app:
        found = (
            each
            for each in _known_rows(app)
            if options.org in (None, each.org_id) and options.user in (None, each.user_id)
        )
        if options.json:
            console.json_list(each._asdict() for each in islice(found, options.most()))
            return
        all_of_them = options.org is None and options.user is None
        empty = "none: add [[targets]] to a schedule" if all_of_them else "none with that --org and --user"
        console.rows("", Row._fields, found, empty, most=options.most(), more=_ALL_SHOWN)


def _known_rows(app: Application) -> Iterator[Row]:
    """By organisation, user and expression."""
    schedules = list(zip(app.schedules, app.listed_schedules(), strict=True))
    stored_rosters = Store(app.engine, app.stop).rosters(organisations(app.schedules))
    known = {each.target: each for each in known_targets(app.engine)}
    listed = TargetList.union([expanded.targets for _, expanded in schedules]) if schedules else ()
    for target in sorted({*listed, *known}):
        source = ", ".join(
            own.name if target in own.targets else f"{own.name} (roster)"
            for own, expanded in schedules
            if target in expanded.targets
        )
        stored = stored_rosters.get(target.org_id) if source.endswith("(roster)") else None
        user = stored.known.get(target.user_id) if stored else None
        seen = known.get(target)
        observed = seen.first_observed_at if seen else None
        since, missing = (user.listed_since or observed, user.missing_since) if user else (observed, None)
        yield Row(*target, source, since, observed, missing, seen.retired_at if seen else None)


@click.command("coverage")
@shared("org", "user", "since", "until", "timezone", "json", "config")
def show_coverage(options: Options) -> None:
    """Show how complete the trail is: which targets were to be asked, which answered, and gaps; with the seals."""
    zone = options.zone
    begin, end = options.period()
    with options.reading() as app:
        require_names(app.engine, org=options.org, user=options.user)
        found = coverage(app.engine, utc_now(), since=begin, until=end, org=options.org, user=options.user)
    if options.json:
        lists = {name: value for name, value in found._asdict().items() if isinstance(value, list)}
        console.json(found._asdict() | {name: [each._asdict() for each in rows] for name, rows in lists.items()})
    else:
        _show_coverage(found, zone)


def _show_coverage(found: Coverage, zone: dt.tzinfo) -> None:
    if found.seals is None:
        console.say("No run that has a seal was to ask anybody in that time.")
        return
    _first_rows("Who was to be asked", CoveredTarget._fields, found.targets, zone)
    _first_rows("\nNot answered", UNANSWERED, found.unanswered, zone)
    _first_rows("\nNobody was looking", SealedGap._fields, found.gaps, zone)
    holds = [(*each[:-2], len({*each.flow_ids, *(doubt[0] for doubt in each.doubted)})) for each in found.holds]
    _first_rows("\nHolds", _HOLD_COLUMNS, holds, zone)
    _first_rows("\nCame and went", MEMBERSHIPS, found.memberships, zone)
    asked, answered = (sum(getattr(each, name) for each in found.targets) for name in ("asked", "answered"))
    first, last = found.seals
    summary = f"In {counted(found.runs, 'run')}, {counted(len(found.targets), 'target')} had to be asked: "
    summary += f"{answered} of {asked} requests were answered."
    console.say(f"\n{summary} The seals {first} to {last} prove it; `flowtrail verify` proves the seals.", "bold")
    if found.unsealed_runs:
        console.say(f"{found.unsealed_runs} runs are under way: they count once they have a seal.", "yellow")


def _first_rows(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], zone: dt.tzinfo) -> None:
    """Print the first rows, without columns that are empty or 0 in all of them."""
    used = [n for n in range(len(columns)) if any(row[n] != 0 for row in rows[:SHOWN])]
    shown = ([row[n] for n in used] for row in rows)
    console.table(title, [columns[n] for n in used], shown, zone=zone, most=SHOWN, more="--json has all")
