"""The quick part of the crash tests: a few points of each sweep, and a few random kills.

`make crash N=1000` tries every point of every sweep; docs/reliability.md says what is proven and how.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from tests.crash import bugs, kills, stops
from tests.crash.__main__ import disturbances
from tests.crash.disturbances import Hostile, Strike
from tests.crash.place import Place, place
from tests.crash.scenarios import SCENARIOS
from tests.crash.sweep import Trial, swept
from tests.support import postgres as local_postgres

LIKELY_POINTS = range(1, 85)
IN_TURN = tuple(scenario for scenario in SCENARIOS if scenario.name in ("change", "approve", "held"))
"""The scenarios for the other disturbances, in turn; every scenario is tried with kills."""


def on_both(
    server: local_postgres.Server, work: Callable[[Place, local_postgres.Server | None], list[str]]
) -> list[str]:
    """Do the same on SQLite and PostgreSQL at the same time; return the findings of both."""

    def there(of: local_postgres.Server | None) -> list[str]:
        with place(of) as made:
            return work(made, of)

    with ThreadPoolExecutor(2) as threads:
        return [finding for found in threads.map(there, (None, server)) for finding in found]


def found_in(trials: Iterator[Trial]) -> list[str]:
    return [str(trial) for trial in trials if trial.findings]


def some_points(rng: random.Random, among: Sequence[int], count: int) -> list[int]:
    return sorted(rng.sample(among, count))


def test_wherever_the_program_dies_nothing_is_lost_or_invented(postgres: local_postgres.Server) -> None:
    """It kills itself before or after a statement, a request or a COMMIT; afterwards everything is as it should be."""

    def die(made: Place, server: local_postgres.Server | None) -> list[str]:
        rng, kill = random.Random(1 if server is None else 2), Strike("kill")
        each = (swept(made, scenario, kill, some_points(rng, LIKELY_POINTS, 1)) for scenario in SCENARIOS)
        return [finding for trials in each for finding in found_in(trials)]

    assert on_both(postgres, die) == []


def test_any_failure_beneath_the_program_ends_in_one_sentence_and_it_goes_on(postgres: local_postgres.Server) -> None:
    """Full disks, I/O errors, deadlocks, cut connections to the database and the gateway, lost answers to a COMMIT."""

    def suffer(made: Place, server: local_postgres.Server | None) -> list[str]:
        rng = random.Random(3)
        found = []
        with ExitStack() as stack:
            of_many = [each for each in disturbances(made, server, stack) if not each.dies]
            for disturbance, scenario in zip(of_many, itertools.cycle(IN_TURN), strict=False):
                few = disturbance.name.startswith(
                    ("outage", "cut once", "cut for", "interim", "twice", "disk", "pages")
                )
                points = some_points(rng, range(1, 5) if few else range(8, 55), 1)
                if isinstance(disturbance, Hostile):
                    points = disturbance.all_at_once
                found += found_in(swept(made, scenario, disturbance, points))
        return found

    assert on_both(postgres, suffer) == []


def test_a_service_stopped_anywhere_ends_in_order_and_its_slot_is_caught_up(
    postgres: local_postgres.Server,
) -> None:
    """SIGTERM before or after a statement, a request or a COMMIT, from start to end, and again at the end."""

    def stop(made: Place, server: local_postgres.Server | None) -> list[str]:
        rng = random.Random(4)
        points = [*some_points(rng, range(1, 50), 1), *some_points(rng, range(50, 110), 3), stops.MOST_POINTS]
        return found_in(stops.stopped(made, points))

    assert on_both(postgres, stop) == []


def test_random_kills_under_load_lose_and_invent_nothing(postgres: local_postgres.Server) -> None:
    """Two syncs and a service on one database, killed or stopped at random; PostgreSQL itself, too."""
    with kills.launchers() as launchers:
        for server in (None, postgres):
            with place(server) as made:
                done = kills.one_round(made, server, 1, launchers)
                assert not done.findings, str(done)
                assert done.kills


def test_the_sweep_sees_a_commit_that_was_split() -> None:
    """The checks work; `python -m tests.crash --bugs` proves it with every seeded bug."""
    split = bugs.BUGS[0]._replace(checks=["sweep:SQLite, change, kill"])
    assert bugs.prove(split).caught_by == split.checks


def test_the_page_lists_every_seeded_bug() -> None:
    page = (bugs.TREE / "docs" / "reliability.md").read_text("utf-8")
    _, _, rows = page.partition("| seeded bug |")
    listed = [line.split(" | ")[0].removeprefix("| ") for line in rows.partition("\n\n")[0].splitlines()[2:]]
    assert sorted(listed) == sorted(bug.what for bug in bugs.BUGS)


@pytest.mark.parametrize("bug", bugs.BUGS, ids=lambda bug: bug.what)
def test_every_seeded_bug_still_fits_the_source(bug: bugs.Bug) -> None:
    """If one does not, adapt it in tests/crash/bugs.py."""
    for edit in bug.edits:
        assert edit.file(bugs.TREE)
