"""TLS as every connection to the gateway has it: verified, 1.2 or newer, and resumed where the server allows it."""

from __future__ import annotations

import os
import ssl
from typing import Any

from requests.utils import DEFAULT_CA_BUNDLE_PATH
from urllib3.util.ssltransport import SSLTransport

from etl.errors import ConfigError, Problem


class ResumingContext(ssl.SSLContext):
    """Offers a server the session of an earlier connection to the same name, which spares both a full handshake.

    A server that does not know the session makes a new one; a name that was verified in a full handshake is trusted
    for as long as the session lives. Thread-safe.
    """

    _sessions: dict[str | None, ssl.SSLSession]

    def wrap_socket(self, sock: Any, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
        return super().wrap_socket(sock, *args, **self._resuming(kwargs))

    def wrap_bio(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        return super().wrap_bio(incoming, outgoing, *args, **self._resuming(kwargs))

    def _resuming(self, options: dict[str, Any]) -> dict[str, Any]:
        return options | {"session": self._sessions.get(options.get("server_hostname"))}

    def remember(self, connected: ssl.SSLSocket | SSLTransport) -> None:
        """Keep the session of a connection over which something has been read: TLS 1.3 hands it out late."""
        secured = connected.sslobj if isinstance(connected, SSLTransport) else connected
        if secured.session is not None:
            self._sessions[secured.server_hostname] = secured.session


def verifying(ca_bundle: str) -> ResumingContext:
    """Certificates and host names are verified, TLS is 1.2 or newer, and SSLKEYLOGFILE is not looked at.

    Raises ConfigError where ``ca_bundle`` (empty: the one of requests) cannot be used.
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
