"""Every question of docs/sql.md gets its exact answer from a known history, in every program that people use."""

from __future__ import annotations

import csv
import datetime as dt
import io
import os
import re
import subprocess
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import pytest
from sqlalchemy import Engine, insert, make_url, text

from etl.database import reading, writing
from etl.domain import verdict
from etl.domain.guard import Limits
from etl.domain.model import Flow, Outcome, Target
from etl.errors import Refused
from etl.report.asof import flows_as_of
from etl.report.listings import EVENTS, STATES
from etl.schema import acknowledgement
from etl.store import NewRun, Store
from tests.support import builders
from tests.support.browser import write_month
from tests.support.databases import client

PAGE = (Path(__file__).parents[2] / "docs" / "sql.md").read_text(encoding="utf-8")
ALICE, BOB, CAROL = (Target("o-solar", user) for user in ("alice", "bob", "carol"))
SOLAR = Target("o-solar", "")
"""Its directory."""
DORA, ERIK, FRED = (Target("o-wind", user) for user in ("dora", "erik", "fred"))
LIMITS = Limits(min_removed=2, max_removed_share=0.4)
COVERAGE_GAP = dt.timedelta(days=35)
MOMENT = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.000\d{1,3})?(?:[+]\d\d(?::\d\d)?)?")
BETWEEN, TICK = dt.timedelta(microseconds=50), dt.timedelta(microseconds=1)
_FLAG = dict.fromkeys(("0", "f", "False"), "no") | dict.fromkeys(("1", "t", "True"), "yes")
FLAGS = {"editable": _FLAG, "proven_for_all": _FLAG}
"""How the programs write what is true of a column, and what is not."""


class Question(NamedTuple):
    """A question of the page, and its SQL."""

    title: str
    meaning: str
    sql: str


QUESTIONS = [
    Question(*found)
    for found in re.findall(r"^## ([^\n]+\?)\n\n(.*?)\n\n```sql\n(.*?)```$", PAGE, re.DOTALL | re.MULTILINE)
]

Rows = list[tuple[str, ...]]
"""Everything as text: times in UTC to the second, noon as its day, flags as yes and no, null as an empty string."""

ANSWERS: Mapping[str, Rows] = {
    "Who lost access last week?": [("o-solar", "bob", "1", "map", "2026-03-25")],
    "Which daily workflows became hourly this quarter?": [("o-solar", "1", "map", "2026-01-05", "2026-02-02")],
    "What was there when April began?": [
        ("o-solar", "1", "map", "H"),
        ("o-solar", "2", "reduce", "H"),
        ("o-solar", "3", "join_all", "D"),
        ("o-solar", "6", "report", "M"),
        ("o-wind", "7", "load", "D"),
        ("o-wind", "9", "merge", "H"),
    ],
    "What did a user see when April began?": [
        ("", "1", "map", "H"),
        ("", "2", "reduce", "H"),
        ("", "3", "join_all", "D"),
    ],
    "Which targets can I not trust today?": [
        ("o-solar", "alice", "", "2026-03-25", "1", "62109", "0"),
        ("o-wind", "dora", "", "2026-03-25", "0", "", "2"),
    ],
    "Which workflows can nobody edit?": [
        ("o-solar", "2", "reduce", "1"),
        ("o-solar", "6", "report", "1"),
    ],
    "What changed in an organisation on one day, each thing once?": [
        ("2026-03-25", "9", "cycle_changed", "", "merge", "merge", "mi", "H", "yes"),
        ("2026-03-25", "8", "disappeared", "", "clean", "", "M", "", "no"),
    ],
    "What is proven to have happened in March?": [
        ("o-solar", "3", "access_granted", "bob", "2026-03-02", "2026-03-16"),
        ("o-solar", "4", "disappeared", "", "2026-03-02", "2026-03-17"),
        ("o-solar", "5", "disappeared", "", "2026-03-02", "2026-03-17"),
        ("o-solar", "1", "access_lost", "bob", "2026-03-16", "2026-03-25"),
    ],
    "What may have happened in February?": [("o-wind", "8", "disappeared", "", "yes", "2026-02-02", "2026-03-02")],
    "When was nobody looking?": [
        ("o-wind", "erik", "", "2026-01-05", "2026-03-02"),
        ("o-solar", "alice", "", "2026-03-02", "2026-03-17"),
        ("o-solar", "alice", "", "2026-03-25", ""),
        ("o-wind", "dora", "", "2026-03-25", ""),
    ],
    "In which gaps did something change?": [("o-solar", "alice", "", "2026-03-02", "2026-03-17")],
    "Which were the busiest days?": [
        ("2026-03-02", "3"),
        ("2026-03-25", "3"),
        ("2026-02-02", "2"),
    ],
    "Which workflows flap?": [("o-wind", "8", "2", "2026-03-02", "2026-03-25")],
    "How long did a workflow live?": [("o-solar", "5", "2026-02-02", "2026-03-17")],
    "What was a workflow's life?": [
        ("alice", "map", "D", "baseline", "2026-01-05", "2026-02-02"),
        ("alice", "map", "H", "cycle_changed", "2026-02-02", ""),
        ("bob", "map", "D", "baseline", "2026-01-05", "2026-02-02"),
        ("bob", "map", "H", "cycle_changed", "2026-02-02", "2026-03-25"),
        ("carol", "map", "H", "baseline", "2026-03-25", ""),
    ],
    "Who sees a workflow?": [
        ("alice", "join_all", "day", "yes"),
        ("bob", "join_all", "day", "no"),
    ],
    "Which workflows does no user see?": [
        ("o-solar", "10", "spare", "2026-01-05"),
        ("o-solar", "4", "sort", "2026-03-17"),
    ],
    "What is gone from every list, and was still in the directory?": [
        ("o-solar", "4", "sort", "2026-03-02", "2026-03-17")
    ],
    "Which users see nothing?": [("o-wind", "fred", "2026-03-31")],
    "What does one user see that another does not?": [
        ("1", "map"),
        ("2", "reduce"),
    ],
    "Which workflows does only one user still see?": [
        ("o-solar", "2", "reduce", "alice"),
        ("o-wind", "7", "load", "dora"),
    ],
    "Which runs failed, and why?": [
        ("2026-02-02", "command", "partial", "o-wind", "erik", "failed", "62109", "internal error"),
        ("2026-03-16", "command", "partial", "o-solar", "alice", "held", "guard", "2 of 5 workflows are missing"),
        ("2026-03-31", "command", "partial", "o-solar", "alice", "failed", "62109", "internal error"),
        ("2026-03-31", "command", "partial", "o-wind", "dora", "held", "guard", "2 of 2 workflows are missing"),
    ],
    "Which removals are held?": [
        ("o-wind", "dora", "", "7", "load", "2026-03-31"),
        ("o-wind", "dora", "", "9", "merge", "2026-03-31"),
    ],
    "Who approved which removal?": [
        ("maria", "2026-03-17", "o-solar", "alice", "4", "sort"),
        ("maria", "2026-03-17", "o-solar", "alice", "5", "check"),
    ],
    "What has nobody acknowledged?": [
        ("5", "2026-03-02", "2", "access_lost", "bob"),
        ("6", "2026-03-16", "3", "access_granted", "bob"),
        ("9", "2026-03-17", "5", "disappeared", ""),
        ("10", "2026-03-25", "1", "access_lost", "bob"),
    ],
    "Who had agreed by the end of March to what happened in it?": [
        ("2026-03-02", "3", "renamed", "", "", "", ""),
        ("2026-03-02", "2", "access_lost", "bob", "", "", ""),
        ("2026-03-16", "3", "access_granted", "bob", "", "", ""),
        ("2026-03-17", "4", "disappeared", "", "CHG-7", "maria", "2026-03-18"),
        ("2026-03-17", "5", "disappeared", "", "", "", ""),
        ("2026-03-25", "1", "access_lost", "bob", "CHG-8", "zoe", "2026-03-26"),
    ],
    "What was agreed under a ticket?": [("o-solar", "2026-03-17", "4", "disappeared", "maria", "2026-03-18")],
    "What were renamed workflows called before?": [("o-solar", "3", "join", "join_all", "2026-03-02")],
    "How much came and went, by organisation and month?": [
        ("o-solar", "2026-02", "1", "0"),
        ("o-solar", "2026-03", "0", "2"),
        ("o-wind", "2026-03", "1", "2"),
    ],
    "How many workflows had which cycle when each month ended?": [
        ("D", "2", "1", "1"),
        ("H", "1", "2", "2"),
        ("M", "0", "0", "1"),
        ("W", "1", "2", "0"),
    ],
    "How many workflows are there now, by cycle?": [
        ("o-solar", "D", "1"),
        ("o-solar", "H", "2"),
        ("o-solar", "M", "1"),
        ("o-wind", "D", "1"),
        ("o-wind", "H", "1"),
    ],
    "What was first seen this month?": [("o-solar", "6", "report", "2026-03-25")],
    "How fresh is what we know?": [
        ("o-solar", "4", "2026-03-25"),
        ("o-wind", "2", "2026-03-25"),
    ],
    "Do the change sets say how many changes they have?": [],
}


# ------------------------------------------------------------------------------------------------- the history


List = Mapping[str, tuple[str, str | None, bool | None]]


class Story:
    """Runs at noon, each of which asks some targets one after the other; an answer of None is a failure."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.store = Store(engine)

    def run(self, day: str, answers: Mapping[Target, List | None], by: str | None = None) -> None:
        at = noon(day)
        new = NewRun(origin="approval" if by else "command", host="here", pid=1, targets=len(answers))
        run_id = self.store.begin_run(new, at)
        assert run_id is not None
        outcomes = [self._judge(*answer, at + number * BETWEEN, by) for number, answer in enumerate(answers.items(), 1)]
        assert self.store.apply(run_id, outcomes, builders.UNCHECKED) == set()
        ends_at = at + dt.timedelta(minutes=1)
        builders.set_coverage_gap(self.engine, COVERAGE_GAP)
        self.store.derive_events(run_id, at, lambda: ends_at)
        got_through = {outcome.verdict for outcome in outcomes} <= {"changed", "unchanged"}
        assert self.store.finish_run(run_id, "succeeded" if got_through else "partial", {}, ends_at)

    def _judge(self, target: Target, answer: List | None, at: dt.datetime, by: str | None) -> Outcome:
        [fence] = self.store.fences([target])
        if answer is None:
            return verdict.failed(fence, Refused("internal error", code="62109"))
        flows = [Flow(flow_id, *state) for flow_id, state in answer.items()]
        snapshot = builders.snapshot(flows, at, target=target, took=BETWEEN)
        approver = None if target.is_directory else by
        return builders.judged(self.store, fence, snapshot, gap=COVERAGE_GAP, limits=LIMITS, by=approver)

    def retire(self, day: str, *, all_but: Iterable[Target]) -> None:
        self.store.retire_others(all_but, noon(day), None)


def noon(day: str) -> dt.datetime:
    return dt.datetime.fromisoformat(f"2026-{day}T12:00:00+00:00")


def tell(engine: Engine) -> None:
    """The first quarter of 2026 in two organisations."""
    story = Story(engine)
    alice = {"1": ("map", "D", True), "2": ("reduce", "H", False), "3": ("join", "D", True)}
    bob = {"1": ("map", "D", False), "2": ("reduce", "H", False)}
    dora = {"7": ("load", "D", True), "8": ("clean", "M", False), "9": ("merge", "mi", True)}
    erik = {"7": ("load", "D", False)}
    alice |= {"4": ("sort", "W", False)}
    names = {"1": "map", "2": "reduce", "3": "join", "4": "sort", "5": "check", "6": "report", "10": "spare"}
    solar: List = {number: (name, None, None) for number, name in names.items()}
    story.run("01-05", {SOLAR: solar, ALICE: alice, BOB: bob, DORA: dora, ERIK: erik, FRED: {}})
    alice |= {"1": ("map", "H", True), "5": ("check", "W", False)}
    bob |= {"1": ("map", "H", False)}
    story.run("02-02", {SOLAR: solar, ALICE: alice, BOB: bob, DORA: dora, ERIK: None, FRED: {}})
    alice |= {"3": ("join_all", "D", True)}
    del bob["2"], dora["8"]
    story.run("03-02", {SOLAR: solar, ALICE: alice, BOB: bob, DORA: dora, ERIK: erik, FRED: {}})
    bob |= {"3": ("join_all", "D", False)}
    dora |= {"8": ("clean", "M", False)}
    del alice["4"], alice["5"]
    story.run("03-16", {SOLAR: solar, ALICE: alice, BOB: bob, DORA: dora, FRED: {}})
    solar = {number: each for number, each in solar.items() if number != "5"}
    story.run("03-17", {SOLAR: solar, ALICE: alice}, by="maria")
    story.retire("03-20", all_but=(SOLAR, ALICE, BOB, DORA, FRED))
    del bob["1"], dora["8"]
    dora |= {"9": ("merge", "H", True)}
    carol = {"1": ("map", "H", False), "6": ("report", "M", False)}
    story.run("03-25", {SOLAR: solar, ALICE: alice, BOB: bob, CAROL: carol, DORA: dora, FRED: {}})
    story.run("03-31", {SOLAR: solar, ALICE: None, BOB: bob, CAROL: carol, DORA: {}, FRED: {}})
    with writing(engine) as connection:
        connection.execute(insert(acknowledgement), [agreed(number, *each) for number, each in enumerate(AGREED, 1)])


AGREED = (
    ("03-18", "maria", {"flow_id": "4", "kind": "disappeared", "ticket": "CHG-7"}),
    ("03-26", "zoe", {"ticket": "CHG-8", "after": "03-20", "until": "03-31"}),
    ("03-30", "maria", {"flow_id": "5", "ticket": "CHG-7"}),
    ("03-31", "zoe", {"revokes": 3}),
    ("04-02", "zoe", {"revokes": 2}),
    ("04-03", "maria", {"flow_id": "3", "kind": "renamed", "ticket": "CHG-9"}),
)
"""When, by whom, and what."""


def agreed(number: int, day: str, by: str, said: Mapping[str, Any]) -> dict[str, Any]:
    row = {"id": number, "made_at": noon(day), "made_by": by, "org_id": "o-solar", **dict.fromkeys(SAID), **said}
    return row | {name: row[name] and noon(row[name]) for name in ("after", "until")}


SAID = ("flow_id", "user_id", "kind", "after", "until", "ticket", "note", "revokes")


# --------------------------------------------------------------------------------------------------- the asking


def plain(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> Rows:
    names = list(columns)
    return [tuple(cell(name, value) for name, value in zip(names, row, strict=True)) for row in rows]


def cell(column: str, value: object) -> str:
    said = "" if value is None else str(value)
    if not MOMENT.fullmatch(said):
        return FLAGS.get(column, {}).get(said, said)
    moment = dt.datetime.fromisoformat(said)
    return f"{moment.astimezone(dt.UTC) if moment.tzinfo else moment:%Y-%m-%d %H:%M:%S}".removesuffix(" 12:00:00")


def ask(*command: str, sql: str, environment: Mapping[str, str] = {}) -> Rows:
    """What a program on this machine answers to a statement on its standard input."""
    done = subprocess.run(
        command, input=sql, capture_output=True, text=True, timeout=60, env={**os.environ, **environment}, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    if not done.stdout:
        return []
    columns, *rows = csv.reader(io.StringIO(done.stdout))
    return plain(columns, rows)


def asked(connection: duckdb.DuckDBPyConnection, sql: str) -> Rows:
    result = connection.execute(sql)
    return plain([column[0] for column in result.description], result.fetchall())


def assert_answers(answer: Callable[[str], Rows]) -> None:
    assert {question.title: answer(question.sql) for question in QUESTIONS} == ANSWERS


@pytest.fixture
def known(engine: Engine) -> Engine:
    tell(engine)
    return engine


def test_each_question_says_in_one_sentence_what_a_row_is_and_has_an_expected_answer() -> None:
    titles = [question.title for question in QUESTIONS]
    assert len(titles) >= 20
    assert sorted(titles) == sorted(ANSWERS)
    assert len(re.findall(r"^```sql$", PAGE, re.MULTILINE)) == len(titles)
    assert [each.title for each in QUESTIONS if not re.fullmatch(r"A row is [^\n]+\.", each.meaning)] == []
    empty = [title for title, rows in ANSWERS.items() if not rows]
    assert empty == ["Do the change sets say how many changes they have?"], "an empty answer proves little"


def test_what_a_search_finds_is_no_part_of_the_organisations_story(engine: Engine) -> None:
    story, found = Story(engine), Target("o-solar", "alice", "map")
    mapping, sorting = {"1": ("map", "D", True)}, {"2": ("sort", "D", True)}
    for day, there in (("03-02", mapping), ("03-03", {}), ("03-04", mapping)):
        story.run(day, {ALICE: sorting | there, found: there})
    answers = {question.title: question.sql for question in QUESTIONS}
    with reading(engine) as connection:
        disappeared = connection.execute(text("SELECT flow_id FROM org_event WHERE kind = 'disappeared'")).all()
        assert disappeared == [("1",)]
        assert connection.execute(text(answers["Which workflows flap?"])).all() == []
        now = connection.execute(text(answers["How many workflows are there now, by cycle?"])).all()
        assert now == [("o-solar", "D", 2)]


def test_patterns_and_commands_agree_at_the_very_moment_of_a_change(engine: Engine, database_url: str) -> None:
    """From is included, to is not; what changed at a moment is there as of it. A microsecond sooner it is not."""
    write_month(engine, database_url)
    questions = {question.title: question.sql for question in QUESTIONS}
    of_user = questions["What did a user see when April began?"].replace("o-solar", "o1").replace("alice", "bob")
    of_org = questions["What was there when April began?"]
    in_period = questions["What changed in an organisation on one day, each thing once?"].replace("o-wind", "o1")
    events = list(EVENTS.rows(engine, org="o1"))
    moments = sorted({event.observed_at for event in events})
    for at in sorted({each - step for each in moments for step in (dt.timedelta(0), TICK)}):
        literal = f"{at:%Y-%m-%d %H:%M:%S.%f}+00"
        with reading(engine) as connection:
            lists, states = (
                connection.execute(text(sql.replace("2026-04-01 00:00:00.000000+00", literal))).all()
                for sql in (of_user, of_org)
            )
        assert [row[1] for row in lists] == [row.flow_id for row in flows_as_of(engine, at, org="o1", user="bob")], at
        assert [tuple(row) for row in states] == [row[:4] for row in STATES.rows(engine, at=at)], at
    for since, until in pairwise(moments):
        sql = in_period.replace("2026-03-25 00:00:00", f"{since:%F %T}").replace(
            "2026-03-26 00:00:00", f"{until:%F %T}"
        )
        with reading(engine) as connection:
            found = [row[1:3] for row in connection.execute(text(sql))]
        known = [event for event in events if since <= event.observed_at < until]
        assert found == [(event.flow_id, event.kind) for event in known] != []
        assert list(EVENTS.rows(engine, org="o1", since=since, until=until)) == known


def test_the_library_gives_the_expected_answers(known: Engine) -> None:
    def answer(sql: str) -> Rows:
        with reading(known) as connection:
            result = connection.execute(text(sql))
            return plain(result.keys(), result)

    assert_answers(answer)


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_sqlite3_gives_them_as_they_stand(known: Engine, database_url: str) -> None:
    file = make_url(database_url).database or ""
    assert_answers(lambda sql: ask(client("sqlite3"), "-readonly", "-header", "-csv", file, sql=sql))


@pytest.mark.parametrize("zone", ["UTC", "Asia/Shanghai"])
@pytest.mark.parametrize("dialect", ["postgresql"])
def test_psql_gives_them_as_they_stand_whatever_its_zone(known: Engine, database_url: str, zone: str) -> None:
    url = make_url(database_url)
    environment = {"PGHOST": str(url.query["host"]), "PGPORT": str(url.query["port"]), "PGUSER": url.username or ""}
    where = (client("psql"), "-X", "-q", "--csv", "-v", "ON_ERROR_STOP=1", "-d", url.database or "")
    assert_answers(lambda sql: ask(*where, sql=f"SET TimeZone = '{zone}';\n{sql}", environment=environment))


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_duckdb_gives_them_after_the_copy_that_the_page_describes(
    known: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [script] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(script, "docs/sql.md", "exec"), {})
    with duckdb.connect("report.duckdb", read_only=True) as connection:
        assert_answers(lambda sql: asked(connection, sql))


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_duckdb_gives_them_from_the_file_itself_where_its_extension_is_installed(
    known: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with duckdb.connect(config={"autoinstall_known_extensions": False}) as connection:
        try:
            connection.execute("LOAD sqlite")
        except duckdb.Error:
            pytest.skip("no sqlite extension of DuckDB")
        [attach] = re.findall(r"```\n(ATTACH .*?)```", PAGE, re.DOTALL)
        connection.execute(attach)
        assert_answers(lambda sql: asked(connection, sql))
