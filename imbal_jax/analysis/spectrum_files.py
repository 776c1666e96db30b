"""The files of a spectrum: spectrum.json and spectrum.npz."""

import pathlib
from typing import Any

import numpy as np

from imbal_jax.analysis.class_spectra import GroupSpectrum, Trained, accuracy_split, split_of
from imbal_jax.analysis.options import SpectrumOptions
from imbal_jax.curvature.subsets import select_parameters
from imbal_jax.reports.records import write_json
from imbal_jax.training.experiment import Experiment


def spectrum_header(experiment: Experiment, trained: Trained, options: SpectrumOptions) -> dict[str, Any]:
    """What the spectra are of, beside the run: every option, the parameters, the classes and who has no example.

    The option `seed` stands under "spectrum_seed", apart from that of the run.
    """
    subset = select_parameters(trained.variables["params"], options.parameters)
    split = split_of(experiment, options.split)
    names, labels = experiment.data.class_names, np.asarray(split.labels)
    present = np.bincount(labels, minlength=len(names)) > 0
    reason = f"no example in the {options.split} split"
    return {
        **{"spectrum_seed" if name == "seed" else name: value for name, value in options._asdict().items()},
        "normalisation": "mean over the examples of a group; class weights are not re-normalised",
        "num_parameters": subset.size,
        "accuracy_split": accuracy_split(experiment),
        "class_names": names,
        "class_counts": experiment.data.counts.counts,
        "skipped": [
            {"class": index, "name": name, "reason": reason} for index, name in enumerate(names) if not present[index]
        ],
    }


def write_spectra(folder: pathlib.Path, header: dict[str, Any], spectra: list[GroupSpectrum]) -> None:
    """Writes spectrum.json and spectrum.npz.

    The arrays of the .npz are `nodes`, `weights` and `residuals` [groups, probes, order] (Ritz values, their weights in
    the density and the residuals of their vectors; padded with NaN nodes of weight 0), `traces` [groups, probes] and
    `names` [groups].

    Args:
      folder: created if missing.
      header: what the spectra are of: options, run, data.
      spectra: one or more.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "spectrum.json", {**header, "groups": [_summary(each) for each in spectra]})
    arrays: dict[str, Any] = {
        "nodes": np.stack([each.spectrum.values for each in spectra]),
        "weights": np.stack([each.spectrum.weights for each in spectra]),
        "residuals": np.stack([each.spectrum.residuals for each in spectra]),
        "traces": np.stack([each.spectrum.traces for each in spectra]),
        "names": np.array([each.group.name for each in spectra]),
    }
    # Under another name first: a figure drawn meanwhile finds the old file or the new one.
    temporary = folder / ".spectrum.npz"
    with temporary.open("wb") as file:
        np.savez(file, **arrays)
    temporary.replace(folder / "spectrum.npz")


def _summary(each: GroupSpectrum) -> dict[str, Any]:
    """The entry of one group."""
    return {
        "name": each.group.name,
        "class": each.group.class_index,
        "count": each.group.available,
        "examples": each.group.sampled,
        "accuracy": each.accuracy,
        **each.spectrum.summary(),
        "steps": each.spectrum.steps,
        "checks": each.checks._asdict(),
        "seconds": each.seconds,
    }
