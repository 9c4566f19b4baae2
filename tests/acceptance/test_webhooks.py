"""Webhooks as an operator sees them: settings, `check`, `notify --test`, `sync`, and `serve` as a process."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from etl.config import Secret
from tests.support.enos import LocalGateway
from tests.support.postgres import free_port
from tests.support.program import ANN, ORG, Program, here, problems, settings_of
from tests.support.served import wait_until
from tests.support.webhook_receiver import SCHEMA, SECRET, WebhookReceiver

URL = "https://someone:pass-canary@hooks.example.com/path-canary?key=query-canary"
GOOD = f'name = "tickets"\nurl = "{URL}"\nsecret_file = "secret"'


@pytest.fixture(autouse=True)
def _secret(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / "secret").chmod(0o600)


@pytest.fixture
def receiver() -> Iterator[WebhookReceiver]:
    with WebhookReceiver() as receiver:
        yield receiver


def of(receiver: WebhookReceiver, more: str = "") -> str:
    return f'[[webhook]]\nname = "tickets"\nurl = "{receiver.url}"\nsecret_file = "secret"\n{more}'


def test_webhooks_are_read_and_their_secrets_print_as_stars(tmp_path: Path) -> None:
    (tmp_path / "url").write_text(f"{URL}\n")
    more = '[[webhook]]\nname = "b"\nurl_file = "url"\nsecret_file = "secret"\non = ["condition"]\norgs = ["o1"]'
    first, second = settings_of(tmp_path, f"[[webhook]]\n{GOOD}\n{more}").webhook
    assert (first.url, second.url) == (Secret(URL), Secret(URL))
    assert first.on[:2] == ("appeared", "reappeared")
    assert (second.on, second.orgs) == (("condition",), ("o1",))
    assert first.read_secrets() == [bytes(range(32))]
    assert "canary" not in repr((first, second))
    replaced = settings_of(tmp_path, f"[[webhook]]\n{GOOD}", FLOWTRAIL_WEBHOOK__URL="https://other.example.com/")
    assert replaced.webhook[0].url == Secret("https://other.example.com/")


WRONG = {
    "[webhook]\nname = 1": "flowtrail.toml: webhook: may be given more than once: write [[webhook]], with two brackets",
    f"[[webhook]]\n{GOOD.replace('name', '# name')}": "webhook[1].name: is missing: a name such as",
    f"[[webhook]]\n{GOOD.replace('tickets', 'a b')}": "webhook[1].name: must be up to 64 letters",
    f"[[webhook]]\n{GOOD}\n[[webhook]]\n{GOOD}": 'webhook[2].name: "tickets" is the name of another [[webhook]]',
    f"[[webhook]]\n{GOOD.replace('url', '# url')}": "webhook[1].url: is missing: the address to send to",
    f"[[webhook]]\n{GOOD.replace('https', 'http')}": "webhook[1].url: must start with https://",
    f"[[webhook]]\n{GOOD.replace('https', 'ftp')}": "webhook[1].url: must be an address such as",
    f"[[webhook]]\n{GOOD.replace('hooks.example.com', '169.254.169.254')}": "webhook[1].url: must be an address",
    f"[[webhook]]\n{GOOD.replace('path-', 'päth-')}": "webhook[1].url: must be an address such as",
    f'[[webhook]]\n{GOOD}\nurl_file = "url"': "webhook[1].url_file: cannot be combined with url",
    f"[[webhook]]\n{GOOD.replace('secret_file', '# secret_file')}": "webhook[1].secret_file: is missing",
    f"[[webhook]]\n{GOOD.replace(chr(34) + 'secret', chr(34) + 'weak')}": "weak: secret 2 must be whsec_ and 24 to 64",
    f'[[webhook]]\n{GOOD}\non = ["dissapeared"]': 'there is no kind "dissapeared": did you mean disappeared?',
    f'[[webhook]]\n{GOOD}\nca_bundle = "nowhere"': "webhook[1].ca_bundle: there is no file nowhere",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_mistakes_in_webhooks_are_reported_with_their_place(tmp_path: Path, wrong: str) -> None:
    (tmp_path / "weak").write_text(f"{SECRET}\nwhsec_Y2FuYXJ5LWNhbmFyeQ==\n")
    assert WRONG[wrong] in problems(tmp_path, wrong)


def test_notify_test_tries_every_webhook_and_check_names_it(flowtrail: Program, receiver: WebhookReceiver) -> None:
    (flowtrail.folder / "secret").write_text(SECRET)
    flowtrail.configure(rest=of(receiver))
    tried = here(flowtrail, "notify", "--test", "--json")
    assert json.loads(tried.stdout) == [{"receiver": "webhook tickets", "ok": True, "error": None}]
    receiver.troubles = [302]
    tried = here(flowtrail, "notify", "--test")
    assert tried.exit_code == 1
    assert "BAD webhook tickets: HTTP 302, a redirect, which is not followed" in tried.stdout
    assert [each["type"] for each in receiver.accepted] == ["flowtrail.test"]
    assert "ok  webhook tickets: understood" in here(flowtrail, "check").stdout
    assert receiver.wrong == []


def test_sync_alone_sends_what_its_run_found_and_the_rest_later(
    flowtrail: Program, gateway: LocalGateway, receiver: WebhookReceiver
) -> None:
    flowtrail.configure(rest=of(receiver, 'orgs = ["o1"]'))
    assert here(flowtrail, "sync").exit_code == 0
    gateway.world.set_cycle(ORG, "1", "H")
    receiver.troubles = [503]
    late = here(flowtrail, "sync")
    assert late.exit_code == 0, "no run fails because of a webhook"
    assert "The webhook tickets has not got everything: HTTP 503. The rest comes later." in late.stderr
    assert json.loads(here(flowtrail, "status", "--json").stdout)["webhooks"][0]["why"] == "HTTP 503"
    assert here(flowtrail, "notify").stdout == "ok  webhook tickets: sent\n"
    assert [(each["type"], each["data"]["new_cycle"]) for each in receiver.accepted] == [
        ("flowtrail.workflow.cycle_changed", "H")
    ]
    shown = here(flowtrail, "status").stdout
    assert "Webhooks" in shown
    assert "canary" not in shown + late.stderr


def test_a_delivery_that_was_not_noted_before_a_kill_is_repeated_with_its_id(
    flowtrail: Program, gateway: LocalGateway, receiver: WebhookReceiver
) -> None:
    flowtrail.configure(rest=of(receiver))
    assert here(flowtrail, "sync").exit_code == 0
    gateway.world.set_cycle(ORG, "1", "H")
    receiver.troubles = ["slow"]
    killed = flowtrail.start("sync")
    receiver.wait_for(events=1)
    killed.stop(signal.SIGKILL)
    receiver.let_go()
    for _ in range(2):
        assert here(flowtrail, "notify").exit_code == 0
    first, second = receiver.requests
    assert (first.id, first.body) == (second.id, second.body), "then it was noted, and sent no more"


def test_the_service_sends_events_and_conditions_and_one_that_hangs_delays_nobody(
    flowtrail: Program, gateway: LocalGateway, receiver: WebhookReceiver
) -> None:
    with WebhookReceiver() as hanging:
        hanging.troubles = ["slow"] * 9
        other = of(hanging).replace("tickets", "hanging")
        flowtrail.configure(rest=f"{of(receiver)}\n{other}", listen=f"127.0.0.1:{free_port()}")
        flowtrail.schedule("plants", [(ORG, [ANN])], when='every = "1s"')
        service = flowtrail.start("serve")
        service.wait_for("run_ended")
        gateway.world.set_cycle(ORG, "1", "H")
        hanging.wait_for(requests=1)
        receiver.wait_for(events=1)
        gateway.world.set_cycle(ORG, "1", "D")
        receiver.wait_for(events=2)
        (flowtrail.folder / "schedules" / "broken.toml").write_text("cron = 1")
        service.process.send_signal(signal.SIGHUP)
        receiver.wait_for(events=3)
        assert [each["type"].rpartition(".")[2] for each in receiver.accepted] == ["cycle_changed"] * 2 + ["began"]
        assert receiver.accepted[2]["data"]["code"] == "schedules_broken"
        wait_until(lambda: 'flowtrail_webhook_events_total{webhook="tickets"} 3.0' in service.get("/metrics")[1])
        behind = re.search(r'behind_seconds\{webhook="hanging"\} (\S+)', service.get("/metrics")[1])
        assert behind is not None
        assert float(behind[1]) > 0
        assert service.stop() == 0
        assert "canary" not in json.dumps(service.log)


def test_the_code_for_receivers_accepts_what_is_sent_and_nothing_else(
    flowtrail: Program, receiver: WebhookReceiver
) -> None:
    code = (SCHEMA.parent / "webhooks.md").read_text("utf-8").partition("```python\n")[2].partition("```")[0]
    page: dict[str, object] = {}
    exec(code, page)
    events_of = SimpleNamespace(**page).events_of
    flowtrail.configure(rest=of(receiver))
    assert here(flowtrail, "notify", "--test").exit_code == 0
    (request,) = receiver.requests
    assert events_of(request.headers, request.body, SECRET)[0]["type"] == "flowtrail.test"
    with pytest.raises(ValueError, match="not ours"):
        events_of(request.headers, request.body + b" ", SECRET)
    old = {**request.headers, "webhook-timestamp": "1600000000"}
    with pytest.raises(ValueError, match="not ours"):
        events_of(old, request.body, SECRET)


def test_sync_and_rules_check_tell_what_rules_find(flowtrail: Program, receiver: WebhookReceiver) -> None:
    flowtrail.configure(rest=of(receiver, 'on = ["finding"]'))
    (flowtrail.folder / "rules").mkdir()
    rule = flowtrail.folder / "rules" / "daily.sql"
    rule.write_text("-- title: it is daily\n-- key: org_id, flow_id\nSELECT org_id, flow_id FROM org_workflow LIMIT 1")
    assert here(flowtrail, "sync").exit_code == 0
    assert [(each["type"], each["data"]["row"]) for each in receiver.accepted] == [
        ("flowtrail.finding.began", {"org_id": ORG, "flow_id": "1"})
    ]
    listed = json.loads(here(flowtrail, "rules", "list", "daily", "--json").stdout)
    assert listed == [receiver.accepted[0]["data"]]
    rule.unlink()
    assert here(flowtrail, "rules", "check").exit_code == 0
    assert [each["data"]["ended_by"] for each in receiver.accepted] == [None, "rule_removed"]
    assert receiver.wrong == []
