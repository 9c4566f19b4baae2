"""Fixtures for tests of every level: a gateway, a program, a receiver, and the databases, which unit tests refuse."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from etl.demo.gateway import DemoGateway
from etl.demo.world import World
from etl.domain.model import Flow
from tests.support.program import ANN, KEY, ORG, SECRET, Program
from tests.support.receiver import HttpReceiver

pytest_plugins = ("tests.support.databases",)


@pytest.fixture
def gateway() -> Iterator[DemoGateway]:
    """A gateway at which Ann sees one workflow; a module may add more."""
    world = World(orgs=0)
    world.set_flows(ORG, ANN, [Flow("1", "one", "D", True)])
    with DemoGateway(world, access_key=KEY, secret_key=SECRET) as gateway:
        yield gateway


@pytest.fixture
def flowtrail(tmp_path: Path, gateway: DemoGateway) -> Program:
    """The program, with a schedule that asks for Ann's workflows every second."""
    program = Program(tmp_path, gateway.url)
    program.schedule("plants", [(ORG, [ANN])], when='every = "1s"')
    return program


@pytest.fixture
def receiver() -> Iterator[HttpReceiver]:
    """A receiver of notifications."""
    with HttpReceiver() as receiver:
        yield receiver
