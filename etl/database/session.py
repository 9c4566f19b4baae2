"""The session settings that we need on PostgreSQL, whatever defaults the server, the database and the role have.

Nothing is set for longer than a transaction: behind a pooler the next transaction may have another session, and a
stranger would get ours with its settings. So each BEGIN sends the settings along, in the same message.
"""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

from sqlalchemy import URL

from etl.errors import DatabaseError

WRITE: Final = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"
"""Each statement sees what was committed before it: after waiting for a lock, it must see what its holder wrote."""
READ: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
"""All statements see the same moment."""
TRY: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ READ WRITE"
"""The same, for a transaction that writes and is rolled back."""

_NEEDED: Final = {
    "client_encoding": "UTF8",
    "datestyle": "ISO, YMD",
    "intervalstyle": "postgres",
    "timezone": "UTC",
    "standard_conforming_strings": "on",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "array_nulls": "on",
    "transform_null_equals": "off",
    "quote_all_identifiers": "off",
    "row_security": "off",
    "exit_on_error": "off",
}
"""How values are written and read. A policy that would hide rows must be an error, not a shorter list, and an error of
one statement must not look like a lost connection."""
_PATIENCE: Final = {
    "lock_timeout": "60s",
    "idle_in_transaction_session_timeout": "10min",
    "statement_timeout": "0",
    "transaction_timeout": "0",
}
"""Timeouts, unless ``options`` in the URL sets them: those of a role are meant for people."""
_SINCE: Final = {"transaction_timeout": 170_000}
_DURABLE: Final = (
    "pg_catalog.set_config('synchronous_commit', "
    "coalesce(nullif(pg_catalog.current_setting('synchronous_commit'), 'off'), 'on'), true)"
)
"""What is reported as committed must survive a crash; a stricter setting is left as it is."""
_TRIGGERS: Final = (
    "CASE WHEN pg_catalog.current_setting('session_replication_role') <> 'origin' "
    "THEN pg_catalog.set_config('session_replication_role', 'origin', true) END"
)
"""Only a superuser may set it, so it is left alone if it is right."""
_OPTION: Final = re.compile(r"(?:-c\s*|--)([A-Za-z_.\-]+)\s*=")
"""Finds the parameters that ``options`` in the URL sets."""

_LOOK: Final = """
    SELECT pg_catalog.pg_backend_pid(),
           pg_catalog.current_setting('server_encoding'),
           pg_catalog.current_setting('session_replication_role') <> 'origin'
               AND pg_catalog.current_setting('is_superuser') = 'off',
           coalesce(
               (SELECT pg_catalog.quote_ident(n.nspname)
                FROM pg_catalog.unnest(pg_catalog.current_schemas(false)) WITH ORDINALITY AS path (name, place)
                JOIN pg_catalog.pg_namespace n ON n.nspname = path.name
                WHERE 3 = (SELECT pg_catalog.count(*) FROM pg_catalog.pg_class c
                           WHERE c.relnamespace = n.oid
                             AND c.relname IN ('alembic_version', 'change_set', 'workflow_change'))
                ORDER BY path.place LIMIT 1),
               pg_catalog.quote_ident(pg_catalog.current_schema()))"""


class Session(NamedTuple):
    """What a new connection leads to."""

    settings: str
    """The statement that follows each BEGIN."""
    pooled: bool
    """Whether a pooler is in between; it has its own process ids."""


def inspect(connection: Any, url: URL, name: str) -> Session:
    """Inspect a new psycopg connection. Raises DatabaseError if Flowtrail cannot work with what it leads to."""
    process, encoding, without_triggers, schema = connection.execute(_LOOK).fetchone()
    if encoding != "UTF8":
        raise DatabaseError(
            f"The database {name} is encoded in {encoding}, and Flowtrail needs UTF8: "
            "make another one with `createdb --encoding=UTF8 --template=template0 NAME`."
        )
    if without_triggers:
        raise DatabaseError(
            f"The role of {name} has session_replication_role set, which switches triggers off, and may not set it "
            "back: run `ALTER ROLE ... RESET session_replication_role` as a superuser."
        )
    if schema is None:
        raise DatabaseError(
            f"The search_path of the role of {name} has no existing schema: "
            "run `ALTER ROLE ... SET search_path = SCHEMA`, with a schema that exists and that the role may use."
        )
    return Session(_settings(connection, url, schema), process != connection.info.backend_pid)


def _settings(connection: Any, url: URL, schema: str) -> str:
    from psycopg.sql import Literal

    given = {name.replace("-", "_").lower() for name in _OPTION.findall(str(url.query.get("options", "")))}
    left_alone = given | {name for name, since in _SINCE.items() if connection.info.server_version < since}
    wanted = _NEEDED | {name: value for name, value in _PATIENCE.items() if name not in left_alone}
    wanted["search_path"] = f"{schema}, pg_temp"
    each = [f"'{name}', {Literal(value).as_string(connection)}, true" for name, value in wanted.items()]
    return f"SELECT {', '.join([*(f'pg_catalog.set_config({it})' for it in each), _DURABLE, _TRIGGERS])}"
