"""The removal guard: which part of an answer is believed, and which waits for a person. Pure.

A removal that is large in number and in share is more often a mistake upstream than the truth, so it is held: the
workflows stay, marked as missing, until they come back or a person approves their removal. Nothing approves itself.

``docs/guard.md`` has the rules as tables of cases; the numbers in the comments below are those of its rows.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Collection, Iterable, Mapping, Set
from fractions import Fraction
from typing import Final, Literal

import msgspec

from etl.domain.model import Flow

FEWEST_WITHOUT_KEY: Final = 5
"""From so many workflows on, a key that all of them have lost was forgotten, not left out because it is null."""


class Limits(msgspec.Struct, frozen=True):
    """When a removal is doubted; the numbers of section ``[guard]`` of the settings."""

    min_removed: int = 10
    max_removed_share: float = 0.3
    max_emptied_targets: int = 5
    max_emptied_share: float = 0.2
    max_org_removed_share: float = 0.3
    window: dt.timedelta = dt.timedelta(hours=24)


class Decision(msgspec.Struct, frozen=True):
    """How much of an answer is believed.

    ``held`` are the workflows that stay although the answer lacks them. ``whole``: the answer looks like another
    list, and nothing of it is applied. ``removes``: how many workflows would go, with nothing in the list itself
    against it. ``uncertain``: the target is asked a second time at the end of the run, and that answer counts.
    """

    held: Set[str] = frozenset()
    whole: bool = False
    removes: int = 0
    uncertain: bool = False
    reason: str = ""


# ------------------------------------------------------------------------------------------------ one target's answer


def weigh(known: Set[str], missing: Set[str], answered: Set[str], limits: Limits) -> Decision:
    """Decide about the flow_ids ``known`` so far, those of them ``missing`` (held) already, and those ``answered``."""
    absent = known - answered
    if _over_limit(len(absent), len(known), limits):
        return _hold_by_target(known, absent, len(answered - known), limits)  # 4
    removes = len(absent - missing)
    decision = hold(known, absent & missing)
    return msgspec.structs.replace(decision, removes=removes, uncertain=removes > 0)  # 3, 5


def weigh_first(answered: Set[str]) -> Decision:
    """Decide about the first answer of a target: there is nothing to lose yet, but an empty list is uncertain."""
    return Decision(uncertain=not answered)  # 1, 2


def hold(known: Set[str], absent: Set[str]) -> Decision:
    """Keep everything that is ``absent``, whatever the limits say."""
    return Decision(absent, reason=_missing_of(absent, known) if absent else "")


def _hold_by_target(known: Set[str], absent: Set[str], brought: int, limits: Limits) -> Decision:
    if not _over_limit(brought, len(known), limits):
        return hold(known, absent)
    reason = f"looks like another list: {_missing_of(absent, known)}, {brought} are new"
    return Decision(absent, whole=True, reason=reason)


def _missing_of(absent: Set[str], known: Set[str]) -> str:
    return f"{len(absent)} of {len(known)} workflows are missing"


def _over_limit(count: int, total: int, limits: Limits) -> bool:
    return 0 < count >= limits.min_removed and count >= share_of(limits.max_removed_share, total)


def keys_lost(known: Mapping[str, Flow], answered: Iterable[Flow], absent: Set[str]) -> str | None:
    """What is wrong with an answer in which no workflow has the key of an attribute; None if that can be so.

    EnOS may leave out a null, so a few workflows may have lost their value. Many at once have lost the key.
    """
    before = [known[flow.flow_id] for flow in answered if flow.flow_id in known]
    for attribute in sorted(absent):
        had = sum(getattr(flow, attribute) is not None for flow in before)
        if had >= FEWEST_WITHOUT_KEY:
            key = attribute.replace("flow_name", "flowName")
            return f"no workflow has the key {key}, and {had} of them had a value of it before"
    return None


# ------------------------------------------------------------------------------------------- many answers, together

Ruling = Literal["believe", "wait", "hold"]


class Sum(msgspec.Struct, frozen=True):
    """A sum over a run: the removals of an organisation, or the lists that emptied.

    ``limit`` or more, out of ``whole``, is too much. ``before``: what others committed within the window. ``seen``:
    from the answers of this run that count. ``expected``: from first answers of targets that are to be asked again.
    """

    limit: int
    whole: int
    before: int = 0
    seen: int = 0
    expected: int = 0

    def plus(self, seen: int = 0, expected: int = 0) -> Sum:
        return msgspec.structs.replace(self, seen=self.seen + seen, expected=self.expected + expected)

    @property
    def of_run(self) -> int:
        """The part of this run, as far as it is known."""
        return self.seen + self.expected

    @property
    def ruling(self) -> Ruling:
        """Whether the removals in this sum are believed, held, or wait for further answers."""
        if self.before + self.seen >= self.limit:
            return "hold"
        return "wait" if self.before + self.of_run >= self.limit else "believe"


def removals_of_organisation(had: int, before: int, limits: Limits) -> Sum:
    """The removals of an organisation whose lists ``had`` this many workflows at the window's start."""
    return Sum(max(limits.min_removed, _at_least(limits.max_org_removed_share, had)), had, before)


def emptied_targets(targets: int, limits: Limits) -> Sum:
    """The targets of a run whose lists become empty."""
    return Sum(max(limits.max_emptied_targets, _at_least(limits.max_emptied_share, targets)), targets)


def hold_with_others(known: Set[str], answered: Set[str], limits: Limits, reason: str) -> Decision:
    """Keep everything that an answer lacks, because too much is missing in several answers together."""
    absent = known - answered
    brought = len(answered - known)
    whole = brought > 0 and brought >= share_of(limits.max_removed_share, len(known))
    return Decision(absent, whole=whole, reason=f"{_missing_of(absent, known)}; {reason}")


def reason_of_organisation(removals: Sum, window: dt.timedelta) -> str:
    """Why removals of an organisation are held."""
    lists = f"of the {removals.whole} workflows in the organisation's lists {removals.of_run} go missing in this run"
    if not removals.before:
        return lists
    return f"{lists}, and {removals.before} were removed within the {_hours(window)} before"


def reason_of_emptied(emptied: Sum) -> str:
    """Why lists that emptied are held."""
    return f"{emptied.of_run} of the run's {emptied.whole} targets have become empty"


def share_of(share: float, total: int) -> Fraction:
    """Exactly the share that the decimal number in the settings means: 0.07 of 100 is 7."""
    return Fraction(str(share)) * total


def _at_least(share: float, total: int) -> int:
    return math.ceil(share_of(share, total))


def _hours(window: dt.timedelta) -> str:
    hours, rest = divmod(window, dt.timedelta(hours=1))
    return f"{hours} h" if not rest else f"{window / dt.timedelta(minutes=1):.0f} min"


# ----------------------------------------------------------------------------------------------- a person's decision


def approve(known: Set[str], missing: Set[str], answered: Set[str]) -> Decision:
    """A person approved the held removals: believe them, unless something else is missing too."""
    absent = known - answered
    unheld = absent - missing
    if not unheld:
        return Decision()
    return Decision(absent, whole=True, reason=f"not approved: {_some(unheld)} went missing after the hold")


def refuse_approval(known: Set[str], answered: Set[str], code: str) -> Decision:
    """A person approved another set than is held now: apply nothing of the answer while anything is missing."""
    absent = known - answered
    reason = f"not approved: another set is held now, with the code {code}"
    return Decision(absent, whole=True, reason=reason) if absent else Decision()


def _some(flow_ids: Collection[str], most: int = 3) -> str:
    named = ", ".join(sorted(flow_ids)[:most])
    return named if len(flow_ids) <= most else f"{named} and {len(flow_ids) - most} more"
