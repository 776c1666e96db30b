"""Predictions for files that are decoded batch by batch: recordings and pictures."""

import pathlib
from collections.abc import Collection
from typing import Any

import jax
import numpy as np

from imbal_jax.data.dataset import Split
from imbal_jax.errors import InputError
from imbal_jax.training.loop import Best
from imbal_jax.training.programs import Programs
from imbal_jax.training.streaming import host_split


def files_in(path: pathlib.Path, endings: Collection[str]) -> list[pathlib.Path]:
    """A file, or the files of some endings in a folder, sorted.

    Raises:
      InputError: there is none.
    """
    if not path.is_dir():
        return [path]
    found = sorted(each for each in path.iterdir() if each.suffix.lower() in endings)
    if not found:
        raise InputError(f"--input: expected files of {', '.join(endings)} in {path}, found none")
    return found


def predict_streamed(programs: Programs, examples: Any, best: Best, progress: float, batch_size: int) -> np.ndarray:
    """Class probabilities of examples on the host, float32 [n, num_classes].

    Args:
      programs: of the run, compiled for one seed.
      examples: a `ClipSet` or an `ImageSet`.
      best: the parameters.
      progress: the moment of training that they are from.
      batch_size: most at once.

    Raises:
      InputError: an example cannot be decoded.
    """
    split = host_split(Split(examples, np.zeros(len(examples), np.int32)), batch_size, examples.buckets(1))
    params, model_state = best.variables["params"], best.variables["model_state"]
    found: np.ndarray | None = None
    for i, (rows, counted) in enumerate(zip(split.rows, split.counted, strict=True)):
        inputs, _, _ = split.batch(i)
        told = np.asarray(jax.device_get(programs.probabilities(params, model_state, np.float32(progress), inputs)))
        found = np.zeros((len(examples), told.shape[1]), np.float32) if found is None else found
        found[rows[counted > 0]] = told[counted > 0]
    assert found is not None
    return found
