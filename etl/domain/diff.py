"""From two states of a target to the changes between them. Pure: no clock, no database."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import compress, filterfalse
from operator import attrgetter, ne

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


def differing(old: Flows, new: Flows) -> Iterator[tuple[str, Flow]]:
    """The workflows of ``old`` that ``new`` lacks or has otherwise. Compared in C: most are the same."""
    return compress(old.items(), map(ne, map(new.get, old), old.values()))


def diff(old: Flows, new: Flows) -> list[Change]:
    """The changes that lead from ``old`` to ``new``, sorted by (flow_id, kind).

    A workflow whose cycle and name changed gives two changes, each with the full before and after.
    """
    changes: list[Change] = []
    for flow_id, before in differing(old, new):
        after = new.get(flow_id)
        if after is None:
            changes.append(_change("removed", before, None))
        else:
            changes += [
                _change(kind, before, after)
                for kind, attribute in ATTRIBUTE_OF.items()
                if getattr(before, attribute) != getattr(after, attribute)
            ]
    changes += [_change("added", None, new[flow_id]) for flow_id in filterfalse(old.__contains__, new)]
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
