"""Builds everything once from the settings, and closes it again; the only place that does."""

from __future__ import annotations

import datetime as dt
import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from etl import database, log
from etl.config import Policy, Schedule, Settings, directories, load, load_schedules, policy_of, with_policy
from etl.config.slots import time_zone
from etl.errors import DatabaseError
from etl.system.clock import utc_now

if TYPE_CHECKING:  # the gateway and the store are slow to load, and a command that only reads needs neither
    from sqlalchemy import Engine

    from etl.domain.guard import Limits
    from etl.domain.model import Origin, Target
    from etl.gateway import Exchange, Gateway
    from etl.notify import WebhookSender
    from etl.signing.keys import SigningKey
    from etl.store import Store
    from etl.sync import DetailLimits, Rosters, RunContext, RunReport
    from etl.sync.cluster import Cluster

_BATCHES_AT_ONCE = 2
"""While one batch is written, the next one is fetched."""
_WRITERS = 2
_WEBHOOK_SECONDS = 10.0
"""How long a command sends events after its run."""
_DOWN_AFTER = 3
"""This many times ``concurrency`` targets in a row without an answer mean that the gateway is down."""


class Application(ExitStack):
    """What the commands work with; each part is built when it is first used, and closed at the end."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.stop = threading.Event()
        self.stopped_by: int | None = None
        """The number of the signal that set ``stop``."""
        self.exchanged: Callable[[Exchange], None] | None = None
        self.desynced: Callable[[], None] | None = None
        """Set it before `gateway` is made, and it is told of every request."""

    @cached_property
    def schedules(self) -> tuple[Schedule, ...]:
        """The schedules in their files now. Raises ConfigError with every problem."""
        return load_schedules(self.settings)

    @property
    def enos_zone(self) -> dt.tzinfo | None:
        """Where EnOS's own times are from, if that is known."""
        name = self.settings.gateway.enos_timezone
        return time_zone(name) if name else None

    @cached_property
    def engine(self) -> Engine:
        return self.another_engine()

    def another_engine(self, url: str | None = None, **limits: Any) -> Engine:
        """A second engine, of the same database unless there is a ``url``, which is closed with ``engine``."""
        engine = database.connect(url or self.settings.database.url, **limits)
        self.callback(engine.dispose)
        return engine

    @cached_property
    def gateway(self) -> Gateway:
        from etl.gateway import Gateway

        gateway = Gateway(
            self.settings.gateway,
            clock=utc_now,
            stop=self.stop,
            exchanged=self.exchanged,
            desynced=self.desynced,
        )
        return self.enter_context(gateway)

    @cached_property
    def cluster(self) -> Cluster | None:
        """The cluster in the settings, not connected yet. Raises UsageError if Dask is not installed."""
        if not self.settings.scale.dask:
            return None
        from etl.sync.cluster import Cluster

        cluster = Cluster(self.settings.scale.dask, worker_application, policy_of(self.settings), self.stop)
        self.callback(cluster.close)
        return cluster

    @cached_property
    def batches(self) -> ThreadPoolExecutor:
        """The threads that work on batches."""
        return self.pool(_BATCHES_AT_ONCE, "batch")

    def ready(self, *, upgrade: bool) -> Engine:
        """The engine, once its schema is current. Raises SchemaMismatch with the command that helps, and
        DatabaseDamaged if nothing may be written."""
        database.require_sound(self.engine)
        if upgrade:
            database.upgrade(self.engine)
        database.require_current(self.engine, create_if_empty_sqlite=True)
        return self.engine

    @cached_property
    def signing_key(self) -> SigningKey | None:
        """What signs seals; None where [seal] key_file is not set. Raises SigningError where it cannot be used."""
        if not self.settings.seal.key_file:
            return None
        from etl.signing import load_signing_key

        return load_signing_key(Path(self.settings.seal.key_file))

    def sealing_store(
        self, engine: Engine | None = None, applied: Callable[[float], None] = lambda seconds: None
    ) -> Store:
        """What runs are written, ended and sealed with; a process makes its first one on ``engine``, unless it is given
        another. Raises SigningError where the seals cannot be signed as they must be."""
        from etl.store import Store

        sign = None if self.signing_key is None else self.signing_key.sign
        store = Store(engine or self.engine, self.stop, applied, sign)
        if engine is None:
            store.require_signing()
        return store

    def keep_heads(self) -> None:
        """Append to [retention] heads_file what a command's run wrote, as the service does."""
        if file := self.settings.retention.heads_file:
            from etl.service.maintenance import keep_heads_once

            keep_heads_once(Path(file), self.engine, utc_now())

    def webhooks(self, store: Store, is_active: Callable[[], bool], *, at_once: bool = False) -> list[WebhookSender]:
        """What sends each [[webhook]] its events, not started yet. ``at_once``: also those that want to be left alone
        for some time."""
        from etl.notify import WebhookSender

        return [
            WebhookSender(self.engine, store, each, is_active=is_active, clock=utc_now, at_once=at_once)
            for each in self.settings.webhook
        ]

    @contextmanager
    def telling_webhooks(self, store: Store) -> Iterator[None]:
        """For a command's run in the block: webhooks begin before it, and get its events after it, unless a service is
        active, which sends them. It takes a limited time: what is left comes with the next run."""
        if not self.settings.webhook:
            yield
            return
        from etl.cli import console
        from etl.notify import flush
        from etl.service.replica import LEASE

        senders = self.webhooks(store, lambda: not self.stop.is_set())
        if new := {each.name for each in senders} - store.known_webhooks().keys():
            store.begin_webhooks(new, utc_now())
        yield
        try:
            others = self.stop.is_set() or store.lease_holder(LEASE) is not None
        except DatabaseError as error:
            console.complain(f"No webhook is sent anything now: {error} It is sent later.", "yellow")
            return
        for each in () if others else flush(senders, _WEBHOOK_SECONDS):
            why = each.status().why or "it did not answer in time"
            console.complain(f"The webhook {each.name} has not got everything: {why}. The rest comes later.", "yellow")

    def rosters(self, store: Store) -> Rosters:
        """The rosters that schedules use."""
        from etl.sync import Rosters

        return Rosters(
            store,
            lambda org_id: self.gateway.roster(org_id),
            limits=self.limits,
            every=self.settings.gateway.roster_every,
            clock=utc_now,
        )

    def listed_schedules(self) -> tuple[Schedule, ...]:
        """The schedules with the users of all stored rosters as targets."""
        from etl.store import Store
        from etl.sync import organisations

        if not organisations(self.schedules):
            return self.schedules
        return self.rosters(Store(self.engine, self.stop)).expand(self.schedules)

    def details(self, schedules: Iterable[Schedule]) -> DetailLimits | None:
        """How many details a run of these schedules asks for; None if none of them asks for any."""
        settings = self.settings.gateway
        default = settings.details == "changed"
        if not any(default if each.details is None else each.details for each in schedules):
            return None
        from etl.sync import DetailLimits

        return DetailLimits(
            most=settings.max_details, within=settings.details_within, keep_body=settings.keep_detail_body
        )

    @property
    def limits(self) -> Limits:
        """The numbers of [guard]."""
        from etl.domain.guard import Limits

        return Limits(**msgspec.structs.asdict(self.settings.guard))

    def run_context(self, store: Store | None = None, arrived: Callable[[], None] = lambda: None) -> RunContext:
        """What a run works with."""
        from etl.store import Store
        from etl.sync import RunContext

        concurrency = self.settings.gateway.concurrency
        return RunContext(
            store=store or Store(self.engine, self.stop),
            gateway=self.gateway,
            fetchers=self.pool(concurrency, "fetch"),
            writers=self.pool(_WRITERS, "write"),
            in_flight=concurrency,
            limits=self.limits,
            down_after=_DOWN_AFTER * concurrency,
            stop=self.stop,
            arrived=arrived,
            keeps_answers=self.settings.archive.answers == "changed",
        )

    def run(
        self,
        origin: Origin,
        targets: Sequence[Target],
        schedules: Sequence[Schedule] = (),
        *,
        org_id: str | None = None,
        user_id: str | None = None,
        context: RunContext | None = None,
        **more: Any,
    ) -> RunReport:
        """Run once, as a person asked for: all ``schedules``, or the part of them with that organisation and user; or
        ``targets`` of no schedule. ``more`` is as ``sync.run`` has it."""
        from etl import sync
        from etl.store import NewRun

        new_run = NewRun(
            origin=origin,
            host=socket.gethostname(),
            pid=os.getpid(),
            targets=len(targets),
            lists={schedule.name: schedule.targets for schedule in schedules},
            gaps={schedule.name: schedule.coverage_gap or self.settings.coverage_gap for schedule in schedules},
            asked_as=directories(schedules),
            org_id=org_id,
            user_id=user_id,
        )
        report = sync.run(context or self.run_context(), new_run, targets, self.batches, clock=utc_now, **more)
        assert report is not None  # noqa: S101 - a command's run has no slot that another could have taken
        return report

    def pool(self, threads: int, name: str) -> ThreadPoolExecutor:
        """Threads that end with the application."""
        pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self.callback(pool.shutdown, wait=True, cancel_futures=True)
        return pool


def worker_application(policy: Policy) -> Application:
    """The application of a cluster worker: its own settings and credentials, and the policy of the run."""
    settings = with_policy(load(), policy)
    log.configure(settings.log.level, settings.log.format)
    app = Application(settings)
    app.ready(upgrade=False)
    return app
