"""One finding of damage stops all writing, in every process, until the database is whole again."""

from __future__ import annotations

import datetime as dt
import os
import resource
import shutil
import socket
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import Engine, text

from etl.cli import app
from etl.database import connect, damage_of, integrity, note_damage, note_notified, note_whole, reading, writing
from etl.errors import DatabaseDamaged, DatabaseUnreachable
from tests.support.postgres import free_port
from tests.support.program import ANN, ORG, SECRET, Program
from tests.support.receiver import HttpReceiver

A_ROW = text("INSERT INTO lease VALUES ('zzzzzz', '0', '2026-03-01 12:00:00.000000')")
PAGE = 4096


@pytest.fixture
def file(migrated_sqlite: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(migrated_sqlite, tmp_path / "flowtrail.db"))


@pytest.fixture
def engine_of(file: Path) -> Iterator[Callable[[], Engine]]:
    """Makes engines for the file, each as another process would have it."""
    made: list[Engine] = []

    def another() -> Engine:
        made.append(connect(f"sqlite:///{file}"))
        return made[-1]

    yield another
    for engine in made:
        engine.dispose()


def write(engine: Engine) -> None:
    with writing(engine) as connection:
        connection.execute(A_ROW)


def written(engine: Engine) -> int:
    with reading(engine) as connection:
        return int(connection.execute(text("SELECT count(*) FROM lease")).scalar_one())


def overwrite(file: Path, table: str) -> bytes:
    """Damage the first page of a table; what was in the file before."""
    before = file.read_bytes()
    with closing(sqlite3.connect(file)) as raw:
        (page,) = raw.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
    with open(file, "r+b") as opened:
        opened.seek((page - 1) * PAGE)
        opened.write(b"\xa5" * PAGE)
    return before


def read_it(engine: Engine) -> None:
    with pytest.raises(DatabaseDamaged, match="restore a backup"), reading(engine) as connection:
        connection.execute(text("SELECT * FROM sync_run")).all()


def check_it(engine: Engine) -> None:
    assert integrity(engine).damage


@pytest.mark.parametrize("find", [read_it, check_it])
def test_the_process_that_finds_damage_stops_all_writers(
    file: Path, engine_of: Callable[[], Engine], find: Callable[[Engine], None]
) -> None:
    service, reader = engine_of(), engine_of()
    file.chmod(0o640)
    write(service)
    overwrite(file, "sync_run")
    find(reader)
    for engine in (service, reader, engine_of()):
        with pytest.raises(DatabaseDamaged, match="until `flowtrail db check` finds it intact"):
            write(engine)
    assert written(service) == 1, "reading goes on where it can"
    marker = file.with_name("flowtrail.db.damaged")
    assert stat.S_IMODE(marker.stat().st_mode) == 0o640, "for whoever may read the database"
    assert sorted(os.listdir(file.parent)) == ["flowtrail.db", "flowtrail.db.damaged"]


def test_invalid_text_is_damage_that_a_full_check_finds(file: Path, engine_of: Callable[[], Engine]) -> None:
    engine = engine_of()
    write(engine)
    engine.dispose()
    content = file.read_bytes()
    file.write_bytes(content.replace(b"zzzzzz", b"\xff\xfe\xfd\xfc\xfb\xfa"))
    assert integrity(engine).damage == (), "SQLite's own check does not look at that"
    assert "no text" in "".join(integrity(engine, everything=True).damage)
    with pytest.raises(DatabaseDamaged):
        write(engine)


def test_a_transaction_that_was_under_way_when_damage_was_found_is_not_committed(
    engine_of: Callable[[], Engine],
) -> None:
    engine = engine_of()
    under_way = writing(engine)
    under_way.__enter__().execute(A_ROW)
    note_damage(engine_of(), "somebody else saw it")
    with pytest.raises(DatabaseDamaged):
        under_way.__exit__(None, None, None)
    assert written(engine) == 0


def test_a_file_that_is_put_in_its_place_is_written_to_at_once_and_the_old_one_no_more(
    file: Path, engine_of: Callable[[], Engine]
) -> None:
    engine = engine_of()
    backup = Path(shutil.copy(file, file.with_name("backup.db")))
    write(engine)
    overwrite(file, "sync_run")
    read_it(engine)
    backup.replace(file)
    write(engine)
    assert written(engine_of()) == 1, "not into the file that the open connections had"
    assert os.listdir(file.parent) == ["flowtrail.db"], "the note of the other file is gone"


def test_the_same_file_with_its_old_content_is_written_to_when_it_was_found_whole(
    file: Path, engine_of: Callable[[], Engine]
) -> None:
    engine = engine_of()
    before = overwrite(file, "sync_run")
    read_it(engine)
    file.write_bytes(before)
    with pytest.raises(DatabaseDamaged):
        write(engine)
    note_whole(engine_of())
    write(engine)


def test_where_no_marker_can_be_written_the_process_itself_remembers(
    engine_of: Callable[[], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("etl.database.damage._write", read_only)
    engine = engine_of()
    note_damage(engine, "seen")
    with pytest.raises(DatabaseDamaged):
        write(engine)
    note_whole(engine)
    write(engine)


def test_an_unreadable_marker_counts_too(file: Path, engine_of: Callable[[], Engine]) -> None:
    file.with_name("flowtrail.db.damaged").write_text("{")
    with pytest.raises(DatabaseDamaged, match=r"flowtrail\.db\.damaged cannot be read"):
        write(engine_of())


def test_a_lack_of_file_descriptors_is_reported_and_not_taken_for_damage(
    engine_of: Callable[[], Engine],
) -> None:
    """To see that there is no marker takes none."""
    engine = engine_of()
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as lowest:
        free = lowest.fileno()
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
    try:
        assert damage_of(engine) is None
        with pytest.raises(DatabaseUnreachable, match="no file descriptor is left, raise the limit"):
            write(engine)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    write(engine)


def test_the_first_finding_stays_and_remembers_its_notification(engine_of: Callable[[], Engine]) -> None:
    engine, at = engine_of(), dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
    note_damage(engine, "the first\nof all")
    note_notified(engine, at)
    note_damage(engine, "the second")
    found = damage_of(engine_of())
    assert found is not None
    assert (found.said, found.told_at) == ("the first\\x0aof all", at)


@pytest.mark.parametrize("dialect", ["postgresql"])
@pytest.mark.parametrize(("state", "remedy"), [("XX001", "restore a backup"), ("XX002", "REINDEX")])
def test_damage_that_postgresql_reports_stops_this_process_for_a_while(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, state: str, remedy: str
) -> None:
    damaged = f"DO $$ BEGIN RAISE EXCEPTION 'invalid page in block 7' USING ERRCODE = '{state}'; END $$"
    said = rf"is damaged: invalid page in block 7: .*{remedy}"
    with pytest.raises(DatabaseDamaged, match=said), reading(engine) as connection:
        connection.execute(text(damaged))
    with pytest.raises(DatabaseDamaged, match="this process writes nothing to it for ten minutes"):
        write(engine)
    monkeypatch.setattr("etl.database.damage.time.monotonic", lambda: float("inf"))
    write(engine)


def test_a_service_stops_notifies_once_and_resumes_when_the_file_was_found_whole(
    flowtrail: Program, receiver: HttpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(flowtrail.folder)
    monkeypatch.setenv("FLOWTRAIL_GATEWAY__SECRET_KEY", SECRET)
    listen = f"127.0.0.1:{free_port()}"
    flowtrail.configure(listen=listen, rest=f'[[notify]]\nurls = ["{receiver.url}"]')
    flowtrail.schedule("plants", [(ORG, [ANN])])
    file = flowtrail.folder / "flowtrail.db"
    assert command("sync").exit_code == 0
    service = flowtrail.start("serve")
    service.wait_for("active")
    before = overwrite(file, "workflow_change")
    assert isinstance(command("verify").exception, DatabaseDamaged)
    assert "nothing is written to it" in service.wait_for("database_damaged")["error"]
    status, body = service.get("/readyz")
    assert (status, "is damaged" in body) == (503, True)
    assert 'flowtrail_condition{code="database_damaged"} 1.0' in service.get("/metrics")[1]
    assert receiver.wait_for(1)[0].title == "Flowtrail: the database is damaged"
    for refused in (["sync"], ["guard", "approve", "--all"], ["prune"], ["serve"]):
        assert isinstance(command(*refused).exception, DatabaseDamaged), refused
    assert "is damaged" in command("status").stdout
    file.write_bytes(before)
    assert "writing continues" in command("db", "check").stderr
    service.wait_for("active", times=2)
    assert command("sync").exit_code == 0
    assert service.get("/readyz")[0] == 200
    receiver.wait_for(2)
    assert service.stop() == 0
    assert receiver.titles == ["Flowtrail: the database is damaged", "Flowtrail works again"]


def command(*arguments: str) -> Result:
    """Run a command in this process, which is quicker than in one of its own."""
    return CliRunner().invoke(app, list(arguments))
