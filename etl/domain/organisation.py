"""What happened in an organisation, judged from what its users' answers list. Pure.

The rules are the table in ``docs/organisation.md``; the numbers here are those of its rows.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import msgspec

from etl.domain.attributes import attribute_events
from etl.domain.losses import Losses, losses
from etl.domain.scene import Entry, Scene
from etl.domain.story import Answer, Audience, Event, Judgement, Known, Loss, Opening, Sighting, Story, Workflow


def judge(audience: Audience, workflow: Workflow) -> Judgement:
    """The events of one workflow in one step, and what is to be kept of it.

    A user's answers are judged one after the other: sightings of several versions make several rounds.
    """
    events: list[Event] = []
    openings: list[Opening] = []
    for sightings, later in _rounds(workflow.sightings):
        scene = Scene(audience, workflow, sightings, later)
        judgement = _judge_round(scene)
        events += judgement.events
        openings += judgement.openings
        workflow = Workflow(workflow.flow_id, judgement.story, judgement.showing, judgement.waiting, held=workflow.held)
    return msgspec.structs.replace(judgement, events=events, openings=openings)


def _rounds(sightings: Iterable[Sighting]) -> Iterator[tuple[list[Sighting], dict[str, Answer | None]]]:
    """The sightings by arrival, each user at most once per round. With each round: for users who occur again, the
    answer before their next sighting."""
    rounds: list[list[Sighting]] = [[]]
    seen: set[str] = set()
    for sighting in sorted(sightings, key=lambda each: (each.answer.arrived_at, each.answer.asked_at, each.user_id)):
        if sighting.user_id in seen:
            rounds.append([])
            seen.clear()
        rounds[-1].append(sighting)
        seen.add(sighting.user_id)
    laters: list[dict[str, Answer | None]] = [{}]
    for each in reversed(rounds[1:]):
        laters.append({**laters[-1], **{sighting.user_id: sighting.previous for sighting in each}})
    return zip(rounds, reversed(laters), strict=True)


class _RoundResult(NamedTuple):
    """The result of a round for a workflow; events in the order in which they happened."""

    events: list[Event]
    story: Story | None
    waiting: Mapping[str, Loss] = {}
    awaited: int = 0
    openings: tuple[Opening, ...] = ()


def _judge_round(scene: Scene) -> Judgement:
    told = _while_visible(scene) if scene.is_visible else _while_gone(scene)
    users_before = len(scene.before) + len(scene.waiting)
    users_after = len(scene.after) + len(told.waiting)
    counts = {"users_before": users_before, "users_after": users_after, "unheard": scene.audience.unheard}
    return Judgement(
        flow_id=scene.flow_id,
        events=[msgspec.structs.replace(event, **counts) for event in told.events],
        story=told.story,
        showing=scene.listing,
        waiting=told.waiting,
        awaited=told.awaited,
        is_open=bool(told.waiting) or _is_unsettled(scene, told.story),
        openings=told.openings,
    )


def _while_visible(scene: Scene) -> _RoundResult:
    """Rules 2 to 6: somebody lists it, or waits."""
    assert scene.story is not None  # noqa: S101 - who lists it has begun its story
    lost = losses(scene)
    if lost.end is not None:
        return _gone(scene, scene.story, lost, lost.end)
    since = min([scene.story.since, *(entry.at for entry in scene.entries)])
    changed, story = attribute_events(scene, msgspec.structs.replace(scene.story, since=since))
    events = [*_grants(scene, since), *changed, *lost.alone]
    return _RoundResult(events, story, lost.waiting, lost.awaited)


def _gone(scene: Scene, story: Story, lost: Losses, end: Event) -> _RoundResult:
    """Rule 3, and rule 1 where the same answers list it again."""
    ended = msgspec.structs.replace(story, gone_at=lost.gone_at)
    events = [*lost.alone, msgspec.structs.replace(end, old=story.listed)]
    if not lost.back:
        return _RoundResult(events, ended)
    back = _coming_into_sight(scene, lost.back[0], ended, is_proven_gone=end.certain)
    return back._replace(events=[*events, *back.events])


def _while_gone(scene: Scene) -> _RoundResult:
    """Nobody lists it, except users who have been silent since before its ``disappeared``."""
    if not scene.entries:
        return _RoundResult([], _still_gone(scene))
    return _coming_into_sight(scene, scene.entries[0], scene.story, is_proven_gone=not scene.before)


def _still_gone(scene: Scene) -> Story | None:
    """Users who were silent or away may have been heard without it only now."""
    if scene.story is None:
        return None
    without = [sighting.answer.arrived_at for sighting in scene.sightings if sighting.after is None]
    return msgspec.structs.replace(scene.story, gone_at=_latest([scene.story.gone_at, *without]))


def _coming_into_sight(scene: Scene, first: Entry, gone: Story | None, *, is_proven_gone: bool) -> _RoundResult:
    """Rule 1, and what else the same answers show. A user's first answer makes no event on its own."""
    name, cycle = (Known(value, first.answer, first.answer) for value in first.listed[:2])
    changed, story = attribute_events(scene, Story(first.at, name, cycle))
    rest = [*_grants(scene, first.at), *changed]
    asked_before = [gain.asked_before for gain in scene.gains if gain.asked_before < first.at]
    new = first.listed._replace(editable=None)
    if not asked_before and not scene.back:
        return _RoundResult(rest, story, openings=(Opening(new, first.at),))
    absent_at = _absent_at(scene, gone) if is_proven_gone else None
    after = absent_at or max(asked_before, default=gone.gone_at if gone else None)
    assert after is not None  # noqa: S101 - users come back only after its disappearance was reported
    appeared = Event(
        kind="reappeared" if gone else "appeared",
        flow_id=scene.flow_id,
        last_unchanged_at=after,
        observed_at=first.at,
        certain=absent_at is not None,
        old=gone.listed if gone else None,
        new=new,
    )
    return _RoundResult([appeared, *rest], story)


def _absent_at(scene: Scene, gone: Story | None) -> dt.datetime | None:
    """The latest moment at which everybody is proven to have been without it; None where there is none."""
    if not scene.gains or not scene.came_at.keys().isdisjoint(scene.after):
        return None
    absent_at = scene.audience.earliest(min(gain.asked_before for gain in scene.gains), scene.asked_without)
    if scene.audience.has_ended_stays(absent_at):
        return None
    if gone is None:
        return absent_at
    retired = (scene.audience.users[user_id].retired_at for user_id in scene.retired)
    returned = (s.answer.arrived_at for s in scene.sightings if s.previous is None)
    gone_at = _latest([gone.gone_at, *retired, *returned])
    return absent_at if gone_at is not None and gone_at <= absent_at else None


def _grants(scene: Scene, since: dt.datetime) -> Iterator[Event]:
    """Rule 2. A gain whose previous answer was requested before ``since`` is a late first sight (2a), and no event."""
    shown = list(scene.showings())
    for gain in scene.gains:
        if gain.asked_before >= since:
            yield Event(
                kind="access_granted",
                flow_id=scene.flow_id,
                last_unchanged_at=gain.asked_before,
                observed_at=gain.answer.arrived_at,
                certain=any(
                    started <= gain.asked_before
                    and (asked_at >= gain.answer.arrived_at or not scene.audience.is_search)
                    for _, started, asked_at in shown
                ),
                user_id=gain.user_id,
                new=gain.listed,
            )


def _is_unsettled(scene: Scene, story: Story | None) -> bool:
    """Whether somebody's last answer still contradicts the story: another value, or that it is there."""
    if story is None:
        return False
    if story.gone_at is not None:
        return bool(scene.after)
    return any(showing.listed[:2] != story.listed[:2] for showing in scene.after.values())


def _latest(moments: Iterable[dt.datetime | None]) -> dt.datetime | None:
    return max((at for at in moments if at is not None), default=None)
