"""Rules are evaluated beside runs: what they find begins and ends, and whatever they do wrong stops only them."""

from __future__ import annotations

import datetime as dt
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from etl import sync
from etl.config.rules import read_rules
from etl.database import connect, reading, sqlite_reader, writing
from etl.domain.guard import Limits
from etl.domain.model import Flow, Target
from etl.errors import DatabaseError, Refused
from etl.report import health
from etl.report.listings import FINDINGS
from etl.report.rules import rule_states
from etl.service.rules import EVERY, RuleBook, RuleWatch
from etl.store import NewAcknowledgement, NewRun, Store, findings
from tests.support.builders import run_context
from tests.support.databases import Connect
from tests.support.questions import Upstream
from tests.support.sessions import HOSTILE_ROLE

PAGE = (Path(__file__).parents[2] / "docs" / "rules.md").read_text("utf-8")
DOCUMENTED: Mapping[str, str] = dict(
    re.findall(r"^### ([\w-]+)\.sql\n.*?```sql\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)
)
SOLAR = "o-solar"
ANN, BOB, DIRECTORY = Target(SOLAR, "ann"), Target(SOLAR, "bob"), Target(SOLAR, "")
MONDAY = dt.datetime(2026, 3, 2, 9, tzinfo=dt.UTC)
SECOND = dt.timedelta(seconds=1)


class Site:
    """An organisation whose users answer when a test says so, and a folder of rules; its clock stands still."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.engine, self.store, self.now = engine, Store(engine), MONDAY
        self.folder, self.engines = folder, list[Engine]()
        folder.mkdir()
        self.book = self.another_book()

    def another_book(self, **how: Any) -> RuleBook:
        own = connect(self.engine.url.render_as_string(hide_password=False), pool_size=1, patience_seconds=1)
        self.engines.append(own)
        timeout = how.pop("timeout", dt.timedelta(seconds=20))
        return RuleBook(own, Store(self.engine), self.folder, timeout=timeout, clock=lambda: self.now, **how)

    def rule(self, name: str, sql: str, title: str = "it is so", more: str = "") -> None:
        (self.folder / f"{name}.sql").write_text(f"-- title: {title}\n{more}{sql}")

    def run(self, answers: Mapping[Target, list[Flow] | None], at: dt.datetime | None = None) -> int:
        """A run in which each target gives its list, or fails; a second passes at each look at the clock."""
        self.now = at or self.now + dt.timedelta(minutes=10)

        def says(target: Target, _: int) -> Sequence[Flow] | Refused:
            listed = answers[target]
            return Refused("no", code="62109") if listed is None else listed

        def clock() -> dt.datetime:
            self.now += SECOND
            return self.now

        upstream = Upstream({})
        upstream.says, upstream.clock = says, clock
        new = NewRun(origin="command", host="here", pid=1, targets=len(answers))
        with run_context(self.store, upstream, limits=Limits(min_removed=99)) as (context, batches):
            report = sync.run(context, new, list(answers), batches, clock=clock)
        assert report is not None
        assert report.status != "aborted"
        return report.run_id

    def evaluate(self, *names: str) -> list[str]:
        """Evaluate what is due; return what is open, as its rows."""
        self.now += SECOND
        self.book.round(names)
        return self.open()

    def open(self) -> list[str]:
        return [each.row for each in FINDINGS.rows(self.engine, show="open")]

    def errors(self) -> dict[str, str | None]:
        return {each.rule: each.error for each in rule_states(self.engine)}


@pytest.fixture
def site(engine: Engine, tmp_path: Path) -> Iterator[Site]:
    site = Site(engine, tmp_path / "rules")
    yield site
    for own in site.engines:
        own.dispose()


def flow(number: int, name: str = "prd_map", cycle: str | None = "D", editable: bool = True) -> Flow:
    return Flow(str(number), name, cycle, editable)


# --------------------------------------------------------------------------------------------------- what it finds


def test_a_finding_begins_lasts_and_ends_and_is_another_when_it_comes_back(site: Site) -> None:
    site.rule("hourly", "SELECT flow_id, users FROM org_workflow WHERE cycle = 'H'", more="-- key: flow_id\n")
    assert site.evaluate() == []
    first = site.run({ANN: [flow(1, cycle="H"), flow(2)], BOB: []})
    assert site.evaluate() == ['{"flow_id":"1","users":1}']
    began = site.now
    site.run({ANN: [flow(1, cycle="H"), flow(2)], BOB: [flow(1, cycle="H")]})
    assert site.evaluate() == ['{"flow_id":"1","users":2}']
    mended = site.run({ANN: [flow(1), flow(2)], BOB: [flow(1)]})
    assert site.evaluate() == []
    site.run({ANN: [flow(1, cycle="H"), flow(2)], BOB: [flow(1, cycle="H")]})
    assert site.evaluate() == ['{"flow_id":"1","users":2}']
    new, old = FINDINGS.rows(site.engine)
    assert (old.since, old.since_run_id, old.until_run_id, old.ended_by) == (began, first, mended, "mended")
    assert (new.until, new.until_run_id, new.ended_by) == (None, None, None)
    assert old.until is not None
    assert began < old.until < new.since


def test_what_a_changed_or_removed_rule_had_found_was_not_mended(site: Site) -> None:
    site.rule("numbers", "SELECT 1 AS n UNION ALL SELECT 2", more="-- severity: info\n")
    site.rule("other", "SELECT 1 AS n")
    assert len(site.evaluate()) == 3
    site.rule("numbers", "SELECT 2 AS n UNION ALL SELECT 3", "another title")
    (site.folder / "other.sql").unlink()
    assert site.evaluate() == ['{"n":3}', '{"n":2}']
    ended = [(each.rule, each.row, each.ended_by, each.severity) for each in FINDINGS.rows(site.engine, show="ended")]
    assert ended == [("numbers", '{"n":1}', "rule_changed", "info"), ("other", '{"n":1}', "rule_removed", "warning")]
    assert {each.title for each in FINDINGS.rows(site.engine, show="open")} == {"another title"}
    assert site.errors() == {"numbers": None}


def test_a_rule_is_evaluated_when_its_answer_may_be_another(site: Site) -> None:
    def evaluated() -> list[str]:
        site.now += SECOND
        return list(site.book.round().evaluated)

    site.rule("present", "SELECT 1 AS n WHERE 1 = 0")
    assert evaluated() == ["present"]
    assert evaluated() == []
    site.run({ANN: [flow(1)]})
    assert evaluated() == ["present"]
    site.run({ANN: [flow(1)]})
    assert evaluated() == []  # that run wrote nothing
    site.run({ANN: None})
    assert evaluated() == ["present"]
    site.rule("present", "SELECT 1 AS n WHERE 1 = 2")
    assert evaluated() == ["present"]
    site.now += EVERY
    assert evaluated() == ["present"]
    site.now -= 3 * EVERY  # a clock went back
    assert evaluated() == ["present"]


# -------------------------------------------------------------------------------------------------- what goes wrong

LARGE_ROW = "makes a row or a value of more than 100,000 bytes: leave out long columns"
ACTS = "which does not give the same answer twice or acts on something"
FOREVER = "WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT max(x) AS most FROM n"
MANY = "WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 1000000) SELECT x FROM n"
WRONG = {
    FOREVER: "was ended after 0.3 s: make it read less, or raise [rules] timeout",
    MANY: "gives more than 10,000 rows: a rule should find little",
    "SELECT nothing FROM target": "cannot be evaluated: ",
    "SELECT * FROM another.target": "cannot be evaluated: ",
    "SELECT 1 AS a FROM": "cannot be evaluated: ",
    "SELECT (SELECT 1 UNION ALL SELECT 2) FROM nowhere": "cannot be evaluated: ",
    "SELECT random() AS a": f"calls random(), {ACTS}",
}
SLOW = ("WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) ", "WITH a0")
DOUBLED = (
    "WITH a0 AS (SELECT 1 AS x)"
    + "".join(f", a{n} AS (SELECT p.x FROM a{n - 1} AS p, a{n - 1} AS q)" for n in range(1, 40))
    + " SELECT x FROM a39"
)
"""SQLite copies each expression as often as it is named, and cannot be interrupted while it prepares a statement."""
WRONG_ON = {
    "sqlite": {
        DOUBLED: ("was ended after 0.3 s", "needs more than 1 GiB of memory"),
        "SELECT load_extension('x')": f"calls load_extension(), {ACTS}",
        "SELECT * FROM pragma_table_info('target')": "has a PRAGMA: a rule only reads this database",
        "SELECT * FROM temp.sqlite_master": "reads another database: a rule only reads this database",
        "SELECT hex(zeroblob(1000000)) AS a": LARGE_ROW,
        "SELECT zeroblob(1000000000) AS a": LARGE_ROW,
        f"SELECT hex(zeroblob(45000)) AS a, x FROM ({MANY})": "gives more than 10 MB: leave out long columns",
    },
    "postgresql": {
        **{
            f"SELECT {call}": "calls " + re.findall(r"(\w+)\W*\(", call)[0] + f"(), {ACTS}"
            for call in (
                *("pg_sleep(9)", '"pg_sleep"(9)', "pg_catalog.pg_sleep (9)", "pg_advisory_lock(1)", "lo_create(0)"),
                *("set_config('a.b', 'c', false)", "pg_notify('a', 'b')", "nextval('target_id_seq')"),
                *("pg_terminate_backend(1)", "pg_read_file('/etc/passwd')", "query_to_xml('DELETE', true, true, '')"),
            )
        },
        "SELECT * FROM dblink('x', 'DELETE FROM target') AS t (a int)": "cannot be evaluated: function dblink",
        "SELECT repeat('x', 2000000) AS a": LARGE_ROW,
        "SELECT 1 / (x - 1) AS a FROM (SELECT 1 AS x) AS n": "cannot be evaluated: division by zero",
        "SELECT CAST('x' AS integer) AS a": "cannot be evaluated: invalid input syntax",
        "SELECT repeat('x', 90000) AS a, x FROM generate_series(1, 150) AS n (x)": (
            "gives more than 10 MB: leave out long columns"
        ),
    },
}


def test_whatever_a_rule_does_wrong_is_a_condition_and_what_it_had_found_stays(site: Site) -> None:
    for name in ("rule", "fine"):
        site.rule(name, "SELECT 1 AS n")
    site.evaluate()
    known = site.open()
    patient, hasty = (site.another_book(timeout=dt.timedelta(seconds=each)) for each in (60, 0.3))
    for sql, said in {**WRONG, **WRONG_ON[site.engine.dialect.name]}.items():
        site.now += SECOND
        site.rule("rule", sql)
        assert (hasty if sql.startswith(SLOW) else patient).round().evaluated == ["rule"], sql
        error = site.errors()["rule"]
        assert error is not None, sql
        assert error.startswith(said), sql
    assert site.open() == known
    wrong = health.read(site.engine, [], site.now).conditions()
    assert [(each.code, each.cause, each.severity) for each in wrong if each.code == "rule_failing"] == [
        ("rule_failing", "rule", "notice")
    ]
    site.rule("rule", "SELECT 1 AS n")
    site.evaluate()
    assert site.errors() == {"fine": None, "rule": None}


def test_a_file_that_becomes_no_rule_keeps_its_findings_until_it_is_one_again(site: Site) -> None:
    site.rule("rule", "SELECT 1 AS n")
    known = site.evaluate()
    site.rule("rule", "SELECT 1 AS n; SELECT 2")
    assert site.evaluate() == known
    assert str(site.errors()["rule"]).startswith(f"is refused: {site.folder / 'rule.sql'}:2: has a second statement")
    site.rule("rule", "SELECT 1 AS n")
    assert site.evaluate() == known
    assert site.errors() == {"rule": None}
    assert len(list(FINDINGS.rows(site.engine))) == 1


VALUES = {
    "sqlite": {
        "SELECT CAST(x'ff61' AS text) AS a": '"\ufffda"',
        "SELECT x'00ff' AS a": '"\\\\x00ff"',
        "SELECT 9e999 AS a": '"Infinity"',
    },
    "postgresql": {
        "SELECT CAST('NaN' AS float) AS a": '"NaN"',
        "SELECT CAST('\\x00ff' AS bytea) AS a": '"\\\\x00ff"',
        "SELECT true AS a": "true",
        "SELECT CAST('9999-12-31 23:59:59+00' AS timestamptz) + interval '1 year' AS a": '"10000-12-31T23:59:59Z"',
        f"SELECT CAST('{'9' * 5000}' AS numeric) AS a": f'"{"9" * 5000}"',
    },
}


def test_strange_values_are_found_and_are_the_same_the_next_time(site: Site) -> None:
    """Also a null in a key, and a moment, which both databases write alike."""
    site.run({ANN: [flow(1)]}, MONDAY)
    values = VALUES[site.engine.dialect.name] | {
        "SELECT CAST(NULL AS text) AS a": "null",
        "SELECT last_observed_at AS a FROM target_health": '"2026-03-02T09:00:03Z"',
    }
    for number, sql in enumerate(values):
        site.rule(f"v{number}", sql, more="-- key: b\n" if "9999999999" in sql else "")
        if "9999999999" in sql:
            site.rule(f"v{number}", f"SELECT a, 1 AS b FROM ({sql}) AS v", more="-- key: b\n")
    found = sorted(site.evaluate())
    assert [error for error in site.errors().values() if error] == []
    assert sorted(row.removesuffix(',"b":1}').removesuffix("}") for row in found) == sorted(
        f'{{"a":{value}' for value in values.values()
    )
    site.now += EVERY
    assert sorted(site.evaluate()) == found
    assert len(list(FINDINGS.rows(site.engine))) == len(found)


def test_nothing_that_a_rule_does_outlives_it(site: Site) -> None:
    """The next one has a connection with the usual settings, and the trail is not called damaged."""
    site.rule("a", WRONG_AND_BACK[site.engine.dialect.name])
    site.rule("b", "SELECT 1 AS n")
    assert site.evaluate() == ['{"n":1}']
    with writing(site.book.engine) as connection:
        connection.execute(text("UPDATE rule SET title = 'still written'"))
    site.run({ANN: [flow(1)]})


WRONG_AND_BACK = {
    "sqlite": "SELECT CAST(x'ff' AS text) FROM nowhere",
    "postgresql": "SELECT CAST(row_to_json(t) AS xml) FROM target t, nowhere",
}


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
def test_a_lock_that_a_view_takes_is_gone_after_the_round(site: Site) -> None:
    """A rule does not show that a view calls a function that acts on something."""
    with writing(site.engine) as connection:
        connection.execute(text("CREATE VIEW sly AS SELECT pg_advisory_lock(42) IS NULL AS a"))
    site.rule("rule", "SELECT a FROM sly")
    site.evaluate()
    assert site.errors() == {"rule": None}
    with writing(site.engine) as connection:
        assert connection.execute(text("SELECT pg_try_advisory_xact_lock(42)")).scalar_one()


# ------------------------------------------------------------------------------------------------ beside the runs


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
@pytest.mark.parametrize("sql", [FOREVER, DOUBLED], ids=["evaluated", "prepared"])
def test_on_sqlite_a_rule_gives_way_to_a_run_and_begins_again(
    site: Site, sql: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run commits although the rule reads: without WAL it could not while the rule does."""
    monkeypatch.setattr("etl.service.rules._PAUSE_SECONDS", 0.01)
    site.run({ANN: [flow(1)]})
    site.rule("slow", sql)
    book = site.another_book(timeout=dt.timedelta(seconds=50))
    thread = threading.Thread(target=book.round)
    thread.start()
    for n in range(2, 40):
        if not thread.is_alive():
            break
        site.run({ANN: [flow(n)]})
    thread.join()
    if site.engine.connect().exec_driver_sql("PRAGMA journal_mode").scalar() == "delete":
        assert str(site.errors()["slow"]).startswith("was ended 10 times for a run that had to write")


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_on_sqlite_no_reader_outlives_the_process_that_asked(site: Site) -> None:
    """It would hold up the next run."""
    asked = {"file": str(site.engine.url.database), "beside": "SELECT 1", "patience": 1, "sql": FOREVER, "row_bytes": 9}
    command = [sys.executable, "-I", "-S", sqlite_reader.__file__]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        reader.communicate(json.dumps(asked).encode() + b"\n", timeout=60)
    assert reader.returncode == 0


def test_an_evaluation_is_written_whole_or_not_at_all(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.rule("rule", "SELECT 1 AS n UNION ALL SELECT 2")
    before = site.evaluate()
    site.rule("rule", "SELECT 2 AS n UNION ALL SELECT 3")

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(findings, "_update", killed)
        with pytest.raises(KeyboardInterrupt):
            site.evaluate()
    assert (site.open(), len(list(FINDINGS.rows(site.engine)))) == (before, 2)
    assert site.evaluate() == ['{"n":3}', '{"n":2}']


def test_an_evaluation_that_another_overtook_is_dropped(site: Site) -> None:
    site.rule("rule", "SELECT 1 AS n")
    site.evaluate()
    [rule] = read_rules(site.folder).usable
    known = site.store.known_rules()["rule"]
    late = site.book.evaluate(rule, known)
    site.rule("rule", "SELECT 2 AS n")
    assert site.evaluate() == ['{"n":2}']
    assert site.store.write_evaluation(late) is None
    assert site.open() == ['{"n":2}']


def test_a_rule_that_was_edited_while_it_was_evaluated_is_evaluated_again(site: Site) -> None:
    site.rule("rule", "SELECT 1 AS n")
    site.book.rest = lambda seconds: site.rule("rule", "SELECT 2 AS n")
    assert site.evaluate() == ['{"n":1}']
    assert site.evaluate() == ['{"n":2}']


def test_only_the_active_replica_evaluates_and_without_rules_it_reads_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    active = False
    watch = RuleWatch(site.book, active=lambda: active)
    site.rule("rule", "SELECT 1 AS n")
    watch.evaluate_if_due()
    assert site.errors() == {}
    active = True
    watch.evaluate_if_due()
    assert site.open() == ['{"n":1}']
    (site.folder / "rule.sql").unlink()
    site.now += SECOND
    watch.evaluate_if_due()
    assert (site.open(), site.errors()) == ([], {})
    monkeypatch.setattr(site.book, "store", None)
    watch.evaluate_if_due()


def test_time_that_is_over_leaves_rules_for_the_next_round(site: Site) -> None:
    for name in ("a", "b", "c"):
        site.rule(name, f"SELECT '{name}' AS n")
    turns = iter([True, True, False, True, False])
    assert site.book.round(go_on=lambda: next(turns)) == (["a", "b"], ["c"])
    site.now += EVERY
    assert site.book.round(go_on=lambda: next(turns)) == (["c"], ["a", "b"])


def test_a_database_that_is_away_is_no_fault_of_a_rule(site: Site, connected: Connect) -> None:
    site.rule("rule", "SELECT 1 AS n")
    site.evaluate()
    site.rule("rule", "SELECT 2 AS n")
    away = {"sqlite": "sqlite:////nowhere/there.db", "postgresql": "postgresql+psycopg://nobody@127.0.0.1:1/nowhere"}
    site.book.engine = connected(away[site.engine.dialect.name])
    with pytest.raises(DatabaseError):
        site.book.round()
    assert site.errors() == {"rule": None}


# ----------------------------------------------------------------------------------------- the rules of docs/rules.md


def documented(site: Site, name: str) -> list[str]:
    """Evaluate a rule of the page now, twice; return the ids that it finds. What it had found goes on, or is mended."""
    (site.folder / f"{name}.sql").write_text(DOCUMENTED[name])
    before = {(each.id, each.key): each.since for each in FINDINGS.rows(site.engine, rule=name, show="open")}
    for _ in range(2):
        site.now += SECOND
        site.book.round([name], only_due=False)
        assert site.errors()[name] is None
    found = list(FINDINGS.rows(site.engine, rule=name, show="open"))
    same_key = {key for _, key in before} & {each.key for each in found}
    assert {(each.id, each.key): each.since for each in found if each.key in same_key} == {
        each: since for each, since in before.items() if each[1] in same_key
    }
    assert {each.ended_by for each in FINDINGS.rows(site.engine, rule=name, show="ended")} <= {"mended"}
    rows = [each.row for each in found]
    return sorted(re.findall(r'"(?:flow_id|first_id|user_id)":"(\w+)"', " ".join(rows)))


def days_on(site: Site, days: float) -> None:
    site.now += dt.timedelta(days=days)


def test_settlement_daily(site: Site) -> None:
    site.run({ANN: [flow(1, "Settlement A", "H"), flow(2, "settlement b"), flow(3, "other", "H")]})
    assert documented(site, "settlement-daily") == ["1"]
    site.run({ANN: [flow(1, "Settlement A", "D"), flow(2, "settlement b", None), flow(3, "other", "H")]})
    assert documented(site, "settlement-daily") == ["2"]
    site.run({ANN: [flow(1, "Settlement A", "D"), flow(2, "settlement b", "D"), flow(3, "other", "H")]})
    assert documented(site, "settlement-daily") == []


def test_slower_without_ticket(site: Site) -> None:
    site.run({ANN: [flow(1, cycle="H"), flow(2, cycle="H"), flow(3, cycle="D")]})
    site.run({ANN: [flow(1, cycle="D"), flow(2, cycle="mi"), flow(3, cycle="W")]})
    assert documented(site, "slower-without-ticket") == ["1"]
    site.store.acknowledge([NewAcknowledgement(made_by="ada", org_id=SOLAR, flow_id="1", ticket="CHG-1")], site.now)
    assert documented(site, "slower-without-ticket") == []


def test_nobody_edits(site: Site) -> None:
    site.run({ANN: [flow(1), flow(2, editable=False)], BOB: [flow(1, editable=False)]})
    assert documented(site, "nobody-edits") == ["2"]
    site.run({ANN: [flow(1), flow(2)], BOB: [flow(1, editable=False)]})
    assert documented(site, "nobody-edits") == []


def test_nothing_listed(site: Site) -> None:
    site.run({ANN: [flow(1)], BOB: []})
    assert documented(site, "nothing-listed") == ["bob"]
    site.run({BOB: [flow(1)]})
    assert documented(site, "nothing-listed") == []


def test_seen_by_nobody(site: Site) -> None:
    directory = {Target(SOLAR, ""): [Flow(number, "prd_x", None, None) for number in ("1", "2")]}
    site.run({ANN: [flow(1)], **directory})
    assert documented(site, "seen-by-nobody") == ["2"]
    site.run({ANN: [flow(1), flow(2)], **directory})
    assert documented(site, "seen-by-nobody") == []


def test_name_convention(site: Site) -> None:
    site.run({ANN: [flow(1), flow(2, "map"), flow(3, "tst_x")]})
    assert documented(site, "name-convention") == ["2"]
    site.run({ANN: [flow(1), flow(2, "prd_x"), flow(3, "tst_x")]})
    assert documented(site, "name-convention") == []


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql", HOSTILE_ROLE], indirect=True)
def test_outside_hours(site: Site) -> None:
    """Also for a role whose sessions write times in another zone, and another way."""
    site.run({ANN: [flow(1), flow(2)]})
    site.run({ANN: [flow(1, "prd_b"), flow(2)]}, MONDAY + dt.timedelta(hours=2))
    site.run({ANN: [flow(1, "prd_b"), flow(2, "prd_c")]}, MONDAY + dt.timedelta(hours=14))
    assert documented(site, "outside-hours") == ["2"]
    days_on(site, 8)
    assert documented(site, "outside-hours") == []


def test_same_name(site: Site) -> None:
    site.run({ANN: [flow(1, "x"), flow(2, "x"), flow(3, "y")]})
    assert documented(site, "same-name") == ["1"]
    site.run({ANN: [flow(1, "x"), flow(2, "z"), flow(3, "y")]})
    assert documented(site, "same-name") == []


def test_unacknowledged(site: Site) -> None:
    site.run({ANN: [flow(1), flow(2)]})
    site.run({ANN: [flow(1, "prd_b"), flow(2, "prd_c")]})
    assert documented(site, "unacknowledged") == []
    days_on(site, 4)
    assert documented(site, "unacknowledged") == ["1", "2"]
    site.store.acknowledge([NewAcknowledgement(made_by="ada", org_id=SOLAR, flow_id="1")], site.now)
    assert documented(site, "unacknowledged") == ["2"]


def test_not_heard_of(site: Site) -> None:
    site.run({ANN: [flow(1)], BOB: [flow(1)]})
    assert documented(site, "not-heard-of") == []
    days_on(site, 3)
    site.run({ANN: [flow(1)], BOB: None})
    assert documented(site, "not-heard-of") == ["bob"]
    site.run({BOB: [flow(1)]})
    assert documented(site, "not-heard-of") == []


def test_each_rule_of_the_page_has_a_test() -> None:
    assert [name for name in DOCUMENTED if f"test_{name.replace('-', '_')}" not in globals()] == []
    assert len(DOCUMENTED) >= 10


def test_the_rules_of_the_page_are_evaluated_by_indexes(site: Site) -> None:
    """Those that read the trail read its end."""
    site.run({ANN: [flow(1)]})
    for name in ("slower-without-ticket", "outside-hours", "unacknowledged"):
        (site.folder / f"{name}.sql").write_text(DOCUMENTED[name])
    explain = "EXPLAIN QUERY PLAN " if site.engine.dialect.name == "sqlite" else "EXPLAIN "
    for rule in read_rules(site.folder).usable:
        with reading(site.engine) as connection:
            if site.engine.dialect.name == "postgresql":
                connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
            plan = " ".join(
                str(row) for row in connection.exec_driver_sql(explain + rule.sql(site.now).replace("%", "%%"))
            )
        assert "ix_org_event_observed_at" in plan, plan
