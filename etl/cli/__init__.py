"""The command line: parse, call, print."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Final

import typer

from etl.cli import (
    admin,
    console,
    demo,
    export,
    holds,
    maintenance,
    notify,
    options,
    plan,
    queries,
    run,
    status,
    targets,
)
from etl.errors import ConfigError, FlowtrailError
from etl.system import streams

_NO_THREAD: Final = "can't start new thread"
_THREAD_LIMITS: Final = "`ulimit -v` and `ulimit -u`, or the limits of its container (memory, pids), are too low"

app = typer.Typer(
    name="flowtrail",
    help="Keeps an append-only, verifiable trail of every EnOS workflow that was added, removed, or changed its cycle.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        console.say(f"flowtrail {version('flowtrail')}")
        raise typer.Exit


@app.callback()
def _global(
    context: typer.Context,
    config: Annotated[Path | None, typer.Option(help=options.CONFIG_HELP)] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    context.obj = config


for module in (demo, run, plan, status, targets, queries, export, notify, maintenance, admin, holds):
    module.register(app)


def main() -> None:
    """Run the command line; the exit code says how it went (0, 1, 2, 3 or 4, see the README)."""
    code, complaint = streams.finish(_run())
    if complaint:
        console.complain(complaint)
    sys.exit(code)


def _run() -> int:
    """Run a command; every one ends here, whatever its streams are, and with one sentence where it cannot go on."""
    try:
        app()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(bool(ended.code))
    except ConfigError as error:
        console.complain("Nothing was done, the settings need mending:")
        console.complain("\n".join(f"  {problem}" for problem in error.problems))
        return error.exit_code
    except FlowtrailError as error:
        console.complain(str(error))
        return error.exit_code
    except (BrokenPipeError, streams.OutputLost):
        return 0  # whoever read our output has gone (`| head`), or `finish` says what happened to it
    except RuntimeError as error:
        if str(error) != _NO_THREAD:
            raise
        console.complain(f"This process may not start another thread: {_THREAD_LIMITS}.")
        return 1
    return 0
