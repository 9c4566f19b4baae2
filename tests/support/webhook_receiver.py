"""A receiver of webhooks, written from the two specifications alone: CloudEvents 1.0 and Standard Webhooks 1.0.0.

It uses nothing of Flowtrail. What it finds wrong with a request is in ``wrong``, and answered with 400.
"""

from __future__ import annotations

import base64
import datetime as dt
import functools
import hashlib
import hmac
import importlib
import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple, Self

PATIENCE_SECONDS = 30
TOLERANCE_SECONDS = 300
KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()
SCHEMA = Path(__file__).parents[2] / "docs" / "webhook.schema.json"


class Delivery(NamedTuple):
    """A request that was verified."""

    id: str
    body: bytes
    path: str
    headers: dict[str, str]

    @property
    def events(self) -> list[dict[str, Any]]:
        return list(json.loads(self.body))


class WebhookReceiver:
    """``troubles`` has what happens to the next requests; after those all is well.

    A number is the status of an answer (of a batch that is not accepted, if it is no 2xx). "cut": the batch is
    accepted, and the connection ends without an answer. "lost": it ends before anything was done. "slow": accepted, but
    the answer waits for ``let_go``; "held": not accepted, and it is 500.
    """

    def __init__(self, port: int = 0, key: bytes = KEY) -> None:
        self.troubles: list[int | str] = []
        self.headers: dict[str, str] = {}
        """Of each answer."""
        self.requests: list[Delivery] = []
        """All that were verified, also those that were not accepted."""
        self.accepted: list[dict[str, Any]] = []
        """The events, each once, in the order in which they came first."""
        self.wrong: list[str] = []
        self._key = key
        self._seen: set[tuple[str, str]] = set()
        self._bodies: dict[str, bytes] = {}
        self._news = threading.Condition()
        self._let_go = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = receiver._take(self.path, dict(self.headers.items()), body)
                if status is None:
                    self.close_connection = True
                    return
                self.send_response(status)
                for name, value in {"Content-Length": "0", **receiver.headers}.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = _Server(("127.0.0.1", port), Handler)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.let_go()
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        """With secrets that must never appear anywhere."""
        return f"http://someone:pass-canary@127.0.0.1:{self.port}/path-canary?key=query-canary"

    def let_go(self) -> None:
        self._let_go.set()

    def wait_for(self, requests: int = 0, events: int = 0) -> None:
        """Wait for so many requests and accepted events."""
        with self._news:
            came = self._news.wait_for(
                lambda: self.wrong or (len(self.requests) >= requests and len(self.accepted) >= events),
                PATIENCE_SECONDS,
            )
        assert came, (self.wrong, len(self.requests), len(self.accepted))
        assert not self.wrong, self.wrong

    def _take(self, path: str, headers: dict[str, str], body: bytes) -> int | None:
        found = list(self._mistakes({name.lower(): value for name, value in headers.items()}, body))
        with self._news:
            self.wrong += found
            if found:
                self._news.notify_all()
                return 400
            delivery = Delivery(headers["webhook-id"], body, path, headers)
            self.requests.append(delivery)
            trouble = self.troubles.pop(0) if self.troubles else 200
            if trouble in ("cut", "slow") or (isinstance(trouble, int) and 200 <= trouble < 300):
                for event in delivery.events:
                    if (same := (event["source"], event["id"])) not in self._seen:
                        self._seen.add(same)
                        self.accepted.append(event)
            self._news.notify_all()
        if trouble in ("slow", "held"):
            self._let_go.wait(PATIENCE_SECONDS)
            return 200 if trouble == "slow" else 500
        return trouble if isinstance(trouble, int) else None

    def _mistakes(self, headers: dict[str, str], body: bytes) -> Iterator[str]:
        identity, timestamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
        if not identity or "." in identity or not timestamp.isdecimal():
            yield f"no id, or no timestamp: {identity!r} {timestamp!r}"
            return
        if abs(time.time() - int(timestamp)) > TOLERANCE_SECONDS:
            yield f"a timestamp outside the tolerance: {timestamp}"
        expected = hmac.new(self._key, f"{identity}.{timestamp}.".encode() + body, hashlib.sha256).digest()
        signatures = [each.split(",", 1) for each in headers.get("webhook-signature", "").split(" ")]
        valid = [each for each in signatures if each[0] == "v1" and _same(each[1], expected)]
        if not valid:
            yield "no valid signature"
            return
        if self._bodies.setdefault(identity, body) != body:
            yield f"another body under the same id {identity}"
        if headers.get("content-type") != "application/cloudevents-batch+json":
            yield f"the content type {headers.get('content-type')}"
        yield from _mistakes_of_batch(body)


def _same(text: str, expected: bytes) -> bool:
    return hmac.compare_digest(base64.b64decode(text, validate=True), expected)


def _mistakes_of_batch(body: bytes) -> Iterator[str]:
    events = json.loads(body)
    if not isinstance(events, list) or not 1 <= len(events) <= 100:
        yield "no list of 1 to 100 events"
        return
    for event in events:
        for name in ("id", "source", "type"):
            if not isinstance(event.get(name), str) or not event[name]:
                yield f"an event without {name}"
        if event.get("specversion") != "1.0":
            yield "another version"
        if not all(re.fullmatch("[a-z0-9]{1,20}", name) for name in event):
            yield f"a name that attributes cannot have: {[*event]}"
        if not re.fullmatch(r"urn:uuid:[0-9a-f-]{36}", event["source"]):
            yield f"the source {event['source']}"
        if any(re.search(r"[\x00-\x1f\x7f-\x9f]", str(value)) for name, value in event.items() if name != "data"):
            yield "a control character in an attribute"
        if dt.datetime.fromisoformat(event["time"]).tzinfo is None:
            yield f"a time without its zone: {event['time']}"
    yield from (f"{'.'.join(map(str, each.path))}: {each.message}"[:300] for each in _validator().iter_errors(events))


@functools.cache
def _validator() -> Any:
    schema, jsonschema = json.loads(SCHEMA.read_text("utf-8")), importlib.import_module("jsonschema")
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: Any) -> None:
        """Ignore a client that was killed or gave up."""
