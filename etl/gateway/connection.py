"""Connections that the watchdog can end at any moment, and that carry only answers to their own requests."""

from __future__ import annotations

import math
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from http.client import RemoteDisconnected
from typing import Any, Final, cast

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError
from urllib3.util.connection import allowed_gai_family
from urllib3.util.ssltransport import SSLTransport

from etl.errors import GatewayUnreachable
from etl.gateway.connection_reader import ConnectionReader, IdleState
from etl.gateway.deadline import CancellableSocket, Deadline, Watchdog
from etl.gateway.framing import StrictResponse
from etl.gateway.tls import ResumingContext

Address = tuple[Any, ...]

_END_SECONDS: Final = 3.0
"""How long to wait for the gateway to close a connection that it was asked to close."""
_PROMPT_SECONDS: Final = 0.3
"""A gateway that takes longer is not waited for again during ``_SLOW_CLOSE_REMEMBERED_SECONDS``."""
_SLOW_CLOSE_REMEMBERED_SECONDS: Final = 60.0
_HALF_CLOSED_SECONDS: Final = 1.0
"""How long to wait for that after closing our side."""


class ConnectionUnusable(Exception):
    """Nothing was sent: a kept connection had ended, or carried bytes of no request. Use another one."""


class SharedConnectionState:
    """State that the connections to one gateway share."""

    def __init__(self, watchdog: Watchdog, desynced: Callable[[], None]) -> None:
        self.watchdog = watchdog
        self.desynced = desynced
        self._slow_close_at = -math.inf

    def closes_promptly(self) -> bool:
        """Whether the gateway closes connections promptly, as far as is known."""
        return time.monotonic() - self._slow_close_at > _SLOW_CLOSE_REMEMBERED_SECONDS

    def closed_after(self, seconds: float) -> None:
        """Record how long the gateway took to close a connection, or that it did not."""
        if seconds > _PROMPT_SECONDS:
            self._slow_close_at = time.monotonic()

    def desync(self, when: str) -> GatewayUnreachable:
        """The error of an exchange over a connection that carried bytes of no request; counts it."""
        self.desynced()
        return GatewayUnreachable(
            f"bytes that belong to no request came {when}: the gateway or a proxy in front of it mixes up answers",
            code="desync",
        )


class WatchedConnection(HTTPConnection):
    """urllib3's connection, whose socket is held by the Deadline of the thread that uses it.

    With ``own`` it is for one exchange only: the answer counts if nothing else comes before the gateway closes it.
    """

    def __init__(self, *args: Any, shared: SharedConnectionState, own: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.own = own
        self.exchanges = 0
        self._shared = shared
        self._watchdog = shared.watchdog
        self._cancellable: CancellableSocket | None = None
        self._reader: ConnectionReader | None = None
        self._begins = False

    def _new_conn(self) -> socket.socket:
        deadline = self._watchdog.current
        failure: OSError | None = None
        for address in self._addresses(deadline):
            try:
                return self._connected(address, deadline)
            except OSError as error:
                failure = error
                self._retire_socket()
        if isinstance(failure, TimeoutError):
            raise ConnectTimeoutError(self, "no connection in time") from failure
        raise NewConnectionError(self, "no connection") from failure

    def _addresses(self, deadline: Deadline) -> Sequence[Address]:
        lookup = _Lookup(self._dns_host, self.port)
        try:
            return lookup.addresses(deadline, float(self.timeout or deadline.remaining()))
        except socket.gaierror as error:
            raise NameResolutionError(self.host, self, error) from error
        except TimeoutError as error:
            raise ConnectTimeoutError(self, "the name was not resolved in time") from error

    def _connected(self, address: Address, deadline: Deadline) -> socket.socket:
        family, kind, protocol, _, where = address
        connecting = socket.socket(family, kind, protocol)
        try:
            self._cancellable = CancellableSocket(connecting)
            deadline.hold(self._cancellable)
            for option in self.socket_options or ():
                connecting.setsockopt(*option)
            connecting.settimeout(min(float(self.timeout or deadline.seconds), max(deadline.remaining(), 0.001)))
            connecting.connect(where)
        except BaseException:
            connecting.close()
            raise
        return connecting

    def request(self, *args: Any, **kwargs: Any) -> None:
        if self._cancellable is not None:
            self._watchdog.current.hold(self._cancellable)
        self._begins = True
        super().request(*args, **kwargs)

    def send(self, data: Any) -> None:
        """Sends, if nothing has arrived just before the first byte of a request goes out."""
        if self._begins:
            self._begins = False
            self._require_idle()
        try:
            super().send(data)
        except (BrokenPipeError, ConnectionResetError) as error:
            # urllib3 would read on, and an answer that came before its request would count.
            raise RemoteDisconnected("the request did not go out") from error

    def _require_idle(self) -> None:
        if self.sock is None:
            self.connect()
        idle_state = self.reader.idle_state()
        if idle_state != "quiet" and self.exchanges:
            if idle_state == "stray":
                self._shared.desynced()
            raise ConnectionUnusable
        if idle_state == "stray":
            raise self._shared.desync("before the request")
        if idle_state == "closed":
            raise RemoteDisconnected("closed before the request")
        self.exchanges += 1

    @property
    def reader(self) -> ConnectionReader:
        """The reader of the current socket; TLS replaces the first one."""
        if self._reader is None or self._reader.connected is not self.sock:
            if self._reader is not None and self._reader.holds_more():
                raise self._shared.desync("before the TLS handshake")
            self._reader = ConnectionReader(self.sock)
        return self._reader

    def response_class(self, _: object, method: str | None = None) -> StrictResponse:  # type: ignore[override]
        """http.client calls this to get a reader for an answer."""
        return StrictResponse(self.reader, method)

    def finish(self, answer: StrictResponse) -> bool:
        """After a complete answer: whether it is the only one that this connection will ever have carried.

        Raises GatewayUnreachable ("desync") if more came after it: nobody can tell which of the two is meant.
        """
        is_followed = self._end() == "stray" if self.own else self.reader.is_followed()
        if is_followed:
            raise self._shared.desync("after an answer")
        is_sole = self.own and self.exchanges == 1
        answer.close()
        if self.own or answer.ends_connection:
            self.close()
        return is_sole

    def _end(self) -> IdleState:
        """Waits for the gateway to close the connection: the port of who closes first stays in TIME_WAIT.

        A gateway that keeps the connection open is told that no further request comes, which should make it close. If
        it still does not, the connection counts as quiet, provided that nothing has arrived.
        """
        idle_state = self._wait_for_close() if self._shared.closes_promptly() else "quiet"
        if idle_state == "quiet" and self._cancellable is not None:
            self._cancellable.half_close()
            idle_state = self.reader.end(self._at_most(_HALF_CLOSED_SECONDS))
        return idle_state

    def _wait_for_close(self) -> IdleState:
        began = time.monotonic()
        idle_state = self.reader.end(self._at_most(_END_SECONDS))
        self._shared.closed_after(time.monotonic() - began)
        return idle_state

    def _at_most(self, seconds: float) -> float:
        """``seconds``, or half of what is left until the deadline: the answer is already complete."""
        return max(min(seconds, self._watchdog.current.remaining() / 2), 0.001)

    @property
    def is_connected(self) -> bool:
        """Whether it can be used; evaluated when a request is about to go out."""
        return self.sock is not None

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._reader = None
            self.exchanges = 0
            self._retire_socket()

    def _retire_socket(self) -> None:
        cancellable, self._cancellable = self._cancellable, None
        if cancellable is not None:
            cancellable.retire()


class WatchedTLSConnection(WatchedConnection, HTTPSConnection):
    """The same over TLS; its handshake is watched as well, and resumes the session of an earlier one."""

    def finish(self, answer: StrictResponse) -> bool:
        """See WatchedConnection."""
        if self.exchanges == 1 and isinstance(self.ssl_context, ResumingContext):
            self.ssl_context.remember(cast("ssl.SSLSocket | SSLTransport", self.sock))
        return super().finish(answer)


class WatchedPool(HTTPConnectionPool):
    ConnectionCls = WatchedConnection


class WatchedTLSPool(HTTPSConnectionPool):
    ConnectionCls = WatchedTLSConnection


class _NoPool(HTTPConnectionPool):
    """Every request gets a new connection, which ends with it."""

    def _get_conn(self, timeout: float | None = None) -> Any:
        return self._new_conn()

    def _put_conn(self, conn: Any) -> None:
        if conn is not None:
            conn.close()


class OwnPool(_NoPool, WatchedPool):
    """Connections of one exchange each."""


class OwnTLSPool(_NoPool, WatchedTLSPool):
    """The same over TLS."""


class _Lookup:
    """A name resolution in a separate thread, because nothing can interrupt the system's resolver."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._done = threading.Event()
        self._found: Sequence[Address] = ()
        self._error: OSError | UnicodeError | None = None

    def addresses(self, deadline: Deadline, seconds: float) -> Sequence[Address]:
        """Raises socket.gaierror, or TimeoutError if it takes too long or the deadline passes."""
        try:
            return self._resolved(socket.AI_NUMERICHOST)
        except socket.gaierror:
            pass
        deadline.hold(self)
        threading.Thread(target=self._run, name="gateway-lookup", daemon=True).start()
        self._done.wait(seconds)
        deadline.release()
        if self._error is not None:
            raise self._error
        if not self._found:
            raise TimeoutError
        return self._found

    def _run(self) -> None:
        try:
            self._found = self._resolved(0)
        except (OSError, UnicodeError) as error:
            self._error = error
        self._done.set()

    def _resolved(self, flags: int) -> Sequence[Address]:
        host = self._host.strip("[]")
        return socket.getaddrinfo(host, self._port, allowed_gai_family(), socket.SOCK_STREAM, 0, flags)

    def attach(self, user: Deadline) -> None:
        """Cancellable: there is nothing to attach to."""

    def detach(self, user: Deadline) -> None:
        """Cancellable: the thread ends by itself."""

    def shut(self, user: Deadline) -> None:
        self._done.set()
