"""Files that get their name when they are complete, and what a killed process leaves of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from etl.export import whole_file
from etl.system.disk import part_file, part_folder, remove_abandoned

UNFINISHED = """
import signal, sys
from pathlib import Path
from etl.system import disk
from etl.__main__ import _end

signal.signal(signal.SIGTERM, _end)
with disk.{made}(Path("out")) as part:
    {work}
    print(part, flush=True)
    sys.stdin.read()
"""
FILE = ("part_file", "part.with_name(part.name + '-journal').touch()")
FOLDER = ("part_folder", "(part / 'inside').mkdir(); (part / 'inside' / 'file').touch()")


def unfinished(folder: Path, made: str, work: str) -> subprocess.Popen[str]:
    """A process in the middle of its work."""
    process = subprocess.Popen(
        [sys.executable, "-c", UNFINISHED.format(made=made, work=work)],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline().strip() in {path.name for path in folder.iterdir()}
    return process


def end(process: subprocess.Popen[str], number: int) -> int:
    process.send_signal(number)
    process.communicate()
    return process.returncode


def grow_old(folder: Path) -> None:
    for path in folder.iterdir():
        os.utime(path, (time.time() - 3600,) * 2)


@pytest.mark.parametrize(("made", "work"), [FILE, FOLDER], ids=["file", "folder"])
def test_what_a_killed_process_left_is_removed_by_the_next_that_writes_there(
    tmp_path: Path, made: str, work: str
) -> None:
    killed, at_work = unfinished(tmp_path, made, work), unfinished(tmp_path, made, work)
    assert end(killed, signal.SIGKILL) == -signal.SIGKILL
    left = set(tmp_path.iterdir())
    with whole_file(tmp_path / "other"):
        assert left <= set(tmp_path.iterdir()), "what is new may still be locked by its maker"
    grow_old(tmp_path)
    with whole_file(tmp_path / "other"):
        pass
    assert len(set(tmp_path.iterdir()) & left) == len(left) / 2, "what somebody works on stays"
    assert end(at_work, signal.SIGTERM) == 128 + signal.SIGTERM
    assert [path.name for path in tmp_path.iterdir()] == ["other"], "and SIGTERM leaves nothing"


def test_only_unfinished_files_of_ours_are_removed(tmp_path: Path) -> None:
    others = [".f.part", ".f.0123abcd.part", ".f.0123abcd.flowtrail-part~", "f.0123abcd.flowtrail-part"]
    for name in others:
        (tmp_path / name).touch()
    (tmp_path / ".link.0123abcd.flowtrail-part").symlink_to(tmp_path / ".f.part")
    (tmp_path / ".ours.0123abcd.flowtrail-part").touch()
    grow_old(tmp_path)
    remove_abandoned(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*others, ".link.0123abcd.flowtrail-part"}
    remove_abandoned(tmp_path / "missing")


def test_a_name_may_be_as_long_as_the_file_system_takes(tmp_path: Path) -> None:
    with whole_file(tmp_path / ("é" * 127)) as file:
        file.write(b"whole")
    with part_file(tmp_path / ("é" * 127)), part_folder(tmp_path / ("é" * 127)):
        assert len(list(tmp_path.iterdir())) == 3
    assert len(list(tmp_path.iterdir())) == 1
