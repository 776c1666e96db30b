"""Seeds: on the command line, in the names of run folders, and which of them are finished. Imports no jax.

A cell's folder holds its runs, RUN is "seeds_0" or, of seeds trained together, "seeds_0_1_2". A seed of a cell is
finished when some run of the cell has its result.json.
"""

import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from imbal_jax.errors import InputError

_LONGEST = 180  # characters of a folder's name; file systems take 255 bytes, and temporary names are longer
_PART = re.compile(r"(\d+)(?:-(\d+))?")


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
    """The folder of a run that trains some seeds: seeds_0_1_2 or, where that would be too long, seeds_0-119.

    Raises:
      InputError: the name is too long for a folder all the same.
    """
    name = "seeds_" + "_".join(map(str, seeds))
    if len(name) > _LONGEST:
        name = "seeds_" + "_".join(_ranges(seeds))
    if len(name) > _LONGEST:
        raise InputError(f"--seeds: expected fewer, or consecutive ones, to train together, got {len(seeds)}")
    return name


def _ranges(seeds: Sequence[int]) -> list[str]:
    """Seeds in their order, those that count up by one as "first-last"."""
    runs: list[list[int]] = []
    for seed in seeds:
        if runs and seed == runs[-1][-1] + 1:
            runs[-1].append(seed)
        else:
            runs.append([seed])
    return [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]


def seeds_in(run: str) -> tuple[int, ...] | None:
    """The seeds of a run by its folder's name; None if the name is not one of ours."""
    parts = [_PART.fullmatch(part) for part in run.removeprefix("seeds_").split("_")]
    if not run.startswith("seeds_") or None in parts:
        return None
    ranges = [range(int(part[1]), int(part[2] or part[1]) + 1) for part in parts if part is not None]
    return tuple(seed for seeds in ranges for seed in seeds)


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
