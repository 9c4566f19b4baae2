"""Where the contenders write: SQLite files on disk, and a PostgreSQL of our own with its default, durable settings."""

from __future__ import annotations

import itertools
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import psycopg

from tests.support import postgres

TICKS = os.sysconf("SC_CLK_TCK")


class Database(Protocol):
    """One contender's database, from its first phase to its last."""

    def job(self) -> dict[str, Any]:
        """The fields of a Job that say where it is."""

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Rows; none where the table does not exist."""

    def size_bytes(self) -> int: ...

    def settle(self) -> None:
        """Give every phase the same beginning: what was written is on disk."""

    def log_bytes(self) -> int:
        """A position in the write-ahead log."""

    def server_cpu_seconds(self) -> float: ...


class SqliteFile:
    def __init__(self, file: Path) -> None:
        self.file = file

    def job(self) -> dict[str, Any]:
        return {"file": str(self.file)}

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(self.file)
        try:
            return connection.execute(sql).fetchall()
        except sqlite3.OperationalError:
            return []
        finally:
            connection.close()

    def size_bytes(self) -> int:
        return self.file.stat().st_size if self.file.exists() else 0

    def settle(self) -> None:
        os.sync()

    def log_bytes(self) -> int:
        return 0

    def server_cpu_seconds(self) -> float:
        return 0.0


class PostgresDatabase:
    def __init__(self, server: postgres.Server, name: str) -> None:
        self._server = server
        self._name = name
        self._connection = psycopg.connect(server.conninfo("postgres"), autocommit=True)
        self._connection.execute(f"CREATE DATABASE {name} TEMPLATE template0".encode())

    def close(self) -> None:
        self._connection.execute(f"DROP DATABASE {self._name} WITH (FORCE)".encode())
        self._connection.close()

    def job(self) -> dict[str, Any]:
        of = self._server
        where = {"host": str(of.folder), "port": of.port, "user": postgres.SUPERUSER, "password": of.password}
        return {"server": where | {"dbname": self._name}}

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self._server.conninfo(self._name)) as connection:
            try:
                return connection.execute(sql.encode()).fetchall()
            except psycopg.errors.UndefinedTable:
                return []

    def size_bytes(self) -> int:
        return int(self._value(f"SELECT pg_database_size('{self._name}')"))

    def settle(self) -> None:
        """Autovacuum would come a minute after a load, into whatever is measured then.

        Its statistics are read once, too: the first who reads a row marks it, which is written to the log.
        """
        with psycopg.connect(self._server.conninfo(self._name), autocommit=True) as connection:
            connection.execute("VACUUM (ANALYZE)")
            connection.execute("SELECT count(*) FROM pg_statistic")
        self._connection.execute("CHECKPOINT")

    def log_bytes(self) -> int:
        return int(self._value("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn"))

    def server_cpu_seconds(self) -> float:
        pid = int((self._server.folder / "data" / "postmaster.pid").read_text().split()[0])
        return sum(_ticks(stat) for stat in _family(pid)) / TICKS

    def _value(self, sql: str) -> Any:
        row = self._connection.execute(sql.encode()).fetchone()
        assert row is not None
        return row[0]


def _family(pid: int) -> Iterator[list[str]]:
    """The server's own process, with what its ended ones used, and those that live."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(stat.parent.name) == pid or int(fields[1]) == pid:
            yield fields


def _ticks(fields: Iterable[str]) -> int:
    return sum(int(field) for field in list(fields)[11:15])


class Databases:
    """Makes databases of one kind, each for one contender's round."""

    def __init__(self, folder: Path, server: postgres.Server | None) -> None:
        self._folder, self._server = folder, server
        self._numbers = itertools.count(1)

    @contextmanager
    def fresh(self) -> Iterator[Database]:
        number = next(self._numbers)
        if self._server is None:
            file = self._folder / f"{number}.db"
            yield SqliteFile(file)
            for each in self._folder.glob(f"{file.name}*"):
                each.unlink()
            return
        database = PostgresDatabase(self._server, f"benchmark_{number}")
        try:
            yield database
        finally:
            database.close()

    def version(self) -> str:
        if self._server is None:
            return f"SQLite {sqlite3.sqlite_version}"
        with psycopg.connect(self._server.conninfo("postgres")) as connection:
            return f"PostgreSQL {connection.info.server_version // 10000}.{connection.info.server_version % 10000}"


@contextmanager
def of_kind(kind: str, folder: Path) -> Iterator[Databases]:
    """Databases of ``kind`` ("sqlite" or "postgresql"). Raises RuntimeError where no server can be started."""
    if kind == "sqlite":
        yield Databases(folder, None)
        return
    server = postgres.start(options=postgres.DURABLE, place=postgres.DISK)
    try:
        yield Databases(folder, server)
    finally:
        server.stop()
