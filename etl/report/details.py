"""What EnOS said when asked for details of workflows, next to the changes that led to the requests."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Engine, FromClause, ScalarSelect, func, select

from etl.config.slots import quartz_in_words
from etl.database import reading
from etl.domain.answers import sentence
from etl.report.rows import ListChange, ListState, OrgWorkflowEvent
from etl.schema import TARGET_KEY, change_set, target, workflow_detail

_AT_ONCE: Final = 500


class ChangeDetail(NamedTuple):
    """What EnOS said at the end of the run that made a change; ``old_freq`` is what it had said before."""

    update_user: str | None = None
    update_time: str | None = None
    old_freq: str | None = None
    new_freq: str | None = None
    enos_timezone: str | None = None


NOTHING: Final = ChangeDetail()


def schedule_in_words(freq: str) -> str:
    """An EnOS schedule as it is, with its meaning where that is certain."""
    words = quartz_in_words(freq)
    return f"`{freq}` ({words})" if words else f"`{freq}`"


def detail_sentence(detail: ChangeDetail, since: dt.datetime | None, until: dt.datetime, zone: dt.tzinfo | None) -> str:
    """What EnOS said beside a change between ``since`` and ``until``; "" where it said nothing. ``zone``: EnOS's, if
    it is configured; else that which EnOS said counts."""
    return sentence(*detail, (since, until), zone, schedule_in_words)


def event_detail_sentence(event: OrgWorkflowEvent, zone: dt.tzinfo | None) -> str:
    """The same of an organisation's event."""
    detail = ChangeDetail(*(getattr(event, name) for name in ChangeDetail._fields))
    return detail_sentence(detail, event.last_unchanged_at, event.observed_at, zone)


class FlowDetail(NamedTuple):
    """One answer of Get Flow."""

    org_id: str
    asked_at: dt.datetime
    update_user: str | None
    update_time: str | None
    freq: str | None
    owner: str | None
    creator: str | None
    create_time: str | None


def any_details(engine: Engine) -> bool:
    """Whether details were ever asked for."""
    with reading(engine) as connection:
        return connection.execute(select(func.max(workflow_detail.c.id))).scalar() is not None


def detail_sentences(connection: Connection, events: Sequence[ListChange], zone: dt.tzinfo | None) -> list[str]:
    """What EnOS said beside each of ``events``, in a sentence or ""; ``zone``: EnOS's."""
    return [
        detail_sentence(detail, event.last_unchanged_at, event.observed_at, zone)
        for event, detail in zip(events, details_of_changes(connection, events), strict=True)
    ]


def details_of_changes(connection: Connection, events: Sequence[ListChange]) -> list[ChangeDetail]:
    """What EnOS said about each of ``events``."""
    detail = workflow_detail.c
    runs, flows = {event.run_id for event in events}, {event.flow_id for event in events}
    asked = select(detail.run_id, detail.org_id, detail.flow_id, *_COLUMNS)
    rows = connection.execute(asked.where(detail.run_id.in_(runs), detail.flow_id.in_(flows)))
    found = {tuple(row[:3]): ChangeDetail(*row[3:]) for row in rows}
    return [found.get((event.run_id, event.org_id, event.flow_id), NOTHING) for event in events]


def freq_before(detail: FromClause) -> ScalarSelect[Any]:
    """The schedule that EnOS had named for the workflow of ``detail`` when it was asked before."""
    before = workflow_detail.alias("before")
    same = (before.c.org_id == detail.c.org_id, before.c.flow_id == detail.c.flow_id, before.c.id < detail.c.id)
    latest = select(before.c.freq).where(*same).order_by(before.c.id.desc()).limit(1)
    return latest.correlate(detail).scalar_subquery()


_COLUMNS: Final = (
    workflow_detail.c.update_user,
    workflow_detail.c.update_time,
    freq_before(workflow_detail),
    workflow_detail.c.freq,
    workflow_detail.c.enos_timezone,
)


def states_with_details(engine: Engine, flow_id: str, states: Iterable[ListState]) -> Iterator[dict[str, Any]]:
    """The states of one workflow with what EnOS said at the end of the run that began each."""
    asked = (
        select(*TARGET_KEY, change_set.c.observed_at, *_COLUMNS)
        .join_from(workflow_detail, change_set, change_set.c.run_id == workflow_detail.c.run_id)
        .join(target, (target.c.id == change_set.c.target_id) & (target.c.org_id == workflow_detail.c.org_id))
        .where(workflow_detail.c.flow_id == flow_id)
    )
    with reading(engine) as connection:
        found = {tuple(row[:4]): ChangeDetail(*row[4:]) for row in connection.execute(asked)}
    for state in states:
        detail = found.get((state.org_id, state.user_id, state.expression, state.valid_from), NOTHING)
        yield state._asdict() | detail._asdict()


def with_details(engine: Engine, events: Iterable[ListChange]) -> Iterator[dict[str, Any]]:
    """The events with what EnOS said, a few hundred at a time; only the events if details were never asked for."""
    if not any_details(engine):
        yield from (event._asdict() for event in events)
        return
    rest = iter(events)
    while some := list(islice(rest, _AT_ONCE)):
        with reading(engine) as connection:
            details = details_of_changes(connection, some)
        yield from (event._asdict() | detail._asdict() for event, detail in zip(some, details, strict=True))


def details_of_flow(connection: Connection, flow_id: str, org: str | None, most: int | None = None) -> list[FlowDetail]:
    """The latest answers of Get Flow for a workflow, at ``most`` so many, the newest first."""
    ours = [workflow_detail.c.flow_id == flow_id, *([workflow_detail.c.org_id == org] if org is not None else ())]
    columns = [workflow_detail.c[name] for name in FlowDetail._fields]
    found = select(*columns).where(*ours).order_by(workflow_detail.c.id.desc()).limit(most)
    return [FlowDetail(*row) for row in connection.execute(found)]
