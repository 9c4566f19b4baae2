"""Organisations, for people and files: events, lists, and what sealed runs brought."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from sqlalchemy import Engine, Select, func, select

from etl.database import reading
from etl.report import statements
from etl.report.names import any_contains
from etl.report.org_list import whole_list
from etl.report.rows import ListChange, OrgWorkflow, OrgWorkflowEvent, OrgWorkflowState, view
from etl.report.stream import stream
from etl.schema import run_seal


class Seals(NamedTuple):
    """The runs with seals after ``after``, up to ``last``; such runs write nothing more."""

    after: int
    last: int


def seals_after(engine: Engine, after: int) -> Seals:
    """The existing seals after ``after``."""
    with reading(engine) as connection:
        last = connection.execute(select(func.max(run_seal.c.id))).scalar()
    return Seals(after, max(after, last or 0))


def events(
    engine: Engine,
    *,
    since: dt.datetime | None = None,
    until: dt.datetime | None = None,
    org: str | None = None,
    user: str | None = None,
    kinds: Collection[str] = (),
    flow: str | None = None,
    name: str | None = None,
    seals: Seals | None = None,
    newest_first: bool = False,
    limit: int | None = None,
) -> Iterator[OrgWorkflowEvent]:
    """``org_workflow_event`` from ``since`` on and before ``until`` (by ``observed_at``), in the order of its numbers.

    ``user`` finds that user's access events, ``name`` the old and the new name, ``seals`` the events of those runs.
    """
    event = view("org_workflow_event", OrgWorkflowEvent)
    found = statements.equal(event, org_id=org, user_id=user, flow_id=flow)
    found += any_contains(engine.dialect.name, name, event.c.old_name, event.c.new_name)
    found += [event.c.kind.in_(kinds)] if kinds else []
    found += [event.c.observed_at >= since] if since is not None else []
    found += [event.c.observed_at < until] if until is not None else []
    found += [event.c.run_id.in_(_runs_of(seals))] if seals else []
    order = event.c.event_id.desc() if newest_first else event.c.event_id
    return stream(engine, select(event).where(*found).order_by(order).limit(limit), OrgWorkflowEvent)


def workflows(
    engine: Engine,
    *,
    org: str | None = None,
    flow: str | None = None,
    name: str | None = None,
    cycle: str | None = None,
    limit: int | None = None,
) -> Iterator[OrgWorkflow]:
    """``org_workflow``, by organisation and flow_id; the first ``limit`` of them."""
    seen = view("org_workflow", OrgWorkflow) if org is None or flow is not None else whole_list(org)
    found = statements.equal(seen, org_id=org, flow_id=flow, cycle=cycle)
    found += any_contains(engine.dialect.name, name, seen.c.flow_name)
    order = (seen.c.org_id, seen.c.flow_id)
    return stream(engine, select(seen).where(*found).order_by(*order).limit(limit), OrgWorkflow)


def workflows_as_of(
    engine: Engine,
    at: dt.datetime,
    *,
    org: str | None = None,
    flow: str | None = None,
    name: str | None = None,
    cycle: str | None = None,
) -> Iterator[OrgWorkflowState]:
    """The states of ``org_workflow_history`` at ``at``, one per workflow, by organisation and flow_id."""
    state, chosen = statements.org_states_at(at)
    found = statements.equal(state, org_id=org, flow_id=flow, cycle=cycle)
    found += any_contains(engine.dialect.name, name, state.c.flow_name)
    order = (state.c.org_id, state.c.flow_id)
    return stream(engine, chosen.where(*found).order_by(*order), OrgWorkflowState)


def changes_of(
    engine: Engine, seals: Seals, *, org: str | None = None, user: str | None = None
) -> Iterator[ListChange]:
    """``list_change`` of the runs of ``seals``, in the order in which change sets were numbered."""
    event = view("list_change", ListChange)
    found = [event.c.run_id.in_(_runs_of(seals)), *statements.equal(event, org_id=org, user_id=user)]
    order = (event.c.change_set_id, event.c.flow_id, event.c.kind)
    return stream(engine, select(event).where(*found).order_by(*order), ListChange)


def _runs_of(seals: Seals) -> Select[Any]:
    return select(run_seal.c.run_id).where(run_seal.c.id > seals.after, run_seal.c.id <= seals.last)
