"""Shared by the tests of the gateway client: settings for a server on loopback, and the result of a call."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable
from typing import Any

from etl.config import GatewaySettings, Secret
from etl.domain.model import Flow, Snapshot, Target
from etl.errors import GatewayError
from etl.gateway import Gateway, reread_strictly
from etl.gateway.answer import has_each_key_once, read_envelope, read_flows
from etl.gateway.calls import LATEST, Api
from etl.gateway.errors import excerpt
from tests.support.hostile import Hostile

ACCESS_KEY = "access-canary-77aa"
SECRET = "secret-canary+/=%ü"
TARGET = Target("org-1", "user-1")
SAFETY_NET_SECONDS = 30


def settings_for(url: str, **changes: Any) -> GatewaySettings:
    """Settings for a server; durations in seconds."""
    given: dict[str, Any] = {"auth": "none", "deadline": 20, "timeout": 10} | changes
    seconds = {"deadline", "timeout", "max_clock_skew"}
    values: dict[str, Any] = {name: dt.timedelta(seconds=v) if name in seconds else v for name, v in given.items()}
    return GatewaySettings(url=url, access_key=ACCESS_KEY, secret_key=Secret(SECRET), **values)


def gateway(
    server: Hostile,
    stop: threading.Event | None = None,
    *,
    desynced: Callable[[], None] | None = None,
    **changes: Any,
) -> Gateway:
    return Gateway(settings_for(server.url, **changes), stop=stop, desynced=desynced)


def failure(server: Hostile, *, own_connection: bool = False, **changes: Any) -> GatewayError:
    """The error of a fetch from this server."""
    with gateway(server, **changes) as client:
        try:
            snapshot = client.fetch(TARGET, own_connection=own_connection)
        except GatewayError as error:
            return error
    raise AssertionError(f"it succeeded: {snapshot!r}")


def one_exchange(asked: Hostile | GatewaySettings, *, own_connection: bool = False, **changes: Any) -> GatewayError:
    """The error of a single request, before any retry."""
    given = asked if isinstance(asked, GatewaySettings) else settings_for(asked.url, **changes)
    with Gateway(given) as client, client._watchdog.watch(given.deadline.total_seconds()) as watch:
        try:
            reply = client._transport.exchange("GET", "/", {}, None, watch, own_connection=own_connection)
        except GatewayError as error:
            return error
    raise AssertionError(f"it succeeded: {reply!r}")


def at_once(count: int, work: Callable[[int], object]) -> list[object]:
    """Call ``work(0..count-1)`` at the same time; return what each returned or raised."""
    results: list[object] = [None] * count
    ready = threading.Barrier(count)

    def run(number: int) -> None:
        ready.wait(SAFETY_NET_SECONDS)
        try:
            results[number] = work(number)
        except BaseException as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(n,), daemon=True) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SAFETY_NET_SECONDS)
        assert not thread.is_alive()
    return results


NOW = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)


def read(body: bytes, api: Api = LATEST) -> tuple[Flow, ...]:
    """The flows, read as the client does: envelope, code, flows, and the strict second reading."""
    envelope = read_envelope("Get My Flow", body, excerpt, api)
    listed = read_flows(envelope.data, api)
    if not has_each_key_once(body, envelope, listed):
        reread_strictly(snapshot(body, listed.flows, listed.absent))
    return listed.flows


def outcome(body: bytes) -> tuple[Flow, ...] | str:
    """The flows, or what is wrong."""
    try:
        return read(body)
    except GatewayError as error:
        return str(error)


def snapshot(body: bytes, found: tuple[Flow, ...] | None, absent: frozenset[str] = frozenset()) -> Snapshot:
    return Snapshot(Target("o", "u"), found, "", NOW, NOW, 2, body, absent=absent)
