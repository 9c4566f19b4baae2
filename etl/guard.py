"""The removal guard: what of an answer is believed, and what waits for a person. Pure.

A removal that is large in number and in share is more often a mistake upstream than the truth, so it is held: the
workflows stay, marked as missing, until they come back or a person approves their removal. Nothing approves itself.
"""

from __future__ import annotations

from collections.abc import Collection, Set
from fractions import Fraction

import msgspec


class Limits(msgspec.Struct, frozen=True):
    """When a removal is doubted; the numbers of section ``[guard]`` of the settings."""

    min_removed: int = 10
    max_removed_share: float = 0.3
    max_emptied_targets: int = 5
    max_emptied_share: float = 0.2


class Decision(msgspec.Struct, frozen=True):
    """What of an answer is believed.

    ``held`` are the workflows that stay although the answer lacks them. ``whole``: the answer looks like another
    list, and nothing of it is applied. ``ask_again``: the target would lose everything it has, and nothing else
    doubts it; or it was never observed, and its first list is empty. ``emptied``: it is one of those whose small list
    became empty, which are decided together at the end of the run.
    """

    held: Set[str] = frozenset()
    whole: bool = False
    ask_again: bool = False
    emptied: bool = False
    reason: str = ""


def weigh(known: Set[str], missing: Set[str], answered: Set[str], limits: Limits) -> Decision:
    """Decide about the flow_ids ``known`` so far, those of them ``missing`` (held) already, and those ``answered``."""
    absent = known - answered
    if not _over_limit(len(absent), len(known), limits):
        return _believe(known, missing, absent, emptied=not answered)
    brought = len(answered - known)
    if _over_limit(brought, len(known), limits):
        reason = f"looks like another list: {len(absent)} of {len(known)} workflows are missing, {brought} are new"
        return Decision(absent, whole=True, reason=reason)
    return hold(known, absent)


def weigh_first(answered: Set[str]) -> Decision:
    """Decide about the first answer of a target: there is nothing to lose yet, but an empty list is asked again."""
    return Decision(ask_again=not answered)


def hold(known: Set[str], absent: Set[str]) -> Decision:
    """Keep everything that is ``absent``, whatever the limits say."""
    return Decision(absent, reason=f"{len(absent)} of {len(known)} workflows are missing" if absent else "")


def approve(known: Set[str], missing: Set[str], answered: Set[str]) -> Decision:
    """A person said that the held removals are true: believe them, unless something else is missing too."""
    absent = known - answered
    unheld = absent - missing
    if not unheld:
        return Decision()
    return Decision(absent, whole=True, reason=f"not approved: {_some(unheld)} went missing after the hold")


def refuse_approval(known: Set[str], answered: Set[str], code: str) -> Decision:
    """What a person approved is not what is held now: nothing of the answer is applied while anything is missing."""
    absent = known - answered
    reason = f"not approved: another set is held by now, with the code {code}"
    return Decision(absent, whole=True, reason=reason) if absent else Decision()


def too_many_emptied(emptied: int, targets: int, limits: Limits) -> bool:
    """Whether so many of a run's targets became empty that none of them is believed."""
    return emptied >= limits.max_emptied_targets and emptied >= share_of(limits.max_emptied_share, targets)


def share_of(share: float, total: int) -> Fraction:
    """Exactly the part of ``total`` that the decimal number in the settings means: 0.07 of 100 is 7."""
    return Fraction(str(share)) * total


def _believe(known: Set[str], missing: Set[str], absent: Set[str], emptied: bool) -> Decision:
    everything = len(absent) == len(known) and bool(absent - missing)
    decision = hold(known, absent & missing)
    return msgspec.structs.replace(decision, ask_again=everything, emptied=everything and emptied)


def _over_limit(count: int, total: int, limits: Limits) -> bool:
    return 0 < count >= limits.min_removed and count >= share_of(limits.max_removed_share, total)


def _some(flow_ids: Collection[str], most: int = 3) -> str:
    named = ", ".join(sorted(flow_ids)[:most])
    return named if len(flow_ids) <= most else f"{named} and {len(flow_ids) - most} more"
