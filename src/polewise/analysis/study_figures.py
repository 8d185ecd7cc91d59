"""Figures of a study, as SVG that stands in a page."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from polewise.analysis.published import PUBLISHED
from polewise.analysis.study_summary import SystemSummary, is_of_cost, summarize

_PANEL = 3.4  # inches
_COLUMNS = 3
_COSTS = {
    "parameters": ("parameters (thousands)", 1e3),
    "steps": ("steps", 1.0),
    "cpu_seconds": ("work (core seconds)", 1.0),
    "peak_memory_bytes": ("peak memory (MB)", 1e6),
    "state_bytes": ("state when streaming (kB)", 1e3),
}
"""What a system takes, by its name in a row: label with unit, and what that unit is."""
_COSTS_OF_A_STEP = {
    "positions_per_second": ("time a position (µs)", 1e6),
    **{cost: _COSTS[cost] for cost in ("peak_memory_bytes", "state_bytes")},
}
"""The same of a training step; speed is drawn as its inverse."""


def draw_learning_curves(study: Mapping[str, Any]) -> str | None:
    """Return the headline metric against steps, the mean over seeds and lowest to highest.

    One panel per comparison that trained, against seconds where the budget is in seconds; None
    where there are no runs.
    """
    panels = []
    for comparison in _that_train(study):
        summaries = [each for each in summarize(comparison, study["rows"]) if each.runs]
        if summaries:
            panels.append((comparison, summaries[::-1]))  # the best is drawn last, above others
    if not panels:
        return None
    figure = _figure(len(panels))
    colours = _colours(study)
    drawn = {}
    for index, (comparison, summaries) in enumerate(panels):
        axes = _panel(figure, index, len(panels))
        for summary in summaries:
            drawn[summary.system] = _draw_curve(axes, comparison, summary, colours[summary.system])
        if "accuracy" in comparison["headline"]:
            axes.set_ylim(0, 1.03)
        axes.set_title(comparison["name"], fontsize=9)
        axes.set_xlabel("steps" if comparison["max_seconds"] is None else "seconds", fontsize=8)
        axes.set_ylabel(comparison["headline"].replace("_", " "), fontsize=8)
        axes.tick_params(labelsize=7)
    _legend(figure, drawn)
    return _svg(figure)


def draw_costs(study: Mapping[str, Any]) -> str | None:
    """Return the headline metric against parameters, steps, work, memory and state, one row of
    panels per comparison in which several systems have runs; None where there is none.

    Axes of costs begin at 0, so that distances compare costs. Rates that no grid chose are hollow.
    """
    rows = []
    for comparison in _that_train(study):
        summaries = [each for each in summarize(comparison, study["rows"]) if each.runs]
        if len(summaries) > 1:
            rows.append((comparison, summaries[::-1]))
    if not rows:
        return None
    columns = len(_COSTS)
    figure = Figure(figsize=(2.6 * columns, 2.4 * len(rows) + 0.6), layout="constrained")
    colours, drawn = _colours(study), {}
    for index, (comparison, summaries) in enumerate(rows):
        headline = comparison["headline"]
        for column, (cost, (label, unit)) in enumerate(_COSTS.items()):
            axes = figure.add_subplot(len(rows), columns, index * columns + column + 1)
            for summary in summaries:
                spread, spent = summary.spread(headline), summary.median(cost)
                if spread is not None and spent is not None:
                    (drawn[summary.system],) = axes.plot(
                        spent / unit, spread.mean, "o", markersize=4, color=colours[summary.system],
                        fillstyle="full" if summary.is_chosen else "none",
                    )  # fmt: skip
            if not axes.lines:  # such as the state of a system that does not stream
                axes.set_axis_off()
                continue
            axes.set_xlim(0, 1.1 * axes.dataLim.x1)
            if "accuracy" in headline:
                axes.set_ylim(0, 1.05)
            axes.set_xlabel(label, fontsize=7)
            axes.tick_params(labelsize=6)
            if column == 0:
                axes.set_title(comparison["name"], fontsize=8, loc="left")
                axes.set_ylabel(headline.replace("_", " "), fontsize=7)
    _legend(figure, drawn)
    return _svg(figure)


def draw_against_length(study: Mapping[str, Any]) -> str | None:
    """Return time of a position, memory and state against length, for comparisons that are named
    by it; None where there are no runs."""
    lines: dict[str, dict[int, SystemSummary]] = {}
    for comparison in study["comparisons"]:
        for summary in summarize(comparison, study["rows"]):
            if summary.runs:
                lines.setdefault(summary.system, {})[int(comparison["name"])] = summary
    if not lines:
        return None
    figure = _figure(3)
    colours, drawn = _colours(study), {}
    for index, (cost, (label, unit)) in enumerate(_COSTS_OF_A_STEP.items()):
        axes = _panel(figure, index, 3)
        for system, at in lines.items():
            spent = {length: summary.median(cost) for length, summary in at.items()}
            points = {length: value / unit for length, value in spent.items() if value}
            if cost == "positions_per_second":
                points = {length: 1 / value for length, value in points.items()}
            (drawn[system],) = axes.plot(
                list(points), list(points.values()), "o-", markersize=3, color=colours[system]
            )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("length", fontsize=8)
        axes.set_ylabel(label, fontsize=8)
        axes.tick_params(labelsize=7, which="both")  # less than a decade has no major ticks
    _legend(figure, drawn)
    return _svg(figure)


def draw_beside_published(study: Mapping[str, Any]) -> str | None:
    """Return accuracy against length, the published figures left and ours right.

    None where no such figures are published or none of those lengths has runs.
    """
    tables = [
        table
        for table in PUBLISHED.get(study["study"], ())
        if all(setting.isdigit() for setting in table.settings)
    ]
    ours: dict[str, dict[int, float]] = {}
    for comparison in _that_train(study):
        for summary in summarize(comparison, study["rows"]):
            spread = summary.spread(comparison["headline"])
            if comparison["name"].isdigit() and summary.is_chosen and spread is not None:
                ours.setdefault(summary.system, {})[int(comparison["name"])] = 100 * spread.mean
    if not tables or not ours:
        return None
    published = {
        system: {
            int(setting): figure
            for setting, figure in zip(tables[0].settings, figures, strict=True)
            if isinstance(figure, float)
        }
        for system, figures in tables[0].values.items()
    }
    figure = Figure(figsize=(2 * _PANEL, 1.3 * _PANEL), layout="constrained")
    others: Any = matplotlib.colormaps["Dark2"]  # published systems are not ours
    colours = {**dict(zip(published, others.colors, strict=False)), **_colours(study)}
    for index, (title, lines) in enumerate((("published", published), ("ours", ours))):
        axes = _panel(figure, index, 2)
        for system, points in lines.items():
            axes.plot(
                list(points), list(points.values()), "o-",
                markersize=3, label=system, color=colours[system],
            )  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_xlim(16, 2**17)
        axes.set_ylim(-3, 103)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("length", fontsize=8)
        axes.set_ylabel("accuracy (%)", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.legend(
            fontsize=6, frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.2)
        )
    return _svg(figure)


def _draw_curve(
    axes: Axes, comparison: Mapping[str, Any], summary: SystemSummary, colour: Any
) -> Line2D:
    where = "step" if comparison["max_seconds"] is None else "seconds"
    curves = [
        [(point[where], point.get(comparison["headline"])) for point in row["curve"]]
        for row in summary.runs
        if row["curve"]
    ]
    # A run that stopped early, at a target, stays where it was.
    longest = max(curves, key=len, default=[])
    points = [
        (x, values)
        for number, (x, _) in enumerate(longest)
        if None not in (values := [curve[: number + 1][-1][1] for curve in curves])  # not finite
    ]
    at = [x for x, _ in points]
    middle = [sum(values) / len(values) for _, values in points]
    style = "-" if summary.is_chosen else ":"
    (line,) = axes.plot(at, middle, style, linewidth=1.2, color=colour)
    if len(curves) > 1 and points:
        low, high = ([each(values) for _, values in points] for each in (min, max))
        axes.fill_between(at, low, high, color=colour, alpha=0.2, linewidth=0)
    return line


def _that_train(study: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The comparisons that train for more than it takes to time a step."""
    return [each for each in study["comparisons"] if not is_of_cost(each)]


def _colours(study: Mapping[str, Any]) -> dict[str, Any]:
    """A colour for each system, the same in all figures of a study."""
    names = dict.fromkeys(name for each in study["comparisons"] for name in each["systems"])
    maps: Any = matplotlib.colormaps
    palette = [*maps["tab20"].colors, *maps["tab20b"].colors]
    return {name: palette[index % len(palette)] for index, name in enumerate(names)}


def _legend(figure: Figure, drawn: Mapping[str, Line2D]) -> None:
    figure.legend(
        list(drawn.values()), list(drawn), loc="outside lower left", ncols=4, fontsize=7,
        frameon=False,
    )  # fmt: skip


def _figure(panels: int) -> Figure:
    columns = min(panels, _COLUMNS)
    rows = math.ceil(panels / _COLUMNS)
    return Figure(figsize=(_PANEL * columns, 0.85 * _PANEL * rows), layout="constrained")


def _panel(figure: Figure, index: int, panels: int) -> Axes:
    return figure.add_subplot(math.ceil(panels / _COLUMNS), min(panels, _COLUMNS), index + 1)


def _svg(figure: Figure) -> str:
    """Return the figure as an SVG element: the same figure gives the same text."""
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "polewise"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]
