"""The values of the rules: what users' answers said, what was concluded, and the states that follow from it. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from etl.domain.kinds import EventKind

AT_ONCE: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
"""Due at the next step, whatever the clock says by then."""


class Answer(NamedTuple):
    """When an answer was requested, and when all of it had arrived. EnOS read the list at some moment in between."""

    asked_at: dt.datetime
    arrived_at: dt.datetime


class Listed(NamedTuple):
    """A workflow as a list shows it."""

    name: str | None
    cycle: str | None
    editable: bool | None


class User(msgspec.Struct, frozen=True, gc=False):
    """A user who counts, or who counted until ``retired_at``."""

    latest: Answer
    coverage_gap: dt.timedelta
    heard: bool = True
    """In the run that ends."""
    retired_at: dt.datetime | None = None

    @property
    def left_at(self) -> dt.datetime:
        """When nothing is known of the user any more: silent for longer than ``coverage_gap``, or retired."""
        silent_at = self.latest.arrived_at + self.coverage_gap
        return silent_at if self.retired_at is None else min(silent_at, self.retired_at)


class ListEntry(NamedTuple):
    """A workflow in a user's list."""

    since: dt.datetime
    """Arrival of the first answer since which every answer has listed it."""
    listed: Listed


class ListingChange(NamedTuple):
    """What one answer changed about one workflow, for one user. ``previous`` is the answer before it.

    ``previous`` None: the user's first answer after joining or coming back. It lists the workflow; or it no longer
    does, although the user was known to list it before retiring.
    """

    user_id: str
    before: Listed | None
    after: Listed | None
    previous: Answer | None
    answer: Answer


class Loss(NamedTuple):
    """A user who lost the workflow, while it is not known yet whether everybody did."""

    listed: Listed
    shown_asked_at: dt.datetime
    """Request of the user's last answer that listed it."""
    without: Answer
    """The user's first answer that did not."""


class KnownValue(NamedTuple):
    """The last known name (or cycle), the first answer that had it, and the latest such answer of a user who has
    another value by now."""

    value: str | None
    first: Answer
    last: Answer


class KnownWorkflow(msgspec.Struct, frozen=True, gc=False):
    """What is stored of a workflow that some user of the story has shown."""

    since: dt.datetime
    """Arrival of the first answer that listed it, since it (re)appeared."""
    name: KnownValue
    cycle: KnownValue
    gone_at: dt.datetime | None = None
    """Set by ``disappeared``: everybody was without it at some moment since then. None while somebody may have it."""

    @property
    def listed(self) -> Listed:
        """As it was last known. Editability belongs to a workflow and a user, so it is None."""
        return Listed(self.name.value, self.cycle.value, None)


class Workflow(msgspec.Struct, frozen=True):
    """A workflow that a step must judge: what was known before, and what the step's answers changed."""

    flow_id: str
    known: KnownWorkflow | None = None
    listings: Mapping[str, ListEntry] = msgspec.field(default_factory=dict)
    """By user, including those who retired while their last answer listed it."""
    waiting: Mapping[str, Loss] = msgspec.field(default_factory=dict)
    changes: Sequence[ListingChange] = ()
    held: Mapping[str, Answer] = msgspec.field(default_factory=dict)
    """By user whose removal of it is held at this step: the user's last answer that listed it."""


class Event(msgspec.Struct, frozen=True, gc=False):
    """Something that happened in the organisation, after ``last_unchanged_at`` and not after ``observed_at``."""

    kind: EventKind
    flow_id: str
    last_unchanged_at: dt.datetime
    observed_at: dt.datetime
    proven_for_all: bool
    user_id: str | None = None
    """The user whose access changed; None for other kinds."""
    old: Listed | None = None
    new: Listed | None = None
    users_before: int = 0
    """How many users showed it or waited before the step."""
    users_after: int = 0
    unheard: int = 0
    """How many active users were not heard in the run that decided."""


class WorkflowState(NamedTuple):
    """A state of a workflow in its organisation, since ``valid_from``."""

    valid_from: dt.datetime
    last_unchanged_at: dt.datetime | None
    """None: known from a user's first answer."""
    listed: Listed
    from_kind: str
    """The kind of an event, or ``baseline``."""
    proven_for_all: bool


class Judgement(msgspec.Struct, frozen=True):
    """The result of a step, or of a round of it, for a workflow: its events, and what is to be stored."""

    flow_id: str
    events: Sequence[Event]
    """In the order in which they happened."""
    known: KnownWorkflow | None
    waiting: Mapping[str, Loss] = {}
    awaited: int = 0
    """How many users must still be heard before the users who wait can be judged."""
    listings: Mapping[str, ListEntry] = {}
    due_at: dt.datetime | None = None
    """From this moment on, each step must judge it even if no answer changes it; None: no step need."""
    baselines: Sequence[WorkflowState] = ()
    """The states that begin without an event: nobody showed it, and it is known from a user's first answer."""


class StepContext:
    """The users of a story when a step is judged, at ``decided_at``.

    ``users`` are those who count, and those who counted until they retired; ``ended_stays`` are the moments when users
    retired who have come back since.
    """

    def __init__(
        self, users: Mapping[str, User], decided_at: dt.datetime, ended_stays: Iterable[dt.datetime] = ()
    ) -> None:
        self.users: Final = users
        self.decided_at: Final = decided_at
        self.active: Final = frozenset(
            user_id for user_id, user in users.items() if user.retired_at is None and user.left_at >= decided_at
        )
        self.by_request: Final = sorted((users[user_id].latest.asked_at, user_id) for user_id in self.active)
        """The active users by the request of their latest answer, which is all that most of them say of a workflow."""
        self.heard: Final = any(user.heard for user in users.values())
        self.unheard: Final = sum(not users[user_id].heard for user_id in self.active)
        self.last_arrival: Final = max((user.latest.arrived_at for user in users.values()), default=decided_at)
        left = ((users[user_id].left_at, user_id) for user_id in users.keys() - self.active)
        self.left: Final = sorted(left, reverse=True)
        """When users fell silent or retired, the latest first."""
        self.last_end: Final = max(ended_stays, default=None)

    def left_since(self, moment: dt.datetime) -> Iterator[str]:
        """The users who fell silent or retired at ``moment`` or later."""
        return (user_id for left_at, user_id in self.left if left_at >= moment)

    def has_ended_stays(self, moment: dt.datetime) -> bool:
        """Whether somebody who has come back was away from ``moment`` or later."""
        return self.last_end is not None and self.last_end >= moment


def states_after(
    state: WorkflowState | None,
    judgement: Judgement,
    retired_at: dt.datetime | None,
    ended_until: dt.datetime | None = None,
) -> tuple[WorkflowState | None, list[tuple[WorkflowState, dt.datetime]]]:
    """The state that a step leaves, and those that ended with it, with their ends.

    ``retired_at``: when the last of its users retired, if all of them did; nobody sees it from then on.
    ``ended_until``: until when its states of earlier steps lasted. A later step may judge an answer that arrived before
    that, from a run that was under way; its state begins then, so that no two states overlap.
    """
    ended: list[tuple[WorkflowState, dt.datetime]] = []
    for at, following in _in_order(judgement):
        if following is not None and ended_until is not None:
            following = following._replace(valid_from=max(following.valid_from, ended_until))
        if state is not None and following is not None and following.valid_from <= state.valid_from:
            state = state._replace(listed=following.listed)
            continue
        ended += [(state, at)] if state else []
        state = following
    if retired_at is not None and state is not None and judgement.due_at is None:
        ended.append((state, retired_at))
        state = None
    return state, [(each, at) for each, at in ended if each.valid_from < at]


def _in_order(judgement: Judgement) -> Iterator[tuple[dt.datetime, WorkflowState | None]]:
    """When its state changed, and to which; openings come before later events, otherwise in the judgement's order."""
    baselines = [(state.valid_from, state) for state in judgement.baselines]
    for event in judgement.events:
        while baselines and baselines[0][0] < event.observed_at:
            yield baselines.pop(0)
        if event.user_id is None:
            yield event.observed_at, _state_of(event)
    yield from baselines


def _state_of(event: Event) -> WorkflowState | None:
    listed = event.new and event.new._replace(editable=None)
    return listed and WorkflowState(
        event.observed_at, event.last_unchanged_at, listed, event.kind, event.proven_for_all
    )
