"""Reads files that people name, if they are regular and not too large: a pipe would block, a device never end."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO, Final

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
