"""What happens upstream in a trial, which command runs then, and what an operator would run after a crash."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from etl.demo.world import World
from etl.domain.model import Flow
from tests.crash.place import Place
from tests.support.checker import Delivered

ORG, ANN, BOB, CAY = "o1", "ann", "bob", "cay"
SYNC = ("sync",)


def flows(first: int, last: int) -> list[Flow]:
    return [Flow(str(number), f"name {number}", "D", True) for number in range(first, last + 1)]


def beginning() -> World:
    """Ann has enough workflows for the guard to hold removals, Bob shares some of them, Cay has few."""
    world = World(orgs=0)
    world.set_flows(ORG, ANN, flows(1, 20))
    world.set_flows(ORG, BOB, flows(15, 25))
    world.set_flows(ORG, CAY, flows(1, 3))
    return world


@dataclass(frozen=True)
class Scenario:
    """``before`` prepares database and world; None: there is no schema yet.

    ``upstream`` happens before ``command``. ``recovery``: the commands to run after a crash, the last of which exits
    with ``exits``. If nothing disturbs it, ``command`` exits with ``undisturbed``.
    """

    name: str
    command: Sequence[str] = SYNC
    upstream: Callable[[World], None] = lambda world: None
    before: Callable[[Place], None] | None = field(default=lambda place: None)
    configured: Sequence[str] = (ANN, BOB, CAY)
    recovery: Sequence[Sequence[str]] = (SYNC,)
    exits: int = 0

    @property
    def undisturbed(self) -> int:
        return self.exits if self.command == self.recovery[-1] else 0


def _add(world: World) -> None:
    world.add_flow(ORG, Flow("99", "new", "H", None), [ANN, BOB])


def _remove(world: World) -> None:
    world.remove_flow(ORG, "16")


def _change(world: World) -> None:
    world.set_cycle(ORG, "1", "H")
    world.rename(ORG, "2", "another")
    world.set_editable(ORG, ANN, "3", False)
    world.rename(ORG, "20", None)
    world.set_cycle(ORG, "20", "quarter")


def _vanish(world: World) -> None:
    world.set_flows(ORG, ANN, [*flows(1, 5), Flow("98", "new", "W", True)])
    world.rename(ORG, "1", "renamed meanwhile")


def _replace(world: World) -> None:
    world.set_flows(ORG, ANN, flows(101, 120))


def _empty(world: World) -> None:
    world.set_flows(ORG, CAY, [])


def _lose_together(world: World) -> None:
    """Nine of Ann's twenty, two of Bob's eleven, one of Cay's three: twelve of thirty-four."""
    world.set_flows(ORG, ANN, flows(10, 20))
    world.set_flows(ORG, BOB, flows(17, 25))
    world.set_flows(ORG, CAY, flows(2, 3))


def _lose_again(world: World) -> None:
    world.set_flows(ORG, BOB, flows(17, 25))


def _lost(place: Place) -> None:
    """Ann loses nine, one too few to be held."""
    place.gateway.world.set_flows(ORG, ANN, flows(10, 20))
    expect(place, SYNC, 0)


def _lose_user(world: World) -> None:
    world.remove_user(ORG, BOB)


def _come_back(world: World) -> None:
    world.set_flows(ORG, ANN, flows(1, 12))


def _held(place: Place) -> None:
    _vanish(place.gateway.world)
    place.run("sync")


def _failed(place: Place) -> None:
    world = place.gateway.world
    seen = world.flows(ORG, BOB)
    world.remove_user(ORG, BOB)
    place.run("sync")
    world.set_flows(ORG, BOB, seen)


APPROVE = ("guard", "approve", "--all", "--expect", "any", "--by", "somebody")
UPGRADE = ("db", "upgrade")

SCENARIOS = (
    Scenario("first sync", before=None),
    Scenario("quiet"),
    Scenario("add", upstream=_add),
    Scenario("remove", upstream=_remove),
    Scenario("change", upstream=_change),
    Scenario("held", upstream=_vanish, exits=1),
    Scenario("held whole", upstream=_replace, exits=1),
    Scenario("still held", before=_held, upstream=_add, exits=1),
    Scenario("comes back", before=_held, upstream=_come_back, exits=1),
    Scenario("approve", APPROVE, before=_held, recovery=(APPROVE, SYNC)),
    Scenario("emptied", upstream=_empty),
    Scenario("lost together", upstream=_lose_together, exits=1),
    Scenario("lost again", before=_lost, upstream=_lose_again, exits=1),
    Scenario("failed", upstream=_lose_user, exits=1),
    Scenario("after a failure", before=_failed, upstream=_change),
    Scenario("retire", ("sync", "--retire"), upstream=_change, configured=(ANN,), recovery=(("sync", "--retire"),)),
    Scenario("migrate", UPGRADE, before=None, recovery=(UPGRADE, ("db", "check"), SYNC)),
)


def prepared(place: Place, scenario: Scenario) -> str | None:
    """The URL of a database as the scenario begins, with the gateway in its world; ``place.deliveries`` is what was
    delivered so far."""
    place.new_world(beginning())
    place.schedule(ORG, (ANN, BOB, CAY))
    if scenario.before is None:
        if place.databases.is_sqlite or scenario.command == UPGRADE:
            return None
        place.use(place.databases.new())
        expect(place, UPGRADE, 0)
        return place.url
    url, known = place.beginning or _begin(place)
    place.beginning = url, known
    place.use(place.databases.new(url), known)
    scenario.before(place)
    return place.url


def _begin(place: Place) -> tuple[str, list[Delivered]]:
    place.use(place.databases.new())
    for command in (UPGRADE, SYNC, SYNC):
        expect(place, command, 0)
    return place.url, place.deliveries


def expect(place: Place, command: Sequence[str], code: int) -> None:
    """Run a command that must exit with ``code``."""
    ended = place.run(*command)
    assert ended.code == code, f"{' '.join(command)} exits with {ended.code}, not {code}: {place.said}"
