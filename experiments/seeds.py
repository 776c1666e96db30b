"""Seeds: on the command line, in the names of run folders, and which of them are finished. Imports no jax.

A cell's folder holds its runs, RUN is "seeds_0" or, of seeds trained together, "seeds_0_1_2". A seed of a cell is
finished when some run of the cell has its result.json.
"""

import pathlib
from collections.abc import Sequence

from imbal_jax.errors import InputError


def parse_seeds(text: str) -> tuple[int, ...]:
    """Reads what stands behind --seeds=: different whole numbers, separated by commas.

    Raises:
      InputError: the text is something else, or a number is no seed.
    """
    parts = text.split(",")
    seeds = tuple(int(part) for part in parts if part.isdecimal())
    if len(seeds) < len(parts) or len(set(seeds)) < len(seeds):
        raise InputError(f"--seeds: expected different whole numbers separated by commas, got {text!r}")
    if max(seeds) >= 2**32:
        raise InputError(f"--seeds: expected numbers in 0..2^32-1, got {text!r}")
    return seeds


def run_name(seeds: Sequence[int]) -> str:
    """The folder of a run that trains some seeds."""
    return "seeds_" + "_".join(map(str, seeds))


def seeds_in(run: str) -> tuple[int, ...] | None:
    """The seeds of a run by its folder's name; None if the name is not one of ours."""
    parts = run.removeprefix("seeds_").split("_")
    if not run.startswith("seeds_") or not all(part.isdecimal() for part in parts):
        return None
    return tuple(map(int, parts))


def result_file(run: pathlib.Path, seed: int) -> pathlib.Path:
    """The result of one seed of a run, see `imbal_jax.training.folders`, which imports jax."""
    return run / f"seed_{seed}" / "result.json"


def cell_runs(folder: pathlib.Path) -> dict[tuple[int, ...], pathlib.Path]:
    """The runs in a cell's folder that have begun, by their seeds, in the order of their names."""
    runs = {}
    for path in sorted(folder.glob("seeds_*/config.json")):
        if (seeds := seeds_in(path.parent.name)) is not None:
            runs[seeds] = path.parent
    return runs


def finished_seeds(folder: pathlib.Path) -> dict[int, pathlib.Path]:
    """The run of every finished seed of a cell, by the seed, ascending.

    The launcher trains no seed of a cell twice. Where two runs hold a result of the same seed all the same, as when
    folders were copied together, that of the first run by name counts: of seeds_0 and seeds_0_1 the former.
    """
    found: dict[int, pathlib.Path] = {}
    for seeds, run in cell_runs(folder).items():
        for seed in seeds:
            if result_file(run, seed).exists():
                found.setdefault(seed, run)
    return dict(sorted(found.items()))
