"""The documentation tells the truth: its SQL runs, its commands exist, its settings are all there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sqlalchemy import Engine, text
from typer.testing import CliRunner

from etl.cli import app
from etl.config import settings as shape
from etl.database import reading

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SECTIONS = {
    "gateway": shape.GatewaySettings,
    "database": shape.DatabaseSettings,
    "guard": shape.GuardSettings,
    "service": shape.ServiceSettings,
    "log": shape.LogSettings,
    "scale": shape.ScaleSettings,
}


def blocks(language: str) -> list[tuple[str, str]]:
    """Each fenced block of a language, with the page and line where it stands."""
    found = []
    for page in PAGES:
        content = page.read_text(encoding="utf-8")
        for match in re.finditer(rf"```{language}\n(.*?)```", content, re.DOTALL):
            found.append((f"{page.name}:{content[: match.start()].count(chr(10)) + 1}", match[1]))
    return found


@pytest.mark.parametrize(("place", "sql"), [pytest.param(*block, id=block[0]) for block in blocks("sql")])
def test_every_query_runs_on_both_databases(engine: Engine, place: str, sql: str) -> None:
    statements = [part for part in sql.split(";") if re.sub(r"--.*", "", part).strip()]
    parameters = dict.fromkeys(re.findall(r"(?<!:):([a-z_]+)", sql), "2026-11-01 00:00:00.000000")
    with reading(engine) as connection:
        for statement in statements:
            connection.execute(text(statement), parameters)


def commands() -> set[str]:
    """Every `flowtrail ...` that a page names, without its arguments."""
    named = re.findall(r"flowtrail((?: [a-z][a-z-]*)+)", "\n".join(page.read_text(encoding="utf-8") for page in PAGES))
    known = {"db", "guard"}
    words = (name.split() for name in named)
    return {" ".join(w[:2] if w[0] in known and len(w) > 1 else w[:1]) for w in words if w}


@pytest.mark.parametrize("command", sorted(commands()))
def test_every_command_that_a_page_names_exists(command: str) -> None:
    assert CliRunner().invoke(app, [*command.split(), "--help"]).exit_code == 0


def test_every_command_is_in_the_readme() -> None:
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
    offered = set(re.findall(r"│ ([a-z]+) +", shown))
    assert offered, shown
    readme = PAGES[0].read_text(encoding="utf-8")
    assert {name for name in offered if f"flowtrail {name}" not in readme} == set()


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "etl" / "cli" / "flowtrail.toml"], ids=lambda p: p.name)
def test_every_setting_is_explained(page: Path) -> None:
    content = page.read_text(encoding="utf-8")
    names = {name for section in SECTIONS.values() for name in section.__struct_fields__} - {"secret_key"}
    names |= {"schedules_dir", "coverage_gap"}
    assert {name for name in names if not re.search(rf"\b{name}\b", content)} == set()


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_demo_prints_what_the_readme_shows(tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["demo", "--folder", str(tmp_path / "story")])
    assert shown.exit_code == 0
    printed = {_timeless(line) for line in shown.output.splitlines()}
    promised = PAGES[0].read_text(encoding="utf-8").split("<!-- demo output -->\n```text\n")[1].split("```")[0]
    assert [line for line in promised.splitlines() if _timeless(line) not in printed] == []


def _timeless(line: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"\d+-\d\d-\d\d \d\d:\d\d:\d\d|in \d+\.\d s", "", line)).strip()
