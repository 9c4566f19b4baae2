"""Rows to files for other programs: CSV, JSON lines, Parquet, Excel, each with a manifest that proves its content.

Files appear complete or not at all. This is the only importer of pyarrow (the extra ``flowtrail[parquet]``).
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import hashlib
import importlib
import os
import re
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, get_args

import msgspec

from etl import excel
from etl.errors import UsageError
from etl.printable import printable, printable_lines
from etl.report.rows import Column
from etl.system import disk
from etl.system.disk import errors_named, part_file, part_folder, sync_folder

Format = Literal["csv", "jsonl", "parquet", "xlsx"]
FORMATS: Final[tuple[Format, ...]] = get_args(Format)
Page = Sequence[Sequence[Any]]

ROW_GROUP: Final = 32_768
"""Rows per row group of Parquet: the unit that is held in memory and that a reader can skip."""
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
    ``keep_texts``: CSV and Excel have texts as they are, also those that a spreadsheet could take for a formula.
    Raises UsageError where the place, the format or the extra for it cannot be used.
    """
    if fmt == "parquet":
        _import("pyarrow")
    if fmt == "xlsx":
        excel.require()
        if not isinstance(to, Path):
            raise UsageError("An Excel workbook needs a place of its own: add -o FILE.")
    if by_month_of is not None and (fmt != "parquet" or not isinstance(to, Path)):
        raise UsageError("An export by month is a folder of Parquet files: add --format parquet -o FOLDER.")
    if not isinstance(to, Path):
        return _write(rows, columns, fmt, to, keep_texts)
    with _spooled(origin.chain_heads if origin else ()) as heads:
        if by_month_of is not None:
            position = [column.name for column in columns].index(by_month_of)
            with _whole_folder(to) as folder:
                files = list(_write_months(rows, columns, position, folder, to.name))
        else:
            with whole_file(to) as file:
                count = _write(rows, columns, fmt, file, keep_texts)
            if not to.is_file():
                return count  # a pipe or a device
            files = [_described(to, to.name, count)]
        if origin is not None:
            _write_manifest(to, origin, columns, fmt, files, heads, keep_texts)
    return sum(file["rows"] for file in files)


def _write(
    rows: Iterable[Sequence[Any]], columns: Sequence[Column], fmt: Format, file: BinaryIO, keep_texts: bool = False
) -> int:
    """For a terminal, control characters are escaped."""
    count, left = 0, iter(rows)

    def pages(most: int) -> Iterator[Page]:
        nonlocal count
        while page := list(islice(left, most)):
            count += len(page)
            yield page

    for_terminal = file.isatty()
    if fmt == "parquet":
        if for_terminal:
            raise UsageError("Parquet cannot be shown on a terminal: add -o FILE, or use a pipe.")
        _write_parquet(file, columns, pages(ROW_GROUP))
    elif fmt == "xlsx":
        excel.write(file, columns, chain.from_iterable(pages(_PAGE_ROWS)), str if keep_texts else disarm)
    elif fmt == "csv":
        shown = map(_harmless, pages(_PAGE_ROWS)) if for_terminal else pages(_PAGE_ROWS)
        file.writelines(csv_pages(columns, shown, keep_texts=keep_texts))
    else:
        for lines in jsonl_pages(columns, pages(_PAGE_ROWS)):
            file.write(printable_lines(lines.decode()).encode() if for_terminal else lines)
    return count


def _write_months(
    rows: Iterable[Sequence[Any]], columns: Sequence[Column], position: int, folder: Path, name: str
) -> Iterator[dict[str, Any]]:
    """One file per run of rows of the same month; a month that comes again gets a second part."""
    parts: dict[str, int] = {}
    for month, of_month in groupby(rows, lambda row: row[position].astimezone(dt.UTC).strftime("%Y-%m")):
        number = parts[month] = parts.get(month, -1) + 1
        path = folder / f"month={month}" / f"part-{number}.parquet"
        path.parent.mkdir(exist_ok=True)
        with whole_file(path) as file:
            count = _write(of_month, columns, "parquet", file)
        yield _described(path, f"{name}/{path.relative_to(folder)}", count)


def _described(path: Path, name: str, rows: int) -> dict[str, Any]:
    """A file as the manifest has it; ``name`` is relative to that."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"path": name, "rows": rows, "bytes": path.stat().st_size, "sha256": digest}


@contextlib.contextmanager
def _spooled(heads: Iterable[Any]) -> Iterator[Iterator[bytes]]:
    """The chain heads from before the rows are read, encoded one per line in a temporary file."""
    with tempfile.SpooledTemporaryFile(max_size=_HEADS_IN_MEMORY_BYTES) as file:
        with disk.temporary_files():
            file.writelines(msgspec.json.encode(head) + b"\n" for head in heads)
            file.seek(0)
        yield iter(file)


def _write_manifest(
    of: Path,
    origin: Origin,
    columns: Sequence[Column],
    fmt: Format,
    files: Sequence[Mapping[str, Any]],
    heads: Iterable[bytes],
    keep_texts: bool,
) -> None:
    facts = {
        "what": origin.what,
        "format": fmt,
        "rows": sum(file["rows"] for file in files),
        "files": files,
        "columns": [column._asdict() for column in columns],
        "filter": origin.filter,
        "taken_at": origin.taken_at,
        "flowtrail": origin.flowtrail,
    }
    if fmt in ("csv", "xlsx"):
        facts["texts"] = "as they are" if keep_texts else "with ' in front of what a spreadsheet takes for a formula"
        facts["pandas"] = _pandas_options(columns)
    if origin.last_seal is not None:
        facts["last_seal"] = origin.last_seal
    opened = msgspec.json.format(msgspec.json.encode(facts), indent=2).removesuffix(b"\n}")
    with whole_file(of.with_name(f"{of.name}.manifest.json")) as file:
        file.write(opened + b',\n  "chain_heads": [')
        for number, head in enumerate(heads):
            file.write((b",\n    " if number else b"\n    ") + head.rstrip())
        file.write(b"\n  ]\n}\n")


# -------------------------------------------------------------------------------------------------------- csv, jsonl

_FORMULA: Final = re.compile(r"""[\s'"\ufeff\u200b]*[=+\-@＝＋－＠]|'*[\t\r\n]""")
"""What a spreadsheet may take for a formula. It still matches with a ``'`` in front: so disarming can be undone."""

_MUST_BE_QUOTED: Final = re.compile(r'[",;\t\r\n]|^\s|\s$|^$')


def disarm(text: str) -> str:
    """``text`` with a ``'`` in front if a spreadsheet could take it for a formula.

    To undo it, drop a leading ``'`` wherever this function would put it back.
    """
    return f"'{text}" if _FORMULA.match(text) else text


def _harmless(page: Page) -> Page:
    """The rows with their texts safe for a terminal: on one line, control characters escaped."""
    return [[printable(value) if isinstance(value, str) else value for value in row] for row in page]


def csv_pages(columns: Sequence[Column], pages: Iterable[Page], *, keep_texts: bool = False) -> Iterator[bytes]:
    """RFC 4180, in UTF-8, with a header. A null is an empty field, an empty text is ``""``.

    Texts are disarmed, unless ``keep_texts``; times are RFC 3339 in UTC with microseconds; booleans are ``true`` and
    ``false``.
    """
    field = functools.partial(_field, keep_texts=keep_texts)
    yield (",".join(column.name for column in columns) + "\r\n").encode()
    for page in pages:
        yield "".join(",".join(map(field, row)) + "\r\n" for row in page).encode()


def _pandas_options(columns: Sequence[Column]) -> dict[str, Any]:
    """What ``pandas.read_csv`` and ``read_excel`` must be told so that it reads each column as what it is."""
    types = {"string": "string", "integer": "Int64", "boolean": "boolean"}
    return {
        "dtype": {name: types[kind] for name, kind in columns if kind in types},
        "parse_dates": [name for name, kind in columns if kind == "time"],
        "keep_default_na": False,
        "na_values": {name: [""] for name, kind in columns if kind != "string"},
    }


def _field(value: Any, *, keep_texts: bool) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return _text_field(value, keep_texts)
    if isinstance(value, dt.datetime):
        return _time_field(value)
    return str(value).lower()


@functools.lru_cache(4096)
def _text_field(text: str, keep_texts: bool) -> str:
    text = text if keep_texts else disarm(text)
    return '"' + text.replace('"', '""') + '"' if _MUST_BE_QUOTED.search(text) else text


@functools.lru_cache(256)
def _time_field(at: dt.datetime) -> str:
    return at.astimezone(dt.UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def jsonl_pages(columns: Sequence[Column], pages: Iterable[Page]) -> Iterator[bytes]:
    """One JSON object a line, in UTF-8, its keys the columns; times are RFC 3339 in UTC."""
    names = [column.name for column in columns]
    encode = msgspec.json.Encoder().encode_lines
    for page in pages:
        yield encode([dict(zip(names, row, strict=True)) for row in page])


# ----------------------------------------------------------------------------------------------------------- parquet


def _write_parquet(file: BinaryIO, columns: Sequence[Column], groups: Iterable[Page]) -> None:
    """Write row groups, dictionary-encoded texts and ``timestamp[us, UTC]`` times; the footer only if all came."""
    arrow = _import("pyarrow")
    types = {
        "string": arrow.dictionary(arrow.int32(), arrow.string()),
        "integer": arrow.int64(),
        "boolean": arrow.bool_(),
        "time": arrow.timestamp("us", "UTC"),
    }
    schema = arrow.schema([(name, types[kind]) for name, kind in columns])
    sink = _Sink(file)
    writer = _import("pyarrow.parquet").ParquetWriter(sink, schema, compression="zstd", write_statistics=True)
    try:
        for group in groups:
            values = zip(*group, strict=True)
            arrays = [arrow.array(column, field.type) for column, field in zip(values, schema, strict=True)]
            writer.write_batch(arrow.record_batch(arrays, schema=schema))
    except BaseException:
        sink.cut = True
        raise
    finally:
        writer.close()


class _Sink:
    """Where pyarrow writes to. It writes a footer even after an error, so that a broken file would look complete."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.cut = False

    def write(self, data: bytes) -> int:
        return len(data) if self.cut else self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def _import(name: str) -> Any:
    """Raises UsageError, which says what to install, if pyarrow is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError("Parquet needs pyarrow: pip install 'flowtrail[parquet]'") from error


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
