"""From the bytes of an organisation's directory to its workflows: the whole tree, or an error.

| a node | what it is |
|---|---|
| not an object, without ``isDirectory``, or deeper than 64 levels | malformed |
| a directory whose ``children`` is not a list | malformed: a part of the tree may be missing |
| a file with children | malformed |
| a file whose ``type`` is not a whole number | malformed |
| a file of another ``type`` than 1 | counted |
| a file of ``type`` 1 without a ``title``, or whose ``key`` is not a whole number, or that of another one | malformed |
| a file of ``type`` 1 otherwise | the workflow of that number, with the title as its name |

A whole number is an integer, a fraction like 2512.0, or a text of either: the documentation has each of them. The
directory says no cycle, and ``editable`` only for the user who asked: both are None.

Source: EnOS API documentation, "List Workflow Directories" of both versions, and of EnOS Edge.
"""

from __future__ import annotations

import re
from collections import deque
from typing import Final

import msgspec

from etl.domain.model import Flow

DEEPEST: Final = 64
"""Levels of a directory; a deeper one is taken for damage."""
WORKFLOW_TYPE: Final = "1"
_WHOLE: Final = re.compile(r"(0|[1-9][0-9]{0,18})(?:\.0+)?", re.ASCII).fullmatch
_EXACT: Final = 2.0**53
"""Below it, a fraction has each whole number exactly."""


class _Node(msgspec.Struct, rename="camel", gc=False):
    is_directory: bool
    children: list[_Node] | msgspec.UnsetType | None = msgspec.UNSET
    title: str | msgspec.UnsetType | None = msgspec.UNSET
    type: int | float | str | msgspec.UnsetType | None = msgspec.UNSET
    key: int | float | str | msgspec.UnsetType | None = msgspec.UNSET


_trees: Final = msgspec.json.Decoder(list[_Node])


def read_tree(data: msgspec.Raw) -> tuple[list[Flow], int]:
    """The workflows of a directory, and how many other files it has. Raises ValueError or RecursionError where it is
    not as the table above has it, without saying where: the strict reader does."""
    flows: dict[str, Flow] = {}
    others = 0
    waiting = deque([(1, _trees.decode(data))])
    while waiting:
        level, nodes = waiting.pop()
        if nodes and level > DEEPEST:
            raise ValueError("it is too deep")
        for node in nodes:
            if node.is_directory:
                if not isinstance(node.children, list):
                    raise ValueError("a directory has no list of children")
                waiting.append((level + 1, node.children))
            elif node.children:
                raise ValueError("a file has children")
            elif (kind := whole_number(node.type)) != WORKFLOW_TYPE:
                others += _counted(kind)
            else:
                _add(flows, whole_number(node.key), node.title)
    return list(flows.values()), others


def whole_number(found: object) -> str | None:
    """A whole number as its digits, however it is written; None if it is none."""
    if isinstance(found, float) and found.is_integer() and 0 <= found < _EXACT:
        found = int(found)
    text = _WHOLE(str(found)) if isinstance(found, int | str) and not isinstance(found, bool) else None
    return text[1] if text else None


def _counted(kind: str | None) -> int:
    if kind is None:
        raise ValueError("the type of a file is no whole number")
    return 1


def _add(flows: dict[str, Flow], number: str | None, title: object) -> None:
    if number is None or not isinstance(title, str) or number in flows:
        raise ValueError("a workflow has no title, no number, or that of another one")
    flows[number] = Flow(number, title, None, None)
