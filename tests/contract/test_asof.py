"""What a target saw at a moment: the rules, the cost, and the recipes of docs/asof.md."""

from __future__ import annotations

import datetime as dt
import functools
import itertools
import os
import re
import subprocess
from collections import Counter
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, bindparam, insert, text

from etl import schema
from etl.database import reading, writing
from etl.report.asof import cheaper_way, flows_as_of, flows_statement, targets_as_of, targets_statement
from etl.report.listings import CHANGES, FLOWS
from etl.report.workflow_page import users_then
from tests.support.builders import Diary, after, flow, numbered
from tests.support.databases import client
from tests.support.histories import START, World

RECIPES = Path(__file__).parents[2] / "docs" / "asof.md"
HOUR = dt.timedelta(hours=1)
HASH = "0" * 64


@pytest.mark.parametrize("seed", [1, 2])
def test_the_list_at_any_moment_agrees_with_an_independent_oracle(engine: Engine, seed: int) -> None:
    """Lists, times, coverage and the observations around, by both ways, at boundaries and anywhere between."""
    world = World(engine, seed)
    world.live(60)
    for moment in world.moments(16):
        known = sorted((o.target, o.at(moment)) for o in world.oracles.values() if o.at(moment) is not None)
        flows = [row for _, (_, rows) in known for row in rows]
        assert list(targets_as_of(engine, moment)) == [row for _, (row, _) in known], moment
        assert list(flows_as_of(engine, moment, way="replay")) == flows, moment
        assert list(flows_as_of(engine, moment, way="group")) == flows, moment
        assert list(flows_as_of(engine, moment, way="undo")) == flows, moment


def test_the_number_of_users_of_a_workflow_at_any_moment_agrees_with_the_oracle(engine: Engine) -> None:
    world = World(engine, 3)
    world.live(60)
    flows_of = {org: [flow for _, flow in pairs] for org, pairs in groupby(_workflows(world), key=itemgetter(0))}
    for moment in world.moments(12):
        lists = [at[1] for oracle in world.oracles.values() if (at := oracle.at(moment))]
        known = Counter((row.org_id, row.flow_id) for rows in lists for row in rows if not row.expression)
        with reading(engine) as connection:
            for org, flows in flows_of.items():
                users = users_then(connection, org, flows, moment)
                assert {flow: users.get(flow, 0) for flow in flows} == {flow: known[org, flow] for flow in flows}


def _workflows(world: World) -> list[tuple[str, str]]:
    return sorted({(row.org_id, row.flow_id) for row in CHANGES.rows(world.engine)})


FITS = {
    ("org", "o1"): lambda row: row.org_id == "o1",
    ("user", "u0"): lambda row: row.user_id == "u0",
    ("flow", "7"): lambda row: row.flow_id == "7",
    ("cycle", "week"): lambda row: row.cycle == "W",
    ("cycle", "Q"): lambda row: row.cycle == "Q",
    ("name", "E_eNt"): lambda row: "e_ent" in (row.flow_name or ""),
}


@pytest.mark.parametrize("way", ["replay", "group", "undo"])
def test_a_filter_finds_the_same_rows_as_the_oracle(engine: Engine, way: str) -> None:
    """By organisation, user, flow_id, cycle (code or label) and a part of the name, at once or alone."""
    world = World(engine, 4)
    world.live(30)
    moment = world.now - HOUR
    everything = [
        row for o in sorted(world.oracles.values(), key=lambda o: o.target) if (at := o.at(moment)) for row in at[1]
    ]
    for asked, fits in FITS.items():
        found = list(flows_as_of(engine, moment, **dict([asked]), way=way))
        assert found == [row for row in everything if fits(row)] != [], asked
    assert list(flows_as_of(engine, moment, name="%", way=way)) == []
    assert (
        list(targets_as_of(engine, moment, org="o1", user="u0"))
        == [
            row
            for target, o in sorted(world.oracles.items())
            if target[:2] == ("o1", "u0")
            for row, _ in [o.at(moment)]
        ]
        != []
    )


def test_a_version_of_a_partial_hold_counts_as_an_observation_but_covers_nothing(diary: Diary) -> None:
    """The one case that the random histories do not have: the hold ends with the list that it left."""
    left = [*numbered(1, 10), flow(11, "renamed"), *numbered(12, 21)]
    for hours, listed in enumerate((numbered(1, 20), left[10:], left)):
        diary.answer(listed, after(hours=hours))
    known = [next(targets_as_of(diary.engine, after(hours=hours)))[3:] for hours in (0.5, 1, 1.5, 2)]
    assert known == [
        ("unobserved", after(), after(hours=1), 20),
        *[("unobserved", after(hours=1), after(hours=2), 21)] * 2,
        ("observed", after(hours=2), None, 21),
    ]


# -------------------------------------------------------------------------------------------------------- cost


def grow(connection: Connection, org: str, users: int, versions: int) -> None:
    """A history in which each user of an organisation sees one of its 20 workflows change, every hour a version."""
    first = (connection.execute(text("SELECT max(id) FROM target")).scalar() or 0) + 1
    last_set = connection.execute(text("SELECT max(id) FROM change_set")).scalar() or 0
    ids, hashes = range(first, first + users), dict.fromkeys(("state_digest", "data_hash", "parent_hash", "hash"), HASH)
    targets = [{"id": n, "org_id": org, "user_id": f"u{n}", "version": versions, "state_digest": HASH} for n in ids]
    sets, changes, spans, flows = [], [], [], []
    for version, n in itertools.product(range(1, versions + 1), ids):
        at, last_set = START + version * HOUR, last_set + 1
        of_set, of_change = ("baseline", "baseline") if version == 1 else ("delta", "cycle_changed")
        of_version = {"target_id": n, "version": version}
        times = {"observed_at": at, "asked_at": at, "last_unchanged_at": None if version == 1 else at}
        counts = {"run_id": 1, "format": 1, "flow_count": 20}
        sets.append({"id": last_set, "kind": of_set, **of_version, **times, **counts, **hashes})
        spans.append(of_version | {"first_at": at, "last_asked_at": at, "last_at": at, "interrupted": False})
        for number in range(20) if version == 1 else [version % 20]:
            change = {"change_set_id": last_set, "flow_id": f"{org}-{number}", "kind": of_change}
            changes.append(change | {"new_cycle": "H", "old_cycle": "D"})
    for number, n in itertools.product(range(20), ids):
        changed = max(v for v in range(1, versions + 1) if v == 1 or v % 20 == number)
        times = {"first_listed_at": START, "changed_at": START + changed * HOUR}
        flows.append({"target_id": n, "flow_id": f"{org}-{number}", **times})
    tables = (schema.target, schema.change_set, schema.workflow_change, schema.observation, schema.workflow)
    for table, rows in zip(tables, (targets, sets, changes, spans, flows), strict=True):
        connection.execute(insert(table), rows)


@pytest.mark.parametrize("way", ["replay", "group", "undo"])
@pytest.mark.parametrize("filters", [{}, {"org_id": "o1"}, {"org_id": "o1", "user_id": "u1"}])
def test_no_table_that_grows_is_read_from_end_to_end(engine: Engine, way: str, filters: dict[str, str]) -> None:
    """EXPLAIN finds an index for every access to the trail, the spans and the lists, whatever the filter."""
    with writing(engine) as connection:
        grow(connection, "o1", 3, 40)
        connection.execute(text("ANALYZE"))
    at = START + 20 * HOUR
    statements = [flows_statement(way, at, filters), targets_statement(at, filters)]
    with reading(engine) as connection:
        plans = [_plan(connection, str(statement.element), {"at": at, **filters}) for statement in statements]
    for plan in plans:
        assert "target_id" in plan
        assert _whole_tables(plan) <= {"target"}, plan


def _plan(connection: Connection, sql: str, values: dict[str, object]) -> str:
    """With sequential scans forbidden, PostgreSQL shows whether an index could serve: small tables need none."""
    explain = "EXPLAIN QUERY PLAN "
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        explain = "EXPLAIN "
    statement = text(explain + sql).bindparams(bindparam("at", type_=schema.UtcTime()))
    return "\n".join(str(row[-1]) for row in connection.execute(statement, values))


def _whole_tables(plan: str) -> set[str]:
    """The tables that a plan reads as a whole."""
    names = {"t": "target", "s": "change_set", "v": "change_set", "c": "workflow_change", "n": "change_set",
             "o": "observation", "a": "observation", "b": "observation", "w": "workflow"}  # fmt: skip
    scanned = re.findall(r"^SCAN (\w+)|Seq Scan on (\w+)", plan, re.MULTILINE)
    found = {names.get(sqlite, sqlite) or postgres for sqlite, postgres in scanned}
    return found & set(schema.metadata.tables)


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_the_cost_of_undoing_does_not_grow_with_what_lies_before(engine: Engine) -> None:
    """Eight times the history before T, and the same since: SQLite takes about the same number of steps."""
    costs = []
    for org, versions in (("o1", 100), ("o2", 800)):
        with writing(engine) as connection:
            grow(connection, org, 3, versions)
        moment = START + (versions - 5) * HOUR
        costs.append(_steps(engine, lambda org=org, moment=moment: list(flows_as_of(engine, moment, org=org))))
    assert costs[1] < 1.3 * costs[0]


def _steps(engine: Engine, work: object) -> int:
    """How many hundreds of virtual machine instructions SQLite takes."""
    count = 0

    def step() -> int:
        nonlocal count
        count += 1
        return 0

    with engine.connect() as connection:
        driver = connection.connection.driver_connection
    driver.set_progress_handler(step, 100)
    try:
        assert work()
    finally:
        driver.set_progress_handler(None, 0)
    assert count > 50
    return count


def test_the_cheaper_way_is_undoing_what_is_recent_and_replaying_what_is_old(engine: Engine) -> None:
    """By how much of the trail lies before and after the moment."""
    with writing(engine) as connection:
        grow(connection, "o1", 1, 200)
    with reading(engine) as connection:
        ways = [cheaper_way(connection, START + hours * HOUR) for hours in (-1, 1, 100, 195, 200, 9999)]
    forward = "group" if engine.dialect.name == "sqlite" else "replay"
    assert ways == [forward, forward, forward, "undo", "undo", "undo"]


def test_one_workflow_is_replayed_unless_it_did_not_change_since(engine: Engine) -> None:
    """Its changes are found by its id, however many versions its users have."""
    with writing(engine) as connection:
        grow(connection, "o1", 1, 200)
    flow = next(iter(FLOWS.rows(engine))).flow_id
    with reading(engine) as connection:
        last = max(row.observed_at for row in CHANGES.rows(engine, flow=flow))
        assert cheaper_way(connection, last - HOUR / 2, flow) == "replay"
        assert cheaper_way(connection, last + HOUR / 2, flow) == "undo"


# ----------------------------------------------------------------------------------------------------- recipes


def test_the_recipes_of_the_documentation_give_what_the_report_gives(engine: Engine) -> None:
    """As they stand, in sqlite3 and psql, with the parameters set as the documentation says."""
    program = "sqlite3" if engine.dialect.name == "sqlite" else "psql"
    client(program)
    world = World(engine, 5, targets=6)
    world.live(40)
    [shown] = _blocks(program)
    script: tuple[list[str], list[str]] = [], []
    lists, coverage = [], []
    for moment, (org, user, _) in itertools.product(world.moments(4), world.oracles):
        meant = {
            "o15427722038191": org,
            "u15426865866571": user,
            "2026-03-31 14:00:00.000000": f"{moment:%Y-%m-%d %H:%M:%S.%f}",
            "2026-03-31 14:00:00+00": moment.isoformat(),
        }
        parameters = functools.reduce(lambda said, each: said.replace(*each), meant.items(), shown)
        for lines, recipe in zip(script, _blocks("sql"), strict=True):
            lines.append(parameters + recipe)
        lists += [(*row[:6], row.editable) for row in flows_as_of(engine, moment, org=org, user=user)]
        coverage += [tuple(row) for row in targets_as_of(engine, moment, org=org, user=user) if row.observed_before]
    for lines, known in zip(script, (lists, coverage), strict=True):
        said = _say(engine, program, "".join(lines)).splitlines()
        assert [tuple(map(_told, line.split("|"))) for line in said] == [tuple(map(_plain, row)) for row in known] != []


def _told(cell: str) -> object:
    """A cell that a program printed: a time as a time."""
    if not re.match(r"\d{4}-\d\d-\d\d ", cell):
        return {"t": "1", "f": "0"}.get(cell, cell)
    moment = dt.datetime.fromisoformat(cell)
    return moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)


def _plain(value: object) -> object:
    if isinstance(value, bool):
        return str(int(value))
    return value if isinstance(value, dt.datetime) else "" if value is None else str(value)


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", RECIPES.read_text(), re.DOTALL)


def _say(engine: Engine, program: str, script: str) -> str:
    url = engine.url
    command = [program, "-batch", "-init", os.devnull, str(url.database)]
    if program == "psql":
        where = [f"--host={url.query['host']}", f"--port={url.query['port']}", f"--username={url.username}"]
        command = [program, "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", *where, str(url.database)]
    done = subprocess.run(command, input=script, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.stdout
