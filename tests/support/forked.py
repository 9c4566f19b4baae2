"""The program in a process forked from one that has loaded it: as real as a new one, in a tenth of the time.

`python forked.py` reads one request a line, forks for each, and answers with the process's number when it has ended.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

CLOSED = "closed"
GONE = "gone"
"""A pipe whose reader has closed it."""
HUNG = -1
_SECONDS = 60


class Forked:
    """Starts the program again and again. One call at a time."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def __call__(self, arguments: list[str], folder: Path, streams: list[str | Path]) -> int:
        """The exit code of the program with these arguments, in ``folder``; its streams 0, 1 and 2 are files, closed,
        or gone."""
        assert self._process.stdin
        assert self._process.stdout
        request = {"arguments": arguments, "folder": str(folder), "streams": list(map(str, streams))}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait(_SECONDS)
        self._process.stdout.close()


def _serve() -> None:
    import etl.__main__
    import etl.cli

    answers = os.dup(1)
    os.set_inheritable(answers, False)
    os.dup2(2, 1)
    etl.cli.app(["--version"], standalone_mode=False)  # whatever is loaded by the first call
    gc.freeze()  # or each process looks through all of it at its end
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _set_role(json.loads(line))
            sys.argv = ["flowtrail", *json.loads(line)["arguments"]]
            etl.__main__.main()
            os._exit(70)  # main ends by itself
        os.write(answers, b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def _set_role(request: dict[str, Any]) -> None:
    os.closerange(3, 256)
    os.chdir(request["folder"])
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
