"""Rows as CSV and as JSON lines: bytes out, a page of rows at a time."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Final

import msgspec

from etl.printable import printable
from etl.report import Column

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
