"""What webhooks are sent, as the two specifications have it: CloudEvents 1.0 in batches, and Standard Webhooks.

CloudEvents: the specification, its JSON format (batches: section 4) and its HTTP webhooks (what a status means).
Standard Webhooks 1.0.0: the three headers, what is signed, and what a sender does about an answer.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import hmac
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import msgspec

from etl.domain.chain import microseconds
from etl.report.conditions import CODES
from etl.report.rows import OrgWorkflowEvent
from etl.store.webhooks import Notice

MOST_EVENTS: Final = 100
"""Events in a batch."""
_MOST_BYTES: Final = 64 * 1024
"""A batch is no longer, unless its only event is: every consumer should accept so much."""
CONTENT_TYPE: Final = "application/cloudevents-batch+json"
_NOWHERE: Final = "00000000-0000-0000-0000-000000000000"
"""The source of a test, which belongs to no trail."""
KINDS: Final[Mapping[str, Sequence[str]]] = {
    each: (f"{each}.began", f"{each}.ended") for each in ("condition", "finding")
}
"""The kinds of notices behind a kind that a webhook asks for."""


class Batch(NamedTuple):
    """A body, and the id of it: a batch that is sent again has the same one, any other has another."""

    id: str
    body: bytes
    events: int


def event_of(row: OrgWorkflowEvent, source: str) -> dict[str, Any]:
    """An event of a workflow in its organisation. Its data are the row of the view."""
    identity = f"event-{row.event_id}-{microseconds(row.decided_at)}"  # the number may come again after a restore
    subject = f"{quote(row.org_id, safe='')}/{quote(row.flow_id, safe='')}"
    return _event(source, identity, f"workflow.{row.kind}", row.observed_at, subject, row._asdict())


def event_of_notice(notice: Notice, source: str) -> dict[str, Any]:
    """The beginning or the end of something that is not in the trail."""
    data = msgspec.json.decode(notice.data)
    if notice.kind.startswith("condition."):
        known = CODES.get(data["code"])
        data["severity"] = known and known.severity
        data["remedy"] = data["remedy"] or (known.remedy if known else "")
    identity = f"notice-{notice.id}-{microseconds(notice.at)}"
    return _event(source, identity, notice.kind, notice.at, quote(notice.subject, safe=""), data)


def test_batch(now: dt.datetime) -> Batch:
    """A batch whose only event says that nothing happened."""
    data = {"message": "This is a test of Flowtrail's webhooks. Nothing has happened."}
    return batch_of([_event(_NOWHERE, f"test-{microseconds(now)}", "test", now, "test", data)])


def _event(
    source: str, identity: str, kind: str, at: dt.datetime, subject: str, data: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "id": identity,
        "source": f"urn:uuid:{source}",
        "type": f"flowtrail.{kind}",
        "subject": subject,
        "time": at.astimezone(dt.UTC),
        "datacontenttype": "application/json",
        "data": data,
    }


def batch_of(events: Iterable[Mapping[str, Any]]) -> Batch:
    """The first of the events, as many as a batch may have: at least one, if there is one."""
    found: list[bytes] = []
    length = 1
    for event in events:
        encoded = msgspec.json.encode(event)
        length += len(encoded) + 1
        if found and (length > _MOST_BYTES or len(found) == MOST_EVENTS):
            break
        found.append(encoded)
    body = b"[" + b",".join(found) + b"]"
    return Batch(f"msg_{hashlib.sha256(body).hexdigest()[:32]}", body, len(found))


def headers_of(batch: Batch, now: dt.datetime, keys: Sequence[bytes]) -> dict[str, str]:
    """The headers of an attempt at this moment, with a signature by each of the keys."""
    timestamp = str(int(now.timestamp()))
    signed = f"{batch.id}.{timestamp}.".encode() + batch.body
    signatures = (base64.b64encode(hmac.digest(key, signed, "sha256")).decode("ascii") for key in keys)
    return {
        "Content-Type": CONTENT_TYPE,
        "webhook-id": batch.id,
        "webhook-timestamp": timestamp,
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }
