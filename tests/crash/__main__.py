"""What ``python -m tests.crash`` does: sweeps, random kills, the model, the seeded bugs."""

from __future__ import annotations

import argparse
import itertools
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack

from tests.crash import bugs, kills, stops
from tests.crash.disturbances import Cut, Disturbance, FullDisk, Hostile, Strike, Upstream, small_disk
from tests.crash.place import Place, place
from tests.crash.scenarios import SCENARIOS
from tests.crash.sweep import MOST_POINTS, Trial, swept
from tests.support import pooler, postgres

PARTS = ("sweep", "stops", "kills", "model")


def main() -> int:
    """Run the chosen parts; return 0 if nothing was found."""
    given = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that disks are unmounted
    if given.bugs:
        return _bugs(given.bugs if isinstance(given.bugs, str) else "")
    began, found = time.monotonic(), 0
    parts = ["sweep"] if given.sweep else given.only or PARTS
    if pooler.installed() is None:
        _say("PgBouncer is not installed: connections through a pooler are not tested")
    if "sweep" in parts:
        found += _sweeps(given.sweep, given.every, given.stop)
    if "stops" in parts:
        found += _stops(given.every, given.stop)
    if "kills" in parts:
        found += _kills(given.count, given.seed)
    if "model" in parts:
        found += _model(given.count, given.seed, shrink=not given.stop)
    print(f"{found} findings in {time.monotonic() - began:.0f} s")
    return int(bool(found))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="random kills per database; examples of the model")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", action="append", choices=PARTS, help="only this part; may be repeated")
    parser.add_argument("--every", type=int, default=1, help="try only every n-th point")
    parser.add_argument("--stop", action="store_true", help="stop at the first finding, without shrinking it")
    parser.add_argument("--sweep", default="", metavar="WORDS", help="only the sweeps whose name contains this")
    parser.add_argument("--bugs", nargs="?", const=True, metavar="WORD", help="prove that seeded bugs are caught")
    return parser.parse_args()


def disturbances(made: Place, server: postgres.Server | None, stack: ExitStack) -> list[Disturbance]:
    """All disturbances for this database. A full disk needs a mount; without it only SQLite's page limit is tried."""
    kinds = ("outage", "cut", "interim", "twice")
    upstream = [Upstream(kind, for_good=for_good) for kind in kinds for for_good in (False, True)]
    if server is not None:
        strikes = [Strike(how) for how in ("kill", "full", "deadlock", "shutdown")]
        hostile = Hostile(server, stack.enter_context(pooler.running_if_installed(server)))
        return [*strikes, hostile, *(Cut(server, when) for when in ("before", "middle", "after")), *upstream]
    disk = stack.enter_context(small_disk(made.folder))
    full = [FullDisk(disk)] if disk else []
    return [*(Strike(how) for how in ("kill", "io", "busy", "pages")), *full, *upstream]


def _places(named: str = "") -> Iterator[tuple[Place, postgres.Server | None]]:
    """On SQLite (None), then on a private PostgreSQL server, which is not started if only SQLite is named."""
    with place() as made:
        yield made, None
    if not named.startswith("SQLite"):
        server = postgres.start()
        try:
            with place(server) as made:
                yield made, server
        finally:
            server.stop()


def _sweeps(named: str, every: int, stop: bool) -> int:
    found = 0
    for made, server in _places(named):
        with ExitStack() as stack:
            for disturbance, scenario in itertools.product(disturbances(made, server, stack), SCENARIOS):
                if named in f"{made.databases.kind}, {scenario.name}, {disturbance.name}":
                    found += _print_findings(swept(made, scenario, disturbance, range(1, MOST_POINTS, every)), stop)
    return found


def _stops(every: int, stop: bool) -> int:
    return sum(_print_findings(stops.stopped(made, range(1, MOST_POINTS, every)), stop) for made, _ in _places())


def _print_findings(trials: Iterable[Trial], stop: bool) -> int:
    """Print the findings of one sweep as they come; return how many trials had any."""
    began, count, found = time.monotonic(), 0, 0
    name = ""
    for trial in trials:
        name, count = trial.what, count + 1
        if trial.findings:
            found += 1
            _say(str(trial))
            if stop:
                break
    _say(f"{name}: {count} trials, {found} with findings, {time.monotonic() - began:.0f} s")
    return found


def _kills(count: int, seed: int) -> int:
    found = 0
    with kills.launchers() as launchers:
        for made, server in _places():
            found += _until(count, lambda number, m=made, s=server: kills.one_round(m, s, seed + number, launchers))
    return found


def _until(count: int, one_round: Callable[[int], kills.Round]) -> int:
    killed = number = found = answers = 0
    while killed < count:
        done = one_round(number)
        number, killed, answers = number + 1, killed + done.kills, answers + done.answers
        found += bool(done.findings)
        if done.findings or number % 10 == 0:
            _say(f"{done}")
    _say(f"{killed} kills in {number} rounds, {answers} answers delivered, {found} rounds with findings")
    return found


def _model(count: int, seed: int, *, shrink: bool) -> int:
    from tests.contract import test_model

    began = time.monotonic()
    try:
        test_model.live(examples=count, steps=50, seeded=seed, shrink=shrink)
    except Exception as error:
        notes = "\n".join(getattr(error, "__notes__", ()))
        _say(f"the model: {type(error).__name__}: {error}\n{notes}")
        return 1
    _say(f"the model: {count} examples of 50 steps, {time.monotonic() - began:.0f} s")
    return 0


def _bugs(word: str) -> int:
    chosen = [bug for bug in bugs.BUGS if word in bug.what]
    if alarms := bugs.false_alarms({check: None for bug in chosen for check in bug.checks}):
        print(f"these fail without a seeded bug: {alarms}", file=sys.stderr)
        return 1
    proofs = []
    for bug in chosen:
        proofs.append(bugs.prove(bug))
        _, caught, missed = proofs[-1]
        print(f"{bug.what}: caught by {caught}, missed by {missed}", file=sys.stderr, flush=True)
    print(bugs.table(proofs))
    return int(any(not proof.caught_by for proof in proofs))


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
