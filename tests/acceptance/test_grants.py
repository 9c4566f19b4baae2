"""The roles that `flowtrail db grants` prints: the rights of each on PostgreSQL, and their limits."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterator
from typing import NamedTuple

import psycopg
import pytest
from click.testing import CliRunner

from etl.cli import app
from etl.database import connect, grants, upgrade
from etl.schema import metadata
from etl.signing import generate_key
from tests.support import postgres as local_postgres
from tests.support.authority import Authority, served
from tests.support.builders import dump, numbered
from tests.support.enos import LocalGateway
from tests.support.postgres import Server
from tests.support.program import ANN, ORG, SECRET, Program

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
        "INSERT INTO change_set (target_id, version, run_id, kind, observed_at, asked_at, state_digest, data_hash, "
        "format, parent_hash, hash) SELECT max(id), 1, 1, 'baseline', now(), now(), d, d, 1, d, repeat('1', 64) "
        "FROM target, repeat('0', 64) d GROUP BY d",
        "INSERT INTO workflow_change (change_set_id, flow_id, kind) SELECT max(id), '1', 'baseline' FROM change_set",
    )
    with pytest.raises(psycopg.errors.IntegrityConstraintViolation):
        as_role(conninfo, OWNER, *trail, statement)


@pytest.mark.parametrize("table", [*sorted(metadata.tables), "list_workflow", "org_workflow"])
def test_the_writer_may_change_all_but_the_trail_and_the_reader_only_reads(conninfo: str, table: str) -> None:
    rights = (
        "SELECT privilege_type FROM pg_class, aclexplode(relacl) "
        "WHERE oid = %s::regclass AND grantee = %s::regrole ORDER BY 1"
    )
    protecting = "SELECT count(*) FROM pg_trigger WHERE tgrelid = %s::regclass AND NOT tgisinternal"
    with psycopg.connect(conninfo) as connection:
        writers, readers = (
            [right for (right,) in connection.execute(rights, (table, role))] for role in (WRITER, READER)
        )
        is_trail = connection.execute(protecting, (table,)).fetchone() != (0,)
    assert readers == ["SELECT"]
    if table in metadata.tables:
        assert writers == (["INSERT", "SELECT"] if is_trail else ["DELETE", "INSERT", "SELECT", "UPDATE"])


PARTITION = 5_000_000
"""Change sets to a partition of the trail."""
DAY = (
    "sync",
    "status",
    "plan",
    "changes",
    "flows --as-of 2100-01-01",
    "export changes",
    "prune --keep 1d",
    "check",
    "db check",
    "verify --answers --public-key seal.pem.pub --tsa tsa/ca.pem",
    f"answer {ORG} {ANN}",
    "seal timestamp",
    "seal list",
    "coverage",
    "audit -o bundle.zip --force",
)
OWNER_OF_DAY, WRITER_OF_DAY, READER_OF_DAY = "day_owner", "day_writer", "day_reader"


class Days(NamedTuple):
    """The program, and PostgreSQL's own tools, as one role or another."""

    server: Server
    program: Program
    stamps: str
    """Where time stamps come from, as a setting."""

    def admin(self, *statements: str, database: str = "postgres") -> None:
        with psycopg.connect(self.server.conninfo(database), autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)

    def work_as(self, role: str, database: str) -> None:
        self.program.database_url = self.server.url(database).replace("//postgres@", f"//{role}@")
        self.program.configure(rest=f'[archive]\nanswers = "changed"\n[seal]\nkey_file = "seal.pem"\n{self.stamps}')

    def does(self, command: str, exits: int = 0) -> str:
        done = CliRunner().invoke(app, shlex.split(command))
        assert done.exit_code == exits, (command, done.output, done.exception)
        return done.stdout

    def contents(self) -> object:
        engine = connect(self.program.database_url)
        try:
            return dump(engine)
        finally:
            engine.dispose()

    def runs(self, line: str) -> None:
        tools = next(self.server.folder.glob("wheel/*/pginstall*/bin"), local_postgres._installed() / "bin")
        path = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
        done = subprocess.run(line, shell=True, cwd=self.program.folder, env=path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.fixture
def days(postgres: Server, flowtrail: Program, monkeypatch: pytest.MonkeyPatch) -> Iterator[Days]:
    """A database whose roles may do what `flowtrail db grants` says, and the service's role at work."""
    monkeypatch.chdir(flowtrail.folder)
    monkeypatch.setenv("FLOWTRAIL_GATEWAY__SECRET_KEY", SECRET)
    generate_key(flowtrail.folder / "seal.pem")
    roles = (OWNER_OF_DAY, WRITER_OF_DAY, READER_OF_DAY)
    with served(Authority(flowtrail.folder / "tsa").answer) as authority:
        days = Days(postgres, flowtrail, f'timestamp_url = "{authority}"')
        days.admin("CREATE DATABASE day")
        days.work_as("postgres", "day")
        days.does("db upgrade")
        days.admin(*grants(*roles), database="day")
        days.admin(f"ALTER ROLE {WRITER_OF_DAY} LOGIN", f"ALTER ROLE {READER_OF_DAY} LOGIN")
        days.work_as(WRITER_OF_DAY, "day")
        yield days
        days.admin("DROP DATABASE IF EXISTS day_restored WITH (FORCE)", "DROP DATABASE day WITH (FORCE)")
        days.admin(f"DROP ROLE {', '.join(roles)}")


def test_the_role_of_the_service_suffices_for_its_work_and_a_backup(days: Days, gateway: LocalGateway) -> None:
    """With a partition created meanwhile; restoring it needs the right to create a database."""
    gateway.world.set_flows(ORG, ANN, numbered(1, 30))
    days.does("sync")
    days.admin(f"ALTER SEQUENCE change_set_id_seq RESTART WITH {PARTITION}", database="day")
    gateway.world.set_flows(ORG, ANN, numbered(2, 32))
    for command in DAY:
        days.does(command)
    gateway.world.set_flows(ORG, ANN, numbered(20, 32))
    days.does("sync", 1)
    days.does(f"guard approve {ORG} {ANN} --expect any --by somebody")
    before = days.contents()

    make, restore = CliRunner().invoke(app, ["backup", "day.dump"]).stdout.splitlines()
    days.runs(make)
    days.admin(f"ALTER ROLE {WRITER_OF_DAY} CREATEDB")
    days.runs(restore.replace("NEW", "day_restored"))
    days.work_as(WRITER_OF_DAY, "day_restored")
    assert days.contents() == before
    for command in DAY:
        days.does(command)


def test_the_reader_may_prove_the_trail_and_make_a_backup_too(days: Days) -> None:
    days.does("sync")
    days.work_as(READER_OF_DAY, "day")
    for command in ("verify --answers --public-key seal.pem.pub", "coverage", "audit -o bundle.zip", "seal list"):
        days.does(command)
    days.runs(CliRunner().invoke(app, ["backup", "day.dump"]).stdout.splitlines()[0])
