"""The events of an organisation in the database are those of the model for the same answers."""

from __future__ import annotations

import datetime as dt
import itertools
import tempfile
from typing import Any

import pytest
from sqlalchemy import Engine, event, func, select, text, update

from etl.database import connect, reading, upgrade, writing
from etl.domain.model import USUAL_COVERAGE_GAP, Flow, Target
from etl.domain.organisation.values import Answer, Judgement, Listed
from etl.errors import Refused
from etl.report.listings import STATES
from etl.schema import org_event, org_step, sync_run, target, target_membership
from etl.store import NewRun, Store, story_rows, story_writes
from etl.store.story import Step
from tests.organisation.mirror import EPOCH, RUN, MirroredSimulation, Small, moment
from tests.organisation.settings import DIFFICULT, ORDINARY
from tests.organisation.world import HOUR, START, Setting
from tests.support.builders import UNCHECKED, after, flow, judged, numbered, snapshot
from tests.support.trails import ANN, BEN, House, contradictions, findings
from tests.support.years import Clock

COLUMNS = (
    "flow_id", "kind", "user_id", "old_name", "new_name", "old_cycle", "new_cycle", "old_editable", "new_editable",
    "last_unchanged_at", "observed_at", "users_before", "users_after", "proven_for_all", "unheard",
)  # fmt: skip


def derived(judgements: list[Judgement]) -> list[tuple[Any, ...]]:
    rows = []
    for judgement in judgements:
        for told in judgement.events:
            old, new = told.old or Listed(None, None, None), told.new or Listed(None, None, None)
            rows.append((
                told.flow_id, told.kind, told.user_id, old.name, new.name, old.cycle, new.cycle, old.editable,
                new.editable, moment(told.last_unchanged_at), moment(told.observed_at), told.users_before,
                told.users_after, told.proven_for_all, told.unheard,
            ))  # fmt: skip
    return sorted(rows, key=repr)


def recorded(engine: Engine, after: int) -> tuple[list[tuple[Any, ...]], int]:
    query = org_event.select().where(org_event.c.event_id > after)
    with reading(engine) as connection:
        rows = connection.execute(query).mappings().all()
    last = max((row["event_id"] for row in rows), default=after)
    return sorted((tuple(row[name] for name in COLUMNS) for row in rows), key=repr), last


def played(engine: Engine, setting: Setting, seed: int, runs: int) -> int:
    simulation = MirroredSimulation(setting, seed, engine)
    last = count = 0
    for judgements in simulation.run(START + runs * simulation.schedules[0].every):
        expected = derived(judgements)
        found, last = recorded(engine, last)
        assert found == expected, f"step {count}"
        count += len(expected)
    assert contradictions(engine) == []
    return count


WORLDS = ("other gaps", "holds", "joining and leaving", "restless rights", "everything")


@pytest.mark.parametrize("name", WORLDS)
def test_the_database_gives_the_events_of_the_model(engine: Engine, name: str) -> None:
    """All worlds with more seeds: ``python -m tests.contract.test_story``."""
    assert played(engine, DIFFICULT[name], seed=2, runs=7) > 0


def events_in(engine: Engine) -> list[tuple[str, str]]:
    events, _ = recorded(engine, 0)
    return [(row[1], row[0]) for row in events]


def test_of_two_concurrent_steps_one_restarts_and_each_event_is_recorded_once(engine: Engine) -> None:
    story = Small(engine)
    story.hear(ann="1", bob="1")
    story.end()
    story.hear(ann="12", bob="12")
    one, other = story.judged(), story.judged()
    step = Step(story.state.run_id, moment(story.at), moment(story.at + 9))
    with writing(engine) as connection:
        story_writes.write_steps(connection, one, step)
    with pytest.raises(story_writes.StoryConflict), writing(engine) as connection:
        story_writes.write_steps(connection, other, step)
    story.end()
    assert events_in(engine) == [("appeared", "2")]


@pytest.mark.parametrize(
    ("dialect", "before"),
    [("sqlite", "SELECT due.org_id"), ("postgresql", "SELECT due.org_id"), ("postgresql", "JOIN org_flow f")],
    ids=["sqlite-before-it-reads", "postgresql-before-it-reads", "postgresql-while-it-reads"],
    indirect=["dialect"],
)
def test_an_approval_while_a_run_judges_is_told_once(engine: Engine, before: str) -> None:
    """On SQLite nobody commits while another reads."""
    house = House(engine)
    house.serve({"plants": [ANN, BEN]})
    house.upstream.lists |= {ANN: numbered(1, 2), BEN: numbered(1, 2)}
    assert house.serve({"plants": [ANN, BEN]}).tally.verdicts["held"] == 2
    house.approve(ANN)
    house.upstream.lists[ANN] = [*numbered(1, 2), flow(9)]
    waiting = [house.approve]

    def approve_first(connection: object, cursor: object, statement: str, *rest: object) -> None:
        if before in statement and waiting:
            waiting.pop()(BEN)

    event.listen(engine, "before_cursor_execute", approve_first)
    house.run([ANN])
    event.remove(engine, "before_cursor_execute", approve_first)
    house.serve({"plants": [ANN, BEN]})
    assert waiting == []
    assert sorted(events_in(engine)) == [("appeared", "9"), *(("disappeared", str(number)) for number in range(3, 7))]
    assert contradictions(engine) == findings(engine) == []


HOURLY, WEEKLY = dt.timedelta(seconds=3), dt.timedelta(days=10)


def test_a_target_has_the_longest_coverage_gap_of_the_schedules_that_list_it(engine: Engine) -> None:
    """Recorded with the membership; also where only the gap of a schedule has changed, and another process runs it."""
    short, long, longest = (dt.timedelta(days=days) for days in (1, 10, 20))
    house = House(engine)
    for lists, gaps, expected in (
        ({"hourly": [ANN], "weekly": [ANN, BEN]}, {"hourly": short, "weekly": long}, {ANN: long, BEN: long}),
        ({"hourly": [ANN, BEN]}, {"hourly": longest}, {ANN: longest, BEN: longest}),
        ({"hourly": [ANN, BEN]}, {"hourly": short}, {ANN: long, BEN: long}),
        ({"weekly": [BEN]}, {"weekly": long}, {ANN: short, BEN: long}),
        ({"weekly": [BEN]}, {"weekly": longest}, {ANN: short, BEN: longest}),
        ({"hourly": [ANN]}, {}, {ANN: USUAL_COVERAGE_GAP, BEN: longest}),
    ):
        house.store = Store(engine)
        house.serve(lists, gaps=gaps)
        assert {fence.target: fence.coverage_gap for fence in house.store.fences([ANN, BEN])} == expected
    assert findings(engine) == []


def test_no_coverage_gap_outlasts_its_schedule(engine: Engine) -> None:
    """A schedule that is deleted or renamed lets its members go; whoever is in no other keeps what is known."""
    house, clock = House(engine), Clock()
    house.serve({"hourly": [ANN], "weekly": [ANN, BEN]}, gaps={"hourly": HOURLY, "weekly": WEEKLY})

    def configure(targets: list[Target], *schedules: str) -> list[Any]:
        house.store.retire_others(targets, clock(), 0.1, schedules)
        fences = {fence.target: fence.coverage_gap for fence in house.store.fences([ANN, BEN])}
        left = select(target_membership.c.schedule, target.c.user_id).join(
            target, target.c.id == target_membership.c.target_id
        )
        with engine.connect() as connection:
            rows = connection.execute(left.where(target_membership.c.kind == "left").order_by(target_membership.c.id))
            return [fences[ANN], fences[BEN], *map(tuple, rows)]

    def count() -> int:
        with engine.connect() as connection:
            return connection.execute(select(func.count()).select_from(sync_run)).scalar_one()

    assert configure([ANN, BEN], "hourly", "weekly") == [WEEKLY, WEEKLY]
    runs = count()
    assert configure([ANN], "hourly") == [HOURLY, WEEKLY, ("weekly", ANN.user_id)], "too many to retire: Ben stays"
    assert configure([ANN], "hourly") == [HOURLY, WEEKLY, ("weekly", ANN.user_id)]
    assert count() == runs + 1, "what has been recorded is not recorded again"
    assert findings(engine) == []


def test_the_silence_of_a_user_is_measured_by_the_users_own_schedule(engine: Engine) -> None:
    """Ben is asked once a week: he is not silent when an hourly run or an approval judges what Ann lost."""
    house, clock = House(engine), Clock()
    house.upstream.clock = clock
    gaps = {"hourly": HOURLY, "weekly": WEEKLY}
    house.serve({"hourly": [ANN], "weekly": [BEN]}, gaps=gaps)
    clock.move(seconds=4)
    house.upstream.lists[ANN] = numbered(2, 6)
    house.serve({"hourly": [ANN]}, gaps=gaps)
    house.run([ANN])
    assert events_in(engine) == []
    house.serve({"hourly": [ANN], "weekly": [BEN]}, gaps=gaps)
    assert events_in(engine) == [("access_lost", "1")]


def test_a_disappearance_begins_with_the_last_answer_of_a_user_who_counts(engine: Engine) -> None:
    """Ben came back with removals that are held, so he does not count yet, and his list shows it all the time."""
    house, clock = House(engine), Clock()
    house.upstream.clock = clock
    house.upstream.lists |= {ANN: [*numbered(1, 6), flow(50)], BEN: numbered(1, 6)}
    house.serve({"plants": [ANN, BEN]})
    house.store.retire_others([ANN], clock(), None)
    house.serve({"plants": [ANN]})
    house.upstream.lists[BEN] = [*numbered(1, 2), flow(50)]
    assert house.serve({"plants": [ANN, BEN]}).tally.verdicts["held"] == 1
    lost_at = clock()
    house.upstream.lists[ANN] = numbered(1, 6)
    clock.move(hours=1)
    house.serve({"plants": [ANN, BEN]})
    with reading(engine) as connection:
        [told] = connection.execute(select(org_event)).all()
    assert (told.kind, told.flow_id, told.proven_for_all) == ("disappeared", "50", True)
    assert told.last_unchanged_at < lost_at < told.observed_at


def test_a_user_retired_between_judging_and_writing_causes_a_new_judgement(engine: Engine) -> None:
    story = Small(engine)
    story.hear(ann="1", bob="1")
    story.end()
    story.hear(ann="12", bob="1")
    judged = story.judged()
    story.state.retire("ann", story.at + 5)
    step = Step(story.state.run_id, moment(story.at), moment(story.at + 9))
    with pytest.raises(story_writes.StoryConflict), writing(engine) as connection:
        story_writes.write_steps(connection, judged, step)


def test_versions_that_a_run_left_when_it_died_are_judged_by_the_next_run(engine: Engine) -> None:
    story = Small(engine)
    story.hear(ann="1", bob="1")
    story.end()
    story.hear(ann="12", bob="1")  # and the process is killed
    store = story.state.store
    with writing(engine) as connection:
        connection.execute(update(sync_run).values(heartbeat_at=EPOCH))
    assert store.abort_abandoned_runs(moment(story.at)) == [story.state.run_id]
    story.state.store = store = Store(engine)  # another process
    story.state.run_id = store.begin_run(RUN, moment(story.at)) or 0
    story.hear(ann="12", bob="1")
    story.end()
    assert events_in(engine) == [("appeared", "2")]


def test_an_answer_from_before_a_retirement_is_not_the_first_after_the_return(engine: Engine) -> None:
    """The retirement was decided when Ann's answer had not been written yet."""
    house = House(engine)
    clock = house.upstream.clock = Clock()
    house.serve({"plants": [ANN, BEN]})
    decided_at = clock()
    clock.move(minutes=1)
    house.serve({"plants": [ANN, BEN]})
    house.store.retire_others([BEN], decided_at, None)
    mine = "target t JOIN observation o ON o.target_id = t.id WHERE t.user_id = 'u000'"
    [(retired_at, last_at)] = house.rows(f"SELECT t.retired_at, o.last_at FROM {mine}")
    assert retired_at == last_at
    clock.move(minutes=1)
    house.serve({"plants": [BEN]})
    assert house.rows("SELECT users FROM org_workflow WHERE flow_id = '1'") == [(1,)]
    clock.move(minutes=1)
    lists, refused = house.upstream.lists, Refused("no", code="62101")
    house.upstream.says = lambda target, n: refused if target == ANN else lists[target]
    house.serve({"plants": [ANN, BEN]})
    assert house.rows("SELECT users FROM org_workflow WHERE flow_id = '1'") == [(1,)]
    house.upstream.says = lambda target, n: lists[target]
    house.serve({"plants": [ANN, BEN]})
    assert house.rows("SELECT users FROM org_workflow WHERE flow_id = '1'") == [(2,)]
    assert findings(engine) == []


def test_states_do_not_overlap_when_an_earlier_answer_is_judged_later(engine: Engine) -> None:
    """Ben's first answer has arrived when Ann's run ends, and is judged by the end of his own."""
    store = Store(engine)

    def begun(minutes: int) -> int:
        run_id = store.begin_run(NewRun(origin="command", host="here", pid=1, targets=1), after(minutes=minutes))
        assert run_id is not None
        return run_id

    def hear(run_id: int, target: Target, flows: list[Flow], minutes: int) -> None:
        [fence] = store.fences([target])
        told = judged(store, fence, snapshot(flows, after(minutes=minutes), target=target))
        assert store.apply(run_id, [told], UNCHECKED) == set()

    def end(run_id: int, minutes: int) -> None:
        store.derive_events(run_id, after(minutes=minutes - 3), lambda: after(minutes=minutes))
        assert store.finish_run(run_id, "succeeded", {}, after(minutes=minutes))

    for minutes in (0, 10):
        run_id = begun(minutes)
        hear(run_id, ANN, [flow(1)], minutes + 1)
        end(run_id, minutes + 2)
    bens, anns = begun(20), begun(20)
    hear(anns, ANN, [], 25)
    end(anns, 26)
    hear(bens, BEN, [flow(1)], 22)
    end(bens, 27)
    with reading(engine) as connection:
        states = connection.execute(text("SELECT valid_from, valid_to FROM org_workflow_history ORDER BY 1")).all()
    counted = list(STATES.rows(engine, at=after(minutes=23)))
    assert len(states) == 2
    assert states[0].valid_to == states[1].valid_from
    assert len(counted) == 1


def test_first_lists_that_do_not_agree_are_judged_one_by_one(engine: Engine) -> None:
    """Bob was asked after Ann's answer had arrived, so the workflow was renamed in between."""
    story = Small(engine)
    story.hear(ann="1")
    story.state.answered("bob", {"1": Listed("another name", "D", True)}, Answer(story.at + 2, story.at + 3))
    story.end()
    assert events_in(engine) == [("renamed", "1")]


def test_what_users_are_told_differently_for_good_is_said_once_and_read_when_it_is_due(engine: Engine) -> None:
    story = Small(engine, coverage_gap=3 * HOUR)
    for _ in range(4):
        story.hear(ann={"1": "one name"}, bob={"1": "another"})
        story.end()
    assert events_in(engine) == [("renamed", "1")]
    with reading(engine) as connection:
        assert story_rows.due_organisations(connection, 10**6, moment(story.at + HOUR)) == []
        assert story_rows.due_organisations(connection, 10**6, moment(story.at + 4 * HOUR)) == [("o1", 2)]


def test_a_quiet_run_reads_its_targets_and_nothing_of_what_users_are_told_differently(engine: Engine) -> None:
    house = House(engine)
    for user in house.upstream.lists:
        house.upstream.lists[user] = [flow(number, f"{number} for {user}") for number in range(50)]
    lists = {"all": list(house.upstream.lists)}
    for _ in range(3):
        house.serve(lists)
    sent: list[str] = []
    rows: list[Any] = []

    def count(_: Any, cursor: Any, statement: str, *rest: Any) -> None:
        sent.extend([] if statement.startswith("BEGIN") else [statement])
        if engine.dialect.name == "sqlite":
            cursor.row_factory = lambda _, row: rows.append(row) or row
        else:
            cursor.row_factory = counted(cursor.row_factory)

    def counted(factory: Any) -> Any:
        def made(cursor: Any) -> Any:
            make = factory(cursor)
            return lambda values: rows.append(values) or make(values)

        return made

    event.listen(engine, "before_cursor_execute", count)
    house.serve(lists)
    assert len(sent) <= 12, sent
    assert len(rows) <= 3 * len(house.upstream.lists) + 5, rows


def test_a_step_that_changes_nothing_writes_nothing(engine: Engine) -> None:
    story = Small(engine)
    story.hear(ann="1", bob="1")
    story.end()
    story.hear(ann="1", bob="1")
    story.end()
    with reading(engine) as connection:
        assert connection.scalar(select(func.count()).select_from(org_step)) == 1
        assert story_rows.due_organisations(connection, 10**6, after(days=99)) == []


def main() -> None:
    """Run every world, seed after seed, until stopped."""
    for seed in itertools.count(1):
        for name, setting in (ORDINARY | DIFFICULT).items():
            with tempfile.TemporaryDirectory() as folder:
                engine = connect(f"sqlite:///{folder}/story.db")
                upgrade(engine)
                print(seed, name, played(engine, setting, seed, runs=12), flush=True)
                engine.dispose()


if __name__ == "__main__":
    main()
