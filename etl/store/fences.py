"""What a batch reads: the fences of its targets, and the states of those whose answer differs."""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Collection, Sequence
from itertools import chain
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import Connection, and_, bindparam, case, func, select, text

from etl.domain.approvals import doubts_in
from etl.domain.model import ATTRIBUTES, Fence, Flow, Span, State, Target
from etl.schema import TARGET_KEY, UtcTime, change_set, hold_event, observation, target
from etl.store import membership, seals
from etl.store.bulk import BulkValues

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
        *(target.c.retired_at, target.c.coverage_gap_seconds, target.c.asked_as, observation.c.id.label("span_id")),
        *SPAN_COLUMNS,
        *(target.c.id, *(target.c[name] for name in _OF_TARGET)),
        *(change_set.c.hash, change_set.c.observed_at.label("head_observed_at"), _latest_hold),
    )
    .outerjoin_from(target, observation, observation.c.id == LATEST_SPAN)
    .outerjoin(change_set, and_(change_set.c.target_id == target.c.id, change_set.c.version == target.c.version))
)
_PLAIN: Final = ("target_id", "version", "number", *_OF_TARGET[2:], "head_hash", "head_observed_at", "latest_hold_at")
_FENCES_OF: Final = {dialect: _FENCES.where(membership.is_given(dialect)) for dialect in ("postgresql", "sqlite")}


def _lists(dialect: str) -> str:
    """Each target's list as JSON, an array a column: a row a workflow would cost several times as much to fetch."""
    each = "json_agg" if dialect == "postgresql" else "json_group_array"
    columns = [f"{each}({name})" for name in ("flow_id", *ATTRIBUTES)]
    columns += [f"{each}({name}) FILTER (WHERE {kept} IS NOT NULL)" for name, kept in _KEPT_APART]
    found = ", ".join(f"CAST({column} AS text)" for column in columns)
    return f"SELECT target_id, {found} FROM workflow WHERE target_id IN ({_TARGETS.sql(dialect)}) GROUP BY target_id"  # noqa: S608 - ours


_KEPT_APART: Final = (("flow_id", "missing_since"), ("flow_id", "doubted"), ("doubted", "doubted"))
_TARGETS: Final = BulkValues(target_id="bigint")
_LISTS: Final = {dialect: text(_lists(dialect)) for dialect in ("postgresql", "sqlite")}
_array: Final = msgspec.json.Decoder(list[Any]).decode
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
    spans: dict[int, list[Span]] = defaultdict(list)
    for target_id, *span in connection.execute(_SPANS, {"ids": target_ids}):
        spans[target_id].append(Span(*span))
    states = {target_id: State({}, spans=tuple(spans[target_id])) for target_id in target_ids}
    given = _TARGETS.bound(connection, [(target_id,) for target_id in target_ids])
    for target_id, *arrays in connection.execute(_LISTS[connection.dialect.name], given):
        ids, names, cycles, editables, missing, doubted, doubts = (_array(each or "[]") for each in arrays)
        rights = (None if each is None else bool(each) for each in editables)  # 0 or 1 on SQLite
        flows = dict(zip(ids, map(Flow, ids, names, cycles, rights), strict=True))
        held = frozenset(chain.from_iterable(map(doubts_in, doubted, doubts)))
        states[target_id] = State(flows, frozenset(missing), states[target_id].spans, held)
    return states


def _fence(row: Sequence[Any]) -> Fence:
    org_id, user_id, expression, retired_at, gap_seconds, asked_as, span_id = row[:7]
    span, plain = row[7 : 7 + len(SPAN_COLUMNS)], row[7 + len(SPAN_COLUMNS) :]
    return Fence(
        target=Target(org_id, user_id, expression),
        retired=retired_at is not None,
        asked_as=asked_as,
        span_id=span_id,
        span=None if span_id is None else Span(*span),
        coverage_gap=dt.timedelta(seconds=gap_seconds),
        **dict(zip(_PLAIN, plain, strict=True)),
    )
