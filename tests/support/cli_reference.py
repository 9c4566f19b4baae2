"""What ``make docs`` writes from the program into docs/cli.md and docs/settings.md; a test keeps it current."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from etl.cli import app
from etl.config import values

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "cli.md"
SETTINGS_PAGE = ROOT / "docs" / "settings.md"
SAMPLE = ROOT / "etl" / "cli" / "flowtrail.toml"


def page() -> str:
    """docs/cli.md with the commands and the variables of the program as it is now."""
    commands = "\n".join(_commands(app, click.Context(app, info_name="flowtrail")))
    text = _remade(PAGE.read_text("utf-8"), "## Commands\n\n", "\n## Exit status", commands)
    return _remade(text, "which has no place in the file.\n\n", "", _environment())


def settings_page() -> str:
    """docs/settings.md with the tables of the commented sample."""
    tables = "\n".join(_settings(SAMPLE.read_text("utf-8")))
    return _remade(SETTINGS_PAGE.read_text("utf-8"), "the key and the remedy.\n\n", "\n\n## A schedule", tables)


def _remade(page: str, begins: str, ends: str, made: str) -> str:
    """The page with something else between these words; up to its end if ``ends`` is empty."""
    before = page.index(begins) + len(begins)
    return page[:before] + made + (page[page.index(ends, before) :] if ends else "")


def _commands(group: Any, context: Any) -> Iterator[str]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        below = type(context)(command, info_name=name, parent=context)
        if getattr(command, "invoke_without_command", False):
            yield from _command(command, below)
        if hasattr(command, "list_commands"):
            yield from _commands(command, below)
        else:
            yield from _command(command, below)


def _command(command: Any, context: Any) -> Iterator[str]:
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option"]
    words = [context.command_path, *(["[OPTIONS]"] if options else []), *map(_argument, arguments)]
    yield f"### {context.command_path}\n\n    {' '.join(words)}\n\n{inspect.cleandoc(command.help)}\n"
    if options or any(each.help for each in arguments):
        yield "| | default | |\n|---|---|---|"
        rows = [(_argument(each), each) for each in arguments] + [(_option(each), each) for each in options]
        yield from (f"| `{shown}` | {_default(each)} | {_cell(each.help or '')} |" for shown, each in rows)
        yield ""


def _argument(parameter: Any) -> str:
    name = str(parameter.metavar or parameter.name.upper())
    return name if parameter.required or parameter.metavar else f"[{name}...]" if parameter.nargs == -1 else f"[{name}]"


def _option(parameter: Any) -> str:
    names = ", ".join([*parameter.opts, *parameter.secondary_opts])
    return names if parameter.is_flag else f"{names} {_kind(parameter)}"


def _kind(parameter: Any) -> str:
    kind = parameter.type
    if parameter.metavar:
        return str(parameter.metavar)
    if isinstance(kind, click.Choice):
        return "{" + ",".join(kind.choices) + "}"
    return {"integer": "N", "integer range": "N", "path": "PATH"}.get(kind.name, str(parameter.name).upper())


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    shown = getattr(parameter, "show_default", None)
    if isinstance(shown, str):
        return _cell(shown)
    default = parameter.to_info_dict()["default"]
    return "" if shown is False or default in (None, "", False, ()) else f"`{default}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _environment() -> str:
    names = sorted(values.variable(name) for name in values.Values(Path("flowtrail.toml"), {}, {}).types)
    return "".join(f"- `{name}`\n" for name in names)


_ABOUT: dict[str, str] = {
    "gateway": "EnOS, and how it is asked: [enos](enos.md), [who changed it](enos.md#who-changed-it).",
    "database": "Where the trail is: [keep](keep.md).",
    "guard": "Case by case: [guard](guard.md).",
    "service": "What it serves: [monitoring](monitoring.md), [page](page.md).",
    "notify": "Events and addresses: [notify](notify.md). The addresses are secrets.",
    "webhook": "What is sent, and how to check it: [webhooks](webhooks.md).",
    "retention": "The trail always stays: [keep](keep.md).",
    "archive": "Why one may want them: [verify](verify.md#keep-the-answers).",
    "seal": "[Sign the seals](verify.md#sign-the-seals), [have them stamped](verify.md#have-the-seals-stamped).",
    "verify": "What is checked: [verify](verify.md).",
    "rules": "How they are written: [rules](rules.md).",
    "log": "Its events: [monitoring](monitoring.md).",
    "scale": "Several machines: [scale](scale.md).",
}


def _settings(sample: str) -> Iterator[str]:
    header = "| setting | default or example | meaning |\n|---|---|---|"
    yield f"## Before the first section\n\n{header}"
    for line in sample.splitlines():
        if section := re.match(r"(?:# )?\[+(\w+)\]+ *(?:# *(.*))?", line):
            name, note = section[1], _cell(re.sub(r";? ?docs/\w+\.md", "", section[2] or ""))
            yield f"\n## [{name}]\n\n{_ABOUT[name]}{note and f' {note[0].upper()}{note[1:]}.'}\n\n{header}"
        elif setting := re.match(r"(?:# )?(\w+) = (.*?)(?:  +# *(.*))?$", line):
            yield f"| `{setting[1]}` | `{setting[2]}` | {_cell(setting[3] or '')} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    SETTINGS_PAGE.write_text(settings_page(), encoding="utf-8")
