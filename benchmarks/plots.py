"""Plots as SVG, drawn by matplotlib, which lives in the benchmark's own environment.

.venv-bench/bin/python -m benchmarks.plots FOLDER FILE.json...
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.curve import of_phase
from benchmarks.figures import Figures
from benchmarks.rounds import PHASES

COLOURS = {"cold": "#b5651d", "quiet": "#2f6f9f", "churn": "#5b8c3a"}
MINE, OTHERS = "#2f6f9f", ("#444444", "#777777", "#aaaaaa", "#b5651d", "#8a4f7d")
PANELS = (
    ("seconds", "seconds", 1.0),
    ("peak_mib", "peak MiB of the process", 1.0),
    ("grown_bytes", "MiB that the database grew", 1 / 2**20),
)


def main() -> None:
    import matplotlib  # type: ignore[import-not-found]

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "flowtrail", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3}
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for file in map(Path, sys.argv[2:]):
        measured = json.loads(file.read_text())
        for kind in dict.fromkeys(point["database"] for point in measured.get("curve", ())):
            curves([each for each in measured["curve"] if each["database"] == kind], folder / f"curves-{kind}.svg")
        if measured.get("cells"):
            bars(Figures(measured), folder / "comparison.svg")


def curves(points: list[dict[str, Any]], file: Path) -> None:
    """Seconds, memory and growth along both axes, on logarithmic scales."""
    from matplotlib import pyplot

    axes = [axis for axis in ("targets", "workflows") if any(point["axis"] == axis for point in points)]
    figure, panels = pyplot.subplots(len(axes), len(PANELS), figsize=(11, 3.2 * len(axes)), squeeze=False)
    for row, axis in zip(panels, axes, strict=True):
        along = [point for point in points if point["axis"] == axis]
        for panel, (what, title, unit) in zip(row, PANELS, strict=True):
            curve(panel, along, axis, what, unit)
            panel.set_title(title)
            panel.set_xlabel("targets, 10 workflows each" if axis == "targets" else "workflows of one target")
    panels[0][0].legend()
    save(figure, file)


def curve(panel: Any, along: list[dict[str, Any]], axis: str, what: str, unit: float) -> None:
    across = [point["targets" if axis == "targets" else "flows"] for point in along]
    for phase in PHASES:
        values = [of_phase(point, phase, what) * unit for point in along]
        panel.plot(across, values, marker="o", markersize=3, color=COLOURS[phase], label=phase)
    panel.set_xscale("log")
    if what == "grown_bytes":
        panel.set_yscale("symlog", linthresh=0.01)
    else:
        panel.set_yscale("linear" if what == "peak_mib" else "log")
    panel.set_ylim(bottom=0 if what != "seconds" else None)


def bars(figures: Figures, file: Path) -> None:
    """Seconds of every contender, a panel for each shape and database."""
    from matplotlib import pyplot

    tables, known = figures.tables(), list(dict.fromkeys(key.contender for key in figures.cells))
    figure, panels = pyplot.subplots(-(-len(tables) // 2), 2, figsize=(11, 2.6 * -(-len(tables) // 2)), squeeze=False)
    for panel, (shape, database) in zip(panels.flat, tables, strict=False):
        contenders = figures.contenders(shape, database)
        for nth, contender in enumerate(contenders):
            values = [figures.median(shape, database, contender, phase) or 0 for phase in PHASES]
            places = [where + nth * 0.8 / len(contenders) for where in range(len(PHASES))]
            colour = MINE if contender == "flowtrail" else OTHERS[known.index(contender) - 1]
            panel.bar(places, values, 0.8 / len(contenders), color=colour, label=contender, align="edge")
        panel.set_xticks([where + 0.4 for where in range(len(PHASES))], PHASES)
        panel.set_yscale("log")
        panel.set_title(f"{shape}, {database}: seconds")
    named = panels[0][0].get_legend_handles_labels()
    figure.legend(*named, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(named[0]), fontsize=8)
    save(figure, file)


def save(figure: Any, file: Path) -> None:
    figure.tight_layout()
    figure.savefig(file, bbox_inches="tight", metadata={"Date": None, "Creator": None})
    sys.stdout.write(f"{file}\n")


if __name__ == "__main__":
    main()
