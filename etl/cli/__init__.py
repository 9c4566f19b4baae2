"""The command line: parse, call, print."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from etl import __version__
from etl.cli.parameters import adapted, with_all_below
from etl.errors import ConfigError, FlowtrailError
from etl.system import streams

_NO_THREAD: Final = "can't start new thread"
_THREAD_LIMITS: Final = "`ulimit -v` and `ulimit -u`, or the limits of its container (memory, pids), are too low"
_MODULES: Final = {
    "demo": "demo",
    "sync": "run",
    "serve": "run",
    "check": "run",
    "plan": "plan",
    "status": "status",
    "targets": "targets",
    "events": "stories",
    "workflows": "stories",
    "flows": "queries",
    "changes": "queries",
    "history": "queries",
    "export": "export",
    "verify": "verification",
    "report": "export",
    "notify": "notify",
    "backup": "maintenance",
    "prune": "maintenance",
    "init": "admin",
    "db": "admin",
    "coverage": "coverage",
    "audit": "audit",
    "answer": "answers",
    "guard": "holds",
    "seal": "seals",
}
"""Every command, in the order of ``--help``, and its module."""


class _Loaded(Mapping[str, Any]):
    """Every command by name; a module is loaded when its command is first used."""

    def __init__(self) -> None:
        self._commands: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._commands:
            own = typer.Typer()
            import_module(f"etl.cli.{_MODULES[name]}").register(own)
            gc.freeze()
            gc.enable()
            self._commands[name] = typer.main.get_group(own).commands[name]
        return self._commands[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_MODULES)

    def __len__(self) -> int:
        return len(_MODULES)


class _Commands(typer.core.TyperGroup):
    """The commands; none waits until the libraries of the others are loaded."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands: Any = _Loaded()

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        found = self.commands.get(cmd_name)
        for command in with_all_below(found) if found else ():
            adapted(command.get_params(ctx))
        return found

    def get_params(self, ctx: Any) -> Any:
        return adapted(super().get_params(ctx))


app = typer.Typer(
    name="flowtrail",
    cls=_Commands,
    help="Keeps an append-only, verifiable trail of every EnOS workflow that was added, removed, or changed its cycle.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"flowtrail {__version__}")
        raise typer.Exit


@app.callback()
def _global(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option(help="The settings file (else $FLOWTRAIL_CONFIG, else ./flowtrail.toml).")
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    context.obj = config


def main() -> None:
    """Run the command line; the exit code says how it went (0, 1, 2, 3 or 4, see the README)."""
    code, complaint = streams.finish(_run())
    if complaint:
        _complain(complaint)
    sys.exit(code)


def _complain(sentence: str) -> None:
    from etl.cli import console

    console.complain(sentence)


def _run() -> int:
    """Run a command. Every command ends here, whatever its streams are, with one sentence if it failed."""
    try:
        app()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(bool(ended.code))
    except ConfigError as error:
        _complain("Nothing was done. Fix these settings first:")
        _complain("\n".join(f"  {problem}" for problem in error.problems))
        return error.exit_code
    except FlowtrailError as error:
        _complain(str(error))
        return error.exit_code
    except (BrokenPipeError, streams.OutputLost):
        return 0  # the reader of our output has gone (`| head`), or `finish` reports what happened
    except RuntimeError as error:
        if str(error) != _NO_THREAD:
            raise
        _complain(f"This process may not start another thread: {_THREAD_LIMITS}.")
        return 1
    return 0
