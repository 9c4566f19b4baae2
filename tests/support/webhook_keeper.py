"""A receiver in a process of its own, so that a test can kill it: ``python webhook_keeper.py PORT FILE SECRET SEED``.

Written from CloudEvents 1.0 and Standard Webhooks 1.0.0 alone, with nothing but the standard library. It keeps what it
accepts in a SQLite file, as ``docs/webhooks.md`` advises: repeats are dropped and the rest is kept in one transaction.
By its seed it also answers 500, hangs up before or after it has kept a batch, or takes its time.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import hmac
import json
import random
import sqlite3
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TABLES = """
CREATE TABLE IF NOT EXISTS kept (n INTEGER PRIMARY KEY, source TEXT, id TEXT, event TEXT, UNIQUE (source, id));
CREATE TABLE IF NOT EXISTS request (batch TEXT, events INTEGER, answer TEXT);
CREATE TABLE IF NOT EXISTS wrong (what TEXT);
"""
TROUBLES = ("500", "hang up", "keep and hang up", "slow")


def mistakes(headers: Any, body: bytes, key: bytes) -> Iterator[str]:
    identity, timestamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if abs(time.time() - int(timestamp or 0)) > 300:
        yield f"the timestamp {timestamp!r}"
    signed = hmac.new(key, b".".join([identity.encode(), timestamp.encode(), body]), hashlib.sha256).digest()
    if f"v1,{base64.b64encode(signed).decode()}" not in headers.get("webhook-signature", "").split():
        yield "not signed"
        return
    if headers.get("content-type") != "application/cloudevents-batch+json":
        yield f"the content type {headers.get('content-type')}"
    events = json.loads(body)
    if not 1 <= len(events) <= 100:
        yield f"{len(events)} events"
    for event in events:
        if event["specversion"] != "1.0" or not all(event[name] for name in ("id", "source", "type")):
            yield f"no event of CloudEvents 1.0: {event}"
        if dt.datetime.fromisoformat(event["time"]).tzinfo is None:
            yield f"a time without a zone: {event}"


def main(port: int, file: str, secret: str, seed: int) -> None:
    key, rng = base64.b64decode(secret.removeprefix("whsec_")), random.Random(seed)
    with sqlite3.connect(file, timeout=60) as made:
        made.executescript(TABLES)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            trouble = rng.choice(TROUBLES) if rng.random() < 0.4 else ""
            if trouble == "slow":
                time.sleep(rng.random())
            wrong = list(mistakes(self.headers, body, key))
            is_kept = not wrong and trouble not in ("500", "hang up")
            with sqlite3.connect(file, timeout=60) as kept:
                kept.executemany("INSERT INTO wrong VALUES (?)", [(each,) for each in wrong])
                events = (
                    [(each["source"], each["id"], json.dumps(each)) for each in json.loads(body)] if is_kept else []
                )
                kept.executemany("INSERT OR IGNORE INTO kept (source, id, event) VALUES (?, ?, ?)", events)
                row = (self.headers["webhook-id"], len(json.loads(body)), trouble or "204")
                kept.execute("INSERT INTO request VALUES (?, ?, ?)", row)
            if "hang up" in trouble:
                self.close_connection = True
                return
            self.send_response(204 if is_kept else 400 if wrong else 500)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
