"""How Typer shows and reads options and arguments, where its own way does not suit."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


def adapted(parameters: Iterable[Any]) -> list[Any]:
    """Typer's parameters; the help of a flag does without ``<bool>``, and plain values are read as they are."""
    return [_adapted(parameter) for parameter in parameters]


def with_all_below(command: Any) -> Iterator[Any]:
    """A command, the commands of a group, and so on."""
    yield command
    for below in getattr(command, "commands", {}).values():
        yield from with_all_below(below)


def _adapted(parameter: Any) -> Any:
    if getattr(parameter, "is_flag", False):
        parameter.metavar = ""
    if getattr(parameter, "_runtime_param", parameter) is None and all(hasattr(parameter, name) for name in _NEEDED):
        parameter._runtime_param = _AsItIs()
    return parameter


_NEEDED = ("get_runtime_param", "multiple", "nargs", "type_descriptor")
"""Internals of Typer that this relies on. Where one is missing, Typer reads every value itself, and commands start more
slowly."""


class _AsItIs:
    """Reads the usual values itself, and leaves others to Typer: for its validators it loads pydantic, a quarter of the
    time in which a command starts."""

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        if value is None:
            return () if param.multiple or param.nargs == -1 else None
        kind, limits = param.type_descriptor.annotation, param.type_descriptor.parameter_info
        if kind is str and isinstance(value, str):
            return value
        if kind is int and _is_number(value, limits.min, limits.max):
            return int(value)
        if kind is Path and isinstance(value, str) and os.access(value, os.R_OK):
            return Path(value)
        param._runtime_param = None
        return param.get_runtime_param().coerce(value, param, ctx)


def _is_number(value: object, least: float | None, most: float | None) -> bool:
    text = str(value)
    if not (text.isascii() and text.isdigit() and len(text) < 18):
        return False
    return (least is None or int(text) >= least) and (most is None or int(text) <= most)
