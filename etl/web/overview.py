"""What the first page says, and the report: freshness and problems first."""

from __future__ import annotations

import datetime as dt
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection

from etl.report import SyncRun, statements, summaries
from etl.report.fetch import page
from etl.report.health import HealthSnapshot, TargetSummary
from etl.report.rows import TargetHealth
from etl.web.labels import ago, count

PERIODS: Final = (7, 30, 90, 365)
"""Days that the plots may reach back."""
USUAL_PERIOD: Final = 30

_SHOWN: Final = 20
_ORGS: Final = 15
_LATEST: Final = 10
_RUNS: Final = 20
"""Among so many there is one that has ended: no more schedules run at once."""


class Problem(NamedTuple):
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
    gaps, open_gaps = summaries.gap_counts(connection)
    return {
        "now": now,
        "period": period,
        "since": since,
        "health": health,
        "last": last,
        "workflows": summaries.workflows(connection),
        "problems": _problems(health, last, open_gaps, now, coverage_gap),
        "troubled": page(connection, TargetHealth, statements.targets("problems"), _SHOWN),
        "days": summaries.days(connection, since, today),
        "evenings": summaries.day_snapshots(connection, since, today),
        "churn": summaries.churn(connection, since, _ORGS),
        "holds": summaries.holds(connection, limit=_SHOWN) if health.held else [],
        "gaps": summaries.gaps(connection, _SHOWN) if gaps else [],
        "gap_count": gaps,
        "open_gaps": open_gaps,
        "latest": summaries.trail(connection, limit=events),
    }


def _problems(
    health: TargetSummary, last: SyncRun | None, open_gaps: int, now: dt.datetime, coverage_gap: dt.timedelta
) -> list[Problem]:
    newest, ended = health.last_observation_at, last and (last.finished_at or last.heartbeat_at)
    overdue = len(health.overdue) if isinstance(health, HealthSnapshot) else 0
    late = f"{count(overdue, 'target is', 'targets are')} overdue: not observed for three due slots of a schedule."
    held = f"{count(health.held_removals, 'removal')} in {count(health.held, 'target')} held: a person has to decide."
    failing = f"{count(health.failing, 'target gives', 'targets give')} no valid answer."
    refused = f"EnOS refuses {count(health.refused, 'target')} until a right or the schedule is changed."
    never = f"{count(health.never_observed, 'target was', 'targets were')} never observed: nobody knows what is there."
    gaps = f"{count(open_gaps, 'coverage gap is', 'coverage gaps are')} not closed: what happens there is not seen."
    silence = f"Nobody has looked for long: the last time was {ago(newest, now)}."
    candidates = (
        *((True, f"{condition.sentence} {condition.remedy}", "") for condition in health.conditions),
        (newest and now - newest > coverage_gap, silence, ""),
        (overdue, late, ""),
        (health.held, held, "/held"),
        (health.failing, failing, "/targets?show=problems"),
        (health.refused, refused, "/targets?show=problems"),
        (health.never_observed, never, "/targets?show=never_observed"),
        (open_gaps, gaps, "/gaps"),
        (last and last.status == "failed", f"The last run, {ago(ended, now)}, failed.", ""),
        (last and last.status == "aborted", f"The last run, {ago(ended, now)}, was aborted.", ""),
    )
    return [Problem(said, href) for is_so, said, href in candidates if is_so]
