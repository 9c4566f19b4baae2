"""Background threads: a loop that can be woken and stopped, and single flight."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from etl.system.background import BackgroundLoop, SingleFlight

PATIENCE_SECONDS = 30
HOUR_SECONDS = 3600.0


def test_a_loop_steps_when_it_is_woken_and_ends_when_it_is_stopped() -> None:
    stepped = threading.Semaphore(0)

    def step() -> float:
        stepped.release()
        return HOUR_SECONDS

    loop = BackgroundLoop("test", step, first_after_seconds=HOUR_SECONDS)
    with loop:
        assert not stepped.acquire(blocking=False), "the first step has to wait"
        loop.wake()
        assert stepped.acquire(timeout=PATIENCE_SECONDS)
    assert loop.stopping
    assert not stepped.acquire(blocking=False)


def test_a_loop_that_is_to_step_once_more_does_so_after_the_stop() -> None:
    seen: list[bool] = []
    loop = BackgroundLoop("test", lambda: seen.append(loop.stopping), first_after_seconds=HOUR_SECONDS, last_step=True)
    loop.start()
    loop.stop(PATIENCE_SECONDS)
    assert seen == [True]


def test_a_loop_ends_by_itself_when_its_step_says_so() -> None:
    pauses = iter([0.0, 0.0, None])
    loop = BackgroundLoop("test", lambda: next(pauses))
    loop.start()
    loop._thread.join(PATIENCE_SECONDS)
    assert next(pauses, "all taken") == "all taken"


def test_a_loop_that_never_began_can_be_stopped() -> None:
    BackgroundLoop("test", lambda: None).stop()


def test_of_many_threads_one_leads_and_the_others_get_what_it_got() -> None:
    flights = SingleFlight[str]()
    first, leads = flights.join()
    assert leads
    others = [flights.join() for _ in range(5)]
    assert others == [(first, False)] * 5
    with ThreadPoolExecutor(5) as waiters:
        waiting = [waiters.submit(flight.result, PATIENCE_SECONDS) for flight, _ in others]
        flights.end(first, result="found")
        assert [each.result(PATIENCE_SECONDS) for each in waiting] == ["found"] * 5
    assert flights.join()[1], "the next one begins anew"


def test_an_error_is_shared_too() -> None:
    flights = SingleFlight[str]()
    flight, _ = flights.join()
    flights.end(flight, ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        flight.result(PATIENCE_SECONDS)
