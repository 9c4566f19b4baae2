"""The local gateway that the demo asks: it answers as EnOS does, and believes every signature.

It shares no code with Flowtrail's client, so that neither can hide the other's mistakes.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import socketserver
import threading
from collections.abc import Iterable, Mapping
from email.utils import formatdate
from http.client import responses
from typing import IO, Any, Final, NamedTuple, Self
from urllib.parse import parse_qsl, urlsplit

import msgspec

from etl.demo.world import World
from etl.domain.model import Flow

TOKEN_PATH: Final = "/apim-token-service/v2.0/token/get"  # noqa: S105
FLOWS_PATH: Final = "/batch-processing-service/v2.1/flows"
DIRECTORIES_PATH: Final = "/batch-processing-service/v2.1/directories"
_LONGEST_LINE: Final = 1 << 16


class Request(NamedTuple):
    """One HTTP request; ``query`` as it came, header names in lower case."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes

    @property
    def asked(self) -> dict[str, str]:
        """The parameters of the query."""
        return dict(parse_qsl(self.query, keep_blank_values=True))

    @property
    def is_last(self) -> bool:
        """Whether the client wants the connection closed after the answer."""
        return self.headers.get("connection", "").lower() == "close"


class Reply(NamedTuple):
    """An answer before it is sent. A header that is None is left out; status 0 has no head at all."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str | None] = {}

    def head(self, date: str) -> bytes:
        """Status line and headers, where the reply's own take precedence."""
        if not self.status:
            return b""
        usual = {"Date": date, "Content-Type": "application/json;charset=UTF-8", "Content-Length": str(len(self.body))}
        headers = {**usual, **self.headers}
        lines = [f"{name}: {value}\r\n" for name, value in headers.items() if value is not None]
        return f"HTTP/1.1 {self.status} {responses.get(self.status, '')}\r\n{''.join(lines)}\r\n".encode()


def json_reply(answer: Mapping[str, Any], status: int = 200) -> Reply:
    return Reply(msgspec.json.encode(answer), status)


def token_reply(token: str, seconds: int) -> Reply:
    """What the token service says of a token that is valid for so long."""
    data = {"accessToken": token, "expire": seconds}
    return json_reply({"status": 0, "msg": "SUCCESS", "business": "apim-token-service", "data": data})


def item_of(flow: Flow) -> dict[str, Any]:
    """A workflow as Get My Flow lists it."""
    return {"flowId": flow.flow_id, "editable": flow.editable, "flowName": flow.flow_name, "cycle": flow.cycle}


def tree_of(flows: Iterable[Flow]) -> list[dict[str, Any]]:
    """These workflows as List Workflow Directories has them: a directory for each first word of a name, all in one
    directory; and next to them a script, which is no workflow."""
    folders: dict[str, list[dict[str, Any]]] = {"drafts": []}
    for flow in flows:
        file = {"editable": True, "title": flow.flow_name, "type": 1, "key": int(flow.flow_id), "isDirectory": False}
        folders.setdefault((flow.flow_name or "").partition("_")[0], []).append(file)
    script = {"editable": False, "title": "load.sh", "type": 2, "key": "resource-1", "isDirectory": False}
    return [directory_of("Workflow", [*(directory_of(name, files) for name, files in sorted(folders.items())), script])]


def directory_of(title: str, children: list[dict[str, Any]]) -> dict[str, Any]:
    """A directory as List Workflow Directories has it."""
    key = hashlib.sha256(title.encode()).hexdigest()[:32]
    return {"children": children, "title": title, "type": 1, "key": key, "isDirectory": True}


def _read_request(stream: IO[bytes]) -> Request | None:
    """The next request of a connection; None at its end, or when it is not HTTP."""
    try:
        method, address, _ = stream.readline(_LONGEST_LINE).decode("latin-1").split()
        headers = {}
        while (line := stream.readline(_LONGEST_LINE).decode("latin-1").strip()) != "":
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        body = stream.read(int(headers.get("content-length") or 0))
        parts = urlsplit(address)
    except ValueError:
        return None
    return Request(method, parts.path, parts.query, headers, body)


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 512

    def shutdown_request(self, request: Any) -> None:
        request.close()


class DemoGateway:
    """An EnOS gateway on this machine, while its ``with`` block lasts: a token for everybody, Get My Flow, and List
    Workflow Directories.

    While it is ``down`` it closes each connection without an answer; users who are ``emptied`` get a list without
    workflows. After ``close``, ``start`` opens it again at the same address; in between connections are refused.
    """

    def __init__(self, world: World, *, port: int = 0) -> None:
        self.world = world
        self.down = False
        self.emptied: Iterable[str] = ()
        self.closing = threading.Event()
        self._address = ("127.0.0.1", port)
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._server: _Server | None = None

    def start(self) -> None:
        """Listens; OSError if the port is taken."""
        handle: Any = self._converse
        self._server = _Server(self._address, handle)
        self._address = ("127.0.0.1", int(self._server.server_address[1]))
        self.closing.clear()
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True, name="demo-gateway").start()

    def close(self) -> None:
        """Stops listening, ends every exchange, and waits for their threads."""
        if self._server is None:
            return
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._server = None
        for thread in self.drop_connections():
            thread.join(timeout=10)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """What to put in ``[gateway] url``."""
        return "http://{}:{}".format(*self._address)

    def drop_connections(self) -> list[threading.Thread]:
        """Ends every connection, also idle ones; returns the threads that served them."""
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            return list(self._connections.values())

    def _converse(self, connection: socket.socket, *_: object) -> None:
        with self._lock:
            self._connections[connection] = threading.current_thread()
        try:
            with contextlib.suppress(OSError), connection.makefile("rb") as stream:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while not self.closing.is_set() and (request := _read_request(stream)):
                    if not self.exchange(request, connection):
                        break
        finally:
            with self._lock:
                del self._connections[connection]

    def exchange(self, request: Request, connection: socket.socket) -> bool:
        """Answers one request; False ends the connection."""
        if self.down:
            return False
        if request.path == TOKEN_PATH:
            reply = token_reply("demo-token", 7200)
        else:
            reply = self._listed_for(request.asked, in_directory=request.path == DIRECTORIES_PATH)
        connection.sendall(reply.head(formatdate(usegmt=True)) + reply.body)
        return not request.is_last

    def _listed_for(self, asked: Mapping[str, str], *, in_directory: bool) -> Reply:
        org, user = asked.get("orgId", ""), asked.get("userId", "")
        try:
            flows = self.world.flows(org, user)
        except KeyError:
            return json_reply({"code": 62101, "msg": "user does not exist or is not in the organization", "data": None})
        if in_directory:
            data = tree_of(self.world.directory(org))
        else:
            data = [] if user in self.emptied else [item_of(flow) for flow in flows]
        return json_reply({"code": 0, "msg": "OK", "data": data})
