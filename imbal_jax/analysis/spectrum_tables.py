"""Spectra read back from their files: figures and tables of the classes."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from imbal_jax.curvature.density import Density, Quadrature, density, share_below
from imbal_jax.errors import InputError
from imbal_jax.reports.figures import save_figure
from imbal_jax.reports.spectrum_figures import (
    DensityPanel,
    density_figure,
    group_title,
    head_and_tail,
    in_doubt,
    ratio_standard_error,
    ratios_figure,
)

DOUBT = "†"
NEEDED = frozenset({"accuracy_split", "class_counts", "groups", "num_parameters"})  # of spectrum.json


class Spectrum(NamedTuple):
    """What a spectrum folder holds."""

    facts: dict[str, Any]  # spectrum.json
    quadratures: list[Quadrature]  # in the order of facts["groups"]

    def quadrature(self, group: Mapping[str, Any]) -> Quadrature:
        """Nodes and weights of one of its groups."""
        return self.quadratures[self.facts["groups"].index(group)]


def read_spectrum(folder: pathlib.Path) -> Spectrum:
    """Reads a folder with spectrum.json and spectrum.npz.

    Raises:
      InputError: a file is missing or damaged, or the two do not belong together.
    """
    try:
        facts = json.loads((folder / "spectrum.json").read_text())
        with np.load(folder / "spectrum.npz", allow_pickle=False) as arrays:
            nodes, weights = arrays["nodes"], arrays["weights"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"FOLDER: cannot read spectrum.json and spectrum.npz in {folder}: {error}") from error
    if missing := sorted(NEEDED - set(facts)):
        raise InputError(f"FOLDER: expected {', '.join(missing)} in the spectrum.json of {folder}, found none")
    if len(nodes) != len(facts["groups"]):
        raise InputError(
            f"FOLDER: expected {len(facts['groups'])} groups in {folder}, as in its .json, got {len(nodes)}"
        )
    if bad := [group["name"] for group in facts["groups"] if None in (group["lambda_min"], group["lambda_max"])]:
        raise InputError(f"FOLDER: expected finite eigenvalues in {folder}, got none for {bad}")
    return Spectrum(facts, [Quadrature(*pair) for pair in zip(nodes, weights, strict=True)])


def chosen_groups(name: str, facts: Mapping[str, Any], classes: Sequence[str] | None) -> list[Mapping[str, Any]]:
    """The groups to show: by default of head and tail, else the whole set and the given classes.

    Args:
      name: of the spectrum, for messages.
      facts: the content of spectrum.json.
      classes: indices or names; None for the default.

    Raises:
      InputError: a class was not measured.
    """
    if classes is None:
        return head_and_tail(facts)
    chosen = [group for group in facts["groups"] if group["class"] is None]
    measured = [group for group in facts["groups"] if group["class"] is not None]
    for wanted in classes:
        found = [group for group in measured if wanted in (str(group["class"]), group["name"])]
        if not found:
            known = ", ".join(f"{group['class']} ({group['name']})" for group in measured)
            why = [each["reason"] for each in facts.get("skipped", ()) if wanted in (str(each["class"]), each["name"])]
            told = f"; it was skipped: {why[0]}" if why else ""
            raise InputError(f"--classes: expected classes measured in {name}: {known or 'none'}; got {wanted!r}{told}")
        # Where names are numbers, as of digits, an index counts before a name.
        chosen.append(next((group for group in found if str(group["class"]) == wanted), found[0]))
    return chosen


def panel(spectrum: Spectrum, group: Mapping[str, Any], kernel: str, *, probes: bool = False) -> DensityPanel:
    """The density of a group, smoothed for drawing."""
    found: Density = density(spectrum.quadrature(group), kernel, points=4000)
    peak = 1 / (found.sigma * np.sqrt(2 * np.pi) * spectrum.facts["num_parameters"])
    lines = found.probes if probes else None
    title, ratio = group_title(spectrum.facts, group), abs(group["lambda_min"] / (group["lambda_max"] or np.nan))
    return DensityPanel(title, found.grid, found.mean, group["lambda_min"], group["lambda_max"], ratio, peak, lines)


def table(spectra: Mapping[str, Spectrum], classes: Sequence[str] | None, threshold: float) -> str:
    """Every group of every spectrum in Markdown.

    Args:
      spectra: by the name to show.
      classes: see `chosen_groups`, but None for all.
      threshold: eigenvalues below -threshold |lambda_max| count as negative.

    Raises:
      InputError: a class was not measured.
    """
    splits = {spectrum.facts["accuracy_split"] for spectrum in spectra.values()}
    accuracy = f"{splits.pop()} accuracy (%)" if len(splits) == 1 else "accuracy (%)"
    heads = ["run", "class", "examples", accuracy, "lambda_max", "lambda_min", "ratio", "trace"]
    lines = [[*heads, f"below {-threshold:g} lambda_max (%)"], ["---", "---", *["---:"] * 7]]
    doubt = False
    for name, spectrum in spectra.items():
        groups = spectrum.facts["groups"] if classes is None else chosen_groups(name, spectrum.facts, classes)
        for group in groups:
            doubt |= in_doubt(group)
            lines.append([name.replace("|", "\\|"), *_cells(spectrum, group, threshold)])
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    text += "\nratio: |lambda_min / lambda_max|; ±: standard error over probes, where four digits show it.\n"
    return text + f"{DOUBT} a Ritz residual above 1 % of the value: take more Lanczos steps.\n" * doubt


def _cells(spectrum: Spectrum, group: Mapping[str, Any], threshold: float) -> list[str]:
    """One row of the table, but for the run."""
    share, error = share_below(spectrum.quadrature(group), -threshold * abs(group["lambda_max"]))
    ends = [(group[f"lambda_{end}"], group[f"lambda_{end}_standard_error"]) for end in ("max", "min")]
    return [
        group["name"].replace("|", "\\|"),
        str(group["examples"]),
        "-" if group["accuracy"] is None else f"{100 * group['accuracy']:.1f}",
        *(_with_error(*end) for end in ends),
        _with_error(group["ratio"], ratio_standard_error(group)) + (f" {DOUBT}" if in_doubt(group) else ""),
        _with_error(group["trace"], group["trace_standard_error"]),
        _with_error(100 * share, None if error is None else 100 * error),
    ]


def _with_error(value: float | None, error: float | None) -> str:
    """A number and its error to two significant digits, as many digits in both."""
    if value is None:
        return "-"
    if not error or error < 5e-5 * abs(value):
        return f"{value:.4g}"
    decimals = 1 - int(np.floor(np.log10(error)))
    if 0 <= decimals <= 6 and abs(value) < 1e6:
        return f"{value:.{decimals}f} ± {error:.{decimals}f}"
    return f"{value:.4g} ± {error:.2g}"


def draw_spectra(
    spectra: Mapping[str, Spectrum],
    folder: pathlib.Path,
    classes: Sequence[str] | None = None,
    *,
    kernel: str = "relative",
    shared_x: bool = False,
    probes: bool = False,
) -> list[pathlib.Path]:
    """Writes density.png and, where classes were measured, ratios.png, both also as .pdf.

    Args:
      spectra: by the name to show, a row of the figure each.
      folder: created if missing.
      classes: see `chosen_groups`.
      kernel: see `imbal_jax.curvature.density.density`.
      shared_x: all panels show the same range of eigenvalues.
      probes: also draw each probe, thin.

    Raises:
      InputError: a class was not measured.
    """
    rows = {
        name: [panel(spectrum, group, kernel, probes=probes) for group in chosen_groups(name, spectrum.facts, classes)]
        for name, spectrum in spectra.items()
    }
    written = [*save_figure(density_figure(rows, shared_x=shared_x), folder / "density")]
    if any(group["class"] is not None for spectrum in spectra.values() for group in spectrum.facts["groups"]):
        figure = ratios_figure({name: spectrum.facts for name, spectrum in spectra.items()})
        written += save_figure(figure, folder / "ratios")
    return written
