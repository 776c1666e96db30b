"""Draws Figures 1 and 2 of loss-conditional training from a run, beside runs of fixed hyper-parameters if given.

  python -m imbal_jax.main --config=configs/lct.py:vs_lct-digits --workdir=runs/vs_lct
  python -m imbal_jax.main --config=configs/lct.py:vs-digits --workdir=runs/vs
  python -m experiments.lct_figures runs/vs_lct [--baselines runs/vs ...] [--output=DIR]

Figure 1: the precision at eight recalls, averaged over seeds: of the model with drawn hyper-parameters at the condition
with the best average precision, and of those baselines that are the best of the baselines at any of the recalls;
without baselines, of the conditions that are. The precision at a recall is the largest of all thresholds that reach it.

Figure 2: AUC against the Brier score, the largest precision at a recall >= 0.99 and the largest F1, averaged over
seeds: a dot for every condition, coloured by its last hyper-parameter (tau of the VS loss), and a cross for the
baseline with the highest AUC.

Everything is of the test set, as in the paper: the files seed_*/scores.npz of the runs. Written are precision_at_recall
and adaptability, as .png and .pdf, by default into RUN/figures.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from imbal_jax.errors import InputError
from imbal_jax.evaluation.binary_metrics import average_precision, binary_metrics, operating_points, precision_at_recall
from imbal_jax.main import guarded
from imbal_jax.reports.figures import COLOURS, GREY, new_figure, save_figure

RECALLS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99)  # eight, as the paper has; it names 0.5, 0.8 and 0.99
AGAINST = {
    "brier_score": "Brier score",
    "precision_at_recall_99": "precision at recall >= 0.99",
    "max_f1": "largest $F_1$",
}


class Model(NamedTuple):
    """What one model, or one model at one condition, says of the test set; means over seeds."""

    precisions: np.ndarray  # at RECALLS
    average_precision: float
    metrics: dict[str, float]


class Run(NamedTuple):
    """The models of a run: at its own condition, and at those of its grid."""

    own: Model
    names: tuple[str, ...]  # of the hyper-parameters of the conditions
    conditions: np.ndarray  # [points, k]; none for a run with fixed ones
    at_conditions: list[Model]


def read_run(folder: pathlib.Path) -> Run:
    """Reads the scores of all seeds of a run.

    Raises:
      InputError: there are none, or the seeds differ in their test set or conditions.
    """
    paths = sorted(folder.glob("seed_*/scores.npz"))
    if not paths:
        raise InputError(
            f"RUN: expected a finished run on two classes with a seed_*/scores.npz, found none in {folder}"
        )
    seeds = []
    for path in paths:
        try:
            with np.load(path) as archive:
                seeds.append({name: archive[name] for name in archive.files})
        except (OSError, ValueError) as error:
            raise InputError(f"RUN: cannot read {path}: {error}") from error
    first = seeds[0]
    for seed in seeds:
        for name in ("labels", "conditions"):
            if not np.array_equal(seed.get(name, []), first.get(name, [])):
                raise InputError(f"RUN: expected the same {name} in all seeds of {folder}")
    conditions = first.get("conditions", np.zeros((0, 0)))
    at_conditions = [
        model_of(first["labels"], [seed["log_odds_at_conditions"][i] for seed in seeds]) for i in range(len(conditions))
    ]
    own = model_of(first["labels"], [seed["log_odds"] for seed in seeds])
    return Run(own, _names(paths[0].parent), conditions, at_conditions)


def model_of(labels: np.ndarray, log_odds: list[np.ndarray]) -> Model:
    """The means of a model over seeds.

    Args:
      labels: [n].
      log_odds: [n], of every seed.
    """
    points = [operating_points(labels, each) for each in log_odds]
    precisions = np.mean([[precision_at_recall(each, recall) for recall in RECALLS] for each in points], axis=0)
    metrics = [binary_metrics(labels, each) for each in log_odds]
    means = {name: float(np.mean([each[name] for each in metrics])) for name in metrics[0]}
    return Model(precisions, float(np.mean([average_precision(each) for each in points])), means)


def _names(folder: pathlib.Path) -> tuple[str, ...]:
    """The drawn hyper-parameters of a seed; none where they are fixed."""
    path = folder / "conditions.json"
    try:
        return tuple(json.loads(path.read_text())["names"]) if path.exists() else ()
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"RUN: cannot read {path}: {error}") from error


def best_anywhere(models: Mapping[str, Model]) -> dict[str, Model]:
    """The models that have the highest precision at any of the recalls."""
    table = np.array([model.precisions for model in models.values()])
    best = set(np.argmax(table, axis=0).tolist())
    return {name: model for i, (name, model) in enumerate(models.items()) if i in best}


def labelled(run: Run, index: int) -> str:
    """A condition in words."""
    return ", ".join(f"{name} {value:g}" for name, value in zip(run.names, run.conditions[index], strict=True))


def precision_figure(run: Run, baselines: Mapping[str, Model]) -> Figure:
    """Figure 1.

    Args:
      run: with conditions.
      baselines: models of fixed hyper-parameters by the name to show.
    """
    others = dict(baselines) or {labelled(run, i): model for i, model in enumerate(run.at_conditions)}
    chosen = int(np.argmax([model.average_precision for model in run.at_conditions]))
    figure, (axes,) = new_figure(1, width=6.6, height=4.2)
    palette = [COLOURS[i] for i in range(len(COLOURS)) if i != 1]
    for i, (name, model) in enumerate(best_anywhere(others).items()):
        style = "-" if i < len(palette) else "--"
        axes.plot(
            RECALLS, model.precisions, style, color=palette[i % len(palette)], marker="o", markersize=3, label=name
        )
    best = run.at_conditions[chosen]
    name = f"drawn, at {labelled(run, chosen)}"
    axes.plot(RECALLS, best.precisions, color=COLOURS[1], linewidth=2.4, marker="o", markersize=4, label=name)
    axes.set(xlabel="recall", ylabel="precision")
    figure.legend(loc="outside right center", fontsize=8)
    return figure


def adaptability_figure(run: Run, baselines: Mapping[str, Model]) -> Figure:
    """Figure 2.

    Args:
      run: with conditions.
      baselines: models of fixed hyper-parameters by the name to show.
    """
    figure, all_axes = new_figure(3, width=11.5, height=3.7)
    last = run.conditions[:, -1]
    for axes, (metric, words) in zip(all_axes, AGAINST.items(), strict=True):
        x = [model.metrics[metric] for model in run.at_conditions]
        y = [model.metrics["auc"] for model in run.at_conditions]
        dots = axes.scatter(x, y, c=last, cmap="viridis", s=26, edgecolors=GREY, linewidths=0.4)
        if baselines:
            name, best = max(baselines.items(), key=lambda pair: pair[1].metrics["auc"])
            axes.scatter(best.metrics[metric], best.metrics["auc"], color=COLOURS[1], marker="x", s=60, label=name)
        axes.set(xlabel=words, ylabel="AUC")
    figure.colorbar(dots, ax=all_axes[-1], label=run.names[-1])
    if baselines:
        all_axes[0].legend(loc="lower left", fontsize=8)
    return figure


def run(arguments: list[str]) -> int:
    """Draws the figures of conditional runs; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.lct_figures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", type=pathlib.Path, metavar="RUN", help="the folder of a run with a grid of conditions")
    parser.add_argument("--baselines", nargs="*", default=[], type=pathlib.Path, metavar="RUN", help="fixed ones")
    parser.add_argument("--output", type=pathlib.Path, metavar="DIR", help="(default: RUN/figures)")
    options = parser.parse_args(arguments)
    conditional = read_run(options.run)
    if not conditional.at_conditions:
        raise InputError(f"RUN: expected a run with a grid of conditions (config.evaluation.grid), got {options.run}")
    baselines = {str(folder): read_run(folder).own for folder in options.baselines}
    output = options.output or options.run / "figures"
    for name, draw in (("precision_at_recall", precision_figure), ("adaptability", adaptability_figure)):
        picture, document = save_figure(draw(conditional, baselines), output / name)
        print(f"written: {picture}, {document.name}")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(run, sys.argv[1:]))
