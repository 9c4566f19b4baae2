"""Receivers are notified at least once, in whatever order runs commit, and whatever receivers do meanwhile."""

from __future__ import annotations

import datetime as dt
import socket
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import Engine, insert, text

from etl.config import NotifySettings, Secret
from etl.database import reading, writing
from etl.notify import Alarm, Freshness, Message, Notifier, Receiver, Subscription, Timing, receivers
from etl.report.health import Overdue
from etl.schema import target
from etl.store.findings import Evaluation
from etl.store.notifications import OpenCondition
from tests.support.builders import flow
from tests.support.receiver import PATIENCE_SECONDS, HttpReceiver
from tests.support.run_history import ANN, BOB, EVE, ON, RunHistory
from tests.support.served import wait_until

AT_ONCE = Timing(first_retry_seconds=0.01, longest_retry_seconds=0.05, overdue_after_seconds=0, overdue_every_seconds=0)
ON_SQLITE = pytest.mark.parametrize("dialect", ["sqlite"])
"""For what has nothing to do with SQL."""


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def wants(*urls: str, on: Sequence[str] = ON, orgs: Sequence[str] = ()) -> list[Subscription]:
    made = list(receivers(1, NotifySettings(urls=tuple(map(Secret, urls)))))
    assert all(isinstance(each, Receiver) for each in made), made
    return [Subscription(each, on, orgs) for each in made if isinstance(each, Receiver)]


def notifier(history: RunHistory, subscriptions: list[Subscription], **changes: Any) -> Notifier:
    nothing = Freshness((), {})
    given = {"is_active": lambda: True, "freshness": lambda: nothing, "clock": now, "timing": AT_ONCE, **changes}
    return Notifier(history.engine, history.store, subscriptions, **given)


@pytest.fixture
def history(engine: Engine) -> RunHistory:
    room = RunHistory(engine)
    room.run({ANN: [flow(1)], BOB: [flow(1)], EVE: [flow(1)]})
    return room


def notified_runs(history: RunHistory) -> list[int]:
    with reading(history.engine) as connection:
        return list(
            connection.execute(text("SELECT id FROM sync_run WHERE notified_at IS NOT NULL ORDER BY id")).scalars()
        )


def test_a_run_is_notified_once_and_one_without_news_not_at_all(history: RunHistory, receiver: HttpReceiver) -> None:
    changed = history.run({ANN: [flow(1, cycle="H")], BOB: [flow(1)]})
    assert notifier(history, wants(receiver.url)).flush(PATIENCE_SECONDS)
    assert notifier(history, wants(receiver.url)).flush(PATIENCE_SECONDS), "after a restart there is nothing to tell"
    assert receiver.titles == ["Flowtrail plants: 1 cycle changed"]
    assert f"Run {changed} of plants" in receiver.got[0].message
    assert notified_runs(history) == [1, changed]


def test_a_run_that_commits_after_one_with_a_higher_id_is_notified(history: RunHistory, receiver: HttpReceiver) -> None:
    slow, quick = history.begin(schedule="plants"), history.begin(schedule="wind")
    history.apply(quick, {EVE: [flow(1), flow(2)]})
    history.finish(quick)
    assert notifier(history, wants(receiver.url)).flush(PATIENCE_SECONDS)
    history.apply(slow, {ANN: [flow(1), flow(2)]})
    history.finish(slow)
    assert notifier(history, wants(receiver.url)).flush(PATIENCE_SECONDS)
    assert receiver.titles == ["Flowtrail wind: 1 added", "Flowtrail plants: 1 added"]
    assert slow < quick


def test_runs_that_finished_long_ago_are_not_notified(history: RunHistory, receiver: HttpReceiver) -> None:
    """Otherwise a receiver configured after years would get messages about years."""
    history.run({ANN: [flow(1), flow(2)]})
    assert notifier(history, wants(receiver.url), clock=lambda: now() + dt.timedelta(hours=25)).flush(PATIENCE_SECONDS)
    assert (receiver.got, notified_runs(history)) == ([], [])


def test_a_receiver_gets_its_organisations_and_kinds_only(history: RunHistory) -> None:
    with HttpReceiver() as ours, HttpReceiver() as theirs:
        subscriptions = wants(ours.url, on=["added"], orgs=["o1"]) + wants(theirs.url, on=["removed"])
        run_id = history.run({ANN: [flow(1), flow(2)], EVE: [flow(1), flow(2)]})
        assert notifier(history, subscriptions).flush(PATIENCE_SECONDS)
        assert ours.titles == ["Flowtrail plants: 1 added"]
        assert "o2" not in ours.got[0].message
        assert theirs.got == []
    assert run_id in notified_runs(history)


@ON_SQLITE
def test_a_receiver_that_was_down_gets_its_message_later_and_the_others_get_none_twice(
    history: RunHistory, receiver: HttpReceiver
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    history.run({ANN: [flow(1), flow(2)]})
    at_work = notifier(history, wants(receiver.url, f"json://127.0.0.1:{port}/"))
    assert not at_work.flush(PATIENCE_SECONDS)
    receiver.wait_for(1)
    assert notified_runs(history) == [1], "the run is owed to the one that is down"
    with HttpReceiver(port) as back:
        at_work.start()
        back.wait_for(1)
        wait_until(lambda: notified_runs(history) == [1, 2])
        at_work.stop()
        assert (len(receiver.got), len(back.got)) == (1, 1)


@ON_SQLITE
def test_an_error_and_a_redirect_of_the_receiver_are_no_receipt(history: RunHistory, receiver: HttpReceiver) -> None:
    history.run({ANN: [flow(1), flow(2)]})
    for status in (302, 404, 500):
        receiver.status = status
        assert not notifier(history, wants(receiver.url)).flush(PATIENCE_SECONDS)
    assert notified_runs(history) == [1]
    receiver.status = 204
    assert notifier(history, wants(receiver.url)).flush(PATIENCE_SECONDS)
    assert notified_runs(history) == [1, 2]


@ON_SQLITE
def test_a_receiver_that_hangs_delays_neither_the_others_nor_the_end(
    history: RunHistory, receiver: HttpReceiver
) -> None:
    with HttpReceiver() as hanging:
        hanging.hold = True
        history.run({ANN: [flow(1), flow(2)]})
        at_work = notifier(history, wants(f"{hanging.url}?rto=60", receiver.url))
        at_work.start()
        hanging.wait_for(1)
        receiver.wait_for(1)
        history.run({ANN: [flow(1)]})
        at_work.wake()
        receiver.wait_for(2)
        at_work.stop()
        assert at_work._loop.stopping
        assert len(hanging.got) == 1
        assert notified_runs(history) == [1]


@ON_SQLITE
def test_a_receiver_that_hangs_for_too_long_is_tried_again(history: RunHistory) -> None:
    with HttpReceiver() as hanging:
        hanging.hold = True
        history.run({ANN: [flow(1), flow(2)]})
        at_work = notifier(history, wants(f"{hanging.url}?rto=60"), timing=AT_ONCE._replace(give_up_seconds=0.05))
        at_work.start()
        hanging.wait_for(1)
        hanging.hold = False
        while len(hanging.got) < 2:
            at_work.wake()
            threading.Event().wait(0.02)
        wait_until(lambda: notified_runs(history) == [1, 2])
        at_work.stop()


@ON_SQLITE
def test_many_runs_that_wait_become_one_message(history: RunHistory, receiver: HttpReceiver) -> None:
    for number in range(12):
        history.run({ANN: [flow(1, f"name {number}")]})
    assert notifier(history, wants(receiver.url)).flush(PATIENCE_SECONDS)
    assert receiver.titles == ["Flowtrail 12 runs: 12 renamed"]
    assert len(notified_runs(history)) == 13


def test_of_two_notifiers_one_records_the_delivery_and_the_other_learns_of_it(history: RunHistory) -> None:
    run_id = history.run({ANN: [flow(1), flow(2)]})
    assert [history.store.mark_notified(run_id, now()) for _ in range(2)] == [True, False]


@ON_SQLITE
def test_a_standby_replica_notifies_nobody(history: RunHistory, receiver: HttpReceiver) -> None:
    history.run({ANN: [flow(1), flow(2)]})
    asked = threading.Event()

    def is_active() -> bool:
        asked.set()
        return False

    standing_by = notifier(history, wants(receiver.url), is_active=is_active)
    standing_by.start()
    assert asked.wait(PATIENCE_SECONDS)
    standing_by.stop()
    assert (receiver.got, notified_runs(history)) == ([], [])


# ------------------------------------------------------------------------------------------------------- overdue


def test_an_overdue_target_and_its_end_are_notified_once_across_restarts(
    history: RunHistory, receiver: HttpReceiver
) -> None:
    late = Freshness([Overdue("plants", ANN, now() - dt.timedelta(hours=1)), Overdue("wind", EVE, None)], {})
    for fresh in (late, late, late._replace(overdue=late.overdue[:1])):
        assert notifier(history, wants(receiver.url), freshness=lambda fresh=fresh: fresh).flush(PATIENCE_SECONDS)
    assert receiver.titles == ["Flowtrail: 2 overdue"], "EVE was not seen again, but belongs to no schedule any more"
    assert "o2/eve: never seen, schedule wind" in receiver.got[0].message
    seen = Freshness((), {ANN: now() + dt.timedelta(seconds=1)})
    for _ in range(2):
        assert notifier(history, wants(receiver.url), freshness=lambda: seen).flush(PATIENCE_SECONDS)
    assert receiver.titles[1:] == ["Flowtrail: 1 recovered"]
    assert notifier(history, wants(receiver.url), freshness=lambda: late).flush(PATIENCE_SECONDS)
    assert receiver.titles[2:] == ["Flowtrail: 2 overdue"]


@ON_SQLITE
@pytest.mark.timeout(60)
def test_fifty_thousand_overdue_targets_are_one_short_message(history: RunHistory, receiver: HttpReceiver) -> None:
    """With a list in place of a set, a hundred thousand took ten minutes of a processor, and runs waited for it."""
    with writing(history.engine) as connection:
        many = [{"org_id": "o1", "user_id": f"user {number}"} for number in range(50_000)]
        connection.execute(insert(target), many)
    late = [Overdue("plants", known.target, None) for known in history.store.known_targets()]
    fresh = Freshness(late, {})
    assert notifier(history, wants(receiver.url), freshness=lambda: fresh).flush(PATIENCE_SECONDS)
    (message,) = receiver.got
    assert message.title == f"Flowtrail: {len(late)} overdue"
    assert len(message.body) < 4000


def test_overdue_targets_are_kept_for_an_unreachable_receiver_and_hidden_from_an_unsubscribed_one(
    history: RunHistory, receiver: HttpReceiver
) -> None:
    late = Freshness([Overdue("plants", ANN, None)], {})
    others = wants(receiver.url, on=["removed"]) + wants(receiver.url, orgs=["o2"])
    receiver.status = 500
    at_work = notifier(history, others + wants(receiver.url), freshness=lambda: late)
    assert not at_work.flush(PATIENCE_SECONDS)
    receiver.status = 200
    assert notifier(history, others + wants(receiver.url), freshness=lambda: late).flush(PATIENCE_SECONDS)
    assert receiver.titles == ["Flowtrail: 1 overdue"] * 2


def test_a_target_that_is_no_longer_overdue_without_an_observation_has_not_recovered(
    history: RunHistory, receiver: HttpReceiver
) -> None:
    """EnOS refuses it for good now, or its schedule was changed."""
    seen = now() - dt.timedelta(hours=1)
    for fresh in (Freshness([Overdue("plants", ANN, seen)], {ANN: seen}), Freshness((), {ANN: seen})):
        assert notifier(history, wants(receiver.url), freshness=lambda fresh=fresh: fresh).flush(PATIENCE_SECONDS)
    assert receiver.titles == ["Flowtrail: 1 overdue"]


def test_the_end_of_trouble_notified_while_the_clock_was_ahead_is_notified_too(
    history: RunHistory, receiver: HttpReceiver
) -> None:
    late, seen = Freshness([Overdue("plants", ANN, None)], {}), Freshness((), {ANN: now()})
    ahead = {"clock": lambda: now() + dt.timedelta(days=30)}
    assert notifier(history, wants(receiver.url), freshness=lambda: late, **ahead).flush(PATIENCE_SECONDS)
    assert notifier(history, wants(receiver.url), freshness=lambda: seen).flush(PATIENCE_SECONDS)
    assert receiver.titles == ["Flowtrail: 1 overdue", "Flowtrail: 1 recovered"]


def test_retired_targets_are_forgotten_without_a_notification(history: RunHistory, receiver: HttpReceiver) -> None:
    late = Freshness([Overdue("plants", ANN, None)], {})
    assert notifier(history, wants(receiver.url), freshness=lambda: late).flush(PATIENCE_SECONDS)
    with writing(history.engine) as connection:
        connection.execute(text("UPDATE target SET retired_at = held_since"))
    assert notifier(history, wants(receiver.url), freshness=lambda: Freshness((), {})).flush(PATIENCE_SECONDS)
    with reading(history.engine) as connection:
        assert connection.execute(text("SELECT count(*) FROM overdue_notice")).scalar_one() == 0
    assert len(receiver.got) == 1


def a_condition(code: str, cause: str = "") -> OpenCondition:
    return OpenCondition(code, cause, now(), 1, "[]", "The schedules cannot be read", "Mend them.")


def test_a_condition_is_notified_once_when_it_begins_and_once_when_it_ends(
    history: RunHistory, receiver: HttpReceiver
) -> None:
    """Also to a receiver of one organisation only; failing targets are in the digests."""
    subscriptions = wants(receiver.url, on=["failed"], orgs=["o9"])
    history.store.keep_conditions([a_condition("schedules_broken"), a_condition("targets_failing", "malformed")], now())
    for _ in range(2):
        assert notifier(history, subscriptions).flush(PATIENCE_SECONDS)
    assert receiver.titles == ["Flowtrail: schedules_broken"]
    assert "The schedules cannot be read, since " in receiver.got[0].message
    history.store.keep_conditions([], now())
    for _ in range(2):
        assert notifier(history, subscriptions).flush(PATIENCE_SECONDS)
    assert receiver.titles == ["Flowtrail: schedules_broken", "Flowtrail: over: schedules_broken"]
    assert history.store.unnotified_conditions() == []


@ON_SQLITE
def test_a_receiver_not_subscribed_to_trouble_gets_no_condition(history: RunHistory, receiver: HttpReceiver) -> None:
    history.store.keep_conditions([a_condition("schedules_broken")], now())
    assert notifier(history, wants(receiver.url, on=["added"])).flush(PATIENCE_SECONDS)
    assert receiver.titles == []
    assert history.store.unnotified_conditions() == []


@ON_SQLITE
def test_an_outage_and_its_end_are_notified_although_nothing_can_be_written(
    history: RunHistory, receiver: HttpReceiver
) -> None:
    active, known = [False], threading.Event()
    alarm = Alarm(Message("Flowtrail: database_full", "The disk is full."), known.set)
    under_test = notifier(
        history,
        wants(receiver.url, on=["failed"]),
        is_active=lambda: active[0],
        alarm=lambda: None if known.is_set() else alarm,
    )
    under_test.start()
    receiver.wait_for(1)
    assert known.wait(PATIENCE_SECONDS)
    active[0] = True
    under_test.wake()
    receiver.wait_for(2)
    under_test.stop()
    assert receiver.titles == ["Flowtrail: database_full", "Flowtrail works again"]


@ON_SQLITE
def test_an_unreachable_receiver_is_known_until_it_is_reached(history: RunHistory, receiver: HttpReceiver) -> None:
    receiver.status = 500
    history.run({ANN: [flow(1), flow(2)]})
    under_test = notifier(history, wants(receiver.url, on=["added"]))
    assert not under_test.flush(0.5)
    [(name, why, since)] = under_test.failing()
    assert name.startswith("notify[1]")
    assert why
    assert since <= now()
    receiver.status = 200
    assert any(under_test.flush(PATIENCE_SECONDS) for _ in range(1000)), (
        "it is left alone for some hundredths of a second"
    )
    assert under_test.failing() == []


def evaluated(history: RunHistory, *keys: str, text: str = "SELECT 1") -> None:
    """The rule was evaluated and found these."""
    known = history.store.known_rules().get("daily")
    said = ("daily", "Flows run @daily", "error", text, known and known.evaluated_at, now(), 0, 1)
    history.store.write_evaluation(Evaluation(*said, found=dict.fromkeys(keys, "{}")))


def test_each_receiver_is_told_once_of_a_rule_that_is_broken_and_once_when_it_is_mended(
    history: RunHistory, receiver: HttpReceiver
) -> None:
    wanted = wants(receiver.url, on=("rule_broken", "rule_mended")) + wants(receiver.url, on=("held",))

    def told() -> list[str]:
        before = len(receiver.got)
        for _ in range(2):  # after a restart there is nothing to tell
            assert notifier(history, wanted).flush(PATIENCE_SECONDS)
        return [f"{each.title}. {each.message}" for each in receiver.got[before:]]

    evaluated(history, "a", "b")
    shows = "`flowtrail rules list daily` shows them."
    assert told() == [f"Flowtrail: rule broken: daily. Flows run \\x40daily: 2 findings (error). {shows}"]
    evaluated(history, "b", "c")
    assert told() == [
        f"Flowtrail: rule broken: daily. Flows run \\x40daily: 2 findings, 1 of them new (error). {shows}"
    ]
    evaluated(history, "c")
    assert told() == [], "it is still broken, and nothing is new"
    evaluated(history)
    assert told() == ["Flowtrail: rule mended: daily. Flows run \\x40daily: this is so again."]
    evaluated(history, "c")
    assert told() == [f"Flowtrail: rule broken: daily. Flows run \\x40daily: 1 finding (error). {shows}"]
    evaluated(history, text="SELECT 2")
    assert told() == ["Flowtrail: rule mended: daily. Flows run \\x40daily: the rule was changed, and finds nothing."]


def test_what_a_rule_found_and_was_mended_before_anybody_heard_of_it_is_not_told(
    history: RunHistory, receiver: HttpReceiver
) -> None:
    evaluated(history, "a")
    evaluated(history)
    assert notifier(history, wants(receiver.url, on=("rule_broken", "rule_mended"))).flush(PATIENCE_SECONDS)
    assert receiver.got == []
