"""From a *Get Flow* answer to what EnOS says about one workflow: who updated it last, when, and its exact schedule.

Only ``action=get`` is used: ``loadForEdit`` would create a temporary workflow. ``graph`` is kept as text, because the
documentation's own samples of it are not valid JSON. EnOS's times are texts in the server's time zone, which the answer
does not name.

Source: EnOS API documentation, "Get Flow" of both versions.
"""

from __future__ import annotations

from functools import partial
from typing import Final

import msgspec

from etl.domain.detail import Detail
from etl.gateway.answer import RawAnswer, read_envelope
from etl.gateway.calls import Api
from etl.gateway.errors import malformed, place_of
from etl.gateway.strict import field_problem

_CALL: Final = "Get Flow"
_malformed = partial(malformed, _CALL)


class _Data(msgspec.Struct, rename="camel", gc=False):
    flow_id: str | int
    update_user: str | None = None
    update_time: str | None = None
    creator: str | None = None
    create_time: str | None = None
    owner: str | None = None
    freq: str | None = None
    active: int | None = None
    type: int | None = None
    locked: bool | None = None


_datas = msgspec.json.Decoder(_Data)


def read_detail(org_id: str, flow_id: str, answered: RawAnswer, api: Api) -> Detail:
    """Raises by the error code, or Malformed, also if the answer is about another workflow."""
    envelope = read_envelope(_CALL, answered.reply.body, answered.quote, api)
    try:
        data = _datas.decode(envelope.data)
    except (ValueError, RecursionError) as error:
        raise _malformed(place_of(error)) from None
    if str(data.flow_id) != flow_id:
        raise _malformed("it is about another workflow than the one that was asked for")
    for field in msgspec.structs.fields(_Data):
        value = getattr(data, field.name)
        if isinstance(value, str) and (problem := field_problem(value)):
            raise _malformed(f"data.{field.encode_name} {problem}")
    for name, number in (("active", data.active), ("type", data.type)):
        if number is not None and not -(2**31) <= number < 2**31:
            raise _malformed(f"data.{name} is too large")
    return Detail(
        org_id=org_id,
        asked_at=answered.asked_at,
        observed_at=answered.reply.arrived_at,
        **(msgspec.structs.asdict(data) | {"flow_id": flow_id}),
        detail_hash=envelope.data_hash,
        body=bytes(envelope.data),
    )
