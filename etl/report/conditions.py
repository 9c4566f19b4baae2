"""What can be wrong beside the targets: the code, a sentence, and what to do about it."""

from __future__ import annotations

import datetime as dt
from typing import Final, NamedTuple

from sqlalchemy import Engine

from etl import database

CONDITIONS: Final = ("database_damaged", "clock_off")
"""Every code there is."""


class Condition(NamedTuple):
    """Something that is wrong, in one sentence, and what to do about it."""

    code: str
    sentence: str
    remedy: str


def clock_went_back(targets: int, until: dt.datetime) -> Condition:
    """``targets`` have observations that lie ahead of now, the latest at ``until``."""
    who = "a target has an observation that lies" if targets == 1 else f"{targets} targets have observations that lie"
    return Condition(
        "clock_off",
        f"The clock went back: {who} ahead of now, up to {until.astimezone(dt.UTC):%Y-%m-%d %H:%M:%S} UTC, "
        "and what is seen until then is recorded as seen just after it.",
        "See that the clock of this machine is right (NTP). If it is, nothing else is to be done: nothing is lost, "
        "nothing waits, and from that time on what is recorded is right again.",
    )


def damage_of(engine: Engine) -> Condition | None:
    """Why the database cannot be written to, where it is damaged."""
    found = database.damage_of(engine)
    if found is None:
        return None
    said, _, remedy = database.damage_sentence(engine, found).partition(". ")
    return Condition("database_damaged", f"{said}.", remedy)
