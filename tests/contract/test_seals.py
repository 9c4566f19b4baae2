"""Every ended run is sealed, and any alteration of what a seal covers is found, on both databases."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import Engine, event

from etl import signing
from etl.database import writing
from etl.domain.model import Flow, Outcome, Target
from etl.errors import Refused, RunClosed, SigningError
from etl.report.asof import flows_as_of
from etl.report.listings import FLOWS
from etl.signing.keys import PublicKey, SigningKey
from etl.store import NewRun, Store, copy, membership
from etl.verify import (
    HeadsFile,
    Progress,
    Sealing,
    against,
    heads,
    last_seal,
    latest_seal_line,
    seal_lines,
    seals,
    verify,
)
from tests.support.builders import flow, numbered
from tests.support.databases import Fill
from tests.support.intruder import Intruder, tamper
from tests.support.questions import now
from tests.support.trails import ANN, BEN, CAT, DAN, House, Lists, change, die, findings, live
from tests.support.years import Clock


@pytest.fixture
def house(engine: Engine) -> House:
    return House(engine)


def test_an_untouched_trail_verifies_and_every_ended_run_has_its_seal(house: House) -> None:
    live(house)
    sealing = Sealing()
    assert [str(each) for each in verify(house.engine, sealing=sealing)] == []
    runs = house.rows("SELECT count(*) FROM sync_run WHERE status <> 'running'")[0][0]
    assert (sealing.seals, sealing.last, sealing.unsealed_runs) == (runs, runs, 0)
    kinds = house.rows("SELECT kind FROM target_membership ORDER BY id")
    assert [kind for (kind,) in kinds] == ["joined"] * 4 + ["left", "retired", "joined", "resumed", "left", "retired"]
    holds = house.rows("SELECT kind, flow_ids FROM hold_event ORDER BY id")
    assert holds == [("held", '["3","4","5","6"]'), ("back", '["3"]'), ("approved", '["4","5","6"]')]


def test_a_run_that_was_declared_dead_can_write_nothing_more(house: House) -> None:
    house.serve({"plants": [ANN]})
    run_id = die(house)
    [fence] = house.store.fences([ANN])
    for outcome in (
        Outcome(fence=fence, verdict="unchanged", span=fence.span, extends=True),
        Outcome(fence=fence, verdict="failed"),
    ):
        with pytest.raises(RunClosed):
            house.store.apply(run_id, [outcome])
    assert not house.store.finish_run(run_id, "succeeded", {}, now())
    assert findings(house.engine) == []


def test_a_run_that_was_declared_dead_reports_that_it_was_aborted(house: House) -> None:
    house.serve({"plants": [ANN]})

    def says(target: Target, n: int) -> Sequence[Flow]:
        change(house.engine, "UPDATE sync_run SET heartbeat_at = '2020-01-01 00:00:00.000000' WHERE status = 'running'")
        Store(house.engine).abort_abandoned_runs(now())
        return numbered(1, 7)

    house.upstream.says = says
    assert house.serve({"plants": [ANN]}).status == "aborted"
    assert house.rows("SELECT count(*) FROM change_set") == [(1,)]
    assert findings(house.engine) == []


def test_a_run_that_died_after_it_was_closed_is_sealed_by_the_next_to_find_it(house: House) -> None:
    run_id = house.store.begin_run(NewRun(origin="command", host="h", pid=1, targets=1), now(), [ANN])
    assert run_id is not None
    assert house.store.close_run(run_id, now())
    change(house.engine, "UPDATE sync_run SET heartbeat_at = '2020-01-01 00:00:00.000000'")
    assert house.store.abort_abandoned_runs(now()) == [run_id]
    assert house.rows("SELECT id, run_id FROM run_seal") == [(1, run_id)]
    assert findings(house.engine) == []


def test_the_members_of_a_schedule_are_read_once_while_nothing_changes(house: House) -> None:
    """Also where schedules take turns, and each run is a process of its own."""
    lists: list[Lists] = [{"plants": [ANN, BEN]}, {"wind": [CAT]}]
    for each in [*lists, *lists]:
        house.serve(each)
    sent: list[str] = []
    event.listen(house.engine, "before_cursor_execute", lambda c, cursor, statement, *rest: sent.append(statement))
    for each in lists:
        store, (asked,) = Store(house.engine), each.values()
        run = NewRun(origin="command", host="h", pid=1, targets=len(asked), lists=each)
        store.finish_run(store.begin_run(run, now(), asked) or 0, "succeeded", {"unchanged": len(asked)}, now())
    assert not [each for each in sent if "JOIN target_membership" in each]
    statements = [each for each in sent if not each.startswith(("BEGIN", "SET"))]
    assert len(statements) == 2 * (2 + 6), "a quiet run: begin, like which?; close, look, end, head, seal, moved"
    assert findings(house.engine) == []


@pytest.mark.parametrize(
    ("first", "between", "second", "expected"),
    [
        pytest.param(
            {"plants": [ANN, BEN], "wind": [CAT]},
            lambda house: None,
            {"plants": [ANN], "wind": [BEN, CAT]},
            [("plants", "left"), ("wind", "joined")],
            id="a-target-moves-to-another-schedule",
        ),
        pytest.param(
            {"plants": [ANN, BEN]},
            lambda house: house.store.retire_others({ANN}, now(), None),
            {"plants": [ANN, BEN]},
            [("plants", "left"), ("", "retired"), ("plants", "joined"), ("", "resumed")],
            id="a-target-was-retired-in-between",
        ),
        pytest.param(
            {"plants": [ANN, BEN]},
            lambda house: house.serve({"plants": [ANN, BEN, DAN]}),
            {"plants": [ANN, BEN]},
            [("plants", "joined"), ("plants", "left")],
            id="another-run-had-another-list",
        ),
        pytest.param(
            {"plants": [ANN, BEN, CAT]},
            lambda house: house.serve({"plants": [ANN, BEN]}, org="o2"),
            {"plants": [ANN, BEN]},
            [("plants", "left")],
            id="a-run-of-one-organisation-had-the-list-first",
        ),
        pytest.param(
            {"plants": [ANN]},
            lambda house: house.run([ANN, BEN]),
            {"plants": [ANN, BEN]},
            [("plants", "joined")],
            id="a-run-asked-the-same-targets-by-name",
        ),
        pytest.param(
            {"plants": [ANN, BEN]},
            lambda house: retires_while_a_run_begins(house, BEN),
            {"plants": [ANN, BEN]},
            [("plants", "left"), ("", "retired"), ("plants", "joined"), ("", "resumed")],
            id="a-target-was-retired-after-the-run-before-had-begun",
        ),
    ],
)
def test_what_changed_in_a_list_since_the_run_before_is_recorded(
    house: House, first: Lists, between: Callable[[House], object], second: Lists, expected: list[tuple[str, str]]
) -> None:
    house.serve(first)
    [(seen,)] = house.rows("SELECT max(id) FROM target_membership")
    between(house)
    house.serve(second)
    recorded = f"SELECT coalesce(schedule, ''), kind FROM target_membership WHERE id > {seen} ORDER BY id"
    assert house.rows(recorded) == expected
    assert findings(house.engine) == []


def test_a_target_that_comes_back_while_the_clock_is_behind_has_its_list_from_then_on(house: House) -> None:
    clock = Clock()
    house.upstream.clock = clock
    house.serve({"plants": [ANN, DAN]})
    clock.move(hours=1)
    house.store.retire_others([ANN], clock(), None)
    clock.move(minutes=-30)
    house.serve({"plants": [ANN, DAN]})
    clock.move(hours=2)
    [*_, retired, joined, resumed] = house.rows("SELECT kind, at FROM target_membership ORDER BY id")
    assert [retired[0], joined[0], resumed[0]] == ["retired", "joined", "resumed"]
    assert retired[1] == joined[1] == resumed[1]
    now = list(FLOWS.rows(house.engine, user=DAN.user_id))
    then = list(flows_as_of(house.engine, clock(), user=DAN.user_id))
    assert [row.flow_id for row in then] == [row.flow_id for row in now] == list("123456")
    assert findings(house.engine) == []


def test_the_answer_of_a_target_that_was_retired_meanwhile_is_stale(house: House) -> None:
    """Whether it shows a change or none."""
    for listed in (numbered(1, 6), [*numbered(1, 6), flow(77)]):
        house.serve({"plants": [ANN, DAN]})

        def says(target: Target, n: int, listed: Sequence[Flow] = listed) -> Sequence[Flow]:
            house.store.retire_others([ANN], now(), None)
            return listed

        house.upstream.says = lambda target, n, says=says: says(target, n) if target == DAN else numbered(1, 6)
        assert house.serve({"plants": [ANN, DAN]}).tally.verdicts["stale"] == 1
        house.upstream.says = lambda target, n: numbered(1, 6)
    assert house.rows("SELECT max(version) FROM target") == [(1,)]
    assert findings(house.engine) == []


def retires_while_a_run_begins(house: House, target: Target) -> None:
    retiring = house.store.begin_run(NewRun(origin="maintenance", host="h", pid=1, targets=0), now())
    assert retiring is not None
    house.serve({"plants": [ANN, BEN]})
    with writing(house.engine) as connection:
        membership.retire(connection, retiring, [target], now())
    house.store.finish_run(retiring, "succeeded", {}, now())


# -------------------------------------------------------------------------------------------------------- tampering


@pytest.fixture
def lived(fill: Fill, house: House) -> House:
    """With everything in it; its upstream is that of a beginning."""
    fill("live", lambda engine, url: live(House(engine)))
    return house


@pytest.fixture
def intruder(lived: House) -> Iterator[Intruder]:
    with Intruder(lived.engine) as intruder:
        yield intruder


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    "table", ["sync_run", "sync_issue", "target_membership", "hold_event", "pruned_issues", "run_seal"]
)
def test_any_deleted_row_is_found(house: House, intruder: Intruder, table: str) -> None:
    for row in intruder.rows(table):
        intruder.delete(table, row)
        assert findings(house.engine), (table, row)
        intruder.insert(table, row)
    assert findings(house.engine) == []


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
@pytest.mark.parametrize("table", ["target_membership", "hold_event"])
def test_rows_of_a_target_that_exchange_their_ids_across_runs_are_found(
    house: House, intruder: Intruder, table: str
) -> None:
    """No digest differs, since each has the order within its run; but that order decides what was so at a time."""
    query = f"SELECT min(id) AS one, max(id) AS other FROM {table} GROUP BY target_id ORDER BY count(*) DESC LIMIT 1"
    one, other = intruder.run(query)[0].values()
    for old, new in ((one, 999), (other, one), (999, other)):
        intruder.run(f"UPDATE {table} SET id = :new WHERE id = :old", old=old, new=new)
    latest = intruder.run(f"SELECT at FROM {table} WHERE id = :id", id=one)[0]["at"]
    said = f"{table}.at should be {latest}+00:00 or later, the time of a row of the target with a lower id, but is "
    found = [each for each in findings(house.engine) if said in each]
    assert [each.startswith("run ") for each in found] == [True], found


def test_the_file_of_heads_gets_every_seal_once_and_against_compares_them(house: House, tmp_path: Path) -> None:
    file = HeadsFile(tmp_path / "heads.jsonl", house.engine)
    house.serve({"plants": [ANN]})
    file.catch_up(now())
    house.serve({"plants": [ANN]})
    file.catch_up(now())
    HeadsFile(file.path, house.engine).catch_up(now())
    lines = file.path.read_bytes().splitlines()
    kept = [msgspec.json.decode(line) for line in lines if b"trail_id" in line]
    assert [each["id"] for each in kept] == [1, 2]
    assert list(against(house.engine, lines)) == []
    assert kept == list(seal_lines(house.engine))
    assert list(latest_seal_line(house.engine)) == kept[1:]
    for altered in ({"seal": "0" * 64}, {"trail_id": "another"}, {"sealed_at": "2026-01-01T00:00:00Z"}, {"id": 7}):
        (finding,) = against(house.engine, [msgspec.json.encode({**kept[1], **altered})], is_whole=lambda: False)
        number = altered.get("id", 2)
        assert str(finding).endswith(f"altered, or restored from before seal {number}")


def test_a_target_that_never_answered_may_retire_and_come_back(house: House) -> None:
    lists, refused = house.upstream.lists, Refused("no", code="62101")
    house.upstream.says = lambda target, n: refused if target == BEN else lists[target]
    for _ in range(2):
        house.serve({"plants": [ANN, BEN]})
        house.store.retire_others([ANN], now(), None)
        assert findings(house.engine) == []
    house.upstream.says = lambda target, n: lists[target]
    house.serve({"plants": [ANN, BEN]})
    assert findings(house.engine) == []


def test_a_name_that_contains_trail_id_is_no_kept_seal(house: House) -> None:
    named = Target("o1", 'the "trail_id": 1', "trail_id")
    house.upstream.lists[named] = numbered(1, 2)
    house.serve({"plants": [ANN, named]})
    lines = [msgspec.json.encode(line) for line in (*heads(house.engine, now()), *seal_lines(house.engine))]
    assert list(against(house.engine, lines)) == []
    (finding,) = against(house.engine, [lines[-1][:-9] + b"}", *lines])
    assert finding.what == "line 1"


def test_a_trail_that_was_copied_goes_on_under_its_own_id(lived: House, other: Engine) -> None:
    copy.copy(lived.engine, other)
    there = House(other)
    there.serve({"plants": [ANN, BEN, DAN]})
    trails = there.rows("SELECT reason, first_seal, last_seal FROM trail ORDER BY id")
    last = trails[0][2]
    assert trails == [("new", 1, last), ("copied", last + 1, last + 1)]
    assert findings(other) == []
    kept = [msgspec.json.encode(line) for line in seal_lines(lived.engine)]
    assert list(against(other, kept, is_whole=lambda: False)) == []


def test_verify_since_a_seal_leaves_out_what_was_sealed_until_then(house: House) -> None:
    house.serve({"plants": [ANN]})
    house.serve({"plants": [ANN]})
    sealing = Sealing()
    assert list(seals(house.engine, since=1, sealing=sealing)) == []
    assert (sealing.seals, sealing.last) == (1, 2)
    assert [str(each) for each in seals(house.engine, since=9)] == ["run_seal should be a seal 9, but is missing"]


def test_a_check_after_a_seal_replays_the_lists_that_got_a_version_since(house: House) -> None:
    house.serve({"plants": [ANN, BEN]})
    last, through = last_seal(house.engine), list[Progress]()
    house.upstream.lists[ANN] = [*numbered(1, 5), flow(7)]
    house.serve({"plants": [ANN, BEN]})

    def found() -> int:
        through.clear()
        return len(list(verify(house.engine, since=last, progress=through.append)))

    assert (found(), through[-1].targets, through[-1].of_targets) == (0, 1, 1)
    forge = "UPDATE workflow SET flow_name = 'forged' WHERE flow_id = '1' AND target_id = (SELECT id FROM target {})"
    change(house.engine, forge.format("WHERE user_id = :user"), user=BEN.user_id)
    assert found() == 0
    assert findings(house.engine)
    change(house.engine, forge.format("WHERE user_id = :user"), user=ANN.user_id)
    assert found() == 1


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    signing.generate_key(tmp_path / "seal.pem")
    return signing.load_signing_key(tmp_path / "seal.pem")


@pytest.fixture
def signer(engine: Engine, key: SigningKey) -> House:
    return House(engine, key.sign)


def found(engine: Engine, *keys: PublicKey, since: int = 0) -> list[str]:
    return [str(finding) for finding in verify(engine, keys=keys, since=since)]


def test_of_a_stretch_of_seals_with_a_strange_key_the_first_is_named(
    signer: House, key: SigningKey, tmp_path: Path
) -> None:
    other = signing.generate_key(tmp_path / "other.pem")
    mine, others = key.sign, signing.load_signing_key(tmp_path / "other.pem").sign
    for signer.sign in (mine, mine, others, mine, mine):
        signer.serve({"plants": [ANN]})
    lines = found(signer.engine, other)
    assert [line.split(":")[0] for line in lines] == ["run 1 (seal 1)", "run 4 (seal 4)"]
    wanted = f"run_seal 1.key_id should be '{other.key_id}', the public key that was given"
    assert f"{wanted}, but is '{key.public.key_id}', from this seal on" in lines[0]


def test_a_key_may_be_replaced_and_then_both_are_needed(signer: House, key: SigningKey, tmp_path: Path) -> None:
    signer.serve({"plants": [ANN]})
    signing.generate_key(tmp_path / "next.pem")
    signer.sign = signing.load_signing_key(tmp_path / "next.pem").sign
    signer.serve({"plants": [ANN]})
    following = signing.load_public_key(tmp_path / "next.pem.pub")
    assert found(signer.engine, key.public, following) == []
    assert [line[:18] for line in found(signer.engine, following)] == ["run 1 (seal 1): ru"]
    assert found(signer.engine, following, since=1) == []


def test_a_signature_over_another_seal_is_found(signer: House, key: SigningKey) -> None:
    signer.serve({"plants": [ANN]})
    signer.serve({"plants": [ANN]})
    first = "SELECT signature FROM run_seal WHERE id = 1"
    tamper(signer.engine, f"UPDATE run_seal SET signature = ({first}) WHERE id = 2")
    [line] = found(signer.engine, key.public)
    assert line.startswith("run 2 (seal 2): run_seal 2.signature should be made with the key")


def test_an_unsigned_seal_after_a_signed_one_is_found_without_any_key(signer: House) -> None:
    signer.serve({"plants": [ANN]})
    signer.sign = None
    signer.serve({"plants": [ANN]})
    sentence = "run_seal 2.signature should be there, since a seal before it is signed, but is null"
    assert findings(signer.engine) == [f"run 2 (seal 2): {sentence}"]
    assert found(signer.engine, since=1) == findings(signer.engine)


def test_a_public_key_for_a_trail_without_signatures_is_a_finding(engine: Engine, key: SigningKey) -> None:
    House(engine).serve({"plants": [ANN]})
    assert found(engine, key.public) == [
        "run_seal.signature should be on some seal, since a public key was given, but is on none of 1"
    ]


def test_a_process_without_the_key_does_not_begin_what_it_could_not_sign(signer: House) -> None:
    Store(signer.engine).require_signing()
    signer.serve({"plants": [ANN]})
    with pytest.raises(SigningError, match=r"^The seals of this database are signed \(key \w{16}\).* key_file"):
        Store(signer.engine).require_signing()
    signer.store.require_signing()
