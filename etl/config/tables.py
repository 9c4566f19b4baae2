"""Reads TOML files and the fields of a section, so that one mistake never hides another."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, Final, get_args, get_type_hints

import msgspec

from etl.config.units import shown
from etl.errors import Problem
from etl.system.disk import MIB, read_regular

_LARGEST: Final = 16 * MIB
"""The largest settings or schedule file; many targets belong in a targets_file."""

Read = Callable[[object, bool], Any]
"""From (value, is_text) to the value that the code receives, or ValueError; is_text: from the environment."""


def read_toml(path: Path, if_missing: str = "") -> tuple[dict[str, Any], list[Problem]]:
    """The table in a file; or {} and the problem why it cannot be read (``if_missing``: the remedy)."""
    try:
        return tomllib.loads(read_regular(path, _LARGEST).decode("utf-8-sig")), []
    except UnicodeDecodeError:
        return {}, [Problem(str(path), "is not UTF-8 text: save it as UTF-8")]
    except RecursionError:
        return {}, [Problem(str(path), "is nested too deeply")]
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        place = f"{path}:{line[1]}" if line else str(path)
        return {}, [Problem(place, f"is not valid TOML (text goes in double quotes): {error}")]
    except FileNotFoundError:
        return {}, [Problem(str(path), f"there is no such file: {if_missing}")]
    except OSError as error:
        return {}, [Problem(str(path), f"cannot be read: {error.strerror}")]


def nearest(name: str, candidates: Iterable[str]) -> str:
    """The candidate that looks most like ``name``."""
    return max(candidates, key=lambda each: SequenceMatcher(None, name.lower(), each.lower()).ratio())


def readers(kind: type[msgspec.Struct]) -> dict[str, Read]:
    """How each setting of a section is read, from the annotations of its struct."""
    hints = get_type_hints(kind, include_extras=True)
    return {name: _reader(hints[name]) for name in kind.__struct_fields__}


def _reader(hint: Any) -> Read:
    meta = next(each for each in get_args(hint) if isinstance(each, msgspec.Meta))
    if meta.extra and "read" in meta.extra:
        own: Callable[[object], Any] = meta.extra["read"]
        return lambda value, _: own(value)

    def read(value: object, is_text: bool) -> Any:
        try:
            return msgspec.convert(value, hint, strict=not is_text)
        except msgspec.ValidationError:
            raise ValueError(f"must be {meta.description}, not {shown(value)}") from None

    return read
