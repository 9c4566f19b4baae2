"""Migrations: complete or not at all, one at a time; and every change of the schema by hand is found."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, make_url, text

from etl.database import check, creating, current, expected, reading, require_current, upgrade, writing
from etl.errors import DatabaseError, SchemaMismatch
from tests.support.databases import Connect

ROOT = Path(__file__).parents[2]


@pytest.fixture
def empty(empty_url: str, connected: Connect) -> Engine:
    """An engine on a database without a schema."""
    return connected(empty_url)


@pytest.fixture
def foreign(database_url: str) -> Iterator[Any]:
    """A connection of the bare driver, as any other program would open it."""
    url = make_url(database_url)
    if url.drivername == "sqlite":
        connection: Any = sqlite3.connect(str(url.database), isolation_level=None)
    else:
        dsn = url.set(drivername="postgresql").render_as_string(hide_password=False)
        connection = psycopg.connect(dsn, autocommit=True)
    yield connection
    connection.close()


# --------------------------------------------------------------------------------------------------- upgrades

UPGRADE = """
import sys
from etl.database import connect, current, expected, upgrade
engine = connect(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for _ in range(2):  # the second time there is nothing to do
    upgrade(engine)
    assert current(engine) == expected()
engine.dispose()
"""


def test_five_processes_upgrade_one_empty_database_at_once(empty: Engine, empty_url: str) -> None:
    command = [sys.executable, "-c", UPGRADE, empty_url]
    started = [subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, text=True) for _ in range(5)]
    for process in started:
        assert process.stdout.readline() == "ready\n"
    for process in started:
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate() for process in started]
    assert [(process.returncode, out[0]) for process, out in zip(started, said, strict=True)] == [(0, "")] * 5
    lines = [line for _, errors in said for line in errors.splitlines()]
    assert all("database_locked" in line for line in lines)  # who waits longer than a moment says so
    assert check(empty) == []


KILLED = """
import os, signal, sys, tempfile
from sqlalchemy import event
from etl.database import check, connect, creating, current, expected, upgrade

def upgrade_until(last):
    engine, count = connect(sys.argv[1]), 0
    @event.listens_for(engine, "before_cursor_execute")
    def before(*_):
        nonlocal count
        count += 1
        if count == last:
            os.kill(os.getpid(), signal.SIGKILL)
    upgrade(engine)

with tempfile.TemporaryDirectory() as folder:  # what is imported here need not be imported by each child
    engine = connect(f"sqlite:///{folder}/flowtrail.db")
    upgrade(engine)
    engine.dispose()
for last in range(1, 1000, int(sys.argv[2])):
    child = os.fork()
    if not child:
        upgrade_until(last)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
    engine = connect(sys.argv[1])
    assert current(engine) is None, (last, current(engine))
    engine.dispose()
engine = connect(sys.argv[1])
print(last, current(engine) == expected(), check(engine))
"""


def test_an_upgrade_killed_at_any_statement_leaves_nothing_and_can_be_repeated(empty_url: str) -> None:
    every = "2" if empty_url.startswith("sqlite") else "5"
    command = [sys.executable, "-c", KILLED, empty_url, every]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    survived, *rest = said.split(" ", 1)
    assert int(survived) > 30
    assert rest == ["True []\n"]


def migrate(connection: Connection, revision: str) -> None:
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(ROOT / "migrations"))
    command.upgrade(config, revision)


def test_a_connection_of_any_engine_can_be_handed_over(empty: Engine, empty_url: str) -> None:
    """An engine of plain SQLAlchemy, whose driver begins lazily, or not at all."""
    engine = create_engine(empty_url)
    with engine.connect() as connection:
        migrate(connection, "head")
    engine.dispose()
    assert check(empty) == []


def alembic(*arguments: str, url: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "FLOWTRAIL_DATABASE__URL": url}
    command = [sys.executable, "-m", "alembic", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_alembic_works_in_a_checkout(empty: Engine, empty_url: str) -> None:
    """With the address in the environment or on its command line."""
    assert alembic("upgrade", "head", url=empty_url).returncode == 0
    assert alembic("-x", f"url={empty_url}", "upgrade", "head").returncode == 0
    assert check(empty) == []


def test_alembic_without_an_address_says_how_to_give_one() -> None:
    done = alembic("upgrade", "head")
    assert (done.returncode, done.stderr) == (1, "Which database? Give -x url=... or set FLOWTRAIL_DATABASE__URL.\n")


@pytest.mark.parametrize("url", ["sqlite:///x.db", "postgresql+psycopg://h/d"])
def test_alembic_prints_the_sql_to_run_it_by_hand(url: str) -> None:
    said = alembic("upgrade", "head", "--sql", url=url).stdout
    assert "CREATE TABLE workflow_change" in said
    assert "CREATE TRIGGER change_set_no" in said


def test_the_files_of_the_migrations_are_named_in_the_order_that_alembic_follows() -> None:
    names = sorted(file.name.partition("_")[0] for file in (ROOT / "migrations" / "versions").glob("*.py"))
    scripts = ScriptDirectory(str(ROOT / "migrations")).walk_revisions()
    assert [script.revision for script in scripts] == names[::-1]
    assert expected() == names[-1]


def test_alembic_is_not_loaded_where_the_schema_is_current(engine: Engine, database_url: str) -> None:
    look = f"""
import sys
from etl.database import connect, require_current
import etl.__main__
require_current(connect({database_url!r}))
print("alembic" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True).stdout == "False\n"


# ----------------------------------------------------------------------------------- missing, behind and ahead


def test_a_missing_schema_is_created_on_sqlite_and_required_on_postgresql(
    empty: Engine, tmp_path: Path, connected: Connect
) -> None:
    if empty.dialect.name == "sqlite":
        (tmp_path / "zero bytes.db").touch()
        for engine in (empty, connected(tmp_path / "zero bytes.db")):
            require_current(engine, create_if_empty_sqlite=True)
            assert check(engine) == []
    else:
        with pytest.raises(SchemaMismatch, match="has no Flowtrail schema: run `flowtrail db upgrade`"):
            require_current(empty, create_if_empty_sqlite=True)


def test_a_database_of_another_program_is_not_taken_over(tmp_path: Path, connected: Connect) -> None:
    with closing(sqlite3.connect(tmp_path / "x.db")) as theirs:
        theirs.execute("CREATE TABLE theirs (id INTEGER)")
    with pytest.raises(SchemaMismatch, match="has no Flowtrail schema"):
        require_current(connected(tmp_path / "x.db"), create_if_empty_sqlite=True)


def test_an_older_schema_is_refused_until_it_is_upgraded_and_keeps_its_rows(empty: Engine) -> None:
    with creating(empty) as connection:
        migrate(connection, "0001")
        connection.exec_driver_sql("INSERT INTO target (org_id, user_id) VALUES ('o', 'u')")
    with pytest.raises(
        SchemaMismatch, match=rf"at revision 0001, behind the {expected()} .* run `flowtrail db upgrade`"
    ):
        require_current(empty, create_if_empty_sqlite=True)
    upgrade(empty)
    assert check(empty) == []
    with reading(empty) as connection:
        assert connection.scalar(text("SELECT org_id FROM target_health")) == "o"


def test_a_newer_schema_is_refused_and_not_touched(engine: Engine) -> None:
    with writing(engine) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    for act in (lambda: require_current(engine, create_if_empty_sqlite=True), lambda: upgrade(engine)):
        with pytest.raises(SchemaMismatch, match=rf"at revision 9999, ahead of .* {expected()}: install the newer"):
            act()
    assert current(engine) == "9999"
    assert check(engine) == [f"the schema is at revision 9999, not {expected()}: run `flowtrail db upgrade`"]


# ------------------------------------------------------------------------------------------------- append-only

TRAIL = """
    INSERT INTO target (id, org_id, user_id) VALUES (1, 'o', 'u'), (2, 'o', 'v');
    INSERT INTO change_set (
        id, target_id, version, run_id, kind, observed_at, asked_at, state_digest, data_hash, format, parent_hash, hash)
        VALUES (1, 1, 1, 1, 'baseline', '2026-03-01 12:00:00.000000', '2026-03-01 12:00:00.000000', '{sha}',
                '{sha}', 1, '{sha}', '{sha}');
    INSERT INTO workflow_change (change_set_id, flow_id, kind, new_name) VALUES (1, '3318', 'baseline', 'map')
""".format(sha="0" * 64)
SAME_SET = """
    INTO change_set (id, target_id, version, run_id, kind, observed_at, asked_at, state_digest, data_hash,
                     format, parent_hash, hash)
    VALUES ({key}, 1, 'baseline', '2026-04-01 12:00:00.000000', '2026-04-01 12:00:00.000000', '{sha}', '{sha}',
            1, '{sha}', '{sha}')
"""
SAME_ID, SAME_VERSION = (SAME_SET.format(key=key, sha="1" * 64) for key in ("1, 2, 1", "7, 1, 1"))
NO_ID = SAME_VERSION.replace("(id, target_id", "(target_id").replace("(7, 1", "(1")
SAME_CHANGE = "INTO workflow_change (change_set_id, flow_id, kind, new_name) VALUES (1, '3318', 'baseline', 'forged')"
THERE = (SAME_ID, SAME_VERSION, NO_ID, SAME_CHANGE)
CHANGE_KEY = "(change_set_id, flow_id, kind)"

FORGERIES = {
    "sqlite": [
        *(f"{verb} {row}" for verb in ("INSERT", "INSERT OR REPLACE", "REPLACE") for row in THERE),
        "INSERT OR REPLACE " + SAME_CHANGE.replace("(1,", "('1',"),
        "UPDATE OR REPLACE workflow_change SET flow_id = '2'",
        "INSERT OR REPLACE " + SAME_ID.replace("(id,", "(rowid,"),
    ],
    "postgresql": [
        *(f"INSERT {row}" for row in THERE),
        "TRUNCATE change_set",
        "TRUNCATE workflow_change",
        "TRUNCATE target CASCADE",
        "DELETE FROM ONLY change_set",
        "MERGE INTO workflow_change USING target ON true WHEN MATCHED THEN UPDATE SET new_name = 'forged'",
        "SET session_replication_role = replica; UPDATE change_set SET run_id = 2",
    ],
}
FORGERIES_ON_BOTH = [
    "UPDATE change_set SET run_id = 2",
    "UPDATE change_set SET hash = hash",
    "UPDATE workflow_change SET new_name = 'forged' WHERE flow_id = '3318'",
    "DELETE FROM change_set",
    "DELETE FROM workflow_change WHERE flow_id = '3318'",
    f"INSERT {SAME_ID} ON CONFLICT (id) DO UPDATE SET run_id = 2",
    f"INSERT {SAME_VERSION} ON CONFLICT (target_id, version) DO UPDATE SET run_id = 2",
    f"INSERT {SAME_CHANGE} ON CONFLICT {CHANGE_KEY} DO UPDATE SET new_name = 'forged'",
]


def test_the_trail_cannot_be_rewritten_by_any_connection(foreign: Any, dialect: str) -> None:
    foreign.executescript(TRAIL) if dialect == "sqlite" else foreign.execute(TRAIL)
    before = the_trail(foreign)
    assert len(before) == 2
    for forgery in FORGERIES[dialect] + FORGERIES_ON_BOTH:
        with pytest.raises((sqlite3.IntegrityError, psycopg.errors.IntegrityError)):
            foreign.execute(forgery)
    assert the_trail(foreign) == before


def the_trail(foreign: Any) -> list[tuple[object, ...]]:
    return [row for table in ("change_set", "workflow_change") for row in foreign.execute(f"SELECT * FROM {table}")]


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_a_change_set_with_the_id_that_sqlite_uses_for_none_is_refused(foreign: Any) -> None:
    foreign.executescript(TRAIL)
    with pytest.raises(sqlite3.IntegrityError, match="ck_change_set_id"):
        foreign.execute("INSERT " + SAME_ID.replace("(1, 2, 1", "(-1, 2, 1"))


# ------------------------------------------------------------------------------------------------------- check

BOTH = {
    "ALTER TABLE target ADD COLUMN extra TEXT": "column target.extra is not Flowtrail's",
    "ALTER TABLE target RENAME COLUMN data_hash TO hash": "column target.data_hash is missing",
    "DROP INDEX ix_change_set_observed_at": "index change_set.ix_change_set_observed_at is missing",
    "CREATE INDEX slow ON workflow (cycle)": "index workflow.slow is not Flowtrail's",
    "DROP VIEW org_pending": "view org_pending is missing",
    "DROP VIEW org_pending; CREATE VIEW org_pending AS SELECT * FROM org_loss": "view org_pending was altered",
    "CREATE VIEW mine AS SELECT 1 AS one": "view mine is not Flowtrail's",
    "CREATE TABLE theirs (id INTEGER)": "table theirs is not Flowtrail's",
}
HIDDEN = """
    PRAGMA writable_schema = ON;
    INSERT INTO sqlite_master VALUES ('trigger', 'sqlite_hidden', 'sync_issue', 0, 'CREATE TRIGGER sqlite_hidden
        AFTER INSERT ON sync_issue BEGIN UPDATE sync_issue SET message = ''all is well'' WHERE id = NEW.id; END')
"""
"""A trigger with a name that SQLite allows to nobody."""
WIDTH = 5_000_000
FIRST, SPARE = (f"workflow_change_below_{number * WIDTH}" for number in (1, 2))
DRIFT = {
    "sqlite": {
        "DROP TRIGGER change_set_no_update": "trigger change_set.change_set_no_update is missing",
        "DROP TRIGGER change_set_no_update; CREATE TRIGGER change_set_no_update BEFORE UPDATE ON change_set "
        "BEGIN SELECT 1; END": "trigger change_set.change_set_no_update was altered",
        "CREATE TRIGGER loud AFTER INSERT ON target BEGIN SELECT 1; END": "trigger target.loud is not Flowtrail's",
        HIDDEN: "trigger sync_issue.sqlite_hidden is not Flowtrail's",
        "DROP TABLE lease; CREATE TABLE lease (name TEXT NOT NULL, holder TEXT NOT NULL, expires_at TEXT NOT NULL)": (
            "table lease was altered"
        ),
    },
    "postgresql": {
        "DROP TRIGGER change_set_no_truncate ON change_set": "trigger change_set.change_set_no_truncate is missing",
        "ALTER TABLE change_set DISABLE TRIGGER USER": "trigger change_set.change_set_no_change was altered",
        "CREATE OR REPLACE FUNCTION flowtrail_append_only() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RETURN NEW; END $$": "trigger workflow_change.workflow_change_no_change was altered",
        "ALTER TABLE sync_issue ENABLE ROW LEVEL SECURITY": "table sync_issue was altered",
        "CREATE POLICY none ON sync_issue USING (false)": "policy sync_issue.none is not Flowtrail's",
        "ALTER VIEW org_pending SET (security_invoker = true)": (
            "option org_pending.security_invoker=true is not Flowtrail's"
        ),
        """CREATE AGGREGATE max (bigint) (SFUNC = int8smaller, STYPE = bigint); DO $$ BEGIN EXECUTE
        'CREATE OR REPLACE VIEW target_health AS ' || replace(pg_get_viewdef('target_health'::regclass), ' max(',
        format(' %I.max(', current_schema)); END $$""": "view target_health was altered",
        """DO $$ DECLARE said text := pg_get_viewdef('org_pending'::regclass); BEGIN DROP VIEW org_pending;
        EXECUTE 'CREATE MATERIALIZED VIEW org_pending AS ' || said; END $$""": "view org_pending was altered",
        "ALTER TABLE sync_issue SET UNLOGGED": "table sync_issue was altered",
        "CREATE SCHEMA beside; CREATE TABLE beside.more () INHERITS (sync_issue)": (
            "heir sync_issue.beside.more is not Flowtrail's"
        ),
        "CREATE RULE quiet AS ON DELETE TO change_set DO INSTEAD NOTHING": "rule change_set.quiet is not Flowtrail's",
        "ALTER TABLE target ALTER COLUMN fence TYPE INTEGER": "column target.fence was altered",
        'ALTER TABLE lease ALTER COLUMN name TYPE TEXT COLLATE "default"': "column lease.name was altered",
        "ALTER TABLE target ALTER COLUMN fence DROP NOT NULL": "column target.fence was altered",
        "ALTER TABLE target ALTER COLUMN fence DROP DEFAULT": "column target.fence was altered",
        "ALTER TABLE target DROP CONSTRAINT uq_target": "constraint target.uq_target is missing",
        "ALTER TABLE target DROP CONSTRAINT ck_target_counts": "constraint target.ck_target_counts is missing",
        "ALTER TABLE target ADD CONSTRAINT few CHECK (flow_count < 9)": "constraint target.few is not Flowtrail's",
        "ALTER TABLE observation DROP CONSTRAINT fk_observation_target": (
            "constraint observation.fk_observation_target is missing"
        ),
        f"DROP TRIGGER workflow_change_no_truncate ON {FIRST}": (
            f"trigger {FIRST}.workflow_change_no_truncate is missing"
        ),
        f"ALTER TABLE {SPARE} DISABLE TRIGGER USER": f"trigger {SPARE}.workflow_change_no_change was altered",
        f"ALTER TABLE workflow_change DETACH PARTITION {SPARE}": f"table {SPARE} is not Flowtrail's",
        f"CREATE INDEX more ON {FIRST} (kind)": f"index {FIRST}.more is not Flowtrail's",
        f"ALTER TABLE {SPARE} ADD CONSTRAINT few CHECK (kind <> '')": f"constraint {SPARE}.few is not Flowtrail's",
        f"DROP TABLE {FIRST}": f"the partitions of workflow_change lack the change sets from 0 to {WIDTH - 1}",
        f"DROP TABLE {FIRST}, {SPARE}": "workflow_change has no partition for the next change set, 1",
        "DROP TRIGGER change_set_make_partitions ON change_set": (
            "trigger change_set.change_set_make_partitions is missing"
        ),
        "ALTER FUNCTION flowtrail_make_partitions() SECURITY INVOKER": (
            "trigger change_set.change_set_make_partitions was altered"
        ),
    },
}
DRIFTS = [(name, sql, said) for name in DRIFT for sql, said in {**BOTH, **DRIFT[name]}.items()]


@pytest.mark.parametrize(("dialect", "sabotage", "said"), DRIFTS, ids=[f"{name}-{sql}" for name, sql, _ in DRIFTS])
def test_check_finds_a_change_by_hand(engine: Engine, foreign: Any, dialect: str, sabotage: str, said: str) -> None:
    foreign.executescript(sabotage) if dialect == "sqlite" else foreign.execute(sabotage)
    assert said in check(engine)


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_check_finds_a_comment_that_swallows_a_part_of_its_view(engine: Engine, foreign: Any) -> None:
    """Only white space differs: a line end becomes a space."""
    (sql,) = foreign.execute("SELECT sql FROM sqlite_master WHERE name = 'org_workflow_history'").fetchone()
    head, tail = sql.split("UNION ALL", 1)
    comment, branch = head.split("\nSELECT", 1)
    foreign.execute("DROP VIEW org_workflow_history")
    foreign.execute(f"{comment} SELECT{branch.replace(chr(10), ' ')}UNION ALL{tail}")
    assert check(engine) == ["view org_workflow_history was altered"]


def test_a_missing_table_is_one_line_and_not_one_for_each_of_its_columns(engine: Engine, foreign: Any) -> None:
    foreign.execute("DROP TABLE lease")
    assert check(engine) == ["table lease is missing"]


@pytest.mark.parametrize("dialect", ["postgresql"])
def test_check_takes_views_as_a_backup_brings_them_back(engine: Engine, foreign: Any) -> None:
    """PostgreSQL writes a view out, and reading that, writes some of it otherwise."""
    views = "SELECT viewname, definition FROM pg_views WHERE schemaname = 'public'"
    for name, definition in foreign.execute(views).fetchall():
        foreign.execute(f"CREATE OR REPLACE VIEW {name} AS {definition}")
    assert check(engine) == []


def test_check_leaves_nothing_behind(engine: Engine, foreign: Any, dialect: str) -> None:
    everything = f"SELECT count(*) FROM {'sqlite_master' if dialect == 'sqlite' else 'pg_class'}"
    before = foreign.execute(everything).fetchone()
    assert check(engine) == []
    assert foreign.execute(everything).fetchone() == before


@pytest.mark.parametrize("dialect", ["postgresql"])
def test_check_needs_only_the_right_to_make_temporary_tables(
    foreign: Any, database_url: str, connected: Connect
) -> None:
    foreign.execute("CREATE ROLE reader LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader")
    try:
        reader = connected(make_url(database_url).set(username="reader").render_as_string(hide_password=False))
        assert check(reader) == []
        with pytest.raises(DatabaseError, match="permission denied for schema public"), writing(reader) as connection:
            connection.exec_driver_sql("CREATE TABLE theirs (id INTEGER)")
    finally:
        foreign.execute("DROP OWNED BY reader; DROP ROLE reader")
