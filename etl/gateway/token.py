"""The access token: fetched once, shared by all threads, renewed early, never by two threads at once.

Source: EnOS API documentation, "Get Access Token". While a token is valid, ``get`` returns the same one with the
seconds that are left. Flowtrail never calls ``refresh``, which may end a token that another process uses.

After the gateway has refused a token:

| the token service returns | valid | then |
|---|---|---|
| another value, or was asked with another secret key | | it is used |
| the same | beyond the deadline | it is tried once more, because waiting does not help |
| the same, before the refusal came | until before the deadline | it is asked again: the token was at its end |
| the same, after the refusal came | until before the deadline | its end is waited for, and then it is asked again |
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple

import msgspec

from etl.errors import GatewayError
from etl.gateway.answer import as_integer, quoted_message, unreadable
from etl.gateway.deadline import Deadline
from etl.gateway.errors import Hidden, Quote, code_error, malformed

_MARGIN_SHARE: Final = 0.1
_MARGIN_MAX_SECONDS: Final = 60.0
_LIFE_MIN_SECONDS: Final = 1.0
_LIFE_MAX_SECONDS: Final = 7200.0
_LOOK_SECONDS: Final = 0.25
"""How soon a thread that waits for another token sees that one has come."""
_CALL: Final = "Get Access Token"
_malformed = partial(malformed, _CALL)


class Issued(NamedTuple):
    """An answer of the token service, and the secret that it was asked with."""

    value: Hidden
    expire_seconds: float
    secret: Hidden


class Token(NamedTuple):
    """A token in use; ``number`` counts the renewals, because a value may come back. Times are monotonic."""

    number: int
    value: Hidden
    secret: Hidden
    asked_at: float
    refresh_at: float
    expires_at: float


def read_token(body: bytes, secret: Hidden, quote: Quote) -> Issued:
    """The token in an answer of ``token/get``; raises by its error code, or Malformed.

    A success needs a usable ``data.accessToken`` and ``data.expire``, and no ``status`` other than 0. (The
    documentation's own sample misspells that key as ``stauts``.)
    """
    envelope = _fields(body, "its body", quote)
    for key in ("status", "stauts", "code"):
        if code := as_integer(envelope.get(key)):
            raise code_error(code, quoted_message(envelope.get("msg"), quote))
    data = _fields(envelope.get("data", msgspec.Raw()), "data", quote)
    return Issued(_access_token(data.get("accessToken")), _expire(data.get("expire"), quote), secret)


def _fields(raw: bytes | msgspec.Raw, place: str, quote: Quote) -> dict[str, msgspec.Raw]:
    if not memoryview(raw).nbytes:
        raise _malformed(f"{place} is missing or empty")
    try:
        return msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        raise _malformed(f"{place} is not a JSON object: {quote(bytes(raw))}") from None
    except (ValueError, RecursionError) as error:
        raise unreadable(_CALL, bytes(raw), error, quote) from None


def _access_token(raw: msgspec.Raw | None) -> Hidden:
    found = re.fullmatch(rb'"([\x21-\x7e]{1,4096})"', raw) if raw is not None else None
    if not found or b"\\" in found[1] or b'"' in found[1]:
        raise _malformed("data.accessToken is missing, or cannot be sent in a header")
    return Hidden(found[1].decode("ascii"))


def _expire(raw: msgspec.Raw | None, quote: Quote) -> float:
    found = re.fullmatch(rb"[0-9]{1,18}(\.[0-9]+)?", raw) if raw is not None else None
    if not found:
        raise _malformed(f"data.expire is {quote(bytes(raw)) if raw is not None else 'missing'}, not seconds")
    return min(float(found[0]), _LIFE_MAX_SECONDS)


class TokenKeeper:
    """The one token of a gateway. ``obtain`` calls the token service once, within the given deadline."""

    def __init__(self, obtain: Callable[[Deadline], Issued]) -> None:
        self._obtain = obtain
        self._token: Token | None = None
        self._asking = threading.Lock()
        self._failed: tuple[GatewayError | None, float] = None, -math.inf
        """The latest error of the service, and when it came."""

    def current(self, deadline: Deadline, refused: Token | None = None) -> Token:
        """A token; after a refusal, by the table above.

        Of all threads that need one, one calls the service; the others wait, and share its error. While a token is old
        but valid, they continue with it, and a failed renewal does no harm yet.
        """
        token = self._token
        if token is not None and refused is None and time.monotonic() < token.refresh_at:
            return token
        refused_at, after = time.monotonic(), 0 if refused is None else refused.number
        while True:
            deadline.check()
            token = self._renewed(deadline, after)
            left = token.expires_at - time.monotonic()
            if refused is None or token[1:3] != refused[1:3] or left >= deadline.remaining():
                return token
            if token.asked_at < refused_at:
                after = token.number
            else:
                deadline.pause(min(left, _LOOK_SECONDS))

    def _renewed(self, deadline: Deadline, after: int) -> Token:
        """A valid token with a number above ``after``, whatever its value."""
        wanted_at = time.monotonic()
        alive = self._alive(after)
        if alive is not None and wanted_at < alive.refresh_at:
            return alive
        while not self._asking.acquire(timeout=0 if alive else max(deadline.remaining(), 0)):
            if alive is not None:
                return alive
            deadline.check()
        try:
            return self._asked(deadline, after, wanted_at)
        finally:
            self._asking.release()

    def _asked(self, deadline: Deadline, after: int, wanted_at: float) -> Token:
        """What another thread has just got, or its error, or else what the service says now. The error of a deadline
        is only of its own target."""
        alive, began = self._alive(after), time.monotonic()
        if alive is not None and began < alive.refresh_at:
            return alive
        failure, failed_at = self._failed
        if failure is not None and failed_at > wanted_at:
            raise _same(failure)
        try:
            self._token = token = self._dated(self._obtain(deadline), began)
        except GatewayError as error:
            if alive is not None:
                self._token = token = _postponed(alive)
                return token
            error.gateway_down_evidence = error.gateway_down_evidence or error.code != "deadline"
            if error.code != "deadline":
                self._failed = error, time.monotonic()
            raise
        return token

    def _alive(self, after: int) -> Token | None:
        """The token, if it can still be used and has a number above ``after``."""
        token = self._token
        return token if token and token.number > after and time.monotonic() < token.expires_at else None

    def _dated(self, issued: Issued, began: float) -> Token:
        """The token with its times. It is renewed early by a share of its remaining life, so that a short one makes no
        loop."""
        number = self._token.number + 1 if self._token else 1
        expires_at = max(began + issued.expire_seconds, time.monotonic() + _LIFE_MIN_SECONDS)
        margin = min((expires_at - began) * _MARGIN_SHARE, _MARGIN_MAX_SECONDS)
        return Token(number, issued.value, issued.secret, began, expires_at - margin, expires_at)


def _postponed(token: Token) -> Token:
    now = time.monotonic()
    pause = max((token.expires_at - now) * _MARGIN_SHARE, _LIFE_MIN_SECONDS)
    return token._replace(refresh_at=min(now + pause, token.expires_at))


def _same(error: GatewayError) -> GatewayError:
    """A copy of the error, for another thread to raise."""
    twin = type(error)(error.message, code=error.code)
    vars(twin).update(vars(error))
    return twin
