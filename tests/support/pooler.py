"""PgBouncer in transaction mode in front of the tests' PostgreSQL, as packaged by Debian.

It ends with the process that started it, even if that is killed: a guardian process waits for a pipe to close.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.support import postgres, sessions

PATIENCE_SECONDS = 20
SETTINGS = """
[databases]
* = host={server.folder} port={server.port}
[pgbouncer]
unix_socket_dir = {folder}
listen_port = {port}
auth_type = trust
auth_file = {folder}/users
pool_mode = transaction
server_round_robin = 1
max_client_conn = 500
server_login_retry = 0.2
logfile = {folder}/log
"""
"""Round robin, so that code fails if it relies on getting the session of its previous transaction."""
USERS = (postgres.SUPERUSER, sessions.ROLE, "sweep")
"""The users that may connect, without a password."""


class Pooler(NamedTuple):
    """A running PgBouncer."""

    folder: Path
    port: int

    def url(self, database: str) -> str:
        """Over the socket, as the superuser."""
        return f"postgresql+psycopg://{postgres.SUPERUSER}@/{database}?host={self.folder}&port={self.port}"


def installed() -> str | None:
    """The path of the program, in a folder that only root has in its PATH."""
    return shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")


@contextlib.contextmanager
def running_if_installed(server: postgres.Server) -> Iterator[Pooler | None]:
    """``running``, or None."""
    with running(server) if installed() else contextlib.nullcontext() as pooler:
        yield pooler


@contextlib.contextmanager
def running(server: postgres.Server) -> Iterator[Pooler]:
    """Run PgBouncer while the block lasts. Raises RuntimeError with the reason if it cannot."""
    program = installed()
    if program is None:
        raise RuntimeError("no PgBouncer: apt-get install pgbouncer")
    folder = Path(tempfile.mkdtemp(prefix="flowtrail-pgb-", dir=postgres.DISK))
    pooler = Pooler(folder, postgres.free_port())
    (folder / "users").write_text("".join(f'"{user}" ""\n' for user in USERS))
    (folder / "ini").write_text(SETTINGS.format(server=server, folder=folder, port=pooler.port))
    guardian = subprocess.Popen([sys.executable, __file__, program, folder], stdin=subprocess.PIPE)
    try:
        _wait_until_it_listens(pooler, guardian)
        yield pooler
    finally:
        guardian.communicate()
        shutil.rmtree(folder)


def _wait_until_it_listens(pooler: Pooler, guardian: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < until and guardian.poll() is None:
        with socket.socket(socket.AF_UNIX) as client:
            if client.connect_ex(f"{pooler.folder}/.s.PGSQL.{pooler.port}") == 0:
                return
        time.sleep(0.02)
    log = pooler.folder / "log"
    raise RuntimeError(f"PgBouncer did not start: {log.read_text() if log.exists() else 'it said nothing'}")


def _guard(program: str, folder: Path) -> None:
    """PgBouncer refuses to run as root, as PostgreSQL does."""
    user = postgres.unprivileged(folder)
    with subprocess.Popen([program, "--quiet", folder / "ini"], user=user, stdin=subprocess.DEVNULL) as pgbouncer:
        sys.stdin.buffer.read()
        pgbouncer.kill()


if __name__ == "__main__":
    _guard(sys.argv[1], Path(sys.argv[2]))
