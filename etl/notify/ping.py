"""Pings for a dead man's switch: an external service expects one from each run, and raises an alarm if none comes.

The convention is that of healthchecks.io: ``POST url/start``, ``url`` for success, ``url/fail``; a short text as body.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from typing import Final, Literal, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import urllib3

from etl.config import Schedule
from etl.log import get_logger

TIMEOUT_SECONDS: Final = 5.0
"""To connect, and for each read."""
_PAUSES_SECONDS: Final = (1.0, 3.0)
_WAITING_AT_MOST: Final = 1000
_LONGEST_BODY: Final = 1000
_STOP_SECONDS: Final = 2.0


class _Ping(NamedTuple):
    schedule: str
    url: str
    body: str


class Pinger:
    """Sends pings in order from a separate thread, so that no ping stops or delays a run.

    A failed ping is logged. While a receiver hangs, pings wait; if too many wait, further ones are dropped.
    """

    def __init__(self) -> None:
        self._waiting: queue.Queue[_Ping | None] = queue.Queue(_WAITING_AT_MOST)
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._log = get_logger("etl.notify")

    def ping(self, schedule: Schedule, suffix: Literal["/start", "", "/fail"], body: str = "") -> None:
        """Report that a run begins, has succeeded, or has failed, with a short text."""
        if schedule.ping_url is None:
            return
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._send_all, name="ping", daemon=True)
                self._thread.start()
        try:
            self._waiting.put_nowait(_Ping(schedule.name, _at(schedule.ping_url.reveal(), suffix), body))
        except queue.Full:
            self._log.warning(
                "ping_dropped", schedule=schedule.name, why="too many are waiting for a receiver that hangs"
            )

    def stop(self) -> None:
        """Send the waiting pings, for a few seconds at most."""
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(None)
        if self._thread is not None:
            self._thread.join(_STOP_SECONDS)

    def _send_all(self) -> None:
        with urllib3.PoolManager(retries=False, timeout=TIMEOUT_SECONDS) as pool:
            while (ping := self._waiting.get()) is not None:
                self._send(pool, ping)

    def _send(self, pool: urllib3.PoolManager, ping: _Ping) -> None:
        for pause_seconds in (0.0, *_PAUSES_SECONDS):
            time.sleep(pause_seconds)
            try:
                answer = pool.request("POST", ping.url, body=ping.body.encode()[:_LONGEST_BODY])
            except Exception as error:
                wrong = type(error).__name__  # its text has the address, which is a secret
                continue
            if answer.status < 300:
                return
            wrong = f"HTTP {answer.status}"
        self._log.warning("ping_failed", schedule=ping.schedule, error=wrong)


def _at(url: str, suffix: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=parts.path.rstrip("/") + suffix))
