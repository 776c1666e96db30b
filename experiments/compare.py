"""Trains several variants of one config and prints their results side by side.

  python -m experiments.compare --config=configs/digits.py --methods=baseline,focal,ldam_drw \
    --workdir=runs/compare --config.seeds=0,1,2

Every method is the config's argument (`--config=FILE:METHOD`) and gets a run folder of its own below --workdir, where
`table.md` and `comparison.png` are written. Like any run it continues when it is killed and started again. With
--seconds=N a second table compares the validation metrics that every method had reached N seconds after its start.
"""

import argparse
import pathlib
import sys
from typing import Any

from rich.console import Console

from imbal_jax.build import build_experiment
from imbal_jax.config import load_config, parse_overrides
from imbal_jax.errors import InputError, check_number
from imbal_jax.main import guarded
from imbal_jax.reports import figures
from imbal_jax.reports.records import plain, read
from imbal_jax.reports.summaries import summarise, within_seconds
from imbal_jax.reports.tables import markdown_table, results_table
from imbal_jax.resolve import resolve
from imbal_jax.training.interruption import StopRequest
from imbal_jax.training.run import train

VALIDATION = ("validation/accuracy", "validation/balanced_accuracy", "validation/macro_f1")


def run(arguments: list[str]) -> int:
    """Trains every method and prints the table; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", required=True, metavar="FILE")
    parser.add_argument("--methods", required=True, metavar="A,B,...", help="arguments of the config, in table order")
    parser.add_argument("--workdir", required=True, type=pathlib.Path, metavar="DIR")
    parser.add_argument("--seconds", type=float, metavar="N", help="also compare after N seconds of training")
    options, rest = parser.parse_known_args(arguments)
    overrides = parse_overrides(rest)
    methods = [method for method in options.methods.split(",") if method]
    if not methods:
        raise InputError(f"--methods: expected names separated by commas, got {options.methods!r}")
    if options.seconds is not None:
        check_number("--seconds", options.seconds, "> 0")
    # All configs are checked before the first run starts.
    configs = {method: resolve(load_config(f"{options.config}:{method}"), overrides) for method in methods}
    stop, rows = StopRequest().install(), {}
    for method, config in configs.items():
        print(f"{method}:", file=sys.stderr, flush=True)
        rows[method] = train(build_experiment(config), plain(config.to_dict()), options.workdir / method, stop)
    seeds = len(next(iter(rows.values()))["seeds"])
    title = f"test set, mean ± standard error over {seeds} seeds (%)" if seeds > 1 else "test set (%)"
    Console().print(results_table(rows, title=title))
    (options.workdir / "table.md").write_text(markdown_table(rows) + "\n")
    picture, _ = figures.save_figure(figures.comparison_figure(rows), options.workdir / "comparison")
    if options.seconds is not None:
        timed = {method: reached(options.workdir / method, options.seconds) for method in rows}
        Console().print(results_table(timed, VALIDATION, title=f"validation set after {options.seconds:g} s (%)"))
        (options.workdir / "table_at_equal_time.md").write_text(markdown_table(timed, VALIDATION) + "\n")
    print(f"run folder: {options.workdir} (table.md, {picture.name}, and a folder for each method)")
    return 0


def reached(workdir: pathlib.Path, seconds: float) -> dict[str, Any]:
    """The summary over seeds of what a run had reached after a time."""
    files = sorted(workdir.glob("seed_*/metrics.jsonl"))
    return summarise({int(file.parent.name[5:]): within_seconds(read(file), seconds) for file in files})


if __name__ == "__main__":
    sys.exit(guarded(run, sys.argv[1:]))
