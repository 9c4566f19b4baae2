"""Version 2.0 of Get My Flow, as in EnOS before 2.1.2 and EnOS Edge: the request, and what is read."""

from __future__ import annotations

import json
from typing import get_args

import pytest

from etl.config import ApiVersion
from etl.demo.world import World
from etl.domain.model import Flow, Target
from etl.errors import Malformed, Refused
from etl.gateway import Gateway, reread_strictly
from etl.gateway.calls import APIS
from tests.support.enos import Fault, LocalGateway
from tests.support.gateways import TARGET, gateway, settings_for
from tests.support.hostile import Hostile, http

CAMEL = {"flowId": "3318", "editable": True, "flowName": "reduce_entity", "cycle": "D"}
EDGE = {"flow_id": "3318", "editable": True, "flow_name": "reduce_entity", "cycle": "D"}
FLOW = Flow("3318", "reduce_entity", "D", True)


def answer(*items: object, **envelope: object) -> bytes:
    return json.dumps({"status": 0, "msg": "Success"} | envelope | {"data": list(items)}).encode()


def fetched(body: bytes) -> tuple[Flow, ...] | None:
    """The flows of a version 2.0 answer, with the strict second reading."""
    with Hostile(http(body)) as server, gateway(server, api="v2.0", deadline=2) as client:
        snapshot = client.fetch(TARGET, own_connection=True)
    reread_strictly(snapshot)
    return snapshot.flows


def test_every_version_that_can_be_set_can_be_asked() -> None:
    assert set(APIS) == set(get_args(ApiVersion))


@pytest.mark.parametrize(
    "body",
    [answer(CAMEL), answer(EDGE), answer(EDGE | {"tags": [1]}), answer(CAMEL, code=0), answer(CAMEL, requestId="r")],
    ids=["as EnOS", "as EnOS Edge", "an unknown key", "a code beside it", "a request id"],
)
def test_both_spellings_of_an_answer_are_read(body: bytes) -> None:
    assert fetched(body) == (FLOW,)


def test_an_edge_item_may_lack_what_another_may_lack() -> None:
    assert fetched(answer({"flow_id": 7})) == (Flow("7", None, None, None),)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (json.dumps({"code": 0, "data": [CAMEL]}).encode(), 'api = "v2.1"'),
        (json.dumps({"data": [CAMEL]}).encode(), "it has no status"),
        (answer(CAMEL, status="0"), "status is"),
        (answer(CAMEL, status=False), "status is"),
        (answer(CAMEL, code="62101"), "code is"),
        (answer(CAMEL, EDGE), "data[1]"),
        (answer({"flowId": "1", "flow_name": "a"}), "spells some of its keys"),
        (answer({"flow_id": "1", "flowName": "a"}), "spells some of its keys"),
        (answer({"flow_id": ""}), "data[0].flowId is empty"),
        (answer({"flow_id": True}), "data[0].flowId is a boolean"),
        (answer({"flow_name": "a"}), "data[0].flowId is missing"),
        (answer(EDGE, EDGE | {"cycle": "H"}), "data[1].flowId is that of data[0]"),
        (answer(EDGE | {"flow_name": "\0"}), "NUL"),
    ],
)
def test_an_invalid_version_2_0_answer_is_malformed_and_named(body: bytes, named: str) -> None:
    with pytest.raises(Malformed) as caught:
        fetched(body)
    assert named in str(caught.value)


@pytest.mark.parametrize("envelope", [{"status": 62101}, {"status": 0, "code": 62101}, {"status": 1, "code": 62101}])
def test_an_error_code_is_one_wherever_it_stands(envelope: dict[str, int]) -> None:
    with pytest.raises(Refused) as caught:
        fetched(answer(**envelope))
    assert caught.value.code == "62101"


@pytest.mark.parametrize("release", ["v2.0", "edge"])
def test_the_local_gateway_is_an_older_one_on_request(release: str) -> None:
    world = World(seed=3, users=1, flows=20)
    target = Target(world.orgs()[0], world.users(world.orgs()[0])[0])
    with LocalGateway(world, auth="none", release=release) as local:  # type: ignore[arg-type]
        with Gateway(settings_for(local.url)) as newer, pytest.raises(Refused):
            newer.fetch(target)
        with Gateway(settings_for(local.url, api="v2.0")) as older:
            found = older.fetch(target)
            some = older.fetch(target._replace(expression="map"))
            local.order(Fault("code", code=62103, times=2))
            with pytest.raises(Refused) as refused:
                older.fetch(target)
    assert found.flows == tuple(sorted(world.flows(*target[:2]), key=lambda flow: flow.flow_id))
    assert set(some.flows or ()) == {flow for flow in found.flows or () if "map" in (flow.flow_name or "")}
    assert refused.value.code == "62103"
