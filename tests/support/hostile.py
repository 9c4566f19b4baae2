"""A server that misbehaves byte by byte: it answers each request with the next step of a script.

A step is either bytes, sent as they are, or a function of the `Peer`. The last step of a script is repeated.
"""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import shutil
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

TOKEN = "token-canary-4f1d"


class Request(NamedTuple):
    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    connection: int
    lines: list[str]
    """Of its head, as they came."""


class Peer:
    """One connection of a client, as a step sees it."""

    def __init__(
        self, connection: socket.socket, closing: threading.Event, number: int, request: Request | None = None
    ) -> None:
        self.connection = connection
        self.number = number
        self.request = request
        self._closing = closing

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)

    def drip(self, data: bytes, seconds: float = 0.005) -> None:
        """Send byte by byte until the client gives up (an OSError ends the connection's thread)."""
        for byte in data:
            self.send(bytes([byte]))
            self._closing.wait(seconds)

    def hang(self) -> None:
        """Send nothing until the client closes the connection."""
        while not self._closing.is_set():
            if not self.connection.recv(4096):
                raise ConnectionResetError

    def close(self) -> None:
        raise ConnectionResetError

    def reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise ConnectionResetError


Step = bytes | Callable[[Peer], object]


class Hostile:
    """Listens on loopback while its ``with`` block lasts.

    ``greet`` is played as soon as a client connects, ``early`` after the handshake, before any request.
    ``obliging``: it closes a connection if the client asks for that. ``left`` is set whenever a client has closed a
    connection; ``played`` counts the completed steps, ``resumed`` the resumed TLS sessions.
    """

    def __init__(
        self,
        *flows: Step,
        tokens: tuple[Step, ...] = (),
        greet: Step | None = None,
        early: Step | None = None,
        tls: ssl.SSLContext | None = None,
        obliging: bool = True,
    ) -> None:
        self.requests: list[Request] = []
        self.left = threading.Event()
        self.connections = self.resumed = 0
        self.played = 0
        self._flows = _repeating(flows or (answer(),))
        self._tokens = _repeating(tokens or (issued(),))
        self._greet = greet
        self._early = early
        self._tls = tls
        self._obliging = obliging
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = self._listener.getsockname()[1]

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def flow_requests(self) -> list[Request]:
        return [request for request in self.requests if request.method == "GET"]

    @property
    def token_requests(self) -> list[Request]:
        return [request for request in self.requests if request.method == "POST"]

    def __enter__(self) -> Hostile:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.drop()
        for thread in self._threads:
            thread.join(10)

    def drop(self) -> None:
        """End every connection, idle or not."""
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    # Not SSLSocket's own: its thread would then read what is left of TLS as a request.
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def _start(self, work: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        for number in itertools.count():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with self._lock:
                self._open.add(connection)
            self._start(self._serve, connection, number)

    def _serve(self, raw: socket.socket, number: int) -> None:
        connection = raw
        with contextlib.suppress(OSError, ValueError):
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._greet:
                _play(self._greet, Peer(raw, self._closing, number))
            if self._tls:
                connection = self._tls.wrap_socket(raw, server_side=True)
                self.resumed += bool(connection.session_reused)
                with self._lock:
                    self._open.add(connection)
            if self._early:
                _play(self._early, Peer(connection, self._closing, number))
            stream = connection.makefile("rb")
            with stream:
                while request := _read(stream, number):
                    self.requests.append(request)
                    script = self._tokens if "/apim-token-service/" in request.target else self._flows
                    with self._lock:
                        step = next(script)
                    _play(step, Peer(connection, self._closing, number, request))
                    self.played += 1
                    if self._obliging and request.headers.get("connection") == "close":
                        break
        with self._lock:
            self._open -= {raw, connection}
        connection.close()
        raw.close()
        self.left.set()


def _repeating(steps: tuple[Step, ...]) -> Iterator[Step]:
    return itertools.chain(steps[:-1], itertools.repeat(steps[-1]))


def _play(step: Step, peer: Peer) -> None:
    if isinstance(step, bytes):
        peer.send(step)
    else:
        step(peer)


def _read(stream: Any, number: int) -> Request | None:
    line = stream.readline()
    if not line:
        return None
    lines = [line.decode("latin-1").strip()]
    method, target, _ = lines[0].split()
    headers = {}
    while (text := stream.readline().decode("latin-1").strip()) != "":
        lines.append(text)
        name, _, value = text.partition(":")
        headers[name.lower()] = value.strip()
    return Request(method, target, headers, stream.read(int(headers.get("content-length", 0))), number, lines)


def then(data: bytes, end: str) -> Step:
    """Send the bytes, then "close", "reset" or "hang"."""

    def step(peer: Peer) -> None:
        peer.send(data)
        getattr(peer, end)()

    return step


def http(body: bytes | str = b"", status: int = 200, *, length: int | None = None, **headers: str) -> bytes:
    """An HTTP answer with a Content-Length; header names are written with underscores."""
    body = body.encode() if isinstance(body, str) else body
    sent = {"Content_Type": "application/json", "Content_Length": str(len(body) if length is None else length)}
    lines = [f"HTTP/1.1 {status} Whatever"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in (sent | headers).items()]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def endless(body: bytes) -> bytes:
    """An HTTP answer whose body ends with the connection."""
    return b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body


def chunked(*pieces: bytes, end: bytes = b"0\r\n\r\n", **headers: str) -> bytes:
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items()).encode()
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n" + lines + b"\r\n" + chunks + end


def flows(*items: Any, **envelope: Any) -> bytes:
    """A success of Get My Flow as JSON."""
    return json.dumps({"code": 0, "msg": "OK", "data": list(items)} | envelope).encode()


def answer(*items: Any, **headers: Any) -> bytes:
    return http(flows(*(items or ({"flowId": "1", "flowName": "one", "cycle": "D", "editable": True},))), **headers)


def code(number: int, msg: str = "no", **headers: Any) -> bytes:
    return http(json.dumps({"code": number, "msg": msg, "requestId": "req-7"}), **headers)


def issued(token: str = TOKEN, expire: Any = 7200) -> bytes:
    data = {"accessToken": token, "expire": expire}
    return http(json.dumps({"status": 0, "msg": "SUCCESS", "business": "apim-token-service", "data": data}))


def token_code(number: int, msg: str = "no") -> bytes:
    return http(json.dumps({"status": number, "msg": msg, "business": "apim-token-service", "data": None}))


def gzipped(body: bytes, **headers: Any) -> bytes:
    return http(gzip.compress(body), Content_Encoding="gzip", **headers)


NO_OPENSSL = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl: apt-get install openssl")


class Certificates:
    """A certificate authority, with certificates that it signed and one that nobody did."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._make("ca", "/CN=Test CA", "-addext", "basicConstraints=critical,CA:TRUE")
        self._make("other", "/CN=Other CA", "-addext", "basicConstraints=critical,CA:TRUE")
        self.leaf("good", "IP:127.0.0.1,DNS:localhost")
        self.leaf("wrong_host", "DNS:apim.example.com")
        self.leaf("expired", "IP:127.0.0.1", "-not_before", "20200101000000Z", "-not_after", "20200102000000Z")
        self._make("self_signed", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1")

    def path(self, name: str) -> str:
        return str(self._folder / name)

    def _openssl(self, *args: str) -> None:
        subprocess.run(["openssl", *args], cwd=self._folder, check=True, capture_output=True)

    def _make(self, name: str, subject: str, *more: str) -> None:
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{name}.key")
        self._openssl("req", "-x509", *key, "-out", f"{name}.pem", "-subj", subject, "-days", "2", *more)

    def leaf(self, name: str, names: str, *validity: str) -> None:
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{name}.key")
        self._openssl(
            "req", "-new", *key, "-out", f"{name}.csr", "-subj", "/CN=x", "-addext", f"subjectAltName={names}"
        )
        signed_by = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-copy_extensions", "copy")
        days = validity or ("-days", "2")
        self._openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", *signed_by, *days)

    def server(self, name: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.path(f"{name}.pem"), self.path(f"{name}.key"))
        return context
