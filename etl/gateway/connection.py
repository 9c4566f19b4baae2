"""One connection: it speaks HTTP/1.1 through h11, and carries only answers to its own requests."""

from __future__ import annotations

import io
import math
import socket
import ssl
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final, Literal, cast

import h11
from requests import PreparedRequest, Response

from etl.errors import GatewayUnreachable, Malformed
from etl.gateway.deadline import CancellableSocket, Watchdog

IdleState = Literal["quiet", "closed", "stray"]
"""The state of an idle connection: nothing came, its end came, or bytes that belong to no request."""

_MOST_INTERIM: Final = 8
"""Interim answers (1xx) before a final one: RFC 9110, section 15.2, has every client read past them."""
_MOST_HEADERS: Final = 100
_LONGEST_HEAD: Final = 64 * 1024
_RECEIVED_BYTES: Final = 64 * 1024
_PIECE_BYTES: Final = 1024 * 1024
_GZIP_WBITS: Final = 31
_NOTHING_YET: Final = (BlockingIOError, ssl.SSLWantReadError, TimeoutError)

_END_SECONDS: Final = 3.0
"""How long to wait for the gateway to close a connection that it was asked to close."""
_PROMPT_SECONDS: Final = 0.3
"""A gateway that takes longer is not waited for again during ``_SLOW_CLOSE_REMEMBERED_SECONDS``."""
_SLOW_CLOSE_REMEMBERED_SECONDS: Final = 60.0
_HALF_CLOSED_SECONDS: Final = 1.0
"""How long to wait for that after closing our side."""


class NotHTTP(h11.RemoteProtocolError):
    """The bytes are not an answer, or could be read in two ways; the message is ours."""


class SharedConnectionState:
    """State that the connections to one gateway share."""

    def __init__(self, watchdog: Watchdog, desynced: Callable[[], None]) -> None:
        self.watchdog = watchdog
        self.desynced = desynced
        self.slow_close_at = -math.inf
        """When the gateway last took long to close a connection, or did not."""

    def desync(self, when: str) -> GatewayUnreachable:
        """The error of an exchange over a connection that carried bytes of no request; counts it."""
        self.desynced()
        return GatewayUnreachable(
            f"bytes that belong to no request came {when}: the gateway or a proxy in front of it mixes up answers",
            code="desync",
        )


class Connection:
    """A connection whose socket can be ended by the Deadline of the thread that uses it. Not thread-safe."""

    def __init__(self, connected: socket.socket, cancellable: CancellableSocket, shared: SharedConnectionState) -> None:
        self.connected = connected
        self.cancellable = cancellable
        self.exchanges = 0
        self.opened_at = time.monotonic()
        self._shared = shared
        self._http = h11.Connection(h11.CLIENT, _LONGEST_HEAD)
        self._leftover = b""

    def send(self, request: PreparedRequest, target: str, seconds: float) -> None:
        """Sends a request; each read from now on may take so many seconds. Raises OSError or GatewayUnreachable."""
        self.exchanges += 1
        self._http = h11.Connection(h11.CLIENT, _LONGEST_HEAD)
        self.connected.settimeout(seconds)
        try:
            self.connected.sendall(self._written(request, target))
        except (BrokenPipeError, ConnectionResetError):
            raise unanswered() from None  # an answer that came before its request does not count

    def head(self) -> Response:
        """The head of the answer. Raises OSError, GatewayUnreachable, or h11.RemoteProtocolError if it is ambiguous."""
        for _ in range(_MOST_INTERIM + 1):
            if isinstance(event := self._next_event(), h11.Response):
                self._leftover = self._http.trailing_data[0]
                return _unambiguous(event)
        raise NotHTTP(f"more than {_MOST_INTERIM} interim answers")

    def _written(self, request: PreparedRequest, target: str) -> bytes:
        send, body = self._http.send, cast("bytes | None", request.body)
        head = send(h11.Request(method=request.method or "", target=target, headers=list(request.headers.items())))
        return head + (send(h11.Data(data=body)) if body else b"") + send(h11.EndOfMessage())

    def _next_event(self) -> h11.Event:
        while isinstance(event := self._http.next_event(), type):
            waits = self._http.their_state is not h11.SEND_BODY
            if waits and not b"HTTP/1.".startswith(begun := self._http.trailing_data[0][:7]):
                raise NotHTTP("no status line of HTTP/1.1")
            if data := self.connected.recv(_RECEIVED_BYTES):
                self._http.receive_data(data)
            elif waits:
                raise _cut_short() if begun else unanswered()
            else:
                self._http.receive_data(b"")
                try:
                    return cast(h11.Event, self._http.next_event())
                except h11.RemoteProtocolError:
                    raise _cut_short() from None
        if len(getattr(event, "headers", ())) > _MOST_HEADERS:
            raise NotHTTP(f"more than {_MOST_HEADERS} headers")
        return event

    def body(self, head: Response, max_bytes: int) -> bytes:
        """The whole decoded body. Raises Malformed over the limit, GatewayUnreachable if it ends too early."""
        length, encoding = head.headers.get("Content-Length"), head.headers.get("Content-Encoding", "").strip().lower()
        if int(length or 0) > max_bytes and head.status_code not in (204, 304):
            raise _too_large(max_bytes)
        if head.status_code == 200 and length and not encoding:
            return self._exactly(int(length))
        body = bytearray()
        for piece in _decoded(self._pieces(head, max_bytes), encoding):
            body += piece
            if len(body) > max_bytes:
                raise _too_large(max_bytes)
        return bytes(body)

    def _exactly(self, count: int) -> bytes:
        """Without h11, which would copy a long body four times: each byte is written once, where it stays."""
        body, at = io.BytesIO(bytes(count)), min(len(self._leftover), count)
        with body.getbuffer() as view:
            view[:at], self._leftover = self._leftover[:at], self._leftover[at:]
            while at < count:
                if not (received := self.connected.recv_into(view[at:])):
                    raise _cut_short()
                at += received
        return body.getvalue()

    def _pieces(self, head: Response, max_bytes: int) -> Iterator[bytes]:
        on_the_wire = 0
        while isinstance(event := self._next_event(), h11.Data):
            on_the_wire += len(event.data)
            if on_the_wire > max_bytes:
                raise _too_large(max_bytes)
            yield event.data
        self._leftover, ended = self._http.trailing_data
        if ended and not on_the_wire and head.status_code == 200:
            raise GatewayUnreachable("the connection ended before the body", code="truncated")

    def finish(self, *, own: bool) -> bool:
        """After a complete answer: whether it is the only one that this connection will ever have carried.

        With ``own`` no other request may follow. Raises GatewayUnreachable ("desync") if more came after the answer:
        nobody can tell which of the two is meant.
        """
        if (self._end() if own else self.idle_state()) == "stray":
            raise self._shared.desync("after an answer")
        return own and self.exchanges == 1

    @property
    def is_reusable(self) -> bool:
        """Whether the gateway will keep it open after a complete answer."""
        return self._http.our_state is h11.DONE and not self._http.trailing_data[1]

    def idle_state(self, seconds: float = 0) -> IdleState:
        """What has arrived while nothing is expected, or does so within ``seconds``."""
        if self._leftover:
            return "stray"
        self.connected.settimeout(seconds)
        try:
            return "stray" if self.connected.recv(1) else "closed"
        except _NOTHING_YET:
            return "quiet"
        except OSError:
            return "closed"

    def _end(self) -> IdleState:
        """Waits for the gateway to close the connection: the port of who closes first stays in TIME_WAIT.

        A gateway that keeps the connection open is told that no further request comes, which should make it close. If
        it still does not, the connection counts as quiet, provided that nothing has arrived.
        """
        idle_state: IdleState = "quiet"
        began = time.monotonic()
        if began - self._shared.slow_close_at > _SLOW_CLOSE_REMEMBERED_SECONDS:
            idle_state = self.idle_state(self._at_most(_END_SECONDS))
            if time.monotonic() - began > _PROMPT_SECONDS:
                self._shared.slow_close_at = time.monotonic()
        if idle_state == "quiet":
            self.cancellable.half_close()
            idle_state = self.idle_state(self._at_most(_HALF_CLOSED_SECONDS))
        return idle_state

    def _at_most(self, seconds: float) -> float:
        """``seconds``, or half of what is left until the deadline: the answer is already complete."""
        return max(min(seconds, self._shared.watchdog.current.remaining() / 2), 0.001)

    def close(self) -> None:
        with suppress(OSError):
            self.connected.close()
        self.cancellable.close()


def unanswered() -> GatewayUnreachable:
    return GatewayUnreachable("the gateway closed the connection without an answer", code="connection")


def _cut_short() -> GatewayUnreachable:
    return GatewayUnreachable("the answer is cut short", code="truncated")


def _too_large(max_bytes: int) -> Malformed:
    return Malformed(
        f"the body is larger than {max_bytes} bytes: if the list is really that long, raise [gateway] max_body",
        code="body_too_large",
    )


def _unambiguous(answer: h11.Response) -> Response:
    """Status and headers, those that came twice joined by a comma. Raises NotHTTP for what h11 lets pass.

    RFC 9112, section 6.3: a reader who understands a contradictory head differently from its sender takes a part of the
    body for the next answer, or the next answer for a part of the body.
    """
    head = Response()
    head.status_code = answer.status_code
    for raw, value in answer.headers.raw_items():
        name, text = raw.decode("ascii"), value.decode("latin-1")
        head.headers[name] = f"{head.headers[name]}, {text}" if name in head.headers else text
    if answer.http_version not in (b"1.0", b"1.1"):
        raise NotHTTP("no status line of HTTP/1.1")
    if "Transfer-Encoding" in head.headers and ("Content-Length" in head.headers or answer.http_version == b"1.0"):
        raise NotHTTP("a Transfer-Encoding with a Content-Length, or in HTTP/1.0")
    return head


def _decoded(pieces: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    """The decoded bytes, in steps of bounded size; several gzip members in a row count as one body."""
    if encoding in ("", "identity"):
        yield from pieces
        return
    if encoding not in ("gzip", "x-gzip"):
        raise Malformed("the body has a Content-Encoding that was not asked for", code="malformed")
    stream, step = None, b""
    for piece in pieces:
        data = piece
        while data or len(step) == _PIECE_BYTES:
            if stream is None or (stream.eof and data):
                stream = zlib.decompressobj(_GZIP_WBITS)
            try:
                step = stream.decompress(data, _PIECE_BYTES)
            except zlib.error:
                raise Malformed("the gzip stream of the body is damaged", code="malformed") from None
            yield step
            data = stream.unused_data if stream.eof else stream.unconsumed_tail
    if stream is not None and not stream.eof:
        raise GatewayUnreachable("the gzip stream of the body is cut short", code="truncated")
