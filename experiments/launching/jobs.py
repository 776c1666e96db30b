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
    """One run to be trained."""

    cell: str  # its folder
    seeds: tuple[int, ...]
    state: str  # PENDING or INTERRUPTED
    config: dict[str, Any]  # resolved
    group: str = ""  # one process trains the jobs of a group; "" for a process of its own

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
    """The exit status in a run's outcome file; None where there is none that can be read."""
    return read_notes(outcome_file(paths, cell, seeds)).get("status")


def outcome_time(paths: Paths, job: Job) -> float:
    """When a job's outcome file was written, in seconds since the epoch; it is there."""
    return outcome_file(paths, job.cell, job.seeds).stat().st_mtime


def read_notes(file: pathlib.Path) -> dict[str, Any]:
    """The mapping in a JSON file; nothing where the file is absent or damaged."""
    try:
        notes = json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return notes if isinstance(notes, dict) else {}


def diverged_run(paths: Paths, cell: str, seed: int) -> bool:
    """Whether a run with this seed has ended in a non-finite loss."""
    groups = (seeds_in(file.stem) for file in (paths.launch / "outcomes" / cell).glob("seeds_*.json"))
    return any(group and seed in group and read_outcome(paths, cell, group) == EXIT_NON_FINITE for group in groups)


def locks_of(paths: Paths, job: Job) -> list[pathlib.Path]:
    """A lock for every seed: launchers that group seeds differently must not train the same one either."""
    return [paths.launch / "locks" / job.cell / f"seed_{seed}.lock" for seed in job.seeds]


def write_jobs(paths: Paths, jobs: Sequence[Job]) -> pathlib.Path:
    """Writes what a worker needs to know of its jobs, see `experiments.launching.worker`; returns the file."""
    file = paths.launch / "jobs" / jobs[0].cell / f"{jobs[0].run}.json"
    told = [
        {
            "name": job.name,
            "seeds": job.seeds,
            "folder": run_folder(paths, job),
            "locks": locks_of(paths, job),
            "outcome": outcome_file(paths, job.cell, job.seeds),
            "log": log_file(paths, job),
            "config": job.config,
        }
        for job in jobs
    ]
    write_json(file, {"jobs": told})
    return file


def in_processes(jobs: Sequence[Job]) -> list[tuple[Job, ...]]:
    """The jobs that each process trains."""
    processes: dict[str, list[Job]] = {}
    for job in jobs:
        processes.setdefault(job.group or job.name, []).append(job)
    return list(map(tuple, processes.values()))
