"""The benchmarks run, and detect a contender that does no work. No times are asserted: a busy machine is no defect."""

from __future__ import annotations

import datetime as dt
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from click import BadParameter
from click.testing import CliRunner

from benchmarks import databases, gateway, lived, show, world
from benchmarks.__main__ import app, case_named
from benchmarks.compare import CONTENDERS
from benchmarks.contenders import flowtrail
from benchmarks.figures import Figures, goals
from benchmarks.rounds import PHASES, Round, Wrong, whole_round
from etl.database import connect, upgrade
from etl.report.rows import Gap, ListState
from etl.web.figures import Figure, life

SHAPE = world.Shape(4, 100)
README = Path(__file__).parents[2] / "benchmarks" / "README.md"


@pytest.fixture(scope="module")
def asked() -> Iterator[gateway.Gateway]:
    with gateway.running(SHAPE) as running:
        yield running


@pytest.mark.parametrize("name", ["flowtrail", "floor", "afternoon"])
def test_a_contender_holds_what_the_gateway_answered_after_each_phase(
    name: str, asked: gateway.Gateway, tmp_path: Path
) -> None:
    with databases.of_kind("sqlite", tmp_path) as kinds, kinds.fresh() as database:
        measured = list(whole_round(Round(CONTENDERS[name], SHAPE, asked, database, tmp_path)))
    assert [each.phase for each in measured] == list(PHASES)
    assert all(each.answers >= SHAPE.targets and each.seconds > 0 and each.peak_mib > 1 for each in measured)
    assert measured[0].statements >= (SHAPE.targets if name == "flowtrail" else SHAPE.rows)
    assert measured[0].written_bytes > SHAPE.rows


@pytest.mark.parametrize(
    "shape", [SHAPE._replace(ids=150), SHAPE._replace(ids=100, quarrel=1)], ids=["overlapping", "quarrel"]
)
def test_a_quiet_run_that_reads_more_than_it_must_fails(
    shape: world.Shape, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over TLS, with a gateway that takes its time; whatever the users are told of the same workflow."""
    case = world.Case(shape, tls=True, latency_seconds=0.002)
    with (
        gateway.answering(case, tmp_path) as asked,
        databases.of_kind("sqlite", tmp_path) as kinds,
        kinds.fresh() as database,
    ):
        round_ = Round(CONTENDERS["flowtrail"], shape, asked, database, tmp_path)
        _, quiet = whole_round(round_, phases=("cold", "quiet"))
        assert quiet.rows_read >= shape.targets
        for limit, what in (("quiet_rows", "rows_read"), ("quiet_statements", "statements")):
            monkeypatch.setattr(flowtrail, "HOLDS", flowtrail.HOLDS._replace(**{limit: (1, 1)}))
            with pytest.raises(Wrong, match=f"quiet: {what}"):
                round_.measured("quiet")
            monkeypatch.undo()


def test_an_idle_contender_is_detected(asked: gateway.Gateway, tmp_path: Path) -> None:
    with databases.of_kind("sqlite", tmp_path) as kinds, kinds.fresh() as database:
        idle = Round(CONTENDERS["floor"], SHAPE, asked, database, tmp_path)
        for thoroughly in (True, False):
            with pytest.raises(Wrong, match=r"400 rows missing|0 rows instead of 400"):
                idle.check("cold", thoroughly=thoroughly)


@pytest.mark.parametrize("shape", [world.Shape(20, 100), world.Shape(20, 100, ids=130)], ids=["apart", "overlapping"])
def test_one_workflow_in_a_hundred_changes_in_four_ways(shape: world.Shape) -> None:
    before, after = (Counter(world.rows(shape, churned)) for churned in (False, True))
    made = world.changes(shape)
    assert sum(made.values()) > 0
    assert shape.ids or (sum(made.values()) == shape.rows // 100 and min(made.values()) > 0)
    assert (before - after).total() == made["removed"] + made["cycle_changed"] + made["renamed"]
    assert (after - before).total() == made["added"] + made["cycle_changed"] + made["renamed"]
    assert Counter(world.removed(shape)) <= before - after


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("A", world.Case(world.Shape(200, 500))),
        ("200x500/700", world.Case(world.Shape(200, 500, 700))),
        ("B+tls", world.Case(world.SHAPES["B"], tls=True)),
        ("B+20ms", world.Case(world.SHAPES["B"], latency_seconds=0.02)),
        ("quarrel+tls+2.5ms", world.Case(world.SHAPES["quarrel"], tls=True, latency_seconds=0.0025)),
    ],
)
def test_a_name_says_what_is_asked_for_and_how_it_is_answered(name: str, case: world.Case) -> None:
    assert case_named(name) == case


@pytest.mark.parametrize("name", ["", "E", "2x", "200x500/400", "B+20ms+tls", "B+20", "B+ms"])
def test_any_other_name_is_refused(name: str) -> None:
    with pytest.raises(BadParameter, match=r"is none of A, B, C, D, quarrel"):
        case_named(name)


def cell(contender: str, seconds: float, **of: object) -> dict[str, object]:
    phase = {
        "seconds": seconds, "cpu_seconds": seconds, "server_cpu_seconds": 0.0, "peak_mib": 80.0, "statements": 3,
        "rows_read": 800, "written_bytes": 200 * 299,
    }  # fmt: skip
    rounds = [dict.fromkeys(PHASES, phase | {"seconds": seconds * factor}) for factor in (1, 5, 1)]
    return {
        "shape": "A", "targets": 200, "flows": 500, "database": "sqlite", "contender": contender,
        "title": contender, "rounds": rounds, **of,
    }  # fmt: skip


def test_goals_are_judged_by_the_ratios_of_medians() -> None:
    cells = [cell("flowtrail", 0.6), cell("floor", 0.1), cell("requests_floor", 0.5), cell("dlt_scd2", 6.0)]
    reached = {goal.what: goal for goal in goals(Figures({"cells": cells}))}
    assert reached["A sqlite cold, ratio to the floor with requests"].met
    assert not reached["A sqlite quiet, ratio to the floor with requests"].met
    assert str(reached["A sqlite quiet, ratio to the floor with requests"]).endswith("<= 0.5: 1.20 NOT MET")
    assert reached["A sqlite quiet, ratio to the best peer"].reached == pytest.approx(0.1)
    assert reached["A sqlite quiet, bytes written a target"].reached == 299
    seconds, of_shape = (table.markdown() for table in show.comparison({"cells": cells}))
    assert "| flowtrail | 0.600 / 0.600 / 0.600 |" in seconds
    assert "| flowtrail | 3 | 0.600 / 0.600 / 0.600 |" in of_shape


def test_a_run_over_tls_is_compared_with_a_quiet_one_and_a_slow_gateway_with_its_waiting() -> None:
    slow = cell("flowtrail", 0.6, shape="A+tls+20ms", latency_seconds=0.02)
    reached = {goal.what: goal.reached for goal in goals(Figures({"cells": [slow]}))}
    assert reached["A+tls+20ms sqlite quiet, ratio to targets x latency / concurrency"] == pytest.approx(2.4)
    assert "A+tls+20ms sqlite cold, ratio to the quiet run" not in reached, "it waits, like the quiet run"
    over_tls = goals(Figures({"cells": [cell("flowtrail", 0.6, shape="A+tls")]}))
    assert {goal.what: goal.reached for goal in over_tls}["A+tls sqlite cold, ratio to the quiet run"] == 1


def test_a_lived_trail_verifies_and_every_question_of_the_page_can_be_asked_of_it(tmp_path: Path) -> None:
    engine = connect(f"sqlite:///{tmp_path / 'lived.db'}")
    upgrade(engine)
    lived.live(engine, 12_000)
    assert lived.verified(engine).startswith("verify: 0 findings")
    rows = {each.question: each.rows for each in lived.timings(engine, "")}
    engine.dispose()
    assert rows["flows --as-of (all)"] == rows["flows --as-of (one)"] > 10_000
    assert rows["What was there when April began? (one)"] > 400 < rows["workflows --as-of (one)"]


def test_the_readme_names_the_commands_there_are() -> None:
    named = set(re.findall(r"python -m benchmarks ([a-z]+)", README.read_text("utf-8")))
    assert named == app.commands.keys()
    for name in named:
        assert CliRunner().invoke(app, [name, "--help"]).exit_code == 0


BEGIN = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
Bar = tuple[str, float, float]


def day(number: float) -> dt.datetime:
    return BEGIN + dt.timedelta(days=number)


def state(user: str, first: float, last: float, *, name: str = "settlement") -> ListState:
    return ListState("o1", user, "", "7", name, "D", True, day(first), None, "baseline", None, day(last))


def gap(user: str, since: float, until: float | None) -> Gap:
    return Gap("o1", user, "", day(since), None if until is None else day(until), False)


def bars(figure: Figure, name: str) -> list[Bar]:
    """Of each bar of a trace: the row, and the days on which it begins and ends."""
    (trace,) = (each for each in figure["data"] if each["name"] == name)
    begun = [dt.datetime.fromisoformat(base).replace(tzinfo=dt.UTC) - BEGIN for base in trace["base"]]
    return [
        (row, begin / dt.timedelta(days=1), (begin + dt.timedelta(milliseconds=length)) / dt.timedelta(days=1))
        for row, begin, length in zip(trace["y"], begun, trace["x"], strict=True)
    ]


def test_a_silence_interrupts_the_bar_of_a_state_so_that_no_label_is_covered() -> None:
    figure = life([state("ann", 0, 9), state("bob", 0, 9)], day(10), [gap("ann", 6, 7), gap("ann", 2, 3)])
    assert bars(figure, "day") == [("ann", 0, 2), ("ann", 3, 6), ("ann", 7, 9), ("bob", 0, 9)]
    assert bars(figure, "nobody looked") == [("ann", 6, 7), ("ann", 2, 3)]


def test_a_state_that_was_only_seen_at_a_moment_is_drawn_over_the_silence() -> None:
    figure = life([state("ann", 0, 9), state("bob", 4, 4)], day(10), [gap("ann", 0, 9), gap("ann", 9, None)])
    assert bars(figure, "day") == [("ann", 0, 0.05), ("bob", 4, 4.05)]
    assert [trace["name"] for trace in figure["data"]] == ["nobody looked", "day"], "the last is on top"
