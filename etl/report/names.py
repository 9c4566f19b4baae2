"""Finds a name by a part of it: a-z in either case, everything else exactly, the same on both databases."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import ColumnElement, Select, collate, func

_ESCAPE: Final = "!"


def pattern(part: str) -> str:
    """The LIKE pattern for folded names that contain ``part``."""
    folded = "".join(char.lower() if char.isascii() else char for char in part)
    return "%" + "".join(_ESCAPE + char if char in "!%_" else char for char in folded) + "%"


def contains(dialect: str, name: ColumnElement[Any], part: str) -> ColumnElement[bool]:
    """The column ``name`` contains ``part``."""
    # both databases fold a-z only: SQLite knows no others, PostgreSQL does so in collation C
    folded = func.lower(name if dialect == "sqlite" else collate(name, "C"))
    return folded.like(pattern(part), escape=_ESCAPE)


def contains_sql(dialect: str, name: str, parameter: str) -> str:
    """The same as SQL text, with the pattern bound as ``parameter``."""
    collated = name if dialect == "sqlite" else f'{name} COLLATE "C"'
    return f"lower({collated}) LIKE :{parameter} ESCAPE '{_ESCAPE}'"


WHOLE: Final = "="
"""In front of an id that is asked for: the whole id, and not a part of one."""


def id_contains(dialect: str, column: ColumnElement[Any], asked: str) -> ColumnElement[bool]:
    """The id in ``column`` contains what is asked for, or is it, where ``WHOLE`` stands in front."""
    return column == asked[len(WHOLE) :] if asked.startswith(WHOLE) else contains(dialect, column, asked)


def with_ids(dialect: str, chosen: Select[Any], org: str, user: str) -> Select[Any]:
    """Those rows whose ``org_id`` and ``user_id`` contain what is asked for, if anything is."""
    ids = ((chosen.selected_columns.org_id, org), (chosen.selected_columns.user_id, user))
    return chosen.where(*(id_contains(dialect, column, asked) for column, asked in ids if asked))


def id_sql(dialect: str, name: str, parameter: str, asked: str) -> str:
    """The same in words, for a statement to which ``id_value`` is bound as ``parameter``."""
    return f"{name} = :{parameter}" if asked.startswith(WHOLE) else contains_sql(dialect, name, parameter)


def id_value(asked: str) -> str:
    """What is bound to ``id_sql``."""
    return asked[len(WHOLE) :] if asked.startswith(WHOLE) else pattern(asked)
