"""Finds names by a part of them: a-z in either case, everything else exactly, the same on both databases."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import ColumnElement, Select, collate, func

from etl.domain.model import DIRECTORY

_ESCAPE: Final = "!"


def pattern(part: str) -> str:
    """The LIKE pattern for folded names that contain ``part``."""
    folded = "".join(char.lower() if char.isascii() else char for char in part)
    return "%" + "".join(_ESCAPE + char if char in "!%_" else char for char in folded) + "%"


def contains(dialect: str, name: ColumnElement[Any], part: str) -> ColumnElement[bool]:
    """The column ``name`` contains ``part``."""
    # only a-z are folded: SQLite knows no others, PostgreSQL does the same in collation C
    folded = func.lower(name if dialect == "sqlite" else collate(name, "C"))
    return folded.like(pattern(part), escape=_ESCAPE)


def contains_sql(dialect: str, name: str, parameter: str) -> str:
    """The same as SQL text, with the pattern bound as ``parameter``."""
    collated = name if dialect == "sqlite" else f'{name} COLLATE "C"'
    return f"lower({collated}) LIKE :{parameter} ESCAPE '{_ESCAPE}'"


WHOLE: Final = "="
"""In front of an id in a search: the whole id, not a part of one."""


def id_contains(dialect: str, column: ColumnElement[Any], asked: str) -> ColumnElement[bool]:
    """The id in ``column`` contains ``asked``, or is equal to what follows ``WHOLE``."""
    asked = _typed(asked)
    return column == asked[len(WHOLE) :] if asked.startswith(WHOLE) else contains(dialect, column, asked)


def _typed(asked: str) -> str:
    """A directory is found by what people read in place of its user's id, which is empty."""
    return WHOLE if asked.strip() == DIRECTORY else asked


def with_ids(dialect: str, chosen: Select[Any], org: str, user: str) -> Select[Any]:
    """The rows whose ``org_id`` and ``user_id`` contain ``org`` and ``user``, if given."""
    ids = ((chosen.selected_columns.org_id, org), (chosen.selected_columns.user_id, user))
    return chosen.where(*(id_contains(dialect, column, asked) for column, asked in ids if asked))


def id_sql(dialect: str, name: str, parameter: str, asked: str) -> str:
    """``id_contains`` as SQL text, for a statement that binds ``id_value`` as ``parameter``."""
    return f"{name} = :{parameter}" if _typed(asked).startswith(WHOLE) else contains_sql(dialect, name, parameter)


def id_value(asked: str) -> str:
    """The value to bind for ``id_sql``."""
    asked = _typed(asked)
    return asked[len(WHOLE) :] if asked.startswith(WHOLE) else pattern(asked)
