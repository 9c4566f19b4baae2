"""Values as texts for people. Pure."""

from __future__ import annotations

import datetime as dt
import shlex
from functools import lru_cache
from typing import Final
from urllib.parse import quote, urlencode

from etl.domain.kinds import LABELS
from etl.domain.model import CYCLE_LABELS, DIRECTORY
from etl.printable import printable

_LONGEST: Final = 300
_REMEMBERED: Final = 4096
"""Addresses; a page has the same ones again and again."""
_UNITS: Final = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def foreign(text: str | None, longest: int = _LONGEST) -> str:
    """Foreign text, with control characters and direction marks made visible, and cut if it is very long."""
    shown = printable(text or "")
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


def cycle_label(cycle: str | None) -> str:
    """ "day" for "D"; a cycle that EnOS does not document as it is."""
    return CYCLE_LABELS.get(cycle or "", foreign(cycle) or "none")


def kind_label(kind: str) -> str:
    """ "cycle changed" for "cycle_changed"."""
    return LABELS[kind].one


def whose(user_id: str) -> str:
    """Whose list it is: a user's, or the organisation's directory."""
    return foreign(user_id or DIRECTORY)


def user_label(user_id: str, expression: str) -> str:
    return (user_id or DIRECTORY) + (f" [{expression}]" if expression else "")


def utc(moment: dt.datetime | None) -> str:
    """A time in UTC, to the second."""
    return "" if moment is None else f"{moment.astimezone(dt.UTC):%Y-%m-%d %H:%M:%S}"


def span(seconds: float) -> str:
    """ "3 h" for 11000: one unit, rounded down."""
    whole = int(max(0, seconds))
    name, size = next(((name, size) for name, size in _UNITS if whole >= size), _UNITS[-1])
    return f"{whole // size} {name}"


def ago(moment: dt.datetime | None, now: dt.datetime) -> str:
    """ "3 h ago", "in 5 min", "never"."""
    if moment is None:
        return "never"
    seconds = (now - moment).total_seconds()
    return f"{span(seconds)} ago" if seconds >= 0 else f"in {span(-seconds)}"


def editable_label(editable: bool | None) -> str:
    return {True: "editable", False: "read-only"}.get(editable, "not said")  # type: ignore[arg-type]


@lru_cache(_REMEMBERED)
def workflow_path(flow_id: str, org_id: str, as_of: str = "") -> str:
    """The address of a workflow's page."""
    return _path("/workflow", {"org": org_id, "flow": flow_id}, {"as_of": as_of})


@lru_cache(_REMEMBERED)
def target_path(org_id: str, user_id: str, expression: str = "", as_of: str = "") -> str:
    """The address of a target's page."""
    return _path("/target", {"org": org_id, "user": user_id}, {"expression": expression, "as_of": as_of})


def _path(page: str, ids: dict[str, str], more: dict[str, str]) -> str:
    """Ids that cannot be in a path go into the query: a browser removes "..", and a slash splits the path."""
    in_query = any("/" in each or each in (".", "..", "") for each in ids.values())
    given = {key: value for key, value in {**(ids if in_query else {}), **more}.items() if value}
    path = page if in_query else "/".join((f"{page}s", *(quote(each, safe="") for each in ids.values())))
    return path + ("?" + urlencode(given, quote_via=quote) if given else "")


def moment(time: dt.datetime | None) -> str:
    """A time for an address, exact."""
    return "" if time is None else time.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")


def approval(org_id: str, user_id: str, expression: str, code: str) -> str:
    """The shell command that approves exactly what is held of a target."""
    option = [f"--expression={expression}"] if expression else []
    ends = ["--"] if org_id.startswith("-") or user_id.startswith("-") else []
    return printable(
        shlex.join(["flowtrail", "guard", "approve", f"--expect={code}", *option, *ends, org_id, user_id or DIRECTORY])
    )
