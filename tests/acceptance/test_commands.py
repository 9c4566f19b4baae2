"""The commands as a user types them, against a gateway that checks every signature."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
import pwd
import re
import signal
import socket
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import Engine, event

from etl.cli import app
from etl.demo.world import World
from etl.domain.model import Flow
from tests.support.enos import Fault, LocalGateway
from tests.support.program import KEY, SECRET, Program

ORG, ANN, BOB = "o1", "ann", "bob"


def flows(*ids: str, cycle: str = "D") -> list[Flow]:
    return [Flow(flow_id, f"flow {flow_id}", cycle, True) for flow_id in ids]


@pytest.fixture
def world() -> World:
    world = World(orgs=0)
    world.set_flows(ORG, ANN, flows("1", "2", "3"))
    world.set_flows(ORG, BOB, flows("3", "4"))
    return world


@pytest.fixture
def gateway(world: World) -> Iterator[LocalGateway]:
    with LocalGateway(world, access_key=KEY, secret_key=SECRET) as gateway:
        yield gateway


@pytest.fixture
def flowtrail(tmp_path: Path, gateway: LocalGateway) -> Program:
    program = Program(tmp_path, gateway.url)
    program.schedule("plants", [(ORG, [ANN, BOB])])
    return program


def test_init_writes_samples_that_check_explains_and_never_overwrites(tmp_path: Path, gateway: LocalGateway) -> None:
    flowtrail = Program(tmp_path / "elsewhere", gateway.url)
    home = tmp_path / "home"
    assert flowtrail("init", str(home)).returncode == 0
    assert {path.name for path in home.rglob("*.toml")} == {"flowtrail.toml", "example.toml"}
    (home / "flowtrail.toml").write_text("# mine")
    again = flowtrail("init", str(home))
    assert again.returncode == 0
    assert "left unchanged" in again.stdout
    assert (home / "flowtrail.toml").read_text() == "# mine"
    (flowtrail.folder / "flowtrail.toml").unlink()
    flowtrail("init")
    assert flowtrail("status").returncode == 3, "the settings are fine; there is no database yet"


def test_an_event_is_there_once_and_both_lists_have_its_change(flowtrail: Program, world: World) -> None:
    summary = flowtrail.json("sync")
    assert (summary["status"], summary["changes"]["baseline"], summary["issues"]) == ("succeeded", 5, [])
    assert summary["targets"] == {"total": 2, "changed": 2, "unchanged": 0, "held": 0, "failed": 0, "stale": 0}
    before = dt.datetime.now(dt.UTC).isoformat()
    world.set_cycle(ORG, "3", "H")
    flowtrail.json("sync")
    changed = flowtrail.json("changes", "--kind", "cycle_changed")
    cycles = sorted((row["user_id"], row["old_cycle"], row["new_cycle"]) for row in changed)
    assert cycles == [(ANN, "D", "H"), (BOB, "D", "H")]
    (event,) = flowtrail.json("events")
    assert (event["flow_id"], event["kind"], event["new_cycle"], event["users_after"]) == ("3", "cycle_changed", "H", 2)
    assert event["proven_for_all"] is True
    assert "cycle day -> hour" in flowtrail("events", "--kind", "cycle_changed").stdout
    assert flowtrail.json("events", "--kind", "disappeared") == []
    assert flowtrail("events", "--kind", "removed").returncode == 2

    listed = flowtrail.json("workflows")
    shown = [(row["flow_id"], row["cycle"], row["users"]) for row in listed]
    assert shown == [("1", "D", 1), ("2", "D", 1), ("3", "H", 2), ("4", "D", 1)]
    (then,) = flowtrail.json("workflows", "--as-of", before, "--flow", "3")
    assert (then["cycle"], then["from_kind"], then["valid_to"] is None) == ("D", "baseline", False)
    assert "flow 3" in flowtrail("workflows", "--cycle", "hour").stdout


def test_somebody_agrees_to_what_happens_before_and_afterwards(flowtrail: Program, world: World) -> None:
    flowtrail.json("sync")
    announced = flowtrail(*f"ack --org {ORG} --flow 4 --until tomorrow --by ada --ticket CHG-1".split())
    assert announced.stdout.startswith("Acknowledgement 1 covers now: 0 events, and 0 changes of lists.")
    world.set_cycle(ORG, "3", "H")
    world.rename(ORG, "4", "other")
    flowtrail.json("sync")
    assert [(row["flow_id"], row["ticket"]) for row in flowtrail.json("events")] == [("4", "CHG-1"), ("3", None)]
    (other,) = flowtrail.json("events", "--unacknowledged")
    accepted = flowtrail.json("ack", "--event", str(other["event_id"]), "--note", "as planned")
    assert (accepted["ids"], accepted["changes"], [row["flow_id"] for row in accepted["events"]]) == ([2], 2, ["3"])
    assert "No events that nobody acknowledged:" in flowtrail("events", "--unacknowledged").stdout
    assert "no longer counts (3)" in flowtrail("ack", "revoke", "2", "--by", "ben").stdout
    assert [row["flow_id"] for row in flowtrail.json("events", "--unacknowledged")] == ["3"]
    login = f"({pwd.getpwuid(os.getuid()).pw_name}@{socket.gethostname()})"
    made = [(row["made_by"], row["revokes"], row["revoked_by"]) for row in flowtrail.json("ack", "list")]
    assert made == [(f"ben {login}", 2, None), (login[1:-1], None, 3), (f"ada {login}", None, None)]
    assert flowtrail.json("ack", "list", "--ticket", "CHG-1", "--flow", "4")[0]["id"] == 1
    flowtrail.json("sync")
    assert "everything holds" in flowtrail("verify").stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "Name what you agree to"),
        ("--event 1 --org o1", "Name what you agree to"),
        ("--event 99", "There is no event 99"),
        ("--org o9", "Unknown organisation: 'o9'"),
        ("--org o1 --since 2026-01-02 --until 2026-01-01", "--since must lie before --until"),
        ("--org o1 --flow ", "--flow is empty"),
        ("--org o1 --kind baseline", "'baseline' is not one of"),
        ("--org o1 --ticket \x07", "--ticket must be printable text of at most 200 characters"),
        ("revoke 1", "There is no acknowledgement 1"),
        ("--org o1 list", "Options of `ack list` go behind it"),
    ],
)
def test_what_nobody_can_agree_to_is_one_sentence(flowtrail: Program, words: str, said: str) -> None:
    flowtrail.json("sync")
    refused = flowtrail("ack", *words.split(" ")) if words else flowtrail("ack")
    assert (refused.returncode, said in refused.stderr) == (2, True), refused.stderr


def test_exporting_after_a_seal_gives_every_row_once(flowtrail: Program, world: World) -> None:
    taken: list[str] = []
    last = 0
    for number, cycle in enumerate(("D", "H", "W"), 1):
        world.set_cycle(ORG, "3", cycle)
        flowtrail.json("sync")
        file = flowtrail.folder / f"events-{number}.jsonl"
        assert flowtrail("export", "org-events", "--after-seal", str(last), "-o", str(file)).returncode == 0
        last = json.loads(file.with_name(f"{file.name}.manifest.json").read_text())["last_seal"]
        taken += [json.loads(line)["new_cycle"] for line in file.read_text().splitlines()]
    assert taken == ["H", "W"]
    changes = flowtrail("export", "changes", "--after-seal", "1").stdout.splitlines()
    assert len(changes) == 1 + 4, "what both lists say of two changes, below the heading"
    assert flowtrail("export", "flows", "--after-seal", "1").returncode == 2
    assert flowtrail("export", "changes", "--after-seal", "1", "--since", "yesterday").returncode == 2


@pytest.mark.parametrize("command", [["flows"], ["changes", "--baselines"]], ids=" ".join)
def test_a_list_ends_where_asked_and_no_more_is_sorted_for_it(
    flowtrail: Program, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flowtrail.json("sync")
    monkeypatch.chdir(flowtrail.folder)
    asked = []

    def listen(connection: Any, cursor: Any, statement: str, parameters: tuple[Any, ...], *_: object) -> None:
        asked.extend(parameters if "LIMIT" in statement else ())

    event.listen(Engine, "before_cursor_execute", listen)
    try:
        for limit, shown in (("2", 2), ("4", 4), ("5", 5), ("0", 5), ("", 5)):
            arguments = [*command, *(["--limit", limit] if limit else [])]
            table = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"}).output
            assert len([line for line in table.splitlines() if ORG in line]) == shown
            assert ("There are more than these" in table) == (shown < 5)
            assert len(json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)) == shown
    finally:
        event.remove(Engine, "before_cursor_execute", listen)
    most = {parameter for parameter in asked if isinstance(parameter, int) and parameter > 0}
    assert most == {3, 5, 6, 201}


def test_a_plan_shows_the_first_changes_by_target_and_counts_the_rest(flowtrail: Program, world: World) -> None:
    world.set_flows(ORG, "adam", flows(*map(str, range(30))))
    flowtrail.schedule("plants", [(ORG, [BOB, ANN, "adam"])])
    for limit, shown in (("3", 3), ("33", 33), ("0", 35), ("", 35)):
        done = flowtrail("plan", *(["--limit", limit] if limit else []))
        rows = [line for line in done.stdout.splitlines() if ORG in line]
        assert len(rows) == shown
        assert ["adam" in row for row in rows[:30]] == [True] * min(shown, 30)
        assert (f"And {35 - shown} more" in done.stderr) == (shown < 35)
    assert len(flowtrail.json("plan", "--limit", "4")["planned"]) == 4
    assert flowtrail.json("plan", "--limit", "4")["changes"]["baseline"] == 35
    assert not (flowtrail.folder / "flowtrail.db").exists()


def test_a_plan_in_json_prints_a_change_when_its_answer_is_there(
    flowtrail: Program, gateway: LocalGateway, world: World
) -> None:
    hangs = gateway.order(Fault("hang", times=None, user=BOB))
    flowtrail.configure(gateway='timeout = "60s"\ndeadline = "60s"')
    planning = flowtrail.start("plan", "--json")
    assert planning.process.stdout is not None
    assert hangs.reached.wait(60)
    printed = "".join(planning.process.stdout.readline() for _ in range(3))
    assert printed.count(f'"{ANN}"') == 2
    planning.process.send_signal(signal.SIGINT)
    printed += planning.process.stdout.read()
    assert planning.ended() == 130
    planned = json.loads(printed)
    assert [row["user_id"] for row in planned["planned"]] == [ANN] * 3
    assert planned["targets"]["changed"] == 1


def test_a_view_that_somebody_altered_is_a_finding_of_verify(flowtrail: Program, world: World) -> None:
    """It makes `changes` lie, while every row of the trail is as it was."""
    flowtrail.json("sync")
    world.remove_flow(ORG, "1")
    flowtrail.json("sync")
    assert flowtrail("verify").returncode == 0
    ((view,),) = flowtrail.rows("SELECT sql FROM sqlite_master WHERE name = 'list_change'")
    flowtrail.execute("DROP VIEW list_change", f"{view} WHERE c.kind <> 'removed'")
    assert flowtrail.json("changes", "--kind", "removed") == []
    done = flowtrail("verify", "--json")
    assert done.returncode == 1
    (finding,) = json.loads(done.stdout)
    assert (finding["what"], finding["found"]) == ("the schema", "not: view list_change was altered")


def test_check_names_every_problem_at_once(flowtrail: Program, world: World) -> None:
    assert flowtrail("check").returncode == 0
    world.remove_user(ORG, BOB)
    done = flowtrail("check")
    assert done.returncode == 1
    assert "62101" in done.stdout
    assert f"{ORG}/{ANN}" in done.stdout
    found = json.loads(flowtrail("check", "--json").stdout)
    assert {tuple(each) for each in found} == {("what", "ok", "said")}
    assert ["62101" in each["said"] for each in found if not each["ok"]] == [True]


@pytest.mark.parametrize(
    ("says", "setting", "ok", "said"),
    [
        ("GMT+8", "", True, "GMT+8, as EnOS says"),
        ("GMT+8", "Asia/Shanghai", True, "Asia/Shanghai, GMT+8 as EnOS says"),
        ("GMT+1", "Europe/Berlin", True, "Europe/Berlin, GMT+1 as EnOS says"),
        ("GMT+8", "Europe/Berlin", False, "EnOS says GMT+8, and [gateway] enos_timezone says Europe/Berlin"),
        ("GMT+25", "", True, "not known"),
        (None, "Asia/Shanghai", True, "as the setting says: EnOS does not say its own"),
    ],
)
def test_check_compares_the_time_zone_that_enos_says_with_the_setting(
    flowtrail: Program, gateway: LocalGateway, says: str | None, setting: str, ok: bool, said: str
) -> None:
    gateway.timezone = says
    flowtrail.configure(gateway=f'enos_timezone = "{setting}"')
    done = flowtrail("check", "--json")
    (found,) = (each for each in json.loads(done.stdout) if each["what"] == "timezone")
    assert (found["ok"], done.returncode == 0) == (ok, ok)
    assert said in found["said"]


def test_check_says_what_a_run_asks_of_the_gateway(flowtrail: Program) -> None:
    flowtrail.configure(gateway="concurrency = 2\nrequests_per_second = 10")
    found = {each["what"]: each["said"] for each in json.loads(flowtrail("check", "--json").stdout)}
    (load,) = (said for what, said in found.items() if what.startswith("load of"))
    assert "sends 2 requests, and one or two more for each list that has changed: at most 2 at once" in load
    assert load.endswith("and 2 a second; 0.2 s where an answer takes 20 ms, 0.2 s where it takes 200 ms")


@pytest.mark.parametrize("command", ["sync", "status", "flows", "serve", "changes"])
def test_a_missing_database_is_exit_3_without_a_password(flowtrail: Program, command: str) -> None:
    flowtrail.database_url = "postgresql+psycopg://flowtrail:hush-hush@127.0.0.1:9/flowtrail"
    flowtrail.configure()
    done = flowtrail(command)
    assert done.returncode == 3
    assert "127.0.0.1:9" in done.stderr
    assert "hush-hush" not in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def test_ctrl_c_stops_a_sync_cleanly(flowtrail: Program, gateway: LocalGateway) -> None:
    flowtrail.json("sync")
    hangs = gateway.order(Fault("hang", times=None, user=BOB))
    running = flowtrail.start("sync")
    assert hangs.reached.wait(60)
    assert running.stop(signal.SIGINT) == 130
    assert flowtrail.rows("SELECT status FROM sync_run ORDER BY id") == [("succeeded",), ("aborted",)]
    assert flowtrail.rows("SELECT count(*) FROM sync_issue") == [(0,)]


def test_filters_choose_targets_and_unknown_names_are_usage_errors(flowtrail: Program) -> None:
    assert flowtrail.json("sync", "plants", "--user", BOB)["targets"]["total"] == 1
    wrong = flowtrail("sync", "plant")
    assert wrong.returncode == 2
    assert "plants" in wrong.stderr
    assert flowtrail("sync", "--user", "nobody").returncode == 2
    assert flowtrail("changes", "--kind", "moved").returncode == 2
    assert flowtrail("changes", "--since", "when it rained").returncode == 2


@pytest.mark.parametrize(
    "command",
    [
        ["audit", "-o", "bundle.zip"],
        ["coverage"],
        ["export", "changes", "-o", "changes.csv"],
        ["export", "org-events"],
        ["report", "-o", "report.html"],
        ["guard", "approve", "--expect", "any"],
    ],
    ids=" ".join,
)
def test_no_file_and_no_account_is_about_an_organisation_that_nobody_knows(
    flowtrail: Program, command: list[str]
) -> None:
    flowtrail.json("sync")
    before = set(flowtrail.folder.iterdir())
    refused = flowtrail(*command, "--org", ORG + "x")
    assert refused.returncode == 2
    assert f"Unknown organisation: '{ORG}x'. Did you mean '{ORG}'?" in refused.stderr
    assert set(flowtrail.folder.iterdir()) == before
    assert "Unknown organisation: 'nowhere'." in flowtrail("guard", "list", "--org", "nowhere").stdout
    assert "none with that --org and --user" in flowtrail("targets", "list", "--org", "nowhere").stdout


def test_a_target_out_of_the_schedules_is_retired_but_never_too_many_unasked(flowtrail: Program) -> None:
    flowtrail.json("sync")
    flowtrail.schedule("plants", [(ORG, [ANN])])
    done = flowtrail("sync")
    assert "--retire" in done.stderr
    assert flowtrail.rows("SELECT count(*) FROM target WHERE retired_at IS NOT NULL") == [(0,)]
    flowtrail("sync", "--retire")
    assert flowtrail.rows("SELECT user_id FROM target WHERE retired_at IS NOT NULL") == [(BOB,)]
    assert [row["user_id"] for row in flowtrail.json("flows")] == [ANN] * 3
    flowtrail.schedule("plants", [(ORG, [ANN, BOB])])
    assert flowtrail.json("sync")["changes"]["baseline"] == 0
    assert flowtrail.rows("SELECT count(*) FROM target WHERE retired_at IS NOT NULL") == [(0,)]


@pytest.fixture
def held(flowtrail: Program, world: World) -> Program:
    """Twenty removals of Ann's are held, and twelve of Bob's."""
    world.set_flows(ORG, ANN, flows(*map(str, range(20))))
    world.set_flows(ORG, BOB, flows(*map(str, range(20))))
    flowtrail.json("sync")
    world.set_flows(ORG, ANN, [])
    world.set_flows(ORG, BOB, flows(*map(str, range(12, 20))))
    assert flowtrail("sync").returncode == 1
    return flowtrail


def removed(flowtrail: Program) -> list[tuple[str, int]]:
    return flowtrail.rows(
        "SELECT t.user_id, s.removed FROM change_set s JOIN target t ON t.id = s.target_id WHERE s.removed > 0"
    )


def test_a_held_removal_waits_until_a_person_approves_it(held: Program) -> None:
    assert len(held.json("guard", "list")) == 20 + 12
    assert held("sync").returncode == 1, "nothing approves itself"
    assert held("guard", "approve").returncode == 2
    assert held("guard", "approve", ORG, "nobody", "--expect", "any").returncode == 2
    row = next(row for row in held.json("guard", "list") if row["user_id"] == ANN)
    code, since = row["code"], dt.datetime.fromisoformat(row["held_since"]) - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    done = held.json("guard", "approve", ORG, ANN, "--expect", code, "--by", "Zoë")
    assert done["changes"]["removed"] == 20
    ((by, scope),) = held.rows("SELECT approved_by, approved_scope FROM change_set WHERE removed > 0")
    assert by == f"Zoë ({pwd.getpwuid(os.getuid()).pw_name}@{socket.gethostname()})"
    hold = [ORG, ANN, "", since // dt.timedelta(microseconds=1), sorted(map(str, range(20))), []]
    assert scope == hashlib.sha256(json.dumps(hold, separators=(",", ":")).encode()).hexdigest()
    assert scope.startswith(code)
    assert {row["user_id"] for row in held.json("guard", "list")} == {BOB}
    held.json("guard", "approve", ORG, BOB, "--expect", "any")
    assert held.json("sync")["status"] == "succeeded"


def test_an_approval_that_expects_another_set_is_refused_with_the_code_of_what_is_held(
    held: Program, world: World
) -> None:
    seen = {row["user_id"]: row["code"] for row in held.json("guard", "list")}
    assert seen[ANN] != seen[BOB]
    world.set_flows(ORG, BOB, [])
    assert held("sync").returncode == 1
    now = next(row["code"] for row in held.json("guard", "list") if row["user_id"] == BOB)
    refused = held("guard", "approve", ORG, BOB, "--expect", seen[BOB])
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert refused.stderr.count("\n") == 1
    assert now in refused.stderr
    assert "20 changes" in refused.stderr
    assert removed(held) == []
    assert held("guard", "approve", ORG, BOB, "--expect", now).returncode == 0
    assert removed(held) == [(BOB, 20)]


def test_an_approval_says_what_it_expects_unless_somebody_can_be_asked_and_takes_no_invalid_name(held: Program) -> None:
    expects = [(), ("--expect", "12ab"), ("--expect", "ANY"), ("--expect", "0" * 12)]
    for whose, expect in product(((ORG, ANN), ("--org", ORG), ("--all",)), expects):
        refused = held("guard", "approve", *whose, *expect)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert "guard list" in refused.stderr
    for name in ("two\nlines", "\x1b[31m", "x" * 201):
        assert held("guard", "approve", "--all", "--expect", "any", "--by", name).returncode == 2
    assert removed(held) == []


def test_one_code_stands_for_all_that_an_organisation_or_everybody_holds(held: Program) -> None:
    row = held.json("guard", "list")[0]
    assert row["code"] not in (row["org_code"], row["all_code"])
    assert held("guard", "approve", "--all", "--expect", row["code"]).returncode == 2
    shown = held("guard", "list", "--org", ORG).stdout
    assert f"flowtrail guard approve --org {ORG} --expect {row['org_code']}" in shown
    assert f"flowtrail guard approve --all --expect {row['all_code']}" in held("guard", "list").stdout
    assert held("guard", "approve", "--org", ORG, "--expect", row["org_code"]).returncode == 0
    assert sorted(removed(held)) == [(ANN, 20), (BOB, 12)]
    assert held("guard", "approve", "--all", "--expect", row["all_code"]).returncode == 2, "nothing is held any more"
    assert held("guard", "approve", "--all", "--expect", "any").returncode == 0


def test_on_a_terminal_the_held_set_is_shown_and_asked_about(held: Program) -> None:
    code = next(row["code"] for row in held.json("guard", "list") if row["user_id"] == BOB)
    exit_code, shown = held.on_terminal("guard", "approve", ORG, BOB, types="n\n")
    assert (exit_code, removed(held)) == (1, [])
    assert shown.count(BOB) >= 12
    assert ANN not in shown
    assert code in shown
    exit_code, shown = held.on_terminal("guard", "approve", ORG, BOB, types="y\n")
    assert (exit_code, removed(held)) == (0, [(BOB, 12)])


def test_a_hostile_name_cannot_speak_to_the_terminal(flowtrail: Program, world: World) -> None:
    world.set_flows(ORG, ANN, [Flow("1", "\x1b[31mred\r\n\u202eevil [bold] 流程", "D", True)])
    flowtrail.json("sync")
    shown = flowtrail("flows", PYTHONIOENCODING="latin-1")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert not {"\x1b", "\u202e"} & {*shown.stdout}
    assert all(said in shown.stdout for said in ("\\x1b[31mred", "[bold]", "\\u6d41"))
    printed = flowtrail("flows", "--json", "--user", ANN, PYTHONIOENCODING="ascii")
    assert json.loads(printed.stdout)[0]["flow_name"] == "\x1b[31mred\r\n\u202eevil [bold] 流程"


def test_db_commands_show_upgrade_and_compare_the_schema(flowtrail: Program) -> None:
    assert json.loads(flowtrail("db", "current", "--json").stdout)["current"] is None
    assert flowtrail("db", "upgrade").returncode == 0
    assert flowtrail("db", "check").returncode == 0
    flowtrail.execute("DROP TRIGGER change_set_no_update")
    done = flowtrail("db", "check")
    assert done.returncode == 1
    assert "change_set_no_update" in done.stdout


def test_grants_are_printed_for_the_roles_that_are_named(flowtrail: Program) -> None:
    printed = flowtrail("db", "grants", "--writer", "etl_writer").stdout
    assert re.search(r'^GRANT INSERT ON change_set, .* TO "etl_writer";$', printed, re.MULTILINE)
    refused = flowtrail("db", "grants", "--owner", "no; DROP")
    assert (refused.returncode, refused.stdout) == (2, "")
