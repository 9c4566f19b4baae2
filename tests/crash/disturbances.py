"""What can go wrong in a run at its n-th point, message, request or page. Each reports if the run got that far."""

from __future__ import annotations

import abc
import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import psycopg

from tests.crash.place import Ended, Place, file_of, name_of
from tests.crash.proxy import CuttingProxy
from tests.support import postgres
from tests.support.enos import Fault
from tests.support.pooler import Pooler
from tests.support.sessions import DECOYS, HOSTILE, make_role, url_for

PAGE_BYTES = 4096


class Disturbed(NamedTuple):
    """How a disturbed run ended, and whether it was disturbed at all."""

    ended: Ended
    reached: bool


class Disturbance(abc.ABC):
    """``name`` is for reports. ``dies``: the run is killed, so it reports no error. ``harmless``: it must end as if
    undisturbed."""

    name: str
    dies = False
    harmless = False

    def database(self, place: Place, template: str | None) -> str:
        """The URL of the trial's database."""
        return place.databases.new(template)

    @abc.abstractmethod
    def run(self, place: Place, command: Sequence[str], at: int) -> Disturbed:
        """Run the command, disturbed at ``at``."""


class Strike(Disturbance):
    """At a point in the program's own process; see ``points.py``."""

    def __init__(self, how: str) -> None:
        self.name = how
        self.dies = how == "kill"

    def run(self, place: Place, command: Sequence[str], at: int) -> Disturbed:
        ended = place.run(*command, strike={"how": self.name, "at": at})
        if self.name == "pages":
            return Disturbed(ended, "disk is full" in place.said)
        if self.dies:
            return Disturbed(ended, ended.code == -signal.SIGKILL)
        return Disturbed(ended, ended.passed >= at)


class Cut(Disturbance):
    """The connection to PostgreSQL is cut at a message of the client, through a real proxy."""

    def __init__(self, server: postgres.Server, when: Literal["before", "middle", "after"]) -> None:
        self.name = f"cut {when}"
        self._server = server
        self._when = when

    def run(self, place: Place, command: Sequence[str], at: int) -> Disturbed:
        direct = place.url
        name = name_of(direct)
        with CuttingProxy(self._server.port, at, self._when) as proxy:
            through = self._server.url(name, tcp=True).replace(f":{self._server.port}/", f":{proxy.port}/")
            place.point_at(through)
            ended = place.run(*command)
            place.point_at(direct)
            return Disturbed(ended, proxy.has_cut)


class Hostile(Disturbance):
    """The role has the n-th hostile default; after the last one, all of them; then all of them through PgBouncer, if it
    is installed. The commands that follow run in the same kind of session."""

    name = "hostile"
    harmless = True

    def __init__(self, server: postgres.Server, pooler: Pooler | None) -> None:
        self._server = server
        self._pooler = pooler
        self._defaults = [*({name: value} for name, value in HOSTILE.items()), HOSTILE, HOSTILE]
        self.all_at_once = [len(HOSTILE) + 1, len(HOSTILE) + 2]

    def database(self, place: Place, template: str | None) -> str:
        url = place.databases.new(template)
        if template is not None:  # in an empty database the search path would send the new schema elsewhere
            with psycopg.connect(self._server.conninfo(name_of(url)), autocommit=True) as admin:
                admin.execute(DECOYS)
        return url

    def run(self, place: Place, command: Sequence[str], at: int) -> Disturbed:
        through = self._pooler if at == len(self._defaults) else None
        reached = at < len(self._defaults) or through is not None
        if reached:
            make_role(self._server.conninfo("postgres"), "sweep", **self._defaults[at - 1])
            place.point_at(url_for(self._server, name_of(place.url), "sweep", through))
        return Disturbed(place.run(*command), reached)


class Upstream(Disturbance):
    """The gateway misbehaves from a request on, once or for good.

    | kind | what it does |
    |---|---|
    | outage, cut | resets the connection, before the first byte or in mid-body |
    | interim | sends interim answers before the real one |
    | twice | sends the real one again, just before the answer to the next request, which is for another user |

    The only visible effect allowed of the last two: targets fail if every answer comes twice.
    """

    def __init__(self, kind: Literal["outage", "cut", "interim", "twice"], *, for_good: bool) -> None:
        self.name = f"{kind} {'for good' if for_good else 'once'}"
        self.harmless = kind == "interim" or (kind == "twice" and not for_good)
        self._fault = Fault(kind, times=None if for_good else 1, endpoint="any", reset=True, seconds=0.01)

    def run(self, place: Place, command: Sequence[str], at: int) -> Disturbed:
        if at > 1:
            place.gateway.order(Fault("none", times=at - 1, endpoint="any"))
        order = place.gateway.order(self._fault)
        if self._fault.times is None:
            place.point_at(place.url, deadline="1s")
        ended = place.run(*command)
        place.point_at(place.url)
        place.gateway.clear_faults()
        return Disturbed(ended, order.met > 0)


class FullDisk(Disturbance):
    """A real file system in memory with n - 1 free pages."""

    name = "disk"

    def __init__(self, disk: Path) -> None:
        self._disk = disk

    def database(self, place: Place, template: str | None) -> str:
        copy = file_of(place.databases.new(template))
        folder = self._disk / copy.parent.name
        shutil.copytree(copy.parent, folder)
        shutil.rmtree(copy.parent)
        return f"sqlite:///{folder / copy.name}"

    def run(self, place: Place, command: Sequence[str], at: int) -> Disturbed:
        ballast = self._disk / "ballast"
        free = os.statvfs(self._disk).f_bavail * os.statvfs(self._disk).f_frsize
        with ballast.open("wb") as file:
            file.write(bytes(max(0, free - (at - 1) * PAGE_BYTES)))
        try:
            ended = place.run(*command)
        finally:
            ballast.unlink()
        return Disturbed(ended, "full" in place.said)


@contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """A new tmpfs; None if we are not allowed to mount one."""
    disk = folder / "disk"
    disk.mkdir()
    options = ("-t", "tmpfs", "-o", "size=4m", "flowtrail-test", str(disk))
    mounted = os.geteuid() == 0 and not subprocess.run(["mount", *options], capture_output=True).returncode
    try:
        yield disk if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(disk)], check=True)
        with contextlib.suppress(OSError):
            disk.rmdir()
