"""One trained conditional model, evaluated at many conditions; the best of them chosen on validation, by metric."""

import itertools
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from imbal_jax.data.dataset import Split
from imbal_jax.errors import InputError, check_number
from imbal_jax.evaluation.evaluate import Scores, read_sums
from imbal_jax.reports.records import write_json
from imbal_jax.reports.tables import conditions_table
from imbal_jax.training.experiment import SELECTION, Experiment
from imbal_jax.training.loop import Best, seeds_scores, split_metrics
from imbal_jax.training.programs import Programs
from imbal_jax.training.state import join_seeds, split_seeds
from imbal_jax.types import Correction

# What a condition is chosen by, and whether less is better. Not by the corrected loss: every condition has its own.
CHOICES: Mapping[str, bool] = {
    key.removeprefix("validation/"): less for key, less in SELECTION.items() if key != "validation/loss"
}


class Evaluated(NamedTuple):
    """A split at every condition of a grid, for one seed."""

    metrics: dict[str, list[Any]]  # numbers by metric, in the order of the conditions
    scores: Scores | None  # log-odds [conditions, n]; None unless there are two classes


class Conditions(NamedTuple):
    """A seed's model at every condition of a grid."""

    names: tuple[str, ...]  # of the hyper-parameters
    conditions: np.ndarray  # float64 [conditions, k]
    validation: Evaluated | None  # None without a validation set
    test: Evaluated

    def best(self) -> dict[str, dict[str, Any]]:
        """By metric, the condition that is best on validation, the first of equals, with its values on both splits.

        Nothing without a validation set: the test set chooses nothing.
        """
        found = {}
        for name, less in CHOICES.items():
            values = [] if self.validation is None else self.validation.metrics.get(name, [])
            known = [i for i, value in enumerate(values) if value is not None and not np.isnan(value)]
            if not known:
                continue
            chosen = min(known, key=lambda i: values[i] if less else -values[i])
            found[name] = {
                "condition": self.conditions[chosen].tolist(),
                "validation": values[chosen],
                "test": self.test.metrics[name][chosen],
            }
        return found

    def tuned(self) -> dict[str, float]:
        """By "tuned/METRIC", the test metric at the condition that is best for this metric on validation."""
        return {f"tuned/{name}": found["test"] for name, found in self.best().items()}

    def report(self) -> dict[str, Any]:
        """The content of conditions.json."""
        return {
            "names": self.names,
            "conditions": self.conditions,
            "validation": None if self.validation is None else self.validation.metrics,
            "test": self.test.metrics,
            "best": self.best(),
        }


def condition_grid(correction: Correction, values: tuple[tuple[float, ...], ...]) -> np.ndarray:
    """All combinations of the values of the hyper-parameters, float64 [conditions, k], the last varying fastest.

    Args:
      correction: of the run.
      values: of each hyper-parameter; empty for no grid.

    Raises:
      InputError: there are values but the correction is not conditional, or not as many as hyper-parameters; one has
        none; or a value is out of its range.
    """
    if not values:
        return np.zeros((0, 0))
    conditional = correction.conditional
    if conditional is None:
        raise InputError("evaluation.grid: needs a conditional correction, such as conditional_vector_scaling")
    if len(values) != len(conditional.names):
        names = ", ".join(conditional.names)
        raise InputError(f"evaluation.grid: expected values of {names}, got {len(values)} tuples of values")
    for name, each, interval in zip(conditional.names, values, conditional.intervals, strict=True):
        if not each:
            raise InputError(f"evaluation.grid ({name}): expected at least one value, got none")
        for value in each:
            check_number(f"evaluation.grid ({name})", value, interval)
    return np.array(list(itertools.product(*values)), np.float64)


def evaluate_conditions(experiment: Experiment, programs: Programs, bests: list[Best]) -> list[Conditions | None]:
    """Evaluates the parameters of every seed at every condition of `evaluation.grid`; None each where there is no grid.

    Args:
      experiment: the parts of the run.
      programs: compiled for this number of seeds.
      bests: the parameters of every seed.

    Raises:
      InputError: as of `condition_grid`.
    """
    grid = condition_grid(experiment.correction, experiment.evaluation.grid)
    conditional = experiment.correction.conditional
    if conditional is None or not len(grid):
        return [None] * len(bests)
    data = experiment.data
    test = _over_grid(experiment, programs, bests, data.test, grid)
    validation: list[Any] = [None] * len(bests)
    if data.validation is not None:
        validation = _over_grid(experiment, programs, bests, data.validation, grid)
    return [Conditions(conditional.names, grid, *each) for each in zip(validation, test, strict=True)]


def _over_grid(
    experiment: Experiment, programs: Programs, bests: list[Best], split: Split, grid: np.ndarray
) -> list[Evaluated]:
    """A split at every condition, for every seed."""
    assert programs.evaluate_at is not None
    variables = programs.place(join_seeds([best.variables for best in bests]))
    placed = programs.place_split(split)
    metrics: list[dict[str, list[Any]]] = [{} for _ in bests]
    scores: list[list[Scores | None]] = [[] for _ in bests]
    for condition in grid.astype(np.float32):
        moments = [(np.float32(best.step / experiment.horizon.total_steps), condition) for best in bests]
        moment = join_seeds(moments)
        batches = programs.evaluate_at(variables["params"], variables["model_state"], moment, placed)
        of_seeds = seeds_scores(batches, len(bests))
        for i, sums in enumerate(split_seeds(read_sums(batches), len(bests))):
            for name, value in split_metrics(experiment, sums, of_seeds[i]).items():
                if value is None or isinstance(value, float):
                    metrics[i].setdefault(name, []).append(value)
            scores[i].append(of_seeds[i])
    return [Evaluated(*each) for each in zip(metrics, map(_stacked, scores), strict=True)]


def _stacked(scores: list[Scores | None]) -> Scores | None:
    """The scores of all conditions, log-odds [conditions, n]."""
    known = [each for each in scores if each is not None]
    if not known:
        return None
    return known[0]._replace(log_odds=np.stack([each.log_odds for each in known]))


def write_scores(folder: pathlib.Path, scores: Scores | None, conditions: Conditions | None) -> None:
    """Writes what a seed's model says of the test set: from these files every curve can be drawn.

    scores.npz, where there are two classes: `labels` int64 [n] and `log_odds` float32 [n] of class 1, and of a grid of
    conditions `conditions` [points, k] and `log_odds_at_conditions` float32 [points, n]. conditions.json and
    conditions.md, where there is a grid: the metrics at every condition, and the best condition by metric.

    Args:
      folder: of the seed.
      scores: on the test set, at the default condition.
      conditions: at those of the grid.
    """
    arrays: dict[str, np.ndarray] = {}
    if scores is not None:
        arrays = {
            "labels": np.asarray(scores.labels, np.int64),
            "log_odds": np.asarray(scores.log_odds, np.float32),
        }
    if conditions is not None:
        write_json(folder / "conditions.json", conditions.report())
        (folder / "conditions.md").write_text(conditions_table(conditions.names, conditions.best()), encoding="utf-8")
        if scores is not None and conditions.test.scores is not None:
            arrays["conditions"] = conditions.conditions
            arrays["log_odds_at_conditions"] = np.asarray(conditions.test.scores.log_odds, np.float32)
    if arrays:
        np.savez(folder / "scores.npz", **arrays)  # type: ignore[arg-type]
