"""Jobs, and where what belongs to them lies.

A study lies in DIR/STUDY: its runs in runs/CELL/RUN, see `experiments.seeds`; what belongs to the launcher in launch/.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from experiments.seeds import run_name, seeds_in
from imbal_jax.main import EXIT_NON_FINITE
from imbal_jax.reports.records import write_json

PENDING = "pending"  # nothing of it has been trained
INTERRUPTED = "interrupted"  # begun, to be resumed


class Paths(NamedTuple):
    """Where the parts of a study lie."""

    root: pathlib.Path  # DIR/STUDY

    @property
    def runs(self) -> pathlib.Path:
        """The run folders, CELL/RUN."""
        return self.root / "runs"

    @property
    def launch(self) -> pathlib.Path:
        """What belongs to the launcher."""
        return self.root / "launch"


class Job(NamedTuple):
    """One run to be trained, by one process."""

    cell: str  # its folder
    seeds: tuple[int, ...]
    state: str  # PENDING or INTERRUPTED
    config: dict[str, Any]  # resolved

    @property
    def run(self) -> str:
        """The run's folder in the cell's."""
        return run_name(self.seeds)

    @property
    def name(self) -> str:
        """As it is told."""
        return f"{self.cell} {self.run}"


def run_folder(paths: Paths, job: Job) -> pathlib.Path:
    """Where a job's run lies."""
    return paths.runs / job.cell / job.run


def log_file(paths: Paths, job: Job) -> pathlib.Path:
    """What the processes that trained a job have printed."""
    return paths.launch / "logs" / job.cell / f"{job.run}.log"


def outcome_file(paths: Paths, cell: str, seeds: Sequence[int]) -> pathlib.Path:
    """The exit status of the last process that trained a run to its end or to a failure."""
    return paths.launch / "outcomes" / cell / f"{run_name(seeds)}.json"


def read_outcome(paths: Paths, cell: str, seeds: Sequence[int]) -> int | None:
    """The exit status in a run's outcome file; None where there is none."""
    try:
        return json.loads(outcome_file(paths, cell, seeds).read_text())["status"]
    except FileNotFoundError:
        return None


def diverged_run(paths: Paths, cell: str, seed: int) -> bool:
    """Whether a run with this seed has ended in a non-finite loss."""
    groups = (seeds_in(file.stem) for file in (paths.launch / "outcomes" / cell).glob("seeds_*.json"))
    return any(group and seed in group and read_outcome(paths, cell, group) == EXIT_NON_FINITE for group in groups)


def locks_of(paths: Paths, job: Job) -> list[pathlib.Path]:
    """A lock for every seed: launchers that group seeds differently must not train the same one either."""
    return [paths.launch / "locks" / job.cell / f"seed_{seed}.lock" for seed in job.seeds]


def write_job(paths: Paths, job: Job) -> pathlib.Path:
    """Writes what a worker needs to know, see `experiments.launching.worker`; returns the file."""
    file = paths.launch / "jobs" / job.cell / f"{job.run}.json"
    told = {
        "name": job.name,
        "seeds": job.seeds,
        "folder": run_folder(paths, job),
        "locks": locks_of(paths, job),
        "outcome": outcome_file(paths, job.cell, job.seeds),
        "config": job.config,
    }
    write_json(file, told)
    return file
