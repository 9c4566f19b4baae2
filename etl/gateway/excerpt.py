"""Foreign text as our messages quote it: short, on one line, and without secrets."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote as url_quote

from etl.printable import printable

EXCERPT_CHARACTERS: Final = 100
_LOOKED_AT_CHARACTERS: Final = 4096


class Hidden(str):
    """A secret: it hashes, encodes and joins like any string, and prints as ``'***'`` in every repr."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


def excerpt(found: bytes | str, hidden: Iterable[str] = ()) -> str:
    """The beginning of foreign text, quoted; ``hidden`` strings in it, in any usual encoding, become ``***``."""
    if isinstance(found, bytes):
        found = found[:_LOOKED_AT_CHARACTERS].decode("utf-8", "replace")
    text = _without(found[:_LOOKED_AT_CHARACTERS].strip(), hidden)
    shown = printable(text[: EXCERPT_CHARACTERS + 1])
    return f'"{shown[:EXCERPT_CHARACTERS]}…"' if len(shown) > EXCERPT_CHARACTERS else f'"{shown}"'


def _without(text: str, hidden: Iterable[str]) -> str:
    for secret in hidden:
        for form in _forms(secret):
            text = text.replace(form, "***")
    return text


def _forms(secret: str) -> Iterable[str]:
    if len(secret) < 4:
        return ()
    raw = secret.encode("utf-8", "surrogatepass")
    encoded = (base64.b64encode(raw).decode().rstrip("="), base64.urlsafe_b64encode(raw).decode().rstrip("="))
    return (secret, url_quote(raw, safe=""), *encoded, raw.hex(), raw.hex().upper(), json.dumps(secret)[1:-1])
