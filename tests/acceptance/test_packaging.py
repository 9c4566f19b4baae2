"""The wheel and the source archive: reproducible, and complete without a checkout."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from etl.demo.world import World
from etl.domain.model import Flow
from tests.support import image
from tests.support.enos import LocalGateway
from tests.support.program import KEY, SECRET, Program

ROOT = Path(__file__).parents[2]
EPOCH = "1767225600"
AT_THE_TOP = (
    "Makefile",
    "LICENSE",
    "pyproject.toml",
    "README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
)


def build(source: Path, to: Path, kind: str, **environment: str) -> Path:
    """Build a wheel or sdist as `make dist` does, with what is installed here."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", kind, "--directory", to],
        cwd=source,
        env={**os.environ, "SOURCE_DATE_EPOCH": EPOCH, **environment},
        capture_output=True,
        check=True,
    )
    (made,) = to.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return made


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def handed_out(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    to = tmp_path_factory.mktemp("dist")
    return {kind: build(ROOT, to, kind) for kind in ("sdist", "wheel")}


@pytest.fixture(scope="module")
def unpacked(handed_out: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive as somebody else has it: elsewhere, and with other rights."""
    folder = tmp_path_factory.mktemp("elsewhere")
    with tarfile.open(handed_out["sdist"]) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python before 3.11.4 has none
        archive.extractall(folder)
    (source,) = folder.iterdir()
    for path in source.rglob("*"):
        os.utime(path, (0, 0))
        path.chmod(0o700 if path.is_dir() else 0o600)
    return source


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment as deploy/Dockerfile makes it: the wheel and the core's requirements, no extra, no checkout."""
    return image.replay(tmp_path_factory.mktemp("image"), installed="core.txt")


@pytest.fixture(scope="module")
def flowtrail(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """The installed program, a gateway, and a database with the schema."""
    world = World(orgs=0)
    world.set_flows("o1", "ann", [Flow("1", "one", "D", True)])
    with LocalGateway(world, access_key=KEY, secret_key=SECRET) as gateway:
        folder = tmp_path_factory.mktemp("day")
        program = Program(folder, gateway.url, command=(str(installed / "bin" / "flowtrail"),))
        program.configure(listen="127.0.0.1:0")
        program.schedule("plants", [("o1", ["ann"])], when='every = "1s"')
        upgraded = program("db", "upgrade")
        assert upgraded.returncode == 0, upgraded.stderr
        yield program


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_the_source_archive_makes_the_very_same_wheel_and_source_archive_elsewhere(
    handed_out: dict[str, Path], unpacked: Path, tmp_path: Path, kind: str
) -> None:
    assert digest(build(unpacked, tmp_path, kind, TZ="Asia/Shanghai", LC_ALL="C")) == digest(handed_out[kind])


def test_the_wheel_has_all_that_the_program_needs_and_nothing_else(handed_out: dict[str, Path]) -> None:
    with zipfile.ZipFile(handed_out["wheel"]) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == {_in_wheel(path) for path in files_of("etl", "migrations", "schedules")}
    assert {"etl/py.typed", "etl/migrations/env.py", "etl/schedules/example.toml", "etl/cli/flowtrail.toml"} <= held


def test_the_plot_library_is_the_one_that_make_brings_with_its_licence(handed_out: dict[str, Path]) -> None:
    """And it is in the wheel, so that the page needs nothing from elsewhere."""
    [known] = re.findall(r"^PLOTLY_SHA256 := (\w+)$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    with zipfile.ZipFile(handed_out["wheel"]) as archive:
        assert hashlib.sha256(archive.read("etl/web/static/plotly-basic.min.js")).hexdigest() == known
        licences = [name for name in archive.namelist() if ".dist-info/licenses/" in name]
    assert {name.partition("/licenses/")[2] for name in licences} == {"LICENSE", "etl/web/static/plotly-basic.LICENSE"}


def test_the_source_archive_has_all_that_builds_and_tests(handed_out: dict[str, Path]) -> None:
    with tarfile.open(handed_out["sdist"]) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    wanted = files_of("etl", "migrations", "schedules", "tests", "docs", "deploy", "requirements", "benchmarks")
    assert {str(path.relative_to(ROOT)) for path in wanted} | {*AT_THE_TOP} <= held


def files_of(*folders: str) -> list[Path]:
    found = (path for folder in folders for path in (ROOT / folder).rglob("*"))
    return [path for path in found if path.is_file() and "__pycache__" not in path.parts]


def _in_wheel(path: Path) -> str:
    inside = path.relative_to(ROOT)
    return str(inside if inside.parts[0] == "etl" else "etl" / inside)


def test_the_container_installs_the_same_wheel(installed: Path, handed_out: dict[str, Path]) -> None:
    (made,) = (installed.parents[1] / "source" / "dist").glob("*.whl")
    with zipfile.ZipFile(made) as one, zipfile.ZipFile(handed_out["wheel"]) as other:
        assert {i.filename: i.CRC for i in one.infolist()} == {i.filename: i.CRC for i in other.infolist()}


def test_what_the_wheel_requires_is_there_and_fits(installed: Path) -> None:
    build_python = installed.parent / "build" / "bin" / "python"
    checked = subprocess.run(
        [build_python, "-m", "pip", "--python", installed / "bin" / "python", "check"], capture_output=True, text=True
    )
    assert (checked.returncode, checked.stdout.strip()) == (0, "No broken requirements found.")


def test_the_wheel_alone_inits_checks_and_serves(flowtrail: Program) -> None:
    made = flowtrail("init", "fresh")
    assert made.returncode == 0, made.stderr
    assert (flowtrail.folder / "fresh" / "schedules" / "example.toml").exists()
    checked = flowtrail("check")
    assert (checked.returncode, "BAD" in checked.stdout) == (0, False), checked.stdout
    flowtrail.configure(listen="127.0.0.1:0", rest='[[notify]]\nurls = ["json://localhost"]')
    service = flowtrail.start("serve")
    assert service.wait_for("cannot_notify")["why"] == "Notifications need apprise: pip install 'flowtrail[notify]'"
    assert "flowtrail[web]" in service.wait_for("no_page")["error"]
    status, shown = service.get("/targets")
    assert (status, "flowtrail[web]" in shown) == (501, True)
    assert service.get("/metrics")[0] == 200
    service.wait_for("run_ended", lambda entry: entry["status"] == "succeeded")
    assert service.stop() == 0


def test_the_wheel_alone_runs_the_demo(flowtrail: Program) -> None:
    told = flowtrail("demo", "--folder", "story")
    assert told.returncode == 0, told.stderr
    assert "Run 6 succeeded" in told.stdout


MISSING = {
    "postgres": ["check"],
    "parquet": ["export", "changes", "--format", "parquet", "-o", "changes.parquet"],
    "excel": ["export", "changes", "-o", "changes.xlsx"],
    "web": ["report", "-o", "page.html"],
    "notify": ["notify", "--test"],
    "sign": ["seal", "keygen", "seal.pem"],
}


@pytest.mark.parametrize("extra", MISSING)
def test_an_extra_that_is_missing_is_one_line_with_the_remedy(flowtrail: Program, extra: str) -> None:
    if extra == "notify":
        with (flowtrail.folder / "flowtrail.toml").open("a") as file:
            file.write('\n[[notify]]\nurls = ["json://localhost"]\n')
    url = {"FLOWTRAIL_DATABASE__URL": "postgresql+psycopg://u@localhost/x"} if extra == "postgres" else {}
    done = flowtrail(*MISSING[extra], **url)
    said = [line for line in (done.stdout + done.stderr).splitlines() if f"flowtrail[{extra}]" in line]
    assert (done.returncode != 0, len(said), "Traceback" in done.stderr) == (True, 1, False), done.stderr
