"""The forms in which a secret might leak."""

from __future__ import annotations

import base64
import json
import urllib.parse


def disguises(secret: str) -> dict[str, bytes]:
    """A secret as it is, and in four encodings."""
    raw = secret.encode()
    return {
        "raw": raw,
        "url": urllib.parse.quote(secret, safe="").encode(),
        "base64": base64.b64encode(raw).rstrip(b"="),
        "hex": raw.hex().encode(),
        "json": json.dumps(secret)[1:-1].encode(),
    }
