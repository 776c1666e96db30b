"""Figures of a run and of a comparison of runs.

Every figure is a `matplotlib.figure.Figure` of its own and not one of pyplot, so that nothing needs a display, no
global state changes and a figure is freed with its last reference.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, PercentFormatter

from imbal_jax.errors import InputError
from imbal_jax.reports.records import Record
from imbal_jax.reports.tables import COLUMNS, readable

# Okabe and Ito's colours, which remain distinct for colour-blind readers; their yellow is too pale on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D")
GREY = "#8C8C8C"
MAX_NAMED_CLASSES = 20  # beyond, names and numbers would overlap
LOSSES = ("train/loss", "validation/loss")
SCORES = ("validation/accuracy", "validation/balanced_accuracy", "validation/macro_f1")


def save_figure(figure: Figure, path: str | os.PathLike) -> tuple[Path, Path]:
    """Writes a figure as PNG (200 dots per inch) and as PDF, the latter the same bytes for the same figure.

    Args:
      figure: what to write.
      path: without suffix; its folder is created if missing.

    Returns:
      The paths of the PNG and of the PDF.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    png, pdf = path.with_name(path.name + ".png"), path.with_name(path.name + ".pdf")
    figure.savefig(png, dpi=200)
    # Type 42 embeds TrueType fonts, which publishers ask for.
    with matplotlib.rc_context({"pdf.fonttype": 42}):
        figure.savefig(pdf, metadata={"CreationDate": None})
    return png, pdf


def confusion_figure(confusion, class_names: Sequence[str]) -> Figure:
    """A confusion matrix, each row in per cent of its class.

    Args:
      confusion: counts, [C, C], rows true; a row without examples stays empty.
      class_names: C of them. With at most 20 classes they are shown, with the number of test examples, and the
        percentages are written into the cells.

    Raises:
      InputError: the matrix does not fit the names.
    """
    percent, support = _row_percentages(confusion, len(class_names))
    num_classes = len(class_names)
    side = 2.6 + 0.42 * num_classes if num_classes <= MAX_NAMED_CLASSES else 6.5
    figure, (axes,) = new_figure(1, width=side + 0.8, height=side)
    image = _draw_confusion(axes, percent)
    axes.set(xlabel="predicted class", ylabel="true class")
    figure.colorbar(image, ax=axes, label="share of the true class (%)", shrink=0.8, pad=0.02)
    if num_classes <= MAX_NAMED_CLASSES:
        labels = [f"{name} ({int(count)})" for name, count in zip(class_names, support, strict=True)]
        axes.set_xticks(range(num_classes), class_names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(num_classes), labels)
    return figure


def confusions_figure(confusions: Mapping[str, Any], class_names: Sequence[str]) -> Figure:
    """Several confusion matrices side by side, four in a row, each row in per cent of its class.

    Args:
      confusions: counts, [C, C], rows true, by the title of the panel.
      class_names: C of them; with at most 20 they stand beside the outer panels.

    Raises:
      InputError: there is no matrix, or one does not fit the names.
    """
    if not confusions:
        raise InputError("confusions: expected at least one matrix, got none")
    columns = min(len(confusions), 4)
    rows = -(-len(confusions) // columns)
    figure = Figure(figsize=(1.8 + 3 * columns, 0.8 + 3.1 * rows), layout=ConstrainedLayoutEngine(compress=True))
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    named = len(class_names) <= MAX_NAMED_CLASSES
    for i, (axes, (title, confusion)) in enumerate(zip(grid, confusions.items(), strict=False)):
        image = _draw_confusion(axes, _row_percentages(confusion, len(class_names))[0], fontsize=6, least=0.5)
        axes.set_title(title, fontsize=10)
        lowest, leftmost = i + columns >= len(confusions), i % columns == 0
        ticks = range(len(class_names)) if named else []
        axes.set_xticks(ticks, class_names if named and lowest else [""] * len(ticks), rotation=90, fontsize=8)
        axes.set_yticks(ticks, class_names if named and leftmost else [""] * len(ticks), fontsize=8)
        axes.set(xlabel="predicted class" if lowest else "", ylabel="true class" if leftmost else "")
    for axes in grid[len(confusions) :]:
        axes.set_axis_off()
    figure.colorbar(image, ax=grid, label="share of the true class (%)", shrink=0.8 / rows, pad=0.01)
    return figure


def _row_percentages(confusion: Any, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """A confusion matrix in per cent of its rows, NaN in those without examples, and the examples of each, [C].

    Raises:
      InputError: the matrix has another number of classes.
    """
    matrix = np.asarray(confusion, np.float64)
    if matrix.shape != (num_classes, num_classes):
        raise InputError(f"confusion: expected shape {(num_classes, num_classes)}, got {matrix.shape}")
    support = matrix.sum(axis=1, keepdims=True)
    percent = np.divide(100 * matrix, support, out=np.full_like(matrix, np.nan), where=support > 0)
    return percent, support[:, 0]


def _draw_confusion(axes: Axes, percent: np.ndarray, *, fontsize: float = 8, least: float = 0) -> Any:
    """Percentages as colours, and as numbers, from the least that is written, where there are few classes."""
    image = axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    axes.grid(visible=False)
    if len(percent) <= MAX_NAMED_CLASSES:
        for (row, column), value in np.ndenumerate(percent):
            if np.isfinite(value) and value >= least:
                colour = "white" if value > 55 else "black"
                text = axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=fontsize)
                text.set_in_layout(False)  # it lies within the panel, and asking every text takes seconds
    return image


def learning_curves_figure(records_by_seed: Mapping[int, Sequence[Record]]) -> Figure:
    """Losses and validation scores over epochs: a thin line per seed, a thick one for their mean.

    A curve is drawn if any record has its key, and a panel if it has a curve; the mean runs over the epochs that all
    seeds have reached.

    Args:
      records_by_seed: the records of each run by its seed.

    Raises:
      InputError: no record has a curve.
    """
    found = {key: _curves(records_by_seed.values(), key) for key in LOSSES + SCORES}
    panels = [[key for key in keys if found[key]] for keys in (LOSSES, SCORES)]
    panels = [keys for keys in panels if keys]
    if not panels:
        raise InputError(f"records: expected one of the keys {list(LOSSES + SCORES)}, found none")
    figure, all_axes = new_figure(len(panels), width=4.6 * len(panels), height=3.6)
    for axes, keys in zip(all_axes, panels, strict=True):
        for key, colour in zip(keys, COLOURS, strict=False):
            _draw_seeds(axes, found[key], colour, readable(key))
        is_loss = keys[0] in LOSSES
        axes.set(xlabel="epoch", ylabel="loss (nats)" if is_loss else "score")
        if not is_loss:
            axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=1 if len(keys) == 1 else 2, fontsize=8)
    return figure


def class_gradient_norms_figure(records: Sequence[Record], class_names: Sequence[str]) -> Figure:
    """The norm of each class's gradient over epochs, on a logarithmic axis.

    Args:
      records: the records of one run; those with the key "class_gradient_norms", a list of C norms, are drawn.
      class_names: C of them; beyond 14 a colour scale of the class index stands for the names.

    Raises:
      InputError: no record has the norms, or their number does not fit the names.
    """
    with_norms = [record for record in records if record.get("class_gradient_norms") is not None]
    if not with_norms:
        raise InputError("records: expected the key 'class_gradient_norms', found none")
    lengths = {len(record["class_gradient_norms"]) for record in with_norms}
    if lengths != {len(class_names)}:
        raise InputError(f"class_gradient_norms: expected {len(class_names)} values per record, got {sorted(lengths)}")
    epochs = [record["epoch"] for record in with_norms]
    norms = np.array([record["class_gradient_norms"] for record in with_norms], np.float64)
    norms[~(norms > 0)] = np.nan  # a logarithm has no place for a class that gave no gradient

    figure, (axes,) = new_figure(1, width=6.4, height=3.8)
    marker = "o" if len(epochs) == 1 else ""
    if len(class_names) <= 2 * len(COLOURS):
        for index, name in enumerate(class_names):
            colour, style = COLOURS[index % len(COLOURS)], ("-", "--")[index // len(COLOURS)]
            axes.plot(epochs, norms[:, index], style, color=colour, marker=marker, label=name)
        figure.legend(loc="outside right center", fontsize=8, title="class")
    else:
        scale = ScalarMappable(Normalize(0, len(class_names) - 1), cmap="viridis")
        for index, colour in enumerate(scale.to_rgba(np.arange(len(class_names)))):
            axes.plot(epochs, norms[:, index], color=tuple(colour), marker=marker, linewidth=0.8)
        figure.colorbar(scale, ax=axes, label="class index", pad=0.02)
    axes.set(xlabel="epoch", ylabel="norm of the class gradient", yscale="log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure


def comparison_figure(rows: Mapping[str, Mapping[str, Any]], columns: Sequence[str] = COLUMNS) -> Figure:
    """Methods against each other, one panel of bars per metric with the standard error over seeds.

    Args:
      rows: summaries of `summarise` by the name of the method, drawn from top to bottom.
      columns: keys of fractions, one panel each.

    Raises:
      InputError: there is no method.
    """
    if not rows:
        raise InputError("rows: expected at least one summary, got none")
    figure, all_axes = new_figure(
        len(columns), width=1.4 + 2.6 * len(columns), height=1.1 + 0.32 * len(rows), sharey=True
    )
    positions = np.arange(len(rows))
    for axes, column in zip(all_axes, columns, strict=True):
        percent = np.array([_percent(summary.get(column)) for summary in rows.values()])
        errors = np.array([_percent(summary.get("standard_error", {}).get(column)) for summary in rows.values()])
        errors = np.nan_to_num(errors)
        axes.barh(positions, percent, height=0.7, color=COLOURS[0])
        shown = errors > 0
        axes.errorbar(
            percent[shown], positions[shown], xerr=errors[shown], fmt="none", ecolor="black", elinewidth=1, capsize=2
        )
        for position, value, error in zip(positions, percent, errors, strict=True):
            if np.isfinite(value):
                axes.annotate(
                    f"{value:.1f}",
                    (value + error, position),
                    (4, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8,
                )
        axes.grid(visible=False, axis="y")
        axes.set(xlabel=f"{readable(column)} (%)", xlim=(0, max(1.0, 1.22 * np.nanmax([0, *(percent + errors)]))))
    all_axes[0].set_yticks(positions, list(rows))
    all_axes[0].invert_yaxis()
    return figure


def class_counts_figure(counts, class_names: Sequence[str], per_class_recall=None) -> Figure:
    """Training examples per class, the most frequent class first, above the recall of each class.

    Args:
      counts: training examples per class, [C].
      class_names: C of them; beyond 20 the rank of the class stands for its name.
      per_class_recall: [C] fractions, NaN or None for a class absent from the truth; without it, only counts.

    Raises:
      InputError: the lengths differ.
    """
    counts = np.asarray(counts)
    recall = None if per_class_recall is None else 100 * np.asarray(per_class_recall, np.float64)
    for name, vector in (("counts", counts), ("per_class_recall", recall)):
        if vector is not None and vector.shape != (len(class_names),):
            raise InputError(f"{name}: expected shape ({len(class_names)},), got {vector.shape}")
    order = np.argsort(-counts, kind="stable")
    ranks = np.arange(len(order))
    named = len(order) <= MAX_NAMED_CLASSES
    width = max(4.5, 1.2 + 0.5 * len(order)) if named else 7.0
    num_panels = 1 if recall is None else 2
    figure, all_axes = new_figure(num_panels, width=width, height=1.0 + 2.3 * num_panels, stacked=True)
    _draw_counts(all_axes[0], counts[order], numbers=named)
    if recall is not None:
        _draw_recall(all_axes[1], recall[order])
    if named:
        all_axes[-1].set_xticks(ranks, [class_names[c] for c in order], rotation=45, ha="right", rotation_mode="anchor")
    all_axes[-1].set_xlabel("class" if named else "rank of the class, most frequent first")
    return figure


def _draw_counts(axes: Axes, counts: np.ndarray, *, numbers: bool) -> None:
    """Bars of sorted counts, logarithmic where a linear axis would hide the small ones."""
    ranks = np.arange(len(counts))
    axes.bar(ranks, counts, width=0.8 if numbers else 1.0, color=COLOURS[0])
    positive = counts[counts > 0]
    if len(positive) and positive.max() > 20 * positive.min():
        axes.set_yscale("log")
        axes.set_ylim(max(positive.min() / 3, 0.5), positive.max() * 3)
    axes.margins(x=0.01, y=0.15)
    axes.grid(visible=False, axis="x")
    axes.set_ylabel("training examples")
    if numbers:
        floor = axes.get_ylim()[0]
        for rank, count in zip(ranks, counts, strict=True):
            place = (rank, max(count, floor))
            axes.annotate(str(int(count)), place, (0, 2), textcoords="offset points", ha="center", fontsize=8)


def _draw_recall(axes: Axes, recall: np.ndarray) -> None:
    """Recalls in per cent, a gap for a class without one."""
    axes.bar(np.arange(len(recall)), recall, width=0.8 if len(recall) <= MAX_NAMED_CLASSES else 1.0, color=COLOURS[1])
    if np.isfinite(recall).any():
        axes.axhline(np.nanmean(recall), color=COLOURS[-1], linestyle="--", linewidth=1, label="balanced accuracy")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8)
    axes.grid(visible=False, axis="x")
    axes.set(ylabel="recall (%)", ylim=(0, 100))


def _curves(runs, key: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Epochs and values of a key, one pair for each run that has any; null values become gaps."""
    found = []
    for records in runs:
        pairs = [(record["epoch"], record[key]) for record in records if key in record]
        if pairs:
            epochs, values = zip(*pairs, strict=True)
            found.append((np.array(epochs, np.float64), np.array(values, np.float64)))
    return found


def _draw_seeds(axes: Axes, curves: list[tuple[np.ndarray, np.ndarray]], colour: str, label: str) -> None:
    """Thin lines for the runs, a thick one for the mean at the epochs they share."""
    shared = sorted(set.intersection(*(set(epochs) for epochs, _ in curves)))
    if len(curves) > 1:
        for epochs, values in curves:
            axes.plot(epochs, values, color=colour, linewidth=0.7, alpha=0.45)
    at_shared = [dict(zip(epochs, values, strict=True)) for epochs, values in curves]
    mean = [np.mean([values[epoch] for values in at_shared]) for epoch in shared]
    axes.plot(shared, mean, color=colour, linewidth=1.8, label=label, marker="o" if len(shared) == 1 else "")


def _percent(fraction: float | None) -> float:
    """A fraction in per cent, NaN for None."""
    return np.nan if fraction is None else 100 * fraction


def new_figure(
    panels: int, *, width: float, height: float, stacked: bool = False, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure with panels side by side or stacked over one x axis.

    Args:
      panels: how many.
      width: of the figure, inches.
      height: likewise.
      stacked: one above the other.
      sharey: one y axis for all.
    """
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
    shape = (panels, 1) if stacked else (1, panels)
    all_axes = list(figure.subplots(*shape, sharex=stacked, sharey=sharey, squeeze=False).flat)
    for axes in all_axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color=GREY, alpha=0.25, linewidth=0.6)
        axes.set_axisbelow(True)
    return figure, all_axes
