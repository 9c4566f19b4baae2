"""The floor: everything is fetched the fastest way Python can, decoded, and loaded in bulk. No history, no diff.

Requests are pipelined on one raw socket, without signatures; the gateway's process works meanwhile. For *quiet* the
answers are only hashed.
"""

from __future__ import annotations

import hashlib
import socket
import sqlite3
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit

import msgspec

from benchmarks.contenders import Holds
from benchmarks.jobs import Job, Work

HOLDS = Holds(
    current="SELECT org_id, user_id, flow_id, flow_name, cycle, editable FROM flow JOIN asked ON asked.id = target_id",
    quiet_writes=False,
)

PATH = "/batch-processing-service/v2.1/flows?action=getMyFlow&orgId={}&userId={}"
TABLES = (
    "CREATE TABLE asked (id int PRIMARY KEY, org_id text, user_id text)",
    "CREATE TABLE flow (target_id int, flow_id text, flow_name text, cycle text, editable boolean,"
    " PRIMARY KEY (target_id, flow_id))",
)
ASKED, FLOW = ("id", "org_id", "user_id"), ("target_id", "flow_id", "flow_name", "cycle", "editable")
AHEAD = 64
"""Requests under way: enough to keep the gateway busy, few enough for the socket's buffers."""


class Item(msgspec.Struct, rename="camel", gc=False):
    flow_id: str
    flow_name: str
    cycle: str
    editable: bool


class Envelope(msgspec.Struct):
    code: int
    data: list[Item]


decoder = msgspec.json.Decoder(Envelope)


def set_up(job: Job) -> None:
    if job.file:
        with sqlite3.connect(job.file) as connection:
            for each in TABLES:
                connection.execute(each + " WITHOUT ROWID")
        return
    import psycopg

    with psycopg.connect(**job.server) as server:
        for each in TABLES:
            server.execute(each.encode())


def prepare(job: Job) -> Work:
    if not job.file:
        import psycopg  # noqa: F401 - an import is no work
    return lambda: work(job, job.asked(), bodies)


def work(job: Job, asked: list[tuple[str, str]], fetch: Any) -> None:
    """What a floor does in a phase, with its way to fetch."""
    answers = fetch(job, asked)
    if job.phase == "quiet":
        assert len([hashlib.sha256(body).digest() for body in answers]) == len(asked)
    else:
        load(job, asked, answers)


def bodies(job: Job, asked: list[tuple[str, str]]) -> Iterator[bytes]:
    """The answers, in the order of the targets."""
    origin = urlsplit(job.gateway)
    requests = [f"GET {PATH.format(*each)} HTTP/1.1\r\nHost: {origin.netloc}\r\n\r\n".encode() for each in asked]
    with socket.create_connection((origin.hostname, origin.port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection.makefile("rb", buffering=1 << 20) as replies:
            sent = 0
            for received in range(len(requests)):
                if sent - received <= AHEAD // 2 and sent < len(requests):
                    connection.sendall(b"".join(requests[sent : received + AHEAD]))
                    sent = min(received + AHEAD, len(requests))
                yield _body(replies)


def _body(replies: Any) -> bytes:
    length = 0
    assert replies.readline() == b"HTTP/1.1 200 OK\r\n"
    while (line := replies.readline()) != b"\r\n":
        if line.startswith(b"Content-Length:"):
            length = int(line[15:])
    body: bytes = replies.read(length)
    assert len(body) == length
    return body


def load(job: Job, asked: list[tuple[str, str]], answers: Iterable[bytes]) -> None:
    """Replace everything by the answers, in one transaction."""
    who = ((number, *each) for number, each in enumerate(asked))
    listed = ((number, decoder.decode(body).data) for number, body in enumerate(answers))
    if job.file:
        _load_sqlite(job.file, who, listed)
    else:
        _load_postgresql(job.server, who, listed)


Listed = Iterator[tuple[int, list[Item]]]


def _load_sqlite(file: str, who: Iterable[Any], listed: Listed) -> None:
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("DELETE FROM asked")
    connection.execute("DELETE FROM flow")
    connection.executemany("INSERT INTO asked VALUES (?, ?, ?)", who)
    rows = ((number, i.flow_id, i.flow_name, i.cycle, i.editable) for number, items in listed for i in items)
    connection.executemany("INSERT INTO flow VALUES (?, ?, ?, ?, ?)", rows)
    connection.execute("COMMIT")
    connection.close()


def _load_postgresql(server: dict[str, Any], who: Iterable[Any], listed: Listed) -> None:
    import psycopg

    with psycopg.connect(**server) as connection, connection.cursor() as cursor:
        cursor.execute("TRUNCATE asked, flow")
        with cursor.copy("COPY asked FROM STDIN") as copy:
            copy.write("".join([f"{number}\t{org}\t{user}\n" for number, org, user in who]))
        with cursor.copy("COPY flow FROM STDIN") as copy:
            for number, items in listed:
                copy.write("".join([_line(number, item) for item in items]))


def _line(number: int, item: Item) -> str:
    line = f"{number}\t{item.flow_id}\t{item.flow_name}\t{item.cycle}\t{item.editable}\n"
    if "\\" in line or line.count("\t") != 4 or line.count("\n") != 1:
        raise ValueError(f"COPY needs {item!r} escaped, and this world has none such")
    return line
