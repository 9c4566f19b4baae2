"""The faults that the gateway is told to make, and how it sends answers."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Mapping
from http.client import responses
from typing import Final, Literal, NamedTuple

import msgspec

from etl.demo.gateway import Reply, json_reply

Endpoint = Literal["details", "directory", "flows", "roster", "search", "timezone", "token", "other"]
_Lie = Literal["code", "expired", "status", "redirect", "html", "raw", "empty", "partial", "stale", "date"]
_Delivery = Literal["none", "outage", "hang", "delay", "cut", "interim", "twice"]
Kind = Literal[_Lie, _Delivery]

_RENAMED: Final = ("details", "directory", "flows", "search")
"""The calls that have a status in place of a code in version 2.0."""
_STATUS: Final[Mapping[str, int]] = {"status": 503, "redirect": 302}
_PAGE: Final = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body>Please sign in.</body></html>"
_INTERIM: Final = b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n"


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One fault, for the next ``times`` requests that match (None: until cleared).

    | kind | what the client meets | fields |
    |---|---|---|
    | none | the honest answer (for ``headers`` alone) | |
    | outage | the connection closes without a byte | reset |
    | hang | no answer, ever | |
    | delay | the honest answer, late | seconds |
    | cut | part of the body, then the end | share (sent), reset |
    | code | an EnOS error inside HTTP 200 | code |
    | expired | 1203, and the token has really ended | |
    | status | an HTTP status (503) | status |
    | redirect | 302 | location, status |
    | html | a page instead of JSON | status |
    | raw | exactly this body; with ``status=0`` not even a head | body, status |
    | interim | the honest answer, behind interim ones (102, 103) | |
    | twice | the honest answer, and again before the connection's next one or its end | seconds (before the next one) |
    | empty, partial | a well-formed list without (some of) its items | share (kept, rounded down) |
    | stale | the list that this target was last served before it changed | |
    | date | the honest answer with a wrong Date | seconds (added) |

    ``headers`` are added to whatever answer there is; None takes a header away (a body without Content-Length
    ends with the connection, and so does an answer with ``Connection: close``). In JSON ``body`` is base64.
    """

    kind: Kind
    times: int | None = 1
    org: str = ""
    user: str = ""
    endpoint: Endpoint | Literal["any"] = "flows"
    code: int = 99500
    status: int | None = None
    location: str = ""
    body: bytes = b""
    headers: dict[str, str | None] = {}
    seconds: float = 1.0
    share: float = 0.5
    reset: bool = False

    def concerns(self, endpoint: Endpoint, org: str, user: str) -> bool:
        """Whether a request to this endpoint, for this user of this organisation, meets the fault."""
        return self.endpoint in (endpoint, "any") and self.org in ("", org) and self.user in ("", user)


HONEST: Final = Fault("none")


class Order:
    """A fault that was ordered: ``reached`` is set once a request has met it, ``met`` counts these requests."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.reached = threading.Event()
        self.met = 0


class FaultBook:
    """The open orders, oldest first; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: list[Order] = []

    def order(self, fault: Fault) -> Order:
        placed = Order(fault)
        with self._lock:
            self._open.append(placed)
        return placed

    def clear(self) -> None:
        with self._lock:
            self._open.clear()

    def take(self, endpoint: Endpoint, org: str, user: str) -> Fault:
        """The fault that this request meets: that of the oldest matching order, or HONEST."""
        with self._lock:
            for order in self._open:
                if order.fault.concerns(endpoint, org, user):
                    order.met += 1
                    order.reached.set()
                    if order.met == order.fault.times:
                        self._open.remove(order)
                    return order.fault
        return HONEST


def refusal(endpoint: Endpoint, code: int, message: str, status: int = 200, *, older: bool = False) -> Reply:
    """An error in the envelope of its service: the token service and version 2.0 say ``status``, the rest ``code``."""
    key = "status" if endpoint == "token" or (older and endpoint in _RENAMED) else "code"
    words = "message" if endpoint == "roster" else "msg"
    return json_reply({key: code, words: message, "data": None}, status)


def faulty_reply(fault: Fault, honest: Reply, endpoint: Endpoint, *, older: bool) -> Reply:
    """The answer instead of the honest one; faults that only concern delivery leave it as it is."""
    status = fault.status if fault.status is not None else _STATUS.get(fault.kind, 200)
    reply = honest
    match fault.kind:
        case "code":
            reply = refusal(endpoint, fault.code, "ordered by the test", older=older)
        case "expired":
            reply = refusal(endpoint, 1203, "token expired")
        case "status":
            reply = refusal(endpoint, status, responses.get(status, ""), status)
        case "redirect":
            reply = Reply(b"", status, {"Location": fault.location})
        case "html":
            reply = Reply(_PAGE, status, {"Content-Type": "text/html; charset=utf-8"})
        case "raw":
            reply = Reply(fault.body, status)
    return reply._replace(headers={**reply.headers, **fault.headers})


class Wire(NamedTuple):
    """The client's end of one exchange.

    ``note`` records, before the client can know it, whether the answer is sent completely.
    """

    connection: socket.socket
    closing: threading.Event
    note: Callable[[bool], None]

    def deliver(self, start: bytes, body: bytes, fault: Fault) -> None:
        """Sends head and body in one piece, or as the fault wants it.

        Raises OSError if the connection cannot be used any more: the fault broke it, the client went away, or the
        gateway closes.
        """
        match fault.kind:
            case "outage":
                self._break_off(b"", fault)
            case "cut":
                self._break_off(start + body[: min(int(len(body) * fault.share), len(body) - 1)], fault)
            case "hang":
                self._hang()
            case "delay" if self.closing.wait(fault.seconds) or self._client_left():
                raise ConnectionAbortedError("the gateway closes, or the client left")
        self.note(True)
        self.connection.sendall((_INTERIM if fault.kind == "interim" else b"") + start + body)

    def _break_off(self, sent: bytes, fault: Fault) -> None:
        self.note(False)
        self.connection.sendall(sent)
        if fault.reset:  # closing with a linger of zero seconds sends RST in place of FIN
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise ConnectionAbortedError("broken off as ordered")

    def _hang(self) -> None:
        self.note(False)
        while self.connection.recv(4096):  # ends when the client leaves, and when the gateway closes
            pass
        raise ConnectionAbortedError("never answered, as ordered")

    def _client_left(self) -> bool:
        try:
            return not self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
