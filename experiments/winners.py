"""The winners of a search: the best values of its searched axes for every combination of the others.

  python -m experiments.launch search_digits --workdir=runs
  python -m experiments.winners search_digits --workdir=runs

The launcher does the same at the end of a search. The winners are written to DIR/STUDY/winners.json, and other studies
read them by `winning_options`, see `experiments/studies/tuned_digits.py`.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.launching.jobs import Paths, diverged_run
from experiments.seeds import finished_seeds, result_file
from experiments.study import Cell, Study, cell_name, load_study
from experiments.validation_scores import validation_score
from imbal_jax.errors import InputError
from imbal_jax.main import guarded
from imbal_jax.reports.records import write_json
from imbal_jax.reports.summaries import mean_and_standard_error

DIVERGED = "diverged"
_FILE = "winners.json"


def winning_options(workdir: pathlib.Path, search: str, cell: Mapping[str, str]) -> dict[str, str]:
    """The leaves that a search has chosen, for another study's `overrides_of`.

    Args:
      workdir: the folder of all studies.
      search: the study that searched.
      cell: of the other study; the axes that the search names too decide.

    Returns:
      Text by dotted key, such as {"schedule.learning_rate": "0.05"}.

    Raises:
      InputError: the search has not been run, or nothing in it is for this cell.
    """
    path = workdir / search / _FILE
    try:
        winners = json.loads(path.read_text())["winners"]
    except FileNotFoundError:
        raise InputError(
            f"winners of {search}: expected {path}, found none; first run python -m experiments.launch {search}"
            f" --workdir={workdir}"
        ) from None
    for winner in winners:
        if winner["of"].items() <= cell.items():
            return winner["options"]
    have = ", ".join(cell_name(winner["of"]) for winner in winners)
    raise InputError(f"winners of {search}: expected one for {cell_name(cell)}, {path} has {have or 'none'}")


def find_winners(study: Study, paths: Paths, seeds: tuple[int, ...]) -> list[dict[str, Any]]:
    """The best candidate of every group of cells that differ only along searched axes.

    A candidate of which a seed diverged cannot win. The first of equals wins.

    Args:
      study: with a search.
      paths: of the study.
      seeds: that every candidate must have been trained with.

    Returns:
      For each group "of" (its values on the other axes), the winning "cell", its "options", "mean" and
      "standard_error", and the mean of each of the "candidates".

    Raises:
      InputError: the study searches nothing, a candidate is not finished, or all of a group diverged.
    """
    if study.search is None:
        raise InputError(f"STUDY: expected a study with a search, {study.name} has none")
    groups: dict[str, list[tuple[Cell, Any, Any]]] = {}
    others: dict[str, Cell] = {}
    for cell in study.cells():
        of = {name: value for name, value in cell.items() if name not in study.search.axes}
        others[cell_name(of)] = of
        groups.setdefault(cell_name(of), []).append((cell, *_score(study, paths, cell, seeds)))
    return [_winner(study, others[name], candidates) for name, candidates in groups.items()]


def _winner(study: Study, of: Cell, candidates: list[tuple[Cell, Any, Any]]) -> dict[str, Any]:
    """The best of a group."""
    assert study.search is not None
    sign = -1 if study.search.largest else 1
    finite = [each for each in candidates if each[1] != DIVERGED]
    if not finite:
        raise InputError(f"winners of {study.name}: expected a run of {cell_name(of)} that does not diverge, got none")
    cell, mean, error = min(finite, key=lambda each: sign * each[1])
    return {
        "of": of,
        "cell": cell,
        "options": searched_options(study, cell),
        "mean": mean,
        "standard_error": error,
        "candidates": {cell_name(each): value for each, value, _ in candidates},
    }


def searched_options(study: Study, cell: Cell) -> dict[str, str]:
    """The leaves of a cell that neither the study nor the axes that are not searched set."""
    assert study.search is not None
    kept = {axis.key for axis in study.axes if axis.name not in study.search.axes}
    return {key: value for key, value in study.options(cell).items() if key not in kept | study.overrides.keys()}


def _score(study: Study, paths: Paths, cell: Cell, seeds: tuple[int, ...]) -> tuple[Any, Any]:
    """Mean and standard error over seeds of the metric, see `validation_score`; or that a seed diverged."""
    assert study.search is not None
    name, values = cell_name(cell), []
    found = finished_seeds(paths.runs / name)
    if any(diverged_run(paths, name, seed) for seed in seeds if seed not in found):
        return DIVERGED, None
    if missing := [seed for seed in seeds if seed not in found]:
        raise InputError(f"winners of {study.name}: expected results of {name}, seeds {missing} are missing")
    for seed in seeds:
        folder = result_file(found[seed], seed).parent
        value = validation_score(folder, study.search.metric)
        if value is None:
            raise InputError(f"search: expected {study.search.metric} in {folder / 'metrics.jsonl'}, found none")
        values.append(value)
    mean, error = mean_and_standard_error(values)
    return float(mean), None if error is None else float(error)


def write_winners(study: Study, paths: Paths, seeds: tuple[int, ...]) -> None:
    """Writes winners.json and prints the winners.

    Raises:
      InputError: see `find_winners`.
    """
    winners = find_winners(study, paths, seeds)
    assert study.search is not None
    path = paths.root / _FILE
    write_json(path, {**study.search._asdict(), "seeds": seeds, "winners": winners})
    extreme = "largest" if study.search.largest else "smallest"
    table = Table(title=f"{extreme} {study.search.metric}, {len(seeds)} seeds")
    for column in ("of", *study.search.axes, "mean"):
        table.add_column(column, overflow="fold")
    for winner in winners:
        error = "" if winner["standard_error"] is None else f" ± {winner['standard_error']:.2g}"
        values = [winner["cell"][axis] for axis in study.search.axes]
        table.add_row(Text(cell_name(winner["of"]) or "all"), *values, f"{winner['mean']:.4f}{error}")
    Console().print(table)
    print(f"written to {path}")


def run(arguments: list[str]) -> int:
    """Reads a search's runs and writes its winners; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.winners",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("study", metavar="STUDY")
    parser.add_argument("--workdir", type=pathlib.Path, default="runs", metavar="DIR", help="default: runs")
    options = parser.parse_args(arguments)
    workdir = options.workdir.expanduser().absolute()
    study = load_study(options.study, workdir)
    write_winners(study, Paths(workdir / study.name), study.seeds)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(run, sys.argv[1:]))
