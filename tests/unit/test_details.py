"""Get Flow: the request, the fields that are read, and their text beside an event."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from zoneinfo import ZoneInfo

import pytest

from etl.domain.answers import Detail, moment, sentence, zone_of
from etl.errors import GatewayError, Malformed, Refused
from tests.support.gateways import gateway
from tests.support.hostile import Hostile, Step, http

DATA = {
    "flowId": 2515,
    "flowName": "fpostm",
    "cycle": "D",
    "freq": "0 0 0 * * ? *",
    "type": 1,
    "active": 0,
    "locked": False,
    "owner": ";ann;bob;",
    "creator": "ann",
    "createTime": "2019-07-22 08:56:58.0",
    "updateUser": "bob",
    "updateTime": "2019-08-08 05:51:43.0",
    "graph": '{"creator":"ann ","x":8.0E-4,}',
}


def answer(data: object = DATA, **envelope: object) -> Step:
    return http(json.dumps({"code": 0, "msg": "OK", "data": data} | envelope))


def detail_of(step: Step, flow_id: str = "2515", within: float = 5, **changes: object) -> Detail:
    with Hostile(step) as server, gateway(server, **({"deadline": 2} | changes)) as client:
        return client.detail("org-1", flow_id, "user-1", within)


def test_details_are_read_as_they_were_sent() -> None:
    found = detail_of(answer())
    said = (found.update_user, found.update_time, found.creator, found.create_time, found.owner, found.freq)
    assert said == ("bob", "2019-08-08 05:51:43.0", "ann", "2019-07-22 08:56:58.0", ";ann;bob;", "0 0 0 * * ? *")
    assert (found.active, found.type, found.locked) == (0, 1, False)
    assert found.detail_hash == hashlib.sha256(found.body).hexdigest()
    assert json.loads(found.body) == DATA


@pytest.mark.parametrize("flow_id", ["2515", 2515])
def test_an_id_may_be_a_text_or_a_number_and_all_else_may_be_missing(flow_id: object) -> None:
    found = detail_of(answer({"flowId": flow_id, "owner": None}))
    assert (found.flow_id, found.owner, found.freq, found.locked) == ("2515", None, None, None)


@pytest.mark.parametrize(
    ("step", "named"),
    [
        (answer(DATA | {"flowId": 9}), "another workflow"),
        (answer({}), "flowId"),
        (answer(None), "data"),
        (answer([DATA]), "data"),
        (http('{"code":0}'), "no data"),
        (answer(DATA | {"freq": 7}), "data.freq"),
        (answer(DATA | {"locked": "no"}), "data.locked"),
        (answer(DATA | {"active": 2**40}), "data.active"),
        (answer(DATA | {"updateUser": "a\0"}), "data.updateUser"),
        (http("<html>"), "HTML"),
    ],
)
def test_an_invalid_answer_of_get_flow_is_malformed_and_named(step: Step, named: str) -> None:
    with pytest.raises(Malformed) as caught:
        detail_of(step)
    assert named in str(caught.value)


def test_a_refusal_is_reported_as_a_refusal() -> None:
    with pytest.raises(Refused) as caught:
        detail_of(answer(None, code=62103))
    assert caught.value.code == "62103"


def test_a_detail_request_ends_by_its_deadline() -> None:
    with pytest.raises(GatewayError) as caught:
        detail_of(lambda peer: peer.hang(), within=0.2, deadline=20)
    assert caught.value.code == "deadline"


SHANGHAI = ZoneInfo("Asia/Shanghai")
SINCE, UNTIL = dt.datetime(2026, 11, 24, 1, tzinfo=dt.UTC), dt.datetime(2026, 11, 24, 2, tzinfo=dt.UTC)
EARLIER = "2026-11-24 08:12:03"
TOLD = [
    (("u1", "2026-11-24 09:12:03.0", None, None), SHANGHAI, "EnOS: last updated by u1 at 2026-11-24 09:12:03.0"),
    (("u1", "2026-11-24 08:12:03", None, None), SHANGHAI, " (before this change)"),
    (("u1", "2026-11-24 10:12:03.0", None, None), SHANGHAI, " (after this change was seen)"),
    (("u1", "2026-11-24 10:12:03.0", None, None), None, "last updated by u1 at 2026-11-24 10:12:03.0"),
    (("u1", "yesterday", None, None), SHANGHAI, "last updated by u1 at yesterday"),
    ((None, None, "0 0 2 * * ? *", "0 0 * * * ? *"), None, "EnOS: cron `0 0 * * * ? *`, was `0 0 2 * * ? *`"),
    ((None, None, "0 0 2 * * ? *", "0 0 2 * * ? *"), None, "EnOS: cron `0 0 2 * * ? *`"),
    ((None, None, None, None), SHANGHAI, ""),
    (("u1", EARLIER, None, None, "GMT+8"), None, " (before this change)"),
    (("u1", EARLIER, None, None, "GMT+25"), None, f"EnOS: last updated by u1 at {EARLIER}"),
    (("u1", EARLIER, None, None, "GMT-5"), SHANGHAI, " (before this change)"),
]


@pytest.mark.parametrize(("said", "zone", "expected"), TOLD)
def test_details_are_attributed_to_enos(said: tuple[str | None, ...], zone: ZoneInfo | None, expected: str) -> None:
    found = sentence(*[*said, None][:5], (SINCE, UNTIL), zone)  # type: ignore[arg-type]
    assert found.endswith(expected)
    assert ("before" in found, "after" in found) == ("before" in expected, "after" in expected)


@pytest.mark.parametrize(
    ("named", "hours"),
    [("GMT+8", 8), ("GMT-3", -3), ("GMT+0", 0), ("GMT", 0), ("GMT+14", 14), ("GMT+5:30", 5.5), ("GMT+08:00", 8)]
    + [
        (bad, None)
        for bad in (None, "", "GMT+25", "GMT+14:30", "UTC+8", "Asia/Shanghai", "GMT+", "8", "GMT+8 ", "GMT+٨")
    ],
)
def test_a_time_zone_is_read_as_enos_writes_it_and_nonsense_is_none(named: str | None, hours: float | None) -> None:
    found = zone_of(named)
    assert (found and found.utcoffset(None)) == (None if hours is None else dt.timedelta(hours=hours))


@pytest.mark.parametrize("text", ["", "0", "2026-13-01 00:00:00.0", "0001-01-01 00:00:00.0", "9999-12-31 23:59:59.9"])
def test_an_invalid_time_is_not_compared(text: str) -> None:
    found = moment(text, SHANGHAI)
    assert found is None or found.tzinfo is dt.UTC
