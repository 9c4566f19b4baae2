"""The terminal: tables that fit, empty answers that give their reason, and the usual exit codes."""

from __future__ import annotations

import datetime as dt
import json
import re
import shutil
import sqlite3
import sys
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
import requests
from click.testing import CliRunner
from rich.cells import cell_len
from sqlalchemy import func, select

from etl.cli import app
from etl.cli.console import cell, laid_out
from etl.cli.lists import NO_WHOLE_LISTS, same_lives
from etl.database import connect, reading
from etl.demo.world import World
from etl.domain.model import Flow, Target
from etl.report.rows import ListState
from etl.schema import org_event, org_flow, org_step
from etl.timeparse import parse_moment
from tests.support import builders
from tests.support.browser import site
from tests.support.enos import LocalGateway
from tests.support.program import KEY, SECRET, Program
from tests.support.run_history import RunHistory

ORG, ANN, BOB = "o15427722038191", "u15426865866571", "u15426865866572"
LONG = "ev_charger_energy_settlement_of_the_northern_sites"


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """Two users were observed three times, with changes between; then the gateway went down."""
    world = World(orgs=0)
    for user in (ANN, BOB):
        world.set_flows(ORG, user, [Flow("2818", LONG, "D", True), Flow("9001", "储能电站月度碳账本", "M", True)])
    with LocalGateway(world, access_key=KEY, secret_key=SECRET) as gateway:
        program = Program(tmp_path_factory.mktemp("observed"), gateway.url)
        program.schedule("plants", [(ORG, [ANN, BOB])])
        program.json("sync")
        for cycle in ("W", "H"):
            world.set_cycle(ORG, "2818", cycle)
            program.json("sync")
    return program


@pytest.fixture
def here(observed: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a copy of that folder."""
    shutil.copytree(observed.folder, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


def run(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, arguments)
    return done.exit_code, done.stdout, done.stderr


def printed(*arguments: str) -> list[dict[str, object]]:
    code, out, _ = run(*arguments, "--json")
    assert code == 0
    rows: list[dict[str, object]] = json.loads(out)
    return rows


@pytest.mark.parametrize(
    "command",
    ["flows", "changes", "flows --as-of now", "status", "workflows", "events", "targets list", "seal list"],
)
@pytest.mark.parametrize("columns", [60, 80, 200])
def test_a_terminal_shows_every_id_and_time_whole_and_no_line_is_longer_than_it(
    observed: Program, command: str, columns: int
) -> None:
    code, shown = observed.on_terminal(*command.split(), columns=columns)
    rows = [line for line in shown.splitlines() if ORG[:6] in line or "succeeded" in line]
    assert (code, bool(rows), "…" in shown) == (0, True, False)
    assert all(len(row) <= columns for row in rows)
    assert all(ORG in row for row in rows if ORG[:6] in row)
    assert "expression" not in shown or command == "targets list", "a column without values takes no room"
    if command in ("flows", "changes", "flows --as-of now"):
        assert all(ANN in row or BOB in row for row in rows)
        assert shown.count(LONG) == len(rows) / (1 if command == "changes" else 2)
    if command == "changes":
        assert len(re.findall(r"^20\d\d-\d\d-\d\d \d\d:\d\d:\d\dZ  ", shown, re.MULTILINE)) == len(rows) == 4


def test_the_time_zone_rules_what_is_shown_and_json_stays_in_utc(here: Path) -> None:
    for command in ("changes", "flows", "history 2818", "status"):
        assert "+08:00" in run(*command.split(), "--timezone", "Asia/Shanghai")[1], command
    assert str(printed("changes", "--timezone", "Asia/Shanghai")[0]["observed_at"]).endswith("Z")
    assert run("flows", "--timezone", "Mars/Olympus")[0] != 0


@pytest.mark.parametrize("command", [("changes", "--limit", "3"), ("flows", "--limit", "3")], ids=" ".join)
def test_table_and_json_have_the_same_rows_in_the_same_order(here: Path, command: tuple[str, ...]) -> None:
    listed = [(row["user_id"], row["flow_id"]) for row in printed(*command)]
    rows = [line for line in run(*command)[1].splitlines() if ORG in line]
    assert len(rows) == 3
    for row, (user, flow) in zip(rows, listed, strict=True):
        assert f"{user}  {flow}" in row


def test_every_table_of_a_history_has_at_most_as_many_rows_as_asked_for(here: Path) -> None:
    _, out, complaints = run("history", "2818", "--limit", "1")
    lists, happened = out.split("What happened to it in its organisation")
    assert (lists.count(ORG), happened.count(ORG)) == (1, 1)
    assert complaints.count("There are more than this one") == 2
    happened = run("history", "2818", "--limit", "0")[1].split("What happened to it in its organisation")[1]
    assert happened.count(ORG) == 2


def test_the_changes_begin_with_the_latest_and_have_first_lists_only_where_they_are_asked_for(here: Path) -> None:
    kinds = [row["kind"] for row in printed("changes", "--baselines")]
    assert kinds == ["cycle_changed"] * 4 + ["baseline"] * 4
    assert {row["kind"] for row in printed("changes")} == {"cycle_changed"}
    assert {row["kind"] for row in printed("changes", "--kind", "baseline")} == {"baseline"}
    assert "--baselines shows their first lists." in run("changes", "--until", "2020-01-01")[1]


def test_users_who_saw_a_workflow_the_same_are_one_life() -> None:
    at = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
    ann, bob, cat = (
        ListState(ORG, user, "", "1", "w", cycle, True, at, None, "baseline", None, at + dt.timedelta(minutes=minute))
        for user, cycle, minute in ((ANN, "D", 1), (BOB, "D", 2), ("cat", "H", 3))
    )
    assert same_lives([ann, bob, cat]) == [bob._replace(user_id=f"{ANN}, {BOB}"), cat]
    assert same_lives([ann, ann._replace(cycle="H"), bob]) == [ann, ann._replace(cycle="H"), bob]


EMPTY = {
    ("flows", "--as-of", "2020-01-01"): "Not observed then: the first look was at 20",
    ("flows", "--org", "o15427722038192"): "Unknown organisation: 'o15427722038192'. Did you mean",
    ("flows", "--user", "nobody"): "Unknown user: 'nobody'.",
    ("flows", "--flow", "77"): "No such workflows: 2 targets were observed, last at 20",
    ("changes", "--since", "now"): "No such changes: 2 targets were observed, last at 20",
    ("history", "77"): "No trace of workflow '77': 2 targets were observed",
}


@pytest.mark.parametrize("question", EMPTY, ids=" ".join)
def test_an_empty_answer_says_why_and_json_says_it_on_standard_error(here: Path, question: tuple[str, ...]) -> None:
    code, out, _ = run(*question)
    assert (code, EMPTY[question] in out) == (0, True)
    code, out, complaint = run(*question, "--json")
    assert (code, out) == (0, "[]\n")
    assert EMPTY[question] in complaint


def test_the_past_list_of_a_user_who_was_retired_then_says_so_after_the_return(here: Path) -> None:
    connection = sqlite3.connect(here / "flowtrail.db")
    retired = "INSERT INTO target_membership (target_id, run_id, kind, at) SELECT id, 1, ?, ? FROM target"
    connection.execute(retired, ("retired", "2030-01-01 00:00:00.000000"))
    connection.execute(retired, ("resumed", "2030-02-01 00:00:00.000000"))
    connection.commit()
    connection.close()
    code, out, _ = run("flows", "--user", ANN, "--as-of", "2030-01-15")
    assert (code, out) == (0, "No workflows then: 1 target was retired then.\n")


@pytest.mark.parametrize("command", ["changes", "events", "coverage", "export changes -o x.csv", "audit -o x.zip"])
def test_a_period_that_ends_before_it_begins_is_refused(here: Path, command: str) -> None:
    refused = CliRunner().invoke(app, [*command.split(), "--since", "2026-02-01", "--until", "2026-01-01"])
    assert str(refused.exception) == "--since must lie before --until."
    assert not [*here.glob("x.*")]


def test_where_only_searches_are_asked_nothing_happened_in_the_organisation_and_every_reader_says_why(
    tmp_path: Path, observed: Program
) -> None:
    program = Program(tmp_path / "searches", observed.gateway_url)
    program("db", "upgrade")
    assert "Nothing was observed yet" in program("flows").stdout
    engine = connect(f"sqlite:///{program.folder}/flowtrail.db")
    found = Target(ORG, ANN, "charger")
    trail = RunHistory(engine)
    for flows in (builders.numbered(1, 2), builders.numbered(2, 2), builders.numbered(2, 2)):
        trail.run({found: flows})
    trail.store.retire_others([], dt.datetime.now(dt.UTC), None)
    trail.run({})
    with reading(engine) as connection:
        kept = [connection.scalar(select(func.count()).select_from(t)) for t in (org_event, org_flow, org_step)]
    assert kept == [0, 0, 0]
    for command in ("events", "workflows", "workflows --as-of now", "history 1"):
        assert NO_WHOLE_LISTS in program(*command.split()).stdout, command
    assert NO_WHOLE_LISTS not in program("changes").stdout
    with site(engine) as server:
        target = f"/targets/{ORG}/{ANN}?expression=charger"
        for path in ("/events", f"/workflows?org=={ORG}", f"/workflows/{ORG}/1", target):
            assert "whole lists" in requests.get(server.url + path, timeout=30).text, path


def test_before_its_first_observation_every_target_is_unobserved(here: Path) -> None:
    rows = printed("flows", "--as-of", "2020-01-01", "--targets")
    assert [(row["user_id"], row["coverage"], row["observed_before"], row["flow_count"]) for row in rows] == [
        (ANN, "unobserved", None, None),
        (BOB, "unobserved", None, None),
    ]
    first = min(str(row["observed_at"]) for row in printed("changes", "--kind", "baseline"))
    assert min(str(row["observed_after"]) for row in rows) == first


def test_an_export_replaces_a_file_only_where_that_is_asked_for(here: Path) -> None:
    assert run("export", "changes", "-o", "kept.csv")[0] == 0
    before = (here / "kept.csv").read_bytes()
    (here / "kept.csv").write_bytes(b"mine")
    code = CliRunner().invoke(app, ["export", "changes", "-o", "kept.csv"])
    assert "kept.csv exists already: --force replaces it." in str(code.exception)
    assert (here / "kept.csv").read_bytes() == b"mine"
    assert run("export", "changes", "-o", "kept.csv", "--force")[0] == 0
    assert (here / "kept.csv").read_bytes() == before


def test_an_export_has_the_format_that_its_suffix_names(here: Path) -> None:
    formats = {"a.csv": b"change_set_id,", "a.jsonl": b"{", "a.parquet": b"PAR1", "a.out": b"change_"}
    for name, begins in formats.items():
        assert run("export", "changes", "-o", name)[0] == 0
        assert (here / name).read_bytes().startswith(begins)
    refused = CliRunner().invoke(app, ["export", "changes", "-o", "b.csv", "--format", "parquet"])
    assert "b.csv would hold parquet, and its suffix says csv" in str(refused.exception)
    assert not (here / "b.csv").exists()


def test_an_excessive_limit_is_refused_with_exit_2(here: Path) -> None:
    code, out, complaint = run("flows", "--limit", "9" * 30)
    assert (code, out) == (2, "")
    assert "--limit" in complaint


def test_the_version_has_a_short_option_and_flags_show_no_type() -> None:
    assert run("-V") == run("--version")
    assert run("-V")[1].startswith("flowtrail ")
    for command in ([], ["changes"], ["guard", "approve"], ["db", "copy"]):
        assert "<bool>" not in run(*command, "--help")[1]


def test_a_command_loads_no_library_that_it_does_not_need(observed: Program, here: Path) -> None:
    """Each of these costs a tenth of a second or more."""
    slow = {"rich.console", "alembic", "requests", "apscheduler", "prometheus_client", "starlette", "pydantic"}
    slow |= {"sqlalchemy.dialects.postgresql"}
    show = "import sys; sys.argv = ['flowtrail', {}]\ntry:\n  from etl.__main__ import main; main()\n"
    show += "finally:\n  print(*sys.modules, file=sys.stderr)"
    each = ((["--version"], slow | {"sqlalchemy", "msgspec"}), (["flows", "--limit", "1"], slow))
    for arguments, barred in (*each, (["sync", "--retire"], slow - {"requests"} | {"etl.report.listings"})):
        program = Program(here, observed.gateway_url)
        program.configure('deadline = "100ms"')
        program.command = [sys.executable, "-c", show.format(", ".join(map(repr, arguments)))]
        loaded = set(program().stderr.split())
        assert "etl.cli" in loaded
        assert not loaded & barred


ORG, ANN, BOB = "o15427722038191", "u15426865866571", "u15426865866572"
AT = dt.datetime(2026, 11, 24, 10, 35, 18, tzinfo=dt.UTC)
NOON = "2026-11-24 10:35:18Z"

CHANGES = [
    ("observed_at", "org_id", "user_id", "flow_id", "change", "flow_name"),
    (NOON, ORG, ANN, "2818", "renamed, was ev_charger_energy_settlement_hami_26", "ev_charger_settlement_v2"),
    (NOON, ORG, BOB, "2822", "cycle hour -> day", "bess_rack_energy_settlement_penglai_19"),
]
FLOWS = [
    ("org_id", "user_id", "flow_id", "flow_name", "cycle_label", "editable", "changed_at", "last_observed_at"),
    (ORG, ANN, "2818", "ev_charger_energy_settlement_hami_26_v2", "hour", "yes", NOON, NOON),
    (ORG, BOB, "9001", "储能电站月度碳账本结算与核对流程", "month", "no", NOON, NOON),
]

AT_80 = """\
observed_at           org_id           user_id          flow_id
  change
  flow_name
2026-11-24 10:35:18Z  o15427722038191  u15426865866571  2818
  renamed, was ev_charger_energy_settlement_hami_26
  ev_charger_settlement_v2
2026-11-24 10:35:18Z  o15427722038191  u15426865866572  2822
  cycle hour -> day
  bess_rack_energy_settlement_penglai_19
"""


def drawn(rows: list[tuple[str, ...]], width: int) -> list[str]:
    return [line for lines in laid_out(rows, width) for line in lines]


def test_columns_that_do_not_fit_stand_below_and_a_value_wider_than_a_line_is_broken() -> None:
    assert drawn(CHANGES, 80) == AT_80.splitlines()
    assert drawn([("a", "name"), ("1", "x" * 20)], 12) == ["a", "  name", "1", "  xxxxxxxxxx", "  xxxxxxxxxx"]
    assert drawn([("a", "name"), ("1", "one and two")], 12) == ["a", "  name", "1", "  one and", "  two"]


@pytest.mark.parametrize("rows", [CHANGES, FLOWS], ids=["changes", "flows"])
def test_no_line_is_wider_than_the_terminal_and_no_character_is_lost(rows: list[tuple[str, ...]]) -> None:
    """Every id and time is whole where it fits into a line; and where everything does, as in a pipe, a row is one."""
    for width in (*range(8, 220), sys.maxsize):
        for row, lines in zip(rows, laid_out(rows, width), strict=True):
            assert sorted("".join(lines).replace(" ", "")) == sorted("".join(row).replace(" ", ""))
            assert max(map(cell_len, lines)) <= width
            whole = [value for value in row if " " not in value or value == NOON]
            assert width < 60 or all(any(value in line for line in lines) for value in whole)
            assert width < 200 or len(lines) == 1


@pytest.mark.parametrize(
    ("zone", "shown"),
    [("UTC", "2026-11-24 10:35:18Z"), ("Asia/Shanghai", "2026-11-24 18:35:18+08:00")],
)
def test_a_time_says_its_offset_and_can_be_typed_as_it_is_shown(zone: str, shown: str) -> None:
    assert cell(AT, ZoneInfo(zone)) == shown
    assert parse_moment(shown, AT, dt.UTC) == AT
