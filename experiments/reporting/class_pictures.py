"""Figures of single classes: norms of their gradients and the curvature of their losses.

Both are drawn over epochs where runs have recorded them, as the thesis's Figures 5.1 to 5.3 and Figure 3 of Rangwani et
al. 2022; the curvature at the end of training over an axis of the study where the study asks for it.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from experiments.class_curves import LABELS
from experiments.reporting.collect import CURVATURE, GRADIENT_NORMS, CellResults, Collected
from experiments.reporting.curves import number
from experiments.reporting.panels import Picture, by_setting, file_name, first_panels, mean_of, names_of
from experiments.study import CLASSES
from imbal_jax.reports.records import Record
from imbal_jax.reports.spectrum_figures import EXTREMES, ClassCurves, class_curves_figure, class_values, extremes_of


def draw_gradient_norms(collected: Collected) -> Iterator[Picture]:
    """The norm of each class's gradient over epochs, where it was recorded, for every setting."""
    for setting, cells in by_setting(collected).items():
        curves: dict[str, ClassCurves] = {}
        for method, cell in cells.items():
            records = cell.records()
            if _have(records, GRADIENT_NORMS):
                epochs, norms = class_values(records, GRADIENT_NORMS)
                curves[method] = ClassCurves(epochs, {GRADIENT_NORMS: np.where(norms > 0, norms, np.nan)})
        if curves:
            shown, told = first_panels(curves)
            figure = class_curves_figure(shown, {GRADIENT_NORMS: LABELS["contribution"]}, *_classes(cells, shown))
            title = f"Norm of each class's gradient of the final layer{f', {setting}' if setting else ''}."
            yield Picture(file_name("gradient_norms", setting), title + told, figure)


def draw_curvature(collected: Collected) -> Iterator[Picture]:
    """Both ends of the spectrum of each class's Hessian over epochs, where they were recorded, for every setting."""
    for setting, cells in by_setting(collected).items():
        recorded = {method: cell.records() for method, cell in cells.items()}
        curves = {method: extremes_of(seeds) for method, seeds in recorded.items() if _have(seeds, CURVATURE)}
        if any(len(each.epochs) > 1 for each in curves.values()):  # a single epoch is no course of training
            shown, told = first_panels(curves)
            figure = class_curves_figure(shown, EXTREMES, *_classes(cells, shown))
            title = f"Curvature of each class's loss over training{f', {setting}' if setting else ''}."
            yield Picture(file_name("curvature", setting), title + told, figure)


def draw_class_curves(collected: Collected) -> Iterator[Picture]:
    """The curvature at the end of training over an axis, a line for every class, where the study asks for it."""
    labels = collected.study.tables[0].labels if collected.study.tables else {}
    for curve in collected.study.curves:
        groups: dict[str, dict[str, CellResults]] = {}
        for cell in collected.cells if curve.lines == CLASSES else ():
            if _have(cell.records(), CURVATURE) and (curve.where is None or curve.where(cell.cell)):
                rest = [labels.get(value, f"{name} = {value}") for name, value in cell.cell.items() if name != curve.x]
                groups.setdefault(", ".join(rest), {})[cell.cell[curve.x]] = cell
        found = {title: ends_over_axis(cells) for title, cells in groups.items()}
        curves = {title or "all": each for title, each in found.items() if each is not None}
        if curves:
            shown, told = first_panels(curves)
            panels = {metric: EXTREMES[metric] for metric in curve.metrics}
            known = _classes(next(iter(groups.values())), shown)
            figure = class_curves_figure(shown, panels, *known, x_label=curve.x)
            title = f"{curve.title}: mean and standard error over the seeds that all values of {curve.x} have."
            yield Picture(curve.name, title + told, figure)


def ends_over_axis(cells: dict[str, CellResults]) -> ClassCurves | None:
    """Both ends of each class's spectrum at the last epoch that has them, by the number that each cell stands for.

    Args:
      cells: with records of it, by their value of the axis.

    Returns:
      Curves with the values of the axis in place of epochs, ascending, those that are numbers; None where the cells
      have no seed in common.
    """
    placed = {number(value): cell.records_by_seed() for value, cell in cells.items()}
    records = {place: of_seeds for place, of_seeds in placed.items() if place is not None}
    seeds = sorted(set.intersection(*map(set, records.values()))) if records else []
    if not seeds:
        return None
    places = sorted(records)
    ends = [extremes_of([records[place][seed] for seed in seeds]) for place in places]
    values = {key: np.stack([each.values[key][:, -1] for each in ends], axis=1) for key in EXTREMES}
    doubtful = {key: np.stack([each.doubtful[key][:, -1] for each in ends], axis=1) for key in EXTREMES}
    return ClassCurves(np.array(places), values, doubtful)


def _have(seeds: Sequence[Sequence[Record]], key: str) -> bool:
    """Whether every seed has records of something."""
    return bool(seeds) and all(any(each.get(key) is not None for each in records) for records in seeds)


def _classes(
    cells: dict[str, CellResults], curves: dict[str, ClassCurves]
) -> tuple[tuple[str, ...], Sequence[float] | None]:
    """The names of the classes of curves, and their training examples where they are known."""
    counts = mean_of(next(iter(cells.values())), "class_counts")
    size = next(iter(next(iter(curves.values())).values.values())).shape[2]
    return names_of(cells, size), None if counts is None else counts.tolist()
