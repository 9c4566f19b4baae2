"""Rows as CSV and JSON lines (bytes out, a page of rows at a time) and as Parquet, typed.

This is the only importer of pyarrow, which the extra ``flowtrail[parquet]`` brings.
"""

from __future__ import annotations

import datetime as dt
import importlib
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Any, BinaryIO, Final

import msgspec

from etl.errors import UsageError
from etl.printable import printable
from etl.report.rows import Column

_FORMULA: Final = re.compile(r"""[\s'"\ufeff\u200b]*[=+\-@＝＋－＠]|'*[\t\r\n]""")
"""What a spreadsheet may take for a formula. It still matches with a ``'`` in front: so disarming can be undone."""

_MUST_BE_QUOTED: Final = re.compile(r'[",;\t\r\n]|^\s|\s$|^$')


def disarm(text: str) -> str:
    """``text`` with a ``'`` in front if a spreadsheet could take it for a formula.

    To undo it, drop a leading ``'`` wherever this function would put it back.
    """
    return f"'{text}" if _FORMULA.match(text) else text


def harmless(page: Sequence[Sequence[Any]]) -> Sequence[Sequence[Any]]:
    """The rows with their texts safe for a terminal: on one line, control characters escaped."""
    return [[printable(value) if isinstance(value, str) else value for value in row] for row in page]


def csv_pages(
    columns: Sequence[Column], pages: Iterable[Sequence[Sequence[Any]]], *, keep_texts: bool = False
) -> Iterator[bytes]:
    """RFC 4180, in UTF-8, with a header. A null is an empty field, an empty text is ``""``.

    Texts are disarmed, unless ``keep_texts``; times are RFC 3339 in UTC with microseconds; booleans are ``true`` and
    ``false``.
    """
    field = partial(_field, keep_texts=keep_texts)
    yield (",".join(column.name for column in columns) + "\r\n").encode()
    for page in pages:
        yield "".join(",".join(map(field, row)) + "\r\n" for row in page).encode()


def pandas_options(columns: Sequence[Column]) -> dict[str, Any]:
    """What ``pandas.read_csv`` must be told so that it reads each column as what it is."""
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
        text = value if keep_texts else disarm(value)
        return '"' + text.replace('"', '""') + '"' if _MUST_BE_QUOTED.search(text) else text
    if isinstance(value, dt.datetime):
        return value.astimezone(dt.UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"
    return str(value).lower()


def jsonl_pages(columns: Sequence[Column], pages: Iterable[Sequence[Sequence[Any]]]) -> Iterator[bytes]:
    """One JSON object a line, in UTF-8, its keys the columns; times are RFC 3339 in UTC."""
    names = [column.name for column in columns]
    encode = msgspec.json.Encoder().encode_lines
    for page in pages:
        yield encode([dict(zip(names, row, strict=True)) for row in page])


ROW_GROUP: Final = 32_768
"""Rows per row group: the unit that is held in memory and that a reader can skip."""


class ParquetFile:
    """A Parquet file that is written to ``file``, a row group at a time; complete after the ``with`` block.

    Texts are dictionary-encoded, times are ``timestamp[us, UTC]``. Raises UsageError if pyarrow is missing.
    """

    def __init__(self, file: BinaryIO, columns: Sequence[Column]) -> None:
        self._arrow = _import("pyarrow")
        self._schema = self._arrow.schema([(name, self._type(kind)) for name, kind in columns])
        options = {"compression": "zstd", "write_statistics": True}
        self._sink = _Sink(file)
        self._writer = _import("pyarrow.parquet").ParquetWriter(self._sink, self._schema, **options)

    def __enter__(self) -> ParquetFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sink.cut = kind is not None
        self._writer.close()

    def write(self, rows: Sequence[Sequence[Any]]) -> None:
        """Write a row group, of at most ``ROW_GROUP`` rows."""
        values = zip(*rows, strict=True)
        arrays = [self._arrow.array(column, field.type) for column, field in zip(values, self._schema, strict=True)]
        self._writer.write_batch(self._arrow.record_batch(arrays, schema=self._schema))

    def _type(self, kind: str) -> Any:
        arrow = self._arrow
        return {
            "string": arrow.dictionary(arrow.int32(), arrow.string()),
            "integer": arrow.int64(),
            "boolean": arrow.bool_(),
            "time": arrow.timestamp("us", "UTC"),
        }[kind]


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


def require_pyarrow() -> None:
    """Raise UsageError, which says what to install, if pyarrow is missing."""
    _import("pyarrow")


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError("Parquet needs pyarrow: pip install 'flowtrail[parquet]'") from error
