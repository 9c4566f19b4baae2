"""The ledger of what the local gateway delivered: what a checker compares a database with."""

from __future__ import annotations

import copy
import datetime as dt
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import msgspec

from etl.demo.auth import Verdict
from etl.demo.faults import Endpoint
from etl.domain.model import Flow


class Delivery(msgspec.Struct):
    """One request, and what was really answered. Times are UTC.

    ``flows`` is there only if a complete list went out in a whole answer of code 0 (``fault`` says whether it was
    a true one); ``status`` and ``code`` are what was said, or was about to be said when ``sent`` is false.
    """

    received_at: dt.datetime
    endpoint: Endpoint
    path: str
    """With the query, as it came."""
    org: str = ""
    user: str = ""
    expression: str = ""
    kept_open: bool = False
    """Whether the client wanted to use the connection again."""
    timestamp: str = ""
    """apim-timestamp, as it came."""
    number: int = 0
    answered_at: dt.datetime | None = None
    """Just before the last byte, or when it broke off."""
    verdict: Verdict = "unsigned"
    fault: str = "none"
    status: int = 0
    code: int | None = None
    sent: bool = False
    flows: tuple[Flow, ...] | None = None


class DeliveryLog:
    """What was delivered, in order; thread-safe.

    With a file, each entry is a JSON line there before the client has the whole answer; when a later line has
    the same ``number``, it holds instead (a drip that ended, an answer that the client did not wait for).
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._entries: list[Delivery] = []
        self._file: IO[bytes] | None = None

    def keep(self, path: Path) -> None:
        """From now on also appends to this file, until ``close``."""
        self._file = path.open("ab")

    def close(self) -> None:
        with self._changed:
            if self._file:
                self._file.close()
            self._file = None

    def put(self, entry: Delivery, sent: bool, flows: tuple[Flow, ...] | None) -> None:
        """Writes down a new entry, or what has become of one; nothing if that is known already."""
        with self._changed:
            if entry.number and entry.sent == sent:
                return
            if not entry.number:
                entry.number = len(self._entries) + 1
                self._entries.append(entry)
            entry.answered_at, entry.sent, entry.flows = dt.datetime.now(dt.UTC), sent, flows if sent else None
            if self._file:
                self._file.write(msgspec.json.encode(entry) + b"\n")
                self._file.flush()
            self._changed.notify_all()

    def entries(self, after: int = 0) -> list[Delivery]:
        """The entries whose number is greater than ``after``."""
        with self._changed:
            return [copy.copy(entry) for entry in self._entries[after:]]

    def wait_until(self, happened: Callable[[Sequence[Delivery]], bool], timeout_seconds: float = 30) -> bool:
        """Waits for something to have been delivered; False if it was not in time."""
        with self._changed:
            return self._changed.wait_for(lambda: happened(self._entries), timeout_seconds)
