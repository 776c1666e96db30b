"""Jobs under way, whoever runs them: which can start, and what follows from an exit status."""

import os
import pathlib
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from experiments.launching.jobs import INTERRUPTED, Job, Paths, locks_of, log_file, outcome_time, read_outcome
from experiments.launching.locks import is_free
from experiments.launching.plan import remaining
from experiments.launching.worker import EXIT_LOCKED
from experiments.study import ROOT
from imbal_jax.main import EXIT_INPUT, EXIT_INTERRUPTED, EXIT_NON_FINITE

FINISHED, FAILED, STOPPED = "finished", "failed", "stopped"
DIVERGED = "diverged"  # what a search learns of a learning rate, and no failure
DETERMINISTIC = (EXIT_INPUT, EXIT_NON_FINITE)  # the same would happen again
_ASKED_TO_STOP = {-number for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)}
_TAIL = 12  # lines of a failed job's log that are shown


class Result(NamedTuple):
    """What became of a job."""

    job: Job
    state: str  # FINISHED, FAILED, STOPPED or DIVERGED
    status: int | None = None  # the exit status of a failed one
    seconds: float = 0.0  # that this launcher spent on it
    attempts: int = 0  # of this launcher


@dataclass
class Pool:
    """Jobs that wait, and what became of the others.

    Attributes:
      paths: of the study.
      retries: further tries of a job that failed.
      may_diverge: whether a non-finite loss is a result, as in a search, and no failure.
      tell: receives lines to show.
      queue: jobs that wait.
    """

    paths: Paths
    retries: int
    may_diverge: bool
    tell: Callable[[str], None]
    queue: list[Job]
    results: list[Result] = field(default_factory=list)
    attempts: Counter = field(default_factory=Counter)  # that failed, by job's name
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    noticed: dict[str, float] = field(default_factory=dict)  # when a job was found to be in other hands


def take_ready(pool: Pool, most: int) -> list[tuple[Job, ...]]:
    """Takes jobs out of the queue that nobody else has; those that are settled elsewhere are settled here too.

    Finished ones are, and those that failed as they would fail here; what failed by chance is tried here too.

    Args:
      pool: the jobs.
      most: processes to take jobs for.

    Returns:
      The jobs of each process: one, or those of a group.
    """
    taken: dict[str, list[Job]] = {}
    for job in list(pool.queue):
        if len(taken) == most and job.group not in taken:
            continue
        left = remaining(pool.paths, job)
        if len(taken) == most and left is not None and left.group not in taken:
            continue  # it has left its group
        if (ready := _take(pool, job, left)) is not None:
            taken.setdefault(ready.group or ready.name, []).append(ready)
    return list(map(tuple, taken.values()))


def _take(pool: Pool, job: Job, left: Job | None) -> Job | None:
    """Takes a job out of the queue if what is left of it can start or is settled; returns what can start."""
    if left is None:
        pool.queue.remove(job)
        _settle(pool, Result(job, FINISHED))
    elif not is_free(locks_of(pool.paths, left)):
        if left.name not in pool.noticed:
            pool.noticed[left.name] = time.time()
            pool.tell(f"left to another launcher: {left.name}")
    elif (status := _failed_elsewhere(pool, left)) is not None:
        pool.queue.remove(job)
        _settle(pool, Result(left, FAILED, status))
    else:
        pool.queue.remove(job)
        return left
    return None


def _failed_elsewhere(pool: Pool, job: Job) -> int | None:
    """The exit status of the other launcher's process if it gave up since the job was seen to be in its hands."""
    noticed = pool.noticed.pop(job.name, None)
    status = read_outcome(pool.paths, job.cell, job.seeds)
    if noticed is None or status not in DETERMINISTIC:
        return None
    return status if outcome_time(pool.paths, job) >= noticed else None


def judge_exit(pool: Pool, job: Job, status: int, seconds: float) -> None:
    """Decides what follows from a worker's exit. What a group has not finished goes on job by job.

    Args:
      pool: the jobs.
      job: that the worker had.
      status: of its exit, negative of a signal.
      seconds: that it took.
    """
    if status != EXIT_LOCKED:
        pool.seconds[job.name] += seconds
    if status == 0:
        _settle(pool, Result(job, FINISHED))
    elif status == EXIT_LOCKED:
        pool.queue.append(job)
    elif status == EXIT_INTERRUPTED or status in _ASKED_TO_STOP:
        pool.tell(f"interrupted: {job.name}")
        pool.queue.append(job._replace(state=INTERRUPTED, group=""))
    elif job.group and status != EXIT_NON_FINITE:  # which may be the fault of another job of the group
        pool.tell(failure(job, status, "to be tried apart", log_file(pool.paths, job)))
        pool.queue.append(job._replace(state=INTERRUPTED, group=""))
    else:
        pool.attempts[job.name] += 1
        again = status not in DETERMINISTIC and pool.attempts[job.name] <= pool.retries
        if not again:
            _settle(pool, Result(job, FAILED, status))
            return
        what = f"to be tried again, {pool.attempts[job.name]} of {pool.retries}"
        pool.tell(failure(job, status, what, log_file(pool.paths, job)))
        pool.queue.append(job._replace(state=INTERRUPTED))


def _settle(pool: Pool, result: Result) -> None:
    """Keeps a result and tells it."""
    name = result.job.name
    tries = pool.attempts[name] + (result.state == FINISHED and pool.seconds[name] > 0)
    result = result._replace(seconds=pool.seconds[name], attempts=tries)
    if result.status == EXIT_NON_FINITE and pool.may_diverge:
        result = result._replace(state=DIVERGED)
    pool.results.append(result)
    if result.state == FAILED:
        assert result.status is not None
        elsewhere = "" if pool.seconds[name] else " under another launcher"
        pool.tell(failure(result.job, result.status, f"given up{elsewhere}", log_file(pool.paths, result.job)))
    else:
        pool.tell(f"{result.state}: {name} {f'in {result.seconds:.0f} s' if result.seconds else 'by another launcher'}")


def failure(job: Job, status: int, what: str, log: pathlib.Path) -> str:
    """A failed job, what follows, and the last lines of its log."""
    lines = log.read_text(errors="replace").splitlines()[-_TAIL:] if log.exists() else []
    shown = "".join(f"\n  | {line}" for line in lines)
    return f"FAILED: {job.name}: {meaning(status)}; {what}; the end of {log}:{shown}"


def meaning(status: int) -> str:
    """An exit status in words."""
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    known = {EXIT_INPUT: "bad input", EXIT_NON_FINITE: "non-finite loss", EXIT_INTERRUPTED: "interrupted"}
    return f"exit status {status}" + (f", {known[status]}" if status in known else "")


def worker_environment(paths: Paths) -> dict[str, str]:
    """The environment of a worker: this project's code, and the study's compiled programs.

    Compiling takes longer than training where runs are short, and the seeds of a cell share their programs.
    """
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(paths.launch / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**cache, **os.environ, "PYTHONPATH": path}
