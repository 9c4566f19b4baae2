"""``users = "all"``: the organisation's roster gives the targets, and no failure of it can stop a run."""

from __future__ import annotations

import itertools
import json
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from etl.demo.world import World
from etl.domain.model import Flow
from tests.support.enos import Fault, Kind, LocalGateway
from tests.support.program import ANN, KEY, ORG, SECRET, Program
from tests.support.served import wait_until

USERS = [ANN, *(f"u{number}" for number in range(9))]
NOT_DUE = 'timeout = "30s"\ndeadline = "30s"'
ALWAYS_DUE = 'timeout = "30s"\ndeadline = "30s"\nroster_every = "1ms"'


class ChangingWorld(World):
    """A world whose users change while the pages of a roster are read."""

    def __init__(self) -> None:
        super().__init__(orgs=0)
        self.before_page: dict[int, Callable[[], None]] = {}
        self._pages = itertools.count(1)

    def users(self, org: str) -> list[str]:
        self.before_page.pop(next(self._pages), lambda: None)()
        return super().users(org)


@pytest.fixture
def world() -> ChangingWorld:
    world = ChangingWorld()
    for user in USERS:
        world.set_flows(ORG, user, [Flow("7", "seven", "D", True)] if user == ANN else [])
    return world


@pytest.fixture
def gateway(world: World) -> Iterator[LocalGateway]:
    with LocalGateway(world, access_key=KEY, secret_key=SECRET, roster_page_size=4) as gateway:
        yield gateway


@pytest.fixture
def flowtrail(tmp_path: Path, gateway: LocalGateway) -> Program:
    program = Program(tmp_path, gateway.url)
    program.configure(ALWAYS_DUE)
    schedule(program)
    return program


def schedule(program: Program, when: str = 'every = "1h"', more: str = "") -> None:
    (program.folder / "schedules" / "plants.toml").write_text(
        f'{when}\n[[targets]]\norg = "{ORG}"\nusers = "all"\n{more}'
    )


def roster_of(*users: str) -> bytes:
    pagination = {"totalElements": len(users), "pageNo": 0, "pageSize": 1000}
    data = {"users": [{"userId": user} for user in users], "pagination": pagination}
    return json.dumps({"code": 0, "data": data}).encode()


def active(program: Program) -> list[str]:
    rows = program.rows("SELECT user_id FROM target WHERE retired_at IS NULL ORDER BY user_id")
    return [row[0] for row in rows]


def test_the_users_of_the_roster_are_the_targets_as_they_join_and_leave(
    flowtrail: Program, world: World, gateway: LocalGateway
) -> None:
    assert flowtrail.json("sync")["targets"]["total"] == 10
    world.set_flows(ORG, "newcomer", [])
    world.remove_user(ORG, "u8")
    summary = flowtrail.json("sync")
    assert (summary["status"], summary["targets"]["total"]) == ("succeeded", 10)
    assert active(flowtrail) == sorted({*USERS, "newcomer"} - {"u8"})
    listed = flowtrail.json("targets", "list")
    assert {row["user_id"]: row["source"] for row in listed if row["user_id"] in ("newcomer", "u8")} == {
        "newcomer": "plants (roster)",
        "u8": "",
    }
    assert all(row["since"] for row in listed)
    assert gateway.calls("roster") == 9, "three pages, and three twice: one reading more before u8 leaves"


def test_the_roster_is_requested_once_per_interval(flowtrail: Program, gateway: LocalGateway, world: World) -> None:
    flowtrail.configure(NOT_DUE)
    for _ in range(2):
        assert flowtrail("sync").returncode == 0
    assert gateway.calls("roster") == 3, "three pages, once"


@pytest.mark.parametrize("kind", ["hang", "html", "code"])
def test_a_failing_roster_leaves_the_last_one_in_place_and_fails_no_run(
    flowtrail: Program, gateway: LocalGateway, kind: Kind
) -> None:
    flowtrail("sync")
    gateway.order(Fault(kind, times=None, endpoint="roster", code=31403))
    done = flowtrail("sync", "--json")
    assert done.returncode == 0
    assert "last" in done.stderr or "No roster" in done.stderr
    assert active(flowtrail) == sorted(USERS)
    assert flowtrail.rows("SELECT count(*) FROM sync_run WHERE status = 'succeeded'") == [(2,)]
    if kind == "code":
        assert [each["code"] for each in flowtrail.json("status")["conditions"]] == ["roster_failing"]
        flowtrail.schedule("plants", [(ORG, USERS)])
        flowtrail("sync")
        assert flowtrail.json("status")["conditions"] == [], "nobody asks for it any more"


def test_a_first_roster_that_fails_leaves_no_targets(flowtrail: Program, gateway: LocalGateway) -> None:
    gateway.order(Fault("code", endpoint="roster", code=31403, times=2))
    done = flowtrail("sync")
    assert done.returncode == 1
    assert "31403" in done.stderr
    assert "Traceback" not in done.stderr
    check = flowtrail("check")
    assert check.returncode == 1
    assert f"BAD roster {ORG}" in check.stdout
    assert flowtrail("sync").returncode == 0, "it is asked for again at once"
    flowtrail.configure(ALWAYS_DUE + '\ndetails = "changed"')
    check = flowtrail("check", "--record", "answers.json")
    assert f"ok  roster {ORG}: 10 users" in check.stdout
    assert "ok  details: Get Flow answers" in check.stdout
    recording = flowtrail.folder / "answers.json"
    calls = {each["call"] for each in json.loads(recording.read_text())["exchanges"]}
    assert calls == {"token", "roster", "flows", "details", "timezone", "search", "directory"}
    assert stat.S_IMODE(recording.stat().st_mode) == 0o600
    assert not any(name in recording.read_text() for name in ("people.example", "updater-1", KEY, SECRET, ANN))
    assert flowtrail("check", "--record", "answers.json").returncode == 2, "a file that is there stays"


def test_an_organisation_without_a_roster_retires_nobody_and_hides_no_other(flowtrail: Program, world: World) -> None:
    world.set_flows("o2", "zoe", [])
    flowtrail.schedule("plants", [(ORG, USERS), ("o2", ["zoe"])])
    flowtrail("sync")
    schedule(flowtrail, more='[[targets]]\norg = "nowhere"\nusers = "all"\n')
    done = flowtrail("sync", "--json")
    assert done.returncode == 1
    assert "The users of nowhere are not known" in done.stderr
    assert set(USERS) <= set(active(flowtrail))


def test_a_roster_that_shrinks_retires_nobody_until_approved(flowtrail: Program, gateway: LocalGateway) -> None:
    flowtrail("sync")
    gateway.order(Fault("raw", times=None, endpoint="roster", body=roster_of(ANN, *USERS[7:])))
    plan = flowtrail.json("plan")
    assert plan["rosters"][0]["missing"] == sorted(USERS[1:7])
    done = flowtrail("sync")
    assert "too many to believe" in done.stderr
    assert active(flowtrail) == sorted(USERS)
    missing = {row["user_id"] for row in flowtrail.json("targets", "list") if row["missing_since"]}
    assert missing == set(USERS[1:7])
    flowtrail("sync", "--retire")
    assert active(flowtrail) == sorted({ANN, *USERS[7:]})


def test_a_user_whom_a_reading_missed_is_asked_for_again_and_stays(flowtrail: Program, world: ChangingWorld) -> None:
    def one_leaves_and_one_comes() -> None:
        world.remove_user(ORG, ANN)
        world.set_flows(ORG, "zoe", [])

    flowtrail("sync")
    world.before_page[5] = one_leaves_and_one_comes
    flowtrail("sync")
    assert active(flowtrail) == sorted({*USERS, "zoe"}), "u3 moved to the page that was read already"
    flowtrail("sync")
    assert active(flowtrail) == sorted({*USERS, "zoe"} - {ANN})


def test_a_plan_says_who_would_join_and_leave_and_writes_nothing(flowtrail: Program, world: World) -> None:
    flowtrail("sync")
    world.set_flows(ORG, "newcomer", [])
    world.remove_user(ORG, "u8")
    before = flowtrail.rows("SELECT * FROM roster_user")
    said = flowtrail("plan").stdout
    assert "1 would join (newcomer); 1 would leave (u8)" in said
    assert flowtrail.rows("SELECT * FROM roster_user") == before


def test_only_the_ids_of_a_roster_are_kept(flowtrail: Program) -> None:
    flowtrail("sync")
    written = b"".join(path.read_bytes() for path in flowtrail.folder.rglob("*") if path.is_file())
    for personal in (b"people.example", b"5550100", b"Person "):
        assert personal not in written


def test_the_service_requests_rosters_beside_its_runs_and_uses_their_users(
    flowtrail: Program, gateway: LocalGateway, world: World
) -> None:
    order = gateway.order(Fault("hang", endpoint="roster"))
    schedule(flowtrail, 'every = "1s"', f'[[targets]]\norg = "{ORG}"\nusers = ["{ANN}"]\n')
    running = flowtrail.start("serve")
    try:
        assert order.reached.wait(30)
        wait_until(lambda: flowtrail.rows("SELECT count(*) FROM sync_run WHERE status = 'succeeded'")[0][0] > 0)
        assert active(flowtrail) == [ANN], "a roster that hangs keeps nobody waiting"
        gateway.drop_connections()
        wait_until(lambda: active(flowtrail) == sorted(USERS))
    finally:
        assert running.stop() == 0
