"""The sums of the first page: counted over everything, kept until the database changes, and never waited for long.

Where the lists are many, a thread counts, and a page shows what was counted before, or says that it is being counted.
"""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

import structlog
from sqlalchemy import Connection, Engine

from etl.errors import DatabaseError
from etl.report import summaries
from etl.report.listings import GAPS
from etl.report.names import WHOLE
from etl.report.reading import short_transaction
from etl.report.summaries import Scope

MANY: Final = 50_000
"""Entries in lists that take about a tenth of a second to count."""
_QUICK_SECONDS: Final = 0.25
_REUSED_FOR: Final = 60
"""After a slow count, its result is reused for this many times its duration, even if the database has changed, so that
counting takes a small part of the time however often somebody looks."""
_COUNTED_AT_ONCE: Final = 2
_KEPT: Final = 100
"""Scopes: there are as many as zones, and somebody may name all of them."""
_SHOWN: Final = 20
_ORGS: Final = 15


class Sums(NamedTuple):
    """What was counted, of which state of the database, and the time that it took."""

    state: tuple[Any, ...]
    values: dict[str, Any]
    at: float
    seconds: float


Pieces = dict[str, Callable[[Connection], Any]]


class _Known:
    """What was counted of one database, by its scope."""

    def __init__(self) -> None:
        self.sums: dict[Scope, Sums] = {}
        self.counting: set[Scope] = set()
        self.lock = threading.Lock()


_KNOWN: Final[WeakKeyDictionary[Engine, _Known]] = WeakKeyDictionary()


def counted(connection: Connection, scope: Scope, today: dt.date, entries: int) -> tuple[dict[str, Any] | None, bool]:
    """The sums of a scope, and whether they are current; None where they are being counted for the first time.

    ``entries``: how many there are in all lists. Where they are many nothing is counted here.
    """
    known = _KNOWN.setdefault(connection.engine, _Known())
    state, now = (today, *summaries.state(connection)), time.monotonic()
    for old in [key for key, value in list(known.sums.items()) if value.state[0] != today]:
        known.sums.pop(old, None)
    last = known.sums.get(scope)
    if last is not None and (last.state == state or _is_reusable(last, now)):
        return last.values, True
    pieces = _pieces(scope, today)
    if entries > MANY:
        _count_in_a_thread(connection.engine, known, scope, state, pieces)
        return (last.values, False) if last is not None else (None, False)
    values = {name: piece(connection) for name, piece in pieces.items()}
    _keep(known, scope, state, values, now)
    return values, True


def known(engine: Engine) -> list[Scope]:
    """What has been counted."""
    return list(_KNOWN[engine].sums) if engine in _KNOWN else []


def _is_reusable(last: Sums, now: float) -> bool:
    return last.seconds > _QUICK_SECONDS and now - last.at < _REUSED_FOR * last.seconds


def _pieces(scope: Scope, today: dt.date) -> Pieces:
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
        "day_snapshots": lambda connection: summaries.day_snapshots(connection, drawn(connection), today),
        "churn": lambda connection: summaries.churn(connection, scope, _ORGS),
        "gaps": lambda connection: GAPS.page(connection, _SHOWN, **of_gaps),
        "gap_count": lambda connection: GAPS.count(connection, **of_gaps),
    }


def _count_in_a_thread(engine: Engine, known: _Known, scope: Scope, state: tuple[Any, ...], pieces: Pieces) -> None:
    """Each piece in a transaction of its own, so that on SQLite no writer waits for all of them."""

    def count() -> None:
        began, values = time.monotonic(), {}
        try:
            for name, piece in pieces.items():
                with short_transaction(engine) as connection:
                    values[name] = piece(connection)
            _keep(known, scope, state, values, began)
        except DatabaseError as error:
            structlog.get_logger("etl.web").warning("sums_not_counted", error=str(error))
        finally:
            known.counting.discard(scope)

    with known.lock:
        if scope in known.counting or len(known.counting) >= _COUNTED_AT_ONCE:
            return
        known.counting.add(scope)
    threading.Thread(target=count, name="sums", daemon=True).start()


def _keep(known: _Known, scope: Scope, state: tuple[Any, ...], values: dict[str, Any], began: float) -> None:
    ended = time.monotonic()
    for oldest in sorted(known.sums, key=lambda each: known.sums[each].at)[: len(known.sums) - _KEPT + 1]:
        known.sums.pop(oldest, None)
    known.sums[scope] = Sums(state, values, ended, ended - began)
