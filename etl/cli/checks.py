"""What `flowtrail check` looks at, one finding each; nothing that is wrong hides the next thing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple

from etl import database
from etl.cli.notices import understood
from etl.cli.workbench import Workbench
from etl.config import Roster, Schedule
from etl.errors import FlowtrailError, GatewayError
from etl.model import Target

_HANDED_OUT: Final = 1000
"""Targets that wait for a thread at once, to bound memory."""


class Finding(NamedTuple):
    """One line of the check."""

    what: str
    ok: bool
    said: str


def run_checks(bench: Workbench, schedules: Sequence[Schedule]) -> Iterator[Finding]:
    """Settings and schedules were read; look at the database, the token, the clock and every target."""
    targets = Roster.union([schedule.targets for schedule in schedules])
    yield Finding("settings", True, str(bench.settings.path))
    yield from (Finding("settings", False, warning) for warning in bench.settings.warnings)
    yield Finding("schedules", True, f"{len(schedules)} with {len(targets)} targets")
    yield from (Finding(name, not wrong, wrong or "understood") for name, wrong in understood(bench.settings))
    yield _database(bench)
    yield from _cluster(bench)
    token = list(_token(bench))
    yield from token
    if all(finding.ok for finding in token):
        yield from _targets(bench, targets)


def _database(bench: Workbench) -> Finding:
    name = database.describe(bench.settings.database.url)
    try:
        if database.current(bench.engine) is None and bench.engine.dialect.name == "sqlite":
            return Finding("database", True, f"{name}, which the first sync or serve creates")
        database.require_current(bench.engine, create_if_empty_sqlite=False)
        differences = database.check(bench.engine)
    except FlowtrailError as error:
        return Finding("database", False, str(error))
    if differences:
        return Finding("database", False, f"{name} is not as the migrations made it: {'; '.join(differences)}")
    return Finding("database", True, f"{name}, schema {database.expected()}")


def _cluster(bench: Workbench) -> Iterator[Finding]:
    try:
        if bench.cluster is not None:
            yield Finding("cluster", True, bench.cluster.connect())
    except FlowtrailError as error:
        yield Finding("cluster", False, str(error))


def _token(bench: Workbench) -> Iterator[Finding]:
    try:
        checked = bench.gateway.check_token()
    except FlowtrailError as error:
        yield Finding("token", False, str(error))
        return
    yield Finding("token", True, str(checked))


def _targets(bench: Workbench, targets: Sequence[Target]) -> Iterator[Finding]:
    with ThreadPoolExecutor(bench.settings.gateway.concurrency) as pool:
        for start in range(0, len(targets), _HANDED_OUT):
            yield from pool.map(lambda target: _target(bench, target), targets[start : start + _HANDED_OUT])


def _target(bench: Workbench, target: Target) -> Finding:
    try:
        snapshot = bench.gateway.fetch(target)
    except GatewayError as error:
        return Finding(f"target {target}", False, f"{error} ({error.code})")
    except FlowtrailError as error:
        return Finding(f"target {target}", False, str(error))
    return Finding(f"target {target}", True, f"{len(snapshot.flows or ())} workflows")
