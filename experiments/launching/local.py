"""Jobs on this machine: a process for each, as many at once as there are slots."""

import os
import pathlib
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from experiments.launching.devices import Slot
from experiments.launching.jobs import Job, Paths, locks_of, log_file, outcome_file, read_outcome, write_job
from experiments.launching.locks import is_free
from experiments.launching.plan import remaining
from experiments.launching.worker import EXIT_LOCKED
from experiments.study import ROOT
from imbal_jax.main import EXIT_INPUT, EXIT_INTERRUPTED, EXIT_NON_FINITE
from imbal_jax.training.interruption import StopRequest

FINISHED, FAILED, STOPPED = "finished", "failed", "stopped"
DIVERGED = "diverged"  # what a search learns of a learning rate, and no failure
_DETERMINISTIC = (EXIT_INPUT, EXIT_NON_FINITE)  # the same would happen again
_ASKED_TO_STOP = {-number for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)}
_WORKER = "experiments.launching.worker"
_TAIL = 12  # lines of a failed job's log that are shown
_POLL_SECONDS, _LOCK_POLL_SECONDS = 0.1, 0.5


class Result(NamedTuple):
    """What became of a job."""

    job: Job
    state: str  # FINISHED, FAILED, STOPPED or DIVERGED
    status: int | None = None  # the exit status of a failed one
    seconds: float = 0.0  # that this launcher spent on it
    attempts: int = 0  # of this launcher


class _Running(NamedTuple):
    """A process at work."""

    job: Job
    slot: Slot
    process: subprocess.Popen
    started: float


@dataclass
class _Pool:
    """Who does what at the moment."""

    paths: Paths
    retries: int
    may_diverge: bool
    tell: Callable[[str], None]
    queue: list[Job]
    free: list[Slot]
    running: list[_Running] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    attempts: Counter = field(default_factory=Counter)  # that failed, by job's name
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    noticed: dict[str, float] = field(default_factory=dict)  # when a job was found to be in other hands


def run_jobs(
    paths: Paths,
    jobs: Sequence[Job],
    slots: Sequence[Slot],
    retries: int,
    stop: StopRequest,
    *,
    may_diverge: bool = False,
    tell: Callable[[str], None] = print,
) -> list[Result]:
    """Trains jobs until all are finished or have failed, or a stop is requested.

    A job that another launcher trains is left to it and counted by what becomes of it. Bad input and a non-finite loss
    would only happen again; other failures are tried again. A worker that is asked to stop saves, and its job goes on
    when its turn comes again.

    Args:
      paths: of the study.
      jobs: to train, in this order.
      slots: a worker for each.
      retries: further tries of a job that failed.
      stop: when requested the workers are asked to save, and waited for.
      may_diverge: whether a non-finite loss is a result, as in a search, and no failure.
      tell: receives lines to show.

    Returns:
      What became of every job.
    """
    pool = _Pool(paths, retries, may_diverge, tell, list(jobs), list(slots))
    told_to_stop, last_look = False, 0.0
    while pool.running or (pool.queue and not stop.requested):
        reaped = _reap(pool, stop)
        if stop.requested and not told_to_stop:
            told_to_stop = True
            _forward(pool)
        now = time.monotonic()
        if not stop.requested and pool.free and pool.queue and (reaped or now - last_look > _LOCK_POLL_SECONDS):
            last_look = now
            _start_all(pool)
        time.sleep(_POLL_SECONDS)
    return pool.results + [Result(job, STOPPED) for job in pool.queue]


def _forward(pool: _Pool) -> None:
    """Asks the workers to save and stop."""
    if pool.running:
        pool.tell(f"stopping: {len(pool.running)} worker(s) asked to save")
    for each in pool.running:
        each.process.send_signal(signal.SIGTERM)


def _start_all(pool: _Pool) -> None:
    """Gives the free slots jobs that nobody else has."""
    for job in list(pool.queue):
        if not pool.free:
            return
        left = remaining(pool.paths, job)
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
            _start(pool, left)


def _failed_elsewhere(pool: _Pool, job: Job) -> int | None:
    """The exit status of the other launcher's process if it has failed since the job was seen to be in its hands."""
    noticed = pool.noticed.pop(job.name, None)
    status = read_outcome(pool.paths, job.cell, job.seeds)
    if noticed is None or status in (None, 0, EXIT_INTERRUPTED):
        return None
    return status if outcome_file(pool.paths, job.cell, job.seeds).stat().st_mtime >= noticed else None


def _start(pool: _Pool, job: Job) -> None:
    """Starts a worker."""
    slot = pool.free.pop(0)
    command = [sys.executable, "-m", _WORKER, str(write_job(pool.paths, job)), "--with_launcher"]
    command.append(f"--cpus={','.join(map(str, slot.cpus))}")
    log = log_file(pool.paths, job)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a") as file:
        print(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {job.name}, {slot.name}", file=file, flush=True)
        environment = worker_environment(pool.paths, slot)
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT, env=environment
        )
    pool.running.append(_Running(job, slot, process, time.monotonic()))
    pool.tell(f"started: {job.name} on {slot.name}{', resumed' if job.state == 'interrupted' else ''}")


def worker_environment(paths: Paths, slot: Slot) -> dict[str, str]:
    """The environment of a worker: its devices, this project's code, and the study's compiled programs.

    Compiling takes longer than training where runs are short, and the seeds of a cell share their programs.
    """
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(paths.launch / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**cache, **os.environ, **slot.environment, "PYTHONPATH": path}


def _reap(pool: _Pool, stop: StopRequest) -> bool:
    """Looks after the workers that have ended; returns whether there were any."""
    ended = [each for each in pool.running if each.process.poll() is not None]
    for each in ended:
        pool.running.remove(each)
        pool.free.append(each.slot)
        assert each.process.stdin is not None
        each.process.stdin.close()
        if each.process.returncode != EXIT_LOCKED:
            pool.seconds[each.job.name] += time.monotonic() - each.started
        _judge(pool, each.job, each.process.returncode)
    return bool(ended)


def _judge(pool: _Pool, job: Job, status: int) -> None:
    """Decides what follows from an exit status."""
    if status == 0:
        _settle(pool, Result(job, FINISHED))
    elif status == EXIT_LOCKED:
        pool.queue.append(job)
    elif status == EXIT_INTERRUPTED or status in _ASKED_TO_STOP:
        pool.tell(f"interrupted: {job.name}")
        pool.queue.append(job._replace(state="interrupted"))
    else:
        pool.attempts[job.name] += 1
        again = status not in _DETERMINISTIC and pool.attempts[job.name] <= pool.retries
        if not again:
            _settle(pool, Result(job, FAILED, status))
            return
        what = f"to be tried again, {pool.attempts[job.name]} of {pool.retries}"
        pool.tell(failure(job, status, what, log_file(pool.paths, job)))
        pool.queue.append(job._replace(state="interrupted"))


def _settle(pool: _Pool, result: Result) -> None:
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
