"""Fixtures for tests of every level: a gateway, a program, a receiver, and the databases, which unit tests refuse."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from etl.demo.world import World
from etl.domain.model import Flow
from tests.support.enos import LocalGateway
from tests.support.program import ANN, KEY, ORG, SECRET, Program
from tests.support.receiver import HttpReceiver

pytest_plugins = ("tests.support.databases", "tests.support.trails")

# A test says what is true, not how fast: on a busy machine an example takes as long as it takes.
settings.register_profile("flowtrail", deadline=None)
settings.load_profile("flowtrail")


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """End with what was not tested: `pytest_terminal_summary` would come before the line that looks like success."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None and (skipped := terminal.stats.get("skipped")):
        terminal.write_line(not_run(report.longrepr[2].removeprefix("Skipped: ") for report in skipped), yellow=True)


def not_run(reasons: Iterable[str]) -> str:
    """A sentence on skipped tests, from their reasons: "no Chromium: apt-get install chromium"."""
    counted = Counter(reasons)
    lacks: Counter[str] = Counter()
    remedies = defaultdict[str, set[str]](set)
    for reason, count in counted.items():
        lack, _, remedy = reason.partition(": ")
        lacks[lack] += count
        command, install, packages = remedy.partition(" install ")
        if install:
            remedies[f"{command} install"].update(packages.split())
    what = ", ".join(f"{lack} ({count})" for lack, count in sorted(lacks.items(), key=lambda each: (-each[1], each[0])))
    how = " ".join(f"`{command} {' '.join(sorted(packages))}`" for command, packages in sorted(remedies.items()))
    return f"{counted.total()} not run: {what}{': ' if how else ''}{how}"


@pytest.fixture
def gateway() -> Iterator[LocalGateway]:
    """A gateway at which Ann sees one workflow; a module may add more."""
    world = World(orgs=0)
    world.set_flows(ORG, ANN, [Flow("1", "one", "D", True)])
    with LocalGateway(world, access_key=KEY, secret_key=SECRET) as gateway:
        yield gateway


@pytest.fixture
def flowtrail(tmp_path: Path, gateway: LocalGateway) -> Program:
    """The program, with a schedule that asks for Ann's workflows every second."""
    program = Program(tmp_path, gateway.url)
    program.schedule("plants", [(ORG, [ANN])], when='every = "1s"')
    return program


@pytest.fixture
def receiver() -> Iterator[HttpReceiver]:
    """A receiver of notifications."""
    with HttpReceiver() as receiver:
        yield receiver
