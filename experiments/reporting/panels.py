"""What the figures of a report share: the cells by setting and method, and how settings and classes are called."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from experiments.reporting.choice import validation_mean
from experiments.reporting.collect import CellResults, Collected
from experiments.reporting.conditions import MOST_NAMED, class_names, read_if_there
from experiments.study import Search
from imbal_jax.errors import InputError

MOST_PANELS = 16  # of one figure; of more, the first are drawn and the caption tells


class Picture(NamedTuple):
    """A figure and what it shows."""

    name: str  # of its files
    caption: str
    figure: Figure


def method_axis(collected: Collected) -> str:
    """The axis that names methods: the rows of the first table, else the last axis."""
    study = collected.study
    return study.tables[0].rows if study.tables else study.axes[-1].name


def by_setting(collected: Collected) -> dict[str, dict[str, CellResults]]:
    """The cells with results by setting (the values of the other axes) and method, both as written.

    Of a search they are the best on validation so far: figures of all candidates would be too many.
    """
    axis, search = method_axis(collected), collected.study.search
    searched = () if search is None or axis in search.axes else search.axes
    labels = collected.study.tables[0].labels if collected.study.tables else {}
    found: dict[str, dict[str, CellResults]] = {}
    for cell in _best_of(collected.cells, search, searched) if search and searched else collected.cells:
        if cell.results:
            others = {name: value for name, value in cell.cell.items() if name != axis and name not in searched}
            setting = ", ".join(labels.get(value, f"{name} = {value}") for name, value in others.items())
            found.setdefault(setting, {})[labels.get(cell.cell[axis], cell.cell[axis])] = cell
    return found


def _best_of(cells: Sequence[CellResults], search: Search, searched: Sequence[str]) -> list[CellResults]:
    """The best cell with results of each group that differs only along searched axes, the first where none is known."""
    groups: dict[tuple[str, ...], list[CellResults]] = {}
    for cell in cells:
        if cell.results:
            key = tuple(value for name, value in cell.cell.items() if name not in searched)
            groups.setdefault(key, []).append(cell)
    sign = -1 if search.largest else 1

    def order(cell: CellResults) -> float:
        score = sign * validation_mean(cell, search.metric)
        return score if math.isfinite(score) else math.inf

    return [min(group, key=order) for group in groups.values()]


def mean_of(cell: CellResults, key: str, dimensions: int = 1) -> np.ndarray | None:
    """The mean over seeds of arrays in results, None where a seed has none or the shapes differ.

    Args:
      cell: of the study.
      key: of its results.
      dimensions: of the arrays, 1 or 2.

    Raises:
      InputError: a result has something else; the file is named.
    """
    arrays = list(cell.arrays(key, dimensions).values())
    if not arrays or len(arrays) < len(cell.results):
        return None
    return np.mean(arrays, axis=0) if len({array.shape for array in arrays}) == 1 else None


def names_of(cells: dict[str, CellResults], num_classes: int) -> tuple[str, ...]:
    """The names of the classes of runs on the same data."""
    return class_names(config_of(next(iter(cells.values()))).get("data") or {}, num_classes)


def file_name(stem: str, setting: str, number: int = 0) -> str:
    """A figure's name for a setting, of letters and digits."""
    plain = "".join(character if character.isalnum() or character in ".-" else "_" for character in setting)
    parts = [stem, "_".join(filter(None, plain.split("_"))), str(number) if number else ""]
    return "_".join(filter(None, parts))


def config_of(cell: CellResults) -> dict[str, Any]:
    """The config of the first run of a cell."""
    try:
        return read_if_there(cell.runs[0] / "config.json")
    except InputError:  # a figure without it lacks no more than names
        return {}


def first_panels(panels: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """As many panels as a figure takes, and what its caption says of the others."""
    if len(panels) <= MOST_PANELS:
        return panels, ""
    return dict(list(panels.items())[:MOST_PANELS]), f" The first {MOST_PANELS} of {len(panels)} are shown."


def told_left_out(names: Sequence[str]) -> str:
    """What a caption says of cells without a point, because a mean over their other seeds would be of something else.

    Args:
      names: of the cells, such as "alpha=1,method=focal".
    """
    if not names:
        return ""
    told = "; ".join(names) if len(names) <= MOST_NAMED else f"{len(names)} cells"
    return f" Left out because a seed has no number: {told}."
