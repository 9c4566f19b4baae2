"""The partitions of the trail on PostgreSQL: created before a row needs them, and as append-only as the whole."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy import Engine, make_url

from etl.database import check, grants

WIDTH = 5_000_000
NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
Connection = psycopg.Connection[tuple[object, ...]]

pytestmark = pytest.mark.parametrize("dialect", ["postgresql"])


@pytest.fixture
def conninfo(database_url: str) -> str:
    return make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)


@pytest.fixture
def database(conninfo: str) -> Iterator[Connection]:
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute("INSERT INTO target (org_id, user_id) VALUES ('o', 'u')")
        yield connection


def number_from(database: Connection, number: int) -> None:
    """The next change set gets this number."""
    database.execute(f"ALTER SEQUENCE change_set_id_seq RESTART WITH {number}")


def add_versions(database: Connection, *versions: int) -> None:
    """A change set and its change for each of these versions of the target, as a batch writes them."""
    with database.transaction():
        rows = database.execute(
            "INSERT INTO change_set (target_id, version, run_id, kind, observed_at, asked_at, last_unchanged_at, "
            "state_digest, data_hash, format, parent_hash, hash) "
            "SELECT 1, v, 1, CASE v WHEN 1 THEN 'baseline' ELSE 'delta' END, %s, %s, "
            "CASE v WHEN 1 THEN NULL ELSE %s END, d, d, 1, d, d FROM unnest(%s::int[]) v, repeat('0', 64) d "
            "RETURNING id",
            (NOON, NOON, NOON, list(versions)),
        )
        numbers = [number for (number,) in rows]
        with database.cursor().copy("COPY workflow_change (change_set_id, flow_id, kind) FROM STDIN") as copy:
            for number in numbers:
                copy.write_row((number, "1", "added"))


def partitions(database: Connection) -> list[str]:
    found = database.execute(
        "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'workflow_change'::regclass"
    )
    return sorted((str(name) for (name,) in found), key=len)


def held_by(database: Connection, partition: str) -> int:
    return database.execute(f"SELECT count(*) FROM ONLY {partition}").fetchone()[0]  # type: ignore[index,return-value]


def test_a_partition_is_ready_before_the_first_change_set_that_needs_it(database: Connection, engine: Engine) -> None:
    number_from(database, WIDTH - 2)
    add_versions(database, 1, 2, 3, 4, 5)
    names = [f"workflow_change_below_{number * WIDTH}" for number in (1, 2, 3)]
    assert partitions(database) == names
    assert [held_by(database, name) for name in names] == [2, 3, 0]
    assert check(engine) == []


def test_the_planner_knows_of_about_ten_changes_per_change_set_in_every_partition(database: Connection) -> None:
    """By how many there are, not by what ANALYZE guesses from a sample."""
    add_versions(database, 1, 2)
    number_from(database, WIDTH)
    add_versions(database, 3)
    told = dict(
        database.execute(
            "SELECT attrelid::regclass::text, attoptions FROM pg_attribute "
            "WHERE attname = 'change_set_id' AND attoptions IS NOT NULL"
        ).fetchall()
    )
    assert told == {name: ["n_distinct=-0.1"] for name in partitions(database)}
    database.execute("ANALYZE workflow_change")
    learnt = "SELECT n_distinct::text FROM pg_stats WHERE attname = 'change_set_id' AND tablename = %s"
    assert database.execute(learnt, [partitions(database)[0]]).fetchone() == ("-0.1",)


def test_numbers_that_jump_find_their_partition_too(database: Connection, engine: Engine) -> None:
    number_from(database, 700 * WIDTH + 1)
    add_versions(database, 1)
    number_from(database, 3 * WIDTH)
    add_versions(database, 2)
    ends = [int(name.rpartition("_")[2]) // WIDTH for name in partitions(database)]
    assert ends == [1, 2, 701, 702]
    assert check(engine) == []


def test_no_partition_can_be_rewritten_or_emptied(database: Connection) -> None:
    number_from(database, WIDTH)
    add_versions(database, 1)
    for name in partitions(database):
        for forgery in (
            f"TRUNCATE {name}",
            f"TRUNCATE ONLY {name}",
            "DELETE FROM workflow_change",
            "UPDATE workflow_change SET change_set_id = 1",
            f"UPDATE {name} SET flow_id = '2'" if held_by(database, name) else f"TRUNCATE {name}",
            f"SET session_replication_role = replica; TRUNCATE {name}",
        ):
            with pytest.raises(psycopg.errors.IntegrityConstraintViolation, match="is append-only"):
                database.execute(forgery)
    with pytest.raises(psycopg.errors.UniqueViolation):
        database.execute(f"INSERT INTO workflow_change VALUES ({WIDTH}, '1', 'added')")


def test_a_writer_does_not_wait_while_its_partition_exists(database: Connection, conninfo: str) -> None:
    """ANALYZE of a large table holds this lock for long."""
    number_from(database, WIDTH)
    with psycopg.connect(conninfo) as another:
        another.execute("LOCK TABLE workflow_change IN SHARE UPDATE EXCLUSIVE MODE")
        database.execute("SET lock_timeout = '20s'")
        add_versions(database, 1)
        assert len(partitions(database)) == 2
    add_versions(database, 2)
    assert len(partitions(database)) == 3


def test_two_writers_that_need_the_same_new_partition_both_get_it(database: Connection, conninfo: str) -> None:
    number_from(database, 2 * WIDTH)
    second_done = threading.Event()

    def second() -> None:
        with psycopg.connect(conninfo, autocommit=True) as another:
            add_versions(another, 2)
            second_done.set()

    with psycopg.connect(conninfo) as first, first.transaction():
        add_versions(first, 1)
        thread = threading.Thread(target=second)
        thread.start()
        waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'workflow_change'::regclass"
        while not database.execute(waits).fetchone()[0]:  # type: ignore[index]
            assert thread.is_alive()
        assert not second_done.is_set()
    thread.join()
    assert second_done.is_set()
    assert held_by(database, f"workflow_change_below_{3 * WIDTH}") == 2


def test_the_writer_of_the_trail_gets_partitions_that_it_cannot_touch(database: Connection, conninfo: str) -> None:
    roles = ("part_owner", "part_writer", "part_reader")
    for statement in grants(*roles):
        database.execute(statement)
    number_from(database, 2 * WIDTH)
    with psycopg.connect(conninfo, autocommit=True) as writer:
        writer.execute("SET ROLE part_writer")
        add_versions(writer, 1)
        for forbidden in (
            f"TRUNCATE workflow_change_below_{3 * WIDTH}",
            f"DROP TABLE workflow_change_below_{3 * WIDTH}",
            f"ALTER TABLE workflow_change DETACH PARTITION workflow_change_below_{3 * WIDTH}",
            f"ALTER TABLE workflow_change_below_{3 * WIDTH} DISABLE TRIGGER ALL",
            f"DELETE FROM workflow_change_below_{3 * WIDTH}",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                writer.execute(forbidden)
        writer.execute("SET ROLE part_reader")
        assert writer.execute("SELECT count(*) FROM list_change").fetchone() == (1,)
    owned = "SELECT DISTINCT tableowner FROM pg_tables WHERE tablename LIKE 'workflow_change%'"
    assert database.execute(owned).fetchall() == [("part_owner",)]
    may_call = "SELECT has_function_privilege('part_reader', 'flowtrail_make_partitions()', 'EXECUTE')"
    assert database.execute(may_call).fetchone() == (False,)
    database.execute(f"DROP OWNED BY {', '.join(roles)} CASCADE; DROP ROLE {', '.join(roles)}")
