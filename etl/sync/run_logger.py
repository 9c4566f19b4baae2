"""Logs a run: a line for its result, and one for each cause of failures and holds; at WARNING what is new."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from etl.domain.model import NOT_ASKED, REFUSED_FOR_GOOD, TELLS_NOTHING, Target
from etl.report.conditions import causes_of, message_class, remedy_of_refusal
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
_REFUSED: Final = " It is still asked, but logged only once."


class RunLogger:
    """Logs the result of each run. What waits for a person, a refusal or a hold, is news once, not with every run."""

    def __init__(self, log: Any) -> None:
        self._log = log
        self._waiting: dict[str | None, dict[Target, object]] = {}
        """By schedule: the targets that wait for a person, each with what was logged of it."""

    def log(self, report: RunReport, new_run: NewRun) -> None:
        """Log how the run ended, and what needs attention."""
        issues = [each for each in report.tally.sorted_issues() if each.verdict != "stale"]
        news = self._news(issues, new_run.schedule, report.status)
        is_news = bool(news) or not issues or report.tally.issues_left_out > 0
        log_result = self._log.warning if is_news and report.status not in _UNREMARKABLE else self._log.info
        log_result(
            "run_ended",
            run_id=report.run_id,
            status=report.status,
            origin=new_run.origin,
            missed_slots=new_run.missed_slots,
            seconds=round(report.duration_seconds, 2),
            **{name: count for name, count in report.tally.sums().items() if count},
        )
        causes = sorted(causes_of(news, _code_and_message), key=len, reverse=True)
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

    def _news(self, issues: Sequence[TargetIssue], schedule: str | None, status: str) -> list[TargetIssue]:
        """The issues that have not been logged yet. A stale target is none: a newer observation won."""
        known = self._waiting.get(schedule, {})
        waiting = {each.target: _what(each) for each in issues if _waits(each)}
        unanswered = {each.target for each in issues if each.issue.error_code in TELLS_NOTHING}
        still = {target: what for target, what in known.items() if status == "aborted" or target in unanswered}
        self._waiting[schedule] = still | waiting
        return [each for each in issues if not _waits(each) or known.get(each.target) != _what(each)]

    def _log_cause(self, cause: Sequence[TargetIssue], run_id: int) -> None:
        codes = Counter(each.issue.error_code for each in cause)
        first = max(cause, key=lambda each: (each.issue.error_code != NOT_ASKED, codes[each.issue.error_code]))
        code = first.issue.error_code or ""
        remedy = _HELD if first.verdict == "held" else _FAILED
        if code in REFUSED_FOR_GOOD:
            remedy = remedy_of_refusal(code) + _REFUSED
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


def _code_and_message(target_issue: TargetIssue) -> tuple[str, str]:
    return target_issue.issue.error_code or target_issue.verdict, target_issue.issue.message


def _waits(target_issue: TargetIssue) -> bool:
    """Whether a person has to do something before the target goes through again."""
    return target_issue.verdict == "held" or target_issue.issue.error_code in REFUSED_FOR_GOOD


def _what(target_issue: TargetIssue) -> object:
    issue = target_issue.issue
    return target_issue.verdict, issue.error_code, issue.missing or message_class(issue.message)
