"""Random kills under load: several syncs and a service on one database, the world evolving, the gateway misbehaving.

A round kills processes (or stops and later resumes them) at random moments; on PostgreSQL the server itself is stopped
with ``-m immediate`` once a round. Then all processes end, one undisturbed sync follows, and the independent checker
judges the database.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import psycopg

from etl.demo.world import World
from tests.crash.place import Place, launcher, name_of
from tests.support import postgres, sessions
from tests.support.enos import Fault
from tests.support.forked import Forked
from tests.support.pooler import running_if_installed

KILLS_A_ROUND = 12
SYNCS = 2
_PAUSE_SECONDS = (0.01, 0.35)
_STOPPED_SECONDS = 0.2
_MAY_END_WITH = {0, 1, 3, -signal.SIGKILL, -signal.SIGTERM}
"""A service that gets SIGTERM before it has installed its handlers dies of it, as any program would."""
_INTERRUPTED_IMPORT = re.compile(
    r"Exception ignored in: <_io\.FileIO name='[^']*\.pyc'.*?\nResourceWarning: unclosed file [^\n]*\n", re.DOTALL
)
"""What Python prints if a signal ends it while it reads a module and warnings are errors."""
_FAULTS = (
    Fault("empty"),
    Fault("partial"),
    Fault("stale"),
    Fault("code", code=62109),
    Fault("code", code=62101),
    Fault("cut", reset=True),
    Fault("outage", reset=True, endpoint="any"),
    Fault("delay", seconds=0.15),
    Fault("interim", endpoint="any"),
    Fault("twice", endpoint="any", seconds=0.005),
    Fault("expired"),
    Fault("raw", body=b'{"code":false,"data":[]}'),
)


class Round(NamedTuple):
    """What a round did, and its findings."""

    what: str
    kills: int
    runs: Counter[int]
    answers: int
    findings: Sequence[str]

    def __str__(self) -> str:
        return "\n    ".join([f"{self.what}: {self.kills} kills, runs by exit code {dict(self.runs)}", *self.findings])


class Victim:
    """One process of the load, restarted whenever it ends."""

    def __init__(
        self, place: Place, launcher: Forked, number: int, arguments: Sequence[str], flows_a_group: int | None
    ) -> None:
        self._flows_a_group = flows_a_group
        self._folder = place.folder
        self._launcher = launcher
        self._arguments = arguments
        self._output = [place.folder / f"{number}-{name}" for name in ("stdout", "stderr")]
        self._pid_file: int | None = None
        self._over = threading.Event()
        self.codes: Counter[int] = Counter()
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()

    def _live(self) -> None:
        while not self._over.is_set():
            prepare = "tests.crash.points", {"flows_a_group": self._flows_a_group}
            pid = self._launcher.start(self._arguments, self._folder, [os.devnull, *self._output], prepare=prepare)
            with contextlib.suppress(ProcessLookupError):
                self._pid_file = os.pidfd_open(pid)
            self.codes[self._launcher.ended()] += 1
            if self._pid_file is not None:
                os.close(self._pid_file)
                self._pid_file = None

    def send(self, number: int) -> bool:
        """Send a signal; return whether there was a process."""
        with contextlib.suppress(OSError, TypeError):
            signal.pidfd_send_signal(self._pid_file, number)  # type: ignore[arg-type]
            return True
        return False

    def end(self) -> None:
        """Wait for the process to end, and start no other; a service is asked to stop."""
        self._over.set()
        while self._thread.is_alive():
            if self._arguments == ("serve",):
                self.send(signal.SIGTERM)
            self._thread.join(0.5)

    @property
    def said(self) -> str:
        return "".join(file.read_text() for file in self._output if file.exists())


def one_round(place: Place, server: postgres.Server | None, seed: int, launchers: Sequence[Forked]) -> Round:
    """Kill, let everything end, and check. ``seed`` decides what is killed when, as far as timing allows.

    With odd seeds each answer is written in its own transaction, two at a time, instead of in large groups. On
    PostgreSQL, two rounds in three use a role with hostile defaults, one of them through PgBouncer if it is installed.
    """
    together = 1 if seed % 2 else None
    rng = random.Random(seed)
    world = place.new_world(World(seed, orgs=1, users=4, flows=200))
    (org,) = world.orgs()
    place.schedule(org, world.users(org), when='every = "1s"')
    place.use(place.databases.new())
    if server is not None:
        place.databases.make_durable(place.url)
    assert place.run("db", "upgrade").code == 0, place.said
    with _connected(place, server, seed % 3) as how:
        with _evolving(place, rng.randrange(1 << 32)):
            arguments = [("sync",)] * SYNCS + [("serve",)]
            victims = [Victim(place, launcher, n, arguments[n], together) for n, launcher in enumerate(launchers)]
            kills = sum(_strike(rng, place, victims) for _ in range(KILLS_A_ROUND))
            if server is not None:
                server.restart()
            kills += sum(_strike(rng, place, victims) for _ in range(KILLS_A_ROUND // 2))
            for victim in victims:
                victim.end()
        code = place.run("sync").code
        undisturbed = [] if code in (0, 1) else [f"the undisturbed sync exits with {code}: {place.said}"]
        findings = [*_ended_badly(victims), *undisturbed, *place.findings(settled=True)]
    codes = sum((victim.codes for victim in victims), Counter())
    what = f"seed {seed}, {place.databases.kind}{how}{', one answer a transaction' if together else ''}"
    made = Round(what, kills, codes, len(place.deliveries), findings)
    place.databases.drop(place.url)
    for file in place.folder.glob("*-std*"):
        file.unlink()
    return made


@contextmanager
def _connected(place: Place, server: postgres.Server | None, way: int) -> Iterator[str]:
    """From now on the program connects in one of three ways; yields its description."""
    with contextlib.ExitStack() as stack:
        url, how, pooler = place.url, "", None
        if server is not None and way:
            name = name_of(place.url)
            with psycopg.connect(server.conninfo(name), autocommit=True) as admin:
                admin.execute(sessions.DECOYS)
            sessions.make_role(server.conninfo("postgres"))
            if way == 2:
                pooler = stack.enter_context(running_if_installed(server))
            url = sessions.url_for(server, name, pooler=pooler)
            how = ", a hostile role through PgBouncer" if pooler else ", a hostile role"
        place.point_at(url, gateway="requests_per_second = 200", rest='grace = "2s"')
        yield how


@contextmanager
def _evolving(place: Place, seed: int) -> Iterator[None]:
    """The world changes, and the gateway misbehaves now and then, until the block ends."""
    over = threading.Event()
    rng = random.Random(seed)

    def go_on() -> None:
        while not over.wait(rng.uniform(0.02, 0.2)):
            place.gateway.world.evolve()
            if rng.random() < 0.3:
                place.gateway.order(rng.choice(_FAULTS))

    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        place.gateway.clear_faults()


def _strike(rng: random.Random, place: Place, victims: Sequence[Victim]) -> bool:
    """Kill or stop a process at a random moment; two times in three just after the gateway has sent an answer, when
    there is most to lose. Return whether one was killed."""
    if rng.random() < 0.67:
        seen = len(place.gateway.deliveries.entries())
        place.gateway.deliveries.wait_until(lambda entries: len(entries) > seen, timeout_seconds=2)
        time.sleep(rng.uniform(0, 0.05))
    else:
        time.sleep(rng.uniform(*_PAUSE_SECONDS))
    victim = rng.choice(victims)
    if rng.random() < 0.2:
        victim.send(signal.SIGSTOP)
        time.sleep(_STOPPED_SECONDS)
        victim.send(signal.SIGCONT)
        return False
    return victim.send(signal.SIGKILL)


def _ended_badly(victims: Sequence[Victim]) -> Iterator[str]:
    for victim in victims:
        if strange := victim.codes.keys() - _MAY_END_WITH:
            yield f"a process ended with {sorted(strange)}: {victim.said[-3000:]}"
        if "Traceback" in _INTERRUPTED_IMPORT.sub("", victim.said):
            yield f"a traceback: {victim.said[-3000:]}"


@contextmanager
def launchers() -> Iterator[list[Forked]]:
    """One for each process of the load."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(launcher()) for _ in range(SYNCS + 1)]
