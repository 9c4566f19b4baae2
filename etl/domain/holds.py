"""The codes by which a person approves exactly the removals that were shown."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

import msgspec

from etl.domain import chain
from etl.domain.model import Target

SHOWN_DIGITS: Final = 12
"""Hex digits of a digest that are shown: two sets share them by chance once in 280 million million."""
FEWEST_DIGITS: Final = 8
_CODE: Final = re.compile(rf"[0-9a-f]{{{FEWEST_DIGITS},64}}")


class HeldSet(NamedTuple):
    """The held removals of one target; ``scope`` is the digest that goes into the trail when they are approved."""

    target: Target
    scope: str
    removals: int


class Approval(msgspec.Struct, frozen=True):
    """A person's approval of held removals: those of ``scopes``, or whatever is held if it is None."""

    by: str
    scopes: Mapping[Target, str] | None

    def covers(self, target: Target, scope: str) -> bool:
        """Whether the approval is for exactly this set of this target."""
        return self.scopes is None or self.scopes.get(target) == scope


def held_set(target: Target, since: dt.datetime | None, flow_ids: Iterable[str]) -> HeldSet:
    """The held set of a target whose hold began at ``since``: the same workflows in a later hold are another set."""
    held = set(flow_ids)
    return HeldSet(target, chain.approved_scope(target, since, held), len(held))


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
