"""The content of the first page and of the report: freshness and problems first."""

from __future__ import annotations

import datetime as dt
import time
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine

from etl.report import SyncRun, statements, summaries, trail_page
from etl.report.fetch import page
from etl.report.health import TargetSummary
from etl.report.queries import causes
from etl.web.labels import ago, count

PERIODS: Final = (7, 30, 90, 365)
"""Periods of the plots, in days."""
USUAL_PERIOD: Final = 30

_SHOWN: Final = 20
_ORGS: Final = 15
_LATEST: Final = 10
_RUNS: Final = 20
"""Enough to include one that has ended: fewer schedules run at once."""


class ProblemLine(NamedTuple):
    """Something that a person should look at, and where."""

    said: str
    href: str


def gather(
    connection: Connection,
    health: TargetSummary,
    now: dt.datetime,
    *,
    coverage_gap: dt.timedelta,
    period: int,
    events: int = _LATEST,
) -> dict[str, Any]:
    """The values for the templates; plots reach back ``period`` days, today included."""
    today = now.astimezone(dt.UTC).date()
    since = today - dt.timedelta(days=period - 1)
    last = next((run for run in page(connection, SyncRun, statements.runs(), _RUNS) if run.status != "running"), None)
    open_gaps = summaries.open_gap_count(connection)
    counted = _counted(connection, since, today)
    return {
        "now": now,
        "period": period,
        "since": since,
        "health": health,
        "last": last,
        **counted,
        "problems": _problems(health, last, open_gaps, now, coverage_gap),
        "causes": causes(connection),
        "holds": summaries.holds(connection, limit=_SHOWN) if health.held else [],
        "open_gaps": open_gaps,
        "latest": trail_page.newest(connection, limit=events),
    }


class _Counted(NamedTuple):
    """The sums over everything, the state of the database that they are for, and the time that they took."""

    state: tuple[Any, ...]
    values: dict[str, Any]
    at: float
    seconds: float


_COUNTED: Final[WeakKeyDictionary[Engine, dict[dt.date, _Counted]]] = WeakKeyDictionary()
_QUICK_SECONDS: Final = 0.25
_REUSED_FOR: Final = 60
"""After a slow count, its result is reused for this many times its duration, even if the database has changed, so that
counting takes a small part of the time however often somebody looks."""


def _counted(connection: Connection, since: dt.date, today: dt.date) -> dict[str, Any]:
    """The sums over all lists and changes, counted again where the database has changed."""
    known = _COUNTED.setdefault(connection.engine, {})
    state, began = (today, *summaries.state(connection)), time.monotonic()
    for old in [key for key, value in list(known.items()) if value.state[0] != today]:
        known.pop(old, None)
    last = known.get(since)
    if last is not None:
        reusable = last.seconds > _QUICK_SECONDS and began - last.at < _REUSED_FOR * last.seconds
        if last.state == state or reusable:
            return last.values
    values = _count(connection, since, today)
    ended = time.monotonic()
    known[since] = _Counted(state, values, ended, ended - began)
    return values


def _count(connection: Connection, since: dt.date, today: dt.date) -> dict[str, Any]:
    """Plots begin on the day of the first observation: what there was before is unknown, not zero."""
    begin = max(since, summaries.first_day(connection) or since)
    return {
        "workflows": summaries.workflows(connection),
        "days": summaries.days(connection, begin, today),
        "day_snapshots": summaries.day_snapshots(connection, begin, today),
        "churn": summaries.churn(connection, since, _ORGS),
        "gaps": summaries.gaps(connection, _SHOWN),
        "gap_count": summaries.gap_counts(connection)[0],
    }


_LINKS: Final = {
    "targets_held": "/held",
    **dict.fromkeys(
        ("gateway_down", "targets_failing", "targets_refused", "targets_overdue"), "/targets?show=problems"
    ),
}
"""The pages that show a condition's targets."""


def _problems(
    health: TargetSummary, last: SyncRun | None, open_gaps: int, now: dt.datetime, coverage_gap: dt.timedelta
) -> list[ProblemLine]:
    newest, ended = health.last_observation_at, last and (last.finished_at or last.heartbeat_at)
    never = f"{count(health.never_observed, 'target was', 'targets were')} never observed: nobody knows what is there."
    gaps = f"{count(open_gaps, 'coverage gap is', 'coverage gaps are')} not closed: what happens there is not seen."
    silence = f"Nobody has looked for long: the last time was {ago(newest, now)}."
    candidates = (
        *((True, f"{each.sentence} {each.remedy}", _LINKS.get(each.code, "")) for each in health.conditions()),
        (newest and now - newest > coverage_gap, silence, ""),
        (health.never_observed, never, "/targets?show=never_observed"),
        (open_gaps, gaps, "/gaps"),
        (last and last.status == "failed", f"The last run, {ago(ended, now)}, failed.", ""),
        (last and last.status == "aborted", f"The last run, {ago(ended, now)}, was aborted.", ""),
    )
    return [ProblemLine(said, href) for is_so, said, href in candidates if is_so]
