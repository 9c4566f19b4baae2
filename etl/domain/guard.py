"""The guard: which part of an answer is believed, and which waits for a person. Pure.

A removal or a change that is large in number and in share is more often a mistake upstream than the truth, so it is
held: the workflows stay as they are until the answers no longer say so, or a person approves. Nothing approves itself.

``docs/guard.md`` has the rules as tables of cases; the numbers in the comments below are those of its rows.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Collection, Iterable, Mapping, Set
from fractions import Fraction
from typing import Final, Literal

import msgspec

from etl.domain.diff import Difference
from etl.domain.kinds import ATTRIBUTE_OF, ChangeKind
from etl.domain.model import Doubt, Flow, State

FEWEST_WITHOUT_KEY: Final = 5
"""From so many workflows on, a key that all of them have lost was forgotten, not left out because it is null."""
WAITING_FLOWS: Final = 50_000
"""Workflows of second answers that wait in memory: some 15 MB. What does not fit is held."""


class Limits(msgspec.Struct, frozen=True):
    """When removals and changes are doubted; the numbers of section ``[guard]`` of the settings."""

    min_removed: int = 10
    max_removed_share: float = 0.3
    max_emptied_targets: int = 5
    max_emptied_share: float = 0.2
    max_org_removed_share: float = 0.3
    min_changed: int = 10
    max_changed_share: float = 0.5
    window: dt.timedelta = dt.timedelta(hours=24)


class Decision(msgspec.Struct, frozen=True):
    """How much of an answer is believed.

    ``held`` are the workflows that stay although the answer lacks them, ``doubted`` the changes that are not believed.
    ``whole``: nothing of the answer is applied: it looks like another list, or has doubted changes. ``removes``: how
    many workflows would go, with nothing in the list itself against it. ``uncertain``: the target is asked a second
    time at the end of the run, and that answer counts. ``many``: the changes that are one reason for this.
    """

    held: Set[str] = frozenset()
    doubted: Set[Doubt] = frozenset()
    whole: bool = False
    removes: int = 0
    uncertain: bool = False
    many: Set[Doubt] = frozenset()
    reason: str = ""


# ------------------------------------------------------------------------------------------------ one target's answer


def weigh(difference: Difference, missing: Set[str], limits: Limits) -> Decision:
    """Decide about the removals of an answer; ``missing`` are those that are held already."""
    known, absent = difference.known, frozenset(difference.absent)
    if _over_limit(len(absent), known, limits):  # 4
        brought = len(difference.added)
        if not _over_limit(brought, known, limits):
            return hold(known, absent)
        reason = f"looks like another list: {_missing_of(absent, known)}, {brought} are new"
        return Decision(absent, whole=True, reason=reason)
    removes = len(absent - missing)
    decision = hold(known, absent & missing)
    return msgspec.structs.replace(decision, removes=removes, uncertain=removes > 0)  # 3, 5


def weigh_first(difference: Difference) -> Decision:
    """Decide about the first answer of a target: there is nothing to lose yet, but an empty list is uncertain."""
    return Decision(uncertain=not difference.added)  # 1, 2


def hold(known: int, absent: Set[str]) -> Decision:
    """Keep everything that is ``absent`` of a list of ``known`` workflows, whatever the limits say."""
    return Decision(absent, reason=_missing_of(absent, known) if absent else "")


def _missing_of(absent: Collection[str], known: int) -> str:
    return f"{len(absent)} of {known} workflows are missing"


def _over_limit(count: int, total: int, limits: Limits) -> bool:
    return 0 < count >= limits.min_removed and count >= share_of(limits.max_removed_share, total)


def weigh_changes(
    of_removals: Decision, difference: Difference, held: Set[Doubt], limits: Limits, second: Sums | None
) -> Decision:
    """Add what the changes of name, cycle and editability mean to a decision about the removals of the same answer.

    ``held``: the changes that are held already. ``second``: the sums of the organisation, by kind, where this is a
    second answer.
    """
    changes, both = _changes_by_kind(difference), difference.both
    many = {k for k, found in changes.items() if found and len(found) >= share_of(limits.max_changed_share, both)}
    lasting = {kind for kind, found in changes.items() if _any_lasts(found, held)}  # C6, C7
    over = {kind for kind in many if len(changes[kind]) >= limits.min_changed}  # C3
    together = {kind for kind in many if second and kind in second and second[kind].ruling == "hold"}  # C4, C5
    if lasting or (second is not None and (over or together)):
        doubted = [kind for kind in changes if kind in lasting | over | together]
        absent = frozenset(difference.absent)  # C8
        reasons = [_missing_of(absent, difference.known)] if absent else []
        reasons += [_changed_of(kind, changes[kind], both) for kind in doubted]
        reasons += [_together(second[kind]) for kind in together - over if second]
        return Decision(absent, _union(changes, doubted), whole=True, reason="; ".join(reasons))
    if second is None and many:
        return msgspec.structs.replace(of_removals, uncertain=True, many=_union(changes, many))  # C2
    return of_removals  # C1, C9


Sums = Mapping[ChangeKind, "Sum"]


def _changes_by_kind(difference: Difference) -> dict[ChangeKind, frozenset[Doubt]]:
    """The changes of the workflows that both lists have."""
    return {
        kind: frozenset(
            Doubt(after.flow_id, kind, new)
            for before, after in difference.altered
            if (new := getattr(after, attribute)) != getattr(before, attribute)
        )
        for kind, attribute in ATTRIBUTE_OF.items()
    }


def _union(changes: Mapping[ChangeKind, frozenset[Doubt]], kinds: Iterable[ChangeKind]) -> frozenset[Doubt]:
    return frozenset().union(*(changes[kind] for kind in kinds))


def _any_lasts(found: Iterable[Doubt], doubted: Iterable[Doubt]) -> bool:
    held = {doubt[:2] for doubt in doubted}
    return any(doubt[:2] in held for doubt in found)


def _changed_of(kind: ChangeKind, found: Collection[Doubt], both: int) -> str:
    name = {"renamed": "name", "cycle_changed": "cycle"}.get(kind, "editability")
    what = f"have lost their {name}" if all(doubt.new is None for doubt in found) else f"have another {name}"
    return f"{len(found)} of {both} workflows {what}"


def _together(changes: Sum) -> str:
    return f"of the organisation's {changes.total} workflows {changes.of_run} change like that in this run"


def keys_lost(known: Mapping[str, Flow], answered: Collection[Flow], absent: Set[str]) -> str | None:
    """What is wrong with an answer in which no workflow has the key of an attribute; None if that can be so.

    EnOS may leave out a null, so a few workflows may have lost their value. Many at once have lost the key.
    """
    for attribute in sorted(absent):
        had = sum(getattr(known[each.flow_id], attribute) is not None for each in answered if each.flow_id in known)
        if had >= FEWEST_WITHOUT_KEY:
            key = attribute.replace("flow_name", "flowName")
            return f"no workflow has the key {key}, and {had} of them had a value of it before"
    return None


# ------------------------------------------------------------------------------------------- many answers, together

Ruling = Literal["believe", "wait", "hold"]


class Sum(msgspec.Struct, frozen=True):
    """A sum over a run: the removals or the changes of an organisation, or the lists that emptied.

    ``limit`` or more, out of ``total``, is too much. ``before``: what others committed within the window. ``seen``:
    from the answers of this run that count. ``expected``: from first answers of targets that are to be asked again.
    """

    limit: int
    total: int
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


def changes_of_organisation(workflows: int, changed: int, limits: Limits) -> Sum:
    """The workflows of an organisation that change in one attribute, in lists that change for the most part."""
    return Sum(max(limits.min_changed, _at_least(limits.max_changed_share, workflows)), workflows, seen=changed)


def emptied_targets(targets: int, limits: Limits) -> Sum:
    """The targets of a run whose lists become empty."""
    return Sum(max(limits.max_emptied_targets, _at_least(limits.max_emptied_share, targets)), targets)


def ruling(removals: Sum, emptied: Sum | None) -> Ruling:
    """Whether a second answer that removes something is believed, held, or must wait: the stricter one of its
    organisation's sum and, for a list that empties, of the run's."""
    rulings = {removals.ruling, emptied.ruling if emptied else "believe"}
    return "hold" if "hold" in rulings else "wait" if "wait" in rulings else "believe"


def weigh_together(
    own: Decision, difference: Difference, limits: Limits, removals: Sum, emptied: Sum | None = None
) -> Decision:
    """Decide about a second answer of which ``own`` is the decision by itself, once it no longer waits.

    If too much is missing in several answers together, everything that it lacks is kept.
    """
    if not own.removes or ruling(removals, emptied) == "believe":  # 10, 12
        return own
    known, brought = difference.known, len(difference.added)
    whole = brought > 0 and brought >= share_of(limits.max_removed_share, known)  # 11
    reason = f"of the {removals.total} workflows in the organisation's lists {removals.of_run} go missing in this run"
    if emptied and removals.ruling == "believe":  # 13
        reason = f"{emptied.of_run} of the run's {emptied.total} targets have become empty"
    elif removals.before:
        reason += f", and {removals.before} were removed within the {_hours(limits.window)} before"
    reason = f"{_missing_of(difference.absent, known)}; {reason}"
    return Decision(frozenset(difference.absent), whole=whole, reason=reason)


def share_of(share: float, total: int) -> Fraction:
    """Exactly the share that the decimal number in the settings means: 0.07 of 100 is 7."""
    return Fraction(str(share)) * total


def _at_least(share: float, total: int) -> int:
    return math.ceil(share_of(share, total))


def _hours(window: dt.timedelta) -> str:
    hours, rest = divmod(window, dt.timedelta(hours=1))
    return f"{hours} h" if not rest else f"{window / dt.timedelta(minutes=1):.0f} min"


# ----------------------------------------------------------------------------------------------- a person's decision


def approve(difference: Difference, state: State, limits: Limits) -> Decision:
    """A person approved what is held: believe it, unless the answer does more of the same."""
    absent, changes = frozenset(difference.absent), _changes_by_kind(difference)
    of_hold = {doubt.kind for doubt in state.doubted}
    unheld = absent - state.missing
    new = _union(changes, of_hold) - state.doubted
    others = weigh_changes(Decision(), difference, frozenset(), limits, {}).doubted
    further = {doubt.kind for doubt in others} - of_hold
    if unheld:
        reason = f"{_some(unheld)} went missing after the hold"
    elif new:
        reason = f"{_some({doubt.flow_id for doubt in new})} changed after the hold"
    elif further:
        reason = "more changes at once than were held"
    else:
        return Decision()  # C10, C12
    return Decision(absent, _union(changes, of_hold | further), whole=True, reason=f"not approved: {reason}")  # C11


def refuse_approval(difference: Difference, held: Set[Doubt], code: str) -> Decision:
    """A person approved another set than is held now: apply nothing of the answer while anything of it is held."""
    absent, changes = frozenset(difference.absent), _changes_by_kind(difference)
    doubted = _union(changes, {doubt.kind for doubt in held})
    reason = f"not approved: another set is held now, with the code {code}"
    return Decision(absent, doubted, whole=True, reason=reason) if absent or doubted else Decision()


def _some(flow_ids: Collection[str], most: int = 3) -> str:
    named = ", ".join(sorted(flow_ids)[:most])
    return named if len(flow_ids) <= most else f"{named} and {len(flow_ids) - most} more"
