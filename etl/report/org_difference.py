"""What is different in an organisation between two moments, whatever happened in between."""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from sqlalchemy import Connection, func, select

from etl.report.listings import STATES
from etl.report.names import WHOLE
from etl.report.rows import OrgWorkflowState
from etl.schema import change_set, org_event, target

_APPEARED = ("appeared", "reappeared")


class OrgDifference(NamedTuple):
    """A difference between an organisation's lists of two moments.

    ``kind`` is that of an event, or what no event proves: ``baseline`` (a first look showed the workflow in between,
    and nobody knows whether it had been there before) or ``not_asked`` (the last user who showed it was retired).
    """

    flow_id: str
    kind: str
    old_name: str | None
    new_name: str | None
    old_cycle: str | None
    new_cycle: str | None


def difference(connection: Connection, org: str, old: dt.datetime, new: dt.datetime) -> list[OrgDifference]:
    """The differences, by flow_id and kind; ``old`` is the earlier moment."""
    before, after = (_states(connection, org, at) for at in (old, new))
    events = defaultdict[str, set[str]](set)
    happened = (org_event.c.org_id == org, org_event.c.observed_at > old, org_event.c.observed_at <= new)
    came_or_went = org_event.c.kind.in_((*_APPEARED, "disappeared"))
    for flow_id, kind in connection.execute(
        select(org_event.c.flow_id, org_event.c.kind).where(*happened, came_or_went)
    ):
        events[flow_id].add(kind)
    return [
        OrgDifference(flow_id, kind, *_values(before.get(flow_id), after.get(flow_id)))
        for flow_id in sorted(before.keys() | after.keys())
        for kind in _kinds(before.get(flow_id), after.get(flow_id), events[flow_id])
    ]


def first_look(connection: Connection, org: str) -> dt.datetime | None:
    """When a whole list of the organisation was seen for the first time."""
    of_target = select(func.min(change_set.c.observed_at)).where(change_set.c.target_id == target.c.id)
    of_all = select(func.min(of_target.scalar_subquery())).where(target.c.org_id == org, target.c.expression == "")
    found: dt.datetime | None = connection.execute(of_all).scalar()
    return found


def _states(connection: Connection, org: str, at: dt.datetime) -> dict[str, OrgWorkflowState]:
    chosen = STATES.select(connection.dialect.name, org=WHOLE + org, at=at)
    return {row.flow_id: OrgWorkflowState(*row) for row in connection.execute(chosen)}


def _kinds(old: OrgWorkflowState | None, new: OrgWorkflowState | None, events: set[str]) -> Iterator[str]:
    if old is None:
        yield "appeared" if events.intersection(_APPEARED) else "baseline"
    elif new is None:
        yield "disappeared" if "disappeared" in events else "not_asked"
    else:
        if old.cycle != new.cycle:
            yield "cycle_changed"
        if old.flow_name != new.flow_name:
            yield "renamed"


def _values(old: OrgWorkflowState | None, new: OrgWorkflowState | None) -> tuple[str | None, ...]:
    """Names, then cycles, each before and after."""
    sides = (old, new)
    return (*(side and side.flow_name for side in sides), *(side and side.cycle for side in sides))
