"""What the pages know: the database, the time, and the state of the service."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from typing import NamedTuple

from sqlalchemy import Connection, Engine

from etl.report.conditions import DetectedCondition
from etl.report.health import TargetSummary


class Site(NamedTuple):
    """Passed to every page; see ``etl.web.create_app``."""

    engine: Engine
    now: Callable[[], dt.datetime]
    next_fire_times: Callable[[], dict[str, dt.datetime]]
    role: Callable[[], str]
    read_health: Callable[[Connection, dt.datetime], TargetSummary]
    coverage_gap: dt.timedelta
    enos_zone: dt.tzinfo | None = None
    own: Callable[[], Sequence[DetectedCondition]] = lambda: ()
