"""Checks the kept answers: each must have its hash, and must show the version and the holds that name it.

A version is what its answer lists, plus workflows whose removal was held at the time.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
from sqlalchemy import Connection, Engine, Row, Select, bindparam, select

from etl.domain import answers
from etl.domain.kinds import ATTRIBUTE_OF
from etl.domain.model import Doubt, Flow
from etl.errors import GatewayError
from etl.schema import answer, hold_event, workflow_detail
from etl.verify.chain import Chain
from etl.verify.finding import Broken, Finding, Verbatim
from etl.verify.history import doubts_of
from etl.verify.rows import ChangeSetRow, as_read, pages

if TYPE_CHECKING:
    from etl.gateway.answer import FlowList

_AT_ONCE: Final = 200
_OF_DIRECTORY: Final = b'"isDirectory"'
"""A key of each of its nodes; no text within JSON has it so."""
_COLUMNS: Final = (answer.c.data_hash, answer.c.body, answer.c.length, answer.c.encoding)
_ANSWERS: Final[Select[Any]] = select(*_COLUMNS)
_ANSWER: Final[Select[Any]] = _ANSWERS.where(answer.c.data_hash == bindparam("data_hash"))
_BODIES: Final[Select[Any]] = select(
    *(workflow_detail.c[name] for name in ("id", "run_id", "detail_hash", "body"))
).where(workflow_detail.c.body.is_not(None))
_HOLDS: Final[Select[Any]] = (
    select(*(hold_event.c[name] for name in ("kind", "at", "flow_ids", "doubted", "data_hash")))
    .where(hold_event.c.target_id == bindparam("target_id"))
    .order_by(hold_event.c.id)
)


class Answers(msgspec.Struct):
    """What a check of the answers has read."""

    kept: int = 0
    bytes: int = 0
    """The total length of the kept answers."""
    versions: int = 0
    proven: int = 0
    """Versions whose answer is kept and shows them."""


def bodies(engine: Engine, went: Answers) -> Iterator[Finding]:
    """Kept answers that do not agree with their rows. Raises DatabaseError."""
    for row in pages(engine, _ANSWERS, answer.c.data_hash, as_read, at_once=_AT_ONCE, after=None, tolerant=True):
        went.kept += 1
        try:
            went.bytes += len(_data(row))
        except Broken as broken:
            yield broken.of()


def details(engine: Engine) -> Iterator[Finding]:
    """Kept details of workflows that do not have their hash. Raises DatabaseError."""
    for row in pages(engine, _BODIES, workflow_detail.c.id, as_read, at_once=_AT_ONCE, tolerant=True):
        try:
            right = hashlib.sha256(zlib.decompress(row.body)).hexdigest() == row.detail_hash
        except zlib.error:
            right = False
        if not right:
            wanted = Verbatim(f"the bytes of '{row.detail_hash}'")
            yield Broken(f"workflow_detail {row.id}.body", wanted, Verbatim("others")).of(run_id=row.run_id)


class TargetAnswers:
    """Checks the answers of a target's versions and holds, during its replay."""

    def __init__(self, connection: Connection, target_id: int, went: Answers) -> None:
        self._connection = connection
        self._went = went
        rows = connection.execute(_HOLDS, {"target_id": target_id})
        self._holds = [_Hold(row.kind, row.at, [*doubts_of(row)], row.data_hash) for row in rows]
        self._next = 0
        self._held: set[Doubt] = set()

    def require_version(self, chain: Chain, row: ChangeSetRow) -> None:
        """Raise Broken if the answer of the last linked version is kept and does not show it."""
        self._went.versions += 1
        self._hold_until(row.observed_at)
        listed = self._listed(row.data_hash, row.version)
        if listed is None:
            return
        flows = chain.state.flows
        for flow_id in sorted(listed.keys() | flows.keys()):
            is_held = flow_id not in listed and Doubt(flow_id, "removed", None) in self._held
            if listed.get(flow_id) != flows.get(flow_id) and not is_held:
                wanted = f"{_described(listed.get(flow_id))}, as its answer has it"
                raise Broken("workflow", Verbatim(wanted), Verbatim(_described(flows.get(flow_id))), row.version)
        self._went.proven += 1

    def require_holds(self) -> None:
        """Raise Broken if the answer of a hold is kept and does not show what began or ended."""
        for hold in self._holds:
            listed = self._listed(hold.data_hash, None)
            if listed is None:
                continue
            for doubt in hold.doubts:
                if _shows(listed, doubt) == (hold.kind == "back"):
                    wanted = Verbatim(f"{hold.kind!r} at {hold.at} only of what its answer shows so")
                    raise Broken("hold_event", wanted, doubt.flow_id)

    def _hold_until(self, at: dt.datetime) -> None:
        while self._next < len(self._holds) and self._holds[self._next].at <= at:
            hold = self._holds[self._next]
            (self._held.update if hold.kind == "held" else self._held.difference_update)(hold.doubts)
            self._next += 1

    def _listed(self, data_hash: str, version: int | None) -> Mapping[str, Flow] | None:
        row = self._connection.execute(_ANSWER, {"data_hash": data_hash}).first()
        if row is None:
            return None
        return _read(_data(row, version), data_hash, version)


class _Hold(NamedTuple):
    kind: str
    at: dt.datetime
    doubts: Sequence[Doubt]
    data_hash: str


def _shows(listed: Mapping[str, Flow], doubt: Doubt) -> bool:
    """Whether an answer has a change that is held."""
    flow = listed.get(doubt.flow_id)
    if flow is None or doubt.kind == "removed":
        return (flow is None) == (doubt.kind == "removed")
    return bool(getattr(flow, ATTRIBUTE_OF[doubt.kind]) == doubt.new)


def _data(row: Row[Any], version: int | None = None) -> bytes:
    kept = answers.KeptAnswer(row.data_hash, bytes(row.body), row.length, row.encoding)
    try:
        return answers.data_of(kept)
    except ValueError as error:
        right = Verbatim(f"the {row.length} bytes of '{row.data_hash}'")
        raise Broken("answer.body", right, Verbatim(str(error)), version) from None


def _read(data: bytes, data_hash: str, version: int | None) -> Mapping[str, Flow]:
    """The workflows that the client reads in these bytes, whichever version of the API they are from."""
    from etl.gateway.answer import read_directory, read_flows  # a check without answers need not load the client
    from etl.gateway.calls import APIS

    readers: list[Callable[[msgspec.Raw], FlowList]] = [partial(read_flows, api=api) for api in APIS.values()]
    for read in [read_directory] if _OF_DIRECTORY in data else readers:
        try:
            return {flow.flow_id: flow for flow in read(msgspec.Raw(data)).flows}
        except GatewayError as error:
            problem = str(error)
    raise Broken("answer.body", Verbatim(f"a list, under '{data_hash}'"), Verbatim(problem), version)


def _described(flow: Flow | None) -> str:
    return "nothing" if flow is None else msgspec.json.encode(flow).decode()
