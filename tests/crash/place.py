"""Where a trial happens: a folder, the real program, a local gateway with its delivery log, and a database."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import psycopg

from etl import signing
from etl.database import connect
from etl.demo.world import World
from etl.verify import Answers, Sealing, verify
from tests.crash import points
from tests.support import checker, postgres
from tests.support.enos import LocalGateway
from tests.support.forked import Forked
from tests.support.program import KEY, SECRET

TREE = Path(__file__).parents[2]
SHARED_MEMORY = Path("/dev/shm")
_QUIET = 'every = "1h"'


class Ended(NamedTuple):
    """How a run ended: the exit code (negative: the signal), the points that it passed, the label of the last."""

    code: int
    passed: int
    label: str


def launcher() -> Forked:
    """A process that forks the program on request; one run at a time."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("FLOWTRAIL_")}
    secret = {"FLOWTRAIL_GATEWAY__SECRET_KEY": SECRET}
    return Forked({**own, **secret, "PYTHONPATH": str(TREE), "PYTHONWARNINGS": "error", "COLUMNS": "200"})


class Databases:
    """Makes, copies and drops databases of one kind."""

    _numbers = itertools.count(1)

    def __init__(self, folder: Path, server: postgres.Server | None) -> None:
        self._folder = folder
        self._server = server

    @property
    def kind(self) -> str:
        return "SQLite" if self._server is None else "PostgreSQL"

    @property
    def is_sqlite(self) -> bool:
        return self._server is None

    def new(self, template: str | None = None) -> str:
        """The URL of a new database: a copy of the one at ``template``, or an empty one (SQLite: no file yet)."""
        name = f"crash_{os.getpid()}_{next(self._numbers)}"
        if self._server is None:
            (self._folder / name).mkdir()
            file = self._folder / name / "flowtrail.db"
            if template is not None:
                copied = file_of(template)
                for part in copied.parent.glob(f"{copied.name}*"):
                    shutil.copy(part, file.parent / part.name)
            return f"sqlite:///{file}"
        source = "template0" if template is None else name_of(template)
        self._sql(f"CREATE DATABASE {name} TEMPLATE {source} STRATEGY wal_log")
        return self._server.url(name)

    def make_durable(self, url: str) -> None:
        """The test server may lose commits when it is stopped immediately; those of this database it keeps."""
        self._sql(f"ALTER DATABASE {name_of(url)} SET synchronous_commit = on")
        self._sql("CHECKPOINT")

    def drop(self, url: str) -> None:
        if self._server is None:
            shutil.rmtree(file_of(url).parent)
        else:
            self._sql(f"DROP DATABASE {name_of(url)} WITH (FORCE)")

    def _sql(self, statement: str) -> None:
        assert self._server is not None
        with psycopg.connect(self._server.conninfo("postgres"), autocommit=True) as connection:
            connection.execute(statement)


def name_of(url: str) -> str:
    """The name of a PostgreSQL database."""
    return urlsplit(url).path.lstrip("/")


def file_of(url: str) -> Path:
    return Path(url.removeprefix("sqlite:///"))


class Place:
    """One launcher, one gateway and one folder; ``use`` sets the database."""

    def __init__(self, folder: Path, server: postgres.Server | None = None) -> None:
        self.folder = folder
        self.databases = Databases(folder, server)
        self.launcher = launcher()
        self._board = folder / "board"
        self.url = ""
        self.known: list[checker.Delivered] = []
        """What was delivered before the trial, to the database that the template was copied from."""
        self._forgotten = 0
        self.beginning: tuple[str, list[checker.Delivered]] | None = None
        """A database with two syncs of the scenarios' world, once it exists, and the deliveries for it."""
        (folder / "schedules").mkdir()
        self._key = signing.generate_key(folder / "seal.pem")
        self.new_world()

    def new_world(self, world: World | None = None) -> World:
        """Replace the gateway by one for another world."""
        self._close_gateway()
        self.gateway = LocalGateway(world or World(orgs=0), access_key=KEY, secret_key=SECRET)
        self.gateway.start()
        self._forgotten = 0
        return self.gateway.world

    def _close_gateway(self) -> None:
        if hasattr(self, "gateway"):
            self.gateway.close()

    def use(self, url: str, known: Sequence[checker.Delivered] = (), rest: str = "") -> None:
        """From now on the program uses this database, and only deliveries from now on count, besides ``known``."""
        self.url = url
        self.known = list(known)
        self._forgotten = len(self.gateway.deliveries.entries())
        self.point_at(url, rest=rest)

    def point_at(self, url: str, gateway: str = "", rest: str = "", deadline: str = "20s") -> None:
        """Write the settings. The same database may have several URLs."""
        (self.folder / "flowtrail.toml").write_text(
            f'[gateway]\nurl = "{self.gateway.url}"\naccess_key = "{KEY}"\nconcurrency = 1\n'
            f'timeout = "10s"\ndeadline = "{deadline}"\n{gateway}\n'
            f'[database]\nurl = "{url}"\n[service]\nlisten = ""\n{rest}\n'
            f'[archive]\nanswers = "changed"\n[seal]\nkey_file = "seal.pem"\n'
        )

    def schedule(self, org: str, users: Sequence[str], when: str = _QUIET) -> None:
        """Write the schedule: these users of one organisation."""
        text = f'{when}\n\n[[targets]]\norg = "{org}"\nusers = {json.dumps(list(users))}\n'
        (self.folder / "schedules" / "plants.toml").write_text(text)

    def run(self, *arguments: str, strike: dict[str, Any] | None = None) -> Ended:
        """Run the real program to its end."""
        self.start(*arguments, strike=strike)
        return self.ended()

    def start(self, *arguments: str, strike: dict[str, Any] | None = None) -> int:
        """Start the program and return its process id; ``ended`` waits for it."""
        streams = [self.folder / name for name in ("stdout", "stderr")]
        for stream in streams:
            stream.write_text("")
        self._board.write_bytes(bytes(points.BOARD_BYTES))
        prepare = "tests.crash.points", {"board": str(self._board), "strike": strike}
        return self.launcher.start(arguments, self.folder, [os.devnull, *streams], prepare=prepare)

    def ended(self) -> Ended:
        return Ended(self.launcher.ended(), *points.read(self._board.read_bytes()))

    @property
    def said(self) -> str:
        """What the last run wrote to stderr and stdout."""
        return "".join((self.folder / name).read_text() for name in ("stderr", "stdout"))

    @property
    def deliveries(self) -> list[checker.Delivered]:
        """Every complete, valid answer that was delivered for this database."""
        return self.known + checker.delivered(self.gateway.deliveries.entries(after=self._forgotten))

    def findings(self, *, settled: bool, url: str = "") -> list[str]:
        """What the independent checker finds in the database; nothing for an SQLite file that does not exist."""
        url = url or self.url
        if url.startswith("sqlite") and not file_of(url).exists():
            return []
        return [
            *checker.check(url, self.deliveries, settled=settled, guard=checker.Guard(), story=True),
            *self._unkept(url),
        ]

    def _unkept(self, url: str) -> Iterator[str]:
        """Versions without their answer, and seals without a signature: each pair is written together or not at all."""
        engine = connect(url)
        try:
            answers, sealing = Answers(), Sealing()
            yield from (
                f"verify: {each}" for each in verify(engine, keys=[self._key], answers=answers, sealing=sealing)
            )
            if answers.proven < answers.versions:
                yield f"{answers.versions - answers.proven} versions have no answer"
            if sealing.signed < sealing.seals:
                yield f"{sealing.seals - sealing.signed} seals are not signed"
        finally:
            engine.dispose()

    def close(self) -> None:
        self._close_gateway()
        self.launcher.close()


@contextmanager
def place(server: postgres.Server | None = None) -> Iterator[Place]:
    """A place in a temporary folder, in memory if there is /dev/shm."""
    memory = SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
    folder = Path(tempfile.mkdtemp(prefix="flowtrail-crash-", dir=memory))
    made = Place(folder, server)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(folder, ignore_errors=True)
