"""What a step reads of organisations' stories: their users, what changed in their lists, and what is stored.

It is read in one transaction, so all of it is from the same moment.
"""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import Boolean, Connection, column, text
from sqlalchemy.sql.selectable import TextualSelect

from etl.domain.pending import Member, Version
from etl.domain.states import WorkflowState
from etl.domain.story import Answer, KnownValue, KnownWorkflow, Listed, ListEntry, Loss
from etl.schema import COMING, LEAVING, UtcTime
from etl.store.bulk import BulkValues, stamp


class StoryKey(NamedTuple):
    """A story: an organisation, and a search expression ('' = all workflows)."""

    org_id: str
    expression: str


class FlowKey(NamedTuple):
    """A workflow of a story."""

    org_id: str
    expression: str
    flow_id: str

    @property
    def story(self) -> StoryKey:
        return StoryKey(self.org_id, self.expression)


class OrgFlow(msgspec.Struct, frozen=True):
    """A row of ``org_flow``: what is stored of a workflow, and its present state, if it has one."""

    known: KnownWorkflow
    is_open: bool
    awaited: int
    users: int
    editors: int
    state: WorkflowState | None


class Members(msgspec.Struct, frozen=True):
    """The users of a story, and its last step."""

    by_id: dict[int, Member]
    last_step: int | None


STORIES: Final = BulkValues(org_id="text", expression="text")
FLOWS: Final = BulkValues(org_id="text", expression="text", flow_id="text")
_RUNS: Final = BulkValues(run_id="bigint")
_TARGETS: Final = BulkValues(target_id="bigint")
_LOST: Final = BulkValues(target_id="bigint", flow_id="text", version="int")
_HELD: Final = BulkValues(target_id="bigint", version="int", previous_at="timestamptz")

_TIMES: Final = frozenset(
    {
        *("counts_since", "away_since", "retired_at", "held_asked_at", "held_at", "last_asked_at", "last_at"),
        *("observed_at", "asked_at", "last_unchanged_at", "previous_at", "first_listed_at", "since", "gone_at"),
        *("name_first_asked_at", "name_first_at", "name_last_asked_at", "name_last_at", "cycle_first_asked_at"),
        *("cycle_first_at", "cycle_last_asked_at", "cycle_last_at", "valid_from", "last_unchanged_at"),
        "valid_to",
        *("shown_asked_at", "without_asked_at", "without_at", "started_at"),
    }
)
_FLAGS: Final = frozenset({"editable", "old_editable", "new_editable", "is_open", "proven_for_all", "is_held"})


@cache
def _statement(dialect: str, given: BulkValues, columns: str, source: str) -> TextualSelect:
    """A SELECT of ``columns`` (by name, what they are called in the end) from ``source``, in which {given} stands for
    the rows that it is given."""
    names = [each.split(" AS ")[-1].rpartition(".")[2].strip() for each in columns.split(", ")]
    rows = f"({given.sql(dialect)}) given"
    return typed(f"SELECT {columns} FROM {source.format(given=rows)}", *names)  # noqa: S608 - our own words


def typed(statement: str, *names: str) -> TextualSelect:
    """A textual statement with typed columns: times and booleans are the same on both databases."""
    types = (UtcTime() if name in _TIMES else Boolean() if name in _FLAGS else None for name in names)
    return text(statement).columns(*map(column, names, types))


def _select(connection: Connection, columns: str, source: str, given: BulkValues, rows: Sequence[Any]) -> Iterator[Any]:
    if not rows:
        return iter(())
    statement = _statement(connection.dialect.name, given, columns, source)
    return iter(connection.execute(statement, given.bound(connection, rows)))


# ----------------------------------------------------------------------------------------------- which stories

_BY_RUN: Final = """
    SELECT DISTINCT t.org_id, t.expression FROM {given}
    JOIN change_set s ON s.run_id = given.run_id JOIN target t ON t.id = s.target_id"""
_BY_DEAD_RUNS: Final = """
    SELECT DISTINCT t.org_id, t.expression FROM {given}
    JOIN sync_run r ON r.id < given.run_id AND r.id >= given.run_id - 100 AND r.status = 'aborted'
    JOIN change_set s ON s.run_id = r.id JOIN target t ON t.id = s.target_id AND t.projected_version < s.version"""
"""What a run left unjudged when it died. A hundred later runs have certainly made up for it."""
_WHERE: Final = "SELECT org_id, expression FROM target WHERE {} AND version > 0"
_DUE: Final = f"""(
    {_BY_RUN} UNION {_BY_DEAD_RUNS} UNION SELECT org_id, expression FROM org_flow WHERE is_open
    UNION {_WHERE.format(COMING.text)} UNION {_WHERE.format(LEAVING.text)}) due"""  # noqa: S608 - our own words
"""Each part uses an index that is empty if nothing happened."""


def due_stories(connection: Connection, run_id: int) -> list[tuple[StoryKey, int]]:
    """The stories that the end of a run must judge, with their numbers of users."""
    found = _select(connection, "due.org_id, due.expression", _DUE, _RUNS, [(run_id,)])
    stories = sorted(StoryKey(*row) for row in found)
    counted = _select(
        connection,
        "t.org_id, t.expression, count(*) AS users",
        "{given} JOIN target t ON t.org_id = given.org_id AND t.expression = given.expression GROUP BY 1, 2",
        STORIES,
        stories,
    )
    users = {StoryKey(org_id, expression): count for org_id, expression, count in counted}
    return [(story, users[story]) for story in stories]


# ------------------------------------------------------------------------------------------------------- users

_MEMBER: Final = (
    "t.org_id, t.expression, t.id, t.user_id, t.version, t.projected_version, t.counts_since, t.away_since, "
    "t.retired_at, t.held_since IS NOT NULL AS is_held, t.held_asked_at, t.held_at, o.last_asked_at, o.last_at"
)
_MEMBERS: Final = """{given}
    JOIN target t ON t.org_id = given.org_id AND t.expression = given.expression
    LEFT JOIN observation o ON o.id = (SELECT max(latest.id) FROM observation latest WHERE latest.target_id = t.id)"""
_LAST_STEPS: Final = """{given}
    JOIN org_step s ON s.org_id = given.org_id AND s.expression = given.expression GROUP BY 1, 2"""


def last_steps(connection: Connection, stories: Sequence[StoryKey]) -> dict[StoryKey, int]:
    """The last step of each story that has one."""
    rows = _select(connection, "s.org_id, s.expression, max(s.id) AS last", _LAST_STEPS, STORIES, stories)
    return {StoryKey(org_id, expression): last for org_id, expression, last in rows}


def read_members(connection: Connection, stories: Sequence[StoryKey]) -> dict[StoryKey, Members]:
    """The users of ``stories``."""
    steps = last_steps(connection, stories)
    found = {story: Members({}, steps.get(story)) for story in stories}
    for org_id, expression, *values in _select(connection, _MEMBER, _MEMBERS, STORIES, stories):
        member = _member(values)
        found[StoryKey(org_id, expression)].by_id[member.target_id] = member
    return found


def _member(values: Sequence[Any]) -> Member:
    (target_id, user_id, version, projected, counts_since, away_since, retired_at, is_held, held_asked_at, held_at,
     asked_at, last_at) = values  # fmt: skip
    whole = None if last_at is None else Answer(asked_at, last_at)
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
        latest=Answer(held_asked_at, held_at) if is_later else whole,
        whole=whole,
    )


# ---------------------------------------------------------------------------------------------------- versions

_VERSION: Final = (
    "s.id, s.target_id, s.version, s.asked_at, s.observed_at, s.last_unchanged_at, s.previous_at, "
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
    JOIN target t ON t.org_id = given.org_id AND t.expression = given.expression AND t.projected_version = 0
    JOIN change_set s ON s.target_id = t.id AND s.version = 1
    JOIN workflow_change c ON c.change_set_id = s.id AND c.flow_id = given.flow_id"""

ChangeRows = dict[tuple[int, int], dict[str, tuple[Listed | None, Listed | None]]]
"""What changed, by target and version."""


def read_versions(connection: Connection, target_ids: Sequence[int], changes: ChangeRows) -> dict[int, list[Version]]:
    """The versions of the targets that no step has judged, in order. ``changes`` is what they changed."""
    rows = [(target_id,) for target_id in target_ids]
    found: dict[int, list[Any]] = defaultdict(list)
    for row in _select(connection, _VERSION, _OF_TARGETS, _TARGETS, rows):
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
        for row in _select(connection, _CHANGE, source, _TARGETS, [(target_id,) for target_id in sorted(ids)]):
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
    whole = None if row.previous_at is None else Answer(row.last_unchanged_at, row.previous_at)
    held = None if row.held_at is None else Answer(row.held_asked_at, row.held_at)
    return Version(
        change_set_id=row.id,
        number=row.version,
        answer=Answer(row.asked_at, row.observed_at),
        previous=held or whole,
        whole=whole,
        shown=shown.get((row.target_id, row.version), {}),
        changes=changes[row.target_id, row.version],
    )


_WHILE_HELD: Final = """{given}
    JOIN change_set s ON s.target_id = given.target_id AND s.version < given.version
                      AND s.observed_at > given.previous_at
    JOIN workflow_change c ON c.change_set_id = s.id"""


def _shown_while_held(connection: Connection, found: dict[int, list[Any]]) -> dict[tuple[int, int], dict[str, Answer]]:
    """By version after a hold: the workflows that changed while it lasted, each with the answer that changed it."""
    held = [
        (row.target_id, row.version, stamp(connection, row.previous_at))
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

_OPEN: Final = """{given}
    JOIN org_flow f ON f.org_id = given.org_id AND f.expression = given.expression WHERE f.is_open"""
_LISTED_BY: Final = "{given} JOIN workflow w ON w.target_id = given.target_id"
_SHOWING: Final = """{given}
    JOIN target t ON t.org_id = given.org_id AND t.expression = given.expression
    JOIN workflow w ON w.target_id = t.id AND w.flow_id = given.flow_id"""
_HELD_FLOWS: Final = f"""{_SHOWING}
    LEFT JOIN change_set s ON s.target_id = t.id AND s.observed_at = w.changed_at WHERE w.missing_since IS NOT NULL"""
_KEPT: Final = (
    "f.org_id, f.expression, f.flow_id, f.flow_name, f.cycle, f.since, f.name_first_asked_at, f.name_first_at, "
    "f.name_last_asked_at, f.name_last_at, f.cycle_first_asked_at, f.cycle_first_at, f.cycle_last_asked_at, "
    "f.cycle_last_at, f.gone_at, f.is_open, f.awaited, f.users, f.editors, f.valid_from, f.last_unchanged_at, "
    "f.from_kind, f.proven_for_all"
)
_OF_FLOWS: Final = (
    "{given} JOIN %s f ON f.org_id = given.org_id AND f.expression = given.expression AND f.flow_id = given.flow_id"
)
_LOSS: Final = (
    "f.org_id, f.expression, f.flow_id, f.user_id, f.flow_name, f.cycle, f.editable, f.shown_asked_at, "
    "f.without_asked_at, f.without_at"
)


def read_open(connection: Connection, stories: Sequence[StoryKey]) -> set[FlowKey]:
    """The workflows that the next step must judge even if no answer changes them."""
    return {FlowKey(*row) for row in _select(connection, "f.org_id, f.expression, f.flow_id", _OPEN, STORIES, stories)}


def read_flow_ids(connection: Connection, target_ids: Sequence[int]) -> Iterator[tuple[int, str]]:
    """The workflows that these targets list."""
    rows = [(target_id,) for target_id in target_ids]
    return ((row[0], row[1]) for row in _select(connection, "w.target_id, w.flow_id", _LISTED_BY, _TARGETS, rows))


def read_entries(connection: Connection, flows: Sequence[FlowKey]) -> dict[str, dict[int, ListEntry]]:
    """By workflow id, the entries of the targets that list it. (A target belongs to one story.)"""
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
    return {FlowKey(*row[:3]): _org_flow(row[3:]) for row in rows}


def _org_flow(values: Sequence[Any]) -> OrgFlow:
    (flow_name, cycle, since, name_first_asked, name_first, name_last_asked, name_last, cycle_first_asked, cycle_first,
     cycle_last_asked, cycle_last, gone_at, is_open, awaited, users, editors, valid_from, after, kind,
     proven_for_all) = values  # fmt: skip
    first_of_name = Answer(name_first_asked, name_first)
    first_of_cycle = first_of_name if cycle_first is None else Answer(cycle_first_asked, cycle_first)
    name = KnownValue(
        flow_name, first_of_name, first_of_name if name_last is None else Answer(name_last_asked, name_last)
    )
    last_of_cycle = first_of_cycle if cycle_last is None else Answer(cycle_last_asked, cycle_last)
    state = (
        None if kind is None else WorkflowState(valid_from, after, Listed(flow_name, cycle, None), kind, proven_for_all)
    )
    known = KnownWorkflow(since, name, KnownValue(cycle, first_of_cycle, last_of_cycle), gone_at)
    return OrgFlow(known, is_open, awaited, users, editors, state)


_ENDED: Final = """(
    SELECT given.org_id, given.expression, given.flow_id,
           (SELECT max(s.valid_to) FROM org_state s
            WHERE s.org_id = given.org_id AND s.flow_id = given.flow_id AND s.expression = given.expression) AS valid_to
    FROM {given}) found"""


def read_ended_until(connection: Connection, flows: Sequence[FlowKey]) -> dict[FlowKey, dt.datetime]:
    """Until when these workflows had a state that has ended."""
    columns = "found.org_id, found.expression, found.flow_id, found.valid_to"
    rows = _select(connection, columns, _ENDED, FLOWS, flows)
    return {FlowKey(*row[:3]): row[3] for row in rows if row[3] is not None}


def read_waiting(connection: Connection, flows: Sequence[FlowKey]) -> dict[FlowKey, dict[str, Loss]]:
    """The users who wait, by workflow."""
    waiting: dict[FlowKey, dict[str, Loss]] = defaultdict(dict)
    for row in _select(connection, _LOSS, _OF_FLOWS % "org_loss", FLOWS, flows):
        waiting[FlowKey(*row[:3])][row[3]] = Loss(Listed(*row[4:7]), row[7], Answer(*row[8:10]))
    return waiting
