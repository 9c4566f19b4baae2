"""The codes by which a person approves exactly the removals that were shown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

import msgspec

from etl.domain import chain
from etl.domain.model import Target

SHOWN_DIGITS: Final = 12
"""As many hex digits of a digest are shown: two sets that a person meets share them once in 280 million million."""
FEWEST_DIGITS: Final = 8
_CODE: Final = re.compile(rf"[0-9a-f]{{{FEWEST_DIGITS},64}}")


class HeldSet(NamedTuple):
    """What is held of one target; ``scope`` is the digest that goes into the trail when it is approved."""

    target: Target
    scope: str
    removals: int


class Approval(msgspec.Struct, frozen=True):
    """A person says that held removals are true: those of ``scopes``, or whatever is held where it is None."""

    by: str
    scopes: Mapping[Target, str] | None

    def covers(self, target: Target, scope: str) -> bool:
        """Whether this person approved just this set of this target."""
        return self.scopes is None or self.scopes.get(target) == scope


def held_set(target: Target, flow_ids: Iterable[str]) -> HeldSet:
    """The held set of a target."""
    held = set(flow_ids)
    return HeldSet(target, chain.approved_scope(target, held), len(held))


def scope_of_all(held_sets: Iterable[HeldSet]) -> str:
    """The digest of several targets' held sets, which must come by target."""
    return chain.digest([each.scope for each in held_sets])


def code(scope: str) -> str:
    """What a person is shown of a digest, and gives back."""
    return scope[:SHOWN_DIGITS]


def is_code(text: str) -> bool:
    """Whether ``text`` may be a code, or more of its digest."""
    return _CODE.fullmatch(text) is not None


def fits(given: str, scope: str) -> bool:
    """Whether a code that a person gives is that of ``scope``."""
    return is_code(given) and scope.startswith(given)
