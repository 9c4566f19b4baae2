"""The gateway client over real sockets: one whole answer, or one named error, in time."""

from __future__ import annotations

import contextlib
import datetime as dt
import gzip
import os
import threading
import time
import zlib
from pathlib import Path

import pytest

from etl.domain.model import Flow
from etl.errors import ConfigError, GatewayUnreachable, Malformed, Refused, TransientGatewayError
from etl.gateway import Gateway, reread_strictly
from tests.support.gateways import (
    SAFETY_NET_SECONDS,
    TARGET,
    at_once,
    failure,
    gateway,
    one_exchange,
    settings_for,
)
from tests.support.hostile import (
    Hostile,
    Step,
    answer,
    chunked,
    code,
    endless,
    flows,
    gzipped,
    http,
    then,
)
from tests.support.logs import capture_logs

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


def test_the_path_of_the_url_comes_before_that_of_the_service() -> None:
    with Hostile() as server, Gateway(settings_for(server.url + "/eu/gate way")) as client:
        client.fetch(TARGET)
    assert server.requests[0].target.startswith("/eu/gate%20way/batch-processing-service/v2.1/flows?")


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


def test_an_answer_of_the_same_bytes_is_not_decoded_again_but_still_read_strictly() -> None:
    listed = b'"data":[{"flowId":"1","flowName":"a","cycle":"D","editable":true}]}'
    bodies = (b'{"code":0,' + listed, b'{"code":0,' + listed, b'{"code":0,"code":0,' + listed)
    with Hostile(*map(http, bodies)) as server, gateway(server) as client:
        first = client.fetch(TARGET)
        same = client.fetch(TARGET, own_connection=True, before=first)
        twice = client.fetch(TARGET, own_connection=True, before=first)
    assert same.flows is first.flows
    reread_strictly(same)
    with pytest.raises(Malformed, match="twice"):
        reread_strictly(twice)


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
        Hostile(http(LONG), chunked(LONG), gzipped(LONG), http("busy", 500), answer()) as server,
        gateway(server) as client,
    ):
        for _ in range(3):
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


def test_a_proxy_and_the_login_for_it_come_from_the_settings_alone() -> None:
    with Hostile() as proxy:
        login = f"http://me:pa%20ss@127.0.0.1:{proxy.port}"
        for address in (proxy.url, login):
            with Gateway(settings_for("http://127.0.0.1:9", proxy=address)) as client:
                assert client.fetch(TARGET).flows == ONE
    assert proxy.requests[0].target.startswith("http://127.0.0.1:9/batch-processing-service/")
    assert [request.headers.get("proxy-authorization") for request in proxy.requests] == [None, "Basic bWU6cGEgc3M="]


def test_a_login_that_a_proxy_cannot_be_sent_is_a_problem_of_the_settings() -> None:
    with pytest.raises(ConfigError, match="has a user or a password that is not Latin-1") as raised:
        Gateway(settings_for("http://127.0.0.1:9", proxy="http://me:p%E2%82%AC@127.0.0.1:9"))
    assert "\u20ac" not in str(raised.value)


# Status and code


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308, 304, 399])
def test_a_redirect_is_named_and_never_followed(status: int) -> None:
    with Hostile() as remote, Hostile(http("", status, Location=remote.url + "/a?token=1")) as server:
        error = failure(server)
        assert remote.connections == 0
    assert isinstance(error, Refused)
    assert error.code == f"http_{status}"
    assert "redirect" in str(error)
    assert "token" not in str(error)


@pytest.mark.parametrize("location", ["", "\x80", "http://[", "//", "/login", "javascript:x", "https://" + "a" * 500])
def test_a_strange_location_is_tolerated(location: str) -> None:
    with Hostile(http("", 302, Location=location)) as server:
        error = failure(server)
    assert (error.code, len(str(error)) < 300) == ("http_302", True)


@pytest.mark.parametrize("status", [201, 202, 204, 206, 299])
def test_a_success_other_than_200_is_malformed(status: int) -> None:
    with Hostile(http(flows() if status != 204 else "", status)) as server:
        error = failure(server)
    assert isinstance(error, Malformed)
    assert f"HTTP {status}" in str(error)


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 405, 407, 408, 413, 414, 422, 451, 499])
def test_a_final_status_is_not_retried(status: int) -> None:
    with Hostile(http('{"error":"no"}', status)) as server:
        error = failure(server, own_connection=True)
    assert isinstance(error, Refused)
    assert (error.code, error.attempts) == (f"http_{status}", 1)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "step",
    [
        *(http("busy", status) for status in (429, 500, 501, 502, 503, 504, 521, 599)),
        *(code(number) for number in (62109, 99500, 1001, 1005)),
    ],
)
def test_a_transient_status_or_code_is_retried(step: bytes) -> None:
    with Hostile(step, answer()) as server, gateway(server) as client:
        assert client.fetch(TARGET).attempts == 2


def test_the_log_says_at_once_that_requests_are_tried_again_and_only_once() -> None:
    steps = (http("busy", 503), http("busy", 503), answer())
    with Hostile(*steps) as server, gateway(server) as client, capture_logs() as logged:
        client.fetch(TARGET)
    assert [(each["event"], each["level"], each["error_code"]) for each in logged] == [
        ("request_retried", "info", "http_503")
    ]


def test_a_gateway_that_stays_down_fails_with_its_last_answer() -> None:
    down = "maintenance\x1b[2J"
    with Hostile(http(down, 503), http(down, 503), http(down, 503, Retry_After="9999")) as server:
        error = failure(server)
    assert isinstance(error, GatewayUnreachable)
    assert error.gateway_down_evidence
    assert "HTTP 503" in str(error)
    assert "\\x1b" in str(error)
    assert error.attempts == len(server.requests) == 3


def test_a_lasting_transient_code_differs_from_a_gateway_that_is_down() -> None:
    with Hostile(code(99500), code(99500, "try later", Retry_After="9999")) as server:
        error = failure(server)
    assert type(error) is TransientGatewayError
    assert (error.code, error.gateway_down_evidence) == ("99500", False)
    assert error.attempts == len(server.requests) == 2


@pytest.mark.parametrize("number", [62101, 62103, 99400, 99403, 99404, 7])
def test_a_final_code_is_not_retried(number: int) -> None:
    with Hostile(code(number, "user\r\nnot found")) as server:
        error = failure(server, own_connection=True)
    assert isinstance(error, Refused)
    assert (error.code, error.attempts) == (str(number), 1)
    assert "user\\x0d\\x0anot found" in str(error)


# Retry-After


def test_a_retry_after_past_the_deadline_gives_up_at_once() -> None:
    with Hostile(http("", 429, Retry_After="3600")) as server:
        error = failure(server, deadline=60)
    assert error.code == "http_429"
    assert error.attempts == 1
    assert error.retry_after_seconds == 3600


def test_a_retry_after_within_the_deadline_is_honoured() -> None:
    with Hostile(http("", 503, Retry_After="1"), answer()) as server, gateway(server) as client:
        started = time.monotonic()
        assert client.fetch(TARGET).attempts == 2
    assert time.monotonic() - started >= 1


# Bytes


TOO_LARGE: list[tuple[str, Step]] = [
    ("by its length", then(http(b"x", length=2_000_000), "hang")),
    ("in one chunk", then(chunked(b"x" * 1_000_001), "hang")),
    ("in many chunks", then(chunked(*[b"x" * 1000] * 1001), "hang")),
    ("until the connection ends", then(endless(b"x" * 1_000_001), "close")),
    ("on the wire alone", chunked(gzip.compress(flows()) + gzip.compress(b"") * 50_000, Content_Encoding="gzip")),
]


@pytest.mark.parametrize("step", [each[1] for each in TOO_LARGE], ids=[each[0] for each in TOO_LARGE])
def test_a_body_over_the_cap_is_not_read(step: Step) -> None:
    with Hostile(step) as server:
        error = failure(server, own_connection=True, max_body=1_000_000)
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


WHOLE, ZIPPED = http(LONG), gzip.compress(LONG)
BROKEN: list[tuple[str, Step, str]] = [
    ("closed without a byte", lambda peer: peer.close(), "connection"),
    ("reset without a byte", lambda peer: peer.reset(), "connection"),
    ("closed in the status line", then(b"HTTP/1.", "close"), "truncated"),
    ("closed in the headers", then(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-", "close"), "truncated"),
    ("reset in the headers", then(b"HTTP/1.1 200 OK\r\nContent-Le", "reset"), "connection"),
    ("short of its Content-Length", then(http(LONG, length=len(LONG) + 1), "close"), "truncated"),
    ("reset in the body", then(WHOLE[:-1], "reset"), "truncated"),
    ("closed in a chunk", then(chunked(LONG)[:-20], "close"), "truncated"),
    ("closed before the last chunk", then(chunked(LONG, end=b""), "close"), "truncated"),
    ("a chunk size that is none", chunked(LONG, end=b"zz\r\n\r\n"), "protocol"),
    ("gzip cut short", http(ZIPPED[:-9], Content_Encoding="gzip"), "truncated"),
    ("no HTTP at all", then(b"220 mail.example.com ESMTP\r\n", "close"), "protocol"),
    ("a header without end", then(b"HTTP/1.1 200 OK\r\nA: " + b"x" * 70_000, "close"), "protocol"),
    ("too many headers", b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n", "protocol"),
    ("too many before it", b"HTTP/1.1 100 Go\r\n" + b"A: b\r\n" * 200 + b"\r\n" + WHOLE, "protocol"),
    ("too many trailers", chunked(LONG, end=b"0\r\n" + b"A: b\r\n" * 200 + b"\r\n"), "protocol"),
]


@pytest.mark.parametrize(("step", "expected"), [e[1:] for e in BROKEN], ids=[e[0] for e in BROKEN])
def test_a_broken_answer_is_named_and_tried_again(step: Step, expected: str) -> None:
    with Hostile(step, answer()) as server, gateway(server) as client:
        assert client.fetch(TARGET).attempts == 2
    with Hostile(step) as server:
        error = one_exchange(server)
    assert isinstance(error, GatewayUnreachable)
    assert error.code in (expected, "connection" if expected == "truncated" else expected)
    assert error.gateway_down_evidence


@pytest.mark.parametrize(
    "step", [then(endless(LONG[:-20]), "close"), http(LONG[:-20]), chunked(LONG[:-20])], ids=["none", "one", "chunks"]
)
def test_a_list_whose_text_is_cut_got_no_answer_whatever_length_a_proxy_gave_it(step: Step) -> None:
    with Hostile(step, answer()) as server, gateway(server) as client:
        assert client.fetch(TARGET).attempts == 2
    told: list[str | None] = []
    with (
        Hostile(step, http("", 503, Retry_After="9999")) as server,
        Gateway(settings_for(server.url), exchanged=lambda exchange: told.append(exchange.error_code)) as client,
        pytest.raises(GatewayUnreachable),
    ):
        client.fetch(TARGET)
    assert told == ["truncated", "http_503"]


def test_an_answer_cut_at_any_byte_never_passes_for_a_whole_one() -> None:
    whole = answer({"flowId": "1"}, {"flowId": "2"})
    cuts = list(range(0, len(whole), 11))
    steps = [then(whole[:cut], "close" if cut % 2 else "reset") for cut in cuts]
    with Hostile(*(s for step in steps for s in (step, http("no", 404)))) as server, gateway(server) as client:
        for _ in cuts:
            with pytest.raises(Refused):
                client.fetch(TARGET)


# The house


@pytest.mark.parametrize("url", ["http://apim.example.com", "https://user:pw@apim.example.com"])
def test_the_client_itself_refuses_an_unsafe_address(url: str) -> None:
    with pytest.raises(ConfigError, match="url"):
        Gateway(settings_for(url))


def test_no_descriptor_and_no_thread_is_left_behind() -> None:
    broken = (
        then(b"", "reset"),
        then(WHOLE[:99], "close"),
        http("", 500),
        then(endless(b"x"), "close"),
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
