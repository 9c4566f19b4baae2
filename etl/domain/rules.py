"""What a rule found, compared with what it had found before. Pure.

| the rule | its key was open | it finds it | the finding |
|---|---|---|---|
| as before, or changed | no | yes | begins: a new row |
| as before, or changed | yes | yes | goes on: the same row, with what was found now |
| as before | yes | no | ends: ``mended`` |
| changed | yes | no | ends: ``rule_changed``; nobody knows whether it was mended |
| removed | yes | | ends: ``rule_removed`` |
| failed | yes | | goes on as it was |
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

EndedBy = Literal["mended", "rule_changed", "rule_removed"]
LONGEST_KEY_BYTES: Final = 2000
"""An index of PostgreSQL takes 2,700."""
_SHOWN: Final = 200


class Found(NamedTuple):
    """What a query gave: its columns, and its rows of values that JSON has."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


class Changes(NamedTuple):
    """What becomes of the open findings, by key; both texts are JSON objects."""

    begun: Mapping[str, str]
    updated: Mapping[str, str]
    """Those that go on with another row."""
    ended: Sequence[str]


def keyed(found: Found, key: Sequence[str]) -> dict[str, str]:
    """The rows by their keys, both as JSON objects. Raises ValueError where a key does not identify a row."""
    wanted = key or found.columns
    twice = [name for name, count in Counter(found.columns).items() if count > 1]
    if twice:
        raise ValueError(f"two of its columns are called {twice[0]}: rename one with AS")
    lacking = [name for name in wanted if name not in found.columns]
    if lacking:
        raise ValueError(f"its key names {lacking[0]}, which is none of its columns ({', '.join(found.columns)})")
    rows: dict[str, str] = {}
    for values in found.rows:
        row = dict(zip(found.columns, values, strict=True))
        name = as_json({column: row[column] for column in wanted})
        if len(name.encode()) > LONGEST_KEY_BYTES:
            raise ValueError(f"a key is longer than {LONGEST_KEY_BYTES:,} bytes: name fewer columns in -- key")
        if name in rows:
            remedy = "name more columns there" if key else "write SELECT DISTINCT"
            raise ValueError(f"two of its rows have the same key, {name[:_SHOWN]}: {remedy}")
        rows[name] = as_json(row)
    return rows


def as_json(row: Mapping[str, Any]) -> str:
    """A JSON object as it is stored and compared: keys in their order, no spaces, numbers that JSON has."""
    return json.dumps({name: _plain(value) for name, value in row.items()}, ensure_ascii=False, separators=(",", ":"))


def as_object(text: str) -> dict[str, Any]:
    """A key or a row as it was before it was stored."""
    found: dict[str, Any] = json.loads(text)
    return found


def _plain(value: Any) -> Any:
    """Infinity and not-a-number as PostgreSQL writes them."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def compared(known: Mapping[str, str], found: Mapping[str, str]) -> Changes:
    """What becomes of the ``known`` open findings, and what begins."""
    return Changes(
        {key: row for key, row in found.items() if key not in known},
        {key: row for key, row in found.items() if known.get(key, row) != row},
        [key for key in known if key not in found],
    )
