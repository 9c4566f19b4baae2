"""Fits tables to a terminal: ids, times and numbers are shown whole, and the least important columns go first."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Final, NamedTuple

from rich.cells import cell_len, set_cell_size

from etl.printable import printable

ELLIPSIS: Final = "…"
_GAP: Final = "  "
_NARROWEST_NAME: Final = 12
_NARROWEST_SENTENCE: Final = 24

_SENTENCES: Final = frozenset({"why", "last_error", "example", "reason", "EnOS"})
"""Columns whose long texts continue on the next line."""
_NAMES: Final = frozenset({"name", "what happened", "flow_name", "expression", "schedule", "cause", "source"})
"""Columns whose long texts are cut, with an ellipsis."""
_LEAST_FIRST: Final = (
    *("missed", "stale", "origin", "editable", "most_failures", "organisations", "consecutive_failures"),
    *(
        "EnOS",
        "proven for all",
        "proven_for_all",
        "users_in_gap",
        "editors",
        "create_time",
        "creator",
        "owner",
        "key",
        "seal",
        "stamped_at",
    ),
    *("changed_inside", "first_observed_at", "first_listed_at", "sealed_at"),
    *("last_observed_at", "observed_after", "observed_before", "last_listed_at", "held_since", "changed_at"),
    *("last_success_at", "unchanged", "changed", "reason", "example", "targets", "held", "from_kind", "valid_to"),
    *("valid_from", "next_run_at", "started_at", "failed", "last_error", "name", "observed at", "held_workflows"),
    *("missing_since", "retired_at", "since", "source", "users", "cycle", "cycle_label", "flow_count", "overdue"),
    *("coverage", "flow_name", "last_error_code", "why", "what happened"),
)
"""The columns that may be left out on a narrow terminal, the least important first. No others are: what identifies a
row always stays."""


class Table(NamedTuple):
    """A heading and rows, each row as the lines that it takes."""

    heading: str
    rows: list[list[str]]


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int | None, ellipsis: str = ELLIPSIS) -> Table:
    """Lay ``rows`` out in ``width`` cells (None: as wide as they are).

    If columns were left out, an ellipsis ends the heading. If what identifies a row is wider than the terminal, lines
    are longer: a cut id would be another id.
    """
    natural = [max(map(cell_len, cells)) for cells in zip(columns, *rows, strict=True)]
    widths = _fitting(columns, natural, width, cell_len(ellipsis)) if width is not None else list(natural)
    shown = [at for at, wide in enumerate(widths) if wide]
    more = [ellipsis] if len(shown) < len(columns) else []
    laid_out = [[columns[at] for at in shown], *([row[at] for at in shown] for row in rows)]
    kinds, wides = [columns[at] for at in shown], [widths[at] for at in shown]
    heading, *lines = (_lines(cells, kinds, wides, ellipsis) for cells in laid_out)
    return Table(_GAP.join([heading[0], *more]), lines)


def _fitting(columns: Sequence[str], natural: Sequence[int], width: int, ellipsis: int) -> list[int]:
    """The width of each column; 0 if it is left out.

    The columns that stay are those that fit if every text is as short as allowed. Then the longest texts are shortened
    only as much as needed.
    """
    least = [_least(name, wide) for name, wide in zip(columns, natural, strict=True)]
    for name in _LEAST_FIRST:
        if _total(least) <= width:
            break
        if name in columns:
            if 0 not in least:
                width -= len(_GAP) + ellipsis
            least[columns.index(name)] = 0
    widths = [wide if kept else 0 for wide, kept in zip(natural, least, strict=True)]
    while _total(widths) > width and widths != least:
        at = max(range(len(widths)), key=lambda at: widths[at] if widths[at] > least[at] else 0)
        widths[at] -= 1
    return widths


def _least(name: str, natural: int) -> int:
    """How narrow a column may become: a text at least as wide as its heading; others must keep their width."""
    if name not in _SENTENCES | _NAMES:
        return natural
    return min(natural, max(cell_len(name), _NARROWEST_SENTENCE if name in _SENTENCES else _NARROWEST_NAME))


def _total(widths: Sequence[int]) -> int:
    shown = [wide for wide in widths if wide]
    return sum(shown) + len(_GAP) * (len(shown) - 1)


def _lines(cells: Sequence[str], columns: Sequence[str], widths: Sequence[int], ellipsis: str) -> list[str]:
    """A row: one line, or as many as its longest sentence needs."""
    wrapped = [
        _wrapped(cell, wide) if column in _SENTENCES else [_cut(cell, wide, ellipsis)]
        for cell, column, wide in zip(cells, columns, widths, strict=True)
    ]
    height = max(map(len, wrapped))
    padded = [[*lines, *[""] * (height - len(lines))] for lines in wrapped]
    return [
        _GAP.join(set_cell_size(part, wide) for part, wide in zip(line, widths, strict=True)).rstrip()
        for line in zip(*padded, strict=True)
    ]


def _cut(text: str, width: int, ellipsis: str) -> str:
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, width - cell_len(ellipsis)).rstrip() + ellipsis


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of at most ``width`` cells, broken between words; longer words are broken too."""
    lines, line = [], ""
    for word in text.split(" "):
        joined = f"{line} {word}" if line else word
        if cell_len(joined) <= width:
            line = joined
            continue
        if line:
            lines.append(line)
        while cell_len(word) > width:
            head = _head(word, width)
            lines.append(head)
            word = word[len(head) :]
        line = word
    return [*lines, line]


def _head(text: str, width: int) -> str:
    """The longest beginning that fits, at least one character."""
    end = 1
    while end < len(text) and cell_len(text[: end + 1]) <= width:
        end += 1
    return text[:end]


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
