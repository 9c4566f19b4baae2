"""Output for people: tables and sentences on stdout, progress and errors on stderr; or JSON."""

from __future__ import annotations

import datetime as dt
import io
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice, zip_longest
from typing import Any, BinaryIO, Final, TextIO, cast

import msgspec
from rich.cells import cell_len, chop_cells, set_cell_size

from etl import config
from etl.domain.model import DIRECTORY
from etl.printable import printable, printable_lines
from etl.system import streams

_ALL: Final = "--limit 0 shows all, --json gives every column"
_GAP: Final = "  "
_INDENT: Final = "  "
_STYLES: Final = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "bold cyan": "1;36"}


def say(sentence: str, style: str = "") -> None:
    """Print a sentence on stdout, keeping its line breaks."""
    for line in sentence.split("\n"):
        _print(printable(line), style, sys.stdout)
    sys.stdout.flush()


def complain(sentence: str, style: str = "red") -> None:
    """Print a sentence on stderr, keeping its line breaks."""
    for line in sentence.splitlines():
        _print(printable(line), style, sys.stderr)


def _print(line: str, style: str, stream: TextIO) -> None:
    styled = style and line and stream.isatty() and config.may_colour()
    stream.write(f"\x1b[{_STYLES[style]}m{line}\x1b[0m\n" if styled else f"{line}\n")


def json(value: object) -> None:
    """Print one JSON document on stdout."""
    data(encoded(value))


def encoded(value: object) -> bytes:
    """A JSON document as people can read it."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def json_list(rows: Iterable[Mapping[str, Any]], opening: bytes = b"[", closing: bytes = b"]\n") -> bool:
    """Print a JSON list on stdout, one object per line, in constant memory; return whether it has any. Raises
    OutputLost as `stream` does."""
    printed = JsonList(opening)
    for row in rows:
        printed.add(row)
    printed.close(closing)
    return not printed.empty


class JsonList:
    """A JSON list on stdout, one object per line, printed as they are added; its writes raise OutputLost."""

    def __init__(self, opening: bytes = b"[") -> None:
        self._opening = self._before = opening

    @property
    def empty(self) -> bool:
        return self._before == self._opening

    def add(self, row: Mapping[str, Any]) -> None:
        stream([self._before + b"\n  " + msgspec.json.encode(row)])
        self._before = b","

    def close(self, closing: bytes = b"]\n") -> None:
        """End the list; ``closing`` may also end what the list is a part of."""
        stream([(self._opening if self.empty else b"\n") + closing])


def stream(pieces: Iterable[bytes]) -> None:
    """Write bytes for another program to stdout. Raises OutputLost when nobody reads them any more."""
    for piece in pieces:
        data(piece)
        if streams.is_lost(sys.stdout):
            raise streams.OutputLost


def data(encoded: bytes) -> None:
    """Write bytes for another program to stdout: UTF-8, whatever the terminal uses, with control characters escaped for
    a terminal."""
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
    """Standard output as a binary file; its writes raise OutputLost as `stream` does."""
    return cast("BinaryIO", _Sink())


def table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    empty: str | None = "none",
    *,
    zone: dt.tzinfo = dt.UTC,
    most: int | None = None,
    more: str = _ALL,
) -> bool:
    """Print a table, with a title above, or that it is ``empty``; return whether it has rows.

    On a terminal it is as wide as that at most; see ``laid_out``. In a pipe every row is one line, however long.
    Control characters are escaped, and times are shown in ``zone``. Columns without any value are left out. ``most`` is
    how many rows are shown; ``more`` says where others are.
    """
    shown = [
        [DIRECTORY if value == "" and name == "user_id" else cell(value, zone) for name, value in pairs]
        for pairs in (zip(columns, row, strict=True) for row in islice(rows, most and most + 1))
    ]
    if not shown:
        if empty is not None:
            say(f"{title}: {empty}" if title else empty)
        return False
    if title:
        say(title, "bold")
    used = [at for at, values in enumerate(zip(*shown, strict=True)) if any(values)]
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    headings, *lines = laid_out([[row[at] for at in used] for row in (columns, *shown[:most])], width)
    for line in headings:
        _print(line, "dim", sys.stdout)
    for line in chain.from_iterable(lines):
        _print(line, "", sys.stdout)
    sys.stdout.flush()
    if most is not None and len(shown) > most:
        complain(f"There are more than {'this one' if most == 1 else f'these {most}'}: {more}.", "dim")
    return True


def rows(title: str, columns: Sequence[str], found: Iterable[Any], empty: str | None = "none", **how: Any) -> bool:
    """The same, of these fields of rows or objects."""
    shown = (row if isinstance(row, Mapping) else row._asdict() for row in found)
    return table(title, columns, ([row[name] for name in columns] for row in shown), empty, **how)


def laid_out(rows: Sequence[Sequence[str]], width: int) -> list[list[str]]:
    """Each row as the lines that it takes in ``width`` cells; nothing is cut or left out.

    Columns that do not fit beside the others continue below, indented. A value that is wider than a line is broken,
    between words where it has any.
    """
    below = max(width - len(_INDENT), 1)
    widths = [min(max(map(cell_len, column)), below) for column in zip(*rows, strict=True)]
    groups: list[list[int]] = [[]]
    left = width
    for at, wide in enumerate(widths):
        if groups[-1] and wide > left:
            groups.append([])
            left = below
        groups[-1].append(at)
        left -= wide + len(_GAP)
    return [[line for group in groups for line in _lines(row, group, widths, groups[0] is group)] for row in rows]


def _lines(row: Sequence[str], group: Sequence[int], widths: Sequence[int], first: bool) -> Iterator[str]:
    for line in zip_longest(*(_broken(row[at], widths[at]) for at in group), fillvalue=""):
        cells = (set_cell_size(text, widths[at]) for text, at in zip(line, group, strict=True))
        yield ("" if first else _INDENT) + _GAP.join(cells).rstrip()


def _broken(text: str, width: int) -> list[str]:
    """Lines of at most ``width`` cells, broken between words; longer words are broken too."""
    lines = [""]
    for word in text.split(" "):
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if cell_len(joined) <= width:
            lines[-1] = joined
        else:
            lines += chop_cells(word, width)
    return lines[1:] if lines[0] == "" and lines[1:] else lines


def cell(value: object, zone: dt.tzinfo = dt.UTC) -> str:
    """A value as a table shows it: nothing for null, and a time to the second with its offset from UTC.

    Such a time can be given to ``--since``, ``--until`` and ``--as-of`` as it is.
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dt.datetime):
        return value.astimezone(zone).isoformat(" ", "seconds").replace("+00:00", "Z")
    return printable(str(value))


@contextmanager
def progress(what: str, total: int | None = None, *, hidden: bool) -> Iterator[Callable[..., None]]:
    """A progress bar on a terminal's stderr; yields a function that advances it by one, or to what is done of a total
    if it is given both. Any thread may call it."""
    if hidden or not sys.stderr.isatty():
        yield lambda *done_and_total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True, highlight=False), transient=True) as bar:
        task = bar.add_task(what, total=total)

        def advance(done: int | None = None, of: int | None = None) -> None:
            bar.update(task, advance=1 if done is None else None, completed=done, total=of)

        yield advance
