"""What a step reads of organisations' stories: their users, what changed in their lists, and what is stored.

It is read in one transaction, so all of it is from the same moment.
"""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import Boolean, Connection, column, text
from sqlalchemy.sql.selectable import TextualSelect
from sqlalchemy.types import TypeEngine

from etl.domain.organisation.values import Answer, KnownValue, KnownWorkflow, Listed, ListEntry, Loss, WorkflowState
from etl.domain.organisation.versions import Member, Version
from etl.schema import (
    COMING,
    LEAVING,
    UtcTime,
    change_set,
    observation,
    org_flow,
    org_loss,
    org_state,
    target,
    workflow,
    workflow_change,
)
from etl.store.bulk import BulkValues


class FlowKey(NamedTuple):
    """A workflow of an organisation."""

    org_id: str
    flow_id: str


class OrgFlow(msgspec.Struct, frozen=True):
    """A row of ``org_flow``: what is stored of a workflow, and its present state, if it has one."""

    known: KnownWorkflow
    due_at: dt.datetime | None
    awaited: int
    users: int
    editors: int
    state: WorkflowState | None


class Members(msgspec.Struct, frozen=True):
    """The users of an organisation, and its last step."""

    by_id: dict[int, Member]
    last_step: int | None


_ORGS: Final = BulkValues(org_id="text")
_ORGS_AT: Final = BulkValues(org_id="text", at="timestamptz")
FLOWS: Final = BulkValues(org_id="text", flow_id="text")
_RUNS: Final = BulkValues(run_id="bigint", at="timestamptz")
_TARGETS: Final = BulkValues(target_id="bigint")
_LOST: Final = BulkValues(target_id="bigint", flow_id="text", version="int")
_HELD: Final = BulkValues(target_id="bigint", version="int", last_arrived_at="timestamptz")

_TYPES: Final[Mapping[str, TypeEngine[Any]]] = {
    column.name: column.type
    for table in (target, change_set, workflow_change, workflow, observation, org_flow, org_loss, org_state)
    for column in table.columns
    if isinstance(column.type, UtcTime | Boolean)
} | {"is_held": Boolean()}
"""Of the columns that the databases return in different ways."""


@cache
def _statement(dialect: str, given: BulkValues, columns: str, source: str) -> TextualSelect:
    """A SELECT of ``columns`` (by name, what they are called in the end) from ``source``, in which {given} stands for
    the rows that it is given."""
    names = [each.split(" AS ")[-1].rpartition(".")[2].strip() for each in columns.split(", ")]
    rows = f"({given.sql(dialect)}) given"
    return typed(f"SELECT {columns} FROM {source.format(given=rows)}", *names)  # noqa: S608 - our own words


def typed(statement: str, *names: str) -> TextualSelect:
    """A textual statement with typed columns: times and booleans are the same on both databases."""
    return text(statement).columns(*(column(name, _TYPES.get(name)) for name in names))


def _select(connection: Connection, columns: str, source: str, given: BulkValues, rows: Sequence[Any]) -> Iterator[Any]:
    if not rows:
        return iter(())
    statement = _statement(connection.dialect.name, given, columns, source)
    return iter(connection.execute(statement, given.bound(connection, rows)))


def _rows(values: Iterable[Any]) -> list[tuple[Any]]:
    return [(value,) for value in values]


# ------------------------------------------------------------------------------------------- which organisations

_USERS: Final = "{given} JOIN target t ON t.org_id = given.org_id AND t.expression = '' AND t.user_id <> ''"

_BY_RUN: Final = """
    SELECT DISTINCT t.org_id FROM {given}
    JOIN change_set s ON s.run_id = given.run_id
    JOIN target t ON t.id = s.target_id AND t.expression = '' AND t.user_id <> ''"""
_BY_DEAD_RUNS: Final = """
    SELECT DISTINCT t.org_id FROM {given}
    JOIN sync_run r ON r.id < given.run_id AND r.id >= given.run_id - 100 AND r.status = 'aborted'
    JOIN change_set s ON s.run_id = r.id
    JOIN target t ON t.id = s.target_id AND t.expression = '' AND t.user_id <> ''
                  AND t.projected_version < s.version"""
"""What a run left unjudged when it died. A hundred later runs have certainly made up for it."""
_BY_TIME: Final = "SELECT f.org_id FROM {given} CROSS JOIN org_flow f WHERE f.due_at <= given.at"
_WHERE: Final = "SELECT org_id FROM target WHERE {} AND version > 0"
_DUE: Final = f"""(
    {_BY_RUN} UNION {_BY_DEAD_RUNS} UNION {_BY_TIME}
    UNION {_WHERE.format(COMING.text)} UNION {_WHERE.format(LEAVING.text)}) due"""
"""Each part uses an index that is empty if nothing happened."""


def due_organisations(connection: Connection, run_id: int, at: dt.datetime) -> list[tuple[str, int]]:
    """The organisations that the end of a run at ``at`` must judge, with their numbers of users."""
    due = sorted(org_id for (org_id,) in _select(connection, "due.org_id", _DUE, _RUNS, [(run_id, at)]))
    counted = _select(connection, "t.org_id, count(*) AS users", f"{_USERS} GROUP BY 1", _ORGS, _rows(due))
    users = dict(map(tuple, counted))
    return [(org_id, users[org_id]) for org_id in due]


# ------------------------------------------------------------------------------------------------------- users

_MEMBER: Final = (
    "t.org_id, t.id, t.user_id, t.version, t.projected_version, t.counts_since, t.away_since, "
    "t.retired_at, t.held_since IS NOT NULL AS is_held, t.held_asked_at, t.held_at, o.last_asked_at, o.last_at, "
    "t.coverage_gap_seconds"
)
_MEMBERS: Final = f"""{_USERS}
    LEFT JOIN observation o ON o.id = (SELECT max(latest.id) FROM observation latest WHERE latest.target_id = t.id)"""  # noqa: S608 - our own words
_LAST_STEPS: Final = "{given} JOIN org_step s ON s.org_id = given.org_id GROUP BY 1"


def last_steps(connection: Connection, orgs: Sequence[str]) -> dict[str, int]:
    """The last step of each organisation that has one."""
    return dict(map(tuple, _select(connection, "s.org_id, max(s.id) AS last", _LAST_STEPS, _ORGS, _rows(orgs))))


def read_members(connection: Connection, orgs: Sequence[str]) -> dict[str, Members]:
    """The users of the organisations."""
    steps = last_steps(connection, orgs)
    found = {org_id: Members({}, steps.get(org_id)) for org_id in orgs}
    for org_id, *values in _select(connection, _MEMBER, _MEMBERS, _ORGS, _rows(orgs)):
        member = _member(values)
        found[org_id].by_id[member.target_id] = member
    return found


def _member(values: Sequence[Any]) -> Member:
    (target_id, user_id, version, projected, counts_since, away_since, retired_at, is_held, held_asked_at, held_at,
     asked_at, last_at, coverage_gap_seconds) = values  # fmt: skip
    believed = None if last_at is None else Answer(asked_at, last_at)
    is_later = held_at is not None and (last_at is None or held_at > last_at)
    return Member(
        target_id=target_id,
        user_id=user_id,
        version=version,
        projected_version=projected,
        counts_since=counts_since,
        away_since=away_since,
        retired_at=retired_at,
        is_held=is_held,
        held_at=held_at,
        latest=Answer(held_asked_at, held_at) if is_later else believed,
        believed=believed,
        coverage_gap=dt.timedelta(seconds=coverage_gap_seconds),
    )


# ---------------------------------------------------------------------------------------------------- versions

_VERSION: Final = (
    "s.id, s.target_id, s.version, s.asked_at, s.observed_at, s.last_unchanged_at, s.last_arrived_at, "
    "s.held_asked_at, s.held_at"
)
_CHANGE: Final = (
    "s.target_id, s.version, c.flow_id, c.old_name, c.new_name, c.old_cycle, c.new_cycle, c.old_editable, "
    "c.new_editable, c.kind"
)
_OF_TARGETS: Final = """{given}
    JOIN target t ON t.id = given.target_id
    JOIN change_set s ON s.target_id = t.id AND s.version > t.projected_version AND s.version <= t.version"""
_ALL_CHANGES: Final = f"{_OF_TARGETS} JOIN workflow_change c ON c.change_set_id = s.id"
_DELTAS: Final = f"{_ALL_CHANGES} WHERE s.kind = 'delta'"
_BASELINES_ROWS: Final = """{given}
    JOIN target t ON t.org_id = given.org_id AND t.expression = '' AND t.user_id <> '' AND t.projected_version = 0
    JOIN change_set s ON s.target_id = t.id AND s.version = 1
    JOIN workflow_change c ON c.change_set_id = s.id AND c.flow_id = given.flow_id"""

ChangeRows = dict[tuple[int, int], dict[str, tuple[Listed | None, Listed | None]]]
"""What changed, by target and version."""


def read_versions(connection: Connection, target_ids: Sequence[int], changes: ChangeRows) -> dict[int, list[Version]]:
    """The versions of the targets that no step has judged, in order. ``changes`` is what they changed."""
    found: dict[int, list[Any]] = defaultdict(list)
    for row in _select(connection, _VERSION, _OF_TARGETS, _TARGETS, _rows(target_ids)):
        found[row.target_id].append(row)
    shown = _shown_while_held(connection, found)
    return {
        target_id: [_version(row, changes, shown) for row in sorted(of_target, key=lambda each: each.version)]
        for target_id, of_target in found.items()
    }


def read_changes(connection: Connection, target_ids: Sequence[int], first_lists_of: Sequence[int]) -> ChangeRows:
    """What unjudged versions of the targets changed; first lists are only read for ``first_lists_of``."""
    changes: ChangeRows = defaultdict(dict)
    whole = set(first_lists_of)
    for source, ids in ((_DELTAS, set(target_ids) - whole), (_ALL_CHANGES, whole)):
        for row in _select(connection, _CHANGE, source, _TARGETS, _rows(sorted(ids))):
            changes[row[0], row[1]][row[2]] = _before_and_after(row)
    return changes


def read_baselines(connection: Connection, flows: Sequence[FlowKey], changes: ChangeRows) -> None:
    """Add what unjudged first lists say about ``flows``."""
    for row in _select(connection, _CHANGE, _BASELINES_ROWS, FLOWS, flows):
        changes[row[0], row[1]][row[2]] = _before_and_after(row)


def _before_and_after(row: Sequence[Any]) -> tuple[Listed | None, Listed | None]:
    _, _, _, old_name, new_name, old_cycle, new_cycle, old_editable, new_editable, kind = row
    before = None if kind in ("added", "baseline") else Listed(old_name, old_cycle, old_editable)
    return before, None if kind == "removed" else Listed(new_name, new_cycle, new_editable)


def _version(row: Any, changes: ChangeRows, shown: dict[tuple[int, int], dict[str, Answer]]) -> Version:
    believed = None if row.last_arrived_at is None else Answer(row.last_unchanged_at, row.last_arrived_at)
    held = None if row.held_at is None else Answer(row.held_asked_at, row.held_at)
    return Version(
        change_set_id=row.id,
        number=row.version,
        answer=Answer(row.asked_at, row.observed_at),
        previous=held or believed,
        believed=believed,
        shown=shown.get((row.target_id, row.version), {}),
        changes=changes[row.target_id, row.version],
    )


_WHILE_HELD: Final = """{given}
    JOIN change_set s ON s.target_id = given.target_id AND s.version < given.version
                      AND s.observed_at > given.last_arrived_at
    JOIN workflow_change c ON c.change_set_id = s.id"""


def _shown_while_held(connection: Connection, found: dict[int, list[Any]]) -> dict[tuple[int, int], dict[str, Answer]]:
    """By version after a hold: the workflows that changed while it lasted, each with the answer that changed it."""
    held = [
        (row.target_id, row.version, row.last_arrived_at)
        for rows in found.values()
        for row in rows
        if row.held_at is not None
    ]
    columns = "given.target_id, given.version, c.flow_id, s.asked_at, s.observed_at"
    shown: dict[tuple[int, int], dict[str, Answer]] = defaultdict(dict)
    for target_id, version, flow_id, *answer in _select(connection, columns, _WHILE_HELD, _HELD, held):
        latest = shown[target_id, version]
        latest[flow_id] = max(latest.get(flow_id, Answer(*answer)), Answer(*answer), key=lambda a: a.arrived_at)
    return shown


# ------------------------------------------------------------------------------------- lists and what is kept

_DUE_FLOWS: Final = "{given} JOIN org_flow f ON f.org_id = given.org_id WHERE f.due_at <= given.at"
_LISTED_BY: Final = "{given} JOIN workflow w ON w.target_id = given.target_id"
_SHOWING: Final = f"""{_USERS}
    JOIN workflow w ON w.target_id = t.id AND w.flow_id = given.flow_id"""
_HELD_FLOWS: Final = f"""{_SHOWING}
    LEFT JOIN change_set s ON s.target_id = t.id AND s.observed_at = w.changed_at WHERE w.missing_since IS NOT NULL"""
_KEPT: Final = ", ".join(f"f.{each.name}" for each in org_flow.columns)
_OF_FLOWS: Final = "{given} JOIN %s f ON f.org_id = given.org_id AND f.flow_id = given.flow_id"
_LOSS: Final = (
    "f.org_id, f.flow_id, f.user_id, f.flow_name, f.cycle, f.editable, f.shown_asked_at, "
    "f.without_asked_at, f.without_at"
)


def read_due(connection: Connection, orgs: Sequence[str], at: dt.datetime) -> set[FlowKey]:
    """The workflows that a step at ``at`` must judge even if no answer changes them."""
    given = [(org_id, at) for org_id in orgs]
    return {FlowKey(*row) for row in _select(connection, "f.org_id, f.flow_id", _DUE_FLOWS, _ORGS_AT, given)}


def read_flow_ids(connection: Connection, target_ids: Sequence[int]) -> Iterator[tuple[int, str]]:
    """The workflows that these targets list."""
    rows = _select(connection, "w.target_id, w.flow_id", _LISTED_BY, _TARGETS, _rows(target_ids))
    return ((row[0], row[1]) for row in rows)


def read_entries(connection: Connection, flows: Sequence[FlowKey]) -> dict[str, dict[int, ListEntry]]:
    """By workflow id, the entries of the targets that list it."""
    columns = "w.flow_id, w.target_id, w.first_listed_at, w.flow_name, w.cycle, w.editable"
    entries: dict[str, dict[int, ListEntry]] = defaultdict(dict)
    for flow_id, target_id, since, *listed in _select(connection, columns, _SHOWING, FLOWS, flows):
        entries[flow_id][target_id] = ListEntry(since, Listed(*listed))
    return entries


def read_held(connection: Connection, flows: Sequence[FlowKey]) -> dict[tuple[int, str], Answer | None]:
    """By target and workflow whose removal is held: the last answer that changed it, if that made a version."""
    columns = "t.id, w.flow_id, s.asked_at, s.observed_at"
    rows = _select(connection, columns, _HELD_FLOWS, FLOWS, flows)
    return {(target_id, flow_id): Answer(*at) if at[1] is not None else None for target_id, flow_id, *at in rows}


_SINCE: Final = """(
    SELECT given.target_id, given.flow_id,
           (SELECT max(s.observed_at) FROM change_set s
            JOIN workflow_change c ON c.change_set_id = s.id AND c.flow_id = given.flow_id
            WHERE s.target_id = given.target_id AND s.version < given.version
              AND c.kind || '' IN ('added', 'baseline')) AS since
    FROM {given}) found"""


def read_since(connection: Connection, lost: Sequence[tuple[int, str, int]]) -> dict[tuple[int, str], dt.datetime]:
    """By target and workflow that a version removed: the first answer that listed it before that, without a break."""
    rows = _select(connection, "found.target_id, found.flow_id, found.since", _SINCE, _LOST, lost)
    return {(target_id, flow_id): since for target_id, flow_id, since in rows if since is not None}


def read_org_flows(connection: Connection, flows: Sequence[FlowKey]) -> dict[FlowKey, OrgFlow]:
    """The rows of these workflows in ``org_flow``."""
    rows = _select(connection, _KEPT, _OF_FLOWS % "org_flow", FLOWS, flows)
    return {FlowKey(row.org_id, row.flow_id): _org_flow(row) for row in rows}


def _org_flow(row: Any) -> OrgFlow:
    first_of_name = Answer(row.name_first_asked_at, row.name_first_at)
    last_of_name = _answer(row.name_last_asked_at, row.name_last_at) or first_of_name
    first_of_cycle = _answer(row.cycle_first_asked_at, row.cycle_first_at) or first_of_name
    last_of_cycle = _answer(row.cycle_last_asked_at, row.cycle_last_at) or first_of_cycle
    name = KnownValue(row.flow_name, first_of_name, last_of_name)
    known = KnownWorkflow(row.since, name, KnownValue(row.cycle, first_of_cycle, last_of_cycle), row.gone_at)
    listed = Listed(row.flow_name, row.cycle, None)
    state = row.from_kind and WorkflowState(
        row.valid_from, row.last_unchanged_at, listed, row.from_kind, row.proven_for_all
    )
    return OrgFlow(known, row.due_at, row.awaited, row.users, row.editors, state)


def _answer(asked_at: dt.datetime | None, arrived_at: dt.datetime | None) -> Answer | None:
    return None if asked_at is None or arrived_at is None else Answer(asked_at, arrived_at)


_ENDED: Final = """(
    SELECT given.org_id, given.flow_id,
           (SELECT max(s.valid_to) FROM org_state s
            WHERE s.org_id = given.org_id AND s.flow_id = given.flow_id) AS valid_to
    FROM {given}) found"""


def read_ended_until(connection: Connection, flows: Sequence[FlowKey]) -> dict[FlowKey, dt.datetime]:
    """Until when these workflows had a state that has ended."""
    columns = "found.org_id, found.flow_id, found.valid_to"
    rows = _select(connection, columns, _ENDED, FLOWS, flows)
    return {FlowKey(*row[:2]): row[2] for row in rows if row[2] is not None}


def read_waiting(connection: Connection, flows: Sequence[FlowKey]) -> dict[FlowKey, dict[str, Loss]]:
    """The users who wait, by workflow."""
    waiting: dict[FlowKey, dict[str, Loss]] = defaultdict(dict)
    for row in _select(connection, _LOSS, _OF_FLOWS % "org_loss", FLOWS, flows):
        waiting[FlowKey(*row[:2])][row[2]] = Loss(Listed(*row[3:6]), row[6], Answer(*row[7:9]))
    return waiting
