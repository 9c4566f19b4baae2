"""An external authority stamps seals, no run waits for it, and ``verify`` checks the stamps."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
from sqlalchemy import Engine

from etl import signing
from etl.errors import SigningError
from etl.service.verification import TimeStamps
from etl.signing.timestamps import TimeStamp
from etl.store import Store
from etl.verify import Sealing, verify
from tests.support.authority import Authority, served
from tests.support.intruder import tamper
from tests.support.questions import now
from tests.support.tamperings import IN_DATABASE
from tests.support.trails import ANN, House, change

DAY = dt.timedelta(days=1)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authorities") / "tsa")


@pytest.fixture
def house(engine: Engine) -> House:
    house = House(engine)
    house.serve({"plants": [ANN]})
    house.serve({"plants": [ANN]})
    return house


def stamped(house: House, authority: Authority) -> None:
    with served(authority.answer) as url:
        house.stamp_last_seal(signing.timestamps_by(url))


def found(house: House, authority: Authority | None = None) -> list[str]:
    trusted = None if authority is None else signing.load_authorities(authority.root)
    return [str(finding) for finding in verify(house.engine, authorities=trusted)]


def test_a_stamped_seal_is_verified_against_its_authority_and_against_no_other(
    house: House, authority: Authority, tmp_path: Path
) -> None:
    stamped(house, authority)
    went = Sealing()
    trusted = signing.load_authorities(authority.root)
    assert list(verify(house.engine, authorities=trusted, sealing=went)) == []
    assert (went.stamped, went.last_stamp and went.last_stamp[0]) == (1, 2)
    assert found(house) == []
    [line] = found(house, Authority(tmp_path / "stranger"))
    assert line.startswith(
        "run 2 (seal 2): seal_timestamp 2.token should be of an authority that is trusted, but is not"
    )


def test_a_seal_is_stamped_once_by_the_faster_of_two(house: House, authority: Authority) -> None:
    stamped(house, authority)
    assert not Store(house.engine).keep_timestamp(2, now(), b"another")
    assert house.rows("SELECT count(*) FROM seal_timestamp") == [(1,)]
    assert found(house, authority) == []


def test_a_time_stamp_can_be_neither_altered_nor_deleted(house: House, authority: Authority) -> None:
    stamped(house, authority)
    for statement in ("UPDATE seal_timestamp SET seal_id = 9", "DELETE FROM seal_timestamp"):
        with pytest.raises(Exception, match="append-only"):
            change(house.engine, statement)


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
@pytest.mark.parametrize("what", sorted(what for what in IN_DATABASE if what.startswith("a time stamp")))
def test_an_altered_time_stamp_is_found_with_the_certificates_of_its_authority_too(
    house: House, authority: Authority, what: str
) -> None:
    stamped(house, authority)
    tamper(house.engine, IN_DATABASE[what].statements)
    assert any(IN_DATABASE[what].verify in line for line in found(house, authority))


# ---------------------------------------------------------------------------------------------------- in the service


class Asked:
    """An authority that counts, and may refuse."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.refuses = ""
        self.at = now()

    def __call__(self, message: bytes) -> TimeStamp:
        self.messages.append(message)
        if self.refuses:
            raise SigningError(self.refuses)
        return TimeStamp(b"token of " + message, self.at)


def stamps_of(house: House, asked: Asked) -> TimeStamps:
    return TimeStamps(house.store, asked, active=lambda: True, clock=lambda: asked.at, every=DAY)


def test_the_service_has_the_last_seal_stamped_and_again_when_a_day_has_passed(house: House) -> None:
    asked = Asked()
    stamps = stamps_of(house, asked)
    stamps.stamp_if_due()
    stamps.stamp_if_due()
    house.serve({"plants": [ANN]})
    stamps.stamp_if_due()
    assert len(asked.messages) == 1, "not before a day has passed"
    asked.at += DAY
    stamps.stamp_if_due()
    stamps.stamp_if_due()
    assert house.rows("SELECT seal_id FROM seal_timestamp ORDER BY seal_id") == [(2,), (3,)]
    asked.at += DAY
    stamps.stamp_if_due()
    assert len(asked.messages) == 2, "nothing was sealed since"


def test_an_authority_that_fails_is_a_condition_until_it_answers(house: House) -> None:
    asked = Asked()
    stamps = stamps_of(house, asked)
    assert stamps.condition() is None
    asked.refuses = "The time-stamp authority answered HTTP 503."
    began = asked.at
    stamps.stamp_if_due()
    asked.at += dt.timedelta(hours=1)
    stamps.stamp_if_due()
    condition = stamps.condition()
    assert condition is not None
    assert (condition.code, condition.since) == ("timestamps_failing", began)
    assert condition.summary == "No time stamp could be got for seal 2: The time-stamp authority answered HTTP 503"
    asked.refuses = ""
    stamps.stamp_if_due()
    assert stamps.condition() is None
    assert len(house.rows("SELECT * FROM seal_timestamp")) == 1


def test_a_standby_replica_requests_no_time_stamp(house: House) -> None:
    asked = Asked()
    TimeStamps(house.store, asked, active=lambda: False, clock=now, every=DAY).stamp_if_due()
    assert asked.messages == []
