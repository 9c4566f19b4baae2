"""What the database knows of what is wrong: the facts from which conditions are made."""

from __future__ import annotations

import datetime as dt
import errno
import json
import os
from collections.abc import Collection, Iterator
from itertools import groupby
from operator import itemgetter
from typing import Final, NamedTuple

from sqlalchemy import Connection, Engine, bindparam, select, text

from etl import database
from etl.config import Schedule, TargetList
from etl.domain.model import NOT_ASKED, TELLS_NOTHING, WITHOUT_AN_ANSWER, Target
from etl.printable import counted
from etl.report.conditions import (
    OF_THE_SERVICE,
    SUBJECTS_NAMED,
    Condition,
    Failing,
    by_cause,
    codes_like,
    failing,
)
from etl.report.listings import IS_HELD
from etl.report.reading import sql
from etl.schema import TARGET_KEY, UtcTime, condition, lease, roster, target, verification
from etl.system.disk import refusal

_MOST_CAUSES: Final = 20
"""How many causes are reported one by one, those with most targets; the others of a code are reported together."""
_PARTS_READ: Final = 1000
_LEAST_ROOM_BYTES: Final = 65_536
"""A transaction that changes nothing takes a few pages."""
_FAILING: Final = text(sql("failing"))
_FAILING_BY_CODE: Final = text("""
    SELECT last_error_code, count(*) FROM target
     WHERE retired_at IS NULL AND consecutive_failures > 0 AND last_error_code IS NOT NULL GROUP BY last_error_code
    """)
_FAILS_SINCE: Final = (
    text(sql("fails_since"))
    .bindparams(bindparam("codes", expanding=True), bindparam("silent", expanding=True))
    .columns(started_at=UtcTime)
)
_DIRECTORY_LACKS: Final = text(sql("directory_lacks")).columns(since=UtcTime)


class LastCheck(NamedTuple):
    """The service's last check of the trail."""

    ended_at: dt.datetime
    targets: int
    change_sets: int
    last_seal: int
    """Up to which seal the trail has been read."""
    findings: int
    finding: str


def stored(connection: Connection, now: dt.datetime) -> tuple[list[Condition], dict[tuple[str, str], dt.datetime]]:
    """What the active service has written down: what only it can know, nothing once it is gone, and when each condition
    began, by code and cause."""
    rows = connection.execute(select(condition).where(condition.c.ended_at.is_(None))).all()
    is_served = connection.execute(select(lease.c.name).where(lease.c.expires_at > now)).first()
    detected = [
        Condition(row.code, row.said, row.cause, row.since, row.subjects, json.loads(row.named), row.remedy)
        for row in rows
        if row.code in OF_THE_SERVICE and is_served
    ]
    return detected, {(row.code, row.cause): row.since for row in rows}


def of_targets(connection: Connection, asked: int, held_targets: int, held_workflows: int) -> Iterator[Condition]:
    """What is wrong with targets and rosters, by cause; ``asked``: the targets that are not refused for good."""
    yield from _failing(connection, asked)
    if held_targets:
        longest = select(*TARGET_KEY, target.c.held_since).where(IS_HELD).order_by(target.c.held_since, *TARGET_KEY)
        first = connection.execute(longest.limit(SUBJECTS_NAMED)).all()
        since, named = (first[0].held_since if first else None), [str(Target(*row[:3])) for row in first]
        summary = f"{counted(held_targets, 'target')}: {counted(held_workflows, 'workflow')} held"
        yield Condition("targets_held", summary, "", since, held_targets, named)
    failing_rosters = select(roster).where(roster.c.failing_since.is_not(None)).order_by(roster.c.org_id)
    for org in connection.execute(failing_rosters.limit(_MOST_CAUSES)):
        summary = f"The roster of {org.org_id}: {org.error_code or ''} ({(org.error or '').rstrip('.')})"
        yield Condition("roster_failing", summary, org.org_id, org.failing_since, 1, (org.org_id,))
    yield from incomplete_directories(connection)


def incomplete_directories(connection: Connection, orgs: Collection[str] | None = None) -> Iterator[Condition]:
    """The directories, or those of ``orgs``, that lack what users list: they are no complete witnesses."""
    lacking = [row for row in connection.execute(_DIRECTORY_LACKS) if orgs is None or row.org_id in orgs]
    for org, rows in groupby(lacking, key=itemgetter(0)):
        flows = list(rows)
        named = [f"{row.flow_id} (of {row.seen_by})" for row in flows[:SUBJECTS_NAMED]]
        number = flows[0].number
        users_list = "workflow that users list" if number == 1 else "workflows that users list"
        summary = f"The directory of {org} lacks {number} {users_list}, such as {', '.join(named)}"
        yield Condition("directory_incomplete", summary, org, min(row.since for row in flows), number, named)


def _failing(connection: Connection, asked: int) -> Iterator[Condition]:
    totals: dict[str, int] = {row[0]: row[1] for row in connection.execute(_FAILING_BY_CODE)}
    parts: dict[tuple[str, str], Failing] = {}
    failures: dict[str, tuple[int, int]] = {}
    for code, message, number, target_id, in_a_row, *key in connection.execute(
        _FAILING, {"named": SUBJECTS_NAMED, "most": _PARTS_READ}
    ):
        name = str(Target(*key))
        part = parts.get((code, message)) or Failing(code, message, number, [])
        parts[code, message] = part._replace(first=[*part.first, name])
        failures.setdefault(name, (target_id, in_a_row))
    causes = sorted(by_cause(parts.values()), key=lambda cause: -cause.targets)

    def since(codes: Collection[str], cause: Failing) -> dt.datetime | None:
        known = {"codes": sorted(codes), "silent": sorted(TELLS_NOTHING)}
        began = (
            connection.execute(_FAILS_SINCE, {**known, "target_id": target_id, "failures": in_a_row}).scalar()
            for target_id, in_a_row in (failures[name] for name in cause.first)
        )
        return min((at for at in began if at is not None), default=None)

    all_codes = dict(totals)
    for cause in causes[:_MOST_CAUSES]:
        alike = codes_like(cause.error_code, all_codes)
        if cause.error_code in WITHOUT_AN_ANSWER:
            cause = cause._replace(targets=sum(totals.pop(code, 0) for code in alike))
            gave_up = NOT_ASKED in alike & all_codes.keys()
            yield failing(cause, since(WITHOUT_AN_ANSWER, cause), asked=asked, gave_up=gave_up)
        else:
            totals[cause.error_code] -= cause.targets
            yield failing(cause, since(alike, cause))
    for code, left in totals.items():
        if left > 0:
            yield failing(Failing(code, "other messages", left, []), None)


def of_schedules(connection: Connection, schedules: Collection[Schedule], targets: int) -> Iterator[Condition]:
    """Targets that no schedule has; looked for where the database has more, or fewer, than the schedules."""
    configured = TargetList.union([schedule.targets for schedule in schedules])
    if targets == len(configured):
        return
    number, first = 0, list[str]()
    everyone = select(*TARGET_KEY).where(target.c.retired_at.is_(None))
    for row in connection.execute(everyone, execution_options={"yield_per": 10_000}):
        if Target(*row) not in configured:
            number += 1
            first = sorted([*first, str(Target(*row))])[:SUBJECTS_NAMED]
    if number:
        summary = f"{counted(number, 'target')} in no schedule, and not retired: they are not asked for"
        yield Condition("targets_unscheduled", summary, "", None, number, first)


def last_check(connection: Connection) -> LastCheck | None:
    """What the service's last check of the trail came to; None where there was none."""
    columns = (verification.c[name] for name in LastCheck._fields)
    row = connection.execute(select(*columns).order_by(verification.c.ended_at.desc()).limit(1)).first()
    return LastCheck(*row) if row else None


def of_the_trail(check: LastCheck | None) -> Iterator[Condition]:
    """A check found something."""
    if check is not None and check.findings:
        summary = f"The trail is broken: {counted(check.findings, 'finding')}, the first: {check.finding.rstrip('.')}"
        yield Condition("trail_broken", summary, subjects=check.findings)


def of_the_disk(engine: Engine) -> Iterator[Condition]:
    """Why an SQLite file cannot be written to, as far as a process that only reads can see it."""
    file = database.file_of(engine.url) if engine.dialect.name == "sqlite" else None
    if file is None:
        return
    try:
        found = os.statvfs(file.parent)
    except OSError:
        return
    refused = refusal(file.parent)
    if found.f_flag & os.ST_RDONLY or (refused is not None and refused.errno == errno.EROFS):
        yield Condition("database_read_only", f"{file} is on a disk that may only be read")
    elif found.f_bavail * found.f_frsize < _LEAST_ROOM_BYTES:
        yield Condition("database_full", f"{file} cannot grow: the disk is full")


def damage_of(engine: Engine) -> Condition | None:
    """Why the database cannot be written to, where it is damaged."""
    found = database.damage_of(engine)
    if found is None:
        return None
    summary, _, remedy = database.damage_sentence(engine, found).partition(". ")
    return Condition("database_damaged", summary.removesuffix("."), remedy=remedy)
