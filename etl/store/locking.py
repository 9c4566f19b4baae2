"""How transactions that write to the same targets see each other: locks in one order, and fences compared.

Two kinds of writers meet at a target. One *writes the target*: a version, a hold, a failure, a first or a new span. The
other only *extends* the open span, because the answer was the known one, as most answers are. On PostgreSQL a row lock
is a write, so the second kind does not lock the target. (SQLite has one writer at a time: nobody can meet there.)

The protocol. Each step is a statement of its own, so it sees whatever was committed before it got its locks:

0. ``require_open``: a shared lock on the run's row keeps the run from being closed meanwhile; RunClosed if it is closed
   already. A transaction that only extends does this in step 3, in the same statement.
1. ``_lock``: a writer of targets locks their rows, by id, and then the latest spans of all targets of the transaction,
   by id.
2. ``winners``: it drops the targets whose fence is not the one that was read before the request. They are *stale*.
3. ``extend_spans``: an extending transaction locks the spans, by id, and extends those that still have as many
   observations as were read. The others are stale.
4. ``_check_unmoved``: a transaction that extended without the lock of step 1 reads the targets. If one has another
   fence or another open span by now, FenceConflict is raised: the transaction is rolled back, and repeated as a writer
   of that target.
5. ``_latest_spans``: a writer that does not extend drops the targets whose latest span is not as it was read. They are
   stale.
6. ``turnover.count``: the organisations are locked last, by id.

| two transactions meet at a target | the first has locked | the second |
|---|---|---|
| both write it | the target, in step 1 | waits in step 1; finds another fence in step 2; or, after a failure, finds the span ended, and opens its own (``_after_a_failure``) |
| both extend it | the span, in step 3 | waits in step 3, and finds one observation more |
| one writes, one extends | as the writer, target and span, in step 1 | waits for the span in step 3, and finds the target changed in step 4 |
| one writes, one extends | as the extender, the span, in step 3 | waits for the span in step 1, and finds one observation more in step 5 |

So of two that meet, the second always sees what the first one did. And no two wait for each other: every transaction
locks the run, then targets, then spans, then organisations, each by id, then the trail.
"""  # noqa: E501 - a table

from __future__ import annotations

import itertools
from collections.abc import Container, Iterable, Sequence, Set
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, bindparam, select

from etl.domain.model import Outcome
from etl.schema import observation, target
from etl.store import seals
from etl.store.bulk import extend_spans
from etl.store.fences import LATEST_SPAN

_NOW: Final = select(target.c.id, target.c.fence, target.c.observation_id).where(
    target.c.id.in_(bindparam("ids", expanding=True))
)
_LOCK: Final = _NOW.order_by(target.c.id).with_for_update()
_LOCK_SPANS: Final = (
    select(observation.c.id)
    .where(observation.c.id.in_(bindparam("ids", expanding=True)))
    .order_by(observation.c.id)
    .with_for_update()
)
_LATEST: Final = (
    select(target.c.id, observation.c.id, observation.c.observations)
    .join_from(target, observation, observation.c.id == LATEST_SPAN)
    .where(target.c.id.in_(bindparam("ids", expanding=True)))
)


class FenceConflict(Exception):
    """Targets whose spans must not be extended: another change to them was committed at the same moment."""

    def __init__(self, target_ids: Set[int]) -> None:
        super().__init__(f"{len(target_ids)} targets have changed")
        self.target_ids = target_ids


def winners(
    connection: Connection, run_id: int, outcomes: Sequence[Outcome], suspects: Container[int]
) -> list[Outcome]:
    """Lock what is written, leave out stale targets, and extend the spans that are still open: steps 0 to 5.

    Raises RunClosed and FenceConflict.
    """
    quiet = [o for o in outcomes if o.only_extends and o.fence.target_id not in suspects]
    writing = [o for o in outcomes if not o.only_extends or o.fence.target_id in suspects]
    if writing:
        seals.require_open(connection, run_id)
    now = _lock(connection, writing, quiet) if writing else {}
    standing = [o for o in writing if now[o.fence.target_id].fence == o.fence.number]
    extending = [o for o in standing if o.extends and now[o.fence.target_id].observation_id == o.fence.observation_id]
    extended = extend_spans(connection, run_id, quiet + extending) if quiet or extending else set()
    if not writing and len(extended) < len(quiet):
        seals.require_open(connection, run_id)
    _check_unmoved(connection, [o for o in quiet if o.fence.target_id in extended])
    rest = {o.fence.target_id for o in standing} - {o.fence.target_id for o in extending}
    latest = _latest_spans(connection, rest)
    return [o for o in quiet if o.fence.target_id in extended] + [
        outcome if now[outcome.fence.target_id].observation_id is not None else _after_a_failure(outcome)
        for outcome in standing
        if outcome.fence.target_id in extended or (outcome.fence.target_id in rest and _as_read(outcome, latest))
    ]


def _lock(connection: Connection, writing: Iterable[Outcome], quiet: Iterable[Outcome]) -> dict[int, Any]:
    """Step 1; returns what the targets are now."""
    now = {row.id: row for row in connection.execute(_LOCK, {"ids": sorted(o.fence.target_id for o in writing)})}
    spans = sorted(o.fence.span_id for o in itertools.chain(writing, quiet) if o.fence.span_id is not None)
    if spans and connection.dialect.name == "postgresql":  # SQLite has one writer at a time
        connection.execute(_LOCK_SPANS, {"ids": spans})
    return now


def _check_unmoved(connection: Connection, quiet: Sequence[Outcome]) -> None:
    """Step 4."""
    if not quiet:
        return
    now = connection.execute(_NOW, {"ids": [outcome.fence.target_id for outcome in quiet]})
    unmoved = {(outcome.fence.target_id, outcome.fence.number, outcome.fence.observation_id) for outcome in quiet}
    if moved := {row.id for row in now if tuple(row) not in unmoved}:
        raise FenceConflict(moved)


def _after_a_failure(outcome: Outcome) -> Outcome:
    """A failure in between has ended the span, so the observation opens a new one, marked as interrupted."""
    span = outcome.span
    if span is None or outcome.fence.observation_id is None:
        return outcome
    opened = msgspec.structs.replace(
        span, first_at=span.last_at, observations=1, longest_gap_seconds=0, interrupted=True
    )
    return msgspec.structs.replace(outcome, span=opened, extends=False)


def _as_read(outcome: Outcome, latest: dict[int, tuple[int, int]]) -> bool:
    fence = outcome.fence
    return latest.get(fence.target_id) == (None if fence.span is None else (fence.span_id, fence.span.observations))


def _latest_spans(connection: Connection, target_ids: Iterable[int]) -> dict[int, tuple[int, int]]:
    ids = sorted(target_ids)
    if not ids:
        return {}
    rows = connection.execute(_LATEST, {"ids": ids})
    return {target_id: (span_id, observations) for target_id, span_id, observations in rows}
