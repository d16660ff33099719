"""Draws the page of `make bench`: every bar, then a panel for each plot that a benchmark asks for.

A benchmark says itself what is to be drawn: a result that has "plots": [spec, ...] gets a panel for each. A spec is a
dict with a "title" and one of three kinds of data; numbers that are absent are left out.

    series         {"series": {"mean": [[100, 4.8], [1000, 16.9]], ...}, "x": "edges", "y": "µs", "log": "xy"}
                   lines; a point may be [x, y, low, high], then its spread is drawn
    distributions  {"distributions": {"recommend": {"p50": 0.2, "p99": 1.1, "p99.9": 3.0}, ...}, "y": "ms", "log": "y"}
                   a line for each, over its quantiles; other keys are not drawn
    dots           {"dots": {"choose": {"MABWiser": 57.0, "ours": [11.9, 11.0, 12.3]}, ...}, "x": "µs", "log": "x"}
                   a row for each name, a mark for each of choose, ...; [median, low, high] draws the spread

"log" names the axes that are logarithmic. "limit" is a number on the value axis: a dashed line, as for a bar. Nothing
is told by colour alone: lines and marks differ in shape, and what is missed is a cross and a word.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.table import Row, signs

KINDS = ("series", "distributions", "dots")
# Okabe and Ito's colours, that colour-blind readers tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":")
INK, FAINT, MISSED = "#222222", "#DDDDDD", "#D55E00"
ROW_IN, PANEL_IN, WIDTH_IN = 0.23, 3.6, 14.0
OURS = "croupier"  # rows of this name are set in bold
LEGEND_LETTERS = 96  # what half the page holds side by side


class PlotError(ValueError):
    """A spec that cannot be drawn; the sentence says what is wrong with it."""


def check(spec: Any) -> str:
    """The kind of a spec; PlotError when it has none or another shape.

    >>> check({"title": "Cost", "series": {"ours": [[1, 2]]}})
    'series'
    >>> check({"title": "Cost"})
    Traceback (most recent call last):
        ...
    benchmarks.plots.PlotError: a plot needs one of series, distributions, dots; 'Cost' has none
    """
    if not isinstance(spec, dict) or not isinstance(spec.get("title"), str):
        raise PlotError(f"a plot is a dict with a title, not {spec!r:.80}")
    kinds = [kind for kind in KINDS if kind in spec]
    if len(kinds) != 1:
        raise PlotError(
            f"a plot needs one of {', '.join(KINDS)}; {spec['title']!r} has {' and '.join(kinds) or 'none'}"
        )
    data = spec[kinds[0]]
    if not isinstance(data, dict) or not data:
        raise PlotError(f"{spec['title']!r}: {kinds[0]} must name at least one line")
    inner = list if kinds[0] == "series" else dict
    if not all(isinstance(line, inner) and line for line in data.values()):
        raise PlotError(f"{spec['title']!r}: each of {kinds[0]} must be a {inner.__name__} that is not empty")
    values = [value for line in data.values() for value in (line if inner is list else line.values())]
    sizes = {"series": (2, 4), "distributions": (), "dots": (3,)}[kinds[0]]
    for value in values:
        if len(value) not in sizes if isinstance(value, list) else kinds[0] == "series":
            raise PlotError(f"{spec['title']!r}: {value!r:.80} is no value of {kinds[0]}")
    return kinds[0]


def draw(path: Path, heading: str, rows: Sequence[Row], specs: Sequence[dict[str, Any]]) -> None:
    """The page as a PNG. `rows` are the bars, which come first; every spec has passed `check`."""
    rows = [row for row in rows if row.judged]
    strips: list[list[dict[str, Any]]] = []  # of two panels each, dots apart: they are taller
    for kinds in (("distributions", "series"), ("dots",)):
        alike = [spec for kind in kinds for spec in specs if check(spec) == kind]
        strips += [alike[i : i + 2] for i in range(0, len(alike), 2)]
    heights = [max(map(height, strip)) for strip in strips]
    if rows:
        heights.insert(0, ROW_IN * len(rows) + 1.0)
    figure = Figure(figsize=(WIDTH_IN, sum(heights) + 0.6), layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.08)  # type: ignore[union-attr, call-arg]
    figure.suptitle(heading, fontsize=11, color=INK, x=0.01, ha="left")
    if heights:
        # A figure for each strip and cell: long labels in one take no room from the others.
        parts = list(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False).flat)
        if rows:
            bars(parts.pop(0).subplots(), rows)
        for part, strip in zip(parts, strips, strict=True):
            for cell, spec in zip(part.subfigures(1, len(strip), squeeze=False).flat, strip, strict=True):
                panel(cell.subplots(), spec)
    figure.savefig(path, dpi=100)


def height(spec: dict[str, Any]) -> float:
    return ROW_IN * len(names(spec)) + 1.4 if "dots" in spec else PANEL_IN


def names(spec: dict[str, Any]) -> list[str]:
    """The rows of a plot of dots, in the order in which they first come."""
    return list(dict.fromkeys(name for marks in spec["dots"].values() for name in marks))


def bars(axes: Axes, rows: Sequence[Row]) -> None:
    """How many times better than its bar each figure is, on a logarithmic axis: left of the line it is missed."""
    margins = [row.margin for row in rows]
    known = [m for m in margins if math.isfinite(m) and m > 0]
    least, most = min([0.5, *(m / 1.3 for m in known)]), max([2.0, *(m * 1.3 for m in known)])
    axes.set_xscale("log")
    axes.set_xlim(least, most)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.axvspan(least, 1.0, color="#F6F1EC", zorder=0)
    axes.axvline(1.0, color=INK, linewidth=1.2)
    for y, (row, margin) in enumerate(zip(rows, margins, strict=True)):
        at = min(max(margin, least), most) if not math.isnan(margin) else least
        colour = COLOURS[0] if row.holds else MISSED
        axes.plot([1.0, at], [y, y], color=colour, linewidth=1.5, alpha=0.5)
        axes.plot([at], [y], marker="o" if row.holds else "X", markersize=6 if row.holds else 9, color=colour)
        words = f"{row.number(row.value)} {row.unit}".strip() + f"  (bar {signs(row.asked)})"
        axes.text(
            1.008,
            y,
            words if row.holds else f"{words}  MISSED",
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=8,
            color=INK if row.holds else MISSED,
            fontweight="normal" if row.holds else "bold",
        )
    for x, ha, word in ((0.99, "right", "MISSED"), (1.01, "left", "holds")):
        axes.text(x, -0.75, word, ha=ha, va="bottom", fontsize=8, color=INK)
    axes.set_yticks(range(len(rows)), [f"{row.module}: {row.what}" for row in rows], fontsize=8)
    plain(axes, "times better than its bar (left of 1: missed)", "")
    axes.set_title("Every bar", fontsize=10, loc="left", color=INK)
    logarithmic(axes.xaxis)


def panel(axes: Axes, spec: dict[str, Any]) -> None:
    kind = check(spec)
    log = spec.get("log", "")
    axes.set_xscale("log" if "x" in log else "linear")
    axes.set_yscale("log" if "y" in log and kind != "dots" else "linear")
    {"series": series, "distributions": distributions, "dots": dots}[kind](axes, spec)
    if (limit := spec.get("limit")) is not None:
        along = axes.axvline if kind == "dots" else axes.axhline
        along(limit, color=INK, linewidth=1.0, linestyle=(0, (6, 3)), label=f"bar: {limit:g}")
    plain(axes, spec.get("x", ""), spec.get("y", ""))
    for label in axes.get_yticklabels():
        label.set_fontweight("bold" if label.get_text().startswith(OURS) else "normal")
    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":
            logarithmic(axis)
    labels = axes.get_legend_handles_labels()[1]
    rows = 0
    if len(labels) > 1:  # between title and plot, in so many columns as their longest word leaves room for
        columns = max(1, min(len(labels), LEGEND_LETTERS // (max(map(len, labels)) + 8)))
        rows = -(-len(labels) // columns)
        axes.legend(fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(-0.02, 0.99), ncols=columns)
    axes.set_title(spec["title"], fontsize=10, loc="left", color=INK, pad=6 + 14 * rows)


def logarithmic(axis: Axis) -> None:
    """Plain numbers at 1, 2 and 5 of each decade; at 1 alone where there are many."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 1000 * low else (1.0,), numticks=20))
    axis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axis.set_minor_formatter(NullFormatter())


def style(i: int) -> dict[str, Any]:
    return {
        "color": COLOURS[i % len(COLOURS)],
        "marker": MARKS[i % len(MARKS)],
        "linestyle": DASHES[i % len(DASHES)],
        "markersize": 5,
        "linewidth": 1.5,
    }


def series(axes: Axes, spec: dict[str, Any]) -> None:
    for i, (name, points) in enumerate(spec["series"].items()):
        points = [point for point in points if usable(point[1])]
        xs, ys = [point[0] for point in points], [point[1] for point in points]
        axes.plot(xs, ys, label=name, **style(i))
        spread = [(x, *rest) for x, _, *rest in points if len(rest) == 2]
        axes.vlines(*([s[j] for s in spread] for j in range(3)), color=COLOURS[i % len(COLOURS)], alpha=0.4)  # type: ignore[arg-type]


def distributions(axes: Axes, spec: dict[str, Any]) -> None:
    """Each quantile a step further by the decimal places of what lies beyond: p50, p90, p99, p99.9."""
    ticks: dict[float, str] = {}
    for i, (name, quantiles) in enumerate(spec["distributions"].items()):
        points = []
        for key, value in quantiles.items():
            if (match := re.fullmatch(r"p(\d+(?:\.\d+)?)", key)) and usable(value) and float(match[1]) < 100:
                place = -math.log10(1 - float(match[1]) / 100)
                ticks[place] = key
                points.append((place, value))
        points.sort()
        axes.plot([x for x, _ in points], [y for _, y in points], label=name, **style(i))
    axes.set_xticks(list(ticks), list(ticks.values()))


def dots(axes: Axes, spec: dict[str, Any]) -> None:
    rows = names(spec)
    for i, (name, marks) in enumerate(spec["dots"].items()):
        colour = COLOURS[i % len(COLOURS)]
        for row, value in marks.items():
            middle, *spread = value if isinstance(value, list) else [value]
            if not usable(middle):
                continue
            y = rows.index(row) + 0.14 * (i - (len(spec["dots"]) - 1) / 2)
            axes.plot(middle, y, marker=MARKS[i % len(MARKS)], color=colour, markersize=6, linestyle="none")
            axes.hlines(y, *(spread or (middle, middle)), color=colour, linewidth=1.5, alpha=0.5)
        axes.plot([], [], marker=MARKS[i % len(MARKS)], color=colour, linestyle="none", label=name)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.4, -0.6)


def usable(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def plain(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, fontsize=9, color=INK)
    axes.set_ylabel(y, fontsize=9, color=INK)
    axes.grid(True, which="major", color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, colors=INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
