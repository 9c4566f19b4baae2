"""Files that must survive a crash: written next to their place, synced with their folder, and then renamed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from etl.errors import FlowtrailError, UsageError

PRIVATE: Final = 0o600
"""The mode of a new file: for its owner only."""
_PART: Final = re.compile(r"\..+\.[0-9a-f]{8}\.flowtrail-part").fullmatch
_LONGEST_NAME: Final = 200
_OLD_SECONDS: Final = 60


@contextlib.contextmanager
def part_file(path: Path) -> Iterator[Path]:
    """An empty file next to ``path``, to be renamed to it when complete; removed if it is still there at the block's
    end.

    What killed processes left in that folder is removed first.
    """
    remove_abandoned(path.parent)
    part = _part_of(path)
    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_RDWR, PRIVATE))
    with _held(part):
        yield part


@contextlib.contextmanager
def part_folder(path: Path) -> Iterator[Path]:
    """An empty folder next to ``path``, like ``part_file``."""
    remove_abandoned(path.parent)
    part = _part_of(path)
    part.mkdir(mode=0o700)
    with _held(part):
        yield part


def beside(database: Path) -> Iterator[Path]:
    """The files that SQLite may have next to a database."""
    return (database.with_name(database.name + suffix) for suffix in ("-journal", "-wal", "-shm"))


def remove_abandoned(folder: Path) -> None:
    """Remove our unfinished files and folders in ``folder`` that no process works on any more.

    A process keeps its own locked; the minute covers the moment between creating and locking it.
    """
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if _PART(name):
                with contextlib.suppress(OSError):
                    _remove_if_abandoned(folder / name)


def _part_of(path: Path) -> Path:
    """A name that no other process uses, and that names this one."""
    name = path.name.encode()[:_LONGEST_NAME].decode(errors="ignore")
    return path.with_name(f".{name}.{secrets.token_hex(4)}.flowtrail-part")


@contextlib.contextmanager
def _held(part: Path) -> Iterator[None]:
    descriptor = os.open(part, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some file systems have no locks: there nothing is removed later
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        _remove(part)
        os.close(descriptor)


def _remove_if_abandoned(part: Path) -> None:
    found = part.lstat()
    is_ours = found.st_uid == os.geteuid() and (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode))
    if not is_ours or time.time() - found.st_mtime < _OLD_SECONDS:
        return
    descriptor = os.open(part, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(part)
    finally:
        os.close(descriptor)


def _remove(part: Path) -> None:
    if part.is_dir():
        shutil.rmtree(part, ignore_errors=True)
        return
    for path in (part, *beside(part)):
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file or folder to the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk, where the file system can do that."""
    with contextlib.suppress(OSError):
        sync(folder)


def refusal(folder: Path) -> OSError | None:
    """Why this process cannot create a file in ``folder``; None if it can. It creates one without a name and drops it.

    A disk that the kernel has stopped writing to after an error may still be called writable by everything else.
    """
    try:
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error


@contextlib.contextmanager
def errors_named(path: Path, *, but: type[OSError] | tuple[()] = ()) -> Iterator[None]:
    """Turn an OSError of the block into a UsageError or FlowtrailError that names ``path``; ``but`` passes as it is."""
    try:
        yield
    except but:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"{path} cannot be written: create the folder {path.parent} first.") from error
    except PermissionError as error:
        raise UsageError(f"{path} cannot be written: this user may not write there.") from error
    except OSError as error:
        raise FlowtrailError(f"{path} was not written: {error.strerror or error}.") from error


@contextlib.contextmanager
def temporary_files() -> Iterator[None]:
    """Turn an OSError of the block, which writes temporary files, into a FlowtrailError that says so."""
    try:
        yield
    except OSError as error:
        raise FlowtrailError(
            f"Temporary files cannot be written ({error.strerror or error}): free some space, "
            "or name a folder for them in TMPDIR."
        ) from error


KIB: Final = 2**10
MIB: Final = 2**20
_AT_ONCE: Final = 64 * KIB
_KINDS: Final = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_FLAGS: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
"""If the file becomes a pipe between the check and the opening, opening it still does not block."""


def open_regular(path: Path, most_bytes: int | None = None) -> BinaryIO:
    """The file at ``path``, open for reading. Raises OSError, whose strerror a person understands, for anything but a
    regular file, and for one that is larger than ``most_bytes``."""
    _require_regular(path.stat())  # before opening: some devices act on being opened
    file = open(os.open(path, _FLAGS), "rb")  # noqa: SIM115 - the caller closes it
    try:
        found = os.fstat(file.fileno())
        _require_regular(found)
        if most_bytes is not None and found.st_size > most_bytes:
            raise _too_large(most_bytes)
    except OSError:
        file.close()
        raise
    return file


def read_regular(path: Path, most_bytes: int) -> bytes:
    """All of the file at ``path``. Raises OSError as ``open_regular`` does."""
    with open_regular(path, most_bytes) as file:
        read = bytearray()
        while some := file.read(_AT_ONCE):
            read += some
            if len(read) > most_bytes:  # some files, such as those in /proc, do not have a size
                raise _too_large(most_bytes)
    return bytes(read)


def _require_regular(found: os.stat_result) -> None:
    kind = stat.S_IFMT(found.st_mode)
    if kind == stat.S_IFDIR:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if kind != stat.S_IFREG:
        raise OSError(errno.EINVAL, f"it is {_KINDS.get(kind, 'something else')}, not a regular file")


def _too_large(most_bytes: int) -> OSError:
    size = f"{most_bytes // MIB} MiB" if most_bytes >= MIB else f"{most_bytes // KIB} KiB"
    return OSError(errno.EFBIG, f"it is larger than {size}")
