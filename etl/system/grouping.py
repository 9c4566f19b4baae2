"""Splits what is to be done into groups that are done at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def grouped(items: Iterable[T], size: Callable[[T], int], most: int) -> Iterator[list[T]]:
    """The items, in groups whose sizes add up to at most ``most``; a larger item is a group of its own."""
    group, room = list[T](), most
    for item in items:
        room -= size(item)
        if group and room < 0:
            yield group
            group, room = [], most - size(item)
        group.append(item)
    if group:
        yield group
