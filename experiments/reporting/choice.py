"""Which of several candidates a place of a table shows: runs that differ along one axis, such as the settings tried.

A candidate counts once it has every seed that is asked for. On validation, the one with the best mean over seeds of the
metric there is shown, with what its results say of the test set. On the test set, as in papers that hold nothing out,
it is the one whose mean there is the best; a model with a grid of conditions is then a candidate at each of them.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from experiments.reporting.collect import CellResults, read_object
from experiments.seeds import result_file
from experiments.study import Choice
from experiments.validation_scores import VALIDATION, validation_score
from imbal_jax.reports.summaries import mean_and_standard_error


class Candidate(NamedTuple):
    """A model that a place of a table may show."""

    found: CellResults
    values: dict[int, Any]  # of the test set, by seed
    score: float  # that it is chosen by
    condition: str = ""  # in words, where it is one of a grid


class Chosen(NamedTuple):
    """What is shown."""

    found: CellResults
    values: dict[int, Any]  # by seed; none where no candidate is complete
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
    yield Candidate(cell, {seed: result.get(key) for seed, result in cell.results.items()}, score)


def validation_mean(cell: CellResults, metric: str) -> float:
    """The mean over seeds of a metric of validation, NaN where a seed has none."""
    return _mean([validation_score(result_file(run, seed).parent, metric) for seed, run in cell.folders.items()])


def _on_test(cell: CellResults, metric: str, key: str) -> Iterator[Candidate]:
    """A cell by its mean on the test set, at every condition where there is a grid."""
    paths = {seed: result_file(run, seed).with_name("conditions.json") for seed, run in cell.folders.items()}
    if not all(path.exists() for path in paths.values()):
        values = {seed: result.get(key) for seed, result in cell.results.items()}
        yield Candidate(cell, values, _mean(list(values.values())))
        return
    grids = {seed: read_object(path) for seed, path in paths.items()}
    first, name = next(iter(grids.values())), metric.partition("/")[2]
    for i, condition in enumerate(first["conditions"]):
        values = {seed: grid["test"].get(name, {i: None})[i] for seed, grid in grids.items()}
        words = ", ".join(f"{option} {value:g}" for option, value in zip(first["names"], condition, strict=True))
        yield Candidate(cell, values, _mean(list(values.values())), words)


def _mean(values: Sequence[float | None]) -> float:
    """Their mean, NaN where one is no number."""
    if not values or any(value is None for value in values):
        return math.nan
    return float(mean_and_standard_error([float(value) for value in values if value is not None])[0])
