"""Copies elsewhere and retention: heads, backups, copies of the database, old runs."""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import json
import os
import re
import resource
import shlex
import signal
import sqlite3
import stat
import subprocess
import threading
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from click.testing import CliRunner
from sqlalchemy import Engine, event, select, text

from etl.cli import app
from etl.config import load
from etl.database import backup, check, connect, integrity, reading, writing
from etl.domain.model import Flow, Origin, RunStatus, Target
from etl.errors import ConfigError, FlowtrailError, SchemaMismatch, UsageError
from etl.schema import change_set, pruned_issues, run_seal, sync_issue, sync_run, trail
from etl.service.maintenance import Maintenance
from etl.service.replica import LEASE
from etl.store import Store, copy
from etl.verify import HeadsFile, against, heads, verify, whole_lines
from tests.support import postgres as local_postgres
from tests.support import verify_story
from tests.support.builders import START, Diary, after, dump, flow, run_row, written
from tests.support.databases import Connect
from tests.support.enos import LocalGateway
from tests.support.postgres import tools_of
from tests.support.program import ANN, ORG, SECRET, Program
from tests.support.served import wait_until
from tests.support.verify_story import DOUBTED, OTHER_LIST

pytestmark = pytest.mark.usefixtures("one_run_for_all")
NOW = after(days=800)
OLD = NOW - dt.timedelta(days=400)


@pytest.fixture
def gateway(gateway: LocalGateway) -> LocalGateway:
    gateway.world.set_flows(ORG, ANN, [Flow("1", "one", "D", True), Flow("2", "two", "D", True)])
    return gateway


@pytest.fixture
def flowtrail(flowtrail: Program) -> Program:
    flowtrail.schedule("plants", [(ORG, [ANN])])
    return flowtrail


# ------------------------------------------------------------------------------------------------ forgetting runs


@pytest.fixture
def inside(flowtrail: Program, monkeypatch: pytest.MonkeyPatch) -> Program:
    """The folder of ``flowtrail`` is where ``command`` works."""
    monkeypatch.chdir(flowtrail.folder)
    monkeypatch.setenv("FLOWTRAIL_GATEWAY__SECRET_KEY", SECRET)
    return flowtrail


def command(*arguments: str) -> Any:
    """Run a command in this process, which is quicker than in one of its own; what failed is in ``exception``."""
    return CliRunner().invoke(app, list(arguments))


class Runs:
    """Runs as they lie in the table after years; ``left`` are those that still have issues."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.store = Store(engine)
        self.slot = START

    def add(
        self,
        schedule: str | None = None,
        status: RunStatus = "succeeded",
        *,
        age_days: float = 700,
        issues: int = 0,
        target_id: int = 1,
    ) -> int:
        """A run of the schedule's next slot that ended so long ago; its id."""
        self.slot += dt.timedelta(minutes=1)
        ended = NOW - dt.timedelta(days=age_days)
        origin: Origin = "schedule" if schedule else "command"
        slot = self.slot if schedule else None
        finished = None if status == "running" else ended
        with writing(self.engine) as connection:
            own = {"origin": origin, "status": status, "schedule": schedule, "scheduled_for": slot}
            run = run_row(ended, finished_at=finished, **own)
            run_id: int = connection.execute(sync_run.insert().values(run).returning(sync_run.c.id)).scalar_one()
            rows = [{"run_id": run_id, "target_id": target_id, "verdict": "failed", "message": "m"}] * issues
            if rows:
                connection.execute(sync_issue.insert(), rows)
        return run_id

    def prune(self, before: dt.datetime = OLD, *, has_receivers: bool = True, dry_run: bool = False) -> tuple[int, int]:
        return tuple(self.store.prune_runs(before, NOW, has_receivers=has_receivers, dry_run=dry_run))

    @property
    def left(self) -> set[int]:
        with reading(self.engine) as connection:
            return set(connection.execute(select(sync_issue.c.run_id)).scalars())


def test_the_issues_of_old_runs_go_and_the_runs_stay(engine: Engine) -> None:
    runs = Runs(engine)
    old = [runs.add(issues=3), runs.add("plants", "failed", issues=2), runs.add("plants", "partial")]
    young = [runs.add(age_days=399, issues=1), *(runs.add("plants", status, age_days=10) for status in ENDED)]
    running = [runs.add(None, "running", issues=1), runs.add(None, "running", issues=1)]
    assert runs.prune(dry_run=True) == (2, 5)
    assert runs.left == {*old[:2], young[0], *running}
    assert runs.prune() == (2, 5)
    assert runs.left == {young[0], *running}
    with reading(engine) as connection:
        assert {*old, *young, *running} < set(connection.execute(select(sync_run.c.id)).scalars())
        pruned = connection.execute(select(pruned_issues.c.pruned_run_id).order_by(pruned_issues.c.id)).scalars().all()
        assert pruned == old[:2]
    assert runs.prune() == (0, 0)


SOME_CHANGE_SET = {
    "target_id": 1, "run_id": 1, "kind": "delta", "observed_at": START, "last_unchanged_at": START, "asked_at": START,
    "state_digest": "a" * 64, "data_hash": "d" * 64, "format": 1, "parent_hash": "b" * 64, "hash": "c" * 64,
}  # fmt: skip
ENDED: tuple[RunStatus, ...] = ("succeeded", "partial", "failed", "aborted")


def test_pruning_is_a_sealed_run_of_its_own_and_touches_nothing_else(diary: Diary) -> None:
    diary.answer([flow(1)], START)
    diary.fail()
    assert diary.store.finish_run(3, "failed", {"failed": 1}, START)
    before = dump(diary.engine)
    assert diary.store.prune_runs(NOW + dt.timedelta(days=1), NOW + dt.timedelta(days=30), has_receivers=True) == (1, 1)
    assert written(before, dump(diary.engine)) == {"sync_issue", "pruned_issues"}
    with reading(diary.engine) as connection:
        sealed = select(sync_run.c.origin).join(run_seal, run_seal.c.run_id == sync_run.c.id).order_by(run_seal.c.id)
        assert connection.execute(sealed).scalars().all() == ["command", "maintenance"]


def test_a_run_that_ended_ahead_of_now_goes_with_the_old_one_that_began_after_it(engine: Engine) -> None:
    """The clock was a month ahead, two years ago, and yesterday."""
    runs = Runs(engine)
    gone = [runs.add(age_days=-30, issues=2), runs.add(issues=1)]
    kept = [runs.add(age_days=-30, issues=1), runs.add(age_days=1, issues=1)]
    assert runs.prune() == (2, 3)
    assert runs.left == set(kept)
    assert gone[-1] < kept[0]


def test_pruning_interrupted_anywhere_is_resumed(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("etl.store.retention.ISSUES_AT_ONCE", 3)
    monkeypatch.setattr("etl.store._REST_SECONDS", 0)
    runs = Runs(engine)
    gone = [runs.add(issues=2) for _ in range(6)]
    kept = [runs.add(age_days=10, issues=1)]
    commits = [-1]

    def killed(_: object) -> None:
        commits[0] -= 1
        if commits[0] == 0:
            raise KeyboardInterrupt

    event.listen(engine, "commit", killed)
    for before in range(1, 7):
        commits[0] = before
        with contextlib.suppress(KeyboardInterrupt):
            runs.prune()
        commits[0] = -1
        assert set(kept) <= runs.left <= {*gone, *kept}
    runs.prune()
    assert runs.left == set(kept)
    with reading(engine) as connection:
        assert connection.execute(select(sync_issue.c.run_id)).scalars().all() == kept
        pruned = connection.execute(select(pruned_issues.c.pruned_run_id)).scalars().all()
        assert sorted(pruned) == gone, "with the issues of a run, and once, it is recorded that they went"


def test_a_run_that_was_not_notified_stays_for_a_week_where_there_are_receivers(engine: Engine) -> None:
    runs = Runs(engine)
    told, untold, older = (runs.add(age_days=days, issues=1) for days in (6, 6, 8))
    latest = runs.add(age_days=0, issues=1)
    with writing(engine) as connection:
        connection.execute(sync_run.update().where(sync_run.c.id == told).values(notified_at=NOW))
    assert runs.prune(NOW - dt.timedelta(days=1))[0] == 2
    assert runs.left == {untold, latest}
    assert older not in runs.left
    assert runs.prune(NOW - dt.timedelta(days=1), has_receivers=False) == (1, 1)
    assert runs.left == {latest}


def test_the_run_that_says_why_a_removal_is_held_stays_while_it_is_held(diary: Diary) -> None:
    verify_story.write(diary)
    runs = Runs(diary.engine)
    with writing(diary.engine) as connection:
        connection.execute(sync_run.update().values(status="partial", heartbeat_at=START, finished_at=after(days=30)))
    runs.prune()
    with reading(diary.engine) as connection:
        named = (
            "SELECT DISTINCT t.user_id FROM sync_issue i JOIN target t ON t.id = i.target_id WHERE i.verdict = 'held'"
        )
        held = set(connection.execute(text(named)).scalars())
    assert {DOUBTED.user_id, OTHER_LIST.user_id} <= held
    assert [finding for finding in verify(diary.engine) if finding.run_id is None] == []


def test_pruning_can_be_stopped_between_its_transactions(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("etl.store.retention.ISSUES_AT_ONCE", 4)
    runs = Runs(engine)
    for _ in range(9):
        runs.add(issues=2)
    answers = iter([True, True, True, False])
    gone = runs.store.prune_runs(OLD, NOW, has_receivers=True, go_on=lambda: next(answers))
    assert gone == (4, 8)
    assert runs.prune() == (5, 10)


def test_prune_counts_deletes_and_refuses_in_a_sentence(inside: Program, diary: Diary) -> None:
    inside.database_url = diary.url
    inside.configure()
    runs = Runs(diary.engine)
    runs.add(age_days=790, issues=2)
    runs.add(age_days=790)
    early = (START + dt.timedelta(days=20)).isoformat()
    would = json.loads(command("prune", "--before", early, "--dry-run", "--json").stdout)
    assert (would["runs"], would["issues"], would["dry_run"]) == (1, 2, True)
    assert "2 issues of 1 run that" in command("prune", "--before", early).stdout
    assert json.loads(command("prune", "--keep", "36500d", "--json").stdout)["runs"] == 0
    inside.configure(rest='[retention]\nkeep_runs = "forever"')
    for arguments in ([], ["--keep", "1h"], ["--keep", "2d", "--before", "now"], ["--before", "soon"]):
        done = command("prune", *arguments)
        assert (type(done.exception), done.stdout) == (UsageError, "")


# -------------------------------------------------------------------------------------------------- kept heads


def kept_in(path: Path) -> list[dict[str, object]]:
    """The heads; seals are kept in lines of their own."""
    return [json.loads(line) for line in path.read_text().splitlines() if "trail_id" not in line]


def seals_in(path: Path) -> list[int]:
    return [json.loads(line)["id"] for line in path.read_text().splitlines() if "trail_id" in line]


def test_the_file_gets_the_heads_that_moved_and_against_accepts_it_whole(diary: Diary, tmp_path: Path) -> None:
    file = HeadsFile(tmp_path / "heads.jsonl", diary.engine)
    bob = Target("o1", "bob")
    diary.answer([flow(1)], after(hours=1))
    diary.answer([flow(1)], after(hours=1), bob)
    assert file.catch_up(NOW) == (2, 0)
    diary.answer([flow(1)], after(hours=2))
    assert file.catch_up(NOW) == (0, 0), "a span that grew moves no head"
    diary.answer([flow(1, cycle="H")], after(hours=3))
    diary.fail(bob)
    diary.answer([flow(1)], after(hours=4), bob)
    assert file.catch_up(NOW) == (1, 0)
    assert [(line["user_id"], line["version"]) for line in kept_in(file.path)] == [
        ("alice", 1),
        ("bob", 1),
        ("alice", 2),
    ]
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    printed = {line["user_id"]: line for line in heads(diary.engine, NOW)}
    assert kept_in(file.path)[-1] == msgspec.to_builtins(printed["alice"])
    verify_story.write(diary)
    file.catch_up(NOW)
    assert list(against(diary.engine, file.path.read_bytes().splitlines())) == []


def test_a_new_process_reads_the_file_and_appends_what_was_missed(diary: Diary, tmp_path: Path) -> None:
    path = tmp_path / "heads.jsonl"
    diary.answer([flow(1)], after(hours=1))
    HeadsFile(path, diary.engine).catch_up(NOW)
    diary.answer([flow(2)], after(hours=2))
    first, second = HeadsFile(path, diary.engine), HeadsFile(path, diary.engine)
    assert first.catch_up(NOW) == (1, 0)
    assert second.catch_up(NOW) == (0, 0), "the other one's line was read, not written again"
    diary.answer([flow(3)], after(hours=3))
    assert second.catch_up(NOW) == (1, 0)
    assert first.catch_up(NOW) == (0, 0)
    path.rename(tmp_path / "moved.jsonl")
    assert first.catch_up(NOW) == (1, 0), "a file that was moved away is begun anew"
    assert len(kept_in(path)) == 1


def test_a_line_cut_at_any_byte_is_removed_and_tolerated(diary: Diary, tmp_path: Path) -> None:
    path = tmp_path / "heads.jsonl"
    diary.answer([flow(1)], after(hours=1))
    HeadsFile(path, diary.engine).catch_up(NOW)
    first = path.read_bytes()
    diary.answer([flow(2)], after(hours=2))
    HeadsFile(path, diary.engine).catch_up(NOW)
    whole = path.read_bytes()
    for end in range(len(first) + 1, len(whole) - 1, 37):
        path.write_bytes(whole[:end])
        cut: list[int] = []
        with path.open("rb") as lines:
            assert list(against(diary.engine, whole_lines(lines, cut.append))) == []
        assert cut == [2]
        assert HeadsFile(path, diary.engine).catch_up(NOW) == (1, 0)
        assert path.read_bytes() == whole


def test_a_restored_backup_that_is_older_than_the_file_is_noticed(diary: Diary, tmp_path: Path) -> None:
    path = tmp_path / "heads.jsonl"
    diary.answer([flow(1)], after(hours=1))
    (line,) = heads(diary.engine, NOW)
    path.write_bytes(msgspec.json.encode({**line, "version": 7}) + b"\n")
    assert HeadsFile(path, diary.engine).catch_up(NOW) == (1, 1)


def test_a_file_that_cannot_be_written_loses_nothing(diary: Diary, tmp_path: Path) -> None:
    """What was written of a batch before the disk was full is taken back, and comes with the next try."""
    path = tmp_path / "heads.jsonl"
    for number in range(40):
        diary.answer([flow(1)], after(hours=1), Target("o1", f"user {number}"))
    file = HeadsFile(path, diary.engine)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, before[1]))
    try:
        if diary.engine.dialect.name == "postgresql":  # SQLite may write no more either
            with pytest.raises(OSError, match="File too large"):
                file.catch_up(NOW)
            assert path.read_bytes() == b""
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert file.catch_up(NOW) == (40, 0)
    assert list(against(diary.engine, path.read_bytes().splitlines())) == []


def test_a_service_keeps_the_heads_of_its_own_runs_and_of_commands(inside: Program, gateway: LocalGateway) -> None:
    """Through a file that cannot be written, which is said once and stops no run, and over a kill."""
    inside.configure(rest='[retention]\nheads_file = "kept/heads.jsonl"')
    assert command("db", "upgrade").exit_code == 0
    engine = connect(f"sqlite:///{inside.folder / 'flowtrail.db'}")
    for _ in range(3):
        Runs(engine).add(age_days=2_000, issues=1)
    engine.dispose()
    kept = inside.folder / "kept" / "heads.jsonl"
    inside.schedule("plants", [(ORG, [ANN])], when='every = "1s"')
    service = inside.start("serve")
    failed = service.wait_for("heads_file_failed")
    assert "kept" in failed["error"]
    service.wait_for("run_ended", times=3)
    pruned = service.wait_for("runs_pruned")
    assert (pruned["runs"], pruned["issues"]) == (3, 3)
    kept.parent.mkdir()
    service.wait_for("heads_file_works_again")
    assert [line["version"] for line in kept_in(kept)] == [1]
    assert len([entry for entry in service.log if entry["event"] == "heads_file_failed"]) == 1
    service.stop(signal.SIGKILL)
    gateway.world.set_cycle(ORG, "1", "H")
    assert command("sync").exit_code == 0
    gateway.world.set_cycle(ORG, "2", "H")
    with kept.open("ab") as file:
        file.write(b'{"org_id": "o1", "us')
    again = inside.start("serve")
    again.wait_for("run_ended", lambda entry: entry.get("cycle_changed") == 1)
    assert again.stop() == 0
    assert [line["version"] for line in kept_in(kept)][-1] == 3
    said = command("verify", "--against", str(kept)).output
    assert said.count("should be a seal") == 3, "the three old runs were put there by hand"
    assert "3 findings" in said


def test_a_command_appends_the_seal_of_its_run_before_it_exits(inside: Program, gateway: LocalGateway) -> None:
    """Also where another process is appending, and whatever could not be appended before."""
    inside.configure(rest='[guard]\nmin_removed = 1\n[retention]\nheads_file = "kept/heads.jsonl"')
    kept = inside.folder / "kept" / "heads.jsonl"
    said = inside("sync")
    assert said.returncode == 0
    assert "heads_file_failed" in said.stderr, "no folder stops no run, and it is said"
    kept.parent.mkdir()
    gateway.world.set_flows(ORG, ANN, [])
    with kept.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        unlock = threading.Timer(0.5, lambda: fcntl.flock(file, fcntl.LOCK_UN))
        unlock.start()
        assert command("sync").exit_code == 1, "held"
        unlock.join()
    assert seals_in(kept) == [1, 2]
    assert command("guard", "approve", "--all", "--expect", "any", "--by", "ann").exit_code == 0
    assert command("prune", "--before", "2999-01-01").exit_code == 0
    assert seals_in(kept) == [1, 2, 3, 4]
    assert [line["version"] for line in kept_in(kept)] == [1, 2]
    assert command("verify", "--against", str(kept)).exit_code == 0


def maintenance(engine: Engine, **own: Any) -> Maintenance:
    usual = {"keep_runs": None, "heads": None, "has_receivers": False, "active": lambda: True}
    return Maintenance(Store(engine), clock=lambda: NOW, **{**usual, **own})


def test_only_the_active_replica_keeps_heads_and_forgets_runs(diary: Diary, tmp_path: Path) -> None:
    diary.answer([flow(1)], after(hours=1))
    kept = HeadsFile(tmp_path / "heads.jsonl", diary.engine)
    for active in (False, True):
        with maintenance(diary.engine, heads=kept, active=lambda active=active: active).loop:
            pass  # it looks once more when it ends
        assert kept.path.exists() is active


@pytest.mark.parametrize("right", [True, None, False])
def test_the_service_forgets_no_run_while_its_clock_is_known_to_be_wrong(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, right: bool | None
) -> None:
    monkeypatch.setattr("etl.service.maintenance.TICK_SECONDS", 0.01)
    runs = Runs(engine)
    runs.add(issues=1)
    kept = runs.add(age_days=10, issues=1)
    asked = threading.Semaphore(0)
    keep = dt.timedelta(days=400)
    with maintenance(engine, keep_runs=keep, clock_is_right=lambda: asked.release() or right).loop:
        for _ in range(2):
            assert asked.acquire(timeout=60)
        if right:
            wait_until(lambda: runs.left == {kept})
    assert len(runs.left) == (1 if right else 2)


# ------------------------------------------------------------------------------------------------------ backup


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_a_backup_replaces_a_file_only_if_told_to(diary: Diary, tmp_path: Path, connected: Connect) -> None:
    verify_story.write(diary)
    there = tmp_path / "there.db"
    there.write_text("mine")
    for name, force, said in (
        ("there.db", False, "--force"),
        ("flowtrail.db", True, "itself"),
        (".", True, "folder"),
        ("missing/there.db", False, "create the folder"),
    ):
        with pytest.raises(UsageError, match=said):
            backup.backup(diary.engine, tmp_path / name, force=force)
    assert there.read_text() == "mine"
    beside = tmp_path / "there.db-wal"
    beside.write_text("of a database in use")
    with pytest.raises(UsageError, match="in use"):
        backup.backup(diary.engine, there, force=True)
    beside.unlink()
    backup.backup(diary.engine, there, force=True)
    assert stat.S_IMODE(there.stat().st_mode) == 0o600
    assert everything(connected(there)) == everything(diary.engine)


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_a_backup_ends_although_there_are_writes_between_any_two_steps(
    diary: Diary, tmp_path: Path, connected: Connect
) -> None:
    verify_story.write(diary)
    with writing(diary.engine) as connection:  # so large that it takes many steps
        rows = [{"run_id": 1, "target_id": 1, "verdict": "failed", "message": "m" * 3_000}] * 12_000
        connection.execute(sync_issue.insert(), rows)
    written, seen = [], []

    def write(done: int, total: int) -> None:
        seen.append(done)
        if done < total:
            written.append(diary.begin())

    backup.backup(diary.engine, tmp_path / "saved.db", progress=write)
    assert len(written) >= 1, "a writer gets its turn between two steps"
    assert seen[-1] == max(seen)
    assert list(verify(connected(tmp_path / "saved.db"))) == []


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_with_wal_a_backup_is_of_one_moment_and_blocks_no_writer(
    diary: Diary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, connected: Connect
) -> None:
    monkeypatch.setattr("etl.database.journal.WAL_IS_SAFE_FROM", (3, 0, 0))
    verify_story.write(diary)
    diary.engine.dispose()
    begun: list[int] = []
    backup.backup(diary.engine, tmp_path / "saved.db", progress=lambda done, total: begun.append(diary.begin()))
    assert (tmp_path / "flowtrail.db-wal").exists()
    assert begun
    saved = connected(tmp_path / "saved.db")
    with reading(saved) as connection:
        assert connection.execute(select(sync_run.c.id).where(sync_run.c.id.in_(begun))).all() == []
    assert list(verify(saved)) == []
    diary.engine.dispose()
    assert not list(tmp_path.glob(".saved*"))


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_a_backup_of_a_damaged_database_is_refused_and_leaves_nothing(diary: Diary, tmp_path: Path) -> None:
    verify_story.write(diary)
    damage_an_index(diary.engine, Path(str(diary.engine.url.database)))
    with pytest.raises(FlowtrailError, match="damaged"):
        backup.backup(diary.engine, tmp_path / "saved.db")
    assert not list(tmp_path.glob("*saved*"))


@pytest.mark.parametrize("dialect", ["postgresql"])
def test_on_postgresql_the_printed_commands_make_and_restore_a_backup(
    diary: Diary,
    tmp_path: Path,
    gateway: LocalGateway,
    postgres: local_postgres.Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    verify_story.write(diary)
    url = postgres.url(diary.engine.url.database or "", tcp=True)
    Program(tmp_path, gateway.url, url)
    monkeypatch.chdir(tmp_path)
    done = command("backup", "saved file.dump")
    assert isinstance(done.exception, UsageError)
    assert postgres.password not in done.output + str(done.exception)
    told = done.stdout.splitlines()
    tools = {**os.environ, "PGPASSWORD": postgres.password, "PATH": f"{tools_of(postgres)}:{os.environ['PATH']}"}
    name = f"{diary.engine.url.database}_restored"
    for line in told:
        told_to = line.replace("NEW", name)
        run = subprocess.run(told_to, shell=True, cwd=tmp_path, env=tools, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
    assert shlex.split(told[0])[-1] == "--file=saved file.dump"
    restored = connect(postgres.url(name))
    try:
        assert dump(restored) == dump(diary.engine)
        assert check(restored) == []
        assert list(verify(restored)) == []
        assert list(against(restored, [msgspec.json.encode(head) for head in heads(diary.engine, NOW)])) == []
        Diary(restored, url).answer([flow(1)], after(days=900), Target("new", "user"))
    finally:
        restored.dispose()
        with psycopg.connect(postgres.conninfo("postgres"), autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.parametrize("dialect", ["postgresql"])
def test_the_printed_commands_have_the_encryption_of_the_url_and_none_of_its_secrets(
    engine: Engine, connected: Connect
) -> None:
    """Without ``sslkey``, the name of a file, the tools would not be let in."""
    url = engine.url.render_as_string(hide_password=False)
    secured = connected(f"{url}&sslmode=prefer&sslkey=/etc/own.key&sslpassword=canary&oauth_client_secret=canary")
    dump = backup.dump_of(secured, Path("saved.dump"))
    assert "canary" not in dump.backup + dump.restore
    assert "sslmode=prefer" in dump.backup
    assert "sslkey=/etc/own.key" in dump.backup


# ----------------------------------------------------------------------------------------------------- db copy


def everything(engine: Engine) -> dict[str, list[tuple[object, ...]]]:
    with reading(engine) as connection:
        return {
            table.name: [tuple(row) for row in connection.execute(select(table).order_by(*table.primary_key.columns))]
            for table in copy.TABLES
        }


def without_trail(tables: dict[str, list[tuple[object, ...]]]) -> dict[str, list[tuple[object, ...]]]:
    """A copy goes on under an id of its own."""
    return {name: rows for name, rows in tables.items() if name != "trail"}


def test_a_copy_has_every_row_and_goes_on_with_the_next_number(diary: Diary, other: Engine) -> None:
    verify_story.write(diary)
    with diary.engine.connect() as connection:  # rolled back; PostgreSQL leaves such numbers out
        for number in range(3):
            change = {**SOME_CHANGE_SET, "version": 100 + number}
            connection.execute(change_set.insert().values(change))
    Runs(diary.engine).add(age_days=0.5)
    copied = dict(copy.copy(diary.engine, other))
    assert without_trail(everything(other)) == without_trail(everything(diary.engine))
    assert copied["workflow_change"] == len(everything(other)["workflow_change"]) > 10
    with reading(other) as connection:
        assert connection.execute(select(trail.c.reason).order_by(trail.c.id)).scalars().all() == ["new", "copied"]
    assert [finding for finding in verify(other) if finding.run_id is None] == []
    assert check(other) == []
    assert list(against(other, [msgspec.json.encode(head) for head in heads(diary.engine, NOW)])) == []
    numbered = ("target", "change_set", "observation", "sync_run")
    last = {name: max(row[0] for row in everything(other)[name]) for name in numbered}
    Diary(other, str(other.url)).answer([flow(1), flow(2, cycle="H")], after(days=900), Target("new", "user"))
    for name in numbered:
        assert max(row[0] for row in everything(other)[name]) > last[name]
    assert [finding for finding in verify(other) if finding.run_id is None] == []


def test_a_copy_that_fails_at_any_step_leaves_nothing(diary: Diary, other: Engine) -> None:
    verify_story.write(diary)
    steps: list[int] = []
    for stop_at in range(14):

        def progress(done: int, total: int, stop_at: int = stop_at) -> None:
            steps.append(done)
            if len(steps) == stop_at + 1:
                raise KeyboardInterrupt

        steps.clear()
        with pytest.raises(KeyboardInterrupt):
            copy.copy(diary.engine, other, progress=progress)
        assert not any(everything(other).values()), stop_at
    copy.copy(diary.engine, other)


@pytest.mark.parametrize("dialect", ["postgresql"])
def test_a_copy_of_a_database_written_to_meanwhile_is_refused_unless_forced(diary: Diary, other: Engine) -> None:
    verify_story.write(diary)
    with pytest.raises(FlowtrailError, match="written to meanwhile"):
        copy.copy(diary.engine, other, progress=lambda done, total: diary.begin() and None)
    assert not everything(other)["target"]
    copy.copy(diary.engine, other, may_be_written=True, progress=lambda done, total: diary.begin() and None)
    assert list(verify(other)) == []


def test_the_command_copies_to_postgresql_and_a_sync_goes_on_there(
    inside: Program, postgres: local_postgres.Server
) -> None:
    assert command("sync").exit_code == 0
    with psycopg.connect(postgres.conninfo("postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE moved_to")
    try:
        naked = postgres.url("moved_to", tcp=True)
        url_file = inside.folder / "url"
        url_file.write_text(naked)
        url_file.chmod(0o600)
        refused = command("db", "copy", "--to", naked)
        assert isinstance(refused.exception, ConfigError)
        assert "--to-file" in str(refused.exception)
        assert postgres.password not in str(refused.exception)
        assert isinstance(command("db", "copy", "--to-file", "url").exception, SchemaMismatch)
        done = command("db", "copy", "--to-file", "url", "--upgrade")
        assert done.exit_code == 0, done.exception
        assert postgres.password not in done.output
        assert isinstance(command("db", "copy", "--to-file", "url").exception, UsageError), "it has rows now"
        settings = inside.folder / "flowtrail.toml"
        settings.write_text(settings.read_text().replace('url = "sqlite:///flowtrail.db"', 'url_file = "url"'))
        assert json.loads(command("sync", "--json").stdout)["targets"]["unchanged"] == 1
        assert command("verify").exit_code == 0
    finally:
        with psycopg.connect(postgres.conninfo("postgres"), autocommit=True) as connection:
            connection.execute("DROP DATABASE moved_to WITH (FORCE)")


def test_a_copy_blocks_no_writer(diary: Diary, other: Engine, database_url: str, connected: Connect) -> None:
    """It is the database as it was when the copy began; the writer is one that waits for nobody."""
    verify_story.write(diary)
    before = everything(diary.engine)
    impatient = connected(database_url, patience_seconds=0.05)
    written: list[int] = []

    def write(done: int, total: int) -> None:
        with writing(impatient) as connection:
            connection.execute(sync_run.update().values(host=f"written {done} of {total}"))
        written.append(done)

    with backup.snapshot(diary.engine) as source:
        copy.copy(source, other, may_be_written=True, progress=write)
    assert written
    assert without_trail(everything(other)) == without_trail(before) != without_trail(everything(diary.engine))
    assert [path.name for path in Path(str(diary.engine.url.database)).parent.glob(".*part*")] == []


@pytest.mark.parametrize("side", ["from", "to"])
def test_a_copy_beside_an_active_service_is_refused_unless_forced(
    inside: Program, engine: Engine, other: Engine, side: str
) -> None:
    inside.database_url = engine.url.render_as_string(hide_password=False)
    inside.configure()
    Store(engine if side == "from" else other).take_lease(LEASE, "somebody")
    copy = ("db", "copy", "--to", other.url.render_as_string(hide_password=False))
    refused = command(*copy)
    assert isinstance(refused.exception, UsageError)
    assert "active" in str(refused.exception)
    assert command(*copy, "--while-active").exit_code == 0


@pytest.mark.parametrize("place", range(2))
def test_the_settings_that_the_page_shows_are_valid(tmp_path: Path, place: int) -> None:
    page = (Path(__file__).parents[2] / "docs" / "keep.md").read_text("utf-8")
    file = tmp_path / "flowtrail.toml"
    file.write_text(re.findall(r"```toml\n(.*?)```", page, re.DOTALL)[place])
    assert load(file, {}, asks_gateway=False).retention.keep_runs == dt.timedelta(days=400)


# ------------------------------------------------------------------------------------------- damage, and reading


def damage_an_index(engine: Engine, file: Path) -> None:
    """Take an entry out of an index, as a bad block would, and leave the table as it is."""
    engine.dispose()
    raw = sqlite3.connect(file, isolation_level=None)
    raw.execute("PRAGMA writable_schema = ON")
    sql = "SELECT sql FROM sqlite_master WHERE name = 'ix_workflow_change_flow_id_change_set_id'"
    (made,) = raw.execute(sql).fetchone()
    partial = made + " WHERE change_set_id > 3"
    raw.execute("DROP INDEX ix_workflow_change_flow_id_change_set_id")
    raw.execute(partial)
    update = "UPDATE sqlite_master SET sql = ? WHERE name = 'ix_workflow_change_flow_id_change_set_id'"
    raw.execute(update, (made,))
    raw.close()


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_a_damaged_index_that_hides_rows_is_found(
    diary: Diary, tmp_path: Path, gateway: LocalGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    verify_story.write(diary)
    Program(tmp_path, gateway.url)
    monkeypatch.chdir(tmp_path)
    assert command("db", "check").exit_code == 0
    damage_an_index(diary.engine, tmp_path / "flowtrail.db")
    assert list(verify(diary.engine)) == [], "the replay does not use that index"
    for arguments in (["db", "check"], ["verify"]):
        done = command(*arguments)
        assert done.exit_code == 1, done.stdout
        assert "ix_workflow_change_flow_id_change_set_id" in done.stdout
    assert command("db", "check", "--schema-only").exit_code == 0


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_a_check_that_would_block_writers_for_too_long_gives_up_and_reports_it(diary: Diary) -> None:
    with writing(diary.engine) as connection:
        rows = [{"run_id": 1, "target_id": 1, "verdict": "failed", "message": "m"}] * 20_000
        connection.execute(sync_issue.insert(), rows)
    found = integrity(diary.engine, limit_seconds=1e-9)
    assert found.damage == ()
    assert "sync_issue" in found.unfinished
    assert integrity(diary.engine, limit_seconds=0).unfinished == ()


READING = (
    ["status"], ["flows"], ["flows", "--as-of", "now"], ["changes"], ["history", "1"], ["guard", "list"],
    ["export", "changes"], ["verify"], ["verify", "--head"], ["db", "current"], ["db", "check"], ["db", "upgrade"],
    ["prune"], ["backup", "saved.db"], ["db", "copy", "--to", "sqlite:///other.db", "--upgrade"],
    ["report", "-o", "page.html"],
)  # fmt: skip
ASKING = (["sync"], ["plan"], ["serve"], ["check"], ["guard", "approve", "--all"])


def test_an_auditor_with_the_database_alone_can_use_every_command_that_reads(
    inside: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert command("sync").exit_code == 0
    monkeypatch.delenv("FLOWTRAIL_GATEWAY__SECRET_KEY")
    remote = tmp_path / "auditor"
    remote.mkdir()
    (inside.folder / "flowtrail.db").rename(remote / "flowtrail.db")
    monkeypatch.chdir(remote)
    settings = remote / "flowtrail.toml"
    settings.write_text('[database]\nurl = "sqlite:///flowtrail.db"\n')
    for arguments in READING:
        done = command(*arguments)
        assert done.exit_code == 0, (arguments, done.exception)
    for arguments in ASKING:
        refused = command(*arguments)
        assert isinstance(refused.exception, ConfigError), arguments
        assert "gateway.url: is missing" in str(refused.exception)
    settings.write_text('[gateway]\nurl = "http://far.example.com"\n')
    assert "https" in str(command("status").exception), "what is written must still be right"
