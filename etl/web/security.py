"""Protects the page: which host names it answers to, how many requests, and what a browser may do with it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from etl.config.addresses import ip_of

_POLICY: Final = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self'",
    "form-action": "'self'",
    "frame-ancestors": "'none'",
    "base-uri": "'none'",
}
HEADERS: Final = {
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in _POLICY.items()),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


class SecurityHeaders:
    """Adds ``HEADERS`` to every response, and ``no-store`` unless the response sets its caching."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self._app(scope, receive, send_with_headers if scope["type"] == "http" else send)


class KnownHosts:
    """Refuses requests for a host name that is not ours, so that no website can make its own name point here
    (DNS rebinding). Addresses are allowed: a website cannot use one as its name. So are requests without a Host
    header, which some HTTP/1.0 probes send, but no browser."""

    def __init__(self, app: ASGIApp, names: Collection[str]) -> None:
        self._app = app
        self._names = {"localhost", *(name.lower().rstrip(".") for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._knows(Headers(scope=scope).get("host")):
            await SecurityHeaders(PlainTextResponse(_REFUSAL, 421))(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _knows(self, host: str | None) -> bool:
        if host is None:
            return True
        parts = _HOST.fullmatch(host)
        if parts is None:
            return False
        name = (parts["name"] or "").lower().rstrip(".")
        return name in self._names or name.endswith(".localhost") or ip_of(parts["address"] or name) is not None


_HOST: Final = re.compile(r"(?:\[(?P<address>[0-9A-Fa-f:.]+)\]|(?P<name>[^\[\]:]+))(?::[0-9]*)?")
_REFUSAL: Final = (
    "Flowtrail does not answer to this name: use localhost, the machine's address, or the name in [service] listen; "
    "add more names to [service] hosts.\n"
)


class ConcurrencyLimit:
    """Handles at most ``most`` requests at a time; further ones get 503 with Retry-After."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app = app
        self._room = asyncio.Semaphore(most)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._room.locked():
            await _TOO_MANY(scope, receive, send)
            return
        async with self._room:
            await self._app(scope, receive, send)


_TOO_MANY: Final = PlainTextResponse(
    "Too many pages are being rendered: try again in a few seconds.\n", 503, {"Retry-After": "5"}
)
