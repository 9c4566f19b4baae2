"""Concurrent requests: as many as allowed, none twice, and none while enough answers wait."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from etl.domain.model import Fence, Flow, Snapshot, Target
from etl.errors import Malformed
from etl.store.bulk import grouped
from etl.sync.fetching import Fetched, Fetcher

NOW = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
FENCES = [Fence(target=Target("o", f"u{number}", ""), target_id=number) for number in range(40)]
IN_FLIGHT = 4


def answer(fence: Fence, flows: int) -> Fetched:
    many = tuple(Flow(str(number), None, None, None) for number in range(flows))
    return Fetched(fence, Snapshot(fence.target, many, "", NOW, NOW, 1, b""), differs=True)


def asking(ask: Callable[[Fence], Fetched], threads: ThreadPoolExecutor) -> Fetcher:
    return Fetcher(ask, FENCES, threads, IN_FLIGHT)


def test_every_target_is_requested_once_and_yielded_once() -> None:
    with ThreadPoolExecutor(IN_FLIGHT) as threads:
        groups = list(asking(lambda fence: answer(fence, 3_000), threads).groups())
    assert sorted(asked.fence.target_id for group in groups for asked in group) == list(range(40))
    assert {len(group) for group in groups[:-1]} == {4}, "10,000 workflows or a little more are written together"


def test_no_more_is_requested_while_arrived_answers_are_not_judged() -> None:
    asked_for: list[int] = []

    def ask(fence: Fence) -> Fetched:
        asked_for.append(fence.target_id)
        return answer(fence, 10_000)

    with ThreadPoolExecutor(IN_FLIGHT) as threads:
        groups = asking(ask, threads).groups()
        for done in range(1, 11):
            next(groups)
            assert len(asked_for) <= done + IN_FLIGHT
        assert sum(len(group) for group in groups) == 30


def test_nothing_more_is_requested_once_the_caller_stops() -> None:
    asked_for: list[int] = []
    closed = threading.Event()

    def ask(fence: Fence) -> Fetched:
        asked_for.append(fence.target_id)
        if len(asked_for) > 1:
            assert closed.wait(20)
        return answer(fence, 1)

    with ThreadPoolExecutor(IN_FLIGHT) as threads:
        groups = asking(ask, threads).groups()
        next(groups)
        groups.close()
        closed.set()
    assert len(asked_for) <= 1 + IN_FLIGHT


def test_no_more_requests_are_in_flight_than_allowed() -> None:
    all_there, now, most = threading.Barrier(IN_FLIGHT, timeout=20), [0], [0]
    lock = threading.Lock()

    def ask(fence: Fence) -> Fetched:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        all_there.wait()
        with lock:
            now[0] -= 1
        return Fetched(fence, Malformed("no list", code="malformed"))

    with ThreadPoolExecutor(2 * IN_FLIGHT) as threads:
        assert sum(len(group) for group in asking(ask, threads).groups()) == 40
    assert most == [IN_FLIGHT]


def test_arrived_answers_are_handed_out_when_nothing_more_comes() -> None:
    written = threading.Event()

    def ask(fence: Fence) -> Fetched:
        if fence.target_id:
            assert written.wait(timeout=20)
        return answer(fence, 1)

    with ThreadPoolExecutor(IN_FLIGHT) as threads:
        groups = asking(ask, threads).groups()
        assert [asked.fence.target_id for asked in next(groups)] == [0]
        written.set()
        assert sum(len(group) for group in groups) == 39


def test_no_answer_is_lost_whichever_comes_last() -> None:
    for _ in range(50):
        with ThreadPoolExecutor(IN_FLIGHT) as threads:
            assert sum(len(group) for group in asking(lambda fence: answer(fence, 9_999), threads).groups()) == 40


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        pytest.param([], [], id="nothing"),
        pytest.param([1, 2, 2, 1], [[1, 2], [2, 1]], id="as many as fit"),
        pytest.param([1, 7, 1, 3], [[1], [7], [1], [3]], id="a larger item alone"),
        pytest.param([0, 3, 0, 1], [[0, 3, 0], [1]], id="items without a size"),
    ],
)
def test_a_group_is_closed_before_it_gets_too_large(sizes: list[int], expected: list[list[int]]) -> None:
    assert list(grouped(sizes, int, 3)) == expected
