"""The command line of the benchmarks; `benchmarks/README.md` explains it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
from click.exceptions import Exit
from rich.console import Console

from benchmarks import alone, compare, curve, show, world
from benchmarks.rounds import BENCH_PYTHON

out = Console(width=170)
progress = Console(stderr=True, width=170)

EVERY_CASE = "A,B,C,D,200x500/700,quarrel,B+tls,B+20ms,B+tls+20ms"
OTHERS = (
    "quarrel, targets x workflows as in 200x500, or 200x500/700 where all lists share so many workflow ids; with +tls, "
    "+20ms or both a gateway that speaks TLS, or takes its time"
)
FILE = click.Path(path_type=Path)
JSON_FILE = click.option("--json", "json_file", type=FILE, help="Write everything that was measured into this file.")
DATABASES = partial(click.option, "--databases", "in_databases")


@click.group(invoke_without_command=True, context_settings={"show_default": True})
@click.option("--shapes", default=EVERY_CASE, help=f"Which, by comma: A, B, C, D, {OTHERS}.")
@DATABASES(default="sqlite,postgresql")
@click.option("--contenders", default=",".join(compare.CONTENDERS), help="Which, by comma.")
@click.option("--runs", default=5, help="Rounds of each contender in each shape.")
@click.option("--patience", default=12.0, help="A contender that took so many seconds gets no more rounds.")
@click.option("--quick", is_flag=True, help="Shapes A and B, one round, without dlt and dbt.")
@JSON_FILE
@click.pass_context
def app(
    context: click.Context,
    shapes: str,
    in_databases: str,
    contenders: str,
    runs: int,
    patience: float,
    quick: bool,
    json_file: Path | None,
) -> None:
    """Compare Flowtrail with what else would do the job."""
    if context.invoked_subcommand is not None:
        return
    if quick:
        shapes, runs, contenders = "A,B", 1, "flowtrail,floor,requests_floor,afternoon"
    wanted = compare.Wanted(
        cases={name: case_named(name) for name in shapes.split(",")},
        databases=kinds_named(in_databases),
        contenders=[compare.CONTENDERS[name] for name in _known(contenders, compare.CONTENDERS)],
        runs=runs,
        patience_seconds=patience,
    )
    compared: dict[str, Any] = {}
    with _place() as folder:
        for compared in compare.compared(wanted, Path(folder), progress.print):
            _keep(json_file, compared)
    if not compared:
        raise Exit(1)
    for table in show.comparison(compared):
        out.print(table.rich())
    out.print(show.machine(compared), "", *show.goal_lines(compared), sep="\n", highlight=False)
    if failed := [line for line in compared["skipped"] if ": Flowtrail" in line]:
        progress.print("Flowtrail failed.", *failed, sep="\n  ")
        raise Exit(1)


@app.command()
@click.option("--shape", default="A", help=f"A, B, C, D, {OTHERS}.")
@click.option("--database", default="sqlite", help="sqlite or postgresql.")
@click.option("--runs", default=3)
@click.option("--statements", is_flag=True, help="Show what was sent in the last run.")
def flowtrail(shape: str, database: str, runs: int, statements: bool) -> None:
    """Flowtrail alone, for whoever works on its speed."""
    case = case_named(shape)
    kinds_named(database)
    with _place() as folder:
        measured = alone.measured(case, database, runs, Path(folder))
    out.print(alone.drawn(f"{shape}, {database}, medians of {runs}", case.shape, measured).rich())
    for each in measured[-3:] if statements else ():
        out.print(each.phase, each.heads)


@app.command(name="curve")
@DATABASES(default="sqlite")
@click.option("--most-targets", default=10**5, help="From a hundred in steps of ten; 0 leaves this axis out.")
@click.option("--most-workflows", default=10**6, help="From ten in steps of ten; 0 leaves this axis out.")
@JSON_FILE
def cost_curve(in_databases: str, most_targets: int, most_workflows: int, json_file: Path | None) -> None:
    """What Flowtrail costs with more targets, and with more workflows of one target."""
    with _place() as folder:
        wanted = curve.shapes(most_targets, most_workflows)
        measured = curve.measured(wanted, kinds_named(in_databases), Path(folder), progress.print)
    _keep(json_file, measured)
    for table in curve.drawn(measured):
        out.print(table.rich())


@app.command()
@click.argument("files", type=FILE, nargs=-1, required=True, help="What --json wrote.")
@click.option("--folder", type=FILE, default=Path("docs/images"), help="Where the SVG files go.")
def plot(files: Sequence[Path], folder: Path) -> None:
    """Draw what was measured."""
    if not BENCH_PYTHON.exists():
        raise click.BadParameter("plots need matplotlib: `make bench-setup` installs it into .venv-bench")
    subprocess.run([BENCH_PYTHON, "-m", "benchmarks.plots", folder, *files], check=True)


@app.command()
@click.argument("files", type=FILE, nargs=-1, required=True, help="What --json wrote.")
def report(files: Sequence[Path]) -> None:
    """Print what was measured as Markdown, for docs/performance.md."""
    for file in files:
        measured = json.loads(file.read_text())
        tables = curve.drawn(measured) if "curve" in measured else show.comparison(measured)
        lines = [] if "curve" in measured else [f"- {line}" for line in show.goal_lines(measured)]
        skipped = [f"- skipped: {line}" for line in measured.get("skipped", ())]
        parts = [f"Measured on {show.machine(measured)}.\n", *(table.markdown() for table in tables)]
        sys.stdout.write("\n".join([*parts, *lines, *skipped]) + "\n\n")


def case_named(name: str) -> world.Case:
    found = re.fullmatch(r"(.+?)(\+tls)?(?:\+([\d.]+)ms)?", name)
    shape = world.SHAPES.get(found[1]) or _shape_of_numbers(found[1]) if found else None
    if found is None or shape is None or 0 < shape.ids < shape.flows:
        raise click.BadParameter(f"{name!r} is none of A, B, C, D, {OTHERS}")
    return world.Case(shape, bool(found[2]), float(found[3] or 0) / 1000)


def _shape_of_numbers(name: str) -> world.Shape | None:
    found = re.fullmatch(r"(\d+)x(\d+)(?:/(\d+))?", name)
    return world.Shape(*(int(number or 0) for number in found.groups())) if found else None


def kinds_named(names: str) -> list[str]:
    return _known(names, ("sqlite", "postgresql"))


def _known(names: str, known: Collection[str]) -> list[str]:
    for name in names.split(","):
        if name not in known:
            raise click.BadParameter(f"{name!r} is none of {', '.join(known)}")
    return names.split(",")


def _place() -> tempfile.TemporaryDirectory[str]:
    """On disk: /tmp may be in memory, and what is in memory is not durable."""
    return tempfile.TemporaryDirectory(prefix="flowtrail-benchmark-", dir="/var/tmp")


def _keep(file: Path | None, measured: dict[str, Any]) -> None:
    if file is not None:
        file.write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    app()
