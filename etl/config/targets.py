"""The targets of one schedule file: from ``[[targets]]`` and from CSV files, each once. There may be a million."""

from __future__ import annotations

import csv
import io
import itertools
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, overload

from etl.config.units import nearest, shown
from etl.domain.model import Target
from etl.errors import Problem
from etl.system.disk import MIB, open_regular

ALL_USERS: Final = "all"
"""The value of ``users`` for all users on the organisation's roster."""
_COLUMNS: Final = ("org", "user", "expression")
_KEYS: Final = ("org", "users", "directory", "expression", "targets_file")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_LONGEST_ID: Final = 255
_MOST_BYTES: Final = 3 * _LONGEST_ID
"""In UTF-8: PostgreSQL indexes no more than some 2,700 bytes, and a target's three parts are one entry."""
_PLAIN: Final = re.compile(r"[A-Za-z0-9_.@-]{1,255}").fullmatch
"""The form of nearly every user id; others are checked more closely."""
_LARGEST: Final = 512 * MIB
"""The largest targets_file: some ten million rows."""
_MOST_PROBLEMS: Final = 20
_BETWEEN: Final = "\x1f"
"""No id and no expression has it: control characters are refused."""
_FIRST_SLOTS: Final = 1 << 10
_GROWTH: Final = 4


class RosterOf(NamedTuple):
    """An organisation whose users are all targets, each with this search expression."""

    org_id: str
    expression: str = ""

    def __str__(self) -> str:
        searched = f" [{self.expression}]" if self.expression else ""
        return f"all users of {self.org_id}{searched}"


class TargetList(Sequence[Target]):
    """Targets, each once, in the order in which they were added; about 60 bytes each, and ``in`` takes microseconds.

    The texts lie one after the other in one array of bytes, and a hash table of their numbers finds them. A Target is
    made when it is asked for.
    """

    def __init__(self, targets: Iterable[Target] = ()) -> None:
        self._text = bytearray()
        self._ends = array("Q", [0])
        self._slots = array("I", bytes(4 * _FIRST_SLOTS))
        """The numbers of targets, counted from 1, at or after the place that the hash gives; 0 is free."""
        self._last_slot = _FIRST_SLOTS - 1
        self._room = _FIRST_SLOTS // 2
        for target in targets:
            self.add(*target)

    @classmethod
    def union(cls, rosters: Sequence[Sequence[Target]]) -> Sequence[Target]:
        """All targets of ``rosters``, each once; of a single one, itself."""
        return rosters[0] if len(rosters) == 1 else cls(itertools.chain.from_iterable(rosters))

    def add(self, org: str, user: str, expression: str) -> bool:
        """Add a target at the end; False if it is there already."""
        key = f"{org}{_BETWEEN}{user}{_BETWEEN}{expression}".encode()
        slot = hash(key) & self._last_slot
        if self._slots[slot]:
            slot = self._slot(key)
            if self._slots[slot]:
                return False
        self._text += key
        self._ends.append(len(self._text))
        self._slots[slot] = number = len(self._ends) - 1
        if number > self._room:
            self._grow()
        return True

    def index(self, target: Target, start: int = 0, stop: int | None = None) -> int:
        """The index of a target. Raises ValueError if it is not there."""
        number = self._slots[self._slot(_BETWEEN.join(target).encode())]
        if not number:
            raise ValueError(f"{target} is no target here")
        return number - 1

    def __contains__(self, target: object) -> bool:
        return isinstance(target, Target) and self._slots[self._slot(_BETWEEN.join(target).encode())] > 0

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, at: int) -> Target: ...
    @overload
    def __getitem__(self, at: slice) -> list[Target]: ...
    def __getitem__(self, at: int | slice) -> Target | list[Target]:
        if isinstance(at, slice):
            return [self._target(number) for number in range(len(self))[at]]
        return self._target(range(len(self))[at])

    def __iter__(self) -> Iterator[Target]:
        return map(self._target, range(len(self)))

    def _target(self, number: int) -> Target:
        return Target(*self._key(number).decode().split(_BETWEEN))

    def _key(self, number: int) -> bytes:
        return bytes(self._text[self._ends[number] : self._ends[number + 1]])

    def _slot(self, key: bytes) -> int:
        """The slot where the number of ``key`` is, or belongs."""
        slot = hash(key) & self._last_slot
        while (number := self._slots[slot]) and self._key(number - 1) != key:
            slot = slot + 1 & self._last_slot
        return slot

    def _grow(self) -> None:
        slots = _GROWTH * len(self._slots)
        self._slots, self._last_slot, self._room = array("I", bytes(4 * slots)), slots - 1, slots // 2
        for number in range(len(self)):
            self._slots[self._slot(self._key(number))] = number + 1


class Targets:
    """Collects targets; errors go to ``problems``, each with its place.

    Made for a million rows: besides the list, only the place of each target is kept, in eight bytes.
    """

    def __init__(self, schedule_file: Path) -> None:
        self.problems: list[Problem] = []
        self.rosters: dict[RosterOf, str] = {}
        """Each with its place."""
        self.directories: dict[str, str] = {}
        """By organisation whose directory is a target: the user as whom it is asked for."""
        self._file = schedule_file
        self.listed = TargetList()
        """All targets, in the order in which they were written."""
        self._known_orgs: set[str] = set()
        self._sources: list[str] = []
        self._places = array("Q")
        self._unsaid = 0

    def add_tables(self, table: Mapping[str, Any]) -> None:
        """Add what a schedule file names: its ``[[targets]]``, and the rows of its ``targets_file``."""
        if "targets" in table:
            self._add_entries(table["targets"])
        if "targets_file" in table:
            self._add_file(table["targets_file"], f"{self._file}: targets_file")
        if self._unsaid:
            self.problems.append(Problem(str(self._file), f"has {self._unsaid} more problems with its targets"))

    def _add_entries(self, value: object) -> None:
        if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
            self._complain(f"{self._file}: targets", "must be written as [[targets]], with org and users below it")
            return
        for number, each in enumerate(value, start=1):
            self._add_entry(f"{self._file}: [[targets]] #{number}", each)

    def _add_file(self, value: object, place: str) -> None:
        """A CSV file next to the schedule file, read row by row."""
        if not isinstance(value, str) or not value or _CONTROL.search(value):
            self._complain(place, f'must be the name of a CSV file, such as "plants.csv", not {shown(value)}')
            return
        path = self._file.parent / value
        try:
            with io.TextIOWrapper(open_regular(path, _LARGEST), "utf-8-sig", newline="") as lines:
                self._add_rows(path, csv.reader(lines, strict=True))
        except UnicodeDecodeError:
            self._complain(str(path), "is not UTF-8 text: save it as UTF-8")
        except OSError as error:
            self._complain(place, f"{path} cannot be read: {error.strerror}")

    def _add_entry(self, place: str, entry: Mapping[str, Any]) -> None:
        for key in sorted(entry.keys() - _KEYS):
            self._complain(place, f"there is no such key {shown(key)}: did you mean {nearest(key, _KEYS)}?")
        if "targets_file" in entry:
            self._add_file(entry["targets_file"], place)
            if entry.keys() & {"org", "users", "directory"}:
                self._complain(place, "has both a targets_file and org, users or directory: use one entry for each")
            return
        org = self._text(entry, "org", place)
        if "directory" in entry:
            self._add_directory(org, self._text(entry, "directory", place), place)
            if not entry.keys() & {"users", "expression"}:
                return
        expression = self._text(entry, "expression", place) if "expression" in entry else ""
        users = self._users(entry, place)
        if org is None or expression is None:
            return
        if users == ALL_USERS:
            self._add_roster(RosterOf(org, expression), place)
            return
        source = self._source(f"{place}, users #")
        for number, user in enumerate(users, start=1):
            if isinstance(user, str):
                self._add(org, user, expression, source, number)

    def _add_directory(self, org: str | None, user: str | None, place: str) -> None:
        if org is None or user is None:
            return
        if fault := _fault("org", org) or _fault("directory", user):
            self._complain(place, fault)
        elif self.listed.add(*Target(org, "")):
            self._places.append(self._source(f"{place}, directory #") << 40 | 1)
            self.directories[org] = user
        else:
            self._complain(place, f"the directory of {org} is a target already: remove one of the two")

    def _add_roster(self, roster: RosterOf, place: str) -> None:
        if fault := _fault("org", roster.org_id) or _fault("expression", roster.expression):
            self._complain(place, fault)
        elif (first := self.rosters.setdefault(roster, place)) != place:
            self._complain(place, f"{roster} are targets already, by {first}: remove one of the two")

    def _users(self, entry: Mapping[str, Any], place: str) -> list[Any] | str:
        users = entry.get("users")
        if users == ALL_USERS:
            return ALL_USERS
        if not isinstance(users, list) or not users:
            wanted = 'a list such as ["u15426865866571"], or "all" for the whole organisation'
            self._complain(place, f"needs users, {wanted}")
            return []
        if wrong := [each for each in users if not isinstance(each, str)]:
            self._complain(place, f"users must be ids in quotes, not {shown(wrong[0])}")
        return users

    def _text(self, entry: Mapping[str, Any], key: str, place: str) -> str | None:
        value = entry.get(key)
        if isinstance(value, str):
            return value
        self._complain(place, f"{key} must be text in quotes, not {shown(value)}" if key in entry else f"needs {key}")
        return None

    def _add_rows(self, path: Path, rows: Any) -> None:
        source = self._source(f"{path}:")
        try:
            names = [name.strip() for name in next(rows, [])]
            if not {"org", "user"} <= set(names) <= set(_COLUMNS) or len(set(names)) < len(names):
                wanted = 'must be the header "org,user" or "org,user,expression"'
                self._complain(f"{path}:1", f"{wanted}, not {shown(','.join(names))}")
                return
            org, user, *rest = [names.index(column) for column in _COLUMNS if column in names]
            for row in rows:
                if len(row) == len(names):
                    expression = row[rest[0]].strip() if rest else ""
                    self._add(row[org].strip(), row[user].strip(), expression, source, rows.line_num)
                elif any(row):
                    found = f"has {len(row)} fields where the header has {len(names)}"
                    self._complain(f"{path}:{rows.line_num}", found)
        except csv.Error as error:
            self._complain(f"{path}:{rows.line_num}", f"is not valid CSV: {error}")

    def _add(self, org: str, user: str, expression: str, source: int, number: int) -> None:
        if expression or org not in self._known_orgs or not _PLAIN(user):
            if fault := _fault("org", org) or _fault("user", user) or _fault("expression", expression):
                self._complain(f"{self._sources[source]}{number}", fault)
                return
            self._known_orgs.add(org)
        if self.listed.add(org, user, expression):
            self._places.append(source << 40 | number)
            return
        target = Target(org, user, expression)
        first_source, first_number = divmod(self._places[self.listed.index(target)], 1 << 40)
        first = f"{self._sources[first_source]}{first_number}"
        place = f"{self._sources[source]}{number}"
        self._complain(place, f"{target} is already a target, at {first}: remove one of the two")

    def _source(self, label: str) -> int:
        self._sources.append(label)
        return len(self._sources) - 1

    def _complain(self, place: str, message: str) -> None:
        if len(self.problems) < _MOST_PROBLEMS:
            self.problems.append(Problem(place, message))
        else:
            self._unsaid += 1


def _fault(name: str, value: str) -> str:
    """Why this cannot be the org, user or expression of a target; "" if it can. An expression may be empty."""
    if name != "expression":
        if not value.strip():
            return f"{name} is empty"
        if value != value.strip():
            return f"{name} {shown(value)} has white space around it"
    if len(value) > _LONGEST_ID:
        return f"{name} {shown(value)}... is longer than {_LONGEST_ID} characters"
    if len(value.encode("utf-8", "surrogatepass")) > _MOST_BYTES:
        return f"{name} {shown(value)}... is longer than {_MOST_BYTES} bytes in UTF-8"
    return f"{name} {shown(value)} contains a control character" if _CONTROL.search(value) else ""
