"""Draws each figure: a panel per dimension, its value above and its CPU time below."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from load.scaling import records
from load.scaling.catalogue import AXES, SCALES, Dimension, Figure
from load.scaling.records import Record

PANEL_WIDTH = 2.5
ROW_HEIGHTS = (2.5, 1.6)
VALUE_COLOUR = "#1f5f8b"
PARTS = {"api_ms": ("API", "#1f5f8b"), "postgres_ms": ("PostgreSQL", "#7aa974"), "opa_ms": ("OPA", "#d9a441")}
# Text as text and no date: a light file, which is the same when it is drawn again from the same numbers.
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "remit",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "sans-serif"],
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.grid.axis": "y",
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.6,
}
# From this ratio on, an axis is logarithmic.
FAR_APART = 6
# Room around what is drawn, by kind of axis.
MARGIN = 1.6
HEADROOM = 1.35
CPU_HEADROOM = 1.2
MAX_TICKS = 8
TIMES = "\N{MULTIPLICATION SIGN}"


def draw_all(results: Path) -> None:
    """An SVG for each figure that has been measured, beside the CSVs."""
    taken = {dimension: records.read(records.path_of(dimension, results)) for dimension in Dimension}
    for figure in Figure:
        lines = {dimension: records.of_figure(rows, figure) for dimension, rows in taken.items()}
        lines = {dimension: line for dimension, line in lines.items() if line}
        if lines:
            draw(figure, lines, results / f"{figure}.svg")


def draw(figure: Figure, lines: Mapping[Dimension, Sequence[Record]], path: Path) -> None:
    """One figure along the dimensions."""
    scale = SCALES[figure]
    has_cpu = scale.counted is not None
    heights = ROW_HEIGHTS if has_cpu else ROW_HEIGHTS[:1]
    highest = _highest_bar([record.cpu_ms or 0.0 for line in lines.values() for record in line])
    with mpl.rc_context(STYLE):  # type: ignore[arg-type] # its stub wants a literal of all names
        drawing = Drawing(figsize=(PANEL_WIDTH * len(lines), sum(heights) + 0.5), layout="constrained")
        drawing.suptitle(f"{scale.title}, {scale.unit}; beside each point its ratio to the first", fontsize=10)
        axes = drawing.subplots(
            len(heights), len(lines), squeeze=False, sharey="row", sharex="col", height_ratios=list(heights)
        )
        for column, (dimension, line) in enumerate(lines.items()):
            _draw_values(axes[0][column], line)
            if has_cpu:
                _draw_cpu(axes[1][column], line, highest)
            _name_points(axes[-1][column], dimension, line)
        axes[0][0].set_ylabel(scale.unit)
        _scale_values(axes[0][0], [record for line in lines.values() for record in line])
        if has_cpu:
            axes[1][0].set_ylabel(f"CPU ms\nper {scale.counted}")
            axes[1][-1].legend(
                *axes[1][0].get_legend_handles_labels(), loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False
            )
        drawing.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def _draw_values(axes: Axes, line: Sequence[Record]) -> None:
    places = range(len(line))
    values = [record.value for record in line]
    axes.fill_between(
        places, [record.low for record in line], [record.high for record in line], color=VALUE_COLOUR, alpha=0.12, lw=0
    )
    axes.plot(places, values, color=VALUE_COLOUR, marker="o", markersize=4, linewidth=1.4)
    for place, (record, ratio) in enumerate(zip(line, records.ratios(values), strict=True)):
        text = short(record.value) if place == 0 else f"{short(record.value)}\n{TIMES}{ratio:.2f}"
        axes.annotate(text, (place, record.value), xytext=(0, 6), textcoords="offset points", ha="center", fontsize=7)


def _highest_bar(totals: Sequence[float]) -> float:
    """The height of the row of bars: a few that tower above the rest are cut off, and say how high they are."""
    return min(max(totals), FAR_APART * statistics.median(totals)) or 1.0


def _draw_cpu(axes: Axes, line: Sequence[Record], highest: float) -> None:
    axes.set_ylim(0, highest * CPU_HEADROOM)
    below = [0.0] * len(line)
    for name, (label, colour) in PARTS.items():
        heights = [getattr(record, name) or 0.0 for record in line]
        axes.bar(range(len(line)), heights, bottom=below, width=0.14 * len(line), color=colour, label=label)
        below = [under + height for under, height in zip(below, heights, strict=True)]
    for place, total in enumerate(below):
        axes.annotate(
            f"{total:.2g}",
            (place, min(total, highest)),
            xytext=(0, 2),
            textcoords="offset points",
            ha="center",
            fontsize=7,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5} if total > highest else None,
        )


def _name_points(axes: Axes, dimension: Dimension, line: Sequence[Record]) -> None:
    axes.set_xticks(range(len(line)), [short(record.x) for record in line])
    axes.set_xlim(-0.5, len(line) - 0.5)
    axes.set_xlabel(AXES[dimension].label)


def _scale_values(axes: Axes, all_of_it: Sequence[Record]) -> None:
    """From zero where the values are near each other, logarithmically where they are far apart."""
    lowest, highest = min(record.low for record in all_of_it), max(record.high for record in all_of_it)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    if highest < FAR_APART * lowest:
        axes.set_ylim(0, highest * HEADROOM)
        return
    axes.set_yscale("log")
    axes.set_ylim(lowest / MARGIN, highest * MARGIN)
    axes.set_yticks(round_values(lowest / MARGIN, highest * MARGIN))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())


def round_values(lowest: float, highest: float) -> list[float]:
    """Round values for a logarithmic axis: 1, 2 and 5 times powers of ten, or fewer where they would be too many."""
    powers = [10.0**exponent for exponent in range(-3, 9)]
    choices = [
        [step * power for power in powers for step in steps if lowest <= step * power <= highest]
        for steps in ((1, 2, 5), (1, 3), (1,))
    ]
    return next((values for values in choices if len(values) <= MAX_TICKS), choices[-1])


def short(value: float) -> str:
    """A number in few characters."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
