"""A gateway that is never the bottleneck: answers made beforehand, sent by a protocol that reads request lines only.

    python -m benchmarks.gateway 200 500 0      # targets, workflows of each, ids among all; prints its URL

It answers Get My Flow for the targets of `benchmarks.world` and hands out one token to whoever asks; it checks no
signature. `POST /admin/phase/quiet` and `/admin/phase/churn` switch what it answers, `POST /admin/latency/0.02` lets
every answer wait for so many seconds. With a certificate (`made_certificate`) it speaks TLS. It ends when its standard
input does.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import queue
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from email.utils import formatdate
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from benchmarks import world

TOKEN = {
    "status": 0,
    "msg": "SUCCESS",
    "business": "apim-token-service",
    "data": {"accessToken": "token-of-the-benchmark", "expire": 7200},
}
UNKNOWN = b'{"code":62101,"msg":"user unknown","data":null}'
COPIED_BYTES = 256 * 1024
"""Head and body up to this size go out in one piece."""


class Answers:
    """What is answered now."""

    def __init__(self, shape: world.Shape) -> None:
        self.latency_seconds = 0.0
        self.served = self.served_bytes = 0
        self._shape = shape
        self._numbers = {world.who(target): target for target in range(shape.targets)}
        self._bodies = {
            "quiet": [world.body(shape, target, churned=False) for target in range(shape.targets)],
        }
        self._now = self._bodies["quiet"]
        self._known: dict[bytes, int] = {}
        self._second, self._head = 0, b""

    def to(self, path: bytes) -> list[bytes]:
        """The pieces of a response to Get My Flow."""
        number = self._known.get(path)
        if number is None:
            asked = parse_qs(urlsplit(path.decode()).query)
            number = self._numbers.get((asked.get("orgId", [""])[0], asked.get("userId", [""])[0]), -1)
            self._known[path] = number
        body = self._now[number] if number >= 0 else UNKNOWN
        self.served += 1
        self.served_bytes += len(body)
        return self.ok(body)

    def ok(self, body: bytes) -> list[bytes]:
        head = b"%b%d\r\n\r\n" % (self._dated(), len(body))
        return [head + body] if len(body) < COPIED_BYTES else [head, body]

    def _dated(self) -> bytes:
        second = int(time.time())
        if second != self._second:
            self._second = second
            date = formatdate(second, usegmt=True)
            self._head = (
                f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nDate: {date}\r\nContent-Length: ".encode()
            )
        return self._head

    def instruct(self, path: bytes) -> list[bytes]:
        """Do what an admin call says."""
        _, _, what, value = path.decode().split("/")
        if what == "latency":
            self.latency_seconds = float(value)
        elif what == "phase":
            self._now = self._of_phase(value)
        served = {"answers": self.served, "bytes": self.served_bytes}
        self.served = self.served_bytes = 0
        return self.ok(json.dumps(served).encode())

    def _of_phase(self, phase: str) -> list[bytes]:
        if phase not in self._bodies:
            targets = range(self._shape.targets)
            self._bodies[phase] = [world.body(self._shape, target, churned=True) for target in targets]
        return self._bodies[phase]


class Delay:
    """Calls into the event loop after a time, to a few tenths of a millisecond: its own timers are a whole one late.

    All wait equally long, so whoever came first is first.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: queue.SimpleQueue[tuple[float, Callable[[list[bytes]], None], list[bytes]]] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def send(self, seconds: float, send: Callable[[list[bytes]], None], pieces: list[bytes]) -> None:
        self._waiting.put((time.monotonic() + seconds, send, pieces))

    def _run(self) -> None:
        while True:
            due, send, pieces = self._waiting.get()
            time.sleep(max(due - time.monotonic(), 0))
            self._loop.call_soon_threadsafe(send, pieces)


class Connection(asyncio.Protocol):
    """One kept-alive connection, until a request asks for its end; requests may be pipelined."""

    def __init__(self, answers: Answers, delay: Delay) -> None:
        self._answers, self._delay = answers, delay
        self._unread = b""
        self._ends = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._unread += data
        pieces: list[bytes] = []
        for method, path in self._requests():
            pieces += self._answer(method, path)
        if pieces and self._answers.latency_seconds:
            self._delay.send(self._answers.latency_seconds, self._send, pieces)
        elif pieces:
            self._send(pieces)

    def _send(self, pieces: list[bytes]) -> None:
        if len(pieces) > 1 and all(len(piece) < COPIED_BYTES for piece in pieces):
            pieces = [b"".join(pieces)]
        for piece in pieces:
            self._transport.write(piece)
        if self._ends:
            self._transport.close()

    def _requests(self) -> Iterator[tuple[bytes, bytes]]:
        while (end := self._unread.find(b"\r\n\r\n")) >= 0:
            head = self._unread[: self._unread.index(b"\r\n")]
            method, path, _ = head.split(b" ", 2)
            end += 4
            if method == b"POST":
                end += self._announced(self._unread[:end])
                if len(self._unread) < end:
                    return
            self._ends = self._ends or b"\r\nConnection: close\r\n" in self._unread[:end]
            self._unread = self._unread[end:]
            yield method, path

    def _announced(self, head: bytes) -> int:
        found = head.lower().partition(b"content-length:")[2]
        return int(found.partition(b"\r\n")[0] or 0)

    def _answer(self, method: bytes, path: bytes) -> list[bytes]:
        if method == b"GET":
            return self._answers.to(path)
        if path.startswith(b"/admin/"):
            return self._answers.instruct(path)
        return self._answers.ok(json.dumps(TOKEN).encode())


async def serve(shape: world.Shape, certificate: str = "") -> None:
    """Until standard input ends."""
    answers = Answers(shape)
    loop = asyncio.get_running_loop()
    delay = Delay(loop)
    tls = None
    if certificate:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate)
    server = await loop.create_server(lambda: Connection(answers, delay), "127.0.0.1", 0, backlog=256, ssl=tls)
    sys.stdout.write(f"http{'s' * bool(tls)}://127.0.0.1:{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await loop.run_in_executor(None, sys.stdin.read)


class Gateway:
    """A gateway in a process of its own, seen from here. ``certificate`` (a file) vouches for one that speaks TLS."""

    def __init__(self, url: str, certificate: str = "") -> None:
        self.url = url
        self.certificate = certificate

    def phase(self, name: str) -> None:
        self._admin(f"phase/{name}")

    def latency(self, seconds: float) -> None:
        self._admin(f"latency/{seconds}")

    def served(self) -> dict[str, int]:
        """``answers`` given since the last admin call, and the ``bytes`` of their bodies."""
        return self._admin("served/0")

    def _admin(self, what: str) -> dict[str, int]:
        connection = self._connection()
        connection.request("POST", f"/admin/{what}", body=b"")
        served = json.loads(connection.getresponse().read())
        connection.close()
        return dict(served)

    def _connection(self) -> http.client.HTTPConnection:
        host = urlsplit(self.url).netloc
        if not self.certificate:
            return http.client.HTTPConnection(host, timeout=600)
        trusted = ssl.create_default_context(cafile=self.certificate)
        return http.client.HTTPSConnection(host, timeout=600, context=trusted)


def made_certificate(folder: Path) -> str:
    """A file with a certificate for this machine that vouches for itself, and its key."""
    file, key = folder / "gateway.pem", folder / "gateway.key"
    kind = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    whose = ("-subj", "/CN=benchmark", "-addext", "subjectAltName=IP:127.0.0.1")
    command = ["openssl", "req", "-x509", *kind, *whose, "-keyout", str(key), "-out", str(file)]
    subprocess.run(command, check=True, capture_output=True)
    file.write_text(file.read_text() + key.read_text())
    return str(file)


@contextmanager
def answering(case: world.Case, folder: Path) -> Iterator[Gateway]:
    """A gateway for ``case`` until the end of the block; its certificate is made in ``folder``."""
    with running(case.shape, made_certificate(folder) if case.tls else "") as asked:
        asked.latency(case.latency_seconds)
        yield asked


@contextmanager
def running(shape: world.Shape, certificate: str = "") -> Iterator[Gateway]:
    """A gateway for ``shape`` until the end of the block."""
    command = [sys.executable, "-m", "benchmarks.gateway", *map(str, shape), certificate]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield Gateway(process.stdout.readline().strip(), certificate)
        finally:
            process.stdin.close()


def main() -> None:
    with suppress(KeyboardInterrupt):
        asyncio.run(serve(world.Shape(*map(int, sys.argv[1:5])), *sys.argv[5:]))


if __name__ == "__main__":
    main()
