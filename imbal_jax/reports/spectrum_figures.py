"""Figures of curvature: eigenvalue densities, their ends by class, and quantities of every class over epochs.

After Figures 2 and 3 of Rangwani et al. 2022, "Escaping saddle points for effective generalization on class-imbalanced
data", and Figures 5.1 to 5.3 of the thesis. Densities arrive smoothed; a `spectrum` is the content of a spectrum.json.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from imbal_jax.errors import InputError
from imbal_jax.reports.figures import COLOURS, GREY, MAX_NAMED_CLASSES
from imbal_jax.reports.records import Record
from imbal_jax.reports.summaries import mean_and_standard_error

POSITIVE, NEGATIVE = COLOURS[:2]
MAX_LISTED_CLASSES = 14  # in a legend of curves; beyond, a colour scale of the rank stands for the names
RATIO = r"$|\lambda_{\min}\,/\,\lambda_{\max}|$"


class DensityPanel(NamedTuple):
    """One density with its title."""

    title: str
    grid: np.ndarray  # [points], ascending
    density: np.ndarray  # [points]
    lambda_min: float
    lambda_max: float
    ratio: float  # |lambda_min / lambda_max|
    one_eigenvalue: float  # the height of the peak that a single eigenvalue adds
    probes: np.ndarray | None = None  # [probes, points], drawn thin; None for the mean alone


class ClassCurves(NamedTuple):
    """Quantities of every class over epochs."""

    epochs: np.ndarray  # [epochs]
    values: Mapping[str, np.ndarray]  # by quantity, [seeds, epochs, C]; NaN where there is none
    doubtful: Mapping[str, np.ndarray] = {}  # by quantity, bool [seeds, epochs, C]


RANK = "rank of the class, most frequent first"
# What is drawn of the ends of spectra: the labels of axes by quantity.
EXTREMES = {"ratio": RATIO, "lambda_max": r"$\lambda_{\max}$", "lambda_min": r"$\lambda_{\min}$"}


def density_figure(rows: Mapping[str, Sequence[DensityPanel]], *, shared_x: bool = False) -> Figure:
    """Densities on a logarithmic axis, a row for every run; the negative part is shaded.

    All panels share the density axis, which ends at a fifth of the peak of a single eigenvalue.

    Args:
      rows: the panels of each run by its name.
      shared_x: whether all panels show the same range of eigenvalues.

    Raises:
      InputError: there is no panel.
    """
    panels = [panel for row in rows.values() for panel in row]
    if not panels:
        raise InputError("rows: expected at least one panel, got none")
    columns = max(map(len, rows.values()))
    figure, grid = _new_figure((0.7 + 3.5 * columns, 0.3 + 2.8 * len(rows)), len(rows), columns, sharey=True)
    floor = 0.2 * min(panel.one_eigenvalue for panel in panels)
    top = 6 * max(panel.density.max() for panel in panels)
    lows, highs = zip(*map(_x_limits, panels), strict=True)
    for all_axes, (name, row) in zip(grid, rows.items(), strict=True):
        for axes in all_axes[len(row) :]:
            axes.set_axis_off()
        for axes, panel in zip(all_axes, row, strict=False):
            axes.set(xlim=(min(lows), max(highs)) if shared_x else _x_limits(panel), ylim=(floor, top), yscale="log")
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
            axes.set_title(panel.title, fontsize=9, loc="left")
            axes.set_xlabel("eigenvalue")
            _draw_density(axes, panel, floor)
        all_axes[0].set_ylabel("density")
        if len(rows) > 1:
            place: Any = {"xycoords": "axes fraction", "xytext": (0, 32), "textcoords": "offset points"}
            all_axes[0].annotate(name, (0, 1), **place, fontsize=11, fontweight="bold", annotation_clip=False)
    return figure


def head_and_tail(spectrum: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The groups to show of a spectrum: the whole set, the most and the least frequent class, as far as measured."""
    classes = _by_count(spectrum)
    return [*(group for group in spectrum["groups"] if group["class"] is None), *classes[:1], *classes[1:][-1:]]


def group_title(spectrum: Mapping[str, Any], group: Mapping[str, Any]) -> str:
    """Name, training examples and accuracy of a group, on two lines."""
    counts, index, name = spectrum["class_counts"], group["class"], group["name"]
    count = sum(counts) if index is None else counts[index]
    name = "all classes" if index is None else f"class {name}" if name.isdecimal() else name
    told = "unknown" if group["accuracy"] is None else f"{100 * group['accuracy']:.1f} %"
    plural = "" if count == 1 else "s"
    return f"{name}: {count:,} training example{plural}\n{spectrum['accuracy_split']} accuracy {told}"


def ratio_standard_error(group: Mapping[str, Any]) -> float | None:
    """The standard error of |lambda_min / lambda_max| over probes, to first order; None for a single probe."""
    low, high, *errors = (group[f"lambda_{end}{kind}"] for kind in ("", "_standard_error") for end in ("min", "max"))
    if None in (low, high, *errors) or not high:
        return None
    return float(np.hypot(errors[0], low / high * errors[1]) / abs(high))


def doubtful(value, residual, largest) -> np.ndarray:
    """Whether Ritz values have not converged: a residual above 1 % of the value, or of a thousandth of the largest.

    Args:
      value: Ritz values, any shape.
      residual: ||H x - value x|| of each, which bounds the distance to the nearest eigenvalue.
      largest: the larger end of each spectrum in magnitude; what is far below it counts as zero.
    """
    value, residual, largest = (np.abs(np.asarray(array, np.float64)) for array in (value, residual, largest))
    return residual > 0.01 * np.maximum(value, 1e-3 * largest)


def ratios_figure(spectra: Mapping[str, Mapping[str, Any]]) -> Figure:
    """|lambda_min / lambda_max| of every class, the most frequent first, with the standard error over probes.

    One panel per spectrum; a dashed line is the ratio of the whole set. Hatched bars have not converged.

    Args:
      spectra: the content of spectrum.json by the name to show.

    Raises:
      InputError: no spectrum has a class.
    """
    most = max((len(_by_count(spectrum)) for spectrum in spectra.values()), default=0)
    if not most:
        raise InputError("spectra: expected at least one group of a class, got none")
    named = most <= MAX_NAMED_CLASSES
    width = max(4.5, 1.2 + 0.55 * most) if named else 7.0
    figure, grid = _new_figure((width, 0.5 + 2.5 * len(spectra)), len(spectra), 1, sharey=True)
    for axes, (name, spectrum) in zip(grid.flat, spectra.items(), strict=True):
        _draw_ratios(axes, _by_count(spectrum), spectrum["class_counts"], named=named)
        for group in spectrum["groups"]:
            if group["class"] is None and group["ratio"] is not None:
                axes.axhline(group["ratio"], color=COLOURS[-1], linestyle="--", linewidth=1, label="all classes")
                axes.legend(loc="lower right", bbox_to_anchor=(1, 1), fontsize=8, frameon=False, borderpad=0)
        axes.set_ylabel(RATIO)
        if len(spectra) > 1:
            axes.set_title(name, loc="left", fontsize=11, fontweight="bold")
    figure.axes[-1].set_xlabel("class (training examples)" if named else RANK)
    return figure


def class_values(seeds: Sequence[Sequence[Record]], key: str, part: str = "") -> tuple[np.ndarray, np.ndarray]:
    """What records hold for every class, at the epochs at which all seeds have it.

    Args:
      seeds: the records of each seed.
      key: of a list of C numbers or null; or of a mapping that has them as its `part`.
      part: "" for none.

    Returns:
      The epochs, [epochs], and float64 [seeds, epochs, C], NaN for null.

    Raises:
      InputError: there is no such epoch, or the number of classes varies.
    """
    found = [{one["epoch"]: one[key] for one in records if one.get(key) is not None} for records in seeds]
    epochs = sorted(set.intersection(*map(set, found))) if found else []
    if not epochs:
        raise InputError(f"records: expected the key {key!r} at an epoch that all seeds have, found none")
    values = [[seed[epoch][part] if part else seed[epoch] for epoch in epochs] for seed in found]
    lengths = {len(of_epoch) for of_seed in values for of_epoch in of_seed}
    if len(lengths) != 1:
        raise InputError(f"{key}: expected as many classes in every record, got {sorted(lengths)}")
    return np.array(epochs), np.array(values, np.float64)


def extremes_of(seeds: Sequence[Sequence[Record]]) -> ClassCurves:
    """Both ends of every class's spectrum, and their ratio, over the epochs at which all seeds recorded them.

    Args:
      seeds: the records of each seed; those with the key "class_curvature" count.

    Raises:
      InputError: no epoch has the key in all seeds, or the number of classes varies.
    """
    parts = ("lambda_max", "lambda_min", "lambda_max_residual", "lambda_min_residual")
    found = [class_values(seeds, "class_curvature", part) for part in parts]
    epochs, (high, low, high_residual, low_residual) = found[0][0], [values for _, values in found]
    largest = np.fmax(np.abs(high), np.abs(low))
    bad_high, bad_low = doubtful(high, high_residual, largest), doubtful(low, low_residual, largest)
    ratio = np.divide(np.abs(low), np.abs(high), out=np.full_like(low, np.nan), where=high != 0)
    values = {"ratio": ratio, "lambda_max": high, "lambda_min": low}
    return ClassCurves(epochs, values, {"ratio": bad_high | bad_low, "lambda_max": bad_high, "lambda_min": bad_low})


def extremes_figure(
    runs: Mapping[str, Sequence[Sequence[Record]]], class_names: Sequence[str], class_counts: Any = None
) -> Figure:
    """|lambda_min / lambda_max|, lambda_max and lambda_min of every class over epochs, one row per run.

    Args:
      runs: the records of each seed of a run, by the run's name.
      class_names: C of them.
      class_counts: training examples per class, [C]; None if unknown.

    Raises:
      InputError: a run has no records of it, or their length does not fit the names.
    """
    curves = {name: extremes_of(seeds) for name, seeds in runs.items()}
    return class_curves_figure(curves, EXTREMES, class_names, class_counts)


def class_curves_figure(
    runs: Mapping[str, ClassCurves],
    panels: Mapping[str, str],
    class_names: Sequence[str],
    class_counts: Sequence[float] | None = None,
    *,
    x_label: str = "epoch",
) -> Figure:
    """Quantities of every class over epochs: the mean over seeds in a band of its standard error.

    With several quantities every run is a row; with a single one the runs stand side by side. Colours go from the most
    frequent class to the least frequent one. Circles are around Ritz values that have not converged.

    Args:
      runs: by the name to show.
      panels: the labels of axes by the quantities to draw. An axis is logarithmic where values span more than a factor
        of 20, on both sides of zero if need be.
      class_names: C of them.
      class_counts: training examples per class, [C]; None if unknown: the classes then keep their order.
      x_label: what the curves are over, where that is not epochs.

    Raises:
      InputError: there is no run, or lengths differ.
    """
    if not runs:
        raise InputError("runs: expected at least one, got none")
    lengths = {array.shape[2] for curves in runs.values() for array in curves.values.values()}
    lengths |= set() if class_counts is None else {len(class_counts)}
    if lengths != {len(class_names)}:
        raise InputError(f"class_names: expected {sorted(lengths)} names for the classes, got {len(class_names)}")
    order, labels = np.arange(len(class_names)), list(class_names)
    if class_counts is not None:
        order = np.argsort(-np.asarray(class_counts), kind="stable")
        labels = [f"{name} ({count:.0f})" for name, count in zip(class_names, class_counts, strict=True)]
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.92, len(order)))
    scales = {key: _scale([curves.values[key] for curves in runs.values()]) for key in panels}
    figure, places = _curve_axes(list(runs), panels, x_label)
    for (name, key), axes in places.items():
        _draw_classes(axes, runs[name], key, order, colours)
        axes.set_yscale(scales[key][0], **scales[key][1])
        whole = x_label == "epoch"
        axes.xaxis.set_major_locator(MaxNLocator("auto" if whole else 5, integer=whole, min_n_ticks=1))
    circles = any(np.any(doubt) for curves in runs.values() for doubt in curves.doubtful.values())
    _add_legend(figure, colours, [labels[label] for label in order], counted=class_counts is not None, circles=circles)
    return figure


def _draw_density(axes: Axes, panel: DensityPanel, floor: float) -> None:
    """The density above a floor, its negative part in another colour, and both ends with their values."""
    below = 0.5 * floor  # flat stretches cost nothing in a vector file
    axes.axvspan(-1e3 * np.ptp(panel.grid), 0, color=NEGATIVE, alpha=0.07, linewidth=0, zorder=0)
    for curve in () if panel.probes is None else panel.probes:
        axes.plot(panel.grid, np.maximum(curve, below), color=GREY, linewidth=0.4, alpha=0.6, zorder=1.5)
    shown = np.maximum(panel.density, below)
    for colour, part in ((POSITIVE, panel.grid >= 0), (NEGATIVE, panel.grid <= 0)):
        axes.fill_between(panel.grid[part], below, shown[part], color=colour, alpha=0.35, linewidth=0)
        axes.plot(panel.grid[part], shown[part], color=colour, linewidth=0.9)
    ends = ((r"\lambda_{\max}", panel.lambda_max, POSITIVE), (r"\lambda_{\min}", panel.lambda_min, NEGATIVE))
    for _, value, colour in ends:
        axes.axvline(value, color=colour, linewidth=1, linestyle=(0, (4, 2)))
    # Beside the line of the largest eigenvalue, where the density is low.
    side, align = (-1, "right") if panel.lambda_max > np.mean(axes.get_xlim()) else (1, "left")
    place: Any = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "ha": align, "va": "top"}
    place |= {"fontsize": 8, "bbox": {"facecolor": "white", "linewidth": 0, "pad": 1}}
    for line, (symbol, value, colour) in enumerate((*ends, (RATIO.strip("$"), panel.ratio, "black"))):
        text, offset = f"${symbol} = {_short(value)}$", (5 * side, -3 - 13 * line)
        axes.annotate(text, (panel.lambda_max, 1), offset, color=colour, **place)


def _x_limits(panel: DensityPanel) -> tuple[float, float]:
    """What a panel shows: the grid, both ends and zero, and a little beyond."""
    low, high = min(panel.grid[0], panel.lambda_min, 0), max(panel.grid[-1], panel.lambda_max, 0)
    return low - 0.03 * (high - low), high + 0.03 * (high - low)


def _short(value: float) -> str:
    """Three digits, as mathematics."""
    mantissa, _, exponent = f"{value:.3g}".partition("e")
    return mantissa + (rf"\times 10^{{{int(exponent)}}}" if exponent else "")


def _by_count(spectrum: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The groups of single classes, the most frequent first."""
    classes = [group for group in spectrum["groups"] if group["class"] is not None]
    return sorted(classes, key=lambda group: -spectrum["class_counts"][group["class"]])


def _draw_ratios(axes: Axes, groups: list[Mapping[str, Any]], counts: Sequence[int], *, named: bool) -> None:
    """A bar for every class."""
    ranks = np.arange(len(groups))
    heights = np.array([np.nan if group["ratio"] is None else group["ratio"] for group in groups], np.float64)
    errors = np.array([ratio_standard_error(group) or 0.0 for group in groups])
    for bar, group in zip(axes.bar(ranks, heights, width=0.8, color=POSITIVE), groups, strict=True):
        if in_doubt(group):
            bar.set(hatch="////", edgecolor="white", linewidth=0)
    some = errors > 1e-3 * heights  # below, it would be a dash
    axes.errorbar(ranks[some], heights[some], yerr=errors[some], fmt="none", ecolor="black", elinewidth=1, capsize=2)
    axes.grid(visible=False, axis="x")
    axes.margins(x=0.01, y=0.15)
    if named:
        labels = [f"{group['name']} ({counts[group['class']]})" for group in groups]
        axes.set_xticks(ranks, labels, rotation=45, ha="right", rotation_mode="anchor")
        for rank in ranks[np.isfinite(heights)]:
            place, text = (rank, heights[rank] + errors[rank]), f"{heights[rank]:#.2g}"
            axes.annotate(text, place, (0, 2), textcoords="offset points", ha="center", fontsize=8)


def in_doubt(group: Mapping[str, Any]) -> bool:
    """Whether one of the ends of a group's spectrum has not converged; see `doubtful`."""
    ends = [[group[f"lambda_{end}{kind}"] for end in ("min", "max")] for kind in ("", "_residual")]
    values, residuals = np.array(ends, np.float64)
    return bool(doubtful(values, residuals, np.abs(values).max()).any())


def _curve_axes(
    names: list[str], panels: Mapping[str, str], x_label: str
) -> tuple[Figure, dict[tuple[str, str], Axes]]:
    """A figure and its axes by run and quantity: a row per run, or three runs in a row if there is one quantity."""
    several = len(panels) > 1
    rows, columns = (len(names), len(panels)) if several else (-(-len(names) // 3), min(len(names), 3))
    size = (1.9 + 3.3 * columns, 0.4 + 2.7 * rows)
    figure, grid = _new_figure(size, rows, columns, sharey="col" if several else True)
    places = dict(zip([(name, key) for name in names for key in panels], grid.flat, strict=False))
    for axes in grid.flat[len(places) :]:
        axes.set_axis_off()
    for position, ((name, key), axes) in enumerate(places.items()):
        if several or position % columns == 0:
            axes.set_ylabel(panels[key])
        if key == next(iter(panels)):
            axes.set_title(name, loc="left", fontsize=11, fontweight="bold")
        if position + columns >= len(places):
            axes.set_xlabel(x_label)
    return figure, places


def _draw_classes(axes: Axes, curves: ClassCurves, key: str, order: np.ndarray, colours: np.ndarray) -> None:
    """A curve and a band for every class, and circles where it is in doubt."""
    mean, error = mean_and_standard_error(curves.values[key])
    doubt = np.any(curves.doubtful.get(key, np.zeros(curves.values[key].shape, bool)), axis=0)
    few = len(order) <= MAX_LISTED_CLASSES
    for rank, (label, colour) in enumerate(zip(order, colours, strict=True)):
        value, style = mean[:, label], "--" if few and rank % 2 else "-"
        dot = "." if len(curves.epochs) == 1 else ""
        axes.plot(curves.epochs, value, style, color=colour, linewidth=1.4 if few else 0.7, marker=dot)
        if error is not None and few:
            low, high = value - error[:, label], value + error[:, label]
            axes.fill_between(curves.epochs, low, high, color=colour, alpha=0.18, linewidth=0)
        circles = doubt[:, label]
        axes.plot(curves.epochs[circles], value[circles], "o", color=colour, markersize=5, fillstyle="none")


def _add_legend(figure: Figure, colours: np.ndarray, labels: list[str], *, counted: bool, circles: bool) -> None:
    """The names of the classes, or a scale of their ranks."""
    if len(labels) > MAX_LISTED_CLASSES:
        scale = ScalarMappable(Normalize(0, len(labels) - 1), cmap=ListedColormap(colours))
        title = RANK if counted else "class index"
        figure.colorbar(scale, ax=figure.axes, label=title, pad=0.02, aspect=30)
        return
    handles = [Line2D([], [], color=colour, label=label) for colour, label in zip(colours, labels, strict=True)]
    for handle in handles[1::2]:
        handle.set_linestyle("--")
    if circles:
        handles.append(Line2D([], [], color=GREY, marker="o", fillstyle="none", ls="", label="not converged"))
    title = "class (training examples)" if counted else "class"
    figure.legend(handles=handles, loc="outside right center", fontsize=8, title=title, title_fontsize=8)


def _scale(values: list[np.ndarray]) -> tuple[str, dict[str, Any]]:
    """Name and options of an axis's scale for all runs."""
    every = np.concatenate([array.ravel() for array in values])
    sizes = np.abs(every[np.isfinite(every) & (every != 0)])
    if not len(sizes) or sizes.max() <= 20 * sizes.min():
        return "linear", {}
    if np.nanmin(every) >= 0:
        return "log", {}
    # Linear only below what nearly all values exceed.
    return "symlog", {"linthresh": float(10 ** np.floor(np.log10(np.quantile(sizes, 0.1))))}


def _new_figure(size: tuple[float, float], rows: int, columns: int, *, sharey: Any) -> tuple[Figure, np.ndarray]:
    """A figure, its width and height in inches, and its axes [rows, columns]."""
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06))
    grid = figure.subplots(rows, columns, squeeze=False, sharey=sharey)
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color=GREY, alpha=0.25, linewidth=0.6)
        axes.set_axisbelow(True)
    return figure, grid
