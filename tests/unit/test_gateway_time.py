"""The gateway client and time: deadlines, stops, our own rate limit, and clocks that disagree."""

from __future__ import annotations

import contextlib
import datetime as dt
import gzip
import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from etl.domain.model import Target
from etl.errors import GatewayUnreachable, Interrupted, Malformed, PermanentGatewayError
from etl.gateway import Gateway, timing
from etl.gateway.deadline import Deadline, Handle, Watchdog
from etl.gateway.timing import RequestPacing
from tests.support.gateways import SAFETY_NET_SECONDS, TARGET, at_once, failure, gateway, one_exchange, settings_for
from tests.support.hostile import Hostile, Peer, Step, answer, chunked, code, flows, http, then

WHOLE = http(flows(*({"flowId": str(n), "flowName": "x" * 50} for n in range(200))))


# Time


def _long_drip(prefix: bytes, slow: bytes) -> Step:
    def step(peer: Peer) -> None:
        peer.send(prefix)
        peer.drip(slow, 0.01)

    return step


HEAD = b"HTTP/1.1 200 OK\r\n"
DRIPS: list[tuple[str, Step]] = [
    ("before the status line", _long_drip(b"", b"HTTP/1.1 200 " + b"x" * 9000)),
    ("in a header", _long_drip(HEAD + b"X-A: ", b"x" * 9000)),
    ("a header at a time", _long_drip(HEAD, b"X: y\r\n" * 1500)),
    ("100 Continue for ever", _long_drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 400)),
    ("in the body", _long_drip(HEAD + b"Content-Length: 9000\r\n\r\n", b" " * 9000)),
    ("in a body without length", _long_drip(HEAD + b"\r\n", b" " * 9000)),
    ("after a whole body without end", _long_drip(HEAD + b"\r\n" + flows(), b" " * 9000)),
    ("in a chunk", _long_drip(chunked(b" " * 9000)[:60], b" " * 9000)),
    ("in a chunk's header", _long_drip(chunked(end=b"5;"), b"x" * 9000)),
    ("in the trailer", _long_drip(chunked(flows(), end=b"0\r\n"), b"X: y\r\n" * 1500)),
    ("chunks of one byte", _long_drip(chunked(end=b""), b"1\r\n \r\n" * 1500)),
    ("in a gzip", _long_drip(HEAD + b"Content-Encoding: gzip\r\n\r\n", gzip.compress(os.urandom(9000)))),
    ("in an error's body", _long_drip(b"HTTP/1.1 503 No\r\nContent-Length: 9000\r\n\r\n", b" " * 9000)),
    ("silence", lambda peer: peer.hang()),
    ("silence in the body", then(WHOLE[:500], "hang")),
]


@pytest.mark.parametrize("step", [each[1] for each in DRIPS], ids=[each[0] for each in DRIPS])
def test_no_server_outlives_the_deadline_whatever_it_drips(step: Step) -> None:
    with Hostile(step) as server:
        error = failure(server, deadline=0.2)
        assert server.connections == 0 or server.left.wait(SAFETY_NET_SECONDS)
        assert server.played == 0, "the server came to its end first"
    assert isinstance(error, GatewayUnreachable)
    assert error.code == "deadline"
    assert error.gateway_down_evidence
    assert "0.2 s" in str(error)


def test_a_kept_connection_cannot_outlive_the_deadline_either() -> None:
    slow = _long_drip(HEAD + b"X-A: ", b"x" * 300 + b"\r\n\r\n")
    with Hostile(answer(), slow) as server, gateway(server, deadline=1) as client:
        client.fetch(TARGET)
        with pytest.raises(GatewayUnreachable) as caught:
            client.fetch(TARGET)
        assert server.left.wait(SAFETY_NET_SECONDS)
        assert server.played == 1, "the server came to its end first"
    assert caught.value.code == "deadline"
    assert server.connections == 1


def test_the_deadline_covers_the_token_too() -> None:
    with Hostile(tokens=(_long_drip(HEAD, b"X: y\r\n" * 1500),)) as server:
        error = failure(server, deadline=0.3, auth="token")
    assert (error.code, error.attempts) == ("deadline", 1)
    assert not server.flow_requests


def test_a_deadline_in_a_retry_tells_what_came_before() -> None:
    with Hostile(http("", 503), lambda peer: peer.hang()) as server:
        error = failure(server, deadline=1.2)
    assert error.code == "deadline"
    assert "before that: HTTP 503" in str(error)


def test_a_read_that_takes_too_long_is_a_timeout_and_tried_again() -> None:
    with Hostile(lambda peer: peer.hang(), answer()) as server, gateway(server, timeout=0.2) as client:
        assert client.fetch(TARGET).attempts == 2
    for step in (lambda peer: peer.hang(), then(WHOLE[:500], "hang")):
        with Hostile(step) as server:
            assert one_exchange(server, timeout=0.1).code == "timeout"


def test_a_port_where_nobody_listens_is_a_connection_error() -> None:
    with Hostile() as server:
        pass
    error = one_exchange(server)
    assert error.code == "connection"
    assert "connection refused" in str(error)


@contextlib.contextmanager
def _swallowing() -> Iterator[int]:
    """A port whose queue of connections is full: a connection attempt gets no answer."""
    with socket.socket() as full, contextlib.ExitStack() as fillers:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(3):
            filler = fillers.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        yield full.getsockname()[1]


@pytest.mark.parametrize(("deadline", "timeout", "expected"), [(0.3, 20, "deadline"), (20, 0.1, "timeout")])
def test_a_connection_that_never_comes_about_ends_in_time(deadline: float, timeout: float, expected: str) -> None:
    with _swallowing() as port:
        given = settings_for(f"http://127.0.0.1:{port}", deadline=deadline, timeout=timeout)
        assert one_exchange(given).code == expected


@pytest.mark.parametrize(("deadline", "timeout", "expected"), [(0.3, 20, "deadline"), (20, 0.1, "timeout")])
def test_a_name_service_that_hangs_is_given_up_in_time(
    monkeypatch: pytest.MonkeyPatch, deadline: float, timeout: float, expected: str
) -> None:
    answered, real = threading.Event(), socket.getaddrinfo

    def slow(host: str, *args: object, **kwargs: object) -> object:
        if host == "gateway.test" and not args[-1]:
            answered.wait(SAFETY_NET_SECONDS)
        return real(host, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    given = settings_for("http://gateway.test", allow_http=True, deadline=deadline, timeout=timeout)
    error = one_exchange(given)
    answered.set()
    assert error.code == expected


def test_an_unknown_name_is_named() -> None:
    given = settings_for("http://no-such-host.invalid", allow_http=True, deadline=0.5)
    assert one_exchange(given).code in ("dns", "deadline")


def test_every_address_of_a_name_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def two(host: str, port: int, *args: object, **kwargs: object) -> object:
        if host != "gateway.test":
            return real(host, port, *args, **kwargs)  # type: ignore[arg-type]
        if args[-1]:
            raise socket.gaierror
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in ("127.0.0.2", "127.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", two)
    with Hostile() as server, Gateway(settings_for(f"http://gateway.test:{server.port}", allow_http=True)) as client:
        assert client.fetch(TARGET).attempts == 1


# Stop

FOR_EVER = 3000


class Stop(threading.Event):
    """An event that shows when a thread waits for it for long."""

    def __init__(self) -> None:
        super().__init__()
        self.slept_on = threading.Event()

    def wait(self, timeout: float | None = None) -> bool:
        if timeout is not None and timeout > 100:
            self.slept_on.set()
        return super().wait(timeout)


def stopped(server: Hostile, stop: threading.Event, reached: threading.Event, **changes: object) -> None:
    """A fetch that is under way when ``reached`` is set, and stopped then, is interrupted."""
    with gateway(server, stop, deadline=FOR_EVER, timeout=FOR_EVER, **changes) as client:
        if "requests_per_second" in changes:
            client.fetch(TARGET)
        killer = threading.Thread(target=lambda: (reached.wait(SAFETY_NET_SECONDS), stop.set()))
        killer.start()
        with pytest.raises(Interrupted):
            client.fetch(TARGET)
        killer.join()


@pytest.mark.parametrize("place", ["headers", "body", "token"])
def test_a_stop_ends_a_request_and_is_no_attempt(place: str) -> None:
    stop, reached = threading.Event(), threading.Event()

    def stuck(peer: Peer) -> None:
        peer.send(WHOLE[:100] if place == "body" else b"HTTP/1.1 200")
        reached.set()
        peer.hang()

    with Hostile(stuck, tokens=(stuck,)) as server:
        stopped(server, stop, reached, auth="token" if place == "token" else "none")


def test_a_stop_ends_a_pause_and_a_wait_for_a_turn() -> None:
    for step, changes in ((http("", 503, Retry_After="1500"), {}), (answer(), {"requests_per_second": 0.005})):
        stop = Stop()
        with Hostile(step) as server:
            stopped(server, stop, stop.slept_on, **changes)


def test_a_stop_ends_an_attempt_to_connect() -> None:
    stop = threading.Event()
    with _swallowing() as port:
        given = settings_for(f"http://127.0.0.1:{port}", deadline=FOR_EVER, timeout=FOR_EVER)
        with Gateway(given, stop=stop) as client:
            killer = threading.Thread(target=lambda: (_connecting(client), stop.set()))
            killer.start()
            with pytest.raises(Interrupted):
                client.fetch(TARGET)
            killer.join()


def _connecting(client: Gateway) -> None:
    """Returns once a connection of this client is under way."""
    while not any(watch._held for watch in client._watchdog._deadlines.copy()):
        threading.Event().wait(0.005)


def test_after_a_stop_nothing_is_asked() -> None:
    stop = threading.Event()
    stop.set()
    with Hostile() as server, gateway(server, stop) as client:
        for _ in range(2):
            with pytest.raises(Interrupted):
                client.fetch(TARGET)
    assert server.connections == 0


def test_closing_ends_what_is_under_way() -> None:
    reached = threading.Event()
    with Hostile(lambda peer: (reached.set(), peer.hang())) as server:
        client = gateway(server, deadline=FOR_EVER, timeout=FOR_EVER)
        closer = threading.Thread(target=lambda: (reached.wait(SAFETY_NET_SECONDS), client.close()))
        closer.start()
        with pytest.raises(Interrupted):
            client.fetch(TARGET)
        closer.join()
        with pytest.raises(Interrupted):
            client.fetch(TARGET)


# Limits


class _Turns:
    """Turns of a pacing that nobody waits for: each deadline notes how long its thread would have waited."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.waited: list[float] = []
        self.pacing = RequestPacing(0)
        self._watchdog = Watchdog(threading.Event())
        monkeypatch.setattr(timing.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(Deadline, "pause", lambda deadline, seconds: self.waited.append(round(seconds, 3)))

    def next(self, within_seconds: float = 100.0) -> float:
        self.waited.clear()
        self.pacing.wait_for_turn(self._watchdog.watch(within_seconds))
        return sum(self.waited)


def test_a_gateway_with_too_much_to_do_gets_one_pause_of_all_requests_together(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = _Turns(monkeypatch)
    assert turns.next() == 0
    for _ in range(16):
        turns.pacing.slow_down(None)  # one refusal of each request that was under way
    assert [turns.next() for _ in range(3)] == [0.2] * 3
    assert turns.pacing.slowed_seconds == pytest.approx(0.2)


def test_each_pause_is_twice_as_long_until_something_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    turns, pauses = _Turns(monkeypatch), []
    for _ in range(10):
        turns.pacing.slow_down(None)
        pauses.append(turns.next())
        turns.now += pauses[-1] + 1
    assert pauses == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 60]
    turns.pacing.answered()
    turns.pacing.slow_down(None)
    assert turns.next() == 0.2


def test_a_pause_that_the_gateway_asks_for_is_kept_and_one_beyond_the_deadline_is_an_error_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    turns = _Turns(monkeypatch)
    turns.pacing.slow_down(7)
    turns.pacing.slow_down(3)
    assert turns.next() == 7
    turns.pacing.slow_down(9999)
    assert turns.next() == 60, "as long as a target may take, whatever it asks"
    with pytest.raises(GatewayUnreachable, match="all requests pause for longer") as caught:
        turns.next(within_seconds=5)
    assert (caught.value.code, caught.value.gateway_down_evidence) == ("http_429", True)


@pytest.mark.parametrize("status", [429, 503])
def test_the_gateway_says_how_long_it_was_slowed(status: int) -> None:
    with Hostile(http("", status), answer()) as server, gateway(server) as client:
        client.fetch(TARGET)
        slowed = client.slowed_seconds
        client.fetch(TARGET)
    assert slowed == client.slowed_seconds == pytest.approx(0.2, abs=0.001)


def test_requests_per_second_spaces_the_requests_of_all_threads() -> None:
    with Hostile() as server, gateway(server, requests_per_second=50) as client:
        started = time.monotonic()
        at_once(8, lambda n: [client.fetch(Target("o", f"{n}-{i}")) for i in range(2)])
    assert time.monotonic() - started >= 15 / 50
    assert len(server.requests) == 16


def test_a_limit_that_leaves_no_turn_is_no_sign_of_a_gateway_that_is_down() -> None:
    with Hostile() as server, gateway(server, requests_per_second=0.01, deadline=5) as client:
        client.fetch(TARGET)
        with pytest.raises(GatewayUnreachable, match="requests_per_second") as caught:
            client.fetch(TARGET)
    assert (caught.value.code, caught.value.gateway_down_evidence) == ("deadline", False)
    assert len(server.requests) == 1


# The clock


def _dated(seconds: float) -> str:
    moment = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds)
    return moment.strftime("%a, %d %b %Y %H:%M:%S GMT")


@pytest.mark.parametrize(("seconds", "way"), [(600, "ahead of"), (-600, "behind"), (10**9, "ahead of")])
def test_an_answer_from_another_time_is_refused(seconds: float, way: str) -> None:
    for step in (answer(Date=_dated(seconds)), http("no", 401, Date=_dated(seconds)), code(1203, Date=_dated(seconds))):
        with Hostile(step) as server:
            error = failure(server, own_connection=True, max_clock_skew=300)
        assert isinstance(error, PermanentGatewayError)
        assert not isinstance(error, Malformed)
        assert (error.code, error.attempts, error.gateway_down_evidence) == ("clock_skew", 1, False)
        assert way in str(error)


def test_a_small_skew_is_allowed_and_seen() -> None:
    with Hostile(answer(Date=_dated(120))) as server, gateway(server, max_clock_skew=300) as client:
        client.fetch(TARGET)
        assert client.clock_skew is not None
        assert 100 < client.clock_skew.total_seconds() < 130


def test_zero_switches_the_check_of_the_clock_off() -> None:
    with Hostile(answer(Date=_dated(10**6))) as server, gateway(server, max_clock_skew=0) as client:
        client.fetch(TARGET)


@pytest.mark.parametrize(
    "date", ["", "yesterday", "Mon, 99 Xxx 99999 99:99:99 GMT", "0", "Fri, 31 Dec 9999 23:59:59 -2359"]
)
def test_a_date_that_is_none_is_tolerated(date: str) -> None:
    with Hostile(answer(Date=date)) as server, gateway(server, max_clock_skew=300) as client:
        client.fetch(TARGET)


def test_a_busy_gateway_with_a_wrong_clock_is_still_tried_again() -> None:
    with Hostile(http("", 503, Date=_dated(9999)), answer()) as server, gateway(server, max_clock_skew=300) as client:
        assert client.fetch(TARGET).attempts == 2


# The watchdog


class Wire:
    """Two ends of a connection."""

    def __init__(self) -> None:
        self.near, self.far = socket.socketpair()
        self.held = Handle(self.near)
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
    made.held.close()
    made.near.close()
    made.far.close()


@pytest.fixture
def watchdog() -> Iterator[Watchdog]:
    made = Watchdog(threading.Event())
    yield made
    made.close()


def test_the_earliest_of_many_deadlines_is_met(watchdog: Watchdog, wire: Wire) -> None:
    with watchdog.watch(3000), watchdog.watch(0.1) as watch, watchdog.watch(2000):
        watch.hold(wire.held)
        assert wire.far.recv(1) == b""
        assert watch.cut == "deadline"
        with pytest.raises(GatewayUnreachable, match=r"0\.1 s"):
            watch.check()


def test_a_released_connection_is_left_alone_and_one_added_after_the_deadline_shut_at_once(
    watchdog: Watchdog, wire: Wire
) -> None:
    with watchdog.watch(3000) as watch:
        watch.hold(wire.held)
        watch.release()
        watch.end("deadline")
        assert not wire.was_shut()
        watch.hold(wire.held)
        assert wire.was_shut()


def test_it_rests_while_nothing_is_under_way(watchdog: Watchdog, wire: Wire) -> None:
    with watchdog.watch(3000):
        pass
    while watchdog._busy.is_set():
        threading.Event().wait(0.005)
    with watchdog.watch(0.05) as watch:
        watch.hold(wire.held)
        assert wire.far.recv(1) == b""
