"""The rows of reports: one row type per view, with the names of its columns. Times are aware, in UTC."""

from __future__ import annotations

import datetime as dt
from typing import Any, Final, Literal, NamedTuple, get_args, get_type_hints

from sqlalchemy import Boolean, ColumnClause, Integer, Select, String, TableClause, column, table
from sqlalchemy.types import TypeEngine

from etl.schema import UtcTime

Kind = Literal["string", "integer", "boolean", "time"]
Coverage = Literal["observed", "unchanged_across_gap", "between", "unobserved"]
COVERAGE_LABELS: Final = {
    "observed": "observed",
    "unchanged_across_gap": "the same before and after",
    "between": "between two looks that differ",
    "unobserved": "not observed",
}
"""How well the list of a moment is known, after "was" or "were"."""


class ListWorkflow(NamedTuple):
    """A workflow that a target sees now."""

    org_id: str
    user_id: str
    expression: str
    flow_id: str
    flow_name: str | None
    cycle: str | None
    cycle_label: str | None
    editable: bool | None
    first_listed_at: dt.datetime
    changed_at: dt.datetime
    last_observed_at: dt.datetime | None
    missing_since: dt.datetime | None


class ListWorkflowAsOf(NamedTuple):
    """A workflow that a target saw at a moment, and how well that is known."""

    org_id: str
    user_id: str
    expression: str
    flow_id: str
    flow_name: str | None
    cycle: str | None
    cycle_label: str | None
    editable: bool | None
    first_listed_at: dt.datetime
    changed_at: dt.datetime
    last_observed_at: dt.datetime | None
    missing_since: dt.datetime | None
    coverage: str
    observed_before: dt.datetime
    observed_after: dt.datetime | None


class TargetAsOf(NamedTuple):
    """A target at a moment: how well its list was known, and its length; null before the first observation."""

    org_id: str
    user_id: str
    expression: str
    coverage: str
    observed_before: dt.datetime | None
    observed_after: dt.datetime | None
    flow_count: int | None


class ListChange(NamedTuple):
    """One change of one workflow, as one target saw it."""

    change_set_id: int
    run_id: int
    org_id: str
    user_id: str
    expression: str
    flow_id: str
    kind: str
    old_name: str | None
    new_name: str | None
    old_cycle: str | None
    new_cycle: str | None
    old_editable: bool | None
    new_editable: bool | None
    last_unchanged_at: dt.datetime | None
    observed_at: dt.datetime
    ticket: str | None
    acknowledged_by: str | None
    acknowledged_at: dt.datetime | None


class ListState(NamedTuple):
    """A state of a workflow, and how long it lasted."""

    org_id: str
    user_id: str
    expression: str
    flow_id: str
    flow_name: str | None
    cycle: str | None
    editable: bool | None
    valid_from: dt.datetime
    valid_to: dt.datetime | None
    from_kind: str
    last_unchanged_at: dt.datetime | None
    last_listed_at: dt.datetime | None


class OrgWorkflow(NamedTuple):
    """A workflow that at least one user of the organisation sees now, as far as is known."""

    org_id: str
    flow_id: str
    flow_name: str | None
    cycle: str | None
    users: int
    editors: int
    first_listed_at: dt.datetime
    changed_at: dt.datetime
    last_listed_at: dt.datetime | None
    users_in_gap: int
    in_directory: bool | None


class UnlistedWorkflow(NamedTuple):
    org_id: str
    flow_id: str
    flow_name: str | None
    first_listed_at: dt.datetime
    unlisted_since: dt.datetime


class OrgWorkflowState(NamedTuple):
    """A workflow of an organisation, and its state at a moment."""

    org_id: str
    flow_id: str
    flow_name: str | None
    cycle: str | None
    valid_from: dt.datetime
    last_unchanged_at: dt.datetime | None
    valid_to: dt.datetime | None
    from_kind: str
    proven_for_all: bool


class OrgWorkflowEvent(NamedTuple):
    """An event of a workflow in its organisation: one row, however many users saw it."""

    org_id: str
    flow_id: str
    kind: str
    user_id: str | None
    old_name: str | None
    new_name: str | None
    old_cycle: str | None
    new_cycle: str | None
    old_editable: bool | None
    new_editable: bool | None
    last_unchanged_at: dt.datetime | None
    observed_at: dt.datetime
    users_before: int
    users_after: int
    proven_for_all: bool
    unheard: int
    decided_at: dt.datetime
    run_id: int
    seal_id: int | None
    event_id: int
    update_user: str | None
    update_time: str | None
    old_freq: str | None
    new_freq: str | None
    enos_timezone: str | None
    in_directory: bool | None
    ticket: str | None
    acknowledged_by: str | None
    acknowledged_at: dt.datetime | None


class Acknowledgement(NamedTuple):
    """Who agreed to what, and which other one it revokes, or is revoked by."""

    id: int
    made_at: dt.datetime
    made_by: str
    ticket: str | None
    note: str | None
    org_id: str
    flow_id: str | None
    user_id: str | None
    kind: str | None
    after: dt.datetime | None
    until: dt.datetime | None
    revokes: int | None
    revoked_by: int | None


class Difference(NamedTuple):
    """A difference between the lists of two moments, whatever happened in between.

    Of a user's list, ``kind`` is that of a change, and ``user_id`` the user. Of an organisation's, it is that of an
    event, and ``user_id`` whose access it is; or it is what no event proves: ``baseline`` (a first look showed the
    workflow in between, and nobody knows whether it had been there before) or ``not_asked`` (the last user who showed
    it was retired). The coverage is that of the user's list, or the weakest of the organisation's lists.
    """

    org_id: str
    flow_id: str
    kind: str
    user_id: str | None
    old_name: str | None
    new_name: str | None
    old_cycle: str | None
    new_cycle: str | None
    old_editable: bool | None
    new_editable: bool | None
    old_coverage: str
    new_coverage: str


class TargetHealth(NamedTuple):
    """Whether a target can be trusted."""

    org_id: str
    user_id: str
    expression: str
    versions: int
    flow_count: int
    last_observed_at: dt.datetime | None
    consecutive_failures: int
    last_error_code: str | None
    last_error: str | None
    held_since: dt.datetime | None
    held_workflows: int
    retired_at: dt.datetime | None


class HeldWorkflow(NamedTuple):
    """A workflow that stays as it is, although the last answers lack it or change it, until they no longer do or a
    person approves. ``doubted``: the kinds and new values of held changes, as JSON; null: its removal is held."""

    org_id: str
    user_id: str
    expression: str
    held_since: dt.datetime
    flow_id: str
    flow_name: str | None
    cycle: str | None
    missing_since: dt.datetime | None
    doubted: str | None
    reason: str | None


class Gap(NamedTuple):
    """A time without an observation of a target."""

    org_id: str
    user_id: str
    expression: str
    gap_from: dt.datetime
    gap_to: dt.datetime | None
    changed_inside: bool


class Finding(NamedTuple):
    """Something that a rule found; ``key`` and ``row`` are JSON objects. ``until`` is null while it is so."""

    id: int
    rule: str
    severity: str
    title: str
    key: str
    row: str
    since: dt.datetime
    since_run_id: int | None
    until: dt.datetime | None
    until_run_id: int | None
    ended_by: str | None


class SyncRun(NamedTuple):
    """One run of a schedule, of the command or of an approval, without `scope` and `targets_digest`."""

    id: int
    schedule: str | None
    origin: str
    scheduled_for: dt.datetime | None
    missed_slots: int
    status: str
    started_at: dt.datetime
    heartbeat_at: dt.datetime
    finished_at: dt.datetime | None
    closed_at: dt.datetime | None
    notified_at: dt.datetime | None
    host: str
    pid: int
    targets: int
    changed: int
    unchanged: int
    held: int
    failed: int
    stale: int
    baseline: int
    added: int
    removed: int
    cycle_changed: int
    renamed: int
    editable_changed: int


RUN_COUNTS: Final = {"targets": "Targets", "changed": "Changed", "unchanged": "Unchanged", "held": "Held",
                     "failed": "Failed", "stale": "Stale", "missed_slots": "Slots missed before"}  # fmt: skip
"""The counts of a run that tables show, in order, with the page's headings."""


class Column(NamedTuple):
    """A column of a report, and what its values are when they are not null."""

    name: str
    kind: Kind


_KINDS: Final[dict[object, Kind]] = {str: "string", int: "integer", bool: "boolean", dt.datetime: "time"}
_TYPES: Final[dict[Kind, type[TypeEngine[Any]]]] = {
    "string": String,
    "integer": Integer,
    "boolean": Boolean,
    "time": UtcTime,
}


def columns_of(row_type: type[tuple[Any, ...]]) -> tuple[Column, ...]:
    """The columns of one of the row types above, in order."""
    hints = get_type_hints(row_type).items()
    return tuple(Column(name, _KINDS[next(iter(get_args(hint)), hint)]) for name, hint in hints)


def selected(statement: Select[Any]) -> tuple[Column, ...]:
    """The columns of a statement."""
    kinds = (
        (each.name, (kind for kind, of in _TYPES.items() if isinstance(each.type, of)))
        for each in statement.selected_columns
    )
    return tuple(Column(name, next(kind)) for name, kind in kinds)


def sql_columns(row_type: type[tuple[Any, ...]]) -> list[ColumnClause[Any]]:
    """The columns of a row type as SQLAlchemy reads them: aware times and booleans on both databases."""
    return [column(name, _TYPES[kind]) for name, kind in columns_of(row_type)]


def view(name: str, row_type: type[tuple[Any, ...]]) -> TableClause:
    """The view (or table) ``name``, whose rows are ``row_type``."""
    return table(name, *sql_columns(row_type))
