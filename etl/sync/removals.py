"""What a run removes and changes, decided together at its end, in memory that does not grow with the targets.

1. First answers: an answer is uncertain if it removes something, or if it is an empty first list. Only how much it
   would remove is kept: four bytes per target, and two numbers per organisation.
2. Second answers: those targets are asked again, in batches. An answer that removes something is believed or held as
   soon as the sums decide it, whatever the remaining targets may answer (``ruling`` in ``etl.domain.guard``).
3. If it depends on them, the answer waits in memory (``PendingAnswer``), up to ``WAITING_FLOWS`` workflows in all;
   beyond that, removals are held.

Changes are summed from first answers alone: which workflows change in an attribute, in lists that change for the most
part. So no second answer waits for others.
"""

from __future__ import annotations

import sys
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from itertools import islice
from typing import Final, NamedTuple

import msgspec

from etl.domain import guard
from etl.domain.guard import WAITING_FLOWS, Limits, Sum
from etl.domain.kinds import ChangeKind
from etl.domain.model import Fence, Snapshot, Target

NO_LIMIT: Final = Sum(sys.maxsize, 0)
_FLOWS_AN_ANSWER: Final = 10
"""The overhead of an answer that waits, in workflows."""


class Deferred(NamedTuple):
    """A target to ask again, and what its first answer would have removed."""

    target: Target
    removes: int
    emptied: bool
    """Whether that is all it has."""


class SecondAnswers(msgspec.Struct, kw_only=True):
    """What a batch of second answers knows about its run; the batch updates its own copy with each answer."""

    first: Mapping[Target, Deferred]
    """The targets of the batch; ``orgs`` and ``emptied`` include their first answers until they are asked."""
    orgs: dict[str, Sum]
    emptied: Sum
    changes: Mapping[str, Mapping[ChangeKind, Sum]] = {}
    """By organisation and kind, the workflows that change in first answers."""

    def copy(self) -> SecondAnswers:
        return msgspec.structs.replace(self, orgs=dict(self.orgs))

    def answered(self, target: Target) -> None:
        """Drop the first answer of a target that was asked again."""
        first = self.first[target]
        self.emptied = self.emptied.plus(expected=-int(first.emptied))
        self.orgs[target.org_id] = self.orgs[target.org_id].plus(expected=-first.removes)

    def saw(self, target: Target, missing: int, emptied: bool) -> None:
        """Count the workflows that a second answer newly lacks."""
        self.emptied = self.emptied.plus(seen=int(emptied))
        self.orgs[target.org_id] = self.orgs[target.org_id].plus(seen=missing)

    def against(self, target: Target, emptied: bool) -> tuple[Sum, Sum | None]:
        """The sums against which a second answer counts: its organisation's, and the run's if its list empties. A
        directory counts in none, and is only judged by itself."""
        return NO_LIMIT if target.is_directory else self.orgs[target.org_id], self.emptied if emptied else None


class PendingAnswer(NamedTuple):
    """A second answer that removes something and cannot be decided before others have come."""

    fence: Fence
    snapshot: Snapshot

    @property
    def emptied(self) -> bool:
        return not self.snapshot.flows

    @property
    def flows(self) -> int:
        return len(self.snapshot.flows or ()) + _FLOWS_AN_ANSWER


class BatchRemovals(NamedTuple):
    """What a batch found missing."""

    missing: Mapping[str, int] = {}
    """How many workflows its answers newly lack, by organisation; deferred answers are not counted."""
    emptied: int = 0
    """How many targets lose all they have, counted the same way."""
    deferred: Sequence[Deferred] = ()
    undecided: Sequence[PendingAnswer] = ()
    changing: Mapping[tuple[str, ChangeKind], Set[str]] = {}
    """By organisation and kind, the workflows that change in deferred answers of which most change like that."""

    @property
    def unsettled(self) -> int:
        return len(self.deferred) + len(self.undecided)


class RunRemovals:
    """What a whole run knows of its removals."""

    def __init__(
        self,
        targets: Sequence[Target],
        limits: Limits,
        removal_sums: Callable[[Collection[str]], Mapping[str, Sum]],
        workflows: Callable[[str], int] = lambda org_id: 0,
    ) -> None:
        """``removal_sums`` returns what was removed in organisations before the run, ``workflows`` how many there are
        in one."""
        self._targets = targets
        self._limits = limits
        self._removal_sums = removal_sums
        self._workflows = workflows
        self._changing: dict[tuple[str, ChangeKind], set[str]] = {}
        self._changing_ids = 0
        self._first = array("I", bytes(4 * len(targets)))
        """For each target, 0 or its ``Deferred``, packed."""
        self._before: dict[str, Sum] = {}
        self._seen: Counter[str] = Counter()
        self._expected: Counter[str] = Counter()
        self._emptied = guard.emptied_targets(len(targets), limits)
        self._undecided: list[PendingAnswer] = []
        self._to_ask = 0

    @property
    def unsettled(self) -> int:
        """Targets without a verdict: those to be asked again, and those whose second answer waits."""
        return self._to_ask + len(self._undecided)

    def add_first(self, numbered: Iterable[tuple[int, Target]], found: BatchRemovals) -> None:
        """Add the result of a first batch, whose targets come with their numbers in the run."""
        deferred = {each.target: each for each in found.deferred}
        for number, target in numbered:
            if (each := deferred.get(target)) is not None:
                self._first[number] = 1 + (each.removes << 1 | each.emptied)
        self._expect(deferred.values(), 1)
        self._count(found)
        for key, flow_ids in found.changing.items():
            known = self._changing.setdefault(key, set())
            new = flow_ids - known if self._changing_ids < WAITING_FLOWS else set()
            known |= new
            self._changing_ids += len(new)

    def batches(self, size: int) -> Iterator[tuple[list[Target], SecondAnswers]]:
        """The targets to ask again, in batches, each with the sums at the moment when it is taken."""
        waiting = (number for number, packed in enumerate(self._first) if packed)
        while numbers := list(islice(waiting, size)):
            first = {each.target: each for each in map(self._unpacked, numbers)}
            yield list(first), self._second_answers(first, {target.org_id for target in first})

    def add_second(self, second_answers: SecondAnswers, found: BatchRemovals) -> None:
        """Add the result of a second batch; the first answers of its targets no longer count."""
        self._expect(second_answers.first.values(), -1)
        self._count(found)
        self._undecided += found.undecided

    def take_decided(self) -> tuple[list[PendingAnswer], SecondAnswers]:
        """The pending answers that can be decided now, and the sums; all pending answers if there are too many."""
        second_answers = self._second_answers({}, {each.fence.target.org_id for each in self._undecided})
        decided: list[PendingAnswer] = []
        waiting: list[PendingAnswer] = []
        for each in self._undecided:
            ruling = guard.ruling(*second_answers.against(each.fence.target, each.emptied))
            (waiting if ruling == "wait" else decided).append(each)
        if sum(each.flows for each in waiting) > WAITING_FLOWS:
            decided, waiting = self._undecided, []
        self._undecided = waiting
        return decided, second_answers

    def _expect(self, deferred: Collection[Deferred], sign: int) -> None:
        self._to_ask += sign * len(deferred)
        self._emptied = self._emptied.plus(expected=sign * sum(each.emptied for each in deferred))
        for each in deferred:
            self._expected[each.target.org_id] += sign * each.removes

    def _count(self, found: BatchRemovals) -> None:
        self._seen.update(found.missing)
        self._emptied = self._emptied.plus(seen=found.emptied)

    def _second_answers(self, first: Mapping[Target, Deferred], org_ids: Set[str]) -> SecondAnswers:
        if unknown := org_ids - self._before.keys():
            self._before.update(self._removal_sums(unknown))
        orgs = {org: self._before[org].plus(self._seen[org], self._expected[org]) for org in org_ids}
        changes = {org: self._changes(org) for org in org_ids}
        return SecondAnswers(first=first, orgs=orgs, emptied=self._emptied, changes=changes)

    def _changes(self, org_id: str) -> dict[ChangeKind, Sum]:
        """The sums that can matter. Beyond what memory holds, each reaches its limit."""
        full = self._changing_ids >= WAITING_FLOWS
        counted = {k: len(flow_ids) for (org, k), flow_ids in self._changing.items() if org == org_id}
        large = {kind: count for kind, count in counted.items() if full or count >= self._limits.min_changed}
        workflows = self._workflows(org_id) if large else 0
        if full:
            large = {kind: max(count, workflows, self._limits.min_changed) for kind, count in large.items()}
        return {k: guard.changes_of_organisation(workflows, count, self._limits) for k, count in large.items()}

    def _unpacked(self, number: int) -> Deferred:
        packed = self._first[number] - 1
        return Deferred(self._targets[number], packed >> 1, bool(packed & 1))
