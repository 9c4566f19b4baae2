"""Which room may import which, and which may import each library. Read from the source, without running it."""

from __future__ import annotations

import ast
import functools
import itertools
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ETL = ROOT / "etl"

RANKS = {
    **dict.fromkeys(("domain", "errors", "timeparse", "printable", "schema"), 0),
    "system": 1,
    "log": 2,
    **dict.fromkeys(("config", "database"), 3),
    **dict.fromkeys(("gateway", "store", "report", "signing"), 4),
    **dict.fromkeys(("notify", "excel", "verify", "audit"), 5),
    **dict.fromkeys(("export", "sync"), 6),
    "service": 7,
    "web": 8,
    "cli": 9,
    "__main__": 10,
}
"""A room (a package or module of ``etl``) imports only from rooms of lower rank."""

DEMO = {"cli", "__main__"}
"""The rooms that may import the demo, which has no rank."""

OWNERS = {
    "requests": {"gateway"},
    "urllib3": {"gateway", "notify", "signing"},
    "cryptography": {"signing"},
    "rfc3161_client": {"signing"},
    "apprise": {"notify"},
    "apscheduler": {"service"},
    "cronsim": {"config"},
    "click": {"cli"},
    "rich": {"cli"},
    "alembic": {"database"},
    "prometheus_client": {"service"},
    "distributed": {"sync"},
    "xlsxwriter": {"excel"},
}
"""The libraries, each with the only rooms that may import it."""

SOURCES = sorted(ETL.rglob("*.py"))


def room_of(path: Path) -> str:
    """The room of a file: ``etl/store/fences.py`` is in ``store``."""
    first = path.relative_to(ETL).parts[0]
    return first.removesuffix(".py")


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


def outside(path: Path) -> set[str]:
    """The top-level packages that a file imports from."""
    return {name.split(".")[0] for name in imported(path)}


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it the import stands: ``etl.store.commit``."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def neighbours(path: Path) -> set[str]:
    """The other rooms that a file imports from."""
    names = {name.split(".")[1] for name in imported(path) if name.startswith("etl.")}
    return {name for name in names if not name.startswith("__")} - {room_of(path)}


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("own", sorted({room_of(path) for path in SOURCES} - {"demo"}))
def test_a_room_imports_only_from_lower_ranks(own):
    if own == "__init__":
        assert not neighbours(ETL / "__init__.py")
        return
    assert own in RANKS, f"{own} has no rank: give it one in {Path(__file__).name}"
    for path in (path for path in SOURCES if room_of(path) == own):
        assert own in DEMO or "demo" not in neighbours(path)
        above = {name for name in neighbours(path) - {"demo"} if RANKS[name] >= RANKS[own]}
        assert not above, f"{named(path)} (rank {RANKS[own]}) imports {sorted(above)}"


@pytest.mark.parametrize("path", sorted(ETL.glob("demo/*.py")), ids=named)
def test_the_demo_has_no_rank(path):
    """The demo gateway shares no code with the client; only tour.py uses the program, as a user would."""
    if path.name == "tour.py":
        assert neighbours(path) <= {name for name, rank in RANKS.items() if rank < RANKS["cli"]}
    else:
        assert neighbours(path) <= {"domain", "errors"}


@pytest.mark.parametrize("library", OWNERS)
def test_each_outside_library_has_its_owner(library):
    users = {named(path): room_of(path) for path in SOURCES if library in outside(path)}
    strangers = {path for path, module in users.items() if module not in OWNERS[library]}
    assert not strangers - {"etl/demo/tour.py"}


def test_no_private_name_of_a_library_is_used():
    """What begins with an underscore may change with any release; documented names that do are listed."""
    assert [f"{named(path)}: {name}" for path in SOURCES for name in foreign_private_names(path)] == []


DOCUMENTED = {"_asdict", "_fields", "_replace", "_make", "_field_defaults", "_mapping", "_exit"}


def foreign_private_names(path: Path) -> set[str]:
    """The private names that a file uses of what it did not define: attributes, imports, and strings in `getattr`."""
    tree = tree_of(path)
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    used = {module for module in imported(path) if not module.startswith("etl.")}
    found = {part for module in used for part in module.split(".")}
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name("self" | "cls"), attr=name):
                own.add(name)
            case ast.AnnAssign(target=ast.Name(name)):
                own.add(name)
            case (
                ast.Attribute(attr=name)
                | ast.Call(
                    func=ast.Name("getattr" | "setattr" | "hasattr"), args=[_, ast.Constant(value=str(name)), *_]
                )
            ):
                found.add(name)
    return {name for name in found - own - DOCUMENTED if name.startswith("_") and not name.startswith("__")}


def test_only_config_reads_the_environment():
    """Other rooms get its values as arguments."""
    assert {named(path) for path in SOURCES if reads_environment(path)} <= {
        named(path) for path in ETL.glob("config/*.py")
    }


def reads_environment(path: Path) -> bool:
    attributes = (node.attr for node in ast.walk(tree_of(path)) if isinstance(node, ast.Attribute))
    return bool(READERS & {*attributes, *(name.removeprefix("os.") for name in imported(path))})


READERS = {"environ", "environb", "getenv", "getenvb"}


@pytest.mark.parametrize("path", sorted((ROOT / "migrations" / "versions").glob("*.py")), ids=named)
def test_revisions_import_no_application_code(path):
    """A revision must keep its meaning when the program changes."""
    assert not [name for name in imported(path) if name.split(".")[0] == "etl"]


def test_only_declared_libraries_are_imported():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    declared = {re.split(r"[^A-Za-z0-9_-]", each)[0].lower().replace("-", "_") for each in wanted}
    used = set().union(*(outside(path) for path in SOURCES)) - sys.stdlib_module_names - {"etl"}
    assert used <= declared


@pytest.mark.parametrize("path", sorted((ROOT / "tests").glob("*/test_*.py")), ids=lambda path: path.name)
def test_no_test_module_imports_another(path):
    """Shared code belongs to tests/support."""
    names = [name for name in imported(path) if re.match(r"(tests\.\w+\.)?test_", name)]
    assert names == []


def test_the_checker_shares_no_code_with_what_it_checks():
    """But for the auditor's, which itself shares none with the rest."""
    for name in ("checker.py", "story_checker.py"):
        others = {"tests.support.story_checker", "etl.audit.check"}
        names = {each for each in imported(ROOT / "tests" / "support" / name) if each not in others}
        assert {each.split(".")[0] for each in names} <= sys.stdlib_module_names | {"psycopg"}, name


def test_every_room_has_a_rank_and_every_rank_a_room():
    assert {room_of(path) for path in SOURCES} - {"__init__", "demo"} == RANKS.keys()


def test_the_last_line_of_a_run_says_what_was_not_tested(tmp_path):
    (tmp_path / "test_skipped.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('number', range(3))\n"
        "def test_a(number): pytest.skip('no Chromium: apt-get install chromium')\n"
        "def test_b(): pytest.skip('no PgBouncer: apt-get install pgbouncer')\n"
        "def test_c(): pytest.skip('no /dev/full')\n"
        "def test_d(): pass\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", f"--rootdir={tmp_path}", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == (
        "5 not run: no Chromium (3), no /dev/full (1), no PgBouncer (1): `apt-get install chromium pgbouncer`"
    )
