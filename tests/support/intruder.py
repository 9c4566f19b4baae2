"""Somebody with every right in a database: no trigger, check or foreign key is in the way."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any, Self

from sqlalchemy import Column, Engine, create_engine, text

from etl.schema import metadata

PROVEN = ("change_set", "workflow_change", "observation", "workflow", "target")
"""The tables of which a replay proves the rows."""
Row = dict[str, Any]


def tamper(engine: Engine, statements: str) -> None:
    """Send statements, which semicolons separate, as an intruder."""
    with Intruder(engine) as intruder:
        for statement in statements.split(";"):
            intruder.run(statement)


class Intruder:
    """A foreign connection with every right, for which no trigger, check or foreign key is in the way."""

    def __init__(self, engine: Engine) -> None:
        self._engine = create_engine(engine.url, isolation_level="AUTOCOMMIT")
        self._connection = self._engine.connect()
        self.on_sqlite = engine.dialect.name == "sqlite"
        for statement in self._disarming():
            self.run(statement)

    def run(self, statement: str, **values: Any) -> list[Row]:
        result = self._connection.execute(text(statement), values)
        return [dict(row) for row in result.mappings()] if result.returns_rows else []

    def rows(self, table: str) -> list[Row]:
        return self.run(f"SELECT * FROM {table} ORDER BY {', '.join(_keys(table))}")

    def set(self, table: str, row: Mapping[str, Any], **values: Any) -> Row:
        """Set columns of one row; return the row as it is then."""
        assigned = ", ".join(f"{column} = :{column}" for column in values)
        where, keys = _where(table, row)
        self.run(f"UPDATE {table} SET {assigned} WHERE {where}", **values, **keys)
        return {**row, **values}

    def delete(self, table: str, row: Mapping[str, Any]) -> None:
        where, keys = _where(table, row)
        self.run(f"DELETE FROM {table} WHERE {where}", **keys)

    def insert(self, table: str, row: Mapping[str, Any]) -> None:
        names = ", ".join(row)
        values = ", ".join(f":{name}" for name in row)
        self.run(f"INSERT INTO {table} ({names}) VALUES ({values})", **row)

    def save(self) -> dict[str, list[Row]]:
        return {table: self.rows(table) for table in PROVEN}

    def restore(self, saved: Mapping[str, list[Row]]) -> None:
        """Put the tables back to where they were, as a restored backup would."""
        for table in PROVEN:
            self.run(f"DELETE FROM {table}")
            for row in saved[table]:
                self.insert(table, row)

    def different(self, column: Column[Any], value: Any) -> Any:
        """A slightly different value that the column may hold."""
        kind = type(column.type).__name__
        if column.name == "kind":
            return {"delta": "baseline", "removed": "added"}.get(value, "removed")
        if kind == "Boolean":
            return not value
        if kind == "UtcTime":
            moment = dt.datetime(2026, 3, 1, tzinfo=dt.UTC) if value is None else dt.datetime.fromisoformat(str(value))
            return self.time(moment + dt.timedelta(microseconds=1))
        if "Integer" in kind:
            return (value or 0) + (1000 if column.name in {"id", "version"} or column.name.endswith("_id") else 1)
        if isinstance(value, bytes):
            return value[:-1] + bytes([value[-1] ^ 1])
        if value is not None and len(value) == 64:
            return value[:-1] + ("0" if value[-1] != "0" else "1")
        return (value or "") + "x"

    def time(self, moment: dt.datetime) -> Any:
        return moment.replace(tzinfo=None).isoformat(" ", "microseconds") if self.on_sqlite else moment

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._engine.dispose()

    def _disarming(self) -> list[str]:
        if self.on_sqlite:
            triggers = self.run("SELECT name FROM sqlite_master WHERE type = 'trigger'")
            lax = "replace(replace(sql, 'ROWID,', 'ROWID'), 'STRICT', '')"
            any_type = [f"UPDATE sqlite_master SET sql = {lax} WHERE type = 'table'", "PRAGMA writable_schema = RESET"]
            pragmas = [
                "PRAGMA ignore_check_constraints = ON",
                "PRAGMA synchronous = OFF",
                "PRAGMA writable_schema = ON",
            ]
            return pragmas + any_type + [f"DROP TRIGGER {trigger['name']}" for trigger in triggers]
        constraints = self.run(
            "SELECT conrelid::regclass AS owner, conname FROM pg_constraint WHERE contype IN ('c', 'f')"
            " AND conrelid > 0 AND coninhcount = 0 AND connamespace = current_schema()::regnamespace"
        )
        dropped = [f"ALTER TABLE {row['owner']} DROP CONSTRAINT {row['conname']}" for row in constraints]
        return dropped + [
            f"ALTER TABLE {table} DISABLE TRIGGER ALL" for table in (*PROVEN, "run_seal", "acknowledgement")
        ]


def _keys(table: str) -> list[str]:
    return [key.name for key in metadata.tables[table].primary_key]


def _where(table: str, row: Mapping[str, Any]) -> tuple[str, Row]:
    return (
        " AND ".join(f"{key} = :its_{key}" for key in _keys(table)),
        {f"its_{key}": row[key] for key in _keys(table)},
    )
