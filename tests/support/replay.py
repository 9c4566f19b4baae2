"""Apply the changes of a trail to a state."""

from __future__ import annotations

from collections.abc import Iterable

from etl.domain.diff import Flows
from etl.domain.model import Change, Flow


def replay(old: Flows, changes: Iterable[Change]) -> dict[str, Flow]:
    """The state after ``changes``. Raises ValueError if they do not fit ``old``."""
    state = dict(old)
    afters: dict[str, Flow | None] = {}
    for change in changes:
        if _before(change) != old.get(change.flow_id):
            raise ValueError(f"{change.kind} of workflow {change.flow_id!r} does not fit the state before")
        after = _after(change)
        if afters.setdefault(change.flow_id, after) != after or (after is None and change.flow_id not in state):
            raise ValueError(f"the changes of workflow {change.flow_id!r} disagree about the state after")
        if after is None:
            del state[change.flow_id]
        else:
            state[change.flow_id] = after
    return state


def _before(change: Change) -> Flow | None:
    if change.kind in ("added", "baseline"):
        return None
    return Flow(change.flow_id, change.old_name, change.old_cycle, change.old_editable)


def _after(change: Change) -> Flow | None:
    if change.kind == "removed":
        return None
    return Flow(change.flow_id, change.new_name, change.new_cycle, change.new_editable)
