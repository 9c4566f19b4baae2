"""What a gateway answers other than a list, and what to do about it: HTTP statuses and EnOS codes become our errors.

The messages say what happened and where to look. Of foreign text they quote only an excerpt: short, on one line, and
without secrets. What happens to an answer on its way is in ``connection``.

| HTTP status | meaning | what follows |
|---|---|---|
| 200 | an answer | its envelope is read |
| 401 | the token is not accepted | one new token, one more try |
| 429, 500-599 | busy or down | retried within the deadline |
| 300-399 | a redirect | refused: a signed request never goes to another address |
| 400-499 otherwise | no | refused |
| any other | not what the documentation promises | malformed |

| code inside HTTP 200 | what follows |
|---|---|
| 0 | success |
| 1203 (token expired) | one new token, one more try |
| 1001 (``encryption`` sent twice), 1005 | retried with a new timestamp |
| 62109, 99500 (internal error of the service) | retried |
| everything else | refused |

Source: EnOS API documentation, "Get My Flow", "Get Access Token", "Common errors".
"""

from __future__ import annotations

import base64
import datetime as dt
import json
import re
from collections.abc import Callable, Iterable, Mapping
from email.utils import parsedate_to_datetime
from functools import lru_cache
from itertools import chain
from typing import Final
from urllib.parse import quote as url_quote
from urllib.parse import urlsplit

from etl.errors import GatewayError, GatewayUnreachable, Malformed, Refused, TransientGatewayError
from etl.printable import printable

Quote = Callable[[bytes | str], str]

RENEWING: Final = frozenset({"http_401", "1203"})
SLOWING: Final = frozenset({"http_429", "http_503"})
"""The gateway has too much to do: one pause for all requests."""
_HICCUPS: Final = frozenset({62109, 99500})
_RETRIED_TOKEN_CODES: Final = frozenset({1001, 1005})
_TOKEN_CODES: Final = frozenset({1001, 1002, 1003, 1004, 1005, 1202, 1203, 1204})

_CODES: Final = {
    1001: "the same signature was sent twice",
    1002: "the access key is unknown: check [gateway] access_key",
    1003: "the signature is wrong: check the secret key, and this machine's clock",
    1004: "a parameter is wrong",
    1005: "internal error of the token service",
    1202: "a parameter is empty: check [gateway] access_key and the secret key",
    1203: "the token has expired",
    1204: "the token could not be refreshed",
    31400: "the organisation or the page is missing: check org in the schedule",
    31403: "the application may not see who the users are: an administrator of the organisation can allow it",
    31404: "there is no such organisation: check org in the schedule",
    62101: "the user is unknown or not of this organisation: check the target in its schedule",
    62103: "the user lacks the privilege",
    62109: "internal error of the service",
    99400: "an argument is wrong: check the target in its schedule",
    99403: "access is denied to this access key",
    99404: "not found: check [gateway] url, api and the target in its schedule",
    99500: "internal error of the service",
}

_STATUSES: Final = {
    400: "the gateway considers the request invalid",
    401: "the token is not accepted: check [gateway] access_key and the secret key",
    403: "access is denied: have this machine's address allowed at the gateway",
    404: "no such path: check [gateway] url and api",
    407: "the proxy requires a login: check [gateway] proxy",
    413: "the request is too large for the gateway",
    429: "too many requests: lower [gateway] concurrency or requests_per_second",
}


def status_error(status: int, headers: Mapping[str, str], body: bytes, quote: Quote) -> GatewayError:
    """The error for a status other than 200, by the table above."""
    code, quoted = f"http_{status}", f", and said {quote(body)}" if body.strip() else ""
    if status == 429 or 500 <= status <= 599:
        text = _STATUSES.get(status, "the gateway or the service behind it failed")
        return GatewayUnreachable(f"HTTP {status}, {text}{quoted}", code=code)
    if 300 <= status <= 399:
        message = f"HTTP {status}, a redirect{_redirect_host(headers)}, is never followed: check [gateway] url"
        return Refused(message, code=code)
    if not 400 <= status <= 499:
        return Malformed(f"HTTP {status} instead of 200 and a list{quoted}", code="malformed")
    error = Refused(f"HTTP {status}, {_STATUSES.get(status, 'refused')}{quoted}", code=code)
    error.gateway_down_evidence = status == 401
    return error


def _redirect_host(headers: Mapping[str, str]) -> str:
    try:
        parts = urlsplit(headers.get("Location", ""))
        host = parts.hostname
    except ValueError:
        return ""
    return f" to {printable(f'{parts.scheme}://{host}')[:80]}" if host else ""


def code_error(code: int, message: str) -> GatewayError:
    """The error for a well-formed envelope with a code other than 0; ``message`` is quoted already."""
    text = f"EnOS answers {code}, {_CODES.get(code, 'an error code')}{f', and says {message}' if message else ''}"
    kind: type[GatewayError] = Refused
    if code in _HICCUPS:
        kind = TransientGatewayError
    elif code in _RETRIED_TOKEN_CODES:
        kind = GatewayUnreachable
    error = kind(text, code=str(code))
    error.gateway_down_evidence = code in _TOKEN_CODES
    return error


def malformed(call: str, problem: str) -> Malformed:
    """The error for an answer that is not what the documentation of ``call`` promises."""
    return Malformed(f"the answer is not what {call} promises: {problem}", code="malformed")


def place_of(error: Exception) -> str:
    """Where in ``data`` the problem is that msgspec reports; it quotes no value."""
    what, _, path = str(error).partition(" - at `$")
    return f"data{path.rstrip('`')}: {what}"


def retry_after_seconds(headers: Mapping[str, str], now: dt.datetime) -> float | None:
    """``Retry-After`` (RFC 9110, 10.2.3) as seconds from now, never negative; None if it is nonsense or missing."""
    value = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[+-]?[0-9]+(\.[0-9]+)?", value):
        return max(float(value), 0.0)
    date = http_date(value)
    return None if date is None else max((date - now).total_seconds(), 0.0)


@lru_cache(maxsize=64)
def http_date(value: str) -> dt.datetime | None:
    """The date in an HTTP header, in UTC; None if it cannot be read."""
    try:
        date = parsedate_to_datetime(value)
        return date.replace(tzinfo=dt.UTC) if date.tzinfo is None else date.astimezone(dt.UTC)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


# What may be shown of it

EXCERPT_CHARACTERS: Final = 100
_LOOKED_AT_CHARACTERS: Final = 4096


class Hidden(str):
    """A secret: it hashes, encodes and joins like any string, and prints as ``'***'`` in every repr."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


def excerpt(found: bytes | str, hidden: Iterable[str] = ()) -> str:
    """The beginning of foreign text, quoted; ``hidden`` strings in it, in any usual encoding, become ``***``."""
    if isinstance(found, bytes):
        found = found[:_LOOKED_AT_CHARACTERS].decode("utf-8", "replace")
    text = found[:_LOOKED_AT_CHARACTERS].strip()
    for form in chain.from_iterable(map(_forms, hidden)):
        text = text.replace(form, "***")
    shown = printable(text[: EXCERPT_CHARACTERS + 1])
    return f'"{shown[:EXCERPT_CHARACTERS]}…"' if len(shown) > EXCERPT_CHARACTERS else f'"{shown}"'


def _forms(secret: str) -> Iterable[str]:
    if len(secret) < 4:
        return ()
    raw = secret.encode("utf-8", "surrogatepass")
    encoded = (base64.b64encode(raw).decode().rstrip("="), base64.urlsafe_b64encode(raw).decode().rstrip("="))
    return (secret, url_quote(raw, safe=""), *encoded, raw.hex(), raw.hex().upper(), json.dumps(secret)[1:-1])
