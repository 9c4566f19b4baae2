"""What is wrong in a database, as values that print as one sentence."""

from __future__ import annotations

from typing import Any

import msgspec

from etl.domain.model import Target
from etl.printable import printable


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is not as it must be: the place, what the rules require, and what is there."""

    target: Target | None = None
    """None: it is not about a target."""
    version: int | None = None
    run_id: int | None = None
    """None: it is not about a run."""
    seal_id: int | None = None
    what: str
    """The table and column, or the object, that is wrong: ``change_set.hash``."""
    expected: str
    found: str

    def __str__(self) -> str:
        sealed = f" (seal {self.seal_id})" if self.seal_id is not None else ""
        place = [] if self.run_id is None else [f"run {self.run_id}{sealed}"]
        if self.target is not None:
            place.append(printable(str(self.target)))
        if self.version is not None:
            place.append(f"version {self.version}")
        sentence = f"{self.what} should be {self.expected}, but is {self.found}"
        return f"{', '.join(place)}: {sentence}" if place else sentence

    def as_object(self) -> dict[str, Any]:
        """The finding as ``--json`` prints it."""
        names = self.target._asdict() if self.target else dict.fromkeys(Target._fields)
        rest = {name: getattr(self, name) for name in ("version", "run_id", "seal_id", "what", "expected", "found")}
        return {**names, **rest, "message": str(self)}


class Broken(Exception):
    """A link that does not hold; it ends the check of its target."""

    def __init__(
        self, what: str, expected: Any, found: Any, version: int | None = None, target: Target | None = None
    ) -> None:
        super().__init__(what)
        self.what, self.version, self.target = what, version, target
        self.expected, self.found = shown(expected), shown(found)

    def of(self, target: Target | None = None, *, run_id: int | None = None, seal_id: int | None = None) -> Finding:
        """The finding about a target (else the one that was named, if any), about a run, and its seal."""
        return Finding(
            target=target or self.target,
            version=self.version,
            run_id=run_id,
            seal_id=seal_id,
            what=self.what,
            expected=self.expected,
            found=self.found,
        )


class Verbatim(str):
    """Our own words in place of a value, shown without quotes."""

    __slots__ = ()


def require(what: str, expected: Any, found: Any, version: int | None = None) -> None:
    """Raise Broken if ``found`` is not ``expected``."""
    if found != expected:
        raise Broken(what, expected, found, version)


def shown(value: Any) -> str:
    """A value of a column on one line, with control characters escaped."""
    if isinstance(value, Verbatim):
        return printable(value)
    if value is None:
        return "null"
    if isinstance(value, str):
        return f"'{printable(value)}'"
    return printable(str(value))
