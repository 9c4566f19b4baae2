"""The report: the overview in one file that needs, and allows, nothing else."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from sqlalchemy import Connection, Engine

from etl.config import Schedule
from etl.export.files import whole_file
from etl.report import ListState, health, summaries, workflow_page
from etl.report.listings import HISTORY
from etl.report.names import WHOLE
from etl.report.reading import short_transaction
from etl.report.rows import Gap
from etl.report.summaries import Scope
from etl.web import overview
from etl.web.rendering import PLOTLY, asset, render

EVENTS_AT_MOST: Final = 250
"""The newest rows of the trail that a report has."""
_LIVES: Final = 8
_STATES_OF_A_LIFE: Final = 20


def write(
    engine: Engine,
    now: dt.datetime,
    file: Path,
    schedules: Sequence[Schedule] | None,
    coverage_gap: dt.timedelta,
    scope: Scope | None,
) -> None:
    """One HTML file; see ``etl.web.report_html``."""
    asked = scope or overview.period(now, overview.USUAL_PERIOD)
    with short_transaction(engine) as connection:
        known = (
            health.summary_within(connection, now)
            if schedules is None
            else health.read_within(connection, schedules, now)
        )
        found = overview.gather(
            connection,
            known,
            now,
            coverage_gap=coverage_gap,
            scope=asked,
        )
        latest = overview.latest_changes(connection, asked, EVENTS_AT_MOST + 1)
        lives = [_life(connection, *each) for each in summaries.most_changed(connection, asked, _LIVES)]
    inline = {"style": _inline("style.css"), "app": _inline("app.js"), "plotly": _inline(PLOTLY)}
    values = found | {"latest": latest[:EVENTS_AT_MOST], "cut": len(latest) > EVENTS_AT_MOST, "lives": lives}
    html = render("report.html", {"linked": False, "policy": _policy(inline), **inline, **values})
    with whole_file(file) as out:
        out.write(html.encode())


class _Life(NamedTuple):
    org_id: str
    flow_id: str
    states: Sequence[ListState]
    gaps: Sequence[Gap]


def _life(connection: Connection, org: str, flow: str) -> _Life:
    states = HISTORY.page(connection, _STATES_OF_A_LIFE, org=WHOLE + org, flow=WHOLE + flow)
    users = list(dict.fromkeys(state.user_id for state in states))
    return _Life(org, flow, states, workflow_page.gaps_of(connection, org, users))


def _inline(name: str) -> str:
    found = asset(name)
    assert found is not None  # noqa: S101 - it ships with the package
    return found.body.decode()


def _policy(inline: dict[str, str]) -> str:
    """A policy that allows nothing from outside, and only exactly these inline texts."""
    scripts = " ".join(_hash(inline[name]) for name in ("plotly", "app"))
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {scripts}",
            f"style-src {_hash(inline['style'])}",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
