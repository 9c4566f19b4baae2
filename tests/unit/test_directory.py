"""The tree of List Workflow Directories: read whole by two readers that agree, or refused with a node and a field."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from etl.demo.gateway import directory_of, tree_of
from etl.demo.world import World
from etl.domain.model import Flow, Target
from etl.errors import GatewayError, Malformed
from etl.gateway import Gateway
from etl.gateway.strict import reread_strictly
from tests.support.enos import Fault, LocalGateway
from tests.support.enos.services import DirectoryShape
from tests.support.gateways import settings_for
from tests.support.hostile import Hostile, http

ORG, USER = "o1", "ann"
DIRECTORY = Target(ORG, "")


def file(key: object = 2512, **more: object) -> dict[str, object]:
    return {"editable": True, "title": "workflow1", "type": 1, "key": key, "isDirectory": False} | more


def without(node: dict[str, object], name: str) -> dict[str, object]:
    return {key: value for key, value in node.items() if key != name}


def read(body: str) -> list[tuple[str, str | None]]:
    """What both readers find in an answer."""
    with Hostile(http(body)) as server, Gateway(settings_for(server.url, auth="none", deadline=1)) as gateway:
        snapshot = gateway.fetch(DIRECTORY, asked_as=USER)
    reread_strictly(snapshot)
    assert snapshot.flows is not None
    assert all((flow.cycle, flow.editable) == (None, None) for flow in snapshot.flows)
    return [(flow.flow_id, flow.flow_name) for flow in snapshot.flows]


def answer(*nodes: object) -> str:
    return json.dumps({"code": 0, "msg": "OK", "data": nodes})


NAMED = [("2512", "workflow1")]
READ = [
    ("a number", [file(2512)], NAMED),
    ("a fraction, as in the Chinese pages", [file(2512.0, type=1.0)], NAMED),
    ("a text", [file("2512", type="1")], NAMED),
    ("a text of a fraction", [file("2512.0", type="1.0")], NAMED),
    ("a number that no fraction has", [file(2**53 + 1)], [(str(2**53 + 1), "workflow1")]),
    ("files of the other types", [file(number, type=number) for number in (0, 2, 3, 4)], []),
    ("a file that has a list of no children", [file(children=[])], NAMED),
    ("an empty title", [file(title="")], [("2512", "")]),
    ("unknown keys", [file(owner="ann")], NAMED),
    ("directories of any type and key", [directory_of("d", [file()]) | {"type": 0, "key": 7}], NAMED),
    ("nothing", [], []),
]


@pytest.mark.parametrize(("nodes", "found"), [each[1:] for each in READ], ids=[each[0] for each in READ])
def test_a_whole_tree_is_read(nodes: Sequence[object], found: list[tuple[str, str]]) -> None:
    assert read(answer(*nodes)) == found
    assert read(answer(directory_of("above", list(nodes)))) == found  # type: ignore[arg-type]


REFUSED = [
    ([file(), directory_of("d", [file(title="other")])], "data[1].children[0].key is that of data[0]"),
    ([file(2512), file("2512.0")], "data[1].key is that of data[0]"),
    ([file("FLOW_001")], "data[0].key is a string, not a whole number"),
    ([file(2512.5)], "data[0].key is a fraction, not a whole number"),
    ([file(-1)], "data[0].key is an integer, not a whole number"),
    ([file(True)], "data[0].key is a boolean, not a whole number"),
    ([file(None)], "data[0].key is null, not a whole number"),
    ([without(file(), "key")], "data[0].key is missing, not a whole number"),
    ([file(title=None)], "data[0].title is null, not a string"),
    ([without(file(), "title")], "data[0].title is missing, not a string"),
    ([file(title="a\u0000b")], "data[0].title"),
    ([without(file(), "type")], "data[0].type is missing, not a whole number"),
    ([without(file(), "isDirectory")], "data[0].isDirectory is missing, not true or false"),
    ([file(isDirectory="false")], "data[0].isDirectory is a string, not true or false"),
    ([without(directory_of("d", []), "children")], "data[0].children is missing, not a list"),
    ([directory_of("d", []) | {"children": None}], "data[0].children is null, not a list"),
    ([file(children=[file(1)])], "data[0] is a file with children"),
    (["2512"], "data[0] is a string, not an object"),
    ([None], "data[0] is null, not an object"),
]


@pytest.mark.parametrize(("nodes", "said"), REFUSED, ids=[each[1] for each in REFUSED])
def test_a_tree_that_is_not_whole_is_malformed_with_its_place(nodes: Sequence[object], said: str) -> None:
    with pytest.raises(Malformed) as caught:
        read(answer(*nodes))
    assert said in str(caught.value)
    assert "List Workflow Directories" in str(caught.value)


def test_a_key_twice_in_one_object_is_malformed() -> None:
    with pytest.raises(Malformed):
        read(answer(file()).replace('"type": 1', '"type": 2, "type": 1'))


@pytest.mark.parametrize(("levels", "is_read"), [(64, True), (65, False), (200, False), (100_000, False)])
def test_more_than_64_levels_are_damage(levels: int, is_read: bool) -> None:
    body = json.dumps(file()) if levels < 1000 else "{}"
    head = '{"isDirectory": true, "title": "d", "type": 1, "key": "k", "children": ['
    body = f'{{"code": 0, "data": [{head * (levels - 1)}{body}{"]}" * (levels - 1)}]}}'
    if is_read:
        assert read(body) == NAMED
    else:
        with pytest.raises(Malformed, match="deep"):
            read(body)


def test_a_tree_of_a_hundred_thousand_is_read_whole() -> None:
    flows = [Flow(str(number), f"{number % 300}_w", None, None) for number in range(1, 100_001)]
    found = read(json.dumps({"code": 0, "data": tree_of(flows)}))
    assert len(found) == 100_000
    assert found[:2] == [("1", "1_w"), ("10", "10_w")]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault("cut", times=None, endpoint="directory", share=0.5), "is cut short"),
        (Fault("outage", times=None, endpoint="directory"), "closed the connection"),
        (Fault("code", times=None, endpoint="directory", code=62101), "EnOS answers 62101"),
        (Fault("raw", times=None, endpoint="directory", body=b'{"code":0,"data":[{"children":['), "is cut short"),
    ],
)
@pytest.mark.parametrize("release", ["v2.1", "v2.0"])
def test_a_cut_tree_or_none_is_an_error(fault: Fault, message: str, release: Any) -> None:
    world = World(1, flows=20)
    org = world.orgs()[0]
    with (
        LocalGateway(world, auth="none", release=release) as local,
        Gateway(settings_for(local.url, api=release, deadline=0.3)) as gateway,
    ):
        ask = {"target": Target(org, ""), "asked_as": world.users(org)[0]}
        whole = gateway.fetch(**ask)  # type: ignore[arg-type]
        assert {flow.flow_id for flow in whole.flows or ()} == {flow.flow_id for flow in world.directory(org)}
        assert whole.other_files == 1
        local.directory_shape = DirectoryShape(key=float)
        assert gateway.fetch(**ask).flows == whole.flows  # type: ignore[arg-type]
        local.order(fault)
        with pytest.raises(GatewayError, match=message):
            gateway.fetch(**ask)  # type: ignore[arg-type]
