"""One connection: it speaks HTTP/1.1, reads answers through h11, and carries only answers to its own requests.

An answer that is not whole becomes an error of ours here. ``repeating`` has a table of them, and of what follows.
"""

from __future__ import annotations

import io
import socket
import ssl
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Final, Literal, NamedTuple, cast

import h11
from requests import exceptions
from requests.structures import CaseInsensitiveDict
from urllib3.util.ssltransport import SSLTransport

from etl.errors import FlowtrailError, GatewayUnreachable, Malformed
from etl.gateway.deadline import Deadline, Handle
from etl.printable import printable

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
_SENT: Final = {m: h11.Request(method=m, target="/", headers=[("Host", "-")]) for m in ("GET", "POST", "CONNECT")}
"""What h11 must have seen of a request to read its answer. It would take longer to write it than to read the answer."""
_ALL_SENT: Final = h11.EndOfMessage()


class NotHTTP(h11.RemoteProtocolError):
    """The bytes are not an answer, or could be read in two ways; the message is ours."""


class Head(NamedTuple):
    """Status and headers of an answer; those that came twice are joined by a comma."""

    status: int
    headers: CaseInsensitiveDict[str]


class Connection:
    """A connection whose socket can be ended by the Deadline of the thread that uses it. Not thread-safe."""

    def __init__(self, connected: socket.socket) -> None:
        self.connected = connected
        self.handle = Handle(connected)
        self.exchanges = 0
        self.opened_at = time.monotonic()
        self._http = h11.Connection(h11.CLIENT, _LONGEST_HEAD)
        self._leftover = b""

    def send(self, method: str, target: str, headers: Mapping[str, str], body: bytes, seconds: float) -> None:
        """Sends a request; each read from now on may take so many seconds. Raises OSError or GatewayUnreachable, and
        ValueError for a request that could be read in two ways."""
        lines = [f"{method} {target} HTTP/1.1", *[f"{name}: {value}" for name, value in headers.items()]]
        if " " in target or not all(map(str.isprintable, lines)):
            raise ValueError("the request has a character that would end a part of it")
        self.exchanges += 1
        self._http = h11.Connection(h11.CLIENT, _LONGEST_HEAD)
        self._http.send(_SENT[method])
        self._http.send(_ALL_SENT)
        self.connected.settimeout(seconds)
        try:
            self.connected.sendall("\r\n".join([*lines, "", ""]).encode("ascii") + body)
        except (BrokenPipeError, ConnectionResetError):
            raise unanswered() from None  # an answer that came before its request does not count

    def head(self) -> Head:
        """The head of the answer. Raises OSError, GatewayUnreachable, or h11.RemoteProtocolError if it is ambiguous."""
        for _ in range(_MOST_INTERIM + 1):
            if isinstance(event := self._next_event(), h11.Response):
                self._leftover = self._http.trailing_data[0]
                return _unambiguous(event)
        raise NotHTTP(f"more than {_MOST_INTERIM} interim answers")

    def _next_event(self) -> h11.Event:
        while isinstance(event := self._http.next_event(), type):
            waits = self._http.their_state is not h11.SEND_BODY
            if waits and not b"HTTP/1.".startswith(begun := self._http.trailing_data[0][:7]):
                raise NotHTTP("no status line of HTTP/1.1")
            if data := self.connected.recv(_RECEIVED_BYTES):
                self._http.receive_data(data)
            elif waits:
                raise cut_short() if begun else unanswered()
            else:
                self._http.receive_data(b"")
                try:
                    return cast(h11.Event, self._http.next_event())
                except h11.RemoteProtocolError:
                    raise cut_short() from None
        if len(getattr(event, "headers", ())) > _MOST_HEADERS:
            raise NotHTTP(f"more than {_MOST_HEADERS} headers")
        return event

    def body(self, head: Head, max_bytes: int) -> bytes:
        """The whole decoded body. Raises Malformed over the limit, GatewayUnreachable if it ends too early."""
        length, encoding = head.headers.get("Content-Length"), head.headers.get("Content-Encoding", "").strip().lower()
        if int(length or 0) > max_bytes and head.status not in (204, 304):
            raise _too_large(max_bytes)
        if head.status == 200 and length and not encoding:
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
                with view[at:] as rest:  # released, even if the traceback of an error holds it
                    if not (received := self.connected.recv_into(rest)):
                        raise cut_short()
                at += received
        return body.getvalue()

    def _pieces(self, head: Head, max_bytes: int) -> Iterator[bytes]:
        on_the_wire = 0
        while isinstance(event := self._next_event(), h11.Data):
            on_the_wire += len(event.data)
            if on_the_wire > max_bytes:
                raise _too_large(max_bytes)
            yield event.data
        self._leftover, ended = self._http.trailing_data
        if ended and not on_the_wire and head.status == 200:
            raise GatewayUnreachable("the connection ended before the body", code="truncated")

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

    def half_close(self) -> None:
        """Tell the other side that no further request comes: it reads the end of the connection."""
        self.handle.shut(socket.SHUT_WR)

    def close(self) -> None:
        """Never waits, and never raises."""
        with suppress(OSError, ValueError):  # ValueError: there is no TLS any more
            if isinstance(self.connected, (ssl.SSLSocket, SSLTransport)):
                # OpenSSL does not resume the session of a connection that ended without a farewell.
                self.connected.settimeout(0)
                self.connected.unwrap()
        with suppress(OSError):
            self.connected.close()
        self.handle.close()


def unanswered() -> GatewayUnreachable:
    return GatewayUnreachable("the gateway closed the connection without an answer", code="connection")


def desync(when: str) -> GatewayUnreachable:
    """The error of an exchange over a connection that carried bytes of no request."""
    return GatewayUnreachable(
        f"bytes that belong to no request came {when}: the gateway or a proxy in front of it mixes up answers",
        code="desync",
    )


def cut_short(what: str = "the answer") -> GatewayUnreachable:
    return GatewayUnreachable(f"{what} is cut short", code="truncated")


def _too_large(max_bytes: int) -> Malformed:
    return Malformed(
        f"the body is larger than {max_bytes} bytes: if the list is really that long, raise [gateway] max_body",
        code="body_too_large",
    )


def _unambiguous(answer: h11.Response) -> Head:
    """Raises NotHTTP for what h11 lets pass.

    RFC 9112, section 6.3: a reader who understands a contradictory head differently from its sender takes a part of the
    body for the next answer, or the next answer for a part of the body.
    """
    headers = CaseInsensitiveDict[str]()
    for raw, value in answer.headers.raw_items():
        name, text = raw.decode("ascii"), value.decode("latin-1")
        headers[name] = f"{headers[name]}, {text}" if name in headers else text
    if answer.http_version not in (b"1.0", b"1.1"):
        raise NotHTTP("no status line of HTTP/1.1")
    if "Transfer-Encoding" in headers and ("Content-Length" in headers or answer.http_version == b"1.0"):
        raise NotHTTP("a Transfer-Encoding with a Content-Length, or in HTTP/1.0")
    return Head(answer.status_code, headers)


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
        raise cut_short("the gzip stream of the body")


# What the errors of others mean: the messages never quote one, because it contains the URL and query

CERTIFICATE: Final = "tls_certificate"
FOREIGN: Final = (OSError, h11.ProtocolError, ValueError)
"""Sockets, ssl and requests; the bytes of an answer; host names."""

_NOT_REACHED: Final = "check [gateway] url and the network"
_MEANINGS: Final[tuple[tuple[type[BaseException], str, str], ...]] = (
    (
        ssl.SSLCertVerificationError,
        CERTIFICATE,
        "the gateway's certificate is refused ({reason}): check [gateway] url and ca_bundle",
    ),
    (ssl.SSLError, "tls", "no secure connection ({reason}): check that [gateway] url leads to a TLS 1.2 or 1.3 server"),
    (exceptions.ProxyError, "proxy", "the proxy does not connect ({reason}): check [gateway] proxy"),
    (socket.gaierror, "dns", "the gateway's name is not found ({reason}): check [gateway] url and the name service"),
    (exceptions.ConnectTimeout, "timeout", "no connection within {seconds}: " + _NOT_REACHED),
    (TimeoutError, "timeout", "no data received for {seconds}"),
    (exceptions.ConnectionError, "connection", "no connection ({reason}): " + _NOT_REACHED),
    (h11.ProtocolError, "protocol", "the answer is not HTTP ({reason})"),
    (ConnectionError, "connection", "the connection broke ({reason})"),
    (Exception, "connection", "the request failed ({reason}): " + _NOT_REACHED),
)


def translated(error: BaseException, deadline: Deadline, seconds: float) -> FlowtrailError:
    """Our error for a foreign one; after the deadline or a stop, that is the reason for any error.

    ``seconds`` is the timeout that the socket had for connecting and for each read.
    """
    if deadline.cut or deadline.remaining() <= 0:
        try:
            deadline.check()
        except FlowtrailError as reason:
            return reason
    return error if isinstance(error, FlowtrailError) else explained(error, seconds)


def explained(error: BaseException, seconds: float) -> GatewayUnreachable:
    """The meaning of a foreign error: the first line of the table that fits it or an error that it was raised from."""
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    code, text = next((c, t) for kind, c, t in _MEANINGS if any(isinstance(cause, kind) for cause in causes))
    return GatewayUnreachable(text.format(seconds=f"{seconds:g} s", reason=_reason(causes)), code=code)


def _reason(causes: list[BaseException]) -> str:
    """The system's message for the innermost error, or the name of its type."""
    for cause in reversed(causes):
        if isinstance(cause, NotHTTP | exceptions.ProxyError | FlowtrailError) and cause.args:
            return str(cause)
        if isinstance(cause, ssl.SSLError):
            reason = (
                getattr(cause, "verify_message", "") or (getattr(cause, "reason", None) or "").replace("_", " ").lower()
            )
            return printable(reason)[:100] or type(cause).__name__
        if isinstance(cause, OSError) and isinstance(cause.strerror, str):
            return printable(cause.strerror)[:100].lower()
    return "no answer in time" if isinstance(causes[-1], TimeoutError) else type(causes[-1]).__name__
