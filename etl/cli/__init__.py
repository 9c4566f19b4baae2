"""The command line: parse, call, print."""

from __future__ import annotations

import io
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from etl.cli import admin, ask, demonstration, keeping, notices, options, proof, running, show
from etl.errors import ConfigError, FlowtrailError

app = typer.Typer(
    name="flowtrail",
    help="Keeps an append-only, verifiable trail of every EnOS workflow that was added, removed, or changed its cycle.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        show.say(f"flowtrail {version('flowtrail')}")
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


for module in (demonstration, running, ask, proof, notices, keeping, admin):
    module.register(app)


def main() -> None:
    """Run the command line; the exit code says how it went (0, 1, 2, 3 or 4, see the README)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # what a terminal cannot show stops no command
    try:
        app()
    except ConfigError as error:
        show.complain("Nothing was done, the settings need mending:")
        show.complain("\n".join(f"  {problem}" for problem in error.problems))
        sys.exit(error.exit_code)
    except FlowtrailError as error:
        show.complain(str(error))
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # Whoever read our output has gone (`| head`): nothing to complain about, and nothing left to flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
