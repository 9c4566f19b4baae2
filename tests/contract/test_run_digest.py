"""What receivers are told of a run: changes, once per workflow, and issues when they begin and when they end."""

from __future__ import annotations

import datetime as dt

import pytest
from sqlalchemy import Engine

from etl.notify.digest import LINES, Digest, DigestPart, message, together
from etl.store import NewAcknowledgement
from tests.support.builders import flow, numbered
from tests.support.run_history import ANN, BOB, EVE, ON, RunHistory


@pytest.fixture
def history(engine: Engine) -> RunHistory:
    return RunHistory(engine)


def test_a_baseline_and_a_quiet_run_are_no_news(history: RunHistory) -> None:
    first = history.run({ANN: numbered(1, 3)})
    second = history.run({ANN: numbered(1, 3)})
    assert (history.digest(first), history.digest(second)) == (None, None)


def test_a_change_that_several_users_see_is_one_line(history: RunHistory) -> None:
    before, after = [flow(1, "map", "D"), flow(2, "old", "W")], [flow(1, "map", "H")]
    history.run({ANN: before, BOB: before, EVE: [flow(7)]})
    run_id = history.run({ANN: after, BOB: after, EVE: [flow(7), flow(8, "new", "M", False)]})
    assert history.lines(run_id) == {
        "cycle_changed": ["o1 1 map: day to hour (2 users)"],
        "removed": ["o1 2 old, cycle: week (2 users)"],
        "added": ["o2 8 new, cycle: month (eve)"],
    }
    assert history.lines(run_id, ["removed", "added"], ["o2"]) == {"added": ["o2 8 new, cycle: month (eve)"]}
    assert history.lines(run_id, ["renamed"]) == {}
    digest = history.digest(run_id)
    assert digest is not None
    assert message(digest).title == "Flowtrail plants: 1 cycle changed, 1 removed, 1 added"


def test_what_happens_in_an_organisation_is_one_line_an_event_with_its_users(history: RunHistory) -> None:
    history.run({ANN: [flow(1, "map")], EVE: [flow(7)]})
    run_id = history.run({ANN: [flow(1, "map"), flow(2, "new")], EVE: []})
    assert history.lines(run_id, ["appeared", "disappeared"]) == {
        "appeared": ["o1 2 new, seen by 1 user"],
        "disappeared": ["o2 7 map, seen by 1 user before"],
    }
    assert history.lines(run_id, ["disappeared"], ["o1"]) == {}


def test_who_wants_only_what_nobody_acknowledged_is_not_told_of_what_was_announced(history: RunHistory) -> None:
    """But is told of each of the others, and of failures."""
    history.run({ANN: [flow(1), flow(2)], BOB: [flow(1)]})
    for flow_id, kind in (("1", "cycle_changed"), ("3", None)):
        new = NewAcknowledgement(made_by="ada", org_id="o1", flow_id=flow_id, kind=kind)
        history.store.acknowledge([new], dt.datetime.now(dt.UTC))
    after = [flow(1, "x", cycle="H"), flow(2, cycle="H"), flow(3)]
    run_id = history.run({ANN: after, BOB: "62109"})
    on = (*ON, "appeared")
    assert history.lines(run_id, on).keys() == {"cycle_changed", "added", "renamed", "appeared", "failed"}
    assert history.lines(run_id, on, unacknowledged=True) == {
        "cycle_changed": ["o1 2 map: day to hour (ann)"],
        "renamed": ["o1 1 x, before: map (ann)"],
        "failed": ["o1/bob: EnOS said 62109 (62109)"],
    }
    assert history.lines(run_id, ["added"], unacknowledged=True) == {}


def test_renames_and_editability_say_before_and_after(history: RunHistory) -> None:
    history.run({ANN: [flow(1, "map"), flow(2, "reduce")]})
    run_id = history.run({ANN: [flow(1, "Map"), flow(2, "reduce", editable=False)]})
    assert history.lines(run_id) == {
        "renamed": ["o1 1 Map, before: map (ann)"],
        "editable_changed": ["o1 2 reduce: not editable (ann)"],
    }


def test_a_failure_and_its_end_are_reported_once_each(history: RunHistory) -> None:
    good, bad = {ANN: numbered(1, 3), BOB: [flow(1)]}, {ANN: "62109", BOB: [flow(1)]}
    runs = [history.run(answers) for answers in (good, bad, bad, good, good, bad)]
    failed, again = (
        {"failed": ["o1/ann: EnOS said 62109 (62109)"]},
        {"recovered": ["o1/ann: gives valid answers again"]},
    )
    assert [history.lines(run_id) for run_id in runs] == [{}, failed, {}, again, {}, failed]
    assert [history.lines(run_id, ["held"]) for run_id in runs] == [{}] * 6
    assert [history.lines(run_id, orgs=["o2"]) for run_id in runs] == [{}] * 6


def test_a_change_after_a_recovery_is_not_a_second_recovery(history: RunHistory) -> None:
    answers = ([flow(1)], "62109", [flow(1)], [flow(1), flow(2)], [flow(1)])
    runs = [history.run({ANN: answer}) for answer in answers]
    assert [list(history.lines(run_id)) for run_id in runs] == [[], ["failed"], ["recovered"], ["added"], ["removed"]]


def test_a_target_that_fails_from_its_first_day_is_reported_once(history: RunHistory) -> None:
    runs = [history.run({ANN: "62101"}), history.run({ANN: "62101"}), history.run({ANN: [flow(1)]})]
    assert [list(history.lines(run_id)) for run_id in runs] == [["failed"], [], ["recovered"]]


def test_a_hold_and_its_end_are_reported_once_despite_failures_in_between(history: RunHistory) -> None:
    whole, cut = {ANN: numbered(1, 30)}, {ANN: numbered(1, 5)}
    runs = [history.run(answers) for answers in (whole, cut, cut, {ANN: "62109"}, cut, whole, whole, cut)]
    assert [list(history.lines(run_id)) for run_id in runs] == [
        [], ["held"], [], ["failed"], [], ["recovered"], [], ["held"]
    ]  # fmt: skip
    assert list(history.lines(runs[5], ["held"])) == ["recovered"]
    assert [list(history.lines(run_id, ["failed"])) for run_id in runs[3:6]] == [["failed"], [], ["recovered"]]


def test_an_approval_reports_what_was_removed_and_that_the_hold_ended(history: RunHistory) -> None:
    history.run({ANN: numbered(1, 30)})
    history.run({ANN: numbered(1, 5)})
    run_id = history.run({ANN: numbered(1, 5)}, schedule=None, by="wu")
    found = history.lines(run_id)
    assert (list(found), len(found["removed"])) == (["removed", "recovered"], LINES)
    digest = history.digest(run_id)
    assert digest is not None
    assert message(digest).title == "Flowtrail approval: 25 removed, 1 recovered"
    assert "and 15 more" in message(digest).body


def test_the_news_of_a_run_does_not_depend_on_when_it_is_read(history: RunHistory) -> None:
    good, bad = {ANN: numbered(1, 30)}, {ANN: "62109"}
    runs = [history.run(answers) for answers in (good, bad, bad, good)]
    then = [history.lines(run_id) for run_id in runs]
    for answers in (bad, {ANN: numbered(1, 5)}, good, {ANN: numbered(2, 30)}):
        history.run(answers)
    assert [history.lines(run_id) for run_id in runs] == then


def test_a_recovery_belongs_to_the_schedule_that_had_the_trouble(history: RunHistory) -> None:
    history.run({ANN: "62109"}, schedule="plants")
    other = history.begin(schedule="wind")
    ours = history.begin(schedule="plants")
    history.apply(ours, {ANN: [flow(1)]})
    history.apply(other, {EVE: [flow(1)]})
    history.finish(ours)
    history.finish(other)
    assert list(history.lines(ours)) == ["recovered"]
    assert history.lines(other) == {}


def test_a_name_with_markup_stays_text(history: RunHistory) -> None:
    evil = "x\n\nFlowtrail: all is well \x1b[2J\u202e @everyone <!channel> <b>*bold*</b>" + "y" * 500
    history.run({ANN: []})
    run_id = history.run({ANN: [flow(1, evil)]})
    digest = history.digest(run_id)
    assert digest is not None
    body = message(digest).body
    assert "\x1b" not in body
    assert "\u202e" not in body
    assert "@everyone" not in body
    assert next(line for line in body.splitlines() if "all is well" in line).startswith("  o1 1 x\\x0a\\x0aFlowtrail")
    assert max(map(len, body.splitlines())) < 200


def test_many_kinds_share_the_lines_and_each_says_how_many_more_there_are() -> None:
    parts = {
        kind: DigestPart(50, tuple(f"{kind} {n}" for n in range(LINES))) for kind in ("cycle_changed", "held", "failed")
    }
    body = message(Digest(name="plants", summary="Run 1.", parts=parts, changes_between=("a", "b"))).body
    assert body.count("and 44 more") == 3
    assert "\n".join(body.splitlines()[-3:]) == (
        "  flowtrail changes --since a --until b\n  flowtrail guard list\n  flowtrail status"
    )


def test_digests_of_many_runs_become_one_with_their_sums() -> None:
    parts = {"removed": DigestPart(30, tuple(f"line {n}" for n in range(LINES)))}
    digests = [Digest(name=n, summary="", parts=parts, changes_between=(n, n)) for n in ("a", "b", "c")]
    found = together(digests)
    assert found.title == "Flowtrail 3 runs: 90 removed"
    assert "and 70 more" in found.body
    assert "--since a --until c" in found.body
