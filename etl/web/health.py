"""Health checks: whether the process is alive, whether it can work, and whether its observations are fresh."""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Final, Generic, TypeVar

from sqlalchemy import Engine
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from etl import database
from etl.config import Schedule
from etl.errors import DatabaseDamaged, DatabaseError, DatabaseUnreachable, SchemaAhead
from etl.report import health
from etl.report.conditions import OF_THE_DATABASE, Condition, conditions
from etl.report.health import HealthSnapshot
from etl.system.background import SingleFlight
from etl.web.security import KnownHosts

_AT_WORK: Final = ("active", "standing_by")
_CANNOT_WRITE: Final = "The service cannot write to the database: its log says why."
_NAMED_AT_MOST: Final = 100
_SNAPSHOT_GOOD_FOR_SECONDS: Final = 60.0
"""Reading a million targets takes a while: the last result is served until the next one is there."""


class Health:
    """The current health of the service, within a few seconds whatever the database does."""

    def __init__(
        self,
        engine: Engine,
        *,
        now: Callable[[], dt.datetime],
        is_progressing: Callable[[], bool],
        role: Callable[[], str],
        schedules: Callable[[], Sequence[Schedule]],
        known_since: Callable[[], Mapping[str, dt.datetime]],
        own: Callable[[], Sequence[Condition]] = lambda: (),
    ) -> None:
        """``known_since``: since when the service has known each schedule; ``own``: what only it knows to be wrong."""
        self._own = own
        self.alive = is_progressing
        self.role = role
        self._ready = CachedProbe(lambda: _ready(engine))
        self.snapshot = CachedProbe(
            lambda: health.read(engine, schedules(), now(), known_since()), good_for_seconds=_SNAPSHOT_GOOD_FOR_SECONDS
        )
        """The health snapshot. Raises DatabaseError if it cannot be read now."""

    def readiness(self) -> tuple[bool, DatabaseError | None]:
        """Whether the service can work, and the error of the database or schema.

        Both are possible during a rollout whose new release has migrated: this one works on until it is replaced.
        """
        try:
            self._ready()
        except SchemaAhead as error:
            return self.role() in _AT_WORK, error
        except DatabaseError as error:
            return False, error
        if self.role() not in ("starting", *_AT_WORK):
            return False, DatabaseError(_CANNOT_WRITE)
        return True, None

    def conditions(self, snapshot: HealthSnapshot | None, error: DatabaseError | None) -> list[Condition]:
        """What is wrong according to the database, if it can be read, and to this process."""
        own = list(self._own())
        if error is not None and not any(each.code in OF_THE_DATABASE for each in own):
            own.append(Condition(error.condition, str(error).removesuffix(".")))
        return conditions(own) if snapshot is None else snapshot.conditions(own)

    def latest(self, error: DatabaseError | None) -> HealthSnapshot | None:
        """What the database says; only asked if it answers at all, so that callers do not wait twice."""
        if error is not None and not isinstance(error, DatabaseDamaged | SchemaAhead):
            return None
        try:
            return self.snapshot()
        except DatabaseError:
            return None


def health_routes(health: Health) -> list[BaseRoute]:
    """``/healthz``, ``/readyz`` and ``/freshness``, each 200 or 503 with a JSON object that says why."""

    async def healthz(request: Request) -> JSONResponse:
        """Answered on the event loop itself, even when all threads wait for the database."""
        alive = health.alive()
        return _answer(alive, {"status": "ok" if alive else "stuck"})

    def readyz(request: Request) -> JSONResponse:
        ready, error = health.readiness()
        status = "ready" if error is None else "to be replaced" if isinstance(error, SchemaAhead) else "not ready"
        found = health.conditions(health.latest(error), None if ready else error)
        body = {"status": status, "role": health.role(), **({} if error is None else {"error": str(error)})}
        return _answer(ready, {**body, "conditions": _listed(found)})

    def freshness(request: Request) -> JSONResponse:
        try:
            found = health.snapshot()
        except DatabaseError as error:
            wrong = _listed(health.conditions(None, error))
            return _answer(False, {"status": "unknown", "error": str(error), "conditions": wrong})
        return _answer(found.fresh, _freshness_body(found, health.conditions(found, None)))

    return [Route("/healthz", healthz), Route("/readyz", readyz), Route("/freshness", freshness)]


def metrics_route(render: Callable[[str], tuple[bytes, str]]) -> BaseRoute:
    """``/metrics``; ``render`` is given what the scraper accepts, and returns the body and its content type."""

    def metrics(request: Request) -> Response:
        body, content_type = render(request.headers.get("accept", ""))
        return Response(body, headers={"Content-Type": content_type, "Cache-Control": "no-store"})

    return Route("/metrics", metrics)


def health_only(routes: Sequence[BaseRoute], hosts: Sequence[str], why: str | None = None) -> Starlette:
    """Only ``routes``, which answer to addresses, to localhost and to ``hosts``. ``why`` tells a browser what
    is missing for the pages, if they are wanted."""

    def missing(_: Request) -> Response:
        return PlainTextResponse(f"{why}\n", 501)

    others = [Route("/{path:path}", missing)] if why else []
    return Starlette(routes=[*routes, *others], middleware=[Middleware(KnownHosts, names=hosts)])


def _ready(engine: Engine) -> bool:
    database.require_current(engine)
    database.require_sound(engine)
    return True


def _freshness_body(found: HealthSnapshot, wrong: Sequence[Condition]) -> dict[str, Any]:
    schedules = [
        (name, {"overdue": overdue, "last_success_at": _iso(found.last_success_at[name])})
        for name, overdue in sorted(found.overdue_by_schedule.items(), key=lambda each: (-each[1], each[0]))
    ]
    return {
        "status": found.freshness,
        "conditions": _listed(wrong),
        "overdue": len(found.overdue),
        "refused": found.refused,
        "failing": found.failing,
        "held": found.held,
        "schedules": dict(schedules[:_NAMED_AT_MOST]),
        "schedules_left_out": len(schedules[_NAMED_AT_MOST:]),
        "targets": [
            {
                "schedule": each.schedule,
                "target": str(each.target),
                "last_observed_at": _iso(each.last_observed_at),
                "last_error_code": each.last_error_code,
                "held_since": _iso(each.held_since),
            }
            for each in found.overdue[:_NAMED_AT_MOST]
        ],
        "refused_targets": [str(target) for target in found.refused_targets[:_NAMED_AT_MOST]],
    }


def _listed(found: Sequence[Condition]) -> list[dict[str, Any]]:
    return [{**each.as_object(), "since": _iso(each.since)} for each in found]


def _iso(at: dt.datetime | None) -> str | None:
    return None if at is None else at.isoformat()


def _answer(good: bool, body: dict[str, Any]) -> JSONResponse:
    return JSONResponse(body, 200 if good else 503, headers={"Cache-Control": "no-store"})


T = TypeVar("T")

PATIENCE_SECONDS: Final = 3.0
"""How long a caller waits; less than probes and scrapers wait for us."""
_REST: Final = 10
_LONGEST_REST_SECONDS: Final = 30.0
"""A check that took a second is not repeated for ten, so that frequent callers do not keep the database busy."""


class CachedProbe(Generic[T]):
    """The result or the error of ``look``, called by one thread at a time, within PATIENCE_SECONDS.

    If a call takes longer, the last result is returned until it is ``good_for_seconds`` old; then DatabaseUnreachable
    is raised. The call continues in its thread, and no other one begins meanwhile.
    """

    def __init__(self, look: Callable[[], T], *, good_for_seconds: float = 0.0) -> None:
        self._look = look
        self._good_for_seconds = good_for_seconds
        self._patience_seconds = PATIENCE_SECONDS
        self._flights = SingleFlight[T]()
        self._latest: Future[T] | None = None
        """The last result, which is returned until the rest is over."""
        self._rests_until = self._good_until = 0.0

    def __call__(self) -> T:
        try:
            return self._look_at_most_once().result(self._patience_seconds)
        except TimeoutError:
            if self._latest is not None and time.monotonic() < self._good_until:
                return self._latest.result()
            raise DatabaseUnreachable(
                f"The database does not answer within {self._patience_seconds:g} s: it may be down, or busy."
            ) from None

    def _look_at_most_once(self) -> Future[T]:
        if self._latest is not None and time.monotonic() < self._rests_until:
            return self._latest
        flight, leads = self._flights.join()
        if leads:
            threading.Thread(target=self._probe, args=(flight,), name="probe", daemon=True).start()
        return flight

    def _probe(self, flight: Future[T]) -> None:
        began = time.monotonic()
        try:
            seen = self._look()
        except Exception as error:
            self._rests_until = 0.0
            self._flights.end(flight, error)
            return
        ended = time.monotonic()
        self._good_until = ended + self._good_for_seconds
        self._rests_until = ended + min(_REST * (ended - began), _LONGEST_REST_SECONDS)
        self._latest = flight
        self._flights.end(flight, result=seen)
