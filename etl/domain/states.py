"""The states of a workflow in its organisation, from its events. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import NamedTuple

from etl.domain.story import Baseline, Event, Judgement, Listed


class WorkflowState(NamedTuple):
    """A state of a workflow in its organisation, since ``valid_from``."""

    valid_from: dt.datetime
    last_unchanged_at: dt.datetime | None
    """None: known from a user's first answer."""
    listed: Listed
    from_kind: str
    """The kind of an event, or ``baseline``."""
    proven_for_all: bool


class EndedState(NamedTuple):
    """A state that lasted until ``valid_to``."""

    state: WorkflowState
    valid_to: dt.datetime


def states_after(
    state: WorkflowState | None,
    judgement: Judgement,
    retired_at: dt.datetime | None,
    ended_until: dt.datetime | None = None,
) -> tuple[WorkflowState | None, list[EndedState]]:
    """The state that a step leaves, and those that ended with it.

    ``retired_at``: when the last of its users retired, if all of them did; nobody sees it from then on.
    ``ended_until``: until when its states of earlier steps lasted. A later step may judge an answer that arrived before
    that, from a run that was under way; its state begins then, so that no two states overlap.
    """
    ended: list[EndedState] = []
    for happened in _in_order(judgement):
        following = _state_of(happened)
        if following is not None and ended_until is not None:
            following = following._replace(valid_from=max(following.valid_from, ended_until))
        if state is not None and following is not None and following.valid_from <= state.valid_from:
            state = state._replace(listed=following.listed)
            continue
        _end(state, _moment(happened), ended)
        state = following
    if retired_at is not None and state is not None and not judgement.is_open:
        _end(state, retired_at, ended)
        state = None
    return state, ended


def _in_order(judgement: Judgement) -> Iterator[Event | Baseline]:
    """Openings come before later events; otherwise in the judgement's order."""
    baselines = list(judgement.baselines)
    for event in judgement.events:
        while baselines and baselines[0].at < event.observed_at:
            yield baselines.pop(0)
        if event.user_id is None:
            yield event
    yield from baselines


def _moment(happened: Event | Baseline) -> dt.datetime:
    return happened.at if isinstance(happened, Baseline) else happened.observed_at


def _state_of(happened: Event | Baseline) -> WorkflowState | None:
    if isinstance(happened, Baseline):
        return WorkflowState(happened.at, None, _named(happened.listed), "baseline", True)
    if happened.new is None:
        return None
    return WorkflowState(
        happened.observed_at, happened.last_unchanged_at, _named(happened.new), happened.kind, happened.proven_for_all
    )


def _named(listed: Listed) -> Listed:
    return listed._replace(editable=None)


def _end(state: WorkflowState | None, at: dt.datetime, ended: list[EndedState]) -> None:
    if state is not None and state.valid_from < at:
        ended.append(EndedState(state, at))
