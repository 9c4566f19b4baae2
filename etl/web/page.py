"""What every page has: what it knows, the parameters of its request, and its response: HTML, or a table as a file.

Everything that a browser sends passes ``RequestParams`` before it is used. What is invalid is answered with 400 and a
sentence, so that it never reaches the database, whose refusal would look like an outage.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

from sqlalchemy import Connection, Engine, Select
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response, StreamingResponse

from etl.config.slots import time_zone
from etl.errors import DatabaseError
from etl.export import csv_pages, jsonl_pages
from etl.log import get_logger
from etl.report.conditions import Condition
from etl.report.health import TargetSummary, summary_within
from etl.report.listings import Filter, ListView
from etl.report.reading import short_transaction, stream
from etl.report.rows import Column, selected
from etl.timeparse import parse_moment
from etl.web.rendering import render

FORMATS: Final = ("csv", "json")
_ROWS_AT_ONCE: Final = 1000
PAGE_ROWS: Final = 100
_LONGEST_VALUE: Final = 2000
_LONGEST_NUMBER: Final = 18
"""Digits of a number that both databases can compare."""
_LAST_PAGE: Final = 100_000


class Site(NamedTuple):
    """What every page knows."""

    engine: Engine
    """One of its own, so that no page keeps a run waiting for a connection."""
    now: Callable[[], dt.datetime]
    next_fire_times: Callable[[], dict[str, dt.datetime]]
    role: Callable[[], str]
    coverage_gap: dt.timedelta
    """After a longer silence the page says so."""
    read_health: Callable[[Connection, dt.datetime], TargetSummary] = summary_within
    """How the targets are, and which of them are overdue where the schedules are known."""
    enos_zone: dt.tzinfo | None = None
    """Where EnOS's own times are from; they are compared with ours where that is known."""
    own: Callable[[], Sequence[Condition]] = lambda: ()
    """What is wrong with the service itself."""


# ---------------------------------------------------------------------------------------------------- the parameters


class RequestParams:
    """The path and the query of a request. Each value is checked before any is used.

    ``usual``: what stands for parameters that are not there at all; one that is there and empty asks for nothing.
    """

    def __init__(self, request: Request, usual: Mapping[str, str] = {}) -> None:
        self._values, self._usual = request.query_params, usual
        self._path = request.path_params
        for name, value in (*self._values.multi_items(), *self._path.items()):
            if "\0" in value or len(value) > _LONGEST_VALUE:
                raise HTTPException(400, f"The value of “{name[:40]}” cannot be looked for.")

    def text(self, name: str) -> str:
        return self._values.get(name, self._usual.get(name, ""))

    def id(self, name: str) -> str:
        """An id from the path or, if it cannot be in a path, from the query."""
        return self._path.get(name) or self._values.get(name, "")

    def number(self, name: str) -> int:
        """The number in the path of something that has one."""
        found = whole_number(self._path[name])
        if found is None:
            raise HTTPException(404, "There is nothing with such a number.")
        return found

    def one_of(self, name: str, known: Collection[str]) -> str:
        value = self.text(name)
        if value and value not in known:
            raise HTTPException(400, f"“{name}” has no such choice.")
        return value

    def several_of(self, name: str, known: Sequence[str]) -> list[str]:
        """The known ones of the values that were chosen."""
        return [each for each in known if each in self._values.getlist(name)]

    def moment(self, name: str, now: dt.datetime) -> dt.datetime | None:
        """The moment that was typed, if any."""
        value = self.text(name).strip()
        try:
            return parse_moment(value, now) if value else None
        except ValueError as error:
            raise HTTPException(400, f"{error}.") from error

    def asked_of(self, listing: ListView[Any], now: dt.datetime) -> dict[str, Any]:
        """What is asked of a list, by the kinds of its filters."""
        return {name: self._asked(name, each, now) for name, each in listing.filters.items() if each.kind != "inside"}

    def _asked(self, name: str, by: Filter, now: dt.datetime) -> Any:
        if by.kind == "moment":
            return self.moment(name, now)
        if by.kind == "some_of":
            return self.several_of(name, by.known)
        if by.kind == "one_of":
            return self.one_of(name, by.known)
        if by.kind == "number" and self.text(name) and whole_number(self.text(name)) is None:
            raise HTTPException(400, f"“{name}” must be a number.")
        return whole_number(self.text(name)) if by.kind == "number" else self.text(name)

    def zone(self, name: str) -> dt.tzinfo:
        """The time zone that was named, or else UTC."""
        named = self.text(name)
        try:
            return time_zone(named) if named else dt.UTC
        except ValueError as error:
            raise HTTPException(400, f"{error}.") from error

    def page_number(self) -> int:
        number = whole_number(self.text("page") or "1")
        if number is None or not 1 <= number <= _LAST_PAGE:
            raise HTTPException(400, "There is no such page: pages are numbered from 1.")
        return number

    def format(self) -> str:
        """``?format=``; empty is the page itself."""
        return self.one_of("format", FORMATS)

    def others(self, *names: str) -> list[tuple[str, str]]:
        """The other parameters, without empty values."""
        given = ((name, value) for name, value in self._values.multi_items() if value or name in self._usual)
        return [(name, value) for name, value in given if name not in names]

    def link(self, **changed: str) -> str:
        """This address with some values changed; empty ones are left out."""
        return "?" + urlencode([*self.others("page", *changed), *((k, v) for k, v in changed.items() if v)])


def whole_number(given: str) -> int | None:
    """The number that ``given`` writes in decimal; None if it writes none, or one that the database cannot compare."""
    return int(given) if given.isascii() and given.isdigit() and len(given) <= _LONGEST_NUMBER else None


# ------------------------------------------------------------------------------------------------------ the response


class TableQuery(NamedTuple):
    """A table: its name for a file, and its statement."""

    name: str
    statement: Select[Any]

    @classmethod
    def of(cls, site: Site, listing: ListView[Any], **asked: Any) -> TableQuery:
        """What is asked of a list."""
        return cls(listing.name, listing.select(site.engine.dialect.name, **asked))

    def page(self, connection: Connection, limit: int, offset: int = 0) -> Sequence[Any]:
        """At most ``limit`` rows after the first ``offset``."""
        return connection.execute(self.statement.limit(limit).offset(offset)).all()

    def shown(self, connection: Connection, asked: RequestParams) -> dict[str, Any]:
        """The rows of the page that is asked for, and the links to the previous and the next one."""
        number = asked.page_number()
        rows = self.page(connection, PAGE_ROWS + 1, (number - 1) * PAGE_ROWS)
        return {
            "rows": rows[:PAGE_ROWS],
            "number": number,
            "previous": asked.link(page=str(number - 1)) if number > 1 else "",
            "next": asked.link(page=str(number + 1)) if len(rows) > PAGE_ROWS else "",
        }


def html(request: Request, template: str, values: Mapping[str, Any], status: int = 200) -> Response:
    return HTMLResponse(render(template, {"path": request.url.path, "linked": True, **values}), status)


def list_page(
    site: Site,
    request: Request,
    *,
    listing: ListView[Any],
    template: str,
    beside: Callable[[Site, Connection, Sequence[Any], Mapping[str, Any]], Mapping[str, Any]] = lambda *_: {},
    newest_first: bool = False,
) -> Response:
    """A page of what is asked of a list, or all of it as a file; ``beside`` reads what else the page shows, given its
    rows and what is asked."""
    asked = RequestParams(request)
    fmt, wanted = asked.format(), asked.asked_of(listing, site.now())
    table = TableQuery.of(site, listing, **wanted, newest_first=newest_first)
    if fmt:
        return listing_file(site, table, fmt)
    with short_transaction(site.engine) as connection:
        shown = table.shown(connection, asked)
        values = beside(site, connection, shown["rows"], wanted)
    return html(request, template, {"asked": asked, "now": site.now(), **values, **shown})


def listing_file(site: Site, listing: TableQuery, fmt: str) -> Response:
    """All rows of a table, streamed in constant memory."""
    rows = stream(site.engine, listing.statement, tuple)
    return rows_file(listing.name, selected(listing.statement), rows, fmt)


def rows_file(name: str, columns: Sequence[Column], rows: Iterable[Sequence[Any]], fmt: str) -> Response:
    """Rows as CSV, or as a JSON array of objects whose keys are the columns.

    The first rows are read before anything is sent, so that a database error still gives an error status.
    """
    source = iter(rows)
    rest = iter(lambda: list(islice(source, _ROWS_AT_ONCE)), [])
    pages = chain(list(islice(rest, 1)), rest)
    if fmt == "csv":
        headers = {"Content-Disposition": f'attachment; filename="{name}.csv"'}
        return StreamingResponse(
            _whole(csv_pages(columns, pages)), media_type="text/csv; charset=utf-8", headers=headers
        )
    return StreamingResponse(_whole(_json_array(columns, pages)), media_type="application/json")


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
        get_logger("etl.web").warning("table_cut_off", error=str(error))
        raise
