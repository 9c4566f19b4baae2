"""How complete a trail is: every due request of a target is accounted for, with the seal that proves it."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from sqlalchemy import Engine, select

from etl.cli import app
from etl.database import reading
from etl.errors import Refused
from etl.report.coverage import Coverage, CoveredTarget, coverage
from etl.schema import run_seal
from tests.support.builders import numbered
from tests.support.questions import now
from tests.support.trails import ANN, BEN, CAT, DAN, House, change, die, live


@pytest.fixture
def house(engine: Engine) -> House:
    return House(engine)


def found(house: House, **of: object) -> Coverage:
    return coverage(house.engine, now(), **of)  # type: ignore[arg-type]


def of(told: Coverage) -> dict[str, CoveredTarget]:
    return {each.user_id: each for each in told.targets}


def test_every_due_request_of_a_target_is_accounted_for(house: House) -> None:
    live(house)
    told = found(house)
    assert told.runs == house.rows("SELECT count(*) FROM sync_run WHERE targets > 0")[0][0]
    for each in told.targets:
        assert each.asked == each.answered + each.held + each.failed + each.stale + each.unknown
    asked = {name: each.asked for name, each in of(told).items()}
    assert asked == {ANN.user_id: 8, BEN.user_id: 8, CAT.user_id: 2, DAN.user_id: 4}


def test_failures_and_holds_are_listed_with_the_seal_that_proves_them(house: House) -> None:
    house.serve({"plants": [ANN, BEN]})
    house.upstream.says = lambda target, n: Refused("no", code="62101") if target == BEN else numbered(1, 2)
    house.serve({"plants": [ANN, BEN]})
    told = found(house)
    assert [(each.seal_id, each.user_id, each.verdict, each.error_code) for each in told.unanswered] == [
        (2, ANN.user_id, "held", "guard"),
        (2, BEN.user_id, "failed", "62101"),
    ]
    assert [(each.seal_id, each.kind, each.flow_ids) for each in told.holds] == [(2, "held", ["3", "4", "5", "6"])]
    ann, ben = told.targets
    assert (ann.asked, ann.answered, ann.held, ben.failed) == (2, 1, 1, 1)
    assert [(gap.user_id, gap.gap_to, gap.before_seal, gap.after_seal) for gap in told.gaps] == [
        (ANN.user_id, None, 1, None),
        (BEN.user_id, None, 1, None),
    ]
    assert told.seals == (1, 2)


def test_the_answers_of_an_aborted_or_pruned_run_are_unknown(house: House) -> None:
    house.serve({"plants": [ANN]})
    die(house)
    change(house.engine, "INSERT INTO pruned_issues (run_id, pruned_run_id, at) SELECT 9, 1, started_at FROM sync_run")
    (ann,) = found(house).targets
    assert (ann.asked, ann.answered, ann.unknown) == (2, 1, 1), "the first one made a version"


def test_only_what_was_sealed_in_the_time_counts_and_gaps_are_cut_to_it(house: House) -> None:
    house.serve({"plants": [ANN]})
    house.serve({"wind": [BEN]})
    house.upstream.says = lambda target, n: Refused("no", code="62101")
    house.serve({"plants": [ANN]})
    with reading(house.engine) as connection:
        moments = connection.execute(select(run_seal.c.sealed_at).order_by(run_seal.c.id).offset(1)).scalars().all()
    told = found(house, since=moments[0], until=moments[1])
    assert (told.runs, [each.user_id for each in told.targets], told.seals) == (1, [BEN.user_id], (2, 2))
    assert (told.targets[0].schedules, told.unanswered) == ("wind", [])
    later = found(house, since=moments[1])
    assert [each.user_id for each in later.targets] == [ANN.user_id]
    assert later.targets[0].schedules == "plants"
    assert found(house, org="nobody").seals is None


def test_users_that_joined_and_left_are_listed(house: House) -> None:
    house.serve({"plants": [ANN, BEN]})
    house.serve({"plants": [ANN]})
    house.store.retire_others([ANN], now(), None)
    moves = [(each.seal_id, each.user_id, each.kind, each.schedule) for each in found(house).memberships]
    assert moves == [
        (1, ANN.user_id, "joined", "plants"),
        (1, BEN.user_id, "joined", "plants"),
        (2, BEN.user_id, "left", "plants"),
        (3, BEN.user_id, "retired", None),
    ]


def test_the_command_prints_it_for_people_and_for_programs(
    house: House, database_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    house.serve({"plants": [ANN]})
    monkeypatch.setenv("FLOWTRAIL_DATABASE__URL", database_url)
    monkeypatch.chdir(str(tmp_path))
    (tmp_path / "flowtrail.toml").write_text("")  # type: ignore[operator]
    shown = CliRunner().invoke(app, ["coverage", "--org", "o1"])
    assert (
        "In 1 run, 1 target had to be asked: 1 of 1 requests were answered. The seals 1 to 1 prove it" in shown.stdout
    )
    told = json.loads(CliRunner().invoke(app, ["coverage", "--json"]).stdout)
    assert (told["seals"], told["targets"][0]["answered"], told["gaps"]) == ([1, 1], 1, [])
