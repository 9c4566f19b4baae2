"""A pipe, a device, a socket or an endless file in place of a file to read: one sentence, at once."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from etl.config import load, load_schedules
from etl.errors import ConfigError
from etl.system.disk import KIB, open_regular, read_regular
from tests.support.program import Program


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


MADE: dict[str, Callable[[Path], None]] = {
    "it is a pipe, not a regular file": os.mkfifo,
    "it is a device, not a regular file": lambda path: path.symlink_to("/dev/zero"),
    "it is a socket, not a regular file": unix_socket,
    "Is a directory": Path.mkdir,
}
SETTINGS = '[gateway]\nurl = "https://apim.example.com"\naccess_key = "key"\nsecret_key_file = "secret"\n'
PLACES = {
    "flowtrail.toml": "flowtrail.toml",
    "secret": "gateway.secret_key_file",
    "bundle": "gateway.ca_bundle",
    "database-url": "database.url_file",
    "receivers": "notify[1].urls_file",
    "schedules/plants.toml": "plants.toml",
    "schedules/plants.csv": "targets_file",
}
"""A file, and how the place of its problem ends."""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with one of each file that the settings can name."""
    (tmp_path / "schedules").mkdir()
    more = 'ca_bundle = "bundle"\n[database]\nurl_file = "database-url"\n[[notify]]\nurls_file = "receivers"\n'
    (tmp_path / "flowtrail.toml").write_text(SETTINGS + more)
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "bundle").write_text("")
    (tmp_path / "database-url").write_text("sqlite:///flowtrail.db")
    (tmp_path / "receivers").write_text("json://localhost")
    (tmp_path / "schedules" / "plants.toml").write_text('every = "1h"\ntargets_file = "plants.csv"\n')
    (tmp_path / "schedules" / "plants.csv").write_text("org,user\no1,ann\n")
    load_schedules(load(tmp_path / "flowtrail.toml", {}))
    return tmp_path


@pytest.mark.timeout(20)
@pytest.mark.parametrize("said", MADE)
@pytest.mark.parametrize("name", PLACES)
def test_a_path_that_is_not_a_file_is_named_and_not_read(home: Path, name: str, said: str) -> None:
    (home / name).unlink()
    MADE[said](home / name)
    if (name, said) == ("bundle", "Is a directory"):
        load(home / "flowtrail.toml", {})  # certificates may also be a folder of them
        return
    with pytest.raises(ConfigError) as caught:
        load_schedules(load(home / "flowtrail.toml", {}))
    (problem,) = caught.value.problems
    assert problem.place.endswith(PLACES[name])
    assert said in problem.message


@pytest.mark.parametrize(
    ("name", "mebibytes"), [("flowtrail.toml", 17), ("secret", 2), ("schedules/plants.toml", 17), ("bundle", 65)]
)
def test_a_file_that_is_far_too_large_is_not_read(home: Path, name: str, mebibytes: int) -> None:
    os.truncate(home / name, mebibytes << 20)
    with pytest.raises(ConfigError, match="is larger than"):
        load_schedules(load(home / "flowtrail.toml", {}))


@pytest.mark.parametrize("arguments", ["verify --against PIPE", "db copy --to-file PIPE", "--config PIPE status"])
def test_a_pipe_on_the_command_line_is_refused_in_one_sentence(
    flowtrail: Program, migrated_sqlite: Path, arguments: str
) -> None:
    shutil.copy(migrated_sqlite, flowtrail.folder / "flowtrail.db")
    os.mkfifo(flowtrail.folder / "PIPE")
    done = flowtrail(*arguments.split())
    assert done.returncode == 2
    assert "it is a pipe, not a regular file" in done.stderr


def test_a_file_without_a_size_is_read_as_far_as_is_sane() -> None:
    """Files of /proc are regular, and say that they are empty."""
    file = Path("/proc/self/smaps")
    assert file.stat().st_size == 0
    with pytest.raises(OSError, match="larger than 4 KiB"):
        read_regular(file, 4 * KIB)
    with open_regular(file) as opened:
        assert opened.read(1)
