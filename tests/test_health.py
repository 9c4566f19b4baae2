"""What `serve` says of itself over HTTP: alive, ready, fresh."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from program import KEY, SECRET, Program, Running

from etl.demo.faults import Fault
from etl.demo.gateway import DemoGateway
from etl.demo.world import World
from etl.model import Flow

ORG, ANN = "o1", "ann"


@pytest.fixture
def gateway() -> Iterator[DemoGateway]:
    world = World(orgs=0)
    world.set_flows(ORG, ANN, [Flow("1", "one", "D", True)])
    with DemoGateway(world, access_key=KEY, secret_key=SECRET) as gateway:
        yield gateway


@pytest.fixture
def flowtrail(tmp_path: Path, gateway: DemoGateway) -> Program:
    program = Program(tmp_path, gateway.url)
    program.configure(listen=f"127.0.0.1:{free_port()}")
    program.schedule("plants", [(ORG, [ANN])], when='every = "1s"')
    return program


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(service: Running, path: str) -> tuple[int, dict[str, Any]]:
    url = service.wait_for("listening")["url"]
    try:
        with urllib.request.urlopen(url + path, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_a_service_at_work_is_alive_ready_and_fresh_and_shows_its_page(flowtrail: Program) -> None:
    service = flowtrail.start("serve")
    service.wait_for("run_ended")
    assert ask(service, "/healthz") == (200, {"status": "ok"})
    assert ask(service, "/readyz") == (200, {"status": "ready", "role": "active"})
    assert ask(service, "/freshness")[0] == 200
    url = service.wait_for("listening")["url"]
    with urllib.request.urlopen(url + "/", timeout=30) as page:
        assert b"Flowtrail" in page.read()
    assert service.stop() == 0


def test_a_gateway_that_stays_away_makes_it_stale_but_leaves_it_alive(flowtrail: Program, gateway: DemoGateway) -> None:
    service = flowtrail.start("serve")
    service.wait_for("run_ended")
    gateway.order(Fault("status", status=403, times=None))
    service.wait_for("run_ended", lambda entry: entry["status"] == "failed", times=5)
    status, body = ask(service, "/freshness")
    assert (status, body["overdue"]) == (503, 1)
    assert body["targets"][0]["target"] == f"{ORG}/{ANN}"
    assert ask(service, "/healthz")[0] == 200
    assert ask(service, "/readyz")[0] == 200
    assert service.stop() == 0


def test_a_target_that_enos_refuses_for_good_is_named_but_pages_nobody(
    flowtrail: Program, gateway: DemoGateway
) -> None:
    service = flowtrail.start("serve")
    service.wait_for("run_ended")
    gateway.world.remove_user(ORG, ANN)
    service.wait_for("run_ended", lambda entry: entry["status"] == "failed", times=5)
    status, body = ask(service, "/freshness")
    assert (status, body["refused_targets"]) == (200, [f"{ORG}/{ANN}"])
    assert service.stop() == 0


def test_an_address_that_is_taken_is_said_and_stops_no_sync(flowtrail: Program) -> None:
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
