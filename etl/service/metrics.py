"""The metrics for Prometheus, and the only importer of its client.

Events of this process are counted as they happen. The state of the database is read at each scrape, and is the same on
every replica. No label holds a target, a user or a workflow: the number of series is bounded by the schedules (up to a
thousand), webhooks, verdicts, kinds and known error codes.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, get_args

import msgspec
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    Summary,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from etl import __version__
from etl.domain.kinds import CHANGE_KINDS
from etl.domain.model import VERDICTS, RunStatus
from etl.gateway import Exchange
from etl.gateway.calls import Call
from etl.notify import WebhookStatus
from etl.report.health import HealthSnapshot
from etl.sync import RunReport

ROLES: Final = ("starting", "active", "standing_by", "database_unreachable", "database_damaged")
RUN_STATUSES: Final = tuple(status for status in get_args(RunStatus) if status != "running")
CALLS: Final = get_args(Call)
OTHER: Final = "other"
_TOKEN: Final = (1001, 1002, 1003, 1004, 1005, 1202, 1203, 1204)
_ENOS: Final = (*_TOKEN, 31400, 31403, 31404, 62101, 62103, 62109, 99400, 99403, 99404, 99500)
_HTTP: Final = (400, 401, 403, 404, 407, 413, 429, 500, 502, 503, 504)
_OWN: Final = ("body_too_large", "clock_skew", "connection", "deadline", "desync", "dns", "gateway_down", "internal",
               "malformed", "not_stored", "protocol", "proxy", "secret", "timeout", "tls", "tls_certificate",
               "truncated")  # fmt: skip
CODES: Final = frozenset([*map(str, _ENOS), *(f"http_{status}" for status in _HTTP), *_OWN])
"""The error codes with their own series; all others are ``other``."""

MOST_SCHEDULES: Final = 1_000
"""Schedules with their own series, the first by name. The client takes 30 µs per sample, and a schedule has eight."""
OTHERS: Final = "(others)"
"""The label of all further schedules together; not a possible name of a schedule."""

_Samples = Mapping[tuple[str, ...], float]
_REQUEST_SECONDS: Final = (0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_APPLY_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class ServiceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The state at the moment of a scrape."""

    role: str
    alive: bool
    ready: bool
    database_up: bool
    runs_under_way: int
    clock_skew_seconds: float | None
    """How far the gateway's clock is ahead of ours; None: unknown."""
    conditions: Mapping[str, bool]
    """Whether each condition that is not about targets holds; unknown ones are left out."""
    webhooks: Sequence[WebhookStatus] = ()
    snapshot: HealthSnapshot | None
    """None while the database cannot be read: its metrics are then left out."""


class Metrics:
    """The metrics of one process. All methods may be called from any thread."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = registry = CollectorRegistry()
        self._others: frozenset[str] = frozenset()
        ProcessCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"flowtrail_{name}", text, labels, registry=registry)

        self._runs = counter("runs", "Runs that ended.", "schedule", "status")
        self._run_seconds = Summary(
            "flowtrail_run_duration_seconds", "How long runs took.", ["schedule"], registry=registry
        )
        self._targets = counter("run_targets", "Targets that got a verdict.", "verdict")
        self._asked_again = counter(
            "run_second_questions",
            "Targets asked again at the end of a run: their answer removed something or was an empty first list.",
        )
        self._failures = counter("run_failures", "Targets that failed in a run.", "error_code")
        self._changes = counter("changes", "Changes recorded in the trail.", "kind")
        self._requests = Histogram(
            "flowtrail_gateway_request_duration_seconds",
            "From sending a request to having read its answer.",
            ["call"],
            registry=registry,
            buckets=_REQUEST_SECONDS,
        )
        self._errors = counter("gateway_errors", "Requests without a valid answer.", "call", "error_code")
        self._retries = counter("gateway_retries", "Targets asked for once more.")
        self.desynced = counter("gateway_desyncs", "Connections that carried bytes of no request.").inc
        self._renewals = counter("gateway_token_renewals", "Access tokens obtained.")
        self.applied = Histogram(
            "flowtrail_database_apply_duration_seconds",
            "Transactions that write the outcomes of targets.",
            registry=registry,
            buckets=_APPLY_SECONDS,
        ).observe
        """Record the duration of such a transaction, with its retries, whether it succeeded or not."""
        self._seconds_of = {call: self._requests.labels(call) for call in CALLS}
        self._create_labelled_series()

    def _create_labelled_series(self) -> None:
        """Create the series with fixed labels at 0, so that Prometheus sees their first increase."""
        for verdict in VERDICTS:
            self._targets.labels(verdict)
        for kind in CHANGE_KINDS:
            self._changes.labels(kind)
        for call in CALLS:
            self._errors.labels(call, OTHER)
        self._failures.labels(OTHER)

    def know(self, schedules: Iterable[str]) -> None:
        """Set the names of all schedules."""
        self._others = frozenset(sorted(schedules)[MOST_SCHEDULES:])

    def _label(self, schedule: str) -> str:
        return OTHERS if schedule in self._others else schedule

    def exchanged(self, exchange: Exchange) -> None:
        """Count a request that was answered or failed."""
        call = exchange.request.call
        self._seconds_of[call].observe(exchange.seconds)
        if exchange.attempt > 1:
            self._retries.inc()
        if exchange.error_code is not None:
            self._errors.labels(call, _bounded(exchange.error_code)).inc()
        elif call == "token":
            self._renewals.inc()

    def run_ended(self, report: RunReport, schedule: str) -> None:
        """Count a run that ended."""
        tally, label = report.tally, self._label(schedule)
        self._asked_again.inc(tally.asked_again)
        for each in RUN_STATUSES:
            self._runs.labels(label, each).inc(each == report.status)
        self._run_seconds.labels(label).observe(report.duration_seconds)
        for verdict, count in tally.verdicts.items():
            self._targets.labels(verdict).inc(count)
        for kind, count in tally.changes.items():
            self._changes.labels(kind).inc(count)
        for cause, count in tally.causes.items():
            if cause not in VERDICTS:
                self._failures.labels(_bounded(cause)).inc(count)

    def watch(self, status_now: Callable[[], ServiceStatus]) -> None:
        """Call ``status_now`` at every scrape, and expose its result. It must not raise. Call this once."""
        self._registry.register(_ScrapeCollector(status_now, self._label))

    def render(self, accept: str) -> tuple[bytes, str]:
        """The exposition in a format that the header ``accept`` allows, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


def _bounded(code: str) -> str:
    return code if code in CODES else OTHER


class _ScrapeCollector(Collector):
    """Gauges that are read when somebody scrapes."""

    def __init__(self, status_now: Callable[[], ServiceStatus], label: Callable[[str], str]) -> None:
        self._service_status = status_now
        self._label = label

    def collect(self) -> Iterator[Metric]:
        status_now = self._service_status()
        yield _gauge("build_info", "Always 1.", ("version", "python"), {(__version__, platform.python_version()): 1})
        yield _gauge("role", "1 for what this replica is now.", ("role",), {(r,): r == status_now.role for r in ROLES})
        yield _gauge(
            "health",
            "1 where /healthz, /readyz or /freshness would answer 200.",
            ("check",),
            {
                ("alive",): status_now.alive,
                ("ready",): status_now.ready,
                ("fresh",): status_now.snapshot is not None and status_now.snapshot.fresh,
            },
        )
        yield _gauge("database_up", "Whether the database answers.", (), {(): status_now.database_up})
        yield _gauge("runs_under_way", "Runs of this process now.", (), {(): status_now.runs_under_way})
        skew: _Samples = {} if status_now.clock_skew_seconds is None else {(): status_now.clock_skew_seconds}
        yield _gauge("gateway_clock_skew_seconds", "How far the gateway's clock is ahead of ours.", (), skew)
        conditions: _Samples = {(code,): float(is_so) for code, is_so in status_now.conditions.items()}
        yield _gauge("condition", "1 for a problem that concerns no single target.", ("code",), conditions)
        yield from _of_webhooks(status_now.webhooks)
        yield from _of_snapshot(status_now.snapshot)
        known = status_now.snapshot.rules if status_now.snapshot else ()
        rules: _Samples = {(each.rule, each.severity): each.open for each in known}
        yield _gauge("rule_findings", "What a rule has found that is still so.", ("rule", "severity"), rules)
        yield from _of_schedules(status_now.snapshot, self._label)


_PLAIN: Final = {
    "targets": ("targets", "Targets that are not retired."),
    "targets_never_observed": ("never_observed", "Targets that nobody has observed yet."),
    "targets_failing": ("failing", "Targets whose last attempt failed, and may succeed at the next."),
    "targets_refused": ("refused", "Targets that EnOS permanently refuses."),
    "targets_held": ("held", "Targets of which something is held."),
    "held_workflows": ("held_workflows", "Workflows whose removal or change waits for a person."),
    "listed_workflows": ("listed", "Workflows in the lists of all targets."),
}
_TIMES: Final = {
    "last_observation_timestamp_seconds": ("last_observation_at", "When a target was observed last."),
    "last_change_timestamp_seconds": ("last_change_at", "When the latest change was observed."),
}


def _of_webhooks(webhooks: Sequence[WebhookStatus]) -> Iterator[Metric]:
    events = CounterMetricFamily("flowtrail_webhook_events", "Events that a webhook accepted.", labels=("webhook",))
    for each in webhooks:
        events.add_metric((each.name,), each.delivered)
    yield events
    yield _gauge(
        "webhook_behind_seconds",
        "How old the oldest event is that a webhook has not accepted; 0: it has everything.",
        ("webhook",),
        {(each.name,): each.behind_seconds for each in webhooks},
    )


def _of_snapshot(snapshot: HealthSnapshot | None) -> Iterator[Metric]:
    for name, (field, text) in _PLAIN.items():
        yield _gauge(name, text, (), {} if snapshot is None else {(): getattr(snapshot, field)})
    for name, (field, text) in _TIMES.items():
        at = snapshot and getattr(snapshot, field)
        yield _gauge(name, text, (), {(): at.timestamp()} if at else {})


def _of_schedules(snapshot: HealthSnapshot | None, label: Callable[[str], str]) -> Iterator[Metric]:
    """For schedules with the same label: the sum of their overdue targets, and the oldest of their last successes."""
    overdue: dict[tuple[str, ...], float] = {}
    succeeded: dict[tuple[str, ...], float] = {}
    for name, count in snapshot.overdue_by_schedule.items() if snapshot else ():
        key = (label(name),)
        overdue[key] = overdue.get(key, 0) + count
    for name, at in snapshot.last_success_at.items() if snapshot else ():
        if at:
            key = (label(name),)
            succeeded[key] = min(at.timestamp(), succeeded.get(key, math.inf))
    yield _gauge(
        "targets_overdue",
        "Targets that the last three due slots of the schedule passed without an observation.",
        ("schedule",),
        overdue,
    )
    yield _gauge(
        "schedule_last_success_timestamp_seconds",
        "When the schedule's last run ended in which some target succeeded.",
        ("schedule",),
        succeeded,
    )


def _gauge(name: str, text: str, labels: tuple[str, ...], samples: _Samples) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"flowtrail_{name}", text, labels=labels)
    for values, sample in samples.items():
        family.add_metric(values, float(sample))
    return family
