"""How long a study will take and how much memory, from a few timed steps of each kind of cell."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from experiments.launching.devices import Slot
from experiments.launching.grouping import ask, signature
from experiments.launching.jobs import Job, Paths, in_processes
from experiments.launching.plan import with_seeds
from imbal_jax.reports.records import write_json


class Estimate(NamedTuple):
    """What one process will need."""

    jobs: tuple[Job, ...]  # one, or a group
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

    Jobs are of one kind if they differ only in seeds, epochs and the number of examples. A group is timed as one job
    with as many seeds as its jobs have in all. An interrupted one is counted in full. What is recorded only in some
    epochs (`record.curvature_every`) is not seen.

    Args:
      paths: of the study.
      jobs: to be trained.
      slot: where a worker computes.

    Raises:
      InputError: a measurement failed.
    """
    kinds: dict[str, list[tuple[Job, ...]]] = {}
    for together in in_processes(jobs):
        kinds.setdefault(_kind(_as_one(together)), []).append(together)
    found = {}
    for alike in kinds.values():
        timed = ask(paths, "jobs", [_as_one(together).config for together in alike], slot)
        seen: set[str] = set()
        for together, (steps_per_epoch, epochs) in zip(alike, timed["horizons"], strict=True):
            epochs *= timed["repeats"]
            seconds = job_seconds(timed, steps_per_epoch, epochs, compiled=together[0].cell in seen)
            found[together[0].name] = Estimate(together, seconds, timed["bytes"])
            seen.add(together[0].cell)
    return [found[together[0].name] for together in in_processes(jobs)]


def _as_one(together: tuple[Job, ...]) -> Job:
    """A job, or in the place of a group one that costs as much."""
    if len(together) == 1:
        return together[0]
    seeds = tuple(range(sum(len(job.seeds) for job in together)))
    return together[0]._replace(seeds=seeds, config=with_seeds(together[0].config, seeds, "yes"))


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
    # Each job of a group with its share of the time, and with the memory of all.
    runs = [(job, each.seconds / len(each.jobs), each.bytes) for each in estimates for job in each.jobs]
    for cell in dict.fromkeys(job.cell for job, _, _ in runs):
        times, sizes = zip(*((spent, size) for job, spent, size in runs if job.cell == cell), strict=True)
        table.add_row(cell, str(len(times)), f"{sum(times) / len(times):.1f}", f"{max(sizes) / 1e6:.0f}")
    workers = min(len(slots), max(1, len(estimates)))
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
        {"total": total, "runs": {job.name: {"seconds": spent, "bytes": size} for job, spent, size in runs}},
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
