"""The figures of a report: whatever the results of a study's runs can show.

Class distributions, confusion matrices and training times are drawn of all results, as the thesis's Figures 4.2 to 4.4,
C.1 to C.3 and 5.4; norms of class gradients (5.1 to 5.3) and class curvature where runs have recorded them; eigenvalue
densities where they were measured of runs; and what the study asks for, see `experiments.study.Curve`.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np

from experiments.reporting.bars import distributions_figure, times_figure
from experiments.reporting.class_pictures import draw_class_curves, draw_curvature, draw_gradient_norms
from experiments.reporting.collect import CellResults, Collected
from experiments.reporting.curves import curve_figure, left_out
from experiments.reporting.panels import (
    Picture,
    by_setting,
    config_of,
    file_name,
    first_panels,
    mean_of,
    names_of,
    told_left_out,
)
from experiments.study import CLASSES
from imbal_jax.analysis.spectrum_tables import chosen_groups, panel, read_spectrum
from imbal_jax.reports.figures import confusions_figure
from imbal_jax.reports.spectrum_figures import density_figure

SECOND_ORDER = ("empirical_fisher", "improved_empirical_fisher", "gdn", "ekfac")
CONFUSION = "/confusion"


def draw_pictures(collected: Collected) -> list[Picture]:
    """All figures that the results hold data for.

    Raises:
      InputError: a file of a run cannot be read.
    """
    drawers: tuple[Callable[[Collected], Iterator[Picture]], ...] = (
        draw_curves,
        draw_class_curves,
        draw_distributions,
        draw_confusions,
        draw_gradient_norms,
        draw_curvature,
        draw_times,
        draw_spectra,
    )
    return [picture for drawer in drawers for picture in drawer(collected)]


def draw_curves(collected: Collected) -> Iterator[Picture]:
    """Those of metrics that the study asks for."""
    labels = collected.study.tables[0].labels if collected.study.tables else {}
    for curve in collected.study.curves:
        figure = None if curve.lines == CLASSES else curve_figure(curve, collected.cells, labels)
        if figure is not None:
            told = told_left_out(left_out(curve, collected.cells))
            yield Picture(curve.name, f"{curve.title}: mean and standard error over seeds.{told}", figure)


def draw_distributions(collected: Collected) -> Iterator[Picture]:
    """The examples of each class: a panel for the training set of every setting, and one for every test set.

    A confusion matrix tells the examples of a test set. One that settings share is shown once.
    """
    training: dict[str, tuple[np.ndarray, tuple[str, ...]]] = {}
    tests: dict[str, tuple[np.ndarray, tuple[str, ...]]] = {}
    for setting, cells in by_setting(collected).items():
        cell = next(iter(cells.values()))
        if (counts := mean_of(cell, "class_counts")) is not None:
            training[setting or "training set"] = (counts, names_of(cells, len(counts)))
        for split in test_sets(cell):
            confusion = mean_of(cell, split + CONFUSION, 2)
            told = [known for title, (known, _) in tests.items() if title.startswith(f"{split} set")]
            # Means over seeds add up to whole numbers only but for rounding.
            if confusion is not None and not any(_same(known, confusion.sum(axis=1)) for known in told):
                title = ", ".join(filter(None, (f"{split} set", setting if told else "")))
                tests[title] = (confusion.sum(axis=1), names_of(cells, len(confusion)))
    if training:
        shown, told_of_others = first_panels({**training, **tests})
        caption = (
            "Examples of each class in the training and test sets; p is the number of the most frequent class over"
        )
        yield Picture(
            "class_distributions", f"{caption} that of the rarest.{told_of_others}", distributions_figure(shown)
        )


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two test sets have the same examples of each class."""
    return one.shape == other.shape and np.allclose(one, other)


def draw_confusions(collected: Collected) -> Iterator[Picture]:
    """Confusion matrices, a figure for every test set and setting and a panel for every method."""
    for setting, cells in by_setting(collected).items():
        for split in dict.fromkeys(split for cell in cells.values() for split in test_sets(cell)):
            found = {method: mean_of(cell, split + CONFUSION, 2) for method, cell in cells.items()}
            panels = {method: matrix for method, matrix in found.items() if matrix is not None}
            for number, same in enumerate(_same_shape(panels)):
                shown, told = first_panels(same)
                names = names_of(cells, len(next(iter(shown.values()))))
                title = f"Confusion matrices on the {split.replace('_', ' ')} set{f', {setting}' if setting else ''}"
                name = file_name("confusion" if split == "test" else f"confusion_{split}", setting, number)
                yield Picture(name, f"{title}: mean over seeds.{told}", confusions_figure(shown, names))


def test_sets(cell: CellResults) -> list[str]:
    """The test sets that the results of a cell have a confusion matrix of."""
    keys = dict.fromkeys(key for result in cell.results.values() for key in result)
    return [key.removesuffix(CONFUSION) for key in keys if key.endswith(CONFUSION)]


def draw_times(collected: Collected) -> Iterator[Picture]:
    """The time that an epoch of training takes."""
    panels: dict[str, dict[str, tuple[list[float], bool]]] = {}
    unknown = []
    for setting, cells in by_setting(collected).items():
        for method, cell in cells.items():
            seconds = list(cell.numbers("seconds_per_epoch").values())
            if not all(map(math.isfinite, seconds)):
                unknown.append(", ".join(filter(None, (setting, method))))
            elif seconds:
                direction = (config_of(cell).get("direction") or {}).get("name")
                panels.setdefault(setting or "all", {})[method] = (seconds, direction in SECOND_ORDER)
    if panels:
        shown, told = first_panels(panels)
        caption = "Seconds an epoch of training takes: mean and standard error over seeds; first-order methods in grey,"
        caption += f" second-order ones in blue.{told}{told_left_out(unknown)}"
        yield Picture("training_times", caption, times_figure(shown))


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
        shown, told = first_panels(rows)
        caption = "Eigenvalue density of the Hessian: all classes, the most frequent and the least frequent one."
        yield Picture("hessian_density", caption + told, density_figure(shown))


def _same_shape(matrices: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Matrices by shape, those of one shape together."""
    shapes = dict.fromkeys(matrix.shape for matrix in matrices.values())
    return [{name: each for name, each in matrices.items() if each.shape == shape} for shape in shapes]
