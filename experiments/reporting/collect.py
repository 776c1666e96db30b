"""What the runs of a study have left in their folders: results by seed, and under what conditions they were made.

A study's folder holds runs/CELL/RUN/, ordinary run folders; see `experiments.seeds` for which seeds are finished.
"""

import functools
import math
import pathlib
import reprlib
import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.seeds import finished_seeds, read_object, result_file
from experiments.study import Cell, Study, cell_name
from imbal_jax.errors import InputError
from imbal_jax.reports.records import Record, read

GRADIENT_NORMS, CURVATURE = "class_gradient_norms", "class_curvature"  # what records may hold of each class
_SHAPES = {1: "a list of numbers", 2: "rows of as many numbers each"}


class CellResults(NamedTuple):
    """What is known of one cell."""

    cell: Cell
    results: dict[int, dict[str, Any]]  # the content of result.json by seed, ascending
    folders: dict[int, pathlib.Path]  # the run folder of each of these seeds

    @property
    def runs(self) -> list[pathlib.Path]:
        """The run folders that the results are from, each once."""
        return list(dict.fromkeys(self.folders.values()))

    def file_of(self, seed: int) -> pathlib.Path:
        """The file of a seed's result."""
        return result_file(self.folders[seed], seed)

    def numbers(self, key: str) -> dict[int, float]:
        """What the results have under a key, by seed, NaN for null; without the seeds that lack the key.

        Raises:
          InputError: it is no number; the file is named.
        """
        having = {seed: result[key] for seed, result in self.results.items() if key in result}
        return {seed: as_number(value, self.file_of(seed), key) for seed, value in having.items()}

    def arrays(self, key: str, dimensions: int) -> dict[int, np.ndarray]:
        """The arrays that the results have under a key, by seed; without the seeds that have null or lack the key.

        Args:
          key: of the results.
          dimensions: of each array, 1 or 2.

        Raises:
          InputError: it is no such array; the file is named.
        """
        having = {seed: result[key] for seed, result in self.results.items() if result.get(key) is not None}
        return {seed: _as_array(value, dimensions, self.file_of(seed), key) for seed, value in having.items()}

    def records_by_seed(self) -> dict[int, list[Record]]:
        """Of each finished seed that has records of training, those with norms or curvature of classes."""
        paths = {seed: self.file_of(seed).with_name("metrics.jsonl") for seed in self.folders}
        return {seed: _class_records(path, path.stat().st_mtime_ns) for seed, path in paths.items() if path.exists()}

    def records(self) -> list[list[Record]]:
        """The same without the seeds."""
        return list(self.records_by_seed().values())


class Collected(NamedTuple):
    """A study with the results there are."""

    study: Study
    folder: pathlib.Path  # DIR/STUDY
    asked: tuple[int, ...]  # the seeds asked for
    cells: list[CellResults]  # in the order of the study

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that every cell should have: those asked for, then every other one that some cell has.

        The others count too because means are over all seeds there are: were they not missed in the cells that lack
        them, a mean over more seeds would look no different from the others.
        """
        others = {seed for cell in self.cells for seed in cell.results} - set(self.asked)
        return (*self.asked, *sorted(others))


def collect(
    study: Study, workdir: pathlib.Path, seeds: Sequence[int] | None = None, argument: str | None = None
) -> Collected:
    """Reads the results of every cell.

    Args:
      study: the study.
      workdir: where its folder lies.
      seeds: to read; by default all there are, of which those of the study are asked for.
      argument: that names the study on a command line, as for a file; by default its name.

    Raises:
      InputError: the study has no folder yet, or a result in it cannot be read.
    """
    folder = workdir / study.name
    if not folder.is_dir():
        raise InputError(
            f"--workdir: expected the folder of the study {study.name!r} in {workdir}, found none;"
            f" python -m experiments.launch {shlex.quote(argument or study.name)} --workdir={shlex.quote(str(workdir))}"
            " trains it"
        )
    cells = [_read_cell(folder / "runs" / cell_name(cell), cell, seeds) for cell in study.cells()]
    return Collected(study, folder, tuple(study.seeds if seeds is None else seeds), cells)


def _read_cell(folder: pathlib.Path, cell: Cell, seeds: Sequence[int] | None) -> CellResults:
    """The finished seeds of a cell, of those asked for."""
    found = {seed: run for seed, run in finished_seeds(folder).items() if seeds is None or seed in seeds}
    return CellResults(cell, {seed: read_object(result_file(run, seed)) for seed, run in found.items()}, found)


@functools.cache
def _class_records(path: pathlib.Path, changed: int) -> list[Record]:
    """The records of a file that hold something of classes: several figures want them, and the others are many.

    Args:
      path: the file.
      changed: when it last was; a file that has grown since is read again.
    """
    wanted = (GRADIENT_NORMS, CURVATURE)
    return [record for record in read(path) if any(record.get(key) is not None for key in wanted)]


def as_number(value: Any, path: pathlib.Path, key: str) -> float:
    """A number of a JSON file, NaN for null.

    Args:
      value: that the file holds.
      path: of the file, for the message.
      key: of the value, for the message.

    Raises:
      InputError: it is something else.
    """
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise unexpected(path, key, "a number", value)
    return float(value)


def _as_array(value: Any, dimensions: int, path: pathlib.Path, key: str) -> np.ndarray:
    """An array of a JSON file, NaN for null in it."""
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        array = None
    if array is None or array.ndim != dimensions or array.size == 0:
        raise unexpected(path, key, _SHAPES[dimensions], value)
    return array


def unexpected(path: pathlib.Path, key: str, expected: str, value: Any) -> InputError:
    """The error of a file that holds something else than it should."""
    return InputError(f"--workdir: {path}: {key}: expected {expected}, got {reprlib.repr(value)}")
