"""Who agreed to a change: docs/acknowledge.md has a table of cases, and each event has the ticket that it gives."""

from __future__ import annotations

import datetime as dt
import random
import re
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from sqlalchemy import Engine, insert, select, text

from etl.audit import Extent, check, write_bundle
from etl.database import reading, writing
from etl.domain.kinds import DELTA_KINDS, EVENT_KINDS
from etl.domain.model import Target
from etl.errors import DatabaseError, UsageError
from etl.report.listings import ACKNOWLEDGEMENTS, CHANGES, EVENTS
from etl.schema import acknowledgement, change_set, org_event, target, workflow_change
from etl.store import NewAcknowledgement, Store, acknowledgements, copy
from etl.verify import verify
from tests.organisation.mirror import MirroredSimulation, moment
from tests.organisation.settings import DAY, MINUTE
from tests.organisation.world import HOUR, START, Schedule, Setting
from tests.support.builders import numbered
from tests.support.intruder import tamper
from tests.support.questions import now
from tests.support.trails import ANN, House, findings

PAGE = (Path(__file__).parents[2] / "docs" / "acknowledge.md").read_text("utf-8")
CASES = re.findall(r"^\| (\d+) \| (.*?) \| (.*?) ?\| (none|\d) \|$", PAGE, re.MULTILINE)
NOON = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
NOTED = dict.fromkeys(("flow_id", "user_id", "kind", "after", "until", "ticket", "note"))


def at(clock: str) -> dt.datetime:
    return NOON.replace(hour=int(clock[:2]), minute=int(clock[3:]))


def made_of(number: str, said: str, first: int) -> dict[str, Any]:
    """The row of an acknowledgement as a case writes it."""
    row: dict[str, Any] = {**NOTED, "org_id": f"o{number}", "revokes": None}
    if said.startswith("-"):
        return row | {"revokes": first + int(said[1:])}
    scope, *words = said.split()
    row["flow_id"] = None if scope == "*" else f"{scope}{number}"
    for word, value in pairwise([*words, ""]):
        if word in ("after", "until"):
            row[word] = at(value)
        elif word == "of" and value != "another":
            row["user_id"] = value
        elif word == "of":
            row["org_id"] = "another"
        elif word in (*EVENT_KINDS, *DELTA_KINDS):
            row["kind"] = word
    return row


def test_every_case_of_the_page(engine: Engine) -> None:
    """Each in an organisation of its own."""
    made: list[dict[str, Any]] = []
    expected, found = {}, {}
    with writing(engine) as connection:
        for number, event, said, counts in CASES:
            first = len(made)
            for each in filter(None, said.replace("`", "").split("; ")):
                made.append(made_of(number, each, first) | {"id": len(made) + 1, "made_by": "ada", "made_at": NOON})
            expected[f"o{number}"] = None if counts == "none" else first + int(counts)
            insert_event(connection, number, *event.split())
        for row in made:
            row["ticket"] = None if row["revokes"] else f"T{row['id']}"
        connection.execute(insert(acknowledgement), made)
    assert len(expected) == 29
    for listed in (EVENTS.rows(engine), CHANGES.rows(engine)):
        for each in listed:
            found[each.org_id] = each.ticket and int(each.ticket[1:])
            assert (each.acknowledged_by, each.acknowledged_at) == (("ada", NOON) if each.ticket else (None, None))
    assert found == expected


def insert_event(connection: Any, number: str, kind: str, user: str | None = None) -> None:
    """An event of the organisation, or, if no event is of this kind, a change of a user's list."""
    which = {"flow_id": f"w{number}", "kind": kind}
    between = {"last_unchanged_at": at("10:00"), "observed_at": at("11:00")}
    if kind in EVENT_KINDS:
        row = {**which, **between, "run_id": 1, "org_id": f"o{number}", "user_id": user, "decided_at": NOON}
        row |= {"users_before": 1, "users_after": 1, "proven_for_all": True, "unheard": 0}
        connection.execute(insert(org_event), row)
        return
    identity, first = int(number), kind == "baseline"
    connection.execute(insert(target), {"id": identity, "org_id": f"o{number}", "user_id": user})
    row = {"id": identity, "target_id": identity, "run_id": 1, "observed_at": at("11:00"), "asked_at": at("11:00")}
    row |= {"version": 1 if first else 2, "kind": "baseline" if first else "delta", "format": 1}
    row |= {"last_unchanged_at": None if first else at("10:00")}
    row |= dict.fromkeys(("state_digest", "data_hash", "parent_hash", "hash"), "0" * 64)
    connection.execute(insert(change_set), row)
    connection.execute(insert(workflow_change), {"change_set_id": identity, **which})


# --------------------------------------------------------------------------------------------------- a random month


class Agreed(NamedTuple):
    """What was acknowledged, as the oracle remembers it."""

    number: int
    scope: Mapping[str, Any]


def ticket_of(event: Any, agreed: Sequence[Agreed]) -> str | None:
    """The ticket by the words of the page: the latest that covers the event, of those that were not revoked."""
    for number, scope in reversed(agreed) if event.kind != "baseline" else ():
        named = {name: scope[name] for name in ("flow_id", "user_id", "kind") if scope.get(name) is not None}
        is_named = all(getattr(event, name) == value for name, value in named.items())
        begins = scope.get("after") is None or event.observed_at > scope["after"]
        ends = scope.get("until") is None or event.last_unchanged_at < scope["until"]
        if is_named and begins and ends:
            return f"T{number}"
    return None


class Month:
    """Somebody who announces and accepts a random half of what happens, and sometimes thinks better of it."""

    def __init__(self, engine: Engine, seed: int) -> None:
        self.engine, self.chance = engine, random.Random(seed)
        self.store = Store(engine)
        self.agreed: list[Agreed] = []
        self.last = self.numbers = 0

    def after_a_run(self, today: dt.datetime) -> None:
        with reading(self.engine) as connection:
            new = connection.execute(select(org_event).where(org_event.c.event_id > self.last)).all()
        self.last = max((each.event_id for each in new), default=self.last)
        for each in new:
            if self.chance.random() < 0.5:
                self.agree(self.accepting(each))
        for each in self.chance.sample(new, min(1, len(new))):
            self.agree({"flow_id": each.flow_id, "after": today, "until": today + dt.timedelta(days=3)})
        if self.chance.random() < 0.1:
            self.agree({"kind": self.chance.choice(EVENT_KINDS), "until": today})
        if self.agreed and self.chance.random() < 0.3:
            revoked = self.chance.choice(self.agreed)
            self.store.revoke(revoked.number, "ben", "by mistake", now())
            self.agreed.remove(revoked)
            self.numbers += 1

    def accepting(self, event: Any) -> dict[str, Any]:
        exactly = {"flow_id": event.flow_id, "user_id": event.user_id, "kind": event.kind}
        exactly |= {"after": event.last_unchanged_at, "until": event.observed_at}
        some = self.chance.sample(sorted(exactly), self.chance.choice([3, 5, 5]))
        return {name: exactly[name] for name in some}

    def agree(self, scope: dict[str, Any]) -> None:
        self.numbers += 1
        new = NewAcknowledgement(made_by="ada", org_id="o1", ticket=f"T{self.numbers}", **scope)
        assert self.store.acknowledge([new], now()).last == self.numbers
        self.agreed.append(Agreed(self.numbers, scope))


def daily(users: list[str]) -> list[Schedule]:
    return [Schedule(tuple(users), DAY, 10 * MINUTE, MINUTE, 36 * HOUR)]


def test_every_event_of_a_month_has_the_ticket_that_the_page_gives_it(engine: Engine) -> None:
    setting = Setting(users=4, workflows=12, schedules=daily, changes_an_hour=0.4, failing=0.1)
    simulation, month = MirroredSimulation(setting, 5, engine), Month(engine, 5)
    for _ in simulation.run(START + 30 * DAY):
        month.after_a_run(moment(simulation.now))
    for listed in (EVENTS, CHANGES):
        rows = list(listed.rows(engine))
        expected = [ticket_of(row, month.agreed) for row in rows]
        assert [row.ticket for row in rows] == expected
        assert 0.2 < expected.count(None) / len(expected) < 0.8
        by = {(row.ticket is None, row.acknowledged_by, row.acknowledged_at is None) for row in rows}
        assert by == {(True, None, True), (False, "ada", False)}


# ------------------------------------------------------------------------------------------------------ how it is made


def test_one_that_does_not_count_cannot_be_revoked(engine: Engine) -> None:
    house = House(engine)
    house.acknowledge({"ticket": "T1"})
    house.store.revoke(1, "ben", None, now())
    for number, why in ((1, "is revoked already"), (2, "2 revokes 1, and stays"), (3, "There is no acknowledgement 3")):
        with pytest.raises(UsageError, match=why):
            house.store.revoke(number, "ben", None, now())
    house.serve({"plants": [ANN]})
    assert findings(engine) == []


def test_what_was_acknowledged_cannot_be_altered_or_replaced(engine: Engine) -> None:
    house = House(engine)
    house.acknowledge({"ticket": "T1"}, {})
    house.store.revoke(2, "ben", None, now())
    columns = "id, made_at, made_by, org_id"
    for statement in (
        "UPDATE acknowledgement SET ticket = 'T2'",
        "DELETE FROM acknowledgement",
        f"INSERT INTO acknowledgement ({columns}, revokes) SELECT 9, made_at, made_by, org_id, 2 FROM acknowledgement",
        f"INSERT INTO acknowledgement ({columns}) SELECT id, made_at, made_by, org_id FROM acknowledgement",
    ):
        with pytest.raises(DatabaseError), writing(engine) as connection:
            connection.execute(text(statement))


@pytest.mark.parametrize("runs", [0, 1])
def test_a_seal_covers_what_was_made_since_the_seal_before_whatever_the_clock_says(engine: Engine, runs: int) -> None:
    house = House(engine)
    future = now() + dt.timedelta(days=1)
    for _ in range(runs):
        house.upstream.clock = lambda: future
        house.serve({"plants": [ANN]})
    house.upstream.clock = now
    house.acknowledge({"ticket": "T1"}, {"ticket": "T2"})
    house.acknowledge({"ticket": "T3"})
    house.serve({"plants": [ANN]})
    house.acknowledge({"ticket": "T4"})
    house.serve({"plants": [ANN]})
    house.acknowledge({"ticket": "T5"})
    query = """SELECT s.id, a.ticket FROM run_seal s LEFT JOIN acknowledgement a
               ON a.made_at <= s.sealed_at AND a.made_at > coalesce(
                   (SELECT b.sealed_at FROM run_seal b WHERE b.id = s.id - 1), '0001-01-01') ORDER BY a.id"""
    covered = [(number - runs, ticket) for number, ticket in house.rows(query) if ticket]
    assert covered == [(1, "T1"), (1, "T2"), (1, "T3"), (2, "T4")]
    assert findings(engine) == []
    house.acknowledge({"ticket": "T6"})
    tamper(engine, "DELETE FROM acknowledgement WHERE ticket = 'T5'")
    assert [each for each in findings(engine) if "acknowledgement.id should be 5, but is 6" in each]


def test_many_at_once_and_runs_that_end_meanwhile_leave_no_gap_and_one_seal_for_each(engine: Engine) -> None:
    house = House(engine)
    house.serve({"plants": [ANN]})

    def agree(name: int) -> None:
        for number in range(6):
            house.acknowledge({"ticket": f"{name}.{number}"}, {"note": "with it"})

    with ThreadPoolExecutor(3) as people:
        agreeing = [people.submit(agree, name) for name in range(3)]
        while not all(each.done() for each in agreeing):
            house.serve({"plants": [ANN]})
        assert [each.result() for each in agreeing] == [None] * 3
    assert house.rows("SELECT min(id), max(id), count(*) FROM acknowledgement") == [(1, 36, 36)]
    house.serve({"plants": [ANN]})
    assert findings(engine) == []
    assert [str(each) for each in verify(engine, since=1)] == []


def test_a_copy_seals_what_was_not_sealed_before(engine: Engine, other: Engine) -> None:
    house = House(engine)
    house.serve({"plants": [ANN]})
    house.acknowledge({"ticket": "T1"})
    copy.copy(engine, other)
    assert findings(other) == []
    there = House(other)
    there.acknowledge({"ticket": "T2"})
    there.serve({"plants": [ANN]})
    assert [row.ticket for row in ACKNOWLEDGEMENTS.rows(other)] == ["T1", "T2"]
    assert findings(other) == []
    tamper(other, "DELETE FROM acknowledgement WHERE id = 1")
    assert "run_seal.acknowledgements_digest" in findings(other)[0]


def test_a_lost_commit_is_looked_up(engine: Engine) -> None:
    house = House(engine)
    with writing(engine) as connection:
        new = [NewAcknowledgement(made_by="ada", org_id="o1")] * 2
        made = acknowledgements.acknowledge(connection, new, now())
    with reading(engine) as connection:
        assert acknowledgements.were_acknowledged(connection, made)
        again = msgspec.structs.replace(made, at=made.at + dt.timedelta(microseconds=1))
        assert not acknowledgements.were_acknowledged(connection, again)
    house.serve({"plants": [ANN]})


def test_a_bundle_of_one_organisation_proves_its_acknowledgements_and_shows_no_other(
    engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    house, eve = House(engine), Target("o2", "eve")
    house.upstream.lists[eve] = numbered(1, 3)
    house.serve({"plants": [ANN]})
    house.acknowledge({"ticket": "T1"}, {"ticket": "T2"})
    house.store.acknowledge([NewAcknowledgement(made_by="wu", org_id="o2", note="secret")], now())
    house.serve({"wind": [eve]})
    house.store.revoke(2, "ben", None, now())
    house.serve({"plants": [ANN]})

    def checked() -> tuple[int, str]:
        with (tmp_path / "bundle.zip").open("wb") as file:
            write_bundle(engine, file, Extent(org_id="o1"), now())
        return check.main([str(tmp_path / "bundle.zip")]), capsys.readouterr().out

    code, printed = checked()
    assert code == 0, printed
    assert "Proven: acknowledgements: 3, by 'ada', 'ben'; 1 of them revoked." in printed
    assert "Not proven: that the 1 acknowledgements of which only a hash is here are of other" in printed
    with zipfile.ZipFile(tmp_path / "bundle.zip") as archive:
        assert not [name for name in archive.namelist() if name != "check.py" and b"secret" in archive.read(name)]
    tamper(engine, "UPDATE acknowledgement SET note = 'none' WHERE made_by = 'wu'")
    code, printed = checked()
    assert (code, "run 2 (seal 2): acknowledgements_digest" in printed) == (1, True)
