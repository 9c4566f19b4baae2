"""Opens connections to the gateway: its name, the proxy, TLS. The watchdog can end each step."""

from __future__ import annotations

import math
import os
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Final, cast
from urllib.parse import SplitResult, urlsplit

import h11
from requests import PreparedRequest
from requests.auth import HTTPProxyAuth
from requests.exceptions import ConnectionError as NoConnection
from requests.exceptions import ConnectTimeout, ProxyError
from requests.structures import CaseInsensitiveDict
from requests.utils import DEFAULT_CA_BUNDLE_PATH, get_auth_from_url
from urllib3.util.ssltransport import SSLTransport

from etl.errors import ConfigError, FlowtrailError, GatewayUnreachable, Problem
from etl.gateway.connection import Connection, SharedConnectionState
from etl.gateway.deadline import CancellableSocket, Deadline

_VERIFIED_SECONDS: Final = 3600.0
_MANY: Final = 8
_LATELY_SECONDS: Final = 1.0
"""So many exchanges in so many seconds make it worth to open connections ahead."""
_SPARE_SECONDS: Final = 3.0
"""How old a connection may become unused: servers soon end those over which nothing is asked, some with an answer."""
_NO_SPARES_SECONDS: Final = 60.0
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


def prepared(method: str, url: str, headers: dict[str, str], body: bytes | None = None) -> PreparedRequest:
    """Built by hand, so that the URL is sent as it was signed, without anything from a session or the environment."""
    request = PreparedRequest()
    request.method, request.url, request.body = method, url, body
    request.headers = cast("CaseInsensitiveDict[str]", headers)
    return request


class Connector:
    """Opens connections to one origin, or to the proxy that reads requests to it. Thread-safe."""

    def __init__(self, origin: SplitResult, proxy: str, ca_bundle: str, shared: SharedConnectionState) -> None:
        self._origin = Server(origin)
        self._proxy = Server(urlsplit(proxy)) if proxy else None
        self._login = get_auth_from_url(proxy)
        self._forwards = bool(proxy) and not self._origin.is_tls
        self._path_from = 0 if self._forwards else len(f"{origin.scheme}://{origin.netloc}")
        self._shared = shared
        self.watchdog = shared.watchdog
        tls = self._origin.is_tls or (self._proxy is not None and self._proxy.is_tls)
        self.context = verifying(ca_bundle) if tls else None

    def addressed(self, request: PreparedRequest) -> str:
        """What the request line names; adds the headers that a request needs on its way."""
        request.headers["Host"] = self._origin.authority
        if self._forwards:
            self._authorize(request)
        return (request.url or "")[self._path_from :]

    def _authorize(self, request: PreparedRequest) -> None:
        if any(self._login):
            HTTPProxyAuth(*self._login)(request)

    def open(self, seconds: float) -> Connection:
        """Raises OSError (of requests' kinds while connecting), and GatewayUnreachable ("desync")."""
        connection = self._dialled(self._proxy or self._origin, seconds)
        try:
            if self._proxy:
                self._pass(self._proxy, connection, seconds)
            if not self._forwards:
                connection.connected = self._secured(self._origin, connection.connected)
            return connection
        except BaseException:
            connection.close()
            raise

    def _pass(self, proxy: Server, connection: Connection, seconds: float) -> None:
        """Through the proxy, so that what follows reaches the origin, or is forwarded to it."""
        try:
            connection.connected = self._secured(proxy, connection.connected)
            if self._forwards:
                return
            request = prepared("CONNECT", self._origin.address, {"Host": self._origin.address})
            self._authorize(request)
            tunnel = Connection(connection.connected, connection.cancellable, self._shared)
            tunnel.send(request, self._origin.address, seconds)
            status = tunnel.head().status_code
        except (OSError, GatewayUnreachable) as error:
            raise ProxyError from error
        if not 200 <= status < 300:
            raise ProxyError(f"it answers HTTP {status}")
        if tunnel.idle_state() == "stray":
            raise self._shared.desync("before the TLS handshake")
        tunnel.connected.settimeout(seconds)

    def _secured(self, server: Server, connected: socket.socket) -> socket.socket:
        """After a handshake, if the server wants one; within TLS, where ``connected`` is secured already."""
        if not server.is_tls or self.context is None:
            return connected
        if isinstance(connected, ssl.SSLSocket):
            return cast(socket.socket, SSLTransport(connected, self.context, server.host))
        return self.context.wrap_socket(connected, server_hostname=server.host)

    def _dialled(self, server: Server, seconds: float) -> Connection:
        deadline, failure = self._shared.watchdog.current, cast("OSError | None", None)
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
        connection = Connection(connecting, CancellableSocket(connecting), self._shared)
        try:
            deadline.hold(connection.cancellable)
            connecting.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connecting.settimeout(min(seconds, max(deadline.remaining(), 0.001)))
            connecting.connect(address[4])
        except BaseException:
            connection.close()
            raise
        return connection


class Spares:
    """Connections that were opened ahead, over which nothing has gone yet. Thread-safe.

    Each exchange that needs a connection of its own opens one for another exchange while it waits for its answer, if
    many of them have needed one lately. With those that are kept, the gateway sees three times ``concurrency``
    connections at most.
    """

    def __init__(self, connector: Connector, most: int) -> None:
        self._connector = connector
        self._most = most
        self._spares: deque[Connection] = deque()
        self._asked_for: deque[float] = deque(maxlen=_MANY)
        self._none_until = -math.inf

    def take(self) -> Connection | None:
        """The oldest one that is young enough, if there is one. What has arrived over it meanwhile is not looked at."""
        with suppress(IndexError):
            while spare := self._spares.popleft():
                if time.monotonic() - spare.opened_at < _SPARE_SECONDS:
                    return spare
                spare.close()
        return None

    def open_next(self) -> None:
        """Never raises, and takes half of the time that is left at most. After a failure there is none for a while."""
        now, watchdog = time.monotonic(), self._connector.watchdog
        self._asked_for.append(now)
        many_lately = len(self._asked_for) == _MANY and now - self._asked_for[0] < _LATELY_SECONDS
        if not many_lately or len(self._spares) >= self._most or now < self._none_until:
            return
        deadline = watchdog.current
        try:
            with watchdog.watch(min(_SPARE_SECONDS, deadline.remaining() / 2)) as limit:
                self._spares.append(self._connector.open(limit.seconds))
        except (OSError, ValueError, h11.ProtocolError, FlowtrailError):
            self._none_until = now + _NO_SPARES_SECONDS
        finally:
            watchdog.add(deadline)

    def close(self) -> None:
        while self._spares:
            self._spares.pop().close()


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

    _sessions: dict[str | None, tuple[ssl.SSLSession, float]]
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
    context._sessions = {}
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    bundle = ca_bundle or DEFAULT_CA_BUNDLE_PATH
    try:
        context.load_verify_locations(**{"capath" if os.path.isdir(bundle) else "cafile": bundle})
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or "no certificate in it"
        raise ConfigError([Problem("gateway.ca_bundle", f"{ca_bundle} cannot be used: {reason}")]) from None
    return context
