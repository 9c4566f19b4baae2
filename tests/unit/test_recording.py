"""The file of `flowtrail check --record`: enough for a test case, without personal data."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
from collections.abc import Callable
from typing import Any

import pytest

from etl.domain.model import Target
from etl.errors import GatewayError
from etl.gateway import Gateway, Recorder
from tests.support.gateways import ACCESS_KEY, SECRET, settings_for
from tests.support.hostile import TOKEN, Hostile, Step, http

NOW = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)
PRIVATE = ("Ada Lovelace", "settlement_2026", "org-canary", "user-canary", "flow-canary", ACCESS_KEY, SECRET, TOKEN)


ASKS: dict[str, Callable[[Gateway], object]] = {
    "flows": lambda gateway: gateway.fetch(Target("org-canary", "user-canary", "settlement_2026"), own_connection=True),
    "roster": lambda gateway: gateway.roster("org-canary"),
    "search": lambda gateway: gateway.search("org-canary", "user-canary", 1),
}


def recorded(*steps: Step, ask: str = "flows") -> list[dict[str, Any]]:
    recorder = Recorder()
    with (
        Hostile(*steps) as server,
        Gateway(settings_for(server.url, auth="token", deadline=1), exchanged=recorder) as gateway,
        contextlib.suppress(GatewayError),
    ):
        ASKS[ask](gateway)
    written = recorder.encoded("1.0", NOW).decode()
    assert [each for each in PRIVATE if each in written] == []
    exchanges: list[dict[str, Any]] = json.loads(written)["exchanges"]
    return exchanges


def listing(*items: object, **envelope: object) -> Step:
    return http(json.dumps({"code": 0, "msg": "Ada Lovelace", "requestId": "flow-canary"} | envelope | {"data": items}))


def test_shapes_and_lengths_are_written_and_no_text_or_id() -> None:
    item = {"flowId": "flow-canary", "flowName": "Ada Lovelace", "cycle": "D", "editable": True}
    token, flows = recorded(listing(item, item | {"flowId": 7, "owner": None}))
    assert (token["call"], token["status"], token["error_code"]) == ("token", 200, None)
    assert token["body"]["data"]["accessToken"] == f"string({len(TOKEN)})"
    assert (flows["call"], flows["method"], flows["error_code"]) == ("flows", "GET", None)
    assert flows["parameters"] == ["action", "expression", "orgId", "userId"]
    assert flows["headers"]["Content-Length"].isdigit()
    body = flows["body"]
    assert (body["code"], body["msg"]) == (0, "string(12)")
    assert body["requestId"].startswith("string #")
    assert (body["data"]["list"], body["data"]["different"]) == (2, 2)
    first, second = (each["shape"] for each in body["data"]["of"])
    assert first == {"flowId": "string", "flowName": "string", "cycle": "string", "editable": "boolean"}
    assert second == first | {"flowId": "integer", "owner": "null"}


@pytest.mark.parametrize(
    ("step", "code", "body"),
    [
        (http("<html>Ada Lovelace</html>"), "malformed", {"no JSON": "HTML or XML"}),
        (http("Ada Lovelace"), "malformed", {"no JSON": "something else"}),
        (http(""), "malformed", {"no JSON": "empty"}),
        (http('{"code":62101,"msg":"Ada Lovelace"}'), "62101", {"code": 62101, "msg": "string(12)"}),
        (http('{"Ada Lovelace":1}'), "malformed", {"(12)": "integer"}),
        (http('{"status":0,"data":[]}'), "malformed", {"status": 0, "data": {"list": 0, "different": 0, "of": []}}),
        (http('{"code":"Ada Lovelace"}'), "malformed", {"code": "string(12)"}),
    ],
)
def test_an_invalid_answer_is_written_with_its_reading(step: Step, code: str, body: object) -> None:
    found = recorded(step)[-1]
    assert (found["error_code"], found["body"]) == (code, body)


def test_headers_that_are_not_http_s_own_are_written_by_name_and_length() -> None:
    reply = b"HTTP/1.1 200 OK\r\nX-Request-Id: Ada Lovelace\r\nSet-Cookie: user-canary\r\nContent-Length: 2\r\n\r\n{}"
    headers = recorded(reply)[-1]["headers"]
    assert headers == {"X-Request-Id": "(12)", "Set-Cookie": "(11)", "Content-Length": "2"}


def test_a_roster_is_written_without_its_users() -> None:
    users = [{"userId": f"user-canary-{number}", "name": "Ada Lovelace"} for number in range(3)]
    data = {"users": users, "pagination": {"totalElements": 3, "pageNo": 0, "pageSize": 1000}}
    body = recorded(http(json.dumps({"code": 200, "data": data})), ask="roster")[-1]["body"]
    assert body["code"] == 200
    assert body["data"]["pagination"] == {"totalElements": 3, "pageNo": 0, "pageSize": 1000}
    assert (body["data"]["users"]["list"], body["data"]["users"]["different"]) == (3, 3)


def test_the_first_page_of_a_search_is_written_without_its_workflows() -> None:
    found = recorded(listing({"flowId": "flow-canary", "flowName": "Ada Lovelace"}), ask="search")[-1]
    assert (found["call"], found["method"], found["error_code"]) == ("search", "POST", None)
    assert found["parameters"] == ["action", "orgId", "userId"]
    assert found["body"]["data"]["of"] == [{"items": 1, "shape": {"flowId": "string", "flowName": "string"}}]


def test_a_tree_is_written_as_the_list_of_its_nodes() -> None:
    def file(key: object) -> dict[str, object]:
        return {"title": "Ada Lovelace", "type": 1, "key": key, "isDirectory": False}

    def directory(*children: object) -> dict[str, object]:
        return {"children": children, "title": "Ada Lovelace", "key": "flow-canary", "isDirectory": True}

    body = recorded(listing(directory(file(2512), directory(file(2512.0), file("2513"))), directory()))[-1]["body"]
    tree = body["data"]
    assert (tree["list"], tree["different"], tree["levels"]) == (6, 6, 3)
    node = {"title": "string", "key": "string", "isDirectory": "boolean"}
    shapes = {each["items"]: each["shape"] for each in tree["of"] if each["items"] > 1}
    assert shapes == {3: node | {"children": "list"}}
    assert sorted(each["shape"]["key"] for each in tree["of"] if each["items"] == 1) == [
        "fraction",
        "integer",
        "string",
    ]
