"""How long a study will take and how much memory, from a few timed steps of each kind of cell."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from experiments.launching.devices import Slot
from experiments.launching.grouping import ask, signature
from experiments.launching.jobs import Job, Paths
from imbal_jax.reports.records import write_json


class Estimate(NamedTuple):
    """What one job will need."""

    job: Job
    seconds: float
    bytes: int


def job_seconds(timed: Mapping[str, Any], steps_per_epoch: int, epochs: int, *, compiled: bool) -> float:
    """The seconds of a job.

    Args:
      timed: a short training, see `experiments.launching.probe`.
      steps_per_epoch: of the job.
      epochs: of the job, times its seeds where they are trained one after the other.
      compiled: whether a job before has compiled the programs.
    """
    short = timed["again" if compiled else "first"]
    more_steps = steps_per_epoch * epochs - timed["steps"] * timed["epochs"]
    more_epochs = epochs - timed["epochs"]
    return timed["startup"] + max(short + more_steps * timed["step"] + more_epochs * timed["epoch"], 0.0)


def elapsed(seconds: Sequence[float], workers: int) -> float:
    """When the last job ends if each worker takes the next one as soon as it is free."""
    ends = [0.0] * workers
    for each in seconds:
        ends[ends.index(min(ends))] += each
    return max(ends)


def estimate(paths: Paths, jobs: Sequence[Job], slot: Slot) -> list[Estimate]:
    """Times a few steps of every kind of job, one after the other, and predicts all.

    Jobs are of one kind if they differ only in seeds, epochs and the number of examples. An interrupted one is counted
    in full. What is recorded only in some epochs (`record.curvature_every`) is not seen.

    Args:
      paths: of the study.
      jobs: to be trained.
      slot: where a worker computes.

    Raises:
      InputError: a measurement failed.
    """
    kinds: dict[str, list[Job]] = {}
    for job in jobs:
        kinds.setdefault(_kind(job), []).append(job)
    found = {}
    for alike in kinds.values():
        timed = ask(paths, "jobs", [job.config for job in alike], slot)
        seen: set[str] = set()
        for job, (steps_per_epoch, epochs) in zip(alike, timed["horizons"], strict=True):
            epochs *= timed["repeats"]
            seconds = job_seconds(timed, steps_per_epoch, epochs, compiled=job.cell in seen)
            found[job.name] = Estimate(job, seconds, timed["bytes"])
            seen.add(job.cell)
    return [found[job.name] for job in jobs]


def _kind(job: Job) -> str:
    """What the time of a step depends on; the profile decides only how many there are."""
    training = {key: value for key, value in job.config["training"].items() if key != "epochs"}
    sections = [section for section in job.config if section not in ("seeds", "profile", "spectrum")]
    return signature({**job.config, "training": training}, job.seeds, sections, "")


def tell_estimate(paths: Paths, jobs: Sequence[Job], slots: Sequence[Slot]) -> None:
    """Prints what is to be expected, by cell and in all, and writes launch/estimate.json.

    Raises:
      InputError: a measurement failed.
    """
    estimates = estimate(paths, jobs, slots[0])
    table = Table(title=f"estimate on {slots[0].name}, timed alone")
    for name in ("cell", "runs", "seconds a run", "memory (MB)"):
        table.add_column(name, justify="left" if name == "cell" else "right", overflow="fold")
    for cell in dict.fromkeys(each.job.cell for each in estimates):
        of_cell = [each for each in estimates if each.job.cell == cell]
        mean = sum(each.seconds for each in of_cell) / len(of_cell)
        memory = max(each.bytes for each in of_cell) / 1e6
        table.add_row(cell, str(len(of_cell)), f"{mean:.1f}", f"{memory:.0f}")
    workers = min(len(slots), max(1, len(jobs)))
    seconds = [each.seconds for each in estimates]
    total = {
        "runs": len(jobs),
        "workers": workers,
        "seconds": elapsed(seconds, workers) if seconds else 0.0,
        "worker_seconds": sum(seconds),
        "bytes": sum(sorted((each.bytes for each in estimates), reverse=True)[:workers]),
    }
    write_json(
        paths.launch / "estimate.json",
        {"total": total, "runs": {each.job.name: {"seconds": each.seconds, "bytes": each.bytes} for each in estimates}},
    )
    Console().print(table)
    told = f"{total['runs']} runs, {_duration(total['worker_seconds'])} of work"
    in_all = f"memory {total['bytes'] / 1e6:.0f} MB in all"
    print(f"{told}: {_duration(total['seconds'])} with {workers} worker(s), {in_all}")


def _duration(seconds: float) -> str:
    """Seconds for people to read."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
