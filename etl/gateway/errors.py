"""Translates the exceptions of requests, h11, ssl and socket into ours; nothing else does.

The messages say what happened and where to look. They never quote a foreign message, which contains the URL and query.
"""

from __future__ import annotations

import socket
import ssl
from typing import Final

import h11
from requests import exceptions

from etl.errors import FlowtrailError, GatewayUnreachable
from etl.gateway.connection import NotHTTP
from etl.gateway.deadline import Deadline
from etl.gateway.retry import CERTIFICATE
from etl.printable import printable

FOREIGN: Final = (OSError, h11.ProtocolError, ValueError)
"""Sockets, ssl and requests; the bytes of an answer; host names."""

_NOT_REACHED: Final = "check [gateway] url and the network"
_SECURE: Final = "no secure connection ({reason}): check that [gateway] url leads to a TLS 1.2 or 1.3 server"
_MEANINGS: Final[tuple[tuple[type[BaseException], str, str], ...]] = (
    (
        ssl.SSLCertVerificationError,
        CERTIFICATE,
        "the gateway's certificate is refused ({reason}): check [gateway] url and ca_bundle",
    ),
    (ssl.SSLError, "tls", _SECURE),
    (exceptions.SSLError, "tls", _SECURE),
    (exceptions.ProxyError, "proxy", "the proxy does not connect ({reason}): check [gateway] proxy"),
    (socket.gaierror, "dns", "the gateway's name is not found ({reason}): check [gateway] url and the name service"),
    (exceptions.ConnectTimeout, "timeout", "no connection within {seconds}: " + _NOT_REACHED),
    (TimeoutError, "timeout", "no data received for {seconds}"),
    (exceptions.ConnectionError, "connection", "no connection ({reason}): " + _NOT_REACHED),
    (h11.ProtocolError, "protocol", "the answer is not HTTP ({reason})"),
    (ConnectionError, "connection", "the connection broke ({reason})"),
    (Exception, "connection", "the request failed ({reason}): " + _NOT_REACHED),
)


def translated(error: BaseException, deadline: Deadline, seconds: float) -> FlowtrailError:
    """Our error for a foreign one; after the deadline or a stop, that is the reason for any error.

    ``seconds`` is the timeout that the socket had for connecting and for each read.
    """
    if deadline.cut or deadline.remaining() <= 0:
        try:
            deadline.check()
        except FlowtrailError as reason:
            return reason
    return error if isinstance(error, FlowtrailError) else explained(error, seconds)


def explained(error: BaseException, seconds: float) -> GatewayUnreachable:
    """The meaning of a foreign error: the first line of the table that fits it or an error that it was raised from."""
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    code, text = next((c, t) for kind, c, t in _MEANINGS if any(isinstance(cause, kind) for cause in causes))
    return GatewayUnreachable(text.format(seconds=f"{seconds:g} s", reason=_reason(causes)), code=code)


def _reason(causes: list[BaseException]) -> str:
    """The system's message for the innermost error, or the name of its type."""
    for cause in reversed(causes):
        if isinstance(cause, NotHTTP | exceptions.ProxyError) and cause.args:
            return str(cause)
        if isinstance(cause, ssl.SSLError):
            reason = (
                getattr(cause, "verify_message", "") or (getattr(cause, "reason", None) or "").replace("_", " ").lower()
            )
            return printable(reason)[:100] or type(cause).__name__
        if isinstance(cause, OSError) and isinstance(cause.strerror, str):
            return printable(cause.strerror)[:100].lower()
    return type(causes[-1]).__name__
