"""Rules that no hash holds: a trail whose hashes are all right, and which cannot have been so, is found without a kept
seal. Each rule of docs/audit.md has a case that only this rule finds."""

from __future__ import annotations

import copy
import datetime as dt
from collections.abc import Callable
from pathlib import Path

import pytest

from etl.audit import check
from etl.domain import chain
from tests.support import bundles
from tests.support.bundles import ANN, BEN, CAT, MINUTE, Row, Rows, target_of

STORY = bundles.some_days()
Rule = Callable[[Rows], None]
RULES: dict[str, tuple[Rule, str]] = {}


def rule(sentence: str) -> Callable[[Rule], Rule]:
    """Name what must be found when every hash has been computed anew."""

    def kept(case: Rule) -> Rule:
        RULES[case.__name__] = (case, sentence)
        return case

    return kept


def one(rows: Rows, name: str, target: object, **values: object) -> Row:
    found = [row for row in rows[name] if target_of(row) == target]
    return next(row for row in found if all(row[column] == value for column, value in values.items()))


def run(rows: Rows, number: int) -> Row:
    return next(row for row in rows["runs"] if row["id"] == number)


@rule("o1/ben [电], run 13 (seal 13), memberships.jsonl: at is 2026-03-01 03:29:12+00:00, before 2026-03-01 04:17:24")
def a_member_who_came_back_before_he_left(rows: Rows) -> None:
    """Their places are exchanged, not their runs or times: each digest of a run is as it was."""
    mine = [place for place, row in enumerate(rows["memberships"]) if target_of(row) == BEN]
    exchange(rows["memberships"], mine[0], mine[-1])
    for number, row in enumerate(rows["memberships"], 1):
        row["id"] = number


@rule("o1/ben [电], run 7 (seal 7), holds.jsonl: at is 2026-03-01 01:52:24+00:00, before 2026-03-01 02:40:54")
def a_hold_that_ended_before_it_began(rows: Rows) -> None:
    mine = [place for place, row in enumerate(rows["holds"]) if target_of(row) == BEN]
    exchange(rows["holds"], mine[0], mine[-1])


def exchange(rows: list[Row], one: int, other: int) -> None:
    rows[one], rows[other] = rows[other], rows[one]


@rule("memberships.jsonl: id 1 does not rise")
def a_membership_twice_under_its_number(rows: Rows) -> None:
    rows["memberships"][1]["id"] = 1


@rule("o1/ann, version 4: observation.observations from 2026-03-01 04:17:30+00:00 to 2026-03-01 04:49:54+00:00")
def fewer_observations_than_runs(rows: Rows) -> None:
    one(rows, "spans", ANN, version=4).update(observations=2, longest_gap_seconds=1944)


@rule("o1/ben [电], version 5: run 16 (seal 16) was not to ask this target")
def a_version_of_a_run_that_was_not_to_ask(rows: Rows) -> None:
    run(rows, 16)["scope"]["user_id"] = "ann"


@rule("o1/ben [电], version 3: the origin of its run should be 'approval', but is 'command'")
def an_approval_outside_an_approval(rows: Rows) -> None:
    run(rows, 10)["origin"] = "command"


@rule("o1/ben [电], version 3: change_set.approved_by and approved_scope should both be there, or neither")
def an_approval_of_nobody(rows: Rows) -> None:
    one(rows, "change_sets", BEN, version=3)["approved_by"] = None


@rule("o1/ben [电], hold: held of '101' in run 8 cannot be")
def a_workflow_held_twice(rows: Rows) -> None:
    rows["holds"].insert(2, {**one(rows, "holds", BEN, run_id=6), "run_id": 8})


@rule("o1/ann, hold: back of '1' in run 4 cannot be")
def a_hold_that_ends_before_it_began(rows: Rows) -> None:
    rows["holds"].insert(0, {**one(rows, "holds", ANN, kind="held"), "kind": "back", "run_id": 4})


@rule("o1/ben [电], run 3 (seal 3): sync_issue: it was not asked, or has two verdicts")
def two_verdicts_of_a_target(rows: Rows) -> None:
    rows["issues"].append(copy.copy(one(rows, "issues", BEN, run_id=3)))


@rule("o2/cat, run 3 (seal 3): sync_issue: it was not asked, or has two verdicts")
def a_failure_of_a_target_that_was_not_asked(rows: Rows) -> None:
    rows["issues"].append({**one(rows, "issues", BEN, run_id=3), **CAT._asdict()})


@rule("run 4 (seal 4): the times of the run and of the seal go back")
def a_seal_before_the_one_before(rows: Rows) -> None:
    rows["seals"][3]["sealed_at"] = rows["seals"][1]["sealed_at"]
    run(rows, 4).update(started_at=bundles.START, finished_at=bundles.START)


@rule("run 4 (seal 4): the times of the run and of the seal go back")
def a_run_that_ends_before_it_begins(rows: Rows) -> None:
    run(rows, 4)["finished_at"] = run(rows, 4)["started_at"] - MINUTE


@rule("o2/cat, version 1: observation.first_at is 2026-03-01 02:56:54+00:00, before the version was observed")
def a_span_before_its_version(rows: Rows) -> None:
    span = one(rows, "spans", CAT)
    for name in ("first_at", "last_asked_at", "last_at"):
        span[name] -= MINUTE / 10


@rule("o1/ann, version 2: observation: first_at and last_asked_at should be after 2026-03-01 01:03:42+00:00, the span")
def a_span_that_was_asked_for_before_the_end_of_the_one_before(rows: Rows) -> None:
    first, second = (row for row in rows["spans"] if target_of(row) == ANN and row["version"] == 2)
    second["last_asked_at"] = first["last_at"]


@rule("o2/cat, version 1: observation: the baseline should open a span that is not interrupted")
def a_first_span_that_was_interrupted(rows: Rows) -> None:
    one(rows, "spans", CAT)["interrupted"] = True


@rule("o1/ann, version 2: change_set.observed_at should be after 2026-03-01 00:31:18+00:00, the time recorded before")
def a_version_before_the_end_of_the_one_before(rows: Rows) -> None:
    one(rows, "change_sets", ANN, version=2)["observed_at"] = one(rows, "spans", ANN, version=1)["last_at"]


@rule("run 2 (seal 2): unchanged should be 2, but is 3")
def more_unchanged_than_targets(rows: Rows) -> None:
    run(rows, 2)["unchanged"] = 3


@rule("run 9 (seal 9): unchanged should be 0, but is 1")
def an_aborted_run_that_says_what_was_unchanged(rows: Rows) -> None:
    run(rows, 9)["unchanged"] = 1


@rule("run 3 (seal 3): status should be 'partial', but is 'succeeded'")
def a_status_that_the_sums_deny(rows: Rows) -> None:
    run(rows, 3)["status"] = "succeeded"


@rule("run 2 (seal 2): targets should be 2, but is 3")
def more_targets_than_members(rows: Rows) -> None:
    run(rows, 2).update(targets=3, unchanged=3)


@rule("run 3 (seal 3): failed should be 1, but is 0")
def a_failure_that_is_not_counted(rows: Rows) -> None:
    run(rows, 3).update(failed=0, unchanged=1, status="succeeded")


@rule("o1/ann, version 4: changes nothing")
def a_version_that_changes_nothing(rows: Rows) -> None:
    three, four = (one(rows, "change_sets", ANN, version=version) for version in (3, 4))
    four.update(dict.fromkeys(check.KINDS, 0), data_hash="0" * 64)
    four.update({name: three[name] for name in ("flow_count", "state_digest")})
    rows["changes"] = [row for row in rows["changes"] if target_of(row) != ANN or row["version"] != 4]


@rule("o1/ann, version 2, workflow '1': kind should be ['cycle_changed', 'renamed'], but is ['cycle_changed']")
def a_kind_of_change_left_out(rows: Rows) -> None:
    one(rows, "change_sets", ANN, version=2)["renamed"] = 0
    run(rows, 3)["renamed"] = 0
    rows["changes"].remove(one(rows, "changes", ANN, version=2, kind="renamed"))


@rule("o1/ben [电], version 2, workflow '101': in its answer should be")
def a_list_that_the_answer_does_not_have_and_nothing_is_held(rows: Rows) -> None:
    rows["holds"] = [row for row in rows["holds"] if target_of(row) != BEN]


@rule("o1/ann, version 2, workflow '10': in its answer should be")
def a_workflow_that_the_answer_has_otherwise_and_that_is_called_held(rows: Rows) -> None:
    rows["holds"].insert(0, {**one(rows, "holds", ANN, kind="held"), "run_id": 3, "flow_ids": ["10"]})
    one(rows, "changes", ANN, version=2, flow_id="10")["new_name"] = "other"
    flows = bundles.state_at(rows, ANN, 2).values()
    one(rows, "change_sets", ANN, version=2)["state_digest"] = chain.state_digest(flows)


@rule("o1/ben [电], run 6: missing should be 7, but is 8")
def more_missing_than_is_held(rows: Rows) -> None:
    one(rows, "issues", BEN, run_id=6)["missing"] = 8


@rule("o1/ben [电], hold: flow_ids should be")
def a_held_set_out_of_order(rows: Rows) -> None:
    one(rows, "holds", BEN, run_id=6)["flow_ids"].reverse()


@rule("seal 7: format should be 1, but is 2")
def a_seal_of_a_format_that_nobody_knows(rows: Rows) -> None:
    rows["seals"][6]["format"] = 2


@rule("o1/ann, version 2: change_set.format should be 1, but is 2")
def a_version_of_a_format_that_nobody_knows(rows: Rows) -> None:
    one(rows, "change_sets", ANN, version=2)["format"] = 2


@rule("o2/cat, version 2: observation: rows of a version that is not there")
def a_span_of_a_version_that_is_not_there(rows: Rows) -> None:
    rows["spans"].append({**one(rows, "spans", CAT), "version": 2})


@rule("o2/cat, version 1: observation.longest_gap_seconds cannot be 5")
def a_gap_in_one_observation(rows: Rows) -> None:
    one(rows, "spans", CAT)["longest_gap_seconds"] = 5


@rule("o2/cat, version 1: observation: 1 observations from")
def one_observation_with_a_length(rows: Rows) -> None:
    one(rows, "spans", CAT)["last_at"] += dt.timedelta(seconds=1)


@rule("trails.jsonl: first_seal should be 1, but is 2")
def a_trail_without_a_beginning(rows: Rows) -> None:
    rows["trails"][0]["first_seal"] = 2


@pytest.mark.parametrize("name", RULES)
def test_an_impossible_trail_is_found_although_every_hash_is_right(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    case, sentence = RULES[name]
    rows = copy.deepcopy(STORY.rows)
    case(rows)
    if name != "a_trail_without_a_beginning":
        bundles.forge(rows)
    code = check.main([str(bundles.pack(tmp_path / "bundle.zip", rows, STORY.answers))])
    printed = capsys.readouterr().out
    assert code == 1
    assert any(line.startswith(sentence) for line in printed.splitlines()), printed
