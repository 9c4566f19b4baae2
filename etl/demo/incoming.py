"""One HTTP request as the local gateway reads it from a connection."""

from __future__ import annotations

from typing import IO, Final
from urllib.parse import parse_qsl, urlsplit

import msgspec

from etl.demo.auth import Request

_LONGEST_LINE: Final = 1 << 16


def read_request(stream: IO[bytes]) -> Request | None:
    """The next request of a connection; None at its end, or when it is not HTTP."""
    try:
        method, address, _ = stream.readline(_LONGEST_LINE).decode("latin-1").split()
        headers = {}
        while (line := stream.readline(_LONGEST_LINE).decode("latin-1").strip()) != "":
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        body = stream.read(int(headers.get("content-length") or 0))
        parts = urlsplit(address)
    except ValueError:
        return None
    return Request(method, parts.path, parts.query, headers, body)


def asks_for_the_end(request: Request) -> bool:
    """Whether the client wants the connection closed after the answer."""
    return request.headers.get("connection", "").lower() == "close"


def asked_for(request: Request) -> dict[str, str]:
    """The parameters of a request; for one with a body, only its organisation."""
    asked = dict(parse_qsl(request.query, keep_blank_values=True))
    if request.body and request.method == "POST":
        try:
            org = msgspec.json.decode(request.body, type=dict[str, msgspec.Raw]).get("orgId", msgspec.Raw(b'""'))
            asked["orgId"] = msgspec.json.decode(org, type=str)
        except msgspec.MsgspecError:
            pass
    return asked
