"""`flowtrail serve` as a process: it stops, reloads its schedules and its secret, and stands by."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import Engine, func, select

from etl.config import Schedule
from etl.config.slots import Every
from etl.database import reading
from etl.domain.model import Flow, Target
from etl.schema import observation, target
from etl.store import Store
from tests.support.enos import Fault, LocalGateway
from tests.support.program import ANN, ORG, SECRET, Program
from tests.support.served import PATIENCE_SECONDS, Clock, Served, wait_until

BOB = "bob"


@pytest.fixture
def gateway(gateway: LocalGateway) -> LocalGateway:
    gateway.world.set_flows(ORG, BOB, [Flow("2", "two", "D", True)])
    return gateway


@pytest.fixture
def flowtrail(flowtrail: Program) -> Program:
    flowtrail.schedule("plants", [(ORG, [ANN, BOB])], when='every = "1s"')
    return flowtrail


def test_a_second_signal_does_not_interrupt_the_shutdown(flowtrail: Program) -> None:
    """It was an exception in the middle of closing a connection, and a traceback in the log."""
    service = flowtrail.start("serve")
    service.wait_for("run_ended")
    service.process.send_signal(signal.SIGTERM)
    service.wait_for("stopped")
    while service.process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            service.process.send_signal(signal.SIGTERM)
    assert service.ended() == 0
    assert [entry for entry in service.log if "traceback" in entry or not entry["event"]] == []


def test_an_unreadable_secret_fails_runs_with_its_name_until_it_is_readable(
    flowtrail: Program, gateway: LocalGateway
) -> None:
    """It is read again for each token; a token that is still good needs none."""
    file = flowtrail.folder / "secret"
    file.write_text(SECRET)
    file.chmod(0o600)
    flowtrail.configure(gateway=f'secret_key_file = "{file.name}"')
    service = flowtrail.start("serve", FLOWTRAIL_GATEWAY__SECRET_KEY="")
    service.wait_for("run_ended")
    away = file.rename(file.with_name("away"))
    gateway.order(Fault("expired", times=1))
    failed = service.wait_for("run_ended", lambda entry: entry["status"] == "failed")
    named = service.wait_for("targets_not_through")
    assert (named["error_code"], str(file) in named["message"]) == ("secret", True)
    away.rename(file)
    service.wait_for("run_ended", lambda e: e["status"] == "succeeded" and e["run_id"] > failed["run_id"])
    assert service.stop() == 0


def test_sighup_reads_the_schedules_again_and_keeps_the_old_ones_when_a_file_is_broken(flowtrail: Program) -> None:
    service = flowtrail.start("serve")
    service.wait_for("run_ended")
    broken = flowtrail.folder / "schedules" / "broken.toml"
    os.mkfifo(broken)
    service.process.send_signal(signal.SIGHUP)
    told = service.wait_for("schedules_broken")
    assert "it is a pipe, not a regular file" in str(told["problems"])
    runs_then = len([entry for entry in service.log if entry["event"] == "run_ended"])
    service.wait_for("run_ended", times=runs_then + 1)
    broken.unlink()
    flowtrail.schedule("more", [(ORG, [ANN])], when='every = "1s"')
    service.process.send_signal(signal.SIGHUP)
    service.wait_for("schedules_reloaded")
    service.wait_for("run_ended", lambda entry: entry["schedule"] == "more")
    assert service.stop() == 0


def test_a_standby_takes_over_from_a_killed_leader(flowtrail: Program) -> None:
    leader = flowtrail.start("serve")
    first = leader.wait_for("active")["replica"]
    standby = flowtrail.start("serve")
    assert standby.wait_for("standing_by")["active"] == first
    refused = flowtrail("serve", "--no-standby")
    assert refused.returncode == 4
    leader.stop(signal.SIGKILL)
    assert standby.wait_for("active")["instead_of"] == first
    standby.wait_for("run_ended")
    assert standby.stop() == 0


def test_a_frozen_leader_that_wakes_up_writes_nothing_wrong(flowtrail: Program, gateway: LocalGateway) -> None:
    frozen = flowtrail.start("serve")
    frozen.wait_for("run_ended")
    held_up = gateway.order(Fault("delay", seconds=1.0, user=BOB))
    assert held_up.reached.wait(60)
    frozen.process.send_signal(signal.SIGSTOP)
    successor = flowtrail.start("serve")
    successor.wait_for("active")
    gateway.world.set_cycle(ORG, "2", "H")
    successor.wait_for("run_ended", lambda entry: entry.get("cycle_changed") == 1)
    frozen.process.send_signal(signal.SIGCONT)
    frozen.wait_for("standing_by")
    successor.wait_for("run_ended", times=3)
    assert (frozen.stop(), successor.stop()) == (0, 0)
    assert flowtrail("verify").returncode == 0
    assert flowtrail.rows("SELECT user_id, cycle FROM list_workflow") == [(ANN, "D"), (BOB, "H")]
    assert flowtrail.rows("SELECT count(*) FROM workflow_change WHERE kind <> 'baseline'") == [(1,)]


def test_a_target_dropped_from_the_schedules_in_mid_run_is_retired_after_the_run(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise its last targets, requested after the retirement, would come back and stay for ever."""
    monkeypatch.setattr("etl.sync.runner.BATCH_SIZE", 1)
    gone = [Target(ORG, f"gone{number}") for number in range(6)]
    kept = [Target("o2", f"kept{number}") for number in range(30)]
    every, never = Every(dt.timedelta(seconds=1)), Every(dt.timedelta(days=36_500))
    plants = Schedule(name="plants", path=tmp_path, slots=every, targets=gone)
    others = Schedule(name="others", path=tmp_path, slots=never, targets=kept)
    Store(engine).fences([*gone, *kept])
    reloaded = threading.Event()

    def asked(target: Target) -> None:
        if not reloaded.is_set():
            served.schedules = [others]
            served.service.reload()
            assert reloaded.wait(PATIENCE_SECONDS)

    with Served(engine, [plants, others], Clock(), asked) as served:
        wait_until(lambda: served.service.schedules == [others])
        known_at = time.monotonic()
        served.service.reload()
        wait_until(lambda: served.service._loop_alive_at > known_at)
        retired_meanwhile = retired(engine)
        reloaded.set()
        served.wait_for_another_run()
        assert retired_meanwhile == 0, "not while they are asked for"
        wait_until(lambda: retired(engine) == len(gone))
    with reading(engine) as connection:
        late = select(func.count()).select_from(target).join(observation, observation.c.target_id == target.c.id)
        assert connection.execute(late.where(observation.c.last_at > target.c.retired_at)).scalar_one() == 0


def retired(engine: Engine) -> int:
    with reading(engine) as connection:
        return connection.execute(select(func.count()).where(target.c.retired_at.is_not(None))).scalar_one()
