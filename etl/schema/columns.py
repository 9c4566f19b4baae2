"""What all tables share: the metadata, how times are stored, and columns by type."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from itertools import chain
from typing import Any, Final

from sqlalchemy import BigInteger, Column, DateTime, Dialect, Identity, Integer, MetaData, Table, Text, text
from sqlalchemy.types import TypeDecorator, TypeEngine

_WRITTEN: Final = re.compile(r"\d{4}-\d\d-\d\d (?!24)\d\d:\d\d:\d\d\.\d{6}", re.ASCII).fullmatch


class UnreadableTime(ValueError):
    """A text in SQLite that is not a time as YYYY-MM-DD HH:MM:SS.ffffff."""

    def __init__(self, value: object) -> None:
        super().__init__(f"{value!r} is not a time as YYYY-MM-DD HH:MM:SS.ffffff")


class UtcTime(TypeDecorator[dt.datetime]):
    """An aware time, given back in UTC: ``timestamptz``, or ``YYYY-MM-DD HH:MM:SS.ffffff`` text on SQLite.

    A naive datetime is refused with a ValueError: nobody knows which moment it means. Reading another text raises
    UnreadableTime: SQL compares the texts, so a moment that is written in another way would be in another order.
    """

    impl = DateTime(timezone=True)
    cache_ok = True

    @property
    def python_type(self) -> type[dt.datetime]:
        return dt.datetime

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return Text() if dialect.name == "sqlite" else DateTime(timezone=True)

    def process_bind_param(self, value: dt.datetime | None, dialect: Dialect) -> dt.datetime | str | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone")
        return text_of_time(value) if dialect.name == "sqlite" else value.astimezone(dt.UTC)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], dt.datetime | None]:
        return time_of_text if dialect.name == "sqlite" else _in_utc


@lru_cache(maxsize=4096)
def text_of_time(value: dt.datetime) -> str:
    """A time as SQLite has it."""
    return value.astimezone(dt.UTC).replace(tzinfo=None).isoformat(" ", "microseconds")


@lru_cache(maxsize=4096)
def time_of_text(value: str | None) -> dt.datetime | None:
    """The time that SQLite has as text. Raises UnreadableTime unless it is written as ``UtcTime`` writes it."""
    if value is None:
        return None
    if not isinstance(value, str) or _WRITTEN(value) is None:
        raise UnreadableTime(value)
    try:
        return dt.datetime.fromisoformat(value + "+00:00")
    except ValueError:
        raise UnreadableTime(value) from None


def _in_utc(value: dt.datetime | None) -> dt.datetime | None:
    return None if value is None else value.astimezone(dt.UTC)


metadata: Final = MetaData()
BIG: Final = BigInteger().with_variant(Integer(), "sqlite")
KEY: Final = Text().with_variant(Text(collation="C"), "postgresql")
"""Text that is compared or indexed, byte by byte, as SQLite does by default."""
Columns = Iterable[Column[Any]]


def table(name: str, about: str, *columns: Columns) -> Table:
    """A table, with what a person who looks into the database reads about it."""
    return Table(name, metadata, *chain.from_iterable(columns), comment=about)


def numbered(name: str = "id") -> Columns:
    """The primary key: a number that the database assigns."""
    return [Column(name, BIG, Identity(), primary_key=True)]


def primary(kind: Any, *names: str) -> Columns:
    """The primary key, or a part of it: given, not assigned."""
    return [Column(name, kind, primary_key=True, autoincrement=False) for name in names]


def required(kind: Any, *names: str) -> Columns:
    """Columns that every row must fill."""
    return [Column(name, kind, nullable=False) for name in names]


def optional(kind: Any, *names: str) -> Columns:
    """Columns that may be null."""
    return [Column(name, kind) for name in names]


def defaulting(kind: Any, default: str, *names: str) -> Columns:
    """Required, but with a default, which is written in SQL."""
    return [Column(name, kind, nullable=False, server_default=text(default)) for name in names]


def counts(*names: str, kind: Any = Integer) -> Columns:
    """Numbers that begin with 0."""
    return defaulting(kind, "0", *names)


def change_counts(kind: Any = Integer) -> Columns:
    """How many changes of each kind there are."""
    return counts("baseline", "added", "removed", "cycle_changed", "renamed", "editable_changed", kind=kind)
