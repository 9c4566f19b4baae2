"""What the pages know, and their responses: HTML, or the rows of a table as a file."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final, Literal, NamedTuple

import structlog
from sqlalchemy import Connection, Engine, Select
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response, StreamingResponse

from etl.errors import DatabaseError
from etl.export.formats import csv_pages, jsonl_pages
from etl.report import Column, columns_of, reading
from etl.report.conditions import DetectedCondition
from etl.report.health import TargetSummary
from etl.report.listings import Listing
from etl.report.reading import short_transaction, stream
from etl.web.params import RequestParams
from etl.web.rendering import render

Format = Literal["csv", "json"]
FORMATS: Final[tuple[Format, ...]] = ("csv", "json")
_ROWS_AT_ONCE: Final = 1000


class TableQuery(NamedTuple):
    """A table: its name for a file, its row type, and its statement."""

    name: str
    row_type: type[tuple[Any, ...]]
    statement: Select[Any]

    @classmethod
    def of(cls, site: Site, listing: Listing[Any], **asked: Any) -> TableQuery:
        """What is asked of a list."""
        return cls(listing.name, listing.row_type, listing.select(site.engine.dialect.name, **asked))

    def page(self, connection: Connection, limit: int, offset: int = 0) -> list[Any]:
        return reading.page(connection, self.row_type, self.statement, limit, offset)


def html(request: Request, template: str, values: Mapping[str, Any], status: int = 200) -> Response:
    return HTMLResponse(render(template, {"path": request.url.path, "linked": True, **values}), status)


def wanted_format(request: Request) -> Format | None:
    """``?format=``; None is the page itself."""
    asked = RequestParams(request).one_of("format", FORMATS)
    return next((known for known in FORMATS if known == asked), None)


def table_page(
    site: Site,
    request: Request,
    listing: TableQuery,
    template: str,
    beside: Callable[[Connection, Sequence[Any]], Mapping[str, Any]] = lambda connection, rows: {},
) -> Response:
    """A page of a table, or all of it as a file; ``beside`` reads what else the page shows, given its rows."""
    asked, fmt = RequestParams(request), wanted_format(request)
    paging = asked.paging()
    if fmt:
        return listing_file(site, listing, fmt)
    with short_transaction(site.engine) as connection:
        shown = paging.cut(listing.page(connection, *paging.window))
        values = beside(connection, shown["rows"])
    return html(request, template, {"asked": asked, "now": site.now(), **values, **shown})


def listing_file(site: Site, listing: TableQuery, fmt: Format) -> Response:
    """All rows of a table, streamed in constant memory."""
    rows = stream(site.engine, listing.statement, listing.row_type)
    return rows_file(listing.name, columns_of(listing.row_type), rows, fmt)


def rows_file(name: str, columns: Sequence[Column], rows: Iterable[Sequence[Any]], fmt: Format) -> Response:
    """Rows as CSV, or as a JSON array of objects whose keys are the columns.

    The first rows are read before anything is sent, so that a database error still gives an error status.
    """
    pages = _in_pages(rows)
    first = next(pages, [])
    if fmt == "csv":
        body = csv_pages(columns, _chained(first, pages))
        headers = {"Content-Disposition": f'attachment; filename="{name}.csv"'}
        return StreamingResponse(_whole(body), media_type="text/csv; charset=utf-8", headers=headers)
    return StreamingResponse(_whole(_json_array(columns, _chained(first, pages))), media_type="application/json")


def _in_pages(rows: Iterable[Sequence[Any]]) -> Iterator[list[Sequence[Any]]]:
    source = iter(rows)
    while page := list(islice(source, _ROWS_AT_ONCE)):
        yield page


def _chained(first: list[Sequence[Any]], rest: Iterator[list[Sequence[Any]]]) -> Iterator[list[Sequence[Any]]]:
    if first:
        yield first
        yield from rest


def _json_array(columns: Sequence[Column], pages: Iterator[list[Sequence[Any]]]) -> Iterator[bytes]:
    yield b"["
    separator = b"\n"
    for lines in jsonl_pages(columns, pages):
        yield separator + lines.rstrip(b"\n").replace(b"\n", b",\n")
        separator = b",\n"
    yield b"\n]\n"


def _whole(body: Iterator[bytes]) -> Iterator[bytes]:
    """If the database goes away in the middle, cut the response off, so that nobody takes a part for the whole."""
    try:
        yield from body
    except DatabaseError as error:
        structlog.get_logger("etl.web").warning("table_cut_off", error=str(error))
        raise


class Site(NamedTuple):
    """Passed to every page; see ``etl.web.create_app``."""

    engine: Engine
    now: Callable[[], dt.datetime]
    next_fire_times: Callable[[], dict[str, dt.datetime]]
    role: Callable[[], str]
    read_health: Callable[[Connection, dt.datetime], TargetSummary]
    coverage_gap: dt.timedelta
    enos_zone: dt.tzinfo | None = None
    own: Callable[[], Sequence[DetectedCondition]] = lambda: ()
