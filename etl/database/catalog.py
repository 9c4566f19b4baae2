"""What a database says about its own schema, and how two schemas differ."""

from __future__ import annotations

from importlib.resources import files
from typing import Final, NamedTuple

from sqlalchemy import Connection, text


class SchemaPart(NamedTuple):
    """One part of a schema: a table, a view, or something that belongs to a table."""

    kind: str
    table: str
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.table}{'.' if self.name else ''}{self.name}"


Catalog = dict[SchemaPart, str]
"""Every part, and its definition."""


def of_sqlite(connection: Connection) -> Catalog:
    """The whole database."""
    found: Catalog = {}
    for kind, table, name, sql in connection.exec_driver_sql(_SQLITE_OBJECTS).all():
        found[SchemaPart(kind, table, "" if name == table else name)] = sql or ""
        if kind == "table":
            found |= _columns_of_sqlite(connection, table)
    return found


_SQLITE_OBJECTS: Final = """
    SELECT type, tbl_name, name, sql FROM sqlite_master
    WHERE NOT (type = 'table' AND name IN ('sqlite_sequence', 'sqlite_stat1', 'sqlite_stat4'))
    AND NOT (type = 'index' AND sql IS NULL AND name GLOB 'sqlite_autoindex_*')
"""
"""Without what SQLite makes itself. The texts are compared as they are: a line end closes a comment."""


def _columns_of_sqlite(connection: Connection, table: str) -> Catalog:
    rows = connection.execute(text("SELECT * FROM pragma_table_xinfo(:table)"), {"table": table})
    return {
        SchemaPart("column", table, column.name): f"{column.type} required={column.notnull} default={column.dflt_value}"
        for column in rows
    }


def of_postgresql(connection: Connection) -> Catalog:
    """The schema in which the search path finds ``alembic_version``, without partitions; only it stays on the path."""
    return _of_postgresql(connection, partitions=False)


def partitions(connection: Connection) -> dict[str, Catalog]:
    """Each partition of that schema by name, defined as in ``of_postgresql``, with ``*`` in place of the name."""
    found: dict[str, Catalog] = {}
    for part, definition in _of_postgresql(connection, partitions=True).items():
        anonymous = SchemaPart(part.kind, "*", part.name.replace(part.table, "*"))
        found.setdefault(part.table, {})[anonymous] = definition.replace(part.table, "*")
    return found


def _of_postgresql(connection: Connection, *, partitions: bool) -> Catalog:
    schema, quoted = connection.execute(text(_POSTGRESQL_SCHEMA)).one()
    connection.execute(text("SELECT set_config('search_path', :path, true)"), {"path": quoted})
    found: Catalog = {}
    parts = (files("etl.database") / "catalog.sql").read_text("utf-8")
    for kind, table, name, definition in connection.execute(text(parts), {"schema": schema, "partitions": partitions}):
        found[SchemaPart(kind, table, name)] = _without_schema(definition, table, quoted)
    return found


def _without_schema(definition: str, table: str, quoted: str) -> str:
    """A definition without the schema in front of its own table and of Flowtrail's functions. Any other schema stays:
    PostgreSQL writes one only where the bare name would mean something else, such as a user-defined ``max``."""
    for schema in (quoted, "pg_temp"):
        for ours in (table, "flowtrail_"):
            definition = definition.replace(f" {schema}.{ours}", f" {ours}")
    return definition


_POSTGRESQL_SCHEMA: Final = """
    SELECT n.oid, quote_ident(n.nspname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.oid = to_regclass('alembic_version')
"""

_BOUNDS: Final = r"""
    SELECT CAST(substring(bounds FROM $$FROM \('(\d+)'\)$$) AS bigint),
           CAST(substring(bounds FROM $$TO \('(\d+)'\)$$) AS bigint)
    FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid, pg_get_expr(c.relpartbound, c.oid) AS bounds
    WHERE inhparent = to_regclass('workflow_change') ORDER BY 2
"""


def gaps(connection: Connection) -> list[str]:
    """Where ``workflow_change`` lacks a partition up to the next change set; call it after ``of_postgresql``."""
    reached, found = None, []
    for lower, upper in connection.execute(text(_BOUNDS)):
        if lower != reached:
            found.append(f"the partitions of workflow_change lack the change sets from {reached or 0} to {lower - 1}")
        reached = upper
    following = connection.scalar(text("SELECT coalesce(max(id), 0) + 1 FROM change_set"))
    if reached is None or reached <= following:
        found.append(f"workflow_change has no partition for the next change set, {following}")
    return found


def reworded(connection: Connection, expected: Catalog, live: Catalog) -> Catalog:
    """``expected`` with the views as a restore makes them: PostgreSQL rewrites a view's text when it reads it back.

    For the connection on which ``expected`` was read, whose search path still leads to its tables.
    """
    views = [part for part in expected if part.kind == "view" and expected[part] != live.get(part, expected[part])]
    found = dict(expected)
    for part in views:
        connection.exec_driver_sql(f"CREATE TEMPORARY VIEW reworded AS {expected[part].replace('%', '%%')}")
        again = connection.exec_driver_sql("SELECT pg_get_viewdef('pg_temp.reworded'::regclass)").scalar_one()
        connection.exec_driver_sql("DROP VIEW pg_temp.reworded")
        if again == live[part]:
            found[part] = again
    return found


def differences(expected: Catalog, live: Catalog) -> list[str]:
    """A line for each part that is missing, altered or extra; a whole table stands for its parts."""
    missing, extra = expected.keys() - live.keys(), live.keys() - expected.keys()
    whole = {part.table for part in missing | extra if not part.name}
    altered = {part for part in expected.keys() & live.keys() if expected[part] != live[part]}
    by_column = {part.table for part in missing | extra | altered if part.kind == "column"}
    return [
        *(f"{part} is missing" for part in sorted(missing) if not part.name or part.table not in whole),
        *(f"{part} is not Flowtrail's" for part in sorted(extra) if not part.name or part.table not in whole),
        *(f"{part} was altered" for part in sorted(altered) if part.name or part.table not in by_column),
    ]
