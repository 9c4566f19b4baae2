"""What all tables share: the metadata, how times are stored, and common columns."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Dialect,
    Identity,
    Index,
    Integer,
    MetaData,
    Text,
    TextClause,
    text,
)
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
        utc = value.astimezone(dt.UTC)
        return utc.replace(tzinfo=None).isoformat(" ", "microseconds") if dialect.name == "sqlite" else utc

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], dt.datetime | None]:
        return time_of_text if dialect.name == "sqlite" else _in_utc


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


metadata: Final = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

BIG: Final = BigInteger().with_variant(Integer(), "sqlite")
BYTEWISE: Final = Text().with_variant(Text(collation="C"), "postgresql")
"""Text that is compared or indexed, byte by byte, as SQLite does by default."""


def id_column() -> Column[int]:
    """An id that the database assigns."""
    return Column("id", BIG, Identity(), primary_key=True)


def key(name: str) -> Column[str]:
    """A text that is compared or indexed."""
    return Column(name, BYTEWISE, nullable=False)


def string(name: str) -> Column[str]:
    """A text."""
    return Column(name, Text, nullable=False)


def time(name: str) -> Column[dt.datetime]:
    """A time."""
    return Column(name, UtcTime, nullable=False)


def count(name: str, *, big: bool = False) -> Column[int]:
    """A number that begins with 0."""
    return Column(name, BIG if big else Integer, nullable=False, server_default=text("0"))


def change_counts(*, big: bool = False) -> list[Column[int]]:
    """How many changes of each kind there are."""
    kinds = ("baseline", "added", "removed", "cycle_changed", "renamed", "editable_changed")
    return [count(kind, big=big) for kind in kinds]


def partial_index(name: str, *columns: str, where: str | TextClause, unique: bool = False) -> Index:
    """An index of the rows for which ``where`` holds, which the revisions say too. It is kept as ``info``: as options
    of the index it would load both databases' dialects, a tenth of the time in which a command starts."""
    return Index(name, *columns, unique=unique, info={"where": str(where)})
