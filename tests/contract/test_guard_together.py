"""The removals of a run, judged together with those of the window before: per organisation, and the lists that empty.

The cases are those of the table in docs/design.md.
"""

from __future__ import annotations

import datetime as dt
import threading
import tracemalloc
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine

from etl.config import TargetList
from etl.domain import guard
from etl.domain.guard import WAITING_FLOWS, Limits, Sum
from etl.domain.model import Fence, Flow, Snapshot, Target
from etl.store import Store
from etl.sync.removals import BatchRemovals, Deferred, PendingAnswer, RunRemovals
from tests.support.builders import LIMITS, STEADY, numbered
from tests.support.questions import Runs, Upstream, users, verdicts

NINE = numbered(1, 9)
NO_EMPTIED = Limits(max_emptied_targets=10**9)


@pytest.fixture
def settled(engine: Engine) -> Callable[..., Runs]:
    """So many users of one organisation, whose lists of nine workflows are known."""

    def begin(targets: Sequence[Target], flows: Sequence[Flow] = NINE, limits: Limits = LIMITS) -> Runs:
        runs = Runs(engine, Upstream(dict.fromkeys(targets, flows)), limits)
        assert verdicts(runs.run(targets)) == {"changed": len(targets)}
        return runs

    return begin


# What was seen to get past the guard


def test_a_false_answer_that_leaves_every_list_one_workflow_is_held(settled):
    """160 users keep one of nine workflows: no list loses as many as a rule for one list would doubt."""
    targets = users(160)
    runs = settled(targets)
    runs.upstream.lists = dict.fromkeys(targets, numbered(1, 1))
    report = runs.run(targets)
    assert verdicts(report) == {"held": 160}
    assert runs.removed() == 0
    assert "of the 1440 workflows in the organisation's lists 1280 go missing" in report.tally.issues[0].issue.message


def test_forty_runs_at_once_do_not_each_find_the_sum_empty(settled, database_url, connected):
    """All have their second answers before the first run writes."""
    targets = users(160)
    runs = settled(targets)
    runs.upstream.lists = dict.fromkeys(targets, ())
    schedules = [targets[start : start + 4] for start in range(0, 160, 4)]
    together = threading.Barrier(len(targets))

    def says(target: Target, question: int) -> Sequence[Flow]:
        if question == 2:
            together.wait(60)
        return ()

    runs.upstream.says = says
    runs.upstream.asked.clear()
    engines = [connected(database_url, pool_size=3) for _ in range(10)]
    beside = [Runs(engines[n % 10], runs.upstream) for n in range(len(schedules))]
    with ThreadPoolExecutor(len(schedules)) as threads:
        reports = list(threads.map(lambda each, schedule: each.beside(schedule), beside, schedules))
    assert sorted(str(verdicts(report)) for report in reports) == ["{'changed': 4}"] * 11 + ["{'held': 4}"] * 29
    assert runs.removed() == 11 * 36


def test_small_lists_that_change_together_are_held(engine):
    """Thirty users with a workflow each, and every cycle is gone: no list has as many as a rule for one would doubt."""
    targets = users(30)
    own = {target: [Flow(f"of {target.user_id}", "map", "D", True)] for target in targets}
    runs = Runs(engine, Upstream(own), LIMITS)
    assert verdicts(runs.run(targets)) == {"changed": 30}
    runs.upstream.lists = {target: [Flow(f"of {target.user_id}", "map", None, True)] for target in targets}
    report = runs.run(targets)
    assert verdicts(report) == {"held": 30}
    assert set(runs.upstream.asked.values()) <= {2, 3}
    told = "1 of 1 workflows have lost their cycle; of the organisation's 30 workflows 30 change like that in this run"
    assert report.tally.issues[0].issue.message == told
    assert runs.rows("SELECT coalesce(sum(cycle_changed), 0) FROM change_set") == [(0,)]
    runs.upstream.lists = dict(own)
    assert verdicts(runs.run(targets)) == {"unchanged": 30}


@pytest.mark.parametrize(
    ("count", "known", "now", "verdict", "recorded"),
    [
        pytest.param(
            160, NINE[:1], [Flow("1", "another name", "D", True)], "changed", {"renamed": 160},
            id="one workflow that many users see may be renamed",
        ),
        pytest.param(
            10, numbered(1, 10), numbered(1, 9), "changed", {"removed": 10},
            id="lists that were first seen within the window count as they were then",
        ),
        pytest.param(20, NINE, numbered(101, 109), "held", {}, id="additions are believed no more than removals"),
        pytest.param(
            20, NINE, [*numbered(1, 4), *numbered(101, 102)], "held", {"added": 40},
            id="additions beside removals that are held are recorded",
        ),
    ],
)  # fmt: skip
def test_lists_that_change_alike_are_judged_together(settled, count, known, now, verdict, recorded):
    targets = users(count)
    runs = settled(targets, known)
    runs.upstream.lists = dict.fromkeys(targets, now)
    assert verdicts(runs.run(targets)) == {verdict: count}
    kinds = "SELECT kind, count(*) FROM workflow_change WHERE kind <> 'baseline' GROUP BY kind"
    assert dict(runs.rows(kinds)) == recorded


def test_a_first_answer_that_has_lost_a_key_makes_no_change_of_others_doubtful(engine):
    """It lacks a workflow, too, so it is asked again before it is read as malformed."""
    ann, bob = users(2)
    runs = Runs(engine, Upstream({ann: numbered(1, 20), bob: [Flow("x", "map", "D", True)]}), LIMITS)
    runs.run([ann, bob])
    fetch = runs.upstream.fetch
    runs.upstream.fetch = lambda target, *known, **how: msgspec.structs.replace(
        fetch(target, *known, **how), absent=frozenset({"cycle"} if target == ann else ())
    )
    without = [msgspec.structs.replace(flow, cycle=None) for flow in numbered(1, 19)]
    runs.upstream.lists = {ann: without, bob: [Flow("x", "map", "H", True)]}
    assert verdicts(runs.run([ann, bob])) == {"failed": 1, "changed": 1}


def test_more_changing_workflows_than_memory_holds_count_as_too_many():
    target = Target("b", "u1")
    known = RunRemovals([target], LIMITS, lambda orgs: {org: Sum(10, 100) for org in orgs}, lambda org: 100_000)
    many = BatchRemovals(changing={("a", "renamed"): {str(n) for n in range(WAITING_FLOWS)}})
    few = BatchRemovals(deferred=[Deferred(target, 0, False)], changing={("b", "renamed"): {"1"}})
    known.add_first([(0, target)], few)
    ((_, before),) = known.batches(1)
    assert before.changes == {"b": {}}
    known.add_first([], many)
    ((_, after),) = known.batches(1)
    assert after.changes["b"]["renamed"].ruling == "hold"


# What counts


@pytest.mark.parametrize(
    ("count", "false", "times"), [(160, (), 1), (8, [Flow(str(n), None, None, None) for n in range(1, 10)], 2)]
)
def test_a_false_first_answer_removes_nothing_and_holds_nothing(settled, count, false, times):
    """Nor changes it anything: what has other values is first asked for over a connection of its own."""
    targets = users(count)
    runs = settled(targets)
    runs.upstream.says = lambda target, question: false if question <= times else NINE
    assert verdicts(runs.run(targets)) == {"unchanged": count}
    assert runs.rows("SELECT count(*) FROM sync_issue") == [(0,)]


def test_where_most_lists_have_changed_each_is_asked_for_once_and_again_if_it_is_shorter(settled):
    """A kept connection would only show that it has changed. What its own shows lacking is put off all the same."""
    targets = users(60)
    runs = settled(targets, numbered(1, 30))
    false = targets[50:]
    runs.upstream.says = lambda target, question: numbered(1, 1 if target in false and question == 1 else 31)
    assert verdicts(runs.run(targets)) == {"changed": 60}
    assert runs.rows("SELECT count(*) FROM sync_issue") == [(0,)]
    assert runs.upstream.asked.total() <= 60 + 10 + 8 + 4, "those that are false, until it was seen, and on their way"


def test_a_batch_that_is_requested_again_as_a_whole_begins_no_transaction(settled, monkeypatch):
    """A disk that fails just then was met with nothing to write, and ended in a traceback."""
    targets = users(4)
    runs = settled(targets)
    runs.upstream.lists = dict.fromkeys(targets, NINE[:-1])
    written = []
    apply = Store.apply
    monkeypatch.setattr(
        Store, "apply", lambda self, run, rows, *rest: written.append(rows) or apply(self, run, rows, *rest)
    )
    assert verdicts(runs.run(targets)) == {"changed": 4}
    assert sum(map(len, written)) == 4
    assert all(written)


@pytest.mark.parametrize(
    ("hours", "verdict"),
    [
        pytest.param(23, "held", id="within the window"),
        pytest.param(25, "changed", id="before the window"),
        pytest.param(-23, "held", id="the clock was set back by a day"),
        pytest.param(-87_600, "changed", id="the clock was set back by ten years"),
    ],
)
def test_removals_count_for_as_long_as_the_window_also_if_they_lie_ahead(settled, hours, verdict):
    """Five of twenty, and later five more: together they are ten, and half of what was there."""
    targets = users(2)
    runs = settled(targets, numbered(1, 10))
    runs.upstream.lists[targets[0]] = numbered(1, 5)
    assert verdicts(runs.run(targets)) == {"changed": 1, "unchanged": 1}
    runs.age_counts(hours)
    runs.upstream.lists[targets[1]] = numbered(1, 5)
    report = runs.run(targets)
    assert verdicts(report) == {verdict: 1, "unchanged": 1}
    for issue in report.tally.issues:
        assert "and 5 were removed within the 24 h before" in issue.issue.message


def test_approved_removals_do_not_count_and_restart_the_window(settled):
    targets = users(3)
    runs = settled(targets, numbered(1, 30))
    runs.upstream.lists[targets[0]] = numbered(1, 21)
    runs.upstream.lists[targets[1]] = numbered(1, 15)
    assert verdicts(runs.run(targets)) == {"held": 1, "changed": 1, "unchanged": 1}
    assert verdicts(runs.run(targets[1:2], by="Zoë")) == {"changed": 1}
    assert runs.rows("SELECT count(*) FROM org_turnover") == [(0,)]
    runs.upstream.lists[targets[2]] = numbered(1, 21)
    assert verdicts(runs.run(targets)) == {"changed": 1, "unchanged": 2}, "9 of 66, not 18 or 33"


def test_additions_within_the_window_do_not_dilute_the_share(settled):
    """A list that doubles in the morning and loses ten in the evening has lost half of what it had."""
    targets = users(2)
    runs = settled(targets, numbered(1, 10))
    runs.upstream.lists = dict.fromkeys(targets, numbered(1, 40))
    runs.run(targets)
    runs.upstream.lists = dict.fromkeys(targets, numbered(1, 35))
    assert verdicts(runs.run(targets)) == {"held": 2}, "10 of 20, not of 80"
    runs.age_counts(25)
    runs.upstream.lists[targets[0]] = numbered(1, 34)
    assert verdicts(runs.run(targets)) == {"held": 2}, "nothing approves itself"


def test_removals_held_for_one_list_count_for_the_others_of_its_run(settled):
    """A large list loses most, and small ones a little each: the lie is one."""
    large, small = users(1, "o1"), [Target("o1", f"small{n}") for n in range(5)]
    runs = settled([*large, *small], numbered(1, 9))
    runs.upstream.lists[large[0]] = numbered(1, 100)
    runs.run(large)
    runs.age_counts(25)
    runs.upstream.lists |= {large[0]: numbered(1, 60), **dict.fromkeys(small, numbered(1, 7))}
    assert verdicts(runs.run([*large, *small])) == {"held": 6}, "40 by itself, and 10 with it: 50 of 145"


def test_organisations_are_judged_apart(settled):
    one, other = users(10, "o1"), users(10, "o2")
    runs = settled([*one, *other])
    runs.upstream.lists |= dict.fromkeys(one, numbered(1, 4)) | {other[0]: numbered(1, 8)}
    assert verdicts(runs.run([*one, *other])) == {"held": 10, "changed": 1, "unchanged": 9}
    assert runs.removed() == 1


def test_a_retired_list_does_not_count_for_its_organisation(settled):
    targets = users(20)
    runs = settled(targets)
    with runs.run_context() as (context, _):
        context.store.retire_others(targets[:2], dt.datetime.now(dt.UTC), None)
    runs.upstream.lists = dict.fromkeys(targets, numbered(1, 4))
    assert verdicts(runs.run(targets[:2])) == {"held": 2}, "10 of 18, not of 180"


# However many there are


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr("etl.sync.runner.BATCH_SIZE", 7)


def test_removals_are_judged_together_over_all_batches(settled, small_batches):
    """A batch alone loses too little; what waits for the others is decided as soon as the sums allow."""
    targets = users(60)
    runs = settled(targets)
    runs.upstream.lists |= dict.fromkeys(targets[:21], numbered(1, 1))
    assert verdicts(runs.run(targets)) == {"held": 21, "unchanged": 39}, "168 of 540"


def test_removals_are_believed_once_the_other_lists_withdraw_theirs(settled, small_batches):
    """Sixty first answers are false; only two of the second answers still lack something."""
    targets = users(60)
    runs = settled(targets)
    true = {targets[0], targets[59]}
    runs.upstream.says = lambda target, question: () if question == 1 else NINE[:-1] if target in true else NINE
    assert verdicts(runs.run(targets)) == {"changed": 2, "unchanged": 58}


def test_removals_that_do_not_fit_into_memory_are_held(settled, small_batches, monkeypatch):
    monkeypatch.setattr("etl.sync.removals.WAITING_FLOWS", 1)
    targets = users(60)
    runs = settled(targets)
    runs.upstream.says = lambda target, question: () if question == 1 else NINE[:-1] if target == targets[0] else NINE
    assert verdicts(runs.run(targets)) == {"held": 1, "unchanged": 59}


def test_first_answers_of_any_number_of_targets_take_ten_bytes_each_at_most():
    targets = TargetList(Target(f"o{n % 100}", f"u{n}") for n in range(30_000))
    tracemalloc.start()
    known = RunRemovals(targets, LIMITS, lambda orgs: {org: Sum(10**9, 0) for org in orgs})
    for start in range(0, len(targets), 500):
        batch = targets[start : start + 500]
        known.add_first(
            enumerate(batch, start), BatchRemovals(deferred=[Deferred(target, 9, True) for target in batch])
        )
    (taken, _), _ = tracemalloc.get_traced_memory(), tracemalloc.stop()
    assert taken < 10 * len(targets)
    batches = [batch for batch, _ in known.batches(500)]
    assert (len(batches), sum(map(len, batches)), known.unsettled) == (60, 30_000, 30_000)


# The rule, for all numbers


@STEADY
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 9)), min_size=1, max_size=30),
    st.integers(1, 40),
    st.integers(1, 12),
    st.randoms(use_true_random=False),
)
def test_targets_whose_answers_agree_share_one_verdict_whatever_the_batches_and_their_order(lost, limit, size, chance):
    """Second answers like the first: an organisation's removals are believed together or held together."""
    targets = [Target(org, str(n)) for n, (org, _) in enumerate(lost)]
    removes = {target: number for target, (_, number) in zip(targets, lost, strict=True)}
    known = RunRemovals(targets, NO_EMPTIED, lambda orgs: {org: Sum(limit, 0) for org in orgs})
    known.add_first(enumerate(targets), BatchRemovals(deferred=[Deferred(t, removes[t], False) for t in targets]))
    rulings: dict[Target, str] = {}
    under_way = list(known.batches(size)) if chance.random() < 0.5 else known.batches(size)
    for _, look in under_way:
        together, undecided = look.copy(), []
        missing = dict.fromkeys("ab", 0)
        for target in look.first:
            together.answered(target)
            together.saw(target, removes[target], False)
            missing[target.org_id] += removes[target]
        for target in look.first:
            rulings[target] = guard.ruling(*together.against(target, False))
            if rulings[target] == "wait":
                undecided.append(waiting(target))
        known.add_second(look, BatchRemovals(missing, undecided=undecided))
        decided, now = known.take_decided()
        for each in decided:
            rulings[each.fence.target] = guard.ruling(*now.against(each.fence.target, False))
    sums = {org: sum(removes[t] for t in targets if t.org_id == org) for org in "ab"}
    assert {t: rulings[t] for t in targets} == {t: "hold" if sums[t.org_id] >= limit else "believe" for t in targets}
    assert known.unsettled == 0


def waiting(target: Target) -> PendingAnswer:
    at = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
    return PendingAnswer(Fence(target=target), Snapshot(target, (), "d" * 64, at, at, 1, b"", True))


@STEADY
@given(st.integers(0, 10**6), st.floats(0, 1), st.integers(1, 100), st.integers(0, 10**6))
def test_the_limit_is_the_least_number_that_reaches_both(had, share, number, removed):
    limits = Limits(min_removed=number, max_org_removed_share=share)
    limit = guard.removals_of_organisation(had, 0, limits).limit
    assert (removed >= limit) == (removed >= number and removed >= guard.share_of(share, had))


@pytest.mark.parametrize(
    ("known", "ruling"),
    [
        (Sum(10, 100), "believe"),
        (Sum(10, 100, seen=9), "believe"),
        (Sum(10, 100, seen=10), "hold"),
        (Sum(10, 100, before=4, seen=5), "believe"),
        (Sum(10, 100, before=5, seen=5), "hold"),
        (Sum(10, 100, before=5, seen=4, expected=1), "wait"),
        (Sum(10, 100, seen=10, expected=5), "hold"),
        (Sum(10, 100, expected=10), "wait"),
    ],
)
def test_an_answer_waits_only_where_it_depends_on_those_that_are_to_come(known, ruling):
    assert known.ruling == ruling
