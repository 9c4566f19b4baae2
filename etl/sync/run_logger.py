"""Logs a run: a line for its result, at WARNING unless all went well, and one for each cause of failures and holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final

from etl.domain.model import REFUSED_FOR_GOOD, Target
from etl.report.conditions import NOT_ASKED, cause_of
from etl.store import NewRun
from etl.sync.result import RunReport, TargetIssue

_CAUSES_AT_MOST: Final = 20
"""Causes of one run that get a line; the targets of the others are only counted."""
_NAMED: Final = 3
"""Targets of a cause that its line names."""
_UNREMARKABLE: Final = ("succeeded", "aborted")
"""An aborted run is caught up later, so nobody needs to look at it."""
_HELD: Final = "look at `flowtrail guard list`, and approve what is really gone with the code that it shows"
_FAILED: Final = "it is asked again when its schedule is due; the list stays as it was"
_REFUSED: Final = (
    "grant the permission in EnOS, or take the target out of its schedule; it is still asked, but logged only once"
)


class RunLogger:
    """Logs the result of each run. A target that EnOS permanently refuses is logged once, not every run."""

    def __init__(self, log: Any) -> None:
        self._log = log
        self._refused: dict[str | None, set[tuple[Target, str | None]]] = {}

    def log(self, report: RunReport, new_run: NewRun) -> None:
        """Log how the run ended, and what needs attention."""
        log_result = self._log.info if report.status in _UNREMARKABLE else self._log.warning
        log_result(
            "run_ended",
            run_id=report.run_id,
            status=report.status,
            origin=new_run.origin,
            missed=new_run.missed,
            seconds=round(report.duration_seconds, 2),
            **{name: count for name, count in report.tally.sums().items() if count},
        )
        issues = self._not_logged_yet(report, new_run.schedule)
        causes = _by_cause(issues)
        for cause in causes[:_CAUSES_AT_MOST]:
            self._log_cause(cause, report.run_id)
        if more := [each for cause in causes[_CAUSES_AT_MOST:] for each in cause]:
            codes = dict(Counter(each.issue.error_code or each.verdict for each in more))
            remedy = "`flowtrail status` names them"
            self._log.warning("more_not_through", run_id=report.run_id, targets=len(more), codes=codes, remedy=remedy)
        if report.tally.issues_left_out:
            self._log.warning(
                "more_not_kept",
                run_id=report.run_id,
                targets=report.tally.issues_left_out,
                codes=dict(report.tally.causes_left_out),
                remedy="`flowtrail status --limit 0` names them",
            )
        for note in report.notes:
            self._log.warning("note", run_id=report.run_id, note=note)

    def _not_logged_yet(self, report: RunReport, schedule: str | None) -> list[TargetIssue]:
        """The issues that have not been logged yet. A stale target is not an issue: a newer observation won."""
        issues = [each for each in report.tally.sorted_issues() if each.verdict != "stale"]
        known = self._refused.get(schedule, set())
        refused = {_refusal(each) for each in issues if each.issue.error_code in REFUSED_FOR_GOOD}
        self._refused[schedule] = refused | known if report.status == "aborted" else refused
        return [each for each in issues if _refusal(each) not in known]

    def _log_cause(self, cause: Sequence[TargetIssue], run_id: int) -> None:
        codes = Counter(each.issue.error_code for each in cause)
        first = max(cause, key=lambda each: (each.issue.error_code != NOT_ASKED, codes[each.issue.error_code]))
        refused = first.issue.error_code in REFUSED_FOR_GOOD
        remedy = _HELD if first.verdict == "held" else _REFUSED if refused else _FAILED
        names = [str(each.target) for each in cause[:_NAMED]]
        who = {"target": names[0]} if len(cause) == 1 else {"targets": len(cause), "first": names}
        self._log.warning(
            "target_not_through" if len(cause) == 1 else "targets_not_through",
            run_id=run_id,
            verdict=first.verdict,
            **who,
            error_code=first.issue.error_code,
            message=first.issue.message,
            remedy=remedy,
        )


def _by_cause(issues: Iterable[TargetIssue]) -> list[list[TargetIssue]]:
    """Issues with the same verdict and cause, those of most targets first."""
    causes: dict[object, list[TargetIssue]] = {}
    for each in issues:
        key = each.verdict, cause_of(each.issue.error_code or "", each.issue.message)
        causes.setdefault(key, []).append(each)
    return sorted(causes.values(), key=len, reverse=True)


def _refusal(target_issue: TargetIssue) -> tuple[Target, str | None]:
    return target_issue.target, target_issue.issue.error_code
