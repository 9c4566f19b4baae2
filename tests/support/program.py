"""The real program as a user runs it: a folder with settings, and `python -m etl` in a separate process."""

from __future__ import annotations

import atexit
import base64
import contextlib
import functools
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from etl import config
from etl.cli import app
from etl.config import Settings
from etl.errors import ConfigError
from tests.support.forked import Forked

SECRET = "s3cret-of-the-tests"
KEY = "access-key-of-the-tests"
ORG, ANN = "o1", "ann"
"""The user that the gateway of the fixtures knows."""
PATIENCE_SECONDS = 60
COMMAND = (sys.executable, "-m", "etl")
_free = threading.Lock()


@functools.cache
def _launcher(**environment: str) -> Forked:
    """One for all tests of this process."""
    launcher = Forked({**os.environ, **environment})
    atexit.register(launcher.close)
    return launcher


class Program:
    """A folder with ``flowtrail.toml`` and ``schedules/``, and the command that works there."""

    def __init__(
        self,
        folder: Path,
        gateway_url: str,
        database_url: str = "sqlite:///flowtrail.db",
        command: Sequence[str] = COMMAND,
    ) -> None:
        self.folder = folder
        self.command = command
        self.database_url = database_url
        self.gateway_url = gateway_url
        (folder / "schedules").mkdir(parents=True, exist_ok=True)
        self.configure()

    def configure(self, gateway: str = 'timeout = "2s"\ndeadline = "2s"', rest: str = "", listen: str = "") -> None:
        """Write flowtrail.toml, with these lines in [gateway], and ``rest`` in [service] and after it."""
        (self.folder / "flowtrail.toml").write_text(
            f'[gateway]\nurl = "{self.gateway_url}"\naccess_key = "{KEY}"\n'
            f"{gateway}\n"
            f'[database]\nurl = "{self.database_url}"\n[service]\nlisten = "{listen}"\n{rest}\n'
        )

    def schedule(self, name: str, targets: Sequence[tuple[str, Sequence[str]]], when: str = 'every = "1h"') -> None:
        """Write schedules/NAME.toml."""
        listed = "\n".join(f'[[targets]]\norg = "{org}"\nusers = {json.dumps(list(users))}' for org, users in targets)
        (self.folder / "schedules" / f"{name}.toml").write_text(f"{when}\n\n{listed}\n")

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "FLOWTRAIL_GATEWAY__SECRET_KEY": SECRET, "PYTHONWARNINGS": "error", "COLUMNS": "200"}

    def __call__(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run to the end; in a forked process if the launcher is free, otherwise in a new one."""
        if not environment and self.command == COMMAND and _free.acquire(blocking=False):
            try:
                return self._forked(arguments)
            finally:
                _free.release()
        return subprocess.run(
            [*self.command, *arguments],
            cwd=self.folder,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )

    def _forked(self, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        environment = self.environment
        with tempfile.TemporaryDirectory() as kept:
            out, err = Path(kept, "stdout"), Path(kept, "stderr")
            forked = _launcher(**{name: environment[name] for name in ("PYTHONWARNINGS", "COLUMNS")})
            code = forked(arguments, self.folder, [os.devnull, out, err], environment)
            said = out.read_text("utf-8"), err.read_text("utf-8")
        return subprocess.CompletedProcess([*self.command, *arguments], code, *said)

    def on_terminal(self, *arguments: str, types: str = "", columns: int = 200) -> tuple[int, str]:
        """Run to the end on a terminal that types ``types``; return the exit code and what the terminal showed."""
        ours, its = os.openpty()
        process = subprocess.Popen(
            [*self.command, *arguments],
            cwd=self.folder,
            env={**self.environment, "COLUMNS": str(columns)},
            stdin=its,
            stdout=its,
            stderr=its,
        )
        os.close(its)
        os.write(ours, types.encode())
        shown = b""
        with contextlib.suppress(OSError):  # raised once no process has the other side open
            while piece := os.read(ours, 65536):
                shown += piece
        os.close(ours)
        return process.wait(PATIENCE_SECONDS), shown.decode()

    def json(self, *arguments: str) -> Any:
        """What the command prints with --json; it must succeed."""
        done = self(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def start(self, *arguments: str, **environment: str) -> Running:
        """Run in the background."""
        return Running(
            subprocess.Popen(
                [*self.command, *arguments],
                cwd=self.folder,
                env={**self.environment, "FLOWTRAIL_LOG__FORMAT": "json", **environment},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """The rows of a query on the SQLite file."""
        connection = sqlite3.connect(f"file:{self.folder / 'flowtrail.db'}?mode=ro", uri=True, timeout=60)
        try:
            return connection.execute(query).fetchall()
        finally:
            connection.close()

    def execute(self, *statements: str, **values: str) -> None:
        """Execute statements on the SQLite file."""
        with contextlib.closing(sqlite3.connect(self.folder / "flowtrail.db", timeout=60)) as connection, connection:
            for statement in statements:
                connection.execute(statement, values)


class Running:
    """A process whose log is read as it comes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.log: list[dict[str, Any]] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._news:
                self.log.append(json.loads(line) if line.startswith("{") else {"event": "", "line": line})
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    def wait_for(
        self, event: str, matches: Callable[[dict[str, Any]], bool] = lambda entry: True, times: int = 1
    ) -> Any:
        """The ``times``-th matching log entry of ``event``; fails with the log if it does not come."""

        def found() -> list[dict[str, Any]]:
            return [entry for entry in self.log if entry["event"] == event and matches(entry)]

        with self._news:
            arrived = self._news.wait_for(lambda: len(found()) >= times, PATIENCE_SECONDS)
            assert arrived, f"no {event} in {self.log}"
            return found()[times - 1]

    def get(self, path: str, **headers: str) -> tuple[int, str]:
        """Request a path over HTTP; return the status and the body."""
        request = urllib.request.Request(self.wait_for("listening")["url"] + path, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> int:
        """The exit code, once it has ended."""
        code = self.process.wait(PATIENCE_SECONDS)
        self._reader.join(PATIENCE_SECONDS)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        return code


def disguises(secret: str) -> dict[str, bytes]:
    """A secret as it is, and in four encodings."""
    raw = secret.encode()
    return {
        "raw": raw,
        "url": urllib.parse.quote(secret, safe="").encode(),
        "base64": base64.b64encode(raw).rstrip(b"="),
        "hex": raw.hex().encode(),
        "json": json.dumps(secret)[1:-1].encode(),
    }


# In this process


def here(flowtrail: Program, *arguments: str) -> Result:
    """The command in this process."""
    environment = {"FLOWTRAIL_GATEWAY__SECRET_KEY": SECRET, "COLUMNS": "200"}
    return CliRunner().invoke(app, ["--config", str(flowtrail.folder / "flowtrail.toml"), *arguments], env=environment)


def settings_of(tmp_path: Path, more: str, **environment: str) -> Settings:
    file = tmp_path / "flowtrail.toml"
    file.write_text(f'[gateway]\nurl = "https://gw.example.com"\nauth = "none"\n{more}\n')
    file.chmod(0o600)
    return config.load(file, environment)


def problems(tmp_path: Path, more: str, **environment: str) -> str:
    with pytest.raises(ConfigError) as raised:
        settings_of(tmp_path, more, **environment)
    assert "canary" not in str(raised.value)
    return str(raised.value).replace(f"{tmp_path}/", "")
