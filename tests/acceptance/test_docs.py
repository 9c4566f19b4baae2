"""The documentation is correct: its SQL runs, its commands exist, and its settings are complete."""

from __future__ import annotations

import ast
import functools
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import Engine, inspect, text

from etl.cli import app
from etl.config import settings as shape
from etl.config.addresses import KINDS
from etl.database import reading
from etl.errors import UsageError
from etl.gateway import errors
from etl.service import metrics
from tests.support import cli_reference
from tests.support.postgres import free_port
from tests.support.program import SECRET, Program

ROOT = Path(__file__).parents[2]
ABOUT_THE_CODE = [ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]
PAGES = [ROOT / "README.md", *ABOUT_THE_CODE, *sorted((ROOT / "docs").glob("*.md")), ROOT / "deploy" / "README.md"]
SECTIONS = {**shape.SECTIONS, "notify": shape.NotifySettings, "webhook": shape.WebhookSettings}


def blocks(language: str, pages: Sequence[Path] = PAGES) -> list[tuple[str, str]]:
    """Each fenced block of a language, with the page and line where it stands."""
    found = []
    for page in pages:
        content = page.read_text(encoding="utf-8")
        for match in re.finditer(rf"```{language}\n(.*?)```", content, re.DOTALL):
            found.append((f"{page.name}:{content[: match.start()].count(chr(10)) + 1}", match[1]))
    return found


def queries() -> list[tuple[str, str]]:
    """All but those of notify.md, which also write (tests/acceptance/test_notify_recipe.py follows them), and the rules
    of rules.md (tests/contract/test_rules.py)."""
    return [block for block in blocks("sql") if not block[0].startswith(("notify.md", "rules.md"))]


@pytest.mark.parametrize(("place", "sql"), [pytest.param(*block, id=block[0]) for block in queries()])
def test_every_query_runs_on_both_databases(engine: Engine, place: str, sql: str) -> None:
    statements = [part for part in sql.split(";") if re.sub(r"--.*", "", part).strip()]
    parameters = dict.fromkeys(re.findall(r"(?<!:):([a-z_]+)", sql), "2026-11-01 00:00:00.000000")
    with reading(engine) as connection:
        for statement in statements:
            connection.execute(text(statement), parameters)


def test_every_column_and_class_of_the_glossary_exists(engine: Engine) -> None:
    glossary = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    columns = re.findall(r"`(\w+)\.(\w+)`", glossary)
    with reading(engine) as connection:
        for view, column in columns:
            connection.execute(text(f"SELECT {column} FROM {view} LIMIT 0"))
    source = "\n".join(module.read_text(encoding="utf-8") for module in (ROOT / "etl").rglob("*.py"))
    classes = set(re.findall(r"`([A-Z]\w+)`", glossary))
    assert columns
    assert classes <= set(re.findall(r"^class (\w+)", source, re.MULTILINE))


def commands() -> set[str]:
    """Every `flowtrail ...` that a page names, without its arguments."""
    named = re.findall(r"flowtrail((?: [a-z][a-z-]*)+)", "\n".join(page.read_text(encoding="utf-8") for page in PAGES))
    known = {"db", "guard", "seal", "targets", "rules"}
    words = (name.split() for name in named)
    return {" ".join(w[:2] if w[0] in known and len(w) > 1 else w[:1]) for w in words if w}


@pytest.mark.parametrize("command", sorted(commands()))
def test_every_command_that_a_page_names_exists(command: str) -> None:
    assert CliRunner().invoke(app, [*command.split(), "--help"]).exit_code == 0


@pytest.mark.parametrize("page", [ROOT / "docs" / "settings.md", ROOT / "etl" / "cli" / "flowtrail.toml"], ids=str)
def test_every_setting_is_explained(page: Path) -> None:
    content = page.read_text(encoding="utf-8")
    names = {name for section in SECTIONS.values() for name in section.__struct_fields__} - {"secret_key"}
    names |= {"schedules_dir", "rules_dir", "coverage_gap"}
    assert {name for name in names if not re.search(rf"\b{name}\b", content)} == set()
    assert not re.search(r"^\|.*\|  \|$", content, re.MULTILINE), "a setting without its meaning"


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_every_table_and_view_is_explained(engine: Engine) -> None:
    page = (ROOT / "docs" / "sql.md").read_text(encoding="utf-8")
    there = inspect(engine)
    assert [name for name in (*there.get_table_names(), *there.get_view_names()) if f"`{name}`" not in page] == []


def test_the_first_screen_stays_short() -> None:
    assert len(PAGES[0].read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.parametrize("page", sorted({*(ROOT / "docs").glob("*.md")} - {ROOT / "docs" / "README.md"}), ids=str)
def test_each_page_begins_with_what_its_reader_can_do_afterwards(page: Path) -> None:
    assert re.search(r"^# .+\n\n(<!--.*-->\n\n)?After this page ", page.read_text(encoding="utf-8"))


def test_every_kind_of_news_is_explained() -> None:
    page = (ROOT / "docs" / "notify.md").read_text(encoding="utf-8")
    assert {kind for kind in KINDS if f"`{kind}`" not in page} == set()


def tables(page: Path) -> list[list[str]]:
    """The rows of each table of a page."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return [match[0].splitlines() for match in re.finditer(r"(?:^\|.*\n)+", prose, re.MULTILINE)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_row_of_a_table_has_the_cells_of_its_header(page: Path) -> None:
    for header, *rows in tables(page):
        cells = [len(re.findall(r"(?<!\\)\|", row)) for row in (header, *rows)]
        assert cells == [cells[0]] * len(cells), f"{page.name}: {header}"


def anchors(page: Path) -> set[str]:
    """What a link may name of a page: its headings as GitHub writes them in addresses."""
    headings = re.findall(r"^#+ (.*)", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_to_a_page_and_to_a_heading_of_it() -> None:
    for page in PAGES:
        for target, anchor in re.findall(r"\]\(([^)#:]*)#?([^):]*)\)", page.read_text(encoding="utf-8")):
            there = page.parent / target if target else page
            assert there.exists(), f"{page.name} links to {target}"
            assert not anchor or anchor in anchors(there), f"{page.name}: {target}#{anchor}"


def test_every_file_that_a_page_about_the_code_names_is_there() -> None:
    for page in ABOUT_THE_CODE:
        for path in re.findall(r"`((?:etl|tests|docs|migrations)/[\w./]+)`", page.read_text(encoding="utf-8")):
            assert (ROOT / path).exists() or "000N" in path, f"{page.name} names {path}"


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (phony,) = re.findall(r"^\.PHONY: (.*)", makefile, re.MULTILINE)
    shown = subprocess.run(["make", "-C", ROOT, "help"], capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"^  make (\S+) +\S", shown, re.MULTILINE)) == set(phony.split()) - {"bench-setup"}


def test_the_demo_prints_what_the_readme_shows_and_its_last_commands_work(tmp_path: Path) -> None:
    demo = ["demo", "--folder", str(tmp_path / "story")]
    shown = CliRunner().invoke(app, demo)
    assert shown.exit_code == 0
    printed = {_timeless(line) for line in shown.output.splitlines()}
    promised = PAGES[0].read_text(encoding="utf-8").split("<!-- demo output -->\n```text\n")[1].split("```")[0]
    assert [line for line in promised.splitlines() if _timeless(line) not in printed] == []
    for command in shown.output.split("Try next:")[1].strip().splitlines():
        assert CliRunner().invoke(app, command.split()[1:]).exit_code == 0, command
    assert isinstance(CliRunner().invoke(app, demo).exception, UsageError)


def _timeless(line: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"\d+-\d\d-\d\d \d\d:\d\d:\d\d|in \d+\.\d s", "", line)).strip()


def script(page: str) -> str:
    """The page's shell blocks, one after the other."""
    return "\n".join(block for _, block in blocks("sh", [ROOT / "docs" / page]))


def test_a_beginner_reaches_the_end_with_a_valid_trail(tmp_path: Path) -> None:
    commands = script("start.md").replace("8900", str(free_port()))
    done = subprocess.run(
        ["bash", "-euc", f"trap 'jobs -p | xargs -r kill' EXIT\n{commands}"],
        cwd=tmp_path,
        env={
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "FLOWTRAIL_SERVICE__LISTEN": "127.0.0.1:0",
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "BAD" not in done.stdout
    assert re.search(r"Run 1 succeeded: 2 targets .*; 2 changed\.\nChanges in lists: 100 baseline\.", done.stdout)
    assert re.search(r"Run 2 succeeded: 2 targets .*; 2 changed\.", done.stdout)
    assert re.search(r"2 targets, 4 change sets, .*: everything holds\.", done.stdout)


def test_what_an_operator_does_every_day_succeeds(flowtrail: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(flowtrail.folder)
    for line in ["flowtrail sync", *script("operate.md").splitlines()]:
        words, _, file = line.removeprefix("flowtrail ").partition(" > ")
        done = CliRunner().invoke(app, words.split(), env={"FLOWTRAIL_GATEWAY__SECRET_KEY": SECRET})
        assert done.exit_code == 0, (line, done.output)
        if file:
            (flowtrail.folder / file).write_text(done.stdout)


FAILURES = (ROOT / "docs" / "failures.md").read_text(encoding="utf-8").splitlines()
ROWS = [line for line in FAILURES if line.startswith("|") and not re.match(r"\|(---| what can happen )", line)]
NAMED = re.compile(r"`(tests/\w+/test_\w+\.py)::(test_\w+)`")


@functools.cache
def functions_in(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip())
def test_every_failure_is_proven_by_tests_that_exist(row: str) -> None:
    assert len(ROWS) > 80
    *_, tests = cells = row.strip("|").split(" | ")
    named = NAMED.findall(tests)
    assert len(cells) == 3
    assert named
    assert [f"{file}::{name}" for file, name in named if name not in functions_in(file)] == []
    assert NAMED.sub("", tests).strip(" ,") == "", "nothing stands there but tests"


def test_every_error_code_is_explained() -> None:
    page = (ROOT / "docs" / "enos.md").read_text("utf-8")
    rows = " ".join(re.findall(r"^\| (`\w+`.*?) \|", page, re.MULTILINE))
    documented = {str(code) for code in (*errors._CODES, *(f"http_{status}" for status in errors._STATUSES))}
    missing = (documented | metrics.CODES) - set(re.findall(r"`(\w+)`", rows))
    assert not missing, missing


def test_the_reference_agrees_with_the_program() -> None:
    assert cli_reference.PAGE.read_text("utf-8") == cli_reference.page(), "run `make docs`"
    assert cli_reference.SETTINGS_PAGE.read_text("utf-8") == cli_reference.settings_page(), "run `make docs`"


def test_the_reference_names_every_command_option_and_variable() -> None:
    page = cli_reference.page()
    assert str(app.help) in page
    assert "### flowtrail guard approve\n\n    flowtrail guard approve [OPTIONS] [ORG] [USER]" in page
    assert "| `--format {csv,jsonl,parquet,xlsx}` | by the suffix of the file, else csv |" in page
    assert "- `FLOWTRAIL_GATEWAY__URL`\n" in page


COMPLETED = {
    ("flowtrail", "s"): "seal serve status sync",
    ("flowtrail", "sync", ""): "plants sites",
    ("flowtrail", "changes", "--kind", "re"): "removed renamed",
}


def test_bash_completes_commands_options_and_schedules(tmp_path: Path) -> None:
    """With what `flowtrail --show-completion bash` prints, evaluated by bash; a secret that is missing is no matter."""
    program = Program(tmp_path, "http://127.0.0.1:1")
    for name in ("sites", "plants"):
        program.schedule(name, [("o1", ["ann"])])
    script = 'eval "$(flowtrail --show-completion bash)"\n'
    for typed in COMPLETED:
        words = " ".join(f"'{word}'" for word in typed)
        script += f"COMP_WORDS=({words}) COMP_CWORD={len(typed) - 1} COMPREPLY=(); _flowtrail_completion flowtrail\n"
        script += "sort <(printf '%s\\n' \"${COMPREPLY[@]}\") | paste -sd' '\n"
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        cwd=tmp_path,
        env={"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (done.stdout.splitlines(), done.stderr) == ([*COMPLETED.values()], "")
