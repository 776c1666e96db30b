"""Trains the cells of a study with every seed, on this machine or on a SLURM cluster.

  python -m experiments.launch quick --workdir=runs
  python -m experiments.launch quick --only=method=baseline,ief --seeds=0 --config.training.epochs=2 --workdir=runs/try
  python -m experiments.launch my_study.py --workdir=runs --estimate
  python -m experiments.launch quick --executor=slurm --slurm=partition=gpu --slurm=gpus_per_node=1 --workers=8

The runs lie in DIR/STUDY/runs. Finished ones are skipped and interrupted ones resumed, so the same command again goes
on after a kill; two launchers on one folder share the work. Failures are shown at once with the end of their log; what
may have been chance (a crash, want of memory) is tried again, bad input and a non-finite loss are not. Ctrl-C or
SIGTERM lets every worker save first.

exit status: 0 all finished, 1 something failed, 2 bad input, 85 interrupted: the same command continues
"""

import argparse
import pathlib
import sys
from collections.abc import Mapping
from typing import NamedTuple

from ml_collections import ConfigDict
from rich.console import Console

from experiments.launching import devices, local, slurm
from experiments.launching.estimate import tell_estimate
from experiments.launching.grouping import decide
from experiments.launching.jobs import Job, Paths, diverged_run
from experiments.launching.plan import Plan, Together, check_stored, make_plan, resolved_cells
from experiments.launching.pool import DIVERGED, FAILED, STOPPED, Result
from experiments.launching.status import status_table, write_status
from experiments.study import Study, load_study, select, study_names
from experiments.winners import write_winners
from imbal_jax.config import parse_overrides
from imbal_jax.errors import InputError
from imbal_jax.main import guarded
from imbal_jax.training.interruption import Interrupted, StopRequest

_SLURM = "partition, time (minutes), cpus_per_task, gpus_per_node, mem, ... as in submitit; repeatable"


class Options(NamedTuple):
    """What the command line asks for."""

    study: Study
    paths: Paths
    seeds: tuple[int, ...]
    overrides: Mapping[str, str]
    executor: str
    slurm: Mapping[str, str]
    workers: int | None
    retries: int
    dry_run: bool
    estimate: bool


def parse(arguments: list[str]) -> Options:
    """Reads and checks the command line.

    Raises:
      InputError: an argument is unknown or out of range, or the study is none.
    """
    parser = argparse.ArgumentParser(
        prog="python -m experiments.launch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("study", metavar="STUDY", help=f"a study's file, or one of {', '.join(study_names())}")
    parser.add_argument("--executor", choices=("local", "slurm"), default="local", help="where (default: local)")
    parser.add_argument("--workers", type=int, metavar="N", help="runs at once (default: by the GPUs or cores)")
    parser.add_argument("--seeds", metavar="0,1,2", help="instead of the study's")
    parser.add_argument("--workdir", type=pathlib.Path, default="runs", metavar="DIR", help="default: runs")
    parser.add_argument("--dry-run", action="store_true", help="show what would be trained, and train nothing")
    parser.add_argument("--estimate", action="store_true", help="time a few steps, predict time and memory, stop there")
    parser.add_argument("--only", action="append", default=[], metavar="AXIS=V1,V2", help="some cells; repeatable")
    parser.add_argument("--slurm", action="append", default=[], metavar="KEY=VALUE", help=_SLURM)
    parser.add_argument("--retries", type=int, default=1, metavar="N", help="of a failed run (default: 1)")
    given, rest = parser.parse_known_args(arguments)
    for name, least in (("workers", 1), ("retries", 0)):
        value = getattr(given, name)
        if value is not None and value < least:
            raise InputError(f"--{name}: expected a whole number >= {least}, got {value}")
    workdir = given.workdir.expanduser().absolute()
    study = select(load_study(given.study, workdir), parse_only(given.only))
    if not any(True for _ in study.cells()):
        raise InputError(f"--only: expected at least one cell, got none with {' '.join(given.only)}")
    return Options(
        study=study,
        paths=Paths(workdir / study.name),
        seeds=study.seeds if given.seeds is None else parse_seeds(given.seeds),
        overrides=parse_overrides(rest),
        executor=given.executor,
        slurm=parse_slurm(given.slurm, given.executor),
        workers=given.workers,
        retries=given.retries,
        dry_run=given.dry_run,
        estimate=given.estimate,
    )


def parse_only(texts: list[str]) -> dict[str, tuple[str, ...]]:
    """Reads "axis=v1,v2" of every --only.

    Raises:
      InputError: a text is something else, or names an axis again.
    """
    only: dict[str, tuple[str, ...]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals or not values or name in only:
            raise InputError(f"--only: expected AXIS=VALUE,VALUE with an axis once, got {text!r}")
        only[name] = tuple(values.split(","))
    return only


def parse_slurm(texts: list[str], executor: str) -> dict[str, str]:
    """Reads "key=value" of every --slurm.

    Raises:
      InputError: a text is something else, or the executor is another.
    """
    if texts and executor != "slurm":
        raise InputError(f"--slurm: expected --executor=slurm beside it, got {executor}")
    pairs = [text.partition("=") for text in texts]
    for text, (key, equals, value) in zip(texts, pairs, strict=True):
        if not key or not equals or not value:
            raise InputError(f"--slurm: expected KEY=VALUE, got {text!r}")
    return {key: value for key, _, value in pairs}


def parse_seeds(text: str) -> tuple[int, ...]:
    """Reads different whole numbers, separated by commas.

    Raises:
      InputError: the text is something else.
    """
    parts = text.split(",")
    seeds = tuple(int(part) for part in parts if part.isdecimal())
    if len(seeds) < len(parts) or len(set(seeds)) < len(seeds) or max(seeds) >= 2**32:
        raise InputError(f"--seeds: expected different whole numbers in 0..2^32-1 such as 0,1,2, got {text!r}")
    return seeds


def run(arguments: list[str]) -> int:
    """Plans and trains; returns the exit status.

    Raises:
      InputError: see `parse`, `resolved_cells` and `check_stored`.
      Interrupted: a stop was requested; all workers have saved.
    """
    options = parse(arguments)
    stop = StopRequest().install()
    configs = resolved_cells(options.study, options.seeds, options.overrides)
    if "seeds" in options.overrides:
        raise InputError("--config.seeds: expected the seeds in --seeds, got them as an override")
    check_stored(options.paths, configs)
    gpus, cpus = devices.visible_gpus(), devices.usable_cpus()
    slots = devices.divide(options.workers or devices.default_workers(gpus, cpus), gpus, cpus)
    to_group: list[str] = []

    def ask_later(cell: str) -> Together:
        to_group.append(cell)
        return Together(False, "decided when the study is launched")

    plan = make_plan(options.paths, configs, options.seeds, ask_later)
    if options.dry_run:
        _show(options, plan, {})
        return 0
    groups = _group(options, configs, to_group, slots[0])
    plan = make_plan(options.paths, configs, options.seeds, lambda cell: groups[cell])
    plan, known = _without_diverged(options, plan)
    _show(options, plan, groups)
    if options.estimate:
        tell_estimate(options.paths, plan.jobs, slots)
        return 0
    searches = options.study.search is not None
    given = (options.retries, stop)
    if options.executor == "slurm":
        where = (options.paths, plan.jobs, options.workers, options.slurm)
        results = slurm.run_jobs(*where, *given, may_diverge=searches, tell=_tell)
    else:
        results = local.run_jobs(options.paths, plan.jobs, slots, *given, may_diverge=searches, tell=_tell)
    status = _finish(options, plan, [*known, *results])
    if searches and status == 0:
        write_winners(options.study, options.paths, options.seeds)
    return status


def _group(
    options: Options, configs: Mapping[str, ConfigDict], cells: list[str], slot: devices.Slot
) -> dict[str, Together]:
    """Decides which cells' seeds are trained together; for a cluster, whose nodes are others, by the config alone."""
    if options.executor == "local":
        return decide(options.paths, configs, cells, options.seeds, slot)
    why = "nothing is measured for a cluster; --config.training.seeds_together=yes trains them together"
    return {cell: Together(configs[cell].training.seeds_together == "yes", why) for cell in cells}


def _without_diverged(options: Options, plan: Plan) -> tuple[Plan, list[Result]]:
    """A search's plan without what is known to diverge, and these results; other studies try again."""
    if options.study.search is None:
        return plan, []

    def known(job: Job) -> bool:
        return any(diverged_run(options.paths, job.cell, seed) for seed in job.seeds)

    kept = tuple(job for job in plan.jobs if not known(job))
    return plan._replace(jobs=kept), [Result(job, DIVERGED) for job in plan.jobs if known(job)]


def _tell(line: str) -> None:
    """Prints at once, also into a file."""
    print(line, flush=True)


def _show(options: Options, plan: Plan, groups: Mapping[str, Together]) -> None:
    """Prints what there is to do, and how seeds are grouped."""
    done = sum(map(len, plan.finished.values()))
    total = len(plan.finished) * len(options.seeds)
    _tell(f"{options.study.name}: {len(plan.finished)} cells x {len(options.seeds)} seeds: {done} of {total} finished")
    reasons: dict[Together, list[str]] = {}
    for cell, group in groups.items():
        reasons.setdefault(group, []).append(cell)
    for group, cells in reasons.items():
        how = "together (vmap)" if group.together else "apart"
        _tell(f"seeds {how}, {len(cells)} cell(s): {group.why}")
    if options.dry_run:
        for job in plan.jobs:
            _tell(f"{job.state}: {job.name}")


def _finish(options: Options, plan: Plan, results: list[Result]) -> int:
    """Shows and writes the status; returns the exit status.

    Raises:
      Interrupted: something was stopped.
    """
    write_status(options.paths, plan, results)
    Console().print(status_table(f"{options.study.name} in {options.paths.root}", plan, results))
    states = [result.state for result in results]
    if STOPPED in states:
        raise Interrupted(f"{states.count(STOPPED)} run(s) are not finished; the same command continues")
    return 1 if FAILED in states else 0


if __name__ == "__main__":
    sys.exit(guarded(run, sys.argv[1:]))
