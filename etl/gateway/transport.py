"""One HTTP exchange: requests' own adapter over watched connections; a complete body, or one of our errors.

Nothing here retries, follows a redirect, keeps a cookie, or reads the environment.
"""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple, cast
from urllib.parse import SplitResult

from requests import PreparedRequest
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from urllib3 import HTTPResponse
from urllib3.connection import ProxyConfig
from urllib3.connectionpool import HTTPConnectionPool
from urllib3.util import parse_url

from etl.errors import GatewayError
from etl.gateway.body import read_body
from etl.gateway.connection import (
    ConnectionUnusable,
    OwnPool,
    OwnTLSPool,
    SharedConnectionState,
    WatchedConnection,
    WatchedPool,
    WatchedTLSPool,
)
from etl.gateway.deadline import Deadline, Watchdog
from etl.gateway.errors import FOREIGN, translated
from etl.gateway.framing import StrictResponse
from etl.gateway.tls import verifying

_TALKATIVE_LOGGERS: Final = (
    "urllib3.connection",
    "urllib3.connectionpool",
    "urllib3.poolmanager",
    "urllib3.response",
    "urllib3.util.retry",
)


class Reply(NamedTuple):
    """A complete answer, whatever its status. Times are by the client's clock."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    headers_at: dt.datetime
    arrived_at: dt.datetime
    is_sole: bool
    """Whether it is the only answer that its connection ever carried."""


class Transport:
    """Exchanges requests with one origin, over at most ``connections`` kept-alive connections or one for each exchange.

    ``desynced`` is called, from any thread, when a connection carried bytes that belong to no request.
    Thread-safe.
    """

    def __init__(
        self,
        origin: SplitResult,
        *,
        connections: int,
        timeout_seconds: float,
        max_body_bytes: int,
        ca_bundle: str,
        proxy: str,
        watchdog: Watchdog,
        clock: Callable[[], dt.datetime],
        desynced: Callable[[], None],
    ) -> None:
        _silence_libraries()
        self._origin = f"{origin.scheme}://{origin.netloc}"
        self._timeout_seconds = timeout_seconds
        self._max_body_bytes = max_body_bytes
        self._clock = clock
        https = "https" in (origin.scheme, proxy.partition(":")[0])
        shared = {"shared": SharedConnectionState(watchdog, desynced), "maxsize": connections}
        if https:
            shared["ssl_context"] = verifying(ca_bundle)
        self._kept = _Adapter(origin, proxy, (WatchedPool, WatchedTLSPool), shared | {"own": False})
        self._own = _Adapter(origin, proxy, (OwnPool, OwnTLSPool), shared | {"own": True})

    def exchange(
        self,
        method: str,
        path: str,
        headers: dict[str, str],
        body: bytes | None,
        deadline: Deadline,
        *,
        own_connection: bool = False,
    ) -> Reply:
        """Sends one request and reads the whole answer. Raises GatewayUnreachable, Malformed, or Interrupted.

        With ``own_connection`` nothing else has been sent or received over its connection, and nothing will be.
        """
        seconds = min(self._timeout_seconds, deadline.remaining())
        adapter = self._own if own_connection else self._kept
        asked = headers | {"Connection": "close"} if own_connection else headers
        try:
            if seconds > 0:
                return self._exchanged(adapter, _prepared(method, self._origin + path, asked, body), seconds, deadline)
        except (*FOREIGN, GatewayError) as error:
            raise translated(error, deadline, seconds) from None
        finally:
            deadline.release()
        raise translated(TimeoutError(), deadline, seconds)

    def _exchanged(self, adapter: _Adapter, request: PreparedRequest, seconds: float, deadline: Deadline) -> Reply:
        response = adapter.sent(request, seconds)
        headers_at = self._clock()
        try:
            answer = cast(StrictResponse, response._original_response)
            connection = cast(WatchedConnection, response.connection)
            body = read_body(answer, self._max_body_bytes)
            arrived_at = self._clock()
            is_sole = connection.finish(answer)
        except BaseException:
            response.close()
            response.release_conn()
            raise
        response.release_conn()
        if deadline.cut:
            deadline.check()
        return Reply(response.status, response.headers, body, headers_at, arrived_at, is_sole)

    def close(self) -> None:
        self._kept.close()
        self._own.close()


def _prepared(method: str, url: str, headers: dict[str, str], body: bytes | None) -> PreparedRequest:
    """Built by hand, so that the URL is sent as it was signed, without anything from a session or the environment."""
    request = PreparedRequest()
    request.method, request.url, request.body = method, url, body
    request.headers = cast("CaseInsensitiveDict[str]", headers)
    return request


class _Adapter(HTTPAdapter):
    """requests' adapter with one fixed pool instead of a search for it on every call.

    ``sent`` returns urllib3's response as it is: cookies, history and text are not used.
    """

    def __init__(
        self,
        origin: SplitResult,
        proxy: str,
        pools: tuple[type[WatchedPool], type[WatchedTLSPool]],
        options: dict[str, Any],
    ) -> None:
        super().__init__(pool_connections=1, pool_maxsize=1, max_retries=0)
        self._forwards = bool(proxy) and origin.scheme == "http"
        self._path_from = len(f"{origin.scheme}://{origin.netloc}")
        self._pool = self._pool_for(origin, proxy, pools, dict(options))

    def _pool_for(
        self,
        origin: SplitResult,
        proxy: str,
        pools: tuple[type[WatchedPool], type[WatchedTLSPool]],
        options: dict[str, Any],
    ) -> HTTPConnectionPool:
        host, port, scheme = origin.hostname or "", origin.port, origin.scheme
        if proxy:
            by = parse_url(proxy)
            options |= {"_proxy": by, "_proxy_headers": self.proxy_headers(proxy)}
            options["_proxy_config"] = ProxyConfig(options.get("ssl_context"), False, None, None)
            if self._forwards:
                host, port, scheme = by.host or "", by.port, by.scheme or "http"
        plain, tls = pools
        if scheme == "https":
            return tls(host, port, **options)
        options.pop("ssl_context", None)
        return plain(host, port, **options)

    def sent(self, request: PreparedRequest, seconds: float) -> HTTPResponse:
        """urllib3's response with its body unread. A kept connection that turns out to be unusable is replaced."""
        while True:
            with suppress(ConnectionUnusable):
                return cast(HTTPResponse, self.send(request, stream=True, timeout=(seconds, seconds)))

    def get_connection_with_tls_context(self, *_: Any, **__: Any) -> HTTPConnectionPool:
        return self._pool

    def cert_verify(self, *_: Any, **__: Any) -> None:
        """The pool's SSLContext verifies; no request can switch that off."""

    def request_url(self, request: PreparedRequest, proxies: object) -> str:
        url = request.url or ""
        return url if self._forwards else url[self._path_from :]

    def build_response(self, req: PreparedRequest, resp: Any) -> Any:
        return resp

    def close(self) -> None:
        self._pool.close()
        super().close()


def _silence_libraries() -> None:
    """urllib3 logs URLs with their queries; our errors already say what failed."""
    for name in _TALKATIVE_LOGGERS:
        logging.getLogger(name).addFilter(_nothing)


def _nothing(_: logging.LogRecord) -> bool:
    return False
