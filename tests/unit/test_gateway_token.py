"""Token and signature: fetched once, shared, renewed early; every request signed as documented, and anew."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import re
import sys
import threading
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl.config import GatewaySettings, Secret
from etl.domain.model import Target
from etl.errors import GatewayUnreachable, Malformed, PermanentGatewayError, Refused
from etl.gateway import Gateway
from etl.gateway.timing import Timestamps
from etl.gateway.token import Token, TokenKeeper, read_token
from tests.support.gateways import (
    ACCESS_KEY,
    SAFETY_NET_SECONDS,
    SECRET,
    TARGET,
    at_once,
    failure,
    gateway,
    settings_for,
)
from tests.support.hostile import TOKEN, Hostile, Peer, Request, answer, code, flows, http, issued, token_code

NOW = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)


# Signature


def verify(request: Request) -> None:
    """The signature of a received request, computed by the other side, from what was received."""
    params = sorted(parse_qsl(urlsplit(request.target).query, keep_blank_values=True, strict_parsing=True))
    joined = "".join(name + value for name, value in params)
    stamp = request.headers["apim-timestamp"]
    expected = hashlib.sha256(f"{TOKEN}{joined}{stamp}{SECRET}".encode()).hexdigest()
    assert request.headers["apim-signature"] == expected
    assert request.headers["apim-accesstoken"] == TOKEN


TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


@settings(max_examples=40)
@given(st.tuples(TEXTS, TEXTS.filter(bool), TEXTS))
def test_any_parameter_arrives_unchanged_and_as_it_was_signed(texts: tuple[str, ...]) -> None:
    with Hostile() as server, gateway(server, auth="token") as client:
        client.fetch(Target(*texts))
    request = server.flow_requests[0]
    verify(request)
    asked = dict(parse_qsl(urlsplit(request.target).query, keep_blank_values=True, strict_parsing=True))
    assert [asked["orgId"], asked["userId"], asked.get("expression", "")] == [*texts]


def test_every_attempt_is_signed_anew_with_a_later_time() -> None:
    steps = (http("", 503), http("", 500), code(99500), lambda peer: peer.reset(), answer())
    with Hostile(*steps) as server:
        changed = settings_for(server.url, auth="token", max_clock_skew=0)
        with Gateway(changed, clock=lambda: NOW) as client:
            assert client.fetch(TARGET).attempts == 5
            client.fetch(TARGET)
            client.fetch(Target(*TARGET[:2], "other"))
    stamps = [int(request.headers["apim-timestamp"]) for request in server.flow_requests]
    assert stamps == sorted(set(stamps))
    assert len({request.headers["apim-signature"] for request in server.flow_requests}) == 7
    for request in server.flow_requests:
        verify(request)


def test_a_clock_that_is_set_back_a_little_is_waited_out_and_a_lot_is_followed() -> None:
    clock = [NOW]
    stamps = Timestamps(lambda: clock[0])
    first = stamps.next("a").timestamp_ms
    clock[0] = NOW - dt.timedelta(seconds=50)
    assert stamps.next("a").timestamp_ms == first + 1
    clock[0] = NOW - dt.timedelta(days=1)
    followed = stamps.next("a").timestamp_ms
    assert followed == first - 86_400_000
    assert stamps.next("a").timestamp_ms == followed + 1


def test_timestamps_increase_for_each_caller_from_many_threads() -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    stamps = Timestamps(lambda: NOW)
    seen = at_once(8, lambda _: [stamps.next("a").timestamp_ms for _ in range(500)])
    sys.setswitchinterval(interval)
    assert len({stamp for each in seen for stamp in each}) == 4000  # type: ignore[attr-defined]
    assert stamps.next("b").timestamp_ms == int(NOW.timestamp() * 1000), "another caller has a clock of its own"


# The token service


def test_one_token_serves_fifty_threads() -> None:
    def slow(peer: Peer) -> None:
        peer.drip(issued(), 0.001)

    with Hostile(tokens=(slow,)) as server, gateway(server, auth="token", concurrency=50) as client:
        results = at_once(50, lambda n: client.fetch(Target("o", f"u{n}")).attempts)
    assert results == [1] * 50
    assert len(server.token_requests) == 1


@pytest.mark.parametrize("dead", [code(1203), http("", 401), http('{"code":1203}', 401)])
def test_a_token_that_dies_under_fifty_threads_is_renewed_once(dead: bytes) -> None:
    everybody = threading.Barrier(50)

    def dies(peer: Peer) -> None:
        assert peer.request is not None
        if peer.request.headers["apim-accesstoken"] == "old":
            everybody.wait(SAFETY_NET_SECONDS)
            peer.send(dead)
        else:
            peer.send(answer())

    with (
        Hostile(dies, tokens=(issued("old"), issued("new"))) as server,
        gateway(server, auth="token", concurrency=50) as client,
    ):
        results = at_once(50, lambda n: client.fetch(Target("o", f"u{n}")).attempts)
    assert results == [2] * 50
    assert len(server.token_requests) == 2


def test_a_token_that_comes_back_the_same_is_still_renewed_once() -> None:
    everybody = threading.Barrier(20)
    first = set()

    def dies(peer: Peer) -> None:
        assert peer.request is not None
        if peer.request.target in first:
            return peer.send(answer())
        first.add(peer.request.target)
        everybody.wait(SAFETY_NET_SECONDS)
        return peer.send(http("", 401))

    with Hostile(dies) as server, gateway(server, auth="token", concurrency=20) as client:
        results = at_once(20, lambda n: client.fetch(Target("o", f"u{n}")).attempts)
    assert results == [2] * 20
    assert len(server.token_requests) == 2


@pytest.mark.parametrize(("dead", "named"), [(code(1203), "1203"), (http("", 401), "http_401")])
def test_a_token_that_is_never_accepted_is_tried_exactly_twice(dead: bytes, named: str) -> None:
    with Hostile(dead) as server:
        error = failure(server, auth="token")
    assert isinstance(error, Refused)
    assert (error.code, error.attempts, error.gateway_down_evidence) == (named, 2, True)
    assert "the new token is not accepted either" in str(error)
    assert (len(server.flow_requests), len(server.token_requests)) == (2, 2)


def test_one_new_token_a_target_even_when_other_things_go_wrong_between() -> None:
    with Hostile(code(1203), http("", 503), code(1203)) as server:
        error = failure(server, auth="token")
    assert (error.code, error.attempts, len(server.token_requests)) == ("1203", 3, 2)


@pytest.mark.parametrize("number", [1002, 1003, 1004, 1202, 1203, 1204, 9999])
def test_a_refused_key_is_tried_once_and_counts_as_the_gateway_being_down(number: int) -> None:
    with Hostile(tokens=(token_code(number),)) as server:
        error = failure(server, auth="token")
    assert isinstance(error, Refused)
    assert (error.code, error.attempts, error.gateway_down_evidence) == (str(number), 1, True)
    assert (len(server.token_requests), len(server.flow_requests)) == (1, 0)


@pytest.mark.parametrize("failing", [token_code(1001), token_code(1005), http("", 503), http("", 429), b""])
def test_a_token_service_that_may_recover_is_tried_again_with_a_new_time(failing: bytes) -> None:
    step = failing or (lambda peer: peer.reset())
    with Hostile(tokens=(step, step, issued())) as server, gateway(server, auth="token") as client:
        assert client.fetch(TARGET).attempts == 3
    proofs = [json.loads(request.body) for request in server.token_requests]
    assert len({proof["encryption"] for proof in proofs}) == 3
    assert [p["timestamp"] for p in proofs] == sorted(p["timestamp"] for p in proofs)


def test_an_error_of_the_token_is_shared_by_those_who_wait_for_it() -> None:
    begun = threading.Event()

    def slow(peer: Peer) -> None:
        begun.set()
        peer.drip(token_code(1002), 0.002)

    with Hostile(tokens=(slow,)) as server, gateway(server, auth="token", concurrency=20) as client:
        errors = at_once(20, lambda n: client.fetch(Target("o", f"u{n}")))
    assert [(type(e), e.code, e.attempts) for e in errors] == [(Refused, "1002", 1)] * 20  # type: ignore[attr-defined]
    assert len(set(map(id, errors))) == 20
    assert len(server.token_requests) < 20


def test_waiting_for_a_token_is_not_bound_to_the_deadline_of_the_requester() -> None:
    asking = threading.Event()

    def hangs_first(peer: Peer) -> None:
        asking.set()
        peer.hang()

    with Hostile(tokens=(hangs_first, issued())) as server:
        keeper_settings = settings_for(server.url, auth="token", deadline=20)
        with Gateway(keeper_settings) as client:
            watchdog = client._watchdog
            hurried: list[BaseException] = []

            def hurry() -> None:
                try:
                    with watchdog.watch(1) as watch:
                        client._tokens.current(watch)  # type: ignore[union-attr]
                except GatewayUnreachable as error:
                    hurried.append(error)

            thread = threading.Thread(target=hurry)
            thread.start()
            assert asking.wait(SAFETY_NET_SECONDS)
            assert client.fetch(TARGET).attempts == 1
            thread.join()
    assert [error.code for error in hurried] == ["deadline"]  # type: ignore[attr-defined]
    assert len(server.token_requests) == 2


def test_the_secret_is_read_anew_for_every_token(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("first\n")
    file.chmod(0o600)
    with Hostile(http("", 401), answer()) as server:
        given = {"url": server.url, "access_key": ACCESS_KEY, "secret_key_file": str(file)}
        with Gateway(GatewaySettings(**given)) as client:  # type: ignore[arg-type]
            client.fetch(TARGET)
            file.write_text("second\n")
            assert len(server.token_requests) == 2
            client._tokens._token = None  # type: ignore[union-attr]
            client.fetch(TARGET)
            file.unlink()
            client._tokens._token = None  # type: ignore[union-attr]
            with pytest.raises(PermanentGatewayError) as caught:
                client.fetch(TARGET)
    for request, secret in zip(server.token_requests, ("first", "first", "second"), strict=True):
        asked = json.loads(request.body)
        expected = hashlib.sha256(f"{ACCESS_KEY}{asked['timestamp']}{secret}".encode()).hexdigest()
        assert asked["encryption"] == expected
    assert (caught.value.code, caught.value.attempts, caught.value.gateway_down_evidence) == ("secret", 1, True)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        {"status": 0, "data": {"accessToken": "t", "expire": 7200}},
        {"stauts": 0, "data": {"accessToken": "t", "expire": 7200}},
        {"data": {"accessToken": "t", "expire": 0}},
        {"status": "0", "data": {"accessToken": "t", "expire": 1.5, "more": 1}, "msg": None},
    ],
)
def test_a_usable_token_is_a_success_however_its_status_is_spelt(body: object) -> None:
    assert read_token(json.dumps(body).encode(), Secret("s"), str).value == "t"  # type: ignore[arg-type]


def test_a_token_whose_answer_is_cut_is_asked_for_again() -> None:
    cut = issued().partition(b"\r\n\r\n")[2][:-5]
    with Hostile(tokens=(http(cut), issued())) as server, gateway(server, auth="token") as client:
        assert client.fetch(TARGET).attempts == 2
    assert len(server.token_requests) == 2


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ("", "missing or empty"),
        ("<html>", "HTML"),
        ("[]", "not a JSON object"),
        ("null", "not a JSON object"),
        ("[" * 200_000, "not a JSON object"),
        ('{"status":0}', "data is missing"),
        ('{"status":0,"data":null}', "data is not a JSON object"),
        ('{"status":0,"data":{}}', "accessToken is missing"),
        ('{"status":0,"data":{"accessToken":"","expire":9}}', "accessToken"),
        ('{"status":0,"data":{"accessToken":5,"expire":9}}', "accessToken"),
        ('{"status":0,"data":{"accessToken":"a\\r\\nX: y","expire":9}}', "accessToken"),
        ('{"status":0,"data":{"accessToken":"é","expire":9}}', "accessToken"),
        ('{"status":0,"data":{"accessToken":"a b","expire":9}}', "accessToken"),
        ('{"status":0,"data":{"accessToken":"a"}}', "expire"),
        ('{"status":0,"data":{"accessToken":"a","expire":null}}', "expire"),
        ('{"status":0,"data":{"accessToken":"a","expire":"7200"}}', "expire"),
        ('{"status":0,"data":{"accessToken":"a","expire":-1}}', "expire"),
        ('{"status":0,"data":{"accessToken":"a","expire":true}}', "expire"),
        ('{"status":0,"data":{"accessToken":"a","expire":1e400}}', "expire"),
        (flows({"flowId": "1"}).decode(), "data is not a JSON object"),
    ],
)
def test_an_answer_without_a_token_is_malformed_named_and_counts(body: str, named: str) -> None:
    with Hostile(tokens=(http(body),)) as server:
        error = failure(server, auth="token")
    assert isinstance(error, Malformed)
    assert named in str(error)
    assert "Get Access Token" in str(error)
    assert (error.code, error.attempts, error.gateway_down_evidence) == ("malformed", 1, True)
    assert len(server.token_requests) == 1


# Its life


class Desk:
    """A token service that counts, with a clock of its own: its token lives, and what is left of it shrinks."""

    def __init__(self, life: float) -> None:
        self.calls, self.born, self.life, self.now = 0, 0.0, life, 0.0
        self.fails = False
        self.keeper = TokenKeeper(self.obtain)  # type: ignore[arg-type]

    def token(self, refused: Token | None = None) -> Token:
        return self.keeper.current(Patient(self), refused)  # type: ignore[arg-type]

    def obtain(self, _: object) -> object:
        self.calls += 1
        if self.fails:
            raise GatewayUnreachable("down", code="http_503")
        if self.now >= self.born + self.life:
            self.born = self.now
        left = int(self.born + self.life - self.now)
        body = {"data": {"accessToken": f"t{self.born:.0f}", "expire": left}}
        return read_token(json.dumps(body).encode(), Secret("s"), str)  # type: ignore[arg-type]


class Patient:
    """A deadline in a minute by the clock of the token service, which advances while a thread waits."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.ends_at = desk.now + 60

    def check(self) -> None: ...

    def remaining(self) -> float:
        return self.ends_at - self.desk.now

    def pause(self, seconds: float) -> None:
        self.desk.now += seconds


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Desk:
    desk = Desk(7200)
    monkeypatch.setattr("etl.gateway.token.time.monotonic", lambda: desk.now)
    return desk


def test_a_refused_token_that_the_service_gives_again_until_it_ends_is_waited_out(desk: Desk) -> None:
    refused = desk.token()
    desk.now = 7190.0
    assert desk.token(refused).value != refused.value
    assert 7200 <= desk.now < 7202
    assert desk.calls < 20


def test_a_refused_token_repeated_before_it_expired_is_requested_again_at_once(desk: Desk) -> None:
    """Another thread renewed it early, and got the same one, before this one's refusal came."""
    refused = desk.token()
    desk.now = 7199.9
    assert desk.token().value == refused.value
    desk.now = 7200.1
    assert desk.token(refused).value != refused.value
    assert (desk.calls, desk.now) == (3, 7200.1)


def test_a_refused_token_that_outlives_the_deadline_is_given_once_more_at_once(desk: Desk) -> None:
    refused = desk.token()
    again = desk.token(refused)
    assert (again.value, desk.calls, desk.now) == (refused.value, 2, 0)


def test_a_target_in_flight_when_its_token_ends_gets_through_though_the_service_repeats_it() -> None:
    """Refused, it asks for a token and gets the same one, with a second left; then another."""

    def judge(peer: Peer) -> None:
        assert peer.request is not None
        peer.send(answer() if peer.request.headers["apim-accesstoken"] == "new" else code(1203))

    tokens = (issued("old"), issued("old", expire=1), issued("new"))
    with Hostile(judge, tokens=tokens) as server, gateway(server, auth="token") as client:
        assert client.fetch(TARGET).attempts == 2


def test_a_token_about_to_expire_causes_no_loop(desk: Desk) -> None:
    while desk.now < 7200 * 3:
        assert desk.now < desk.token().expires_at
        desk.now += 0.25
    assert 6 <= desk.calls < 30


def test_a_token_is_renewed_before_it_expires_and_a_failure_does_no_harm_while_it_lives(desk: Desk) -> None:
    first = desk.token()
    desk.now = 7130
    desk.token()
    assert desk.calls == 1
    desk.now, desk.fails = 7150, True
    assert [desk.token().value for _ in range(2)] == [first.value] * 2
    assert desk.calls == 2
    desk.now = 7200.0
    with pytest.raises(GatewayUnreachable):
        desk.token()


def test_check_token_says_how_long_it_lives_and_how_far_the_clocks_are_apart() -> None:
    dated = issued(expire=600).replace(b"\r\n", b"\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\n", 1)
    with Hostile(tokens=(dated,)) as server, gateway(server, auth="token", max_clock_skew=0) as client:
        apart = re.fullmatch(r"valid for another (59[0-9]|600) s, clocks apart by ([0-9]+) s", client.check_token())
        client.fetch(TARGET)
    assert apart is not None
    assert int(apart[2]) > 86400
    with Hostile(tokens=(issued(expire=600),)) as undated, gateway(undated, auth="token") as client:
        assert re.fullmatch(r"valid for another (59[0-9]|600) s", client.check_token())
    assert len(server.token_requests) == len(undated.token_requests) == 1


def test_check_token_needs_none_where_the_gateway_needs_none() -> None:
    with Hostile() as server, gateway(server) as client:
        assert client.check_token() == "none needed"
    assert not server.requests
