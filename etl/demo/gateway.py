"""A local EnOS gateway: the token service and Get My Flow exactly as documented, or with ordered faults.

It shares no code with Flowtrail's client, so that neither can hide the other's mistakes.
"""

from __future__ import annotations

import contextlib
import copy
import datetime as dt
import socket
import socketserver
import threading
import time
import uuid
from collections.abc import Callable
from email.utils import formatdate
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, Literal, Self

import msgspec

from etl.demo import admin as door
from etl.demo.auth import Request, TokenService, Verdict
from etl.demo.delivery_log import Delivery, DeliveryLog
from etl.demo.details import flow_reply
from etl.demo.faults import Endpoint, Fault, FaultBook, Order, Reply, Wire, faulty_reply, head, refusal
from etl.demo.incoming import asked_for, asks_for_the_end, read_request
from etl.demo.lists import EncodedLists, Release
from etl.demo.roster import OLDER_ROSTER_PATH, ROSTER_PATH, roster_page
from etl.demo.world import UnknownOrg, UnknownUser, World

TOKEN_PATH: Final = "/apim-token-service/v2.0/token/get"  # noqa: S105
FLOWS_PATH: Final = "/batch-processing-service/v2.1/flows"
OLDER_FLOWS_PATH: Final = "/dataflow-batch-service/v2.0/flows"

_REFUSALS: Final[dict[Verdict, tuple[int, str]]] = {
    "repeated": (1001, "repeated request: this encryption was used before"),
    "unknown_key": (1002, "unknown appKey"),
    "bad": (1003, "wrong encryption or signature"),
    "malformed": (1004, "bad parameter"),
    "far": (1004, "timestamp too far from the clock of the gateway"),
    "missing": (1202, "empty parameter"),
    "expired": (1203, "token expired"),
    "unknown_token": (401, "unauthorized: no such token"),
}
_CLIENTS_FAULT: Final[set[Verdict]] = {"missing", "malformed", "far", "unknown_key", "bad", "repeated"}


class Counters(msgspec.Struct):
    """Counts since the start. ``bad_signatures`` are the client's mistakes: a signature or encryption that is wrong,
    missing, too old or used before. ``in_flight`` are requests whose answer has not begun."""

    token_calls: int = 0
    flow_calls: int = 0
    roster_calls: int = 0
    detail_calls: int = 0
    in_flight: int = 0
    max_in_flight: int = 0
    bad_signatures: int = 0


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 512

    def __init__(self, address: tuple[str, int], converse: Callable[[socket.socket], None]) -> None:
        super().__init__(address, socketserver.BaseRequestHandler)
        self._converse = converse

    def finish_request(self, request: Any, client_address: Any) -> None:
        self._converse(request)

    def shutdown_request(self, request: Any) -> None:
        request.close()


class DemoGateway:
    """An EnOS gateway on this machine, while its ``with`` block lasts.

    ``date_offset_seconds`` shifts its Date headers, ``max_skew_seconds`` is how far a signed timestamp may be off
    its clock, ``auth="none"`` asks for no token, ``release`` is which EnOS it is, ``shuffle`` deals the items of each
    answer in another order (seeded), ``admin`` opens ``/_demo/...`` to loopback clients. After ``close``, ``start``
    opens it again at the same address; in between connections are refused.
    """

    def __init__(
        self,
        world: World,
        *,
        access_key: str = "demo-access-key",
        secret_key: str = "demo-secret-key",  # noqa: S107 (invented for this process)
        auth: Literal["token", "none"] = "token",
        release: Release = "v2.1",
        host: str = "127.0.0.1",
        port: int = 0,
        token_seconds: float = 7200,
        max_skew_seconds: float = 300,
        date_offset_seconds: float = 0,
        shuffle: bool = True,
        seed: int = 0,
        roster_page_size: int = 1000,
        deliveries_file: Path | None = None,
        admin: bool = False,
    ) -> None:
        self.world = world
        self.tokens = TokenService(
            access_key, secret_key, token_seconds=token_seconds, max_skew_seconds=max_skew_seconds
        )
        self.deliveries = DeliveryLog()
        self.date_offset_seconds = date_offset_seconds
        self._address = (host, port)
        self._signed = auth == "token"
        self._older = release != "v2.1"
        self._search = "searchValue" if self._older else "expression"
        flows = OLDER_FLOWS_PATH if self._older else FLOWS_PATH
        roster = OLDER_ROSTER_PATH if self._older else ROSTER_PATH
        self._endpoints: dict[str, Endpoint] = {TOKEN_PATH: "token", flows: "flows", roster: "roster"}
        self._roster_page = roster_page_size
        self._lists = EncodedLists(world, release, shuffle=shuffle, seed=seed)
        self._deliveries_file = deliveries_file
        self._admin = admin
        self._faults = FaultBook()
        self._counters = Counters()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._strays: dict[socket.socket, tuple[bytes, float]] = {}
        """By connection: stray bytes to send before its next answer, and how long before."""
        self._server: _Server | None = None

    # Life

    def start(self) -> None:
        """Listens; OSError if the port is taken."""
        server = _Server(self._address, self._converse)
        host, port = server.server_address[:2]
        self._address = (str(host), int(port))
        self._closing.clear()
        if self._deliveries_file:
            self.deliveries.keep(self._deliveries_file)
        self._server = server
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True, name="demo-gateway").start()

    def close(self) -> None:
        """Stops listening, ends every exchange (hanging and dripping ones too), and waits for their threads."""
        if self._server is None:
            return
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._server = None
        for thread in self.drop_connections():
            thread.join(timeout=10)
        self.deliveries.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """What to put in ``[gateway] url``."""
        return "http://{}:{}".format(*self._address)

    # For tests

    def order(self, fault: Fault) -> Order:
        """Makes this fault from now on; the order tells when a request met it."""
        return self._faults.order(fault)

    def clear_faults(self) -> None:
        """Clears all faults for new requests; what hangs already stays hanging."""
        self._faults.clear()

    def expire_token(self) -> None:
        """Ends the valid token: the next call gets 1203."""
        self.tokens.expire()

    def drop_connections(self) -> list[threading.Thread]:
        """Ends every connection, also idle ones; returns the threads that served them."""
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            return list(self._connections.values())

    @property
    def counters(self) -> Counters:
        """A copy of the counts as of now."""
        with self._lock:
            return copy.copy(self._counters)

    # One connection, one exchange

    def _converse(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections[connection] = threading.current_thread()
        try:
            with contextlib.suppress(OSError), connection.makefile("rb") as stream:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while not self._closing.is_set() and (request := read_request(stream)):
                    if not self._exchange(request, connection):
                        break
        finally:
            with self._lock:
                del self._connections[connection]
                self._strays.pop(connection, None)

    def _exchange(self, request: Request, connection: socket.socket) -> bool:
        """Answers one request; False if the connection is to be closed."""
        if request.path.startswith("/_demo/"):
            reply = self._administer(request, connection)
            connection.sendall(head(reply, formatdate(usegmt=True)) + reply.body)
            return not asks_for_the_end(request)
        endpoint = self._endpoints.get(request.path, "other")
        asked = asked_for(request)
        if endpoint == "flows" and asked.get("action") == "get":
            endpoint = "details"
        entry = Delivery(
            received_at=dt.datetime.now(dt.UTC),
            endpoint=endpoint,
            path=f"{request.path}?{request.query}" if request.query else request.path,
            org=asked.get("orgId", ""),
            user=asked.get("userId", ""),
            expression=asked.get(self._search, ""),
            kept_open=not asks_for_the_end(request),
            timestamp=request.headers.get("apim-timestamp", ""),
        )
        self._arrived(endpoint)
        fault = self._faults.take(endpoint, entry.org, entry.user)
        honest = self._honest(request, asked, entry, fault)
        if fault.kind == "expired":
            self.expire_token()
        reply = faulty_reply(fault, honest, endpoint, older=self._older)
        if not entry.kept_open:
            reply = reply._replace(headers={"Connection": "close", **reply.headers})
        entry.fault, entry.status, entry.code = fault.kind, reply.status, reply.code
        return self._deliver(connection, entry, reply, fault)

    def _deliver(self, connection: socket.socket, entry: Delivery, reply: Reply, fault: Fault) -> bool:
        def note(sent: bool) -> None:
            if not entry.number:
                self._leaves(entry)
            self.deliveries.put(entry, sent, reply.flows)

        offset = self.date_offset_seconds + (fault.seconds if fault.kind == "date" else 0)
        start = head(reply, formatdate(time.time() + offset, usegmt=True))
        try:
            self._stray(connection)
            Wire(connection, self._closing, note).deliver(start, reply.body, fault)
            if fault.kind == "twice":
                self._strays[connection] = start + reply.body, fault.seconds
                if not entry.kept_open:
                    self._stray(connection)
        except OSError:
            note(False)
            return False
        delimited = b"\r\nContent-Length:" in start or b"\r\nTransfer-Encoding:" in start
        return delimited and entry.kept_open and reply.headers.get("Connection") != "close"

    def _stray(self, connection: socket.socket) -> None:
        stray, seconds = self._strays.pop(connection, (b"", 0.0))
        if stray:
            connection.sendall(stray)
            self._closing.wait(seconds)

    def _arrived(self, endpoint: Endpoint) -> None:
        with self._lock:
            counted = self._counters
            counted.token_calls += endpoint == "token"
            counted.flow_calls += endpoint == "flows"
            counted.roster_calls += endpoint == "roster"
            counted.detail_calls += endpoint == "details"
            counted.in_flight += 1
            counted.max_in_flight = max(counted.max_in_flight, counted.in_flight)

    def _leaves(self, entry: Delivery) -> None:
        with self._lock:
            self._counters.in_flight -= 1
            self._counters.bad_signatures += entry.verdict in _CLIENTS_FAULT

    def _administer(self, request: Request, connection: socket.socket) -> Reply:
        if not (self._admin and ip_address(connection.getpeername()[0]).is_loopback):
            return refusal("other", 404, "no such service", 404)
        return door.administer(self, request)

    # Honest answers

    def _honest(self, request: Request, asked: dict[str, str], entry: Delivery, fault: Fault) -> Reply:
        match entry.endpoint, request.method:
            case "token", "POST":
                return self._token(request, entry)
            case "roster", "POST":
                return self._refused(request, entry) or roster_page(
                    self.world, request.body, most=self._roster_page, older=self._older
                )
            case "details", "GET":
                return self._refused(request, entry) or flow_reply(self.world, asked, older=self._older)
            case "flows", "GET":
                return self._my_flows(request, asked, entry, fault)
            case "other", _:
                return refusal("other", 404, "no such service", 404)
        return refusal(entry.endpoint, 405, "method not allowed", 405)

    def _token(self, request: Request, entry: Delivery) -> Reply:
        entry.verdict, token, seconds = self.tokens.issue(request.body, time.time())
        if entry.verdict in _REFUSALS:
            return refusal("token", *_REFUSALS[entry.verdict])
        data = {"accessToken": token, "expire": seconds}
        answer = {"status": 0, "msg": "SUCCESS", "business": "apim-token-service", "data": data}
        return Reply(200, msgspec.json.encode(answer), 0)

    def _my_flows(self, request: Request, asked: dict[str, str], entry: Delivery, fault: Fault) -> Reply:
        if refused := self._refused(request, entry):
            return refused
        if asked.get("action") != "getMyFlow" or not (entry.org and entry.user):
            return self._no(99400, "action, userId and orgId are required")
        try:
            flows, items = self._lists.answer(entry.org, entry.user, entry.expression, fault)
        except UnknownOrg:
            return self._no(99404, "organization not found")
        except UnknownUser:
            return self._no(62101, "user does not exist or is not in the organization")
        said_so = b'"status":0,"msg":"Success"' if self._older else b'"code":0,"msg":"OK"'
        body = b'{%b,"requestId":"%b","data":[%b]}' % (said_so, uuid.uuid4().hex.encode(), items)
        return Reply(200, body, 0, flows)

    def _refused(self, request: Request, entry: Delivery) -> Reply | None:
        """A refusal, unless the request is authenticated."""
        entry.verdict = self.tokens.check(request, time.time()) if self._signed else "unsigned"
        if entry.verdict not in _REFUSALS:
            return None
        status = 401 if entry.verdict == "unknown_token" else 200
        return refusal(entry.endpoint, *_REFUSALS[entry.verdict], status, older=self._older)

    def _no(self, code: int, message: str) -> Reply:
        return refusal("flows", code, message, 200, older=self._older)
