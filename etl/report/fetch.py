"""Short reads: one transaction for everything that a page or a health check shows, and its rows as values."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, Select, TextClause, bindparam, text

from etl.database import reading
from etl.report.rows import sql_columns
from etl.schema import UtcTime

T = TypeVar("T", bound=tuple[Any, ...])


@contextmanager
def short_transaction(engine: Engine) -> Iterator[Connection]:
    """A transaction that only reads. PostgreSQL stops a statement after 30 s, does not compile queries, which would
    take longer than most of ours run, and looks rows up by index where it would read a whole table instead: a page asks
    for few of them, and they are in memory."""
    with reading(engine) as connection:
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql(
                "SET LOCAL jit = off; SET LOCAL statement_timeout = '30s'; SET LOCAL random_page_cost = 1.1"
            )
        yield connection


def fetch(connection: Connection, row_type: type[T], sql: str, **parameters: Any) -> list[T]:
    """The rows of ``sql``, whose columns are the fields of ``row_type`` in order."""
    found = connection.execute(with_times(sql, parameters).columns(*sql_columns(row_type)), parameters)
    return [row_type(*row) for row in found]


def page(
    connection: Connection,
    row_type: type[T],
    select: Select[Any],
    limit: int,
    offset: int = 0,
    parameters: Mapping[str, Any] | None = None,
) -> list[T]:
    """At most ``limit`` rows of ``select`` after the first ``offset``."""
    return [row_type(*row) for row in connection.execute(select.limit(limit).offset(offset), parameters or {})]


def with_times(sql: str, parameters: Mapping[str, Any]) -> TextClause:
    """The statement, with times among its parameters bound as each database stores them."""
    times = [name for name, value in parameters.items() if isinstance(value, dt.datetime)]
    return text(sql).bindparams(*(bindparam(name, type_=UtcTime()) for name in times))
