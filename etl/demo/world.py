"""The truth behind a local gateway: organisations, their users, and the workflows that each user sees."""

from __future__ import annotations

import datetime as dt
import random
import threading
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from etl.domain.model import CYCLE_LABELS, Flow

_FIRST_ORG: Final = 15427722038191
_FIRST_USER: Final = 15426865866571
_FIRST_FLOW: Final = 2809

_SUBJECTS: Final = (
    *("wind_turbine", "pv_inverter", "bess_rack", "met_mast", "substation", "smart_meter", "feeder", "chiller"),
    *("ev_charger", "transformer", "tracker", "boiler", "heat_pump", "gas_engine", "scada_tag", "carbon_ledger"),
)
_TASKS: Final = (
    *("power_curve_fit", "alarm_rollup", "10min_aggregation", "availability_kpi", "loss_attribution"),
    *("data_quality_check", "soiling_estimate", "soc_reconciliation", "energy_settlement", "forecast_feed"),
    *("entity_sync", "map", "reduce", "archive_to_hdfs", "tariff_import", "curtailment_report"),
)
_SITES: Final = ("jiangyin", "zhangbei", "dunhuang", "hami", "penglai", "rudong", "yancheng", "golmud")


class World:
    """Thread-safe; the same ``seed``, sizes, edits and number of steps give the same world on every machine.

    ``flows`` is the initial length of each user's list: a sample of the organisation's workflows, of which there are
    half as many again, so that users overlap. ``World(orgs=0)`` is empty. An organisation, a user or a workflow that
    nobody sees is a KeyError.
    """

    def __init__(self, seed: int = 0, *, orgs: int = 1, users: int = 2, flows: int = 50) -> None:
        self._seed = seed
        self._lock = threading.RLock()
        self._steps = 0
        self._next_flow = _FIRST_FLOW
        self._lists: dict[str, dict[str, dict[str, Flow]]] = {}
        self._directory_only: dict[str, dict[str, Flow]] = {}
        self._left_out: set[tuple[str, str]] = set()
        self.updated_at: dict[tuple[str, str], dt.datetime] = {}
        """When a workflow of an organisation was last edited."""
        for number in range(orgs):
            self._found(number, users, flows)

    # What is true now

    def orgs(self) -> list[str]:
        """The ids of the organisations."""
        with self._lock:
            return list(self._lists)

    def users(self, org: str) -> list[str]:
        """The ids of the users of an organisation."""
        with self._lock:
            return list(self._lists[org])

    def flows(self, org: str, user: str) -> tuple[Flow, ...]:
        """What Get My Flow lists for this user, in no particular order."""
        with self._lock:
            return tuple(self._lists[org][user].values())

    def directory(self, org: str) -> tuple[Flow, ...]:
        """The workflows in the organisation's directory, in the order of their ids: what anybody sees, and what was
        added for nobody, without what was left out."""
        with self._lock:
            there = dict(self._directory_only.get(org, {}))
            for listed in self._lists[org].values():
                there |= listed
            return tuple(there[flow_id] for flow_id in sorted(there) if (org, flow_id) not in self._left_out)

    # Edits

    def set_flows(self, org: str, user: str, flows: Iterable[Flow]) -> None:
        """Sets the whole list of one user; adds the organisation and the user if they are missing."""
        with self._lock:
            self._lists.setdefault(org, {})[user] = {flow.flow_id: flow for flow in flows}

    def remove_user(self, org: str, user: str) -> None:
        """From now on EnOS answers 62101 for this user."""
        with self._lock:
            del self._lists[org][user]

    def add_flow(self, org: str, flow: Flow, users: Sequence[str] | None = None) -> None:
        """Adds a workflow for these users (None: all users of the organisation; (): to the directory alone)."""
        with self._lock:
            if users is not None and not users:
                self._directory_only.setdefault(org, {})[flow.flow_id] = flow
            for user in self.users(org) if users is None else users:
                self._put(org, user, flow)

    def remove_flow(self, org: str, flow_id: str, users: Sequence[str] | None = None) -> None:
        """Removes a workflow for these users (None: all who see it, and the directory)."""
        with self._lock:
            if users is None and flow_id in self._directory_only.get(org, {}):
                del self._directory_only[org][flow_id]
                users = [user for user, listed in self._lists[org].items() if flow_id in listed]
            for user in self._viewers(org, flow_id) if users is None else users:
                del self._lists[org][user][flow_id]

    def unlist(self, org: str, flow_id: str) -> None:
        """Takes a workflow from everybody who sees it; the directory keeps it."""
        with self._lock:
            flow = self._lists[org][self._viewers(org, flow_id)[0]][flow_id]
            self.remove_flow(org, flow_id)
            self.add_flow(org, flow, ())

    def leave_out(self, org: str, flow_id: str, left_out: bool = True) -> None:
        """Whether the directory lacks a workflow, whoever sees it."""
        with self._lock:
            change = self._left_out.add if left_out else self._left_out.discard
            change((org, flow_id))

    def rename(self, org: str, flow_id: str, name: str | None) -> None:
        """Sets the name for everybody who sees the workflow."""
        self._edit(org, flow_id, flow_name=name)

    def set_cycle(self, org: str, flow_id: str, cycle: str | None) -> None:
        """Sets the cycle for everybody who sees the workflow."""
        self._edit(org, flow_id, cycle=cycle)

    def set_editable(self, org: str, user: str, flow_id: str, editable: bool | None) -> None:
        """Sets whether this user may edit the workflow."""
        with self._lock:
            self._put(org, user, msgspec.structs.replace(self._lists[org][user][flow_id], editable=editable))

    def evolve(self, steps: int = 1) -> None:
        """Lets time pass: in each organisation every kind of change happens, in a small part of the lists."""
        with self._lock:
            for _ in range(steps):
                self._steps += 1
                for org in self._lists:
                    self._step(org)

    # Implementation

    def _viewers(self, org: str, flow_id: str) -> list[str]:
        viewers = [user for user, listed in self._lists[org].items() if flow_id in listed]
        if not viewers:
            raise KeyError(flow_id)
        return viewers

    def _put(self, org: str, user: str, flow: Flow) -> None:
        self._lists[org][user][flow.flow_id] = flow
        self.updated_at[org, flow.flow_id] = dt.datetime.now(dt.UTC)

    def _edit(self, org: str, flow_id: str, **changed: Any) -> None:
        with self._lock:
            for user in self._viewers(org, flow_id):
                self._put(org, user, msgspec.structs.replace(self._lists[org][user][flow_id], **changed))

    def _new_flow(self, rng: random.Random) -> Flow:
        self._next_flow += rng.randint(1, 9)
        name = f"{rng.choice(_SUBJECTS)}_{rng.choice(_TASKS)}_{rng.choice(_SITES)}_{rng.randint(1, 40):02}"
        return Flow(str(self._next_flow), name, rng.choice(list(CYCLE_LABELS)), True)

    def _found(self, number: int, users: int, flows: int) -> None:
        org = f"o{_FIRST_ORG + number}"
        rng = random.Random(f"{self._seed}/0/{org}")
        pool = [self._new_flow(rng) for _ in range(flows + flows // 2)]
        variants = [(flow, msgspec.structs.replace(flow, editable=False)) for flow in pool]
        self._lists[org] = {}
        for member in range(users):
            seen = [rng.choice(variant) for variant in rng.sample(variants, flows)]
            self.set_flows(org, f"u{_FIRST_USER + number * users + member}", seen)

    def _step(self, org: str) -> None:
        rng = random.Random(f"{self._seed}/{self._steps}/{org}")
        users = self.users(org)
        longest = max((len(listed) for listed in self._lists[org].values()), default=0)
        kinds = ["added", "removed", "renamed", "cycle", "editable", "membership"]
        rng.shuffle(kinds)
        for turn in range(max(len(kinds), longest // 40) if users else 0):
            self._change(rng, org, rng.choice(users), kinds[turn % len(kinds)])

    def _change(self, rng: random.Random, org: str, user: str, kind: str) -> None:
        """Makes one change of this kind, in what this user sees, if there is anything."""
        users, listed = self.users(org), self.flows(org, user)
        if kind == "added":
            others = [other for other in users if other != user and rng.random() < 0.5]
            self.add_flow(org, self._new_flow(rng), [user, *others])
        elif listed:
            flow = rng.choice(listed)
            if kind == "removed":
                self.remove_flow(org, flow.flow_id)
            elif kind == "renamed":
                stem = (flow.flow_name or "workflow").rsplit("_v", 1)[0]
                self.rename(org, flow.flow_id, f"{stem}_v{self._steps + 1}")
            elif kind == "cycle":
                self.set_cycle(org, flow.flow_id, rng.choice([each for each in CYCLE_LABELS if each != flow.cycle]))
            elif kind == "editable":
                self.set_editable(org, user, flow.flow_id, not flow.editable)
            elif flow.flow_id in self._lists[org][other := rng.choice(users)]:
                self.remove_flow(org, flow.flow_id, [other])
            else:
                self.add_flow(org, flow, [other])
