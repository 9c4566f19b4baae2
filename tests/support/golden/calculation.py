"""What format 1 hashes to, calculated with json and hashlib alone from the inputs in the files beside this one.

    python tests/support/golden/calculation.py    # print each case with its hash; no program writes the files

A golden file is never altered: what a format once hashed to, it hashes to for ever.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from pathlib import Path
from typing import Any

FILES = [Path(__file__).with_name(name) for name in ("change-1.json", "seal-1.json")]


def calculated(given: dict[str, Any]) -> str:
    """The hash of a case: ``content`` in its order, times as microseconds, after ``parent`` where there is one."""
    written = json.dumps(_plain(given["content"]), ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256((given.get("parent", "") + written).encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        at = dt.datetime.fromisoformat(value["time"].replace("Z", "+00:00"))
        return (at - dt.datetime(1970, 1, 1, tzinfo=dt.timezone.utc)) // dt.timedelta(microseconds=1)  # noqa: UP017
    return [_plain(each) for each in value] if isinstance(value, list) else value


if __name__ == "__main__":
    for file in FILES:
        for name, case in json.loads(file.read_text("utf-8")).items():
            print(file.name, name, calculated(case))
