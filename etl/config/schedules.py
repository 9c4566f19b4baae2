"""Schedule files: which targets are synced, and when."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final

import msgspec

from etl.config.addresses import ping_url
from etl.config.secret import Secret
from etl.config.slots import Cron, Every, Slots, time_zone
from etl.config.targets import RosterOf, TargetList, Targets
from etl.config.units import ZERO, duration, duration_or_zero, nearest, shown
from etl.config.values import read_toml
from etl.domain.model import Target
from etl.errors import Problem

_KEYS: Final = ("cron", "every", "timezone", "jitter", "coverage_gap", "ping_url", "details", "targets", "targets_file")
_SHORTEST: Final = dt.timedelta(milliseconds=100)
_UNKNOWN: Final = Every(dt.timedelta(days=36_500))


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """One file of ``schedules_dir``; ``name`` is its stem."""

    name: str
    path: Path
    slots: Slots
    timezone: str = "UTC"
    jitter: dt.timedelta = ZERO
    """Each run starts up to this much after its slot."""
    coverage_gap: dt.timedelta | None = None
    """None: as in the settings."""
    details: bool | None = None
    """Whether to ask Get Flow about the workflows that changed; None: as in the settings."""
    ping_url: Secret | None = None
    """Pinged at each run's start and end; None: no pings."""
    targets: Sequence[Target] = ()
    """Each target once; those of ``rosters`` only after ``with_users``."""
    rosters: tuple[RosterOf, ...] = ()
    """The organisations whose users are all targets."""
    unlisted: tuple[RosterOf, ...] = ()
    """Those of ``rosters`` whose users are unknown: any user there may be a target."""

    def with_users(self, users: Mapping[str, Collection[str]]) -> Schedule:
        """The schedule with each organisation's users as targets; ``self`` only has the configured ones."""
        if not self.rosters:
            return self
        listed = (
            Target(each.org_id, user, each.expression)
            for each in self.rosters
            for user in sorted(users.get(each.org_id, ()))
        )
        unlisted = tuple(each for each in self.rosters if each.org_id not in users)
        return msgspec.structs.replace(self, targets=TargetList(chain(self.targets, listed)), unlisted=unlisted)


class Configured(Container[Target]):
    """The targets of some schedules; targets that may belong to an unknown roster count as contained."""

    def __init__(self, schedules: Sequence[Schedule]) -> None:
        self.names = frozenset(schedule.name for schedule in schedules)
        self._targets = TargetList.union([schedule.targets for schedule in schedules])
        self._unlisted = {roster for schedule in schedules for roster in schedule.unlisted}

    def __contains__(self, target: object) -> bool:
        if target in self._targets:
            return True
        return isinstance(target, Target) and RosterOf(target.org_id, target.expression) in self._unlisted


def read_schedules(folder: Path) -> tuple[tuple[Schedule, ...], list[Problem]]:
    """The schedules of ``folder``, by name, and the problems of all its files. Hidden files are left out."""
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".toml" and path.name[0] != ".")
    except OSError as error:
        message = f"the folder of schedules cannot be read ({error.strerror}): `flowtrail init` creates one"
        return (), [Problem(str(folder), message)]
    if not paths:
        return (), [Problem(str(folder), "has no schedule (*.toml): `flowtrail init` writes a sample")]
    files = [_ScheduleFile(path) for path in paths]
    schedules = tuple(each.schedule() for each in files)
    return schedules, [problem for each in files for problem in each.problems]


def is_schedule_name(name: str) -> bool:
    """Whether this is a valid name for a schedule."""
    return re.fullmatch(r"[A-Za-z0-9._-]+", name) is not None


class _ScheduleFile:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._table, self.problems = read_toml(path)

    def schedule(self) -> Schedule:
        """The schedule; only useful if ``problems`` is empty."""
        if self.problems:
            return Schedule(name=self._path.stem, path=self._path, slots=_UNKNOWN)
        self._check_names()
        timezone = self._get("timezone", lambda value: time_zone(_text(value)).key, "UTC")
        slots = self._slots(timezone)
        jitter = self._get("jitter", duration_or_zero, ZERO)
        if jitter and jitter >= (gap := slots.shortest_gap()):
            why = "a run would start after the next one is due"
            self._add("jitter", f"must be shorter than the {gap} between two slots: {why}")
        coverage_gap = self._get("coverage_gap", duration, None)
        targets, rosters = self._targets()
        return Schedule(
            name=self._path.stem,
            path=self._path,
            slots=slots,
            timezone=timezone,
            jitter=jitter,
            coverage_gap=coverage_gap,
            details=self._get("details", _details, None),
            ping_url=self._get("ping_url", ping_url, None),
            targets=targets,
            rosters=rosters,
            unlisted=rosters,
        )

    def _check_names(self) -> None:
        if not is_schedule_name(self._path.stem):
            message = "a schedule is named after its file: use only letters, digits, dot, underscore and hyphen"
            self.problems.append(Problem(str(self._path), message))
        for key in self._table:
            if key in ("org", "users", "expression"):
                self._add(key, "belongs below a line [[targets]]")
            elif key not in _KEYS:
                self._add(key, f"there is no such key: did you mean {nearest(key, _KEYS)}?")

    def _slots(self, timezone: str) -> Cron | Every:
        if len(self._table.keys() & {"cron", "every"}) != 1:
            message = 'needs exactly one of cron = "*/15 * * * *" and every = "15m"'
            self.problems.append(Problem(str(self._path), message))
        cron: Cron | None = self._get("cron", lambda value: Cron(_text(value), timezone), None)
        every: Every = self._get("every", lambda value: Every(_interval(value)), _UNKNOWN)
        return cron or every

    def _targets(self) -> tuple[Sequence[Target], tuple[RosterOf, ...]]:
        targets = Targets(self._path)
        if "targets" in self._table:
            targets.add_table(self._table["targets"])
        if "targets_file" in self._table:
            targets.add_file(self._table["targets_file"], f"{self._path}: targets_file")
        collected = targets.collected()
        self.problems += targets.problems
        if not (collected or targets.rosters or targets.problems):
            message = "has no targets: add [[targets]] with org and users, or a targets_file with rows"
            self.problems.append(Problem(str(self._path), message))
        return collected, tuple(targets.rosters)

    def _get(self, key: str, read: Callable[[object], Any], default: Any) -> Any:
        if key not in self._table:
            return default
        try:
            return read(self._table[key])
        except ValueError as error:
            self._add(key, str(error))
            return default

    def _add(self, key: str, message: str) -> None:
        self.problems.append(Problem(f"{self._path}: {key}", message))


def _details(value: object) -> bool:
    if value not in ("off", "changed"):
        raise ValueError(f'must be "off" or "changed", not {shown(value)}')
    return value == "changed"


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be text in quotes, not {shown(value)}")
    return value


def _interval(value: object) -> dt.timedelta:
    length = duration(value)
    if length < _SHORTEST:
        raise ValueError(f'must be "100ms" or longer, not {shown(value)}')
    return length
