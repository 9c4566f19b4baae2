"""From two lists of a target to what differs, and to the changes that this is. Pure: no clock, no database."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from itertools import compress, filterfalse
from operator import attrgetter, ne
from typing import NamedTuple

from etl.domain.chain import change_order
from etl.domain.kinds import ATTRIBUTE_OF, ChangeKind
from etl.domain.model import Change, Flow

Flows = Mapping[str, Flow]
"""The workflows of a target by flow_id."""


def by_id(flows: Iterable[Flow]) -> dict[str, Flow]:
    return {flow.flow_id: flow for flow in flows}


def baseline(new: Flows) -> list[Change]:
    """The first observation of a target: one ``baseline`` for each workflow, sorted by flow_id."""
    flows = sorted(new.values(), key=attrgetter("flow_id"))
    return [Change(f.flow_id, "baseline", None, f.flow_name, None, f.cycle, None, f.editable) for f in flows]


class Difference(NamedTuple):
    """What differs between the list known so far and an answer: all that the guard and the trail need of both."""

    known: int
    """How many workflows the known list has."""
    absent: Flows
    """Those that the answer lacks."""
    added: Flows
    """Those that only the answer has."""
    altered: Sequence[tuple[Flow, Flow]] = ()
    """Those that both have, with other values: before and after."""

    @property
    def both(self) -> int:
        """How many workflows both have."""
        return self.known - len(self.absent)


def compare(old: Flows, new: Flows) -> Difference:
    """What differs. Compared in C, and once: most are the same."""
    differing = compress(old.values(), map(ne, map(new.get, old), old.values()))
    pairs = [(before, new.get(before.flow_id)) for before in differing]
    absent = {before.flow_id: before for before, after in pairs if after is None}
    added = new if not old else {}
    if old and len(new) > len(old) - len(absent):
        added = {flow_id: new[flow_id] for flow_id in filterfalse(old.__contains__, new)}
    return Difference(len(old), absent, added, [(before, after) for before, after in pairs if after is not None])


def diff(old: Flows, new: Flows) -> list[Change]:
    """The changes that lead from ``old`` to ``new``, as ``changes_of`` has them."""
    return changes_of(compare(old, new))


def changes_of(difference: Difference, kept: Container[str] = ()) -> list[Change]:
    """The changes from the known list to the answer, which has ``kept`` as well; sorted by (flow_id, kind).

    A workflow whose cycle and name changed gives two changes, each with the full before and after.
    """
    changes = [_change("removed", before, None) for flow_id, before in difference.absent.items() if flow_id not in kept]
    changes += [
        _change(kind, before, after)
        for before, after in difference.altered
        for kind, attribute in ATTRIBUTE_OF.items()
        if getattr(before, attribute) != getattr(after, attribute)
    ]
    changes += [_change("added", None, flow) for flow in difference.added.values()]
    return sorted(changes, key=change_order)


def _change(kind: ChangeKind, old: Flow | None, new: Flow | None) -> Change:
    known = new or old
    assert known is not None  # noqa: S101 - one of the two is always given
    return Change(
        known.flow_id,
        kind,
        old.flow_name if old else None,
        new.flow_name if new else None,
        old.cycle if old else None,
        new.cycle if new else None,
        old.editable if old else None,
        new.editable if new else None,
    )
