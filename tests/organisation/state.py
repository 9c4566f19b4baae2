"""What is known of one organisation, as the database would hold it. Answers come in; a step judges what they
changed."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping, Set
from typing import Any

from etl.domain.organisation.rules import judge
from etl.domain.organisation.values import (
    AT_ONCE,
    Answer,
    Judgement,
    KnownWorkflow,
    Listed,
    ListEntry,
    ListingChange,
    Loss,
    StepContext,
    User,
    Workflow,
)

Flows = Mapping[str, Listed]
Judge = Callable[[StepContext, Workflow], Judgement]


class KnownState:
    """Times may be of any type that can be compared and added."""

    def __init__(self, gaps: Mapping[str, Any], judge: Judge = judge, *, always: bool = False) -> None:
        """``always``: every step judges what is open, whether it is due or not."""
        self.gaps = gaps
        self._judges_always = always
        self._judge = judge
        self.context = StepContext({}, 0)
        self.known: dict[str, Flows] = {}
        """By user, the list of their target, with what is held."""
        self.latest: dict[str, Answer] = {}
        self.counts_since: dict[str, Any] = {}
        self.retired: dict[str, Any] = {}
        self.ended_stays: list[Any] = []
        """When the users who have come back had retired."""
        self.held: set[tuple[str, str]] = set()
        """(user, workflow) whose removal is held."""
        self.known_workflows: dict[str, KnownWorkflow] = {}
        self.listings: dict[str, Mapping[str, ListEntry]] = defaultdict(dict)
        self.waiting: dict[str, Mapping[str, Loss]] = defaultdict(dict)
        self.open: dict[str, Judgement] = {}
        """By workflow that must be judged again when it is due, the last judgement."""
        self._listed_by_leaving: set[str] = set()
        self._whole: dict[str, Answer] = {}
        """By user, their last answer in which nothing was held."""
        self._changed: dict[tuple[str, str], Answer] = {}
        """By user and workflow, the last answer that changed it in their list."""
        self._first_seen: dict[tuple[str, str], Any] = {}
        """By user and workflow, the arrival of the first answer of an unbroken listing."""
        self._counted_since: dict[str, Any] = {}
        """By user who is away, since when they counted."""
        self._returning: dict[str, list[tuple[Answer, Flows, bool]]] = {}
        """By user who was configured again since the last step: answers, lists, and whether something was held."""
        self._last_step: Any = None
        self._pending: dict[str, list[ListingChange]] = defaultdict(list)

    def answered(self, user: str, flows: Flows, answer: Answer, held: Set[str] = frozenset()) -> None:
        """Accept an answer; the workflows whose removal is ``held`` stay listed."""
        known = self.known.get(user, {})
        flows = {**flows, **{flow_id: known[flow_id] for flow_id in held}}
        if user in self.counts_since:
            self._note(user, known, flows, answer, self.latest[user], was_held=self.latest[user] != self._whole[user])
        elif user in self.retired:
            self._returning.setdefault(user, [(self.latest[user], known, False)]).append((answer, flows, bool(held)))
        else:
            self.counts_since[user] = answer.arrived_at
            self._note(user, known, flows, answer, None)
        self._believe(user, flows, answer, held)

    def retire(self, user: str, at: Any) -> None:
        self._listed_by_leaving |= self.known.get(user, {}).keys()
        if self._returning.pop(user, None):
            self._show_as_known(user)
        if user in self.counts_since:
            self._counted_since[user] = self.counts_since.pop(user)
            self.retired[user] = at
        elif user in self.retired:
            self.retired[user] = at

    def step(self, decided_at: Any, began: Any = None) -> list[Judgement]:
        """The end of a run that ``began`` then (None: at the last step). Users who answered since count as heard."""
        for user in sorted(self._returning):
            self._settle(user)
        self.context = self._context(decided_at, self._last_step if began is None else began)
        flow_ids = sorted(self._pending.keys() | set(filter(self._is_due, self.open)))
        judgements = [self._judge(self.context, self._workflow(flow_id)) for flow_id in flow_ids]
        for judgement in judgements:
            self._keep(judgement)
        self._pending.clear()
        self._listed_by_leaving.clear()
        self._last_step = decided_at
        return judgements

    def _is_due(self, flow_id: str) -> bool:
        due_at = self.open[flow_id].due_at
        is_due = due_at == AT_ONCE or due_at <= self.context.decided_at
        return is_due or self._judges_always or flow_id in self._listed_by_leaving

    def _believe(self, user: str, flows: Flows, answer: Answer, held: Set[str]) -> None:
        known = self.known.get(user, {})
        for flow_id in known.keys() | flows.keys():
            if flow_id not in known:
                self._first_seen[user, flow_id] = answer.arrived_at
            if known.get(flow_id) != flows.get(flow_id):
                self._changed[user, flow_id] = answer
        self.held = {key for key in self.held if key[0] != user} | {(user, flow_id) for flow_id in held}
        if not held:
            self._whole[user] = answer
        self.latest[user] = answer
        self.known[user] = flows

    def _settle(self, user: str) -> None:
        """A returning user counts again from their first answer; if that repeats the list from before they retired,
        from the last answer that does; if something was held, from their latest answer."""
        before, *answers = self._returning[user]
        if any(key[0] == user for key in self.held):
            return
        stayed = before[1]
        first = next((n for n, (_, flows, _) in enumerate(answers) if flows != stayed), len(answers))
        if any(is_held for _, _, is_held in answers):
            first = len(answers) - 1
        elif first > 0:
            first -= 1
        del self._returning[user]
        self.ended_stays.append(self.retired.pop(user))
        answer, flows, _ = answers[first]
        self.counts_since[user] = answer.arrived_at
        self._note(user, stayed, flows, answer, None)
        for (previous, known, _), (answer, flows, _) in itertools.pairwise(answers[first:]):
            self._note(user, known, flows, answer, previous)

    def _show_as_known(self, user: str) -> None:
        """The user came back and left again before a step: their latest list is what they showed."""
        for flow_id in self.listings.keys() | self.known[user].keys():
            others = {each: listing for each, listing in self.listings[flow_id].items() if each != user}
            listed = self.known[user].get(flow_id)
            if listed is not None:
                since = max(self._first_seen[user, flow_id], self._counted_since[user])
                others[user] = ListEntry(since, listed)
            self.listings[flow_id] = others

    def _note(
        self,
        user: str,
        known: Flows,
        flows: Flows,
        answer: Answer,
        previous: Answer | None,
        *,
        was_held: bool = False,
    ) -> None:
        for flow_id in known.keys() | flows.keys():
            before, after = known.get(flow_id), flows.get(flow_id)
            if previous is None:
                self._pending[flow_id].append(ListingChange(user, before, after, None, answer))
            elif before != after:
                last = self._listed_in(user, flow_id) if before and was_held else previous
                self._pending[flow_id].append(ListingChange(user, before, after, last, answer))

    def _listed_in(self, user: str, flow_id: str) -> Answer:
        """The user's last answer that is known to list it, while something is held."""
        return max(self._whole[user], self._changed[user, flow_id], key=lambda answer: answer.arrived_at)

    def _context(self, decided_at: Any, began: Any) -> StepContext:
        users = {
            user: User(
                self.latest[user],
                self.gaps[user],
                began is None or self.latest[user].arrived_at >= began,
                self.retired.get(user),
            )
            for user in [*self.counts_since, *self.retired]
        }
        return StepContext(users, decided_at, self.ended_stays)

    def _workflow(self, flow_id: str) -> Workflow:
        return Workflow(
            flow_id,
            self.known_workflows.get(flow_id),
            self.listings[flow_id],
            self.waiting[flow_id],
            self._pending.get(flow_id, ()),
            {user: self._listed_in(user, flow_id) for user, held in self.held if held == flow_id},
        )

    def _keep(self, judgement: Judgement) -> None:
        flow_id = judgement.flow_id
        self.listings[flow_id] = judgement.listings
        self.waiting[flow_id] = judgement.waiting
        if judgement.known is not None:
            self.known_workflows[flow_id] = judgement.known
        self.open.pop(flow_id, None)
        if judgement.due_at is not None:
            self.open[flow_id] = judgement


class Twin(KnownState):
    """Judges what is due, and says whether judging everything that is open would have said anything else."""

    def __init__(self, gaps: Mapping[str, Any], judge: Judge = judge) -> None:
        super().__init__(gaps, judge)
        self._eager = KnownState(gaps, judge, always=True)

    def answered(self, user: str, flows: Flows, answer: Answer, held: Set[str] = frozenset()) -> None:
        super().answered(user, flows, answer, held)
        self._eager.answered(user, flows, answer, held)

    def retire(self, user: str, at: Any) -> None:
        super().retire(user, at)
        self._eager.retire(user, at)

    def step(self, decided_at: Any, began: Any = None) -> list[Judgement]:
        judgements = super().step(decided_at, began)
        said = {each.flow_id: each for each in judgements}
        for eager in self._eager.step(decided_at, began):
            mine = said.get(eager.flow_id)
            assert (mine.events if mine else []) == eager.events, f"{eager.flow_id}: not judged, but {eager.events}"
            kept = (self.known_workflows.get(eager.flow_id), self.waiting[eager.flow_id], eager.flow_id in self.open)
            assert kept == (eager.known, eager.waiting, eager.due_at is not None), (
                f"{eager.flow_id}: {kept}, not {eager}"
            )
            if eager.waiting:
                assert self.open[eager.flow_id].awaited == eager.awaited, f"{eager.flow_id}: awaits others"
        return judgements
