"""Trains one job, under its locks: python -m experiments.launching.worker JOB.json [--cpus=0,1] [--with_launcher].

The exit status is that of `imbal_jax.main`: 0 done, 2 bad input, 3 non-finite loss, 85 interrupted and saved; and 75
where another process has the run or has finished it. It is left in a file, for other launchers to read.
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
from imbal_jax.main import guarded
from imbal_jax.training.interruption import StopRequest

EXIT_LOCKED = 75  # another process has the run or one of its seeds, or has finished it


def run(arguments: list[str]) -> int:
    """Trains the job in a file; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("job", type=pathlib.Path)
    parser.add_argument("--cpus", default="", metavar="0,1", help="cores to run on; all by default")
    parser.add_argument("--with_launcher", action="store_true", help="stop when standard input ends")
    options = parser.parse_args(arguments)
    stop = StopRequest().install()  # first: a signal during the imports must not be lost
    if options.with_launcher:
        threading.Thread(target=_stop_at_end_of_input, daemon=True).start()
    if options.cpus and hasattr(os, "sched_setaffinity"):
        # Before jax is imported: its thread pools have as many threads as there are cores.
        os.sched_setaffinity(0, {int(cpu) for cpu in options.cpus.split(",")})
    return run_job(json.loads(options.job.read_text()), stop)


def run_job(job: dict[str, Any], stop: StopRequest) -> int:
    """Trains a job if nobody else does.

    Args:
      job: see `experiments.launching.jobs.write_job`.
      stop: asks for an early end.

    Returns:
      The exit status, EXIT_LOCKED where somebody else does or did.
    """
    with held([pathlib.Path(path) for path in job["locks"]]) as got:
        if not got or _nothing_to_do(job):
            return EXIT_LOCKED
        status = 1
        try:
            status = guarded(lambda _: _train(job, stop), [])
        finally:  # also of an exception, which is a failure
            _record(pathlib.Path(job["outcome"]), status)
        return status


def _train(job: dict[str, Any], stop: StopRequest) -> int:
    """Trains the run."""
    from ml_collections import ConfigDict  # jax and everything else: after the cores have been chosen

    from imbal_jax.build import build_experiment
    from imbal_jax.reports.records import plain
    from imbal_jax.resolve import completed, resolve
    from imbal_jax.training.run import train

    config = resolve(ConfigDict(job["config"]))
    train(build_experiment(config), plain(config.to_dict()), pathlib.Path(job["folder"]), stop, completed)
    return 0


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
