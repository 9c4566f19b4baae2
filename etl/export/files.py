"""Files that appear complete or not at all."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from etl.errors import UsageError
from etl.system.disk import errors_named, part_file, part_folder, sync_folder

_errors_named: Final = functools.partial(errors_named, but=BrokenPipeError)
"""A reader that went away is handled by the command."""


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that gets its name, synced to the disk, when the block ends; nothing is left if the block raises.

    A new file is for its owner only (0600), like the database; a replaced one keeps its mode. Anything but a regular
    file (a pipe, a device) is written directly. Raises UsageError if the place cannot be used.
    """
    path = path.resolve()
    mode = _mode_of(path)
    if mode is not None and not stat.S_ISREG(mode):
        with _errors_named(path), path.open("wb") as device:
            yield device
        return
    with _errors_named(path), part_file(path) as part:
        with part.open("r+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if mode is not None:
            part.chmod(stat.S_IMODE(mode))
        part.replace(path)
        sync_folder(path.parent)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A new folder that gets its name when the block ends; raises UsageError if it exists already."""
    path = path.resolve()
    if path.exists():
        raise UsageError(f"{path} already exists: name a new folder for an export by month.")
    with _errors_named(path), part_folder(path) as part:
        yield part
        part.rename(path)
        sync_folder(path.parent)


def sha256_of(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _mode_of(path: Path) -> int | None:
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}.") from error
    if stat.S_ISDIR(mode):
        raise UsageError(f"{path} is a folder: name a file.")
    return mode
