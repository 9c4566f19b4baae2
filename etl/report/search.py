"""One search for names and ids: organisations, users, workflows."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import Connection, or_, select

from etl.report.names import contains, id_contains
from etl.report.rows import OrgWorkflowShown, view
from etl.schema import target


class Found(NamedTuple):
    """What a search found, at most ``most`` of each."""

    orgs: list[str]
    users: list[tuple[str, str]]
    """Organisation and user."""
    workflows: list[OrgWorkflowShown]
    """Only workflows that users see now."""


def search(connection: Connection, part: str, most: int) -> Found:
    """Finds ``part`` in ids and names, a-z in either case. An id that is equal to it comes first."""
    dialect, whole = connection.dialect.name, part.removeprefix("=")
    org, user = target.c.org_id, target.c.user_id
    orgs = select(org).where(id_contains(dialect, org, part)).group_by(org).order_by((org == whole).desc(), org)
    users = select(org, user).where(id_contains(dialect, user, part)).group_by(org, user)
    seen = view("org_workflow", OrgWorkflowShown)
    named = or_(id_contains(dialect, seen.c.flow_id, part), contains(dialect, seen.c.flow_name, part))
    flows = select(seen).where(named).order_by((seen.c.flow_id == whole).desc(), seen.c.org_id, seen.c.flow_id)
    return Found(
        list(connection.execute(orgs.limit(most)).scalars()),
        [(row[0], row[1]) for row in connection.execute(users.order_by((user == whole).desc(), org, user).limit(most))],
        [OrgWorkflowShown(*row) for row in connection.execute(flows.limit(most))],
    )
