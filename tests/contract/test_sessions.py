"""A session of PostgreSQL is what the program needs it to be, or is refused in a sentence: whatever the server, the
database and the role have as defaults, and whatever pooler stands between."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from sqlalchemy import Engine, make_url, text

from etl.cli import app
from etl.database import check, reading, upgrade, writing
from etl.domain.model import Flow
from etl.errors import DatabaseError, DatabaseUnreachable
from tests.support import sessions
from tests.support.builders import START, Diary, numbered
from tests.support.databases import Connect
from tests.support.enos import LocalGateway
from tests.support.pooler import Pooler
from tests.support.postgres import Server
from tests.support.program import ANN, ORG, SECRET, Program
from tests.support.sessions import DIRECT, HOSTILE_ROLE, ON_POSTGRESQL, POOLED

on_postgresql = pytest.mark.parametrize("dialect", [DIRECT])
WANTED = {
    "client_encoding": "UTF8",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "standard_conforming_strings": "on",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "array_nulls": "on",
    "transform_null_equals": "off",
    "quote_all_identifiers": "off",
    "row_security": "off",
    "exit_on_error": "off",
    "lock_timeout": "1min",
    "statement_timeout": "0",
    "transaction_timeout": "0",
    "idle_in_transaction_session_timeout": "10min",
    "synchronous_commit": "on",
    "session_replication_role": "origin",
    "search_path": "public, pg_temp",
}
_numbers = itertools.count(1)


@pytest.fixture
def role(postgres: Server) -> Callable[..., str]:
    """Makes a role with these defaults; its name. A superuser, if ``superuser``."""

    def role(*, superuser: bool = False, **defaults: str) -> str:
        name = f"own_{next(_numbers)}"
        sessions.make_role(postgres.conninfo("postgres"), name, **defaults)
        if superuser:
            admin(postgres, "postgres", f"ALTER ROLE {name} SUPERUSER")
        return name

    return role


def admin(server: Server, database: str, *statements: str) -> None:
    with psycopg.connect(server.conninfo(database), autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def as_role(url: str, role: str, **options: str) -> str:
    return make_url(url).set(username=role).update_query_dict(options).render_as_string(hide_password=False)


def shown(connection: Any) -> dict[str, str]:
    found = {name: connection.exec_driver_sql(f"SHOW {name}").scalar() for name in WANTED}
    return {**found, "search_path": found["search_path"].replace('"public"', "public")}


# ----------------------------------------------------------------------------------------------- what is set


@pytest.mark.parametrize("dialect", [HOSTILE_ROLE, POOLED])
def test_a_transaction_has_what_the_program_needs_whatever_the_role_has_for_defaults(engine: Engine) -> None:
    with writing(engine) as connection:
        assert shown(connection) == WANTED
        assert connection.scalar(text("SHOW transaction_isolation")) == "read committed"
        assert connection.scalar(text("SHOW transaction_read_only")) == "off"
    with reading(engine) as connection:
        assert shown(connection) == WANTED
        assert connection.scalar(text("SHOW transaction_isolation")) == "repeatable read"
        assert connection.scalar(text("SHOW transaction_read_only")) == "on"


@pytest.mark.parametrize("dialect", [HOSTILE_ROLE])
def test_no_setting_leaks_into_the_next_use_of_a_session(engine: Engine) -> None:
    with writing(engine) as connection:
        driver: Any = connection.connection.driver_connection
    assert driver.execute("SHOW lock_timeout").fetchone() == ("1ms",)
    assert driver.execute("SHOW search_path").fetchone() == ("decoy, public",)
    engine.dispose()


@on_postgresql
def test_the_program_sets_the_timeouts_unless_the_url_does(database_url: str, connected: Connect) -> None:
    engine = connected(database_url + "&application_name=mine&options=-c%20lock_timeout%3D5s%20--statement-timeout=9s")
    with reading(engine) as connection:
        found = shown(connection)
        assert connection.scalar(text("SHOW application_name")) == "mine"
    assert found == {**WANTED, "lock_timeout": "5s", "statement_timeout": "9s"}


@on_postgresql
@pytest.mark.parametrize(("has", "gets"), [("off", "on"), ("on", "on"), ("remote_apply", "remote_apply")])
def test_a_reported_commit_survives_a_crash_and_a_stricter_setting_stays(
    database_url: str, connected: Connect, role: Callable[..., str], has: str, gets: str
) -> None:
    engine = connected(as_role(database_url, role(synchronous_commit=has)))
    with writing(engine) as connection:
        assert connection.scalar(text("SHOW synchronous_commit")) == gets


@on_postgresql
def test_triggers_are_on_or_the_role_is_refused_with_the_remedy(
    database_url: str, connected: Connect, role: Callable[..., str]
) -> None:
    without = {"session_replication_role": "replica"}
    with writing(connected(as_role(database_url, role(superuser=True, **without)))) as connection:
        assert connection.scalar(text("SHOW session_replication_role")) == "origin"
    with pytest.raises(DatabaseError, match="RESET session_replication_role"):
        upgrade(connected(as_role(database_url, role(**without))))


@on_postgresql
def test_a_policy_that_hides_rows_is_an_error_and_no_shorter_list(
    diary: Diary, postgres: Server, connected: Connect, role: Callable[..., str]
) -> None:
    diary.answer(numbered(1, 3), START)
    name = str(diary.engine.url.database)
    admin(postgres, name, "ALTER TABLE workflow ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
    own = connected(as_role(diary.url, role(row_security="on")))
    with pytest.raises(DatabaseError, match="row-level security"), reading(own) as connection:
        connection.execute(text("SELECT count(*) FROM workflow"))


# ------------------------------------------------------------------------------------------------ which schema


@on_postgresql
def test_a_new_schema_is_created_first_in_the_search_path(
    empty_url: str, postgres: Server, connected: Connect, role: Callable[..., str]
) -> None:
    name = str(make_url(empty_url).database)
    admin(postgres, name, """CREATE SCHEMA "o'wn %s \\ schéma" """)
    url = as_role(empty_url, role(search_path="""nowhere, "o'wn %s \\ schéma", public"""))
    engine = connected(url)
    upgrade(engine)
    assert Diary(engine, url).answer(numbered(1, 2), START).verdict == "changed"
    assert check(engine) == []
    with reading(engine) as connection:
        assert connection.scalar(text("SELECT current_schema()")) == "o'wn %s \\ schéma"
        assert connection.scalar(text("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")) == 0


@on_postgresql
def test_tables_of_another_program_in_that_schema_are_left_alone(
    empty_url: str, postgres: Server, connected: Connect, role: Callable[..., str]
) -> None:
    admin(postgres, str(make_url(empty_url).database), sessions.DECOYS, "DROP TABLE decoy.alembic_version")
    with pytest.raises(DatabaseError, match="a schema of its own, the first in the search_path"):
        upgrade(connected(as_role(empty_url, role(search_path="decoy, public"))))


@on_postgresql
def test_a_search_path_that_leads_nowhere_is_refused_with_the_remedy(
    database_url: str, connected: Connect, role: Callable[..., str]
) -> None:
    with pytest.raises(DatabaseError, match=r"ALTER ROLE .* SET search_path"):
        check(connected(as_role(database_url, role(search_path="nowhere"))))


# ------------------------------------------------------------------------------------------ what cannot be set


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
@pytest.mark.parametrize("command", ["db upgrade", "check", "serve", "sync", "status"])
def test_a_database_that_is_not_utf_8_is_refused_before_anything_is_done(
    postgres: Server, flowtrail: Program, monkeypatch: pytest.MonkeyPatch, encoding: str, command: str
) -> None:
    monkeypatch.chdir(flowtrail.folder)
    monkeypatch.setenv("FLOWTRAIL_GATEWAY__SECRET_KEY", SECRET)
    name = f"in_{encoding.lower()}"
    admin(postgres, "postgres", f"CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0")
    try:
        flowtrail.database_url = postgres.url(name)
        flowtrail.configure()
        done = CliRunner().invoke(app, shlex.split(command))
    finally:
        admin(postgres, "postgres", f"DROP DATABASE {name} WITH (FORCE)")
    said = done.stdout if command == "check" else str(done.exception)
    assert f"is encoded in {encoding}, and Flowtrail needs UTF8: make another one with `createdb" in said
    assert command == "check" or isinstance(done.exception, DatabaseError)


# ----------------------------------------------------------------------------------------------------- PgBouncer


def prepared(engine: Engine) -> int:
    """How many statements a connection prepares that says the same ten times."""
    for _ in range(10):
        with reading(engine) as connection:
            connection.execute(text("SELECT count(*) FROM target"))
    with reading(engine) as connection:
        return int(connection.scalar(text("SELECT count(*) FROM pg_prepared_statements")))


@pytest.mark.parametrize("dialect", ON_POSTGRESQL)
def test_statements_are_prepared_without_a_pooler(engine: Engine, dialect: str) -> None:
    assert bool(prepared(engine)) == (dialect != POOLED)


@pytest.mark.parametrize("dialect", [POOLED])
def test_each_transaction_may_have_another_session(engine: Engine) -> None:
    """Or else nothing here proves anything."""
    with reading(engine), reading(engine), reading(engine):
        seen = set()
    for _ in range(4):
        with reading(engine) as connection:
            seen.add(connection.scalar(text("SELECT pg_backend_pid()")))
    assert len(seen) > 1


@pytest.mark.parametrize("dialect", [POOLED])
def test_options_in_the_url_that_a_pooler_does_not_take_are_refused_with_the_remedy(
    database_url: str, connected: Connect
) -> None:
    engine = connected(f"{database_url}&options=-c%20lock_timeout%3D5s")
    with pytest.raises(DatabaseError, match="Leave `options` and the like out of the URL") as raised, reading(engine):
        pass
    assert not isinstance(raised.value, DatabaseUnreachable)


COMMANDS = (
    "db check",
    "check",
    "sync",
    "plan",
    "status",
    "flows",
    "changes",
    "history 1",
    "export changes",
    "export flows",
    "report -o page.html",
    "verify",
    "prune --keep 1d",
    "guard list",
)


def command(line: str, exits: int = 0) -> None:
    done = CliRunner().invoke(app, shlex.split(line))
    assert done.exit_code == exits, (line, done.output, done.exception)


@pytest.mark.parametrize("dialect", [POOLED])
def test_every_command_works_through_pgbouncer_beside_a_service(
    database_url: str, flowtrail: Program, gateway: LocalGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a role with every default against us."""
    monkeypatch.chdir(flowtrail.folder)
    monkeypatch.setenv("FLOWTRAIL_GATEWAY__SECRET_KEY", SECRET)
    flowtrail.database_url = database_url
    flowtrail.configure()
    gateway.world.set_flows(ORG, ANN, [Flow(str(number), "名 \\ '", "D", None) for number in range(1, 40)])
    command("sync")
    gateway.world.set_flows(ORG, ANN, [Flow(str(number), "名", "H", None) for number in range(20, 40)])
    command("sync", exits=1)
    command(f"guard approve {ORG} {ANN} --expect any")
    service = flowtrail.start("serve")
    service.wait_for("run_ended")
    for each in COMMANDS:
        command(each)
    service.wait_for("run_ended", times=2)
    assert service.stop() == 0


@on_postgresql
def test_the_schema_is_made_through_pgbouncer(empty_url: str, pgbouncer: Pooler, connected: Connect) -> None:
    engine = connected(pgbouncer.url(str(make_url(empty_url).database)))
    upgrade(engine)
    assert check(engine) == []
