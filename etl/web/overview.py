"""What the first page says, and the report: freshness and problems first."""

from __future__ import annotations

import datetime as dt
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection

from etl.report import SyncRun, summaries
from etl.report.health import Condition, clock_went_back, damage_of
from etl.report.summary_rows import Totals
from etl.web.labels import ago, count

PERIODS: Final = (7, 30, 90, 365)
"""Days that the plots may reach back."""
USUAL_PERIOD: Final = 30

_SILENCE: Final = dt.timedelta(hours=36)
"""How long nobody may have looked before the page says so: what coverage_gap is unless it is set."""
_SHOWN: Final = 20
_ORGS: Final = 15
_LATEST: Final = 10
_RUNS: Final = 20
"""Among so many there is one that has ended: no more schedules run at once."""


class Problem(NamedTuple):
    """Something that a person should look at, and where."""

    said: str
    href: str


def gather(connection: Connection, now: dt.datetime, period: int, events: int = _LATEST) -> dict[str, Any]:
    """The values for the templates; plots reach back ``period`` days, today included."""
    today = now.astimezone(dt.UTC).date()
    since = today - dt.timedelta(days=period - 1)
    vitals = summaries.vitals(connection, now)
    last = next((run for run in summaries.runs(connection, _RUNS) if run.status != "running"), None)
    gaps, open_gaps = summaries.gap_counts(connection)
    return {
        "now": now,
        "period": period,
        "since": since,
        "vitals": vitals,
        "last": last,
        "workflows": summaries.workflows(connection),
        "problems": _problems(vitals, last, open_gaps, now, damage_of(connection.engine)),
        "troubled": summaries.targets(connection, show="problems", limit=_SHOWN),
        "days": summaries.days(connection, since, today),
        "evenings": summaries.day_snapshots(connection, since, today),
        "churn": summaries.churn(connection, since, _ORGS),
        "holds": summaries.holds(connection, limit=_SHOWN) if vitals.held else [],
        "gaps": summaries.gaps(connection, _SHOWN) if gaps else [],
        "gap_count": gaps,
        "open_gaps": open_gaps,
        "latest": summaries.trail(connection, limit=events),
    }


def _problems(
    vitals: Totals, last: SyncRun | None, open_gaps: int, now: dt.datetime, damage: Condition | None
) -> list[Problem]:
    newest, ended = vitals.newest_at, last and (last.finished_at or last.heartbeat_at)
    held = f"{count(vitals.held_removals, 'removal')} in {count(vitals.held, 'target')} held: a person has to decide."
    failing = f"{count(vitals.failing, 'target gives', 'targets give')} no valid answer."
    never = f"{count(vitals.never_observed, 'target was', 'targets were')} never observed: nobody knows what is there."
    gaps = f"{count(open_gaps, 'coverage gap is', 'coverage gaps are')} not closed: what happens there is not seen."
    clock = vitals.ahead_until and " ".join(clock_went_back(vitals.ahead, vitals.ahead_until)[1:])
    candidates = (
        (damage, f"{damage.sentence} {damage.remedy}" if damage else "", ""),
        (clock, clock or "", ""),
        (newest and now - newest > _SILENCE, f"Nobody has looked for long: the last time was {ago(newest, now)}.", ""),
        (vitals.held, held, "/held"),
        (vitals.failing, failing, "/targets?show=problems"),
        (vitals.never_observed, never, "/targets?show=problems"),
        (open_gaps, gaps, "/gaps"),
        (last and last.status == "failed", f"The last run, {ago(ended, now)}, failed.", ""),
        (last and last.status == "aborted", f"The last run, {ago(ended, now)}, was aborted.", ""),
    )
    return [Problem(said, href) for is_so, said, href in candidates if is_so]
