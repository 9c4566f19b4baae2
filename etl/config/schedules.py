"""Schedule files: which targets are synced, and when."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
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
    directories: Mapping[str, str] = {}
    """By organisation whose directory is one of ``targets``: the user as whom EnOS is asked for it."""
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
        if not isinstance(target, Target) or target.is_directory:
            return False
        return RosterOf(target.org_id, target.expression) in self._unlisted


def directories(schedules: Iterable[Schedule]) -> dict[str, str]:
    """By organisation whose directory is a target of some of these schedules: the user as whom it is asked for."""
    return {org: user for schedule in schedules for org, user in schedule.directories.items()}


def read_schedules(folder: Path) -> tuple[tuple[Schedule, ...], list[Problem]]:
    """The schedules of ``folder``, by name, and the problems of all its files. Hidden files are left out."""
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".toml" and path.name[0] != ".")
    except OSError as error:
        message = f"the folder of schedules cannot be read ({error.strerror}): `flowtrail init` creates one"
        return (), [Problem(str(folder), message)]
    if not paths:
        return (), [Problem(str(folder), "has no schedule (*.toml): `flowtrail init` writes a sample")]
    files = [_read_schedule(path) for path in paths]
    schedules = tuple(schedule for schedule, _ in files if schedule)
    problems = [problem for _, problems in files for problem in problems]
    return schedules, [*problems, *_different_askers(schedules)]


def _different_askers(schedules: Sequence[Schedule]) -> Iterator[Problem]:
    """It is one directory, however many schedules ask for it: the user as whom it is asked for is one, too."""
    first: dict[str, tuple[Schedule, str]] = {}
    for schedule in schedules:
        for org, user in schedule.directories.items():
            other, known = first.setdefault(org, (schedule, user))
            if known != user:
                yield Problem(
                    str(schedule.path),
                    f"asks for the directory of {org} as {user}, and {other.path} as {known}: use one user for both",
                )


def is_schedule_name(name: str) -> bool:
    """Whether this is a valid name for a schedule."""
    return re.fullmatch(r"[A-Za-z0-9._-]+", name) is not None


def _read_schedule(path: Path) -> tuple[Schedule | None, list[Problem]]:
    """The schedule in a file, and the problems of the file; the schedule is only useful if there are none."""
    table, problems = read_toml(path)
    if problems:
        return None, problems

    def complain(message: str, key: str = "") -> None:
        problems.append(Problem(f"{path}: {key}" if key else str(path), message))

    if not is_schedule_name(path.stem):
        complain("a schedule is named after its file: use only letters, digits, dot, underscore and hyphen")
    if len(table.keys() & {"cron", "every"}) != 1:
        complain('needs exactly one of cron = "*/15 * * * *" and every = "15m"')
    given: dict[str, Any] = {}
    for key in (each for each in table if each not in _TARGETS):
        try:
            given[key] = _reader(key)(table[key])
        except ValueError as error:
            complain(str(error), key)
    cron, slots = given.pop("cron", None), given.pop("every", _UNKNOWN)
    try:
        slots = slots if cron is None else Cron(cron, given.get("timezone", "UTC"))
    except ValueError as error:
        complain(str(error), "cron")
    jitter = given.get("jitter")  # without one, nobody need walk through the years of a cron expression
    if jitter and jitter >= (gap := slots.shortest_gap()):
        why = "a run would start after the next one is due"
        complain(f"must be shorter than the {gap} between two slots: {why}", "jitter")
    targets = Targets(path)
    targets.add_tables(table)
    problems += targets.problems
    if not (targets.listed or targets.rosters or targets.problems):
        complain("has no targets: add [[targets]] with org and users, or a targets_file with rows")
    rosters = tuple(targets.rosters)
    given |= {"targets": targets.listed, "rosters": rosters, "unlisted": rosters, "directories": targets.directories}
    return Schedule(name=path.stem, path=path, slots=slots, **given), problems


def _reader(key: str) -> Callable[[object], Any]:
    if key in ("org", "users", "directory", "expression"):
        raise ValueError("belongs below a line [[targets]]")
    if key not in _READERS:
        raise ValueError(f"there is no such key: did you mean {nearest(key, (*_READERS, *_TARGETS))}?")
    return _READERS[key]


def _details(value: object) -> bool:
    if value not in ("off", "changed"):
        raise ValueError(f'must be "off" or "changed", not {shown(value)}')
    return value == "changed"


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be text in quotes, not {shown(value)}")
    return value


def _every(value: object) -> Every:
    length = duration(value)
    if length < _SHORTEST:
        raise ValueError(f'must be "100ms" or longer, not {shown(value)}')
    return Every(length)


_READERS: Final[Mapping[str, Callable[[object], Any]]] = {
    "cron": _text,
    "every": _every,
    "timezone": lambda value: time_zone(_text(value)).key,
    "jitter": duration_or_zero,
    "coverage_gap": duration,
    "ping_url": ping_url,
    "details": _details,
}
_TARGETS: Final = ("targets", "targets_file")
