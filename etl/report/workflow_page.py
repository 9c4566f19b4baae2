"""The workflows of an organisation, now or at a moment, and one of them with its story."""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Connection,
    Select,
    Text,
    TextualSelect,
    bindparam,
    case,
    func,
    or_,
    select,
    text,
)

from etl.report.asof import cheaper_way, flows_statement, targets_statement
from etl.report.difference import whole_lists
from etl.report.listings import STATES, WORKFLOWS
from etl.report.names import WHOLE, contains, id_contains
from etl.report.reading import sql
from etl.report.rows import Coverage, Gap, ListChange, OrgWorkflow, OrgWorkflowEvent, view
from etl.schema import UtcTime, target, workflow

LISTS_THEN: Final = 20
"""The organisation's list at a moment can be narrowed to what was in so many users' lists then."""


class TooManyLists(ValueError):
    """More than ``LISTS_THEN`` lists are of users like the one that was asked for."""


SHOWN: Final = ("org_id", "flow_id", "flow_name", "cycle", "users", "editors", "first_listed_at")
"""The columns of ``org_workflow`` that need no look at its users."""


def organisations(connection: Connection, asked: str, most: int) -> Sequence[Any]:
    """The organisations whose id contains ``asked``, by id, and how many of their targets are configured; only one if
    ``asked`` is a whole id."""
    found = [id_contains(connection.dialect.name, target.c.org_id, asked)] if asked else []
    configured = func.sum(case((target.c.retired_at.is_(None), 1), else_=0)).label("targets")
    chosen = select(target.c.org_id, configured).where(*found).group_by(target.c.org_id).order_by(target.c.org_id)
    listed = connection.execute(chosen.limit(most)).all()
    return [each for each in listed if each.org_id == asked] or listed


def search(connection: Connection, part: str, most: int) -> dict[str, Sequence[Any]]:
    """Finds ``part`` in ids and names, a-z in either case: organisations, users with theirs, and workflows that users
    see now, at most ``most`` of each. An id that is equal to it comes first."""
    dialect, whole = connection.dialect.name, part.removeprefix("=")
    org, user, seen = target.c.org_id, target.c.user_id, view("org_workflow", OrgWorkflow).c
    found = (id_contains(dialect, user, part), user != "")
    orgs = select(org).where(id_contains(dialect, org, part)).group_by(org).order_by((org == whole).desc(), org)
    users = select(org, user).where(*found).group_by(org, user)
    named = or_(id_contains(dialect, seen.flow_id, part), contains(dialect, seen.flow_name, part))
    flows = select(*(seen[name] for name in SHOWN)).where(named)
    return {
        "orgs": connection.execute(orgs.limit(most)).scalars().all(),
        "users": connection.execute(users.order_by((user == whole).desc(), org, user).limit(most)).all(),
        "workflows": connection.execute(
            flows.order_by((seen.flow_id == whole).desc(), seen.org_id, seen.flow_id).limit(most)
        ).all(),
    }


# ----------------------------------------------------------------------------------------------------- the list


def listing(
    connection: Connection, org: str, user: str, at: dt.datetime | None, order: Sequence[str] = (), **asked: Any
) -> Select[Any]:
    """``listings.WORKFLOWS`` of an organisation, or ``listings.STATES`` at ``at``; ``user`` is a part of the id of
    somebody who sees them. Raises TooManyLists."""
    dialect = connection.dialect.name
    if at is None:
        chosen = WORKFLOWS.select(dialect, org=WHOLE + org, order=order, **asked)
        return chosen.where(_listed_by(dialect, org, user, chosen.selected_columns.flow_id)) if user else chosen
    chosen = STATES.select(dialect, org=WHOLE + org, at=at, order=order, **asked)
    if not user:
        return chosen
    # a list of its own: PostgreSQL would look through all states once for each workflow of a user
    states = chosen.order_by(None).cte("states").prefix_with("MATERIALIZED")
    theirs = select(_lists_then(connection, org, user, at).subquery("theirs").c.flow_id)
    return select(states).where(states.c.flow_id.in_(theirs)).order_by(*STATES.keys(states.c, order))


def _listed_by(dialect: str, org: str, user: str, flow_id: ColumnElement[str]) -> ColumnElement[bool]:
    """Some user like that sees it now. One that does is enough: OFFSET 0 keeps PostgreSQL from reading the lists of all
    of them."""
    like_this = id_contains(dialect, target.c.user_id, user)
    ids = select(target.c.id).where(*whole_lists(org), target.c.retired_at.is_(None), like_this)
    users = ids.cte("users").prefix_with("MATERIALIZED")
    listed = select(1).where(workflow.c.target_id == users.c.id, workflow.c.flow_id == flow_id)
    return listed.limit(1).offset(0).exists()


def _lists_then(connection: Connection, org: str, user: str, at: dt.datetime) -> TextualSelect:
    like_this = id_contains(connection.dialect.name, target.c.user_id, user)
    found = select(target.c.id).where(*whole_lists(org), like_this)
    ids = list(connection.execute(found.limit(LISTS_THEN + 1)).scalars())
    if len(ids) > LISTS_THEN:
        raise TooManyLists
    given: BindParameter[Any] = bindparam("ids", ids, expanding=True)
    way = cheaper_way(connection, at)
    return flows_statement(way, at, {}, condition="t.id IN :ids", parameters=[given])


def by_cycle(connection: Connection, chosen: Select[Any]) -> list[tuple[str, int]]:
    """How many rows of a ``listing`` have each cycle, the most frequent first."""
    listed = chosen.order_by(None).subquery()
    number, cycle = func.count(), func.coalesce(listed.c.cycle, "")
    counted = select(cycle, number).group_by(cycle).order_by(number.desc(), cycle)
    return [(str(name), int(found)) for name, found in connection.execute(counted)]


# ------------------------------------------------------------------------------------- the users at a moment


_USERS_THEN: Final = text(sql("users_then")).bindparams(
    bindparam("at", type_=UtcTime), bindparam("flows", type_=Text, expanding=True)
)


def users_then(connection: Connection, org: str, flows: Sequence[str], at: dt.datetime) -> dict[str, int]:
    """For each of these workflows that was in a list, how many users' latest lists until ``at`` showed it.

    It costs as many rows as there were changes of these workflows until ``at``, so it is asked for a page of them.
    """
    found = connection.execute(_USERS_THEN, {"org_id": org, "flows": flows, "at": at})
    return {flow: int(users) for flow, users in found}


# ----------------------------------------------------------------------------------------------- one of them


def coverage_then(connection: Connection, org: str, at: dt.datetime) -> dict[Coverage, int]:
    """How many targets of the organisation were known how well at ``at``."""
    targets = targets_statement(at, {"org_id": org}).subquery("targets_then")
    counted = select(targets.c.coverage, func.count()).group_by(targets.c.coverage)
    return {known: int(number) for known, number in connection.execute(counted)}


def seen_by(connection: Connection, org: str, flow: str, at: dt.datetime) -> Select[Any]:
    """``ListWorkflowAsOf``: the lists that showed it at ``at``."""
    way = cheaper_way(connection, at, flow)
    then = flows_statement(way, at, {"org_id": org, "flow_id": flow}).subquery("then_listed")
    return select(then).order_by(then.c.user_id, then.c.expression)


def gaps_of(connection: Connection, org: str, users: Sequence[str]) -> list[Gap]:
    """The coverage gaps of these users' targets."""
    gap = view("coverage_gap", Gap)
    chosen = select(gap).where(gap.c.org_id == org, gap.c.user_id.in_(users)).order_by(gap.c.gap_from)
    return [Gap(*row) for row in connection.execute(chosen)]


class UserChange(NamedTuple):
    """A user whose list showed an event, and the kind of its change."""

    user_id: str
    kind: str
    observed_at: dt.datetime
    run_id: int


SHOWN_AS: Final = {
    "appeared": "added",
    "reappeared": "added",
    "access_granted": "added",
    "access_lost": "removed",
    "disappeared": "removed",
    "renamed": "renamed",
    "cycle_changed": "cycle_changed",
}
"""The kinds of changes by which a user's list can show an event."""


def user_changes(connection: Connection, shown: Sequence[OrgWorkflowEvent]) -> dict[int, list[UserChange]]:
    """By event id, the users whose lists showed the event in its interval, or in the run that decided it: an interval
    ends with the first answer, and the others came later in the run."""
    if not shown:
        return {}
    change = view("list_change", ListChange).c
    since = min((event.last_unchanged_at or event.observed_at) for event in shown)
    until = max(event.decided_at for event in shown)
    flows = change.flow_id.in_({event.flow_id for event in shown})
    happened = (
        flows,
        change.user_id != "",
        change.expression == "",
        change.observed_at > since,
        change.observed_at <= until,
    )
    columns = (change.org_id, change.flow_id, change.user_id, change.kind, change.observed_at, change.run_id)
    changes = defaultdict[tuple[str, str, str], list[UserChange]](list)
    for org_id, flow_id, *row in connection.execute(select(*columns).where(*happened).order_by(change.user_id)):
        each = UserChange(*row)
        changes[org_id, flow_id, each.kind].append(each)
    return {
        event.event_id: [
            each for each in changes[event.org_id, event.flow_id, SHOWN_AS[event.kind]] if _shows(each, event)
        ]
        for event in shown
    }


def _shows(change: UserChange, event: OrgWorkflowEvent) -> bool:
    since = event.last_unchanged_at or event.observed_at
    is_of_it = since < change.observed_at <= event.observed_at or change.run_id == event.run_id
    return is_of_it and event.user_id in (None, change.user_id)
