"""The gateway client over real sockets: one whole answer, or one named error, in time."""

from __future__ import annotations

import contextlib
import datetime as dt
import gzip
import os
import socket
import threading
import time
import zlib
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest
from gateways import ACCESS_KEY, SAFETY_NET_SECONDS, TARGET, at_once, failure, gateway, settings_for
from hostile import Hostile, Peer, Step, answer, chunked, code, endless, flows, gzipped, http, issued

from etl import __version__
from etl.errors import (
    ConfigError,
    GatewayUnreachable,
    Interrupted,
    Malformed,
    PermanentGatewayError,
    Refused,
    ServiceHiccup,
)
from etl.gateway import Gateway
from etl.model import Flow, Target

ONE = (Flow("1", "one", "D", True),)
LONG = flows(*({"flowId": str(n), "flowName": "x" * 50} for n in range(200)))


# One exchange


def test_a_fetch_gives_the_whole_list_with_its_times() -> None:
    with Hostile() as server, gateway(server) as client:
        before = dt.datetime.now(dt.UTC)
        found = client.fetch(TARGET)
        after = dt.datetime.now(dt.UTC)
    assert (found.target, found.flows, found.attempts) == (TARGET, ONE, 1)
    assert before <= found.asked_at <= found.observed_at <= after
    assert len(found.data_hash) == 64


def test_what_is_asked_is_documented_and_says_who_asks() -> None:
    with Hostile() as server, gateway(server) as client:
        client.fetch(TARGET)
    (request,) = server.requests
    assert request.target == "/batch-processing-service/v2.1/flows?action=getMyFlow&orgId=org-1&userId=user-1"
    expected = {
        "host": f"127.0.0.1:{server.port}",
        "accept": "application/json",
        "accept-encoding": "gzip",
        "cache-control": "no-cache",
        "user-agent": f"flowtrail/{__version__}",
    }
    assert request.headers == expected


def test_the_path_of_the_url_comes_before_that_of_the_service() -> None:
    with Hostile() as server, Gateway(settings_for(server.url + "/eu/gate way")) as client:
        client.fetch(TARGET)
    assert server.requests[0].target.startswith("/eu/gate%20way/batch-processing-service/v2.1/flows?")


@pytest.mark.parametrize(
    "text", ["a b", "a+b", "100%", "%41", "描述", "a=b&c=d", "x/y?z#w", "é\u0301", "😀", "~-._", "'\"<"]
)
def test_whatever_is_asked_for_arrives_as_it_was_meant(text: str) -> None:
    with Hostile() as server, gateway(server) as client:
        client.fetch(Target(text, text, text))
    query = parse_qsl(urlsplit(server.requests[0].target).query, strict_parsing=True)
    assert dict(query) == {"action": "getMyFlow", "expression": text, "orgId": text, "userId": text}


def test_a_known_answer_is_hashed_and_not_decoded() -> None:
    same = http(b'{"requestId":"b","code":0,"data":[{"flowId":"1"}]}')
    with (
        Hostile(http(b'{"code":0,"data":[{"flowId":"1"}],"requestId":"a"}'), same) as server,
        gateway(server) as client,
    ):
        first = client.fetch(TARGET)
        again = client.fetch(TARGET, first.data_hash)
        other = client.fetch(TARGET, "0" * 64)
    assert again.flows is None
    assert again.data_hash == first.data_hash
    assert other.flows == first.flows


EXTENDED = b"%x;a=b\r\n%s\r\n0;c\r\nX-Trailer: 1\r\n\r\n" % (len(LONG), LONG)
FRAMED: list[tuple[str, Step]] = [
    ("Content-Length", http(LONG)),
    ("chunks", chunked(LONG[:1], LONG[1:5000], LONG[5000:])),
    ("chunks with extensions and a trailer", chunked(b"", end=b"").replace(b"0\r\n\r\n", b"") + EXTENDED),
    ("the end of the connection", lambda peer: (peer.send(endless(LONG)), peer.close())),
    ("gzip", gzipped(LONG)),
    ("gzip in chunks", chunked(gzip.compress(LONG)[:7], gzip.compress(LONG)[7:], Content_Encoding="gzip")),
    ("gzip in two members", http(gzip.compress(LONG[:99]) + gzip.compress(LONG[99:]), Content_Encoding="x-gzip")),
    ("identity", http(LONG, Content_Encoding="identity")),
    ("100 Continue first", b"HTTP/1.1 100 Continue\r\n\r\n" + http(LONG)),
    ("a byte at a time", lambda peer: peer.drip(http(flows({"flowId": "1"})), 0)),
]


@pytest.mark.parametrize("step", [each[1] for each in FRAMED], ids=[each[0] for each in FRAMED])
def test_a_body_is_read_whole_however_it_is_framed(step: Step) -> None:
    with Hostile(step) as server, gateway(server) as client:
        first = client.fetch(TARGET)
        second = client.fetch(TARGET)
    assert first.body in (LONG, flows({"flowId": "1"}))
    assert second.body == first.body


def test_connections_are_kept_and_used_again() -> None:
    with (
        Hostile(http(LONG), chunked(LONG), gzipped(LONG), code(62101), http("busy", 500), answer()) as server,
        gateway(server) as client,
    ):
        for _ in range(3):
            client.fetch(TARGET)
        with pytest.raises(Refused):
            client.fetch(TARGET)
        assert client.fetch(TARGET).attempts == 2
    assert server.connections == 1


def test_a_connection_that_the_server_closed_while_idle_is_replaced() -> None:
    with Hostile() as server, gateway(server) as client:
        client.fetch(TARGET)
        server.drop()
        assert server.left.wait(SAFETY_NET_SECONDS)
        assert client.fetch(TARGET).attempts == 1
    assert server.connections == 2


def test_a_connection_that_breaks_on_reuse_costs_a_retry() -> None:
    with Hostile(answer(), lambda peer: peer.reset(), answer()) as server, gateway(server) as client:
        client.fetch(TARGET)
        assert client.fetch(TARGET).attempts == 2


def test_left_overs_of_an_answer_never_reach_the_next_one() -> None:
    other = answer({"flowId": "of somebody else"})
    with Hostile(answer() + other, answer()) as server, gateway(server) as client:
        assert client.fetch(TARGET).flows == ONE
        assert client.fetch(TARGET).flows == ONE


def test_fifty_threads_at_once_get_each_their_own_answer() -> None:
    with Hostile(lambda peer: _echo(peer)) as server, gateway(server, concurrency=50) as client:
        results = at_once(50, lambda n: [client.fetch(Target("o", f"u{n}-{i}")) for i in range(4)])
    for number, snapshots in enumerate(results):
        assert isinstance(snapshots, list), snapshots
        for i, snapshot in enumerate(snapshots):
            assert snapshot.flows[0].flow_id.endswith(f"userId=u{number}-{i}")


def _echo(peer: Peer) -> None:
    assert peer.request is not None
    peer.send(answer({"flowId": peer.request.target}))


def test_cookies_are_neither_kept_nor_sent() -> None:
    with Hostile(answer(Set_Cookie="sid=1; Path=/")) as server, gateway(server) as client:
        client.fetch(TARGET)
        client.fetch(TARGET)
    assert not any("cookie" in request.headers for request in server.requests)


def test_the_environment_and_netrc_are_not_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password hunter2\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere")
    monkeypatch.setenv("CURL_CA_BUNDLE", "/nowhere")
    with Hostile() as server, gateway(server) as client:
        client.fetch(TARGET)
    assert "authorization" not in server.requests[0].headers


def test_a_proxy_comes_from_the_settings_alone() -> None:
    with Hostile() as proxy, Gateway(settings_for("http://127.0.0.1:9", proxy=proxy.url)) as client:
        assert client.fetch(TARGET).flows == ONE
    assert proxy.requests[0].target.startswith("http://127.0.0.1:9/batch-processing-service/")


def test_a_login_for_the_proxy_goes_to_the_proxy() -> None:
    with (
        Hostile() as proxy,
        Gateway(settings_for("http://127.0.0.1:9", proxy=f"http://me:pa%20ss@127.0.0.1:{proxy.port}")) as client,
    ):
        client.fetch(TARGET)
    assert proxy.requests[0].headers["proxy-authorization"] == "Basic bWU6cGEgc3M="


# Status and code


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308, 304, 399])
def test_a_redirect_is_named_and_never_followed(status: int) -> None:
    with Hostile() as elsewhere, Hostile(http("", status, Location=elsewhere.url + "/a?token=1")) as server:
        error = failure(server)
        assert elsewhere.connections == 0
    assert isinstance(error, Refused)
    assert error.code == f"http_{status}"
    assert "redirect" in str(error)
    assert "token" not in str(error)


@pytest.mark.parametrize("location", ["", "\x80", "http://[", "//", "/login", "javascript:x", "https://" + "a" * 500])
def test_a_strange_location_is_no_obstacle(location: str) -> None:
    with Hostile(http("", 302, Location=location)) as server:
        error = failure(server)
    assert (error.code, len(str(error)) < 300) == ("http_302", True)


@pytest.mark.parametrize("status", [201, 202, 204, 206, 101, 199, 299])
def test_a_success_other_than_200_is_malformed(status: int) -> None:
    with Hostile(http(flows() if status not in (101, 199, 204) else "", status)) as server:
        error = failure(server)
    assert isinstance(error, Malformed)
    assert f"HTTP {status}" in str(error)


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 405, 407, 408, 413, 414, 422, 451, 499])
def test_a_status_that_says_no_is_asked_once(status: int) -> None:
    with Hostile(http('{"error":"no"}', status)) as server:
        error = failure(server)
    assert isinstance(error, Refused)
    assert (error.code, error.http_status, error.attempts) == (f"http_{status}", status, 1)
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [429, 500, 501, 502, 503, 504, 521, 599])
def test_a_status_that_may_pass_is_tried_again(status: int) -> None:
    with Hostile(http("busy", status), answer()) as server, gateway(server) as client:
        assert client.fetch(TARGET).attempts == 2


def test_a_gateway_that_stays_down_fails_at_the_deadline_with_the_last_word() -> None:
    with Hostile(http("maintenance\x1b[2J", 503)) as server:
        error = failure(server, deadline=0.6)
    assert isinstance(error, GatewayUnreachable)
    assert error.gateway_down_evidence
    assert "HTTP 503" in str(error)
    assert "\\x1b" in str(error)
    assert error.attempts == len(server.requests) > 1


@pytest.mark.parametrize("number", [62109, 99500, 1001, 1005])
def test_a_code_that_may_pass_is_tried_again(number: int) -> None:
    with Hostile(code(number), code(number), answer()) as server, gateway(server) as client:
        assert client.fetch(TARGET).attempts == 3


def test_a_hiccup_that_stays_is_told_from_a_gateway_that_is_down() -> None:
    with Hostile(code(99500, "try later")) as server:
        error = failure(server, deadline=0.4)
    assert isinstance(error, ServiceHiccup)
    assert (error.code, error.request_id, error.gateway_down_evidence) == ("99500", "req-7", False)
    assert error.attempts == len(server.requests)


@pytest.mark.parametrize("number", [62101, 62103, 99400, 99403, 99404, 7])
def test_a_code_that_says_no_is_asked_once(number: int) -> None:
    with Hostile(code(number, "user\r\nnot found")) as server:
        error = failure(server)
    assert isinstance(error, Refused)
    assert (error.code, error.http_status, error.request_id, error.attempts) == (str(number), 200, "req-7", 1)
    assert "user\\x0d\\x0anot found" in str(error)


# Retry-After


@pytest.mark.parametrize("value", ["0", "-1", "junk", "", "1e10", "Thu, 01 Jan 1970 00:00:00 GMT", "٣", "0x1", "nan"])
def test_a_retry_after_that_asks_for_nothing_or_for_nonsense_means_a_short_pause(value: str) -> None:
    with (
        Hostile(http("", 429, Retry_After=value.encode().decode("latin-1")), answer()) as server,
        gateway(server) as client,
    ):
        assert client.fetch(TARGET).attempts == 2


@pytest.mark.parametrize("value", ["3600", "99999999999", "9" * 5000, "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_a_retry_after_past_the_deadline_gives_up_at_once(value: str) -> None:
    with Hostile(http("", 429, Retry_After=value)) as server:
        error = failure(server, deadline=60)
    assert error.code == "http_429"
    assert error.attempts == 1
    assert error.retry_after_seconds is not None
    assert error.retry_after_seconds >= 3600


def test_a_retry_after_within_the_deadline_is_honoured() -> None:
    with Hostile(http("", 503, Retry_After="1"), answer()) as server, gateway(server) as client:
        started = time.monotonic()
        assert client.fetch(TARGET).attempts == 2
    assert time.monotonic() - started >= 1


# Bytes


def test_a_body_over_the_cap_is_not_read() -> None:
    for step in (http(b"x", length=2_000_000), chunked(b"x" * 1_000_001), chunked(*[b"x" * 1000] * 1001)):
        with Hostile(lambda peer, step=step: (peer.send(step), peer.hang())) as server:
            error = failure(server, max_body=1_000_000)
        assert isinstance(error, Malformed)
        assert (error.code, error.attempts) == ("body_too_large", 1)
        assert "max_body" in str(error)


def test_a_body_of_exactly_the_cap_is_read() -> None:
    body = flows({"flowId": "1", "flowName": "x" * 1000})
    for step in (http(body), chunked(body), gzipped(body)):
        with Hostile(step) as server, gateway(server, max_body=len(body)) as client:
            assert client.fetch(TARGET).body == body
        with Hostile(step) as server:
            assert failure(server, max_body=len(body) - 1).code == "body_too_large"


def test_a_gzip_bomb_is_defused() -> None:
    press = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join(press.compress(bytes(1 << 20)) for _ in range(150)) + press.flush()
    assert len(bomb) < 500_000
    with Hostile(http(bomb, Content_Encoding="gzip")) as server:
        before = _peak_kib()
        error = failure(server, max_body=4 << 20)
        assert error.code == "body_too_large"
        assert _peak_kib() - before < 60 * 1024


def _peak_kib() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


@pytest.mark.parametrize(
    ("step", "named"),
    [
        (http(b"\x1f\x8b\x08 nonsense", Content_Encoding="gzip"), "damaged"),
        (http(flows(), Content_Encoding="gzip"), "damaged"),
        (http(flows(), Content_Encoding="br"), "Content-Encoding"),
        (http(zlib.compress(flows()), Content_Encoding="deflate"), "Content-Encoding"),
        (http(gzip.compress(gzip.compress(flows())), Content_Encoding="gzip, gzip"), "Content-Encoding"),
    ],
)
def test_a_body_in_a_strange_encoding_is_malformed(step: bytes, named: str) -> None:
    with Hostile(step) as server:
        error = failure(server)
    assert isinstance(error, Malformed)
    assert named in str(error)


def _then(data: bytes, end: str) -> Step:
    def step(peer: Peer) -> None:
        peer.send(data)
        getattr(peer, end)()

    return step


WHOLE, ZIPPED = http(LONG), gzip.compress(LONG)
BROKEN: list[tuple[str, Step, str]] = [
    ("closed without a byte", lambda peer: peer.close(), "connection"),
    ("reset without a byte", lambda peer: peer.reset(), "connection"),
    ("closed in the status line", _then(b"HTTP/1.", "close"), "protocol"),
    ("closed in the headers", _then(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-", "close"), "truncated"),
    ("reset in the headers", _then(b"HTTP/1.1 200 OK\r\nContent-Le", "reset"), "connection"),
    ("short of its Content-Length", _then(http(LONG, length=len(LONG) + 1), "close"), "truncated"),
    ("reset in the body", _then(WHOLE[:-1], "reset"), "truncated"),
    ("closed in a chunk", _then(chunked(LONG)[:-20], "close"), "truncated"),
    ("closed before the last chunk", _then(chunked(LONG, end=b""), "close"), "truncated"),
    ("a chunk size that is none", chunked(LONG, end=b"zz\r\n\r\n"), "truncated"),
    ("gzip cut short", http(ZIPPED[:-9], Content_Encoding="gzip"), "truncated"),
    ("no HTTP at all", _then(b"220 mail.example.com ESMTP\r\n", "close"), "protocol"),
    ("two lengths", http(LONG, Content_length="7"), "protocol"),
    ("a header without end", _then(b"HTTP/1.1 200 OK\r\nA: " + b"x" * 70_000, "close"), "protocol"),
    ("too many headers", b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n", "protocol"),
]


@pytest.mark.parametrize(("step", "expected"), [e[1:] for e in BROKEN], ids=[e[0] for e in BROKEN])
def test_a_broken_answer_is_named_and_tried_again(step: Step, expected: str) -> None:
    with Hostile(step, answer()) as server, gateway(server) as client:
        assert client.fetch(TARGET).attempts == 2
    with Hostile(step) as server:
        error = failure(server, deadline=0.15)
    assert isinstance(error, GatewayUnreachable)
    assert error.code in (expected, "connection" if expected == "truncated" else expected)
    assert error.gateway_down_evidence


def test_an_answer_cut_at_any_byte_never_passes_for_a_whole_one() -> None:
    whole = answer({"flowId": "1"}, {"flowId": "2"})
    cuts = list(range(0, len(whole), 11))
    steps = [_then(whole[:cut], "close" if cut % 2 else "reset") for cut in cuts]
    with Hostile(*(s for step in steps for s in (step, http("no", 404)))) as server, gateway(server) as client:
        for _ in cuts:
            with pytest.raises(Refused):
                client.fetch(TARGET)


# Time


def _long_drip(prefix: bytes, slow: bytes) -> Step:
    def step(peer: Peer) -> None:
        peer.send(prefix)
        peer.drip(slow, 0.01)

    return step


HEAD = b"HTTP/1.1 200 OK\r\n"
DRIPS: list[tuple[str, Step]] = [
    ("before the status line", _long_drip(b"", b"H" + b"x" * 9000)),
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
    ("silence in the body", _then(WHOLE[:500], "hang")),
]


@pytest.mark.parametrize("step", [each[1] for each in DRIPS], ids=[each[0] for each in DRIPS])
def test_no_server_outlives_the_deadline_whatever_it_drips(step: Step) -> None:
    with Hostile(step) as server:
        error = failure(server, deadline=0.2)
        assert server.left.wait(SAFETY_NET_SECONDS)
    assert isinstance(error, GatewayUnreachable)
    assert error.code == "deadline"
    assert error.gateway_down_evidence
    assert "0.2 s" in str(error)


def test_the_deadline_covers_the_token_too() -> None:
    with Hostile(tokens=(_long_drip(HEAD, b"X: y\r\n" * 1500),)) as server:
        error = failure(server, deadline=0.3, auth="token")
    assert (error.code, error.attempts) == ("deadline", 1)
    assert not server.flow_requests


def test_a_deadline_in_a_retry_tells_what_came_before() -> None:
    with Hostile(http("", 503), lambda peer: peer.hang()) as server:
        error = failure(server, deadline=0.8)
    assert error.code == "deadline"
    assert "before that: HTTP 503" in str(error)


def test_a_read_that_takes_too_long_is_a_timeout_and_tried_again() -> None:
    with Hostile(lambda peer: peer.hang(), answer()) as server, gateway(server, timeout=0.2) as client:
        assert client.fetch(TARGET).attempts == 2
    with Hostile(lambda peer: peer.hang()) as server:
        error = failure(server, timeout=0.1, deadline=0.35)
    assert error.code in ("timeout", "deadline")


def test_a_port_where_nobody_listens_is_a_connection_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with Gateway(settings_for(url, deadline=0.3)) as client, pytest.raises(GatewayUnreachable) as caught:
        client.fetch(TARGET)
    assert caught.value.code == "connection"
    assert "connection refused" in str(caught.value)


def test_an_address_that_swallows_connections_cannot_outlive_the_deadline() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        with (
            Gateway(settings_for(f"http://127.0.0.1:{full.getsockname()[1]}", deadline=0.3)) as client,
            pytest.raises(GatewayUnreachable) as caught,
        ):
            client.fetch(TARGET)
        for filler in fillers:
            filler.close()
    assert caught.value.code == "deadline"


def test_a_name_service_that_hangs_cannot_outlive_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    answered, real = threading.Event(), socket.getaddrinfo

    def slow(host: str, *args: object, **kwargs: object) -> object:
        if host == "gateway.test" and not (args and args[-1]):
            answered.wait(SAFETY_NET_SECONDS)
        return real(host, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    with (
        Gateway(settings_for("http://gateway.test", allow_http=True, deadline=0.3)) as client,
        pytest.raises(GatewayUnreachable) as caught,
    ):
        client.fetch(TARGET)
    answered.set()
    assert caught.value.code == "deadline"


def test_an_unknown_name_is_named() -> None:
    url = "http://no-such-host.invalid"
    with (
        Gateway(settings_for(url, allow_http=True, deadline=0.5)) as client,
        pytest.raises(GatewayUnreachable) as caught,
    ):
        client.fetch(TARGET)
    assert caught.value.code in ("dns", "deadline")


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


@pytest.mark.parametrize("place", ["body", "headers", "connect", "pause", "token", "turn"])
def test_a_stop_ends_what_is_under_way_and_is_no_attempt(place: str) -> None:
    stop, reached = threading.Event(), threading.Event()

    def stuck(peer: Peer) -> None:
        if place == "body":
            peer.send(WHOLE[:100])
        reached.set()
        peer.hang()

    def pausing(peer: Peer) -> None:
        peer.send(http("", 503, Retry_After="1500"))
        reached.set()

    steps = {"pause": pausing, "turn": answer()}
    tokens = (stuck,) if place == "token" else ()
    changes = {"deadline": FOR_EVER, "timeout": FOR_EVER, "auth": "token" if place == "token" else "none"}
    if place == "turn":
        changes["requests_per_second"] = 0.005
        reached.set()
    with Hostile(steps.get(place, stuck), tokens=tokens) as server, gateway(server, stop, **changes) as client:
        if place == "turn":
            client.fetch(TARGET)
        killer = threading.Thread(target=lambda: (reached.wait(SAFETY_NET_SECONDS), stop.set()))
        if place == "connect":
            reached.set()
        killer.start()
        with pytest.raises(Interrupted):
            client.fetch(TARGET)
        killer.join()


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


# The limit of our own


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
            error = failure(server, max_clock_skew=300)
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


# The house


@pytest.mark.parametrize(
    "url",
    [
        "http://apim.example.com",
        "http://10.0.0.1",
        "ftp://127.0.0.1",
        "https://user:pw@apim.example.com",
        "https://apim.example.com?x=1",
        "https://apim.example.com#x",
        "https://",
        "",
        "http://localhost.example.com",
        "http://127.0.0.1@evil.example.com",
    ],
)
def test_the_client_itself_refuses_an_unsafe_address(url: str) -> None:
    with pytest.raises(ConfigError, match="url"):
        Gateway(settings_for(url))


@pytest.mark.parametrize(
    "url", ["http://localhost", "http://127.8.9.1:80", "http://[::1]:8080", "https://apim.example.com/x/"]
)
def test_loopback_and_https_are_accepted(url: str) -> None:
    Gateway(settings_for(url)).close()


def test_no_descriptor_and_no_thread_is_left_behind() -> None:
    broken = (
        _then(b"", "reset"),
        _then(WHOLE[:99], "close"),
        http("", 500),
        _then(endless(b"x"), "close"),
        lambda peer: peer.hang(),
    )

    def run() -> None:
        for step in broken:
            with Hostile(step) as server, gateway(server, deadline=0.1) as client:
                at_once(4, lambda _: client.fetch(TARGET))
            with (
                Hostile(step, answer()) as server,
                gateway(server, timeout=0.1) as client,
                contextlib.suppress(Malformed),
            ):
                client.fetch(TARGET)

    run()
    before, threads = len(os.listdir("/proc/self/fd")), _threads()
    run()
    assert len(os.listdir("/proc/self/fd")) <= before
    assert _threads() <= threads


def _threads() -> int:
    """How many of ours are alive, once the watchdogs of closed gateways have had their moment to end."""
    for thread in threading.enumerate():
        if thread.name.startswith("gateway-"):
            thread.join(SAFETY_NET_SECONDS)
    return sum(thread.name.startswith("gateway-") for thread in threading.enumerate())


def test_what_a_gateway_prints_about_itself_holds_no_key() -> None:
    with Hostile(tokens=(issued(),)) as server, gateway(server, auth="token") as client:
        client.fetch(TARGET)
        assert ACCESS_KEY not in repr(client)
        assert "token-canary" not in repr(client._tokens.__dict__)  # type: ignore[union-attr]
