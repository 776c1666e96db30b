"""What the runs of a study have left in their folders: results by seed, and under what conditions they were made.

A study's folder holds runs/CELL/RUN/, ordinary run folders; see `experiments.seeds` for which seeds are finished.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from experiments.seeds import finished_seeds, result_file
from experiments.study import Cell, Study, cell_name
from imbal_jax.errors import InputError
from imbal_jax.reports.records import Record, read


class CellResults(NamedTuple):
    """What is known of one cell."""

    cell: Cell
    results: dict[int, dict[str, Any]]  # the content of result.json by seed, ascending
    folders: dict[int, pathlib.Path]  # the run folder of each of these seeds

    @property
    def runs(self) -> list[pathlib.Path]:
        """The run folders that the results are from, each once."""
        return list(dict.fromkeys(self.folders.values()))

    def records_by_seed(self) -> dict[int, list[Record]]:
        """The records of training of each finished seed that has them."""
        paths = {seed: result_file(run, seed).with_name("metrics.jsonl") for seed, run in self.folders.items()}
        return {seed: read(path) for seed, path in paths.items() if path.exists()}

    def records(self) -> list[list[Record]]:
        """The same without the seeds."""
        return list(self.records_by_seed().values())


class Collected(NamedTuple):
    """A study with the results there are."""

    study: Study
    folder: pathlib.Path  # DIR/STUDY
    seeds: tuple[int, ...]  # asked for
    cells: list[CellResults]  # in the order of the study


def collect(study: Study, workdir: pathlib.Path, seeds: Sequence[int] | None = None) -> Collected:
    """Reads the results of every cell.

    Args:
      study: the study.
      workdir: where its folder lies.
      seeds: to read; by default all there are, of which those of the study are asked for.

    Raises:
      InputError: the study has no folder yet, or a result in it cannot be read.
    """
    folder = workdir / study.name
    if not folder.is_dir():
        raise InputError(
            f"--workdir: expected the folder of the study {study.name!r} in {workdir}, found none;"
            f" python -m experiments.launch {study.name} --workdir={workdir} trains it"
        )
    cells = [_read_cell(folder / "runs" / cell_name(cell), cell, seeds) for cell in study.cells()]
    return Collected(study, folder, tuple(study.seeds if seeds is None else seeds), cells)


def _read_cell(folder: pathlib.Path, cell: Cell, seeds: Sequence[int] | None) -> CellResults:
    """The finished seeds of a cell, of those asked for."""
    found = {seed: run for seed, run in finished_seeds(folder).items() if seeds is None or seed in seeds}
    return CellResults(cell, {seed: read_object(result_file(run, seed)) for seed, run in found.items()}, found)


def read_object(path: pathlib.Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
      InputError: there is none; the file is named.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"--workdir: cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"--workdir: expected an object in {path}, got a {type(value).__name__}")
    return value
