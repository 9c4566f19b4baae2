"""What a batch reads: the fences of its targets, and the states of those whose answer differs."""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import Connection, and_, bindparam, case, func, select

from etl.domain.holds import doubts_in
from etl.domain.model import Doubt, Fence, Flow, Span, State, Target
from etl.schema import TARGET_KEY, UtcTime, change_set, hold_event, observation, target
from etl.store import membership, seals

SPAN_COLUMNS: Final = (
    observation.c.first_at,
    observation.c.last_asked_at,
    observation.c.last_at,
    observation.c.observations,
    observation.c.longest_gap_seconds,
    observation.c.interrupted,
)
_of_target: Final = observation.alias("of_target")
LATEST_SPAN: Final = (
    select(func.max(_of_target.c.id)).where(_of_target.c.target_id == target.c.id).correlate(target).scalar_subquery()
)

_latest_hold: Final = case(
    (
        target.c.held_since.is_not(None),
        select(func.max(hold_event.c.at, type_=UtcTime()))
        .where(hold_event.c.target_id == target.c.id)
        .correlate(target)
        .scalar_subquery(),
    )
)

_OF_TARGET: Final = (
    *("version", "fence", "observation_id", "answer_digest", "data_hash", "flow_count"),
    *("held_since", "held_asked_at", "held_at"),
)
_FENCES: Final = (
    select(
        *TARGET_KEY,
        *(target.c.retired_at, target.c.coverage_gap_seconds, observation.c.id.label("span_id")),
        *SPAN_COLUMNS,
        *(target.c.id, *(target.c[name] for name in _OF_TARGET)),
        *(change_set.c.hash, change_set.c.observed_at.label("head_observed_at"), _latest_hold),
    )
    .outerjoin_from(target, observation, observation.c.id == LATEST_SPAN)
    .outerjoin(change_set, and_(change_set.c.target_id == target.c.id, change_set.c.version == target.c.version))
)
_PLAIN: Final = ("target_id", *_OF_TARGET, "head_hash", "head_observed_at", "latest_hold_at")
_FENCES_OF: Final = {dialect: _FENCES.where(membership.is_given(dialect)) for dialect in ("postgresql", "sqlite")}
_ROWS_AT_ONCE: Final = 1000
_WORKFLOWS: Final = (
    "SELECT target_id, flow_id, flow_name, cycle, editable, missing_since IS NOT NULL, doubted FROM workflow"
)
_WORKFLOWS_OF: Final = {
    "postgresql": _WORKFLOWS + " WHERE target_id = ANY(%s)",
    "sqlite": _WORKFLOWS + " WHERE target_id IN (SELECT value FROM json_each(?))",  # noqa: S608 - ours
}
_SPANS: Final = (
    select(observation.c.target_id, *SPAN_COLUMNS)
    .join_from(
        observation,
        target,
        and_(observation.c.target_id == target.c.id, observation.c.version == target.c.version),
    )
    .where(target.c.id.in_(bindparam("ids", expanding=True)))
    .order_by(observation.c.first_at, observation.c.id)
)


class RunBegun(NamedTuple):
    """A run, and when it began."""

    run_id: int
    began_at: dt.datetime


def read_fences(connection: Connection, targets: Sequence[Target]) -> dict[Target, Fence]:
    """The fences of those ``targets`` that the database knows."""
    given = membership.GIVEN.bound(connection, targets)
    rows = connection.execute(_FENCES_OF[connection.dialect.name], given)
    return {fence.target: fence for fence in map(_fence, rows)}


def register(
    connection: Connection, targets: Sequence[Target], new: Collection[Target], run: RunBegun | None
) -> dict[Target, Fence]:
    """Insert ``new`` targets, resume retired ones for a ``run``, and return the fences of all ``targets``.

    Another process may have inserted a target meanwhile. Raises RunClosed.
    """
    if run is not None:
        seals.require_open(connection, run.run_id)
    if new:
        membership.register(connection, new)
    known = read_fences(connection, targets)
    retired = sorted(fence.target for fence in known.values() if fence.retired)
    if retired and run is not None:
        membership.wait_for_turn(connection)
        membership.resume(connection, run.run_id, retired, run.began_at)
    return known


def read_states(connection: Connection, target_ids: Sequence[int]) -> dict[int, State]:
    """The workflows, held removals and current spans of each of ``target_ids``."""
    flows: dict[int, dict[str, Flow]] = {target_id: {} for target_id in target_ids}
    missing: dict[int, set[str]] = defaultdict(set)
    spans: dict[int, list[Span]] = defaultdict(list)
    doubted: dict[int, list[Doubt]] = defaultdict(list)
    for target_id, flow_id, name, cycle, editable, is_missing, doubts in _workflows(connection, target_ids):
        flows[target_id][flow_id] = Flow(flow_id, name, cycle, None if editable is None else bool(editable))
        if is_missing:
            missing[target_id].add(flow_id)
        if doubts is not None:
            doubted[target_id] += doubts_in(flow_id, doubts)
    for target_id, *span in connection.execute(_SPANS, {"ids": target_ids}):
        spans[target_id].append(Span(*span))
    return {
        target_id: State(known, frozenset(missing[target_id]), tuple(spans[target_id]), frozenset(doubted[target_id]))
        for target_id, known in flows.items()
    }


def _workflows(connection: Connection, target_ids: Sequence[int]) -> Iterator[tuple[Any, ...]]:
    """Past SQLAlchemy, whose row objects cost as much as everything else; so booleans are 0 or 1 on SQLite."""
    dialect = connection.dialect.name
    driver = connection.connection.driver_connection
    assert driver is not None  # noqa: S101 - it is checked out
    ids = list(target_ids) if dialect == "postgresql" else msgspec.json.encode(target_ids).decode()
    with closing(driver.execute(_WORKFLOWS_OF[dialect], (ids,))) as cursor:
        while rows := cursor.fetchmany(_ROWS_AT_ONCE):
            yield from rows


def _fence(row: Sequence[Any]) -> Fence:
    org_id, user_id, expression, retired_at, gap_seconds, span_id = row[:6]
    span, plain = row[6 : 6 + len(SPAN_COLUMNS)], row[6 + len(SPAN_COLUMNS) :]
    return Fence(
        target=Target(org_id, user_id, expression),
        retired=retired_at is not None,
        span_id=span_id,
        span=None if span_id is None else Span(*span),
        coverage_gap=dt.timedelta(seconds=gap_seconds),
        **dict(zip(_PLAIN, plain, strict=True)),
    )
