"""The users behind the events of organisations."""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from sqlalchemy import Connection, bindparam, text

from etl.report.rows import OrgWorkflowEvent
from etl.schema import UtcTime


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
