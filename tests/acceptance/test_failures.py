"""Failures around a whole run or service, and their consequences: docs/failures.md."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, make_url, text

from etl import sync
from etl.config import Schedule
from etl.config.slots import Every
from etl.database import reading, writing
from etl.demo.world import World
from etl.domain.model import Flow, Target
from etl.errors import DatabaseUnreachable
from etl.store import NewRun, commit
from etl.verify import verify
from tests.support import postgres as local_postgres
from tests.support.builders import START, Diary, after, flow, numbered
from tests.support.enos import LocalGateway
from tests.support.gateways import outcome
from tests.support.house import House
from tests.support.program import ANN, ORG, PATIENCE_SECONDS, Program
from tests.support.served import Clock, Served, wait_until

ALICE, BERTA = Target(ORG, "alice"), Target(ORG, "berta")
DAILY = Every(dt.timedelta(days=1))

on_postgresql = pytest.mark.parametrize("dialect", ["postgresql"])


@pytest.fixture
def house(engine: Engine, database_url: str) -> Iterator[House]:
    with LocalGateway(World(orgs=0)) as upstream:
        yield House(engine, database_url, upstream, 4)


# ------------------------------------------------------------------------------------------------ the answer


def nasty() -> list[str]:
    """Two hundred strings that careless programs lose, fold, cut, forge with, or choke on."""
    codes = (*range(0xA0), 0xAD, *range(0x0300, 0x0320), 0x061C, 0x180E, *range(0x200B, 0x2010), *range(0x2028, 0x202F))
    hidden = (*range(0x2060, 0x2070), 0xD800, 0xDFFF, 0xFDD0, *range(0xFEFF, 0x10000, 0x40), 0xFFFE, 0x1D7D9, 0x10FFFF)
    alike = ["a", "A", "a ", " a", "é", "ß", "ss", "ẞ", "ı", "i", "I", "İ", "ﬁ", "fi", "\u212b", "\u00c5", "流程", "٣"]
    words = ["", "9" * 40, "0", "00", "-0", "1", "01", "1.0", "1e3", "NaN", "Infinity", "null", "None", "true", "\\N"]
    forged = ["' OR 1=1 --", "'; DROP TABLE target; --", "<script>alert(1)</script>", "=1+1", "%(a)s", "{0}", "../../x"]
    return [*(f"e{chr(code)}b" for code in (*codes, *hidden)), *alike, *words, *forged, "x" * 255]


@pytest.mark.usefixtures("one_run_for_all")
def test_two_hundred_nasty_strings_are_refused_or_kept_unchanged_on_either_database(
    engine: Engine, database_url: str
) -> None:
    """A refused answer reaches no database, so both store the same."""
    strings = nasty()
    assert len(strings) >= 200
    kept: list[Flow] = []
    for each in strings:
        item = {"flowId": each, "flowName": each, "cycle": each, "editable": None}
        found = outcome(json.dumps({"code": 0, "data": [item]}).encode())
        assert isinstance(found, str) == (each == "" or "\0" in each or bool(re.search("[\ud800-\udfff]", each)))
        kept += [] if isinstance(found, str) else found
    assert len({unicodedata.normalize("NFKC", each.flow_id).casefold().strip() for each in kept}) < len(kept)
    diary = Diary(engine, database_url)
    diary.answer(kept, START)
    diary.answer([flow(each.flow_id, each.flow_id + "!", each.cycle, True) for each in kept], after(hours=1))
    with reading(engine) as connection:
        rows = connection.execute(text("SELECT flow_id, flow_name, cycle, editable FROM workflow")).all()
    assert sorted(map(tuple, rows)) == sorted((each.flow_id, each.flow_id + "!", each.cycle, True) for each in kept)
    assert list(verify(engine)) == []
    diary.check(every_answer=True)


# -------------------------------------------------------------------------------------------- a whole service


def a_second_before_midnight() -> dt.timedelta:
    """How far from now the last second of this day is."""
    now = dt.datetime.now(dt.UTC)
    return now.replace(hour=23, minute=59, second=59, microsecond=0) - now


def scheduled(name: str, every: Every = DAILY, user: str = ANN) -> Schedule:
    return Schedule(name=name, path=Path(name), slots=every, targets=(Target(ORG, user),))


def test_a_hundred_schedules_due_at_the_same_moment_all_have_their_run(engine: Engine) -> None:
    schedules = [scheduled(f"s{number:02}", user=f"user {number}") for number in range(100)]
    clock = Clock()
    clock.offset = a_second_before_midnight()
    with Served(engine, schedules, clock) as served:
        assert sorted(served.wait_for_runs(100)) == [schedule.name for schedule in schedules]
    with reading(engine) as connection:
        rows = connection.execute(text("SELECT status, unchanged + changed FROM sync_run")).all()
    assert [tuple(row) for row in rows] == [("succeeded", 1)] * 100


def test_a_hundred_runs_leave_no_thread_no_descriptor_and_no_memory_behind(house: House) -> None:
    house.see(ALICE, numbered(1, 9))
    house.see(BERTA, numbered(1, 5))
    used = []
    with house.run_context() as (context, batches):
        for number in range(100):
            house.world.rename(ORG, "1", f"name {number}")
            new = NewRun(origin="command", host="here", pid=1, targets=2)
            report = sync.run(context, new, [ALICE, BERTA], batches, clock=house.now)
            assert report is not None
            assert report.status == "succeeded"
            used.append((threading.active_count(), len(os.listdir("/proc/self/fd")), resident_kib()))
    settled, last = used[40], used[-1]
    assert last[0] <= settled[0]
    assert last[1] <= settled[1]
    assert last[2] - settled[2] < 16_000, "KiB"


def resident_kib() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() // 1024


@pytest.mark.skipif(os.geteuid() != 0, reason="no root, who may make a process the first of its namespace")
def test_as_the_first_process_of_a_container_it_ends_on_sigterm(flowtrail: Program, gateway: LocalGateway) -> None:
    flowtrail.configure(rest='grace = "8s"')
    outer = subprocess.Popen(
        ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-m", "etl", "serve"],
        cwd=flowtrail.folder,
        env=flowtrail.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with ended_anyway(outer):
        assert gateway.deliveries.wait_until(delivered(2), PATIENCE_SECONDS)
        inner = int(Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text())
        assert re.search(r"^NSpid:\s+\d+\s+1$", Path(f"/proc/{inner}/status").read_text(), re.MULTILINE)
        os.kill(inner, signal.SIGTERM)
        assert outer.wait(PATIENCE_SECONDS) == 0
    assert flowtrail("verify").returncode == 0


@contextlib.contextmanager
def ended_anyway(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        process.kill()
        process.wait(PATIENCE_SECONDS)


def delivered(count: int) -> Callable[[Sequence[Any]], bool]:
    return lambda entries: sum(entry.sent and entry.flows is not None for entry in entries) >= count


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_log_that_cannot_be_written_stops_no_run(flowtrail: Program, gateway: LocalGateway) -> None:
    loud = {**flowtrail.environment, "FLOWTRAIL_LOG__LEVEL": "DEBUG"}
    with open("/dev/full", "w") as full:
        service = subprocess.Popen(
            [sys.executable, "-m", "etl", "serve"], cwd=flowtrail.folder, env=loud, stdout=full, stderr=full
        )
        with ended_anyway(service):
            assert gateway.deliveries.wait_until(delivered(4), PATIENCE_SECONDS)
            gateway.world.rename(ORG, "1", "another name")
            assert gateway.deliveries.wait_until(lambda entries: delivered(4)(entries[-4:]), PATIENCE_SECONDS)
            wait_until(lambda: flowtrail.rows("SELECT count(*) FROM workflow_change WHERE kind = 'renamed'") == [(1,)])
            service.send_signal(signal.SIGTERM)
            service.wait(PATIENCE_SECONDS)
    assert flowtrail("verify").returncode == 0
    assert flowtrail.rows("SELECT count(*) FROM lease") == [(0,)], "it ended in order"


READ_ONLY = 'mount --bind . . && mount -o remount,ro,bind . && cd "$PWD" && exec "$@"'


@pytest.mark.skipif(os.geteuid() != 0, reason="no root, who may mount a folder read-only")
def test_a_read_only_working_directory_stops_only_what_writes_there(tmp_path: Path, gateway: LocalGateway) -> None:
    """As in a container: the settings beside the program, the database elsewhere."""
    home = tmp_path / "home"
    program = Program(home, gateway.url, f"sqlite:///{tmp_path / 'elsewhere.db'}")
    program.schedule("plants", [(ORG, [ANN])], when='every = "1s"')
    program.command = ("unshare", "--mount", "sh", "-c", READ_ONLY, "sh", *program.command)
    assert [program(command).returncode for command in ("sync", "status", "verify")] == [0, 0, 0]
    refused = program("export", "changes", "-o", "out.csv")
    assert (refused.returncode, refused.stderr) == (1, f"{home}/out.csv was not written: Read-only file system.\n")
    service = program.start("serve")
    service.wait_for("run_ended")
    assert service.stop() == 0


def test_ids_that_look_like_paths_make_no_file_of_their_own(tmp_path: Path, gateway: LocalGateway) -> None:
    """All file names come from a person."""
    program = Program(tmp_path / "home", gateway.url)
    hostile = ["../../x", "/etc/x", "CON", "a" * 255, "..", "~root", "a/b"]
    for user in hostile:
        gateway.world.set_flows(user, user, [Flow(user, user, "D", True)])
    program.schedule("plants", [(user, [user]) for user in hostile])
    assert program.json("sync")["targets"]["changed"] == len(hostile)
    before = {path.relative_to(tmp_path) for path in tmp_path.rglob("*")}
    done = program("export", "changes", "--org", hostile[0], "--format", "csv", "-o", "out.csv")
    assert done.returncode == 0, done.stderr
    made = {path.relative_to(tmp_path) for path in tmp_path.rglob("*")} - before
    assert made == {Path("home/out.csv"), Path("home/out.csv.manifest.json")}


# --------------------------------------------------------------------------------------------------- databases


@on_postgresql
def test_no_transaction_is_open_while_the_gateway_is_waited_for(house: House, postgres: local_postgres.Server) -> None:
    house.see(ALICE, numbered(1, 3))
    hanging = house.fault("hang", ALICE, times=1)
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(house.run, ALICE)
        assert hanging.reached.wait(PATIENCE_SECONDS)
        with psycopg.connect(postgres.conninfo(str(house.engine.url.database)), autocommit=True) as other:
            sessions = other.execute(
                "SELECT state, xact_start FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
            ).fetchall()
        house.stop.set()
        running.result(PATIENCE_SECONDS)
    assert sessions
    assert set(sessions) == {("idle", None)}


TERMINATE = (
    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
)


@on_postgresql
def test_runs_whose_connections_are_terminated_over_and_over_lose_and_invent_nothing(
    house: House, postgres: local_postgres.Server
) -> None:
    targets = [Target(ORG, f"user {number}") for number in range(8)]
    for number, target in enumerate(targets):
        house.see(target, numbered(number, number + 9))
    terminated = []
    pause = threading.Event()

    def terminate() -> None:
        with psycopg.connect(postgres.conninfo(str(house.engine.url.database)), autocommit=True) as other:
            for _ in range(40):
                terminated.extend(other.execute(TERMINATE).fetchone() or ())
                pause.wait(0.003)

    with ThreadPoolExecutor(1) as thread:
        for number in range(4):
            house.world.rename(ORG, "9", f"name {number}")
            terminating = thread.submit(terminate)
            with contextlib.suppress(DatabaseUnreachable):
                house.run(*targets)
            terminating.result(PATIENCE_SECONDS)
    assert sum(terminated) >= 4
    house.run(*targets)
    house.check()
    assert list(verify(house.engine)) == []


REFUSALS = {
    "wrong password": ("", "authentication failed"),
    "no such database": ("", "does not exist"),
    "too many clients": ("ALTER ROLE modest CONNECTION LIMIT 0", "too many connections"),
    "no right to write": ("REVOKE INSERT, UPDATE ON ALL TABLES IN SCHEMA public FROM modest", "permission denied"),
}


@on_postgresql
@pytest.mark.parametrize("trouble", REFUSALS)
def test_a_refusal_of_postgresql_is_one_sentence_and_exit_3(
    flowtrail: Program, database_url: str, postgres: local_postgres.Server, trouble: str
) -> None:
    order, said = REFUSALS[trouble]
    database = str(make_url(database_url).database)
    with psycopg.connect(postgres.conninfo(database), autocommit=True) as admin:
        admin.execute("CREATE ROLE modest LOGIN PASSWORD 'hush-hush'")
        try:
            admin.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO modest")
            admin.execute(order) if order else None
            password = "wrong-hush" if trouble == "wrong password" else "hush-hush"
            name = "missing" if trouble == "no such database" else database
            flowtrail.database_url = f"postgresql+psycopg://modest:{password}@127.0.0.1:{postgres.port}/{name}"
            flowtrail.configure()
            done = flowtrail("sync")
        finally:
            admin.execute("DROP OWNED BY modest")
            admin.execute("DROP ROLE modest")
    assert done.returncode == 3, done.stderr
    assert said in done.stderr
    assert [line for line in done.stderr.splitlines() if "chmod 600" not in line] == [done.stderr.splitlines()[-1]]
    assert "hush" not in done.stderr + done.stdout


NEWS = "SELECT target_id, version FROM change_set WHERE version > :seen AND target_id = :target_id ORDER BY version"


@on_postgresql
def test_a_reader_who_follows_the_versions_of_targets_misses_nothing_that_commits_late(
    engine: Engine, diary: Diary
) -> None:
    """Ids are given before the commit, so a later one may be seen first; the versions of one target never are."""
    seen: dict[int, int] = {}

    def follow() -> None:
        with reading(engine) as connection:
            for target_id in connection.scalars(text("SELECT id FROM target")).all():
                known = {"seen": seen.get(target_id, 0), "target_id": target_id}
                for row in connection.execute(text(NEWS), known):
                    seen[row.target_id] = row.version

    slow, quick = diary.fence(ALICE), diary.fence(BERTA)
    late = diary.judge(slow, numbered(1, 3), START)
    with writing(engine) as connection:
        commit.apply(connection, diary.run_id, [late])
        assert diary.apply(diary.judge(quick, numbered(1, 2), START)) == set()
        follow()
        assert seen == {quick.target_id: 1}
    follow()
    with reading(engine) as connection:
        ids = dict(connection.execute(text("SELECT target_id, id FROM change_set")).all())
    assert ids[slow.target_id] < ids[quick.target_id], "a reader who followed the ids would have missed it"
    assert seen == {quick.target_id: 1, slow.target_id: 1}
    diary.check(every_answer=True)
