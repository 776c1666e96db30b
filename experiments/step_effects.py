"""Draws what the steps of runs did to the losses of frequent and rare classes, one row of panels per run.

  python -m imbal_jax.main --config=configs/digits.py:ief --workdir=runs/ief --config.record.step_effects_batches=8
  python -m experiments.step_effects runs/sgd runs/ief [--output=DIR]

From the records of every seed, over epochs: the mean projection kappa of each class (thesis Eqs. 3.16 and 3.17, here
negative where the loss falls), the linearised against the actual change of its loss (Eq. 3.15), and the share of
examples whose loss falls. The minority are the classes with at most the median number of training examples. Seeds are
pooled, each example with the same weight; in the last panel thin lines are single seeds. Written are step_effects.png
and .pdf, by default into runs/step_effects. What is measured, and on which steps: `imbal_jax.training.step_effects`.
"""

import argparse
import pathlib
import sys
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from imbal_jax.errors import InputError
from imbal_jax.main import guarded
from imbal_jax.reports.figures import COLOURS, GREY, save_figure
from imbal_jax.reports.records import Record, read

GROUPS = {"majority": COLOURS[0], "minority": COLOURS[1]}
MEANS = ("kappa", "linearised", "actual", "falls")


class Effects(NamedTuple):
    """The step effects that a run recorded, at the epochs that all its seeds have reached."""

    epochs: np.ndarray  # [epochs]
    means: dict[str, np.ndarray]  # of each of MEANS, [seeds, epochs, num_classes], NaN where there is no example
    count: np.ndarray  # examples, [seeds, epochs, num_classes]
    minority: np.ndarray  # bool [num_classes]

    def members(self, group: str) -> np.ndarray:
        """The classes of a group that any example is from, bool [num_classes]."""
        of_group = self.minority if group == "minority" else ~self.minority
        return of_group & (self.count.sum(axis=(0, 1)) > 0)


def read_effects(run: pathlib.Path) -> Effects:
    """Reads the records of all seeds of a run.

    Raises:
      InputError: there is no run in the folder, or it did not record the effects of its steps.
    """
    paths = sorted(run.glob("seed_*/metrics.jsonl"))
    if not paths:
        raise InputError(f"RUN: expected a run folder with a seed_*/metrics.jsonl, found none in {run}")
    seeds = [
        {record["epoch"]: record["step_effects"] for record in read(path) if _has_effects(record)} for path in paths
    ]
    epochs = sorted(set.intersection(*map(set, seeds)))
    if not epochs:
        raise InputError(
            f"RUN: expected records with 'step_effects', found none in {run}; train into a new folder with"
            " --config.record.step_effects_batches=1 or more"
        )

    def stacked(key: str) -> np.ndarray:
        return np.array([[seed[epoch][key] for epoch in epochs] for seed in seeds], np.float64)

    minority = np.array(seeds[0][epochs[0]]["minority"], bool)
    return Effects(np.array(epochs), {key: stacked(key) for key in MEANS}, stacked("count"), minority)


def _has_effects(record: Record) -> bool:
    """Whether a record holds step effects."""
    return isinstance(record.get("step_effects"), dict)


def pooled(means: np.ndarray, count: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    """The mean over all examples along axes, from means and counts of the same shape; NaN where there is none."""
    total = np.sum(count, axis=axis)
    sums = np.sum(np.where(count > 0, means, 0) * count, axis=axis)
    return np.where(total > 0, sums / np.maximum(total, 1), np.nan)


def effects_figure(runs: dict[str, Effects]) -> Figure:
    """A row of three panels for every run.

    Args:
      runs: by the name to show.
    """
    size = (13.0, 0.5 + 3.4 * len(runs))
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
    for row, (name, effects) in zip(figure.subplots(len(runs), 3, squeeze=False), runs.items(), strict=True):
        for axes in row:
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(color=GREY, alpha=0.25, linewidth=0.6)
            axes.set_axisbelow(True)
        draw_kappa(row[0], effects)
        draw_changes(row[1], effects)
        draw_falls(row[2], effects)
        row[0].set_title(name, loc="left", fontsize=11, fontweight="bold")
    handles = [Line2D([], [], color=colour, linewidth=1.8, label=group) for group, colour in GROUPS.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, fontsize=9, frameon=False)
    return figure


def draw_kappa(axes: Axes, effects: Effects) -> None:
    """The mean projection over epochs: a thin line per class, a thick one per group."""
    by_class = pooled(effects.means["kappa"], effects.count, axis=0)
    for group, colour in GROUPS.items():
        members = effects.members(group)
        for curve in by_class[:, members].T:
            axes.plot(effects.epochs, curve, color=colour, linewidth=0.7, alpha=0.45)
        mean = pooled(effects.means["kappa"][..., members], effects.count[..., members], axis=(0, 2))
        axes.plot(effects.epochs, mean, color=colour, linewidth=1.8, marker=_marker(effects))
    axes.axhline(0, color="black", linewidth=0.8, linestyle="dotted")
    axes.set_yscale("symlog", linthresh=_typical(by_class))
    axes.set(xlabel="epoch", ylabel=r"mean projection $\kappa$ of a class")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def draw_changes(axes: Axes, effects: Effects) -> None:
    """The actual over the linearised change of the loss: a point per class and epoch, the identity dashed."""
    changes = {key: pooled(effects.means[key], effects.count, axis=0) for key in ("linearised", "actual")}
    for group, colour in GROUPS.items():
        members = effects.members(group)
        x, y = (changes[key][:, members].ravel() for key in ("linearised", "actual"))
        axes.scatter(x, y, s=10, color=colour, alpha=0.55, linewidths=0)
    finite = np.concatenate([values[np.isfinite(values)] for values in changes.values()])
    ends = (finite.min(initial=0), finite.max(initial=0))
    axes.plot(ends, ends, color="black", linewidth=0.8, linestyle="dashed")
    axes.axhline(0, color="black", linewidth=0.8, linestyle="dotted")
    threshold = max(map(_typical, changes.values()))
    axes.set_xscale("symlog", linthresh=threshold)
    axes.set_yscale("symlog", linthresh=threshold)
    axes.tick_params(axis="x", labelrotation=45)
    axes.set(xlabel="linearised change of the loss (nats)", ylabel="actual change (nats)")


def draw_falls(axes: Axes, effects: Effects) -> None:
    """The share of examples whose loss falls: thin lines for the seeds, thick ones for all their examples."""
    for group, colour in GROUPS.items():
        members = effects.members(group)
        falls, count = effects.means["falls"][..., members], effects.count[..., members]
        if len(falls) > 1:
            for curve in pooled(falls, count, axis=2):
                axes.plot(effects.epochs, curve, color=colour, linewidth=0.7, alpha=0.45)
        mean = pooled(falls, count, axis=(0, 2))
        axes.plot(effects.epochs, mean, color=colour, linewidth=1.8, marker=_marker(effects))
    axes.set(xlabel="epoch", ylabel="examples whose loss falls", ylim=(-0.02, 1.02))
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _marker(effects: Effects) -> str:
    """A marker where a line would have a single point."""
    return "o" if len(effects.epochs) == 1 else ""


def _typical(values: np.ndarray) -> float:
    """The power of ten next to the median size of the values, below which an axis is linear and its ticks sparse."""
    sizes = np.abs(values[np.isfinite(values) & (values != 0)])
    return float(10 ** np.round(np.log10(np.median(sizes)))) if len(sizes) else 1.0


def _named(runs: list[pathlib.Path]) -> dict[str, pathlib.Path]:
    """Runs by the names of their folders, or by their whole paths where two have the same name."""
    names = [run.resolve().name for run in runs]
    return {name if names.count(name) == 1 else str(run): run for name, run in zip(names, runs, strict=True)}


def run(arguments: list[str]) -> int:
    """Draws what steps do to each class; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.step_effects",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", type=pathlib.Path, metavar="RUN", help="run folders, in the order of rows")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/step_effects"), metavar="DIR")
    options = parser.parse_args(arguments)
    effects = {name: read_effects(folder) for name, folder in _named(options.runs).items()}
    picture, document = save_figure(effects_figure(effects), options.output / "step_effects")
    print(f"written to {options.output}: {picture.name}, {document.name}")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(run, sys.argv[1:]))
