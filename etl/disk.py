"""What every file that must outlive a crash needs: errors said in a sentence, and bytes and name on the disk."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from etl.errors import FlowtrailError, UsageError

PRIVATE: Final = 0o600
"""The mode of a new file: for its owner only."""


def part_of(path: Path) -> Path:
    """A name beside ``path`` that nobody else has, for what is to take its place when it is whole."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")


def sync(path: Path) -> None:
    """The file or folder is on the disk when this returns; raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """The names in it are on the disk too, where the file system can promise that."""
    with contextlib.suppress(OSError):
        sync(folder)


@contextlib.contextmanager
def errors_named(path: Path, *, but: type[OSError] | tuple[()] = ()) -> Iterator[None]:
    """Turn an OSError of the block into a UsageError or FlowtrailError that names ``path``; ``but`` passes as it is."""
    try:
        yield
    except but:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"{path} cannot be written: make the folder {path.parent} first.") from error
    except PermissionError as error:
        raise UsageError(f"{path} cannot be written: this user may not write there.") from error
    except OSError as error:
        raise FlowtrailError(f"{path} was not written: {error.strerror or error}.") from error
