"""Rows to files for other programs: CSV, JSON lines, Parquet, each with a manifest that proves its content.

Files appear complete or not at all.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, get_args

import msgspec

from etl.errors import UsageError
from etl.export import formats
from etl.export.formats import ParquetFile, csv_pages, disarm, harmless, jsonl_pages, pandas_options, require_pyarrow
from etl.printable import printable_lines
from etl.report.rows import Column
from etl.system import disk
from etl.system.disk import errors_named, part_file, part_folder, sync_folder

__all__ = ["FORMATS", "Format", "Origin", "disarm", "export", "whole_file"]

Format = Literal["csv", "jsonl", "parquet"]
FORMATS: Final[tuple[Format, ...]] = get_args(Format)
Pages = Iterable[Sequence[Sequence[Any]]]

_PAGE_ROWS: Final = 1000
_HEADS_IN_MEMORY_BYTES: Final = 16 * 2**20


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """Where the rows come from, for the manifest.

    ``chain_heads`` are JSON-able values that are read first, so they are not newer than the rows.
    """

    what: str
    filter: Mapping[str, Any]
    taken_at: dt.datetime
    flowtrail: str
    chain_heads: Iterable[Any] = ()
    last_seal: int | None = None
    """The last seal whose run the rows come from, to continue after it next time."""


class File(msgspec.Struct, frozen=True):
    """A file of an export, its name relative to the manifest."""

    path: str
    rows: int
    bytes: int
    sha256: str


def export(
    rows: Iterable[Sequence[Any]],
    columns: Sequence[Column],
    fmt: Format,
    to: Path | BinaryIO,
    *,
    origin: Origin | None = None,
    by_month_of: str | None = None,
    keep_texts: bool = False,
) -> int:
    """Write ``rows`` (values in the order of ``columns``) to the file or the open stream ``to``; return their number.

    Memory does not grow with the rows. A file appears whole or not at all, 0600 where it is new; with ``origin`` it
    gets a ``FILE.manifest.json`` beside it (a stream gets none). ``by_month_of`` names a time column by which the
    rows are sorted: ``to`` is then a new folder with a ``month=YYYY-MM/part-N.parquet`` for each UTC month.
    ``keep_texts``: a CSV has texts as they are, also those that a spreadsheet could take for a formula.
    Raises UsageError where the place, the format or the extra for it cannot be used.
    """
    if fmt == "parquet":
        require_pyarrow()
    if by_month_of is not None:
        return _export_by_month(rows, columns, fmt, to, by_month_of, origin)
    if not isinstance(to, Path):
        return _write(rows, columns, fmt, to, keep_texts)
    with _spooled(origin.chain_heads if origin else ()) as heads:
        with whole_file(to) as file:
            count = _write(rows, columns, fmt, file, keep_texts)
        if origin is not None and to.is_file():
            written = File(to.name, count, to.stat().st_size, _sha256_of(to))
            _write_manifest(to, origin, columns, fmt, [written], heads, keep_texts)
    return count


def _write(
    rows: Iterable[Sequence[Any]], columns: Sequence[Column], fmt: Format, file: BinaryIO, keep_texts: bool = False
) -> int:
    count, left = 0, iter(rows)

    def pages() -> Iterator[Sequence[Sequence[Any]]]:
        nonlocal count
        while page := list(islice(left, formats.ROW_GROUP if fmt == "parquet" else _PAGE_ROWS)):
            count += len(page)
            yield page

    if fmt == "parquet":
        if file.isatty():
            raise UsageError("Parquet cannot be shown on a terminal: add -o FILE, or use a pipe.")
        with ParquetFile(file, columns) as parquet:
            for group in pages():
                parquet.write(group)
    else:
        for encoded in _encoded(pages(), columns, fmt, keep_texts, for_terminal=file.isatty()):
            file.write(encoded)
    return count


def _encoded(
    pages: Pages, columns: Sequence[Column], fmt: Format, keep_texts: bool, *, for_terminal: bool
) -> Iterator[bytes]:
    """The file's bytes; for a terminal, with control characters escaped."""
    if fmt == "csv":
        return csv_pages(columns, map(harmless, pages) if for_terminal else pages, keep_texts=keep_texts)
    encoded = jsonl_pages(columns, pages)
    return (printable_lines(lines.decode()).encode() for lines in encoded) if for_terminal else encoded


def _export_by_month(
    rows: Iterable[Sequence[Any]],
    columns: Sequence[Column],
    fmt: Format,
    to: Path | BinaryIO,
    by: str,
    origin: Origin | None,
) -> int:
    if fmt != "parquet" or not isinstance(to, Path):
        raise UsageError("An export by month is a folder of Parquet files: add --format parquet -o FOLDER.")
    position = [column.name for column in columns].index(by)
    with _spooled(origin.chain_heads if origin else ()) as heads:
        with _whole_folder(to) as folder:
            files = list(_write_months(rows, columns, position, folder))
        if origin is not None:
            named = [msgspec.structs.replace(file, path=f"{to.name}/{file.path}") for file in files]
            _write_manifest(to, origin, columns, fmt, named, heads)
    return sum(file.rows for file in files)


def _write_months(
    rows: Iterable[Sequence[Any]], columns: Sequence[Column], position: int, folder: Path
) -> Iterator[File]:
    """One file per run of rows of the same month; a month that comes again gets a second part."""
    parts: dict[str, int] = {}
    for month, of_month in groupby(rows, lambda row: row[position].astimezone(dt.UTC).strftime("%Y-%m")):
        number = parts[month] = parts.get(month, -1) + 1
        path = folder / f"month={month}" / f"part-{number}.parquet"
        path.parent.mkdir(exist_ok=True)
        with whole_file(path) as file:
            count = _write(of_month, columns, "parquet", file)
        yield File(str(path.relative_to(folder)), count, path.stat().st_size, _sha256_of(path))


@contextlib.contextmanager
def _spooled(heads: Iterable[Any]) -> Iterator[Iterator[bytes]]:
    """The chain heads from before the rows are read, encoded one per line in a temporary file."""
    with tempfile.SpooledTemporaryFile(max_size=_HEADS_IN_MEMORY_BYTES) as file:
        with disk.temporary_files():
            for head in heads:
                file.write(msgspec.json.encode(head) + b"\n")
            file.seek(0)
        yield iter(file)


def _write_manifest(
    of: Path,
    origin: Origin,
    columns: Sequence[Column],
    fmt: Format,
    files: Sequence[File],
    heads: Iterable[bytes],
    keep_texts: bool = False,
) -> None:
    facts = {
        "what": origin.what,
        "format": fmt,
        "rows": sum(file.rows for file in files),
        "files": files,
        "columns": [column._asdict() for column in columns],
        "filter": origin.filter,
        "taken_at": origin.taken_at,
        "flowtrail": origin.flowtrail,
    }
    if fmt == "csv":
        facts["texts"] = "as they are" if keep_texts else "with ' in front of what a spreadsheet takes for a formula"
        facts["pandas"] = pandas_options(columns)
    if origin.last_seal is not None:
        facts["last_seal"] = origin.last_seal
    opened = msgspec.json.format(msgspec.json.encode(facts), indent=2).removesuffix(b"\n}")
    with whole_file(of.with_name(f"{of.name}.manifest.json")) as file:
        file.write(opened + b',\n  "chain_heads": [')
        for number, head in enumerate(heads):
            file.write((b",\n    " if number else b"\n    ") + head.rstrip())
        file.write(b"\n  ]\n}\n")


# ---------------------------------------------------------------------------------------------------- complete files

_errors_named: Final = functools.partial(errors_named, but=BrokenPipeError)
"""A reader that went away is handled by the command."""


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that gets its name, synced to the disk, when the block ends; nothing is left if the block raises.

    A new file is for its owner only (0600), like the database; a replaced one keeps its mode. Anything but a regular
    file (a pipe, a device) is written directly. Raises UsageError if the place cannot be used.
    """
    path = path.resolve()
    mode = _mode_of(path)
    if mode is not None and not stat.S_ISREG(mode):
        with _errors_named(path), path.open("wb") as device:
            yield device
        return
    with _errors_named(path), part_file(path) as part:
        with part.open("r+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if mode is not None:
            part.chmod(stat.S_IMODE(mode))
        part.replace(path)
        sync_folder(path.parent)


@contextlib.contextmanager
def _whole_folder(path: Path) -> Iterator[Path]:
    """A new folder that gets its name when the block ends; raises UsageError if it exists already."""
    path = path.resolve()
    if path.exists():
        raise UsageError(f"{path} already exists: name a new folder for an export by month.")
    with _errors_named(path), part_folder(path) as part:
        yield part
        part.rename(path)
        sync_folder(path.parent)


def _sha256_of(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _mode_of(path: Path) -> int | None:
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}.") from error
    if stat.S_ISDIR(mode):
        raise UsageError(f"{path} is a folder: name a file.")
    return mode
