"""Renders templates to HTML: everything is escaped, and values for scripts are data that no markup can end."""

from __future__ import annotations

import datetime as dt
import functools
import gzip
import hashlib
import html
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any, Final

from etl.config.slots import quartz_in_words
from etl.domain.approvals import described
from etl.domain.kinds import DELTA_KINDS, EVENT_KINDS, GONE
from etl.domain.model import CYCLE_LABELS
from etl.errors import UsageError
from etl.printable import counted
from etl.report.details import event_detail_sentence
from etl.report.listings import STATUSES
from etl.report.rows import COVERAGE_LABELS, RUN_COUNTS
from etl.report.summaries import CYCLES
from etl.web import figures, labels

try:
    import jinja2
    from jinja2.filters import do_mark_safe
    from jinja2.utils import htmlsafe_json_dumps
except ImportError as error:
    raise UsageError("The page needs jinja2: pip install 'flowtrail[web]'") from error

PLOTLY: Final = "plotly-basic.min.js"
"""A built file of plotly.js, which `make plotly` brings; its licence lies beside it."""
_REMEMBERED: Final = 4096
"""Elements; a page has some hundred different ones."""


@functools.cache
def environment() -> jinja2.Environment:
    """The templates; a name that a page forgot to give is an error."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(str(files("etl.web") / "templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters |= {
        "foreign": labels.foreign,
        "whose": labels.whose,
        "cycle": labels.cycle_label,
        "held": described,
        "in_words": quartz_in_words,
        "kind": labels.kind_label,
        "utc": labels.utc,
        "iso": labels.moment,
        "labelled": labelled,
        "editable": labels.editable_label,
        "data": htmlsafe_json_dumps,
    }
    made.globals |= {
        "ago": labels.ago,
        "approval": labels.approval,
        "PLOTLY": PLOTLY,
        "asset": _address,
        "count": counted,
        "figures": figures,
        "plotly_sheets": plotly_sheets,
        "time_element": time_element,
        "foreign_element": foreign_element,
        "cycle_element": cycle_element,
        "kind_element": kind_element,
        "event_detail_sentence": event_detail_sentence,
        "target_path": labels.target_path,
        "workflow_path": labels.workflow_path,
        "lasted": lambda begin, end: labels.span((end - begin).total_seconds()),
        "COVERAGE": COVERAGE_LABELS,
        "CYCLES": CYCLES,
        "STATUSES": STATUSES,
        "RUN_COUNTS": RUN_COUNTS,
        "RUN_COLUMNS": [f"#{label}" for label in RUN_COUNTS.values()],
        "CYCLE_COLUMNS": [f"#{labels.cycle_label(cycle)}" for cycle in CYCLES],
        "CYCLE_LABELS": CYCLE_LABELS,
        "DELTA_KINDS": DELTA_KINDS,
        "EVENT_KINDS": EVENT_KINDS,
        "GONE": GONE,
        "KIND_COLUMNS": [f"#{labels.kind_label(kind)}" for kind in EVENT_KINDS],
    }
    return made


def render(template: str, values: Mapping[str, Any]) -> str:
    return environment().get_template(template).render(values)


@functools.lru_cache(_REMEMBERED)
def time_element(moment: dt.datetime | None) -> str:
    """A time in UTC; the page's script shows it in the reader's zone."""
    if moment is None:
        return ""
    return do_mark_safe(f'<time datetime="{labels.moment(moment)}">{labels.utc(moment)}</time>')


@functools.lru_cache(_REMEMBERED)
def foreign_element(text: str | None, nothing: str = "") -> str:
    """Foreign text, which may be broken after each underscore; ``nothing`` if there is none."""
    if not text:
        return do_mark_safe(f'<span class="quiet">{html.escape(nothing)}</span>')
    return do_mark_safe(f"<bdi>{html.escape(labels.foreign(text)).replace('_', '_<wbr>')}</bdi>")


@functools.lru_cache(_REMEMBERED)
def cycle_element(cycle: str | None) -> str:
    """A cycle, with its colour."""
    known = cycle if cycle in CYCLE_LABELS else "other"
    return do_mark_safe(f'<span class="cycle cycle-{known}">{html.escape(labels.cycle_label(cycle))}</span>')


@functools.cache
def kind_element(kind: str) -> str:
    """A kind of change or event, with its colour."""
    return do_mark_safe(f'<span class="kind kind-{kind}">{html.escape(labels.kind_label(kind))}</span>')


_ROW: Final = re.compile(r"<tr[^>]*>.*?</tr>", re.DOTALL)
_CELL: Final = re.compile(r"<t[dh](?![^>]*colspan)")
_NOTHING: Final = re.compile(r"(?<=>)\s+(?=</td>)")
"""A cell without a value, which a card leaves out."""


def labelled(rows: str, columns: Sequence[str]) -> str:
    """Table rows whose cells name their column: on a narrow screen, a row becomes a card of such lines."""
    names = [f' data-label="{html.escape(column.removeprefix("#"))}"' for column in columns]

    def row(found: re.Match[str]) -> str:
        left = iter(names)
        return _CELL.sub(lambda cell: cell[0] + next(left, ""), found[0])

    return _ROW.sub(row, _NOTHING.sub("", str(rows)))


MEDIA_TYPES: Final = {
    "app.js": "text/javascript; charset=utf-8",
    PLOTLY: "text/javascript; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
"""The page's own files."""


@functools.cache
def asset(name: str, *, compressed: bool = False) -> bytes:
    """One of ``MEDIA_TYPES``."""
    return gzip.compress(asset(name), mtime=0) if compressed else (files("etl.web") / "static" / name).read_bytes()


@functools.cache
def plotly_sheets() -> tuple[str, ...]:
    """The ids of the style elements that Plotly's script would add to a page that has no element with that id."""
    found = re.findall(rb'getElementById\("([0-9a-f]{64})"\)', asset(PLOTLY))
    return ("plotly.js-style-global", *(each.decode() for each in found))


@functools.cache
def _address(name: str) -> str:
    """The address of an asset, with its version, so that a browser may cache it for ever."""
    return f"/static/{name}?v={hashlib.sha256(asset(name)).hexdigest()[:12]}"
