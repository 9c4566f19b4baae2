"""The log of what the local gateway delivered, with which a checker compares a database."""

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
    """One request, and the answer that was really sent. Times are UTC.

    ``flows`` is only set if a complete list went out in a whole answer with code 0 (``fault`` says whether it was a
    true one). ``status`` and ``code`` are those of the answer, also if it was not ``sent``.
    """

    received_at: dt.datetime
    endpoint: Endpoint
    path: str
    """With the query, as received."""
    org: str = ""
    user: str = ""
    expression: str = ""
    kept_open: bool = False
    """Whether the client wanted to use the connection again."""
    timestamp: str = ""
    """apim-timestamp, as received."""
    number: int = 0
    answered_at: dt.datetime | None = None
    """Just before the last byte, or when it was cut off."""
    verdict: Verdict = "unsigned"
    fault: str = "none"
    status: int = 0
    code: int | None = None
    sent: bool = False
    flows: tuple[Flow, ...] | None = None


class DeliveryLog:
    """What was delivered, in order; thread-safe.

    With a file, each entry is a JSON line there before the client has the whole answer. A later line with the same
    ``number`` replaces it (a drip that ended, an answer that the client did not wait for).
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
        """Records a new entry, or a new result of one; does nothing if that is known already."""
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
        """Waits until the condition holds for the entries; False if it does not in time."""
        with self._changed:
            return self._changed.wait_for(lambda: happened(self._entries), timeout_seconds)
