"""The public documentation of EnOS, written as tests: each request byte for byte, each sample answer with its quirks.

The samples are shortened to what matters, and keep what is odd in them: a misspelt key, integers where another call has
texts, two codes for a success, names without quotes, and quotes inside a text that nobody escaped.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import pytest

from etl import __version__
from etl.config import GatewaySettings, Secret
from etl.domain.model import Flow, Target
from etl.errors import GatewayError, Malformed
from etl.gateway import Gateway
from etl.gateway.calls import signature
from tests.support.hostile import Hostile, http

KEY, SECRET, TOKEN = "yourAccessKey", "yourSecretKey", "yourToken"
NOW = dt.datetime(2019, 11, 1, 2, 21, 49, 697000, dt.UTC)
NOW_MS: Final = "1572574909697"

TOKEN_SAMPLE = (
    '{"stauts":0,"msg":"SUCCESS","business":"apim-token-service","data":{"accessToken":"yourToken","expire":7200}}'
)


@contextlib.contextmanager
def enos(sample: str = "", *, auth: str = "none", api: str = "v2.1") -> Iterator[tuple[Gateway, Hostile]]:
    """A client at the time of the documentation, and a server that answers each request with the sample."""
    with Hostile(http(sample), tokens=(http(TOKEN_SAMPLE),)) as server:
        given = GatewaySettings(
            url=server.url,
            access_key=KEY,
            secret_key=Secret(SECRET),
            auth=auth,  # type: ignore[arg-type]
            api=api,  # type: ignore[arg-type]
            deadline=dt.timedelta(seconds=10),
        )
        with Gateway(given, clock=lambda: NOW) as gateway:
            yield gateway, server


PRINTED = [
    *(("3318", "reduce_entity"), ("2809", "map"), ("3257", "shell"), ("2515", "testWorkflow122"), ("2980", "8")),
    ("2979", "integrattt"),
]
LISTED = ",\n".join(
    f'{{\n"flowId": "{number}",\n"editable": true,\n"flowName": "{name}",\n"cycle": "D"\n}}' for number, name in PRINTED
)
FLOWS = tuple(Flow(number, name, "D", True) for number, name in sorted(PRINTED))
EDGE_LISTED = f"[{LISTED}]".replace("flowId", "flow_id").replace("flowName", "flow_name")
ONE_LISTED = '{"flowId": 2526, "editable": true, "flowName": "testIns", "cycle": "mi"}'
"""Of the Chinese pages, where flowId is an Integer in the table and in the sample below it."""
NO_NUMBER = '{"flowId": "FLOW_001", "editable": true, "flowName": "data_processing", "cycle": "D"}'
"""Of the pages for the release after 3.0.0."""
FLOW_DATA = (
    '{"virtual":false,"freq":"0 0 0 * * ? *","type":1,"cycle":"D","alertMode":3,"hasEditPri":true,'
    '"startTime":"2019-07-23","locked":false,"flowId":2515,"owner":";yourOwners;","creator":"yourCreator",'
    '"updateUser":"yourUpdateUser","active":0,"updateTime":"2019-08-08 05:51:43.0","flowName":"fpostm","graph":%s}'
)
ESCAPED_GRAPH = r'"{\"creator\":\"yourCreator \",\"flows\":[{\"x\":8.0E-4,\"flow_name\":\"jin\"}]}"'
PRINTED_GRAPH = '"{"creator":"yourCreator ","flows":[{"x":8.0E-4,"flow_name":"jin"}]}"'
USERS = '"users":[{"userId":%s,"email":"1234","phone":"","phoneArea":"","name":"1234"}]'
SINCE_300 = (
    '"domain":"","createdTime":"1750302616000","joinTime":"1750302616000","department":"","company":"","position":"",'
    '"nickName":"","updatedTime":"1750302616000"'
)
PAGINATION = '"pagination":{"totalElements":1,"pageNo":0,"pageSize":1000}'
ROSTER_BODY = '{"orgId":"yourOrgId","pagination":{"pageNo":0,"pageSize":1000,"sorters":[]}}'


def users_sample(code: int, user_id: str) -> str:
    return f'{{"code":{code},"message":"","data":{{{USERS % user_id},{PAGINATION}}}}}'


TARGET = Target("yourOrgId", "yourUserId")
Ask = Callable[[Gateway], object]


class Documented(NamedTuple):
    """A call as the documentation has it."""

    name: str
    api: str
    ask: Ask
    line: str
    sample: str
    body: str = ""
    signed: str = ""
    """What the signature is made over, between token and time."""
    answer: object = None
    """What is read from the sample; None: as ANSWERS has it."""


def lists(expression: str = "") -> Ask:
    return lambda gateway: gateway.fetch(TARGET._replace(expression=expression), own_connection=True).flows


def asks_for_flow(gateway: Gateway) -> object:
    return gateway.detail("yourOrgId", "2515", "yourUserId", 10).update_user


def asks_for_directory(gateway: Gateway) -> object:
    return gateway.fetch(Target("yourOrgId", ""), asked_as="yourUserId", own_connection=True).flows


def searches(gateway: Gateway) -> object:
    return gateway.search("yourOrgId", "yourUserId", 10)


def asks_for_timezone(gateway: Gateway) -> object:
    return gateway.timezone(10)


def asks_for_users(gateway: Gateway) -> object:
    return gateway.roster("yourOrgId")


V21_TREE, V20_TREE = "/batch-processing-service/v2.1/directories", "/dataflow-batch-service/v2.0/directories"
V21, V20 = "/batch-processing-service/v2.1/flows", "/dataflow-batch-service/v2.0/flows"
OK, SUCCESS = '{"code":0,"msg":"OK","data":%s}', '{"status":0,"msg":"Success","data":%s}'
TIMEZONE = '{"timezone":"GMT+8"}'
TREE = """[{"children": [
  {"children": [], "title": "String1", "type": 1, "key": "***************", "isDirectory": true},
  {"children": [{"editable": true, "title": "workflow1", "type": 1, "key": 2512, "isDirectory": false}],
   "title": "ffdir", "type": 1, "key": "**************", "isDirectory": true}],
 "title":"Workflow", "type": 1, "key": "249a33bd419a4710b1567f5088f8955b", "isDirectory": true}]"""
FILE = '{"editable": true, "title":"newdir", "type": 1, "key": 3381.0, "isDirectory":false}'
"""A WorkFlowFile Struct of the Chinese pages, where key and type are a Float."""
SEARCHED = '[{"flowId": "21", "flowName": "dim_wtg_full"}]'
SEARCH_BODY = '{"expression":"","pagination":{"pageNo":%d,"pageSize":50,"sorters":[]}}'
WHO = "orgId=yourOrgId&userId=yourUserId"
SIGNED_WHO = "orgIdyourOrgIduserIdyourUserId"
CALLS = [
    Documented(
        "Get My Flow", "v2.1", lists(), f"GET {V21}?action=getMyFlow&{WHO}", OK % f"[{LISTED}]",
        signed=f"actiongetMyFlow{SIGNED_WHO}",
    ),
    Documented(
        "Get My Flow, in Chinese", "v2.1", lists(), f"GET {V21}?action=getMyFlow&{WHO}", OK % f"[{ONE_LISTED}]",
        signed=f"actiongetMyFlow{SIGNED_WHO}", answer=(Flow("2526", "testIns", "mi", True),),
    ),
    Documented(
        "Get My Flow, after 3.0.0", "v2.1", lists(), f"GET {V21}?action=getMyFlow&{WHO}", OK % f"[{NO_NUMBER}]",
        signed=f"actiongetMyFlow{SIGNED_WHO}", answer=(Flow("FLOW_001", "data_processing", "D", True),),
    ),
    Documented(
        "Get My Flow, searched", "v2.1", lists("a b"), f"GET {V21}?action=getMyFlow&expression=a%20b&{WHO}",
        OK % f"[{LISTED}]",
        signed=f"actiongetMyFlowexpressiona b{SIGNED_WHO}",
    ),
    Documented(
        "Get My Flow, 2.0", "v2.0", lists(), f"GET {V20}?action=getMyFlow&{WHO}", SUCCESS % f"[{LISTED}]",
        signed=f"actiongetMyFlow{SIGNED_WHO}",
    ),
    Documented(
        "Get My Flow, 2.0, searched", "v2.0", lists("x"),
        f"GET {V20}?action=getMyFlow&orgId=yourOrgId&searchValue=x&userId=yourUserId", SUCCESS % f"[{LISTED}]",
        signed="actiongetMyFloworgIdyourOrgIdsearchValuexuserIdyourUserId",
    ),
    Documented(
        "Get My Flow, EnOS Edge", "v2.0", lists(), f"GET {V20}?action=getMyFlow&{WHO}",
        SUCCESS % EDGE_LISTED,
        signed=f"actiongetMyFlow{SIGNED_WHO}",
    ),
    Documented(
        "Get Flow", "v2.1", asks_for_flow, f"GET {V21}?action=get&flowId=2515&{WHO}",
        OK % (FLOW_DATA % ESCAPED_GRAPH), signed=f"actiongetflowId2515{SIGNED_WHO}",
    ),
    Documented(
        "Get Flow, 2.0", "v2.0", asks_for_flow, f"GET {V20}?action=get&flowId=2515&{WHO}",
        SUCCESS % (FLOW_DATA % ESCAPED_GRAPH), signed=f"actiongetflowId2515{SIGNED_WHO}",
    ),
    Documented(
        "Search Flow", "v2.1", searches, f"POST {V21}?action=search&{WHO}", OK % SEARCHED, SEARCH_BODY % 1,
        f"actionsearch{SIGNED_WHO}{SEARCH_BODY % 1}",
    ),
    Documented(
        "Search Flow, EnOS Edge", "v2.0", searches, f"POST {V20}?action=search&{WHO}",
        SUCCESS % SEARCHED.replace("flowId", "flow_id").replace("flowName", "flow_name"), SEARCH_BODY % 0,
        f"actionsearch{SIGNED_WHO}{SEARCH_BODY % 0}",
    ),
    Documented(
        "List Workflow Directories", "v2.1", asks_for_directory, f"GET {V21_TREE}?action=listWorkFlowDirs&{WHO}",
        OK % TREE, signed=f"actionlistWorkFlowDirs{SIGNED_WHO}",
    ),
    Documented(
        "List Workflow Directories, 2.0, EnOS Edge", "v2.0", asks_for_directory,
        f"GET {V20_TREE}?action=listWorkFlowDirs&{WHO}", SUCCESS % TREE, signed=f"actionlistWorkFlowDirs{SIGNED_WHO}",
    ),
    Documented(
        "List Workflow Directories, in Chinese, after 3.0.0", "v2.1", asks_for_directory,
        f"GET {V21_TREE}?action=listWorkFlowDirs&{WHO}", OK % f"[{FILE}]", signed=f"actionlistWorkFlowDirs{SIGNED_WHO}",
        answer=(Flow("3381", "newdir", None, None),),
    ),
    Documented(
        "Get Timezone", "v2.1", asks_for_timezone, "GET /batch-processing-service/v2.1/time?action=getTimeZone",
        OK % TIMEZONE, signed="actiongetTimeZone",
    ),
    Documented(
        "Get Timezone, 2.0", "v2.0", asks_for_timezone, "GET /dataflow-batch-service/v2.0/time?action=getTimeZone",
        SUCCESS % TIMEZONE, signed="actiongetTimeZone",
    ),
    Documented(
        "Get Organization User List", "v2.1", asks_for_users, "POST /app-portal-service/v2.2/user/organization/roster",
        users_sample(0, '"userId_1"'), ROSTER_BODY, ROSTER_BODY,
    ),
    Documented(
        "Get Organization User List, 3.0.0", "v2.1", asks_for_users,
        "POST /app-portal-service/v2.2/user/organization/roster",
        users_sample(0, '"userId_1"').replace('"name":"1234"', f'"name":"1234",{SINCE_300}'), ROSTER_BODY, ROSTER_BODY,
    ),
    Documented(
        "Get Organization User List, 2.0", "v2.0", asks_for_users,
        "POST /app-portal-service/v2.0/user/organization/roster",
        users_sample(200, '"userId_1"'), ROSTER_BODY, ROSTER_BODY,
    ),
]  # fmt: skip
ANSWERS = {
    "Get My Flow": FLOWS,
    "Get Timezone": "GMT+8",
    "Get Flow": "yourUpdateUser",
    "List Workflow Directories": (Flow("2512", "workflow1", None, None),),
    "Search Flow": 1,
    "Get Organization User List": {"userId_1"},
}


@pytest.mark.parametrize("call", CALLS, ids=[call.name for call in CALLS])
def test_each_documented_request_goes_out_byte_for_byte_and_its_sample_is_read(call: Documented) -> None:
    with enos(call.sample, auth="token", api=call.api) as (gateway, server):
        found = call.ask(gateway)
    assert found == (call.answer or ANSWERS[call.name.partition(",")[0]])
    request = server.requests[1]
    line, *headers = request.lines
    assert line == f"{call.line} HTTP/1.1"
    assert request.body.decode() == call.body
    proof = hashlib.sha256(f"{TOKEN}{call.signed}{NOW_MS}{SECRET}".encode()).hexdigest()
    expected = {
        f"Host: 127.0.0.1:{server.port}",
        "Accept: application/json",
        "Accept-Encoding: gzip",
        "Cache-Control: no-cache",
        f"User-Agent: flowtrail/{__version__}",
        f"apim-accesstoken: {TOKEN}",
        f"apim-timestamp: {NOW_MS}",
        f"apim-signature: {proof}",
    }
    if call.body:
        expected |= {"Content-Type: application/json", f"Content-Length: {len(call.body)}"}
    assert set(headers) - {"Connection: close"} == expected


def test_the_token_request_goes_out_byte_for_byte_and_its_misspelt_sample_is_read() -> None:
    with enos(auth="token") as (gateway, server):
        assert gateway.check_token().startswith("valid")
    (request,) = server.requests
    assert request.lines[0] == "POST /apim-token-service/v2.0/token/get HTTP/1.1"
    assert "Content-Type: application/json" in request.lines
    assert not any(line.startswith("apim-") for line in request.lines)
    proof = hashlib.sha256(f"{KEY}{NOW_MS}{SECRET}".encode()).hexdigest()
    assert request.body.decode() == f'{{"appKey":"{KEY}","encryption":"{proof}","timestamp":{NOW_MS}}}'


def test_the_signature_of_the_documentation_is_ours() -> None:
    body = '{\n  "count": 20,\n  "page": 1,\n  "desc": "描述"\n}'
    found = signature("xxxxaaaxxxx", {"k3": "v3", "k1": "v1", "k2": "v2"}, int(NOW_MS), "xxxappSecretxxx", body)
    assert str(found) == "59828328f6c1f9771015dc74e4929ae30f518a35a3d2353972c2ea46556fc981"
    assert repr(found) == "'***'"


AS_PRINTED = [
    ("a graph whose quotes are not escaped", "v2.1", asks_for_flow, OK % (FLOW_DATA % PRINTED_GRAPH)),
    ("users whose ids have no quotes", "v2.1", asks_for_users,
     users_sample(0, "userId_1")),
    ("a directory without a comma", "v2.1", asks_for_directory, OK % TREE.replace("[],", "[]")),
    ("a file without a colon", "v2.1", asks_for_directory, OK % f"[{FILE}]".replace('"isDirectory":', '"isDirectory"')),
    ("a code 200 in place of 0 of another call", "v2.1", lists(), OK.replace("0", "200") % f"[{LISTED}]"),
    ("a version 2.0 answer to version 2.1", "v2.1", lists(), SUCCESS % f"[{LISTED}]"),
    ("a version 2.1 answer to version 2.0", "v2.0", lists(), OK % f"[{LISTED}]"),
]  # fmt: skip


@pytest.mark.parametrize(("api", "ask", "sample"), [a[1:] for a in AS_PRINTED], ids=[a[0] for a in AS_PRINTED])
def test_a_printed_sample_that_cannot_be_an_answer_is_an_error_and_not_a_guess(api: str, ask: Ask, sample: str) -> None:
    with enos(sample, api=api) as (gateway, _), pytest.raises(GatewayError):
        ask(gateway)


ERRORS = [
    (lists(), "v2.1", '{"code":62101,"msg":"no such user","data":null}', "62101"),
    (lists(), "v2.1", '{"code":62103,"msg":"no privilege"}', "62103"),
    (lists(), "v2.1", '{"code":99400,"msg":"bad argument"}', "99400"),
    (lists(), "v2.1", '{"code":99403,"msg":"denied"}', "99403"),
    (lists(), "v2.1", '{"code":99404,"msg":"not found"}', "99404"),
    (lists(), "v2.0", '{"status":62101,"msg":"no such user","data":null}', "62101"),
    (asks_for_flow, "v2.1", '{"code":62103,"msg":"no privilege"}', "62103"),
    (asks_for_directory, "v2.1", '{"code":62101,"msg":"no such user"}', "62101"),
    (asks_for_timezone, "v2.1", '{"code":99403,"msg":"denied"}', "99403"),
    (asks_for_users, "v2.1", '{"code":31400,"message":"required"}', "31400"),
    (asks_for_users, "v2.1", '{"code":31403,"message":"not authorized"}', "31403"),
    (asks_for_users, "v2.1", '{"code":31404,"message":"can not find"}', "31404"),
]


@pytest.mark.parametrize(("ask", "api", "sample", "code"), ERRORS, ids=[f"{e[1]} {e[3]}" for e in ERRORS])
def test_each_documented_error_code_is_that_error(ask: Ask, api: str, sample: str, code: str) -> None:
    with enos(sample, api=api) as (gateway, _), pytest.raises(GatewayError) as caught:
        ask(gateway)
    assert caught.value.code == code
    assert not isinstance(caught.value, Malformed)
