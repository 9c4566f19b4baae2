"""Notifications: the command, what `check` says of them, and what `serve` runs beside the service."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import click
from click.exceptions import Exit
from sqlalchemy import Engine

from etl import database
from etl.cli import console
from etl.cli.application import Application
from etl.cli.options import Options, shared
from etl.config import NotifySettings, Schedule, Settings, WebhookSettings
from etl.domain.model import Target
from etl.errors import UsageError
from etl.log import get_logger
from etl.notify import (
    Alarm,
    Endpoint,
    Freshness,
    Message,
    Notifier,
    Pinger,
    Receiver,
    Subscription,
    Timing,
    UnusableReceiver,
    WebhookSender,
    WebhookStatus,
    flush,
    receivers,
    test_batch,
)
from etl.printable import counted
from etl.report import health
from etl.report.conditions import Condition, conditions
from etl.report.listings import TARGETS
from etl.report.rows import TargetHealth
from etl.service.replica import LEASE, Service
from etl.store import Store
from etl.sync import RunReport
from etl.system.clock import utc_now

_PATIENCE_SECONDS = 60.0
_OUTAGE = dt.timedelta(minutes=1)
"""A shorter outage of the database is not reported."""
_AT_ONCE = 8
_WEBHOOK_REMEDY = "`flowtrail notify --test` tries it; it gets everything later."
_TEST = Message("Flowtrail: a test", "This is a test of Flowtrail's notifications. Nothing has happened.")


@click.command()
@click.option("--test", is_flag=True, help="Send a test message to every receiver and webhook.")
@shared("json", "config")
def notify(options: Options, test: bool) -> None:
    """Send what receivers and webhooks have not been told yet, if no service does; with --test, try each."""
    with options.application() as app:
        if not (app.settings.notify or app.settings.webhook):
            raise UsageError("There is no [[notify]] or [[webhook]] in the settings: docs/notify.md shows one.")
        results = list(_tested(app.settings)) if test else list(_send_pending(app))
    if not options.json:
        for name, wrong in results:
            console.say(f"{'BAD' if wrong else 'ok '} {name}: {wrong or 'sent'}", "red" if wrong else "")
    elif test:
        console.json([{"receiver": name, "ok": wrong is None, "error": wrong} for name, wrong in results])
    else:
        why = next((wrong for _, wrong in results if wrong is not None), None)
        console.json({"told": why is None, "why": why})
    if any(wrong is not None for _, wrong in results):
        raise Exit(1)


def _tested(settings: Settings) -> Iterator[tuple[str, str | None]]:
    """Each receiver, and why the test message did not reach it (None: it did)."""

    def attempt(receiver: Receiver | UnusableReceiver) -> tuple[str, str | None]:
        wrong = receiver.why if isinstance(receiver, UnusableReceiver) else receiver.send(_TEST)
        return receiver.name, wrong

    def attempt_webhook(webhook: WebhookSettings) -> tuple[str, str | None]:
        refusal = Endpoint(webhook, utc_now).send(test_batch(utc_now()))
        return f"webhook {webhook.name}", refusal and refusal.why

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        sent = pool.map(attempt_webhook, settings.webhook)
        if settings.notify:
            yield from pool.map(attempt, [receiver for receiver, _ in _all_receivers(settings)])
        yield from sent


def _send_pending(app: Application) -> Iterator[tuple[str, str | None]]:
    """Send what is owed; each webhook and all digests, and why not all of it went."""
    app.ready(upgrade=False)
    store = Store(app.engine, app.stop)
    holder = store.lease_holder(LEASE)
    if holder is not None:
        raise UsageError(f"The service {holder} is active and sends notifications by itself.")
    senders = app.webhooks(store, lambda: True, at_once=True)
    if app.settings.notify:
        yield "digests", _send_digests(app, store)
    late = {each.name: each.status().why or "it did not answer in time" for each in flush(senders, _PATIENCE_SECONDS)}
    yield from ((f"webhook {each.name}", late.get(each.name)) for each in senders)


def _send_digests(app: Application, store: Store) -> str | None:
    unusable = [f"{name}: {wrong}" for name, wrong in receiver_problems(app.settings) if wrong]
    subscriptions = _subscriptions(app.settings)
    if not subscriptions:
        return unusable[0]
    notifier = Notifier(
        app.engine,
        store,
        subscriptions,
        is_active=lambda: True,
        freshness=lambda: _freshness(app, app.listed_schedules(), {}),
        clock=utc_now,
        timing=Timing(overdue_after_seconds=0),
        enos_zone=app.enos_zone,
    )
    all_sent = notifier.flush(_PATIENCE_SECONDS)
    return next(iter(unusable), None if all_sent else "not every receiver could be notified: the log says why")


def receiver_problems(settings: Settings) -> Iterator[tuple[str, str | None]]:
    """Each receiver that is configured, and what is wrong with its address; one line where the extra is missing."""
    yield from ((f"webhook {each.name}", None) for each in settings.webhook)
    try:
        for receiver, _ in _all_receivers(settings):
            yield receiver.name, receiver.why if isinstance(receiver, UnusableReceiver) else None
    except UsageError as error:
        yield "notify", str(error)


def _all_receivers(settings: Settings) -> Iterator[tuple[Receiver | UnusableReceiver, NotifySettings]]:
    for number, each in enumerate(settings.notify, 1):
        yield from ((receiver, each) for receiver in receivers(number, each))


def _subscriptions(settings: Settings) -> list[Subscription]:
    """The receivers that can be written to; none without the extra."""
    try:
        return [
            Subscription(each, wants.on, wants.orgs, wants.unacknowledged)
            for each, wants in _all_receivers(settings)
            if isinstance(each, Receiver)
        ]
    except UsageError:
        return []


def _freshness(app: Application, schedules: Sequence[Schedule], known_since: Mapping[str, dt.datetime]) -> Freshness:
    """As ``/freshness`` has it."""
    now = utc_now()
    found = health.read(app.engine, schedules, now, known_since)
    seen = {
        Target(each.org_id, each.user_id, each.expression): at
        for each in TARGETS.rows(app.engine)
        if (at := _seen_at(each, now)) is not None
    }
    return Freshness(found.overdue, seen)


def _seen_at(health: TargetHealth, now: dt.datetime) -> dt.datetime | None:
    """When a target was last observed. A time in the future proves nothing; that its last attempt succeeded does."""
    if health.last_observed_at is None or health.last_observed_at <= now:
        return health.last_observed_at
    return now if health.consecutive_failures == 0 and health.held_since is None else None


class Notifications:
    """Those who are notified of what the service does: receivers of a [[notify]], and of the schedules' pings."""

    def __init__(self, app: Application, store: Store) -> None:
        self._app = app
        self._store = store
        self._pinger = Pinger()
        self._notifier: Notifier | None = None
        self._webhooks: list[WebhookSender] = []
        self._unusable: list[tuple[str, str]] = []
        self._outages_reported: set[str] = set()
        """The codes of outages that were reported to receivers."""

    @contextlib.contextmanager
    def running(self, service: Service) -> Iterator[None]:
        """Notify while the block runs. A faulty receiver or a missing extra is reported and stops no sync."""
        self._notifier = self._notifier_of(service)
        self._webhooks = self._app.webhooks(self._store, lambda: service.role == "active", at_once=True)
        for sender in self._senders():
            sender.start()
        try:
            yield
        finally:
            for webhook in self._webhooks:
                webhook.stop(0)
            for sender in self._senders():
                sender.stop()
            self._pinger.stop()

    def _senders(self) -> list[Notifier | WebhookSender]:
        return [*([self._notifier] if self._notifier else []), *self._webhooks]

    def webhooks(self) -> list[WebhookStatus]:
        """What each webhook has got, and not yet."""
        return [each.status() for each in self._webhooks]

    def wake(self) -> None:
        """Something changed: look now."""
        for sender in self._senders():
            sender.wake()

    def started(self, schedule: Schedule) -> None:
        """A run begins."""
        self._pinger.ping(schedule, "/start")

    def finished(self, report: RunReport, schedule: Schedule) -> None:
        """A run ended. One that was cut short by a stop sends no ping: its slot is caught up later."""
        self.wake()
        if report.status == "failed":
            self._pinger.ping(schedule, "/fail", _in_one_line(report))
        elif report.status != "aborted":
            self._pinger.ping(schedule, "", _in_one_line(report))

    def crashed(self, schedule: Schedule, why: str) -> None:
        """A run ended without a report."""
        self._pinger.ping(schedule, "/fail", why)

    def failing(self) -> list[Condition]:
        """The receivers that could not be told lately, and those that cannot be."""
        found = self._notifier.failing() if self._notifier else []
        failing: list[tuple[str, str, dt.datetime | None]] = [
            (name, f"The receiver {name} was not told: {why}", since) for name, why, since in found
        ]
        failing += [(name, f"The receiver {name} cannot be used: {why}", None) for name, why in self._unusable]
        conditions = [
            Condition("receiver_failing", text.removesuffix("."), name, since, 1, (name,))
            for name, text, since in failing
        ]
        for each in self.webhooks():
            if each.failing_since:
                name, said = f"webhook {each.name}", f"The webhook {each.name} did not take its events: {each.why}"
                since = each.failing_since
                conditions.append(Condition("receiver_failing", said, name, since, 1, (name,), _WEBHOOK_REMEDY))
        return conditions

    def role_changed(self, role: str) -> None:
        """The replica has another role."""
        if role in ("active", "standing_by"):
            self._outages_reported.clear()
        self.wake()

    def _notifier_of(self, service: Service) -> Notifier | None:
        log = get_logger("etl.notify")
        for name, wrong in receiver_problems(self._app.settings):
            if wrong:
                self._unusable.append((name, wrong))
                log.warning("cannot_notify", receiver=name, why=wrong)
        subscriptions = _subscriptions(self._app.settings)
        if not subscriptions:
            return None
        return Notifier(
            self._app.engine,
            self._store,
            subscriptions,
            is_active=lambda: service.role == "active",
            freshness=lambda: _freshness(self._app, service.schedules, service.known_since),
            clock=utc_now,
            alarm=lambda: _alarm(self._app.engine, service, self._outages_reported),
            enos_zone=self._app.enos_zone,
        )


def _alarm(engine: Engine, service: Service, reported: set[str]) -> Alarm | None:
    """What the replica that was active reports if nothing can be written; once, damage even across restarts.
    ``reported`` has the codes of the current outage."""
    detected = service.database_condition
    if detected is None or not service.was_active:
        return None
    if detected.code == "database_damaged":
        found = database.damage_of(engine)
        if found is None or found.told_at is not None:
            return None
        message = Message("Flowtrail: the database is damaged", database.damage_sentence(engine, found))
        return Alarm(message, lambda: database.note_notified(engine, utc_now()))
    if detected.code in reported or detected.since is None or utc_now() - detected.since < _OUTAGE:
        return None
    [condition] = conditions([detected])
    message = Message(f"Flowtrail: {condition.code}", f"{condition.sentence} {condition.remedy}")
    return Alarm(message, lambda: reported.add(detected.code))


def _in_one_line(report: RunReport) -> str:
    sums = ", ".join(f"{count} {name}" for name, count in report.tally.sums().items() if count)
    return f"Run {report.run_id} {report.status}: {counted(report.targets, 'target')}; {sums or 'nothing'}."
