"""One pass over a settings file and an environment: the valid values, and the problems of the others."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, get_args

import msgspec

from etl.config import settings as shape
from etl.config.units import nearest, shown
from etl.errors import Problem
from etl.system.disk import MIB, read_regular

T = TypeVar("T", bound=msgspec.Struct)

_PREFIX: Final = "FLOWTRAIL_"
FILE_VARIABLE: Final = "FLOWTRAIL_CONFIG"
_SECTIONS: Final[Mapping[str, type[msgspec.Struct]]] = {"": shape.TopLevel, **shape.SECTIONS}
_LISTS: Final[Mapping[str, type[msgspec.Struct]]] = {"notify": shape.NotifySettings, "webhook": shape.WebhookSettings}
"""The sections that may be given more than once; the environment can only set one if there is at most one of it."""
_LARGEST: Final = 16 * MIB
"""The largest settings or schedule file; many targets belong in a targets_file."""


def read_toml(path: Path, if_missing: str = "") -> tuple[dict[str, Any], list[Problem]]:
    """The table in a file; or {} and the problem why it cannot be read (``if_missing``: the remedy)."""
    place = str(path)
    try:
        return tomllib.loads(read_regular(path, _LARGEST).decode("utf-8-sig")), []
    except UnicodeDecodeError:
        problem = "is not UTF-8 text: save it as UTF-8"
    except RecursionError:
        problem = "is nested too deeply"
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        place += f":{line[1]}" if line else ""
        problem = f"is not valid TOML (text goes in double quotes): {error}"
    except FileNotFoundError:
        problem = f"there is no such file: {if_missing}"
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    return {}, [Problem(place, problem)]


class Values:
    """Settings by dotted name ("gateway.url"); those before the first section by their bare name."""

    def __init__(self, path: Path, table: Mapping[str, Any], environ: Mapping[str, str]) -> None:
        self.path = path
        self.folder = path.absolute().parent
        self.problems: list[Problem] = []
        self.given: dict[str, list[str]] = {name: [] for name in _LISTS}
        """The names of the [[notify]] and [[webhook]] sections: "notify[1]"."""
        self.types: dict[str, Any] = {}
        """The annotation of each setting."""
        self._values: dict[str, Any] = {}
        self._places: dict[str, str] = {}
        self._faulty: set[str] = set()
        for section in _SECTIONS:
            self._open(section)
        self._take_file(table)
        self._take_environment(environ)

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __setitem__(self, name: str, value: object) -> None:
        self._values[name] = value

    def section(self, section: str, kind: type[T]) -> T:
        return kind(**{key: self._values[_name(section, key)] for key in kind.__struct_fields__})

    def is_faulty(self, name: str) -> bool:
        return name in self._faulty

    def source(self, name: str) -> Literal["environment", "file"] | None:
        """Where the setting was given; None if it was not."""
        if place := self._places.get(name):
            return "environment" if place.startswith(_PREFIX) else "file"
        return None

    def fault(self, name: str, message: str) -> None:
        """Record a problem with a setting, at the place where it was given or should be: the first one there."""
        self._faulty.add(name)
        place = self._places.get(name, self._in_file(name))
        if not any(problem.place == place for problem in self.problems):
            self._add(place, message)

    def attempt(self, name: str, step: Callable[[], Any]) -> Any:
        """The result of ``step``; None, and a fault of ``name``, if it raises ValueError."""
        try:
            return step()
        except ValueError as error:
            self.fault(name, str(error))
            return None

    def _open(self, section: str) -> None:
        """Begin to take settings for a section."""
        for field in msgspec.structs.fields(_kind(section)):
            self.types[_name(section, field.name)] = field.type
            self._values[_name(section, field.name)] = field.default

    def _take_file(self, table: Mapping[str, Any]) -> None:
        for key, value in table.items():
            if key in _LISTS:
                self._take_list(key, value)
            elif key not in _SECTIONS or not key:
                self._take_setting("", key, value)
            elif isinstance(value, dict):
                for inner, each in value.items():
                    self._take_setting(key, inner, each)
            else:
                self._add(self._in_file(key), f"must be a section: write [{key}] on a line of its own")

    def _take_list(self, name: str, value: object) -> None:
        if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
            self._add(self._in_file(name), f"may be given more than once: write [[{name}]], with two brackets")
            return
        for each in value:
            section = self._another(name)
            for key, inner in each.items():
                self._take_setting(section, key, inner)

    def _another(self, name: str) -> str:
        given = self.given[name]
        given.append(f"{name}[{len(given) + 1}]")
        self._open(given[-1])
        return given[-1]

    def _take_setting(self, section: str, key: str, value: object) -> None:
        name = _name(section, key)
        if name == "gateway.secret_key":
            self._places[name] = self._in_file(name)
            remedy = f"set {variable(name)} in the environment, or secret_key_file to a file"
            self.fault(name, f"a secret must not be in this file: {remedy}")
        elif name in self.types:
            self._take(name, value, self._in_file(name), is_text=False)
        else:
            self._add(self._in_file(name), f"there is no such setting: {self._hint(section, key)}")

    def _take_environment(self, environ: Mapping[str, str]) -> None:
        known = {variable(name): name for name in self.types if "[" not in name}
        of_lists = {
            variable(f"{name}.{key}"): (name, key) for name, kind in _LISTS.items() for key in kind.__struct_fields__
        }
        for each, text in sorted(environ.items()):
            if each in of_lists:
                name, key = of_lists[each]
                if len(given := self.given[name]) > 1:
                    remedy = f"use {'urls_file' if name == 'notify' else 'url_file'} there"
                    self._add(each, f"does not say which of {len(given)} [[{name}]] it means: {remedy}")
                else:
                    self._take(_name(given[0] if given else self._another(name), key), text, each, is_text=True)
            elif each in known:
                if known[each] != "gateway.secret_key" or text.strip():
                    self._take(known[each], text, each, is_text=True)
            elif each.startswith(_PREFIX) and each != FILE_VARIABLE:
                self._add(each, f"there is no such setting: did you mean {nearest(each, known | of_lists)}?")

    def _take(self, name: str, value: object, place: str, *, is_text: bool) -> None:
        self._places[name] = place
        kind = self.types[name]
        meta = next(each for each in get_args(kind) if isinstance(each, msgspec.Meta))
        try:
            if meta.extra:
                self._values[name] = meta.extra["read"](value)
            else:
                self._values[name] = msgspec.convert(value, kind, strict=not is_text)
        except msgspec.ValidationError:
            self.fault(name, f"must be {meta.description}, not {shown(value)}")
        except ValueError as error:
            self.fault(name, str(error))

    def _hint(self, section: str, key: str) -> str:
        owners = [owner for owner in _SECTIONS if _name(owner, key) in self.types]
        if owners and _base(section) not in _LISTS:
            return f"it belongs in [{owners[0]}]" if owners[0] else "it belongs before the first [section]"
        here = list(_kind(section).__struct_fields__)
        return f"did you mean {nearest(key, here if section else [*here, *filter(None, _SECTIONS), *_LISTS])}?"

    def _add(self, place: str, message: str) -> None:
        self.problems.append(Problem(place, message))

    def _in_file(self, name: str) -> str:
        return f"{self.path}: {name}"


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return _PREFIX + name.replace(".", "__").upper()


def _kind(section: str) -> type[msgspec.Struct]:
    return _SECTIONS.get(section) or _LISTS[_base(section)]


def _base(section: str) -> str:
    return section.partition("[")[0]


def _name(section: str, key: str) -> str:
    return f"{section}.{key}" if section else key
