"""The local gateway honours the EnOS API documentation, misbehaves as ordered, and keeps an honest log."""

from __future__ import annotations

import hashlib
import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlencode

import pytest

from etl.demo.gateway import FLOWS_PATH, TOKEN_PATH
from etl.demo.world import World
from etl.domain.model import Flow, Target
from etl.errors import Refused
from etl.gateway import Gateway
from tests.support.enos import Fault, LocalGateway
from tests.support.enos.services import DirectoryShape
from tests.support.gateways import settings_for

KEY, SECRET = "demo-access-key", "demo-secret-key"
ORG, USER = "o15427722038191", "u15426865866571"
MY_FLOWS = {"action": "getMyFlow", "userId": USER, "orgId": ORG}
BROKEN = (http.client.HTTPException, OSError)


class Asker:
    """A client of one connection, with its own idea of how to sign; its timestamps never repeat."""

    def __init__(self, url: str) -> None:
        self.connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
        self.clock = int(time.time() * 1000)
        self.token = ""

    def send(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> http.client.HTTPResponse:
        try:
            self.connection.request(method, path, body, headers or {})
            return self.connection.getresponse()
        except BROKEN:
            self.connection.close()
            raise

    def ask_token(self, **changed: Any) -> dict[str, Any]:
        self.clock += 1
        encryption = hashlib.sha256(f"{KEY}{self.clock}{SECRET}".encode()).hexdigest()
        asked = {"appKey": KEY, "encryption": encryption, "timestamp": self.clock} | changed
        answer: dict[str, Any] = json.load(self.send("POST", TOKEN_PATH, json.dumps(asked).encode()))
        self.token = (answer["data"] or {}).get("accessToken", self.token)
        return answer

    def headers(self, query: dict[str, str], **changed: str) -> dict[str, str]:
        self.clock += 1
        timestamp = changed.get("apim-timestamp", str(self.clock))
        joined = "".join(f"{name}{query[name]}" for name in sorted(query))
        signature = hashlib.sha256(f"{self.token}{joined}{timestamp}{SECRET}".encode()).hexdigest()
        signed = {"accesstoken": self.token, "timestamp": timestamp, "signature": signature}
        return {f"apim-{name}": value for name, value in signed.items()} | changed

    def my_flow(self, headers: dict[str, str] | None = None, **asked: str) -> http.client.HTTPResponse:
        if not self.token:
            self.ask_token()
        query = MY_FLOWS | asked
        return self.send("GET", f"{FLOWS_PATH}?{urlencode(query)}", headers=headers or self.headers(query))

    def code(self, headers: dict[str, str] | None = None, **asked: str) -> int:
        return int(json.load(self.my_flow(headers, **asked))["code"])

    def ids(self, **asked: str) -> list[str]:
        return [item["flowId"] for item in json.load(self.my_flow(**asked))["data"]]


@pytest.fixture
def world() -> World:
    return World(seed=1, users=2, flows=20)


@pytest.fixture
def gateway(world: World) -> Iterator[LocalGateway]:
    with LocalGateway(world) as gateway:
        yield gateway


@pytest.fixture
def asker(gateway: LocalGateway) -> Iterator[Asker]:
    """Has a token."""
    asker = Asker(gateway.url)
    asker.ask_token()
    yield asker
    asker.connection.close()


# Tokens and signatures


def test_a_live_token_is_given_to_everyone_until_it_expires(gateway: LocalGateway, asker: Asker) -> None:
    first, second = asker.ask_token(), asker.ask_token()
    assert (first["status"], first["msg"], first["business"]) == (0, "SUCCESS", "apim-token-service")
    assert first["data"]["accessToken"] == second["data"]["accessToken"]
    assert 7100 < second["data"]["expire"] <= first["data"]["expire"] <= 7200
    assert asker.code() == 0
    gateway.tokens.expire()
    assert asker.code() == 1203
    assert asker.ask_token()["data"]["accessToken"] != first["data"]["accessToken"]
    assert asker.code() == 0


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"appKey": "another"}, 1002),
        ({"encryption": "0" * 64}, 1003),
        ({"encryption": 7}, 1004),
        ({"timestamp": "1572574909697"}, 1004),
        ({"timestamp": [1]}, 1004),
        ({"timestamp": 1572574909697}, 1004),
        ({"timestamp": 15725749096}, 1004),
        ({"appKey": ""}, 1202),
        ({"encryption": None}, 1202),
    ],
)
def test_a_wrong_request_for_a_token_gets_its_documented_code(asker: Asker, changed: dict[str, Any], code: int) -> None:
    answer = asker.ask_token(**changed)
    assert (answer["status"], answer["data"]) == (code, None)
    asker.clock -= 2
    assert asker.ask_token()["status"] == 1001, "an encryption that was used before"


@pytest.mark.parametrize(
    ("changed", "status", "code"),
    [
        ({"apim-signature": "0" * 64}, 200, 1003),
        ({"apim-timestamp": "1572574909697"}, 200, 1004),
        ({"apim-timestamp": "now"}, 200, 1004),
        ({"apim-timestamp": "9" * 5000}, 200, 1004),
        ({"apim-timestamp": ""}, 200, 1202),
        ({"apim-accesstoken": "made-up"}, 401, 401),
    ],
)
def test_a_wrong_signature_time_or_token_is_refused(
    gateway: LocalGateway, asker: Asker, changed: dict[str, str], status: int, code: int
) -> None:
    response = asker.my_flow(asker.headers(MY_FLOWS, **changed))
    assert (response.status, json.load(response)["code"]) == (status, code)
    assert gateway.bad_signatures == (status == 200)


def test_a_signature_is_good_for_its_own_parameters_and_only_once(gateway: LocalGateway, asker: Asker) -> None:
    headers = asker.headers(MY_FLOWS)
    assert [asker.code(headers, **asked) for asked in ({"expression": "x"}, {}, {})] == [1003, 0, 1001]
    assert [entry.verdict for entry in gateway.deliveries.entries()] == ["ok", "bad", "ok", "repeated"]


# Get My Flow


def test_a_user_gets_the_whole_list_in_another_order_each_time(world: World, asker: Asker) -> None:
    answers = [json.load(asker.my_flow()) for _ in range(5)]
    for answer in answers:
        shown = [Flow(one["flowId"], one["flowName"], one["cycle"], one["editable"]) for one in answer["data"]]
        assert len(shown) == 20
        assert set(shown) == set(world.flows(ORG, USER))
    assert len({tuple(item["flowId"] for item in answer["data"]) for answer in answers}) > 1
    assert len({answer["requestId"] for answer in answers}) == 5


@pytest.mark.parametrize("release", ["v2.0", "edge"])
def test_the_local_gateway_is_an_older_one_on_request(world: World, release: str) -> None:
    target = Target(ORG, USER)
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


def nodes_of(tree: list[dict[str, Any]], level: int = 1) -> Iterator[tuple[int, dict[str, Any]]]:
    for node in tree:
        yield level, node
        yield from nodes_of(node.get("children", []), level + 1)


def test_the_directory_has_what_anybody_sees_and_what_nobody_does(world: World) -> None:
    first, second, third, *_ = world.directory(ORG)
    world.unlist(ORG, first.flow_id)
    world.leave_out(ORG, second.flow_id)
    world.remove_flow(ORG, third.flow_id)
    world.add_flow(ORG, Flow("7", "of_nobody", "D", True), ())
    listed = {flow.flow_id for user in world.users(ORG) for flow in world.flows(ORG, user)}
    assert {first.flow_id, third.flow_id, "7"}.isdisjoint(listed)
    there = {flow.flow_id for flow in world.directory(ORG)}
    assert there == listed - {second.flow_id} | {first.flow_id, "7"}
    world.leave_out(ORG, second.flow_id, False)
    world.remove_flow(ORG, first.flow_id)
    assert {flow.flow_id for flow in world.directory(ORG)} == listed | {"7"}


@pytest.mark.parametrize(
    ("release", "service", "first_page", "name"),
    [
        ("v2.1", "batch-processing-service/v2.1", 1, "flowName"),
        ("v2.0", "dataflow-batch-service/v2.0", 0, "flowName"),
        ("edge", "dataflow-batch-service/v2.0", 0, "flow_name"),
    ],
)
def test_the_directory_and_the_search_list_the_whole_organisation(
    world: World, release: Any, service: str, first_page: int, name: str
) -> None:
    who = f"orgId={ORG}&userId={USER}"
    search = json.dumps({"pagination": {"pageNo": first_page, "pageSize": 5, "sorters": []}}).encode()
    titles = {flow.flow_id: flow.flow_name for flow in world.directory(ORG)}
    with LocalGateway(world, auth="none", release=release) as local:
        asker = Asker(local.url)

        def directory(user: str = USER) -> Any:
            query = f"action=listWorkFlowDirs&orgId={ORG}&userId={user}"
            return json.load(asker.send("GET", f"/{service}/directories?{query}"))

        def files() -> list[tuple[int, dict[str, Any]]]:
            return [each for each in nodes_of(directory()["data"]) if not each[1]["isDirectory"]]

        workflows = [file for _, file in files() if file["type"] == 1]
        assert {str(file["key"]): file["title"] for file in workflows} == titles
        assert (len(workflows), len(files())) == (len(titles), len(titles) + 1)
        found = json.load(asker.send("POST", f"/{service}/flows?action=search&{who}", search))["data"]
        assert [item[name] for item in found] == list(titles.values())[:5]
        assert directory("nobody").popitem()[1] is None
        local.directory_shape = DirectoryShape(key=float, levels=200, twice=True)
        assert max(level for level, _ in files()) == 201
        keys = [file["key"] for _, file in files() if file["type"] == 1]
        assert {type(key) for key in keys} == {float}
        assert len(keys) > len(set(keys)) == len(titles)
        local.directory_shape = DirectoryShape()
        local.order(Fault("partial", endpoint="directory"))
        assert len(files()) == len(titles) // 2 + 1
        assert [entry.endpoint for entry in local.deliveries.entries()].count("directory") == 6
        asker.connection.close()


def test_a_stale_answer_is_the_list_served_before_it_changed(gateway: LocalGateway, world: World, asker: Asker) -> None:
    old = set(asker.ids())
    world.add_flow(ORG, Flow("new", "n", "D", True))
    gateway.order(Fault("stale", times=2))
    assert [set(asker.ids()) for _ in range(3)] == [old, old, old | {"new"}]


def test_a_client_that_asks_to_close_the_connection_has_it_closed_and_announced(
    gateway: LocalGateway, asker: Asker
) -> None:
    for kind in ("none", "twice"):
        gateway.order(Fault(kind, seconds=0))  # type: ignore[arg-type]
        with socket.create_connection(asker.connection.sock.getpeername()) as connection:
            lines = [f"GET {FLOWS_PATH}?{urlencode(MY_FLOWS)} HTTP/1.1", "Connection: close"]
            lines += [f"{name}: {value}" for name, value in asker.headers(MY_FLOWS).items()]
            connection.sendall("\r\n".join([*lines, "", ""]).encode())
            with connection.makefile("rb") as stream:
                everything = stream.read()
        assert everything.count(b"Connection: close\r\n") == everything.count(b"HTTP/1.1 200") == 1 + (kind == "twice")
        assert not gateway.deliveries.entries()[-1].kept_open


# The world


def everything(world: World) -> dict[tuple[str, str], tuple[Flow, ...]]:
    return {(org, user): world.flows(org, user) for org in world.orgs() for user in world.users(org)}


def test_the_same_seed_and_number_of_steps_give_the_same_world() -> None:
    one, two, fresh, other = (World(seed, orgs=2, users=3, flows=30) for seed in (7, 7, 7, 8))
    one.evolve(5)
    for _ in range(5):
        two.evolve()
    assert everything(one) == everything(two)
    assert everything(fresh) != everything(one)
    assert everything(other) != everything(fresh)


def test_a_few_steps_bring_every_kind_of_change() -> None:
    world = World(3, flows=50)
    before = {flow.flow_id: flow for flow in world.flows(ORG, USER)}
    world.evolve(12)
    after = {flow.flow_id: flow for flow in world.flows(ORG, USER)}
    both = [(before[flow_id], after[flow_id]) for flow_id in before.keys() & after.keys()]
    assert after.keys() - before.keys()
    assert before.keys() - after.keys()
    for field in ("flow_name", "cycle", "editable"):
        assert any(getattr(old, field) != getattr(new, field) for old, new in both)


# Its own process


def test_as_a_process_it_serves_is_edited_and_stops_on_sigterm() -> None:
    command = [sys.executable, "-m", "tests.support.enos", "--flows", "5", "--evolve-every", "1000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        asker = Asker(process.stdout.readline().strip())

        def steer(method: str, name: str, **given: Any) -> Any:
            response = asker.send(method, f"/_demo/{name}", json.dumps(given).encode())
            return response.status, json.load(response)

        assert len(asker.ids()) == 5
        edit = {"edit": "add_flow", "org": ORG, "flow": ["new", "n", "D", True]}
        assert steer("POST", "edit", **edit)[0] == 200
        assert len(asker.ids()) == 6
        assert steer("POST", "evolve")[0] == 200
        assert steer("POST", "faults", kind="code", code=62109, times=None)[0] == 200
        assert asker.code() == 62109
        assert steer("DELETE", "faults")[0] == 200
        assert asker.code() == 0
        assert steer("POST", "faults", kind="nonsense")[0] == 400
        assert steer("POST", "edit", edit="__init__")[0] == 400
        assert [entry["code"] for entry in steer("GET", "deliveries")[1]] == [0, 0, 0, 62109, 0]
        asker.connection.close()
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (0, "")


def test_the_demo_gateway_as_a_process_lets_a_day_pass_on_a_signal() -> None:
    with subprocess.Popen([sys.executable, "-m", "etl.demo"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        asker = Asker(process.stdout.readline().strip())
        first = set(asker.ids())
        process.send_signal(signal.SIGUSR1)
        assert any(set(asker.ids()) != first for _ in range(10_000))
        assert asker.code(userId="nobody") == 62101
        asker.connection.close()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    assert process.returncode == 0
