"""Users' lists for answers: encoded once, then filtered and shuffled for each answer."""

from __future__ import annotations

import itertools
import random
import re
import threading
from typing import Literal, NamedTuple

import msgspec

from etl.demo.faults import Fault
from etl.demo.world import World, matches
from etl.domain.model import Flow

Release = Literal["v2.1", "v2.0", "edge"]
"""EnOS since 2.1.2, before it, and EnOS Edge, which spells ``flow_id``."""


class _Encoded(NamedTuple):
    """A user's whole list; ``before`` is the one that was served before it changed."""

    flows: tuple[Flow, ...]
    items: list[bytes]
    before: _Encoded | None


class EncodedLists:
    """The lists of a world. ``shuffle`` gives each answer another order of items (seeded). Thread-safe."""

    def __init__(self, world: World, release: Release, *, shuffle: bool, seed: int) -> None:
        self._world = world
        self._release = release
        self._shuffle = shuffle
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._encoded: dict[tuple[str, str], _Encoded] = {}

    def answer(self, org: str, user: str, expression: str, fault: Fault) -> tuple[tuple[Flow, ...], bytes]:
        """The flows of a user's answer, and the same as items of a JSON array. Raises UnknownOrg, UnknownUser."""
        flows, items = self._chosen(self._of(org, user), expression, fault)
        return flows, b",".join(self._dealt(items) if self._shuffle else items)

    def _of(self, org: str, user: str) -> _Encoded:
        flows = self._world.flows(org, user)
        encoded = self._encoded.get((org, user))
        if encoded is None or encoded.flows is not flows:
            integer = self._world.has_integer_ids(org, user)
            before = encoded and encoded._replace(before=None)
            encoded = _Encoded(flows, [_item(flow, integer, self._release) for flow in flows], before)
            self._encoded[org, user] = encoded
        return encoded

    def _chosen(self, encoded: _Encoded, expression: str, fault: Fault) -> tuple[tuple[Flow, ...], list[bytes]]:
        if fault.kind == "stale" and encoded.before:
            encoded = encoded.before
        if not expression and fault.kind not in ("empty", "partial"):
            return encoded.flows, encoded.items
        pairs = [pair for pair in zip(encoded.flows, encoded.items, strict=True) if matches(pair[0], expression)]
        if fault.kind in ("empty", "partial"):
            kept = int(len(pairs) * fault.share) if fault.kind == "partial" else 0
            with self._lock:
                pairs = self._random.sample(pairs, kept)
        return tuple(flow for flow, _ in pairs), [item for _, item in pairs]

    def _dealt(self, items: list[bytes]) -> list[bytes]:
        """Another order, by a random cut dealt on a random number of heaps: much cheaper than a shuffle."""
        if len(items) < 2:
            return items
        with self._lock:
            cut, heaps = self._random.randrange(len(items)), self._random.randrange(1, 8)
        turned = items[cut:] + items[:cut]
        return list(itertools.chain.from_iterable(turned[heap::heaps] for heap in range(heaps)))


def _item(flow: Flow, integer_id: bool, release: Release) -> bytes:
    decimal = re.fullmatch("0|[1-9][0-9]*", flow.flow_id) if integer_id else None
    flow_id, flow_name = ("flow_id", "flow_name") if release == "edge" else ("flowId", "flowName")
    return msgspec.json.encode(
        {
            flow_id: msgspec.Raw(flow.flow_id.encode()) if decimal else flow.flow_id,
            "editable": flow.editable,
            flow_name: flow.flow_name,
            "cycle": flow.cycle,
        }
    )
