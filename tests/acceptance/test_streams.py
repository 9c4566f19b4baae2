"""No command depends on its standard streams: every command, with every stream closed, full or gone."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import click
import pytest

from etl import log
from etl.cli import app
from etl.demo.world import World
from etl.domain.model import Flow
from etl.system import streams
from tests.support.enos import LocalGateway
from tests.support.forked import CLOSED, GONE, Forked
from tests.support.program import KEY, ORG, SECRET, Program
from tests.support.receiver import HttpReceiver

FULL = "/dev/full"
NULL = "/dev/null"
COMMANDING = ("\x1b]", "\x07", "\u202e", "\x9b")
"""What a terminal obeys, and nothing of ours writes."""
HOSTILE = f"{COMMANDING[0]}0;pwned{COMMANDING[1]} {COMMANDING[2]}{COMMANDING[3]}2J"
CALLS: Mapping[tuple[str, ...], str] = {
    ("ack", "revoke"): "1",
    ("answer",): f"{ORG} ann",
    ("audit",): "-o bundle.zip",
    ("backup",): "copy.db",
    ("changes",): "--json",
    ("db", "copy"): "--to sqlite:///copy.db --upgrade",
    ("demo",): "--folder demo",
    ("diff",): f"--org {ORG} now now",
    ("export",): "changes",
    ("guard", "approve"): "--all --expect any",
    ("history",): "1",
    ("init",): "new",
    ("notify",): "--test",
    ("prune",): "--keep 1d",
    ("report",): "-o report.html",
    ("review",): f"--org {ORG} -o review.csv",
    ("rules", "test"): "rules/daily.sql",
    ("seal", "keygen"): "key",
    ("seal", "show"): "1",
}
"""What a command needs to be called."""
RUNS_UNTIL_STOPPED = ("serve",)


CONTEXT = click.Context(app)


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if not isinstance(command, click.Group):
        yield path
        return
    for name in command.list_commands(CONTEXT):
        yield from commands(command.get_command(CONTEXT, name), (*path, name))


COMMANDS = sorted({*commands(app)} - {RUNS_UNTIL_STOPPED})


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which every command has something to do: removals are held, and a receiver is there."""
    world = World(orgs=0)
    world.set_flows(ORG, "ann", [Flow(str(n), f"{HOSTILE}{n}", "D", True) for n in range(20)])
    world.set_flows(ORG, "bob", [Flow("1", HOSTILE, HOSTILE, True)])
    with LocalGateway(world, access_key=KEY, secret_key=SECRET) as gateway, HttpReceiver() as receiver:
        program = Program(tmp_path_factory.mktemp("template"), gateway.url)
        told = f'[[notify]]\nurls = ["json://127.0.0.1:{receiver.port}"]\n'
        program.configure(rest=f'{told}[archive]\nanswers = "changed"\n[seal]\ntimestamp_url = "http://127.0.0.1:9"')
        program.schedule("plants", [(ORG, ["ann", "bob"])])
        (program.folder / "rules").mkdir()
        rule = "-- title: Daily\nSELECT * FROM org_workflow WHERE cycle <> 'D'"
        (program.folder / "rules" / "daily.sql").write_text(rule)
        program.json("sync")
        world.set_flows(ORG, "ann", [])
        assert program("sync").returncode == 1
        program.json("ack", "--org", ORG)
        yield program.folder


@pytest.fixture(scope="module")
def forked(template: Path) -> Iterator[Forked]:
    environment = {**os.environ, "FLOWTRAIL_GATEWAY__SECRET_KEY": SECRET, "COLUMNS": "200"}
    forked = Forked(environment)
    yield forked
    forked.close()


Case = Callable[..., tuple[int, dict[str, int]]]


@pytest.fixture
def case(forked: Forked, template: Path, tmp_path: Path) -> Case:
    """Calls a command with these streams in a folder of its own: the exit code, and each table's number of rows."""
    numbers = itertools.count()

    def call(command: tuple[str, ...], *streams: str | Path) -> tuple[int, dict[str, int]]:
        folder = tmp_path / str(next(numbers))
        shutil.copytree(template, folder)
        code = forked([*command, *CALLS.get(command, "").split()], folder, streams)
        return code, _rows(folder / "flowtrail.db")

    return call


def _rows(file: Path) -> dict[str, int]:
    connection = sqlite3.connect(file)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables}
    finally:
        connection.close()


class Terminal:
    """A terminal that a program writes to by its name; ``shown`` is all that it got, once it is closed."""

    def __init__(self) -> None:
        self._master, self._slave = os.openpty()
        self._got = bytearray()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Path:
        return Path(os.ttyname(self._slave))

    def __exit__(self, *_: object) -> None:
        os.close(self._slave)
        self._reader.join()
        os.close(self._master)

    @property
    def shown(self) -> str:
        return self._got.decode()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while some := os.read(self._master, 65536):
                self._got += some


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_does_the_same_whatever_its_streams_are(command: tuple[str, ...], case: Case, tmp_path: Path) -> None:
    """On a terminal, which no name can command; without streams; and where its output finds no room."""
    out, err = Terminal(), Terminal()
    with out as stdout, err as stderr:
        code, rows = case(command, NULL, stdout, stderr)
    assert code in (0, 1)
    assert "Traceback" not in err.shown
    assert [each for each in COMMANDING if each in out.shown + err.shown] == []

    assert case(command, CLOSED, CLOSED, CLOSED) == (code, rows)

    complaints = tmp_path / "stderr"
    assert case(command, NULL, FULL, complaints) == (1 if out.shown else code, rows)
    assert "Traceback" not in complaints.read_text()
    assert ("Standard output could not be written: No space left on device" in complaints.read_text()) == bool(
        out.shown
    )


@pytest.mark.parametrize("command", [("sync",), ("changes",), ("export",), ("plan",), ("db", "grants")], ids=" ".join)
def test_a_reader_that_goes_away_is_not_a_failure(command: tuple[str, ...], case: Case, tmp_path: Path) -> None:
    complaints = tmp_path / "stderr"
    assert case(command, NULL, GONE, complaints) == case(command, NULL, NULL, FULL)
    assert "Traceback" not in complaints.read_text()
    assert "could not be written" not in complaints.read_text()


def test_a_service_without_streams_serves_and_its_log_gets_into_no_file(
    template: Path, tmp_path: Path, receiver: HttpReceiver
) -> None:
    """Started as daemons once were. The database must not become one of its streams."""
    folder = tmp_path / "home"
    shutil.copytree(template, folder)
    program = Program(folder, "http://127.0.0.1:9")
    ping = f'ping_url = "http://127.0.0.1:{receiver.port}"'
    program.schedule("plants", [(ORG, ["ann", "bob"])], when=f'every = "1s"\n{ping}')
    runs = program.rows("SELECT count(*) FROM sync_run")[0][0]
    with subprocess.Popen(
        ["/bin/sh", "-c", 'exec "$0" -m etl serve <&- >&- 2>&-', sys.executable], cwd=folder, env=program.environment
    ) as service:
        assert [got.path for got in receiver.wait_for(4)] == ["/start", "/fail"] * 2
        streams = {os.readlink(f"/proc/{service.pid}/fd/{descriptor}") for descriptor in range(3)}
        service.send_signal(signal.SIGTERM)
        assert service.wait(60) == 0
    assert streams == {NULL}
    assert _rows(folder / "flowtrail.db")["sync_run"] >= runs + 2


@pytest.fixture
def log_pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[TextIO, int]]:
    """A log that goes into a pipe, and the end of it that somebody should read. Patience is short here."""
    monkeypatch.setattr("etl.system.streams._LOG_PATIENCE_SECONDS", 0.01)
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    stream = io.TextIOWrapper(io.BufferedWriter(streams.LogOutput(writer)), line_buffering=True)
    with _restored_logging():
        log.configure("INFO", "json", stream)
        yield stream, reader
    os.close(reader)
    os.close(writer)


@contextlib.contextmanager
def _restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, raising = root.handlers[:], root.level, logging.raiseExceptions
    yield
    root.handlers[:], root.level, logging.raiseExceptions = handlers, level, raising


def test_a_log_without_a_reader_blocks_nothing_and_counts_what_was_lost(log_pipe: tuple[TextIO, int]) -> None:
    _, reader = log_pipe
    logger = log.get_logger("etl.test")
    logger.info("first")
    logger.info("longer than any pipe", long="x" * 2_000_000)
    for number in range(100):
        logger.info("never seen", number=number)
    read = os.read(reader, 1 << 21)
    logger.info("again")
    first, cut, *rest = (read + os.read(reader, 1 << 20)).decode().splitlines()
    assert json.loads(first)["event"] == "first"
    assert cut.endswith("xxx"), "the next line does not continue it"
    dropped, again = map(json.loads, rest)
    assert [dropped["event"], again["event"]] == ["log_dropped", "again"]
    assert dropped["bytes"] > 1_000_000


def test_a_log_goes_on_once_its_disk_has_room_again(tmp_path: Path) -> None:
    with open(FULL, "w") as full, open(tmp_path / "log", "w+") as room:
        descriptor = os.dup(full.fileno())
        stream = io.TextIOWrapper(io.BufferedWriter(streams.LogOutput(descriptor)), line_buffering=True)
        stream.write("lost\n")
        os.dup2(room.fileno(), descriptor)
        stream.write("kept\n")
        os.close(descriptor)
    assert (tmp_path / "log").read_text() == "kept\n"


def test_output_waits_for_a_reader_whose_pipe_was_made_non_blocking() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    output = streams.Output(writer)
    sent = b"x" * 300_000
    thread = threading.Thread(target=output.write, args=(sent,))
    thread.start()
    got = b""
    while len(got) < len(sent):
        got += os.read(reader, 65536)
    thread.join()
    os.close(reader)
    os.close(writer)
    assert got == sent
    assert output.lost is None


@pytest.mark.parametrize("limits", ["-v 50000", "-v 60000", "-v 4000000; ulimit -s 8000000"])
def test_too_little_memory_is_reported_in_one_sentence(template: Path, tmp_path: Path, limits: str) -> None:
    """Libraries that cannot be loaded, and threads that cannot be started: with stacks as large as these, none."""
    shutil.copytree(template, tmp_path / "home")
    program = Program(tmp_path / "home", "http://127.0.0.1:9")
    program.command = ["/bin/sh", "-c", f'ulimit {limits}; exec "$0" -m etl "$@"', sys.executable]
    done = program("check")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "limit" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_terminated_command_ends_with_the_usual_exit_code(
    flowtrail: Program, receiver: HttpReceiver, number: int
) -> None:
    receiver.hold = True
    flowtrail.configure(rest=f'[[notify]]\nurls = ["{receiver.url}"]')
    command = flowtrail.start("notify", "--test")
    receiver.wait_for(1)
    command.process.send_signal(number)
    receiver.let_go()
    assert command.ended() == 128 + number
