"""How a request is authenticated (EnOS API documentation, "Get Access Token" and "Signature")."""

from __future__ import annotations

import datetime as dt
import hashlib
import threading
from array import array
from collections.abc import Callable, Hashable, Mapping
from typing import Final, NamedTuple

from etl.gateway.excerpt import Hidden

_BUCKETS: Final = 4096
_CORRECTED_BACK_MS: Final = 60_000


def signature(token: str, params: Mapping[str, str], timestamp_ms: int, secret: str, body: str = "") -> Hidden:
    """``apim-signature``: SHA-256 (hex) of token, decoded parameters in ASCII order of name, body, time, secret."""
    joined = "".join([name + params[name] for name in sorted(params)])
    return Hidden(_sha256(f"{token}{joined}{body}{timestamp_ms}{secret}"))


def encryption(access_key: str, timestamp_ms: int, secret: str) -> Hidden:
    """``encryption`` of a token request: SHA-256 (hex) of key, time, secret."""
    return Hidden(_sha256(f"{access_key}{timestamp_ms}{secret}"))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class Moment(NamedTuple):
    at: dt.datetime
    timestamp_ms: int


class Timestamps:
    """Timestamps that strictly increase for each asker, in constant memory (askers share 4096 buckets).

    If the wall clock is set back by less than a minute, timestamps go on in steps of 1 ms; if by more, they follow it.
    """

    def __init__(self, clock: Callable[[], dt.datetime]) -> None:
        self._clock = clock
        self._last = array("q", bytes(8 * _BUCKETS))
        self._lock = threading.Lock()

    def next(self, asker: Hashable) -> Moment:
        bucket = hash(asker) % _BUCKETS
        with self._lock:
            at = self._clock()
            now, last = int(at.timestamp() * 1000), self._last[bucket]
            set_back = now < last - _CORRECTED_BACK_MS
            stamp = self._last[bucket] = now if now > last or set_back else last + 1
        return Moment(at, stamp)
