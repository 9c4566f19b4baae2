"""The store's contract, on SQLite and PostgreSQL alike."""

from __future__ import annotations

import contextlib
import datetime as dt
import itertools
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait

import pytest
from sqlalchemy import Engine, event, func, make_url, select, text, update

from etl import schema
from etl.database import connect, writing
from etl.domain import verdict
from etl.domain.guard import Limits
from etl.domain.model import Fence, Outcome, Target
from etl.domain.rosters import RosterUser
from etl.errors import DatabaseError, Refused
from etl.report.listings import held_sets
from etl.schema import lease, sync_run
from etl.store import NewRun, Store, commit
from etl.store.lease import LASTS
from etl.store.runs import database_now
from tests.support import pooler
from tests.support.builders import ALICE, GAP, START, UNCHECKED, Diary, after, dump, flow, numbered, snapshot, written
from tests.support.intruder import Intruder
from tests.support.postgres import Server
from tests.support.relay import LossyProxy
from tests.support.sessions import HOSTILE_ROLE, ON_POSTGRESQL, POOLED

ALSO_CONNECTS = (POOLED if pooler.installed() else HOSTILE_ROLE,)
"""Further ways to meet PostgreSQL, for every test of this module."""
BOB = Target("o1", "bob")
TWENTY = numbered(1, 20)
TEN = [flow(11, "renamed"), *numbered(12, 21)]
"""Ten of these are missing, one is renamed, and one is new."""
SAFETY_NET_SECONDS = 60


def row(engine: Engine, table: str, where: str = "1 = 1") -> dict[str, object]:
    with engine.connect() as connection:
        return dict(connection.execute(text(f"SELECT * FROM {table} WHERE {where}")).mappings().one())


def count(engine: Engine, table: str, where: str = "1 = 1") -> int:
    with engine.connect() as connection:
        return int(connection.execute(text(f"SELECT count(*) FROM {table} WHERE {where}")).scalar_one())


# Every verdict


def test_the_fence_of_an_unobserved_target_is_empty(diary):
    assert diary.store.fences([ALICE], register=False)[0].target_id == 0
    assert count(diary.engine, "target") == 0
    fence = diary.fence()
    assert (fence.version, fence.number, fence.span, fence.head_hash, fence.held) == (0, 0, None, None, False)
    assert fence.target_id > 0


def test_fences_come_in_the_order_of_the_targets(diary):
    targets = [Target("o1", name, expression) for name in "cab" for expression in ("", "x")]
    assert [fence.target for fence in diary.store.fences(targets)] == targets
    assert [fence.target for fence in diary.store.fences(targets[::-1])] == targets[::-1]


def test_neighbouring_names_are_different_targets(diary):
    targets = [Target("a", "bc"), Target("ab", "c"), Target("a", "b", "c"), Target("A", "bc"), Target("a", "bc", " ")]
    for position, target in enumerate(targets):
        diary.answer(numbered(1, position), after(minutes=position), target)
    assert [fence.flow_count for fence in diary.store.fences(targets)] == [0, 1, 2, 3, 4]
    diary.check(every_answer=True)


def test_500_quiet_targets_cost_three_statements(diary):
    targets = [Target("o1", f"u{number}") for number in range(500)]
    listed = numbered(1, 2)
    diary.apply(*[diary.judge(fence, listed, START) for fence in diary.store.fences(targets)])
    with statements(diary.engine) as seen:
        fences = diary.store.fences(targets)
        outcomes = [verdict.unchanged(f, snapshot(None, after(hours=1), target=f.target), GAP) for f in fences]
        assert diary.store.apply(diary.run_id, outcomes, UNCHECKED) == set()
    assert len(seen) <= 3, seen
    assert count(diary.engine, "observation", "observations = 2") == 500


def test_a_change_rewrites_no_row_of_an_unchanged_workflow(diary):
    diary.answer(TWENTY, START)
    with statements(diary.engine) as seen:
        diary.answer([flow(1, "other"), *numbered(2, 19), flow(21)], after(hours=1))
    touched = sum(
        rows for statement, rows in seen if "workflow" in statement.split("(")[0] and "SELECT" not in statement
    )
    assert touched <= 3 + 3, seen  # three changes, each in `workflow` and, but for COPY, in `workflow_change`
    assert count(diary.engine, "workflow", "changed_at > first_listed_at") == 1
    diary.check(every_answer=True)


NOT_DELIVERED = (
    *("fence", "data_hash", "last_error", "projected_version", "coverage_gap_seconds"),
    *("retired_at", "held_asked_at", "held_at", "counts_since", "away_since", "asked_as"),
)
"""What a target has beside its list."""
OPEN_SPAN = [f"observation.{name}" for name in ("last_asked_at", "last_at", "interrupted")]
"""The end of an open span, which no seal covers yet."""


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_the_checker_finds_whatever_is_altered_behind_the_back_of_the_store(diary):
    """Tests rely on it and on ``verify``, so together they must find everything."""
    for hours, last in enumerate([3, 3, 4, 2, 2]):
        diary.answer([flow(1, f"v{last}", "D", last % 2 == 0), *numbered(2, last)], after(hours=hours))
        diary.answer([], after(hours=hours), BOB)
    diary.check(every_answer=True)
    proven = [column for column in schema.target.c if column.name not in NOT_DELIVERED]
    with Intruder(diary.engine) as intruder:
        for place, unproven in ((0, []), (-1, OPEN_SPAN)):
            unseen = []
            for column in (*proven, *schema.observation.c, *schema.workflow.c):
                table, row = column.table.name, intruder.rows(column.table.name)[place]
                altered = intruder.set(table, row, **{column.name: intruder.different(column, row[column.name])})
                if not diary.findings():
                    unseen.append(str(column))
                intruder.set(table, altered, **{column.name: row[column.name]})
            assert sorted(unseen) == sorted(unproven)


# Holds


def hold_ten(diary: Diary) -> None:
    diary.answer(TWENTY, START)
    assert diary.answer(TEN, after(hours=1)).verdict == "held"


def test_a_partial_hold_keeps_what_is_missing_and_commits_the_rest(diary):
    hold_ten(diary)
    assert count(diary.engine, "workflow") == 21
    assert count(diary.engine, "workflow", "missing_since IS NOT NULL") == 10
    target = row(diary.engine, "target")
    assert (target["version"], target["observation_id"], target["flow_count"]) == (2, None, 21)
    assert target["held_since"] is not None
    assert row(diary.engine, "sync_issue")["missing"] == 10
    assert (
        [each.target for each in held_sets(diary.engine)]
        == [each.target for each in held_sets(diary.engine, org="o1")]
        == [ALICE]
    )
    assert list(held_sets(diary.engine, org="o2")) == []
    diary.check()


def test_a_hold_goes_on_with_a_new_issue_each_time_and_keeps_its_beginning(diary):
    hold_ten(diary)
    since = row(diary.engine, "target")["held_since"]
    before = dump(diary.engine)
    assert diary.answer(TEN, after(hours=2)).verdict == "held"
    assert written(before, dump(diary.engine)) == {"target", "sync_issue"}
    assert row(diary.engine, "target")["held_since"] == since
    assert count(diary.engine, "sync_issue", "verdict = 'held'") == 2
    diary.check()


# Order


def nothing(diary: Diary) -> None:
    """A target that was never observed."""


def a_list(diary: Diary) -> None:
    diary.answer(TWENTY, START)


def a_list_then_a_failure(diary: Diary) -> None:
    diary.answer(TWENTY, START)
    diary.fail()


@pytest.mark.parametrize(
    ("before", "newer", "older"),
    [
        pytest.param(nothing, TWENTY, [numbered(1, 21)], id="two-baselines-are-one"),
        pytest.param(a_list, numbered(1, 21), [numbered(1, 19)], id="change-beats-change"),
        pytest.param(a_list, TWENTY, [numbered(1, 21), TWENTY], id="unchanged-beats-change-and-unchanged"),
        pytest.param(a_list, numbered(101, 140), [TWENTY, numbered(1, 21)], id="a-whole-hold-beats-both"),
        pytest.param(a_list, numbered(11, 20), [TWENTY, numbered(1, 21)], id="a-partial-hold-beats-both"),
        pytest.param(a_list_then_a_failure, TWENTY, [TWENTY, None], id="a-span-after-a-failure-beats-also-a-failure"),
        pytest.param(hold_ten, [*numbered(1, 10), *TEN], [TEN], id="the-end-of-a-hold-beats-the-hold"),
    ],
)
def test_an_older_answer_loses_to_a_newer_one_and_is_an_issue(diary, before, newer, older):
    """An answer that is None is a failure."""
    before(diary)
    old = diary.fence()
    diary.answer(newer, after(hours=3))
    there = dump(diary.engine)
    for answer in older:
        late = verdict.failed(old, Refused("late", code="timeout"))
        assert diary.apply(diary.judge(old, answer, after(hours=2)) if answer else late) == {old.target_id}
    assert written(there, dump(diary.engine)) == {"sync_issue"}
    assert count(diary.engine, "sync_issue", "verdict = 'stale'") == len(older)
    diary.check()


def test_ten_writers_in_any_order_neither_deadlock_nor_lose_nor_double(database_url, connected, one_run_for_all):
    """Each reads fences, is overtaken or not, and writes: every answer is an observation or stale, never an error."""
    targets = [Target("o1", f"u{number}") for number in range(12)]
    engines = [connected(database_url) for _ in range(10)]
    errors: list[str] = []
    for engine in engines:
        event.listen(engine, "handle_error", lambda context: errors.append(str(context.original_exception)))
    diaries = [Diary(engine, database_url) for engine in engines]
    together = threading.Barrier(len(diaries), timeout=SAFETY_NET_SECONDS)

    def write(number: int) -> None:
        chance, diary = random.Random(number), diaries[number]
        for turn in range(4):
            mine = chance.sample(targets, 8)
            together.wait()
            at = after(hours=turn, milliseconds=number)
            try:
                fences = diary.store.fences(mine)
                diary.apply(*[_any_outcome(diary, chance, fence, at) for fence in fences])
            except BaseException:
                together.abort()  # or the others would wait for this one
                raise

    with ThreadPoolExecutor(len(diaries)) as threads:
        list(threads.map(write, range(len(diaries))))
    assert errors == []  # not even one that was tried again
    diary = diaries[0]
    diary.deliveries = [each for one in diaries for each in one.deliveries]
    spans = sum(count(diary.engine, "observation", f"observations = {n}") * n for n in range(1, 50))
    beside = count(diary.engine, "sync_issue")
    held = count(diary.engine, "sync_issue", "verdict = 'held'")
    assert (spans + beside, held) == (10 * 4 * 8, 0)
    assert not [finding for finding in diary.findings(settled=False) if "delivered" not in finding]


def _any_outcome(diary: Diary, chance: random.Random, fence, at: dt.datetime) -> Outcome:
    if chance.random() < 0.2:
        return verdict.failed(fence, Refused("no", code="62109"))
    return diary.judge(fence, numbered(1, chance.randint(1, 3)), at)


@pytest.mark.parametrize("dialect", ["postgresql"])
def test_a_new_target_that_the_database_cannot_number_is_refused_and_not_taken_for_known(diary):
    """As after an import by hand that did not advance the sequence."""
    with writing(diary.engine) as connection:
        connection.execute(text("INSERT INTO target (id, org_id, user_id) VALUES (1, 'o9', 'zoe')"))
    with pytest.raises(DatabaseError, match="pk_target"):
        diary.store.fences([BOB], register=True)


def test_the_longest_names_of_a_target_that_the_settings_allow_can_be_indexed(diary):
    """Of random characters, so that nothing of them can be compressed."""
    chance = random.Random(1)
    longest = ("".join(chr(chance.randrange(0x4E00, 0x9FA5)) for _ in range(255)) for _ in range(3))
    assert diary.store.fences([Target(*longest)])[0].target_id


def a_quiet(diary: Diary, fence: Fence) -> Outcome:
    return diary.judge(fence, TWENTY, after(hours=1))


def a_changed(diary: Diary, fence: Fence) -> Outcome:
    return diary.judge(fence, numbered(1, 21), after(hours=1))


def a_held(diary: Diary, fence: Fence) -> Outcome:
    return diary.judge(fence, numbered(101, 140), after(hours=1))


def a_failed(_: Diary, fence: Fence) -> Outcome:
    return verdict.failed(fence, Refused("no", code="62109"))


Writes = Callable[[Diary, Fence], Outcome]


@pytest.mark.parametrize("dialect", ON_POSTGRESQL)  # SQLite has one writer at a time
@pytest.mark.parametrize(
    ("first", "second", "stale", "spans"),
    [
        (a_quiet, a_quiet, True, [2]),
        (a_quiet, a_changed, True, [2]),
        (a_quiet, a_held, True, [2]),
        (a_quiet, a_failed, True, [2]),
        (a_changed, a_quiet, True, [1, 1]),
        (a_held, a_quiet, True, [1]),
        (a_failed, a_quiet, False, [1, 1]),
        (a_failed, a_changed, False, [1, 1]),
        (a_failed, a_failed, False, [1]),
    ],
)
def test_a_writer_waits_for_an_uncommitted_one_and_sees_what_it_wrote(
    diary, first: Writes, second: Writes, stale: bool, spans: list[int]
):
    for target in (BOB, ALICE):
        diary.answer(TWENTY, START, target)
    bob, alice = diary.store.fences([BOB, ALICE])
    early = [first(diary, alice)]
    late = [second(diary, alice), a_quiet(diary, bob)]
    run_id = diary.begin()
    with ThreadPoolExecutor(1) as threads:
        with writing(diary.engine) as connection:
            assert commit.apply(connection, run_id, early).stale == set()
            answer = threads.submit(diary.store.apply, run_id, late)
            while not connection.execute(text("SELECT count(*) FROM pg_locks WHERE NOT granted")).scalar_one():
                assert not answer.done(), answer.result()
        assert answer.result() == ({alice.target_id} if stale else set())
    with diary.engine.connect() as connection:
        seen = text("SELECT observations FROM observation WHERE target_id = :id ORDER BY id")
        assert connection.execute(seen, {"id": alice.target_id}).scalars().all() == spans
        assert connection.execute(seen, {"id": bob.target_id}).scalars().all() == [2]
    diary.check()


# A COMMIT whose answer is lost


def a_baseline(diary: Diary, _: Fence) -> Outcome:
    return diary.judge(diary.fence(BOB), TWENTY, after(hours=1))


@contextlib.contextmanager
def losing(diary: Diary, server: Server, lost: str) -> Iterator[tuple[Engine, Callable[[], None]]]:
    """An engine that can be made to lose, once, the answer of a COMMIT, the COMMIT itself ("request"), or a COPY."""
    direct = server.url(str(make_url(diary.url).database), tcp=True)
    word = b"COPY workflow_change" if lost == "COPY" else b"COMMIT\0"
    with LossyProxy(server.port, word, forward=lost == "answer") as proxy:
        engine = connect(make_url(direct).set(port=proxy.port).render_as_string(hide_password=False))
        yield engine, proxy.lose_next
        engine.dispose()
        assert proxy.lost == 1


@pytest.mark.parametrize("dialect", ["postgresql"])  # the model loses answers on SQLite
@pytest.mark.parametrize(
    ("lost", "make"),
    [
        *itertools.product(("answer", "request"), (a_baseline, a_changed, a_quiet, a_held, a_failed)),
        pytest.param("COPY", a_baseline, id="a connection that breaks in the middle of the rows"),
    ],
)
def test_a_commit_without_an_answer_is_looked_up_and_never_doubled(diary, postgres, lost, make):
    diary.answer(TWENTY, START)
    with losing(diary, postgres, lost) as (engine, lose_next):
        other = Diary(engine, diary.url)
        other.deliveries = diary.deliveries
        outcome = make(other, other.fence())
        lose_next()
        assert other.store.apply(other.run_id, [outcome], UNCHECKED) == set()
    if outcome.verdict == "failed":
        assert row(diary.engine, "target")["consecutive_failures"] == 1
        assert count(diary.engine, "sync_issue") == 1
    assert count(diary.engine, "sync_issue", "verdict = 'stale'") == 0
    diary.check(every_answer=outcome.verdict != "held")


@pytest.mark.parametrize("dialect", ["postgresql"])
@pytest.mark.parametrize("others", [a_changed, a_quiet])
def test_rows_of_another_attempt_of_a_run_are_not_taken_for_ours(diary, postgres, others):
    """A batch is settled twice: its worker was thought dead, but went on. The second COMMIT does not arrive."""
    diary.answer(TWENTY, START)
    diary.answer(TWENTY, START, BOB)

    def bob_fails() -> Outcome:
        return verdict.failed(diary.fence(BOB), Refused("no", code="62103"))

    with losing(diary, postgres, "request") as (engine, lose_next):
        second = [others(diary, diary.fence()), bob_fails()]
        assert diary.store.apply(diary.run_id, [bob_fails()]) == set()
        lose_next()
        assert Store(engine).apply(diary.run_id, second) == set()
    observed = count(diary.engine, "observation", f"last_at > '{after(minutes=30):%Y-%m-%d %H:%M:%S}'")
    assert observed == 1, "what came with the failure is there"
    assert count(diary.engine, "sync_issue") == 2


@pytest.mark.parametrize("dialect", ["postgresql"])
def test_a_run_whose_begin_was_committed_without_an_answer_has_its_slot(diary, postgres):
    """Otherwise the slot would belong to a run that no process works on."""
    with losing(diary, postgres, "answer") as (engine, lose_next):
        store = Store(engine)
        assert store.served_until("plants") is None
        lose_next()
        assert store.begin_run(slot(), START) is not None
    assert count(diary.engine, "sync_run", "schedule = 'plants'") == 1


def test_what_the_database_refuses_is_a_database_error_and_nothing_is_written(diary):
    """A NUL passes SQLite and is refused by PostgreSQL, in the bulk path too; nothing of the batch stays."""
    outcome = diary.judge(diary.fence(), [flow(1, "a\0b")], START)
    bob = diary.judge(diary.fence(BOB), TWENTY, START)
    before = dump(diary.engine)
    if diary.engine.dialect.name == "sqlite":
        with writing(diary.engine) as connection:
            connection.exec_driver_sql(
                "CREATE TRIGGER full_disk BEFORE INSERT ON workflow WHEN NEW.flow_id = '1' "
                "BEGIN SELECT RAISE(ABORT, 'no'); END"
            )
    with pytest.raises(DatabaseError):
        diary.apply(bob, outcome)
    assert written(before, dump(diary.engine)) == set()


def test_a_run_that_repeats_the_last_list_of_its_schedule_does_not_compare_it(diary):
    """However many runs of others lie in between."""
    plants = [slot(after(minutes=minutes), lists={"plants": [ALICE, BOB]}) for minutes in (0, 15, 30)]
    others = NewRun(origin="maintenance", host="here", pid=1, targets=0)
    for each in (*plants[:2], *[others] * 120):  # the first run records who is a member, which the second sees
        assert diary.store.begin_run(each, START)
    with statements(diary.engine) as seen:
        assert diary.store.begin_run(plants[2], START)
    assert [statement for statement, _ in seen if "UPDATE sync_run" in statement] == []


@contextlib.contextmanager
def statements(engine: Engine) -> Iterator[list[tuple[str, int]]]:
    """Every statement but those that begin and end transactions, with the number of its rows."""
    seen: list[tuple[str, int]] = []

    def note(_connection, _cursor, statement, parameters, _context, many) -> None:
        if not statement.startswith("BEGIN"):
            seen.append((statement, len(parameters) if many else 1))

    event.listen(engine, "before_cursor_execute", note)
    yield seen
    event.remove(engine, "before_cursor_execute", note)


# Retiring


def test_a_target_that_is_no_longer_configured_is_retired_without_removals(diary):
    diary.answer(TWENTY, START)
    diary.answer(TWENTY, START, BOB)
    before = dump(diary.engine)
    assert diary.store.retire_others([ALICE], after(hours=1), None).retired == (BOB,)
    assert written(before, dump(diary.engine)) == {"target", "target_membership"}
    assert row(diary.engine, "target", "user_id = 'alice'")["retired_at"] is None
    assert diary.store.retire_others([ALICE], after(hours=2), None).retired == ()
    diary.check(every_answer=True)


def test_a_target_that_comes_back_goes_on_with_a_change_that_spans_the_absence(diary):
    diary.answer(TWENTY, START)
    diary.store.retire_others([], after(hours=1), None)
    assert diary.store.fences([ALICE], register=False)[0].retired
    outcome = diary.answer(numbered(1, 21), after(hours=100))
    assert outcome.change_set.last_unchanged_at == after(seconds=-2)
    assert row(diary.engine, "target")["retired_at"] is None
    diary.check(every_answer=True)


# Rosters


def test_users_who_left_a_roster_count_within_the_window_until_a_person_confirms(diary):
    store, hour = diary.store, dt.timedelta(hours=1)
    users = [f"u{number}" for number in range(10)]
    assert store.claim_roster("o1", START, hour)

    def read(first: int, hours: int, *, readings: int = 2, approved: bool = False) -> set[str]:
        store.write_roster("o1", [{*users[first:]}] * readings, Limits(), START + hours * hour, approved=approved)
        return store.rosters(["o1"])["o1"].users

    assert read(0, 0) == {*users}
    assert read(1, 30, readings=1) == {*users}, "one reading retires nobody"
    assert read(4, 30) == {*users[4:]}
    assert read(5, 53) == {*users[4:]}, "the fifth within 24 hours"
    stored = store.rosters(["o1"])["o1"].known
    assert stored["u4"] == RosterUser(START, missing_since=START + 53 * hour)
    assert stored["u0"] == RosterUser(START, left_at=START + 30 * hour)
    assert read(3, 53) == {*users[3:]}, "two are back"
    assert store.rosters(["o1"])["o1"].known["u3"] == RosterUser(START + 53 * hour)
    assert read(5, 53, approved=True) == {*users[5:]}
    assert store.rosters(["o1"])["o1"].known.keys() == {*users[5:]}
    assert read(9, 53) == {*users[9:]}, "a person's word begins the window anew"
    assert read(8, 80) == {*users[8:]}
    assert store.rosters(["o1"])["o1"].known.keys() == {*users[8:]}, "and after it nobody counts"


# Runs


def slot(at: dt.datetime = START, **other) -> NewRun:
    return NewRun(
        **{"origin": "schedule", "schedule": "plants", "scheduled_for": at, **other}, host="h", pid=1, targets=2
    )


def age(engine: Engine, run_id: int, seconds: int) -> None:
    """Move a run's heartbeat into the past (or the future), by the database's clock."""
    now = {
        "sqlite": f"strftime('%Y-%m-%d %H:%M:%f', 'now', '{-seconds:+} seconds') || '000'",
        "postgresql": f"clock_timestamp() - interval '{seconds} seconds'",
    }[engine.dialect.name]
    with writing(engine) as connection:
        connection.exec_driver_sql(f"UPDATE sync_run SET heartbeat_at = {now} WHERE id = {run_id}")


def test_a_slot_is_served_once_whichever_replica_comes_first(diary):
    store = diary.store
    assert store.begin_run(slot(), START) is not None
    assert store.begin_run(slot(), START) is None
    assert store.begin_run(slot(origin="catch_up"), START) is None
    assert store.begin_run(slot(after(minutes=15)), START) is not None
    assert store.begin_run(slot(schedule="other"), START) is not None
    assert store.served_until("plants") == after(minutes=15)
    assert store.served_until("nobody") is None


def test_a_run_that_beats_is_left_alone_and_one_that_stopped_is_aborted(diary):
    store = diary.store
    dead, alive, ended = (store.begin_run(slot(after(hours=n)), START) for n in range(3))
    store.finish_run(ended, "succeeded", {}, START)
    for run_id, seconds in ((dead, 121), (alive, 118), (ended, 500)):
        age(diary.engine, run_id, seconds)
    assert store.abort_abandoned_runs(after(hours=9)) == [dead]
    assert store.abort_abandoned_runs(after(hours=9)) == []
    assert row(diary.engine, "sync_run", f"id = {dead}")["status"] == "aborted"
    assert row(diary.engine, "sync_run", f"id = {ended}")["status"] == "succeeded"
    age(diary.engine, alive, 500)
    store.beat(alive)
    assert store.abort_abandoned_runs(after(hours=9)) == []


def test_a_heartbeat_from_the_future_counts_from_the_moment_it_is_noticed(diary):
    """The clock was a month ahead. A living run has two minutes to renew its heartbeat."""
    store = diary.store
    dead, alive = (store.begin_run(slot(after(hours=n)), START) for n in range(2))
    for run_id in (dead, alive):
        age(diary.engine, run_id, -30 * 86_400)
    assert store.abort_abandoned_runs(START) == []
    with diary.engine.connect() as connection:
        ahead = select(func.count()).where(sync_run.c.heartbeat_at > database_now(connection))
        assert connection.execute(ahead).scalar_one() == 0
    with writing(diary.engine) as connection:
        two_minutes = dt.timedelta(minutes=2, seconds=1)
        for run_id, at in connection.execute(select(sync_run.c.id, sync_run.c.heartbeat_at)).all():
            earlier = update(sync_run).where(sync_run.c.id == run_id).values(heartbeat_at=at - two_minutes)
            connection.execute(earlier)
    store.beat(alive)
    assert dead in store.abort_abandoned_runs(START)
    assert row(diary.engine, "sync_run", f"id = {alive}")["status"] == "running"


def test_the_slot_of_an_aborted_run_counts_as_not_served(diary):
    store = diary.store
    first = store.begin_run(slot(), START)
    age(diary.engine, first, 500)
    store.abort_abandoned_runs(START)
    assert store.served_until("plants") == START - dt.timedelta(microseconds=1)
    assert store.was_aborted("plants", START)
    assert not store.was_aborted("plants", after(hours=1))
    assert not store.was_aborted("other", START)
    assert store.begin_run(slot(), START) is not None


def test_ending_a_run_twice_is_allowed_if_the_result_is_the_same(diary):
    sums = {"changed": 2, "unchanged": 1, "added": 7}
    assert diary.store.finish_run(diary.run_id, "succeeded", sums, after(hours=1))
    assert diary.store.finish_run(diary.run_id, "succeeded", sums, after(hours=1))
    assert not diary.store.finish_run(diary.run_id, "failed", {}, after(hours=2))
    ended = row(diary.engine, "sync_run")
    assert (ended["status"], ended["changed"], ended["unchanged"], ended["added"]) == ("succeeded", 2, 1, 7)


# The lease


def let_lease_end(engine: Engine, in_seconds: float) -> None:
    """As if it had been taken or renewed at another moment, by the database's clock."""
    with writing(engine) as connection:
        now = connection.execute(select(database_now(connection))).scalar_one()
        connection.execute(update(lease).values(expires_at=now + dt.timedelta(seconds=in_seconds)))


@pytest.mark.parametrize(
    ("in_seconds", "holder"),
    [
        pytest.param(-0.1, None, id="it has ended"),
        pytest.param(LASTS.total_seconds() / 2, "one", id="it lasts"),
        pytest.param(LASTS.total_seconds() + 60, None, id="it ends a minute later than one that was taken just now"),
        pytest.param(30 * 86_400, None, id="it ends in a month: the clock was ahead"),
    ],
)
def test_a_lease_is_held_while_it_can_have_been_taken_by_now(diary, in_seconds, holder):
    store = diary.store
    store.take_lease("serve", "one")
    let_lease_end(diary.engine, in_seconds)
    assert store.lease_holder("serve") == holder
    assert store.take_lease("serve", "two") == (holder is None)
    assert store.lease_holder("serve") == (holder or "two")
    assert store.take_lease("serve", "one") == (holder is not None), "who comes too late stands by"


def test_a_lease_has_one_holder_who_alone_may_renew_it_and_give_it_back(diary):
    store = diary.store
    assert store.take_lease("serve", "one")
    assert not store.take_lease("serve", "two")
    assert store.take_lease("serve", "one")
    assert store.take_lease("other", "two")
    store.release_lease("serve", "two")
    assert (store.lease_holder("serve"), store.lease_holder("nobody")) == ("one", None)
    store.release_lease("serve", "one")
    assert store.take_lease("serve", "two")


@pytest.mark.parametrize("is_first", [False, True], ids=["after one that has ended", "the first"])
def test_a_lease_taken_once_the_clock_was_read_is_not_from_the_future(database_url, connected, is_first):
    slow, quick = connected(database_url), connected(database_url)
    if not is_first:
        Store(slow).take_lease("serve", "one that has gone")
        with writing(slow) as connection:
            connection.execute(update(lease).values(expires_at=START))
    others: list[Future[bool]] = []
    read: list[str] = []
    with ThreadPoolExecutor(1) as threads:

        def interfere(_connection, _cursor, statement: str, *_more) -> None:
            if "clock_timestamp" in statement or "'now'" in statement:
                read.append(statement)
            elif "lease" in statement and read and not others:
                others.append(threads.submit(Store(quick).take_lease, "serve", "quick"))
                wait(others, timeout=0.2)

        event.listen(slow, "before_cursor_execute", interfere)
        taken = Store(slow).take_lease("serve", "slow")
    assert taken != others[0].result()
