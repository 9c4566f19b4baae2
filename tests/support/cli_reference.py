"""docs/cli.md, generated from the program: ``make docs`` writes it, a test keeps it current."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from etl.cli import app
from etl.config import values

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"

BEFORE = """\
# The command line

<!-- Made by `make docs` from the program: change the program, not this page. -->

    flowtrail [--config FILE] COMMAND [OPTIONS] [ARGUMENTS]

{help} `python -m etl` is the same program. Results go to standard output, the log and complaints to standard error;
`--json`, where there is one, prints data whose keys are the column names of the view behind it. Every command takes
`-h` or `--help`.

`flowtrail --install-completion` teaches bash, zsh, fish or PowerShell to complete commands, options and the names of
schedules; `flowtrail --show-completion` prints what it would install.

## Commands

"""

AFTER = """\
## Exit status

| code | meaning |
|---|---|
| 0 | Done. A target that is `stale` is no failure: a newer observation won. |
| 1 | Some target failed or was held; `verify`, `check` or `db check` found a problem; or the output was lost. |
| 2 | The command line or the settings cannot be used; nothing was done. |
| 3 | The database cannot be reached, or its schema is not current; the message names the command that helps. |
| 4 | `serve --no-standby` found another replica active. |

## Files

| file | what it is |
|---|---|
| `flowtrail.toml` | the settings: `--config`, else `$FLOWTRAIL_CONFIG`, else in the current folder |
| `schedules/*.toml` | a schedule each, in the folder that `schedules_dir` names |
| `flowtrail.db` | the SQLite database beside the settings, unless `[database] url` names another |

## Environment

`FLOWTRAIL_CONFIG` names the settings file. Each of these overrides its setting; `FLOWTRAIL_GATEWAY__SECRET_KEY` is the
secret key, which has no place in the file.

"""


def page() -> str:
    """The whole page, as the program is now."""
    program = typer.main.get_command(app)
    context = program.make_context("flowtrail", [], resilient_parsing=True)
    commands = "\n".join(_commands(program, context))
    return BEFORE.format(help=program.help) + commands + "\n" + AFTER + _environment()


def _commands(group: Any, context: Any) -> Iterator[str]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        below = type(context)(command, info_name=name, parent=context)
        if hasattr(command, "list_commands"):
            yield from _commands(command, below)
        else:
            yield from _command(command, below)


def _command(command: Any, context: Any) -> Iterator[str]:
    parameters = [each for each in command.get_params(context) if each.name != "help" and not each.hidden]
    arguments = [each for each in parameters if each.param_type_name == "argument"]
    options = [each for each in parameters if each.param_type_name == "option"]
    words = [context.command_path, *(["[OPTIONS]"] if options else []), *map(_argument, arguments)]
    yield f"### {context.command_path}\n\n    {' '.join(words)}\n\n{command.help}\n"
    if options or any(each.help for each in arguments):
        yield "| | default | |\n|---|---|---|"
        rows = [(_argument(each), each) for each in arguments] + [(_option(each), each) for each in options]
        yield from (f"| `{shown}` | {_default(each)} | {_cell(each.help or '')} |" for shown, each in rows)
        yield ""


def _argument(parameter: Any) -> str:
    name = (parameter.metavar or parameter.name).upper() + ("..." if parameter.nargs == -1 else "")
    return name if parameter.required else f"[{name}]"


def _option(parameter: Any) -> str:
    names = ", ".join([*parameter.opts, *parameter.secondary_opts])
    return names if parameter.is_flag else f"{names} {_kind(parameter)}"


def _kind(parameter: Any) -> str:
    kind = parameter.type_descriptor.annotation
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return "{" + ",".join(str(each.value) for each in kind) + "}"
    return str({int: "N", Path: "PATH"}.get(kind, parameter.name.upper()))


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    shown = parameter.show_default
    if isinstance(shown, str):
        return _cell(shown)
    if shown is False or parameter.default in (None, "", False) or getattr(parameter, "is_flag", False):
        return ""
    return f"`{getattr(parameter.default, 'value', parameter.default)}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _environment() -> str:
    names = sorted(values.variable(name) for name in values.Values(Path("flowtrail.toml"), {}, {})._read)
    return "".join(f"- `{name}`\n" for name in names)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
