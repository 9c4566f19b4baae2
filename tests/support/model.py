"""A model in plain dicts: what a database must contain after each run, by the written rules alone.

It uses the values of ``etl.domain.model`` (targets, workflows, errors), but none of the code that judges or writes.
"""

from __future__ import annotations

import copy
import datetime as dt
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from etl.domain.model import Flow, Target
from etl.errors import GatewayError

Flows = dict[str, Flow]
Doubted = dict[tuple[str, str], str | bool | None]
"""New values that are held, by workflow and kind."""
MIN_REMOVED, MAX_REMOVED_SHARE = 2, 0.5
MAX_EMPTIED_TARGETS, MAX_EMPTIED_SHARE = 2, 0.5
MAX_ORG_REMOVED_SHARE = 0.6
MIN_CHANGED, MAX_CHANGED_SHARE = 2, 0.5
ATTRIBUTES = {"cycle_changed": "cycle", "editable_changed": "editable", "renamed": "flow_name"}
DOWN_AFTER = 2
REFUSED, TELLS_NOTHING = "62101", ("timeout", "gateway_down")
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
    doubted: Doubted = field(default_factory=dict)
    spans: list[Span] = field(default_factory=list)
    is_open: bool = False
    answered: Flows | None = None
    head_at: dt.datetime | None = None
    held_since: dt.datetime | None = None
    held_at: dt.datetime | None = None
    """When the last answer arrived that was accepted except for what is held."""
    hold_at: dt.datetime | None = None
    """When a hold began, grew or shrank last."""
    failures: int = 0
    error_code: str | None = None
    retired_at: dt.datetime | None = None

    def latest(self) -> dt.datetime | None:
        """The latest recorded time: later records must not lie before it."""
        spans = [span.last_at for span in self.spans[-1:]]
        others = (self.head_at, self.held_at, self.hold_at if self.held_since else None)
        return max([*spans, *(at for at in others if at is not None)], default=None)


@dataclass(frozen=True)
class Answer:
    """One request of a run: its list, its error, or None if it was stopped before the answer came."""

    target: Target
    got: Flows | GatewayError | None
    asked_at: dt.datetime
    observed_at: dt.datetime
    kept: bool = False
    """Whether its connection carried other answers, too."""


class Truth(dict[Target, Known]):
    """The expected contents: the targets, and the organisations' additions and removals in the guard's window."""

    def __init__(self, known: Mapping[Target, Known] = {}, turnover: Mapping[str, tuple[int, int]] = {}) -> None:
        super().__init__(known)
        self.turnover = dict(turnover)

    def copy(self) -> Truth:
        return Truth(copy.deepcopy(dict(self)), self.turnover)

    def had(self, org_id: str) -> int:
        """How many workflows an organisation's lists had at the window's start."""
        listed = sum(len(known.flows) for target, known in self.items() if _counts(target, known, org_id))
        added, removed = self.turnover.get(org_id, (0, 0))
        return max(0, listed + removed - added)


def _counts(target: Target, known: Known, org_id: str) -> bool:
    return target.org_id == org_id and known.retired_at is None


@dataclass
class Judgement:
    """The verdict on one target. ``hold``: the workflows kept; ``whole``: the list stays as it was."""

    target: Target
    verdict: str
    answer: Answer | None = None
    hold: frozenset[str] = frozenset()
    whole: bool = False
    error_code: str = ""
    missing: int = 0
    """How many workflows are missing for the first time: removed or held."""
    removes: bool = False
    """Whether some of them would be removed."""
    emptied: bool = False
    doubted: Doubted = field(default_factory=dict)
    many: Doubted = field(default_factory=dict)
    """The changes for which the target is asked again."""


class Run:
    """What one run must do, stage by stage. Each stage is one commit, so a crash leaves one of them."""

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
        self._missing: Counter[str] = Counter()
        self._emptied = 0
        self._changing: dict[tuple[str, str], set[str]] = {}
        self._listed: dict[str, int] = {}
        self._overtaken = meanwhile.by_target if meanwhile else {}
        registered = before.copy()
        for target in targets:
            registered.setdefault(target, Known()).retired_at = None
        self._fences = registered
        self._now = registered.copy()
        if meanwhile:
            self._now.update(copy.deepcopy({t: meanwhile.after[t] for t in meanwhile.targets}))
            self._now.turnover = dict(meanwhile.after.turnover)
        self.stages = [before, registered, *self._settled()]

    @property
    def after(self) -> Truth:
        return self.stages[-1]

    def _settled(self) -> Iterator[Truth]:
        """Ask all targets and write what is certain; then ask the others again and judge them together."""
        try:
            first = [j for target in self.targets if (j := self._asked(target))]
        except StopIteration:
            return  # it crashed before all were asked
        yield self._written([j for j in first if j.verdict != "uncertain"])
        again = [j.target for j in first if j.verdict == "uncertain"]
        if self._stopped or not again:
            return
        self._fences, self._overtaken = self._now.copy(), {}
        before = {org: self._before(org) for org in {target.org_id for target in again}}
        self._listed = {org: self._workflows(org) for org in before}
        try:
            second = [j for target in again if (j := self._asked(target, second=True))]
        except StopIteration:
            return
        yield self._written([self._together(j, *before[j.target.org_id]) for j in second])

    def _workflows(self, org_id: str) -> int:
        """How many workflows the organisation's lists have; each counts once."""
        return len({i for target, known in self._now.items() if _counts(target, known, org_id) for i in known.flows})

    def _before(self, org_id: str) -> tuple[int, int]:
        """How much the organisation's lists had at the window's start, and what other runs have removed since."""
        return self._now.had(org_id), self._now.turnover.get(org_id, (0, 0))[1]

    def _together(self, judgement: Judgement, had: int, removed: int) -> Judgement:
        """Judge a second answer that removes something, given everything that is missing in the run."""
        if not judgement.removes:
            return judgement
        missing = removed + self._missing[judgement.target.org_id]
        doubted = missing >= MIN_REMOVED and missing >= MAX_ORG_REMOVED_SHARE * had
        many = self._emptied >= MAX_EMPTIED_TARGETS and self._emptied >= MAX_EMPTIED_SHARE * len(self.targets)
        if doubted or (many and judgement.emptied):
            assert judgement.answer is not None
            known, got = self._now[judgement.target].flows, judgement.answer.got
            assert isinstance(got, dict)
            brought = len(got.keys() - known.keys())
            judgement.hold = frozenset(known.keys() - got.keys())
            judgement.whole = 0 < brought >= MAX_REMOVED_SHARE * len(known)
        return judgement

    # Answers and their verdicts

    def _asked(self, target: Target, *, second: bool = False) -> Judgement | None:
        if self._stopped:
            return None
        if self._down:
            return Judgement(target, "failed", error_code="gateway_down")
        fence = self._fences[target]
        answer = next(self._answers)
        assert (answer.target, answer.kept) == (target, self._may_be_kept(fence, second))
        if answer.kept and isinstance(answer.got, dict) and fence.answered not in (answer.got, None):
            if len(answer.got) < len(fence.flows):
                self._in_a_row = 0
                return self._uncertain(target, answer, answer.got)
            answer = next(self._answers)
            assert (answer.target, answer.kept) == (target, False)
        if answer.got is None:
            self._stopped = True
            return None
        if isinstance(answer.got, GatewayError):
            self._in_a_row = self._in_a_row + 1 if answer.got.gateway_down_evidence else 0
            self._down = self._down or self._in_a_row >= DOWN_AFTER
            return Judgement(target, "failed", answer, error_code=answer.got.code)
        self._in_a_row = 0
        if fence.version and fence.held_since is None and fence.answered == answer.got:
            return Judgement(target, "unchanged", answer)
        judgement = self._weighed(target, answer, answer.got, second=second)
        if not second and (judgement.removes or judgement.many or not (fence.version or answer.got)):
            return self._uncertain(target, answer, answer.got)
        self._missing[target.org_id] += judgement.missing
        self._emptied += judgement.emptied
        return judgement

    def _may_be_kept(self, fence: Known, second: bool) -> bool:
        return bool(fence.version and fence.held_since is None and not self._approved and not second)

    def _uncertain(self, target: Target, answer: Answer, got: Flows) -> Judgement:
        """A real run remembers only how much is missing; with so few targets the second answers decide anyway. Which
        workflows change counts for their organisation."""
        for flow_id, kind in self._many(self._now[target].flows, got):
            self._changing.setdefault((target.org_id, kind), set()).add(flow_id)
        return Judgement(target, "uncertain", answer)

    def _many(self, known: Flows, got: Flows) -> Doubted:
        """The changes of the attributes that change in at least the share of the workflows that both lists have."""
        changes, both = _changes(known, got), len(known.keys() & got.keys())
        counted = Counter(kind for _, kind in changes)
        return {key: new for key, new in changes.items() if counted[key[1]] >= MAX_CHANGED_SHARE * both}

    def _weighed(self, target: Target, answer: Answer, got: Flows, *, second: bool) -> Judgement:
        known, differs = self._now[target], Judgement(target, "differs", answer)
        if not self._fences[target].version:
            return differs
        absent = frozenset(known.flows.keys() - got.keys())
        newly = absent - known.missing.keys()
        differs.missing, differs.emptied = len(newly), bool(newly and not got)
        differs.hold = absent
        changes, many = _changes(known.flows, got), self._many(known.flows, got)
        counted = Counter(kind for _, kind in many)
        over = {kind for kind, count in counted.items() if count >= MIN_CHANGED}
        of_hold = {kind for _, kind in known.doubted}
        if self._approved:
            new = not _of(changes, of_hold).items() <= known.doubted.items()
            differs.whole = bool(newly or new or over - of_hold)
            differs.hold = absent if differs.whole else frozenset()
            differs.doubted = _of(changes, of_hold | over) if differs.whole else {}
            return differs
        lasting = {kind for i, kind in changes if (i, kind) in known.doubted}
        if second:
            over |= {kind for kind in counted if self._changes_together(target.org_id, kind)}
        if lasting or (second and over):
            differs.doubted, differs.whole = _of(changes, lasting | over), True
            return differs
        differs.many = many
        if _too_many(len(absent), len(known.flows)):
            differs.whole = _too_many(len(got.keys() - known.flows.keys()), len(known.flows))
            return differs
        differs.hold, differs.removes = absent & known.missing.keys(), bool(newly)
        return differs

    def _changes_together(self, org_id: str, kind: str) -> bool:
        changing = len(self._changing.get((org_id, kind), ()))
        return changing >= MIN_CHANGED and changing >= MAX_CHANGED_SHARE * self._listed[org_id]

    # What is written

    def _written(self, judgements: Sequence[Judgement]) -> Truth:
        """One transaction."""
        turnover: dict[str, tuple[int, int]] = {}
        approved = set()
        for judgement in judgements:
            known = self._now[judgement.target]
            before, version, doubted = known.flows, known.version, known.doubted
            verdict = self._write(judgement, known)
            self.verdicts[verdict] += 1
            self.by_target[judgement.target] = verdict
            org, removed = judgement.target.org_id, len(before.keys() - known.flows.keys())
            applied = doubted.items() & _changes(before, known.flows).items()
            if self._approved and (removed or applied):
                approved.add(org)
            elif version:
                added = len(known.flows.keys() - before.keys())
                turnover[org] = _sum(turnover.get(org, (0, 0)), (added, removed))
        for org in approved:
            self._now.turnover.pop(org, None)
        for org, changed in turnover.items():
            self._now.turnover[org] = _sum(self._now.turnover.get(org, (0, 0)), changed)
        return self._now.copy()

    def _write(self, judgement: Judgement, known: Known) -> str:
        if self._overtaken.get(judgement.target) in ("changed", "held", "unchanged"):
            return "stale"
        if judgement.verdict == "failed":
            known.failures, known.is_open = known.failures + 1, False
            if not (known.error_code == REFUSED and judgement.error_code in TELLS_NOTHING):
                known.error_code = judgement.error_code  # only who hears something of a target ends its refusal
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
        held = (known.missing.keys(), known.doubted)
        known.missing = {i: known.missing.get(i, at) for i in judgement.hold}
        known.doubted = judgement.doubted
        known.hold_at = known.hold_at if held == (known.missing.keys(), known.doubted) else at
        holds = bool(judgement.hold or judgement.doubted)
        known.held_since = (known.held_since or at) if holds else None
        if new_version:
            known.version, known.head_at = known.version + 1, at
        if holds:
            known.is_open = False
            known.held_at = known.held_at if judgement.whole else at
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


def _changes(before: Flows, after: Flows) -> Doubted:
    """The new values of the workflows that both lists have, by workflow and kind."""
    return {
        (i, kind): getattr(after[i], name)
        for i in before.keys() & after.keys()
        for kind, name in ATTRIBUTES.items()
        if getattr(before[i], name) != getattr(after[i], name)
    }


def _of(changes: Doubted, kinds: set[str]) -> Doubted:
    return {key: new for key, new in changes.items() if key[1] in kinds}


def retired(truth: Truth, configured: Sequence[Target], now: dt.datetime, max_share: float) -> Truth:
    """Retire the targets that are no longer configured, unless they are too many at once."""
    after = truth.copy()
    active = [target for target, known in after.items() if known.retired_at is None]
    gone = [target for target in active if target not in configured]
    if len(gone) <= max_share * len(active):
        for target in gone:
            after[target].retired_at = now
    return after


def held(truth: Mapping[Target, Known]) -> list[Target]:
    return sorted(t for t, known in truth.items() if known.held_since is not None and known.retired_at is None)


def _sum(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    return one[0] + other[0], one[1] + other[1]


def _too_many(count: int, total: int) -> bool:
    return 0 < count >= MIN_REMOVED and count >= MAX_REMOVED_SHARE * total


def _times(known: Known, answer: Answer) -> tuple[dt.datetime, dt.datetime]:
    """The times of an answer, or just after the latest record if the clock went back."""
    latest = known.latest()
    asked_at = answer.asked_at if latest is None else max(answer.asked_at, latest + TICK)
    return asked_at, max(answer.observed_at, asked_at)
