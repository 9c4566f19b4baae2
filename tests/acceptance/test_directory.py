"""``directory = "USER"``: EnOS's own list of an organisation as the real program asks for it, compares and shows it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from etl.demo.world import World
from etl.domain.model import Flow
from tests.support.enos import Fault, LocalGateway
from tests.support.enos.services import DirectoryShape
from tests.support.program import ANN, KEY, ORG, SECRET, Program

BOB = "bob"


@pytest.fixture
def world() -> World:
    world = World(orgs=0)
    for user in (ANN, BOB):
        world.set_flows(ORG, user, [Flow(str(number), f"w_{number}", "D", True) for number in range(1, 9)])
    world.add_flow(ORG, Flow("99", "of_nobody", "D", True), ())
    return world


@pytest.fixture
def gateway(world: World) -> Iterator[LocalGateway]:
    with LocalGateway(world, access_key=KEY, secret_key=SECRET) as gateway:
        yield gateway


@pytest.fixture
def flowtrail(tmp_path: Path, gateway: LocalGateway) -> Program:
    program = Program(tmp_path, gateway.url)
    (program.folder / "schedules" / "plants.toml").write_text(
        f'every = "1h"\n[[targets]]\norg = "{ORG}"\nusers = ["{ANN}", "{BOB}"]\ndirectory = "{ANN}"\n'
    )
    return program


def checked(program: Program, *more: str) -> dict[str, tuple[bool, str]]:
    return {each["what"]: (each["ok"], each["said"]) for each in json.loads(program("check", "--json", *more).stdout)}


def test_check_compares_the_directory_with_the_lists_of_the_users(
    flowtrail: Program, world: World, gateway: LocalGateway
) -> None:
    found = checked(flowtrail, "--record", "answers.json")
    assert found[f"target {ORG}/(directory)"] == (True, "9 workflows and 1 other file, as ann")
    assert found[f"directory of {ORG}"] == (
        True,
        "it has all 8 that users list; in no user's list: 1 of its 9 workflows, such as 99",
    )
    assert "a run sends 3 requests (1 for a directory), and" in found["load of plants"][1]
    calls = [each["call"] for each in json.loads((flowtrail.folder / "answers.json").read_text())["exchanges"]]
    assert calls.count("directory") == 1
    for flow in ("3", "5"):
        world.leave_out(ORG, flow)
    world.set_flows(ORG, BOB, world.flows(ORG, BOB)[:1])
    ok, said = checked(flowtrail)[f"directory of {ORG}"]
    assert not ok
    assert said.startswith("no complete witness: it lacks 2 that users list, such as 3 (of ann), 5 (of ann); ")
    gateway.order(Fault("code", times=None, user=BOB, code=62103))
    assert checked(flowtrail)[f"directory of {ORG}"][1].endswith("; 1 list did not come")
    gateway.directory_shape = DirectoryShape(levels=65)
    found = checked(flowtrail)
    assert "more than 64 levels" in found[f"target {ORG}/(directory)"][1]
    assert found[f"directory of {ORG}"] == (False, "not compared with the users' lists: it gave no valid answer")


def test_a_recording_has_the_directory_also_where_none_is_configured(flowtrail: Program) -> None:
    flowtrail.schedule("plants", [(ORG, [ANN])])
    found = checked(flowtrail, "--record", "answers.json")
    assert found["List Workflow Directories (for the recording)"] == (True, "9 workflows")
    exchanges = json.loads((flowtrail.folder / "answers.json").read_text())["exchanges"]
    (tree,) = (each["body"]["data"] for each in exchanges if each["call"] == "directory")
    assert (tree["list"], tree["levels"]) == (14, 3)


def test_what_was_taken_from_everybody_is_told_from_what_was_deleted(
    flowtrail: Program, world: World, gateway: LocalGateway
) -> None:
    assert flowtrail.json("sync")["targets"]["total"] == 3
    world.unlist(ORG, "2")
    world.remove_flow(ORG, "3")
    for _ in range(2):  # that all were without it at one moment is known from the second on
        flowtrail.json("sync")
    assert {each["flow_id"]: each["in_directory"] for each in flowtrail.json("events")} == {"2": True, "3": False}
    assert "gone from every list, still in the directory, cycle day" in flowtrail("events").stdout
    assert [each["flow_id"] for each in flowtrail.json("workflows", "--unlisted")] == ["2", "99"]
    assert flowtrail("workflows", "--unlisted", "--as-of", "now").returncode == 2
    gateway.order(Fault("outage", times=None, endpoint="directory"))
    assert flowtrail("sync").returncode == 1
    assert "(directory)" in flowtrail("status").stdout
    asked = flowtrail("workflows", "--unlisted")
    assert "The directory of o1 fails (connection): it was observed last at 20" in asked.stderr
    assert asked.returncode == 0
    assert {each["user_id"] for each in flowtrail.json("changes", "--user", "(directory)")} == {""}
    assert "Nothing is held for o1/(directory)" in flowtrail("guard", "approve", ORG, "(directory)").stderr
    (row,) = (each for each in flowtrail.json("status")["problems"] if not each["user_id"])
    assert row["last_error_code"] == "connection"


def test_who_asks_what_no_user_sees_is_told_of_an_incomplete_directory(flowtrail: Program, world: World) -> None:
    for _ in range(2):
        flowtrail.json("sync")
        world.leave_out(ORG, "5")
    assert "lacks" not in flowtrail("workflows", "--unlisted").stderr
    flowtrail.json("sync")
    lacks = "The directory of o1 lacks 1 workflow that users list, such as 5 (of ann), since 20"
    assert lacks in flowtrail("workflows", "--unlisted").stderr
    assert lacks in flowtrail("status").stdout
