"""deploy/Dockerfile without a container engine: its instructions, and its build stage replayed in a folder.

``python -m tests.support.image`` replays it unchanged, with requirements from the package index, and runs the result.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
_REQUIREMENTS = re.compile(r"(\S+/bin/python) -m pip (?:--python (\S+) )?install\s[^&]*-r (\S+)")


class Instruction(NamedTuple):
    """A keyword such as ``RUN``, and the rest of the line."""

    keyword: str
    value: str


def stages() -> list[list[Instruction]]:
    """The instructions from each FROM to the next, without what precedes the first."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text("utf-8"), flags=re.MULTILINE).replace("\\\n", "")
    found: list[list[Instruction]] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        keyword, _, value = line.partition(" ")
        if keyword == "FROM":
            found.append([])
        if found:
            found[-1].append(Instruction(keyword, value.strip()))
    return found


def values(stage: list[Instruction], keyword: str) -> list[str]:
    return [each.value for each in stage if each.keyword == keyword]


def exec_form(stage: list[Instruction], keyword: str) -> list[str]:
    """The words of a CMD, ENTRYPOINT or HEALTHCHECK; fails if a shell would run it."""
    (value,) = values(stage, keyword)
    words = json.loads(value[value.index("[") :])
    assert isinstance(words, list)
    return words


def replay(folder: Path, installed: str = "") -> Path:
    """Do what the first stage does, with ``folder`` as ``/``; return the virtual environment that it makes.

    ``installed`` names a list of requirements. Then nothing is downloaded: the packages of that list are linked from
    this environment into the runtime's, those of build.txt into the one for building.
    """
    source = folder / "source"
    source.mkdir()
    for instruction in stages()[0]:
        if instruction.keyword == "COPY":
            _copy(instruction.value.split(), source)
        elif instruction.keyword == "RUN":
            _run(instruction.value.replace("/opt/", f"{folder}/opt/"), source, installed)
    return folder / "opt" / "flowtrail"


def _copy(words: list[str], source: Path) -> None:
    *names, to = words
    for name in names:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / to, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / to)


def _run(command: str, source: Path, installed: str) -> None:
    if installed:
        command = _REQUIREMENTS.sub(rf"{sys.executable} {__file__} link \1 \2 \3 {installed}", command)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PYTHONWARNINGS": "ignore",
    }
    done = subprocess.run(command, shell=True, cwd=source, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


def link(python: Path, requirements: Path) -> None:
    """Link what ``requirements`` lists from this environment into that of ``python``."""
    (site,) = python.parents[1].glob("lib/python*/site-packages")
    for line in requirements.read_text("utf-8").splitlines():
        if match := re.match(r"[A-Za-z0-9].*?(?= \\)", line):
            wanted = Requirement(match[0])
            if wanted.marker is None or wanted.marker.evaluate():
                _link_one(metadata.distribution(wanted.name), site)


def _link_one(distribution: metadata.Distribution, site: Path) -> None:
    tops = {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}
    for top in tops:
        if not (site / top).exists():
            (site / top).symlink_to(str(distribution.locate_file(top)))


def _main() -> None:
    if sys.argv[1:2] == ["link"]:
        *pythons, listed, installed = sys.argv[2:]
        link(Path(pythons[-1]), Path(listed if listed.endswith("build.txt") else ROOT / "requirements" / installed))
        return
    with tempfile.TemporaryDirectory(prefix="flowtrail-image-") as folder:
        made = replay(Path(folder)) / "bin"
        subprocess.run([made / "flowtrail", "--version"], check=True)
        subprocess.run([made / "flowtrail", "demo", "--folder", f"{folder}/story"], check=True)


if __name__ == "__main__":
    _main()
