"""Health that tells the truth: whether the process turns over, whether it can work, whether what it knows is fresh."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Engine
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route

from etl import database
from etl.config import Schedule
from etl.errors import DatabaseError, SchemaAhead
from etl.model import Target
from etl.report import Report, TargetHealth

REFUSED_FOR_GOOD: Final = frozenset({"62101", "62103", "99403", "99404"})
"""EnOS says no to these targets until somebody changes a right or the schedule: named, but no reason to page."""
_AT_WORK: Final = ("active", "standing_by")
_SLOTS_ALLOWED: Final = 3
_NAMED_AT_MOST: Final = 100


def health_routes(
    engine: Engine,
    *,
    now: Callable[[], dt.datetime],
    turns_over: Callable[[], bool],
    role: Callable[[], str],
    schedules: Callable[[], Sequence[Schedule]],
) -> list[BaseRoute]:
    """``/healthz``, ``/readyz`` and ``/freshness``, each 200 or 503 with a JSON object that says why."""

    def healthz(request: Request) -> JSONResponse:
        alive = turns_over()
        return _answer(alive, {"status": "ok" if alive else "stuck"})

    def readyz(request: Request) -> JSONResponse:
        try:
            database.require_current(engine, create_if_empty_sqlite=False)
        except SchemaAhead as error:
            # The new release of a rollout has migrated, and this one works on until it is replaced.
            return _answer(role() in _AT_WORK, {"status": "to be replaced", "role": role(), "error": str(error)})
        except DatabaseError as error:
            return _answer(False, {"status": "not ready", "role": role(), "error": str(error)})
        return _answer(True, {"status": "ready", "role": role()})

    def freshness(request: Request) -> JSONResponse:
        try:
            known = {Target(h.org_id, h.user_id, h.expression): h for h in Report(engine).health()}
        except DatabaseError as error:
            return _answer(False, {"status": "unknown", "error": str(error)})
        overdue = [_told(schedule, known[target]) for schedule, target in overdue_targets(schedules(), known, now())]
        refused = [str(target) for target, h in known.items() if h.last_error_code in REFUSED_FOR_GOOD]
        body = {"status": "overdue" if overdue else "fresh", "overdue": len(overdue), "refused": len(refused)}
        return _answer(
            not overdue, {**body, "targets": overdue[:_NAMED_AT_MOST], "refused_targets": refused[:_NAMED_AT_MOST]}
        )

    return [Route("/healthz", healthz), Route("/readyz", readyz), Route("/freshness", freshness)]


def overdue_targets(
    schedules: Sequence[Schedule], known: Mapping[Target, TargetHealth], now: dt.datetime
) -> Iterator[tuple[Schedule, Target]]:
    """Targets whose schedule's own last slots passed without an observation."""
    for schedule in schedules:
        since = _third_last_slot(schedule, now)
        if since is None:
            continue
        for target in schedule.targets:
            health = known.get(target)
            if health is None or health.last_error_code in REFUSED_FOR_GOOD:
                continue
            if health.last_observed_at is None or health.last_observed_at < since:
                yield schedule, target


def _told(schedule: Schedule, health: TargetHealth) -> dict[str, Any]:
    return {
        "schedule": schedule.name,
        "target": str(Target(health.org_id, health.user_id, health.expression)),
        "last_observed_at": health.last_observed_at and health.last_observed_at.isoformat(),
        "last_error_code": health.last_error_code,
    }


def _third_last_slot(schedule: Schedule, now: dt.datetime) -> dt.datetime | None:
    slot = schedule.slots.latest_until(now - schedule.jitter)
    for _ in range(_SLOTS_ALLOWED - 1):
        slot = slot and schedule.slots.latest_until(slot - dt.timedelta(microseconds=1))
    return slot


def _answer(good: bool, body: dict[str, Any]) -> JSONResponse:
    return JSONResponse(body, 200 if good else 503, headers={"Cache-Control": "no-store"})
