"""What a run sends with its batches, also to other machines, what comes back, and what all of it adds up to."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from etl.domain.approvals import Approval
from etl.domain.kinds import CHANGE_KINDS
from etl.domain.model import CYCLE_LABELS, VERDICTS, Issue, Outcome, RunStatus, Target, Verdict, latest_of
from etl.sync.removals import BatchRemovals, SecondAnswers

MOST_ISSUES: Final = 1_000
"""Issues of a run that are kept in memory; the table ``sync_issue`` has all of them."""


class RunOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How the batches of a run are to be settled."""

    run_id: int | None
    """None: decide only, write nothing."""
    began_at: dt.datetime | None = None
    """When the run began: no observation is dated earlier."""
    asked_as: Mapping[str, str] = {}
    """By organisation, the user as whom its directory is asked for; where none is given, as before."""
    approval: Approval | None = None
    """Who approves which held removals; None except in an approval."""
    second: SecondAnswers | None = None
    """Set if the targets are asked a second time."""


class TargetIssue(msgspec.Struct, frozen=True):
    """A target that did not succeed, and why."""

    target: Target
    verdict: Verdict
    issue: Issue


class Tally(msgspec.Struct):
    """Sums over targets; batches make them, and the run adds them up."""

    verdicts: Counter[str] = msgspec.field(default_factory=Counter)
    changes: Counter[str] = msgspec.field(default_factory=Counter)
    issues: list[TargetIssue] = msgspec.field(default_factory=list)
    """The first MOST_ISSUES of them."""
    causes: Counter[str] = msgspec.field(default_factory=Counter)
    """All issues: failures by error code, the others by verdict."""
    unknown_cycles: set[str] = msgspec.field(default_factory=set)
    asked_again: int = 0
    """Targets that were asked a second time, because their answer removed something, changed much or was empty."""
    clock_went_back: int = 0
    latest_at: dt.datetime | None = None
    """The latest recorded time: the run cannot have ended before, whatever the clock says."""
    interrupted: int = 0
    """Targets that were not attempted because of a stop."""

    def add(self, outcomes: Iterable[Outcome]) -> None:
        """Count ``outcomes``."""
        for outcome in outcomes:
            self.verdicts[outcome.verdict] += 1
            self.clock_went_back += outcome.clock_went_back
            self.latest_at = latest_of(self.latest_at, outcome.observed_at)
            if outcome.issue is not None:
                self.add_issues([TargetIssue(outcome.fence.target, outcome.verdict, outcome.issue)])
            if outcome.change_set is not None:
                self.changes += outcome.change_set.counts
                cycles = {change.new_cycle for change in outcome.change_set.changes if change.new_cycle is not None}
                self.unknown_cycles |= cycles - CYCLE_LABELS.keys()

    def merge(self, other: Tally) -> None:
        """Add another batch's sums."""
        self.verdicts += other.verdicts
        self.changes += other.changes
        self.causes += other.causes
        self._keep(other.issues)
        self.unknown_cycles |= other.unknown_cycles
        self.asked_again += other.asked_again
        self.clock_went_back += other.clock_went_back
        self.latest_at = latest_of(self.latest_at, other.latest_at)
        self.interrupted += other.interrupted

    def add_issues(self, issues: Sequence[TargetIssue]) -> None:
        """Count issues, and keep as many as there is room for."""
        self.causes.update(_cause(each) for each in issues)
        self._keep(issues)

    def _keep(self, issues: Sequence[TargetIssue]) -> None:
        self.issues += issues[: MOST_ISSUES - len(self.issues)]

    @property
    def issues_left_out(self) -> int:
        """How many issues were counted and not kept."""
        return self.causes.total() - len(self.issues)

    @property
    def causes_left_out(self) -> Counter[str]:
        """``causes`` of the issues that were not kept."""
        return self.causes - Counter(_cause(each) for each in self.issues)

    def sorted_issues(self) -> list[TargetIssue]:
        """The issues by target."""
        return sorted(self.issues, key=lambda problem: problem.target)

    @property
    def settled(self) -> int:
        """Targets that got a verdict."""
        return self.verdicts.total()

    def status(self, aborted: bool) -> RunStatus:
        """How a run with these sums ended."""
        if aborted:
            return "aborted"
        unsuccessful = self.verdicts["failed"] + self.verdicts["held"]
        if not unsuccessful:
            return "succeeded"
        return "failed" if self.verdicts["failed"] == self.settled else "partial"

    def recount(self, written: Mapping[str, int], targets: int) -> None:
        """Take the sums from the rows that the run has written; its other ``targets`` were unchanged."""
        verdicts: dict[str, int] = {name: written[name] for name in VERDICTS if name != "unchanged"}
        self.verdicts = +Counter[str]({**verdicts, "unchanged": targets - sum(verdicts.values())})
        self.changes = +Counter[str]({str(kind): written[kind] for kind in CHANGE_KINDS})

    def sums(self) -> dict[str, int]:
        """The columns of ``sync_run`` with counts."""
        return {name: self.verdicts[name] for name in VERDICTS} | {kind: self.changes[kind] for kind in CHANGE_KINDS}


class BatchResult(NamedTuple):
    """The result of a batch, small enough to be sent."""

    tally: Tally
    found: BatchRemovals = BatchRemovals()


class Details(msgspec.Struct, frozen=True, kw_only=True):
    """The result of asking for details of the workflows that a run found changed."""

    asked: int = 0
    failed: int = 0
    left_out: int = 0
    """Not asked for, for lack of time or because the service is down."""
    capped: bool = False
    """Whether there were more workflows than may be asked for."""
    codes: Mapping[str, int] = {}
    """The most common error codes."""


class RunReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a run did."""

    run_id: int
    status: RunStatus
    duration_seconds: float
    targets: int
    tally: Tally
    details: Details | None = None
    """None where nobody asked for details."""
    notes: tuple[str, ...] = ()
    """What a person should know besides the issues; one sentence each."""

    def summary(self) -> dict[str, Any]:
        """The object that ``sync --json`` prints; the issues are the first MOST_ISSUES, the causes count all."""
        verdicts, changes = self.tally.verdicts, self.tally.changes
        details = {} if self.details is None else {"details": msgspec.structs.asdict(self.details)}
        return {
            "run_id": self.run_id,
            "status": self.status,
            "duration_seconds": round(self.duration_seconds, 3),
            "targets": {"total": self.targets, **{name: verdicts[name] for name in VERDICTS}},
            "changes": {kind: changes[kind] for kind in CHANGE_KINDS},
            "causes": dict(self.tally.causes.most_common()),
            "issues": [_issue_object(each) for each in self.tally.sorted_issues()],
            **details,
        }


def _cause(problem: TargetIssue) -> str:
    failed = problem.verdict == "failed"
    return (failed and problem.issue.error_code) or problem.verdict


def _issue_object(problem: TargetIssue) -> dict[str, Any]:
    return {
        **problem.target._asdict(),
        "verdict": problem.verdict,
        "error_code": problem.issue.error_code,
        "message": problem.issue.message,
    }
