"""One pass over a settings file and an environment: the valid values, and the problems of the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from etl.config import settings as shape
from etl.config.tables import Read, nearest, readers
from etl.errors import Problem

T = TypeVar("T", bound=msgspec.Struct)

_PREFIX: Final = "FLOWTRAIL_"
FILE_VARIABLE: Final = "FLOWTRAIL_CONFIG"
_SECTIONS: Final[Mapping[str, type[msgspec.Struct]]] = {"": shape.TopLevel, **shape.SECTIONS}
_LIST: Final = "notify"
"""The section that may be given more than once; the environment can only set it if there is at most one."""


class Values:
    """Settings by dotted name ("gateway.url"); those before the first section by their bare name."""

    def __init__(self, path: Path, table: Mapping[str, Any], environ: Mapping[str, str]) -> None:
        self.folder = path.absolute().parent
        self.problems: list[Problem] = []
        self.path = path
        self._environ = environ
        self._read: dict[str, Read] = {}
        self._values: dict[str, Any] = {}
        self._kinds: dict[str, type[msgspec.Struct]] = {}
        for section, kind in _SECTIONS.items():
            self._open(section, kind)
        self.receivers: list[str] = []
        """The names of the [[notify]] sections."""
        self._places: dict[str, str] = {}
        self._faulty: set[str] = set()
        self._take_file(table)
        self._take_environment()

    def _open(self, section: str, kind: type[msgspec.Struct]) -> None:
        """Begin to take settings for a section."""
        self._kinds[section] = kind
        defaults = {each.name: each.default for each in msgspec.structs.fields(kind)}
        self._read |= {_name(section, key): read for key, read in readers(kind).items()}
        self._values |= {_name(section, key): default for key, default in defaults.items()}

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __setitem__(self, name: str, value: object) -> None:
        self._values[name] = value

    def section(self, section: str, kind: type[T]) -> T:
        return kind(**{key: self._values[_name(section, key)] for key in kind.__struct_fields__})

    def is_faulty(self, name: str) -> bool:
        return name in self._faulty

    def is_given(self, name: str) -> bool:
        return name in self._places

    def is_from_environment(self, name: str) -> bool:
        return self._places.get(name, "").startswith(_PREFIX)

    def fault(self, name: str, message: str) -> None:
        """Record a problem with a setting, at the place where it was given or should be."""
        self._faulty.add(name)
        self.problems.append(Problem(self._places.get(name, self._in_file(name)), message))

    def attempt(self, name: str, step: Callable[[], Any]) -> Any:
        """The result of ``step``; None, and a fault of ``name``, if it raises ValueError."""
        try:
            return step()
        except ValueError as error:
            self.fault(name, str(error))
            return None

    def _take_file(self, table: Mapping[str, Any]) -> None:
        for key, value in table.items():
            if key == _LIST:
                self._take_list(value)
            elif key not in _SECTIONS or not key:
                self._take_setting("", key, value)
            elif isinstance(value, dict):
                for inner, each in value.items():
                    self._take_setting(key, inner, each)
            else:
                self._add(self._in_file(key), f"must be a section: write [{key}] on a line of its own")

    def _take_list(self, value: object) -> None:
        if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
            self._add(self._in_file(_LIST), f"may be given more than once: write [[{_LIST}]], with two brackets")
            return
        for each in value:
            section = self._another_receiver()
            for key, inner in each.items():
                self._take_setting(section, key, inner)

    def _another_receiver(self) -> str:
        self.receivers.append(f"{_LIST}[{len(self.receivers) + 1}]")
        self._open(self.receivers[-1], shape.NotifySettings)
        return self.receivers[-1]

    def _take_setting(self, section: str, key: str, value: object) -> None:
        name = _name(section, key)
        if name == "gateway.secret_key":
            self._places[name] = self._in_file(name)
            remedy = f"set {variable(name)} in the environment, or secret_key_file to a file"
            self.fault(name, f"a secret must not be in this file: {remedy}")
        elif name in self._read:
            self._take(name, value, self._in_file(name), is_text=False)
        else:
            self._add(self._in_file(name), f"there is no such setting: {self._hint(section, key)}")

    def _take_environment(self) -> None:
        known = {variable(name): name for name in self._read if not name.startswith(f"{_LIST}[")}
        known |= {variable(f"{_LIST}.{key}"): key for key in shape.NotifySettings.__struct_fields__}
        for each in sorted(self._environ):
            if each.startswith(variable(f"{_LIST}.")) and each in known:
                self._take_for_receiver(each, known[each])
                continue
            if each in known:
                if known[each] != "gateway.secret_key" or self._environ[each].strip():
                    self._take(known[each], self._environ[each], each, is_text=True)
            elif each.startswith(_PREFIX) and each != FILE_VARIABLE:
                self._add(each, f"there is no such setting: did you mean {nearest(each, known)}?")

    def _take_for_receiver(self, place: str, key: str) -> None:
        if len(self.receivers) > 1:
            self._add(place, f"does not say which of {len(self.receivers)} [[{_LIST}]] it means: use urls_file there")
            return
        section = self.receivers[0] if self.receivers else self._another_receiver()
        self._take(_name(section, key), self._environ[place], place, is_text=True)

    def _take(self, name: str, value: object, place: str, *, is_text: bool) -> None:
        self._places[name] = place
        try:
            self._values[name] = self._read[name](value, is_text)
        except ValueError as error:
            self.fault(name, str(error))

    def _hint(self, section: str, key: str) -> str:
        owners = [owner for owner in _SECTIONS if _name(owner, key) in self._read]
        if owners and section not in self.receivers:
            return f"it belongs in [{owners[0]}]" if owners[0] else "it belongs before the first [section]"
        here = list(self._kinds[section].__struct_fields__)
        return f"did you mean {nearest(key, here if section else [*here, *filter(None, _SECTIONS), _LIST])}?"

    def _add(self, place: str, message: str) -> None:
        self.problems.append(Problem(place, message))

    def _in_file(self, name: str) -> str:
        return f"{self.path}: {name}"


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return _PREFIX + name.replace(".", "__").upper()


def _name(section: str, key: str) -> str:
    return f"{section}.{key}" if section else key
