"""Writes an audit bundle: a part of a trail for somebody to check, its proof, and the checker itself.

docs/audit.md has the format. ``check.py``, which is part of the bundle, knows it too: its ``FILES`` has the keys of
each file, in order. Each is a column of the same name, but for what is computed here.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from importlib.resources import files
from itertools import groupby
from operator import itemgetter
from typing import Any, BinaryIO, Final, NamedTuple

import msgspec
from sqlalchemy import ColumnElement, Connection, Engine, Select, Table, and_, func, select

from etl.audit import check
from etl.audit.extent import Contents, Extent, contents, made_in, of_versions, rows_in
from etl.database import STREAMED, reading
from etl.domain.answers import KeptAnswer, data_of
from etl.domain.seal import ACKNOWLEDGEMENT, acknowledgement_hash
from etl.errors import DatabaseError, FlowtrailError
from etl.schema import (
    CHANGE_KIND,
    TARGET_KEY,
    UtcTime,
    acknowledgement,
    answer,
    change_set,
    hold_event,
    observation,
    org_event,
    pruned_issues,
    run_seal,
    seal_timestamp,
    sync_issue,
    sync_run,
    target,
    target_membership,
    trail,
    workflow_change,
    workflow_detail,
)

Row = Sequence[Any]
Rows = Callable[[Connection, Contents, str], Iterator[Row]]
_CHECKER: Final = "check.py"
_MANIFEST: Final = "manifest.json"
_JSON: Final = ("texts", "doubts", "object")
"""What the database has as text."""

Progress = Callable[[str], None]
"""Called with the name of each file when it begins."""


class Bundle(NamedTuple):
    """What was written."""

    extent: Extent
    """Its end may be earlier than what was asked for; see ``extent.Contents``."""
    seals: int
    runs: int
    """The runs that are opened completely."""
    targets: int
    change_sets: int
    changes: int
    answers: int


def write_bundle(
    engine: Engine, file: BinaryIO, extent: Extent, now: dt.datetime, begun: Progress = lambda name: None
) -> Bundle:
    """Write what ``extent`` names, as it is at one moment, in memory that grows by a few bytes per target.

    ``engine`` is read in one long transaction: pass a copy if that would keep writers waiting. Raises DatabaseError,
    and FlowtrailError if a kept answer is damaged.
    """
    try:
        with reading(engine) as connection, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            found = contents(connection, extent, now)
            writer = _Writer(archive, found.made_at)
            for name, rows in _FILES.items():
                begun(name)
                writer.lines(name, rows(connection, found, name))
            begun("answers")
            kept = writer.answers(connection, _answers(connection, found))
            writer.add(_CHECKER, files("etl.audit").joinpath(_CHECKER).read_bytes())
            writer.manifest(_manifest(found, writer))
    except (ValueError, TypeError, LookupError) as error:  # a scope or a hold that no run wrote
        raise DatabaseError(
            f"The database holds what cannot be read ({error}): no bundle was written. Run `flowtrail verify`."
        ) from error
    counts = writer.counts
    return Bundle(
        found.extent,
        seals=counts["seals"],
        runs=len(found.whole),
        targets=len(found.ranges),
        change_sets=counts["change_sets"],
        changes=counts["changes"],
        answers=kept,
    )


class _Writer:
    """Puts files into the archive, and remembers their sizes and hashes."""

    def __init__(self, archive: zipfile.ZipFile, made_at: dt.datetime) -> None:
        self._archive = archive
        self._moment = made_at.astimezone(dt.UTC).timetuple()[:6]
        self.files: dict[str, dict[str, Any]] = {}
        self.counts: dict[str, int] = {}
        """The number of lines of each file."""
        self.last: dict[str, Any] = {"id": 0, "seal": None}
        """The newest seal."""

    def lines(self, name: str, rows: Iterable[Sequence[Any]]) -> None:
        """Write a file with one JSON object per row."""
        columns = _keys_of(name).items()
        self.counts[name] = 0

        def lines() -> Iterator[bytes]:
            for row in rows:
                self.counts[name] += 1
                line = {key: _written(kind, value) for (key, kind), value in zip(columns, row, strict=True)}
                if name == "seals":
                    self.last = {key: line[key] for key in self.last}
                yield msgspec.json.encode(line) + b"\n"

        self._write(f"{name}.jsonl", lines())

    def answers(self, connection: Connection, hashes: Iterable[str]) -> int:
        """Write those of these answers that are kept, each once; return their number."""
        columns = (answer.c.data_hash, answer.c.body, answer.c.length, answer.c.encoding)
        written: set[str] = set()
        for data_hash in hashes:
            row = None
            if data_hash not in written:
                row = connection.execute(select(*columns).where(answer.c.data_hash == data_hash)).first()
            if row is not None:
                written.add(data_hash)
                self.add(f"answers/{data_hash}", _data(KeptAnswer(row[0], bytes(row[1]), row[2], row[3])))
        return len(written)

    def add(self, name: str, content: bytes) -> None:
        """Write a small file."""
        self._write(name, [content])

    def manifest(self, content: Mapping[str, Any]) -> None:
        """Write the last file, which names all others."""
        with self._archive.open(self._info(_MANIFEST), "w") as file:
            file.write(json.dumps(content, ensure_ascii=False, indent=1).encode() + b"\n")

    def _write(self, name: str, pieces: Iterable[bytes]) -> None:
        computed, size = hashlib.sha256(), 0
        with self._archive.open(self._info(name), "w", force_zip64=True) as file:
            for piece in pieces:
                computed.update(piece)
                size += len(piece)
                file.write(piece)
        self.files[name] = {"bytes": size, "sha256": computed.hexdigest()}

    def _info(self, name: str) -> zipfile.ZipInfo:
        info = zipfile.ZipInfo(name, self._moment)
        info.compress_type = zipfile.ZIP_DEFLATED
        info.external_attr = 0o644 << 16
        return info


def _written(kind: str, value: Any) -> Any:
    """A value as it is in a line."""
    if isinstance(value, dt.datetime):
        return _moment(value)
    if kind in _JSON and isinstance(value, str):
        return json.loads(value)
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def _moment(at: dt.datetime) -> str:
    return at.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")


def _data(kept: KeptAnswer) -> bytes:
    try:
        return data_of(kept)
    except ValueError as error:
        raise FlowtrailError(
            f"The kept answer {kept.data_hash} is {error}: no bundle was written. Run `flowtrail verify --answers`."
        ) from None


def _manifest(found: Contents, writer: _Writer) -> dict[str, Any]:
    since, until = found.extent.since, found.extent.until
    return {
        "bundle": check.BUNDLE,
        "made_at": _moment(found.made_at),
        "since": None if since is None else _moment(since),
        "until": None if until is None else _moment(until),
        "org_id": found.extent.org_id,
        "last_seal": writer.last,
        "files": writer.files,
    }


# ------------------------------------------------------------------------------------------------------------ rows


def _keys_of(name: str) -> dict[str, str]:
    """The keys of a file, each with the kind of its values."""
    return dict(column.split(":") for column in check.FILES[name].split())


def _columns(name: str, *tables: Table) -> list[ColumnElement[Any]]:
    """Of each key of a file, the column in the first of these tables that has it; those without one are left out."""
    found = (next((table.c[key] for table in tables if key in table.c), None) for key in _keys_of(name))
    return [column for column in found if column is not None]


def _stream(connection: Connection, query: Select[Any]) -> Iterator[Row]:
    with connection.execute(query, execution_options=STREAMED) as found:
        yield from found


def _all(table: Table, connection: Connection, contents: Contents, name: str) -> Iterator[Row]:
    """Every row of a table, by its key."""
    return _stream(connection, select(*_columns(name, table)).order_by(*table.primary_key))


def _opened(
    table: Table, connection: Connection, contents: Contents, name: str, *, by: Sequence[Any] = ()
) -> Iterator[Row]:
    """The rows of the runs that are opened completely."""
    place = list(_keys_of(name)).index("run_id")
    rows = _stream(connection, _rows(name, table, contents).order_by(*by, *table.primary_key))
    return (row for row in rows if row[place] in contents.whole)


def _sealed(table: Table, connection: Connection, contents: Contents, name: str) -> Iterator[Row]:
    """All rows of sealed runs about the targets of the bundle, from the first."""
    query = _rows(name, table, contents).join(run_seal, run_seal.c.run_id == table.c.run_id)
    return _stream(connection, query.order_by(*table.primary_key))


def _rows(name: str, table: Table, contents: Contents) -> Select[Any]:
    """Of a table whose rows are about targets, those about targets of the bundle."""
    if "target_id" not in table.c:
        return select(*_columns(name, table))
    query = select(*_columns(name, table, target)).join_from(table, target, target.c.id == table.c.target_id)
    org_id = contents.extent.org_id
    return query if org_id is None else query.where(target.c.org_id == org_id)


def _runs(connection: Connection, contents: Contents, name: str) -> Iterator[Row]:
    """Every run that has ended, by its seal; one without a seal, which should not be, comes last."""
    query = select(*_columns(name, sync_run)).outerjoin(run_seal, run_seal.c.run_id == sync_run.c.id)
    query = query.where(run_seal.c.id.is_not(None) | (sync_run.c.status != "running"))
    place = list(_keys_of(name)).index("scope")
    for row in _stream(connection, query.order_by(run_seal.c.id.is_(None), run_seal.c.id, sync_run.c.id)):
        opened = contents.opened(row[0])
        scope = row[place] if opened == "whole" else "{}"  # it may name users of other organisations
        yield (*row[:place], scope, opened, *row[place + 1 :])


def _hashes(connection: Connection, contents: Contents, name: str) -> Iterator[Row]:
    """The hashes of the versions of runs that are opened that way."""
    query = select(change_set.c.hash).join(target, target.c.id == change_set.c.target_id)
    for run_id in sorted(contents.hashes):
        of_run = query.where(change_set.c.run_id == run_id).order_by(*TARGET_KEY, change_set.c.version)
        yield run_id, list(connection.execute(of_run).scalars())


def _acknowledgements(connection: Connection, contents: Contents, name: str) -> Iterator[Row]:
    """All that were sealed; about others than the organisation of the bundle, only their hashes."""
    org_id, mine = acknowledgement.c.org_id, contents.extent.org_id
    query = select(*(acknowledgement.c[column] for column in ACKNOWLEDGEMENT)).order_by(acknowledgement.c.id)
    last = select(func.max(run_seal.c.sealed_at, type_=UtcTime())).scalar_subquery()
    query = query.where(acknowledgement.c.made_at <= last)
    if name == "acknowledgements":
        yield from _stream(connection, query if mine is None else query.where(org_id == mine))
    elif mine is not None:
        others = _stream(connection, query.where(org_id != mine))
        yield from ((row.id, row.made_at, acknowledgement_hash(row)) for row in others)  # type: ignore[attr-defined]


# ---------------------------------------------------------------------------------------------------- by target


def _openings(connection: Connection, contents: Contents, name: str) -> Iterator[Row]:
    """The list of each target whose versions do not begin with the first, by its first version here.

    Each list is ``[flow_id, flow_name, cycle, editable]`` of each workflow, by flow_id.
    """

    def listed(own: Any) -> Select[Any]:
        of_flow = (change_set.c.target_id, workflow_change.c.flow_id)
        latest = (
            select(
                *(*of_flow, workflow_change.c.new_name, workflow_change.c.new_cycle, workflow_change.c.new_editable),
                CHANGE_KIND.label("kind"),
                func.row_number().over(partition_by=of_flow, order_by=change_set.c.version.desc()).label("nth"),
            )
            .join_from(change_set, workflow_change, workflow_change.c.change_set_id == change_set.c.id)
            .where(change_set.c.target_id == own.target_id, change_set.c.version <= own.first)
            .subquery("latest")
        )
        there = and_(latest.c.target_id == target.c.id, latest.c.nth == 1, latest.c.kind != "removed")
        query = select(*TARGET_KEY, own.first, *latest.c[1:5]).join_from(target, latest, there, isouter=True)
        return query.where(target.c.id == own.target_id).order_by(*TARGET_KEY, latest.c.flow_id)

    later = ([each for each in chunk if each.first > 1] for chunk in contents.ranges.chunks())
    rows = rows_in(connection, filter(None, later), listed)
    for opening, flows in groupby(rows, itemgetter(0, 1, 2, 3)):
        yield (*opening, [list(row[4:]) for row in flows if row[4] is not None])


def _change_sets(connection: Connection, contents: Contents, name: str) -> Iterator[Row]:
    query = select(*_columns(name, change_set, target)).join(target, target.c.id == change_set.c.target_id)
    return _by_target(connection, contents, query, change_set, change_set.c.version)


def _changes(connection: Connection, contents: Contents, name: str) -> Iterator[Row]:
    query = (
        select(*_columns(name, workflow_change, change_set, target))
        .join_from(target, change_set, change_set.c.target_id == target.c.id)
        .join(workflow_change, workflow_change.c.change_set_id == change_set.c.id)
    )
    order = (change_set.c.version, workflow_change.c.flow_id, workflow_change.c.kind)
    return _by_target(connection, contents, query, change_set, *order)


def _spans(connection: Connection, contents: Contents, name: str) -> Iterator[Row]:
    """The spans of the versions, and those of the version before, which the first one's hash covers."""
    query = select(*_columns(name, observation, target)).join(target, target.c.id == observation.c.target_id)
    if contents.extent.until is not None:
        query = query.where(observation.c.first_at < contents.extent.until)
    order = (observation.c.version, observation.c.first_at)
    return _by_target(connection, contents, query, observation, *order, earlier=1)


def _by_target(
    connection: Connection, contents: Contents, query: Select[Any], versions: Table, *order: Any, earlier: int = 0
) -> Iterator[Row]:
    def inside(own: Any) -> Select[Any]:
        return query.where(made_in(own, versions, earlier=earlier)).order_by(*TARGET_KEY, *order)

    return rows_in(connection, contents.ranges.chunks(), inside)


def _answers(connection: Connection, contents: Contents) -> Iterator[str]:
    """The hashes of the answers that made the versions, or in which holds were seen; may contain repetitions."""
    yield from of_versions(connection, contents.ranges, change_set.c.data_hash)
    run_id, data_hash = (list(_keys_of("holds")).index(key) for key in ("run_id", "data_hash"))
    for row in _sealed(hold_event, connection, contents, "holds"):
        if row[run_id] in contents.whole:
            yield row[data_hash]


_FILES: Final[dict[str, Rows]] = {
    "trails": partial(_all, trail),
    "seals": partial(_all, run_seal),
    "runs": _runs,
    "hashes": _hashes,
    "memberships": partial(_sealed, target_membership),
    "holds": partial(_sealed, hold_event),
    "details": partial(_opened, workflow_detail),
    "org_events": partial(_opened, org_event),
    "pruned_issues": partial(_sealed, pruned_issues),
    "issues": partial(_opened, sync_issue, by=TARGET_KEY),
    "openings": _openings,
    "change_sets": _change_sets,
    "changes": _changes,
    "spans": _spans,
    "timestamps": partial(_all, seal_timestamp),
    "acknowledgements": _acknowledgements,
    "other_acknowledgements": _acknowledgements,
}
"""The rows of each file: tuples in the order of its keys."""
