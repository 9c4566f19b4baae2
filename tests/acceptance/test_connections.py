"""Clients that send nothing, never end, do not read, or come in thousands: the server survives them."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from etl.system.descriptors import allocate
from etl.web.security import ConcurrencyLimit
from etl.web.server import HttpServer
from tests.support.enos import LocalGateway
from tests.support.program import ANN, ORG, PATIENCE_SECONDS, Program

SOON = 0.3
"""Seconds of a limit that a test waits for."""
LATE = 600.0
"""Seconds of a limit that no test should meet."""
MEGABYTE = bytes(2**20)
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


class Pages:
    """An application with a page that answers, one that waits for ``go_on``, and a large one."""

    def __init__(self) -> None:
        self.asked = threading.Semaphore(0)
        self.go_on = threading.Event()
        self.app = Starlette(routes=[Route("/", self.quick), Route("/slow", self.slow), Route("/large", self.large)])

    def quick(self, request: Request) -> Response:
        return PlainTextResponse("here")

    def slow(self, request: Request) -> Response:
        self.asked.release()
        assert self.go_on.wait(PATIENCE_SECONDS)
        return PlainTextResponse("at last")

    def large(self, request: Request) -> Response:
        return Response(MEGABYTE * 32)


def served(
    pages: Pages | None = None, most: int = 50, first_request_seconds: float = LATE, request_seconds: float = LATE
) -> HttpServer:
    limits = {"first_request_seconds": first_request_seconds, "request_seconds": request_seconds}
    return HttpServer((pages or Pages()).app, "127.0.0.1", 0, most_connections=most, **limits)


def connect(server: HttpServer, sends: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_SECONDS)
    connection.sendall(sends)
    return connection


def answer(connection: socket.socket) -> bytes:
    """What arrives next; nothing where the connection was closed."""
    try:
        return connection.recv(65536)
    except ConnectionError:
        return b""


def says(connection: socket.socket, words: bytes) -> bool:
    """Whether these words arrive before the connection is closed."""
    received = b""
    while words not in received and (piece := answer(connection)):
        received += piece
    return words in received


def is_answered(server: HttpServer) -> bool:
    with connect(server, GET) as connection:
        return answer(connection).startswith(b"HTTP/1.1 200")


def test_the_body_of_an_answer_waits_for_no_acknowledgement_of_its_head(stack: ExitStack) -> None:
    """asyncio sees to it only for sockets that say which protocol they speak."""
    server = stack.enter_context(served())
    connection = stack.enter_context(connect(server, GET))
    assert answer(connection).startswith(b"HTTP/1.1 200")
    (kept,) = server.connections
    assert kept.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


# ------------------------------------------------------------------------------------------------------ how many


def test_a_request_is_answered_while_all_others_only_hold_connections(stack: ExitStack) -> None:
    """When all places are taken, a new connection replaces the one that has waited longest."""
    server = stack.enter_context(served(most=5))
    waiting = [stack.enter_context(connect(server, b"GET / HT")) for _ in range(40)]
    assert is_answered(server)
    assert [answer(connection) for connection in waiting[:30]] == [b""] * 30
    assert is_answered(server)


def test_a_running_request_keeps_its_place(stack: ExitStack) -> None:
    pages = Pages()
    server = stack.enter_context(served(pages, most=3))
    asking = [stack.enter_context(connect(server, GET.replace(b"/ ", b"/slow ", 1))) for _ in range(3)]
    for _ in asking:
        assert pages.asked.acquire(timeout=PATIENCE_SECONDS)
    assert not is_answered(server), "there is no room"
    pages.go_on.set()
    assert all(says(connection, b"at last") for connection in asking)
    assert is_answered(server), "they keep their connections, and wait"


def test_too_many_requests_of_pages_are_told_to_come_back_and_the_others_are_answered() -> None:
    pages = Pages()
    with HttpServer(ConcurrencyLimit(pages.app, 2), "127.0.0.1", 0) as server, ExitStack() as stack:
        asking = [stack.enter_context(connect(server, GET.replace(b"/ ", b"/slow ", 1))) for _ in range(2)]
        for _ in asking:
            assert pages.asked.acquire(timeout=PATIENCE_SECONDS)
        with connect(server, GET) as another:
            said = answer(another)
            assert said.startswith(b"HTTP/1.1 503")
            assert b"retry-after: 5" in said.lower()
        pages.go_on.set()
        assert all(says(connection, b"at last") for connection in asking)
        assert is_answered(server)


# ------------------------------------------------------------------------------------------------------- how long


@pytest.mark.parametrize("begins", [b"", b"GET / HTTP/1.1\r\nHost: localhost\r\n"], ids=["nothing", "half a request"])
def test_a_connection_without_a_whole_request_is_closed(begins: bytes) -> None:
    with served(first_request_seconds=SOON) as server, connect(server, begins) as connection:
        assert answer(connection) == b""


def test_a_slow_request_ends_by_its_deadline() -> None:
    def drip(connection: socket.socket) -> None:
        connection.sendall(b"GET / HTTP/1.1\r\nX: ")
        for _ in range(10_000):
            time.sleep(SOON / 50)
            connection.sendall(b"y")

    with served(first_request_seconds=SOON) as server, connect(server) as dripping:  # noqa: SIM117
        with pytest.raises(ConnectionError):
            drip(dripping)


def test_a_second_slow_request_ends_by_its_deadline() -> None:
    with served(request_seconds=SOON) as server, connect(server, GET) as connection:
        assert says(connection, b"here")
        connection.sendall(GET[:-4])
        assert answer(connection) == b""


def test_an_unread_response_is_abandoned() -> None:
    with served(request_seconds=SOON) as server:
        with connect(server, GET.replace(b"/ ", b"/large ", 1)) as lazy:
            time.sleep(2 * SOON)
            received = sum(len(piece) for piece in iter(lambda: answer(lazy), b""))
        assert received < 32 * len(MEGABYTE)
        assert is_answered(server)


# ------------------------------------------------------------------------------------------------- odd, but allowed


def test_requests_sent_one_behind_the_other_are_all_answered() -> None:
    with served(most=1) as server, connect(server, GET * 300) as connection:
        received = b""
        while received.count(b"here") < 300:
            received += answer(connection)
        assert received.count(b"HTTP/1.1 200") == 300
        assert is_answered(server), "the connection waits, and makes room"


def test_enormous_headers_are_refused() -> None:
    with served() as server, connect(server, GET[:-4] + b"\r\nX: " + b"y" * 100_000) as connection:
        assert answer(connection).startswith(b"HTTP/1.1 400")


# --------------------------------------------------------------------------------------------------- descriptors


@pytest.mark.parametrize(
    ("allowed", "in_flight", "http"), [(65_536, 16, 100), (1024, 900, 24), (1024, 16, 100), (150, 16, 34), (64, 16, 8)]
)
def test_the_page_takes_no_descriptor_that_database_and_gateway_need(allowed: int, in_flight: int, http: int) -> None:
    assert allocate(allowed, in_flight)[1] == http


SHORT_OF_DESCRIPTORS = """
import resource, socket, sys
from etl import log
from etl.web.server import HttpServer
from starlette.responses import PlainTextResponse

def allow(more):
    with socket.socket() as lowest:
        allowed = lowest.fileno() + more
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, 4096))

def allow_enough():
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))

log.configure("INFO", "json")
server = HttpServer(PlainTextResponse("here"), "127.0.0.1", 0)
for step in sys.stdin:
    exec(step)
    print(server.port, flush=True)
"""


class Short:
    """A process with a server, which obeys steps; ``said`` is its log once it has ended."""

    def __init__(self) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            [sys.executable, "-c", SHORT_OF_DESCRIPTORS], stdin=pipe, stdout=pipe, stderr=pipe, text=True, bufsize=1
        )
        self.said: list[dict[str, object]] = []

    def do(self, step: str) -> int:
        """Where it listens afterwards."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{step}\n")
        return int(self._process.stdout.readline())

    def end(self) -> None:
        self.do("server.stop()")
        _, said = self._process.communicate(timeout=PATIENCE_SECONDS)
        assert self._process.returncode == 0, said
        self.said = [json.loads(line) for line in said.splitlines() if line.startswith("{")]


def test_a_process_without_descriptors_says_so_once_and_accepts_again_when_it_has_some() -> None:
    short = Short()
    port = short.do("server.start()")
    with ExitStack() as stack:
        asking = [stack.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS))]
        asking[0].sendall(GET)
        assert says(asking[0], b"here"), "it serves"
        short.do("allow(0)")
        asking = [stack.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS)) for _ in "1234"]
        time.sleep(1.5)
        short.do("allow_enough()")
        for connection in asking:
            connection.sendall(GET)
            assert says(connection, b"here")
        short.end()
    (entry,) = short.said
    assert (entry["event"], "ulimit" in str(entry["remedy"])) == ("not_accepting", True)


def test_a_server_that_cannot_begin_tries_again() -> None:
    short = Short()
    short.do("allow(1)")
    port = short.do("server.start()")
    with socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS) as connection:
        time.sleep(0.5)
        short.do("allow_enough()")
        connection.sendall(GET)
        assert says(connection, b"here")
        short.end()
    assert {entry["event"] for entry in short.said} == {"http_failed"}


# ------------------------------------------------------------------------------------------------- the real thing


def test_a_thousand_half_open_connections_stop_no_run_and_no_probe(tmp_path: Path, gateway: LocalGateway) -> None:
    """As `ulimit -n 1024` has it in many a shell and container."""
    with_limit = ("bash", "-c", f'ulimit -n 1024 && exec {sys.executable} -m etl "$@"', "flowtrail")
    program = Program(tmp_path, gateway.url, command=with_limit)
    program.configure(listen="127.0.0.1:0")
    program.schedule("plants", [(ORG, [ANN])], when='every = "1s"')
    service = program.start("serve")
    port = int(service.wait_for("listening")["url"].rpartition(":")[2])
    with ExitStack() as stack:
        for _ in range(1100):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS))
            connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        began = len(service.log)
        service.wait_for("run_ended", lambda entry: service.log.index(entry) > began, times=2)
        assert service.get("/healthz")[0] == 200
        assert service.get("/readyz")[0] == 200
    assert service.stop() == 0
    assert not [entry for entry in service.log if entry.get("level") in ("warning", "error")]
