"""Connections and transactions: the guarantees on both databases, and the message when one fails."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from sqlalchemy import Engine, event, make_url, text

from etl.config.units import without_password
from etl.database import connect, current, describe, is_secret, reading, require_current, upgrade, writing
from etl.errors import ConfigError, DatabaseError, DatabaseUnreachable, SchemaMismatch
from etl.export import whole_file
from etl.schema import lease
from etl.store.bulk import insert_rows
from etl.system.disk import part_file, part_folder, remove_abandoned
from tests.support import postgres as local_postgres
from tests.support.databases import Connect
from tests.support.logs import capture_logs
from tests.support.relay import LossyProxy
from tests.support.served import wait_until

SAFETY_NET_SECONDS = 60
PASSWORD = "p@ss/w:rd%41"
ADD_LEASE = text("INSERT INTO lease VALUES (:name, '0', '2026-03-01 12:00:00.000000')")


@pytest.fixture
def sqlite_file(migrated_sqlite: Path, tmp_path: Path) -> Path:
    file = tmp_path / "flowtrail.db"
    file.write_bytes(migrated_sqlite.read_bytes())
    return file


def names(engine: Engine) -> list[str]:
    with reading(engine) as connection:
        return list(connection.scalars(text("SELECT name FROM lease ORDER BY name")))


def add(engine: Engine, name: str) -> None:
    with writing(engine) as connection:
        connection.execute(ADD_LEASE, {"name": name})


def the_block_fails(engine: Engine, statement: str) -> bool:
    with suppress(KeyError), writing(engine) as connection:
        connection.exec_driver_sql(statement)
        raise KeyError
    return True


# ----------------------------------------------------------------------------------------------- transactions


def test_a_block_that_ends_is_committed_and_one_that_raises_is_not(engine: Engine) -> None:
    add(engine, "kept")
    assert the_block_fails(engine, "INSERT INTO lease VALUES ('dropped', '0', '2026-03-01 12:00:00.000000')")
    assert names(engine) == ["kept"]


@pytest.mark.parametrize("is_raw", [False, True])
def test_a_rollback_that_fails_does_not_hide_what_was_rolled_back(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, is_raw: bool
) -> None:
    """As psycopg's does through PgBouncer, now and then, after an error within a pipeline, or one that only the driver
    has seen."""

    def fail(_connection: object) -> None:
        raise engine.dialect.loaded_dbapi.InternalError("received 2 results from command 'ROLLBACK'")

    def read() -> None:
        with writing(engine) as connection:
            monkeypatch.setattr(engine.dialect, "do_rollback", fail)
            if is_raw:
                connection.connection.cursor().execute("SELECT * FROM no_such_table")
            connection.execute(text("SELECT * FROM no_such_table"))

    with pytest.raises(DatabaseError, match="no_such_table"):
        read()
    monkeypatch.undo()
    with writing(engine) as connection:
        connection.execute(text("SELECT 1"))


def test_ddl_is_rolled_back_like_anything_else(engine: Engine) -> None:
    assert the_block_fails(engine, "CREATE TABLE another (id INTEGER)")
    with reading(engine) as connection:
        assert not engine.dialect.has_table(connection, "another")


def test_two_readings_of_one_block_see_the_same_moment(engine: Engine, connected: Connect, database_url: str) -> None:
    query = text("SELECT count(*) FROM lease")
    late = threading.Thread(target=add, args=(connected(database_url), "late"))
    with reading(engine) as connection:
        before = connection.scalar(query)
        late.start()
        if engine.dialect.name == "postgresql":
            late.join()
        assert (before, connection.scalar(query)) == (0, 0)
    late.join()
    assert names(engine) == ["late"]


@pytest.mark.parametrize("dialect", ["postgresql"])
def test_a_reading_block_cannot_write_on_postgresql(engine: Engine) -> None:
    with pytest.raises(DatabaseError, match="read-only transaction"), reading(engine) as connection:
        connection.exec_driver_sql("DELETE FROM lease")


def test_no_update_is_lost_between_eight_writers(engine: Engine, database_url: str, connected: Connect) -> None:
    add(engine, "counter")
    locked = " FOR UPDATE" if engine.dialect.name == "postgresql" else ""
    threads = connected(database_url, pool_size=8)

    def count(_: int) -> None:
        with writing(threads) as connection:
            value = int(connection.scalar(text(f"SELECT holder FROM lease{locked}")) or 0)
            connection.execute(text("UPDATE lease SET holder = :value"), {"value": str(value + 1)})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(count, range(80)))
    with reading(engine) as connection:
        assert connection.scalar(text("SELECT holder FROM lease")) == "80"


def test_a_connection_that_the_server_dropped_is_reported_once_and_replaced(
    migrated_postgres: str, postgres: local_postgres.Server, connected: Connect
) -> None:
    engine = connected(postgres.url(migrated_postgres), pool_size=1)

    def lose_the_connection() -> None:
        with writing(engine) as connection:
            pid = connection.scalar(text("SELECT pg_backend_pid()"))
            with psycopg.connect(postgres.conninfo("postgres"), autocommit=True) as other:
                other.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
            connection.execute(text("SELECT 1"))

    with pytest.raises(DatabaseUnreachable, match="cannot be reached"):
        lose_the_connection()
    assert names(engine) == []


@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize(
    "message", [b"BEGIN", b"DECLARE", b"Pc_", b"FETCH FORWARD 1 ", b"FETCH FORWARD 2 ", b"CLOSE"], ids=bytes.decode
)
def test_a_connection_cut_anywhere_in_a_streamed_read_is_one_error(
    migrated_postgres: str,
    postgres: local_postgres.Server,
    connected: Connect,
    caplog: pytest.LogCaptureFixture,
    message: bytes,
    answered: bool,
) -> None:
    """``Pc_`` is in the message that asks for the columns of the cursor."""
    direct = make_url(postgres.url(migrated_postgres, tcp=True))
    with LossyProxy(postgres.port, message, forward=answered) as proxy, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        engine = connected(direct.set(port=proxy.port).render_as_string(hide_password=False))
        assert streamed(engine) == [1, 2, 3]
        proxy.lose_next()
        with pytest.raises(DatabaseUnreachable):
            streamed(engine)
        gc.collect()
        assert proxy.lost == 1
    assert [str(warning.message) for warning in said] == []
    assert [each.message for each in caplog.records if not each.name.startswith("etl.notify")] == []


def streamed(engine: Engine) -> list[int]:
    statement = text("SELECT generate_series(1, 3)")
    with reading(engine) as connection, connection.execute(statement, execution_options={"yield_per": 2}) as result:
        return list(result.scalars())


def test_the_second_of_two_hosts_is_used_when_the_first_is_down(
    migrated_postgres: str, postgres: local_postgres.Server, connected: Connect
) -> None:
    hosts = f"host=127.0.0.1:1&host=127.0.0.1:{postgres.port}"
    assert names(connected(f"postgresql://postgres:{postgres.password}@/{migrated_postgres}?{hosts}")) == []


def test_waiting_too_long_for_a_connection_is_an_error_with_its_reason(sqlite_file: Path, connected: Connect) -> None:
    engine = connected(sqlite_file, pool_size=1)
    engine.pool._timeout = 0.01
    with reading(engine), pytest.raises(DatabaseUnreachable, match="came free"), reading(engine):
        pass


# ----------------------------------------------------------------------------------------------------- sqlite


def test_a_commit_that_a_reader_blocks_is_tried_again_as_it_stands(sqlite_file: Path, connected: Connect) -> None:
    engine, tried_again, commits = connected(sqlite_file), threading.Event(), []

    def watch(statement: str) -> None:
        commits.append(statement) if statement == "COMMIT" else None
        tried_again.set() if len(commits) > 1 else None

    def write() -> None:
        with writing(engine) as connection:
            connection.execute(ADD_LEASE, {"name": "patient"})
            connection.exec_driver_sql("PRAGMA busy_timeout = 0")
            connection.connection.driver_connection.set_trace_callback(watch)

    reader = sqlite3.connect(sqlite_file, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM lease").fetchall()
    with ThreadPoolExecutor(1) as pool:
        written = pool.submit(write)
        assert tried_again.wait(60)
        reader.execute("COMMIT")
        written.result()
    reader.close()
    assert names(engine) == ["patient"]


def test_a_lock_that_stays_taken_is_one_sentence(sqlite_file: Path, connected: Connect) -> None:
    holder = sqlite3.connect(sqlite_file, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseUnreachable, match="is locked by another process"):
        add(connected(sqlite_file, patience_seconds=0.05), "late")
    holder.close()


def test_an_interrupt_while_waiting_for_the_lock_stays_an_interrupt(sqlite_file: Path, connected: Connect) -> None:
    """SQLAlchemy closes a connection whose statement was interrupted."""
    engine = connected(sqlite_file)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    event.listen(engine, "before_cursor_execute", interrupt)
    with pytest.raises(KeyboardInterrupt):
        add(engine, "never")


HOLDER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
for statement in sys.argv[2:]:
    connection.execute(statement).fetchall()
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def held_elsewhere(file: Path, *statements: str) -> Iterator[int]:
    """Another process has the file open and has run the statements; its id."""
    command = [sys.executable, "-c", HOLDER, str(file), *statements]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process.pid
        process.communicate()


only_where_locks_are_listed = pytest.mark.skipif(not Path("/proc/locks").exists(), reason="no /proc/locks")


@only_where_locks_are_listed
@pytest.mark.parametrize(
    ("library", "statement"),
    [((3, 46, 1), "PRAGMA journal_mode = wal"), ((3, 51, 3), "BEGIN")],
    ids=["in WAL mode, which is not safe", "in a transaction, without WAL"],
)
def test_the_process_that_keeps_a_file_in_the_wrong_journal_mode_is_named_at_once(
    sqlite_file: Path,
    connected: Connect,
    monkeypatch: pytest.MonkeyPatch,
    library: tuple[int, ...],
    statement: str,
) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", library)
    monkeypatch.setattr("etl.database.journal.PATIENCE_SECONDS", 0.05)
    engine = connected(sqlite_file)
    with (
        held_elsewhere(sqlite_file, statement, "SELECT * FROM sqlite_master") as process,
        pytest.raises(DatabaseUnreachable, match=rf"WAL mode.* while .* \(process {process}\) has it open"),
    ):
        names(engine)
    assert names(engine) == []


@only_where_locks_are_listed
def test_the_process_that_has_a_file_locked_is_named(sqlite_file: Path, connected: Connect) -> None:
    with (
        held_elsewhere(sqlite_file, "BEGIN IMMEDIATE") as process,
        pytest.raises(DatabaseUnreachable, match=rf"is locked by .* \(process {process}\): try again"),
    ):
        add(connected(sqlite_file, patience_seconds=0.05), "late")


@only_where_locks_are_listed
def test_a_lock_that_lasts_is_logged_while_it_lasts(
    sqlite_file: Path, connected: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("etl.database.engine.LOCK_SAID_AFTER_SECONDS", 0.05)
    engine = connected(sqlite_file)
    with capture_logs() as logged, ThreadPoolExecutor(2) as pool:
        with held_elsewhere(sqlite_file, "BEGIN IMMEDIATE") as process:
            written = [pool.submit(add, engine, name) for name in ("one", "two")]
            wait_until(lambda: bool(logged))
        for each in written:
            each.result()
    assert sorted(names(engine)) == ["one", "two"]
    [said] = logged
    assert (said["event"], said["level"]) == ("database_locked", "warning")
    assert f"(process {process})" in said["by"]


def test_processes_that_change_the_journal_mode_at_once_do_not_block_each_other(
    sqlite_file: Path, connected: Connect
) -> None:
    with closing(sqlite3.connect(sqlite_file)) as connection:
        connection.execute("PRAGMA journal_mode = wal")
    several = [connected(sqlite_file) for _ in range(8)]
    together = threading.Barrier(len(several), timeout=SAFETY_NET_SECONDS)

    def start(engine: Engine) -> list[str]:
        together.wait()
        return names(engine)

    with ThreadPoolExecutor(len(several)) as threads:
        assert list(threads.map(start, several)) == [[]] * len(several)


@pytest.mark.parametrize(("library", "mode"), [((3, 46, 1), "delete"), ((3, 51, 2), "delete"), ((3, 51, 3), "wal")])
def test_wal_is_used_only_where_the_library_is_safe(
    sqlite_file: Path, connected: Connect, monkeypatch: pytest.MonkeyPatch, library: tuple[int, ...], mode: str
) -> None:
    with closing(sqlite3.connect(sqlite_file)) as raw:
        raw.execute(f"PRAGMA journal_mode = {'wal' if mode == 'delete' else 'delete'}")
    monkeypatch.setattr(sqlite3, "sqlite_version_info", library)
    with reading(connected(sqlite_file)) as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == mode
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1


def test_every_new_file_is_accessible_to_its_owner_only(
    tmp_path: Path, connected: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 51, 3))
    before = os.umask(0o022)
    try:
        engine = connected(tmp_path / "flowtrail.db")
        upgrade(engine)
        with writing(engine) as connection:
            connection.execute(ADD_LEASE, {"name": "any"})
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    finally:
        os.umask(before)
    assert modes == {"flowtrail.db": 0o600, "flowtrail.db-wal": 0o600, "flowtrail.db-shm": 0o600}


def test_the_permissions_of_an_existing_file_are_unchanged(tmp_path: Path, connected: Connect) -> None:
    file = tmp_path / "flowtrail.db"
    file.touch(0o640)
    upgrade(connected(file))
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_reading_and_asking_make_no_file(tmp_path: Path, connected: Connect) -> None:
    engine = connected(tmp_path / "flowtrail.db")
    assert current(engine) is None
    with pytest.raises(SchemaMismatch, match="does not exist: `flowtrail db upgrade` creates it"):
        names(engine)
    with pytest.raises(SchemaMismatch, match="the first `flowtrail sync` creates"):
        require_current(engine)
    assert list(tmp_path.iterdir()) == []


def test_a_path_with_strange_characters_is_taken_as_it_is(tmp_path: Path, connected: Connect) -> None:
    file = tmp_path / "a ?#%41ü.db"
    upgrade(connected(f"sqlite:///{file.as_posix().replace('%', '%25').replace('?', '%3F')}"))
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_a_missing_directory_and_a_directory_in_place_of_the_file_are_named(tmp_path: Path, connected: Connect) -> None:
    for act in (names, upgrade):
        with pytest.raises(DatabaseError, match=f"create the directory {tmp_path / 'missing'} first"):
            act(connected(tmp_path / "missing" / "flowtrail.db"))
    with pytest.raises(DatabaseError, match="is a directory"):
        upgrade(connected(tmp_path))


def utf_16() -> bytes:
    """In UTF-16 its text would be sorted in another order."""
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript("PRAGMA encoding = 'UTF-16le'; CREATE TABLE lease (name TEXT)")
        return connection.serialize()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda _: b"remember the milk\n" * 100, "is not a SQLite database and was left unchanged"),
        (lambda whole: whole[:100] + b"\xff" * (len(whole) - 100), "is damaged and was left unchanged: restore a bac"),
        (lambda _: utf_16(), "is encoded in UTF-16le, and Flowtrail needs UTF-8"),
        (
            lambda whole: whole.replace(b"CREATE TABLE target", b"\xff\xfe\xfd\xfc\xfb\xfa TABLE target", 1),
            "damaged",
        ),
    ],
    ids=["text", "damaged", "UTF-16", "bytes that are not text"],
)
def test_a_file_that_is_no_sound_database_is_reported_and_left_unchanged(
    sqlite_file: Path, connected: Connect, content: Callable[[bytes], bytes], said: str
) -> None:
    sqlite_file.write_bytes(content(sqlite_file.read_bytes()))
    before = sqlite_file.read_bytes()
    with pytest.raises(DatabaseError, match=said):
        require_current(connected(sqlite_file), create_if_empty_sqlite=True)
    with pytest.raises(DatabaseError, match=said):
        names(connected(sqlite_file))
    assert sqlite_file.read_bytes() == before


def test_a_full_disk_is_reported_as_full(sqlite_file: Path, connected: Connect) -> None:
    engine = connected(sqlite_file)
    with writing(engine) as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1")
    with pytest.raises(DatabaseError, match="the disk is full"), writing(engine) as connection:
        connection.execute(ADD_LEASE, [{"name": f"{number}"} for number in range(10_000)])
    assert names(engine) == []


AS_NOBODY = """
import os, sys
from etl.database import connect, reading, writing
engine = connect("sqlite:///" + sys.argv[1])
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
with reading(engine) as connection:
    assert connection.exec_driver_sql("SELECT count(*) FROM lease").scalar() == 0
try:
    with writing(engine) as connection:
        connection.exec_driver_sql("DELETE FROM lease")
except Exception as error:
    print(type(error).__name__, error.condition, error)
engine.dispose()
"""


@pytest.mark.parametrize(
    ("mode", "known"),
    [(0o444, "is read-only for this user"), (0o666, "cannot be written: this user can make no file in")],
    ids=["file", "folder"],
)
def test_a_read_only_file_can_be_read_and_is_reported_when_written(
    migrated_sqlite: Path, mode: int, known: str
) -> None:
    folder = Path(tempfile.mkdtemp(prefix="flowtrail-readonly-"))
    file = folder / "flowtrail.db"
    file.write_bytes(migrated_sqlite.read_bytes())
    file.chmod(mode)
    folder.chmod(0o555)
    said = subprocess.run([sys.executable, "-c", AS_NOBODY, file], capture_output=True, text=True, check=True).stdout
    shutil.rmtree(folder)
    assert said.startswith("DatabaseError database_read_only ")
    assert known in said


# ------------------------------------------------------------------------------------------------ bad addresses

UNUSABLE = {
    "": "is not a URL",
    "flowtrail.db": "is not a URL",
    "mysql://u@h/d": "supports sqlite and postgresql",
    "postgresql+psycopg2://h/d": "supports sqlite and postgresql",
    "sqlite:///flowtrail.db?timeout=1": "takes none",
    "postgresql+psycopg://u:secret@h:port/d": "is not a URL",
    f"postgresql+psycopg://u:{PASSWORD}@h/d": "write the one in the password as %40",
}


@pytest.mark.parametrize("url", UNUSABLE)
def test_an_address_that_cannot_be_used_is_a_problem_of_the_settings(url: str) -> None:
    with pytest.raises(ConfigError, match=UNUSABLE[url]) as raised:
        connect(url)
    assert "[database] url" in str(raised.value)
    assert "secret" not in str(raised.value)
    assert "w:rd" not in str(raised.value)
    assert raised.value.__cause__ is None


def test_a_library_that_is_too_old_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    with pytest.raises(ConfigError, match=r"needs SQLite 3\.37 or newer"):
        connect("sqlite:///flowtrail.db")


def test_the_short_name_of_postgresql_means_the_same_driver(connected: Connect) -> None:
    assert connected("postgresql://h/d").url == connected("postgresql+psycopg://h/d").url


def test_a_description_masks_every_password() -> None:
    assert describe(make_url("postgresql://u@h/d").set(password=PASSWORD)) == "postgresql://u:***@h/d"
    assert PASSWORD not in describe(f"postgresql://u@h/d?password={quote(PASSWORD)}")


SECRETS = (
    "password",
    "sslpassword",
    "oauth_client_secret",
    "scram_client_key",
    "scram_server_key",
    "sslkey",
    "passfile",
)


@pytest.mark.parametrize("parameter", SECRETS)
@pytest.mark.parametrize("shown", [describe, without_password])
def test_every_parameter_that_libpq_calls_a_password_a_secret_or_a_key_is_masked(
    parameter: str, shown: Callable[[str], str]
) -> None:
    url = f"postgresql://u@h/d?sslmode=require&{parameter}={quote(PASSWORD)}&keepalives=1"
    for said in (shown(url), shown(f"{url}&{parameter}={quote(PASSWORD)}")):
        assert f"{parameter}=***" in said
        assert PASSWORD not in said
        assert quote(PASSWORD) not in said
        assert "sslmode=require" in said
        assert "keepalives=1" in said


def test_no_parameter_of_libpq_that_is_a_secret_is_missing_from_the_list() -> None:
    """libpq marks some of its secrets, and names the others."""
    for option in psycopg.pq.Conninfo.get_defaults():
        label = (option.label or b"").decode()
        secret = option.dispchar == b"*" or any(word in label for word in ("Password", "Secret", "Key"))
        assert is_secret(option.keyword.decode()) == secret, option


def test_no_message_and_no_cause_contains_a_password_or_a_value(
    postgres: local_postgres.Server, connected: Connect, migrated_postgres: str
) -> None:
    right = make_url(postgres.url(migrated_postgres, tcp=True))
    bad = [
        right.set(password=PASSWORD),
        right.set(port=1, password=PASSWORD),
        right.set(database="missing"),
        right.set(host="no.such.host.invalid", password=PASSWORD),
        right.set(password=None).update_query_dict({"password": PASSWORD}),
        right.set(port=1).update_query_dict({"sslpassword": PASSWORD, "oauth_client_secret": PASSWORD}),
    ]
    for url in bad:
        with pytest.raises(DatabaseUnreachable, match="cannot be reached: ") as raised:
            names(connected(url.render_as_string(hide_password=False)))
        for said in (str(raised.value), str(raised.value.__cause__)):
            assert PASSWORD not in said
            assert postgres.password not in said


def test_a_refused_value_is_not_repeated(engine: Engine) -> None:
    add(engine, "canary")
    with pytest.raises(DatabaseError, match="refused: ") as raised:
        add(engine, "canary")
    assert "canary" not in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("dialect", ["postgresql"])
def test_what_the_driver_itself_refuses_is_a_database_error_too(engine: Engine) -> None:
    with pytest.raises(DatabaseError, match=r"refused: .*NUL"):
        add(engine, "a\0b")
    with pytest.raises(DatabaseError, match="refused: InvalidTextRepresentation"), writing(engine) as connection:
        connection.execute(text("SELECT CAST(:it AS integer)"), {"it": "canary"})
    with pytest.raises(DatabaseError, match="refused: "), writing(engine) as connection:
        connection.connection.driver_connection.execute("INSERT INTO lease VALUES (NULL)")
    with pytest.raises(SchemaMismatch), writing(engine) as connection:
        connection.connection.driver_connection.execute("SELECT * FROM leases")


HALF = "half a character: \ud800"


def test_text_that_is_not_unicode_is_refused_and_not_repeated(engine: Engine) -> None:
    """The driver refuses it with an error that is none of a database."""
    with pytest.raises(DatabaseError, match="cannot take text that is not Unicode") as raised:
        add(engine, HALF)
    assert "half" not in str(raised.value)
    add(engine, "whole")
    with pytest.raises(DatabaseError, match="not Unicode"), writing(engine) as connection:
        insert_rows(connection, lease, ("name", "holder"), [("a", "b"), (HALF, "b")])
    assert names(engine) == ["whole"]


def test_a_number_that_is_too_large_is_refused_and_not_repeated(engine: Engine) -> None:
    refused = r"cannot take a number that is too large|refused: NumericValueOutOfRange"
    with pytest.raises(DatabaseError, match=refused), writing(engine) as connection:
        connection.execute(text("DELETE FROM target WHERE id = CAST(:id AS bigint)"), {"id": 10**30})


def test_the_error_of_a_missing_table_points_to_the_check(engine: Engine) -> None:
    with pytest.raises(SchemaMismatch, match="`flowtrail db check`"), reading(engine) as connection:
        connection.exec_driver_sql("SELECT * FROM leases")


@pytest.mark.parametrize(("value", "meant"), [("none", None), ("0", 1), ("9", 9)])
def test_statements_need_not_be_prepared_where_a_pooler_cannot_have_it(
    migrated_postgres: str, postgres: local_postgres.Server, connected: Connect, value: str, meant: int | None
) -> None:
    with reading(connected(f"{postgres.url(migrated_postgres)}&prepare_threshold={value}")) as connection:
        for _ in range(10):
            connection.execute(text("SELECT count(*) FROM target"))
        assert connection.connection.driver_connection.prepare_threshold == meant
        prepared = connection.scalar(text("SELECT count(*) FROM pg_prepared_statements"))
    assert bool(prepared) == (meant is not None)


UNFINISHED = """
import signal, sys
from pathlib import Path
from etl.system import disk
from etl.__main__ import _end

signal.signal(signal.SIGTERM, _end)
with disk.{made}(Path("out")) as part:
    {work}
    print(part, flush=True)
    sys.stdin.read()
"""
FILE = ("part_file", "part.with_name(part.name + '-journal').touch()")
FOLDER = ("part_folder", "(part / 'inside').mkdir(); (part / 'inside' / 'file').touch()")


def unfinished(folder: Path, made: str, work: str) -> subprocess.Popen[str]:
    """A process in the middle of its work."""
    process = subprocess.Popen(
        [sys.executable, "-c", UNFINISHED.format(made=made, work=work)],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline().strip() in {path.name for path in folder.iterdir()}
    return process


def end(process: subprocess.Popen[str], number: int) -> int:
    process.send_signal(number)
    process.communicate()
    return process.returncode


def grow_old(folder: Path) -> None:
    for path in folder.iterdir():
        os.utime(path, (time.time() - 3600,) * 2)


@pytest.mark.parametrize(("made", "work"), [FILE, FOLDER], ids=["file", "folder"])
def test_what_a_killed_process_left_is_removed_by_the_next_that_writes_there(
    tmp_path: Path, made: str, work: str
) -> None:
    killed, at_work = unfinished(tmp_path, made, work), unfinished(tmp_path, made, work)
    assert end(killed, signal.SIGKILL) == -signal.SIGKILL
    left = set(tmp_path.iterdir())
    with whole_file(tmp_path / "other"):
        assert left <= set(tmp_path.iterdir()), "what is new may still be locked by its maker"
    grow_old(tmp_path)
    with whole_file(tmp_path / "other"):
        pass
    assert len(set(tmp_path.iterdir()) & left) == len(left) / 2, "what somebody works on stays"
    assert end(at_work, signal.SIGTERM) == 128 + signal.SIGTERM
    assert [path.name for path in tmp_path.iterdir()] == ["other"], "and SIGTERM leaves nothing"


def test_only_unfinished_files_of_ours_are_removed(tmp_path: Path) -> None:
    others = [".f.part", ".f.0123abcd.part", ".f.0123abcd.flowtrail-part~", "f.0123abcd.flowtrail-part"]
    for name in others:
        (tmp_path / name).touch()
    (tmp_path / ".link.0123abcd.flowtrail-part").symlink_to(tmp_path / ".f.part")
    (tmp_path / ".ours.0123abcd.flowtrail-part").touch()
    grow_old(tmp_path)
    remove_abandoned(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*others, ".link.0123abcd.flowtrail-part"}
    remove_abandoned(tmp_path / "missing")


def test_a_name_may_be_as_long_as_the_file_system_takes(tmp_path: Path) -> None:
    with whole_file(tmp_path / ("é" * 127)) as file:
        file.write(b"whole")
    with part_file(tmp_path / ("é" * 127)), part_folder(tmp_path / ("é" * 127)):
        assert len(list(tmp_path.iterdir())) == 3
    assert len(list(tmp_path.iterdir())) == 1
