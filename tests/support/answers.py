"""Read the bytes of an answer as the client does."""

from __future__ import annotations

import datetime as dt

from etl.domain.model import Flow, Snapshot, Target
from etl.errors import GatewayError
from etl.gateway import reread_strictly
from etl.gateway.answer import has_each_key_once, read_envelope, read_flows
from etl.gateway.calls import LATEST, Api
from etl.gateway.errors import excerpt

NOW = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)


def read(body: bytes, api: Api = LATEST) -> tuple[Flow, ...]:
    """The flows, read as the client does: envelope, code, flows, and the strict second reading."""
    envelope = read_envelope("Get My Flow", body, excerpt, api)
    listed = read_flows(envelope.data, api)
    if not has_each_key_once(body, envelope, listed):
        reread_strictly(snapshot(body, listed.flows, listed.absent))
    return listed.flows


def outcome(body: bytes) -> tuple[Flow, ...] | str:
    """The flows, or what is wrong."""
    try:
        return read(body)
    except GatewayError as error:
        return str(error)


def snapshot(body: bytes, found: tuple[Flow, ...] | None, absent: frozenset[str] = frozenset()) -> Snapshot:
    return Snapshot(Target("o", "u"), found, "", NOW, NOW, 2, body, absent=absent)
