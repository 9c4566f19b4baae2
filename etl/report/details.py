"""What EnOS said of workflows when it was asked for their details, beside the changes that it was asked for."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Engine, func, select

from etl.database import reading
from etl.report.rows import WorkflowEvent
from etl.schema import workflow_detail

_AT_ONCE: Final = 500


class ChangeDetail(NamedTuple):
    """What EnOS said at the end of the run that made a change; ``old_freq`` is what it had said before."""

    update_user: str | None = None
    update_time: str | None = None
    old_freq: str | None = None
    new_freq: str | None = None


NOTHING: Final = ChangeDetail()


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


def details_of_changes(engine: Engine, events: Sequence[WorkflowEvent]) -> list[ChangeDetail]:
    """What EnOS said beside each of ``events``."""
    found: dict[tuple[int, str, str], ChangeDetail] = {}
    detail, before = workflow_detail, workflow_detail.alias("before")
    same = (before.c.org_id == detail.c.org_id, before.c.flow_id == detail.c.flow_id, before.c.id < detail.c.id)
    last = select(func.max(before.c.id)).where(*same).correlate(detail).scalar_subquery()
    old = select(before.c.freq).where(before.c.id == last).correlate(detail).scalar_subquery()
    columns = (detail.c.run_id, detail.c.org_id, detail.c.flow_id, detail.c.update_user, detail.c.update_time)
    runs = {event.run_id for event in events}
    flows = {event.flow_id for event in events}
    asked = select(*columns, old, detail.c.freq).where(detail.c.run_id.in_(runs), detail.c.flow_id.in_(flows))
    with reading(engine) as connection:
        for run_id, org, flow, *said in connection.execute(asked):
            found[run_id, org, flow] = ChangeDetail(*said)
    return [found.get((event.run_id, event.org_id, event.flow_id), NOTHING) for event in events]


def with_details(engine: Engine, events: Iterable[WorkflowEvent]) -> Iterator[dict[str, Any]]:
    """The events with what EnOS said, a few hundred at a time; just the events where nobody ever asked."""
    if not any_details(engine):
        yield from (event._asdict() for event in events)
        return
    rest = iter(events)
    while some := list(islice(rest, _AT_ONCE)):
        for event, said in zip(some, details_of_changes(engine, some), strict=True):
            yield event._asdict() | said._asdict()


def details_of_flow(engine: Engine, flow_id: str, org: str | None) -> list[FlowDetail]:
    """Every answer of Get Flow for a workflow, oldest first."""
    columns = [workflow_detail.c[name] for name in FlowDetail._fields]
    found = select(*columns).where(workflow_detail.c.flow_id == flow_id).order_by(workflow_detail.c.id)
    if org is not None:
        found = found.where(workflow_detail.c.org_id == org)
    with reading(engine) as connection:
        return [FlowDetail(*row) for row in connection.execute(found)]


def latest_details_of_flow(connection: Connection, org: str, flow_id: str, most: int) -> list[FlowDetail]:
    """The last answers of Get Flow for a workflow, newest first."""
    columns = [workflow_detail.c[name] for name in FlowDetail._fields]
    ours = (workflow_detail.c.org_id == org, workflow_detail.c.flow_id == flow_id)
    found = select(*columns).where(*ours).order_by(workflow_detail.c.id.desc()).limit(most)
    return [FlowDetail(*row) for row in connection.execute(found)]
