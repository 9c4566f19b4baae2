"""The parameters of a request: texts, choices, moments, pages. Invalid ones are answered with 400 and a sentence."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

from starlette.exceptions import HTTPException
from starlette.requests import Request

from etl.timeparse import parse_moment

PAGE_ROWS: Final = 100
_LONGEST_VALUE: Final = 2000
_LAST_PAGE: Final = 100_000


class RequestParams:
    """The query of a request."""

    def __init__(self, request: Request) -> None:
        self._values = request.query_params

    def text(self, name: str, usual: str = "") -> str:
        return _checked(name, self._values.get(name, usual))

    def one_of(self, name: str, known: Collection[str]) -> str:
        value = self.text(name)
        if value and value not in known:
            raise HTTPException(400, f"“{name}” has no such choice.")
        return value

    def moment(self, name: str, now: dt.datetime) -> dt.datetime | None:
        """The moment that was typed, if any."""
        value = self.text(name).strip()
        try:
            return parse_moment(value, now) if value else None
        except ValueError as error:
            raise HTTPException(400, f"{error}.") from error

    def paging(self) -> Paging:
        given = self.text("page", "1")
        if not (given.isascii() and given.isdigit() and 1 <= int(given[:9]) <= _LAST_PAGE):
            raise HTTPException(400, "There is no such page: pages are numbered from 1.")
        return Paging(int(given), self.others("page"))

    def others(self, *names: str) -> list[tuple[str, str]]:
        """The other parameters, without empty values."""
        return [(name, value) for name, value in self._values.multi_items() if name not in names and value]

    def link(self, **changed: str) -> str:
        """This address with some values changed; empty ones are left out."""
        return "?" + urlencode([*self.others("page", *changed), *((k, v) for k, v in changed.items() if v)])


def path_text(request: Request, name: str) -> str:
    """An id from the path or, if it cannot be in a path, from the query."""
    return _checked(name, request.path_params.get(name) or request.query_params.get(name, ""))


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


def _checked(name: str, value: str) -> str:
    if "\0" in value or len(value) > _LONGEST_VALUE:
        raise HTTPException(400, f"The value of “{name}” cannot be looked for.")
    return value
