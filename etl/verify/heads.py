"""The ends of the chains and the seals, to be kept where nobody who can change the database can change them, and
compared later; and the file to which runs append them, so that nobody has to remember to keep them."""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import fcntl
import io
import os
import stat
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final, NamedTuple

import msgspec
from sqlalchemy import Connection, Engine, Row, and_, bindparam, func, select, tuple_

from etl.database import reading
from etl.domain.model import Span, Target
from etl.domain.seal import kept_line
from etl.report.runs import TRAIL_OF_SEAL
from etl.schema import TARGET_KEY, change_set, observation, run_seal, target
from etl.system.disk import MIB, PRIVATE, sync_folder
from etl.verify.rows import as_read, pages, rows_of
from etl.verify.seals import last_seal

_AT_ONCE: Final = 500
_SEALS_AT_ONCE: Final = 1_000
_LOCK_SECONDS: Final = 2.0
_LONGEST_LINE: Final = 64 * MIB
"""A longer line is not a head: a span takes some 200 bytes."""
Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Time = Annotated[dt.datetime, msgspec.Meta(tz=True)]


class KeptSeal(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A line that keeps a seal."""

    trail_id: str
    id: int
    seal: Digest
    sealed_at: Time


class Head(msgspec.Struct, frozen=True):
    """The end of a target's chain: the content of a line of ``flowtrail verify --head``."""

    org_id: str
    user_id: str
    expression: str
    version: int
    hash: Digest
    state_digest: Digest
    spans: Sequence[Span]
    """The spans of the version, by ``first_at``; no hash covers them yet."""
    open: bool
    """Whether the last of the spans was still open."""
    taken_at: Time

    def __post_init__(self) -> None:
        if any(at.tzinfo is None for span in self.spans for at in (span.first_at, span.last_asked_at, span.last_at)):
            raise ValueError("Expected `datetime` with a timezone component - at `$.spans`")

    @property
    def target(self) -> Target:
        return Target(self.org_id, self.user_id, self.expression)


def decoded(line: bytes) -> KeptSeal | Head:
    """What a line keeps. A name in a head may contain `trail_id`, too. Raises MsgspecError or UnicodeError if it keeps
    neither."""
    if b"trail_id" in line:
        with contextlib.suppress(msgspec.MsgspecError):
            return msgspec.json.decode(line, type=KeptSeal)
    return msgspec.json.decode(line, type=Head)


_LATEST: Final = (
    select(func.max(change_set.c.version))
    .where(change_set.c.target_id == target.c.id)
    .correlate(target)
    .scalar_subquery()
)
_HEAD: Final = select(
    target.c.id,
    *TARGET_KEY,
    change_set.c.version,
    change_set.c.hash,
    change_set.c.state_digest,
    target.c.observation_id.is_not(None).label("open"),
).join_from(target, change_set, and_(change_set.c.target_id == target.c.id, change_set.c.version == _LATEST))
_HEADS_OF: Final = _HEAD.where(target.c.id.in_(bindparam("ids", expanding=True))).order_by(target.c.id)
_VERSIONS_AT_ONCE: Final = 10_000
_VERSIONS: Final = select(target.c.id, target.c.version).where(target.c.version > 0)
_SPANS: Final = (
    select(
        observation.c.target_id,
        observation.c.version,
        *(observation.c[name] for name in Span.__struct_fields__),
    )
    .where(tuple_(observation.c.target_id, observation.c.version).in_(bindparam("versions", expanding=True)))
    .order_by(observation.c.first_at, observation.c.id)
)
_TARGETS: Final = select(target.c.id, *TARGET_KEY).where(tuple_(*TARGET_KEY).in_(bindparam("targets", expanding=True)))
KEPT_SEALS: Final = select(TRAIL_OF_SEAL.label("trail_id"), run_seal.c.id, run_seal.c.seal, run_seal.c.sealed_at)
Version = tuple[int, int]
"""A target's id, and one of its versions."""


def heads(engine: Engine, now: dt.datetime) -> Iterator[dict[str, Any]]:
    """The head of every target that was ever observed, ready to be printed as a line of JSON.

    Times are RFC 3339 in UTC; ``taken_at`` is ``now``. Raises DatabaseError if the database cannot be read.
    """

    def taken(connection: Connection, found: Sequence[Row[Any]]) -> Iterator[dict[str, Any]]:
        return iter(_taken(connection, found, now).values())

    return pages(engine, _HEAD, target.c.id, taken, at_once=_AT_ONCE)


def heads_of(engine: Engine, target_ids: Sequence[int], now: dt.datetime) -> dict[int, dict[str, Any]]:
    """As ``heads``, for some targets, by their ids; targets without a version are left out."""
    with reading(engine) as connection:
        return _taken(connection, rows_of(connection, _HEADS_OF, ids=list(target_ids)), now)


def _taken(connection: Connection, found: Sequence[Row[Any]], now: dt.datetime) -> dict[int, dict[str, Any]]:
    spans = spans_of(connection, [(row.id, row.version) for row in found])
    taken = {}
    for row in found:
        names = (row.org_id, row.user_id, row.expression)
        head = Head(*names, row.version, row.hash, row.state_digest, spans[row.id, row.version], row.open, now)
        taken[row.id] = msgspec.to_builtins(head)
    return taken


def versions(engine: Engine) -> Iterator[Version]:
    """The id and the version of every target that was ever observed, by id, in short transactions."""
    return map(tuple, pages(engine, _VERSIONS, target.c.id, as_read, at_once=_VERSIONS_AT_ONCE))


def ids_of(connection: Connection, targets: Sequence[Target]) -> dict[Target, int]:
    """The ids of those of ``targets`` that the database has."""
    return {Target(*names): number for number, *names in map(tuple, rows_of(connection, _TARGETS, targets=targets))}


def spans_of(connection: Connection, versions: Sequence[Version]) -> Mapping[Version, Sequence[Span]]:
    """The spans of these versions, by ``first_at``."""
    spans: defaultdict[Version, list[Span]] = defaultdict(list)
    if versions:
        for target_id, version, *span in map(tuple, rows_of(connection, _SPANS, versions=versions)):
            spans[target_id, version].append(Span(*span))
    return spans


def seal_lines(engine: Engine, *, after: int = 0) -> Iterator[dict[str, Any]]:
    """Each seal after number ``after`` as a line to keep, by number. Raises DatabaseError."""
    rows = pages(engine, KEPT_SEALS, run_seal.c.id, as_read, at_once=_SEALS_AT_ONCE, after=after)
    return (kept_line(row.trail_id, row.id, row.seal, row.sealed_at) for row in rows)


def latest_seal_line(engine: Engine) -> Iterator[dict[str, Any]]:
    """The last seal as a line to keep, if there is one."""
    return seal_lines(engine, after=last_seal(engine) - 1)


class Appended(NamedTuple):
    """The result of ``catch_up``."""

    heads: int
    """The number of heads that were appended."""
    set_back: int
    """Targets of which the file has a later version than the database, as after restoring an old backup."""


class HeadsFile:
    """Remembers the last version of each target and the last seal that its file has, and reads only what others
    appended since.

    Each line is as ``flowtrail verify --head`` prints it. The file is for its owner only (0600), locked while it is
    written, and on the disk when ``catch_up`` returns. A truncated last line is removed. If the file was moved away, a
    new one begins with every head.
    """

    def __init__(self, path: Path, engine: Engine) -> None:
        self.path = path
        self._engine = engine
        self._reset()

    def catch_up(self, now: dt.datetime) -> Appended:
        """Append the heads that have changed since the file's last ones. Raises OSError and DatabaseError; then try
        again."""
        with self._opened() as file:
            self._read_appended(file)
            heads = set_back = 0
            moved = (each for each in versions(self._engine) if self._known.get(each[0]) != each[1])
            while chunk := list(islice(moved, _AT_ONCE)):
                set_back += sum(version < self._known.get(number, 0) for number, version in chunk)
                heads += self._append_heads(file, [number for number, _ in chunk], now)
            self._append_seals(file)
            return Appended(heads, set_back)

    def _reset(self) -> None:
        self._identity: tuple[int, int] | None = None
        self._read_to = 0
        self._known: dict[int, int] = {}
        self._known_seal = 0

    @contextlib.contextmanager
    def _opened(self) -> Iterator[io.FileIO]:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        with open(self.path, "a+b", buffering=0, opener=lambda path, _: os.open(path, flags, PRIVATE)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError(errno.EINVAL, "is no regular file")
            _lock(file)
            yield file

    def _read_appended(self, file: io.FileIO) -> None:
        """Read what this or another process has appended since the last time."""
        status = os.fstat(file.fileno())
        if (status.st_dev, status.st_ino) != self._identity or status.st_size < self._read_to:
            self._reset()
            self._identity = (status.st_dev, status.st_ino)
        if status.st_size == self._read_to:
            return
        with open(self.path, "rb") as lines:
            lines.seek(self._read_to)
            whole = (line for line in lines if line.endswith(b"\n"))
            while chunk := list(islice(whole, _AT_ONCE)):
                self._remember([each for line in chunk for each in _kept(line)])
                self._read_to += sum(map(len, chunk))
        if self._read_to < status.st_size:
            self._cut_off_rest(file)

    def _cut_off_rest(self, file: io.FileIO) -> None:
        """Remove what follows the last complete line; if the file may only grow, end the line instead."""
        try:
            os.ftruncate(file.fileno(), self._read_to)
        except PermissionError:
            _write(file, b"\n")
            self._read_to = os.fstat(file.fileno()).st_size

    def _remember(self, kept: list[Head | KeptSeal]) -> None:
        latest = {each.target: each.version for each in kept if isinstance(each, Head)}
        with reading(self._engine) as connection:
            self._known |= {number: latest[of] for of, number in ids_of(connection, list(latest)).items()}
        self._known_seal = max([self._known_seal, *(each.id for each in kept if isinstance(each, KeptSeal))])

    def _append_heads(self, file: io.FileIO, numbers: list[int], now: dt.datetime) -> int:
        taken = heads_of(self._engine, numbers, now)
        self._append(file, b"".join(msgspec.json.encode(head) + b"\n" for head in taken.values()))
        self._known |= {number: head["version"] for number, head in taken.items()}
        return len(taken)

    def _append_seals(self, file: io.FileIO) -> None:
        """Append every seal after the last one that the file has."""
        new = seal_lines(self._engine, after=self._known_seal)
        while chunk := list(islice(new, _AT_ONCE)):
            self._append(file, b"".join(msgspec.json.encode(each) + b"\n" for each in chunk))
            self._known_seal = chunk[-1]["id"]

    def _append(self, file: io.FileIO, lines: bytes) -> None:
        try:
            _write(file, lines)
            os.fsync(file.fileno())
            if not self._read_to:
                sync_folder(self.path.parent)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(file.fileno(), self._read_to)
            raise
        self._read_to += len(lines)


def whole_lines(file: BinaryIO, cut: Callable[[int], None]) -> Iterator[bytes]:
    """The lines of a file of heads, without a truncated last one; ``cut`` is called with its number."""
    lines = iter(partial(file.readline, _LONGEST_LINE), b"")
    for number, line in enumerate(lines, 1):
        if line.endswith(b"\n") or any(_kept(line)):
            yield line
        else:
            cut(number)


def _lock(file: io.FileIO) -> None:
    """Wait a moment for another process that appends. Raises OSError if it takes longer."""
    until = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            return fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                raise
            time.sleep(_LOCK_SECONDS / 100)


def _kept(line: bytes) -> Iterator[Head | KeptSeal]:
    """What a line keeps; nothing if it keeps neither a head nor a seal, which ``against`` reports."""
    with contextlib.suppress(msgspec.MsgspecError, UnicodeError):
        yield decoded(line)


def _write(file: io.FileIO, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[file.write(left) or 0 :]
