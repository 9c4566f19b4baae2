"""docs/cli.md and docs/settings.md, generated from the program by ``make docs``; a test keeps them current."""

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

BEFORE = """\
# The command line

<!-- Made by `make docs` from the program: change the program, not this page. -->

After this page you can look up any command, option, exit code and variable.

    flowtrail [--config FILE] COMMAND [OPTIONS] [ARGUMENTS]

{help} `python -m etl` is the same program. Results go to standard output, the log and complaints to standard error;
`--json`, where there is one, prints data whose keys are the column names of the view behind it. Every command takes
`-h` or `--help`.

`flowtrail --install-completion` teaches bash, zsh or fish to complete commands, options and the names of
schedules; `flowtrail --show-completion` prints what it would install.

Only `sync`, `plan`, `serve`, `check` and `guard approve` need the gateway's address and key: for all others a settings
file with `[database] url` is enough.

## Commands

"""

AFTER = """\
## Exit status

| code | meaning |
|---|---|
| 0 | Done. A target that is `stale` is no failure: a newer observation won. |
| 1 | Some target failed or was held; `verify`, `check` or `db check` found a problem; or the output was lost. |
| 2 | The command line, the settings or the Dask cluster cannot be used; nothing was done. |
| 3 | The database cannot be reached, is damaged, or has another schema; the message names the command that helps. |
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
    context = click.Context(app, info_name="flowtrail")
    commands = "\n".join(_commands(app, context))
    return BEFORE.format(help=app.help) + commands + "\n" + AFTER + _environment()


def _commands(group: Any, context: Any) -> Iterator[str]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        below = type(context)(command, info_name=name, parent=context)
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


SETTINGS_BEFORE = """\
# Settings

<!-- Made by `make docs` from the file that `flowtrail init` writes: change that, not this page. -->

After this page you can set everything that can be set, and write a schedule.

One file, `flowtrail.toml` (`--config PATH`, else `$FLOWTRAIL_CONFIG`, else `./flowtrail.toml`). Every value can come
from the environment instead: `[gateway] url` is `FLOWTRAIL_GATEWAY__URL`. Unknown keys are errors, and all problems are
reported at once, each with the file, the key and the remedy.

"""

SETTINGS_AFTER = """
## A schedule

A schedule is a file in `schedules/`; its name is the file name without `.toml`. `cron` has the usual five fields
(Sunday is 0 or 7):

```toml
cron = "*/15 * * * *"                # or every = "15m"
timezone = "Asia/Shanghai"           # default UTC
jitter = "20s"
# coverage_gap = "36h"               # and details = "changed": this schedule's own
# ping_url = "https://hc-ping.com/..."   # pinged at each run's start and end: a dead man's switch

[[targets]]
org = "o15427722038191"
users = ["u15426865866571", "u15426865866572"]   # or "all": everybody of the organisation, as EnOS lists them
# expression = "settlement"          # optional: only workflows that match

# or, for many: targets_file = "plants.csv"   (columns org,user[,expression])
```

Put all users of an organisation in one schedule: organisation-level events are derived run by run.
"""
_ABOUT: dict[str, str] = {
    "gateway": "EnOS, and how it is asked: [enos](enos.md), [who changed it](enos.md#who-changed-it).",
    "database": "Where the trail is: [keep](keep.md).",
    "guard": "Case by case: [guard](guard.md).",
    "service": "What it serves: [monitoring](monitoring.md), [page](page.md).",
    "notify": "Events and addresses: [notify](notify.md). The addresses are secrets.",
    "retention": "The trail always stays: [keep](keep.md).",
    "archive": "Why one may want them: [verify](verify.md#keep-the-answers).",
    "seal": "[Sign the seals](verify.md#sign-the-seals), [have them stamped](verify.md#have-the-seals-stamped).",
    "verify": "What is checked: [verify](verify.md).",
    "log": "Its events: [monitoring](monitoring.md).",
    "scale": "Several machines: [scale](scale.md).",
}


def settings_page() -> str:
    """The whole page, from the commented sample."""
    return SETTINGS_BEFORE + "\n".join(_settings(SAMPLE.read_text("utf-8"))) + "\n" + SETTINGS_AFTER


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
