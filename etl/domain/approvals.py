"""The codes by which a person approves exactly what was shown as held."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Mapping
from operator import itemgetter
from typing import Final, NamedTuple

import msgspec

from etl.domain import chain
from etl.domain.kinds import ATTRIBUTE_OF
from etl.domain.model import Doubt, Target

SHOWN_DIGITS: Final = 12
"""Hex digits of a digest that are shown: two sets share them by chance once in 280 million million."""
FEWEST_DIGITS: Final = 8
_CODE: Final = re.compile(rf"[0-9a-f]{{{FEWEST_DIGITS},64}}")


class HeldSet(NamedTuple):
    """What is held of one target; ``scope`` is the digest that goes into the trail when it is approved."""

    target: Target
    scope: str
    changes: int
    """How many removals and other changes it has."""


class Approval(msgspec.Struct, frozen=True):
    """A person's approval of what is held: that of ``scopes``, or whatever is held if it is None."""

    by: str
    scopes: Mapping[Target, str] | None

    def covers(self, target: Target, scope: str) -> bool:
        """Whether the approval is for exactly this set of this target."""
        return self.scopes is None or self.scopes.get(target) == scope


def held_set(
    target: Target, since: dt.datetime | None, flow_ids: Iterable[str], doubted: Iterable[Doubt] = ()
) -> HeldSet:
    """The held set of a target whose hold began at ``since``: the same workflows in a later hold are another set."""
    missing, changes = set(flow_ids), set(doubted)
    return HeldSet(target, chain.approved_scope(target, since, missing, changes), len(missing) + len(changes))


def shown_set(target: Target, since: dt.datetime, rows: Iterable[tuple[str, str | None]]) -> HeldSet:
    """The held set of rows with a flow_id and what ``workflow.doubted`` has; without that, its removal is held."""
    listed = list(rows)
    doubts = (doubt for flow_id, text in listed for doubt in doubts_in(flow_id, text))
    return held_set(target, since, (flow_id for flow_id, text in listed if text is None), doubts)


def as_text(doubts: Iterable[Doubt]) -> str | None:
    """What ``workflow.doubted`` has for the doubts of one workflow: kinds and new values, by kind."""
    pairs = sorted(((doubt.kind, doubt.new) for doubt in doubts), key=itemgetter(0))
    return chain.encode(pairs).decode() if pairs else None


def doubts_in(flow_id: str, text: str | None) -> list[Doubt]:
    """The doubts of a workflow, from its text."""
    return [Doubt(flow_id, kind, new) for kind, new in msgspec.json.decode(text)] if text else []


def described(text: str | None) -> str:
    """What is held of a workflow, in words."""
    if text is None:
        return "removed"
    return ", ".join(f"{ATTRIBUTE_OF[d.kind]} {msgspec.json.encode(d.new).decode()}" for d in doubts_in("", text))


def scope_of_all(held_sets: Iterable[HeldSet]) -> str:
    """The digest of several targets' held sets, which must be sorted by target."""
    return chain.digest([each.scope for each in held_sets])


def code(scope: str) -> str:
    """The part of a digest that a person is shown, and types to approve it."""
    return scope[:SHOWN_DIGITS]


def is_code(text: str) -> bool:
    """Whether ``text`` can be a code, or a longer part of its digest."""
    return _CODE.fullmatch(text) is not None


def fits(given: str, scope: str) -> bool:
    """Whether a code that a person gives is that of ``scope``."""
    return is_code(given) and scope.startswith(given)
