"""Notifications and pings as an operator sees them: settings, `check`, `notify --test`, and `serve` as a process."""

from __future__ import annotations

import datetime as dt
import json
import signal
from pathlib import Path

import pytest

from etl import config
from etl.cli.application import Application
from etl.cli.notify import Notifications
from etl.config import Schedule, Secret
from etl.config.slots import Every
from etl.domain.model import RunStatus
from etl.errors import ConfigError, UsageError
from etl.notify import Pinger
from etl.store import Store
from etl.sync import RunReport, Tally
from tests.support.enos import Fault, LocalGateway
from tests.support.program import ANN, ORG, Program, here, problems, settings_of
from tests.support.receiver import HttpReceiver

# ------------------------------------------------------------------------------------------------------ settings

URL = "json://someone:pass-canary@127.0.0.1:9/path-canary"


def test_receivers_are_read_and_their_addresses_print_as_stars(tmp_path: Path) -> None:
    two = f'[[notify]]\nurls = ["{URL}", "{URL}"]\n[[notify]]\nurls_file = "urls"\non = ["held"]\norgs = ["o1"]'
    (tmp_path / "urls").write_text("# for the team\nslack://canary/1/2\n\nmailto://canary@example.com\n")
    settings = settings_of(tmp_path, two)
    first, second = settings.notify
    assert [url.reveal() for url in first.urls] == [URL]
    assert first.on == ("cycle_changed", "removed", "held", "failed", "overdue", "rule_broken", "rule_mended")
    assert [url.reveal() for url in second.urls] == ["slack://canary/1/2", "mailto://canary@example.com"]
    assert (second.on, second.orgs) == (("held",), ("o1",))
    assert "canary" not in f"{settings!r}"
    assert any("urls is open to others" in warning for warning in settings.warnings)


def test_the_environment_speaks_of_the_only_receivers_or_makes_some(tmp_path: Path) -> None:
    made = settings_of(tmp_path, "", FLOWTRAIL_NOTIFY__URLS=f"{URL}\nslack://a/b/c", FLOWTRAIL_NOTIFY__ON="held failed")
    assert (len(made.notify[0].urls), made.notify[0].on) == (2, ("held", "failed"))
    replaced = settings_of(tmp_path, '[[notify]]\nurls_file = "nowhere"\norgs = ["o1"]', FLOWTRAIL_NOTIFY__URLS=URL)
    assert (replaced.notify[0].urls, replaced.notify[0].orgs) == ((Secret(URL),), ("o1",))
    several = f'[[notify]]\nurls = ["{URL}"]\n' * 2
    assert "does not say which of 2 [[notify]]" in problems(tmp_path, several, FLOWTRAIL_NOTIFY__URLS=URL)


WRONG = {
    "[notify]\nurls = []": "flowtrail.toml: notify: may be given more than once: write [[notify]], with two brackets",
    "[[notify]]": "flowtrail.toml: notify[1].urls: is missing",
    '[[notify]]\nurls = ["canary"]': "flowtrail.toml: notify[1].urls: must be a list of addresses",
    f'[[notify]]\nurls = ["{URL}"]\non = ["remove"]': 'there is no kind "remove": did you mean removed?',
    f'[[notify]]\nurls = ["{URL}"]\nurl = 1': "notify[1].url: there is no such setting: did you mean urls?",
    f'[[notify]]\nurls = ["{URL}"]\nurls_file = "x"': "notify[1].urls_file: cannot be combined with urls",
    '[[notify]]\nurls_file = "empty"': "empty is empty: write one address per line",
    '[[notify]]\nurls_file = "nowhere"': "nowhere cannot be read: No such file or directory",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_mistakes_in_receivers_are_reported_with_their_place(tmp_path: Path, wrong: str) -> None:
    (tmp_path / "empty").write_text("# nothing\n")
    assert WRONG[wrong] in problems(tmp_path, wrong)


def test_an_invalid_ping_url_is_not_repeated(tmp_path: Path) -> None:
    (tmp_path / "schedules").mkdir()
    file = tmp_path / "schedules" / "plants.toml"
    file.write_text('every = "1h"\nping_url = "hc-ping.com/canary"\n[[targets]]\norg = "o"\nusers = ["u"]\n')
    with pytest.raises(ConfigError, match=r"ping_url: must be an address such as") as raised:
        config.load_schedules(settings_of(tmp_path, ""))
    assert "canary" not in str(raised.value)


# ------------------------------------------------------------------------------------------------ check and --test


def test_notify_test_tries_every_receiver_and_says_which_failed(flowtrail: Program, receiver: HttpReceiver) -> None:
    flowtrail.configure(rest=f'[[notify]]\nurls = ["{receiver.url}"]')
    tried = here(flowtrail, "notify", "--test", "--json")
    assert json.loads(tried.stdout) == [{"receiver": "notify[1] json://***", "ok": True, "error": None}]
    assert (tried.exit_code, receiver.titles) == (0, ["Flowtrail: a test"])
    flowtrail.configure(rest=f'[[notify]]\nurls = ["{receiver.url}", "{URL}"]')
    tried = here(flowtrail, "notify", "--test")
    assert tried.exit_code == 1
    assert "ok  notify[1] 1 json://***: sent" in tried.stdout
    assert "BAD notify[1] 2 json://***: A Connection error occurred" in tried.stdout
    assert "canary" not in tried.output


def test_notify_without_receivers_says_where_one_is_explained(flowtrail: Program) -> None:
    with pytest.raises(UsageError, match=r"no \[\[notify\]\] or \[\[webhook\]\] in the settings: docs/notify.md"):
        raise here(flowtrail, "notify", "--test").exception or AssertionError


def test_check_tries_to_understand_the_addresses(flowtrail: Program) -> None:
    flowtrail.configure(rest=f'[[notify]]\nurls = ["{URL}", "nonsense://canary", "slack://canary"]')
    checked = here(flowtrail, "check")
    assert checked.exit_code == 1
    assert "ok  notify[1] 1 json://***: understood" in checked.stdout
    assert "BAD notify[1] 2 nonsense://***: is not a usable address" in checked.stdout
    assert "BAD notify[1] 3 slack://***: " in checked.stdout
    assert "canary" not in checked.output


# ------------------------------------------------------------------------------------------------------- serve


def test_serve_notifies_a_change_and_pings_start_and_success(
    flowtrail: Program, gateway: LocalGateway, receiver: HttpReceiver
) -> None:
    with HttpReceiver() as outside:
        ping = f'ping_url = "http://127.0.0.1:{outside.port}/ping-canary/"'
        flowtrail.configure(rest=f'[[notify]]\nurls = ["{receiver.url}"]')
        flowtrail.schedule("plants", [(ORG, [ANN])], when=f'every = "1s"\n{ping}')
        service = flowtrail.start("serve")
        service.wait_for("run_ended")
        gateway.world.set_cycle(ORG, "1", "H")
        told = receiver.wait_for(1)[0]
        assert told.title == "Flowtrail plants: 1 cycle changed"
        assert "  o1 1 one: day to hour (ann)" in told.message
        started, succeeded = outside.wait_for(2)
        assert (started.path, started.body) == ("/ping-canary/start", "")
        assert succeeded.path == "/ping-canary"
        assert succeeded.body.startswith("Run 1 succeeded: 1 target; 1 changed, 1 baseline")
        gateway.order(Fault("status", status=403, times=None))
        failed = service.wait_for("run_ended", lambda entry: entry["status"] == "failed")
        assert receiver.wait_for(2)[1].title == "Flowtrail plants: 1 failed"
        with pytest.raises(UsageError, match="is active and sends notifications by itself"):
            raise here(flowtrail, "notify").exception or AssertionError
        assert service.stop() == 0
        assert f"Run {failed['run_id']} failed: 1 target; 1 failed." in [got.body for got in outside.got]
        assert "canary" not in json.dumps(service.log)


def test_a_message_sent_but_not_recorded_before_a_kill_is_sent_again(
    flowtrail: Program, gateway: LocalGateway, receiver: HttpReceiver
) -> None:
    flowtrail.configure(rest=f'[[notify]]\nurls = ["{receiver.url}?rto=60"]\non = ["cycle_changed"]')
    assert here(flowtrail, "sync").exit_code == 0
    gateway.world.set_cycle(ORG, "1", "H")
    assert here(flowtrail, "sync").exit_code == 0
    assert receiver.got == [], "sync leaves telling to the service, or to whoever runs notify"
    receiver.hold = True
    killed = flowtrail.start("notify")
    receiver.wait_for(1)
    killed.stop(signal.SIGKILL)
    receiver.hold = False
    receiver.let_go()
    for _ in range(2):
        assert here(flowtrail, "notify").exit_code == 0
    assert receiver.titles == ["Flowtrail sync: 1 cycle changed"] * 2, "then it was noted, and told nobody again"


# -------------------------------------------------------------------------------------------------------- pings


def a_schedule(url: str, name: str = "plants") -> Schedule:
    return Schedule(name=name, path=Path("x"), slots=Every(dt.timedelta(hours=1)), ping_url=Secret(url))


def test_pings_keep_their_order_and_their_query(receiver: HttpReceiver) -> None:
    pinger = Pinger()
    schedule = a_schedule(f"http://127.0.0.1:{receiver.port}/key/slug?create=1")
    pinger.ping(schedule, "/start")
    pinger.ping(schedule, "/fail", "the database is away")
    pinger.ping(schedule, "", "all is well")
    pinger.stop()
    assert [(got.path, got.body) for got in receiver.wait_for(3)] == [
        ("/key/slug/start?create=1", ""),
        ("/key/slug/fail?create=1", "the database is away"),
        ("/key/slug?create=1", "all is well"),
    ]


@pytest.mark.parametrize(
    ("status", "paths"), [("succeeded", ["/x"]), ("partial", ["/x"]), ("failed", ["/x/fail"]), ("aborted", [])]
)
def test_a_run_pings_how_it_ended_and_one_that_a_stop_cut_short_not_at_all(
    tmp_path: Path, receiver: HttpReceiver, status: RunStatus, paths: list[str]
) -> None:
    schedule = a_schedule(f"http://127.0.0.1:{receiver.port}/x")
    report = RunReport(run_id=1, status=status, duration_seconds=1, targets=0, tally=Tally())
    with Application(settings_of(tmp_path, "")) as bench:
        notifications = Notifications(bench, Store(bench.engine))
        with notifications.running(None):  # type: ignore[arg-type]  # nobody is notified here
            notifications.finished(report, schedule)
            notifications.crashed(schedule, "the database is away")
    assert [got.path for got in receiver.wait_for(len(paths) + 1)] == [*paths, "/x/fail"]


def test_a_ping_that_hangs_delays_nobody(receiver: HttpReceiver) -> None:
    receiver.hold = True
    pinger = Pinger()
    pinger.ping(a_schedule(f"http://127.0.0.1:{receiver.port}/"), "/start")
    receiver.wait_for(1)
    for _ in range(2000):
        pinger.ping(a_schedule(f"http://127.0.0.1:{receiver.port}/"), "/start")
    receiver.let_go()
