"""``python -m tests.organisation``: worlds whose truth is known, for as many certain events as you like."""

from __future__ import annotations

import argparse
import itertools
from collections import Counter
from collections.abc import Iterable

from etl.domain.kinds import EVENT_KINDS
from tests.organisation.oracle import Oracle, settle
from tests.organisation.runs import Office
from tests.organisation.settings import ORDINARY, UNKIND
from tests.organisation.world import START, Setting


def played(setting: Setting, seed: int, runs: int, *, narrow: bool = False) -> Oracle:
    """What is told in so many periods of the first schedule; ``wrong`` has all that is not true, at last too."""
    office = Office(setting, seed)
    oracle = Oracle(office, narrow=narrow)
    for judgements in office.run(START + runs * office.schedules[0].every):
        oracle.check(judgements)
    oracle.wrong += settle(office, oracle)
    return oracle


def report(told: Counter[tuple[str, bool]]) -> Iterable[str]:
    for kind in EVENT_KINDS:
        certain, uncertain = told[kind, True], told[kind, False]
        if certain or uncertain:
            yield f"  {kind:15} {certain:8} certain {uncertain:6} not   {certain / (certain + uncertain):8.2%}"


def main() -> int:
    parser = argparse.ArgumentParser(description="No certain event of a simulated organisation is wrong.")
    parser.add_argument("--events", type=int, default=20_000, help="how many certain events, over all worlds")
    parser.add_argument("--runs", type=int, default=300, help="runs a world lasts")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--world", choices=[*ORDINARY, *UNKIND], action="append", help="only this one")
    given = parser.parse_args()
    names = given.world or [*ORDINARY, *UNKIND]
    sums: dict[str, Counter[tuple[str, bool]]] = {name: Counter() for name in names}
    wrong: list[str] = []
    for seed in itertools.count(given.seed):
        for name in names:
            oracle = played((ORDINARY | UNKIND)[name], seed, given.runs, narrow=name in ORDINARY)
            sums[name] += oracle.told
            wrong += (f"{name}, seed {seed}: {fault}" for fault in oracle.wrong)
        certain = sum(count for told in sums.values() for (_, is_certain), count in told.items() if is_certain)
        print(f"seed {seed}: {certain} certain events, {len(wrong)} wrong", flush=True)
        if certain >= given.events or wrong:
            break
    for name, told in sums.items():
        print("\n".join([name, *report(told)]))
    print("\n".join(wrong[:10]))
    return 1 if wrong else 0
