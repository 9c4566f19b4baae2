"""What a person sees: tables and sentences on stdout, progress and trouble on stderr; JSON where it was asked for."""

from __future__ import annotations

import datetime as dt
import io
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, Final, NamedTuple, cast

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from etl.printable import printable, printable_lines
from etl.system import streams

_PIPED_WIDTH: Final = 200
_WHOLE: Final = ("observed at", "organisation", "user", "workflow", "org_id", "user_id", "flow_id", "last_observed_at")
"""Columns that are read as one: ids and times; what is long in the others goes on in the next line."""


def out() -> Console:
    """The console for results; in a pipe lines may be long."""
    return Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH, highlight=False, soft_wrap=False)


def err() -> Console:
    """The console for everything that is not a result."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def say(sentence: str, style: str = "") -> None:
    """A sentence on stdout; lines of it stay lines."""
    for line in sentence.split("\n"):
        out().print(Text(printable(line), style), soft_wrap=True)


def complain(sentence: str, style: str = "red") -> None:
    """A sentence on stderr; lines of it stay lines."""
    for line in sentence.splitlines():
        err().print(Text(printable(line), style))


def json(value: object) -> None:
    """One JSON document on stdout."""
    data(encoded(value))


def encoded(value: object) -> bytes:
    """A JSON document as people can read it."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def json_list(rows: Iterable[Mapping[str, Any]]) -> None:
    """A JSON list on stdout, an object a line, without holding them all. Raises OutputLost as `stream` does."""
    printed = JsonList()
    for row in rows:
        printed.add(row)
    printed.close()


class JsonList:
    """A JSON list on stdout, an object a line, printed as they are added; its writes raise OutputLost."""

    def __init__(self, opening: bytes = b"[") -> None:
        self._opening = self._before = opening

    def add(self, row: Mapping[str, Any]) -> None:
        stream([self._before + b"\n  " + msgspec.json.encode(row)])
        self._before = b","

    def close(self, closing: bytes = b"]\n") -> None:
        """End the list, which may be a part of something that ``closing`` ends."""
        stream([(self._opening if self._before == self._opening else b"\n") + closing])


def stream(pieces: Iterable[bytes]) -> None:
    """Bytes for another program on stdout, as long as somebody takes them. Raises OutputLost when nobody does."""
    for piece in pieces:
        data(piece)
        if streams.is_lost(sys.stdout):
            raise streams.OutputLost


def data(encoded: bytes) -> None:
    """Bytes for another program on stdout: UTF-8, whatever the terminal speaks. A terminal gets them harmless."""
    if sys.stdout.isatty():
        encoded = printable_lines(encoded.decode(errors="backslashreplace")).encode()
    sys.stdout.flush()
    sys.stdout.buffer.write(encoded)
    sys.stdout.buffer.flush()


class _Sink(io.RawIOBase):
    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return sys.stdout.isatty()

    def write(self, encoded: Any) -> int:
        stream([bytes(encoded)])
        return len(encoded)


def sink() -> BinaryIO:
    """Standard output as a binary file, for whoever writes to one; its writes raise OutputLost as `stream` does."""
    return cast("BinaryIO", _Sink())


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], empty: str = "none") -> None:
    """A table that fits the terminal, with a title above; foreign text in it stays text."""
    shown = Table(header_style="dim", box=None, pad_edge=False)
    for column in columns:
        shown.add_column(column, overflow="fold", no_wrap=column in _WHOLE)
    for row in rows:
        shown.add_row(*(Text(cell(value)) for value in row))
    if not shown.row_count:
        say(f"{title}: {empty}" if title else empty)
        return
    if title:
        say(title, "bold")
    out().print(shown)


def rows(title: str, columns: Sequence[str], found: Iterable[NamedTuple], empty: str = "none") -> None:
    """A table of rows, without the columns in which none of them has anything."""
    listed = list(found)
    used = [c for c in columns if any(getattr(row, c) not in (None, "") for row in listed)] or list(columns)
    table(title, used, ([getattr(row, column) for column in used] for row in listed), empty)


def cell(value: object) -> str:
    """A value as a table shows it: times in UTC to the second, nothing for null."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dt.datetime):
        return f"{value.astimezone(dt.UTC):%Y-%m-%d %H:%M:%S}"
    return printable(str(value))


@contextmanager
def counted(what: str, *, hidden: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal's stderr; gives the function that is told what is done, of all."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err(), transient=True, disable=hidden or not sys.stderr.isatty()) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def progress(what: str, total: int, *, hidden: bool) -> Iterator[Callable[[], None]]:
    """A bar on a terminal's stderr; gives the function that moves it on by one, from any thread."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err(), transient=True, disable=hidden or not sys.stderr.isatty()) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)
