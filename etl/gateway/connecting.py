"""Opens connections to the gateway: its name, the proxy, TLS. The watchdog can end each step."""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing, suppress
from typing import Any, Final, cast
from urllib.parse import SplitResult, urlsplit

from requests import PreparedRequest
from requests.exceptions import ConnectionError as NoConnection
from requests.exceptions import ConnectTimeout, ProxyError
from requests.structures import CaseInsensitiveDict
from requests.utils import DEFAULT_CA_BUNDLE_PATH, get_auth_from_url
from urllib3.util import make_headers
from urllib3.util.ssltransport import SSLTransport

from etl.config import GatewaySettings
from etl.errors import ConfigError, GatewayError, GatewayUnreachable, Problem
from etl.gateway.connection import FOREIGN, Connection, Head, desync, translated
from etl.gateway.deadline import Deadline

_VERIFIED_SECONDS: Final = 3600.0
_LOOK_SECONDS: Final = 0.05
"""How soon a thread that waits for the resolver sees that it has to stop."""


class Server:
    """Host and port of a URL, in ASCII."""

    def __init__(self, parts: SplitResult) -> None:
        self.host = (parts.hostname or "").encode("idna").decode("ascii").rstrip(".")
        self.is_tls = parts.scheme == "https"
        usual = 443 if self.is_tls else 80
        self.port = parts.port or usual
        name = f"[{self.host}]" if ":" in self.host else self.host
        self.address = f"{name}:{self.port}"
        self.authority = name if self.port == usual else self.address


class Connector:
    """Opens connections to the gateway, or to the proxy that reads requests to it. Thread-safe."""

    def __init__(self, settings: GatewaySettings) -> None:
        url, proxy = urlsplit(settings.url), settings.proxy
        self._origin = Server(url)
        self._proxy = Server(urlsplit(proxy)) if proxy else None
        login = ":".join(get_auth_from_url(proxy))
        try:
            self._login = make_headers(proxy_basic_auth=login) if login != ":" else {}
        except UnicodeEncodeError:
            why = "has a user or a password that is not Latin-1, which a proxy cannot be sent"
            raise ConfigError([Problem("gateway.proxy", why)]) from None
        self._forwards = self._proxy is not None and not self._origin.is_tls
        self.origin = f"{url.scheme}://{url.netloc}"
        tls = self._origin.is_tls or (self._proxy is not None and self._proxy.is_tls)
        self.context = verifying(settings.ca_bundle) if tls else None

    def send(self, request: PreparedRequest, connection: Connection, seconds: float) -> None:
        """Send a request to the gateway, as the server that reads it wants it; raises as ``Connection.send``."""
        whole = {"Host": self._origin.authority, **(self._login if self._forwards else {}), **request.headers}
        target = (request.url or "").removeprefix("" if self._forwards else self.origin)
        connection.send(request.method or "", target, whole, cast(bytes, request.body or b""), seconds)

    def open(self, deadline: Deadline, seconds: float) -> Connection:
        """Raises OSError (of requests' kinds while connecting), and GatewayUnreachable ("desync")."""
        connection = self._dialled(self._proxy or self._origin, deadline, seconds)
        try:
            if self._proxy:
                self._pass(self._proxy, connection, seconds)
            if not self._forwards:
                connection.connected = self._secured(self._origin, connection.connected)
            return connection
        except BaseException:
            connection.close()
            raise

    def post(self, target: str, headers: Mapping[str, str], body: bytes, deadline: Deadline, seconds: float) -> Head:
        """Send one request over a connection of its own; return the head of the answer, and read nothing else of it.

        Raises GatewayUnreachable, whose code says what failed, or Interrupted.
        """
        request = PreparedRequest()
        request.method, request.url, request.body = "POST", self.origin + target, body
        request.headers = CaseInsensitiveDict({**headers, "Content-Length": str(len(body)), "Connection": "close"})
        try:
            with closing(self.open(deadline, seconds)) as connection:
                self.send(request, connection, seconds)
                return connection.head()
        except (*FOREIGN, GatewayError) as error:
            raise translated(error, deadline, seconds) from None

    def _pass(self, proxy: Server, connection: Connection, seconds: float) -> None:
        """Through the proxy, so that what follows reaches the origin, or is forwarded to it."""
        try:
            connection.connected = self._secured(proxy, connection.connected)
            if self._forwards:
                return
            there = self._origin.address
            connection.send("CONNECT", there, {"Host": there, **self._login}, b"", seconds)
            status = connection.head().status
        except (OSError, GatewayUnreachable) as error:
            raise ProxyError from error
        if not 200 <= status < 300:
            raise ProxyError(f"it answers HTTP {status}")
        if connection.idle_state() == "stray":
            raise desync("before the TLS handshake")
        connection.connected.settimeout(seconds)
        connection.exchanges = 0

    def _secured(self, server: Server, connected: socket.socket) -> socket.socket:
        """After a handshake, if the server wants one; within TLS, where ``connected`` is secured already."""
        if not server.is_tls or self.context is None:
            return connected
        if isinstance(connected, ssl.SSLSocket):
            return cast(socket.socket, SSLTransport(connected, self.context, server.host))
        return self.context.wrap_socket(connected, server_hostname=server.host)

    def _dialled(self, server: Server, deadline: Deadline, seconds: float) -> Connection:
        failure: OSError | None = None
        try:
            for address in _addresses(server, deadline, seconds):
                try:
                    return self._connected(address, deadline, seconds)
                except OSError as error:
                    failure = error
        except OSError as error:
            failure = error
        kind = ConnectTimeout if isinstance(failure, TimeoutError) else NoConnection
        raise (ProxyError if self._proxy else kind) from failure

    def _connected(self, address: tuple[Any, ...], deadline: Deadline, seconds: float) -> Connection:
        connecting = socket.socket(*address[:3])
        connection = Connection(connecting)
        try:
            deadline.hold(connection.handle)
            connecting.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connecting.settimeout(min(seconds, max(deadline.remaining(), 0.001)))
            connecting.connect(address[4])
        except BaseException:
            connection.close()
            raise
        return connection


def _addresses(server: Server, deadline: Deadline, seconds: float) -> Sequence[tuple[Any, ...]]:
    """Raises socket.gaierror, or TimeoutError. In a separate thread: nothing can interrupt the system's resolver."""

    def resolved(flags: int) -> Sequence[tuple[Any, ...]]:
        return socket.getaddrinfo(server.host, server.port, socket.AF_UNSPEC, socket.SOCK_STREAM, 0, flags)

    def answer() -> None:
        try:
            found.set_result(resolved(0))
        except OSError as error:
            found.set_exception(error)

    try:
        return resolved(socket.AI_NUMERICHOST)
    except socket.gaierror:
        found: Future[Sequence[tuple[Any, ...]]] = Future()
    threading.Thread(target=answer, name="gateway-lookup", daemon=True).start()
    given_up_at = time.monotonic() + seconds
    while time.monotonic() < given_up_at:
        with suppress(TimeoutError):
            return found.result(_LOOK_SECONDS)
        deadline.check()
    raise TimeoutError


class ResumingContext(ssl.SSLContext):
    """Offers a server the session of an earlier connection to the same name, which saves both a full handshake.

    A resumed session shows no certificate, so each name must show it again every hour. A server that does not know the
    session makes a full handshake. Thread-safe.
    """

    def __init__(self, _: int) -> None:
        self._sessions: dict[str | None, tuple[ssl.SSLSession, float]] = {}
        """By server name; with each, when its server last showed a certificate, by the monotonic clock."""

    def wrap_socket(self, sock: Any, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
        return super().wrap_socket(sock, *args, **self._resuming(kwargs))

    def wrap_bio(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        return super().wrap_bio(incoming, outgoing, *args, **self._resuming(kwargs))

    def _resuming(self, options: dict[str, Any]) -> dict[str, Any]:
        session, shown_at = self._sessions.get(options.get("server_hostname"), (None, 0.0))
        if session is None or time.monotonic() - shown_at > _VERIFIED_SECONDS:
            return options
        return options | {"session": session}

    def remember(self, connected: socket.socket) -> None:
        """Keep the session of a connection that something has been read from: TLS 1.3 sends it late."""
        secured = cast(ssl.SSLSocket, connected.sslobj if isinstance(connected, SSLTransport) else connected)
        known, session = self._sessions.get(secured.server_hostname), secured.session
        if session is not None:
            shown_at = known[1] if known and secured.session_reused else time.monotonic()
            self._sessions[secured.server_hostname] = session, shown_at


def verifying(ca_bundle: str) -> ResumingContext:
    """Certificates and host names are verified, TLS is 1.2 or newer, and SSLKEYLOGFILE is not looked at.

    Raises ConfigError if ``ca_bundle`` (empty: the bundle of requests) cannot be used.
    """
    context = ResumingContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    # A server that just closes must not cost its session. The name is missing where OpenSSL is older than 3.0.
    context.options |= getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    bundle = ca_bundle or DEFAULT_CA_BUNDLE_PATH
    try:
        context.load_verify_locations(**{"capath" if os.path.isdir(bundle) else "cafile": bundle})
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or "no certificate in it"
        raise ConfigError([Problem("gateway.ca_bundle", f"{ca_bundle} cannot be used: {reason}")]) from None
    return context
