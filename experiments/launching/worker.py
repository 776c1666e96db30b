"""Trains one job or a group, under their locks: python -m experiments.launching.worker JOBS.json [--cpus=0,1] ...

The exit status is that of `imbal_jax.main`: 0 done, 2 bad input, 3 non-finite loss in a job, 85 interrupted and saved;
and 75 where another process has one of the runs or has finished it. Each job's own is left in a file, for launchers to
read.
"""

import argparse
import json
import os
import pathlib
import signal
import sys
import threading
from typing import Any

from experiments.launching.locks import held
from experiments.seeds import finished_seeds
from imbal_jax.main import EXIT_NON_FINITE, guarded
from imbal_jax.training.interruption import StopRequest

EXIT_LOCKED = 75  # another process has the run or one of its seeds, or has finished it
_OF_A_PATH = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)


def run(arguments: list[str]) -> int:
    """Trains the job in a file; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("jobs", type=pathlib.Path)
    parser.add_argument("--cpus", default="", metavar="0,1", help="cores to run on; all by default")
    parser.add_argument("--with_launcher", action="store_true", help="stop when standard input ends")
    options = parser.parse_args(arguments)
    stop = StopRequest().install()  # first: a signal during the imports must not be lost
    if options.with_launcher:
        threading.Thread(target=_stop_at_end_of_input, daemon=True).start()
    if options.cpus and hasattr(os, "sched_setaffinity"):
        # Before jax is imported: its thread pools have as many threads as there are cores.
        os.sched_setaffinity(0, {int(cpu) for cpu in options.cpus.split(",")})
    return run_jobs(json.loads(options.jobs.read_text())["jobs"], stop)


def run_jobs(jobs: list[dict[str, Any]], stop: StopRequest) -> int:
    """Trains jobs if nobody else trains one of them.

    Args:
      jobs: see `experiments.launching.jobs.write_jobs`.
      stop: asks for an early end.

    Returns:
      The exit status, EXIT_LOCKED where somebody else does or did.
    """
    with held([pathlib.Path(path) for job in jobs for path in job["locks"]]) as got:
        if not got or any(_nothing_to_do(job) for job in jobs):
            return EXIT_LOCKED
        status, own = 1, dict[str, int]()
        try:
            status = guarded(lambda _: _attempt(jobs, stop, own), [])
        finally:  # also of an exception, which is a failure
            for job in jobs:
                _record(pathlib.Path(job["outcome"]), own.get(job["name"], status))
        return status


def _attempt(jobs: list[dict[str, Any]], stop: StopRequest, own: dict[str, int]) -> int:
    """`_train`; an error of the machine, unlike that of a path, may be chance and is not told as bad input."""
    try:
        return _train(jobs, stop, own)
    except OSError as error:
        if isinstance(error, _OF_A_PATH):
            raise
        print(f"error: {error.filename or jobs[0]['folder']}: {error.strerror or error}", file=sys.stderr)
        return 1


def _train(jobs: list[dict[str, Any]], stop: StopRequest, own: dict[str, int]) -> int:
    """Trains the runs to their ends; returns the exit status, and adds every job's own by its name."""
    from ml_collections import ConfigDict  # jax and everything else: after the cores have been chosen

    from imbal_jax.build import build_experiment, build_schedule
    from imbal_jax.errors import NonFiniteLossError
    from imbal_jax.reports.records import plain
    from imbal_jax.resolve import completed, resolve
    from imbal_jax.training.members import Run
    from imbal_jax.training.run import train_together

    configs = [resolve(ConfigDict(job["config"])) for job in jobs]
    experiment = build_experiment(configs[0])
    schedules = [build_schedule(config, experiment.horizon) for config in configs]
    runs = [
        Run(plain(config.to_dict()), pathlib.Path(job["folder"]), schedule)
        for job, config, schedule in zip(jobs, configs, schedules, strict=True)
    ]

    def tell_lost(run: int, error: NonFiniteLossError) -> None:
        own[jobs[run]["name"]] = EXIT_NON_FINITE
        _tell_lost(jobs[run], error, shared=run > 0)

    train_together(experiment, runs, stop, completed, tell_lost)
    for job in jobs:
        own.setdefault(job["name"], 0)
    return max(own.values())


def _tell_lost(job: dict[str, Any], error: Exception, *, shared: bool) -> None:
    """Tells at once why a job is given up, also in its own log where it shares the first one's, and its status."""
    line = f"error: {job['name']}: {error}"
    print(line, file=sys.stderr, flush=True)
    if shared:
        with open(job["log"], "a") as file:
            print(line, file=file)
    _record(pathlib.Path(job["outcome"]), EXIT_NON_FINITE)


def _nothing_to_do(job: dict[str, Any]) -> bool:
    """Whether the run is finished, or another run of the cell has finished one of its seeds, since it was planned."""
    folder = pathlib.Path(job["folder"])
    runs = [run for seed, run in finished_seeds(folder.parent).items() if seed in job["seeds"]]
    finished = len(runs) == len(job["seeds"]) and (folder / "summary.json").exists()
    return finished or any(run != folder for run in runs)


def _record(path: pathlib.Path, status: int) -> None:
    """Leaves the exit status for other launchers."""
    from imbal_jax.reports.records import write_json

    write_json(path, {"status": status, "process": os.getpid()})


def _stop_at_end_of_input() -> None:
    """Asks this process to save and stop when the launcher, which holds the other end, is gone."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
