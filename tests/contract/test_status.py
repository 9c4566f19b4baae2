"""`status` over more targets than anybody reads: what is wrong is counted by cause, and the lists end."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator

import pytest
from click.testing import CliRunner, Result

from etl.cli import app
from etl.database import connect
from etl.demo.world import World
from etl.service.replica import LEASE
from etl.store import Store
from tests.support.builders import numbered
from tests.support.enos import Fault, LocalGateway
from tests.support.program import ANN, KEY, ORG, SECRET, Program

NOBODIES = [f"nobody{number:03}" for number in range(60)]


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """Sixty users whom EnOS does not know, one whom it knows, and one whose answers fail."""
    world = World(orgs=0)
    world.set_flows(ORG, ANN, numbered(1, 3))
    with LocalGateway(world, access_key=KEY, secret_key=SECRET) as gateway:
        gateway.order(Fault("status", status=403, user="bob", times=None))
        program = Program(tmp_path_factory.mktemp("failing"), gateway.url)
        program.configure(gateway='timeout = "30s"\ndeadline = "60s"')
        program.schedule("plants", [(ORG, [ANN, "bob", *NOBODIES])])
        assert program("sync").returncode == 1
        yield program


@pytest.fixture
def run(failing: Program, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """A command of the program, in this process."""
    monkeypatch.chdir(failing.folder)
    environment = {"COLUMNS": "200", "FLOWTRAIL_GATEWAY__SECRET_KEY": SECRET}
    return lambda *arguments: CliRunner().invoke(app, arguments, env=environment)


def named(text: str) -> int:
    return sum("nobody" in line for line in text.splitlines())


def test_problems_are_counted_by_cause_and_the_first_are_named(run: Callable[..., Result]) -> None:
    synced = run("sync").stdout
    assert named(synced) == 49
    assert "And 11 more" in synced
    causes = [line.split() for line in synced.partition("By cause")[2].splitlines()[2:4]]
    assert causes == [["62101", "60"], ["http_403", "1"]]
    done = run("status")
    assert done.exit_code == 0
    by_cause = done.stdout.partition("Problems by cause")[2].partition("Targets with problems")[0].splitlines()
    assert [line.split()[:3] for line in by_cause if line.startswith(("62101", "http"))] == [
        ["62101", "60", "1"],
        ["http_403", "1", "1"],
    ]
    assert named(done.stdout.partition("Targets with problems")[2]) == 49, "and bob: the first fifty"
    assert "--limit 0 shows all" in done.stderr
    assert named(run("status", "--limit", "0").stdout.partition("Targets with problems")[2]) == 60
    assert "--limit" not in run("status", "--limit", "0").stderr


@pytest.mark.parametrize(("limit", "listed"), [((), 61), (("--limit", "7"), 7), (("--limit", "0"), 61)])
def test_as_json_the_causes_count_all_and_the_lists_end_where_asked(
    run: Callable[..., Result], limit: tuple[str, ...], listed: int
) -> None:
    said = json.loads(run("status", *limit, "--json").stdout)
    assert {each["cause"]: each["targets"] for each in said["causes"]} == {"62101": 60, "http_403": 1}
    assert len(said["problems"]) == listed
    assert [*said] == [
        "active",
        "conditions",
        "verified",
        "freshness",
        "schedules",
        "webhooks",
        "overdue",
        "runs",
        "causes",
        "problems",
    ]


def test_of_many_schedules_those_with_overdue_targets_come_first(run: Callable[..., Result], failing: Program) -> None:
    """The last test: it changes what the others look at."""
    for number in range(60):
        failing.schedule(f"s{number:02}", [(ORG, [ANN])])
    shown = run("status")
    assert (
        sum(line.startswith(("s0", "s1", "s2", "s3", "s4", "s5", "plants")) for line in shown.stdout.splitlines()) == 50
    )
    assert "There are more than these 50: --limit 0 shows all." in shown.stderr
    assert len(json.loads(run("status", "--json").stdout)["schedules"]) == 61


def test_the_runs_are_listed_and_one_says_why_targets_did_not_go_through(run: Callable[..., Result]) -> None:
    *_, listed = json.loads(run("runs", "--status", "partial", "--json").stdout)
    assert (listed["targets"], listed["failed"]) == (62, 61)
    assert "partial" in run("runs").stdout
    assert run("runs", "--schedule", "none").stdout == "No such runs.\n"
    found = json.loads(run("runs", str(listed["id"]), "--json").stdout)
    assert [(each["error_code"], each["targets"]) for each in found.pop("causes")] == [("62101", 60), ("http_403", 1)]
    assert found == listed
    assert "by cause" in run("runs", str(listed["id"])).stdout
    assert "`flowtrail runs` lists them" in str(run("runs", "99").exception)


def test_a_replica_whose_process_is_gone_is_not_active(run: Callable[..., Result], failing: Program) -> None:
    with subprocess.Popen(["true"]) as process:
        pass
    engine = connect(f"sqlite:///{failing.folder / 'flowtrail.db'}")
    store, (gone, there) = Store(engine), (f"{socket.gethostname()}/{pid}/x" for pid in (process.pid, os.getpid()))
    try:
        for holder, active, said in ((gone, None, f"the process of {gone} is gone"), (there, there, f"on {there}")):
            assert store.take_lease(LEASE, holder)
            assert json.loads(run("status", "--json").stdout)["active"] == active
            assert said in run("status").stdout
            store.release_lease(LEASE, holder)
    finally:
        engine.dispose()


def test_schedules_that_cannot_be_read_are_a_condition_beside_all_that_is_known(
    run: Callable[..., Result], failing: Program
) -> None:
    """A monitor takes exit code 2 for: nothing can be said."""
    broken = failing.folder / "schedules" / "broken.toml"
    broken.write_text('every = "1 fortnight"\n')
    try:
        done, table = run("status", "--json"), run("status")
    finally:
        broken.unlink()
    said = json.loads(done.stdout)
    assert (done.exit_code, table.exit_code) == (0, 0)
    [found] = [each for each in said["conditions"] if each["code"] == "schedules_broken"]
    assert "broken.toml" in found["sentence"]
    assert found["sentence"] in table.stdout
    assert (said["freshness"], said["schedules"], len(said["problems"])) == (None, [], 61)
