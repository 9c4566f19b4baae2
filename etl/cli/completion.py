"""Teaches a shell to complete: prints Click's script for it, or writes it where the shell reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click
from click.shell_completion import get_completion_class

from etl import config
from etl.cli import app, console
from etl.errors import UsageError

_FILES: Final = {
    "bash": (".local/share/bash-completion/completions/flowtrail", ""),
    "zsh": (".zfunc/_flowtrail", " ~/.zshrc must have `fpath+=~/.zfunc` before `autoload -Uz compinit && compinit`."),
    "fish": (".config/fish/completions/flowtrail.fish", ""),
}
"""Where each shell looks for it below the home folder, and what else it takes."""


def complete(shell: str, *, install: bool) -> None:
    """Print the script for ``shell`` (default: the current one), or install it. Raises UsageError."""
    shell = shell or config.shell_name()
    found = get_completion_class(shell) if shell in _FILES else None
    if found is None:
        raise UsageError(f"There is no completion for {shell or 'an unknown shell'}: name one of {', '.join(_FILES)}.")
    script = found(app, {}, "flowtrail", "_FLOWTRAIL_COMPLETE").source()
    if not install:
        click.echo(script)
        return
    name, more = _FILES[shell]
    path = Path.home() / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(script, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}.") from error
    console.say(f"{path} written: a new {shell} completes flowtrail.{more}")
