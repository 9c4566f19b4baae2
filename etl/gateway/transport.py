"""One HTTP exchange: requests' own adapter over watched connections; a whole body, or an error of ours.

Nothing here retries, follows a redirect, keeps a cookie, or reads the environment.
"""

from __future__ import annotations

import datetime as dt
import logging
import os
import ssl
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, cast
from urllib.parse import SplitResult

from requests import PreparedRequest
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from requests.utils import DEFAULT_CA_BUNDLE_PATH
from urllib3 import BaseHTTPResponse
from urllib3.connection import ProxyConfig
from urllib3.connectionpool import HTTPConnectionPool
from urllib3.util import parse_url

from etl.errors import ConfigError, GatewayError, Problem
from etl.gateway.body import read_body
from etl.gateway.connection import WatchedPool, WatchedTLSPool
from etl.gateway.translation import FOREIGN, translated
from etl.gateway.watchdog import Watch, Watchdog

_TALKATIVE_LOGGERS: Final = (
    "urllib3.connection",
    "urllib3.connectionpool",
    "urllib3.poolmanager",
    "urllib3.response",
    "urllib3.util.retry",
)


class Reply(NamedTuple):
    """A whole answer, whatever its status. Times are the client's clock."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    headers_at: dt.datetime
    arrived_at: dt.datetime


class Transport:
    """Exchanges requests with one origin, over at most ``connections`` kept-alive connections. Thread-safe."""

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
    ) -> None:
        _silence_libraries()
        self._origin = f"{origin.scheme}://{origin.netloc}"
        self._timeout_seconds = timeout_seconds
        self._max_body_bytes = max_body_bytes
        self._clock = clock
        self._adapter = _Adapter(origin, connections, ca_bundle, proxy, watchdog)

    def exchange(self, method: str, path: str, headers: dict[str, str], body: bytes | None, watch: Watch) -> Reply:
        """Sends one request and reads the whole answer. Raises GatewayUnreachable, Malformed, or Interrupted."""
        seconds = min(self._timeout_seconds, watch.remaining())
        try:
            if seconds > 0:
                return self._exchanged(_prepared(method, self._origin + path, headers, body), seconds, watch)
        except (*FOREIGN, GatewayError) as error:
            raise translated(error, watch, seconds) from None
        finally:
            watch.release()
        raise translated(TimeoutError(), watch, seconds)

    def _exchanged(self, request: PreparedRequest, seconds: float, watch: Watch) -> Reply:
        sent = self._adapter.send(request, stream=True, timeout=(seconds, seconds))
        response = cast(BaseHTTPResponse, sent)
        headers_at = self._clock()
        try:
            body = read_body(response, self._max_body_bytes)
        except BaseException:
            response.close()
            response.release_conn()
            raise
        if watch.cut:
            watch.check()
        return Reply(response.status, response.headers, body, headers_at, self._clock())

    def close(self) -> None:
        self._adapter.close()


def _prepared(method: str, url: str, headers: dict[str, str], body: bytes | None) -> PreparedRequest:
    """By hand: the URL is sent as it was signed, and nothing of a session or the environment comes in."""
    request = PreparedRequest()
    request.method, request.url, request.body = method, url, body
    request.headers = cast("CaseInsensitiveDict[str]", headers)
    return request


class _Adapter(HTTPAdapter):
    """requests' adapter with one pool, made once, instead of a search for it on every call.

    ``send`` returns urllib3's response as it is: nobody reads cookies, history or text here.
    """

    def __init__(self, origin: SplitResult, connections: int, ca_bundle: str, proxy: str, watchdog: Watchdog) -> None:
        super().__init__(pool_connections=1, pool_maxsize=1, max_retries=0)
        self._forwards = bool(proxy) and origin.scheme == "http"
        self._path_from = len(f"{origin.scheme}://{origin.netloc}")
        self._pool = self._pool_for(origin, connections, ca_bundle, proxy, watchdog)

    def _pool_for(
        self, origin: SplitResult, connections: int, ca_bundle: str, proxy: str, watchdog: Watchdog
    ) -> HTTPConnectionPool:
        options: dict[str, Any] = {"maxsize": connections, "watchdog": watchdog}
        if "https" in (origin.scheme, proxy.partition(":")[0]):
            options["ssl_context"] = _tls(ca_bundle)
        host, port, scheme = origin.hostname or "", origin.port, origin.scheme
        if proxy:
            by = parse_url(proxy)
            options |= {"_proxy": by, "_proxy_headers": self.proxy_headers(proxy)}
            options["_proxy_config"] = ProxyConfig(options.get("ssl_context"), False, None, None)
            if self._forwards:
                host, port, scheme = by.host or "", by.port, by.scheme or "http"
        if scheme == "https":
            return WatchedTLSPool(host, port, **options)
        options.pop("ssl_context", None)
        return WatchedPool(host, port, **options)

    def get_connection_with_tls_context(self, *_: Any, **__: Any) -> HTTPConnectionPool:
        return self._pool

    def cert_verify(self, *_: Any, **__: Any) -> None:
        """The pool's SSLContext verifies; nothing per request can switch that off."""

    def request_url(self, request: PreparedRequest, proxies: object) -> str:
        url = request.url or ""
        return url if self._forwards else url[self._path_from :]

    def build_response(self, req: PreparedRequest, resp: Any) -> Any:
        return resp

    def close(self) -> None:
        self._pool.close()
        super().close()


def _tls(ca_bundle: str) -> ssl.SSLContext:
    """Certificates and host names are verified, TLS is 1.2 or newer, and SSLKEYLOGFILE is not looked at."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    bundle = ca_bundle or DEFAULT_CA_BUNDLE_PATH
    try:
        context.load_verify_locations(**{"capath" if os.path.isdir(bundle) else "cafile": bundle})
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or "no certificate in it"
        raise ConfigError([Problem("gateway.ca_bundle", f"{ca_bundle} cannot be used: {reason}")]) from None
    return context


def _silence_libraries() -> None:
    """urllib3 logs URLs with their queries; whatever it has to say about a failure is in our error already."""
    for name in _TALKATIVE_LOGGERS:
        logging.getLogger(name).addFilter(_nothing)


def _nothing(_: logging.LogRecord) -> bool:
    return False
