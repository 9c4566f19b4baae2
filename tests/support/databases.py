"""Fixtures for tests that need a database: a real SQLite file and a real PostgreSQL, the same tests over both."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import pytest
from sqlalchemy import Engine, make_url

from etl.database import connect, upgrade
from tests.support import checker, sessions
from tests.support import pooler as local_pooler
from tests.support import postgres as local_postgres
from tests.support.builders import Diary
from tests.support.sessions import POOLED

BOTH = ("sqlite", "postgresql")
TEMPLATE = "template_flowtrail"
T = TypeVar("T")
Connect = Callable[..., Engine]
_numbers = itertools.count(1)


def client(name: str) -> str:
    """The path of `psql` or `sqlite3`. Without it, CI fails and a laptop skips, with the remedy."""
    if found := shutil.which(name):
        return found
    said = f"no {name}: apt-get install {'postgresql-client' if name == 'psql' else name}"
    if os.environ.get("CI"):
        pytest.fail(f"CI must ask {name} too: {said}")
    pytest.skip(said)


@pytest.fixture(scope="session")
def postgres() -> Iterator[local_postgres.Server]:
    """A PostgreSQL server for this session. If it cannot start, CI fails and a laptop skips, with the reason."""
    try:
        server = local_postgres.start()
    except (RuntimeError, OSError, KeyError) as error:
        if os.environ.get("CI"):
            pytest.fail(f"CI must test on PostgreSQL: {error}")
        pytest.skip(str(error))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def migrated_postgres(postgres: local_postgres.Server) -> str:
    """The name of a database with the schema, to be copied as a template."""
    _sql(postgres, f"CREATE DATABASE {TEMPLATE}")
    _migrate(postgres.url(TEMPLATE))
    return TEMPLATE


@pytest.fixture(scope="session")
def hostile_postgres(postgres: local_postgres.Server, migrated_postgres: str) -> str:
    """The name of such a database with another program's tables of the same names, which the hostile role sees
    first."""
    sessions.make_role(postgres.conninfo("postgres"))
    name = f"{migrated_postgres}_hostile"
    _sql(postgres, f"CREATE DATABASE {name} TEMPLATE {migrated_postgres}")
    with psycopg.connect(postgres.conninfo(name), autocommit=True) as admin:
        admin.execute(sessions.DECOYS)
    return name


@pytest.fixture(scope="session")
def pgbouncer(postgres: local_postgres.Server) -> Iterator[local_pooler.Pooler]:
    """PgBouncer in transaction mode. If it is not installed, CI fails and a laptop skips, with the reason."""
    try:
        with local_pooler.running(postgres) as pooler:
            yield pooler
    except RuntimeError as error:
        if os.environ.get("CI"):
            pytest.fail(f"CI must test with PgBouncer: {error}")
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("template") / "flowtrail.db"
    _migrate(f"sqlite:///{file}")
    return file


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test that uses a fixture below runs once on each database, unless it names its own.

    A module may add ways of connecting to PostgreSQL: ``ALSO_CONNECTS = (POOLED,)``.
    """
    names = (mark.args[0] for mark in metafunc.definition.iter_markers("parametrize"))
    named = {each for name in names for each in (name.replace(" ", "").split(",") if isinstance(name, str) else name)}
    if "dialect" in metafunc.fixturenames and "dialect" not in named:
        more = getattr(metafunc.module, "ALSO_CONNECTS", ())
        metafunc.parametrize("dialect", (*BOTH, *more), indirect=True)


@pytest.fixture
def dialect(request: pytest.FixtureRequest) -> str:
    """The kind of database, and how it is connected to."""
    return str(request.param)


@pytest.fixture
def empty_url(dialect: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database without a schema; on SQLite the file does not exist yet. Subprocesses may use it too."""
    if dialect == "sqlite":
        yield f"sqlite:///{tmp_path / 'flowtrail.db'}"
    else:
        yield from _database(request.getfixturevalue("postgres"), template="template0")


@pytest.fixture
def database_url(dialect: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database with the schema and no rows. Subprocesses may use it too."""
    if dialect == "sqlite":
        file = shutil.copy(request.getfixturevalue("migrated_sqlite"), tmp_path / "flowtrail.db")
        yield f"sqlite:///{file}"
        return
    server = request.getfixturevalue("postgres")
    template = request.getfixturevalue("migrated_postgres" if dialect == "postgresql" else "hostile_postgres")
    for url in _database(server, template=template):
        yield from _connected_as(dialect, url, server, request)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An engine on ``database_url``."""
    engine = connect(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def connected() -> Iterator[Connect]:
    """Connects a test to a URL, or to the path of a file; the engines are closed behind it."""
    engines: list[Engine] = []

    def connected(url: str | Path, **options: Any) -> Engine:
        engines.append(connect(f"sqlite:///{url}" if isinstance(url, Path) else url, **options))
        return engines[-1]

    yield connected
    for engine in engines:
        engine.dispose()


@pytest.fixture
def other(dialect: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """An engine on a database of the other kind, with the schema and no rows."""
    if dialect == "sqlite":
        urls = _database(request.getfixturevalue("postgres"), template=request.getfixturevalue("migrated_postgres"))
    else:
        urls = iter([f"sqlite:///{shutil.copy(request.getfixturevalue('migrated_sqlite'), tmp_path / 'other.db')}"])
    for url in urls:
        engine = connect(url)
        yield engine
        engine.dispose()


class Fill:
    """Fills the database of a test with rows that many tests want. They are written once, then copied."""

    def __init__(self, request: pytest.FixtureRequest, engine: Engine, written: dict[tuple[str, str], Any]) -> None:
        self._request = request
        self._engine = engine
        self._written = written

    def __call__(self, name: str, write: Callable[[Engine, str], T]) -> T:
        """Return what ``write`` returned when it wrote the rows called ``name``; it must not keep an engine."""
        dialect = self._engine.dialect.name
        if (dialect, name) not in self._written:
            url = self._sqlite(name) if dialect == "sqlite" else self._postgres(name)
            engine = connect(url)
            self._written[dialect, name] = write(engine, url)
            engine.dispose()
        self._engine.dispose()
        mine = str(self._engine.url.database)
        if dialect == "sqlite":
            shutil.copy(self._file(name), mine)
        else:
            _replace(self._request.getfixturevalue("postgres"), mine, template=name)
        return self._written[dialect, name]  # type: ignore[no-any-return]

    def _file(self, name: str) -> Path:
        migrated: Path = self._request.getfixturevalue("migrated_sqlite")
        return migrated.with_name(f"{name}.db")

    def _sqlite(self, name: str) -> str:
        shutil.copy(self._request.getfixturevalue("migrated_sqlite"), self._file(name))
        return f"sqlite:///{self._file(name)}"

    def _postgres(self, name: str) -> str:
        server = self._request.getfixturevalue("postgres")
        _sql(server, f"CREATE DATABASE {name} TEMPLATE {self._request.getfixturevalue('migrated_postgres')}")
        return str(server.url(name))


@pytest.fixture(scope="session")
def written() -> dict[tuple[str, str], Any]:
    """What ``Fill`` wrote, by dialect and name."""
    return {}


@pytest.fixture
def fill(engine: Engine, request: pytest.FixtureRequest, written: dict[tuple[str, str], Any]) -> Fill:
    """Rows that many tests want."""
    return Fill(request, engine, written)


@pytest.fixture
def diary(engine: Engine, database_url: str, one_run_for_all: None) -> Diary:
    """Answers written to ``engine`` as a run would write them."""
    return Diary(engine, database_url)


def _connected_as(
    dialect: str, url: str, server: local_postgres.Server, request: pytest.FixtureRequest
) -> Iterator[str]:
    """The URL with which the program connects to the database; the independent checker connects directly."""
    if dialect == "postgresql":
        yield url
        return
    pooler = request.getfixturevalue("pgbouncer") if dialect == POOLED else None
    connecting = sessions.url_for(server, str(make_url(url).database), pooler=pooler)
    checker.DIRECTLY[connecting] = url
    yield connecting
    del checker.DIRECTLY[connecting]


def _database(server: local_postgres.Server, *, template: str) -> Iterator[str]:
    name = f"test_{next(_numbers)}"
    _sql(server, f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY wal_log")
    yield server.url(name)
    _sql(server, f"DROP DATABASE {name} WITH (FORCE)")


def _replace(server: local_postgres.Server, name: str, *, template: str) -> None:
    _sql(server, f"DROP DATABASE {name} WITH (FORCE)")
    _sql(server, f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY wal_log")


def _sql(server: local_postgres.Server, statement: str) -> None:
    with psycopg.connect(server.conninfo("postgres"), autocommit=True) as connection:
        connection.execute(statement)


def _migrate(url: str) -> None:
    engine = connect(url)
    upgrade(engine)
    engine.dispose()


@pytest.fixture
def one_run_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """For histories that one run wrote with many observations of a target; a real run observes a target once."""
    monkeypatch.setattr("etl.verify.observations", lambda engine: iter(()))
