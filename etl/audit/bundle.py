"""Writes an audit bundle: a part of a trail for somebody to check, its proof, and the checker itself.

docs/audit.md has the format. ``check.py``, which is part of the bundle, knows it too: its ``FILES`` has the keys of
each file, in order.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any, BinaryIO, Final, NamedTuple

import msgspec
from sqlalchemy import Connection, Engine, select

from etl.audit import check
from etl.audit.extent import Contents, Extent, contents
from etl.audit.rows import FILES, answers
from etl.database import reading
from etl.domain.answers import KeptAnswer, data_of
from etl.errors import DatabaseError, FlowtrailError
from etl.schema import answer

_CHECKER: Final = "check.py"
_MANIFEST: Final = "manifest.json"

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
            for name, rows in FILES.items():
                begun(name)
                writer.lines(name, rows(connection, found))
            begun("answers")
            kept = writer.answers(connection, answers(connection, found))
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
        columns = [column.partition(":")[::2] for column in check.FILES[name].split()]
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
