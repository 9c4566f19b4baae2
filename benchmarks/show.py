"""What was measured, for a terminal and as Markdown: one table, two ways to draw it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from rich.table import Table

from benchmarks.figures import Figures, goals
from benchmarks.rounds import PHASES


class Drawn(NamedTuple):
    """A table, however it is drawn."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def rich(self) -> Table:
        table = Table(title=self.title, title_justify="left")
        for nth, name in enumerate(self.head):
            table.add_column(name, justify="right" if nth else "left", no_wrap=True)
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        lines = [f"| {' | '.join(row)} |" for row in (self.head, *self.rows)]
        lines.insert(1, "|---|" + "---:|" * (len(self.head) - 1))
        return f"**{self.title}**\n\n" + "\n".join(lines) + "\n"


def comparison(compared: dict[str, Any]) -> Iterator[Drawn]:
    """A table of seconds a database, then one of everything a shape and database; the triples are cold / quiet /
    churn."""
    figures = Figures(compared)
    yield from _seconds(figures)
    head = ("cold / quiet / churn", "runs", "seconds", "CPU seconds", "server's CPU", "peak MiB", "statements",
            "rows read", "written KiB")  # fmt: skip
    for shape, database in figures.tables():
        cell = figures.any_of(shape, database)
        title = f"{shape}: {cell['targets']:,} targets x {cell['flows']:,} workflows, {database}"
        rows = [_row(figures, shape, database, each) for each in figures.contenders(shape, database)]
        yield Drawn(title, head, rows)


def _seconds(figures: Figures) -> Iterator[Drawn]:
    for database in dict.fromkeys(database for _, database in figures.tables()):
        shapes = [shape for shape, of in figures.tables() if of == database]
        titles = {key.contender: cell["title"] for key, cell in figures.cells.items() if key.database == database}
        rows = [
            (title, *(_triple(figures, shape, database, contender, "seconds", seconds) for shape in shapes))
            for contender, title in titles.items()
        ]
        yield Drawn(f"{database}, seconds", ("cold / quiet / churn", *shapes), rows)


def _triple(
    figures: Figures, shape: str, database: str, contender: str, what: str, show: Callable[[float], str]
) -> str:
    values = [figures.median(shape, database, contender, phase, what) for phase in PHASES]
    return " / ".join("-" if each is None else show(each) for each in values)


def _row(figures: Figures, shape: str, database: str, contender: str) -> tuple[str, ...]:
    def triple(what: str, show: Callable[[float], str]) -> str:
        return _triple(figures, shape, database, contender, what, show)

    cell = figures.cells[shape, database, contender]  # type: ignore[index]
    return (
        cell["title"],
        str(figures.runs(shape, database, contender)),
        triple("seconds", seconds),
        triple("cpu_seconds", seconds),
        triple("server_cpu_seconds", seconds) if database != "sqlite" else "",
        triple("peak_mib", "{:.0f}".format),
        triple("statements", "{:,.0f}".format),
        triple("rows_read", "{:,.0f}".format),
        triple("written_bytes", lambda each: f"{each / 1024:,.0f}"),
    )


def seconds(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def machine(compared: dict[str, Any]) -> str:
    of = compared["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in compared.get("versions", {}).items())
    return (
        f"{of['cpu']}, {of['cores']} cores, {of['memory_gib']} GiB, {of['kernel']}, Python {of['python']}, "
        f"{of['databases']}{f'; {versions}' if versions else ''}; load before {of['load_before']}; "
        f"commit {of['commit']}, {of['measured_at']}"
    )


def goal_lines(compared: dict[str, Any]) -> list[str]:
    return [str(goal) for goal in goals(Figures(compared))]
