"""The program in a process forked from one that has loaded it: as good as a new process, in a tenth of the time.

`python forked.py` reads one request a line and forks for each. Two lines come back: the process id at once, and at the
end the exit code (negative: the signal).
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

CLOSED = "closed"
GONE = "gone"
"""A pipe whose reader is closed."""
_SECONDS = 60


class Forked:
    """Runs the program, one call at a time."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def __call__(
        self,
        arguments: Sequence[str],
        folder: Path,
        streams: Sequence[str | Path],
        environment: Mapping[str, str] | None = None,
    ) -> int:
        """Run the program as ``start`` does, and return its exit code."""
        self.start(arguments, folder, streams, environment)
        return self.ended()

    def start(
        self,
        arguments: Sequence[str],
        folder: Path,
        streams: Sequence[str | Path],
        environment: Mapping[str, str] | None = None,
        prepare: tuple[str, Mapping[str, Any]] | None = None,
    ) -> int:
        """Start the program with these arguments in ``folder``, and return its process id; ``ended`` waits for it.

        Its streams 0, 1 and 2 are files, closed, or gone. Python's own variables are those of the first process.
        ``prepare``: a module, and the arguments of its function ``prepare``, which the process calls first.
        """
        assert self._process.stdin
        request = {
            "arguments": list(arguments),
            "folder": str(folder),
            "streams": list(map(str, streams)),
            "environment": environment,
            "prepare": prepare,
        }
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def ended(self) -> int:
        """The exit code (negative: the signal), once the program has ended."""
        return self._answer()

    def _answer(self) -> int:
        assert self._process.stdout
        return int(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait(_SECONDS)
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _load() -> None:
    """Import everything that any command imports."""
    import etl

    for module in pkgutil.walk_packages(etl.__path__, "etl."):
        importlib.import_module(module.name)
    for name in ("alembic.command", "sqlalchemy.dialects.postgresql.psycopg", "sqlalchemy.dialects.sqlite.pysqlite"):
        importlib.import_module(name)


def _serve() -> None:
    import etl.cli

    answers = os.dup(1)
    os.set_inheritable(answers, False)
    os.dup2(2, 1)
    _load()
    etl.cli.app(["--version"], standalone_mode=False)  # what the first call imports
    gc.freeze()  # or each process would scan it all at its end
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os._exit(_run(json.loads(line)))  # without the interpreter's own end, which takes longer than most commands
        os.write(answers, b"%d\n" % child)
        os.write(answers, b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def _run(request: dict[str, Any]) -> int:
    import etl.__main__

    _set_role(request)
    sys.argv = ["flowtrail", *request["arguments"]]
    try:
        if request["prepare"]:
            module, given = request["prepare"]
            importlib.import_module(module).prepare(**given)
        etl.__main__.main()
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:
        traceback.print_exc()
    return 70


def _set_role(request: dict[str, Any]) -> None:
    os.closerange(3, 256)
    os.chdir(request["folder"])
    if request["environment"] is not None:
        os.environ.clear()
        os.environ.update(request["environment"])
        time.tzset()
    os.closerange(0, 3)
    for descriptor, stream in enumerate(request["streams"]):
        _open(descriptor, stream)
    for descriptor, stream in enumerate(request["streams"]):
        if stream == CLOSED:
            os.close(descriptor)


def _open(descriptor: int, stream: str) -> None:
    """Open a stream as ``descriptor``, which is the lowest free number."""
    if stream == GONE:
        reader, writer = os.pipe()
        os.dup2(writer, 9)
        os.close(reader)
        os.close(writer)
        os.dup2(9, descriptor)
        os.close(9)
    elif descriptor == 0:
        os.open("/dev/null" if stream == CLOSED else stream, os.O_RDONLY)
    else:
        os.open("/dev/null" if stream == CLOSED else stream, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


if __name__ == "__main__":
    _serve()
