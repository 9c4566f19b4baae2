"""Tables of changes and events for people: when, whose, which workflow, and what happened."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from itertools import chain, repeat
from typing import Any, Final

from etl.cli import console
from etl.report.details import event_detail_sentence
from etl.report.rows import OrgWorkflowEvent

_COLUMNS: Final = ("observed at", "organisation", "user", "expression", "workflow", "what happened", "name", "EnOS")
_IF_ANY: Final = ("expression", "EnOS")


def event_table(
    title: str,
    events: Iterable[Any],
    *,
    zone: dt.tzinfo = dt.UTC,
    details: Sequence[str] = (),
) -> None:
    """Print a table of events, which have the columns of ``list_change``. Times are shown in ``zone``; ``details``
    is what EnOS said about each."""
    rows = [
        (e.observed_at, e.org_id, e.user_id, e.expression, e.flow_id, what_happened(e), e.new_name or e.old_name, said)
        for e, said in zip(events, chain(details, repeat("")), strict=False)
    ]
    console.table(title, _COLUMNS, rows, "no changes", zone=zone, if_any=_IF_ANY)


def what_happened(event: Any) -> str:
    """The change in a few words."""
    match event.kind:
        case "cycle_changed":
            return f"cycle {_shown(event.old_cycle)} -> {_shown(event.new_cycle)}"
        case "renamed":
            return f"renamed, was {_shown(event.old_name)}"
        case "editable_changed":
            return f"editable {_shown(event.old_editable)} -> {_shown(event.new_editable)}"
        case "removed":
            return f"removed, cycle {_shown(event.old_cycle)}"
        case kind:
            return f"{kind}, cycle {_shown(event.new_cycle)}"


def story_table(
    title: str, events: Iterable[OrgWorkflowEvent], *, zone: dt.tzinfo = dt.UTC, enos_zone: dt.tzinfo | None = None
) -> None:
    """A table of an organisation's events."""
    rows = [
        (e.observed_at, e.org_id, e.flow_id, what_happened_to_all(e), e.new_name or e.old_name,
         e.users_after, "" if e.proven_for_all else "not proven", event_detail_sentence(e, enos_zone))
        for e in events
    ]  # fmt: skip
    columns = ("observed at", "organisation", "workflow", "what happened", "name", "users", "proven for all", "EnOS")
    console.table(title, columns, rows, zone=zone, if_any=("proven for all", "EnOS"))


def what_happened_to_all(event: Any) -> str:
    """An organisation's event in a few words."""
    match event.kind:
        case "access_granted":
            return f"{event.user_id} was given access"
        case "access_lost":
            return f"{event.user_id} lost access"
        case "disappeared":
            return f"disappeared, cycle {_shown(event.old_cycle)}"
        case _:
            return what_happened(event)


def _shown(value: object) -> str:
    return console.cell(value) or "none"
