"""The token service of the local gateway: issues tokens, and checks encryptions and signatures."""

from __future__ import annotations

import hashlib
import math
import threading
import uuid
from typing import Literal, NamedTuple
from urllib.parse import parse_qsl

import msgspec

Verdict = Literal[
    "ok", "unsigned", "missing", "malformed", "far", "unknown_key", "bad", "repeated", "expired", "unknown_token"
]
"""The result of checking a token request or a signature; "unsigned": the gateway asks for none."""


class Request(NamedTuple):
    """One HTTP request; ``query`` as it came, header names in lower case."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes


def signature_of(token: str, query: str, body: str, timestamp: str, secret_key: str) -> str:
    """``apim-signature`` as the EnOS API documentation defines it (API signature, V2.0)."""
    parameters = sorted(parse_qsl(query, keep_blank_values=True), key=lambda parameter: parameter[0])
    joined = "".join(name + value for name, value in parameters)
    return hashlib.sha256(f"{token}{joined}{body}{timestamp}{secret_key}".encode()).hexdigest()


class _Seen:
    """Remembers values for at least ``seconds`` and at most twice that."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._turned_at = -math.inf
        self._recent: set[int] = set()
        self._older: set[int] = set()

    def repeated(self, signature: str, now: float) -> bool:
        """Whether it was seen before; remembers it."""
        if now - self._turned_at > self._seconds:
            self._turned_at, self._recent, self._older = now, set(), self._recent
        key = int(signature[:16], 16)
        known = key in self._recent or key in self._older
        self._recent.add(key)
        return known


class TokenService:
    """Issues tokens and checks signatures as the EnOS API documentation says; thread-safe. ``now`` is epoch seconds."""

    def __init__(self, access_key: str, secret_key: str, *, token_seconds: float, max_skew_seconds: float) -> None:
        self._access_key = access_key
        self._secret_key = secret_key
        self._token_seconds = token_seconds
        self._max_skew_seconds = max_skew_seconds
        self._lock = threading.Lock()
        self._seen = _Seen(2 * max_skew_seconds)
        self._issued: set[str] = set()
        self._token = ""
        self._expires_at = -math.inf

    def issue(self, body: bytes, now: float) -> tuple[Verdict, str, int]:
        """The valid token, or a new one, and the whole seconds that it has left."""
        verdict = self._check_asked(body, now)
        with self._lock:
            if verdict == "ok" and now >= self._expires_at:
                self._token, self._expires_at = uuid.uuid4().hex, now + self._token_seconds
                self._issued.add(self._token)
            return verdict, self._token, int(self._expires_at - now) if verdict == "ok" else 0

    def _check_asked(self, body: bytes, now: float) -> Verdict:
        try:
            asked = msgspec.json.decode(body, type=dict[str, str | int | None])
        except msgspec.MsgspecError:
            return "malformed"
        key, encryption, timestamp = (asked.get(name) for name in ("appKey", "encryption", "timestamp"))
        if not key or not encryption or not timestamp:
            return "missing"
        if not (isinstance(key, str) and isinstance(encryption, str) and isinstance(timestamp, int)):
            return "malformed"
        if key != self._access_key:
            return "unknown_key"
        expected = hashlib.sha256(f"{key}{timestamp}{self._secret_key}".encode()).hexdigest()
        return self._judge(encryption, expected, str(timestamp), now)

    def check(self, request: Request, now: float) -> Verdict:
        """Whether the request has a valid token, a recent timestamp and the right signature, never used before."""
        token, timestamp, signature = (
            request.headers.get(f"apim-{name}", "") for name in ("accesstoken", "timestamp", "signature")
        )
        if not (token and timestamp and signature):
            return "missing"
        with self._lock:
            if token not in self._issued:
                return "unknown_token"
            if token != self._token or now >= self._expires_at:
                return "expired"
        body = request.body.decode(errors="replace")
        expected = signature_of(token, request.query, body, timestamp, self._secret_key)
        return self._judge(signature, expected, timestamp, now)

    def _judge(self, given: str, expected: str, timestamp: str, now: float) -> Verdict:
        if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) < 20):
            return "malformed"
        if abs(int(timestamp) / 1000 - now) > self._max_skew_seconds:
            return "far"
        if given != expected:
            return "bad"
        with self._lock:
            return "repeated" if self._seen.repeated(expected, now) else "ok"

    def expire(self) -> None:
        """Ends the valid token; the next ``get`` returns another."""
        with self._lock:
            self._expires_at = -math.inf
