"""Which processes have locks on an SQLite file, as far as the operating system tells."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from etl.printable import printable

_LOCKS: Final = Path("/proc/locks")
"""On Linux, one lock per line: number, kind, mode, access, process, major:minor:inode, first and last byte."""
_MOST: Final = 3


def holders(file: Path) -> str:
    """The processes that hold a lock on ``file`` or its shared memory, such as "sqlite3 (process 1152)".

    "another process" if the system does not say. This process is left out.
    """
    named = [f"{_name(pid)} (process {pid})" for pid in sorted(set(_processes(file)) - {os.getpid()})]
    more = ["others"] if len(named) > _MOST else []
    return " and ".join(named[:_MOST] + more) or "another process"


def _processes(file: Path) -> Iterator[int]:
    inodes = set(_inodes(file))
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in _LOCKS.read_text().splitlines():
            words = line.replace("->", " ").split()
            if words[5].rpartition(":")[2] in inodes and int(words[4]) > 0:
                yield int(words[4])


def _inodes(file: Path) -> Iterator[str]:
    for each in (file, file.with_name(file.name + "-shm")):
        with contextlib.suppress(OSError):
            yield str(each.stat().st_ino)


def _name(pid: int) -> str:
    try:
        return printable(Path(f"/proc/{pid}/comm").read_text().strip())
    except (OSError, UnicodeDecodeError):
        return "a program"
