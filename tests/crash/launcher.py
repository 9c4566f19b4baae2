"""A process that has imported the program and forks for each run: ``python launcher.py``.

A JSON line on stdin starts a run: arguments, folder, output (a prefix for the files stdout and stderr in it), strike,
and how many workflows are written per transaction (null: the default).
Two lines come back: the process id at once; at the end the exit code (negative: the signal), how many points were
passed, and the label of the one that was struck, or else of the last.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import mmap
import os
import sys
import traceback
from pathlib import Path
from typing import Any, TextIO

import psycopg  # noqa: F401
import rich.progress  # noqa: F401
import sqlalchemy.dialects.postgresql.psycopg
import sqlalchemy.dialects.sqlite.pysqlite  # noqa: F401

import etl.__main__
import etl.cli
import etl.signing.keys
from etl import database
from etl.sync import fetching
from tests.crash import points

_OUTPUT = {1: "stdout", 2: "stderr"}


def run(order: dict[str, Any], board: mmap.mmap) -> int:
    """In the child: run the program, and return its exit code."""
    os.setpgid(0, 0)
    folder = Path(order["folder"])
    os.chdir(folder)
    for number, name in _OUTPUT.items():
        file = os.open(folder / f"{order['output']}{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(file, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    points.install(order["strike"], board)
    if order["flows_a_group"] is not None:
        fetching.FLOWS_A_GROUP = order["flows_a_group"]
    sys.argv = ["flowtrail", *order["arguments"]]
    try:
        etl.__main__.main()
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:
        traceback.print_exc()
        return 70
    return 0


def warm_up() -> None:
    """Import what a run imports late, before the first fork; no file, socket or thread stays open."""
    database.expected()
    sys.argv = ["flowtrail", "sync", "--config", os.devnull]
    with contextlib.suppress(SystemExit), contextlib.redirect_stderr(io.StringIO()):
        etl.cli.main()
    gc.collect()
    gc.freeze()


def serve() -> None:
    """Start runs until stdin ends."""
    warm_up()
    board = mmap.mmap(-1, points.BOARD_BYTES)
    with os.fdopen(os.dup(1), "w", buffering=1) as answers:
        obey(answers, board)


def obey(answers: TextIO, board: mmap.mmap) -> None:
    for line in iter(sys.stdin.readline, ""):
        board[:] = bytes(points.BOARD_BYTES)
        pid = os.fork()
        if not pid:
            answers.close()
            code = run(json.loads(line), board)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        answers.write(f"{pid}\n")
        _, status = os.waitpid(pid, 0)
        passed, label = points.read(board)
        answers.write(json.dumps({"code": os.waitstatus_to_exitcode(status), "passed": passed, "label": label}) + "\n")


if __name__ == "__main__":
    serve()
