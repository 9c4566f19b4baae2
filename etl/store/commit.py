"""One transaction that writes the outcomes of a batch; ``locking`` has the protocol between two of them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Container, Iterable, Sequence
from functools import cache
from typing import Any, Final, NamedTuple

from msgspec.structs import astuple
from sqlalchemy import (
    Connection,
    Select,
    Table,
    Update,
    bindparam,
    case,
    delete,
    func,
    insert,
    select,
    tuple_,
    update,
)

from etl.domain.chain import FORMAT, GENESIS
from etl.domain.kinds import CHANGE_KINDS
from etl.domain.model import Change, ChangeSet, Outcome, Span
from etl.schema import CHANGE_KIND, change_set, hold_event, observation, sync_issue, target, workflow, workflow_change
from etl.store import answers, holds, turnover
from etl.store.bulk import BulkValues, execute_many, insert_into, insert_rows
from etl.store.failures import write_failures
from etl.store.locking import winners
from etl.store.turnover import NO_REMOVALS, Removals

_GIVEN: Final = BulkValues(
    target_id="bigint", version="int", moved="int", observation_id="bigint", answer_digest="text", data_hash="text",
    state_digest="text", flow_count="int", held_since="timestamptz", held_asked_at="timestamptz", held_at="timestamptz",
)  # fmt: skip


@cache
def _answered(dialect: str) -> Update:
    new = _GIVEN.select(dialect).subquery("new").c
    return (
        update(target)
        .where(target.c.id == new.target_id)
        .values(
            version=new.version,
            fence=target.c.fence + new.moved,
            observation_id=new.observation_id,
            answer_digest=new.answer_digest,
            data_hash=new.data_hash,
            state_digest=func.coalesce(new.state_digest, target.c.state_digest),
            flow_count=new.flow_count,
            held_since=case((new.held_since.is_not(None), func.coalesce(target.c.held_since, new.held_since))),
            held_asked_at=func.coalesce(new.held_asked_at, target.c.held_asked_at),
            held_at=func.coalesce(new.held_at, target.c.held_at),
            consecutive_failures=0,
            last_error_code=None,
            last_error=None,
        )
    )


_CHANGED: Final = workflow_change.join(change_set, change_set.c.id == workflow_change.c.change_set_id)
_NEW_ROWS: Final = (
    select(
        change_set.c.target_id,
        workflow_change.c.flow_id,
        workflow_change.c.new_name,
        workflow_change.c.new_cycle,
        workflow_change.c.new_editable,
        change_set.c.observed_at.label("first_listed_at"),
        change_set.c.observed_at.label("changed_at"),
    )
    .select_from(_CHANGED)
    .where(change_set.c.id.in_(bindparam("ids", expanding=True)))
)
_COLUMNS: Final = ("target_id", "flow_id", "flow_name", "cycle", "editable", "first_listed_at", "changed_at")
_BASELINE: Final = insert(workflow).from_select(_COLUMNS, _NEW_ROWS)
_REMOVE: Final = delete(workflow).where(
    tuple_(workflow.c.target_id, workflow.c.flow_id).in_(
        select(change_set.c.target_id, workflow_change.c.flow_id)
        .select_from(_CHANGED)
        .where(change_set.c.id.in_(bindparam("ids", expanding=True)), CHANGE_KIND == "removed")
    )
)
_HELD: Final = update(workflow).where(
    workflow.c.target_id == bindparam("of_target"), workflow.c.flow_id == bindparam("of_flow")
)
_MISSING: Final = _HELD.values(missing_since=bindparam("since"))
_DOUBTED: Final = _HELD.values(doubted=bindparam("doubts"))


class Applied(NamedTuple):
    """The result of ``apply``."""

    stale: set[int]
    """The ids of the targets whose fence had changed."""
    issue_id: int | None
    """The id of the first issue that was written."""


def apply(
    connection: Connection,
    run_id: int,
    outcomes: Sequence[Outcome],
    removals: Removals = NO_REMOVALS,
    suspects: Container[int] = frozenset(),
) -> Applied:
    """Write what ``outcomes`` say, in the caller's transaction. Raises RunClosed where the run is closed.

    Raises FenceConflict if the transaction must be rolled back and repeated, with those targets as ``suspects``, and
    TooManyRemovals if it must be rolled back because ``removals`` are too many together with what others have
    committed.
    """
    won = winners(connection, run_id, outcomes, suspects)
    lost = {outcome.fence.target_id for outcome in outcomes} - {outcome.fence.target_id for outcome in won}
    numbered = _insert_change_sets(connection, run_id, won)
    _insert_changes(connection, numbered)
    _replay(connection, numbered)
    execute_many(connection, _MISSING, holds.missing_rows(won))
    execute_many(connection, _DOUBTED, holds.doubted_rows(won))
    execute_many(connection, insert(hold_event), holds.hold_events(run_id, won))
    _write_answered(connection, won, _open_spans(connection, won))
    issue_id = write_failures(connection, run_id, outcomes, lost)
    turnover.count(connection, run_id, won, removals)
    answers.keep_answers(connection, run_id, won)
    return Applied(lost, issue_id)


def _insert_change_sets(
    connection: Connection, run_id: int, outcomes: Iterable[Outcome]
) -> list[tuple[int, Outcome, ChangeSet]]:
    made = [(outcome, outcome.change_set) for outcome in outcomes if outcome.change_set is not None]
    insert_rows(connection, change_set, _CHANGE_SET, (_change_set_row(run_id, *pair) for pair in made))
    ids = _latest_ids(connection, change_set, (outcome for outcome, _ in made))
    return [(ids[outcome.fence.target_id], outcome, made) for outcome, made in made]


_CHANGE_SET: Final = (
    "target_id", "version", "run_id", "kind", "observed_at", "last_unchanged_at",
    "asked_at", "last_arrived_at", "held_asked_at", "held_at", "flow_count", "state_digest",
    *CHANGE_KINDS, "approved_by", "approved_scope", "data_hash", "format", "parent_hash", "hash",
)  # fmt: skip


def _change_set_row(run_id: int, outcome: Outcome, made: ChangeSet) -> tuple[Any, ...]:
    counts = made.counts
    return (
        outcome.fence.target_id,
        made.version,
        run_id,
        made.kind,
        made.observed_at,
        made.last_unchanged_at,
        *_answers(outcome),
        outcome.flow_count,
        made.state_digest,
        *(counts[kind] for kind in CHANGE_KINDS),
        made.approved_by,
        made.approved_scope,
        made.data_hash,
        FORMAT,
        outcome.fence.head_hash or GENESIS,
        outcome.hash,
    )


def _answers(outcome: Outcome) -> tuple[dt.datetime | None, ...]:
    """When the answer was requested, when the one before had arrived, and a later one, if something of it was held."""
    fence = outcome.fence
    last_arrived_at = fence.span.last_at if fence.span else None
    was_held = fence.held_at is not None and (last_arrived_at is None or fence.held_at > last_arrived_at)
    return (outcome.asked_at, last_arrived_at, *((fence.held_asked_at, fence.held_at) if was_held else (None, None)))


def _latest_ids(connection: Connection, table: Table, outcomes: Iterable[Outcome]) -> dict[int, int]:
    """The id of each target's latest row, which is the one just inserted, because the target's row is locked."""
    ids = [outcome.fence.target_id for outcome in outcomes]
    if not ids:
        return {}
    latest = select(table.c.target_id, func.max(table.c.id)).group_by(table.c.target_id)
    rows = connection.execute(latest.where(table.c.target_id.in_(bindparam("ids", expanding=True))), {"ids": ids})
    return {target_id: latest_id for target_id, latest_id in rows}  # noqa: C416 - rows have keys(), which dict() takes


def _insert_changes(connection: Connection, numbered: Sequence[tuple[int, Outcome, ChangeSet]]) -> None:
    """Of first lists, which are most of what is ever written, only what is not null: each value that is bound costs."""
    new = ("change_set_id", "flow_id", "kind", "new_name", "new_cycle", "new_editable")
    first = ((n, made.changes) for n, _, made in numbered if made.kind == "baseline")
    later = ((n, made.changes) for n, _, made in numbered if made.kind != "baseline")
    rows = ((n, c.flow_id, c.kind, c.new_name, c.new_cycle, c.new_editable) for n, changes in first for c in changes)
    insert_rows(connection, workflow_change, new, rows)
    columns = ("change_set_id", *Change.__struct_fields__)
    insert_rows(connection, workflow_change, columns, ((n, *astuple(c)) for n, changes in later for c in changes))


def _replay(connection: Connection, numbered: Iterable[tuple[int, Outcome, ChangeSet]]) -> None:
    """Apply the new changes to ``workflow``; the database reads them from the rows that were just inserted."""
    baselines: list[int] = []
    deltas: list[int] = []
    for number, _, made in numbered:
        (baselines if made.kind == "baseline" else deltas).append(number)
    if baselines:
        connection.execute(_BASELINE, {"ids": baselines})
    if deltas:
        connection.execute(_REMOVE, {"ids": deltas})
        connection.execute(_upsert(connection), {"ids": deltas})


def _upsert(connection: Connection) -> Any:
    """Two changes of a workflow have the same values after it: DISTINCT makes them one row."""
    rows = _NEW_ROWS.where(workflow_change.c.kind != "removed").distinct()
    statement = insert_into(connection, workflow).from_select(_COLUMNS, rows)
    new = statement.excluded
    return statement.on_conflict_do_update(
        index_elements=[workflow.c.target_id, workflow.c.flow_id],
        set_={
            "flow_name": new.flow_name,
            "cycle": new.cycle,
            "editable": new.editable,
            "changed_at": new.changed_at,
        },
    )


def _open_spans(connection: Connection, outcomes: Iterable[Outcome]) -> dict[int, int]:
    """Insert the new spans; return the open span's id by target."""
    opened = [o for o in outcomes if o.span is not None and not o.extends]
    spans = {o.fence.target_id: o.fence.span_id for o in outcomes if o.extends and o.fence.span_id is not None}
    rows = (
        (o.fence.target_id, o.change_set.version if o.change_set else o.fence.version, *astuple(o.span))
        for o in opened
        if o.span is not None
    )
    insert_rows(connection, observation, ("target_id", "version", *Span.__struct_fields__), rows)
    return spans | _latest_ids(connection, observation, opened)


def _write_answered(connection: Connection, outcomes: Sequence[Outcome], spans: dict[int, int]) -> None:
    answered = [o for o in outcomes if o.verdict != "failed" and not o.only_extends]
    if answered:
        rows = [_answer_row(o, spans.get(o.fence.target_id)) for o in answered]
        connection.execute(_answered(connection.dialect.name), _GIVEN.bound(connection, rows))


def _answer_row(outcome: Outcome, span_id: int | None) -> tuple[Any, ...]:
    made = outcome.change_set
    return (
        outcome.fence.target_id,
        made.version if made else outcome.fence.version,
        int(outcome.verdict in ("changed", "held")),
        span_id,
        outcome.answer_digest or outcome.fence.answer_digest,
        outcome.data_hash or outcome.fence.data_hash,
        made.state_digest if made else None,
        outcome.flow_count,
        outcome.observed_at if outcome.holds else None,
        *((outcome.asked_at, outcome.observed_at) if outcome.holds and outcome.asked_at else (None, None)),
    )


def was_committed(connection: Connection, outcomes: Sequence[Outcome], applied: Applied) -> bool:
    """Whether the transaction in which ``outcomes`` were ``applied`` was committed: looked up, not guessed.

    A transaction is there completely or not at all, so one trace is enough. But it must be a trace of this transaction:
    a batch that was settled twice, because its worker was thought dead, leaves two issues of one run for the same
    targets.

    | what the transaction wrote | its trace | why nobody else leaves it |
    |---|---|---|
    | a version | its hash | it covers the time of the answer |
    | an issue | its id | an id is assigned once |
    | only spans | the times of one of them | both times belong to one answer |
    """
    won = [outcome for outcome in outcomes if outcome.fence.target_id not in applied.stale]
    return connection.execute(_trace(won, applied).limit(1)).first() is not None


def _trace(won: Sequence[Outcome], applied: Applied) -> Select[Any]:
    for outcome in won:
        if outcome.change_set is not None:
            version = (change_set.c.target_id == outcome.fence.target_id, change_set.c.hash == outcome.hash)
            return select(change_set.c.id).where(*version)
    if applied.issue_id is not None:
        return select(sync_issue.c.id).where(sync_issue.c.id == applied.issue_id)
    spans = [(o.fence.target_id, o.span.last_at, o.span.last_asked_at) for o in won if o.span is not None]
    seen = tuple_(observation.c.target_id, observation.c.last_at, observation.c.last_asked_at)
    return select(observation.c.id).where(seen.in_(spans))
