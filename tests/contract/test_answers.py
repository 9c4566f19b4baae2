"""The bytes that EnOS answered are kept where they made a version or were held, and ``verify`` reads them again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from etl.demo.world import World
from etl.domain.answers import data_of
from etl.domain.model import Flow, Target
from etl.report.runs import answer_of
from etl.verify import Answers, verify
from tests.support.builders import numbered
from tests.support.enos import LocalGateway
from tests.support.house import House

ANN, BEN = Target("o1", "ann"), Target("o1", "ben")


@pytest.fixture
def house(engine: Engine, database_url: str) -> Iterator[House]:
    with LocalGateway(World(orgs=0), shuffle=False) as upstream:
        house = House(engine, database_url, upstream, 4)
        house.keeps_answers = True
        house.see(ANN, numbered(1, 40))
        house.see(BEN, numbered(1, 40))
        house.sync(ANN, BEN, changed=2)
        yield house


def checked(house: House) -> tuple[list[str], Answers]:
    went = Answers()
    return [str(finding) for finding in verify(house.engine, answers=went)], went


def test_an_answer_is_kept_once_however_many_users_get_it(house: House) -> None:
    house.sync(ANN, BEN, unchanged=2)
    assert len(house.rows("SELECT * FROM answer")) == 1
    found, went = checked(house)
    assert (found, went.kept, went.versions, went.proven) == ([], 1, 2, 2)


def test_what_is_kept_is_what_data_hash_is_of_and_what_came(house: House) -> None:
    house.see(ANN, [Flow("9", '描述 "quoted" \\', "mi", None)])
    house.run(ANN)
    house.run(ANN, by="ada")
    found = answer_of(house.engine, ANN)
    assert found is not None
    assert found.kept is not None
    data = data_of(found.kept)
    assert hashlib.sha256(data).hexdigest() == found.data_hash
    assert [item["flowName"] for item in json.loads(data)] == ['描述 "quoted" \\']


def test_answers_of_holds_are_kept_from_the_first_to_the_approval(house: House) -> None:
    house.see(ANN, [*numbered(1, 5), Flow("new", "new", "D", True)])
    house.sync(ANN, held=1)
    house.see(ANN, [*numbered(1, 8), Flow("new", "new", "D", True)])
    house.sync(ANN, held=1)
    house.sync(ANN, by="ada", changed=1)
    hashes = {data_hash for (data_hash,) in house.rows("SELECT data_hash FROM hold_event")}
    assert hashes <= {data_hash for (data_hash,) in house.rows("SELECT data_hash FROM answer")}
    found, went = checked(house)
    assert (found, went.versions - went.proven) == ([], 0)


def test_without_the_setting_nothing_is_kept(house: House) -> None:
    house.keeps_answers = False
    house.see(ANN, numbered(1, 41))
    house.sync(ANN, changed=1)
    assert len(house.rows("SELECT * FROM answer")) == 1
    found, went = checked(house)
    assert (found, went.versions, went.proven) == ([], 3, 2)


def test_an_answer_that_does_not_give_its_version_is_found(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the program had misread it: nothing else would be wrong."""
    monkeypatch.setattr("etl.verify.answers._read", lambda *_: {"1": Flow("1", "another", "D", True)})
    found, went = checked(house)
    assert went.proven == 0
    assert found[0].startswith('o1/ann, version 1: workflow should be ["1","another"')
