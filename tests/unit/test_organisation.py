"""The events of an organisation are true, whatever happens during its requests. ``make organisation`` tries more."""

from __future__ import annotations

import datetime as dt
import random
from collections import Counter

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl.domain.kinds import EVENT_KINDS
from etl.domain.organisation.rules import judge
from etl.domain.organisation.values import (
    AT_ONCE,
    Answer,
    Judgement,
    Listed,
    ListingChange,
    StepContext,
    User,
    Workflow,
)
from tests.organisation.__main__ import played
from tests.organisation.cases import cases, derived, promised
from tests.organisation.oracle import Oracle
from tests.organisation.runs import Simulation
from tests.organisation.settings import (
    DIFFICULT,
    ORDINARY,
    all_day,
    one_after_the_other,
    other_gaps,
    overlapping,
    two_by_turns,
)
from tests.organisation.world import HOUR, START, Setting
from tests.support.builders import STEADY, after

LISTED = Listed("a", "D", True)
GAP = dt.timedelta(hours=36)


MORE = {
    "a baseline may come before the gain that is judged with it": """
        run   ann bob
        1:00  -   .
        ~2:00 -   w
        ~3:00 -   w
        4:00  w   w   access_granted ann 3:00..4:01
    """,
    "who was away in the meantime may have had it": """
        run   ann bob
        1:00  -   -
        2:00  -   out
        3:00  x   -
        4:00  w   -   appeared 2:00..4:01 unproven
    """,
    "and may have it when it is lost": """
        run   ann bob
        1:00  w   -
        2:00  x   out
        3:00  x   -
        4:00  -   -   disappeared 1:00..4:03 unproven
    """,
    "who was no longer configured has nothing to do with it": """
        run   ann bob
        1:00  -   -
        2:00  -   out
        3:00  -   .
        4:00  w   .   appeared 3:00..4:01
    """,
    "it comes back while somebody silent has it still": """
        run   ann bob cid
        1:00  w   w   -
        2:00  -   x   -
        5:30  -   x   -   disappeared 1:02..5:35 unproven
        6:00  -   x   -
        7:00  -   x   w   reappeared 6:04..7:05 unproven
    """,
    "who was silent is heard without it, after others were asked": """
        run   ann bob
        1:00  w   w
        2:00  -   x
        5:30  -   x   disappeared 1:02..5:31 unproven
        6:00  -   -
        7:00  w   -   reappeared 6:00..7:01 unproven
    """,
    "who was silent before it was last seen may have it still": """
        run   ann bob
        1:00  w   w
        5:30  w   x
        6:00  w   x
        7:00  -   x   disappeared 6:00..7:01 unproven
    """,
    "a hold makes silent": """
        run   ann bob
        1:00  w   w
        2:00  -   held
        5:30  -   held disappeared 1:02..5:33 unproven
        6:00  -   w    reappeared 5:33..6:03 unproven
    """,
    "a first answer before it was gone does not bring it back": """
        run   ann bob
        1:00  w   .
        ~2:00 w   w
        ~3:00 -   held
        7:30  -   held disappeared 2:02..7:33 unproven
    """,
    "who comes back later does not count before": """
        run   bob ann
        1:00  -   w
        ~2:00 -   out
        ~3:00 w   .
        4:00  w=b w=b  reappeared 2:00..3:01 unproven; renamed a->b 3:00..4:01
    """,
    "who lost it before he was no longer configured has lost it": """
        run   ann bob
        1:00  w   -
        ~2:00 -   -
        3:00  out -   disappeared 1:00..2:01
    """,
    "what a user saw before he was no longer configured is reported": """
        run   ann bob
        1:00  w   -
        ~2:00 w=b -
        3:00  out -   renamed a->b 1:00..2:01
    """,
    "nobody's answer changed, but one contradicts what was reported": """
        run   ann bob
        1:00  w   w
        2:00  w=b x   renamed a->b 1:02..2:01
        3:00  x   w
        6:30  x   w   renamed b->a 2:00..6:33
    """,
    "so it is when the user who saw it is no longer configured": """
        run   ann bob
        1:00  w   w
        2:00  w=b w   renamed a->b 1:00..2:01
        3:00  out w   renamed b->a 2:00..3:03
    """,
    "users who are told different names change nothing until one of them changes": """
        run   ann bob cid
        1:00  w   w=b w=c renamed a->b 1:00..1:03; renamed b->c 1:02..1:05
        2:00  w   w=b w=c
        3:00  w   w=d w=c renamed c->d 1:04..3:03
        4:00  w   w=d w=c
    """,
    "a user's own answer does not say that he lost it alone": """
        run   ann bob
        1:00  w   w
        2:00  -   x
        3:00  w   x   access_granted ann 2:00..3:01; access_lost ann 1:00..2:01 unproven
    """,
    "it was proven to be away when it is back": """
        run   ann bob
        1:00  -   w
        2:00  -   -
        3:00  -   w   disappeared 1:02..2:03; reappeared 2:02..3:03
    """,
    "a new name does not break a showing": """
        run   ann bob
        1:00  w   -
        2:00  w=b x   renamed a->b 1:00..2:01
        3:00  x   w=b access_granted bob 1:02..3:03
    """,
}


DOCUMENTED = {f"{heading} {n}": case for n, (heading, case) in enumerate(cases())}


@pytest.mark.parametrize("case", [pytest.param(case.strip(), id=name) for name, case in {**DOCUMENTED, **MORE}.items()])
def test_every_example_of_the_documentation_and_each_of_these_gives_its_events(case):
    assert derived(case) == promised(case)


@pytest.mark.parametrize("name", DIFFICULT)
def test_no_certain_event_is_wrong_in_a_difficult_world(name):
    assert played(DIFFICULT[name], seed=1, runs=80).wrong == []


@pytest.mark.parametrize("name", ORDINARY)
def test_in_an_ordinary_world_nearly_everything_is_certain_and_every_interval_the_narrowest(name):
    """4 of 100 requests fail."""
    counts: Counter[tuple[str, bool]] = Counter()
    for seed in (1, 2):
        oracle = played(ORDINARY[name], seed, runs=100, narrow=True)
        assert oracle.wrong == []
        counts += oracle.counts
    for kind in EVENT_KINDS:
        assert counts[kind, True] >= 0.95 * (counts[kind, True] + counts[kind, False]) > 0


WORLDS = st.builds(
    Setting,
    users=st.integers(1, 5),
    workflows=st.integers(1, 6),
    schedules=st.sampled_from([one_after_the_other, all_day, two_by_turns, other_gaps, overlapping]),
    failing=st.sampled_from([0.0, 0.04, 0.3]),
    held=st.sampled_from([0.0, 0.3]),
    skipped=st.sampled_from([0.0, 0.3]),
    changes_an_hour=st.sampled_from([1.0, 6.0, 20.0]),
    moves_an_hour=st.sampled_from([0.0, 0.2]),
    most_changed=st.sampled_from([0.0, 0.8]),
    outages_an_hour=st.sampled_from([0.0, 0.1]),
    audience=st.sampled_from([0.3, 1.0]),
)


@settings(STEADY, max_examples=60)
@given(WORLDS, st.integers(0, 10**6))
def test_no_certain_event_is_wrong_in_any_world(setting, seed):
    assert played(setting, seed, runs=25).wrong == []


class Quarrel(Simulation):
    """Half of the workflows have another name for each user."""

    def _commit(self, reply):
        told = {
            flow_id: seen._replace(name=f"{seen.name} of {reply.user}") if int(flow_id) % 2 else seen
            for flow_id, seen in reply.flows.items()
        }
        super()._commit(reply._replace(flows=told))


@settings(STEADY, max_examples=60)
@given(WORLDS, st.integers(0, 10**6))
def test_judging_only_what_is_due_says_the_same_where_users_are_told_different_names(setting, seed):
    """``Twin`` compares, here and in every simulation above."""
    judged = sum(len(judgements) for judgements in Quarrel(setting, seed).run(START + 25 * HOUR))
    assert judged > 0


@pytest.mark.parametrize("name", ["everything", "few and busy"])
def test_neither_the_order_of_the_input_nor_judging_twice_changes_anything(name):
    chance = random.Random(7)

    def checked(context: StepContext, workflow: Workflow) -> Judgement:
        judgement = judge(context, workflow)
        assert judge(context, shuffled(workflow, chance)) == judgement
        again = judge(context, kept(judgement, workflow))
        assert (again.events, again.baselines) == ([], [])
        assert (again.known, again.waiting, again.awaited) == (judgement.known, judgement.waiting, judgement.awaited)
        return judgement

    simulation = Simulation(DIFFICULT[name], 3, checked)
    assert sum(len(judgements) for judgements in simulation.run(START + 40 * HOUR)) > 50


def shuffled(workflow: Workflow, chance: random.Random) -> Workflow:
    def mixed(given):
        return dict(chance.sample(sorted(given.items()), len(given)))

    return msgspec.structs.replace(
        workflow,
        listings=mixed(workflow.listings),
        waiting=mixed(workflow.waiting),
        changes=chance.sample(workflow.changes, len(workflow.changes)),
    )


def kept(judgement: Judgement, workflow: Workflow) -> Workflow:
    return Workflow(judgement.flow_id, judgement.known, judgement.listings, judgement.waiting, held=workflow.held)


def shown_to_both(listed: Answer) -> Workflow:
    users = {user: User(listed, GAP) for user in ("ann", "bob")}
    workflow = Workflow("w", changes=[gain(user, None, listed) for user in users])
    return kept(judge(StepContext(users, after(minutes=2)), workflow), workflow)


def test_all_users_whose_overlapping_answers_lost_it_are_needed_again():
    """Ann may have it again when Bob's list is read, and Bob while his answer is on its way."""
    listed, first = Answer(after(), after(minutes=1)), Answer(after(hours=1), after(hours=1, minutes=9))
    second = Answer(after(hours=1, minutes=5), after(hours=1, minutes=10))
    lost = [ListingChange(user, LISTED, None, listed, answer) for user, answer in (("ann", first), ("bob", second))]
    waits = judge(
        StepContext({"ann": User(first, GAP), "bob": User(second, GAP)}, after(hours=2)),
        msgspec.structs.replace(shown_to_both(listed), changes=lost),
    )
    assert (waits.events, waits.waiting.keys(), waits.awaited) == ([], {"ann", "bob"}, 2)

    third = Answer(after(hours=3), after(hours=3, minutes=1))
    ann_again = StepContext({"ann": User(third, GAP), "bob": User(second, GAP)}, after(hours=4))
    waits = judge(ann_again, kept(waits, Workflow("w")))
    assert (waits.events, waits.awaited) == ([], 1)

    both_again = StepContext({"ann": User(third, GAP), "bob": User(third, GAP)}, after(hours=4))
    (told,) = judge(both_again, kept(waits, Workflow("w"))).events
    assert (told.kind, told.proven_for_all, told.observed_at) == ("disappeared", True, second.arrived_at)


def test_a_late_answer_still_dates_the_workflow():
    """Bob's answer had arrived before Ann's, and is written after the step that told of hers."""
    before, early, late = (Answer(after(hours=h), after(hours=h, minutes=1)) for h in (0, 1, 3))
    again, last = Answer(after(hours=2), after(hours=2, minutes=1)), Answer(after(hours=4), after(hours=4, minutes=1))
    users = {"ann": User(late, GAP), "bob": User(before, GAP), "cid": User(again, GAP)}
    told = judge(StepContext(users, after(hours=4)), Workflow("w", changes=[gain("ann", before, late)]))
    users = {"ann": User(late, GAP), "bob": User(early, GAP), "cid": User(last, GAP)}
    both = [gain("bob", before, early), gain("cid", again, last)]
    told = judge(StepContext(users, after(hours=5)), msgspec.structs.replace(kept(told, Workflow("w")), changes=both))
    assert [(event.kind, event.user_id) for event in told.events] == [("access_granted", "cid")]


def gain(user: str, previous: Answer | None, answer: Answer) -> ListingChange:
    return ListingChange(user, None, LISTED, previous, answer)


def test_a_run_without_answers_decides_nothing():
    """No user has answered for long by then, so none is needed."""
    listed, without = Answer(after(), after(minutes=1)), Answer(after(hours=1), after(hours=1, minutes=1))
    users = {"ann": User(without, GAP, heard=False), "bob": User(listed, GAP, heard=False)}
    lost = [ListingChange("ann", LISTED, None, listed, without)]
    judgement = judge(StepContext(users, after(days=9)), msgspec.structs.replace(shown_to_both(listed), changes=lost))
    assert (judgement.events, judgement.due_at) == ([], AT_ONCE)


FALSEHOODS = {
    "a later interval": lambda event: msgspec.structs.replace(event, last_unchanged_at=event.observed_at - 1),
    "an interval before it": lambda event: msgspec.structs.replace(
        event, last_unchanged_at=event.last_unchanged_at - 9 * HOUR, observed_at=event.last_unchanged_at - 8 * HOUR
    ),
    "another kind": lambda event: msgspec.structs.replace(
        event,
        user_id="u0",
        kind={"appeared": "access_granted", "disappeared": "access_lost"}.get(event.kind, "appeared"),
    ),
}


@pytest.mark.parametrize("falsify", FALSEHOODS.values(), ids=FALSEHOODS)
def test_the_oracle_contradicts_a_false_event(falsify):
    simulation = Simulation(ORDINARY["12 users"], 1)
    liar = Oracle(simulation)
    for judgements in simulation.run(START + 40 * HOUR):
        liar.check([msgspec.structs.replace(j, events=[falsify(event) for event in j.events]) for j in judgements])
    assert len(liar.wrong) > 0.9 * sum(liar.counts.values()) > 50


def test_a_loss_is_judged_by_the_users_whom_it_concerns_however_many_there_are():
    class Counted(dict[str, User]):
        looked_at = 0

        def __getitem__(self, user_id: str) -> User:
            self.looked_at += 1
            return super().__getitem__(user_id)

    listed, first = Answer(after(), after(minutes=1)), Answer(after(hours=1), after(hours=1, minutes=1))
    later = Answer(after(hours=2), after(hours=2, minutes=1))
    users = Counted({"ann": User(first, GAP), "bob": User(later, GAP)} | {str(n): User(later, GAP) for n in range(500)})
    context = StepContext(users, after(hours=3))
    users.looked_at = 0
    shown = shown_to_both(listed)
    judgement = judge(
        context, msgspec.structs.replace(shown, changes=[ListingChange("ann", LISTED, None, listed, first)])
    )
    assert [event.kind for event in judgement.events] == ["access_lost"]
    assert users.looked_at < 50
