"""The second reading of an answer that would change something, with the standard library's JSON reader.

It shares no code with the first reader, refuses a key that occurs twice in one object (the first reader keeps the last
one), and must find the same flows. It is slow, and is skipped if counting colons proves as much
(``has_each_key_once``): an answer whose objects have each key once has exactly one colon per key outside its texts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, Final

from etl.domain.model import Flow, Snapshot
from etl.errors import Malformed
from etl.printable import printable

_DEEPEST: Final = 64
_HALF_CHARACTER: Final = re.compile("[\ud800-\udfff]")

Row = tuple[str, str | None, str | None, bool | None]


class _Problem(Exception):
    """What is wrong, and where."""


class _Digits(str):
    """An integer as it is written, however long."""

    __slots__ = ()


class _DuplicateKey(str):
    """Stands for an object in which this key occurs twice."""

    __slots__ = ()


def reread_strictly(snapshot: Snapshot) -> None:
    """Raises Malformed if the body has a key twice in one object, or does not say the same as ``snapshot.flows``."""
    if not snapshot.body:
        return
    directory = snapshot.target.is_directory
    try:
        answer = _parsed(snapshot.body)
        if not isinstance(answer, dict):
            raise _Problem(f"it is {_kind(answer)}, not an object")
        data = answer.get("data")
        if snapshot.flows is None:
            return
        if not _same(_files(data) if directory else _rows(data), snapshot.flows):
            raise _Problem("two JSON readers find different workflows in it")
        if not directory and _absent(data) != snapshot.absent:
            raise _Problem("two JSON readers find different keys in it")
    except _Problem as problem:
        call = "List Workflow Directories" if directory else "Get My Flow"
        message = f"the answer is not what {call} promises: {problem}"
        raise Malformed(message, code="malformed", attempts=snapshot.attempts) from None


def first_problem(data: bytes) -> str | None:
    """The first problem in the bytes of ``data``, with item and field; None if this reader finds none."""
    return _first_problem(data, _rows)


def first_problem_in_directory(data: bytes) -> str | None:
    """The same, where ``data`` is a directory."""
    return _first_problem(data, _files)


def _first_problem(data: bytes, rows: Callable[[Any], Iterator[Row]]) -> str | None:
    try:
        for _ in rows(_parsed(data)):
            pass
    except _Problem as problem:
        return str(problem)
    return None


def half_character_in(body: bytes) -> str | None:
    """Where a body that a lenient reader accepts as JSON has half a character; None if it is not JSON at all."""
    try:
        parsed = _parsed(body)
        for _ in _rows(parsed["data"] if isinstance(parsed, dict) and "data" in parsed else []):
            pass
    except _Problem as problem:
        return str(problem) if "surrogate" in str(problem) else None
    return "it holds a lone surrogate, half a character"


def field_problem(text: str) -> str | None:
    """What makes a text unfit to be stored: a NUL character, or half a character."""
    if "\0" in text:
        return "holds a NUL character"
    if not text.isascii() and _HALF_CHARACTER.search(text):
        return "holds a lone surrogate, half a character"
    return None


def _parsed(body: bytes) -> Any:
    duplicates: list[_DuplicateKey] = []

    def checked(pairs: list[tuple[str, Any]]) -> Any:
        found = dict(pairs)
        if len(found) == len(pairs):
            return found
        keys = [key for key, _ in pairs]
        duplicates.append(_DuplicateKey(printable(next(key for key in keys if keys.count(key) > 1))[:80]))
        return duplicates[-1]

    try:
        text = body.decode("utf-8")
        parsed = json.loads(text, object_pairs_hook=checked, parse_int=_Digits, parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise _Problem(f"it is not UTF-8 (byte {error.start})") from None
    except RecursionError:
        raise _Problem("its JSON is nested too deeply") from None
    except ValueError as error:
        raise _Problem(f"it is not JSON ({error})") from None
    _refuse_duplicate_keys(parsed, duplicates)
    return parsed


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _refuse_duplicate_keys(parsed: Any, duplicates: list[_DuplicateKey]) -> None:
    if not duplicates:
        return
    items = parsed.get("data") if isinstance(parsed, dict) else parsed
    for index, item in enumerate(items if isinstance(items, list) else ()):
        if isinstance(item, _DuplicateKey):
            raise _Problem(f'data[{index}] has the key "{item}" twice')
    raise _Problem(f'one of its objects has the key "{duplicates[0]}" twice')


def _rows(data: Any) -> Iterator[Row]:
    if not isinstance(data, list):
        raise _Problem(f"data is {_kind(data)}, not a list")
    for index, item in enumerate(data):
        yield _row(item, index)


def _row(item: Any, index: int) -> Row:
    if type(item) is not dict:
        raise _Problem(f"data[{index}] is {_kind(item)}, not an object")
    get = item.get
    flow_id, name, cycle, editable = get("flowId"), get("flowName"), get("cycle"), get("editable")
    if (flow_id is None or name is None) and ("flow_id" in item or "flow_name" in item):
        flow_id, name = _as_edge_spells(item, index)
    if type(flow_id) is not str or not flow_id or "\0" in flow_id or not flow_id.isascii():
        flow_id = _identifier(flow_id, index, "flowId" in item)
    if name is not None and (type(name) is not str or "\0" in name or not name.isascii()):
        _check_text(name, index, "flowName")
    if cycle is not None and (type(cycle) is not str or "\0" in cycle or not cycle.isascii()):
        _check_text(cycle, index, "cycle")
    if editable is not None and type(editable) is not bool:
        raise _Problem(f"data[{index}].editable is {_kind(editable)}, not true or false")
    return flow_id, name, cycle, editable


def _as_edge_spells(item: dict[str, Any], index: int) -> tuple[Any, Any]:
    """``flow_id`` and ``flow_name``, as EnOS Edge documents them; both spellings in one object are a problem."""
    if "flowId" in item or "flowName" in item:
        raise _Problem(f"data[{index}] spells some of its keys as flowId, some as flow_id")
    return item.get("flow_id"), item.get("flow_name")


def _identifier(found: Any, index: int, present: bool) -> str:
    if type(found) is _Digits:
        return "0" if found == "-0" else str(found)
    if found == "":
        raise _Problem(f"data[{index}].flowId is empty")
    if not present and found is None:
        raise _Problem(f"data[{index}].flowId is missing")
    _check_text(found, index, "flowId", "a string or an integer")
    return str(found)


def _check_text(found: Any, index: int, field: str, wanted: str = "a string") -> None:
    if type(found) is not str:
        raise _Problem(f"data[{index}].{field} is {_kind(found)}, not {wanted}")
    if problem := field_problem(found):
        raise _Problem(f"data[{index}].{field} {problem}")


def _files(data: Any) -> Iterator[Row]:
    """The workflows of a directory; ``etl.gateway.directory`` has the rules."""
    if not isinstance(data, list):
        raise _Problem(f"data is {_kind(data)}, not a list")
    seen: dict[str, str] = {}
    waiting = [(data, "data", 1)]
    while waiting:
        nodes, place, level = waiting.pop()
        if nodes and level > _DEEPEST:
            raise _Problem(f"its directories are more than {_DEEPEST} levels deep")
        for index, node in enumerate(nodes):
            here = f"{place}[{index}]"
            if type(node) is not dict:
                raise _Problem(f"{here} is {_kind(node)}, not an object")
            children = node.get("children")
            if node.get("isDirectory") is True:
                if type(children) is not list:
                    raise _Problem(f"{here}.children is {_given(node, 'children')}, not a list")
                waiting.append((children, f"{here}.children", level + 1))
            elif node.get("isDirectory") is not False:
                raise _Problem(f"{here}.isDirectory is {_given(node, 'isDirectory')}, not true or false")
            elif children not in (None, []):
                raise _Problem(f"{here} is a file with children")
            elif _whole(node, "type", here) == "1":
                number = _whole(node, "key", here)
                if type(node.get("title")) is not str:
                    raise _Problem(f"{here}.title is {_given(node, 'title')}, not a string")
                if problem := field_problem(node["title"]):
                    raise _Problem(f"{here}.title {problem}")
                if (other := seen.setdefault(number, here)) != here:
                    raise _Problem(f"{here}.key is that of {other}")
                yield number, node["title"], None, None


def _whole(node: dict[str, Any], field: str, here: str) -> str:
    """A whole number, as an integer, a fraction or a text."""
    found: Any = node.get(field)
    if type(found) is float and abs(found) < 2**53 and found == int(found):
        found = str(int(found))
    digits, point, zeros = found.partition(".") if isinstance(found, str) else ("", "", "")
    is_whole = digits.isascii() and digits.isdecimal() and bool(zeros) == bool(point) and not zeros.strip("0")
    if not is_whole or len(digits) > 19 or (digits[0] == "0" and digits != "0"):
        raise _Problem(f"{here}.{field} is {_given(node, field)}, not a whole number of at most 19 digits")
    return str(digits)


def _given(node: dict[str, Any], field: str) -> str:
    return _kind(node[field]) if field in node else "missing"


def _same(rows: Iterator[Row], flows: tuple[Flow, ...]) -> bool:
    """Whether both readings have the same flows. (The first reader has ensured that equal ids have equal values.)"""
    known = {flow.flow_id: flow for flow in flows}
    seen = set()
    for flow_id, name, cycle, editable in rows:
        flow = known.get(flow_id)
        if flow is None or flow.flow_name != name or flow.cycle != cycle or flow.editable is not editable:
            return False
        seen.add(flow_id)
    return len(seen) == len(flows)


def _absent(data: Any) -> set[str]:
    """The attributes whose key no object has, as either documentation spells it."""
    found = {key for item in data for key in item}
    spelled = {"flow_name": {"flowName", "flow_name"}, "cycle": {"cycle"}, "editable": {"editable"}}
    return {attribute for attribute, keys in spelled.items() if data and not keys & found}


_KINDS: Final[dict[type, str]] = {
    bool: "a boolean",
    _Digits: "an integer",
    float: "a fraction",
    str: "a string",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


def _kind(found: Any) -> str:
    return _KINDS.get(type(found), "something else")
