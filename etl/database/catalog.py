"""What a database says about its own schema, and how two schemas differ."""

from __future__ import annotations

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
    for kind, query in _queries().items():
        rows = connection.execute(text(query), {"schema": schema, "partitions": partitions})
        for table, name, definition in rows:
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

_PARTS: Final = """
    SELECT c.relname, {part} FROM pg_class c {joined}
    WHERE c.relnamespace = :schema AND c.relkind IN ({kinds}) AND c.relispartition = :partitions
    AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')
"""
_COLUMN: Final = """
    a.attname, format('%s %s required=%s default=%s identity=%s', format_type(a.atttypid, a.atttypmod), o.collname,
    a.attnotnull, pg_get_expr(e.adbin, e.adrelid), a.attidentity)
"""
_COLUMNS: Final = """
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN pg_collation o ON o.oid = a.attcollation
    LEFT JOIN pg_attrdef e ON e.adrelid = c.oid AND e.adnum = a.attnum
"""
_INDEX: Final = "x.relname, format('%s valid=%s', pg_get_indexdef(i.indexrelid), i.indisvalid)"
_INDEXES: Final = """
    JOIN pg_index i ON i.indrelid = c.oid JOIN pg_class x ON x.oid = i.indexrelid
    AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.indexrelid AND k.conrelid = c.oid)
"""
_CONSTRAINTS: Final = "JOIN pg_constraint k ON k.conrelid = c.oid AND k.contype <> 'n'"
_TRIGGER: Final = """
    g.tgname, format('%s enabled=%s definer=%s: %s', pg_get_triggerdef(g.oid), g.tgenabled, p.prosecdef, p.prosrc)
"""
_TRIGGERS: Final = """
    JOIN pg_trigger g ON g.tgrelid = c.oid AND (NOT g.tgisinternal OR g.tgparentid <> 0)
    JOIN pg_proc p ON p.oid = g.tgfoid
"""
_TABLE: Final = """
    '', format('row security=%s forced=%s unlogged=%s', c.relrowsecurity, c.relforcerowsecurity, c.relpersistence = 'u')
"""
_VIEW: Final = "'', CASE c.relkind WHEN 'm' THEN 'materialized ' ELSE '' END || pg_get_viewdef(c.oid)"
_HEIR: Final = "format('%s.%s', n.nspname, h.relname), ''"
_HEIRS: Final = """
    JOIN pg_inherits i ON i.inhparent = c.oid
    JOIN pg_class h ON h.oid = i.inhrelid AND h.relkind <> 'I' AND NOT h.relispartition
    JOIN pg_namespace n ON n.oid = h.relnamespace
"""
"""Tables in any schema whose rows are read as rows of the table."""
_POLICY: Final = """
    p.polname, format('%s permissive=%s roles=%s using=%s check=%s', p.polcmd, p.polpermissive, p.polroles,
    pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid))
"""
_RULE: Final = "r.rulename, format('%s enabled=%s', pg_get_ruledef(r.oid), r.ev_enabled)"
_RULES: Final = "JOIN pg_rewrite r ON r.ev_class = c.oid AND r.rulename <> '_RETURN'"


def _parts(part: str, joined: str = "", kinds: str = "'r', 'p'") -> str:
    return _PARTS.format(part=part, joined=joined, kinds=kinds)


def _queries() -> dict[str, str]:
    """Kind -> a query for (table, name in it, definition)."""
    return {
        "table": _parts(_TABLE),
        "heir": _parts(_HEIR, _HEIRS),
        "policy": _parts(_POLICY, "JOIN pg_policy p ON p.polrelid = c.oid"),
        "view": _parts(_VIEW, kinds="'v', 'm'"),
        "option": _parts("o, ''", "CROSS JOIN unnest(c.reloptions) o", kinds="'v', 'm'"),
        "column": _parts(_COLUMN, _COLUMNS),
        "index": _parts(_INDEX, _INDEXES),
        "constraint": _parts("k.conname, pg_get_constraintdef(k.oid)", _CONSTRAINTS),
        "trigger": _parts(_TRIGGER, _TRIGGERS, kinds="'r', 'p', 'v'"),
        "rule": _parts(_RULE, _RULES, kinds="'r', 'p', 'v'"),
    }


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
