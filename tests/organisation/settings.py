"""The simulated worlds: ordinary ones, in which the share of certain events is measured, and difficult ones."""

from __future__ import annotations

from dataclasses import replace

from tests.organisation.world import HOUR, SECOND, Schedule, Setting

MINUTE = 60 * SECOND
DAY = 24 * HOUR


def one_after_the_other(users: list[str]) -> list[Schedule]:
    """Requests do not overlap."""
    return [Schedule(tuple(users), HOUR, 5 * SECOND * len(users), 4 * SECOND, 36 * HOUR)]


def all_day(users: list[str]) -> list[Schedule]:
    return [Schedule(tuple(users), HOUR, 35 * MINUTE, 20 * MINUTE, 12 * HOUR)]


def two_by_turns(users: list[str]) -> list[Schedule]:
    """Some users are in both schedules, whose runs overlap."""
    half = len(users) // 2
    often, seldom = tuple(users[: half + 1]), tuple(users[half - 1 :])
    return [
        Schedule(often, HOUR, 50 * MINUTE, 6 * MINUTE, 36 * HOUR),
        Schedule(seldom, 3 * HOUR, 170 * MINUTE, 30 * MINUTE, 36 * HOUR, in_order=True),
    ]


def overlapping(users: list[str]) -> list[Schedule]:
    """Runs that take longer than the time between them."""
    return [
        Schedule(tuple(users), HOUR, 150 * MINUTE, 20 * MINUTE, 12 * HOUR),
        Schedule(tuple(users), HOUR, 5 * MINUTE, 10 * MINUTE, 12 * HOUR),
    ]


def other_gaps(users: list[str]) -> list[Schedule]:
    """Some users are soon silent, some never, and some are in both schedules: for them the longer gap counts."""
    often, seldom = two_by_turns(users)
    return [replace(often, coverage_gap=2 * HOUR), replace(seldom, coverage_gap=10 * DAY)]


def soon_silent(users: list[str]) -> list[Schedule]:
    """After two failures a user counts as silent."""
    return [Schedule(tuple(users), HOUR, 10 * MINUTE, MINUTE, 90 * MINUTE)]


def silent_at_once(users: list[str]) -> list[Schedule]:
    return [Schedule(tuple(users), 4 * DAY, 10 * MINUTE, MINUTE, 36 * HOUR)]


ORDINARY = {
    "12 users": Setting(users=12, schedules=one_after_the_other),
    "60 users": Setting(users=60, schedules=one_after_the_other),
}
DIFFICULT = {
    "a slow run": Setting(schedules=all_day, changes_an_hour=6),
    "two schedules": Setting(schedules=two_by_turns, changes_an_hour=6),
    "other gaps": Setting(schedules=other_gaps, changes_an_hour=6, failing=0.1, outages_an_hour=0.05),
    "overlapping runs": Setting(schedules=overlapping, changes_an_hour=6),
    "silence": Setting(schedules=soon_silent, changes_an_hour=6, failing=0.1),
    "runs far apart": Setting(users=15, schedules=silent_at_once, changes_an_hour=0.05, failing=0.03),
    "outages": Setting(outages_an_hour=0.05),
    "holds": Setting(held=0.3, schedules=all_day),
    "joining and leaving": Setting(moves_an_hour=0.1),
    "restless rights": Setting(
        users=2, workflows=4, schedules=all_day, audience=1.0, most_changed=0.8, changes_an_hour=6
    ),
    "few and busy": Setting(
        users=3, workflows=4, schedules=overlapping, audience=1.0, most_changed=0.3, changes_an_hour=12
    ),
    "everything": Setting(
        users=6,
        workflows=10,
        schedules=two_by_turns,
        audience=0.7,
        changes_an_hour=5,
        most_changed=0.2,
        held=0.2,
        skipped=0.3,
        moves_an_hour=0.05,
        outages_an_hour=0.03,
    ),
    "everything at once": Setting(
        users=5,
        workflows=6,
        schedules=overlapping,
        audience=1.0,
        changes_an_hour=8,
        most_changed=0.4,
        failing=0.2,
        held=0.2,
        skipped=0.2,
        moves_an_hour=0.1,
        outages_an_hour=0.03,
    ),
}
