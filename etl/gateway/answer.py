"""From the bytes of an answer to flows, or a detail: one fast pass, strict about what the documentation promises.

A success is a JSON object whose ``code`` (in version 2.0: ``status``) is the integer 0 and whose ``data`` is a list of
workflows; nothing else. If the fast pass fails, the strict reader looks again and names the item and the field.

Source: EnOS API documentation, "Get My Flow" and "Get Flow" of both versions. Of the latter only ``action=get`` is
used: ``loadForEdit`` would create a temporary workflow.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re
from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from functools import partial
from operator import attrgetter
from typing import Annotated, Any, Final, NamedTuple

import msgspec

from etl.domain.answers import Detail, zone_of
from etl.domain.chain import state_digest
from etl.domain.model import ATTRIBUTES, Flow, Snapshot, Target
from etl.errors import GatewayError
from etl.gateway.calls import LATEST, Api
from etl.gateway.connection import cut_short
from etl.gateway.directory import read_tree
from etl.gateway.errors import Quote, code_error, malformed, place_of
from etl.gateway.strict import field_problem, first_problem, first_problem_in_directory, half_character_in
from etl.gateway.transport import Reply

_EXPLAINED_BYTES: Final = 16 * 1024 * 1024
"""Malformed answers up to this size are read again for a better message; beyond it, memory matters more."""

_ESCAPED_NUL: Final = re.compile(rb"\\u0000")

_by_flow_id = attrgetter("flow_id")
_values: Any = attrgetter(*ATTRIBUTES)
_CALL: Final = "Get My Flow"
DIRECTORY_CALL: Final = "List Workflow Directories"


class _RawEnvelope(msgspec.Struct, rename="camel", gc=False):
    code: msgspec.Raw = msgspec.Raw()
    status: msgspec.Raw = msgspec.Raw()
    data: msgspec.Raw = msgspec.Raw()
    msg: msgspec.Raw = msgspec.Raw()
    message: msgspec.Raw = msgspec.Raw()
    request_id: msgspec.Raw = msgspec.Raw()


class _Item(msgspec.Struct, rename="camel", gc=False):
    flow_id: Annotated[str, msgspec.Meta(min_length=1)] | int
    flow_name: str | msgspec.UnsetType | None = msgspec.UNSET
    cycle: str | msgspec.UnsetType | None = msgspec.UNSET
    editable: bool | msgspec.UnsetType | None = msgspec.UNSET


class _FullItem(msgspec.Struct, rename="camel", gc=False):
    """A workflow with every documented key, as EnOS sends it."""

    flow_id: Annotated[str, msgspec.Meta(min_length=1)] | int
    flow_name: str | None
    cycle: str | None
    editable: bool | None


class _EdgeItem(msgspec.Struct, gc=False):
    """A workflow as EnOS Edge's documentation spells it."""

    flow_id: Annotated[str, msgspec.Meta(min_length=1)] | int
    flow_name: str | msgspec.UnsetType | None = msgspec.UNSET
    cycle: str | msgspec.UnsetType | None = msgspec.UNSET
    editable: bool | msgspec.UnsetType | None = msgspec.UNSET


_Stored = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
"""An integer that the database can hold."""


class _Detail(msgspec.Struct, rename="camel", gc=False):
    """A workflow as *Get Flow* has it; its times are texts in the server's time zone, which no answer names."""

    flow_id: str | int
    update_user: str | None = None
    update_time: str | None = None
    creator: str | None = None
    create_time: str | None = None
    owner: str | None = None
    freq: str | None = None
    active: _Stored | None = None
    type: _Stored | None = None
    locked: bool | None = None


class _Timezone(msgspec.Struct):
    timezone: str


_envelopes = msgspec.json.Decoder(_RawEnvelope)
_lists = msgspec.json.Decoder(list[_Item])
_full_lists = msgspec.json.Decoder(list[_FullItem])
_edge_lists = msgspec.json.Decoder(list[_EdgeItem])
_details = msgspec.json.Decoder(_Detail)


class RawAnswer(NamedTuple):
    """A reply with status 200, and what its reader needs."""

    reply: Reply
    asked_at: dt.datetime
    quote: Quote
    attempts: int

    def __repr__(self) -> str:
        return f"<Answered {len(self.reply.body)} bytes>"


class Envelope(NamedTuple):
    """The envelope of a success: the bytes of its ``data``."""

    data: msgspec.Raw
    data_hash: str
    keys: int
    """How many of the documented keys the envelope has."""


class FlowList(NamedTuple):
    """The workflows of an answer, sorted by flow_id in code-point order."""

    flows: tuple[Flow, ...]
    keys: int | None
    """How many keys its objects have, each key of each object counted once; None if one is missing somewhere."""
    absent: frozenset[str] = frozenset()
    """The attributes of ``Flow`` whose key none of its objects has; a null is a value."""
    other_files: int = 0
    """Of a directory: its files that are no workflows."""
    digest: str | None = None
    """Their digest, where it is known already."""


def read_snapshot(
    target: Target, answer: RawAnswer, known_data_hash: str | None, before: Snapshot | None, api: Api
) -> Snapshot:
    """The target's list; ``flows`` is None if the bytes of ``data`` hash to ``known_data_hash``, and those of the
    answer ``before`` if they hash to the same. Raises by the error code, or Malformed."""
    reply = answer.reply
    envelope = read_envelope(DIRECTORY_CALL if target.is_directory else _CALL, reply.body, answer.quote, api)
    if envelope.data_hash == known_data_hash:
        listed = None
    elif before is not None and before.flows is not None and envelope.data_hash == before.data_hash:
        listed = FlowList(before.flows, before.keys, before.absent, before.other_files, before.digest)
    elif target.is_directory:
        listed = read_directory(envelope.data)
    else:
        listed = read_flows(envelope.data, api)
    return Snapshot(
        target=target,
        flows=None if listed is None else listed.flows,
        data_hash=envelope.data_hash,
        asked_at=answer.asked_at,
        observed_at=reply.arrived_at,
        attempts=answer.attempts,
        body=b"" if listed is None or has_each_key_once(reply.body, envelope, listed) else reply.body,
        sole_answer=reply.is_sole,
        data=b"" if listed is None else envelope.data,
        keys=None if listed is None else listed.keys,
        absent=frozenset() if listed is None else listed.absent,
        other_files=0 if listed is None else listed.other_files,
        digest=None if listed is None else listed.digest or state_digest(listed.flows),
    )


def read_envelope(
    call: str, body: bytes, quote: Quote, api: Api = LATEST, successes: Container[int] = frozenset({0})
) -> Envelope:
    """Raises by the error code, GatewayUnreachable if the body is cut short, or Malformed if it is not a JSON object
    with an integer ``code`` (``status`` in version 2.0) and ``data``."""
    try:
        envelope = _envelopes.decode(body)
    except (ValueError, RecursionError) as error:
        raise unreadable(call, body, error, quote) from None
    code = _code(envelope, api)
    if code is None:
        raise malformed(call, _bad_code(envelope, body, quote, api))
    if code not in successes:
        raise code_error(code, quoted_message(envelope.message, quote) or quoted_message(envelope.msg, quote))
    if not bytes(envelope.data):
        raise malformed(call, "it has no data")
    keys = sum(memoryview(raw).nbytes > 0 for raw in msgspec.structs.astuple(envelope))
    return Envelope(envelope.data, hashlib.sha256(envelope.data).hexdigest(), keys)


def _code(envelope: _RawEnvelope, api: Api) -> int | None:
    """The code of the answer: 0 for a success, None if it has none."""
    code = as_integer(envelope.code)
    if not api.is_older or code or (code is None and bytes(envelope.code)):
        return code
    return as_integer(envelope.status)


def has_each_key_once(body: bytes, envelope: Envelope, listed: FlowList) -> bool:
    """Whether no object of the body can have a key twice, because it has only as many colons as different keys need.

    False also if there is an undocumented key or a colon in a text: then counting proves nothing.
    """
    return listed.keys is not None and body.count(b":") == envelope.keys + listed.keys


def read_flows(data: msgspec.Raw, api: Api = LATEST) -> FlowList:
    """The flows in ``data``, identical duplicates only once.

    Raises Malformed, naming item and field: types, empty ids, NUL characters, lone surrogates, conflicts.
    """
    flows, keys, absent = _listed(data, api)
    if _ESCAPED_NUL.search(data):
        _refuse_nul(flows)
    if len({flow.flow_id for flow in flows}) < len(flows):
        flows = _distinct(flows)
    flows.sort(key=_by_flow_id)
    return FlowList(tuple(flows), keys, absent)


def read_directory(data: msgspec.Raw) -> FlowList:
    """The workflows of a directory. Raises Malformed, naming node and field."""
    try:
        flows, other_files = read_tree(data)
        unfit = any(field_problem(flow.flow_name or "") for flow in flows)
    except (ValueError, RecursionError) as error:
        raise malformed(DIRECTORY_CALL, _problem_in(data, error, first_problem_in_directory)) from None
    if unfit:
        raise malformed(DIRECTORY_CALL, _problem_in(data, ValueError("a title"), first_problem_in_directory))
    flows.sort(key=_by_flow_id)
    return FlowList(tuple(flows), None, other_files=other_files)


def _listed(data: msgspec.Raw, api: Api) -> tuple[list[Flow], int | None, frozenset[str]]:
    """The flows in ``data``, in its order; the number of their keys if all have all keys; those that none has."""
    with suppress(ValueError, RecursionError):
        full = _full_lists.decode(data)
        flows = [
            Flow(i.flow_id if type(i.flow_id) is str else str(i.flow_id), i.flow_name, i.cycle, i.editable)
            for i in full
        ]
        return flows, len(_FullItem.__struct_fields__) * len(full), frozenset()
    items = _partial(data, api)
    absent = frozenset(name for name in ATTRIBUTES if all(getattr(i, name) is msgspec.UNSET for i in items))
    values = ((None if each is msgspec.UNSET else each for each in _values(i)) for i in items)
    return [Flow(str(i.flow_id), *given) for i, given in zip(items, values, strict=True)], None, absent


def _partial(data: msgspec.Raw, api: Api) -> Sequence[_Item | _EdgeItem]:
    """The objects in ``data``, which need not have all keys."""
    if api.is_older:
        with suppress(ValueError, RecursionError):
            return _edge_lists.decode(data)
    try:
        return _lists.decode(data)
    except (ValueError, RecursionError) as error:
        raise malformed(_CALL, _problem_in(data, error)) from None


def _refuse_nul(flows: list[Flow]) -> None:
    for index, flow in enumerate(flows):
        for field, text in (("flowId", flow.flow_id), ("flowName", flow.flow_name), ("cycle", flow.cycle)):
            if text is not None and (problem := field_problem(text)):
                raise malformed(_CALL, f"data[{index}].{field} {problem}")


def _distinct(flows: list[Flow]) -> list[Flow]:
    first: dict[str, int] = {}
    for index, flow in enumerate(flows):
        other = first.setdefault(flow.flow_id, index)
        if flows[other] != flow:
            raise malformed(_CALL, f"data[{index}].flowId is that of data[{other}], with different values")
    return [flows[index] for index in first.values()]


def read_detail(org_id: str, flow_id: str, answered: RawAnswer, api: Api) -> Detail:
    """What EnOS says about one workflow. Raises by the error code, or Malformed, also if it says it about another.

    ``body`` keeps the graph as text, because the documentation's own samples of it are not valid JSON.
    """
    refused = partial(malformed, "Get Flow")
    envelope = read_envelope("Get Flow", answered.reply.body, answered.quote, api)
    try:
        data = _details.decode(envelope.data)
    except (ValueError, RecursionError) as error:
        raise refused(place_of(error)) from None
    if str(data.flow_id) != flow_id:
        raise refused("it is about another workflow than the one that was asked for")
    for field in msgspec.structs.fields(_Detail):
        value = getattr(data, field.name)
        if isinstance(value, str) and (problem := field_problem(value)):
            raise refused(f"data.{field.encode_name} {problem}")
    return Detail(
        org_id=org_id,
        asked_at=answered.asked_at,
        observed_at=answered.reply.arrived_at,
        **(msgspec.structs.asdict(data) | {"flow_id": flow_id}),
        detail_hash=envelope.data_hash,
        body=bytes(envelope.data),
    )


def read_timezone(answered: RawAnswer, api: Api) -> str:
    """The zone of EnOS's clock, as it says: "GMT+8". Raises by the error code, or Malformed."""
    envelope = read_envelope("Get Timezone", answered.reply.body, answered.quote, api)
    try:
        said = msgspec.json.decode(envelope.data, type=_Timezone).timezone
    except (ValueError, RecursionError) as error:
        raise malformed("Get Timezone", place_of(error)) from None
    if zone_of(said) is None:
        raise malformed("Get Timezone", f"{answered.quote(said)} is no zone such as GMT+8")
    return said


def read_search(answered: RawAnswer, api: Api) -> int:
    """How many workflows a page of *Search Flow* has. Raises by the error code, or Malformed."""
    envelope = read_envelope("Search Flow", answered.reply.body, answered.quote, api)
    try:
        return len(msgspec.json.decode(envelope.data, type=list[dict[str, msgspec.Raw]]))
    except (ValueError, RecursionError) as error:
        raise malformed("Search Flow", place_of(error)) from None


def as_integer(raw: msgspec.Raw | None) -> int | None:
    """The JSON value as an integer, if it is one: not false, 0.0, "0", null, nor 1e3."""
    found = re.fullmatch(rb"-?[0-9]{1,18}", raw) if raw is not None else None
    return int(found[0]) if found else None


def quoted_message(raw: msgspec.Raw | None, quote: Quote) -> str:
    """The text of a ``msg`` field, quoted; empty where there is none."""
    try:
        text = msgspec.json.decode(raw or b'""', type=str)
    except ValueError:
        return ""
    return quote(text) if text else ""


def unreadable(call: str, body: bytes, error: Exception, quote: Quote) -> GatewayError:
    """The error for a body that is no JSON object: cut short, if its text ends too early, whatever its length says."""
    problem = _what_it_is(body, error, quote)
    return malformed(call, problem) if problem else cut_short("the JSON of the answer")


def _what_it_is(body: bytes, error: Exception, quote: Quote) -> str:
    """Why the body is not a JSON object, in words that help a person; "" if it is the beginning of one."""
    text = body.strip()
    if not text:
        return "its body is empty"
    if isinstance(error, RecursionError):
        return "its JSON is nested too deeply"
    if body.startswith(b"\xef\xbb\xbf"):
        return "it starts with a byte order mark"
    if isinstance(error, msgspec.ValidationError):
        found = re.search(r"got `(\w+)`", str(error))
        return f"it is {f'JSON {found[1]}' if found else 'other JSON'}, not an object: {quote(body)}"
    if text.startswith(b"<"):
        return f"it is HTML or XML, not JSON: {quote(body)}"
    if b"\\u" in body and len(body) <= _EXPLAINED_BYTES and (half := half_character_in(body)):
        return half
    reason = str(error).removeprefix("JSON is malformed: ").lower()
    in_a_number = reason.endswith(f"(byte {len(body)})") and not reason.startswith("trailing")
    if text.startswith(b"{") and (in_a_number or reason == "input data was truncated"):
        return ""
    return f"it is not JSON ({reason}): {quote(body)}"


def _bad_code(envelope: _RawEnvelope, body: bytes, quote: Quote, api: Api) -> str:
    codes = {"code": envelope.code, "status": envelope.status} if api.is_older else {"code": envelope.code}
    for name, raw in codes.items():
        if bytes(raw) and as_integer(raw) is None:
            return f"{name} is {quote(bytes(raw))}, not an integer"
    if bytes(envelope.code):
        return 'it has no status but a code, as the newer version of the service answers: set [gateway] api = "v2.1"'
    if bytes(envelope.status):
        return 'it has no code but a status, as an older version of the service answers: set [gateway] api = "v2.0"'
    return f"it has no {'status' if api.is_older else 'code'}: {quote(body)}"


def _problem_in(data: msgspec.Raw, error: Exception, strictly: Callable[[bytes], str | None] = first_problem) -> str:
    """Item and field of what is wrong in ``data``, from the strict reader or else from msgspec."""
    if isinstance(error, RecursionError):
        return "its data is nested too deeply"
    problem = strictly(bytes(data)) if memoryview(data).nbytes <= _EXPLAINED_BYTES else None
    return problem or place_of(error)
