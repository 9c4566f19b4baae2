"""What `flowtrail check` looks at, one finding each; nothing that is wrong hides the next thing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple

from etl import database
from etl.cli.application import Application
from etl.cli.notify import understood
from etl.config import Schedule, TargetList
from etl.domain.model import Target
from etl.errors import FlowtrailError, GatewayError

_HANDED_OUT: Final = 1000
"""Targets that wait for a thread at once, to bound memory."""


class Finding(NamedTuple):
    """One line of the check."""

    what: str
    ok: bool
    said: str


def run_checks(app: Application, schedules: Sequence[Schedule]) -> Iterator[Finding]:
    """Settings and schedules were read; look at the database, the token, the clock and every target."""
    targets = TargetList.union([schedule.targets for schedule in schedules])
    yield Finding("settings", True, str(app.settings.path))
    yield from (Finding("settings", False, warning) for warning in app.settings.warnings)
    yield Finding("schedules", True, f"{len(schedules)} with {len(targets)} targets")
    yield from (Finding(name, not wrong, wrong or "understood") for name, wrong in understood(app.settings))
    yield _database(app)
    yield from _cluster(app)
    token = list(_token(app))
    yield from token
    if all(finding.ok for finding in token):
        yield from _targets(app, targets)


def _database(app: Application) -> Finding:
    name = database.describe(app.settings.database.url)
    try:
        if database.current(app.engine) is None and app.engine.dialect.name == "sqlite":
            return Finding("database", True, f"{name}, which the first sync or serve creates")
        database.require_current(app.engine, create_if_empty_sqlite=False)
        differences = database.check(app.engine)
    except FlowtrailError as error:
        return Finding("database", False, str(error))
    if differences:
        return Finding("database", False, f"{name} is not as the migrations made it: {'; '.join(differences)}")
    return Finding("database", True, f"{name}, schema {database.expected()}")


def _cluster(app: Application) -> Iterator[Finding]:
    try:
        if app.cluster is not None:
            yield Finding("cluster", True, app.cluster.connect())
    except FlowtrailError as error:
        yield Finding("cluster", False, str(error))


def _token(app: Application) -> Iterator[Finding]:
    try:
        checked = app.gateway.check_token()
    except FlowtrailError as error:
        yield Finding("token", False, str(error))
        return
    yield Finding("token", True, str(checked))


def _targets(app: Application, targets: Sequence[Target]) -> Iterator[Finding]:
    with ThreadPoolExecutor(app.settings.gateway.concurrency) as pool:
        for start in range(0, len(targets), _HANDED_OUT):
            yield from pool.map(lambda target: _target(app, target), targets[start : start + _HANDED_OUT])


def _target(app: Application, target: Target) -> Finding:
    try:
        snapshot = app.gateway.fetch(target)
    except GatewayError as error:
        return Finding(f"target {target}", False, f"{error} ({error.code})")
    except FlowtrailError as error:
        return Finding(f"target {target}", False, str(error))
    return Finding(f"target {target}", True, f"{len(snapshot.flows or ())} workflows")
