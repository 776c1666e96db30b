"""The figures of a report: whatever the results of a study's runs can show."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from experiments.class_curves import LABELS
from experiments.reporting.bars import distributions_figure, times_figure
from experiments.reporting.collect import CellResults, Collected, read_object
from experiments.reporting.conditions import class_names
from experiments.reporting.curves import curve_figure
from imbal_jax.analysis.spectrum_tables import chosen_groups, panel, read_spectrum
from imbal_jax.errors import InputError
from imbal_jax.reports.figures import confusions_figure
from imbal_jax.reports.spectrum_figures import ClassCurves, class_curves_figure, class_values, density_figure

SECOND_ORDER = ("empirical_fisher", "improved_empirical_fisher", "gdn", "ekfac")
MOST_PANELS = 16  # of one figure; of more, the first are drawn and the caption tells
GRADIENT_NORMS = "class_gradient_norms"


class Picture(NamedTuple):
    """A figure and what it shows."""

    name: str  # of its files
    caption: str
    figure: Figure


def draw_pictures(collected: Collected) -> list[Picture]:
    """All figures that the results hold data for.

    Raises:
      InputError: a file of a run cannot be read.
    """
    drawers: tuple[Callable[[Collected], Iterator[Picture]], ...] = (
        draw_curves,
        draw_distributions,
        draw_confusions,
        draw_gradient_norms,
        draw_times,
        draw_spectra,
    )
    return [picture for drawer in drawers for picture in drawer(collected)]


def method_axis(collected: Collected) -> str:
    """The axis that names methods: the rows of the first table, else the last axis."""
    study = collected.study
    return study.tables[0].rows if study.tables else study.axes[-1].name


def by_setting(collected: Collected) -> dict[str, dict[str, CellResults]]:
    """The cells with results by setting (the values of the other axes) and method, both as written."""
    axis = method_axis(collected)
    labels = collected.study.tables[0].labels if collected.study.tables else {}
    found: dict[str, dict[str, CellResults]] = {}
    for cell in collected.cells:
        if cell.results:
            rest = [labels.get(value, f"{name} = {value}") for name, value in cell.cell.items() if name != axis]
            method = labels.get(cell.cell[axis], cell.cell[axis])
            found.setdefault(", ".join(rest), {})[method] = cell
    return found


def draw_curves(collected: Collected) -> Iterator[Picture]:
    """Those that the study asks for."""
    labels = collected.study.tables[0].labels if collected.study.tables else {}
    for curve in collected.study.curves:
        figure = curve_figure(curve, collected.cells, labels)
        if figure is not None:
            yield Picture(curve.name, f"{curve.title}: mean and standard error over seeds.", figure)


def draw_distributions(collected: Collected) -> Iterator[Picture]:
    """The training examples of each class, a panel for every setting."""
    panels = {}
    for setting, cells in by_setting(collected).items():
        counts = mean_of(next(iter(cells.values())), "class_counts")
        if counts is not None:
            panels[setting or "training set"] = (counts, names_of(cells, len(counts)))
    if panels:
        shown, told = _first(panels)
        caption = "Training examples of each class; p is the number of the most frequent class over that of the rarest."
        yield Picture("class_distributions", caption + told, distributions_figure(shown))


def draw_confusions(collected: Collected) -> Iterator[Picture]:
    """Confusion matrices on the test set, a figure for every setting and a panel for every method."""
    for setting, cells in by_setting(collected).items():
        found = {method: mean_of(cell, "test/confusion") for method, cell in cells.items()}
        panels = {method: matrix for method, matrix in found.items() if matrix is not None}
        for number, same in enumerate(_same_shape(panels)):
            shown, told = _first(same)
            names = names_of(cells, len(next(iter(shown.values()))))
            title = f"Confusion matrices on the test set{f', {setting}' if setting else ''}: mean over seeds."
            name = file_name("confusion", setting, number)
            yield Picture(name, title + told, confusions_figure(shown, names))


def draw_gradient_norms(collected: Collected) -> Iterator[Picture]:
    """The norm of each class's gradient over epochs, where it was recorded, for every setting."""
    for setting, cells in by_setting(collected).items():
        curves: dict[str, ClassCurves] = {}
        for method, cell in cells.items():
            records = cell.records()
            if records and all(any(each.get(GRADIENT_NORMS) is not None for each in seed) for seed in records):
                epochs, norms = class_values(records, GRADIENT_NORMS)
                curves[method] = ClassCurves(epochs, {GRADIENT_NORMS: np.where(norms > 0, norms, np.nan)})
        if curves:
            shown, told = _first(curves)
            counts = mean_of(next(iter(cells.values())), "class_counts")
            size = next(iter(shown.values())).values[GRADIENT_NORMS].shape[2]
            panels = {GRADIENT_NORMS: LABELS["contribution"]}
            figure = class_curves_figure(
                shown, panels, names_of(cells, size), None if counts is None else counts.tolist()
            )
            title = f"Norm of each class's gradient of the final layer{f', {setting}' if setting else ''}."
            yield Picture(file_name("gradient_norms", setting), title + told, figure)


def draw_times(collected: Collected) -> Iterator[Picture]:
    """The time that an epoch of training takes."""
    panels: dict[str, dict[str, tuple[list[float], bool]]] = {}
    for setting, cells in by_setting(collected).items():
        for method, cell in cells.items():
            seconds = [result.get("seconds_per_epoch") for result in cell.results.values()]
            known = [value for value in seconds if value is not None]
            if known:
                direction = _config(cell).get("direction", {}).get("name")
                panels.setdefault(setting or "all", {})[method] = (known, direction in SECOND_ORDER)
    if panels:
        shown, told = _first(panels)
        caption = "Seconds an epoch of training takes: mean and standard error over seeds; first-order methods in grey,"
        yield Picture("training_times", f"{caption} second-order ones in blue.{told}", times_figure(shown))


def draw_spectra(collected: Collected) -> Iterator[Picture]:
    """Eigenvalue densities of the Hessian, of the first seed of each run that they were measured of."""
    rows = {}
    for setting, cells in by_setting(collected).items():
        for method, cell in cells.items():
            for run in cell.runs:
                places = {
                    path.parent.parent.name: path.parent for path in sorted(run.glob("spectra/*/seed_*/spectrum.json"))
                }
                for name, place in sorted(places.items()):
                    spectrum = read_spectrum(place)
                    title = ", ".join(filter(None, (setting, method, name)))
                    groups = chosen_groups(title, spectrum.facts, None)
                    rows[title] = [panel(spectrum, group, "relative") for group in groups]
    if rows:
        shown, told = _first(rows)
        caption = "Eigenvalue density of the Hessian: all classes, the most frequent and the least frequent one."
        yield Picture("hessian_density", caption + told, density_figure(shown))


def mean_of(cell: CellResults, key: str) -> np.ndarray | None:
    """The mean over seeds of numbers in results, None where a seed has none or the shapes differ."""
    values = [result.get(key) for result in cell.results.values()]
    if not values or any(value is None for value in values):
        return None
    arrays = [np.asarray(value, np.float64) for value in values]
    return np.mean(arrays, axis=0) if len({array.shape for array in arrays}) == 1 else None


def names_of(cells: dict[str, CellResults], num_classes: int) -> tuple[str, ...]:
    """The names of the classes of runs on the same data."""
    return class_names(_config(next(iter(cells.values()))).get("data") or {}, num_classes)


def file_name(stem: str, setting: str, number: int = 0) -> str:
    """A figure's name for a setting, of letters and digits."""
    plain = "".join(character if character.isalnum() or character in ".-" else "_" for character in setting)
    parts = [stem, "_".join(filter(None, plain.split("_"))), str(number) if number else ""]
    return "_".join(filter(None, parts))


def _config(cell: CellResults) -> dict[str, Any]:
    """The config of the first run of a cell."""
    try:
        return read_object(cell.runs[0] / "config.json")
    except InputError:  # a figure without it lacks no more than names
        return {}


def _same_shape(matrices: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Matrices by shape, those of one shape together."""
    shapes = dict.fromkeys(matrix.shape for matrix in matrices.values())
    return [{name: each for name, each in matrices.items() if each.shape == shape} for shape in shapes]


def _first(panels: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """As many panels as a figure takes, and what its caption says of the others."""
    if len(panels) <= MOST_PANELS:
        return panels, ""
    return dict(list(panels.items())[:MOST_PANELS]), f" The first {MOST_PANELS} of {len(panels)} are shown."
