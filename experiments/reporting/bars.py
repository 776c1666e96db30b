"""Figures of bars: class distributions and training times."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from imbal_jax.reports.figures import COLOURS, GREY, MAX_NAMED_CLASSES
from imbal_jax.reports.summaries import mean_and_standard_error


def distributions_figure(panels: Mapping[str, tuple[np.ndarray, Sequence[str]]]) -> Figure:
    """Examples of every class, in the order of the labels.

    Args:
      panels: counts, [C], and the names of the classes by the title of the panel.
    """
    figure, grid = _panels(len(panels), width=4.0, height=2.7)
    for axes, (title, (counts, names)) in zip(grid, panels.items(), strict=False):
        axes.bar(range(len(counts)), counts, width=0.8 if len(counts) <= MAX_NAMED_CLASSES else 1.0, color=COLOURS[0])
        positive = counts[counts > 0]
        ratio = positive.max() / positive.min() if len(positive) else np.nan
        axes.set_title(f"{title} (p = {ratio:.2f})", fontsize=10)
        if ratio > 20:
            axes.set_yscale("log")
        axes.margins(x=0.01, y=0.16)
        axes.set_ylabel("examples")
        if len(counts) > MAX_NAMED_CLASSES:
            axes.set_xlabel("class index")
            continue
        slanted: Any = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if max(map(len, names)) > 3 else {}
        axes.set_xticks(range(len(counts)), names, **slanted)
        for place, count in enumerate(counts):
            point = (place, max(count, axes.get_ylim()[0]))
            axes.annotate(f"{count:.0f}", point, (0, 2), textcoords="offset points", ha="center", fontsize=7)
    return figure


def times_figure(panels: Mapping[str, Mapping[str, tuple[Sequence[float], bool]]]) -> Figure:
    """The seconds of an epoch, a bar for every method with the standard error over seeds.

    Args:
      panels: by the title of the panel and the method, the seconds of every seed, and whether it is of second order.
    """
    most = max(map(len, panels.values()))
    figure, grid = _panels(len(panels), width=4.4, height=0.9 + 0.28 * most)
    for axes, (title, methods) in zip(grid, panels.items(), strict=False):
        found = [mean_and_standard_error(values) for values, _ in methods.values()]
        means = np.array([float(mean) for mean, _ in found])
        errors = np.array([0.0 if error is None else float(error) for _, error in found])
        colours = [COLOURS[0] if second else GREY for _, second in methods.values()]
        places = np.arange(len(means))
        axes.barh(places, means, height=0.7, color=colours)
        some = errors > 0
        axes.errorbar(means[some], places[some], xerr=errors[some], fmt="none", ecolor="black", elinewidth=1, capsize=2)
        for place, mean, error in zip(places, means, errors, strict=True):
            text = f"{mean:.3g}"
            axes.annotate(text, (mean + error, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
        axes.set_yticks(places, list(methods))
        axes.invert_yaxis()
        axes.set(title=title, xlabel="seconds per epoch", xlim=(0, 1.2 * max((means + errors).max(), 1e-9)))
        axes.title.set_fontsize(10)
        axes.grid(visible=False, axis="y")
    return figure


def _panels(number: int, *, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with three panels in a row, each of a width and a height in inches."""
    columns = min(number, 3)
    rows = -(-number // columns)
    size = (max(width * columns, 5.0), 0.2 + height * rows)
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color=GREY, alpha=0.25, linewidth=0.6, axis="both")
        axes.set_axisbelow(True)
    for axes in grid[number:]:
        axes.set_axis_off()
    return figure, grid[:number]
