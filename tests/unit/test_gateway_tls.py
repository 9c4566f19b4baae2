"""TLS: a server without proof of its identity gets nothing, and a handshake ends by the deadline too."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import threading
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from ssl import SSLContext, TLSVersion

import pytest

from etl.errors import ConfigError, GatewayUnreachable, Interrupted
from etl.gateway import Gateway
from etl.gateway.recording import Exchange
from tests.support.gateways import SAFETY_NET_SECONDS, TARGET, failure, gateway, one_exchange, settings_for
from tests.support.hostile import NO_OPENSSL, Certificates, Hostile, Peer, Step, answer, http, then

pytestmark = NO_OPENSSL


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def good(certificates: Certificates) -> SSLContext:
    return certificates.server("good")


@pytest.fixture
def bundle(certificates: Certificates) -> str:
    return certificates.path("ca.pem")


def test_a_gateway_that_the_bundle_vouches_for_is_asked_over_kept_connections(good: SSLContext, bundle: str) -> None:
    exchanges: list[Exchange] = []
    with Hostile(tls=good) as server:
        settings = settings_for(server.url, ca_bundle=bundle, auth="token")
        with Gateway(settings, exchanged=exchanges.append) as client:
            for _ in range(3):
                client.fetch(TARGET)
    assert [exchange.error_code for exchange in exchanges] == [None] * 4
    assert [request.connection for request in server.requests] == [0, 1, 1, 1]
    assert server.requests[0].headers["connection"] == "close"
    assert len(server.flow_requests) == 3


def test_a_folder_of_certificates_is_a_bundle_too(good: SSLContext, bundle: str, tmp_path: Path) -> None:
    shutil.copy(bundle, tmp_path)
    subprocess.run(["openssl", "rehash", str(tmp_path)], check=True, capture_output=True)
    with Hostile(tls=good) as server, gateway(server, ca_bundle=str(tmp_path)) as client:
        client.fetch(TARGET)


@pytest.mark.parametrize(
    ("name", "trusted"),
    [("self_signed", "ca.pem"), ("expired", "ca.pem"), ("wrong_host", "ca.pem"), ("good", "other.pem"), ("good", "")],
)
def test_a_certificate_that_proves_nothing_is_refused_at_once(
    certificates: Certificates, name: str, trusted: str
) -> None:
    with Hostile(tls=certificates.server(name)) as server:
        error = failure(server, ca_bundle=trusted and certificates.path(trusted), auth="token", deadline=60)
    assert isinstance(error, GatewayUnreachable)
    assert (error.code, error.attempts, error.gateway_down_evidence) == ("tls_certificate", 1, True)
    assert "ca_bundle" in str(error)
    assert not server.requests


def test_the_environment_cannot_vouch_for_a_gateway(
    good: SSLContext, bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.setenv(name, bundle)
    with Hostile(tls=good) as server:
        assert failure(server).code == "tls_certificate"


def test_keys_of_a_session_are_not_logged_for_the_environment(
    good: SSLContext, bundle: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    with Hostile(tls=good) as server, gateway(server, ca_bundle=bundle) as client:
        client.fetch(TARGET)
    assert not (tmp_path / "keys").exists()


def test_old_tls_is_refused(good: SSLContext, bundle: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        good.minimum_version = good.maximum_version = TLSVersion.TLSv1_1
    good.set_ciphers("DEFAULT:@SECLEVEL=0")
    with Hostile(tls=good) as server:
        assert one_exchange(server, ca_bundle=bundle).code == "tls"
    assert not server.requests


def test_a_plain_server_behind_https_is_named() -> None:
    with Hostile(greet=http("hello")) as server:
        given = settings_for(server.url.replace("http:", "https:"))
        assert one_exchange(given).code == "tls"


@pytest.mark.parametrize("missing", ["nowhere.pem", "ca.key"])
def test_a_bundle_that_cannot_be_used_is_a_matter_of_configuration(certificates: Certificates, missing: str) -> None:
    with pytest.raises(ConfigError, match="ca_bundle"):
        Gateway(settings_for("https://apim.example.com", ca_bundle=certificates.path(missing)))


SERVER_HELLO = b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc\x03\x03" + bytes(9000)
SLOW: list[tuple[str, Step | None, Step]] = [
    ("silence instead of a handshake", lambda peer: peer.hang(), answer()),
    ("a handshake a byte at a time", lambda peer: peer.drip(SERVER_HELLO, 0.01), answer()),
    ("a body a byte at a time", None, lambda peer: peer.drip(http(b" " * 9000), 0.01)),
    ("silence in a body", None, lambda peer: (peer.send(http(b"{", length=9)), peer.hang())),
]


@pytest.mark.parametrize(("greet", "step"), [each[1:] for each in SLOW], ids=[each[0] for each in SLOW])
def test_no_server_outlives_the_deadline_over_tls(
    good: SSLContext, bundle: str, greet: Step | None, step: Step
) -> None:
    with Hostile(step, greet=greet, tls=good) as server:
        error = failure(server, ca_bundle=bundle, deadline=0.3)
        assert server.connections == 0 or server.left.wait(SAFETY_NET_SECONDS)
    assert error.code == "deadline"


def test_a_stop_ends_a_handshake(good: SSLContext, bundle: str) -> None:
    stop = threading.Event()

    def stuck(peer: Peer) -> None:
        stop.set()
        peer.hang()

    with (
        Hostile(greet=stuck, tls=good) as server,
        gateway(server, stop, ca_bundle=bundle) as client,
        pytest.raises(Interrupted),
    ):
        client.fetch(TARGET)


# Connections of their own


@pytest.mark.parametrize("version", [TLSVersion.TLSv1_2, TLSVersion.TLSv1_3])
def test_each_connection_resumes_the_session_of_one_before(good: SSLContext, bundle: str, version: TLSVersion) -> None:
    good.maximum_version = version
    with Hostile(tls=good) as server, gateway(server, ca_bundle=bundle) as client:
        for own in (True, True, False, True, True):
            assert client.fetch(TARGET, own_connection=own).sole_answer == own
    assert (server.connections, server.resumed) == (5, 4)


def test_a_certificate_has_to_be_shown_again_in_time(
    good: SSLContext, bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("etl.gateway.connecting._VERIFIED_SECONDS", 0.0)
    with Hostile(tls=good) as server, gateway(server, ca_bundle=bundle) as client:
        for _ in range(3):
            client.fetch(TARGET, own_connection=True)
    assert (server.connections, server.resumed) == (3, 0)


@pytest.mark.parametrize("version", [TLSVersion.TLSv1_2, TLSVersion.TLSv1_3])
def test_answers_that_nobody_asked_for_are_seen_over_tls(good: SSLContext, bundle: str, version: TLSVersion) -> None:
    good.maximum_version = version
    for own in (True, False):
        with Hostile(answer() + answer(), tls=good) as server:
            assert one_exchange(server, own_connection=own, ca_bundle=bundle).code == "desync"


# Through a proxy


ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


def _tunnel(peer: Peer, *, port: int, established: bytes = ESTABLISHED) -> None:
    """What a proxy does for CONNECT: two pumps."""
    with socket.create_connection(("127.0.0.1", port)) as upstream:
        peer.send(established)
        back = threading.Thread(target=_pump, args=(upstream, peer.connection))
        back.start()
        _pump(peer.connection, upstream)
        back.join(SAFETY_NET_SECONDS)
    raise ConnectionResetError


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def test_https_goes_through_a_tunnel_whose_owner_sees_nothing(good: SSLContext, bundle: str) -> None:
    with Hostile(tls=good) as server, Hostile(partial(_tunnel, port=server.port)) as proxy:
        address = f"http://me:pass@127.0.0.1:{proxy.port}"
        with gateway(server, ca_bundle=bundle, proxy=address, auth="token") as client:
            for _ in range(2):
                client.fetch(TARGET)
    assert len(proxy.requests) == 2  # one of the token's own
    for request in proxy.requests:
        assert (request.method, request.target) == ("CONNECT", f"127.0.0.1:{server.port}")
        assert request.headers["proxy-authorization"] == "Basic bWU6cGFzcw=="
        assert not any("apim-" in line for line in request.lines)
    assert not any("proxy-authorization" in request.headers for request in server.requests)


@pytest.mark.parametrize("over_tls", [False, True])
def test_a_connection_of_its_own_goes_through_a_tunnel_too(good: SSLContext, bundle: str, over_tls: bool) -> None:
    """Also through a proxy that speaks TLS itself, so that the gateway's lies within the proxy's."""
    own, doubled = answer(), answer() + answer()
    with (
        Hostile(own, own, own, doubled, tls=good) as server,
        Hostile(partial(_tunnel, port=server.port), tls=good if over_tls else None) as proxy,
        gateway(server, ca_bundle=bundle, proxy=proxy.url, deadline=0.5) as client,
    ):
        for asked_alone in (True, False, True):
            assert client.fetch(TARGET, own_connection=asked_alone).sole_answer == asked_alone
        with pytest.raises(GatewayUnreachable) as failed:
            client.fetch(TARGET, own_connection=True)
    assert failed.value.code in ("desync", "deadline")
    assert [request.headers.get("connection") for request in server.requests[:3]] == ["close", None, "close"]
    assert server.resumed >= 3


def test_what_a_proxy_sends_behind_its_answer_to_connect_is_no_part_of_the_tunnel(
    good: SSLContext, bundle: str
) -> None:
    with Hostile(tls=good) as server:
        tunnel = partial(_tunnel, port=server.port, established=ESTABLISHED + answer())
        with Hostile(tunnel) as proxy:
            assert one_exchange(server, own_connection=True, ca_bundle=bundle, proxy=proxy.url).code == "desync"


def test_a_proxy_that_forwards_is_asked_to_close_and_closes() -> None:
    with Hostile(answer(), answer() + answer()) as proxy:
        settings = settings_for("http://127.0.0.1:9", proxy=f"http://127.0.0.1:{proxy.port}")
        with Gateway(settings) as client:
            assert client.fetch(TARGET, own_connection=True).sole_answer
        assert one_exchange(settings, own_connection=True).code == "desync"
    assert [request.headers["connection"] for request in proxy.requests] == ["close", "close"]


def _read_and(step: Callable[[Peer], object]) -> Step:
    return lambda peer: (peer.connection.recv(4096), step(peer))


@pytest.mark.parametrize(
    ("greet", "limits", "code", "words"),
    [
        (b"HTTP/1.1 407 Who are you\r\n\r\n", {}, "proxy", "it answers HTTP 407"),
        (Peer.reset, {}, "proxy", "connection"),
        (_read_and(Peer.close), {}, "proxy", "closed the connection without an answer"),
        (_read_and(then(b"HTTP/1.1 2", "close")), {}, "proxy", "the answer is cut short"),
        (_read_and(Peer.hang), {"timeout": 0.3}, "proxy", "no answer in time"),
        (Peer.hang, {"deadline": 0.3}, "deadline", "0.3 s"),
        (lambda peer: peer.drip(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1500, 0.01), {"deadline": 0.3}, "deadline", ""),
    ],
)
def test_a_proxy_that_fails_is_named(greet: Step, limits: dict[str, float], code: str, words: str) -> None:
    with Hostile(greet=greet) as proxy:
        error = one_exchange(settings_for("https://apim.example.com", proxy=proxy.url, **limits))
    assert error.code == code
    assert words in error.message


# Connections that are opened ahead


def _many(client: Gateway) -> None:
    """So many exchanges over connections of their own that the last one opens another ahead."""
    for _ in range(8):
        assert client.fetch(TARGET, own_connection=True).sole_answer


def test_the_next_connection_is_opened_while_an_answer_is_awaited(good: SSLContext, bundle: str) -> None:
    def step(peer: Peer) -> None:
        """The answers from the eighth on wait for the connection of the next request."""
        while 8 <= len(server.requests) == server.connections:
            threading.Event().wait(0.001)
        peer.send(answer())

    with Hostile(step, tls=good) as server, gateway(server, ca_bundle=bundle) as client:
        for _ in range(30):
            assert client.fetch(TARGET, own_connection=True).sole_answer
    assert [request.connection for request in server.requests] == list(range(30))
    assert (server.connections, server.resumed) == (31, 30)


@pytest.mark.parametrize("version", [TLSVersion.TLSv1_2, TLSVersion.TLSv1_3])
def test_an_answer_on_a_connection_opened_ahead_is_of_no_request(
    good: SSLContext, bundle: str, version: TLSVersion
) -> None:
    strayed = threading.Event()

    def early(peer: Peer) -> None:
        if peer.number == 8:
            peer.send(answer({"flowId": "of somebody else"}))
            strayed.set()

    def step(peer: Peer) -> None:
        assert len(server.requests) != 8 or strayed.wait(SAFETY_NET_SECONDS)
        peer.send(answer())

    counted = list[int]()
    good.maximum_version = version
    with (
        Hostile(step, tls=good, early=early) as server,
        gateway(server, ca_bundle=bundle, desynced=lambda: counted.append(1)) as client,
    ):
        _many(client)
        assert client.fetch(TARGET, own_connection=True).attempts == 1
        assert (len(counted), len(server.requests)) == (1, 9)


@pytest.mark.parametrize("how", ["it is old", "the gateway ended it"])
def test_a_connection_opened_ahead_that_cannot_be_used_fails_nobody(good: SSLContext, bundle: str, how: str) -> None:
    is_up = threading.Event()
    with (
        Hostile(tls=good, early=lambda peer: peer.number == 8 and is_up.set()) as server,
        gateway(server, ca_bundle=bundle) as client,
    ):
        _many(client)
        assert is_up.wait(SAFETY_NET_SECONDS)
        if how == "it is old":
            client._transport._spares[0].opened_at -= 60
        else:
            server.drop()
        assert client.fetch(TARGET, own_connection=True).attempts == 1
    assert server.requests[-1].connection == 9


def test_few_exchanges_or_plain_ones_open_nothing_ahead(good: SSLContext, bundle: str) -> None:
    for tls, exchanges in ((good, 7), (None, 20)):
        with Hostile(tls=tls) as server, gateway(server, ca_bundle=bundle) as client:
            for _ in range(exchanges):
                client.fetch(TARGET, own_connection=True)
        assert server.connections == exchanges


def test_a_handshake_ahead_that_hangs_costs_no_exchange_its_answer(good: SSLContext, bundle: str) -> None:
    def stuck(peer: Peer) -> None:
        if peer.number == 8:
            peer.hang()

    with Hostile(greet=stuck, tls=good) as server, gateway(server, ca_bundle=bundle, deadline=1) as client:
        _many(client)
        _many(client)
    assert server.connections == 17
