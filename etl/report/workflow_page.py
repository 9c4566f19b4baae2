"""The workflows of an organisation, now or at a moment, and one of them with its story."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from sqlalchemy import ColumnElement, Connection, Select, Subquery, case, func, or_, select, true

from etl.report import statements
from etl.report.asof import cheaper_way, flows_statement
from etl.report.names import contains, id_contains
from etl.report.rows import (
    CurrentWorkflow,
    OrgWorkflow,
    OrgWorkflowAsOf,
    OrgWorkflowEvent,
    OrgWorkflowShown,
    WorkflowAsOf,
    WorkflowHistory,
    view,
)
from etl.report.summary_rows import Gap
from etl.schema import target

Which = Literal["", "uneditable", "single"]
"""All workflows, those that nobody may edit, or those that only one user sees."""
Order = Literal["", "newest"]
"""By id, or the most recently appeared first."""


class Organisation(NamedTuple):
    """An organisation, and how many of its targets are configured."""

    org_id: str
    targets: int


class Sought(NamedTuple):
    """Which workflows of an organisation to show."""

    org: str
    part: str = ""
    """A part of the id or of the name."""
    user: str = ""
    """A part of the id of a user who sees it."""
    cycle: str = ""
    which: Which = ""
    order: Order = ""


def organisations(connection: Connection, asked: str, most: int) -> list[Organisation]:
    """The organisations whose id contains ``asked``, by id; only one if ``asked`` is a whole id."""
    found = [id_contains(connection.dialect.name, target.c.org_id, asked)] if asked else []
    chosen = select(target.c.org_id, func.sum(case((target.c.retired_at.is_(None), 1), else_=0)))
    rows = connection.execute(chosen.where(*found).group_by(target.c.org_id).order_by(target.c.org_id).limit(most))
    listed = [Organisation(org_id, int(targets)) for org_id, targets in rows]
    whole = [each for each in listed if each.org_id == asked]
    return whole or listed


# ----------------------------------------------------------------------------------------------------- the list


def list_now(dialect: str, sought: Sought, row_type: type[tuple[Any, ...]] = OrgWorkflow) -> Select[Any]:
    """``row_type``, which is ``OrgWorkflow`` or some of its columns."""
    seen = view("org_workflow", row_type)
    chosen = select(seen).where(seen.c.org_id == sought.org)
    if sought.user:
        listed = view("current_workflow", CurrentWorkflow)
        theirs = select(listed.c.flow_id).where(listed.c.org_id == sought.org)
        chosen = chosen.where(seen.c.flow_id.in_(theirs.where(id_contains(dialect, listed.c.user_id, sought.user))))
    return _filtered(dialect, chosen, seen, sought)


def cycles_now(connection: Connection, sought: Sought) -> list[tuple[str, int]]:
    """How many of the workflows have each cycle, whichever is asked for, the most frequent first."""
    listed = list_now(connection.dialect.name, sought._replace(cycle=""), OrgWorkflowShown).order_by(None).subquery()
    number, cycle = func.count(), func.coalesce(listed.c.cycle, "")
    counted = select(cycle, number).group_by(cycle).order_by(number.desc(), cycle)
    return [(str(name), int(found)) for name, found in connection.execute(counted)]


def list_then(connection: Connection, sought: Sought, at: dt.datetime) -> Select[Any]:
    """``OrgWorkflowAsOf``, from every user's list at that moment; the parameters are ``parameters_then``.

    The name and the cycle are those of the list that changed last, as in ``org_workflow``. A user with several search
    expressions counts once.
    """
    dialect = connection.dialect.name
    parameters = parameters_then(sought.org, at)
    flows = flows_statement(cheaper_way(connection, at), parameters, "").subquery("then_listed")
    users = _once_a_user(flows)
    told = _once_a_workflow(users, id_contains(dialect, users.c.user_id, sought.user) if sought.user else true())
    columns = [told.c[name] for name in OrgWorkflowAsOf._fields]
    return _filtered(dialect, select(*columns).where(told.c.nth == 1, told.c.theirs > 0), told, sought)


def parameters_then(org: str, at: dt.datetime, flow: str = "") -> dict[str, Any]:
    return {"org_id": org, "at": at} | ({"flow_id": flow} if flow else {})


def _once_a_user(flows: Subquery) -> Subquery:
    """One row per user and workflow: the editable one, if the user has several."""
    key = (flows.c.flow_id, flows.c.user_id)
    first = func.row_number().over(partition_by=key, order_by=(_flag(flows.c.editable).desc(), flows.c.expression))
    numbered = select(flows, first.label("nth_of_user")).subquery("numbered")
    return select(numbered).where(numbered.c.nth_of_user == 1).subquery("of_users")


def _once_a_workflow(users: Subquery, theirs: ColumnElement[bool]) -> Subquery:
    """``nth`` = 1 is the row that counts; ``theirs``: how many of the wanted users see it."""
    flow = users.c.flow_id
    known = users.c.coverage.in_(("observed", "unchanged_across_gap"))
    latest = func.row_number().over(partition_by=flow, order_by=(users.c.changed_at.desc(), users.c.user_id))
    return select(
        users.c.org_id,
        flow,
        users.c.flow_name,
        users.c.cycle,
        func.count().over(partition_by=flow).label("users"),
        func.sum(_flag(users.c.editable)).over(partition_by=flow).label("editors"),
        func.min(users.c.first_seen_at).over(partition_by=flow).label("first_seen_at"),
        func.sum(case((known, 0), else_=1)).over(partition_by=flow).label("unobserved"),
        func.sum(case((theirs, 1), else_=0)).over(partition_by=flow).label("theirs"),
        latest.label("nth"),
    ).subquery("told")


def _flag(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return case((condition, 1), else_=0)


def _filtered(dialect: str, chosen: Select[Any], source: Any, sought: Sought) -> Select[Any]:
    which: dict[Which, ColumnElement[bool]] = {
        "": true(),
        "uneditable": source.c.editors == 0,
        "single": source.c.users == 1,
    }
    found = [which[sought.which]]
    if sought.part:
        found.append(or_(*(contains(dialect, source.c[name], sought.part) for name in ("flow_id", "flow_name"))))
    if sought.cycle:
        found.append(source.c.cycle == sought.cycle)
    order = [source.c.first_seen_at.desc()] if sought.order == "newest" else []
    return chosen.where(*found).order_by(*order, source.c.flow_id)


# ----------------------------------------------------------------------------------------------- one of them


def states(org: str, flow: str) -> Select[Any]:
    """``WorkflowHistory``: each state in each list that showed it."""
    state = view("workflow_history", WorkflowHistory)
    key = (state.c.user_id, state.c.expression, state.c.valid_from)
    return select(state).where(*statements.equal(state, org_id=org, flow_id=flow)).order_by(*key)


def seen_by(connection: Connection, org: str, flow: str, at: dt.datetime) -> Select[Any]:
    """``WorkflowAsOf``: the lists that showed it at ``at``; the parameters are ``parameters_then``."""
    parameters = parameters_then(org, at, flow)
    then = flows_statement(cheaper_way(connection, at), parameters, "").subquery("then_listed")
    columns = [then.c[name] for name in WorkflowAsOf._fields]
    return select(*columns).order_by(then.c.user_id, then.c.expression)


def story(org: str, flow: str) -> Select[Any]:
    """``OrgWorkflowEvent``, the latest first."""
    event = view("org_workflow_event", OrgWorkflowEvent)
    return select(event).where(*statements.equal(event, org_id=org, flow_id=flow)).order_by(event.c.event_id.desc())


def gaps_of(connection: Connection, org: str, users: Sequence[str]) -> list[Gap]:
    """The coverage gaps of these users' targets."""
    gap = view("coverage_gap", Gap)
    chosen = select(gap).where(gap.c.org_id == org, gap.c.user_id.in_(users)).order_by(gap.c.gap_from)
    return [Gap(*row) for row in connection.execute(chosen)]
