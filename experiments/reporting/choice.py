"""Which of several candidates a place of a table shows: runs that differ along one axis, such as the settings tried.

A candidate counts once it has every seed that is asked for. On validation, the one with the best mean over seeds of the
metric there is shown, with what its results say of the test set. On the test set, as in papers that hold nothing out,
it is the one whose mean there is the best; a model with a grid of conditions is then a candidate at each of them.
"""

import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from experiments.reporting.collect import CellResults, as_number
from experiments.seeds import read_object
from experiments.study import Choice
from experiments.validation_scores import VALIDATION, validation_score
from imbal_jax.reports.summaries import mean_and_standard_error


class Candidate(NamedTuple):
    """A model that a place of a table may show."""

    found: CellResults
    values: dict[int, float]  # of the test set, by seed; NaN where a seed has none
    score: float  # that it is chosen by
    condition: str = ""  # in words, where it is one of a grid


class Chosen(NamedTuple):
    """What is shown."""

    found: CellResults
    values: dict[int, float]  # by seed; none where no candidate is complete
    told: str  # which candidate it is
    untrained: int = 0  # candidates without all seeds


def choose(
    cells: Sequence[CellResults], choice: Choice, seeds: Sequence[int], metric: str, keys: Sequence[str], *, less: bool
) -> Chosen:
    """The best candidate, the first of equals.

    Args:
      cells: that differ along the axis of the choice; at least one.
      choice: of the table.
      seeds: that a candidate must have.
      metric: of the table, such as "test/auc".
      keys: of the results that hold it, for each cell.
      less: whether the smallest is the best.
    """
    complete = [(cell, key) for cell, key in zip(cells, keys, strict=True) if set(seeds) <= set(cell.results)]
    of_cell = _on_validation if choice.split == "validation" else _on_test
    candidates = [each for cell, key in complete for each in of_cell(cell, metric, key)]
    finite = [each for each in candidates if math.isfinite(each.score)]
    if not finite:
        return Chosen(cells[0], {}, "", len(cells) - len(complete))
    best = min(finite, key=lambda each: each.score if less else -each.score)
    told = f"{choice.axis} {best.found.cell[choice.axis]}{f' at {best.condition}' if best.condition else ''}"
    trained = "" if len(complete) == len(cells) else f", {len(complete)} of {len(cells)} trained"
    return Chosen(best.found, best.values, told + trained, len(cells) - len(complete))


def _on_validation(cell: CellResults, metric: str, key: str) -> Iterator[Candidate]:
    """A cell by its mean on validation."""
    score = validation_mean(cell, VALIDATION + metric.partition("/")[2])
    yield Candidate(cell, _values(cell, key), score)


def validation_mean(cell: CellResults, metric: str) -> float:
    """The mean over seeds of a metric of validation, NaN where a seed has none."""
    scores = [validation_score(cell.file_of(seed).parent, metric) for seed in cell.folders]
    return _mean([math.nan if score is None else score for score in scores])


def condition_files(cell: CellResults) -> dict[int, pathlib.Path]:
    """The files of a model with a grid of conditions, by seed; none unless all seeds have one."""
    paths = {seed: cell.file_of(seed).with_name("conditions.json") for seed in cell.folders}
    return paths if all(path.exists() for path in paths.values()) else {}


def _on_test(cell: CellResults, metric: str, key: str) -> Iterator[Candidate]:
    """A cell by its mean on the test set, at every condition where there is a grid."""
    paths = condition_files(cell)
    if not paths:
        values = _values(cell, key)
        yield Candidate(cell, values, _mean(list(values.values())))
        return
    grids = {seed: read_object(path) for seed, path in paths.items()}
    first, name = next(iter(grids.values())), metric.partition("/")[2]
    for i, condition in enumerate(first["conditions"]):
        found = {seed: grid["test"].get(name, {i: None})[i] for seed, grid in grids.items()}
        values = {seed: as_number(value, paths[seed], name) for seed, value in found.items()}
        words = ", ".join(f"{option} {value:g}" for option, value in zip(first["names"], condition, strict=True))
        yield Candidate(cell, values, _mean(list(values.values())), words)


def _values(cell: CellResults, key: str) -> dict[int, float]:
    """What every seed of a cell has for a key, NaN where it has none."""
    return dict.fromkeys(cell.results, math.nan) | cell.numbers(key)


def _mean(values: Sequence[float]) -> float:
    """Their mean, NaN where one is NaN or there is none."""
    return float(mean_and_standard_error(values)[0]) if values else math.nan
