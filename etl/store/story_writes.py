"""What a step writes for organisations' stories, in one transaction."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Table, select, text

from etl.domain.chain import in_microseconds, microseconds
from etl.domain.organisation.values import Answer, Event, Listed
from etl.domain.organisation.versions import Member, Version, first_answer
from etl.schema import org_event, org_flow, org_loss, org_state, org_step
from etl.store import seals, story_rows, turnover
from etl.store.bulk import BulkValues, insert_rows
from etl.store.story import JudgedWorkflow, Step, StoryStep
from etl.store.story_rows import FLOWS, FlowKey


class StoryConflict(Exception):
    """Another step, or a change of users, was committed since the organisations were read."""


class FirstListsDiffer(Exception):
    """The first lists of a new organisation disagree about these workflows: they must be judged one by one."""

    def __init__(self, flows: set[FlowKey]) -> None:
        super().__init__(f"first lists do not agree about {len(flows)} workflows")
        self.flows = flows


_MICROSECOND: Final = dt.timedelta(microseconds=1)
_EVER: Final = dt.datetime.max.replace(tzinfo=dt.UTC)
_AFFECTED: Final = BulkValues(
    id="bigint", version="int", projected="int", counts_since="timestamptz", away_since="timestamptz"
)
_FIRST: Final = BulkValues(
    place="int", org="int", change_set_id="bigint", org_id="text", asked_at="timestamptz", arrived_at="timestamptz",
)  # fmt: skip


def _lock_affected(dialect: str) -> str:
    """Reads the targets as they are now, with a lock; SQLite has one writer at a time."""
    locked = " ORDER BY t.id FOR UPDATE OF t" if dialect == "postgresql" else ""
    return f"""
        SELECT t.id, t.projected_version, t.retired_at, t.away_since
        FROM ({_AFFECTED.sql(dialect)}) affected JOIN target t ON t.id = affected.id{locked}"""  # noqa: S608 - our own words


def _update_affected(dialect: str) -> str:
    return f"""
        UPDATE target
        SET projected_version = affected.version, counts_since = affected.counts_since, away_since = affected.away_since
        FROM ({_AFFECTED.sql(dialect)}) affected WHERE target.id = affected.id"""  # noqa: S608 - our own words


def _differ(column: str) -> str:
    return f"(min({column}) <> max({column}) OR count({column}) NOT IN (0, count(*)))"


_ENTRIES: Final = "first_list f CROSS JOIN workflow_change c WHERE c.change_set_id = f.change_set_id"
_EACH: Final = f"""
    SELECT f.org_id, c.flow_id, f.arrived_at, c.new_name, f.asked_at, f.arrived_at, c.new_cycle,
           NULL, 0, 1, CASE WHEN c.new_editable THEN 1 ELSE 0 END, f.arrived_at, 'baseline', true
    FROM {_ENTRIES}"""  # noqa: S608 - our own words
_GROUPED: Final = f"""
    SELECT f.org_id, listed.flow_id, f.arrived_at, flow_name, f.asked_at, f.arrived_at, cycle,
           CASE WHEN differ THEN f.arrived_at END, 0, users, editors, f.arrived_at, 'baseline', true
    FROM (
        SELECT f.org, c.flow_id, min(f.place) AS place, min(c.new_name) AS flow_name,
               min(c.new_cycle) AS cycle, count(*) AS users,
               sum(CASE WHEN c.new_editable THEN 1 ELSE 0 END) AS editors,
               {_differ("c.new_name")} OR {_differ("c.new_cycle")} AS differ
        FROM {_ENTRIES} GROUP BY f.org, c.flow_id ORDER BY f.org, c.flow_id
    ) listed CROSS JOIN first_list f WHERE f.place = listed.place"""  # noqa: S608 - our own words
"""It groups by numbers, and joins ids and times afterwards: the database sorts every entry of every list for it. Rows
in the order of their key take half as long to insert."""
_ONE_BY_ONE: Final = f"""{_EACH}
    ON CONFLICT (org_id, flow_id) DO UPDATE
    SET users = users + 1, editors = editors + excluded.editors,
        due_at = CASE WHEN due_at IS NOT NULL OR flow_name IS NOT excluded.flow_name OR cycle IS NOT excluded.cycle
                      THEN since END"""  # noqa: S608 - our own words
"""For SQLite, in the order of arrival: there, grouping costs as much as the rows. PostgreSQL refuses to update a row
that the same statement has inserted."""


def _first_lists(dialect: str, *, alone: bool) -> str:
    """A row for each workflow of the first lists, which are each ``alone`` in their organisation, or not. ``place``
    numbers the lists in the order of arrival, ``org`` the organisations."""
    together = _GROUPED if dialect == "postgresql" else _ONE_BY_ONE
    return f"""
        WITH first_list AS MATERIALIZED ({_FIRST.sql(dialect)})
        INSERT INTO org_flow (org_id, flow_id, since, flow_name, name_first_asked_at, name_first_at, cycle,
                              due_at, awaited, users, editors, valid_from, from_kind, proven_for_all)
        {_EACH if alone else together}"""


_FIRST_LISTS: Final = {
    (dialect, alone): text(_first_lists(dialect, alone=alone))
    for dialect in ("postgresql", "sqlite")
    for alone in (True, False)
}


def write_steps(connection: Connection, steps: Sequence[StoryStep], step: Step) -> None:
    """Write what was judged. Raises StoryConflict and FirstListsDiffer, and the transaction must be rolled back.

    Raises RunClosed if the step's run is sealed already.
    """
    seals.require_unsealed(connection, step.run_id)
    steps = [each for each in steps if each.changes_something]
    affected = sorted((row for each in steps for row in _affected_rows(each)), key=itemgetter(0))
    _lock(connection, steps, affected)
    if affected:
        connection.execute(text(_update_affected(connection.dialect.name)), _AFFECTED.bound(connection, affected))
    _write_first_lists(connection, steps)
    judged = [each for of_story in steps for each in of_story.judged]
    _write_workflows(connection, judged)
    _write_events(connection, judged, step)
    _insert(connection, org_step, (_step_row(each, step) for each in steps))


def were_written(connection: Connection, steps: Sequence[StoryStep], step: Step) -> bool:
    """Whether ``write_steps`` was committed: nobody else writes a step of the same run at the same moment."""
    org_id = next(each.org_id for each in steps if each.changes_something)
    mine = (org_step.c.run_id == step.run_id, org_step.c.org_id == org_id)
    same = select(org_step.c.id).where(*mine, org_step.c.decided_at == step.decided_at)
    return connection.execute(same.limit(1)).first() is not None


def _lock(connection: Connection, steps: Sequence[StoryStep], affected: Sequence[Sequence[Any]]) -> None:
    """Lock targets by id, then organisations by id. Raises StoryConflict if they have changed since they were read."""
    if affected:
        rows = connection.execute(
            story_rows.typed(
                _lock_affected(connection.dialect.name), "id", "projected_version", "retired_at", "away_since"
            ),
            _AFFECTED.bound(connection, affected),
        )
        now = {row[0]: tuple(row)[1:] for row in rows}
        members = {m.target_id: m for each in steps for m in each.affected}
        if any(now.get(i) != (m.projected_version, m.retired_at, m.away_since) for i, m in members.items()):
            raise StoryConflict
    turnover.lock_organisations(connection, sorted(each.org_id for each in steps))
    last = story_rows.last_steps(connection, [each.org_id for each in steps])
    if any(last.get(each.org_id) != each.members.last_step for each in steps):
        raise StoryConflict


def _affected_rows(step: StoryStep) -> Iterator[tuple[Any, ...]]:
    for member in step.affected:
        counts_since = _counts_since(member, step.versions.get(member.target_id, ()))
        away_since = member.retired_at if member.leaves else member.away_since
        yield member.target_id, member.version, member.projected_version, counts_since, away_since


def _counts_since(member: Member, versions: Sequence[Version]) -> dt.datetime | None:
    if member.returns:
        return first_answer(member, versions)[0].arrived_at
    return versions[0].answer.arrived_at if member.joins and versions else member.counts_since


def _write_first_lists(connection: Connection, steps: Sequence[StoryStep]) -> None:
    lists = [(number, each.org_id, version) for number, each in enumerate(steps) for _, version in each.first_lists]
    rows = [
        (place, number, version.change_set_id, org_id, *version.answer)
        for place, (number, org_id, version) in enumerate(lists)
    ]
    if not rows:
        return
    lists_of = Counter(number for number, _, _ in lists)
    for alone in (True, False):
        if given := [row for row in rows if (lists_of[row[1]] == 1) is alone]:
            connection.execute(_FIRST_LISTS[connection.dialect.name, alone], _FIRST.bound(connection, given))
    judged = {judged.flow for each in steps for judged in each.judged}
    new = [each.org_id for each in steps if each.is_new]
    if differing := story_rows.read_due(connection, new, _EVER) - judged:
        raise FirstListsDiffer(differing)


def _write_workflows(connection: Connection, judged: Sequence[JudgedWorkflow]) -> None:
    delete = "DELETE FROM {table} WHERE (org_id, flow_id) IN ({flows})"
    for table, flows in (
        ("org_flow", [each.flow for each in judged]),
        ("org_loss", [each.flow for each in judged if each.waited]),
    ):
        if flows:
            statement = delete.format(table=table, flows=FLOWS.sql(connection.dialect.name))
            connection.execute(text(statement), FLOWS.bound(connection, flows))
    _insert(connection, org_flow, map(_flow_row, judged))
    _insert(connection, org_loss, (row for each in judged for row in _loss_rows(each)))
    _insert(connection, org_state, (row for each in judged for row in _state_rows(each)))


def _insert(connection: Connection, table: Table, rows: Iterable[Sequence[Any]]) -> None:
    """Insert rows of all columns but the number that the database gives."""
    columns = [column.name for column in table.columns if column is not table.autoincrement_column]
    insert_rows(connection, table, columns, rows)


def _flow_row(judged: JudgedWorkflow) -> tuple[Any, ...]:
    row, known, state = judged.row, judged.row.known, judged.row.state
    name, cycle = known.name, known.cycle
    present = (
        (state.valid_from, state.last_unchanged_at, state.from_kind, state.proven_for_all) if state else [None] * 4
    )
    return (
        *(*judged.flow, known.since),
        *(name.value, *name.first, *_unless(name.first, name.last)),
        *(cycle.value, *_unless(name.first, cycle.first), *_unless(cycle.first, cycle.last)),
        *(known.gone_at, row.due_at, row.awaited, row.users, row.editors, *present),
    )


def _unless(same: Answer, answer: Answer) -> Iterable[Any]:
    """Times that are the same as others of the row are not written again."""
    return (None, None) if answer == same else answer


def _loss_rows(judged: JudgedWorkflow) -> Iterator[tuple[Any, ...]]:
    for user_id, loss in sorted(judged.waiting.items()):
        yield *judged.flow, user_id, *loss.listed, loss.shown_asked_at, *loss.without


def _state_rows(judged: JudgedWorkflow) -> Iterator[tuple[Any, ...]]:
    for state, valid_to in judged.ended:
        times = (state.valid_from, state.last_unchanged_at, valid_to)
        yield *judged.flow, *times, state.listed.name, state.listed.cycle, state.from_kind, state.proven_for_all


def _write_events(connection: Connection, judged: Iterable[JudgedWorkflow], step: Step) -> None:
    """Write the events in the order in which they were observed."""
    events = [
        (event.observed_at, each.flow, number, event) for each in judged for number, event in enumerate(each.events)
    ]
    events.sort(key=lambda each: each[:3])
    _insert(connection, org_event, (_event_row(flow, event, step) for _, flow, _, event in events))


def _event_row(flow: FlowKey, event: Event, step: Step) -> tuple[Any, ...]:
    old, new = event.old or Listed(None, None, None), event.new or Listed(None, None, None)
    return (
        *(step.run_id, *flow, event.kind, event.user_id),
        *(old.name, new.name, old.cycle, new.cycle, old.editable, new.editable),
        *(event.last_unchanged_at, event.observed_at, event.users_before, event.users_after),
        *(event.proven_for_all, event.unheard, step.decided_at),
    )


def _step_row(of_story: StoryStep, step: Step) -> tuple[Any, ...]:
    versions = sorted((m.target_id, m.projected_version, m.version) for m in of_story.affected)
    texts = (msgspec.json.encode(each).decode() for each in (versions, _heard(of_story)))
    return (step.run_id, of_story.org_id, step.decided_at, *texts)


def _heard(of_story: StoryStep) -> Mapping[str, Any]:
    """By target: the latest answer's times, whether it is of this run, coverage gap, retirement; in microseconds."""
    users, last_end = of_story.context.users, of_story.context.last_end
    return {
        "targets": [
            in_microseconds(
                (member.target_id, *user.latest, user.heard, user.coverage_gap // _MICROSECOND, user.retired_at)
            )
            for member in of_story.members.by_id.values()
            if (user := users.get(member.user_id)) is not None
        ],
        "back_from": last_end and microseconds(last_end),
    }
