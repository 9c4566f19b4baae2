"""What a check of the seals went through."""

from __future__ import annotations

import msgspec


class Sealing(msgspec.Struct):
    """What the passes went through."""

    seals: int = 0
    last: int = 0
    signed: int = 0
    unsealed_runs: int = 0
    """Those that have not ended."""
    unsealed_versions: int = 0
