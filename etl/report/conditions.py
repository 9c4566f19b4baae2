"""One list of what is wrong: a pure function of what was detected.

`/readyz`, `/freshness`, `/metrics`, `status`, the page, the log and notifications show the same conditions. A cause is
one condition, however many targets it has; ``CODES`` has every code, how bad it is, and what to do about it.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Final, Literal, NamedTuple, TypeVar

from etl.domain.model import CREDENTIALS, NO_ANSWER, NOT_ASKED, REFUSED_FOR_GOOD, WITHOUT_AN_ANSWER
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
    "credentials_refused": Rule(
        "degraded", "Correct [gateway] access_key or the secret key: `flowtrail check` tries them. Runs catch up."
    ),
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
    "rule_failing": Rule("notice", "Correct its file: `flowtrail rules test FILE` tries it; its findings stay open."),
    "targets_refused": Rule("notice", "Grant the right in EnOS, or take the targets out of their schedule."),
    "targets_held": Rule("notice", "`flowtrail guard list` shows what is held, and how to approve it."),
    "directory_incomplete": Rule(
        "notice",
        "Compare the two with `flowtrail check`, and ask for the directory as another user; until then do not rely on "
        "what it says: in_directory, unlisted_workflow.",
    ),
    "targets_unscheduled": Rule("notice", "Put them into a schedule, or retire them: `flowtrail sync --retire`."),
    "verify_overdue": Rule("notice", "Run `flowtrail verify`."),
    "clock_off": Rule("notice", "Make sure that this machine's clock is right (NTP). If it is, nothing else to do."),
}
"""Every code, the worst first."""
OF_THE_DATABASE: Final = frozenset(code for code, rule in CODES.items() if rule.severity == "down")
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


class Condition(NamedTuple):
    """Something that is wrong, and what to do about it."""

    code: str
    summary: str
    """A sentence without a full stop, and without the time."""
    cause: str = ""
    """Tells conditions of one code apart."""
    since: dt.datetime | None = None
    """When it began, if known."""
    subjects: int = 0
    """How many targets, organisations or receivers it concerns; 0: it concerns the service as a whole."""
    first: Sequence[str] = ()
    """The first few of them."""
    remedy: str = ""
    """Its finder says so where it says more than that of the code."""
    earlier: bool = False
    """Some of it may have begun before ``since``: not all its targets were looked at."""

    @property
    def key(self) -> tuple[str, str]:
        """Two conditions with the same key are the same."""
        return self.code, self.cause

    @property
    def severity(self) -> Severity:
        return CODES[self.code].severity

    @property
    def sentence(self) -> str:
        when = "at least since" if self.earlier else "since"
        began = f", {when} {self.since.astimezone(dt.UTC):%Y-%m-%d %H:%M:%S} UTC" if self.since else ""
        return f"{self.summary}{began}."

    def as_object(self) -> dict[str, object]:
        """As JSON shows it."""
        names = ("code", "severity", "since", "subjects", "first", "sentence", "remedy")
        return {name: getattr(self, name) for name in names}


def conditions(
    detected: Iterable[Condition], since: Mapping[tuple[str, str], dt.datetime] | None = None
) -> list[Condition]:
    """The list, the worst first and each once. ``since``: when conditions began that do not say so themselves."""
    known = since or {}
    found = {each.key: each for each in reversed(list(detected))}
    made = [
        each._replace(
            since=each.since or known.get(key),
            first=tuple(each.first[:SUBJECTS_NAMED]),
            remedy=each.remedy or CODES[each.code].remedy,
        )
        for key, each in found.items()
    ]
    return sorted(made, key=lambda each: (_SEVERITIES.index(each.severity), -each.subjects, each.code, each.cause))


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
_NO_ANSWER: Final = "no answer"
_CREDENTIALS: Final = "credentials"
_OF_REFUSALS: Final = {
    "62101": "Correct the users in their schedule, or take them out: EnOS knows none of this id in this organisation.",
    "99404": "Check [gateway] url and api, and correct the targets in their schedule, or take them out.",
}
T = TypeVar("T")


def message_class(message: str) -> str:
    """``message`` without the parts that differ from target to target."""
    return " ".join(_VARIES.sub("…", message).split())[:_LONGEST_CAUSE]


def causes_of(items: Iterable[T], said: Callable[[T], tuple[str, str]]) -> list[list[T]]:
    """Items with one cause together; ``said`` returns the error code and the message of one.

    However no answer came, it is one cause: in an outage one request is refused, another gets a 503, and a third runs
    into its deadline. Targets that were not asked any more belong to what stopped the run.
    """
    causes: dict[str, list[T]] = {}
    for each in items:
        causes.setdefault(_cause(*said(each)), []).append(each)
    if _CREDENTIALS in causes and all(said(each)[0] == NOT_ASKED for each in causes.get(_NO_ANSWER, ())):
        causes[_CREDENTIALS] += causes.pop(_NO_ANSWER, [])
    return [*causes.values()]


def codes_like(error_code: str, targets: Mapping[str, int]) -> Set[str]:
    """The error codes that share a cause with this one, if ``targets`` fail with each."""
    if error_code in CREDENTIALS:
        return CREDENTIALS if NO_ANSWER & targets.keys() else CREDENTIALS | {NOT_ASKED}
    return NO_ANSWER | {NOT_ASKED} if error_code in WITHOUT_AN_ANSWER else {error_code}


def _cause(error_code: str, message: str) -> str:
    if error_code in CREDENTIALS:
        return _CREDENTIALS
    return _NO_ANSWER if error_code in WITHOUT_AN_ANSWER else f"{error_code} {message_class(message)}"


def by_cause(failing: Iterable[Failing]) -> list[Failing]:
    """One for each cause, with the code and the message that most of its targets have, of those that were asked."""
    return [
        max(parts, key=lambda part: (part.error_code != NOT_ASKED, part.targets))._replace(
            targets=sum(part.targets for part in parts),
            first=sorted(name for part in parts for name in part.first)[:SUBJECTS_NAMED],
        )
        for parts in causes_of(failing, lambda part: (part.error_code, part.message))
    ]


def failing(cause: Failing, since: dt.datetime | None, *, asked: int | None = None, gave_up: bool = False) -> Condition:
    """Targets fail for this cause: EnOS refuses them, or the credentials, or the gateway is down, or some of them only.

    ``asked``: of targets that got no answer, how many there are that EnOS does not refuse for good. The gateway counts
    as down where not one of them got an answer, or where a run ``gave_up`` asking.
    """
    code, named, remedy = "targets_failing", _cause(cause.error_code, cause.message), ""
    if cause.error_code in REFUSED_FOR_GOOD:
        code, remedy = "targets_refused", remedy_of_refusal(cause.error_code)
    elif asked is not None and cause.error_code in CREDENTIALS:
        code, named = "credentials_refused", ""
    elif asked is not None and (gave_up or 0 < asked <= cause.targets):
        code, named = "gateway_down", ""
    summary = f"{counted(cause.targets, 'target')}: {cause.error_code} ({cause.message.rstrip('.')})"
    earlier = cause.targets > len(cause.first)
    return Condition(code, summary, named, since, cause.targets, cause.first, remedy, earlier)


def remedy_of_refusal(error_code: str) -> str:
    """What to do about targets that EnOS refuses with this code."""
    return _OF_REFUSALS.get(error_code, CODES["targets_refused"].remedy)
