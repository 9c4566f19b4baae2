"""Every foreign exception becomes an error of ours in one place, and no message, log or traceback holds a secret."""

from __future__ import annotations

import base64
import datetime as dt
import inspect
import json
import logging
import socket
import ssl
import traceback
from email.utils import format_datetime
from types import ModuleType
from urllib.parse import quote

import h11
import msgspec
import pytest
import requests.exceptions

from etl.errors import GatewayError, GatewayUnreachable, Malformed, Refused
from etl.gateway.calls import signature
from etl.gateway.connection import FOREIGN, explained
from etl.gateway.errors import Hidden, excerpt, retry_after_seconds, status_error
from etl.gateway.repeating import pause_seconds
from etl.gateway.timing import GatewayClock
from tests.support.gateways import ACCESS_KEY, SECRET, TARGET, gateway
from tests.support.hostile import Hostile, Peer, Step, code, http, issued, token_code

# The door


def _errors_of(module: ModuleType) -> list[type[BaseException]]:
    """Those that the module itself defines."""
    name = module.__name__
    found = [each for _, each in inspect.getmembers(module, inspect.isclass) if each.__module__.startswith(name)]
    return [e for e in found if issubclass(e, Exception) and not issubclass(e, Warning)]


KNOWN = sorted(
    {
        *_errors_of(requests.exceptions),
        *_errors_of(h11),
        *_errors_of(ssl),
        *(socket.gaierror, socket.herror, TimeoutError, BrokenPipeError, ConnectionResetError, UnicodeError),
    },
    key=lambda each: (each.__module__, each.__name__),
)


@pytest.mark.parametrize("kind", KNOWN, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_every_foreign_exception_has_a_meaning(kind: type[BaseException]) -> None:
    assert issubclass(kind, FOREIGN), "nobody would catch it"
    error = explained(kind.__new__(kind), 30)
    assert isinstance(error, GatewayUnreachable | Malformed)
    assert error.code
    assert "{" not in str(error)
    assert "None" not in str(error)


@pytest.mark.parametrize(
    ("foreign", "code", "words"),
    [
        (requests.exceptions.ConnectTimeout("/a?userId=u"), "timeout", "no connection within 30 s"),
        (TimeoutError("/a?userId=u"), "timeout", "for 30 s"),
        (ConnectionResetError(104, "Connection reset by peer"), "connection", "connection reset by peer"),
        (OSError(113, "No route to host"), "connection", "no route to host"),
        (ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] x"), "tls", ""),
        (ValueError("/a?userId=u"), "connection", "ValueError"),
    ],
)
def test_the_meaning_is_in_our_own_words(foreign: Exception, code: str, words: str) -> None:
    wrapped = requests.exceptions.ConnectionError("/a?userId=u")
    wrapped.__cause__ = foreign
    for each in (foreign, wrapped):
        error = explained(each, 30)
        assert isinstance(error, GatewayError)
        assert error.code == code
        assert "userId" not in str(error)
    assert words in str(explained(foreign, 30))


def test_every_status_has_a_meaning() -> None:
    meanings = {3: Refused, 4: Refused, 5: GatewayUnreachable}
    for status in (*range(-1, 200), *range(201, 1000)):
        error = status_error(status, {}, b"", repr)
        assert type(error) is (GatewayUnreachable if status == 429 else meanings.get(status // 100, Malformed))
        assert error.transient == error.gateway_down_evidence or status == 401
        assert ("a redirect" in error.message) == (status // 100 == 3)


NOW = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("120", 120.0),
        (" 1.5 ", 1.5),
        ("0", 0.0),
        ("-7", 0.0),
        ("9" * 400, float("inf")),
        ("Fri, 02 Jan 2026 03:05:05 GMT", 60.0),
        ("Fri, 02 Jan 2026 03:00:00 GMT", 0.0),
        ("soon", None),
        ("", None),
        ("1e3", None),
        ("1, 2", None),
        ("0x1", None),
        ("nan", None),
        ("\u0663", None),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
    ],
)
def test_retry_after_is_seconds_from_now_and_never_negative(value: str, expected: float | None) -> None:
    assert retry_after_seconds({"Retry-After": value}, NOW) == expected


@pytest.mark.parametrize(
    ("asked", "date", "arrived", "expected"),
    [(0, 0, 0, 0), (0, 5, 10, 0), (0.9, 0, 1, 0), (0, 70, 10, 60), (100, 39, 110, -60), (0, -0.5, 1, 0)],
)
def test_the_skew_of_clocks_excludes_the_time_of_the_request(
    asked: float, date: float, arrived: float, expected: float
) -> None:
    dated, asked_at, arrived_at = (NOW + dt.timedelta(seconds=seconds) for seconds in (date, asked, arrived))
    headers = {"Date": format_datetime(dated, usegmt=True)}
    assert GatewayClock(dt.timedelta(0)).measure(headers, arrived_at, asked_at) == expected


@pytest.mark.parametrize(
    ("asked", "retries", "least", "most"),
    [(None, 0, 0.05, 0.2), (None, 2, 0.05, 0.8), (None, 999, 0.05, 20), (0.0, 0, 0.2, 0.4), (7.0, 5, 7.0, 7.2)],
)
def test_a_pause_is_what_was_asked_for_with_a_floor_or_a_full_jitter_that_doubles(
    asked: float | None, retries: int, least: float, most: float
) -> None:
    error = GatewayUnreachable("x", code="http_503", retry_after_seconds=asked)
    pauses = {pause_seconds(error, retries) for _ in range(200)}
    assert least <= min(pauses) <= max(pauses) <= most
    assert max(pauses) - min(pauses) > (most - least) / 2
    assert len(pauses) > 100


# Secrets

CANARIES = {"access key": ACCESS_KEY, "secret": SECRET, "token": "token-canary+/=%9"}


def forms(text: str) -> dict[str, str]:
    raw = text.encode()
    return {
        "raw": text,
        "url": quote(text, safe=""),
        "base64": base64.b64encode(raw).decode().rstrip("="),
        "hex": raw.hex(),
        "json": json.dumps(text)[1:-1],
    }


def leaks(text: str) -> list[str]:
    return [
        f"{name} ({how})"
        for name, canary in CANARIES.items()
        for how, form in forms(canary).items()
        if form.lower() in text.lower()
    ]


def _tells(peer: Peer) -> None:
    """A gateway that repeats the request and the secrets in every form."""
    assert peer.request is not None
    said = {f"{name} {how}": form for name, c in CANARIES.items() for how, form in forms(c).items()}
    peer.send(http(json.dumps({"sent": peer.request.headers, "told": said}), 400))


def _says(number: int) -> Step:
    def step(peer: Peer) -> None:
        assert peer.request is not None
        headers = peer.request.headers
        told = [*forms(headers.get("apim-accesstoken", "none")).values(), *forms(SECRET).values()]
        told += [headers.get("apim-signature", ""), *forms(ACCESS_KEY).values(), peer.request.body.decode()]
        peer.send(http(json.dumps({"code": number, "status": number, "msg": " ".join(told)})))

    return step


SCENES: list[tuple[str, Step, Step]] = [
    ("success", http('{"code":0,"data":[]}'), issued(CANARIES["token"])),
    ("a refusal that tells", _tells, issued(CANARIES["token"])),
    ("a code that tells", _says(62101), issued(CANARIES["token"])),
    ("a hiccup that tells", _says(99500), issued(CANARIES["token"])),
    ("a token service that tells", http(""), _says(1003)),
    ("a token that is refused", code(1203), issued(CANARIES["token"])),
    ("a refused key", http(""), token_code(1002, ACCESS_KEY)),
    ("no JSON, with the token", http("<html>" + CANARIES["token"]), issued(CANARIES["token"])),
    ("a reset", lambda peer: peer.reset(), issued(CANARIES["token"])),
    ("headers that cannot be parsed", b"HTTP/1.1 200 OK\r\nbroken header\r\n\r\n", issued(CANARIES["token"])),
    ("two lengths", b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", issued()),
    ("a deadline", lambda peer: peer.hang(), issued(CANARIES["token"])),
]


@pytest.mark.parametrize(("flows", "tokens"), [each[1:] for each in SCENES], ids=[each[0] for each in SCENES])
def test_no_secret_is_revealed(
    flows: Step, tokens: Step, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    for name in logging.root.manager.loggerDict:
        if name.startswith(("urllib3", "requests")):
            caplog.set_level(logging.DEBUG, name)
    said = []
    with Hostile(flows, tokens=(tokens,)) as server, gateway(server, auth="token", deadline=0.4) as client:
        try:
            said.append(repr(client.fetch(TARGET)))
        except GatewayError as error:
            said += [str(error), repr(error), repr(vars(error)), *traceback.format_exception(error)]
            said += [repr(frame.f_locals) for frame, _ in traceback.walk_tb(error.__traceback__) if _ours(frame)]
            signatures = [request.headers.get("apim-signature", "-") for request in server.flow_requests]
            assert not any(each in " ".join(said) for each in signatures)
        inside = {name: value for name, value in vars(client).items() if name != "_settings"}
        said += [repr(client), repr(inside), repr(vars(client._tokens))]
    said += [caplog.text, *(repr(vars(record)) for record in caplog.records), *capfd.readouterr()]
    assert leaks("\n".join(said)) == []
    assert "userId" not in caplog.text


def _ours(frame: object) -> bool:
    """Frames of the client below the server's answers, whose locals a rich traceback would print."""
    name = frame.f_globals.get("__name__", "")  # type: ignore[attr-defined]
    return name.startswith("etl.gateway") and not {"reply", "body", "found"} & set(frame.f_locals)  # type: ignore[attr-defined]


def test_a_hidden_string_works_like_any_and_prints_like_none() -> None:
    hidden = Hidden("s3cret")
    assert repr(hidden) == "'***'"
    assert repr({"h": [hidden]}) == "{'h': ['***']}"
    assert hidden + "x" == "s3cretx"
    assert signature(hidden, {}, 1, "x") == signature("s3cret", {}, 1, "x")
    with pytest.raises(TypeError):
        msgspec.json.encode(object())


def test_secrets_are_hidden_before_the_text_is_cut() -> None:
    secret = "S" * 30
    for before in range(60, 130):
        assert "SSSS" not in excerpt("x" * before + secret, (secret,))


@pytest.mark.parametrize(
    "text", ["a\nb", "\x1b[2J", "\r", "\x85", "\u2028", "\u202e", "\ud800", "\x00", "\x7f", "\ufeff"]
)
def test_an_excerpt_is_one_harmless_line(text: str) -> None:
    shown = excerpt(text)
    assert shown.isprintable()
    assert len(excerpt(text * 1000)) < 120
    assert len(excerpt((text * 1000).encode("utf-8", "replace"))) < 120
