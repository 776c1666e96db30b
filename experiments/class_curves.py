"""Draws a quantity of every class over the epochs of runs: the mean over seeds in a band of its standard error.

  python -m experiments.class_curves runs/sgd runs/sam --quantity=curvature [--output=DIR]
  python -m experiments.class_curves runs/baseline runs/reweighted runs/ief --quantity=gradient_norms

curvature: |lambda_min / lambda_max|, lambda_max and lambda_min of the Hessian of each class's mean loss, a row for each
run, as Figure 3 of Rangwani et al. 2022; from the records' "class_curvature". Circles mark values that have not
converged.

gradient_norms: the norm of each class's gradient of the final layer, the runs side by side, as the thesis's Figures 5.1
to 5.3; from the records' "class_gradient_norms". With --scaling=contribution it is that of (1/N) sum over the class
(thesis Eq. 3.3), in which a frequent class is large by its number alone; with --scaling=class_mean it is multiplied by
N / n_c, for the gradient of the class's own mean loss.

Written are curvature.png or gradient_norms.png, and the same as .pdf, by default into runs/class_curves.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from imbal_jax.data.known import known_dataset
from imbal_jax.errors import InputError
from imbal_jax.main import guarded
from imbal_jax.reports.figures import save_figure
from imbal_jax.reports.records import Record, read
from imbal_jax.reports.spectrum_figures import EXTREMES, ClassCurves, class_curves_figure, class_values, extremes_of

LABELS = {
    "contribution": r"norm of $\frac{1}{N}\sum_{n \in c}\,\nabla\mathcal{L}_n$",
    "class_mean": r"norm of $\frac{1}{n_c}\sum_{n \in c}\,\nabla\mathcal{L}_n$",
}
SOURCES = {"curvature": "class_curvature", "gradient_norms": "class_gradient_norms"}
ADVICE = {
    "curvature": "--config.record.curvature_every=1",
    "gradient_norms": "--config.record.class_gradient_norms=true",
}


class Run(NamedTuple):
    """What the seeds of a run wrote."""

    folder: pathlib.Path
    records: list[list[Record]]  # of each seed
    counts: np.ndarray | None  # training examples, float64 [seeds, C]; None where results are missing


def read_run(folder: pathlib.Path) -> Run:
    """Reads records and class counts of all seeds.

    Raises:
      InputError: there is no run in the folder.
    """
    paths = sorted(folder.glob("seed_*/metrics.jsonl"), key=lambda path: (len(path.parent.name), path.parent.name))
    if not paths:
        raise InputError(f"RUN: expected a run folder with a seed_*/metrics.jsonl, found none in {folder}")
    counts = [_counts(path.parent / "result.json") or _counts(folder / "summary.json") for path in paths]
    known = [each for each in counts if each is not None]
    return Run(
        folder, [read(path) for path in paths], np.array(known, np.float64) if len(known) == len(paths) else None
    )


def _counts(path: pathlib.Path) -> list[float] | None:
    """The training examples of each class in a result; None where there is none yet."""
    try:
        return json.loads(path.read_text()).get("class_counts")
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f"RUN: cannot read {path}: {error}") from error


def curves_of(run: Run, quantity: str, scaling: str) -> ClassCurves:
    """The curves of a run.

    Args:
      run: see `read_run`.
      quantity: "curvature" or "gradient_norms".
      scaling: of gradient norms, "contribution" or "class_mean".

    Raises:
      InputError: the run did not record it at an epoch that all its seeds have reached, or has no class counts.
    """
    if not any(record.get(SOURCES[quantity]) is not None for records in run.records for record in records):
        raise InputError(
            f"RUN: expected records with {SOURCES[quantity]!r}, found none in {run.folder}; train into a new folder"
            f" with {ADVICE[quantity]}"
        )
    if quantity == "curvature":
        return extremes_of(run.records)
    epochs, norms = class_values(run.records, SOURCES[quantity])
    if scaling == "class_mean":
        if run.counts is None:
            raise InputError(
                f"--scaling: class_mean needs the class_counts of seed_*/result.json or summary.json in {run.folder},"
                " found none; let the run finish"
            )
        counts = run.counts[:, None, :]
        norms = norms * np.divide(
            counts.sum(axis=2, keepdims=True), counts, out=np.full_like(counts, np.nan), where=counts > 0
        )
    return ClassCurves(epochs, {quantity: np.where(norms > 0, norms, np.nan)})  # a class without examples has none


def curves_figure(runs: Mapping[str, Run], quantity: str, scaling: str) -> Figure:
    """The figure of several runs of the same classes.

    Raises:
      InputError: see `curves_of`; or the runs have different numbers of classes.
    """
    curves = {name: curves_of(run, quantity, scaling) for name, run in runs.items()}
    sizes = {name: next(iter(one.values.values())).shape[2] for name, one in curves.items()}
    if len(set(sizes.values())) > 1:
        raise InputError(f"RUN: expected runs with the same classes, got numbers of classes {sizes}")
    counted = [run.counts.mean(axis=0) for run in runs.values() if run.counts is not None]
    counts = np.mean(counted, axis=0).tolist() if len(counted) == len(runs) else None
    names = class_names(next(iter(runs.values())).folder, next(iter(sizes.values())))
    panels = EXTREMES if quantity == "curvature" else {quantity: LABELS[scaling]}
    return class_curves_figure(curves, panels, names, counts)


def class_names(folder: pathlib.Path, num_classes: int) -> tuple[str, ...]:
    """The names of a run's classes where its data set is well known, else their numbers."""
    try:
        data: Any = json.loads((folder / "config.json").read_text())["data"]
        known = known_dataset(str(data["name"]))
    except (OSError, ValueError, KeyError, TypeError):
        known = None
    if known is not None and known.num_classes == num_classes:
        return known.class_names
    return tuple(str(label) for label in range(num_classes))


def _named(folders: list[pathlib.Path]) -> dict[str, pathlib.Path]:
    """Runs by the names of their folders, or by their whole paths where two have the same name."""
    names = [folder.resolve().name for folder in folders]
    return {name if names.count(name) == 1 else str(run): run for name, run in zip(names, folders, strict=True)}


def run(arguments: list[str]) -> int:
    """Draws what runs have recorded of each class's curvature; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.class_curves",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", type=pathlib.Path, metavar="RUN", help="run folders, in the order to show")
    parser.add_argument("--quantity", required=True, choices=sorted(SOURCES))
    parser.add_argument("--scaling", choices=sorted(LABELS), help="of gradient_norms (default: contribution)")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/class_curves"), metavar="DIR")
    options = parser.parse_args(arguments)
    if options.scaling is not None and options.quantity != "gradient_norms":
        raise InputError(f"--scaling: expected it with --quantity=gradient_norms only, got {options.quantity}")
    runs = {name: read_run(folder) for name, folder in _named(options.runs).items()}
    figure = curves_figure(runs, options.quantity, options.scaling or "contribution")
    picture, document = save_figure(figure, options.output / options.quantity)
    print(f"written to {options.output}: {picture.name}, {document.name}")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(run, sys.argv[1:]))
