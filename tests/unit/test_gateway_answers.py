"""Valid and invalid answers of Get My Flow."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import random
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl.config import ApiVersion
from etl.domain.model import Flow
from etl.errors import GatewayError, GatewayUnreachable, Malformed, Refused, TransientGatewayError
from etl.gateway import reread_strictly
from etl.gateway.answer import read_envelope, read_flows
from etl.gateway.calls import APIS
from etl.gateway.errors import excerpt
from tests.support.gateways import outcome, read, snapshot

NOW = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)
ITEM = b'{"flowId":"1"}'


def listing(items: bytes) -> bytes:
    return b'{"code":0,"msg":"OK","data":[' + items + b"]}"


def item(**fields: Any) -> bytes:
    return json.dumps({"flowId": "1"} | fields).encode()


MALFORMED: list[tuple[str, bytes, str]] = [
    ("empty body", b"", "empty"),
    ("blank body", b" \r\n ", "empty"),
    ("HTML", b"<!DOCTYPE html><title>Sign in</title>", "HTML"),
    ("text", b"Service is starting", "not JSON"),
    ("byte order mark", b"\xef\xbb\xbf" + listing(ITEM), "byte order mark"),
    ("UTF-16", listing(ITEM).decode().encode("utf-16"), "not JSON"),
    ("null", b"null", "null"),
    ("a list", b"[]", "array"),
    ("a number", b"0", "int"),
    ("a string", b'"OK"', "str"),
    ("a part of another value", b'"cut', "not JSON"),
    ("a bracket of another kind", listing(ITEM)[:-2] + b"}", "not JSON"),
    ("half a character at its end", b'{"code":0,"data":[],"x":"\\ud800"}', "lone surrogate"),
    ("something after the end", listing(ITEM) + b"x", "not JSON"),
    ("two answers", listing(ITEM) * 2, "not JSON"),
    ("a trailing comma", b'{"code":0,"data":[],}', "not JSON"),
    ("single quotes", b"{'code':0,'data':[]}", "not JSON"),
    ("NaN", b'{"code":NaN,"data":[]}', "not JSON"),
    ("code missing", b'{"data":[]}', "no code"),
    ("an older version", b'{"status":0,"data":[]}', 'set [gateway] api = "v2.0"'),
    ("code false", b'{"code":false,"data":[]}', "code is"),
    ("code 0.0", b'{"code":0.0,"data":[]}', "code is"),
    ("code 0e0", b'{"code":0e0,"data":[]}', "code is"),
    ("code as text", b'{"code":"0","data":[]}', "code is"),
    ("an error code as text", b'{"code":"62101","data":[]}', "code is"),
    ("code null", b'{"code":null,"data":[]}', "code is"),
    ("code a list", b'{"code":[0],"data":[]}', "code is"),
    ("code without end", b'{"code":' + b"9" * 5000 + b',"data":[]}', "code is"),
    ("data missing", b'{"code":0}', "no data"),
    ("data null", b'{"code":0,"data":null}', "data is null"),
    ("data an object", b'{"code":0,"data":{}}', "data is an object"),
    ("data a string", b'{"code":0,"data":"[]"}', "data is a string"),
    ("data false", b'{"code":0,"data":false}', "data is a boolean"),
    ("data paged", b'{"code":0,"data":{"items":[],"total":0}}', "data is an object"),
    ("an item null", listing(ITEM + b",null"), "data[1] is null"),
    ("an item a list", listing(ITEM + b',["2"]'), "data[1] is a list"),
    ("an item a string", listing(b'"1"'), "data[0] is a string"),
    ("an empty item", listing(b"{}"), "data[0].flowId is missing"),
    ("flowId missing", listing(ITEM * 0 + b'{"flowName":"a"}'), "data[0].flowId is missing"),
    ("as EnOS Edge spells it", listing(b'{"flow_id":"1"}'), "data[0]"),
    ("flowId in another case", listing(b'{"flowid":"1"}'), "data[0].flowId is missing"),
    ("flowId empty", listing(ITEM + b',{"flowId":"2"},{"flowId":""}'), "data[2].flowId is empty"),
    ("flowId null", listing(item(flowId=None)), "data[0].flowId is null"),
    ("flowId true", listing(item(flowId=True)), "data[0].flowId is a boolean"),
    ("flowId a fraction", listing(b'{"flowId":1.0}'), "data[0].flowId is a fraction"),
    ("flowId with an exponent", listing(b'{"flowId":1e3}'), "data[0].flowId is a fraction"),
    ("flowId a list", listing(item(flowId=["1"])), "data[0].flowId is a list"),
    ("flowId an object", listing(item(flowId={})), "data[0].flowId is an object"),
    ("flowId of 5,000 digits", listing(b'{"flowId":' + b"7" * 5000 + b"}"), "data[0].flowId"),
    ("flowId with NUL", listing(b'{"flowId":"a\\u0000"}'), "data[0].flowId holds a NUL"),
    ("flowId half a character", listing(b'{"flowId":"\\ud800"}'), "data[0].flowId holds a lone surrogate"),
    ("flowName a number", listing(item(flowName=1)), "data[0].flowName is an integer"),
    ("flowName a list", listing(ITEM + b"," + item(flowId="2", flowName=[])), "data[1].flowName is a list"),
    ("flowName with NUL", listing(ITEM + b"," + item(flowId="2", flowName="\0")), "data[1].flowName holds a NUL"),
    ("flowName half", listing(b'{"flowId":"1","flowName":"a\\udc00b"}'), "data[0].flowName holds a lone surrogate"),
    ("half a character in msg", b'{"code":62101,"msg":"\\ud800"}', "lone surrogate"),
    ("half a character elsewhere", listing(b'{"flowId":"1","x":"\\udc00"}'), "lone surrogate"),
    ("cycle a number", listing(item(cycle=1)), "data[0].cycle is an integer"),
    ("cycle true", listing(item(cycle=True)), "data[0].cycle is a boolean"),
    ("cycle with NUL", listing(item(cycle="D\0")), "data[0].cycle holds a NUL"),
    ("editable a string", listing(item(editable="true")), "data[0].editable is a string"),
    ("editable a number", listing(item(editable=1)), "data[0].editable is an integer"),
    ("not UTF-8", listing(b'{"flowId":"1","flowName":"\xff"}'), "not UTF-8"),
    ("Latin-1", listing('{"flowId":"1","flowName":"é"}'.encode("latin-1")), "not UTF-8"),
    ("a surrogate in UTF-8", listing(b'{"flowId":"\xed\xa0\x80"}'), "not UTF-8"),
    ("an overlong NUL", listing(b'{"flowId":"\xc0\x80"}'), "not UTF-8"),
    ("a raw newline", listing(b'{"flowId":"a\nb"}'), "not JSON"),
    ("a raw NUL", listing(b'{"flowId":"a\x00b"}'), "not JSON"),
    ("an unknown escape", listing(b'{"flowId":"\\x41"}'), "not JSON"),
    ("other values for one id", listing(ITEM + b"," + item(cycle="D")), "data[1].flowId is that of data[0]"),
    ("1 and its text differ", listing(b'{"flowId":1},' + item(flowName="a")), "data[1].flowId is that of data[0]"),
    ("nested 200,000 deep", b'{"code":0,"data":' + b"[" * 200_000, "nested"),
    ("an unknown field nested deep", listing(b'{"flowId":"1","x":' + b"[" * 200_000 + b"]" * 200_000 + b"}"), "nested"),
    ("code twice", b'{"code":62101,"code":0,"data":[]}', '"code" twice'),
    ("data twice", b'{"code":0,"data":[{"flowId":"1"}],"data":[]}', '"data" twice'),
    ("flowId twice", listing(ITEM + b',{"flowId":"2","flowId":"3"}'), 'data[1] has the key "flowId" twice'),
    ("cycle twice, equal", listing(b'{"flowId":"2","cycle":"D","cycle":"D"}'), 'data[0] has the key "cycle" twice'),
    ("escaped twin", listing(b'{"flowId":"2","\\u0066lowId":"3"}'), 'data[0] has the key "flowId" twice'),
    ("a twice in an unknown field", listing(b'{"flowId":"2","tags":{"a":1,"a":1}}'), '"a" twice'),
]


@pytest.mark.parametrize(("body", "named"), [each[1:] for each in MALFORMED], ids=[each[0] for each in MALFORMED])
def test_a_malformed_answer_is_refused_and_named(body: bytes, named: str) -> None:
    with pytest.raises(Malformed) as caught:
        read(body)
    assert named in str(caught.value)
    assert caught.value.code == "malformed"
    assert not caught.value.gateway_down_evidence
    assert len(str(caught.value)) < 300
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("body", [body for name, body, named in MALFORMED if "twice" not in named])
def test_the_first_reading_alone_refuses_all_but_a_key_that_stands_twice(body: bytes) -> None:
    with pytest.raises(Malformed):
        read_flows(read_envelope("Get My Flow", body, excerpt).data)


GOOD: list[tuple[str, bytes, list[Flow]]] = [
    ("no workflows", listing(b""), []),
    ("all fields", listing(item(flowName="a", cycle="D", editable=True)), [Flow("1", "a", "D", True)]),
    ("nulls", listing(item(flowName=None, cycle=None, editable=None)), [Flow("1", None, None, None)]),
    ("missing is null", listing(ITEM), [Flow("1", None, None, None)]),
    ("empty strings are values", listing(item(flowName="", cycle="")), [Flow("1", "", "", None)]),
    ("an integer flowId", listing(b'{"flowId":3318}'), [Flow("3318", None, None, None)]),
    ("flowId 0", listing(b'{"flowId":0}'), [Flow("0", None, None, None)]),
    ("a negative flowId", listing(b'{"flowId":-5}'), [Flow("-5", None, None, None)]),
    ("beyond 64 bits", listing(b'{"flowId":18446744073709551616}'), [Flow("18446744073709551616", None, None, None)]),
    ("1 and its text are one", listing(b'{"flowId":1},{"flowId":"1"}'), [Flow("1", None, None, None)]),
    ("01 is another", listing(b'{"flowId":1},{"flowId":"01"}'), [Flow("01", *[None] * 3), Flow("1", *[None] * 3)]),
    ("equal duplicates count once", listing(b",".join([item(cycle="D")] * 3)), [Flow("1", None, "D", None)]),
    ("an unknown cycle passes", listing(item(cycle="quarter ½")), [Flow("1", None, "quarter ½", None)]),
    ("cycles keep their case", listing(item(cycle="MI")), [Flow("1", None, "MI", None)]),
    ("unknown fields", listing(b'{"flowId":"1","owner":{"a":[1e400,null]}}'), [Flow("1", None, None, None)]),
    ("5,000 digits elsewhere", listing(b'{"flowId":"1","n":' + b"1" * 5000 + b"}"), [Flow("1", None, None, None)]),
    ("an escaped pair is one character", listing(b'{"flowId":"\\ud83d\\ude00"}'), [Flow("😀", None, None, None)]),
    ("an escaped backslash is no NUL", listing(b'{"flowId":"\\\\u0000"}'), [Flow("\\u0000", None, None, None)]),
    ("NUL in an unknown field", listing(b'{"flowId":"1","x":"\\u0000"}'), [Flow("1", None, None, None)]),
    ("control characters stay", listing(b'{"flowId":"a\\u001b[2J\\u0085"}'), [Flow("a\x1b[2J\x85", None, None, None)]),
    ("white space stays", listing(item(flowId=" 1 ")), [Flow(" 1 ", None, None, None)]),
    ("other envelope fields", b' {"requestId":"r","data":[],"msg":null,"code":0,"x":{}} ', []),
    ("data before code, spaced", b'{"data" : [ ] , "code" : 0}', []),
]  # fmt: skip


@pytest.mark.parametrize(("body", "expected"), [each[1:] for each in GOOD], ids=[each[0] for each in GOOD])
def test_a_valid_answer_gives_its_flows(body: bytes, expected: list[Flow]) -> None:
    assert read(body) == tuple(expected)


@pytest.mark.parametrize(
    ("items", "absent"),
    [
        ([], set()),
        ([{"flowId": 1}], {"flow_name", "cycle", "editable"}),
        ([{"flowId": 1, "flowName": None, "cycle": None, "editable": None}], set()),
        ([{"flowId": 1, "flowName": "a"}, {"flowId": 2, "cycle": None}], {"editable"}),
        ([{"flowId": 1, "Cycle": "D", "flowName": "a", "editable": True}], {"cycle"}),
    ],
)
@pytest.mark.parametrize("spelling", ["flowId", "flow_id"])
def test_an_answer_says_which_documented_keys_none_of_its_workflows_has(
    items: list[Any], absent: set[str], spelling: str
) -> None:
    """A null is a value; and the second reading must find the same keys, in the spelling of EnOS Edge, too."""
    body = json.dumps({"code": 0, "data": items}).encode()
    if spelling == "flow_id":
        body = body.replace(b"flowId", b"flow_id").replace(b"flowName", b"flow_name")
    listed = read_flows(read_envelope("Get My Flow", body, excerpt).data, APIS["v2.0"])
    assert listed.absent == absent
    reread_strictly(snapshot(body, listed.flows, listed.absent))
    if items:
        with pytest.raises(Malformed, match="different keys"):
            reread_strictly(snapshot(body, listed.flows, listed.absent ^ {"cycle"}))


def test_flows_are_sorted_by_code_point_whatever_the_order_of_the_answer() -> None:
    ids = ["b", "a", "B", "é", "e\u0301", "10", "9", "😀", "\uffee", "描述"]
    for _ in range(5):
        random.shuffle(ids)
        found = read(listing(b",".join(json.dumps({"flowId": each}).encode() for each in ids)))
        assert [flow.flow_id for flow in found] == sorted(ids)


def test_the_hash_is_that_of_the_bytes_of_data() -> None:
    data = b'[ {"flowId" :"1"} ]'
    body = b'{"code":0, "data":' + data + b' ,"requestId":"other every time"}'
    assert read_envelope("Get My Flow", body, excerpt).data_hash == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    ("number", "kind", "transient"),
    [
        (62101, Refused, False),
        (-1, Refused, False),
        (123456, Refused, False),
        (62109, TransientGatewayError, True),
        (99500, TransientGatewayError, True),
    ],
)
def test_an_error_envelope_is_refused_with_its_code(number: int, kind: type[GatewayError], transient: bool) -> None:
    body = json.dumps({"code": number, "msg": "no\n\x1b[31m\u202e", "requestId": "r-1", "data": []}).encode()
    with pytest.raises(GatewayError) as caught:
        read(body)
    error = caught.value
    assert type(error) is kind
    assert (error.code, error.transient) == (str(number), transient)
    assert str(number) in str(error)
    assert str(error).isprintable()


@pytest.mark.parametrize("msg", [None, 5, {"a": 1}, "x" * 100_000, [[]]])
def test_a_strange_msg_or_request_id_beside_an_error_code_is_tolerated(msg: object) -> None:
    with pytest.raises(Refused) as caught:
        read(json.dumps({"code": 62101, "msg": msg, "requestId": msg}).encode())
    assert caught.value.code == "62101"
    assert len(str(caught.value)) < 300


def test_the_strict_reading_sees_when_flows_are_not_those_of_the_body() -> None:
    body = listing(item(cycle="D") + b',{"flowId":2}')
    good = read(body)
    seconds = [Flow("2", "x", None, None), Flow("2", None, "D", None), Flow("2", None, None, False)]
    others = [good[:1], good[1:], (), (*good, Flow("3", None, None, None)), *((good[0], second) for second in seconds)]
    for other in others:
        with pytest.raises(Malformed, match="two JSON readers"):
            reread_strictly(snapshot(body, other))


def test_the_strict_reading_carries_the_number_of_attempts() -> None:
    with pytest.raises(Malformed) as caught:
        reread_strictly(snapshot(b'{"code":0,"code":0,"data":[]}', None))
    assert caught.value.attempts == 2


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.fixed_dictionaries(
    {}, optional={"flowId": JSON, "flowName": JSON, "cycle": JSON, "editable": JSON, "owner": JSON}
)


@settings(max_examples=100)
@given(st.lists(FIELDS | JSON, max_size=4), st.booleans())
def test_any_json_gives_flows_or_a_named_error_and_both_readers_agree(items: list[Any], as_ascii: bool) -> None:
    text = json.dumps({"code": 0, "data": items}, ensure_ascii=as_ascii)
    found = outcome(text.encode("utf-8", "surrogatepass"))
    if isinstance(found, str):
        assert "two JSON readers" not in found
    else:
        assert {flow.flow_id for flow in found} == {str(each["flowId"]) for each in items}


@settings(max_examples=150)
@given(st.data())
def test_a_damaged_answer_is_refused_or_read_alike_by_both(data: st.DataObject) -> None:
    body = bytearray(
        listing(b",".join(item(flowId=str(n), flowName="név", cycle="D", editable=True) for n in range(4)))
    )
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at : at + data.draw(st.integers(0, 6))] = data.draw(st.binary(max_size=3))
    assert "two JSON readers" not in outcome(bytes(body))


WHOLE = '{"code": 0, "x": [-1.5e+3, true, null], "y": "\\ud83d\\ude00 é", "data": [{"flowId": "1"}]}'.encode()


@pytest.mark.parametrize("cut", range(1, len(WHOLE)))
def test_an_answer_whose_text_ends_too_early_is_cut_short_wherever_that_is(cut: int) -> None:
    with pytest.raises(GatewayUnreachable) as caught:
        read(WHOLE[:cut])
    assert caught.value.code == "truncated"


# Version 2.0, as in EnOS before 2.1.2, and EnOS Edge

CAMEL = {"flowId": "3318", "editable": True, "flowName": "reduce_entity", "cycle": "D"}
EDGE = {"flow_id": "3318", "editable": True, "flow_name": "reduce_entity", "cycle": "D"}
FLOW = Flow("3318", "reduce_entity", "D", True)


def older(*items: object, **envelope: object) -> bytes:
    return json.dumps({"status": 0, "msg": "Success"} | envelope | {"data": list(items)}).encode()


def read_older(body: bytes) -> tuple[Flow, ...]:
    return read(body, APIS["v2.0"])


def test_every_version_that_can_be_set_can_be_asked() -> None:
    assert set(APIS) == set(get_args(ApiVersion))


@pytest.mark.parametrize(
    "body",
    [older(CAMEL), older(EDGE), older(EDGE | {"tags": [1]}), older(CAMEL, code=0), older(CAMEL, requestId="r")],
    ids=["as EnOS", "as EnOS Edge", "an unknown key", "a code beside it", "a request id"],
)
def test_both_spellings_of_an_answer_are_read(body: bytes) -> None:
    assert read_older(body) == (FLOW,)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (json.dumps({"code": 0, "data": [CAMEL]}).encode(), 'api = "v2.1"'),
        (json.dumps({"data": [CAMEL]}).encode(), "it has no status"),
        (older(CAMEL, status="0"), "status is"),
        (older(CAMEL, status=False), "status is"),
        (older(CAMEL, code="62101"), "code is"),
        (older(CAMEL, EDGE), "data[1]"),
        (older({"flowId": "1", "flow_name": "a"}), "spells some of its keys"),
        (older({"flow_id": "1", "flowName": "a"}), "spells some of its keys"),
        (older({"flow_id": ""}), "data[0].flowId is empty"),
        (older({"flow_id": True}), "data[0].flowId is a boolean"),
        (older({"flow_name": "a"}), "data[0].flowId is missing"),
        (older(EDGE, EDGE | {"cycle": "H"}), "data[1].flowId is that of data[0]"),
        (older(EDGE | {"flow_name": "\0"}), "NUL"),
    ],
)
def test_an_invalid_version_2_0_answer_is_malformed_and_named(body: bytes, named: str) -> None:
    with pytest.raises(Malformed) as caught:
        read_older(body)
    assert named in str(caught.value)


@pytest.mark.parametrize("envelope", [{"status": 62101}, {"status": 0, "code": 62101}, {"status": 1, "code": 62101}])
def test_an_error_code_is_one_wherever_it_stands(envelope: dict[str, int]) -> None:
    with pytest.raises(Refused) as caught:
        read_older(older(**envelope))
    assert caught.value.code == "62101"
