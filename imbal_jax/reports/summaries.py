"""One summary from the results of several seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from imbal_jax.errors import InputError
from imbal_jax.reports.records import plain

# Facts about a run rather than results: they get no standard error, and where all seeds agree they stay as they are.
DESCRIPTIONS = ("num_params", "num_trainable", "class_counts")
# What `summarise` adds, and hence no name for a result.
RESERVED = ("seeds", "standard_error", "per_seed")


def mean_and_standard_error(values) -> tuple[Any, Any]:
    """Mean and standard error of the mean over seeds.

    The standard error is sqrt(sum (x - mean)^2 / (n - 1)) / sqrt(n), the n - 1 because the mean is estimated too. It
    covers the randomness of the seeds and not that of a finite test set.

    Args:
      values: one number or array per seed, [seeds, ...].

    Returns:
      The mean and its standard error, [...] float64 each; None in the place of the second for a single seed. NaN in
      one seed is NaN in both: a diverged seed must not vanish from a mean.

    Raises:
      InputError: there is no seed.
    """
    array = np.asarray(values, np.float64)
    if array.ndim == 0 or len(array) == 0:
        raise InputError(f"values: expected one value per seed, got {values!r}")
    with np.errstate(invalid="ignore"):  # an infinite loss minus its infinite mean
        mean = array.mean(axis=0)
        if len(array) == 1:
            return mean, None
        return mean, array.std(axis=0, ddof=1) / np.sqrt(len(array))


def summarise(per_seed: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Builds the content of summary.json.

    Its keys, in this order:
      num_params, num_trainable, class_counts: where the seeds report them; the value itself if they all agree, else
        the mean (`class_counts` may be drawn anew for every seed).
      seeds: the list of seeds, ascending.
      best_step: of one seed its whole number, of several the list in the order of `seeds` (a mean of steps would be
        no step).
      every other key of the seeds' results, such as test/accuracy, test/balanced_accuracy, test/macro_f1,
        test/per_class_recall, seconds_per_epoch: the mean over seeds, of lists entry by entry. What has no mean
        (strings, truth values, lists of different lengths) is kept if all seeds agree and left to `per_seed` if not.
      standard_error: the standard error of each of these means by the same key; null for one seed.
      per_seed: the results of each seed as they came, by the seed as a string.

    A mean is null where a seed lacks the value or has null or NaN for it: a mean over the other seeds would compare
    unequal things. `per_seed` has what there is.

    Args:
      per_seed: results by seed; numbers, arrays or lists of numbers (nested ones too), strings or None.

    Returns:
      A dict of plain Python values, ready for `records.write_json`.

    Raises:
      InputError: there is no seed, or a result has a reserved name.
    """
    if not per_seed:
        raise InputError("per_seed: expected the results of at least one seed, got none")
    results = {seed: plain(per_seed[seed]) for seed in sorted(per_seed)}
    keys = list(dict.fromkeys(key for result in results.values() for key in result))
    if clashes := sorted(set(keys) & set(RESERVED)):
        raise InputError(f"per_seed: {clashes} are reserved names, expected others")
    values = {key: [result.get(key) for result in results.values()] for key in keys}

    summary: dict[str, Any] = {}
    for key in DESCRIPTIONS:
        if key in values:
            of_seeds = values.pop(key)
            summary[key] = of_seeds[0] if _agree(of_seeds) else _averaged(of_seeds)[0]
    summary["seeds"] = list(results)
    if "best_step" in values:
        steps = values.pop("best_step")
        summary["best_step"] = steps[0] if len(steps) == 1 else steps
    errors = {}
    for key, of_seeds in values.items():
        if _have_mean(of_seeds):
            summary[key], errors[key] = _averaged(of_seeds)
        elif _agree(of_seeds):
            summary[key] = of_seeds[0]
    return summary | {"standard_error": errors, "per_seed": {str(seed): result for seed, result in results.items()}}


def within_seconds(records: Sequence[Mapping[str, Any]], seconds: float) -> dict[str, Any]:
    """The last record of a run that was written within a time from its start, for comparing methods at equal time.

    Args:
      records: of one seed, in order, with the "seconds" that each epoch took, validation and compilation included.
      seconds: > 0.

    Returns:
      The record, or nothing where not even the first epoch was over.
    """
    elapsed, last = 0.0, {}
    for record in records:
        elapsed += record["seconds"]
        if elapsed > seconds:
            break
        last = dict(record)
    return last


def _averaged(of_seeds: list) -> tuple[Any, Any]:
    """Mean and standard error as plain values, None for both where a seed lacks the value."""
    if any(value is None for value in of_seeds):
        return None, None
    mean, error = mean_and_standard_error(of_seeds)
    return plain(mean), plain(error)


def _have_mean(of_seeds: list) -> bool:
    """Whether the values are numbers or lists of numbers of one shape, apart from missing ones."""
    if not all(map(_numeric, of_seeds)):
        return False
    try:
        np.asarray([value for value in of_seeds if value is not None], np.float64)
    except ValueError:  # lists of different lengths
        return False
    return True


def _numeric(value: Any) -> bool:
    """Whether a plain value holds numbers (or None) only; the string "3" and True are none."""
    if isinstance(value, list):
        return all(map(_numeric, value))
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _agree(values: list) -> bool:
    """Whether all values are equal."""
    return all(value == values[0] for value in values)
