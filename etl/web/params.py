"""The parameters of a request: texts, choices, numbers, moments, pages.

Everything that a browser sends passes here before it is used. What is invalid is answered with 400 and a sentence, so
that it never reaches the database, whose refusal would look like an outage.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

from starlette.exceptions import HTTPException
from starlette.requests import Request

from etl.config.slots import time_zone
from etl.report.listings import Filter, Listing
from etl.timeparse import parse_moment

PAGE_ROWS: Final = 100
_LONGEST_VALUE: Final = 2000
_LONGEST_NUMBER: Final = 18
"""Digits of a number that both databases can compare."""
_LAST_PAGE: Final = 100_000


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

    def asked_of(self, listing: Listing[Any], now: dt.datetime) -> dict[str, Any]:
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

    def paging(self) -> Paging:
        number = whole_number(self.text("page") or "1")
        if number is None or not 1 <= number <= _LAST_PAGE:
            raise HTTPException(400, "There is no such page: pages are numbered from 1.")
        return Paging(number, self.others("page"))

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


class Paging(NamedTuple):
    """A window over rows, and the links to the previous and next ones."""

    number: int
    others: list[tuple[str, str]]

    @property
    def window(self) -> tuple[int, int]:
        """Limit and offset, with one row more than a page shows, to know whether another page follows."""
        return PAGE_ROWS + 1, (self.number - 1) * PAGE_ROWS

    def cut(self, rows: Sequence[Any]) -> dict[str, Any]:
        further = len(rows) > PAGE_ROWS
        return {
            "rows": rows[:PAGE_ROWS],
            "number": self.number,
            "previous": self._to(self.number - 1) if self.number > 1 else "",
            "next": self._to(self.number + 1) if further else "",
        }

    def _to(self, number: int) -> str:
        return "?" + urlencode([*self.others, ("page", str(number))])
