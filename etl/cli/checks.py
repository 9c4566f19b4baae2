"""The command check: one result for each thing that a run needs; no problem hides another."""

from __future__ import annotations

import datetime as dt
import math
import os
import tomllib
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Final, NamedTuple

import click

from etl import __version__, config, database, log, signing
from etl.cli import console
from etl.cli.application import Application
from etl.cli.notify import receiver_problems
from etl.cli.options import FILE, Options, shared
from etl.cli.run import end_as, interruptible
from etl.config import GatewaySettings, Schedule, Settings, TargetList, directories
from etl.domain.answers import zone_of
from etl.domain.model import Target
from etl.errors import FlowtrailError, GatewayError, SchemaMismatch, UsageError
from etl.gateway import Recorder
from etl.printable import counted
from etl.sync import organisations
from etl.system import disk
from etl.system.clock import utc_now

_DETAIL_SECONDS: Final = 60.0
_TIMEZONE_SECONDS: Final = 10.0
_UNUSED_SECONDS: Final = 60.0
_NO_TIME: Final = dt.timedelta(0)
_EXAMPLES: Final = 3
_HANDED_OUT: Final = 1000
"""Targets that wait for a thread at any time, to bound memory."""


@click.command()
@click.option("--record", type=FILE, help="Write what the gateway answered, without texts and ids, to this new file.")
@shared("json", "config")
def check(options: Options, record: Path | None) -> None:
    """Test everything that a run needs, and list every problem."""
    recorder = Recorder() if record else None
    if record and record.exists():
        raise UsageError(f"{record} already exists: name a new file.")
    settings, schedules = config.load_all(options.config)
    log.configure(settings.log.level, settings.log.format)
    problems = 0
    with Application(settings) as app, interruptible(app):
        app.exchanged = recorder
        printed = console.JsonList() if options.json else None
        for finding in run_checks(app, schedules):
            problems += not finding.ok
            if printed:
                printed.add(finding._asdict())
            else:
                mark, style = ("ok ", "") if finding.ok else ("BAD", "red")
                console.say(f"{mark} {finding.what}: {finding.said}", style)
        if printed:
            printed.close()
    if record and recorder:
        with (
            disk.errors_named(record),
            open(record, "xb", opener=lambda name, flags: os.open(name, flags, disk.PRIVATE)) as file,
        ):
            file.write(recorder.encoded(__version__, utc_now()))
        console.complain(f"{record} written: what was answered, without texts, ids and secrets.", "green")
    end_as(app, int(problems > 0))


class CheckResult(NamedTuple):
    """One line of the check."""

    what: str
    ok: bool
    said: str


def run_checks(app: Application, schedules: Sequence[Schedule]) -> Iterator[CheckResult]:
    """Check the database, the token, the clock and every target, after settings and schedules were read."""
    yield CheckResult("settings", True, str(app.settings.path))
    yield from (CheckResult("settings", False, warning) for warning in app.settings.warnings)
    yield CheckResult("schedules", True, _counted(schedules))
    yield from (CheckResult(name, not wrong, wrong or "understood") for name, wrong in receiver_problems(app.settings))
    if app.settings.seal.key_file:
        yield _tried("signing", lambda: _signing(app))
    if url := app.settings.seal.timestamp_url:
        yield _tried("time stamps", lambda: _timestamp(url))
    yield _database(app)
    if sample := _values_of_the_sample(app.settings):
        yield CheckResult(
            "settings", False, f"[gateway] still has the sample's {' and '.join(sample)}: put yours there"
        )
        return
    if app.settings.scale.dask:
        yield _tried("cluster", lambda: app.cluster.connect() if app.cluster else "")
    yield (token := _tried("token", app.gateway.check_token))
    if not token.ok:
        return
    yield _timezone(app)
    users: dict[str, frozenset[str]] = {}
    for org in sorted(organisations(schedules)):
        result = _tried(f"roster {org}", partial(_roster, app, org, users))
        yield result._replace(ok=result.ok and bool(users[org]))
    schedules = [schedule.with_users(users) for schedule in schedules]
    for schedule in schedules:
        yield CheckResult(f"load of {schedule.name}", True, _load(schedule, app.settings.gateway))
    seen: list[tuple[Target, str]] = []
    witnesses = {org: _Witness(user) for org, user in directories(schedules).items()}
    yield from _targets(app, TargetList.union([schedule.targets for schedule in schedules]), seen, witnesses)
    for org, witness in witnesses.items():
        yield CheckResult(f"directory of {org}", *witness.compared())
    if seen and app.details(schedules) is not None:
        yield _tried("details", lambda: _detail(app, *seen[0]))
    if seen and app.exchanged:
        yield from _for_the_recording(app, seen[0][0], witnesses)


def _counted(schedules: Sequence[Schedule]) -> str:
    targets = TargetList.union([schedule.targets for schedule in schedules])
    rosters = sorted({str(roster) for schedule in schedules for roster in schedule.rosters})
    return f"{len(schedules)} with {counted(len(targets), 'target')}{''.join(f', and {each}' for each in rosters)}"


def _load(schedule: Schedule, gateway: GatewaySettings) -> str:
    """What a run over its targets sends to the gateway."""
    requests, trees = len(schedule.targets), len(schedule.directories)
    most = gateway.requests_per_second or math.inf
    took = {ms: max(math.ceil(requests / gateway.concurrency) * ms / 1000, requests / most) for ms in (20, 200)}
    of_them = f" ({trees} for {'a directory' if trees == 1 else 'directories'})" if trees else ""
    rate = min(gateway.concurrency / 0.020, most, requests)
    return (
        f"a run sends {counted(requests, 'request')}{of_them}, and one or two more for each list that has changed: at "
        f"most {gateway.concurrency} at once and {rate:,.0f} a second; {took[20]:.1f} s where an answer takes 20 ms, "
        f"{took[200]:.1f} s where it takes 200 ms"
    )


def _database(app: Application) -> CheckResult:
    name = database.describe(app.settings.database.url)
    try:
        database.require_current(app.engine)
        differences = database.check(app.engine)
    except SchemaMismatch as error:
        return CheckResult("database", database.is_empty_sqlite(app.engine), str(error))
    except FlowtrailError as error:
        return CheckResult("database", False, str(error))
    if differences:
        return CheckResult("database", False, f"{name} is not as the migrations made it: {'; '.join(differences)}")
    return CheckResult("database", True, f"{name}, schema {database.expected()}")


def _values_of_the_sample(settings: Settings) -> list[str]:
    """What in [gateway] is as `flowtrail init` wrote it."""
    sample = tomllib.loads(files("etl.cli").joinpath("flowtrail.toml").read_text("utf-8"))["gateway"]
    return [name for name in ("url", "access_key") if getattr(settings.gateway, name) == sample[name]]


def _tried(what: str, act: Callable[[], str]) -> CheckResult:
    """What ``act`` says; not ok where it fails."""
    try:
        said = act()
    except GatewayError as error:
        return CheckResult(what, False, f"{error} ({error.code})")
    except FlowtrailError as error:
        return CheckResult(what, False, str(error))
    return CheckResult(what, True, said)


def _signing(app: Application) -> str:
    key = app.signing_key
    return f"seals are signed with the key {key.public.key_id}" if key else ""


def _timestamp(url: str) -> str:
    stamp = signing.timestamps_by(url)(b"flowtrail check")
    return f"{url} answers; its clock says {stamp.at:%Y-%m-%d %H:%M:%S} UTC"


def _timezone(app: Application) -> CheckResult:
    """EnOS need not say its time zone; a setting that disagrees is a problem."""
    try:
        said = app.gateway.timezone(_TIMEZONE_SECONDS)
    except GatewayError as error:
        known = "as the setting says" if app.enos_zone else "not known, and EnOS's times are not compared"
        return CheckResult("timezone", True, f"{known}: EnOS does not say its own, {error} ({error.code})")
    if app.enos_zone is None:
        return CheckResult("timezone", True, f"{said}, as EnOS says; [gateway] enos_timezone is not set")
    here, theirs = utc_now().astimezone(app.enos_zone), utc_now().astimezone(zone_of(said)).utcoffset()
    standard = (here.utcoffset() or _NO_TIME) - (here.dst() or _NO_TIME)
    name = app.settings.gateway.enos_timezone
    if theirs not in (here.utcoffset(), standard):
        return CheckResult(
            "timezone", False, f"EnOS says {said}, and [gateway] enos_timezone says {name}: set it right"
        )
    return CheckResult("timezone", True, f"{name}, {said} as EnOS says")


def _roster(app: Application, org: str, users: dict[str, frozenset[str]]) -> str:
    users[org] = app.gateway.roster(org)
    return f"{len(users[org])} users"


def _detail(app: Application, target: Target, flow_id: str) -> str:
    app.gateway.detail(target.org_id, flow_id, target.user_id, _DETAIL_SECONDS)
    return f"Get Flow answers, asked for workflow {flow_id} of {target.org_id}"


def _for_the_recording(app: Application, target: Target, witnesses: Container[str]) -> Iterator[CheckResult]:
    """Calls that no run makes: whether EnOS answers them is good to know, and no problem."""
    org, user, _ = target

    def directory() -> str:
        return f"{len(app.gateway.fetch(Target(org, ''), asked_as=user).flows or ())} workflows"

    calls = {"Search Flow": lambda: f"{app.gateway.search(org, user, _UNUSED_SECONDS)} workflows on its first page"}
    if org not in witnesses:
        calls["List Workflow Directories"] = directory
    for name, ask in calls.items():
        result = _tried(f"{name} (for the recording)", ask)
        yield result._replace(ok=True)


class _Witness:
    """The directory of an organisation, and what its users list; for ``asked_as``, see Target."""

    def __init__(self, asked_as: str) -> None:
        self.asked_as = asked_as
        self.files: frozenset[str] | None = None
        """The workflows in the directory; None: no valid answer."""
        self.listed: dict[str, str] = {}
        """By workflow, one of those who list it."""
        self.silent: list[Target] = []
        """Whose lists did not come."""

    def compared(self) -> tuple[bool, str]:
        """Whether it is a complete witness, and what to say of it."""
        if self.files is None:
            return False, "not compared with the users' lists: it gave no valid answer"
        lacking, unlisted = sorted(self.listed.keys() - self.files), sorted(self.files - self.listed.keys())
        unheard = f"; {counted(len(self.silent), 'list')} did not come" if self.silent else ""
        said = f"in no user's list: {len(unlisted)} of its {counted(len(self.files), 'workflow')}"
        said += f", such as {', '.join(unlisted[:_EXAMPLES])}" if unlisted else ""
        if not lacking:
            return True, f"it has all {len(self.listed)} that users list; {said}{unheard}"
        examples = ", ".join(f"{flow} (of {self.listed[flow]})" for flow in lacking[:_EXAMPLES])
        return (
            False,
            f"no complete witness: it lacks {len(lacking)} that users list, such as {examples}; {said}{unheard}",
        )


def _targets(
    app: Application, targets: Sequence[Target], seen: list[tuple[Target, str]], witnesses: Mapping[str, _Witness]
) -> Iterator[CheckResult]:
    """Every target, asked once; ``seen`` receives a workflow that a user is shown, ``witnesses`` what they compare."""

    def ask(target: Target) -> str:
        witness = witnesses.get(target.org_id)
        try:
            snapshot = app.gateway.fetch(target, asked_as=witness.asked_as if witness else None)
        except GatewayError:
            if witness and not target.is_directory:
                witness.silent.append(target)
            raise
        listed = [flow.flow_id for flow in snapshot.flows or ()]
        if target.is_directory and witness:
            witness.files = frozenset(listed)
            return f"{len(listed)} workflows and {counted(snapshot.other_files, 'other file')}, as {witness.asked_as}"
        if listed and not seen:
            seen.append((target, listed[0]))
        if witness:
            witness.listed |= dict.fromkeys(listed, target.user_id)
        return f"{len(listed)} workflows"

    with ThreadPoolExecutor(app.settings.gateway.concurrency) as pool:
        for start in range(0, len(targets), _HANDED_OUT):
            handed_out = targets[start : start + _HANDED_OUT]
            yield from pool.map(lambda target: _tried(f"target {target}", lambda: ask(target)), handed_out)
