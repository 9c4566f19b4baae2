"""From the pages of *Get Organization User List* to the ids of an organisation's users. Nothing else is read.

A roster is complete, or it is an error. Pages that do not fit together may come from a list that changed while it was
read, so they are read again from the first:

| what the pages say | then |
|---|---|
| as many different users as ``totalElements`` says, in as many pages as that takes | the roster |
| the same user twice, on one page or on two | counts once |
| a page is not the one that was asked for, or brings no new user while some are missing | read again, once |
| ``totalElements`` differs between two pages, or is less than the number of users | read again, once |
| any of these a second time, or more than ``MOST_USERS`` announced | malformed |
| ``code`` is 0, or 200 as in the older sample | a success of this call; any other code is an error |

Source: EnOS Application Portal API documentation, "Get Organization User List".
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Annotated, Final, NamedTuple

import msgspec

from etl.gateway.answer import RawAnswer, read_envelope
from etl.gateway.errors import malformed, place_of
from etl.gateway.strict import field_problem

MOST_USERS: Final = 1_000_000
_SUCCESSES: Final = frozenset({0, 200})
_LONGEST_ID: Final = 255


class _User(msgspec.Struct, rename="camel", gc=False):
    """Only the id of a user is decoded: name, mail address and telephone number never become values here."""

    user_id: Annotated[str, msgspec.Meta(min_length=1, max_length=_LONGEST_ID)] | int


class _Pagination(msgspec.Struct, rename="camel", gc=False):
    total_elements: Annotated[int, msgspec.Meta(ge=0, le=MOST_USERS)]
    page_no: int | None = None


class _Data(msgspec.Struct, gc=False):
    users: list[_User]
    pagination: _Pagination


_pages = msgspec.json.Decoder(_Data)
_CALL: Final = "Get Organization User List"
_malformed = partial(malformed, _CALL)


class Page(NamedTuple):
    """One page: its users, its own number (None: not given), and the number of all users."""

    users: tuple[str, ...]
    number: int | None
    total: int


def read_page(answered: RawAnswer) -> Page:
    """Raises by the error code, or Malformed."""
    envelope = read_envelope(_CALL, answered.reply.body, answered.quote, successes=_SUCCESSES)
    try:
        data = _pages.decode(envelope.data)
    except (ValueError, RecursionError) as error:
        raise _malformed(place_of(error)) from None
    users = tuple(str(user.user_id) for user in data.users)
    for index, user in enumerate(users):
        if problem := field_problem(user) or _id_problem(user):
            raise _malformed(f"data.users[{index}].userId {problem}")
    return Page(users, data.pagination.page_no, data.pagination.total_elements)


def collected(page: Callable[[int], Page]) -> frozenset[str]:
    """All users of the pages that ``page`` returns, by the table above. Raises Malformed, and what ``page`` raises."""
    users, problem = _read_all(page)
    if problem:
        users, problem = _read_all(page)
    if problem:
        raise _malformed(problem)
    return frozenset(users)


def _read_all(page: Callable[[int], Page]) -> tuple[set[str], str]:
    """The users, and why they are not all; "" if they are."""
    users: set[str] = set()
    first: Page | None = None
    for number in itertools.count():
        found = page(number)
        first, before = first or found, len(users)
        users.update(found.users)
        if found.number not in (None, number):
            return users, f"page {found.number} came where page {number} was asked for"
        if found.total != first.total:
            return users, f"page {number} says {found.total} users in all, page 0 said {first.total}"
        if len(users) > first.total:
            return users, f"it says {first.total} users in all, and lists more"
        if len(users) == first.total:
            break
        if len(users) == before:
            return users, f"it says {first.total} users in all, and lists {len(users)}"
    return users, ""


def _id_problem(user: str) -> str:
    if not user.strip() or user != user.strip():
        return "is blank, or has white space around it"
    return "contains a control character" if not user.isprintable() else ""
