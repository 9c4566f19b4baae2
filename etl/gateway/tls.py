"""TLS for every connection to the gateway: verified, 1.2 or newer, and resumed if the server allows it."""

from __future__ import annotations

import os
import ssl
import time
from typing import Any, Final, NamedTuple

from requests.utils import DEFAULT_CA_BUNDLE_PATH
from urllib3.util.ssltransport import SSLTransport

from etl.errors import ConfigError, Problem

_VERIFIED_SECONDS: Final = 3600.0


class _Verified(NamedTuple):
    session: ssl.SSLSession
    at: float
    """When its server last showed a certificate, by the monotonic clock."""


class ResumingContext(ssl.SSLContext):
    """Offers a server the session of an earlier connection to the same name, which saves both a full handshake.

    A resumed session shows no certificate, so each name must show it again every hour. A server that does not know the
    session makes a full handshake. Thread-safe.
    """

    _sessions: dict[str | None, _Verified]

    def wrap_socket(self, sock: Any, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
        return super().wrap_socket(sock, *args, **self._resuming(kwargs))

    def wrap_bio(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        return super().wrap_bio(incoming, outgoing, *args, **self._resuming(kwargs))

    def _resuming(self, options: dict[str, Any]) -> dict[str, Any]:
        known = self._sessions.get(options.get("server_hostname"))
        if known is None or time.monotonic() - known.at > _VERIFIED_SECONDS:
            return options
        return options | {"session": known.session}

    def remember(self, connected: ssl.SSLSocket | SSLTransport) -> None:
        """Keep the session of a connection that something has been read from: TLS 1.3 sends it late."""
        secured = connected.sslobj if isinstance(connected, SSLTransport) else connected
        known, session = self._sessions.get(secured.server_hostname), secured.session
        if session is not None:
            at = known.at if known and secured.session_reused else time.monotonic()
            self._sessions[secured.server_hostname] = _Verified(session, at)


def verifying(ca_bundle: str) -> ResumingContext:
    """Certificates and host names are verified, TLS is 1.2 or newer, and SSLKEYLOGFILE is not looked at.

    Raises ConfigError if ``ca_bundle`` (empty: the bundle of requests) cannot be used.
    """
    context = ResumingContext(ssl.PROTOCOL_TLS_CLIENT)
    context._sessions = {}
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    bundle = ca_bundle or DEFAULT_CA_BUNDLE_PATH
    try:
        context.load_verify_locations(**{"capath" if os.path.isdir(bundle) else "cafile": bundle})
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or "no certificate in it"
        raise ConfigError([Problem("gateway.ca_bundle", f"{ca_bundle} cannot be used: {reason}")]) from None
    return context
