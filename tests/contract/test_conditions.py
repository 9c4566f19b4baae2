"""The conditions that the database knows, and how they are stored: each begins once and ends once."""

from __future__ import annotations

import datetime as dt
import errno
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from etl import signing
from etl.config.units import interval_or_off
from etl.database import file_of, reading, writing
from etl.database.errors import cannot_open
from etl.domain import verdict
from etl.domain.model import Target
from etl.errors import DatabaseError, Refused
from etl.report import condition_checks, health
from etl.report.conditions import Condition
from etl.service.maintenance import ConditionWatcher
from etl.service.verification import Verification, _Stopped
from etl.signing.keys import SigningKey
from etl.store import NewRun, RunBegun, Store
from tests.support.builders import START, UNCHECKED, Diary, numbered
from tests.support.logs import capture_logs
from tests.support.program import ORG

NOW = START + dt.timedelta(days=1)
FRESH = Target(ORG, "fresh")
ONE_COMMAND = NewRun(origin="command", host="here", pid=1, targets=0)
HTML = "the body is no JSON but HTML"


def fail(engine: Engine, users: Sequence[str], code: str, message: str) -> None:
    with writing(engine) as connection:
        for user in users:
            connection.execute(
                text(
                    "INSERT INTO target (org_id, user_id, consecutive_failures, last_error_code, last_error) "
                    "VALUES (:org, :user, 3, :code, :message)"
                ),
                {"org": ORG, "user": user, "code": code, "message": message.format(user=user)},
            )


def codes(engine: Engine) -> list[tuple[str, int]]:
    return [(each.code, each.subjects) for each in health.read(engine, [], NOW).conditions()]


REFUSES = "the connection is refused"


@pytest.mark.parametrize(
    ("failures", "expected"),
    [
        ([("connection", 5), ("http_503", 2)], [("gateway_down", 7, f"7 targets: connection ({REFUSES})")]),
        ([("connection", 1), ("62101", 1)], [("gateway_down", 1, None), ("targets_refused", 1, None)]),
        ([("connection", 1), ("malformed", 1)], [("targets_failing", 1, None)] * 2),
        (
            [("1003", 63), ("gateway_down", 237), ("62101", 1)],
            [("credentials_refused", 300, f"300 targets: 1003 ({REFUSES})"), ("targets_refused", 1, None)],
        ),
        (
            [("1003", 1), ("http_503", 2), ("gateway_down", 3)],
            [("gateway_down", 5, f"5 targets: http_503 ({REFUSES})"), ("credentials_refused", 1, None)],
        ),
        ([("http_503", 23), ("deadline", 1)], [("gateway_down", 24, f"24 targets: http_503 ({REFUSES})")]),
        (
            [("http_503", 23), ("deadline", 1), ("malformed", 1)],
            [("targets_failing", 24, f"24 targets: http_503 ({REFUSES})"), ("targets_failing", 1, None)],
        ),
        (
            [("connection", 2), ("gateway_down", 5), ("malformed", 1)],
            [("gateway_down", 7, f"7 targets: connection ({REFUSES})"), ("targets_failing", 1, None)],
        ),
    ],
)
def test_no_answer_for_any_target_is_one_condition_the_gateway_is_down(
    engine: Engine, failures: list[tuple[str, int]], expected: list[tuple[str, int, str | None]]
) -> None:
    """Whether a run gave up, or had too few targets for that."""
    for code, number in failures:
        fail(engine, [f"{code}-{n}" for n in range(number)], code, REFUSES)
    found = [each for each in health.read(engine, [], NOW).conditions() if each.code != "targets_unscheduled"]
    assert [(each.code, each.subjects) for each in found] == [each[:2] for each in expected]
    assert all(each.first == tuple(sorted(each.first)) for each in found)
    assert all(said in (None, each.summary) for each, (_, _, said) in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("codes", "began"),
    [(["malformed"] * 3, 0), (["62109", "malformed", "malformed"], 1), (["dns", "timeout", "http_503"], 0)],
)
def test_a_cause_began_with_its_own_first_failure_in_a_row(engine: Engine, codes: list[str], began: int) -> None:
    """The target was not observed before for another reason."""
    store = Store(engine)
    for hour, code in enumerate(codes):
        at = START + dt.timedelta(hours=hour)
        run_id = store.begin_run(NewRun(origin="command", host="here", pid=1, targets=1), at)
        assert run_id is not None
        [fence] = store.fences([FRESH], run=RunBegun(run_id, at))
        store.apply(run_id, [verdict.failed(fence, Refused("it failed", code=code))], UNCHECKED)
    [found] = [each for each in health.read(engine, [], NOW).conditions() if each.code != "targets_unscheduled"]
    assert found.since == START + dt.timedelta(hours=began)


def test_a_target_of_no_schedule_that_was_not_retired_is_reported(engine: Engine) -> None:
    fail(engine, ["gone"], "malformed", HTML)
    assert ("targets_unscheduled", 1) in codes(engine)
    with writing(engine) as connection:
        connection.execute(text("UPDATE target SET retired_at = :at"), {"at": "2026-03-01 00:00:00.000000"})
    assert codes(engine) == []


class Watched:
    """A watch over one engine, with its log."""

    def __init__(self, engine: Engine) -> None:
        self.own: list[Condition] = []
        self.engine = engine
        self.watcher = self.another()

    def another(self) -> ConditionWatcher:
        return ConditionWatcher(
            Store(self.engine),
            active=lambda: True,
            read=lambda: health.read(self.engine, [], NOW),
            own=lambda: self.own,
            clock=lambda: NOW,
        )

    def check(self, watcher: ConditionWatcher | None = None) -> list[tuple[str, str]]:
        watcher = watcher or self.watcher
        watcher._not_before = 0.0
        with capture_logs() as said:
            watcher.check()
        return [(each["event"], each["code"]) for each in said if each["event"].startswith("condition_")]


def test_a_condition_begins_once_and_ends_once_also_over_a_restart_and_where_it_cannot_be_stored(
    engine: Engine,
) -> None:
    watched = Watched(engine)
    for code, restarts in (("receiver_failing", True), ("database_full", False)):
        watched.own = [Condition(code, "mail was not told", "mail", subjects=1)]
        assert watched.check() == [("condition_began", code)]
        assert watched.check() == []
        again = watched.another() if restarts else watched.watcher
        assert watched.check(again) == []
        watched.own = []
        assert watched.check(again) == [("condition_ended", code)]
        assert watched.check() == []


def test_others_read_what_only_the_active_service_knows_while_it_is_active(engine: Engine) -> None:
    watched = Watched(engine)
    watched.own = [Condition("schedules_broken", "plants.toml: no TOML")]
    watched.check()
    assert codes(engine) == []
    assert Store(engine).take_lease("service", "me")
    found = health.read(engine, [], dt.datetime.now(dt.UTC)).conditions()
    assert [(each.code, each.summary, each.since) for each in found] == [
        ("schedules_broken", "plants.toml: no TOML", NOW)
    ]
    watched.own = []
    watched.check()
    assert health.read(engine, [], dt.datetime.now(dt.UTC)).conditions() == []


def test_receivers_are_owed_a_beginning_and_then_its_end_and_neither_where_it_ended_before(engine: Engine) -> None:
    watched, store = Watched(engine), Store(engine)
    failing = [Condition("receiver_failing", "mail was not told", "mail")]
    for watched.own, ended_at in ((failing, None), ([], NOW)):
        watched.check()
        [owed] = store.unnotified_conditions()
        assert (owed.condition.code, owed.ended_at) == ("receiver_failing", ended_at)
        store.mark_conditions_notified([owed], NOW)
        assert store.unnotified_conditions() == []
    for watched.own in (failing, []):
        watched.check()
    assert store.unnotified_conditions() == []


def verification(engine: Engine, now: dt.datetime, every: str | None = "1d", **more: Any) -> Verification:
    settings: dict[str, Any] = {"every": interval_or_off(every), "full": None, "active": lambda: True, **more}
    return Verification(engine, Store(engine), clock=lambda: now, **settings)


def test_a_finding_of_the_service_s_own_check_is_a_condition_until_a_check_finds_none(
    engine: Engine, diary: Diary
) -> None:
    diary.answer(numbered(1, 3), START, FRESH)
    verification(engine, NOW).check_if_due()
    [checked] = Store(engine).verified()
    assert (checked.targets, checked.change_sets, checked.findings) == (1, 1, 0)
    with writing(engine) as connection:
        connection.execute(text("UPDATE workflow SET flow_name = 'forged'"))
    with capture_logs() as said:
        verification(engine, NOW + dt.timedelta(days=1)).check_if_due()
    assert [each["event"] for each in said] == ["trail_broken", "verified"]
    assert "trail_broken" in [code for code, _ in codes(engine)]
    with writing(engine) as connection:
        connection.execute(text("UPDATE workflow SET flow_name = 'one'"))
    Store(engine).keep_verified(checked._replace(ended_at=NOW + dt.timedelta(days=2)))
    assert "trail_broken" not in [code for code, _ in codes(engine)]


def test_the_service_checks_signatures_with_the_keys_that_it_was_given(engine: Engine, tmp_path: Path) -> None:
    own, stranger = (_key(tmp_path / name) for name in ("own.pem", "stranger.pem"))
    store = Store(engine, sign=stranger.sign)
    store.finish_run(store.begin_run(ONE_COMMAND, NOW) or 0, "succeeded", Counter(), NOW)
    checks = [((), 0), ([stranger.public], 0), ([own.public], 1), ([own.public, stranger.public], 0)]
    for days, (keys, findings) in enumerate(checks):
        verification(engine, NOW + dt.timedelta(days=days), full=dt.timedelta(days=1), keys=keys).check_if_due()
        assert {each.kind: each.findings for each in Store(engine).verified()}["full"] == findings


def _key(file: Path) -> SigningKey:
    signing.generate_key(file)
    return signing.load_signing_key(file)


def sealed_run(engine: Engine) -> int:
    """Write a run without targets; return the number of its seal."""
    store = Store(engine)
    run_id = store.begin_run(ONE_COMMAND, NOW)
    assert run_id is not None
    store.finish_run(run_id, "succeeded", Counter(), NOW)
    with reading(engine) as connection:
        return int(connection.execute(text("SELECT max(id) FROM run_seal")).scalar_one())


def test_a_check_of_what_is_new_begins_at_the_last_verified_seal_and_after_a_finding_with_the_first(
    engine: Engine,
) -> None:
    day, week = dt.timedelta(days=1), dt.timedelta(days=7)

    def checked(days: int) -> tuple[str, int, int]:
        now = NOW + days * day
        verification(engine, now, full=week).check_if_due()
        [done] = [each for each in Store(engine).verified() if each.ended_at == now]
        return done.kind, done.last_seal, done.findings

    sealed_run(engine)
    assert checked(0) == ("full", 1, 0)
    alter = "UPDATE sync_run SET missed_slots = :missed WHERE id = (SELECT run_id FROM run_seal WHERE id = 1)"
    with writing(engine) as connection:
        connection.execute(text(alter), {"missed": 9})
    assert sealed_run(engine) == 2
    assert checked(1) == ("trail", 2, 0), "seal 1 was verified before it was altered"
    assert checked(7)[::2] == ("full", 1)
    assert checked(8)[::2] == ("full", 1), "what was found is looked for until it is mended"
    with writing(engine) as connection:
        connection.execute(text(alter), {"missed": 0})
    assert checked(9) == ("full", 2, 0)
    assert checked(10) == ("trail", 2, 0)


@pytest.mark.parametrize(("every", "hours", "checks"), [("1d", 23, 0), ("1d", 24, 1), ("off", 9999, 0), ("1d", -30, 1)])
def test_the_trail_is_checked_when_a_check_is_due(engine: Engine, every: str, hours: int, checks: int) -> None:
    """Also where the last one was dated by a clock that was ahead."""
    verification(engine, NOW).check_if_due()
    later = NOW + dt.timedelta(hours=hours)
    verification(engine, later, every).check_if_due()
    assert (Store(engine).verified()[0].ended_at == later) == bool(checks)


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_a_check_ends_while_it_reads_times_where_another_replica_is_active(engine: Engine) -> None:
    """The times are read first, so not even a target has been checked."""
    active = iter([True])
    with pytest.raises(_Stopped):
        verification(engine, NOW, active=lambda: next(active, False)).check_if_due()
    assert Store(engine).verified() == []


def test_a_standby_checks_nothing_and_a_check_that_never_ends_is_reported(engine: Engine) -> None:
    verification(engine, NOW, active=lambda: False).check_if_due()
    assert Store(engine).verified() == []
    now = [NOW]
    stuck = Verification(
        engine, Store(engine), active=lambda: True, clock=lambda: now[0], every=dt.timedelta(days=1), full=None
    )
    stuck.check_if_due()
    assert stuck.condition() is None
    now[0] += dt.timedelta(days=2, seconds=1)
    found = stuck.condition()
    assert found is not None
    assert found.code == "verify_overdue"


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_a_disk_that_the_kernel_stopped_writing_to_is_known_to_every_reader(engine: Engine, monkeypatch) -> None:
    """After an error, ext4 refuses every new file although its mount still counts as writable."""
    assert list(condition_checks.of_the_disk(engine)) == []

    def refuse(**_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("etl.system.disk.tempfile.TemporaryFile", refuse)
    assert [each.code for each in condition_checks.of_the_disk(engine)] == ["database_read_only"]
    known = cannot_open("flowtrail.db", "unable to open database file", file_of(engine.url))
    assert known.condition == "database_read_only"
    assert "may only be read" in str(known)


@pytest.mark.parametrize(
    ("statement", "code"),
    [
        ("DO $$ BEGIN RAISE EXCEPTION 'no space' USING ERRCODE = '53100'; END $$", "database_full"),
        ("SET TRANSACTION READ ONLY; DELETE FROM target", "database_read_only"),
    ],
)
@pytest.mark.parametrize("dialect", ["postgresql"])
def test_an_error_of_the_database_is_known_by_its_code(engine: Engine, statement: str, code: str) -> None:
    with pytest.raises(DatabaseError) as raised, writing(engine) as connection:
        connection.exec_driver_sql(statement)
    assert raised.value.condition == code
