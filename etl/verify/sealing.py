"""What a check of the seals has read."""

from __future__ import annotations

import datetime as dt

import msgspec


class Sealing(msgspec.Struct):
    """What the passes have read."""

    seals: int = 0
    last: int = 0
    signed: int = 0
    stamped: int = 0
    last_stamp: tuple[int, dt.datetime] | None = None
    """The latest seal that was stamped, and when, by its authority's clock."""
    unsealed_runs: int = 0
    """Runs that have not ended."""
    unsealed_versions: int = 0
