"""Figures of metrics over an axis of a study, such as a sweep of alpha or of rho."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from experiments.reporting.collect import CellResults
from experiments.study import IMBALANCE, Curve, cell_name
from imbal_jax.reports.figures import COLOURS, new_figure
from imbal_jax.reports.summaries import mean_and_standard_error
from imbal_jax.reports.tables import readable

_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def curve_points(curve: Curve, cells: Sequence[CellResults]) -> dict[str, dict[str, np.ndarray]]:
    """What a figure shows.

    Args:
      curve: its description.
      cells: of the study.

    Returns:
      By metric and line, x, mean and standard error (NaN for a single seed), [points, 3], ascending. Cells without the
      metric in any seed are left out, those of `left_out`, and those whose place on the x axis is no number.

    Raises:
      InputError: what a result has for a metric is no number; the file is named.
    """
    found: dict[str, dict[str, list[tuple[float, float, float]]]] = {metric: {} for metric in curve.metrics}
    for cell in _shown(curve, cells):
        x = _place(curve, cell)
        for metric in curve.metrics:
            values = list(cell.numbers(metric).values())
            if values and all(map(math.isfinite, values)) and x is not None:
                mean, error = mean_and_standard_error(values)
                point = (x, float(mean), math.nan if error is None else float(error))
                found[metric].setdefault(cell.cell[curve.lines], []).append(point)
    return {
        metric: {line: np.array(sorted(points)) for line, points in lines.items()} for metric, lines in found.items()
    }


def left_out(curve: Curve, cells: Sequence[CellResults]) -> list[str]:
    """The names of the cells without a point because a seed has no number there, as one that has diverged.

    Raises:
      InputError: see `curve_points`.
    """
    return [
        cell_name(cell.cell)
        for cell in _shown(curve, cells)
        if not all(math.isfinite(value) for metric in curve.metrics for value in cell.numbers(metric).values())
    ]


def curve_figure(curve: Curve, cells: Sequence[CellResults], labels: Mapping[str, str]) -> Figure | None:
    """The figure, a panel for every metric; None where there is no point yet.

    Args:
      curve: its description.
      cells: of the study.
      labels: how the lines are called, where not by the axis's values.
    """
    panels = {metric: lines for metric, lines in curve_points(curve, cells).items() if lines}
    if not panels:
        return None
    names = list(dict.fromkeys(line for lines in panels.values() for line in lines))
    figure, all_axes = new_figure(len(panels), width=2.2 + 4.4 * len(panels), height=4.2)
    for axes, (metric, lines) in zip(all_axes, panels.items(), strict=True):
        for number, name in enumerate(names):
            if name in lines:
                x, mean, error = lines[name].T
                turn, colour = divmod(number, len(COLOURS))
                shape = f"{_MARKERS[number % len(_MARKERS)]}{('-', '--', ':', '-.')[turn % 4]}"
                bars = np.nan_to_num(100 * error)
                style: Any = {"color": COLOURS[colour], "markersize": 4, "linewidth": 1.4, "capsize": 2}
                axes.errorbar(x, 100 * mean, yerr=bars, fmt=shape, label=labels.get(name, name), **style)
        every = np.concatenate([points[:, 0] for points in lines.values()])
        if every.min() > 0 and every.max() > 8 * every.min():
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.set(xlabel="imbalance p" if curve.x == IMBALANCE else curve.x, ylabel=f"{readable(metric)} (%)")
    figure.legend(*all_axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    return figure


def _shown(curve: Curve, cells: Sequence[CellResults]) -> list[CellResults]:
    """The cells with results that a figure is of."""
    return [cell for cell in cells if cell.results and (curve.where is None or curve.where(cell.cell))]


def _place(curve: Curve, cell: CellResults) -> float | None:
    """Where a cell stands on the x axis."""
    if curve.x == IMBALANCE:
        counts = cell.arrays("class_counts", 1).values()
        ratios = [each.max() / each.min() for each in counts if each.min() > 0]
        return float(np.mean(ratios)) if ratios else None
    return number(cell.cell[curve.x])


def number(text: str) -> float | None:
    """What the value of an axis stands for; None where it is no number."""
    try:
        return float(text)
    except ValueError:
        return None
