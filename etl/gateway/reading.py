"""The input of readers of answers, and the reader of Get My Flow."""

from __future__ import annotations

import datetime as dt
from typing import NamedTuple

from etl.domain.model import Snapshot, Target
from etl.errors import GatewayError
from etl.gateway.answer import has_each_key_once, read_envelope, read_flows
from etl.gateway.api import Api
from etl.gateway.faults import Quote, code_error
from etl.gateway.transport import Reply


class RawAnswer(NamedTuple):
    """A reply with status 200, and what its reader needs."""

    reply: Reply
    asked_at: dt.datetime
    quote: Quote
    attempts: int

    def __repr__(self) -> str:
        return f"<Answered {len(self.reply.body)} bytes>"


def read_snapshot(target: Target, answer: RawAnswer, known_data_hash: str | None, api: Api) -> Snapshot:
    """The target's list; ``flows`` is None if the bytes of ``data`` hash to ``known_data_hash``. Raises by the error
    code, or Malformed."""
    reply = answer.reply
    envelope = read_envelope(reply.body, answer.quote, api)
    if envelope.code:
        raise code_error(envelope.code, envelope.message, envelope.request_id)
    try:
        listed = None if envelope.data_hash == known_data_hash else read_flows(envelope.data, api)
    except GatewayError as error:
        error.request_id = envelope.request_id
        raise
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
        absent=frozenset() if listed is None else listed.absent,
    )
