"""docs/cli.md agrees with the program, and a shell completes it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from etl.cli import app
from tests.support import cli_reference
from tests.support.program import Program


def test_the_reference_agrees_with_the_program() -> None:
    assert cli_reference.PAGE.read_text("utf-8") == cli_reference.page(), "run `make docs`"
    assert cli_reference.SETTINGS_PAGE.read_text("utf-8") == cli_reference.settings_page(), "run `make docs`"


def test_the_reference_names_every_command_option_and_variable() -> None:
    page = cli_reference.page()
    assert str(app.help) in page
    assert "### flowtrail guard approve\n\n    flowtrail guard approve [OPTIONS] [ORG] [USER]" in page
    assert "| `--format {csv,jsonl,parquet}` | by the suffix of the file, else csv |" in page
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
