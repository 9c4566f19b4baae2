"""Databases for the tests: a real SQLite file and a real PostgreSQL, the same tests over both."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import postgres as local_postgres
import psycopg
import pytest
from sqlalchemy import Engine

from etl.database import connect, upgrade

BOTH = ("sqlite", "postgresql")
TEMPLATE = "template_flowtrail"
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def postgres() -> Iterator[local_postgres.Server]:
    """A PostgreSQL server of its own. Where it cannot start, CI fails and a laptop skips, with the reason."""
    try:
        server = local_postgres.start()
    except (RuntimeError, OSError, KeyError) as error:
        if os.environ.get("CI"):
            pytest.fail(f"CI must test on PostgreSQL: {error}")
        pytest.skip(f"NOT TESTED ON POSTGRESQL: {error}")
    yield server
    server.stop()


@pytest.fixture(scope="session")
def migrated_postgres(postgres: local_postgres.Server) -> str:
    """The name of a database with the schema, to be copied as a template."""
    _sql(postgres, f"CREATE DATABASE {TEMPLATE}")
    _migrate(postgres.url(TEMPLATE))
    return TEMPLATE


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("template") / "flowtrail.db"
    _migrate(f"sqlite:///{file}")
    return file


@pytest.fixture(params=BOTH)
def dialect(request: pytest.FixtureRequest) -> str:
    """Every test that uses a fixture below runs once on each database."""
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
    else:
        template = request.getfixturevalue("migrated_postgres")
        yield from _database(request.getfixturevalue("postgres"), template=template)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An engine on ``database_url``."""
    engine = connect(database_url)
    yield engine
    engine.dispose()


def _database(server: local_postgres.Server, *, template: str) -> Iterator[str]:
    name = f"test_{next(_numbers)}"
    _sql(server, f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY wal_log")
    yield server.url(name)
    _sql(server, f"DROP DATABASE {name} WITH (FORCE)")


def _sql(server: local_postgres.Server, statement: str) -> None:
    with psycopg.connect(server.conninfo("postgres"), autocommit=True) as connection:
        connection.execute(statement)


def _migrate(url: str) -> None:
    engine = connect(url)
    upgrade(engine)
    engine.dispose()
