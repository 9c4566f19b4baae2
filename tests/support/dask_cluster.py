"""Dask's own scheduler and workers, as processes on the loopback, each with its own environment."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tests.support.postgres import free_port
from tests.support.relay import MOST_BYTES, Relay, end

PATIENCE_SECONDS = 60


class Dask:
    """A scheduler, and the workers that were started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.processes: list[subprocess.Popen[bytes]] = []
        self._start("scheduler", "--host", "127.0.0.1", "--port", str(self.port), "--no-dashboard")

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    def worker(self, through: str | None = None, **environment: str) -> subprocess.Popen[bytes]:
        """Start a worker as an operator does; return when it is connected to its scheduler."""
        return self._start(
            *("worker", through or self.address, "--no-nanny", "--nthreads", "2", "--no-dashboard"),
            *("--host", "127.0.0.1", "--local-directory", str(self.folder)),
            environment=environment,
        )

    def said(self, process: subprocess.Popen[bytes]) -> str:
        return (self.folder / f"{self.processes.index(process)}.log").read_text()

    def wait_until_said(self, process: subprocess.Popen[bytes], what: str) -> None:
        give_up = time.monotonic() + PATIENCE_SECONDS
        while what not in self.said(process):
            assert time.monotonic() < give_up, self.said(process)
            assert process.poll() is None, self.said(process)
            time.sleep(0.05)

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.kill()
            process.wait()

    def _start(self, *arguments: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        log = self.folder / f"{len(self.processes)}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", *arguments],
                env={**os.environ, **(environment or {})},
                cwd=self.folder,
                stdout=file,
                stderr=file,
            )
        self.processes.append(process)
        return process


class Wire(Relay):
    """A relay to the scheduler that records every byte and can be cut and restored."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self._is_cut = False
        self.bytes = bytearray()

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """End all connections, and accept no more."""
        self._is_cut = True
        for each in self._sockets:
            end(each)

    def mend(self) -> None:
        self._is_cut = False

    def _connected(self) -> socket.socket | None:
        return None if self._is_cut else super()._connected()

    def _join(self, client: socket.socket, server: socket.socket) -> None:
        self._start(self._carry, client, server)
        self._start(self._carry, server, client)

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := one.recv(MOST_BYTES):
                self.bytes += piece
                other.sendall(piece)
        end(one)
        end(other)
