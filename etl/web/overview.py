"""The content of the first page and of the report: freshness and problems first, then the sums.

The sums are counted over everything, kept until the database changes, and never waited for long: where the lists are
many, a thread counts, and a page shows what was counted before, or says that it is being counted.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine

from etl.config import Schedule
from etl.errors import DatabaseError
from etl.export import whole_file
from etl.log import get_logger
from etl.printable import counted
from etl.report import health, summaries, trail_page, workflow_page
from etl.report.conditions import Condition
from etl.report.health import TargetSummary
from etl.report.listings import GAPS, HISTORY, RUNS, causes
from etl.report.names import WHOLE
from etl.report.reading import short_transaction
from etl.report.rows import SyncRun
from etl.report.summaries import Scope
from etl.system.background import BackgroundLoop
from etl.web.labels import ago
from etl.web.rendering import PLOTLY, asset, render

PERIODS: Final = (7, 30, 90, 365)
"""Periods of the plots, in days."""
USUAL_PERIOD: Final = 30

_LOOK_AGAIN_SECONDS: Final = 30
_SHOWN: Final = 20
_RUNS: Final = 20
"""Enough to include one that has ended: fewer schedules run at once."""
MANY: Final = 50_000
"""Entries in lists that take about a tenth of a second to count."""
_QUICK_SECONDS: Final = 0.25
_REUSED_FOR: Final = 60
"""After a slow count, its result is reused for this many times its duration, even if the database has changed, so that
counting takes a small part of the time however often somebody looks."""
_COUNTED_AT_ONCE: Final = 2
_KEPT: Final = 100
"""Scopes: there are as many as zones, and somebody may name all of them."""
_ORGS: Final = 15
EVENTS_AT_MOST: Final = 250
"""The newest rows of the trail that a report has."""
_LIVES: Final = 8
_STATES_OF_A_LIFE: Final = 20


def gather(
    connection: Connection,
    health: TargetSummary,
    now: dt.datetime,
    *,
    coverage_gap: dt.timedelta,
    scope: Scope,
    own: Sequence[Condition] = (),
    wait: bool = True,
) -> dict[str, Any]:
    """The values for the templates; plots are those of the scope.

    Without ``wait`` there are no sums where counting them would take long and they have not been counted before.
    """
    today = now.astimezone(scope.zone).date()
    last = next((run for run in RUNS.page(connection, _RUNS) if run.status != "running"), None)
    open_gaps = summaries.open_gap_count(connection)
    counted, current = counted_sums(connection, scope, 0 if wait else health.listed)
    days = (scope.until - scope.since).days + 1
    org = WHOLE + scope.org if scope.org else ""
    return {
        "now": now,
        "period": days,
        "spoken": f"the last {days} days" if scope.until == today else str(scope),
        "scope": scope,
        "health": health,
        "last": last,
        **(counted or {}),
        "counted": counted is not None,
        "current": current,
        "problems": _problems(health, own, last, open_gaps, now, coverage_gap),
        "causes": causes(connection),
        "holds": summaries.holds(connection, org=org, limit=_SHOWN) if health.held else [],
        "open_gaps": open_gaps,
    }


def period(now: dt.datetime, days: int, zone: dt.tzinfo = dt.UTC) -> Scope:
    """So many days of all organisations, today included."""
    today = now.astimezone(zone).date()
    return Scope(today - dt.timedelta(days=days - 1), today, zone=zone)


def counting_ahead(engine: Engine, now: Callable[[], dt.datetime]) -> BackgroundLoop:
    """Counts the sums of the first page before somebody asks for it, where they take long. ``engine``: the pages'."""

    def step() -> float:
        with suppress(DatabaseError), short_transaction(engine) as connection:  # the service itself reports the error
            entries = summaries.entries(connection)
            if entries > MANY:
                counted_sums(connection, period(now(), USUAL_PERIOD), entries)
        return _LOOK_AGAIN_SECONDS

    return BackgroundLoop("sums-ahead", step, stop_within_seconds=1.0)


_LINKS: Final = {
    "targets_held": "/held",
    **dict.fromkeys(
        ("gateway_down", "targets_failing", "targets_refused", "targets_overdue"), "/targets?show=problems"
    ),
}
"""The pages that show a condition's targets."""
_OUTAGES: Final = {"gateway_down", "credentials_refused", "targets_failing", "targets_overdue"}
"""Conditions that say why nobody is looking."""


def _problems(
    health: TargetSummary,
    own: Sequence[Condition],
    last: SyncRun | None,
    open_gaps: int,
    now: dt.datetime,
    coverage_gap: dt.timedelta,
) -> list[dict[str, str]]:
    """What a person should look at, and where."""
    newest, ended = health.last_observation_at, last and (last.finished_at or last.heartbeat_at)
    never = (
        f"{counted(health.never_observed, 'target was', 'targets were')} never observed: nobody knows what is there."
    )
    gaps = f"{counted(open_gaps, 'coverage gap is', 'coverage gaps are')} not closed: what happens there is not seen."
    silence = f"Nobody has looked for long: the last time was {ago(newest, now)}."
    wrong = health.conditions(own)
    is_outage = any(each.code in _OUTAGES for each in wrong)
    last_with = {each.remedy: each for each in wrong}
    candidates = (
        *((True, *_said(each, with_remedy=last_with[each.remedy] is each)) for each in wrong),
        (health.never_observed, never, "/targets?show=never_observed"),
        # An outage has a line of its own already; these follow from it.
        (not is_outage and newest and now - newest > coverage_gap, silence, ""),
        (not is_outage and open_gaps, gaps, "/gaps"),
        (not is_outage and last and last.status == "failed", f"The last run, {ago(ended, now)}, failed.", ""),
        (last and last.status == "aborted", f"The last run, {ago(ended, now)}, was aborted.", ""),
    )
    return [{"said": said, "href": href} for is_so, said, href in candidates if is_so]


def _said(condition: Condition, *, with_remedy: bool) -> tuple[str, str]:
    """What is wrong, and the page that shows its targets, those with its error code if it has one."""
    href, error_code = _LINKS.get(condition.code, ""), condition.cause.partition(" ")[0]
    more = f"&{urlencode({'cause': error_code})}" if href and error_code else ""
    return f"{condition.sentence} {condition.remedy}" if with_remedy else condition.sentence, href + more


# ---------------------------------------------------------------------------------------------------------- the sums


class Sums(NamedTuple):
    """What was counted, of which state of the database, and how long it is used whatever happens."""

    state: tuple[int, ...]
    values: dict[str, Any]
    reusable_until: float


class KnownSums:
    """What was counted of one database, by its scope."""

    def __init__(self) -> None:
        self.sums: dict[Scope, Sums] = {}
        self.counting: set[Scope] = set()
        self.lock = threading.Lock()


KNOWN: Final[WeakKeyDictionary[Engine, KnownSums]] = WeakKeyDictionary()


def counted_sums(connection: Connection, scope: Scope, entries: int) -> tuple[dict[str, Any] | None, bool]:
    """The sums of a scope, and whether they are current; None where they are being counted for the first time.

    ``entries``: how many there are in all lists. Where they are many nothing is counted here.
    """
    known = KNOWN.setdefault(connection.engine, KnownSums())
    state, now = summaries.state(connection), time.monotonic()
    last = known.sums.get(scope)
    if last is not None and (last.state == state or now < last.reusable_until):
        return last.values, True
    if entries > MANY:
        _count_in_a_thread(connection.engine, known, scope, state)
        return last and last.values, False
    values = {name: piece(connection) for name, piece in _pieces(scope).items()}
    _keep(known, scope, state, values, now)
    return values, True


def _pieces(scope: Scope) -> dict[str, Callable[[Connection], Any]]:
    """Days before the first observation are left out of them: what there was then is unknown, not zero."""

    def drawn(connection: Connection) -> Scope:
        first = summaries.first_day(connection, scope) or scope.since
        return scope._replace(since=min(max(scope.since, first), scope.until))

    whose = {"org": scope.org and WHOLE + scope.org}
    of_gaps: dict[str, Any] = {} if scope.everything else {**whose, "since": scope.begins_at, "until": scope.ends_at}
    return {
        "first_day": lambda connection: summaries.first_day(connection, scope),
        "workflows": lambda connection: summaries.workflows(connection, scope.org),
        "days": lambda connection: summaries.days(connection, drawn(connection)),
        "day_snapshots": lambda connection: summaries.day_snapshots(connection, drawn(connection)),
        "churn": lambda connection: summaries.churn(connection, scope, _ORGS),
        "gaps": lambda connection: GAPS.page(connection, _SHOWN, **of_gaps),
        "gap_count": lambda connection: GAPS.count(connection, **of_gaps),
    }


def _count_in_a_thread(engine: Engine, known: KnownSums, scope: Scope, state: tuple[int, ...]) -> None:
    """Each piece in a transaction of its own, so that on SQLite no writer waits for all of them."""

    def count() -> None:
        began, values = time.monotonic(), {}
        try:
            for name, piece in _pieces(scope).items():
                with short_transaction(engine) as connection:
                    values[name] = piece(connection)
            _keep(known, scope, state, values, began)
        except DatabaseError as error:
            get_logger("etl.web").warning("sums_not_counted", error=str(error))
        finally:
            known.counting.discard(scope)

    with known.lock:
        if scope in known.counting or len(known.counting) >= _COUNTED_AT_ONCE:
            return
        known.counting.add(scope)
    threading.Thread(target=count, name="sums", daemon=True).start()


def _keep(known: KnownSums, scope: Scope, state: tuple[int, ...], values: dict[str, Any], began: float) -> None:
    ended = time.monotonic()
    reusable_until = ended + _REUSED_FOR * (ended - began) if ended - began > _QUICK_SECONDS else ended
    with known.lock:
        known.sums.pop(scope, None)
        known.sums[scope] = Sums(state, values, reusable_until)
        if len(known.sums) > _KEPT:
            del known.sums[next(iter(known.sums))]


# -------------------------------------------------------------------------------------------------------- the report


def report_html(
    engine: Engine,
    *,
    now: dt.datetime,
    file: Path,
    coverage_gap: dt.timedelta,
    schedules: Sequence[Schedule] | None = None,
    scope: Scope | None = None,
) -> None:
    """Write the overview and the latest changes as one HTML file that needs, and allows, nothing else; it appears whole
    or not at all.

    Which targets are overdue is said only where the ``schedules`` are given. Without a ``scope`` the plots have thirty
    days of all organisations. Raises UsageError where the place cannot be used, DatabaseError.
    """
    asked = scope or period(now, USUAL_PERIOD)
    with short_transaction(engine) as connection:
        known = (
            health.summary_within(connection, now)
            if schedules is None
            else health.read_within(connection, schedules, now)
        )
        found = gather(connection, known, now, coverage_gap=coverage_gap, scope=asked)
        since, until = (None, None) if asked.everything else (asked.begins_at, asked.ends_at)
        org = WHOLE + asked.org if asked.org else ""
        latest = trail_page.newest(connection, org=org, since=since, until=until, limit=EVENTS_AT_MOST + 1)
        lives = [_life(connection, *each) for each in summaries.most_changed(connection, asked, _LIVES)]
    inlined = {"style": "style.css", "app": "app.js", "plotly": PLOTLY}
    inline = {name: asset(file).decode() for name, file in inlined.items()}
    values = found | {"latest": latest[:EVENTS_AT_MOST], "cut": len(latest) > EVENTS_AT_MOST, "lives": lives}
    html = render("report.html", {"linked": False, "policy": _policy(inline), **inline, **values})
    with whole_file(file) as out:
        out.write(html.encode())


def _life(connection: Connection, org: str, flow: str) -> dict[str, Any]:
    states = HISTORY.page(connection, _STATES_OF_A_LIFE, org=WHOLE + org, flow=WHOLE + flow)
    users = list(dict.fromkeys(state.user_id for state in states))
    gaps = workflow_page.gaps_of(connection, org, users)
    return {"org_id": org, "flow_id": flow, "states": states, "gaps": gaps}


def _policy(inline: dict[str, str]) -> str:
    """A policy that allows nothing from outside, and only exactly these inline texts."""
    scripts, style = " ".join(_hash(inline[name]) for name in ("plotly", "app")), _hash(inline["style"])
    return f"default-src 'none'; script-src {scripts}; style-src {style}; base-uri 'none'; form-action 'none'"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
