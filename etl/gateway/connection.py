"""Connections that the watchdog can end at any moment: while a name is looked up, in the TLS handshake, in a body."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence
from typing import Any, Final

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError
from urllib3.util.connection import allowed_gai_family

from etl.gateway.watchdog import SocketLine, Watch, Watchdog

Address = tuple[Any, ...]

_JUST_USED_SECONDS: Final = 0.1


class WatchedConnection(HTTPConnection):
    """urllib3's connection, whose socket is held by the watch of the thread that uses it."""

    def __init__(self, *args: Any, watchdog: Watchdog, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._watchdog = watchdog
        self._line: SocketLine | None = None
        self._used_at = 0.0

    def _new_conn(self) -> socket.socket:
        watch = self._watchdog.current
        failure: OSError | None = None
        for address in self._addresses(watch):
            try:
                return self._connected(address, watch)
            except OSError as error:
                failure = error
                self._retire_line()
        if isinstance(failure, TimeoutError):
            raise ConnectTimeoutError(self, "no connection in time") from failure
        raise NewConnectionError(self, "no connection") from failure

    def _addresses(self, watch: Watch) -> Sequence[Address]:
        lookup = _Lookup(self._dns_host, self.port)
        try:
            return lookup.addresses(watch, float(self.timeout or watch.remaining()))
        except socket.gaierror as error:
            raise NameResolutionError(self.host, self, error) from error
        except TimeoutError as error:
            raise ConnectTimeoutError(self, "the name was not resolved in time") from error

    def _connected(self, address: Address, watch: Watch) -> socket.socket:
        family, kind, protocol, _, where = address
        connecting = socket.socket(family, kind, protocol)
        try:
            self._line = SocketLine(connecting)
            watch.hold(self._line)
            for option in self.socket_options or ():
                connecting.setsockopt(*option)
            connecting.settimeout(min(float(self.timeout or watch.seconds), max(watch.remaining(), 0.001)))
            connecting.connect(where)
        except BaseException:
            connecting.close()
            raise
        return connecting

    def request(self, *args: Any, **kwargs: Any) -> None:
        if self._line is not None:
            self._watchdog.current.hold(self._line)
        super().request(*args, **kwargs)
        self._used_at = time.monotonic()

    @property
    def is_connected(self) -> bool:
        """Whether the gateway has not hung up; one that just answered is not asked, which costs a system call."""
        if self.sock is not None and time.monotonic() - self._used_at < _JUST_USED_SECONDS:
            return True
        return super().is_connected

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._retire_line()

    def _retire_line(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            line.retire()


class WatchedTLSConnection(WatchedConnection, HTTPSConnection):
    """The same over TLS; its handshake is watched as well."""


class WatchedPool(HTTPConnectionPool):
    ConnectionCls = WatchedConnection


class WatchedTLSPool(HTTPSConnectionPool):
    ConnectionCls = WatchedTLSConnection


class _Lookup:
    """A name resolution in a thread of its own, as nothing can interrupt the system's resolver."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._done = threading.Event()
        self._found: Sequence[Address] = ()
        self._error: OSError | UnicodeError | None = None

    def addresses(self, watch: Watch, seconds: float) -> Sequence[Address]:
        """Raises socket.gaierror, or TimeoutError when it takes too long or the watch is cut."""
        try:
            return self._resolved(socket.AI_NUMERICHOST)
        except socket.gaierror:
            pass
        watch.hold(self)
        threading.Thread(target=self._run, name="gateway-lookup", daemon=True).start()
        self._done.wait(seconds)
        watch.release()
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

    def take(self, user: Watch) -> None:
        """A Line: nothing to take."""

    def drop(self, user: Watch) -> None:
        """A Line: nothing to drop; the thread ends by itself."""

    def shut(self, user: Watch) -> None:
        self._done.set()
