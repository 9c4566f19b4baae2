"""The local gateway honours the EnOS API documentation, misbehaves as ordered, and keeps an honest log."""

from __future__ import annotations

import datetime as dt
import gzip
import hashlib
import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import msgspec
import pytest

from etl.demo.auth import signature_of
from etl.demo.delivery_log import Delivery, DeliveryLog
from etl.demo.faults import Fault
from etl.demo.gateway import FLOWS_PATH, TOKEN_PATH, DemoGateway
from etl.demo.world import UnknownOrg, UnknownUser, World
from etl.domain.model import Flow

KEY, SECRET = "a-key", "a-secret"
ORG, USER = "o15427722038191", "u15426865866571"


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
        except (OSError, http.client.HTTPException):
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

    def my_flow(self, org: str = ORG, user: str = USER, **asked: str) -> http.client.HTTPResponse:
        if not self.token:
            self.ask_token()
        query = {"action": "getMyFlow", "userId": user, "orgId": org} | asked
        return self.send("GET", f"{FLOWS_PATH}?{urlencode(query)}", headers=self.headers(query))

    def code(self, **asked: str) -> int:
        return int(json.load(self.my_flow(**asked))["code"])

    def ids(self, **asked: str) -> list[str]:
        return [item["flowId"] for item in json.load(self.my_flow(**asked))["data"]]


@pytest.fixture
def world() -> World:
    return World(seed=1, users=2, flows=20)


@pytest.fixture
def gateway(world: World) -> Iterator[DemoGateway]:
    with DemoGateway(world, access_key=KEY, secret_key=SECRET) as gateway:
        yield gateway


@pytest.fixture
def asker(gateway: DemoGateway) -> Iterator[Asker]:
    asker = Asker(gateway.url)
    yield asker
    asker.connection.close()


def no_thread_serves() -> bool:
    return not any("process_request_thread" in thread.name for thread in threading.enumerate())


# Tokens and signatures


def test_the_documented_vector_gives_the_documented_signature() -> None:
    body = '{\n  "count": 20,\n  "page": 1,\n  "desc": "描述"\n}'
    signature = signature_of("xxxxaaaxxxx", "k3=v3&k1=v1&k2=v2", body, "1572574909697", "xxxappSecretxxx")
    assert signature == "59828328f6c1f9771015dc74e4929ae30f518a35a3d2353972c2ea46556fc981"


def test_a_live_token_is_given_to_everyone_until_it_expires(gateway: DemoGateway, asker: Asker) -> None:
    first, second = asker.ask_token(), asker.ask_token()
    assert (first["status"], first["msg"], first["business"]) == (0, "SUCCESS", "apim-token-service")
    assert first["data"]["accessToken"] == second["data"]["accessToken"]
    assert 7100 < second["data"]["expire"] <= first["data"]["expire"] <= 7200
    gateway.expire_token()
    assert asker.ask_token()["data"]["accessToken"] != first["data"]["accessToken"]


def test_a_token_lives_for_its_configured_time(world: World) -> None:
    with DemoGateway(world, access_key=KEY, secret_key=SECRET, token_seconds=0) as gateway:
        asker = Asker(gateway.url)
        assert asker.ask_token()["data"]["expire"] == 0
        assert asker.code() == 1203
        asker.connection.close()


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


def test_the_same_encryption_twice_is_refused_with_1001(gateway: DemoGateway, asker: Asker) -> None:
    asker.ask_token()
    asker.clock -= 1
    assert asker.ask_token()["status"] == 1001
    assert gateway.counters.token_calls == 2
    assert gateway.counters.bad_signatures == 1


def test_no_signature_is_1202_and_a_token_never_issued_is_401(asker: Asker) -> None:
    asker.ask_token()
    response = asker.send("GET", f"{FLOWS_PATH}?action=getMyFlow&userId={USER}&orgId={ORG}")
    assert json.load(response)["code"] == 1202
    asker.token = "made-up"
    response = asker.my_flow()
    assert (response.status, json.load(response)["code"]) == (401, 401)


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"apim-signature": "0" * 64}, 1003),
        ({"apim-timestamp": "1572574909697"}, 1004),
        ({"apim-timestamp": "now"}, 1004),
        ({"apim-timestamp": "9" * 5000}, 1004),
        ({"apim-timestamp": ""}, 1202),
    ],
)
def test_a_wrong_signature_or_time_is_refused(
    gateway: DemoGateway, asker: Asker, changed: dict[str, str], code: int
) -> None:
    asker.ask_token()
    query = {"action": "getMyFlow", "userId": USER, "orgId": ORG}
    response = asker.send("GET", f"{FLOWS_PATH}?{urlencode(query)}", headers=asker.headers(query, **changed))
    assert (response.status, json.load(response)["code"]) == (200, code)
    assert gateway.counters.bad_signatures == 1


def test_a_signature_is_good_for_its_own_parameters_and_only_once(gateway: DemoGateway, asker: Asker) -> None:
    asker.ask_token()
    query = {"action": "getMyFlow", "userId": USER, "orgId": ORG}
    headers = asker.headers(query)
    codes = [
        json.load(asker.send("GET", f"{FLOWS_PATH}?{urlencode(asked)}", headers=headers))["code"]
        for asked in (query | {"expression": "x"}, query, query)
    ]
    assert codes == [1003, 0, 1001]
    assert [entry.verdict for entry in gateway.deliveries.entries()] == ["ok", "bad", "ok", "repeated"]


def test_a_dead_token_is_1203(gateway: DemoGateway, asker: Asker) -> None:
    assert asker.code() == 0
    gateway.expire_token()
    assert asker.code() == 1203
    asker.ask_token()
    assert asker.code() == 0


def test_a_gateway_without_auth_needs_no_token(world: World) -> None:
    with DemoGateway(world, auth="none") as gateway:
        asker = Asker(gateway.url)
        response = asker.send("GET", f"{FLOWS_PATH}?action=getMyFlow&userId={USER}&orgId={ORG}")
        assert len(json.load(response)["data"]) == 20
        assert gateway.deliveries.entries()[0].verdict == "unsigned"
        asker.connection.close()


# Get My Flow


def test_a_user_gets_the_whole_list_in_another_order_each_time(world: World, asker: Asker) -> None:
    answers = [json.load(asker.my_flow()) for _ in range(5)]
    truth = {flow.flow_id: flow for flow in world.flows(ORG, USER)}
    for answer in answers:
        listed = {item["flowId"]: item for item in answer["data"]}
        shown = {Flow(id_, item["flowName"], item["cycle"], item["editable"]) for id_, item in listed.items()}
        assert len(answer["data"]) == 20
        assert shown == set(truth.values())
    assert len({tuple(item["flowId"] for item in answer["data"]) for answer in answers}) > 1
    assert len({answer["requestId"] for answer in answers}) == 5


@pytest.mark.parametrize("expression", ["power", "a+b", "a b&c=d", "é描述%41", "%", "+"])
def test_an_expression_finds_parts_of_id_and_name_whatever_its_characters(
    world: World, asker: Asker, expression: str
) -> None:
    flows = [Flow("POWER-1", "x", "D", True), Flow("2", f"before {expression.swapcase()} after", "H", False)]
    world.set_flows(ORG, USER, [*flows, Flow("3", None, None, None)])
    expected = {"POWER-1", "2"} if expression == "power" else {"2"}
    assert set(asker.ids(expression=expression)) == expected
    assert {flow.flow_id for flow in world.flows(ORG, USER, expression)} == expected


def test_an_unknown_user_is_an_error_inside_http_200(world: World, asker: Asker) -> None:
    world.set_flows("o2", "u2", [])
    assert asker.code(userId="u2") == 62101
    assert asker.code(orgId="nowhere") == 99404
    assert asker.code(action="somethingElse") == 99400
    assert asker.code(userId="") == 99400
    assert asker.my_flow(user="nobody").status == 200


def test_ids_are_integers_where_that_was_ordered(world: World, asker: Asker) -> None:
    world.set_flows(ORG, USER, [Flow(flow_id, "name", "D", True) for flow_id in ("12", "0", "012", "x")])
    assert set(asker.ids()) == {"12", "0", "012", "x"}
    world.set_integer_ids(ORG, USER)
    assert set(asker.ids()) == {12, 0, "012", "x"}


def test_other_paths_and_methods_are_not_served(asker: Asker) -> None:
    responses = [("GET", "/nowhere"), ("GET", "/_demo/deliveries"), ("GET", TOKEN_PATH), ("POST", FLOWS_PATH)]
    statuses = []
    for method, path in responses:
        response = asker.send(method, path)
        response.read()
        statuses.append(response.status)
    assert statuses == [404, 404, 405, 405]


# Faults that say something else


@pytest.mark.parametrize(
    ("fault", "status", "headers", "start"),
    [
        (Fault("code", code=62109), 200, {}, b'{"code":62109,'),
        (Fault("status"), 503, {}, b'{"code":503,'),
        (Fault("status", status=429, retry_after="soon"), 429, {"Retry-After": "soon"}, b'{"code":429,'),
        (Fault("redirect", location="http://far/"), 302, {"Location": "http://far/"}, b""),
        (Fault("html"), 200, {"Content-Type": "text/html; charset=utf-8"}, b"<!DOCTYPE html>"),
        (Fault("raw", body=b'{"code": 0, "da'), 200, {"Content-Length": "15"}, b'{"code": 0, "da'),
        (Fault("raw", status=204), 204, {}, b""),
        (Fault("none", headers={"Age": "900"}), 200, {"Age": "900"}, b'{"code":0,'),
        (Fault("none", headers={"Content-Length": None}), 200, {}, b'{"code":0,'),
    ],
)
def test_a_fault_is_met_once_and_then_the_gateway_is_honest_again(
    gateway: DemoGateway, asker: Asker, fault: Fault, status: int, headers: dict[str, str], start: bytes
) -> None:
    gateway.order(fault)
    response = asker.my_flow()
    body = response.read()
    assert (response.status, body[: len(start)]) == (status, start)
    assert headers.items() <= dict(response.getheaders()).items()
    assert gateway.deliveries.entries()[-1].fault == fault.kind
    assert len(asker.ids()) == 20


def test_a_bare_answer_is_exactly_the_bytes_that_were_ordered(gateway: DemoGateway, asker: Asker) -> None:
    gateway.order(Fault("raw", status=0, body=b"SSH-2.0-OpenSSH\r\n"))
    with pytest.raises(http.client.BadStatusLine, match=r"SSH-2\.0"):
        asker.my_flow()


def test_chunks_without_an_end_are_cut_when_the_order_says_close(gateway: DemoGateway, asker: Asker) -> None:
    headers = {"Content-Length": None, "Transfer-Encoding": "chunked", "Connection": "close"}
    gateway.order(Fault("raw", body=b"5\r\nhel", headers=headers))
    with pytest.raises(http.client.IncompleteRead):
        asker.my_flow().read()


def test_the_token_service_fails_in_its_own_envelope(gateway: DemoGateway, asker: Asker) -> None:
    gateway.order(Fault("code", code=1005, endpoint="token"))
    assert asker.ask_token()["status"] == 1005
    assert asker.ask_token()["status"] == 0


def test_an_ordered_expiry_kills_the_token_for_everyone(gateway: DemoGateway, asker: Asker) -> None:
    asker.ask_token()
    before = asker.token
    gateway.order(Fault("expired"))
    assert asker.code() == 1203
    assert asker.code() == 1203
    asker.ask_token()
    assert asker.token != before
    assert asker.code() == 0


def test_empty_and_partial_lists_are_well_formed_and_among_the_deliveries(
    gateway: DemoGateway, world: World, asker: Asker
) -> None:
    gateway.order(Fault("empty"))
    gateway.order(Fault("partial", share=0.3))
    assert asker.ids() == []
    kept = asker.ids()
    assert len(kept) == 6
    assert set(kept) < {flow.flow_id for flow in world.flows(ORG, USER)}
    _, empty, partial = gateway.deliveries.entries()
    assert (empty.fault, empty.flows) == ("empty", ())
    assert {flow.flow_id for flow in partial.flows or ()} == set(kept)


def test_a_stale_answer_is_the_list_served_before_it_changed(gateway: DemoGateway, world: World, asker: Asker) -> None:
    old = set(asker.ids())
    world.add_flow(ORG, Flow("new", "n", "D", True))
    gateway.order(Fault("stale", times=2))
    assert set(asker.ids()) == old
    assert set(asker.ids()) == old
    assert set(asker.ids()) == old | {"new"}


def test_dates_are_off_as_ordered(gateway: DemoGateway, asker: Asker) -> None:
    def hours_off() -> int:
        response = asker.my_flow()
        response.read()
        return round((parsedate_to_datetime(response.headers["Date"]).timestamp() - time.time()) / 3600)

    gateway.order(Fault("date", seconds=-7200))
    assert [hours_off(), hours_off()] == [-2, 0]
    gateway.date_offset_seconds = 36000
    assert hours_off() == 10


def test_a_bomb_is_an_honest_answer_of_the_ordered_size(gateway: DemoGateway, asker: Asker) -> None:
    gateway.order(Fault("bomb", size_bytes=4 << 20))
    response = asker.my_flow()
    wire = response.read()
    decoded = gzip.decompress(wire)
    assert response.headers["Content-Encoding"] == "gzip"
    assert 4 << 20 < len(decoded) < 5 << 20
    assert len(wire) < 100_000
    assert len(json.loads(decoded)["data"]) == 20


# Faults of the connection


@pytest.mark.parametrize("reset", [False, True])
def test_an_outage_closes_the_connection_without_a_byte(gateway: DemoGateway, asker: Asker, reset: bool) -> None:
    asker.ask_token()
    gateway.order(Fault("outage", reset=reset))
    with pytest.raises(ConnectionResetError if reset else http.client.RemoteDisconnected):
        asker.my_flow()
    assert not gateway.deliveries.entries()[-1].sent
    assert asker.code() == 0


def test_a_cut_body_ends_too_early_and_is_not_among_the_deliveries_as_sent(gateway: DemoGateway, asker: Asker) -> None:
    asker.ask_token()
    gateway.order(Fault("cut", share=1))
    with pytest.raises(http.client.IncompleteRead) as failure:
        asker.my_flow().read()
    assert failure.value.expected == 1
    asker.connection.close()
    gateway.order(Fault("cut", share=0.1, reset=True))
    with pytest.raises(ConnectionResetError):
        asker.my_flow().read()
    assert [(entry.status, entry.sent, entry.flows) for entry in gateway.deliveries.entries()[1:]] == [
        (200, False, None),
        (200, False, None),
    ]


def test_an_answer_that_comes_twice_is_taken_for_the_next_one_by_a_client_that_trusts_it(
    gateway: DemoGateway, asker: Asker
) -> None:
    asker.ask_token()
    gateway.order(Fault("twice", seconds=0))
    first = asker.my_flow().read()
    assert asker.my_flow(user="nobody").read() == first
    assert gateway.deliveries.wait_until(lambda entries: entries[-1].code == 62101)


def test_an_interim_answer_is_taken_for_the_final_one_by_a_client_that_does_not_know_it(
    gateway: DemoGateway, asker: Asker
) -> None:
    asker.ask_token()
    gateway.order(Fault("interim"))
    assert asker.my_flow().status == 102
    asker.connection.close()


def test_a_client_that_asks_to_close_the_connection_has_it_closed_and_announced(
    gateway: DemoGateway, asker: Asker
) -> None:
    asker.ask_token()
    query = {"action": "getMyFlow", "userId": USER, "orgId": ORG}
    for kind in ("none", "twice"):
        gateway.order(Fault(kind, seconds=0))  # type: ignore[arg-type]
        with socket.create_connection(asker.connection.sock.getpeername()) as connection:
            lines = [f"GET {FLOWS_PATH}?{urlencode(query)} HTTP/1.1", "Connection: close"]
            lines += [f"{name}: {value}" for name, value in asker.headers(query).items()]
            connection.sendall("\r\n".join([*lines, "", ""]).encode())
            with connection.makefile("rb") as stream:
                everything = stream.read()
        assert everything.count(b"Connection: close\r\n") == everything.count(b"HTTP/1.1 200") == 1 + (kind == "twice")
        assert not gateway.deliveries.entries()[-1].kept_open


@pytest.mark.parametrize("kind", ["drip_head", "drip_body", "delay"])
def test_a_slow_answer_that_is_waited_for_is_whole(gateway: DemoGateway, asker: Asker, kind: Any) -> None:
    gateway.order(Fault(kind, seconds=0))
    assert len(asker.ids()) == 20
    assert gateway.deliveries.wait_until(lambda entries: entries[-1].sent)
    assert len(gateway.deliveries.entries()[-1].flows or ()) == 20


@pytest.mark.parametrize("kind", ["hang", "drip_head", "drip_body", "delay"])
def test_closing_the_gateway_ends_all_waiting_clients(gateway: DemoGateway, asker: Asker, kind: Any) -> None:
    asker.ask_token()
    order = gateway.order(Fault(kind, seconds=1000))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: asker.my_flow().read())
        assert order.reached.wait(20)
        gateway.close()
        with pytest.raises((http.client.HTTPException, OSError)):
            waiting.result(20)
    assert no_thread_serves()
    assert not gateway.deliveries.entries()[-1].sent


def test_a_hang_ends_when_the_client_leaves(gateway: DemoGateway, asker: Asker) -> None:
    asker.ask_token()
    asker.connection.timeout = 0.2
    asker.connection.close()
    gateway.order(Fault("hang"))
    with pytest.raises(TimeoutError):
        asker.my_flow()
    asker.connection.close()
    for thread in gateway.drop_connections():
        thread.join(20)
    assert no_thread_serves()


def test_a_client_that_did_not_wait_was_not_served(gateway: DemoGateway, asker: Asker) -> None:
    asker.ask_token()
    asker.connection.close()
    asker.connection.timeout = 0.1
    gateway.order(Fault("delay", seconds=0.5))
    with pytest.raises(TimeoutError):
        asker.my_flow()
    asker.connection.close()
    assert gateway.deliveries.wait_until(lambda entries: len(entries) == 2)
    assert not gateway.deliveries.entries()[-1].sent


def test_a_closed_gateway_refuses_connections_and_opens_again_at_the_same_address(
    gateway: DemoGateway, asker: Asker
) -> None:
    asker.ask_token()
    url = gateway.url
    gateway.close()
    asker.connection.close()
    with pytest.raises(ConnectionRefusedError):
        asker.my_flow()
    gateway.start()
    assert gateway.url == url
    assert asker.code() == 0


def test_dropped_connections_are_only_connections(gateway: DemoGateway, asker: Asker) -> None:
    assert asker.code() == 0
    for thread in gateway.drop_connections():
        thread.join(20)
    with pytest.raises((http.client.RemoteDisconnected, OSError)):
        asker.my_flow()
    assert asker.code() == 0


# Orders


def test_a_fault_affects_only_its_users_and_only_so_often(gateway: DemoGateway, asker: Asker) -> None:
    other = gateway.world.users(ORG)[1]
    order = gateway.order(Fault("code", code=99500, times=2, org=ORG, user=other))
    gateway.order(Fault("code", code=62103, times=1, org="another"))
    gateway.order(Fault("code", code=1005, times=None, endpoint="token"))
    assert not order.reached.is_set()
    gateway.clear_faults()
    asker.ask_token()
    order = gateway.order(Fault("code", code=99500, times=2, org=ORG, user=other))
    remote = gateway.order(Fault("code", code=62103, org="another"))
    assert asker.code() == 0
    assert [asker.code(userId=other) for _ in range(3)] == [99500, 99500, 0]
    assert (order.reached.is_set(), order.met, remote.met) == (True, 2, 0)


def test_a_fault_without_a_number_lasts_until_it_is_cleared(gateway: DemoGateway, asker: Asker) -> None:
    asker.ask_token()
    gateway.order(Fault("code", code=62109, times=None, endpoint="any"))
    assert [asker.code() for _ in range(3)] == [62109] * 3
    gateway.clear_faults()
    assert asker.code() == 0


# Delivery log and counters


def test_the_delivery_log_says_what_each_request_was_and_got(gateway: DemoGateway, world: World, asker: Asker) -> None:
    asker.ids(expression="a")
    token, flows = gateway.deliveries.entries()
    assert (token.endpoint, token.path, token.status, token.code) == ("token", TOKEN_PATH, 200, 0)
    assert (flows.org, flows.user, flows.expression) == (ORG, USER, "a")
    assert (flows.number, flows.endpoint, flows.verdict, flows.code) == (2, "flows", "ok", 0)
    assert flows.timestamp == str(asker.clock)
    assert flows.flows == world.flows(ORG, USER, "a")
    assert flows.answered_at is not None
    assert flows.received_at <= flows.answered_at
    assert gateway.deliveries.entries(after=1) == [flows]


def test_the_delivery_log_file_has_an_answer_before_the_client_has_it_whole(world: World, tmp_path: Path) -> None:
    path = tmp_path / "deliveries.jsonl"
    with DemoGateway(world, auth="none", deliveries_file=path) as gateway:
        asker = Asker(gateway.url)
        asker.token = "not needed"
        for count in range(1, 20):
            asker.my_flow().read()
            lines = path.read_bytes().splitlines()
            assert len(lines) == count
        entries = [msgspec.json.decode(line, type=Delivery) for line in lines]
        assert entries == gateway.deliveries.entries()
        gateway.order(Fault("drip_body", seconds=0))
        asker.my_flow().read()
        last, final = (msgspec.json.decode(line, type=Delivery) for line in path.read_bytes().splitlines()[-2:])
        assert (last.number, last.sent, final.number, final.sent) == (20, False, 20, True)
        asker.connection.close()


def test_one_can_wait_for_a_delivery(gateway: DemoGateway, asker: Asker) -> None:
    looked = threading.Event()

    def both_went_out(entries: Sequence[Delivery]) -> bool:
        looked.set()
        return len(entries) == 2

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(gateway.deliveries.wait_until, both_went_out, timeout_seconds=30)
        assert looked.wait(20)
        asker.my_flow().read()
        assert waiting.result(10)


def test_an_entry_changes_only_when_its_fate_does() -> None:
    deliveries = DeliveryLog()
    entry = Delivery(received_at=dt.datetime.now(dt.UTC), endpoint="flows", path="/")
    flows = (Flow("1", "a", "D", True),)
    deliveries.put(entry, True, flows)
    deliveries.put(entry, True, None)
    assert deliveries.entries()[0].flows == flows
    deliveries.put(entry, False, flows)
    assert deliveries.entries()[0].flows is None
    assert not deliveries.wait_until(lambda entries: len(entries) > 1, timeout_seconds=0)


def test_the_counters_know_how_many_were_in_flight_at_once(gateway: DemoGateway, asker: Asker) -> None:
    asker.ask_token()
    askers = [Asker(gateway.url) for _ in range(4)]
    orders = [gateway.order(Fault("delay", seconds=1000)) for _ in askers]
    with ThreadPoolExecutor(len(askers)) as pool:
        for number, other in enumerate(askers):
            other.token, other.clock = asker.token, asker.clock + 1000 * (number + 1)
            pool.submit(other.my_flow)
        assert all(order.reached.wait(20) for order in orders)
        gateway.close()
    for other in askers:
        other.connection.close()
    counters = gateway.counters
    assert (counters.max_in_flight, counters.in_flight, counters.bad_signatures) == (4, 0, 0)
    assert (counters.token_calls, counters.flow_calls) == (1, 4)


def test_many_threads_each_get_their_own_list(world: World, gateway: DemoGateway, asker: Asker) -> None:
    asker.ask_token()
    users = world.users(ORG)
    truth = {user: {flow.flow_id for flow in world.flows(ORG, user)} for user in users}

    def ask(number: int) -> bool:
        mine, user = Asker(gateway.url), users[number % 2]
        mine.token, mine.clock = asker.token, asker.clock + 1000 * (number + 1)
        right = all(set(mine.ids(userId=user)) == truth[user] for _ in range(20))
        mine.connection.close()
        return right

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(8)))
    assert gateway.counters.bad_signatures == 0


# The world


def everything(world: World) -> dict[tuple[str, str], tuple[Flow, ...]]:
    return {(org, user): world.flows(org, user) for org in world.orgs() for user in world.users(org)}


def test_the_same_seed_and_number_of_steps_give_the_same_world() -> None:
    one, two = (World(7, orgs=2, users=3, flows=30) for _ in range(2))
    one.evolve(5)
    for _ in range(5):
        two.evolve()
    assert everything(one) == everything(two)
    assert everything(World(7, orgs=2, users=3, flows=30)) != everything(one)
    assert everything(World(8, orgs=2, users=3, flows=30)) != everything(World(7, orgs=2, users=3, flows=30))


def test_users_of_an_organisation_overlap_without_being_alike() -> None:
    world = World(users=2, flows=40)
    first, second = ({flow.flow_id for flow in world.flows(ORG, user)} for user in world.users(ORG))
    assert len(first) == len(second) == 40
    assert first & second
    assert first != second


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


def test_edits_reach_the_users_concerned() -> None:
    world = World(orgs=0)
    world.set_flows("o", "u1", [Flow("1", "a", "D", True)])
    world.add_user("o", "u2", [Flow("1", "a", "D", False)])
    world.rename("o", "1", "b")
    world.set_cycle("o", "1", "mi")
    world.set_editable("o", "u2", "1", True)
    world.add_flow("o", Flow("2", "c", "M", True), ["u2"])
    assert world.flows("o", "u1") == (Flow("1", "b", "mi", True),)
    assert world.flows("o", "u2") == (Flow("1", "b", "mi", True), Flow("2", "c", "M", True))
    world.remove_flow("o", "1")
    world.remove_user("o", "u2")
    assert world.flows("o", "u1") == ()
    assert (world.orgs(), world.users("o")) == (["o"], ["u1"])


def test_a_missing_workflow_cannot_be_edited() -> None:
    world = World()
    with pytest.raises(KeyError):
        world.rename(ORG, "no such workflow", "x")
    with pytest.raises(UnknownUser):
        world.remove_user(ORG, "nobody")
    with pytest.raises(UnknownOrg):
        world.flows("nowhere", USER)


# Its own process


def test_as_a_process_it_serves_is_edited_and_stops_on_sigterm(tmp_path: Path) -> None:
    deliveries = tmp_path / "deliveries.jsonl"
    command = [sys.executable, "-m", "etl.demo", "--flows", "5", "--access-key", KEY, "--secret-key", SECRET]
    command += ["--admin", "--deliveries", str(deliveries)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        asker = Asker(process.stdout.readline().strip())

        def admin(method: str, name: str, **given: Any) -> Any:
            response = asker.send(method, f"/_demo/{name}", json.dumps(given).encode())
            return response.status, json.load(response)

        assert len(asker.ids()) == 5
        edit = {"edit": "add_flow", "org": ORG, "flow": ["new", "n", "D", True]}
        assert admin("POST", "edit", **edit)[0] == 200
        assert len(asker.ids()) == 6
        assert admin("POST", "evolve", steps=2)[0] == 200
        assert admin("POST", "faults", kind="code", code=62109, times=None)[0] == 200
        assert asker.code() == 62109
        assert admin("DELETE", "faults")[0] == 200
        assert asker.code() == 0
        assert admin("POST", "faults", kind="nonsense")[0] == 400
        assert admin("POST", "edit", edit="__init__")[0] == 400
        assert [entry["code"] for entry in admin("GET", "deliveries?after=1")[1]] == [0, 0, 62109, 0]
        assert admin("GET", "counters")[1]["flow_calls"] == 4
        asker.connection.close()
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (0, "")
    assert len(deliveries.read_bytes().splitlines()) == 5


def test_a_process_that_evolves_changes_by_itself() -> None:
    command = [sys.executable, "-m", "etl.demo", "--auth", "none", "--evolve-every", "0.01"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        asker = Asker(process.stdout.readline().strip())
        asker.token = "not needed"
        first = set(asker.ids())
        assert any(set(asker.ids()) != first for _ in range(10_000))
        asker.connection.close()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    assert process.returncode == 0
