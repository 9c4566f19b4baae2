"""A sweep of SIGTERM: a service is asked to stop at its n-th point, n = 1, 2, 3... until it no longer gets that far.

It starts with a slot to catch up on, so it starts, runs once, and is idle. Wherever it is stopped, it exits with 0
within its grace period and leaves neither an open run nor a lease; if no run was completed, the next start catches up
on the slot.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

from tests.crash.disturbances import Disturbed
from tests.crash.place import Ended, Place
from tests.crash.scenarios import ANN, BOB, CAY, ORG, Scenario, _change, prepared
from tests.crash.sweep import MOST_POINTS, Trial
from tests.support import checker

GRACE_SECONDS = 5
"""As long as the time that is reserved for the end: a run is cut off as soon as the signal arrives."""
_SERVE = ("serve",)
_PATIENCE_SECONDS = 60


def stopped(place: Place, points: Iterable[int] = range(1, MOST_POINTS)) -> Iterator[Trial]:
    """The trials at ``points``, up to the first point that is not reached: that service is stopped after its run."""
    template = prepared(place, Scenario("stop", _SERVE, before=_leave_a_slot_unserved, upstream=_change))
    assert template is not None
    known = place.deliveries
    _change(place.gateway.world)
    place.schedule(ORG, (ANN, BOB, CAY), when='every = "24h"')
    try:
        for at in points:
            place.use(place.databases.new(template), known, rest=f'grace = "{GRACE_SECONDS}s"')
            disturbed = _serve(place, at)
            findings = [*_ended_badly(place, disturbed), *_findings(place, settled=False), *_catch_up(place)]
            yield Trial(
                f"{place.databases.kind}, stop",
                at,
                disturbed,
                [*findings, *_sync(place), *_findings(place, settled=True)],
            )
            place.databases.drop(place.url)
            if not disturbed.reached:
                break
    finally:
        place.databases.drop(template)


def _leave_a_slot_unserved(place: Place) -> None:
    """Turn the last of the two syncs into a scheduled run of three days ago."""
    ago = "datetime('now', '-3 days') || '.000000'" if place.databases.is_sqlite else "now() - interval '3 days'"
    with closing(checker._connect(place.url)) as connection:
        connection.cursor().execute(
            f"UPDATE sync_run SET schedule = 'plants', origin = 'schedule', scheduled_for = {ago} "
            "WHERE id = (SELECT max(id) FROM sync_run)"
        )
        connection.commit()


def _findings(place: Place, *, settled: bool) -> list[str]:
    """Without the findings about the run that was altered above after it had been sealed."""
    altered = ("run 2 (seal 2): seal should be ", "verify: run 2 (seal 2): run_seal 2.seal ")
    return [each for each in place.findings(settled=settled) if not each.startswith(altered)]


def _serve(place: Place, at: int = 0) -> Disturbed:
    """Run a service that is asked to stop at a point, or else when its run has ended."""
    pid = place.start(*_SERVE, strike={"how": "stop", "at": at})
    reached = True
    with ThreadPoolExecutor(1) as waiting:
        ending = waiting.submit(place.ended)
        give_up = time.monotonic() + _PATIENCE_SECONDS
        while not ending.done():
            late = time.monotonic() > give_up
            if late or (reached and '"run_ended"' in place.said):
                reached = False
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
            time.sleep(0.01)
    ended: Ended = ending.result()
    return Disturbed(ended, reached or 0 < at <= ended.passed)


def _ended_badly(place: Place, disturbed: Disturbed) -> Iterator[str]:
    if disturbed.ended.code != 0 or "Traceback" in place.said or "ended_by_force" in place.said:
        yield f"ended with {disturbed.ended.code}: {place.said}"
    if left := _rows(place, "SELECT 'lease', holder FROM lease UNION ALL SELECT status, host FROM sync_run "
                            "WHERE status = 'running'"):  # fmt: skip
        yield f"left behind: {left}"


def _catch_up(place: Place) -> Iterator[str]:
    """The next start serves the slot once if it was not served, and not again if it was."""
    latest = _rows(place, "SELECT status FROM sync_run WHERE origin = 'catch_up' ORDER BY id DESC")
    if latest and latest[0][0] != "aborted":
        return
    _serve(place)
    runs = [json.loads(line) for line in place.said.splitlines() if '"run_ended"' in line]
    if [(run["origin"], run["status"]) for run in runs] != [("catch_up", "succeeded")]:
        yield f"the next start did not catch up on the slot: {place.said}"


def _sync(place: Place) -> Iterator[str]:
    code = place.run("sync").code
    if code != 0:
        yield f"a sync afterwards exits with {code}: {place.said}"


def _rows(place: Place, query: str) -> list[tuple[Any, ...]]:
    with closing(checker._connect(place.url)) as connection:
        cursor = connection.cursor()
        cursor.execute(query)
        return list(cursor.fetchall())
