"""Webhooks get everything, in order and at least once, whatever receivers, senders and the order of commits do."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import logging
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import pytest
from sqlalchemy import Engine, event, text

from etl.config import Secret, WebhookSettings
from etl.database import reading, writing
from etl.domain.rules import as_json
from etl.notify import WebhookSender, flush
from etl.notify import webhooks as sending
from etl.notify.cloudevents import Batch, event_of, event_of_notice, headers_of
from etl.report.listings import EVENTS, FINDINGS
from etl.store import webhooks
from etl.store.findings import Evaluation
from etl.store.notifications import OpenCondition
from etl.store.webhooks import NewNotice, Notice
from tests.support.builders import flow
from tests.support.run_history import ANN, BOB, EVE, RunHistory
from tests.support.served import wait_until
from tests.support.webhook_receiver import PATIENCE_SECONDS, SECRET, WebhookReceiver

ON_SQLITE = pytest.mark.parametrize("dialect", ["sqlite"])
"""For what has nothing to do with SQL."""


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


@pytest.fixture
def receiver() -> Iterator[WebhookReceiver]:
    with WebhookReceiver() as receiver:
        yield receiver


@pytest.fixture
def history(engine: Engine, tmp_path: Path) -> RunHistory:
    (tmp_path / "secret").write_text(SECRET)
    room = RunHistory(engine)
    room.run({ANN: [flow(1)], BOB: [flow(1)], EVE: [flow(1)]})
    room.store.begin_webhooks(["tickets"], now())
    return room


def sender(history: RunHistory, folder: Path, url: str, **changes: Any) -> WebhookSender:
    own = {name: changes.pop(name) for name in ("is_active", "clock", "store", "at_once") if name in changes}
    given = {
        "name": "tickets",
        "url": Secret(url),
        "secret_file": str(folder / "secret"),
        "allow_http": True,
        **changes,
    }
    senders = {"is_active": lambda: True, "clock": now, "at_once": True, "store": history.store, **own}
    return WebhookSender(history.engine, settings=WebhookSettings(**given), **senders)


def everything(history: RunHistory) -> list[str]:
    """Each event of a sealed run after the first, in the order in which their runs were sealed."""
    with reading(history.engine) as connection:
        rows = connection.execute(
            text(
                "SELECT e.kind, e.org_id, e.flow_id, e.event_id FROM org_event e "
                "JOIN run_seal s ON s.run_id = e.run_id ORDER BY s.id, e.event_id"
            )
        )
        return [f"{kind} {org}/{flow_id} {number}" for kind, org, flow_id, number in rows]


def shown(events: Sequence[dict[str, Any]]) -> list[str]:
    return [
        f"{each['type'].rpartition('.')[2]} {each['subject']} {each['data']['event_id']}"
        if each["type"].startswith("flowtrail.workflow.")
        else f"{each['type'].removeprefix('flowtrail.')} {each['subject']}"
        for each in events
    ]


def wrong(code: str, history: RunHistory, *, is_so: bool = True) -> None:
    found = [OpenCondition(code, "", now(), 1, '["o1/ann"]', "It is wrong", "")] if is_so else []
    history.store.keep_conditions(found, now())


def test_nothing_is_lost_or_out_of_order_whatever_the_receiver_does(
    history: RunHistory, receiver: WebhookReceiver, tmp_path: Path
) -> None:
    """Each sender but the last ends with its first failure, as if its process had been killed then."""
    troubles = [500, "lost", 429, 302, 410, "cut", 200, 404, "cut"]
    receiver.troubles = [*troubles]
    for number in range(4):
        history.run({ANN: [flow(1, cycle="DHWM"[number]), flow(2, name=f"name {number}")], EVE: [flow(1), flow(3)]})
        wrong("gateway_down", history, is_so=number % 2 == 0)
        while flush([sender(history, tmp_path, receiver.url)], PATIENCE_SECONDS) and receiver.troubles:
            assert receiver.wrong == []
    assert flush([sender(history, tmp_path, receiver.url)], PATIENCE_SECONDS) == []
    got = shown(receiver.accepted)
    assert [each for each in got if not each.startswith("condition")] == everything(history)
    assert [each for each in got if each.startswith("condition")] == [
        f"condition.{what} gateway_down" for what in ("began", "ended", "began", "ended")
    ]
    assert (receiver.wrong, receiver.troubles) == ([], [])
    with reading(history.engine) as connection:
        assert connection.execute(text("SELECT count(*) FROM webhook_notice")).scalar() == 0, "all were told"
        known = webhooks.webhooks(connection)["tickets"]
    assert (known.delivered, known.failing_since, known.why) == (len(got), None, None)


def test_what_ends_and_begins_at_once_is_sent_in_full(
    history: RunHistory, receiver: WebhookReceiver, tmp_path: Path
) -> None:
    for code in ("gateway_down", "cluster_lost", "gateway_down"):
        wrong(code, history)
    assert flush([sender(history, tmp_path, receiver.url)], PATIENCE_SECONDS) == []
    assert shown(receiver.accepted) == [
        "condition.began gateway_down",
        *("condition.began cluster_lost", "condition.ended gateway_down"),
        *("condition.began gateway_down", "condition.ended cluster_lost"),
    ]
    last = receiver.accepted[-1]["data"]
    assert (last["severity"], last["first"], last["ended_at"] is not None) == ("degraded", ["o1/ann"], True)
    assert "scheduler and its workers" in last["remedy"]


def test_conditions_come_between_the_runs_that_they_came_between(
    history: RunHistory, receiver: WebhookReceiver, tmp_path: Path
) -> None:
    wrong("gateway_down", history)
    history.run({EVE: [flow(1), flow(2)]})
    wrong("gateway_down", history, is_so=False)
    history.run({EVE: [flow(1)]})
    assert flush([sender(history, tmp_path, receiver.url)], PATIENCE_SECONDS) == []
    assert [each.rpartition(" ")[0] for each in shown(receiver.accepted)] == [
        "condition.began", "appeared o2/2", "condition.ended", "disappeared o2/2",
    ]  # fmt: skip


class Rule:
    """What a rule finds, as its evaluations say it; each is an hour after the one before."""

    def __init__(self, history: RunHistory, name: str = "daily") -> None:
        self._store, self._name, self._after = history.store, name, None
        self.at = now().replace(microsecond=0)

    def finds(self, *rows: dict[str, Any], text: str = "SELECT 1", key: str = "n") -> None:
        self.at += dt.timedelta(hours=1)
        found = {as_json({key: row[key]}): as_json(row) for row in rows}
        made = Evaluation(self._name, "It is so", "error", text, self._after, self.at, 1, 3, 1, found)
        assert self._store.write_evaluation(made) is not None
        self._after = self.at


def test_a_finding_is_an_event_when_it_begins_and_one_when_it_ends(
    history: RunHistory, receiver: WebhookReceiver, tmp_path: Path
) -> None:
    rule = Rule(history)
    rule.finds({"n": 1, "org_id": "o1", "users": 1}, {"n": 2.5, "org_id": "o1", "users": None})
    began = rule.at
    history.run({EVE: [flow(1), flow(2)]})
    rule.finds({"n": 1, "org_id": "o1", "users": 7}, {"n": 2.5, "org_id": "o1", "users": None})
    rule.finds({"n": 1, "org_id": "o1", "users": 8}, {"n": 3, "org_id": "o1"})
    mended = rule.at
    rule.finds({"n": 3, "org_id": "o1"}, text="SELECT 2")
    history.store.remove_rules([], now())
    assert flush([sender(history, tmp_path, receiver.url)], PATIENCE_SECONDS) == []
    got = [each for each in receiver.accepted if each["type"].startswith("flowtrail.finding.")]
    assert [(e["type"].rpartition(".")[2], e["data"]["row"]["n"], e["data"]["ended_by"]) for e in got] == [
        ("began", 1, None), ("began", 2.5, None), ("began", 3, None), ("ended", 2.5, "mended"),
        ("ended", 1, "rule_changed"), ("ended", 3, "rule_removed"),
    ]  # fmt: skip
    assert [each["type"].split(".")[1] for each in receiver.accepted] == [
        *("finding", "finding", "workflow"), *["finding"] * 4,
    ]  # fmt: skip
    first, second, _, second_ended, first_ended, _ = got
    assert (first["subject"], first["data"]["key"]) == ("daily", {"n": 1})
    assert (first_ended["data"]["id"], first_ended["data"]["row"]["users"]) == (first["data"]["id"], 8)
    assert second_ended["data"] == {
        **second["data"], "until": mended.isoformat().replace("+00:00", "Z"), "until_run_id": 1, "ended_by": "mended",
    }  # fmt: skip
    assert [dt.datetime.fromisoformat(e["time"]) for e in (first, second_ended)] == [began, mended]
    assert len({each["id"] for each in got}) == 6
    told = {e["data"]["id"]: dt.datetime.fromisoformat(e["data"]["until"]) for e in got if e["data"]["until"]}
    assert {row.id: row.until for row in FINDINGS.rows(history.engine)} == told


def test_a_finding_and_what_webhooks_are_told_of_it_are_written_together_or_not_at_all(
    history: RunHistory, receiver: WebhookReceiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    def killed(*_: Any) -> None:
        raise Killed

    rule = Rule(history)
    rule.finds({"n": 1})
    with monkeypatch.context() as patched:
        patched.setattr(webhooks, "insert_rows", killed)
        with pytest.raises(Killed):
            rule.finds({"n": 2})
        with pytest.raises(Killed):
            history.store.remove_rules([], now())
    rule.finds({"n": 2})
    assert flush([sender(history, tmp_path, receiver.url)], PATIENCE_SECONDS) == []
    assert [(each["type"].rpartition(".")[2], each["data"]["row"]["n"]) for each in receiver.accepted] == [
        ("began", 1), ("began", 2), ("ended", 1),
    ]  # fmt: skip


ROWS: dict[str, tuple[dict[str, Any], bool]] = {
    "of the organisation": ({"n": 1, "org_id": "o1"}, True),
    "of another": ({"n": 1, "org_id": "o2"}, False),
    "without the column": ({"n": 1}, False),
    "of nobody": ({"n": 1, "org_id": None}, False),
    "a number": ({"n": 1, "org_id": 1}, False),
}


@pytest.mark.parametrize("row", ROWS)
def test_a_webhook_with_orgs_gets_findings_whose_row_names_one_of_them(
    history: RunHistory, receiver: WebhookReceiver, tmp_path: Path, row: str
) -> None:
    """One without ``orgs`` gets each; one that asks for something else gets none."""
    found, is_ours = ROWS[row]
    rule = Rule(history)
    for name in ("all", "other"):
        history.store.begin_webhooks([name], now())
    rule.finds(found)
    rule.finds()
    with WebhookReceiver() as everyone, WebhookReceiver() as other:
        senders = [
            sender(history, tmp_path, receiver.url, orgs=("o1", "1"), on=("finding",)),
            sender(history, tmp_path, everyone.url, name="all"),
            sender(history, tmp_path, other.url, name="other", on=("disappeared", "condition")),
        ]
        assert flush(senders, PATIENCE_SECONDS) == []
        both = ["flowtrail.finding.began", "flowtrail.finding.ended"]
        assert [[each["type"] for each in one.accepted] for one in (receiver, everyone, other)] == [
            both if is_ours else [], both, [],
        ]  # fmt: skip


def test_a_finding_costs_nothing_more_while_there_is_no_webhook(engine: Engine) -> None:
    """Only the question whether there is one; an evaluation that changes nothing does not even ask it."""
    history = RunHistory(engine)
    asked: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *call: asked.append(call[2]))
    rule = Rule(history)
    rule.finds({"n": 1})
    rule.finds({"n": 1}, text="SELECT 2")
    assert [each for each in asked if "webhook" in each][1:] == []
    assert all("webhook_notice" not in each for each in asked)


def test_a_run_that_is_sealed_after_one_that_began_later_is_not_lost(
    history: RunHistory, receiver: WebhookReceiver, tmp_path: Path
) -> None:
    """Its events have lower numbers, and those of the other fill more than a batch."""
    slow, quick = history.begin(schedule="plants"), history.begin(schedule="wind")
    history.apply(slow, {ANN: [flow(n) for n in range(1, 70)]})
    history.store.derive_events(slow, now(), now)
    assert flush([sender(history, tmp_path, receiver.url)], PATIENCE_SECONDS) == []
    assert receiver.accepted == [], "it is not sealed yet"
    history.apply(quick, {EVE: [flow(n) for n in range(1, 130)]})
    history.finish(quick)
    history.finish(slow)
    assert flush([sender(history, tmp_path, receiver.url)], PATIENCE_SECONDS) == []
    assert shown(receiver.accepted) == everything(history)
    assert [each["data"]["org_id"] for each in receiver.accepted] == ["o2"] * 128 + ["o1"] * 68


def test_notices_are_numbered_in_the_order_of_their_commits(history: RunHistory) -> None:
    def late() -> None:
        with writing(history.engine) as connection:
            webhooks.note(connection, [NewNotice("condition.began", now(), "late", {})], now())

    other = threading.Thread(target=late)
    with writing(history.engine) as connection:
        webhooks.note(connection, [NewNotice("condition.began", now(), "early", {})], now())
        other.start()
        other.join(0.3)  # long enough to take a number, if nothing held it up
        assert other.is_alive()
    other.join()
    due, _ = history.store.due_for_webhook(webhooks.Place(1, 0, 0), ["condition.began"], (), 9)
    assert [(each.happened.id, each.happened.subject) for each in due] == [(1, "early"), (2, "late")]


def test_two_senders_at_once_send_everything_and_never_move_back(
    history: RunHistory, receiver: WebhookReceiver, tmp_path: Path
) -> None:
    for number in range(6):
        history.run({EVE: [flow(n) for n in range(1, 150 if number % 2 else 2)]})
    before = history.store.known_webhooks()["tickets"].place
    senders = [sender(history, tmp_path, receiver.url) for _ in range(3)]
    assert flush(senders, PATIENCE_SECONDS) == []
    assert shown(receiver.accepted) == everything(history)
    assert receiver.wrong == []
    known = history.store.known_webhooks()["tickets"]
    assert not history.store.move_webhook("tickets", before, before, 1, now())
    assert history.store.known_webhooks()["tickets"] == known


def test_a_process_that_is_killed_between_delivery_and_note_delivers_again(
    history: RunHistory, receiver: WebhookReceiver, tmp_path: Path
) -> None:
    class Killed(Exception):
        pass

    class Store(type(history.store)):  # type: ignore[misc]  # what it does but for the last step is real
        def move_webhook(self, *_: Any) -> bool:
            raise Killed

    history.run({EVE: [flow(1), flow(2)]})
    flush([sender(history, tmp_path, receiver.url, store=Store(history.engine))], PATIENCE_SECONDS)
    history.run({EVE: [flow(1)]})
    assert flush([sender(history, tmp_path, receiver.url)], PATIENCE_SECONDS) == []
    assert [len(each.events) for each in receiver.requests] == [1, 2]
    assert receiver.requests[0].id != receiver.requests[1].id, "a receiver that drops known ids keeps the new event"
    assert shown(receiver.accepted) == everything(history)


def test_a_batch_that_is_sent_again_has_its_id_even_if_more_is_due(
    history: RunHistory, receiver: WebhookReceiver, tmp_path: Path
) -> None:
    history.run({EVE: [flow(1), flow(2)]})
    receiver.troubles = ["held", "lost"]
    at_work = sender(history, tmp_path, receiver.url)
    at_work.first_retry_seconds = 0.0
    at_work.start()
    receiver.wait_for(requests=1)
    history.run({EVE: [flow(1)]})
    receiver.let_go()
    receiver.wait_for(requests=4, events=2)
    at_work.stop(PATIENCE_SECONDS)
    *same, other = receiver.requests
    assert [(each.id, each.body) for each in same] == [(same[0].id, same[0].body)] * 3
    assert (len(other.events), other.id != same[0].id) == (1, True)
    assert shown(receiver.accepted) == everything(history)


def test_a_webhook_gets_its_organisations_and_kinds_only_and_begins_with_now(
    history: RunHistory, receiver: WebhookReceiver, tmp_path: Path
) -> None:
    history.run({ANN: [flow(1), flow(2)], EVE: [flow(1), flow(2)]})
    wrong("gateway_down", history)
    history.store.begin_webhooks(["late"], now())
    history.run({ANN: [flow(1, cycle="H"), flow(2)], EVE: [flow(1, cycle="H")]})
    ours = sender(history, tmp_path, receiver.url, orgs=("o1",))
    with WebhookReceiver() as second, WebhookReceiver() as third:
        few = sender(history, tmp_path, second.url, name="late", on=("disappeared", "condition"))
        new = sender(history, tmp_path, third.url, name="new")
        assert flush([ours, few, new], PATIENCE_SECONDS) == []
        assert [each.rpartition(" ")[0] for each in shown(second.accepted)] == ["disappeared o2/2"]
        assert third.accepted == [], "it begins with now"
    assert [each.rpartition(" ")[0] for each in shown(receiver.accepted)] == ["appeared o1/2", "cycle_changed o1/1"]


def test_batches_are_limited_in_number_and_in_size(
    history: RunHistory, receiver: WebhookReceiver, tmp_path: Path
) -> None:
    history.run({ANN: [flow(n) for n in range(1, 140)]})
    history.run({ANN: [*[flow(n) for n in range(1, 140)], *[flow(n, name="x" * 9000) for n in range(140, 160)]]})
    assert flush([sender(history, tmp_path, receiver.url)], PATIENCE_SECONDS) == []
    assert shown(receiver.accepted) == everything(history)
    assert max(len(each.body) for each in receiver.requests) <= 64 * 1024
    assert len(receiver.accepted) > 100


@ON_SQLITE
def test_a_batch_has_at_most_a_hundred_events_and_one_too_long_for_any_goes_alone(
    history: RunHistory, receiver: WebhookReceiver, tmp_path: Path
) -> None:
    Rule(history).finds(*({"n": n} for n in range(150)), {"n": 150, "said": "x" * 90_000}, {"n": 151})
    assert flush([sender(history, tmp_path, receiver.url)], PATIENCE_SECONDS) == []
    assert [len(each.events) for each in receiver.requests] == [100, 50, 1, 1]
    assert [each["data"]["row"]["n"] for each in receiver.accepted] == [*range(152)]


@ON_SQLITE
def test_a_sender_that_was_stopped_leaves_no_thread_behind(
    history: RunHistory, receiver: WebhookReceiver, tmp_path: Path
) -> None:
    before = set(threading.enumerate())
    history.run({EVE: [flow(1), flow(2)]})
    assert flush([sender(history, tmp_path, receiver.url)], PATIENCE_SECONDS) == []
    for thread in (each for each in threading.enumerate() if each not in before and each.name == "gateway-watchdog"):
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()


@ON_SQLITE
def test_while_nothing_is_due_a_place_is_seldom_written(history: RunHistory, tmp_path: Path) -> None:
    """The quiet runs of a day are no reason to write; those of a week must not be read again with each look."""
    before = history.store.known_webhooks()["tickets"].place
    with writing(history.engine) as connection:
        insert = "INSERT INTO webhook_notice VALUES (7, 1, 'unwanted', '2026-01-01 00:00:00.000000', NULL, 's', '{}')"
        connection.execute(text(insert))
    assert flush([sender(history, tmp_path, "http://127.0.0.1:9/")], PATIENCE_SECONDS) == []
    skipped = history.store.known_webhooks()["tickets"].place
    assert (before.notice_id, skipped.notice_id) == (0, 7)
    history.run({ANN: [flow(1)]})
    assert flush([sender(history, tmp_path, "http://127.0.0.1:9/")], PATIENCE_SECONDS) == []
    assert history.store.known_webhooks()["tickets"].place == skipped


ANSWERS: dict[str, tuple[int, dict[str, str], float, str]] = {
    "an error": (500, {}, 15, "HTTP 500"),
    "a redirect": (307, {"Location": "/elsewhere"}, 15, "HTTP 307, a redirect, which is not followed"),
    "gone": (410, {}, 86400, "HTTP 410: it wants nothing more"),
    "too many": (429, {"Retry-After": "120"}, 120, "HTTP 429"),
    "too busy for a week": (503, {"Retry-After": "604800"}, 86400, "HTTP 503"),
    "again at once": (503, {"Retry-After": "1"}, 15, "HTTP 503"),
    "nonsense": (503, {"Retry-After": "soon"}, 15, "HTTP 503"),
}


@ON_SQLITE
@pytest.mark.parametrize("answer", ANSWERS)
def test_a_receiver_that_refuses_is_left_alone_for_a_while(
    history: RunHistory, receiver: WebhookReceiver, tmp_path: Path, answer: str
) -> None:
    status, receiver.headers, seconds, why = ANSWERS[answer]
    receiver.troubles = [status]
    history.run({ANN: [flow(1), flow(2)]})
    at = now()
    late = sender(history, tmp_path, receiver.url, clock=lambda: at)
    assert flush([late], PATIENCE_SECONDS) == [late]
    known = history.store.known_webhooks()["tickets"]
    assert (known.why, known.failing_since, known.not_before) == (why, at, at + dt.timedelta(seconds=seconds))
    assert (late.status().why, late.status().failing_since) == (why, at)
    early = sender(history, tmp_path, receiver.url, clock=lambda: at, at_once=False)
    assert flush([early], PATIENCE_SECONDS) == [early], "something is due, and it is too early"
    assert len(receiver.requests) == 1
    later = sender(history, tmp_path, receiver.url, clock=lambda: at + dt.timedelta(seconds=seconds), at_once=False)
    receiver.headers = {}
    assert flush([later], PATIENCE_SECONDS) == [] or abs(seconds) > 300, "its timestamp is outside the tolerance"


class Impatient:
    """A sender whose clock is set to the next attempt whenever one fails; ``pauses`` are those that it would make."""

    def __init__(self, history: RunHistory, folder: Path, url: str) -> None:
        self.pauses: list[float] = []
        self.at, self._news, it = now(), threading.Condition(), self

        class Store(type(history.store)):  # type: ignore[misc]
            def delay_webhook(self, name: str, why: str, at: dt.datetime, not_before: dt.datetime) -> None:
                super().delay_webhook(name, why, at, not_before)
                with it._news:
                    it.pauses.append((not_before - at).total_seconds())
                    it.at = not_before
                    it.sender.wake()
                    it._news.notify_all()

        self.sender = sender(history, folder, url, store=Store(history.engine), clock=lambda: self.at, at_once=False)
        self.sender.start()

    def wait_for(self, pauses: int) -> list[float]:
        with self._news:
            assert self._news.wait_for(lambda: len(self.pauses) >= pauses, PATIENCE_SECONDS)
        return self.pauses[:pauses]


@ON_SQLITE
def test_pauses_double_up_to_a_quarter_of_an_hour(history: RunHistory, tmp_path: Path) -> None:
    history.run({EVE: [flow(1), flow(2)]})
    away = Impatient(history, tmp_path, "http://127.0.0.1:9/")
    assert away.wait_for(pauses=8) == [15, 30, 60, 120, 240, 480, 900, 900]
    away.sender.stop(PATIENCE_SECONDS)


@ON_SQLITE
def test_pauses_begin_anew_after_a_delivery(history: RunHistory, receiver: WebhookReceiver, tmp_path: Path) -> None:
    history.run({EVE: [flow(1), flow(2)]})
    receiver.troubles = [500, 500, 200, 500, 500]
    away = Impatient(history, tmp_path, receiver.url)
    receiver.wait_for(events=1)
    history.run({EVE: [flow(1)]})
    away.sender.wake()
    assert away.wait_for(pauses=4) == [15, 30, 15, 30]
    away.sender.stop(PATIENCE_SECONDS)


@ON_SQLITE
def test_a_sender_that_is_stopped_or_stands_by_notes_what_is_under_way_and_begins_nothing(
    history: RunHistory, receiver: WebhookReceiver, tmp_path: Path
) -> None:
    history.run({EVE: [flow(n) for n in range(1, 450)]})
    receiver.troubles = ["slow"]
    stopped = sender(history, tmp_path, receiver.url)
    stopped.start()
    receiver.wait_for(requests=1)
    stopped.stop(0)
    receiver.let_go()
    stopped.stop(PATIENCE_SECONDS)
    assert (len(receiver.requests), history.store.known_webhooks()["tickets"].delivered) == (1, len(receiver.accepted))
    was_active = sender(history, tmp_path, receiver.url, is_active=lambda: len(receiver.requests) < 2)
    flush([was_active], PATIENCE_SECONDS)
    flush([sender(history, tmp_path, receiver.url, is_active=lambda: False)], PATIENCE_SECONDS)
    assert (len(receiver.requests), history.store.known_webhooks()["tickets"].delivered) == (2, len(receiver.accepted))


class Hopeless:
    """A server that takes each connection, and never answers ("silent"), or a byte each tenth of a second ("drip")."""

    def __init__(self, how: str) -> None:
        self._how, self._server = how, socket.create_server(("127.0.0.1", 0))
        self.port, self.came = self._server.getsockname()[1], threading.Event()
        self._end = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connected, _ = self._server.accept()
                self.came.set()
                with connected, contextlib.suppress(OSError):
                    for byte in b"HTTP/1.1 200 OK\r\nX: " + b"x" * 10_000:
                        if self._end.wait(0.1 if self._how == "drip" else PATIENCE_SECONDS):
                            return
                        connected.sendall(bytes([byte]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._server.close()


HOPELESS = {"silent": "it does not answer in time", "drip": "it does not answer within 30 s"}


@ON_SQLITE
@pytest.mark.parametrize("how", HOPELESS)
def test_no_run_waits_for_a_receiver_that_never_answers(
    history: RunHistory, receiver: WebhookReceiver, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "_ANSWER_SECONDS", 1.5)
    monkeypatch.setattr(sending, "_CONNECT_SECONDS", 0.75)
    history.run({EVE: [flow(1), flow(2)]})
    with Hopeless(how) as hopeless:
        at_work = sender(history, tmp_path, f"http://127.0.0.1:{hopeless.port}/")
        at_work.start()
        assert hopeless.came.wait(PATIENCE_SECONDS)
        history.run({EVE: [flow(1)]})
        assert not at_work.wait(0), "the run has ended, and the attempt goes on"
        assert not at_work.wait(PATIENCE_SECONDS)
        at_work.stop(PATIENCE_SECONDS)
    known = history.store.known_webhooks()["tickets"]
    assert (known.why, at_work.status().why) == (HOPELESS[how], HOPELESS[how])
    assert flush([sender(history, tmp_path, receiver.url)], PATIENCE_SECONDS) == []
    assert shown(receiver.accepted) == everything(history)


@ON_SQLITE
def test_a_name_that_is_not_found_and_a_certificate_that_is_refused_are_said(
    history: RunHistory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history.run({EVE: [flow(1), flow(2)]})
    new = ("-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=127.0.0.1")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = ["openssl", "req", *new, "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(made, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    def one_handshake(server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            context.wrap_socket(server.accept()[0], server_side=True).close()

    def nowhere(*_: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=one_handshake, args=(server,), daemon=True).start()
        refused = sender(history, tmp_path, f"https://127.0.0.1:{server.getsockname()[1]}/")
        assert flush([refused], PATIENCE_SECONDS) == [refused]
    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    unknown = sender(history, tmp_path, "https://hooks.example.com/")
    assert flush([unknown], PATIENCE_SECONDS) == [unknown]
    assert [each.status().why for each in (refused, unknown)] == [
        "its certificate is refused",
        "its name is not found",
    ]


@ON_SQLITE
def test_a_replica_that_stands_by_says_nothing_of_receivers(history: RunHistory, tmp_path: Path) -> None:
    """It does not know any more how they are: another one sends."""
    history.run({EVE: [flow(1), flow(2)]})
    roles = ["active"]
    was_active = sender(history, tmp_path, "http://127.0.0.1:9/", is_active=lambda: roles == ["active"])
    was_active.start()
    assert not was_active.wait(PATIENCE_SECONDS)
    assert (was_active.status().failing_since is None, was_active.status().behind_seconds > 0) == (False, True)
    roles.clear()
    was_active.wake()
    wait_until(lambda: was_active.status().failing_since is None)
    assert was_active.status().behind_seconds == 0
    was_active.stop(PATIENCE_SECONDS)


@ON_SQLITE
def test_what_a_webhook_lacks_is_kept_for_it_but_not_for_ever(
    history: RunHistory, receiver: WebhookReceiver, tmp_path: Path
) -> None:
    history.store.begin_webhooks(["away"], now())
    with writing(history.engine) as connection:
        insert = "INSERT INTO webhook_notice VALUES (1, 1, 'unwanted', '2020-01-01 00:00:00.000000', NULL, 's', '{}')"
        connection.execute(text(insert))
    wrong("gateway_down", history)
    assert flush([sender(history, tmp_path, receiver.url)], PATIENCE_SECONDS) == []
    with reading(history.engine) as connection:
        assert connection.execute(text("SELECT id FROM webhook_notice")).scalars().all() == [2]


@ON_SQLITE
def test_ids_are_others_after_a_restore_and_subjects_are_encoded(history: RunHistory) -> None:
    """A restored database gives numbers again."""
    history.run({EVE: [flow(1), flow(2)]})
    row = next(iter(EVENTS.rows(history.engine)))._replace(flow_id="a/b c")
    same, other = event_of(row, "s"), event_of(row._replace(decided_at=row.decided_at + dt.timedelta(seconds=1)), "s")
    assert same["subject"] == "o2/a%2Fb%20c"
    assert same["id"] == event_of(row, "s")["id"] != other["id"]
    notice = Notice(1, 1, "finding.began", now(), "daily", "{}")
    first, again = (event_of_notice(each, "s") for each in (notice, notice._replace(at=notice.at + dt.timedelta(1))))
    assert first["id"] == event_of_notice(notice, "s")["id"] != again["id"]


@ON_SQLITE
def test_no_secret_is_in_a_log_or_a_reason(
    history: RunHistory, receiver: WebhookReceiver, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    history.run({ANN: [flow(1), flow(2)]})
    receiver.troubles = [302, 500, "lost"]
    receiver.headers = {"Location": "http://path-canary/"}
    urls = [receiver.url] * 3 + [
        f"http://path-canary:{receiver.port}/", "http://u:pass-canary@127.0.0.1:9/path-canary",
        f"https://u:pass-canary@127.0.0.1:{receiver.port}/path-canary",
    ]  # fmt: skip
    said = []
    for url in urls:
        at_work = sender(history, tmp_path, url)
        assert flush([at_work], PATIENCE_SECONDS) == [at_work]
        said.append(at_work.status().why)
    (tmp_path / "secret").write_text("whsec_canary")
    at_work = sender(history, tmp_path, receiver.url)
    assert flush([at_work], PATIENCE_SECONDS) == [at_work]
    said.append(at_work.status().why)
    assert "24 to 64 bytes" in said[-1]
    assert len({*said}) >= 5, said
    assert "canary" not in "".join([*said, *(str(vars(record)) for record in caplog.records)])


@ON_SQLITE
def test_a_password_in_the_address_is_sent_as_a_header(
    history: RunHistory, receiver: WebhookReceiver, tmp_path: Path
) -> None:
    history.run({ANN: [flow(1), flow(2)]})
    assert flush([sender(history, tmp_path, receiver.url)], PATIENCE_SECONDS) == []
    (request,) = receiver.requests
    assert request.path == "/path-canary?key=query-canary"
    assert request.headers["Authorization"] == "Basic c29tZW9uZTpwYXNzLWNhbmFyeQ=="


@ON_SQLITE
def test_while_a_secret_is_replaced_both_are_valid(history: RunHistory, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(f"whsec_{'A' * 32}\n{SECRET}\n")
    history.run({EVE: [flow(1), flow(2)]})
    with WebhookReceiver() as old, WebhookReceiver(key=bytes(24)) as new:
        for each in (old, new):
            history.store.begin_webhooks([f"w{each.port}"], now())
        history.run({EVE: [flow(1)]})
        assert flush([sender(history, tmp_path, e.url, name=f"w{e.port}") for e in (old, new)], PATIENCE_SECONDS) == []
        assert [len(each.accepted) for each in (old, new)] == [1, 1]


def test_the_signature_is_the_one_of_the_public_example() -> None:
    """The example that the libraries of Standard Webhooks are tested with."""
    batch = Batch("msg_p5jXN8AQM9LWM0D4loKWxJek", b'{"test": 2432232314}', 1)
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    headers = headers_of(batch, dt.datetime.fromtimestamp(1614265330, dt.UTC), [key])
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert headers["webhook-timestamp"] == "1614265330"
