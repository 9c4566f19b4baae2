"""Why a list is empty, in a sentence: nothing there, nothing observed then, or no such name."""

from __future__ import annotations

import datetime as dt
from typing import Final, NamedTuple

from sqlalchemy import Engine

from etl.cli.console import cell
from etl.errors import UsageError
from etl.report.targets import ObservedTargets, observed_targets, unknown_name

SEARCHES_ONLY: Final = (
    "Only searches are known here: what happened in an organisation is concluded from whole lists, those of targets "
    "without an expression."
)


class EmptyResult(NamedTuple):
    """An empty result, and what was asked for: to say why it is empty."""

    found: str
    """What is missing: "workflows"."""
    org: str | None
    user: str | None
    at: dt.datetime
    zone: dt.tzinfo
    narrowed: bool = False
    """Whether other filters were given too."""
    then: bool = False
    """Whether it is about a past moment."""
    whole_lists: bool = False
    """Whether only lists without a search expression count."""

    def why_empty(self, engine: Engine) -> str:
        """Why nothing was found."""
        wrong = no_such_name(engine, org=self.org, user=self.user)
        if wrong is not None:
            return wrong
        seen = observed_targets(engine, self.at, org=self.org, user=self.user)
        if self.whole_lists and seen.targets and seen.searches == seen.targets:
            return SEARCHES_ONLY
        if not seen.observed:
            return _not_observed(seen, self.zone)
        none = f"No {self.found}{' then' if self.then else ''}"
        if seen.retired == seen.observed:
            return f"{none}: {_targets(seen.retired)} retired{' then' if self.then else ', and no longer asked for'}."
        if self.narrowed:
            return f"No {self.found}: {_targets(seen.observed)} observed, last at {cell(seen.last_at, self.zone)}."
        return f"{none}: {_targets(seen.observed - seen.retired)} observed, each with an empty list."


def require_names(engine: Engine, *, org: str | None = None, user: str | None = None) -> None:
    """Refuse names that no target has: a file or an account about nobody would look like an answer. Raises UsageError
    and DatabaseError."""
    wrong = no_such_name(engine, org=org, user=user)
    if wrong is not None:
        raise UsageError(wrong)


def not_observed_then(seen: ObservedTargets) -> str | None:
    """A sentence about the targets that a past list lacks because they had not been observed yet."""
    missing = seen.targets - seen.observed
    if not missing or not seen.observed:
        return None
    return f"{_targets(missing)} not observed by then, and are missing here: --targets shows which."


def no_such_name(engine: Engine, *, org: str | None = None, user: str | None = None) -> str | None:
    """A sentence about the first of the names that no target has. Raises DatabaseError."""
    wrong = unknown_name(engine, org=org, user=user)
    if wrong is None:
        return None
    what = "organisation" if wrong.what == "org_id" else "user"
    hint = f" Did you mean {wrong.similar!r}?" if wrong.similar not in (None, wrong.name) else ""
    where = ", in this organisation" if wrong.similar == wrong.name else ""
    return f"Unknown {what}{where}: {wrong.name!r}.{hint}"


def _not_observed(seen: ObservedTargets, zone: dt.tzinfo) -> str:
    if not seen.targets:
        return "Nothing was observed yet: run `flowtrail sync`."
    if seen.first_at is None:
        return f"Not observed yet: {_targets(seen.targets)} asked for, without a valid answer; see `flowtrail status`."
    return f"Not observed then: the first look was at {cell(seen.first_at, zone)}."


def _targets(count: int) -> str:
    return f"{count} target was" if count == 1 else f"{count} targets were"
