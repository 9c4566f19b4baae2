"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from etl.errors import FlowtrailError, UsageError

_PRIVATE: Final = 0o600


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that takes its name when the block ends, on the disk by then; nothing is left of it when the block raises.

    A new file is for its owner only (0600), as the database is; one that is replaced keeps its mode. What is no
    regular file (a pipe, a device) is written to as it is. Raises UsageError where the place cannot be used.
    """
    path = path.resolve()
    mode = _mode_of(path)
    if mode is not None and not stat.S_ISREG(mode):
        with _errors_named(path), path.open("wb") as device:
            yield device
        return
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    with _errors_named(path):
        file = os.fdopen(os.open(part, os.O_CREAT | os.O_EXCL | os.O_RDWR, _PRIVATE), "w+b")
    try:
        with _errors_named(path):
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if mode is not None:
                part.chmod(stat.S_IMODE(mode))
            part.replace(path)
            _sync_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A new folder that takes its name when the block ends; raises UsageError where there is one already."""
    path = path.resolve()
    if path.exists():
        raise UsageError(f"{path} is there already: name a new folder for the files of an export in parts.")
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with _errors_named(path):
            part.mkdir(mode=0o700)
            yield part
            part.rename(path)
            _sync_folder(path.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


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


def _sync_folder(folder: Path) -> None:
    """The new name is on the disk too, where the file system can promise that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"{path} cannot be written: make the folder {path.parent} first.") from error
    except PermissionError as error:
        raise UsageError(f"{path} cannot be written: this user may not write there.") from error
    except OSError as error:
        raise FlowtrailError(f"{path} was not written: {error.strerror or error}.") from error
