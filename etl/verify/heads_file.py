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
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

import msgspec
from sqlalchemy import Engine

from etl.database import reading
from etl.system.disk import MIB, PRIVATE, sync_folder
from etl.verify.heads import Head, KeptSeal, decoded, heads_of, ids_of, seal_lines, versions

_AT_ONCE: Final = 500
_LOCK_SECONDS: Final = 2.0
_LONGEST_LINE: Final = 64 * MIB
"""A longer line is not a head: a span takes some 200 bytes."""


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
