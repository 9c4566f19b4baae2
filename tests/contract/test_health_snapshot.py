"""The health of the service by its database: the same for /freshness, /metrics and `status`."""

from __future__ import annotations

import datetime as dt
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import Engine, event

from etl.config import Schedule
from etl.config.slots import Cron, Every
from etl.domain.model import Origin, RunStatus, Target
from etl.errors import DatabaseUnreachable
from etl.report import health
from etl.report.health import third_last_slot
from etl.store import NewRun, Store
from etl.web.health import CachedProbe
from tests.support.builders import START, Diary, numbered

ANN, BOB = Target("o1", "ann"), Target("o1", "bob")
HOUR = dt.timedelta(hours=1)
HOURLY = Every(HOUR)


def schedule(*targets: Target) -> Schedule:
    return Schedule(name="plants", path=Path("plants.toml"), slots=HOURLY, targets=targets)


def run(
    engine: Engine, at: dt.datetime, status: RunStatus = "succeeded", name: str = "plants", origin: Origin = "schedule"
) -> None:
    """A run of a schedule that began at its slot; "running" is one that has not ended."""
    store = Store(engine)
    new = NewRun(origin=origin, host="here", pid=1, targets=1, schedule=name, scheduled_for=at)
    run_id = store.begin_run(new, at)
    assert run_id is not None
    if status != "running":
        assert store.finish_run(run_id, status, {}, at + dt.timedelta(seconds=5))


def overdue(engine: Engine, of: Schedule, now: dt.datetime, known_since: dt.datetime | None = None) -> set[Target]:
    since = {} if known_since is None else {of.name: known_since}
    return {each.target for each in health.read(engine, [of], now, since).overdue}


# --------------------------------------------------------------------------------------------------- due slots


def test_a_weekday_cron_is_not_waited_for_on_sunday() -> None:
    found = partial(third_last_slot, Cron("0 9 * * 1-5", "UTC"), dt.timedelta(0))
    sunday = dt.datetime(2026, 3, 8, 18, tzinfo=dt.UTC)
    assert found(sunday) == dt.datetime(2026, 3, 4, 9, tzinfo=dt.UTC), "Friday's, Thursday's, this"
    assert found(sunday + dt.timedelta(hours=14)) == found(sunday)


@pytest.mark.parametrize(
    ("minutes", "jitter", "under_way", "hour"),
    [(2, 0, None, 10), (0.5, 0, None, 9), (2, 3, None, 9), (5, 3, None, 10), (2, 0, 12, 9), (0.5, 0, 12, 9)],
)
def test_a_slot_has_passed_when_its_run_had_its_time(
    minutes: float, jitter: int, under_way: int | None, hour: int
) -> None:
    noon = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
    run = None if under_way is None else noon.replace(hour=under_way)
    found = third_last_slot(HOURLY, dt.timedelta(minutes=jitter), noon + dt.timedelta(minutes=minutes), run)
    assert found == noon.replace(hour=hour)


# --------------------------------------------------------------------------------------------------- overdue


LIVES = {
    "three due slots passed without an observation": (["0 seen"], {2: False, 3: True}),
    "an observation ends it": (["0 seen", "3.04 seen"], {3: False}),
    "a run under way excuses one slot": (["0 seen", "3 running"], {3: False, 4: True}),
    "but none where the target was overdue before": (["0 seen", "4 running"], {3: True, 3.97: True, 4: True}),
    "never observed, and no run ends": (["0 failed", "1 aborted", "2 aborted", "3 aborted"], {2: False, 3: True}),
    "registered, and none ends": (
        ["0 known", "0 failed", "1 aborted", "2 aborted", "3 aborted"],
        {2: False, 3: True},
    ),
    "last observed when the clock was ahead, and no run ends": (
        ["-1 succeeded", "-1 seen", "720 succeeded", "720 seen", "0 aborted", "1 aborted", "2 aborted"],
        {1: False, 2: True},
    ),
}
"""What happened at which hour to an hourly schedule and its target; and whether that is overdue two minutes past."""


@pytest.mark.parametrize("name", LIVES)
def test_a_target_is_overdue_after_three_slots_in_which_nobody_heard_of_it(
    engine: Engine, diary: Diary, name: str
) -> None:
    told, expected = LIVES[name]
    for step in told:
        hour, what = step.split()
        at = START + float(hour) * HOUR
        if what == "seen":
            diary.answer(numbered(1, 3), at, ANN)
        elif what == "known":
            diary.store.fences([ANN], register=True)
        else:
            run(engine, at, what)  # type: ignore[arg-type]
    looked = {hours: START + hours * HOUR + dt.timedelta(minutes=2) for hours in expected}
    assert {hours: overdue(engine, schedule(ANN), at) == {ANN} for hours, at in looked.items()} == expected


@pytest.mark.parametrize("code", ["62101", "62103", "99403", "99404"])
def test_a_target_that_is_refused_for_good_is_named_but_not_overdue(engine: Engine, diary: Diary, code: str) -> None:
    diary.answer(numbered(1, 3), START, ANN)
    diary.fail(ANN, code)
    found = health.read(engine, [schedule(ANN)], START + 9 * HOUR)
    assert (found.fresh, found.refused, found.failing, found.refused_targets) == (True, 1, 0, (ANN,))


def test_a_refused_target_stays_refused_while_no_answer_comes(engine: Engine, diary: Diary) -> None:
    """One 503 in three days must wake nobody."""
    diary.answer(numbered(1, 3), START, ANN)
    diary.fail(ANN, "62101")
    for code in ("http_503", "http_521", "deadline", "1003", "gateway_down", "99500", "not_stored"):
        diary.fail(ANN, code)
    found = health.read(engine, [schedule(ANN)], START + 9 * HOUR)
    assert (found.fresh, found.refused, found.failing) == (True, 1, 0)
    [refused] = [each for each in found.conditions() if each.code == "targets_refused"]
    assert "62101" in refused.sentence
    assert "Grant" not in refused.remedy
    diary.fail(ANN, "malformed")
    assert overdue(engine, schedule(ANN), START + 9 * HOUR) == {ANN}, "an answer, and no refusal"


def test_a_held_target_is_overdue_only_if_it_no_longer_answers(engine: Engine, diary: Diary) -> None:
    diary.answer(numbered(1, 40), START, ANN)
    for hours in range(1, 10):
        diary.answer(numbered(1, 3), START + hours * HOUR, ANN)
    later = START + 9 * HOUR + dt.timedelta(minutes=2)
    found = health.read(engine, [schedule(ANN)], later)
    assert (found.fresh, found.held, found.held_workflows) == (True, 1, 37)
    diary.fail(ANN, "http_503")
    assert overdue(engine, schedule(ANN), later + 2 * HOUR) == set()
    [late] = health.read(engine, [schedule(ANN)], later + 3 * HOUR).overdue
    assert (late.last_observed_at, late.held_since) == (START, START + HOUR)


def test_a_target_that_was_never_observed_is_overdue_after_three_attempts(engine: Engine, diary: Diary) -> None:
    run(engine, START)
    diary.fail(ANN)
    diary.fail(ANN)
    now = START + HOUR
    assert overdue(engine, schedule(ANN), now) == set(), "a target that is new in its schedule pages nobody"
    diary.fail(ANN)
    assert overdue(engine, schedule(ANN), now) == {ANN}


def test_a_schedule_that_never_ran_is_given_its_slots_from_when_the_service_knew_it(engine: Engine) -> None:
    later = START + dt.timedelta(minutes=2)
    assert overdue(engine, schedule(ANN), later) == set()
    assert overdue(engine, schedule(ANN), later + 2 * HOUR, known_since=START) == set()
    assert overdue(engine, schedule(ANN), later + 3 * HOUR, known_since=START) == {ANN}


# --------------------------------------------------------------------------------------------------- from the future

MONTH = dt.timedelta(days=30)


def ahead_by_a_month(engine: Engine, diary: Diary) -> None:
    """A run and its answer of Ann, while the clock was a month ahead; then it went back to START."""
    run(engine, START - HOUR)
    diary.answer(numbered(1, 3), START - HOUR, ANN)
    run(engine, START + MONTH)
    diary.answer(numbered(1, 4), START + MONTH, ANN)


def test_times_ahead_of_now_count_as_no_observation_no_change_and_no_success(engine: Engine, diary: Diary) -> None:
    ahead_by_a_month(engine, diary)
    found = health.read(engine, [schedule(ANN)], START)
    assert (found.last_observation_at, found.last_change_at) == (None, START - HOUR)
    assert found.last_success_at == {"plants": START - HOUR + dt.timedelta(seconds=5)}
    later = health.read(engine, [schedule(ANN)], START + MONTH + HOUR)
    assert (later.last_observation_at, later.last_change_at) == (START + MONTH, START + MONTH)
    assert later.last_success_at == {"plants": START + MONTH + dt.timedelta(seconds=5)}


def test_a_target_that_was_last_observed_ahead_of_now_is_judged_by_what_fails_since(
    engine: Engine, diary: Diary
) -> None:
    ahead_by_a_month(engine, diary)
    now = START + dt.timedelta(minutes=2)
    for hours in range(3):
        assert overdue(engine, schedule(ANN), now + hours * HOUR) == set()
        run(engine, START + hours * HOUR, "failed")
        diary.fail(ANN)
    assert overdue(engine, schedule(ANN), now + 2 * HOUR) == {ANN}
    run(engine, START + 3 * HOUR)
    diary.answer(numbered(1, 4), START + 3 * HOUR, ANN)
    assert overdue(engine, schedule(ANN), now + 3 * HOUR) == set(), "observed, though it is recorded a month ahead"


@pytest.mark.parametrize(("seconds", "said"), [(30, False), (90, True)])
def test_a_clock_that_went_back_is_reported_with_its_remedy(
    engine: Engine, diary: Diary, seconds: int, said: bool
) -> None:
    diary.answer(numbered(1, 3), START + dt.timedelta(seconds=seconds), ANN)
    found = health.read(engine, [schedule(ANN)], START)
    assert [each.code for each in found.conditions()] == ["clock_off"] * said
    for each in found.conditions():
        assert "a target has an observation that lies ahead of now, up to 2026-03-01 12:01:30 UTC" in each.sentence
        assert "NTP" in each.remedy


# --------------------------------------------------------------------------------------------------- sums


def test_the_sums_count_each_target_that_is_not_retired(engine: Engine, diary: Diary) -> None:
    gone, new = Target("o2", "gone"), Target("o2", "new")
    diary.answer(numbered(1, 30), START, ANN)
    diary.answer(numbered(1, 5), START + HOUR, BOB)
    diary.answer(numbered(1, 40), START, gone)
    diary.answer(numbered(1, 7), START + HOUR, gone)  # held, and retired below
    diary.fail(BOB)
    diary.fail(new)
    diary.answer(numbered(1, 10), START + 2 * HOUR, ANN)  # held
    diary.store.retire_others([ANN, BOB, new], START + 3 * HOUR, None)
    found = health.read(engine, [schedule(ANN, BOB)], START + 2 * HOUR)
    assert (found.targets, found.never_observed, found.failing, found.refused) == (3, 1, 2, 0)
    assert (found.held, found.held_workflows, found.listed) == (1, 20, 35)
    assert (found.last_observation_at, found.last_change_at) == (START + HOUR, START + HOUR)
    assert found.overdue_by_schedule == {"plants": 0}


def test_an_empty_database_has_a_health_snapshot(engine: Engine) -> None:
    found = health.read(engine, [schedule(ANN)], START)
    assert (found.targets, found.fresh, found.last_observation_at) == (0, True, None)
    assert found.last_success_at == {"plants": None}


def test_the_last_success_is_the_last_run_of_the_schedule_that_got_something_through(engine: Engine) -> None:
    for hours, status in enumerate(("succeeded", "partial", "failed", "aborted", "running")):
        run(engine, START + hours * HOUR, status)  # type: ignore[arg-type]
    run(engine, START + 9 * HOUR, name="others")
    found = health.read(engine, [schedule(ANN)], START + 9 * HOUR)
    assert found.last_success_at == {"plants": START + HOUR + dt.timedelta(seconds=5)}


# --------------------------------------------------------------------------------------------------- many schedules


def many(count: int) -> list[Schedule]:
    return [msgspec.structs.replace(schedule(Target("o1", f"u{n}")), name=f"s{n}") for n in range(count)]


def test_each_of_many_schedules_is_judged_by_its_own_runs(engine: Engine, diary: Diary) -> None:
    """One that succeeds, one that fails, one whose run is under way, one that never ran; and none takes another's."""
    succeeds, fails, begins, waits = schedules = many(4)
    for hours in range(5):
        run(engine, START + hours * HOUR, name=succeeds.name)
        run(engine, START + hours * HOUR, "failed", name=fails.name)
    run(engine, START + 4 * HOUR, "running", name=begins.name)
    diary.store.fences([fails.targets[0]], register=True)
    now = START + 4 * HOUR + dt.timedelta(minutes=2)
    found = health.read(engine, schedules, now, dict.fromkeys((each.name for each in schedules), START))
    assert found.last_success_at == {
        succeeds.name: START + 4 * HOUR + dt.timedelta(seconds=5),
        **dict.fromkeys((fails.name, begins.name, waits.name)),
    }
    assert found.overdue_by_schedule == {succeeds.name: 0, fails.name: 0, begins.name: 0, waits.name: 1}


def test_health_takes_as_few_statements_for_a_thousand_schedules_as_for_one(engine: Engine) -> None:
    asked: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
    health.read(engine, many(1), START)
    of_one = len(asked)
    assert len(health.read(engine, many(1000), START).last_success_at) == 1000
    assert len(asked) == 2 * of_one


# --------------------------------------------------------------------------------------------------- a glance


def test_concurrent_callers_share_one_probe() -> None:
    looks, asked, go_on = threading.Semaphore(0), threading.Semaphore(0), threading.Event()

    class Counted(CachedProbe[str]):
        def _look_at_most_once(self) -> Future[str]:
            flight = super()._look_at_most_once()
            asked.release()
            return flight

    def look() -> str:
        looks.release()
        assert go_on.wait(30)
        return "seen"

    glance = Counted(look)
    with ThreadPoolExecutor(8) as askers:
        told = [askers.submit(glance) for _ in range(8)]
        for _ in told:
            assert asked.acquire(timeout=30)
        go_on.set()
        assert [each.result(30) for each in told] == ["seen"] * 8
    assert looks.acquire(blocking=False)
    assert not looks.acquire(blocking=False), "one look"


def test_a_database_that_does_not_answer_delays_no_caller_for_long() -> None:
    answers, hangs = threading.Event(), threading.Event()
    answers.set()

    def look() -> str:
        if not answers.is_set():
            assert hangs.wait(30)
        return "seen"

    strict, lenient = CachedProbe(look), CachedProbe(look, good_for_seconds=600)
    assert (strict(), lenient()) == ("seen", "seen")
    answers.clear()
    strict._patience_seconds = lenient._patience_seconds = 0.05
    while strict._rests_until > time.monotonic() or lenient._rests_until > time.monotonic():
        pass
    with pytest.raises(DatabaseUnreachable, match="does not answer within"):
        strict()
    assert lenient() == "seen", "what was seen a moment ago"
    hangs.set()
    answers.set()
    strict._patience_seconds = 30
    assert strict() == "seen"


def test_an_error_of_a_probe_is_not_cached() -> None:
    trouble = [DatabaseUnreachable("away")]

    def look() -> str:
        if trouble:
            raise trouble.pop()
        return "seen"

    glance = CachedProbe(look)
    with pytest.raises(DatabaseUnreachable, match="away"):
        glance()
    assert glance() == "seen"
