"""The kinds of changes, of an organisation's events and of issues, and the label of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple, get_args

ChangeKind = Literal["baseline", "added", "removed", "cycle_changed", "renamed", "editable_changed"]
CHANGE_KINDS: Final[tuple[ChangeKind, ...]] = get_args(ChangeKind)
"""The kinds of rows of the trail, in the order of the trail's columns."""
DELTA_KINDS: Final = tuple(kind for kind in CHANGE_KINDS if kind != "baseline")
"""Those that report a change; a baseline is a target's first list."""

ATTRIBUTE_OF: Final[Mapping[ChangeKind, str]] = {
    "renamed": "flow_name",
    "cycle_changed": "cycle",
    "editable_changed": "editable",
}
"""The kinds that change an attribute of a workflow, and which."""

EventKind = Literal[
    "appeared", "reappeared", "access_granted", "cycle_changed", "renamed", "access_lost", "disappeared"
]
EVENT_KINDS: Final[tuple[EventKind, ...]] = get_args(EventKind)
"""What can happen to a workflow in its organisation."""

ORGANISATION_KINDS: Final = tuple(kind for kind in EVENT_KINDS if kind not in DELTA_KINDS)
"""Those that no single user's list shows."""

GONE: Final = {
    True: "gone from every list, still in the directory",
    False: "gone from every list, and not in the directory",
}
"""What people read of a workflow that disappeared, by whether the directory of its organisation listed it then."""

TargetIssueKind = Literal["held", "failed", "overdue"]
TARGET_ISSUE_KINDS: Final[tuple[TargetIssueKind, ...]] = get_args(TargetIssueKind)
"""What can happen to a target and needs attention."""


class Label(NamedTuple):
    """The label of a kind after the number 1, after other numbers, and above a list."""

    one: str
    many: str
    heading: str


LABELS: Final[Mapping[str, Label]] = {
    "baseline": Label("baseline", "baselines", "Baseline"),
    "cycle_changed": Label("cycle changed", "cycles changed", "Cycle changed"),
    "removed": Label("removed", "removed", "Removed"),
    "added": Label("added", "added", "Added"),
    "renamed": Label("renamed", "renamed", "Renamed"),
    "editable_changed": Label("editability changed", "editabilities changed", "Editability changed"),
    "appeared": Label("appeared", "appeared", "Appeared"),
    "reappeared": Label("reappeared", "reappeared", "Reappeared"),
    "disappeared": Label("disappeared", "disappeared", "Disappeared"),
    "access_granted": Label("access granted", "accesses granted", "Access granted"),
    "access_lost": Label("access lost", "accesses lost", "Access lost"),
    "held": Label("held", "held", "Held until a person decides"),
    "failed": Label("failed", "failed", "No valid answer"),
    "overdue": Label("overdue", "overdue", "Overdue: not observed for three due slots"),
    "recovered": Label("recovered", "recovered", "Recovered"),
}
"""Every kind, in the order in which a message lists them."""
