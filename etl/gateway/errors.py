"""Translates the exceptions of requests, urllib3, ssl, http.client and socket into ours; nothing else does.

The messages say what happened and where to look. They never quote a foreign message, which contains the URL and query.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
from collections.abc import Iterator
from typing import Final

import requests.exceptions
import urllib3.exceptions

from etl.errors import FlowtrailError, GatewayUnreachable, Malformed
from etl.gateway.connection_reader import NotHTTP
from etl.gateway.deadline import Deadline
from etl.gateway.retry import CERTIFICATE
from etl.printable import printable

FOREIGN: Final = (
    requests.exceptions.RequestException,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    OSError,  # sockets, ssl
    ValueError,  # header values, host names, chunk sizes
)

_NOT_REACHED: Final = "check [gateway] url and the network"


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


def explained(error: BaseException, seconds: float) -> FlowtrailError:
    """GatewayUnreachable, or Malformed for a body that cannot be decoded."""
    causes = list(_causes(error))
    for kinds, code, text in _MEANINGS:
        for cause in causes:
            if isinstance(cause, kinds):
                message = text.format(seconds=f"{seconds:g} s", reason=_reason(causes))
                return Malformed(message, code=code) if code == "malformed" else GatewayUnreachable(message, code=code)
    return GatewayUnreachable(f"the request failed ({type(error).__name__}): {_NOT_REACHED}", code="connection")


_Kinds = tuple[type[BaseException], ...]
_MEANINGS: Final[tuple[tuple[_Kinds, str, str], ...]] = (
    (
        (ssl.SSLCertVerificationError,),
        CERTIFICATE,
        "the gateway's certificate is refused ({reason}): check [gateway] url and ca_bundle",
    ),
    (
        (ssl.SSLError, requests.exceptions.SSLError, urllib3.exceptions.SSLError),
        "tls",
        "no secure connection ({reason}): check that [gateway] url leads to a TLS 1.2 or 1.3 server",
    ),
    (
        (urllib3.exceptions.ProxyError, requests.exceptions.ProxyError, requests.exceptions.InvalidProxyURL),
        "proxy",
        "the proxy does not connect ({reason}): check [gateway] proxy",
    ),
    (
        (socket.gaierror, urllib3.exceptions.NameResolutionError),
        "dns",
        "the gateway's name is not found ({reason}): check [gateway] url and the name service",
    ),
    (
        (urllib3.exceptions.NewConnectionError, ConnectionRefusedError),
        "connection",
        "no connection ({reason}): " + _NOT_REACHED,
    ),
    (
        (urllib3.exceptions.ConnectTimeoutError, requests.exceptions.ConnectTimeout),
        "timeout",
        "no connection within {seconds}: " + _NOT_REACHED,
    ),
    (
        (TimeoutError, urllib3.exceptions.TimeoutError, requests.exceptions.Timeout),
        "timeout",
        "no data received for {seconds}",
    ),
    (
        (urllib3.exceptions.DecodeError, requests.exceptions.ContentDecodingError),
        "malformed",
        "the body of the answer cannot be decoded",
    ),
    (
        (http.client.IncompleteRead, requests.exceptions.ChunkedEncodingError),
        "truncated",
        "the answer is cut short",
    ),
    (
        (http.client.RemoteDisconnected,),
        "connection",
        "the gateway closed the connection without an answer",
    ),
    (
        (http.client.HTTPException, urllib3.exceptions.InvalidHeader, requests.exceptions.InvalidHeader),
        "protocol",
        "the answer is not HTTP ({reason})",
    ),
    ((ConnectionError,), "connection", "the connection broke ({reason})"),
)


def _causes(error: BaseException, depth: int = 8) -> Iterator[BaseException]:
    """The error, and the errors that it wraps in its reason, its arguments or its cause."""
    yield error
    if depth == 0:
        return
    wrapped = [getattr(error, "reason", None), getattr(error, "original_error", None), error.__cause__]
    for inner in (*wrapped, *error.args):
        if isinstance(inner, BaseException) and inner is not error:
            yield from _causes(inner, depth - 1)


def _reason(causes: list[BaseException]) -> str:
    """The system's message for the innermost error, or the name of its type."""
    for cause in reversed(causes):
        if isinstance(cause, NotHTTP):
            return str(cause)
        if isinstance(cause, ssl.SSLError) and (problem := _of_ssl(cause)):
            return printable(problem)[:100]
        if isinstance(cause, OSError) and isinstance(cause.strerror, str):
            return printable(cause.strerror)[:100].lower()
        if isinstance(cause, OSError) and (refusal := re.match(r"Tunnel connection failed: ([0-9]{3})\b", str(cause))):
            return f"it answers HTTP {refusal[1]}"
    return type(causes[-1]).__name__


def _of_ssl(error: ssl.SSLError) -> str:
    reason = getattr(error, "reason", None) or ""
    return getattr(error, "verify_message", "") or reason.replace("_", " ").lower()
