"""Reads one connection, and notices bytes that belong to no request."""

from __future__ import annotations

import io
import select
import socket
import ssl
from http.client import HTTPException, IncompleteRead, LineTooLong
from typing import Any, Final, Literal, Self, cast

from urllib3.util.ssltransport import SSLTransport

Connected = socket.socket | SSLTransport
IdleState = Literal["quiet", "closed", "stray"]
"""The state of an idle connection: nothing came, its end came, or bytes that belong to no request."""

_BUFFER_BYTES: Final = 16 * 1024
_NOTHING_YET: Final = (BlockingIOError, ssl.SSLWantReadError, TimeoutError)


class NotHTTP(HTTPException):
    """The bytes are not an answer, or could be read as more than one; the message is ours."""


class _Source(io.RawIOBase):
    """The socket beneath the buffer."""

    def __init__(self, connected: Connected) -> None:
        self.connected = connected
        self.shut = False
        """Report that nothing is there, without reading."""
        self.emptied = False
        """The last read got less than it asked for, so nothing else had arrived by then."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self.shut:
            return None
        count = cast(int, self.connected.recv_into(buffer))
        self.emptied = count < len(buffer)
        return count


class ConnectionReader(io.BufferedReader):
    """Reads a connection from its first byte to its last. Not thread-safe.

    http.client uses a new buffer for every answer, and would discard with it whatever came after the answer.
    """

    def __init__(self, connected: Connected) -> None:
        self._source = _Source(connected)
        super().__init__(self._source, _BUFFER_BYTES)
        self._arrivals = select.poll()
        self._arrivals.register(connected.fileno(), select.POLLIN)
        self._is_plain = not isinstance(connected, ssl.SSLSocket | SSLTransport)

    @property
    def connected(self) -> Connected:
        return self._source.connected

    def makefile(self, *_: object) -> Self:
        """http.client calls this on a socket."""
        return self

    def close(self) -> None:
        """http.client calls this after an answer; do nothing, because the next one is read from here too."""

    def readline(self, size: int | None = -1, /) -> bytes:
        """A whole line of a head or of chunks. Raises IncompleteRead if the connection ends within it."""
        line = super().readline(size)
        if not line.endswith(b"\n"):
            raise LineTooLong("line") if len(line) == size else IncompleteRead(line)
        if b"\r" in line[:-2]:
            raise NotHTTP("a carriage return within a line")
        return line

    def exactly(self, count: int) -> bytes:
        """Exactly ``count`` bytes. Raises IncompleteRead if the connection ends before."""
        found = self.read(count)
        if len(found) < count:
            raise IncompleteRead(found, count - len(found))
        return found

    def is_followed(self) -> bool:
        """Whether anything has come after what was read; asks the system only if the last read leaves that open."""
        if self._source.emptied and self._is_plain:
            return self.holds_more()
        return self.idle_state() == "stray"

    def idle_state(self) -> IdleState:
        """What has arrived while nothing is expected. Never waits."""
        if self.holds_more():
            return "stray"
        return "quiet" if self._nothing_arrived() else self._within(0)

    def end(self, seconds: float) -> IdleState:
        """Waits for the connection to end; "quiet" if it does not within ``seconds``."""
        return "stray" if self.holds_more() else self._within(seconds)

    def holds_more(self) -> bool:
        """Whether received bytes are still unread."""
        self._source.shut = True
        try:
            return bool(self.peek(1))
        finally:
            self._source.shut = False

    def _nothing_arrived(self) -> bool:
        """With TLS, what has arrived may be a session ticket, so its library has to look."""
        if isinstance(self.connected, SSLTransport):
            return False
        pending = isinstance(self.connected, ssl.SSLSocket) and self.connected.pending()
        return not pending and not self._arrivals.poll(0)

    def _within(self, seconds: float) -> IdleState:
        timeout = self.connected.gettimeout()
        self.connected.settimeout(seconds)
        try:
            return "stray" if self.connected.recv(1) else "closed"
        except _NOTHING_YET:
            return "quiet"
        except OSError:
            return "closed"
        finally:
            self.connected.settimeout(timeout)
