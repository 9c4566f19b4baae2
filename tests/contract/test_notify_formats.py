"""Messages for mail, Slack, Telegram, Discord and Mattermost when names contain markup."""

from __future__ import annotations

import email
import email.policy
import json
from collections.abc import Iterator
from email.message import EmailMessage
from html.parser import HTMLParser
from typing import Any

import pytest
from aiosmtpd.controller import Controller

from etl.config import NotifySettings, Secret
from etl.domain.model import Flow
from etl.notify import Message, Receiver, receivers
from etl.notify.digest import quoted, shortened
from tests.support.enos import LocalGateway
from tests.support.postgres import free_port
from tests.support.program import ANN, ORG, Program
from tests.support.receiver import HttpReceiver

ADDRESSES = {
    "slack": "slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ/#ops",
    "telegram": "tgram://123456789:abcdefg_hijklmnop/12315544/",
    "discord": "discord://4174216298/JHMHI8qBe7bk2ZwO5U711o3dV_js",
}
NAMES = [
    "<b>bold</b> &amp; <a href='http://evil.example'>all is well</a>",
    "<!channel> <@U123> <http://evil.example|ok> <#C1>",
    "@everyone @ann <@&42> users@here <users/all>",
    "*bold* [all is well](http://evil.example) ||hidden ~~struck `code",
    "reduce_entity_map (daily) #1 a|b 5 < 6 ann@example.com 流程 😀",
]
MESSAGE = Message(
    "Flowtrail plants: 5 cycles changed & <more>",
    "\n".join(["Run 1.", *(f"  o1 {quoted(name)}" for name in NAMES), "", "To see more:", "  flowtrail changes"]),
)


class Text(HTMLParser):
    """The text that a reader sees, and the tags around it."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.text, self.tags = "", list[str]()
        self.feed(markup)
        self.close()

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)


@pytest.fixture
def chats(receiver: HttpReceiver, monkeypatch: pytest.MonkeyPatch) -> HttpReceiver:
    """Slack, Telegram and Discord, as far as their clients can tell."""
    here = f"http://127.0.0.1:{receiver.port}"
    monkeypatch.setattr("apprise.plugins.slack.NotifySlack.webhook_url", f"{here}/services")
    monkeypatch.setattr("apprise.plugins.telegram.NotifyTelegram.notify_url", f"{here}/bot")
    monkeypatch.setattr("apprise.plugins.discord.NotifyDiscord.notify_url", f"{here}/hooks")
    return receiver


def sent(chats: HttpReceiver, url: str, message: Message) -> Any:
    """The one payload that the service at ``url`` got."""
    (receiver,) = receivers(1, NotifySettings(urls=(Secret(url),)))
    assert isinstance(receiver, Receiver)
    receiver.send(message)
    (got,) = chats.got
    return json.loads(got.body)


def test_telegram_shows_names_as_they_are(chats: HttpReceiver) -> None:
    """Its client would take what looks like HTML in a text for HTML."""
    payload = sent(chats, ADDRESSES["telegram"], MESSAGE)
    assert payload["parse_mode"] == "HTML"
    shown = Text(payload["text"])
    assert shown.tags == ["b"], "the title"
    assert shown.text.split() == f"{MESSAGE.title}\n{MESSAGE.body}".split()


def test_slack_shows_names_as_they_are(chats: HttpReceiver) -> None:
    payload = sent(chats, ADDRESSES["slack"], MESSAGE)
    (attachment,) = payload["attachments"]
    assert payload["mrkdwn"] is False
    assert "mrkdwn_in" not in attachment
    for shown, meant in ((attachment["title"], MESSAGE.title), (attachment["text"], MESSAGE.body)):
        assert not {"<", ">"} & set(shown)
        assert Text(shown).text == meant


@pytest.mark.parametrize("name", NAMES)
def test_a_name_mentions_nobody_hides_nothing_and_makes_no_link(name: str) -> None:
    """Some chats take Markdown, mentions or tags in a text for what they say."""
    shown = quoted(name, 200)
    for markup in ("@everyone", " @", "<@", "<!", "<b", "<a", "<h", "<u", "<#", "](", "||", "~~", "`"):
        assert markup not in f" {shown}"


def test_an_ordinary_name_stays_as_it_is() -> None:
    assert quoted(NAMES[-1]) == NAMES[-1]


@pytest.mark.parametrize(("chat", "limit"), [("telegram", 4096), ("discord", 2000)])
@pytest.mark.parametrize("name", ["x" * 80, "<&>" * 26, "😀" * 80, " _*" * 26])
def test_a_long_message_loses_lines_and_not_its_end(chats: HttpReceiver, chat: str, limit: int, name: str) -> None:
    """A service refuses a message that is too long, however it counts, and would be retried for a day."""
    lines = [f"  o1 {number} {quoted(name)}: day to hour (ann)" for number in range(20)] * 2
    long = Message("Flowtrail plants: 40 cycles changed", "\n".join([*lines, "\nTo see more:", "  flowtrail changes"]))
    payload = sent(chats, ADDRESSES[chat], long)
    text = payload["text" if chat == "telegram" else "content"]
    assert len(text.encode("utf-16-le")) / 2 <= limit
    assert text.rstrip().endswith("flowtrail changes")
    assert "and more than fits here" in text
    assert text.count("day to hour") >= 5


def test_a_message_that_fits_is_not_touched() -> None:
    assert shortened(MESSAGE, lambda body: True) is MESSAGE


# -------------------------------------------------------------------------------------------------------- mail


class Post:
    """An SMTP server that records messages and recipients."""

    def __init__(self) -> None:
        self.got: list[tuple[list[str], EmailMessage]] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        message = email.message_from_bytes(envelope.content, policy=email.policy.default)
        assert isinstance(message, EmailMessage)
        self.got.append((envelope.rcpt_tos, message))
        return "250 taken"


@pytest.fixture
def post() -> Iterator[tuple[Post, int]]:
    handler, port = Post(), free_port()
    controller = Controller(handler, hostname="127.0.0.1", port=port)
    controller.start()
    yield handler, port
    controller.stop()


def test_a_name_writes_no_header_no_recipient_and_no_second_mail(
    flowtrail: Program, gateway: LocalGateway, post: tuple[Post, int]
) -> None:
    handler, port = post
    evil = "x\r\nBcc: evil@example.com\r\n\r\n.\r\nMAIL FROM:<evil@example.com>\r\n\u2028<script>alert(1)</script>"
    url = f"mailto://127.0.0.1:{port}?from=flowtrail@example.com&to=ops@example.com&mode=insecure"
    flowtrail.configure(rest=f'[[notify]]\nurls = ["{url}"]\non = ["cycle_changed", "renamed", "removed"]')
    gateway.world.set_flows(ORG, ANN, [Flow("1", evil, "D", True), Flow("\r\nSubject: 2", "two", "D", True)])
    flowtrail.json("sync")
    gateway.world.set_flows(ORG, ANN, [Flow("1", evil + "2", evil, True)])
    flowtrail.json("sync")
    assert flowtrail("notify").returncode == 0
    ((recipients, mail),) = handler.got
    assert recipients == ["ops@example.com"]
    assert mail["subject"] == "Flowtrail sync: 1 cycle changed, 1 removed, 1 renamed"
    assert [mail["bcc"], mail["to"], mail["from"]] == [None, "ops@example.com", "flowtrail@example.com"]
    plain = mail.get_body(("plain",))
    assert plain is not None
    body = plain.get_content()
    assert r"x\x0d\x0aBcc: evil@example.com\x0d\x0a\x0d\x0a.\x0d\x0aMAIL FROM:\x3cevil@" in body
    assert r"\x0d\x0aSubject: 2 two, cycle: day (ann)" in body
    assert "alert" not in body or "<script>" not in body
    html = mail.get_body(("html",))
    assert html is None or "<script" not in html.get_content()
