"""The token service: issues tokens, and checks encryptions and signatures as the EnOS documentation says."""

from __future__ import annotations

import hashlib
import math
import threading
import uuid
from typing import Final, Literal
from urllib.parse import parse_qsl

import msgspec

from etl.demo.gateway import Request

TOKEN_SECONDS: Final = 7200
MAX_SKEW_SECONDS: Final = 300
Verdict = Literal[
    "ok", "unsigned", "missing", "malformed", "far", "unknown_key", "bad", "repeated", "expired", "unknown_token"
]
"""The result of checking a token request or a signature; "unsigned": the gateway asks for none."""
REFUSALS: Final[dict[Verdict, tuple[int, str]]] = {
    "repeated": (1001, "repeated request: this encryption was used before"),
    "unknown_key": (1002, "unknown appKey"),
    "bad": (1003, "wrong encryption or signature"),
    "malformed": (1004, "bad parameter"),
    "far": (1004, "timestamp too far from the clock of the gateway"),
    "missing": (1202, "empty parameter"),
    "expired": (1203, "token expired"),
    "unknown_token": (401, "unauthorized: no such token"),
}
CLIENTS_FAULT: Final[set[Verdict]] = {"missing", "malformed", "far", "unknown_key", "bad", "repeated"}


def signature_of(token: str, query: str, body: str, timestamp: str, secret_key: str) -> str:
    """``apim-signature`` as the EnOS API documentation defines it (API signature, V2.0)."""
    parameters = sorted(parse_qsl(query, keep_blank_values=True), key=lambda parameter: parameter[0])
    joined = "".join(name + value for name, value in parameters)
    return hashlib.sha256(f"{token}{joined}{body}{timestamp}{secret_key}".encode()).hexdigest()


class TokenService:
    """Thread-safe; ``now`` is epoch seconds."""

    def __init__(self, access_key: str, secret_key: str) -> None:
        self._access_key = access_key
        self._secret_key = secret_key
        self._lock = threading.Lock()
        self._seen: set[str] = set()
        self._issued: set[str] = set()
        self._token = ""
        self._expires_at = -math.inf

    def issue(self, body: bytes, now: float) -> tuple[Verdict, str, int]:
        """The valid token, or a new one, and the whole seconds that it has left."""
        verdict = self._check_asked(body, now)
        with self._lock:
            if verdict == "ok" and now >= self._expires_at:
                self._token, self._expires_at = uuid.uuid4().hex, now + TOKEN_SECONDS
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
        if abs(int(timestamp) / 1000 - now) > MAX_SKEW_SECONDS:
            return "far"
        if given != expected:
            return "bad"
        with self._lock:
            known = len(self._seen)
            self._seen.add(expected)
            return "ok" if len(self._seen) > known else "repeated"

    def expire(self) -> None:
        """Ends the valid token; the next ``get`` returns another."""
        with self._lock:
            self._expires_at = -math.inf
