"""Unusual sessions of PostgreSQL: a role whose defaults are all hostile to the program."""

from __future__ import annotations

from typing import Protocol

import psycopg

from tests.support import postgres

DIRECT, HOSTILE_ROLE, POOLED = "postgresql", "hostile", "pooled"
ON_POSTGRESQL = (DIRECT, HOSTILE_ROLE, POOLED)
"""How a test may connect to PostgreSQL (the fixture ``dialect``): as a superuser, as a role with hostile defaults,
and as that role through PgBouncer in transaction mode."""

ROLE = "hostile"
HOSTILE = {
    "default_transaction_isolation": "repeatable read",
    "default_transaction_read_only": "on",
    "default_transaction_deferrable": "on",
    "client_encoding": "LATIN1",
    "datestyle": "SQL, DMY",
    "intervalstyle": "sql_standard",
    "timezone": "Asia/Kathmandu",
    "standard_conforming_strings": "off",
    "backslash_quote": "off",
    "bytea_output": "escape",
    "extra_float_digits": "-15",
    "array_nulls": "off",
    "transform_null_equals": "on",
    "quote_all_identifiers": "on",
    "search_path": "decoy, public",
    "lock_timeout": "1ms",
    "statement_timeout": "1s",
    "transaction_timeout": "1s",
    "idle_in_transaction_session_timeout": "1ms",
    "synchronous_commit": "off",
    "row_security": "on",
    "check_function_bodies": "off",
    "plan_cache_mode": "force_generic_plan",
    "exit_on_error": "on",
    "timezone_abbreviations": "India",
    "plpgsql.extra_errors": "all",
}
"""Settings that any role may have."""
DECOYS = """
    CREATE SCHEMA decoy;
    CREATE TABLE decoy.alembic_version (version_num text);
    INSERT INTO decoy.alembic_version VALUES ('of another program');
    CREATE TABLE decoy.target (another int);
    CREATE TABLE decoy.workflow (another int);
    CREATE TABLE decoy.observation (another int);
    CREATE TABLE decoy.sync_run (another int);
    CREATE TABLE decoy.lease (another int);
    GRANT ALL ON SCHEMA decoy TO PUBLIC;
"""
"""Another program's tables with the same names."""


def make_role(conninfo: str, name: str = ROLE, **defaults: str) -> None:
    """Create or alter a role with these defaults, or with every hostile one. It may do everything that does not need a
    superuser's own session."""
    with psycopg.connect(conninfo, autocommit=True) as admin:
        if admin.execute("SELECT FROM pg_roles WHERE rolname = %s", [name]).fetchone() is None:
            admin.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{name}' IN ROLE {postgres.SUPERUSER}")
        admin.execute(f"ALTER ROLE {name} RESET ALL")
        for parameter, value in (defaults or HOSTILE).items():
            admin.execute(f"ALTER ROLE {name} SET {parameter} = {_quoted(parameter, value)}")


def _quoted(parameter: str, value: str) -> str:
    """The value as SQL; a search path is a list of names."""
    return value if parameter == "search_path" else f"'{value}'"


class Way(Protocol):
    """A server, or a pooler in front of it."""

    def url(self, database: str) -> str:
        """Over the socket, as the superuser."""
        ...


def url_for(server: Way, database: str, role: str = ROLE, pooler: Way | None = None) -> str:
    """The URL with which ``role`` connects to a database, through a pooler or directly."""
    return (pooler or server).url(database).replace(f"//{postgres.SUPERUSER}@", f"//{role}@")
