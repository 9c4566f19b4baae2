"""The truth behind the local gateway: organisations, their users, and the workflows that each user sees."""

from __future__ import annotations

import datetime as dt
import random
import threading
from collections.abc import Callable, Iterable, Sequence
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

_Step = Callable[[random.Random, str, str], None]


class UnknownOrg(KeyError):
    """No such organisation in this world."""


class UnknownUser(KeyError):
    """No such user in this organisation."""


def matches(flow: Flow, expression: str) -> bool:
    """Whether EnOS' fuzzy search would find it: part of flowId or flowName, whatever the case."""
    sought = expression.casefold()
    return sought in flow.flow_id.casefold() or sought in (flow.flow_name or "").casefold()


class World:
    """Thread-safe; the same ``seed``, sizes, edits and number of steps give the same world on every machine.

    ``flows`` is the initial length of each user's list: a sample of the organisation's workflows, of which there are
    half as many again, so that users overlap. ``World(orgs=0)`` is empty.
    """

    def __init__(self, seed: int = 0, *, orgs: int = 1, users: int = 2, flows: int = 50) -> None:
        self._seed = seed
        self._lock = threading.RLock()
        self._steps = 0
        self._next_flow = _FIRST_FLOW
        self._lists: dict[str, dict[str, dict[str, Flow]]] = {}
        self._snapshots: dict[tuple[str, str], tuple[Flow, ...]] = {}
        self._integer_ids: set[tuple[str, str]] = set()
        self._updated_at: dict[tuple[str, str], dt.datetime] = {}
        self._updates: dict[tuple[str, str], dict[str, Any]] = {}
        self._began_at = dt.datetime.now(dt.UTC)
        for number in range(orgs):
            self._found(number, users, flows)

    # What is true now

    def orgs(self) -> list[str]:
        """The ids of the organisations."""
        with self._lock:
            return list(self._lists)

    def users(self, org: str) -> list[str]:
        """The ids of the users of an organisation; UnknownOrg if there is none."""
        with self._lock:
            return list(self._users(org))

    def flows(self, org: str, user: str, expression: str = "") -> tuple[Flow, ...]:
        """What Get My Flow lists for this user, in no particular order. Raises UnknownOrg, UnknownUser.

        Without an expression it is the same object until something about the list changes.
        """
        with self._lock:
            listed = self._list(org, user)
            snapshot = self._snapshots.get((org, user))
            if snapshot is None:
                snapshot = self._snapshots[org, user] = tuple(listed.values())
        return tuple(flow for flow in snapshot if matches(flow, expression)) if expression else snapshot

    def has_integer_ids(self, org: str, user: str) -> bool:
        """Whether flowId goes out as a JSON integer for this user."""
        return (org, user) in self._integer_ids

    def update_of(self, org: str, flow_id: str) -> tuple[dt.datetime, dict[str, Any]]:
        """When a workflow was last updated, and values of Get Flow that differ from the usual ones."""
        with self._lock:
            key = (org, flow_id)
            return self._updated_at.get(key, self._began_at), self._updates.get(key, {})

    # Edits

    def say_of(self, org: str, flow_id: str, **said: Any) -> None:
        """Sets what Get Flow says about a workflow, by EnOS's names: updateUser="u1", freq="0 0 2 * * ? *"."""
        with self._lock:
            self._updates[org, flow_id] = self._updates.get((org, flow_id), {}) | said

    def set_flows(self, org: str, user: str, flows: Iterable[Flow]) -> None:
        """Sets the whole list of one user; adds the organisation and the user if they are missing."""
        with self._lock:
            self._lists.setdefault(org, {})[user] = {flow.flow_id: flow for flow in flows}
            self._snapshots.pop((org, user), None)

    def add_user(self, org: str, user: str, flows: Iterable[Flow] = ()) -> None:
        """Adds a user, in an organisation that may be new too."""
        self.set_flows(org, user, flows)

    def remove_user(self, org: str, user: str) -> None:
        """From now on EnOS answers 62101 for this user."""
        with self._lock:
            self._list(org, user)
            del self._lists[org][user]
            self._snapshots.pop((org, user), None)

    def add_flow(self, org: str, flow: Flow, users: Sequence[str] | None = None) -> None:
        """Adds a workflow for these users (None: all users of the organisation)."""
        with self._lock:
            for user in self._users(org) if users is None else users:
                self._put(org, user, flow)

    def remove_flow(self, org: str, flow_id: str, users: Sequence[str] | None = None) -> None:
        """Removes a workflow for these users (None: all who see it); KeyError if nobody sees it."""
        with self._lock:
            for user in self._viewers(org, flow_id) if users is None else users:
                del self._list(org, user)[flow_id]
                self._snapshots.pop((org, user), None)

    def rename(self, org: str, flow_id: str, name: str | None) -> None:
        """Sets the name for everybody who sees the workflow; KeyError if nobody does."""
        self._replace(org, flow_id, flow_name=name)

    def set_cycle(self, org: str, flow_id: str, cycle: str | None) -> None:
        """Sets the cycle for everybody who sees the workflow; KeyError if nobody does."""
        self._replace(org, flow_id, cycle=cycle)

    def set_editable(self, org: str, user: str, flow_id: str, editable: bool | None) -> None:
        """Sets whether this user may edit the workflow; KeyError if the user does not see it."""
        with self._lock:
            shown = self._list(org, user)[flow_id]
            self._put(org, user, msgspec.structs.replace(shown, editable=editable))

    def set_integer_ids(self, org: str, user: str) -> None:
        """Sends flowId as a JSON integer to this user, as related EnOS calls do (decimal ids only)."""
        with self._lock:
            self._integer_ids.add((org, user))
            self._snapshots.pop((org, user), None)

    def evolve(self, steps: int = 1) -> None:
        """Lets time pass: in each organisation every kind of change happens, in a small part of the lists."""
        with self._lock:
            for _ in range(steps):
                self._steps += 1
                for org in self._lists:
                    self._step(org)

    # Implementation

    def _users(self, org: str) -> dict[str, dict[str, Flow]]:
        try:
            return self._lists[org]
        except KeyError:
            raise UnknownOrg(org) from None

    def _list(self, org: str, user: str) -> dict[str, Flow]:
        users = self._users(org)
        try:
            return users[user]
        except KeyError:
            raise UnknownUser(user) from None

    def _viewers(self, org: str, flow_id: str) -> list[str]:
        viewers = [user for user, listed in self._users(org).items() if flow_id in listed]
        if not viewers:
            raise KeyError(flow_id)
        return viewers

    def _put(self, org: str, user: str, flow: Flow) -> None:
        self._list(org, user)[flow.flow_id] = flow
        self._updated_at[org, flow.flow_id] = dt.datetime.now(dt.UTC)
        self._snapshots.pop((org, user), None)

    def _replace(self, org: str, flow_id: str, **changed: Any) -> None:
        with self._lock:
            for user in self._viewers(org, flow_id):
                shown = self._list(org, user)[flow_id]
                self._put(org, user, msgspec.structs.replace(shown, **changed))

    def _new_flow(self, rng: random.Random, editable: bool) -> Flow:
        self._next_flow += rng.randint(1, 9)
        name = f"{rng.choice(_SUBJECTS)}_{rng.choice(_TASKS)}_{rng.choice(_SITES)}_{rng.randint(1, 40):02}"
        return Flow(str(self._next_flow), name, rng.choice(list(CYCLE_LABELS)), editable)

    def _found(self, number: int, users: int, flows: int) -> None:
        org = f"o{_FIRST_ORG + number}"
        rng = random.Random(f"{self._seed}/0/{org}")
        pool = [self._new_flow(rng, editable=True) for _ in range(flows + flows // 2)]
        variants = [(flow, msgspec.structs.replace(flow, editable=False)) for flow in pool]
        self._lists[org] = {}
        for member in range(users):
            seen = [rng.choice(variant) for variant in rng.sample(variants, flows)]
            self.set_flows(org, f"u{_FIRST_USER + number * users + member}", seen)

    def _step(self, org: str) -> None:
        rng = random.Random(f"{self._seed}/{self._steps}/{org}")
        users = list(self._lists[org])
        longest = max((len(listed) for listed in self._lists[org].values()), default=0)
        kinds: list[_Step] = [
            *(self._some_added, self._some_removed, self._some_renamed),
            *(self._some_cycle, self._some_editable, self._some_membership),
        ]
        rng.shuffle(kinds)
        for turn in range(max(len(kinds), longest // 40) if users else 0):
            kinds[turn % len(kinds)](rng, org, rng.choice(users))

    def _some(self, rng: random.Random, org: str, user: str) -> list[Flow]:
        listed = list(self._list(org, user).values())
        return [rng.choice(listed)] if listed else []

    def _some_added(self, rng: random.Random, org: str, user: str) -> None:
        flow = self._new_flow(rng, editable=True)
        others = [other for other in self._users(org) if other != user and rng.random() < 0.5]
        self.add_flow(org, flow, [user, *others])

    def _some_removed(self, rng: random.Random, org: str, user: str) -> None:
        for flow in self._some(rng, org, user):
            self.remove_flow(org, flow.flow_id)

    def _some_renamed(self, rng: random.Random, org: str, user: str) -> None:
        for flow in self._some(rng, org, user):
            stem = (flow.flow_name or "workflow").rsplit("_v", 1)[0]
            self.rename(org, flow.flow_id, f"{stem}_v{self._steps + 1}")

    def _some_cycle(self, rng: random.Random, org: str, user: str) -> None:
        for flow in self._some(rng, org, user):
            others = [cycle for cycle in CYCLE_LABELS if cycle != flow.cycle]
            self.set_cycle(org, flow.flow_id, rng.choice(others))

    def _some_editable(self, rng: random.Random, org: str, user: str) -> None:
        for flow in self._some(rng, org, user):
            self.set_editable(org, user, flow.flow_id, not flow.editable)

    def _some_membership(self, rng: random.Random, org: str, user: str) -> None:
        for flow in self._some(rng, org, user):
            other = rng.choice(list(self._users(org)))
            if flow.flow_id in self._list(org, other):
                self.remove_flow(org, flow.flow_id, [other])
            else:
                self.add_flow(org, flow, [other])
