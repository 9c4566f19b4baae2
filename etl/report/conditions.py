"""One list of what is wrong: a pure function of what is known, and the only place with its wording.

`/readyz`, `/freshness`, `/metrics`, `status`, the page, the log and notifications show the same conditions. A cause is
one condition, however many targets it has; ``CODES`` has every code, how bad it is, and what to do about it.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal, NamedTuple

from etl.printable import counted

Severity = Literal["down", "degraded", "notice"]
"""``down``: nothing can be recorded. ``degraded``: something is not recorded. ``notice``: a person should look."""

SUBJECTS_NAMED: Final = 3


class Rule(NamedTuple):
    """What all conditions of a code have in common."""

    severity: Severity
    remedy: str


CODES: Final[dict[str, Rule]] = {
    "database_unreachable": Rule("down", "Bring the database back: it is tried again every few seconds."),
    "database_full": Rule("down", "Free some space: it is tried again every few seconds, and nothing is lost."),
    "database_read_only": Rule("down", "Let the service write there: it is tried again every few seconds."),
    "database_damaged": Rule("down", "Restore a backup, then run `flowtrail db check`."),
    "schema_behind": Rule("down", "Run `flowtrail db upgrade`, or replace this replica with the newer release."),
    "trail_broken": Rule("degraded", "Keep a copy of the database as it is, then run `flowtrail verify`."),
    "gateway_down": Rule("degraded", "Check whether EnOS works; runs continue, and catch up by themselves."),
    "targets_failing": Rule("degraded", "docs/enos.md says what the code means; the targets are asked again when due."),
    "targets_overdue": Rule("degraded", "`flowtrail status` names them, with the results of their last attempts."),
    "schedules_broken": Rule("degraded", "Fix the files, and send SIGHUP again: the next start would refuse them."),
    "roster_failing": Rule(
        "degraded", "Check whether the application may list users in EnOS; the last roster is kept."
    ),
    "cluster_lost": Rule("degraded", "Start the scheduler and its workers; meanwhile the work is done here."),
    "receiver_failing": Rule("degraded", "`flowtrail notify --test` tries each; messages are retried for a day."),
    "details_failing": Rule("notice", "They are asked for again with the next change."),
    "timestamps_failing": Rule("notice", "Check whether [seal] timestamp_url answers; no run or seal waits for it."),
    "targets_refused": Rule("notice", "Grant the right in EnOS, or take the targets out of their schedule."),
    "targets_held": Rule("notice", "`flowtrail guard list` shows what is held, and how to approve it."),
    "targets_unscheduled": Rule("notice", "Put them into a schedule, or retire them: `flowtrail sync --retire`."),
    "verify_overdue": Rule("notice", "Run `flowtrail verify`."),
    "clock_off": Rule("notice", "Make sure that this machine's clock is right (NTP). If it is, nothing else to do."),
}
"""Every code, the worst first."""
CONDITIONS: Final = tuple(CODES)
OF_THE_DATABASE: Final = frozenset(
    {"database_unreachable", "database_full", "database_read_only", "database_damaged", "schema_behind"}
)
"""What a replica detects about its own database, and cannot store there."""
OF_THE_SERVICE: Final = frozenset(
    {
        *("schedules_broken", "cluster_lost", "receiver_failing"),
        *("details_failing", "timestamps_failing", "verify_overdue"),
    }
)
"""Codes that only the active service knows; others read what it has stored."""
IN_DIGESTS: Final = frozenset({"targets_failing", "targets_refused", "targets_held", "targets_overdue"})
"""Codes that receivers are told of target by target."""
_SEVERITIES: Final = ("down", "degraded", "notice")


class DetectedCondition(NamedTuple):
    """Something that is wrong, as its finder describes it."""

    code: str
    summary: str
    """A sentence without a full stop."""
    cause: str = ""
    """Tells conditions of one code apart."""
    since: dt.datetime | None = None
    subjects: int = 0
    first: Sequence[str] = ()
    remedy: str = ""
    """The remedy, if it says more than that of the code."""
    earlier: bool = False
    """Some of it may have begun before ``since``: not all its targets were looked at."""


class Condition(NamedTuple):
    """Something that is wrong, in one sentence, and what to do about it."""

    code: str
    cause: str
    severity: str
    since: dt.datetime | None
    """When it began, if known."""
    subjects: int
    """How many targets, organisations or receivers it concerns; 0: it concerns the service as a whole."""
    first: Sequence[str]
    """The first few of them."""
    summary: str
    """The sentence without the time and without a full stop."""
    sentence: str
    remedy: str

    @property
    def key(self) -> tuple[str, str]:
        """Two conditions with the same key are the same."""
        return self.code, self.cause

    def as_object(self) -> dict[str, object]:
        """As JSON shows it."""
        return {name: value for name, value in self._asdict().items() if name not in ("cause", "summary")}


def conditions(
    detected: Iterable[DetectedCondition], since: dict[tuple[str, str], dt.datetime] | None = None
) -> list[Condition]:
    """The list, the worst first and each once. ``since``: when conditions began that do not say so themselves."""
    known = since or {}
    found = {(each.code, each.cause): each for each in reversed(list(detected))}
    made = [_condition(each, each.since or known.get(key)) for key, each in found.items()]
    return sorted(made, key=lambda each: (_SEVERITIES.index(each.severity), -each.subjects, each.code, each.cause))


def _condition(detected: DetectedCondition, since: dt.datetime | None) -> Condition:
    rule = CODES[detected.code]
    when = "at least since" if detected.earlier else "since"
    began = f", {when} {since.astimezone(dt.UTC):%Y-%m-%d %H:%M:%S} UTC" if since else ""
    return Condition(
        detected.code,
        detected.cause,
        rule.severity,
        since,
        detected.subjects,
        tuple(detected.first[:SUBJECTS_NAMED]),
        detected.summary,
        f"{detected.summary}{began}.",
        detected.remedy or rule.remedy,
    )


# ---------------------------------------------------------------------------------------------------- of targets


class Failing(NamedTuple):
    """Targets whose last attempt failed with the same code and message."""

    error_code: str
    message: str
    targets: int
    first: Sequence[str]


_VARIES: Final = re.compile(r"'[^']*'|\"[^\"]*\"|\S*\d\S*")
"""Parts that differ between messages of one cause: names, ids, numbers."""
_LONGEST_CAUSE: Final = 100


def message_class(message: str) -> str:
    """``message`` without the parts that differ from target to target."""
    return " ".join(_VARIES.sub("…", message).split())[:_LONGEST_CAUSE]


def cause_of(error_code: str, message: str) -> str:
    """What tells causes apart: a code and a class of messages. However no answer came, it is one cause: in an outage
    one request is refused, another gets a 503, and a third runs into its deadline."""
    return _NO_ANSWER_CAUSE if is_without_answer(error_code) else f"{error_code} {message_class(message)}"


def is_without_answer(error_code: str) -> bool:
    """Whether this code says that no answer came, or that nobody asked any more."""
    return error_code in _NO_ANSWER or error_code == NOT_ASKED


def by_cause(failing: Iterable[Failing]) -> list[Failing]:
    """One for each cause, with the code and the message that most of its targets have."""
    causes: dict[str, list[Failing]] = {}
    for each in failing:
        causes.setdefault(cause_of(each.error_code, each.message), []).append(each)
    return [
        max(parts, key=_commonest)._replace(
            targets=sum(part.targets for part in parts),
            first=sorted(name for part in parts for name in part.first)[:SUBJECTS_NAMED],
        )
        for parts in causes.values()
    ]


def _commonest(cause: Failing) -> tuple[bool, int]:
    """What a sentence names: the most common cause among the targets that were asked."""
    return cause.error_code != NOT_ASKED, cause.targets


def failing(cause: Failing, since: dt.datetime | None, *, refused: bool) -> DetectedCondition:
    """Targets fail for this cause."""
    code = "targets_refused" if refused else "targets_failing"
    named = cause_of(cause.error_code, cause.message)
    earlier = cause.targets > len(cause.first)
    return DetectedCondition(code, _summary(cause), named, since, cause.targets, cause.first, earlier=earlier)


NOT_ASKED: Final = "gateway_down"
"""The error code of targets that a run did not ask any more, after many in a row without an answer."""
_NO_ANSWER_CAUSE: Final = "no answer"
_NO_ANSWER: Final = frozenset(
    {
        *("connection", "deadline", "dns", "http_429", "http_500", "http_502", "http_503", "http_504"),
        *("protocol", "proxy", "timeout", "tls", "tls_certificate"),
    }
)
_NO_TOKEN: Final = frozenset({"1001", "1002", "1003", "1004", "1005", "1202", "1203", "http_401", "secret"})


WITHOUT_AN_ANSWER: Final = frozenset({NOT_ASKED, *_NO_ANSWER, *_NO_TOKEN})
"""The error codes of targets that got no answer, rather than one that is no list."""


def codes_of_gateway_down(targets: Mapping[str, int], asked: int) -> frozenset[str]:
    """The error codes whose targets fail for one cause: nobody gets an answer.

    ``targets``: how many fail with each code; ``asked``: how many there are that EnOS does not refuse for good. The
    gateway counts as down where not one of them got an answer, or where a run has stopped asking.
    """
    if targets.get(NOT_ASKED):
        return WITHOUT_AN_ANSWER & targets.keys()
    silent = _NO_ANSWER & targets.keys()
    return silent if 0 < asked <= sum(targets[code] for code in silent) else frozenset()


def gateway_down(causes: Sequence[Failing], targets: int, since: dt.datetime | None) -> DetectedCondition:
    """``targets`` get no answer, for these causes; the sentence names the most common one among those that were asked.

    If no token could be obtained, the remedy is that of ``targets_failing``.
    """
    commonest = max(causes, key=_commonest)
    first = sorted(name for cause in causes for name in cause.first)
    remedy = CODES["targets_failing"].remedy if commonest.error_code in _NO_TOKEN else ""
    summary, earlier = _summary(commonest._replace(targets=targets)), targets > len(first)
    return DetectedCondition("gateway_down", summary, "", since, targets, first, remedy, earlier)


def _summary(cause: Failing) -> str:
    return f"{counted(cause.targets, 'target')}: {cause.error_code} ({cause.message.rstrip('.')})"


def held(targets: int, workflows: int, since: dt.datetime | None, first: Sequence[str]) -> DetectedCondition:
    """Removals and changes wait for a person."""
    summary = f"{counted(targets, 'target')}: {counted(workflows, 'workflow')} held"
    return DetectedCondition("targets_held", summary, "", since, targets, first)


def overdue(targets: int, first: Sequence[str]) -> DetectedCondition:
    """Targets were not observed for three of their slots."""
    return DetectedCondition("targets_overdue", f"{counted(targets, 'target')} overdue", "", None, targets, first)


def unscheduled(targets: int, first: Sequence[str]) -> DetectedCondition:
    """Targets are in no schedule, and were not retired."""
    summary = f"{counted(targets, 'target')} in no schedule, and not retired: they are not asked for"
    return DetectedCondition("targets_unscheduled", summary, "", None, targets, first)


def roster_failing(org_id: str, code: str, message: str, since: dt.datetime | None) -> DetectedCondition:
    """An organisation's users cannot be listed."""
    summary = f"The roster of {org_id}: {code} ({message.rstrip('.')})"
    return DetectedCondition("roster_failing", summary, org_id, since, 1, (org_id,))


def clock_went_back(targets: int, until: dt.datetime) -> DetectedCondition:
    """Targets have observations ahead of now, the latest at ``until``."""
    who = "a target has an observation that lies" if targets == 1 else f"{targets} targets have observations that lie"
    return DetectedCondition(
        "clock_off",
        f"The clock went back: {who} ahead of now, up to {until.astimezone(dt.UTC):%Y-%m-%d %H:%M:%S} UTC, "
        "and what is observed until then is recorded as observed just after it",
        subjects=targets,
        remedy="Make sure that this machine's clock is right (NTP). If it is, there is nothing else to do: nothing is "
        "lost, nothing waits, and times are recorded correctly again from then on.",
    )
