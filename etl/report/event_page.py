"""The events of organisations, and the users behind each event."""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Connection, Select, bindparam, select, text

from etl.report.names import any_contains, id_contains
from etl.report.rows import OrgWorkflowEvent, view
from etl.schema import UtcTime


class UserChange(NamedTuple):
    """A user whose list showed an event, and the kind of its change."""

    user_id: str
    kind: str
    observed_at: dt.datetime
    run_id: int


class Filters(NamedTuple):
    """Which events to show. An id is a part of one, or a whole one after ``names.WHOLE``."""

    org: str = ""
    user: str = ""
    flow: str = ""
    name: str = ""
    kinds: Sequence[str] = ()
    since: dt.datetime | None = None
    until: dt.datetime | None = None


def events(dialect: str, asked: Filters) -> Select[Any]:
    """``OrgWorkflowEvent``, the latest decision first."""
    event = view("org_workflow_event", OrgWorkflowEvent)
    ids = ((event.c.org_id, asked.org), (event.c.user_id, asked.user), (event.c.flow_id, asked.flow))
    found: list[ColumnElement[bool]] = [id_contains(dialect, column, part) for column, part in ids if part]
    found += any_contains(dialect, asked.name or None, event.c.old_name, event.c.new_name)
    found += [event.c.kind.in_(asked.kinds)] if asked.kinds else []
    found += [event.c.observed_at >= asked.since] if asked.since is not None else []
    found += [event.c.observed_at < asked.until] if asked.until is not None else []
    return select(event).where(*found).order_by(event.c.event_id.desc())


def one(connection: Connection, event_id: int) -> OrgWorkflowEvent | None:
    """The event with this number."""
    event = view("org_workflow_event", OrgWorkflowEvent)
    row = connection.execute(select(event).where(event.c.event_id == event_id)).one_or_none()
    return None if row is None else OrgWorkflowEvent._make(row)


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
    asked = {
        "flows": list({event.flow_id for event in shown}),
        "since": min((event.last_unchanged_at or event.observed_at) for event in shown),
        "until": max(event.decided_at for event in shown),
    }
    changes = defaultdict[tuple[str, str, str], list[UserChange]](list)
    for row in connection.execute(_USER_CHANGES, asked):
        change = UserChange(row.user_id, row.kind, row.observed_at, row.run_id)
        changes[row.org_id, row.flow_id, row.kind].append(change)
    return {event.event_id: list(_matching(event, changes)) for event in shown}


def _matching(
    event: OrgWorkflowEvent, changes: Mapping[tuple[str, str, str], Sequence[UserChange]]
) -> Iterator[UserChange]:
    since = event.last_unchanged_at or event.observed_at
    for each in changes.get((event.org_id, event.flow_id, SHOWN_AS[event.kind]), ()):
        is_of_it = since < each.observed_at <= event.observed_at or each.run_id == event.run_id
        if is_of_it and event.user_id in (None, each.user_id):
            yield each


_USER_CHANGES: Final = (
    text("""
    SELECT org_id, flow_id, user_id, kind, observed_at, run_id FROM list_change
     WHERE flow_id IN :flows AND expression = '' AND observed_at > :since AND observed_at <= :until ORDER BY user_id
    """)
    .bindparams(
        bindparam("flows", expanding=True), bindparam("since", type_=UtcTime), bindparam("until", type_=UtcTime)
    )
    .columns(observed_at=UtcTime)
)
