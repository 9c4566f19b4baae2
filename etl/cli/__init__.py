"""The command line: parse, call, print."""

from __future__ import annotations

import gc
import sys
from contextlib import redirect_stderr
from importlib import import_module
from pathlib import Path
from typing import Final

import click

from etl import __version__
from etl.errors import ConfigError, FlowtrailError
from etl.system import streams

_NO_THREAD: Final = "can't start new thread"
_THREAD_LIMITS: Final = "`ulimit -v` and `ulimit -u`, or the limits of its container (memory, pids), are too low"
_COMMANDS: Final = {
    "demo": "demo.demo",
    "sync": "run.sync_now",
    "serve": "serve.serve",
    "check": "checks.check",
    "plan": "run.plan",
    "status": "status.status",
    "targets": "status.targets",
    "runs": "lists.runs",
    "events": "lists.events",
    "workflows": "lists.workflows",
    "flows": "lists.flows",
    "changes": "lists.changes",
    "history": "lists.history",
    "diff": "moments.diff",
    "review": "moments.review",
    "export": "export.export_rows",
    "verify": "proof.verify_trail",
    "report": "export.report",
    "notify": "notify.notify",
    "backup": "admin.back_up",
    "prune": "admin.prune",
    "init": "admin.init",
    "db": "admin.db",
    "coverage": "status.show_coverage",
    "audit": "proof.audit",
    "answer": "proof.print_answer",
    "guard": "holds.guard",
    "ack": "ack.ack",
    "seal": "proof.seal",
    "rules": "rules.rules",
}
"""Every command, in the order of ``--help``, and where it is in this package."""


class CommandGroup(click.Group):
    """Commands below one name; its help has them in their order, with the first paragraph of each."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(name, (command.help or "").split("\n\n")[0]) for name, command in commands if command])


class _LazyGroup(CommandGroup):
    """All commands; none waits until the libraries of the others are loaded."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name].partition(".")
        with redirect_stderr(None):  # see etl/__main__.py
            command: click.Command = getattr(import_module(f"etl.cli.{module}"), name)
        gc.freeze()
        gc.enable()
        return command


def _complete(context: click.Context, parameter: click.Parameter, shell: str | None) -> None:
    """Print what teaches a shell to complete, or install it, and end."""
    if shell is not None and not context.resilient_parsing:
        from etl.cli.admin import complete

        complete(shell, install=parameter.name == "install_completion")
        context.exit()


def _completion_option(name: str, text: str) -> click.Option:
    return click.Option(
        [name], metavar="[SHELL]", is_flag=False, flag_value="", expose_value=False, is_eager=True, callback=_complete,
        help=text,
    )  # fmt: skip


@click.group(
    "flowtrail",
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 120},
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="The settings file (else $FLOWTRAIL_CONFIG, else ./flowtrail.toml).",
)
@click.version_option(__version__, "--version", "-V", message="flowtrail %(version)s", help="Print the version.")
@click.pass_context
def app(context: click.Context, config: Path | None) -> None:
    """Keeps an append-only, verifiable trail of every EnOS workflow that was added, removed, or changed its cycle."""
    context.obj = config


app.params += [
    _completion_option("--install-completion", "Install completion for the current shell."),
    _completion_option("--show-completion", "Show completion for the current shell, to copy it."),
]


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
