"""The values that all other modules use: frozen, without side effects."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from typing import Final, Literal, NamedTuple, get_args

import msgspec

from etl.domain.answers import KeptAnswer
from etl.domain.kinds import ChangeKind

CYCLE_LABELS: Final = {"M": "month", "W": "week", "D": "day", "H": "hour", "mi": "minute"}
"""The cycles that EnOS documents for Get My Flow, and what they mean."""


def cycle_code(cycle: str | None) -> str | None:
    """EnOS's code for a cycle's label; anything else is taken as a code."""
    return next((code for code, label in CYCLE_LABELS.items() if cycle == label), cycle)


Verdict = Literal["changed", "unchanged", "held", "failed", "stale"]
VERDICTS: Final[tuple[Verdict, ...]] = get_args(Verdict)

REFUSED_FOR_GOOD: Final = frozenset({"62101", "62103", "99403", "99404"})
"""EnOS refuses these targets until a right or the schedule is changed: reported, but no reason to page anybody."""
NOT_ASKED: Final = "gateway_down"
"""The error code of targets that a run did not ask any more, after many in a row without an answer."""
NO_ANSWER: Final = frozenset(
    {
        *("connection", "deadline", "desync", "dns", "protocol", "proxy", "timeout", "tls", "tls_certificate"),
        *("truncated", "1001", "1005", "http_429", *(f"http_{status}" for status in range(500, 600))),
    }
)
"""Nothing came that EnOS says about anybody."""
CREDENTIALS: Final = frozenset({"1002", "1003", "1004", "1202", "1203", "http_401", "secret"})
"""No token is to be had with this access key and secret key."""
WITHOUT_AN_ANSWER: Final = frozenset({NOT_ASKED, *NO_ANSWER, *CREDENTIALS})
"""The error codes of targets that got no answer."""
TELLS_NOTHING: Final = WITHOUT_AN_ANSWER | {"62109", "99500", "clock_skew", "internal", "not_stored"}
"""The error codes that say nothing about a target: one that was refused before still is."""

Origin = Literal["schedule", "command", "catch_up", "approval", "maintenance"]
RunStatus = Literal["running", "succeeded", "partial", "failed", "aborted"]
DIRECTORY: Final = "(directory)"
"""What people read in place of the user of an organisation's directory."""


class Target(NamedTuple):
    """Whose list is asked for: one user of one organisation, and the search expression ('' = none). Without a user it
    is the organisation's directory."""

    org_id: str
    user_id: str
    expression: str = ""

    @property
    def is_directory(self) -> bool:
        return not self.user_id

    def __str__(self) -> str:
        if self.is_directory:
            return f"{self.org_id}/{DIRECTORY}"
        searched = f" [{self.expression}]" if self.expression else ""
        return f"{self.org_id}/{self.user_id}{searched}"


class Flow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A workflow as one answer shows it. Encoded as JSON it is ``[flow_id, flow_name, cycle, editable]``."""

    flow_id: str
    flow_name: str | None
    cycle: str | None
    editable: bool | None


ATTRIBUTES: Final = ("flow_name", "cycle", "editable")
"""What can change of a workflow."""


class Doubt(NamedTuple):
    """A change of a workflow that is not recorded until a person approves it: its kind, and the value it would set."""

    flow_id: str
    kind: ChangeKind
    new: str | bool | None


class Change(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One change of one workflow, with the full before and after; the field order is that of the chain."""

    flow_id: str
    kind: ChangeKind
    old_name: str | None
    new_name: str | None
    old_cycle: str | None
    new_cycle: str | None
    old_editable: bool | None
    new_editable: bool | None

    def as_doubted(self) -> Doubt:
        """The same as it would be held; of no use for the kinds that change no attribute."""
        new = {"renamed": self.new_name, "cycle_changed": self.new_cycle, "editable_changed": self.new_editable}
        return Doubt(self.flow_id, self.kind, new.get(self.kind))


class Span(msgspec.Struct, frozen=True, gc=False):
    """A span of time in which one version of a target was seen without interruption, in the order of the chain."""

    first_at: dt.datetime
    last_asked_at: dt.datetime
    last_at: dt.datetime
    observations: int
    longest_gap_seconds: int
    interrupted: bool


class Snapshot(msgspec.Struct, frozen=True, gc=False):
    """One complete, valid answer. There is no partial snapshot: an incomplete answer is a GatewayError.

    ``flows`` is sorted by flow_id in code-point order, and is None when the bytes of ``data`` hash to the
    ``known_data_hash`` that the caller gave: then the answer is the known one, and was not decoded.
    """

    target: Target
    flows: tuple[Flow, ...] | None
    data_hash: str
    """SHA-256 (hex) of the bytes of ``data`` as they came."""
    asked_at: dt.datetime
    """When the request that brought the answer was sent (UTC, this process's clock)."""
    observed_at: dt.datetime
    """When the whole answer had arrived (UTC, this process's clock)."""
    attempts: int
    body: bytes
    """The whole decoded body, for the strict second reading of an answer that would change something; empty where
    that is spared."""
    sole_answer: bool = False
    """Whether it is the only answer that its connection ever carried. Nothing in an answer names its user, so only
    such an answer may change a list or a hold."""
    data: bytes | msgspec.Raw = b""
    """The bytes that ``data_hash`` is of, where ``flows`` is there; empty once they are kept, or need not be."""
    kept: KeptAnswer | None = None
    """The same as they are to be archived, where they are."""
    keys: int | None = None
    """How many keys its workflows have; None if one lacks some."""
    absent: frozenset[str] = frozenset()
    """The attributes whose key none of its workflows has."""
    other_files: int = 0
    """Of a directory: its files that are no workflows."""
    digest: str | None = None
    """``chain.state_digest`` of ``flows``, where it was computed."""


class ChangeSet(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One version of a target, with everything that its hash covers."""

    target: Target
    version: int
    kind: Literal["baseline", "delta"]
    observed_at: dt.datetime
    last_unchanged_at: dt.datetime | None
    """When the request of the observation before was sent; the change lies between the two. None: a baseline."""
    spans: tuple[Span, ...]
    """The spans of the version before, sealed by this change set, by ``first_at``."""
    approved_by: str | None
    data_hash: str
    """SHA-256 (hex) of the bytes of ``data`` as they came."""
    state_digest: str
    changes: Sequence[Change]
    """Sorted by (flow_id, kind)."""
    approved_scope: str | None = None
    """``chain.approved_scope`` of the removals that a person approved; None where nobody had to."""

    @property
    def counts(self) -> Counter[str]:
        """How many changes there are of each kind."""
        return Counter([change.kind for change in self.changes])


def latest_of(*moments: dt.datetime | None) -> dt.datetime | None:
    """The latest of those that are known; None if none is."""
    return max((at for at in moments if at is not None), default=None)


USUAL_COVERAGE_GAP: Final = dt.timedelta(hours=36)
"""That of a target which no schedule lists."""


class Fence(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The state of a target in the database before the request. If it differs when the answer is written, somebody
    committed another observation meanwhile, and the answer is stale."""

    target: Target
    target_id: int = 0
    """0: not in the database (yet)."""
    asked_as: str | None = None
    """Of a directory: the user as whom EnOS is asked for it."""
    version: int = 0
    number: int = 0
    """``target.fence``, which every version, hold and retirement raises."""
    observation_id: int | None = None
    """The open span, if one is open."""
    answer_digest: str | None = None
    data_hash: str | None = None
    flow_count: int = 0
    held_since: dt.datetime | None = None
    """When something began to be held, if anything is."""
    retired: bool = False
    span_id: int | None = None
    """The latest span, open or not."""
    span: Span | None = None
    head_hash: str | None = None
    head_observed_at: dt.datetime | None = None
    held_asked_at: dt.datetime | None = None
    held_at: dt.datetime | None = None
    """The last answer that was believed but for some removals: when it was requested, and had arrived."""
    latest_hold_at: dt.datetime | None = None
    """When something was held last, or came back, in a hold that lasts."""
    run_began_at: dt.datetime | None = None
    """When the run began: no observation is dated earlier, whatever another machine's clock says."""
    coverage_gap: dt.timedelta = USUAL_COVERAGE_GAP
    """A longer silence ends a span: the longest of the schedules that list the target."""

    @property
    def held(self) -> bool:
        return self.held_since is not None

    @property
    def latest_at(self) -> dt.datetime | None:
        """The latest time recorded of the target: no later record may lie before it."""
        last_at = None if self.span is None else self.span.last_at
        return latest_of(last_at, self.head_observed_at, self.held_at, self.latest_hold_at)


class State(msgspec.Struct, frozen=True):
    """A target's workflows by flow_id, the ones whose removal is held, the spans of its version, and held changes."""

    flows: Mapping[str, Flow]
    missing: frozenset[str] = frozenset()
    spans: tuple[Span, ...] = ()
    doubted: frozenset[Doubt] = frozenset()


class Issue(msgspec.Struct, frozen=True, gc=False):
    """Why a target did not go through; a row of ``sync_issue``."""

    error_code: str | None
    message: str
    attempts: int = 1
    missing: int = 0


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """A verdict, with everything that is to be written for it in one transaction."""

    fence: Fence
    verdict: Verdict
    asked_at: dt.datetime | None = None
    """When the answer was requested; None if nothing of it is believed."""
    observed_at: dt.datetime | None = None
    span: Span | None = None
    """The open span afterwards; None: no span is open."""
    extends: bool = False
    """Whether ``span`` extends the open span; otherwise it is a new one."""
    answer_digest: str | None = None
    data_hash: str | None = None
    change_set: ChangeSet | None = None
    hash: str | None = None
    flow_count: int = 0
    missing: Set[str] = frozenset()
    """The workflows whose removal is held afterwards."""
    missing_before: Set[str] = frozenset()
    doubted: Set[Doubt] = frozenset()
    """The changes that are held afterwards."""
    doubted_before: Set[Doubt] = frozenset()
    issue: Issue | None = None
    clock_went_back: bool = False
    kept: KeptAnswer | None = None
    """The answer, where it made a version or belongs to a hold, and answers are archived."""

    @property
    def holds(self) -> bool:
        return bool(self.missing or self.doubted)

    @property
    def only_extends(self) -> bool:
        """Whether extending the open span is all that there is to write."""
        return self.extends and self.answer_digest is None
