"""The workflows of an organisation, now or at a moment, and one of them with its story."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Connection,
    Select,
    TextualSelect,
    bindparam,
    case,
    func,
    select,
    text,
)

from etl.report.asof import CONFIGURED_THEN, cheaper_way, flows_statement, targets_statement
from etl.report.listings import STATES, WORKFLOWS
from etl.report.names import WHOLE, id_contains
from etl.report.rows import (
    Coverage,
    ListWorkflowAsOf,
    OrgWorkflowState,
    view,
)
from etl.report.summary_rows import Gap
from etl.schema import UtcTime, target, workflow


class Organisation(NamedTuple):
    """An organisation, and how many of its targets are configured."""

    org_id: str
    targets: int


LISTS_THEN: Final = 20
"""The organisation's list at a moment can be narrowed to what was in so many users' lists then."""


class TooManyLists(ValueError):
    """More than ``LISTS_THEN`` lists are of users like the one that was asked for."""


def organisations(connection: Connection, asked: str, most: int) -> list[Organisation]:
    """The organisations whose id contains ``asked``, by id; only one if ``asked`` is a whole id."""
    found = [id_contains(connection.dialect.name, target.c.org_id, asked)] if asked else []
    chosen = select(target.c.org_id, func.sum(case((target.c.retired_at.is_(None), 1), else_=0)))
    rows = connection.execute(chosen.where(*found).group_by(target.c.org_id).order_by(target.c.org_id).limit(most))
    listed = [Organisation(org_id, int(targets)) for org_id, targets in rows]
    whole = [each for each in listed if each.org_id == asked]
    return whole or listed


# ----------------------------------------------------------------------------------------------------- the list


def list_now(dialect: str, org: str, user: str, **asked: Any) -> Select[Any]:
    """``listings.WORKFLOWS`` of an organisation; ``user`` is a part of the id of somebody who sees them."""
    chosen = WORKFLOWS.select(dialect, org=WHOLE + org, **asked)
    return chosen.where(_listed_by(dialect, org, user, chosen.selected_columns.flow_id)) if user else chosen


def _listed_by(dialect: str, org: str, user: str, flow_id: ColumnElement[str]) -> ColumnElement[bool]:
    """Some user like that sees it now. One that does is enough: OFFSET 0 keeps PostgreSQL from reading the lists of all
    of them."""
    like_this = id_contains(dialect, target.c.user_id, user)
    whole_lists = (target.c.org_id == org, target.c.expression == "", target.c.retired_at.is_(None))
    ids = select(target.c.id).where(*whole_lists, like_this)
    users = ids.cte("users").prefix_with("MATERIALIZED")
    listed = select(1).where(workflow.c.target_id == users.c.id, workflow.c.flow_id == flow_id)
    return listed.limit(1).offset(0).exists()


def list_then(
    connection: Connection, org: str, user: str, at: dt.datetime, order: Sequence[str] = (), **asked: Any
) -> Select[Any]:
    """``listings.STATES`` of an organisation at ``at``. Raises TooManyLists."""
    chosen = STATES.select(connection.dialect.name, org=WHOLE + org, at=at, order=order, **asked)
    if not user:
        return chosen
    # a list of its own: PostgreSQL would look through all states once for each workflow of a user
    states = chosen.order_by(None).cte("states").prefix_with("MATERIALIZED")
    theirs = select(_lists_then(connection, org, user, at).subquery("theirs").c.flow_id)
    return select(states).where(states.c.flow_id.in_(theirs)).order_by(*STATES.keys(states.c, order))


def _lists_then(connection: Connection, org: str, user: str, at: dt.datetime) -> TextualSelect:
    like_this = id_contains(connection.dialect.name, target.c.user_id, user)
    found = select(target.c.id).where(target.c.org_id == org, target.c.expression == "", like_this)
    ids = list(connection.execute(found.limit(LISTS_THEN + 1)).scalars())
    if len(ids) > LISTS_THEN:
        raise TooManyLists
    given: BindParameter[Any] = bindparam("ids", ids, expanding=True)
    way = cheaper_way(connection, at)
    return flows_statement(way, {}, condition="t.id IN :ids", parameters=[given]).bindparams(at=at)


def by_cycle(connection: Connection, listing: Select[Any]) -> list[tuple[str, int]]:
    """How many rows of ``list_now`` or ``list_then`` have each cycle, the most frequent first."""
    listed = listing.order_by(None).subquery()
    number, cycle = func.count(), func.coalesce(listed.c.cycle, "")
    counted = select(cycle, number).group_by(cycle).order_by(number.desc(), cycle)
    return [(str(name), int(found)) for name, found in connection.execute(counted)]


# ------------------------------------------------------------------------------------- the users at a moment


_TARGETS_THEN: Final = f"""
    SELECT t.id FROM target t
    WHERE t.org_id = :org_id AND t.expression = '' AND {CONFIGURED_THEN}"""  # noqa: S608 - our own words
_USERS_THEN: Final = f"""
    SELECT c.flow_id, sum(CASE c.kind WHEN 'baseline' THEN 1 WHEN 'added' THEN 1 WHEN 'removed' THEN -1 ELSE 0 END)
    FROM workflow_change c
    CROSS JOIN change_set s
    WHERE c.flow_id IN :flows AND s.id = c.change_set_id AND s.observed_at <= :at AND s.target_id IN ({_TARGETS_THEN})
    GROUP BY c.flow_id"""  # noqa: S608 - our own words


def users_then(connection: Connection, states: Sequence[OrgWorkflowState], at: dt.datetime) -> list[int]:
    """For each of these workflows, how many users' latest lists until ``at`` showed it.

    It costs as many rows as there were changes of these workflows until ``at``, so it is asked for a page of them.
    """
    counted = text(_USERS_THEN).bindparams(bindparam("at", type_=UtcTime()), bindparam("flows", expanding=True))
    flows_of = dict[str, list[str]]()
    for state in states:
        flows_of.setdefault(state.org_id, []).append(state.flow_id)
    found = dict[tuple[str, str], int]()
    for org, flows in flows_of.items():
        given = {"org_id": org, "at": at, "flows": flows}
        found |= {(org, flow): int(users) for flow, users in connection.execute(counted, given)}
    return [found.get(state[:2], 0) for state in states]


# ----------------------------------------------------------------------------------------------- one of them


def coverage_then(connection: Connection, org: str, at: dt.datetime) -> dict[Coverage, int]:
    """How many targets of the organisation were known how well at ``at``."""
    parameters = {"org_id": org, "at": at}
    targets = targets_statement(parameters).subquery("targets_then")
    counted = select(targets.c.coverage, func.count()).group_by(targets.c.coverage)
    return {known: int(number) for known, number in connection.execute(counted, parameters)}


def parameters_then(org: str, at: dt.datetime, flow: str) -> dict[str, Any]:
    return {"org_id": org, "at": at, "flow_id": flow}


def seen_by(connection: Connection, org: str, flow: str, at: dt.datetime) -> Select[Any]:
    """``ListWorkflowAsOf``: the lists that showed it at ``at``; the parameters are ``parameters_then``."""
    parameters = parameters_then(org, at, flow)
    then = flows_statement(cheaper_way(connection, at, flow), parameters).subquery("then_listed")
    columns = [then.c[name] for name in ListWorkflowAsOf._fields]
    return select(*columns).order_by(then.c.user_id, then.c.expression)


def gaps_of(connection: Connection, org: str, users: Sequence[str]) -> list[Gap]:
    """The coverage gaps of these users' targets."""
    gap = view("coverage_gap", Gap)
    chosen = select(gap).where(gap.c.org_id == org, gap.c.user_id.in_(users)).order_by(gap.c.gap_from)
    return [Gap(*row) for row in connection.execute(chosen)]
