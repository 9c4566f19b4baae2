"""Secrets: values that print as ``***``, and the files that hold them."""

from __future__ import annotations

import base64
import os
import re
from pathlib import Path
from typing import Final

from etl.system.disk import MIB, read_regular

_LARGEST: Final = MIB
_WEBHOOK: Final = "whsec_"
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class Secret:
    """Text that only ``reveal`` shows."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text

    def __reduce__(self) -> str:
        raise TypeError("a secret does not travel to another process")

    def __repr__(self) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)


def clean_secret(value: object) -> Secret:
    """``value`` without surrounding white space; ValueError, which does not repeat it, if it is not a secret."""
    text = value.strip() if isinstance(value, str) else ""
    if not text:
        raise ValueError("is empty: write the secret in it")
    if _CONTROL.search(text):
        raise ValueError("has more than one line or control characters: it must contain only the secret")
    return Secret(text)


def read_secret_file(path: Path) -> Secret:
    """The content of the file, read each time; ValueError names the file and says what is wrong."""
    text = _text_of(path)
    try:
        return clean_secret(text)
    except ValueError as error:
        raise ValueError(f"{path} {error}") from None


def read_secret_lines(path: Path) -> list[str]:
    """The lines of the file, without empty ones and those that begin with ``#``; ValueError as above."""
    lines = (line.strip() for line in _text_of(path).splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def read_webhook_secrets(path: Path) -> list[bytes]:
    """The keys in the file, one on a line, as Standard Webhooks writes them: whsec_ and base64, of 24 to 64 bytes.
    ValueError as above, which repeats none."""
    keys = []
    for number, line in enumerate(read_secret_lines(path), 1):
        prefix, text = line[: len(_WEBHOOK)], line[len(_WEBHOOK) :]
        try:
            key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
        except ValueError:
            key = b""
        if prefix != _WEBHOOK or not 24 <= len(key) <= 64:
            raise ValueError(f"{path}: secret {number} must be whsec_ and 24 to 64 bytes in base64")
        keys.append(key)
    if not keys:
        raise ValueError(f"{path} is empty: write a secret such as whsec_... in it")
    return keys


def _text_of(path: Path) -> str:
    try:
        return read_regular(path, _LARGEST).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None


def openness(path: Path) -> str | None:
    """A warning if other users may read or write ``path``; None if all is well or it does not exist.

    A file of another owner that our group may read is fine: systemd and Kubernetes hand over secrets that way.
    """
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    mode = found.st_mode & 0o777
    others = 0o077 if found.st_uid == os.geteuid() else 0o037
    return f"{path} is open to others (mode {mode:04o}): chmod 600 {path}" if mode & others else None
