"""The file to which runs append the ends of chains, so that nobody has to remember to keep them."""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import fcntl
import io
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

import msgspec
from sqlalchemy import Engine

from etl.domain.model import Target
from etl.system.disk import MIB, PRIVATE, sync_folder
from etl.verify.heads import heads_of, ids_of, versions
from etl.verify.kept import KeptSeal, seal_lines

_AT_ONCE: Final = 500
_LOCK_SECONDS: Final = 2.0
_LONGEST_LINE: Final = 64 * MIB
"""A longer line is not a head: a span takes some 200 bytes."""


class _KeptVersion(msgspec.Struct, frozen=True):
    """The part of a line that is read again."""

    org_id: str
    user_id: str
    expression: str
    version: int


_decode: Final = msgspec.json.Decoder(_KeptVersion).decode
_decode_seal: Final = msgspec.json.Decoder(KeptSeal).decode


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
            whole = _whole(lines)
            while chunk := list(islice(whole, _AT_ONCE)):
                self._remember(kept for line in chunk for kept in _read(line))
                self._known_seal = max([self._known_seal, *(seal.id for line in chunk for seal in _read_seal(line))])
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

    def _remember(self, kept: Iterable[_KeptVersion]) -> None:
        latest = {Target(each.org_id, each.user_id, each.expression): each.version for each in kept}
        for target, number in ids_of(self._engine, list(latest)).items():
            self._known[number] = latest[target]

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
        if line.endswith(b"\n") or any(True for _ in _read(line)) or any(True for _ in _read_seal(line)):
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


def _whole(file: BinaryIO) -> Iterator[bytes]:
    return (line for line in file if line.endswith(b"\n"))


def _read(line: bytes) -> Iterator[_KeptVersion]:
    """What a line names; nothing if it is not a head, which ``against`` reports."""
    with contextlib.suppress(msgspec.MsgspecError, UnicodeError):
        yield _decode(line)


def _read_seal(line: bytes) -> Iterator[KeptSeal]:
    """The seal in a line, if any."""
    with contextlib.suppress(msgspec.MsgspecError, UnicodeError):
        yield _decode_seal(line)


def _write(file: io.FileIO, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[file.write(left) or 0 :]
