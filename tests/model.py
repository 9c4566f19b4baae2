"""The truth as plain dicts: what a database must say after each run, by the written rules alone.

It shares the values of ``etl.model`` (targets, workflows, errors) and none of the code that judges or writes.
"""

from __future__ import annotations

import copy
import datetime as dt
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from etl.errors import GatewayError
from etl.model import Flow, Target

Flows = dict[str, Flow]
MIN_REMOVED, MAX_REMOVED_SHARE = 2, 0.5
MAX_EMPTIED_TARGETS, MAX_EMPTIED_SHARE = 2, 0.5
DOWN_AFTER = 2
GAP = dt.timedelta(hours=36)
TICK = dt.timedelta(microseconds=1)
SECOND = dt.timedelta(seconds=1)


@dataclass
class Span:
    version: int
    first_at: dt.datetime
    last_asked_at: dt.datetime
    last_at: dt.datetime
    observations: int = 1
    longest_gap_seconds: int = 0
    interrupted: bool = False


@dataclass
class Known:
    """What the database knows of one target."""

    version: int = 0
    flows: Flows = field(default_factory=dict)
    missing: dict[str, dt.datetime] = field(default_factory=dict)
    spans: list[Span] = field(default_factory=list)
    is_open: bool = False
    answered: Flows | None = None
    head_at: dt.datetime | None = None
    held_since: dt.datetime | None = None
    failures: int = 0
    error_code: str | None = None
    retired_at: dt.datetime | None = None

    def latest(self) -> dt.datetime | None:
        """The latest time on record: no later one may lie before it."""
        spans = [span.last_at for span in self.spans[-1:]]
        head = [self.head_at] if self.head_at else []
        return max([*spans, *head, *self.missing.values()], default=None)


@dataclass(frozen=True)
class Answer:
    """One request of a run: its list, its error, or None where a stop came before the answer."""

    target: Target
    got: Flows | GatewayError | None
    asked_at: dt.datetime
    observed_at: dt.datetime


Truth = dict[Target, Known]


@dataclass
class Judgement:
    """The verdict on one target; ``hold`` are the workflows kept, ``whole`` leaves the list as it was."""

    target: Target
    verdict: str
    answer: Answer | None = None
    hold: frozenset[str] = frozenset()
    whole: bool = False
    error_code: str = ""


class Run:
    """What one run must have done, stage by stage: each stage is one commit, and a crash leaves one of them."""

    def __init__(
        self,
        before: Truth,
        targets: Sequence[Target],
        answers: Sequence[Answer],
        *,
        approved: bool = False,
        meanwhile: Run | None = None,
    ) -> None:
        self.targets = targets
        self.verdicts: Counter[str] = Counter()
        self.by_target: dict[Target, str] = {}
        self._answers = iter(answers)
        self._approved = approved
        self._stopped = False
        self._in_a_row = 0
        self._down = False
        self._emptied = 0
        self._overtaken = meanwhile.by_target if meanwhile else {}
        registered = copy.deepcopy(before)
        for target in targets:
            registered.setdefault(target, Known()).retired_at = None
        self._fences = registered
        self._now = copy.deepcopy(registered)
        if meanwhile:
            self._now.update(copy.deepcopy({t: meanwhile.after[t] for t in meanwhile.targets}))
        self.stages = [before, registered, *self._settled()]

    @property
    def after(self) -> Truth:
        return self.stages[-1]

    def _settled(self) -> Iterator[Truth]:
        try:
            first = [self._asked(target) for target in self.targets]
            doubted = [j for j in first if j is not None and j.verdict == "doubted"]
            second = [self._asked_again(each) for each in doubted]
        except StopIteration:
            return  # the crash came before everybody was asked
        settled = [j for j in [*first, *second] if j is not None]
        yield self._written([j for j in settled if j.verdict not in ("doubted", "emptied")])
        emptied = [j for j in settled if j.verdict == "emptied"]
        if emptied and not self._stopped:
            yield self._written([self._decided(each, len(emptied)) for each in emptied])

    # What the gateway said, and what it means

    def _asked(self, target: Target) -> Judgement | None:
        if self._stopped:
            return None
        if self._down:
            return Judgement(target, "failed", error_code="gateway_down")
        answer = next(self._answers)
        assert answer.target == target
        if answer.got is None:
            self._stopped = True
            return None
        if isinstance(answer.got, GatewayError):
            self._in_a_row = self._in_a_row + 1 if answer.got.gateway_down_evidence else 0
            self._down = self._down or self._in_a_row >= DOWN_AFTER
            return Judgement(target, "failed", answer, error_code=answer.got.code)
        self._in_a_row = 0
        fence = self._fences[target]
        if fence.version and fence.held_since is None and fence.answered == answer.got:
            return Judgement(target, "unchanged", answer)
        return self._weighed(target, answer, answer.got)

    def _asked_again(self, first: Judgement) -> Judgement | None:
        second = self._asked(first.target)
        if second is not None and second.verdict == "doubted":
            assert second.answer is not None
            emptied = self._fences[first.target].version and not second.answer.got
            second.verdict = "emptied" if emptied else "differs"
        return second

    def _weighed(self, target: Target, answer: Answer, got: Flows) -> Judgement:
        known, differs = self._now[target], Judgement(target, "differs", answer)
        if not self._fences[target].version:
            differs.verdict = "differs" if got else "doubted"
            return differs
        absent = frozenset(known.flows.keys() - got.keys())
        differs.hold = absent
        if self._approved:
            differs.whole = bool(absent - known.missing.keys())
            differs.hold = absent if differs.whole else frozenset()
            return differs
        if _too_many(len(absent), len(known.flows)):
            differs.whole = _too_many(len(got.keys() - known.flows.keys()), len(known.flows))
            return differs
        differs.hold = absent & known.missing.keys()
        if len(absent) == len(known.flows) and absent - known.missing.keys():
            differs.verdict = "doubted"
        return differs

    def _decided(self, judgement: Judgement, emptied: int) -> Judgement:
        count = self._emptied + emptied
        if count >= MAX_EMPTIED_TARGETS and count >= MAX_EMPTIED_SHARE * len(self.targets):
            judgement.hold = frozenset(self._now[judgement.target].flows)
        judgement.verdict = "differs"
        return judgement

    # What is written

    def _written(self, judgements: Sequence[Judgement]) -> Truth:
        for judgement in judgements:
            known = self._now[judgement.target]
            newly = judgement.hold - known.missing.keys()
            self._emptied += bool(newly) and judgement.answer is not None and judgement.answer.got == {}
            verdict = self._write(judgement, known)
            self.verdicts[verdict] += 1
            self.by_target[judgement.target] = verdict
        return copy.deepcopy(self._now)

    def _write(self, judgement: Judgement, known: Known) -> str:
        if self._overtaken.get(judgement.target) in ("changed", "held", "unchanged"):
            return "stale"
        if judgement.verdict == "failed":
            known.failures, known.error_code, known.is_open = known.failures + 1, judgement.error_code, False
            return "failed"
        answer = judgement.answer
        assert answer is not None
        assert isinstance(answer.got, dict)
        asked_at, at = _times(known, answer)
        known.failures, known.error_code = 0, None
        old = known.flows
        known.flows = old if judgement.whole else answer.got | {i: old[i] for i in judgement.hold}
        known.answered = answer.got
        new_version = not known.version or known.flows != old
        known.missing = {i: known.missing.get(i, at) for i in judgement.hold}
        known.held_since = (known.held_since or at) if judgement.hold else None
        if new_version:
            known.version, known.head_at = known.version + 1, at
        if judgement.hold:
            known.is_open = False
            return "held"
        self._seen(known, asked_at, at, new_version)
        return "changed" if new_version else "unchanged"

    def _seen(self, known: Known, asked_at: dt.datetime, at: dt.datetime, new_version: bool) -> None:
        span = known.spans[-1] if known.spans else None
        unbroken = known.is_open and span is not None and at - span.last_at <= GAP
        known.is_open = True
        if span is None or not unbroken or new_version:
            interrupted = span is not None and not unbroken
            known.spans.append(Span(known.version, at, asked_at, at, interrupted=interrupted))
            return
        span.longest_gap_seconds = max(span.longest_gap_seconds, (at - span.last_at) // SECOND)
        span.last_asked_at, span.last_at, span.observations = asked_at, at, span.observations + 1


def retired(truth: Truth, configured: Sequence[Target], now: dt.datetime, max_share: float) -> Truth:
    """Those no longer configured, unless they are too many at once."""
    after = copy.deepcopy(truth)
    active = [target for target, known in after.items() if known.retired_at is None]
    gone = [target for target in active if target not in configured]
    if len(gone) <= max_share * len(active):
        for target in gone:
            after[target].retired_at = now
    return after


def held(truth: Mapping[Target, Known]) -> list[Target]:
    return sorted(t for t, known in truth.items() if known.held_since is not None and known.retired_at is None)


def _too_many(count: int, total: int) -> bool:
    return 0 < count >= MIN_REMOVED and count >= MAX_REMOVED_SHARE * total


def _times(known: Known, answer: Answer) -> tuple[dt.datetime, dt.datetime]:
    """As they were, or just after the latest on record where the clock went back."""
    latest = known.latest()
    asked_at = answer.asked_at if latest is None else max(answer.asked_at, latest + TICK)
    return asked_at, max(answer.observed_at, asked_at)
