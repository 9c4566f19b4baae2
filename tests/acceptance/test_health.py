"""The health of `serve` over HTTP: alive, ready, fresh."""

from __future__ import annotations

import datetime as dt
import json
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, make_url

from etl.config import Schedule
from etl.config.slots import Every
from etl.database import connect
from etl.domain.model import Target
from etl.service.replica import STUCK_SECONDS
from etl.system.clock import utc_now
from etl.web.health import Health, health_only, health_routes
from etl.web.server import HttpServer
from tests.support import postgres as local_postgres
from tests.support.enos import Fault, LocalGateway
from tests.support.postgres import free_port
from tests.support.program import ANN, ORG, PATIENCE_SECONDS, Program, Running
from tests.support.served import Clock, Served, wait_until


@pytest.fixture
def flowtrail(flowtrail: Program) -> Program:
    flowtrail.configure(listen=f"127.0.0.1:{free_port()}")
    return flowtrail


def ask(service: Running, path: str, **headers: str) -> tuple[int, dict[str, Any]]:
    status, body = service.get(path, **headers)
    return status, json.loads(body)


def test_a_gateway_that_stays_away_makes_it_stale_but_leaves_it_alive(
    flowtrail: Program, gateway: LocalGateway
) -> None:
    service = flowtrail.start("serve")
    service.wait_for("run_ended")
    gateway.order(Fault("status", status=403, times=None))
    service.wait_for("run_ended", lambda entry: entry["status"] == "failed", times=5)
    status, body = ask(service, "/freshness")
    assert (status, body["overdue"]) == (503, 1)
    assert body["targets"][0]["target"] == f"{ORG}/{ANN}"
    assert ask(service, "/healthz")[0] == 200
    assert ask(service, "/readyz")[0] == 200
    said = flowtrail.json("status")
    assert (said["freshness"]["status"], said["overdue"][0]["user_id"]) == ("overdue", ANN)
    assert service.stop() == 0


def test_a_clock_that_went_back_is_reported_everywhere_and_hides_no_failures(
    flowtrail: Program, gateway: LocalGateway
) -> None:
    """What was recorded while the clock was a month ahead is no observation, and no slot waits for it."""
    assert flowtrail("sync").returncode == 0
    flowtrail.execute(
        "UPDATE observation SET first_at = :at, last_asked_at = :at, last_at = :at",
        "UPDATE sync_run SET schedule = 'plants', origin = 'schedule', scheduled_for = :at, started_at = :at, "
        "heartbeat_at = :at, finished_at = :at",
        "INSERT INTO lease VALUES ('service', 'a service that was killed then', :at)",
        at=f"{utc_now() + dt.timedelta(days=30):%Y-%m-%d %H:%M:%S.%f}",
    )
    gateway.order(Fault("status", status=403, times=None))
    service = flowtrail.start("serve")
    service.wait_for("active")
    service.wait_for("run_ended", lambda entry: entry["status"] == "failed", times=4)
    status, body = ask(service, "/freshness")
    assert (status, body["overdue"]) == (503, 1)
    assert {each["code"] for each in body["conditions"]} == {"targets_failing", "targets_overdue", "clock_off"}
    assert 'flowtrail_condition{code="clock_off"} 1.0' in service.get("/metrics")[1]
    said = flowtrail("status").stdout
    assert "The clock went back: a target has an observation that lies ahead of now" in said
    assert "NTP" in said
    gateway.clear_faults()
    service.wait_for("run_ended", lambda entry: entry["status"] == "succeeded")
    status, body = ask(service, "/freshness")
    assert (status, body["overdue"]) == (200, 0)
    assert service.stop() == 0
    assert "clock_off" in [each["code"] for each in flowtrail.json("status")["conditions"]]


def test_a_taken_address_is_reported_and_stops_no_sync(flowtrail: Program) -> None:
    first = flowtrail.start("serve")
    first.wait_for("listening")
    second = flowtrail.start("serve")
    told = second.wait_for("not_listening")
    assert "another program listens there" in told["error"]
    second.wait_for("standing_by")
    assert (first.stop(), second.stop()) == (0, 0)


def test_the_demo_keeps_its_page_up_until_it_is_stopped(flowtrail: Program) -> None:
    demo = flowtrail.start("demo", "--folder", "story", "--serve", "--listen", f"127.0.0.1:{free_port()}")
    assert demo.process.stdout is not None
    url = next(line for line in demo.process.stdout if line.startswith("The page:")).split()[2]
    with urllib.request.urlopen(url, timeout=30) as page:
        assert b"Overview" in page.read()
    assert demo.stop() == 0


# ------------------------------------------------------------------------------------------- names and settings


def test_further_names_are_a_setting_and_a_probe_needs_none(flowtrail: Program) -> None:
    """With the page switched off, which leaves health and metrics alone."""
    port = free_port()
    flowtrail.configure(listen=f"127.0.0.1:{port}", rest='page = false\nhosts = ["flowtrail", "Flowtrail.example.com"]')
    service = flowtrail.start("serve")
    hosts = {"10.1.2.3": 200, "flowtrail:80": 200, "flowtrail.example.com": 200, "evil.test": 421}
    assert {host: service.get("/metrics", Host=host)[0] for host in hosts} == hosts
    assert "[service] hosts" in service.get("/healthz", Host="evil.test")[1]
    assert service.get("/")[0] == 404
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS) as probe:
        probe.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert probe.makefile().read().startswith("HTTP/1.1 200")
    assert service.stop() == 0


# ------------------------------------------------------------------------------------------- a database that is away


@pytest.fixture
def away(dialect: str, database_url: str, request: pytest.FixtureRequest) -> Callable[[], AbstractContextManager[None]]:
    """While the block runs, SQLite's file is locked and does not answer, or PostgreSQL lets nobody in."""
    if dialect == "sqlite":
        return partial(locked, database_url.removeprefix("sqlite:///"))
    return partial(closed_to_all, request.getfixturevalue("postgres"), database_url)


@contextmanager
def locked(file: str) -> Iterator[None]:
    with closing(sqlite3.connect(file, timeout=PATIENCE_SECONDS, isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        yield


@contextmanager
def closed_to_all(server: local_postgres.Server, url: str) -> Iterator[None]:
    name = make_url(url).database
    with psycopg.connect(server.conninfo("postgres"), autocommit=True) as other:
        other.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        other.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
        try:
            yield
        finally:
            other.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


def test_an_unreachable_database_is_reported_at_once_and_ends_no_process(
    gateway: LocalGateway, tmp_path: Path, database_url: str, away: Callable[[], AbstractContextManager[None]]
) -> None:
    program = Program(tmp_path, gateway.url, database_url)
    program.configure(listen=f"127.0.0.1:{free_port()}")
    program.schedule("plants", [(ORG, [ANN])], when='every = "1s"')
    service = program.start("serve")
    service.wait_for("run_ended")
    with away():
        found: dict[str, tuple[int, str]] = {}
        paths = ("/healthz", "/readyz", "/freshness", "/metrics", "/")
        askers = [threading.Thread(target=lambda path=path: found.update({path: service.get(path)})) for path in paths]
        for asker in askers:
            asker.start()
        for asker in askers:
            asker.join(PATIENCE_SECONDS)
        assert {path: status for path, (status, _) in found.items()} == dict(
            zip(paths, (200, 503, 503, 200, 503), strict=True)
        )
        assert "flowtrail_database_up 0.0" in found["/metrics"][1]
        assert "flowtrail_targets 1.0" not in found["/metrics"][1], "what is not known is not told"
        so_far = len([entry for entry in service.log if entry["event"] == "run_ended"])
    service.wait_for("run_ended", lambda entry: entry["status"] == "succeeded", times=so_far + 2)
    assert ask(service, "/readyz") == (200, {"status": "ready", "role": "active", "conditions": []})
    assert ask(service, "/healthz") == (200, {"status": "ok"})
    assert "flowtrail_database_up 1.0" in service.get("/metrics")[1]
    assert service.get("/")[0] == 200
    assert service.stop() == 0


def test_a_database_that_cannot_be_written_makes_it_unready_until_it_can(
    gateway: LocalGateway, tmp_path: Path, postgres: local_postgres.Server, migrated_postgres: str
) -> None:
    """It answers, and yet no run can be recorded: as on a standby, or in a file system that was mounted read-only."""
    program = Program(tmp_path, gateway.url, f"postgresql+psycopg://reads:x@127.0.0.1:{postgres.port}/only_read")
    program.configure(listen="127.0.0.1:0")
    program.schedule("plants", [(ORG, [ANN])], when='every = "1s"')
    with psycopg.connect(postgres.conninfo("postgres"), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE only_read TEMPLATE {migrated_postgres} STRATEGY wal_log")
        admin.execute("CREATE ROLE reads LOGIN PASSWORD 'x'")
    with psycopg.connect(postgres.conninfo("only_read"), autocommit=True) as admin:
        admin.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO reads")
        service = program.start("serve")
        service.wait_for("run_ended")
        admin.execute("REVOKE INSERT, UPDATE ON lease FROM reads")
        told = service.wait_for("database_unreachable", lambda entry: "permission denied" in entry["error"])
        status, body = ask(service, "/readyz")
        assert (status, body["role"], "cannot write" in body["error"]) == (503, "database_unreachable", True)
        assert (ask(service, "/healthz")[0], service.get("/")[0]) == (200, 200)
        admin.execute("GRANT ALL ON lease TO reads")
        active = service.wait_for("active", lambda entry: service.log.index(entry) > service.log.index(told))
        service.wait_for("run_ended", lambda entry: service.log.index(entry) > service.log.index(active))
        assert ask(service, "/readyz")[0] == 200
        assert service.stop() == 0


def test_a_silent_database_does_not_hold_up_the_end_beyond_the_grace_period(
    gateway: LocalGateway, tmp_path: Path, postgres: local_postgres.Server, migrated_postgres: str
) -> None:
    """Whoever has the lease's table locked is waited for a minute, again and again."""
    with psycopg.connect(postgres.conninfo("postgres"), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE silent TEMPLATE {migrated_postgres} STRATEGY wal_log")
    program = Program(tmp_path, gateway.url, postgres.url("silent"))
    program.configure(rest='grace = "1s"')
    program.schedule("plants", [(ORG, [ANN])])
    service = program.start("serve")
    service.wait_for("active")
    with psycopg.connect(postgres.conninfo("silent")) as other:
        other.execute("LOCK TABLE lease IN ACCESS EXCLUSIVE MODE")
        assert service.stop() == 0
    assert service.log[-1]["event"] == "ended_by_force"


def test_freshness_names_a_hundred_schedules_the_overdue_ones_first(engine_of_file: Engine) -> None:
    """With ten thousand of them, a probe would get a megabyte every few seconds."""
    schedules = [
        Schedule(name=f"s{n:03}", path=Path("x"), slots=Every(dt.timedelta(hours=1)), targets=(Target(ORG, f"u{n}"),))
        for n in range(150)
    ]
    health = Health(
        engine_of_file,
        now=utc_now,
        is_progressing=lambda: True,
        role=lambda: "active",
        schedules=lambda: schedules,
        known_since=lambda: {"s149": utc_now() - dt.timedelta(hours=9)},
    )
    with HttpServer(health_only(health_routes(health), []), "127.0.0.1", 0) as server:
        with pytest.raises(urllib.error.HTTPError) as overdue:
            urllib.request.urlopen(f"{server.url}/freshness", timeout=PATIENCE_SECONDS)
        with overdue.value as answer:
            said = json.load(answer)
    assert (said["overdue"], len(said["schedules"]), said["schedules_left_out"]) == (1, 100, 50)
    assert [*said["schedules"]][:2] == ["s149", "s000"]


# ------------------------------------------------------------------------------------------- a stop while it starts


def test_sigterm_while_it_waits_for_its_database_ends_the_start_with_0(flowtrail: Program) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        flowtrail.database_url = f"postgresql+psycopg://nobody@127.0.0.1:{silent.getsockname()[1]}/none"
        flowtrail.configure()
        service = flowtrail.start("serve")
        silent.settimeout(PATIENCE_SECONDS)
        connection, _ = silent.accept()
        with connection:
            assert service.stop() == 0


def test_sigterm_while_the_program_still_loads_ends_it_with_0(flowtrail: Program, tmp_path: Path) -> None:
    """It is held up at the first module that it loads, which says so."""
    (tmp_path / "click.py").write_text("import time\nprint('loading', flush=True)\ntime.sleep(60)")
    loading = subprocess.Popen(
        [sys.executable, "-m", "etl", "serve"],
        cwd=flowtrail.folder,
        env={**flowtrail.environment, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
    )
    assert loading.stdout is not None
    with loading.stdout as said:
        assert said.readline() == b"loading\n"
        loading.send_signal(signal.SIGTERM)
        assert loading.wait(PATIENCE_SECONDS) == 0


# ------------------------------------------------------------------------------------------- turning over


@pytest.fixture
def engine_of_file(migrated_sqlite: Path, tmp_path: Path) -> Iterator[Engine]:
    engine = connect(f"sqlite:///{shutil.copy(migrated_sqlite, tmp_path / 'flowtrail.db')}")
    yield engine
    engine.dispose()


def test_waiting_for_the_database_does_not_count_as_stuck(engine_of_file: Engine) -> None:
    with Served(engine_of_file, (), Clock()) as served, locked(str(engine_of_file.url.database)):
        service = served.service
        wait_until(lambda: service._waits_for_database)
        service._loop_alive_at -= 2 * STUCK_SECONDS
        assert service.is_progressing


def test_a_service_whose_loop_or_scheduler_hangs_reports_that_it_is_stuck(
    engine_of_file: Engine,
) -> None:
    goes_on, hangs = threading.Event(), threading.Event()
    goes_on.set()

    def load() -> Sequence[Schedule]:
        if not goes_on.is_set():
            hangs.set()
            assert goes_on.wait(PATIENCE_SECONDS)
        return ()

    with Served(engine_of_file, load, Clock()) as served:
        service = served.service
        wait_until(lambda: service.role == "active")
        assert service.is_progressing
        goes_on.clear()
        service.reload()
        assert hangs.wait(PATIENCE_SECONDS)
        service._loop_alive_at -= 2 * STUCK_SECONDS
        assert not service.is_progressing
        goes_on.set()
        wait_until(lambda: service.is_progressing)
        service._scheduler_alive_at -= 2 * STUCK_SECONDS
        assert not service.is_progressing
