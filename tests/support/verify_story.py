"""A history with a little of everything, for tests that read its rows."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable

from etl.domain.guard import Limits
from etl.domain.model import Flow, Target
from tests.support.builders import START, Diary, flow

PLANT = Target("o1", "u1")
QUIET = Target("o1", "u2", "map")
DOUBTED = Target("o2", "u1")
OTHER_LIST = Target("o2", "u2")
APPROVED = Target("o2", "ü3")
UNKNOWN = Target("o3", "u9")
FAILING = Target("o3", "u1")
"""A failing target, which is later no longer configured."""
LIMITS = Limits(min_removed=3)


class Story:
    """Answers a quarter of an hour apart, over all targets."""

    def __init__(self, diary: Diary, now: dt.datetime = START) -> None:
        self.diary = diary
        self.now = now

    def answer(self, target: Target, *listed: Flow, minutes: float = 15, by: str | None = None) -> str:
        """The gateway answers ``listed``; return the verdict."""
        self.now += dt.timedelta(minutes=minutes)
        diary = self.diary
        outcome = diary.judge(diary.fence(target), listed, self.now, limits=LIMITS, by=by)
        assert diary.apply(outcome, origin="approval" if by else "command") == set()
        return outcome.verdict


def write(diary: Diary) -> Story:
    """Write every verdict and kind of change, holds that wait, and one that was approved."""
    story = Story(diary)
    _plant(story)
    assert [story.answer(QUIET), story.answer(QUIET)] == ["changed", "unchanged"]
    story.answer(QUIET, flow(7, 'na"me\\\n\u2028\x7f', "mi", None))
    _holds(story)
    diary.store.fences([UNKNOWN])
    diary.fail(UNKNOWN)
    story.answer(FAILING, flow(1))
    diary.fail(FAILING)
    diary.store.retire_others({PLANT, QUIET, DOUBTED, OTHER_LIST, APPROVED, UNKNOWN}, story.now, None)
    return story


def _plant(story: Story) -> None:
    first = (flow(10, "reduce"), flow(2), flow("é", None, None, None), flow("𝄞", "join", "H"))
    assert [story.answer(PLANT, *first) for _ in range(3)] == ["changed", "unchanged", "unchanged"]
    second = (flow(10, "reduce all", "H"), flow(3, "new", "W"), *first[2:])
    assert story.answer(PLANT, *second) == "changed"
    story.diary.fail(PLANT)
    assert [story.answer(PLANT, *second) for _ in range(2)] == ["unchanged"] * 2
    story.answer(PLANT, *second, minutes=3 * 24 * 60)
    third = (flow(10, "reduce all", "H", editable=False), *second[1:], flow(2))
    assert [story.answer(PLANT, *third) for _ in range(3)] == ["changed", "unchanged", "unchanged"]


def _holds(story: Story) -> None:
    many = [flow(number) for number in range(5)]
    few = [flow(0, cycle="M")]
    others: Iterable[Flow] = [flow(f"x{number}") for number in range(5)]
    for target, listed in ((DOUBTED, few), (OTHER_LIST, others), (APPROVED, few)):
        assert [story.answer(target, *many) for _ in range(2)] == ["changed", "unchanged"]
        assert [story.answer(target, *listed) for _ in range(2)] == ["held", "held"]
    assert story.answer(APPROVED, *few, by="ada") == "changed"
    assert story.answer(APPROVED, *few) == "unchanged"
