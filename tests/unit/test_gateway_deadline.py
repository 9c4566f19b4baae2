"""The watchdog: which connections it shuts, when, and which it leaves alone."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from etl.errors import GatewayUnreachable
from etl.gateway.deadline import Watchdog
from tests.support.gateways import SAFETY_NET_SECONDS


class Wire:
    """Two ends of a connection."""

    def __init__(self) -> None:
        self.near, self.far = socket.socketpair()
        self.far.settimeout(SAFETY_NET_SECONDS)

    def was_shut(self) -> bool:
        self.far.setblocking(False)
        try:
            return self.far.recv(1) == b""
        except BlockingIOError:
            return False


@pytest.fixture
def wire() -> Iterator[Wire]:
    made = Wire()
    yield made
    made.near.close()
    made.far.close()


@pytest.fixture
def watchdog() -> Iterator[Watchdog]:
    made = Watchdog(threading.Event())
    yield made
    made.close()


def test_the_earliest_of_many_deadlines_is_met(watchdog: Watchdog, wire: Wire) -> None:
    with watchdog.watch(3000), watchdog.watch(0.1) as watch, watchdog.watch(2000):
        watch.hold(wire.near)
        assert wire.far.recv(1) == b""
        assert watch.cut == "deadline"
        with pytest.raises(GatewayUnreachable, match=r"0\.1 s"):
            watch.check()


def test_a_connection_added_after_the_deadline_is_shut_at_once(watchdog: Watchdog, wire: Wire) -> None:
    with watchdog.watch(3000) as watch:
        watch.end("deadline")
        watch.hold(wire.near)
        assert wire.was_shut()


def test_a_released_connection_is_left_alone(watchdog: Watchdog, wire: Wire) -> None:
    with watchdog.watch(3000) as watch:
        watch.hold(wire.near)
        watch.release()
        watch.end("deadline")
    assert not wire.was_shut()


def test_it_rests_while_nothing_is_under_way(watchdog: Watchdog, wire: Wire) -> None:
    with watchdog.watch(3000):
        pass
    while watchdog._busy.is_set():
        threading.Event().wait(0.005)
    with watchdog.watch(0.05) as watch:
        watch.hold(wire.near)
        assert wire.far.recv(1) == b""
