"""Turns answers that differ into outcomes: first answers one by one, second answers together at the run's end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from etl.domain import guard, verdict
from etl.domain.approvals import Approval, code, held_set
from etl.domain.diff import Difference, by_id, compare
from etl.domain.guard import WAITING_FLOWS, Decision, Limits, Sum
from etl.domain.kinds import ChangeKind
from etl.domain.model import Doubt, Fence, Outcome, Snapshot, State, Target
from etl.errors import Malformed
from etl.store import Removals
from etl.sync.removals import BatchRemovals, Deferred, PendingAnswer, SecondAnswers
from etl.sync.result import RunOptions


class AssessedAnswer(NamedTuple):
    """An answer, and the guard's decision about it alone."""

    fence: Fence
    state: State
    snapshot: Snapshot
    difference: Difference
    decision: Decision

    @property
    def missing(self) -> int:
        """How many workflows it newly lacks, as far as they count in the sums of its organisation and its run."""
        if self.fence.target.is_directory:
            return 0
        return self.decision.removes + len(self.decision.held - self.state.missing)

    @property
    def emptied(self) -> bool:
        """Whether a user loses all workflows."""
        return self.missing > 0 and not self.snapshot.flows

    @property
    def org_id(self) -> str:
        return self.fence.target.org_id


class Decider:
    """Decides on the answers of a batch: first ones, or second ones if the options say so."""

    def __init__(self, options: RunOptions, limits: Limits) -> None:
        self._missing: Counter[str] = Counter()
        self._emptied = 0
        self._changing: dict[tuple[str, ChangeKind], set[str]] = {}
        self._deferred: list[Deferred] = []
        self._undecided: list[PendingAnswer] = []
        self._options = options
        self._limits = limits
        self._sums = None if options.second is None else options.second.copy()
        self._removing: dict[int, AssessedAnswer] = {}
        """Answers whose removals are believed but not written yet: other runs may still remove too much before that."""
        self._waiting_flows = 0

    @property
    def removals(self) -> Removals:
        """The sums that a transaction that removes something is checked against."""
        return Removals(self._limits.window, {} if self._sums is None else self._sums.orgs)

    def found(self) -> BatchRemovals:
        """What was found missing so far."""
        return BatchRemovals(self._missing, self._emptied, self._deferred, self._undecided, self._changing)

    def answered(self, targets: Iterable[Target]) -> None:
        """Note that these targets were asked, with whatever result."""
        if self._sums is not None:
            for target in targets:
                self._sums.answered(target)

    def outcomes(self, differing: Sequence[tuple[Fence, State, Snapshot]]) -> Iterator[Outcome]:
        """The outcomes of answers that differ; none for those that are deferred or pending.

        An answer that has lost its keys is malformed, which only its state can tell.
        """
        assessed = []
        for fence, state, snapshot in differing:
            lost = guard.keys_lost(state.flows, snapshot.flows or (), snapshot.absent)
            difference = compare(state.flows, by_id(snapshot.flows or ()))
            decision = self._decide(fence, state, difference)
            if lost and snapshot.sole_answer:
                message = f"the answer is not what Get My Flow promises: {lost}"
                yield verdict.failed(fence, Malformed(message, code="malformed", attempts=snapshot.attempts))
            else:
                many = frozenset[Doubt]() if lost else decision.many  # K1: a key that is lost changes nothing
                decision = msgspec.structs.replace(decision, many=many)
                assessed.append(AssessedAnswer(fence, state, snapshot, difference, decision))
        if self._sums is None:
            yield from self._first_outcomes(assessed)
        else:
            yield from self._second_outcomes(assessed, self._sums)

    def decide(self, waiting: Sequence[tuple[State, PendingAnswer]]) -> Iterator[Outcome]:
        """The outcomes of pending answers that can be decided now."""
        assert self._sums is not None  # noqa: S101 - only second answers wait
        for state, (fence, snapshot) in waiting:
            difference = compare(state.flows, by_id(snapshot.flows or ()))
            each = AssessedAnswer(fence, state, snapshot, difference, self._decide(fence, state, difference))
            yield self._weighed(each, *self._sums.against(each.fence.target, each.emptied))

    def held_instead(self, outcomes: Iterable[Outcome], sums: Mapping[str, Sum]) -> list[Outcome]:
        """The outcomes with the removals in these organisations held, because other runs have removed too much
        meanwhile."""
        return [
            self._weighed(each, sums[each.org_id])
            if (each := self._removing.get(outcome.fence.target_id)) and each.org_id in sums
            else outcome
            for outcome in outcomes
        ]

    def written(self, outcomes: Iterable[Outcome]) -> None:
        """Forget outcomes that have been written."""
        for outcome in outcomes:
            self._removing.pop(outcome.fence.target_id, None)

    # ------------------------------------------------------------------------------------------------------ answers

    def _decide(self, fence: Fence, state: State, difference: Difference) -> Decision:
        if fence.version == 0:
            return guard.weigh_first(difference)
        if self._options.approval is not None:
            return _approve(self._options.approval, fence, state, difference, self._limits)
        of_removals = guard.weigh(difference, state.missing, self._limits)
        second = None
        if self._options.second is not None:
            second = {} if fence.target.is_directory else self._options.second.changes.get(fence.target.org_id, {})
        return guard.weigh_changes(of_removals, difference, state.doubted, self._limits, second)

    def _first_outcomes(self, assessed: Iterable[AssessedAnswer]) -> Iterator[Outcome]:
        for each in assessed:
            if each.decision.uncertain or not each.snapshot.sole_answer:
                self._deferred.append(Deferred(each.fence.target, each.missing, each.emptied))
                for doubt in () if each.fence.target.is_directory else each.decision.many:
                    self._changing.setdefault((each.org_id, doubt.kind), set()).add(doubt.flow_id)
            else:
                self._count(each)
                yield self._outcome(each, each.decision)

    def _second_outcomes(self, assessed: Sequence[AssessedAnswer], sums: SecondAnswers) -> Iterator[Outcome]:
        """Count all of them before deciding on the first."""
        for each in assessed:
            self._count(each)
            sums.saw(each.fence.target, each.missing, each.emptied)
        for each in assessed:
            against, pending = sums.against(each.fence.target, each.emptied), PendingAnswer(each.fence, each.snapshot)
            if each.decision.removes and guard.ruling(*against) == "wait" and self._has_room(pending):
                self._undecided.append(pending)
            else:
                yield self._weighed(each, *against)

    def _count(self, assessed: AssessedAnswer) -> None:
        self._missing[assessed.org_id] += assessed.missing
        self._emptied += assessed.emptied

    def _has_room(self, pending: PendingAnswer) -> bool:
        self._waiting_flows += pending.flows
        return self._waiting_flows <= WAITING_FLOWS

    # ----------------------------------------------------------------------------------------------------- outcomes

    def _weighed(self, assessed: AssessedAnswer, removals: Sum, emptied: Sum | None = None) -> Outcome:
        decision = guard.weigh_together(assessed.decision, assessed.difference, self._limits, removals, emptied)
        if decision.removes and not assessed.fence.target.is_directory:
            self._removing[assessed.fence.target_id] = assessed
        return self._outcome(assessed, decision)

    def _outcome(self, assessed: AssessedAnswer, decision: Decision) -> Outcome:
        fence, state, snapshot, difference, _ = assessed
        gap, approval = fence.coverage_gap, self._options.approval
        return verdict.decided(fence, state, snapshot, decision, gap, approval, difference)


def _approve(approval: Approval, fence: Fence, state: State, difference: Difference, limits: Limits) -> Decision:
    held = held_set(fence.target, fence.held_since, state.missing, state.doubted)
    if approval.covers(fence.target, held.scope):
        return guard.approve(difference, state, limits)
    return guard.refuse_approval(difference, state.doubted, code(held.scope))
