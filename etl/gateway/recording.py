"""Records what a gateway answered, so that it can be shown to others: statuses, headers, shapes and lengths.

| of an exchange | is recorded |
|---|---|
| the request | the call, the method, the path, and the names of its parameters |
| the status, the number of the attempt, and our error code for the answer | as they are |
| headers | HTTP's own as they are; of all others the name and the length |
| the body, if it is JSON | its shape: keys, types and lengths; for a list, one shape per kind of item |
| a tree (of ``children``) | as the list of all its nodes, and how many levels it has |
| ``code``, ``status``, ``stauts``, ``totalElements``, ``pageNo``, ``pageSize``, ``expire`` | as they are, if numbers |
| ids (``flowId``, ``flow_id``, ``key``, ``userId``, ``requestId``) | the first digits of a hash, salted per recording |
| texts, tokens, everything else | their length |
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import secrets
import threading
from collections import Counter
from typing import Any, Final, NamedTuple

import msgspec

from etl.gateway.calls import Request
from etl.gateway.transport import Reply

_HTTP: Final = frozenset(
    {
        *("cache-control", "connection", "content-encoding", "content-length", "content-type", "date", "expires"),
        *("keep-alive", "pragma", "retry-after", "transfer-encoding", "vary"),
    }
)
_NUMBERS: Final = frozenset({"code", "status", "stauts", "totalElements", "pageNo", "pageSize", "expire"})
_IDS: Final = frozenset({"flowId", "flow_id", "key", "userId", "requestId"})
_CHILDREN: Final = "children"
_LONGEST_NAME: Final = 60
_DEEPEST: Final = 12
_MOST_EXCHANGES: Final = 200
_SHAPES_OF_A_LIST: Final = 20


class Exchange(NamedTuple):
    """One request, from the first attempt on (1), and its reply, if a whole one came."""

    request: Request
    attempt: int
    seconds: float
    """Until the answer was read."""
    reply: Reply | None
    error_code: str | None
    """The client's error code; None: a valid answer."""


class Recorder:
    """Collects the first few hundred exchanges without their contents. Safe to call from several threads."""

    def __init__(self) -> None:
        self._salt = secrets.token_bytes(16)
        self._lock = threading.Lock()
        self._exchanges: list[dict[str, Any]] = []
        self._left_out: Counter[str] = Counter()

    def __call__(self, exchange: Exchange) -> None:
        if exchange.reply is None:
            return
        written = self._written(exchange, exchange.reply)
        with self._lock:
            if len(self._exchanges) < _MOST_EXCHANGES:
                self._exchanges.append(written)
            else:
                self._left_out[exchange.request.call] += 1

    def encoded(self, version: str, now: dt.datetime) -> bytes:
        """The recording, as JSON that people can read."""
        with self._lock:
            document = {
                "flowtrail": version,
                "recorded_at": now,
                "exchanges": self._exchanges,
                "left_out": dict(self._left_out),
            }
            return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"

    def _written(self, exchange: Exchange, reply: Reply) -> dict[str, Any]:
        request = exchange.request
        return {
            "call": request.call,
            "method": request.method,
            "path": request.path,
            "parameters": tuple(request.params),
            "attempt": exchange.attempt,
            "status": reply.status,
            "error_code": exchange.error_code,
            "headers": {_name(k): v[:200] if k.lower() in _HTTP else f"({len(v)})" for k, v in reply.headers.items()},
            "body_bytes": len(reply.body),
            "body": self._body(reply.body),
        }

    def _body(self, body: bytes) -> Any:
        try:
            return self._shape("", json.loads(body), 0)
        except (ValueError, RecursionError):
            start = body.lstrip()[:1]
            return {"no JSON": "HTML or XML" if start == b"<" else "empty" if not start else "something else"}

    def _shape(self, key: str, value: Any, depth: int) -> Any:
        if depth > _DEEPEST:
            return "..."
        if isinstance(value, dict):
            return {_name(name): self._shape(name, each, depth + 1) for name, each in value.items()}
        if isinstance(value, list):
            return f"list({len(value)})" if key == _CHILDREN else self._list(key, value, depth)
        if key in _IDS and isinstance(value, str | int | float) and not isinstance(value, bool):
            return f"{_kind(value)} #{self._hash(str(value).removesuffix('.0'))}"
        if key in _NUMBERS and isinstance(value, int) and not isinstance(value, bool):
            return value
        return f"string({len(value)})" if isinstance(value, str) else _kind(value)

    def _list(self, key: str, items: list[Any], depth: int) -> dict[str, Any]:
        levels = _levels(items)
        items = [item for level in levels for item in level]
        shapes = Counter(msgspec.json.encode(self._kinds(self._shape(key, item, depth + 1))) for item in items)
        kinds = [{"items": count, "shape": msgspec.json.decode(shape)} for shape, count in shapes.most_common()]
        different = {json.dumps(item, sort_keys=True) for item in items}
        tree = {"levels": len(levels)} if len(levels) > 1 else {}
        return {"list": len(items), "different": len(different), **tree, "of": kinds[:_SHAPES_OF_A_LIST]}

    def _kinds(self, shape: Any) -> Any:
        """A shape without lengths and hashes, so that items of the same kind are equal."""
        if isinstance(shape, dict):
            return {name: self._kinds(each) for name, each in shape.items()}
        return shape.partition("(")[0].partition(" #")[0] if isinstance(shape, str) else shape

    def _hash(self, text: str) -> str:
        return hashlib.sha256(self._salt + text.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def _levels(items: list[Any]) -> list[list[Any]]:
    """The items, their children, the children of these, and so on."""
    levels = [items]
    while below := [child for item in levels[-1] if isinstance(item, dict) for child in _children(item)]:
        levels.append(below)
    return levels


def _children(item: dict[str, Any]) -> list[Any]:
    children = item.get(_CHILDREN)
    return children if isinstance(children, list) else []


def _name(name: str) -> str:
    """A key or a header's name, masked if it is very long or not a name: somebody may have typed it."""
    plain = name.isascii() and name.replace("_", "").replace("-", "").isalnum()
    return name if plain and len(name) <= _LONGEST_NAME else f"({len(name)})"


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if value is None:
        return "null"
    return {int: "integer", float: "fraction", str: "string"}.get(type(value), "something else")
