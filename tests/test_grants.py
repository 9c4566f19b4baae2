"""The roles that `flowtrail db grants` prints: what each may do on PostgreSQL, and what it is refused."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from postgres import Server

from etl.database import connect, grants, upgrade
from etl.errors import UsageError

OWNER, WRITER, READER = "grant_owner", "grant_writer", "grant_reader"
REWRITES = (
    "UPDATE change_set SET hash = hash",
    "DELETE FROM workflow_change",
    "TRUNCATE change_set, workflow_change",
    "ALTER TABLE change_set DISABLE TRIGGER ALL",
    "DROP TRIGGER change_set_no_change ON change_set",
    "DROP TABLE workflow_change",
    "CREATE TABLE mine (id int)",
    "DROP FUNCTION flowtrail_append_only CASCADE",
)


@pytest.fixture(scope="module")
def conninfo(postgres: Server) -> Iterator[str]:
    """A database with a target and a version, and the three roles."""
    with psycopg.connect(postgres.conninfo("postgres"), autocommit=True) as admin:
        admin.execute("CREATE DATABASE granted")
    engine = connect(postgres.url("granted"))
    upgrade(engine)
    engine.dispose()
    with psycopg.connect(postgres.conninfo("granted"), autocommit=True) as admin:
        for _ in range(2):  # once more after every upgrade: it must be repeatable
            for statement in grants(OWNER, WRITER, READER):
                admin.execute(statement)
    yield postgres.conninfo("granted")
    with psycopg.connect(postgres.conninfo("postgres"), autocommit=True) as admin:
        admin.execute("DROP DATABASE granted WITH (FORCE)")
        for role in (OWNER, WRITER, READER):
            admin.execute(f"DROP ROLE {role}")


def as_role(conninfo: str, role: str, *statements: str) -> None:
    with psycopg.connect(conninfo) as connection:
        connection.execute(f"SET ROLE {role}")
        for statement in statements:
            connection.execute(statement)
        connection.rollback()


@pytest.mark.parametrize("role", [WRITER, READER])
@pytest.mark.parametrize("statement", REWRITES)
def test_neither_writer_nor_reader_can_rewrite_the_trail(conninfo: str, role: str, statement: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        as_role(conninfo, role, statement)


@pytest.mark.parametrize("statement", REWRITES[:3])
def test_even_the_owner_is_stopped_by_the_triggers(conninfo: str, statement: str) -> None:
    trail = (
        "INSERT INTO target (org_id, user_id) VALUES ('o', 'u')",
        "INSERT INTO change_set (target_id, version, run_id, kind, observed_at, state_digest, parent_hash, hash) "
        "SELECT max(id), 1, 1, 'baseline', now(), repeat('0', 64), repeat('0', 64), repeat('1', 64) FROM target",
        "INSERT INTO workflow_change (change_set_id, flow_id, kind) SELECT max(id), '1', 'baseline' FROM change_set",
    )
    with pytest.raises(psycopg.errors.IntegrityConstraintViolation):
        as_role(conninfo, OWNER, *trail, statement)


def test_the_writer_can_do_all_that_a_sync_does(conninfo: str) -> None:
    as_role(
        conninfo,
        WRITER,
        "INSERT INTO target (org_id, user_id) VALUES ('o', 'u')",
        "SELECT id FROM target ORDER BY id FOR UPDATE",
        "INSERT INTO change_set (target_id, version, run_id, kind, observed_at, state_digest, parent_hash, hash) "
        "SELECT max(id), 1, 1, 'baseline', now(), repeat('0', 64), repeat('0', 64), repeat('1', 64) FROM target",
        "INSERT INTO workflow_change (change_set_id, flow_id, kind) SELECT max(id), '1', 'baseline' FROM change_set",
        "INSERT INTO workflow (target_id, flow_id, first_seen_at, changed_at) VALUES (1, '1', now(), now())",
        "DELETE FROM workflow",
        "INSERT INTO lease VALUES ('service', 'me', now())",
        "SELECT * FROM alembic_version",
    )


@pytest.mark.parametrize("table", ["target", "workflow", "change_set", "sync_run", "lease"])
def test_the_reader_reads_every_view_and_writes_nothing(conninfo: str, table: str) -> None:
    as_role(conninfo, READER, f"SELECT * FROM {table}", "SELECT * FROM current_workflow", "SELECT * FROM org_workflow")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        as_role(conninfo, READER, f"INSERT INTO {table} DEFAULT VALUES")


def test_a_name_that_could_carry_sql_is_refused() -> None:
    with pytest.raises(UsageError, match="letters, digits and underscores"):
        list(grants("owner'; DROP TABLE target; --", WRITER, READER))
