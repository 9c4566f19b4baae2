"""A connection carries only answers to its own requests, and only one of those that count."""

from __future__ import annotations

import select
import socket
import threading
from contextlib import closing

import pytest

from etl.domain.model import Flow, Target
from etl.errors import GatewayUnreachable, Malformed, Refused
from etl.gateway import Gateway
from etl.gateway.connection import Connection
from etl.log import binding
from tests.support.gateways import SAFETY_NET_SECONDS, TARGET, failure, gateway, one_exchange
from tests.support.hostile import Hostile, Peer, Step, answer, chunked, code, flows, http, then
from tests.support.logs import capture_logs

ONE = (Flow("1", "one", "D", True),)
MINE, OTHERS = answer({"flowId": "mine"}), answer({"flowId": "of somebody else"})
INTERIM = b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n"


def ids(client: Gateway, *, own: bool = False) -> list[str]:
    return [flow.flow_id for flow in client.fetch(TARGET, own_connection=own).flows or ()]


@pytest.mark.parametrize(
    ("target", "value"), [("/ HTTP/1.1", "1"), ("/\r\nHost:", "1"), ("/", "1\r\nName: 2"), ("/", "\0")]
)
def test_a_request_that_could_be_read_in_two_ways_is_not_sent(target: str, value: str) -> None:
    ours, theirs = socket.socketpair()
    with theirs, closing(Connection(ours)) as connection:
        with pytest.raises(ValueError, match="would end a part of it"):
            connection.send("GET", target, {"Name": value}, b"", 1)
        assert not select.select([theirs], [], [], 0)[0]


# An answer that has a connection of its own


def test_a_connection_of_its_own_carries_one_exchange_and_the_client_asks_for_its_end() -> None:
    with Hostile() as server, gateway(server) as client:
        asked = [client.fetch(TARGET, own_connection=own) for own in (True, False, True, False)]
    assert [snapshot.sole_answer for snapshot in asked] == [True, False, True, False]
    assert [request.connection for request in server.requests] == [0, 1, 2, 1]
    assert [request.headers.get("connection") for request in server.requests] == ["close", None, "close", None]


def test_the_gateway_closes_first() -> None:
    """The side that closes first keeps the port for a minute; a first load would use up all of ours."""
    left_first = []

    def step(peer: Peer) -> None:
        peer.send(answer())
        left_first.extend(select.select([peer.connection], [], [], 0.1)[0])

    with Hostile(step) as server, gateway(server) as client:
        client.fetch(TARGET, own_connection=True)
    assert not left_first


@pytest.mark.parametrize("step", [answer(), chunked(flows({"flowId": "1"})), answer(Connection="keep-alive")])
def test_a_gateway_that_does_not_close_gets_a_half_close_and_is_believed(step: bytes) -> None:
    """The client waits for it once, and then not again for a while."""
    with Hostile(step, obliging=False) as server, gateway(server, deadline=0.8) as client:
        for _ in range(20):
            assert client.fetch(TARGET, own_connection=True).sole_answer
    assert server.connections == 20


def test_a_gateway_that_keeps_a_connection_open_regardless_is_left() -> None:
    over = threading.Event()
    with Hostile(lambda peer: (peer.send(answer()), over.wait(SAFETY_NET_SECONDS))) as server:
        with gateway(server, deadline=0.8) as client:
            assert client.fetch(TARGET, own_connection=True).sole_answer
        over.set()


@pytest.mark.parametrize(
    "whole", [MINE, chunked(flows({"flowId": "mine"})), answer({"flowId": "mine"}, Connection="close")]
)
@pytest.mark.parametrize("behind", [b"\n", b"HTTP/1.1", OTHERS, MINE, INTERIM])
@pytest.mark.parametrize("own", [True, False])
def test_an_answer_with_trailing_bytes_is_discarded(whole: bytes, behind: bytes, own: bool) -> None:
    with Hostile(whole + behind) as server:
        error = one_exchange(server, own_connection=own)
    assert isinstance(error, GatewayUnreachable)
    assert error.code == "desync"


def test_late_trailing_bytes_are_seen_until_the_gateway_closes() -> None:
    def step(peer: Peer) -> None:
        peer.send(OTHERS)
        select.select([peer.connection], [], [], 0.05)
        peer.send(MINE)

    with Hostile(step) as server:
        assert one_exchange(server, own_connection=True).code == "desync"


def test_a_request_over_a_desynchronised_connection_is_repeated_at_once() -> None:
    with Hostile(MINE + OTHERS, MINE) as server, gateway(server) as client:
        snapshot = client.fetch(TARGET)
    assert (snapshot.sole_answer, snapshot.attempts) == (True, 2)


def test_a_gateway_that_always_answers_twice_gets_nothing_recorded_and_is_named() -> None:
    with Hostile(MINE + MINE) as server:
        error = failure(server, deadline=0.3)
    assert error.gateway_down_evidence
    assert "belong to no request" in str(error)


@pytest.mark.parametrize(
    "refusal", [code(62101), code(99400), http("no", 404), http("{}"), http("<html>"), b"HTTP/1.1 204 No\r\n\r\n"]
)
def test_a_request_refused_over_a_kept_connection_is_repeated_once(refusal: bytes) -> None:
    with Hostile(refusal, answer()) as server, gateway(server) as client:
        snapshot = client.fetch(TARGET)
    assert (snapshot.flows, snapshot.sole_answer, snapshot.attempts) == (ONE, True, 2)
    with Hostile(refusal) as server:
        error = failure(server)
    assert isinstance(error, Refused | Malformed)
    assert error.attempts == len(server.requests) == 2
    assert [request.headers.get("connection") for request in server.requests] == [None, "close"]


# Kept connections


@pytest.mark.parametrize("stray", [OTHERS, INTERIM, b"\r\n"])
def test_bytes_without_a_request_fail_no_target(stray: bytes) -> None:
    sent = threading.Event()

    def step(peer: Peer) -> None:
        peer.send(MINE)
        asked_again.wait(SAFETY_NET_SECONDS)
        peer.send(stray)
        sent.set()

    asked_again = threading.Event()
    with Hostile(step, MINE) as server, gateway(server) as client:
        assert ids(client) == ["mine"]
        asked_again.set()
        assert sent.wait(SAFETY_NET_SECONDS)
        assert client.fetch(TARGET).attempts == 1
    assert server.connections == 2


def test_an_answer_that_precedes_its_request_is_discarded() -> None:
    with Hostile(MINE, greet=OTHERS) as server:
        assert one_exchange(server, own_connection=True).code == "desync"


def test_the_answer_to_an_abandoned_request_is_discarded() -> None:
    late = threading.Event()

    def step(peer: Peer) -> None:
        late.wait(SAFETY_NET_SECONDS)
        peer.send(OTHERS)

    with Hostile(step, MINE) as server, gateway(server, timeout=0.1, deadline=0.15) as client:
        with pytest.raises(GatewayUnreachable):
            client.fetch(Target("o", "slow"))
        late.set()
        for _ in range(3):
            assert ids(client) == ["mine"]


@pytest.mark.parametrize("own", [True, False])
def test_interim_answers_are_skipped_wherever_they_are_cut(own: bool) -> None:
    whole = INTERIM + b"HTTP/1.1 102 Processing\r\n\r\n" + answer()
    cuts = range(1, len(whole), 5)

    def split(at: int) -> Step:
        def step(peer: Peer) -> None:
            peer.send(whole[:at])
            select.select([peer.connection], [], [], 0.001)
            peer.send(whole[at:])

        return step

    with Hostile(*map(split, cuts)) as server, gateway(server) as client:
        for _ in cuts:
            snapshot = client.fetch(TARGET, own_connection=own)
            assert (snapshot.flows, snapshot.attempts) == (ONE, 1)


def test_interim_answers_without_end_are_no_answer() -> None:
    with Hostile(INTERIM * 9 + answer()) as server:
        assert one_exchange(server).code == "protocol"
    with Hostile(INTERIM * 8 + answer()) as server, gateway(server) as client:
        assert client.fetch(TARGET).attempts == 1


@pytest.mark.parametrize("own", [True, False])
def test_a_content_length_that_is_too_short_gives_no_answer(own: bool) -> None:
    body = flows({"flowId": "1"})
    steps = [http(body, length=short) for short in range(len(body))]
    with Hostile(*steps) as server:
        errors = {one_exchange(server, own_connection=own).code for _ in steps}
    assert errors <= {"desync", "truncated"}


@pytest.mark.parametrize("own", [True, False])
def test_an_answer_cut_at_any_byte_and_joined_to_the_next_is_discarded(own: bool) -> None:
    cuts = range(1, len(OTHERS))
    with Hostile(*(MINE + OTHERS[:cut] for cut in cuts)) as server:
        assert {one_exchange(server, own_connection=own).code for _ in cuts} == {"desync"}


# What can be read in two ways

BODY = flows({"flowId": "1"})
HEAD = b"HTTP/1.1 200 OK\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
CHUNKS = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
UNCLEAR: list[tuple[str, bytes]] = [
    ("both framings", HEAD + LENGTH + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKS),
    ("two lengths", HEAD + LENGTH + b"Content-Length: 7\r\n\r\n" + BODY),
    ("two lengths in one header", HEAD + b"Content-Length: 7, %d\r\n\r\n" % len(BODY) + BODY),
    ("a negative length", HEAD + b"Content-Length: -1\r\n\r\n" + BODY),
    ("a length with a sign", HEAD + b"Content-Length: +%d\r\n\r\n" % len(BODY) + BODY),
    ("a length in other digits", HEAD + "Content-Length: \u0663\r\n\r\n".encode() + BODY),
    ("a length with a blank of another alphabet", HEAD + LENGTH.replace(b"\r\n", b"\xa0\r\n\r\n") + BODY),
    ("an empty length", HEAD + b"Content-Length:\r\n\r\n" + BODY),
    ("chunks of HTTP/1.0", b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS),
    ("another encoding", HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + CHUNKS),
    ("chunked twice", HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS),
    ("an encoding on a second line", HEAD + b"Transfer-Encoding:\r\n chunked\r\n" + LENGTH + b"\r\n" + BODY),
    ("a blank before the colon", HEAD + b"Content-Length : 3\r\n" + LENGTH + b"\r\n" + BODY),
    ("a line that is no header", HEAD + b"nonsense\r\n" + LENGTH + b"\r\n" + BODY),
    ("a bare carriage return", HEAD + b"X: y\rContent-Length: 3\r\n" + LENGTH + b"\r\n" + BODY),
    ("a chunk longer than it says", HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\n" + BODY + b"\r\n0\r\n\r\n"),
    ("a chunk length with a sign", HEAD + b"Transfer-Encoding: chunked\r\n\r\n+" + CHUNKS),
    ("a chunk length in Python's way", HEAD + b"Transfer-Encoding: chunked\r\n\r\n0x" + CHUNKS),
    ("no chunk length", HEAD + b"Transfer-Encoding: chunked\r\n\r\n\r\n" + CHUNKS),
    ("no version", b"HTTP 200 OK\r\n" + LENGTH + b"\r\n" + BODY),
    ("another version", b"HTTP/2.0 200 OK\r\n" + LENGTH + b"\r\n" + BODY),
    ("a status of four digits", b"HTTP/1.1 2000 OK\r\n" + LENGTH + b"\r\n" + BODY),
    ("a line before the status", b"\r\n" + HEAD + LENGTH + b"\r\n" + BODY),
    ("another protocol", b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n"),
    ("trailers without end", HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKS[:-2] + b"A: b\r\n" * 20_000),
]


@pytest.mark.parametrize("step", [each[1] for each in UNCLEAR], ids=[each[0] for each in UNCLEAR])
def test_an_ambiguous_answer_is_discarded(step: bytes) -> None:
    for own in (True, False):
        with Hostile(then(step, "close")) as server:
            assert one_exchange(server, own_connection=own).code == "protocol"


@pytest.mark.parametrize(
    "step",
    [
        HEAD + LENGTH + LENGTH + b"\r\n" + BODY,
        HEAD + b"Content-Length: %d, %d\r\n\r\n" % (len(BODY), len(BODY)) + BODY,
        HEAD + b"Transfer-Encoding: Chunked\r\n\r\n" + CHUNKS,
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x;a=b  \r\n%s\r\n0\r\nT: r\r\n\r\n" % (len(BODY), BODY),
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n" + LENGTH + b"\r\n" + BODY,
        b"HTTP/1.1 200\r\nX-Folded: a\r\n  b\r\n" + LENGTH + b"\r\n" + BODY,
        b"HTTP/1.0 200 OK\n" + LENGTH.replace(b"\r", b"") + b"\n" + BODY,
    ],
)
def test_an_unusual_but_clear_answer_is_read(step: bytes) -> None:
    for own in (True, False):
        with Hostile(step) as server, gateway(server) as client:
            assert ids(client, own=own) == ["1"]


@pytest.mark.parametrize("status", [204, 304])
def test_an_unexpected_body_is_discarded(status: int) -> None:
    with Hostile(http(flows(), status), answer()) as server, gateway(server) as client:
        assert client.fetch(TARGET).flows == ONE
    with Hostile(http(flows(), status)) as server:
        assert one_exchange(server).code == "desync"


@pytest.mark.parametrize(("status", "expected"), [(204, "malformed"), (304, "http_304")])
def test_the_length_of_a_body_that_never_comes_is_not_too_large(status: int, expected: str) -> None:
    with Hostile(http("", status, length=10**12)) as server:
        assert failure(server).code == expected


# Told


def test_a_desynchronised_gateway_is_counted_and_warned_of_once_a_run() -> None:
    counted: list[int] = []
    with (
        capture_logs() as lines,
        Hostile(MINE + OTHERS) as server,
        gateway(server, deadline=0.6, desynced=lambda: counted.append(1)) as client,
    ):
        for run_id in (1, 2):
            with binding(run_id=run_id), pytest.raises(GatewayUnreachable):
                client.fetch(TARGET)
    assert len(counted) > 3
    warned = [line for line in lines if line["event"] == "gateway_desync"]
    assert len(warned) == 2
    assert "tell its operator" in warned[0]["remedy"]
