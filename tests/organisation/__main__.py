"""``python -m tests.organisation``: simulated worlds, until there were enough certain events."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections import Counter
from collections.abc import Iterable

from etl.domain.kinds import EVENT_KINDS
from tests.organisation.oracle import Oracle, settle
from tests.organisation.runs import Simulation
from tests.organisation.settings import DIFFICULT, ORDINARY
from tests.organisation.world import START, Setting


def played(setting: Setting, seed: int, runs: int, *, narrow: bool = False) -> Oracle:
    """Run ``runs`` periods of the first schedule; ``wrong`` has every false event, and what stays wrong."""
    simulation = Simulation(setting, seed)
    oracle = Oracle(simulation, narrow=narrow)
    for judgements in simulation.run(START + runs * simulation.schedules[0].every):
        oracle.check(judgements)
    oracle.wrong += settle(simulation, oracle)
    return oracle


def report(counts: Counter[tuple[str, bool]]) -> Iterable[str]:
    for kind in EVENT_KINDS:
        certain, uncertain = counts[kind, True], counts[kind, False]
        if certain or uncertain:
            yield f"  {kind:15} {certain:8} certain {uncertain:6} not   {certain / (certain + uncertain):8.2%}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Check that no certain event of a simulated organisation is wrong.")
    parser.add_argument("--events", type=int, default=20_000, help="how many certain events, in all worlds together")
    parser.add_argument("--runs", type=int, default=300, help="runs per world")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--world", choices=[*ORDINARY, *DIFFICULT], action="append", help="only this one")
    given = parser.parse_args()
    names = given.world or [*ORDINARY, *DIFFICULT]
    sums: dict[str, Counter[tuple[str, bool]]] = {name: Counter() for name in names}
    wrong: list[str] = []
    for seed in itertools.count(given.seed):
        for name in names:
            oracle = played((ORDINARY | DIFFICULT)[name], seed, given.runs, narrow=name in ORDINARY)
            sums[name] += oracle.counts
            wrong += (f"{name}, seed {seed}: {fault}" for fault in oracle.wrong)
        certain = sum(count for counts in sums.values() for (_, is_certain), count in counts.items() if is_certain)
        print(f"seed {seed}: {certain} certain events, {len(wrong)} wrong", flush=True)
        if certain >= given.events or wrong:
            break
    for name, counts in sums.items():
        print("\n".join([name, *report(counts)]))
    print("\n".join(wrong[:10]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
