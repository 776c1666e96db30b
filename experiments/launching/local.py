"""Jobs on this machine: a process for each or for a group, as many at once as there are slots."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from experiments.launching.devices import Slot
from experiments.launching.jobs import INTERRUPTED, Job, Paths, log_file, outcome_time, read_outcome, write_jobs
from experiments.launching.pool import STOPPED, Pool, Result, judge_exit, take_ready, worker_environment
from imbal_jax.main import EXIT_NON_FINITE
from imbal_jax.training.interruption import StopRequest

_WORKER = "experiments.launching.worker"
_POLL_SECONDS, _LOOK_SECONDS = 0.1, 0.5  # at processes; at the files of others


class _Running(NamedTuple):
    """A process at work."""

    jobs: list[Job]  # but those settled already
    slot: Slot
    process: subprocess.Popen
    started: float  # seconds since the epoch


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
    pool = Pool(paths, retries, may_diverge, tell, list(jobs))
    free, running = list(slots), list[_Running]()
    told_to_stop, last_look = False, 0.0
    while running or (pool.queue and not stop.requested):
        ended = [each for each in running if each.process.poll() is not None]
        for each in ended:
            running.remove(each)
            free.append(each.slot)
            _reap(pool, each)
        look = time.monotonic() - last_look > _LOOK_SECONDS
        if look:
            last_look = time.monotonic()
            for each in running:
                _settle_lost(pool, each)
        if stop.requested and not told_to_stop:
            told_to_stop = True
            _forward(running, tell)
        if not stop.requested and free and pool.queue and (ended or look):
            running += [_start(pool, ready, free.pop(0)) for ready in take_ready(pool, len(free))]
        time.sleep(_POLL_SECONDS)
    return pool.results + [Result(job, STOPPED) for job in pool.queue]


def _forward(running: Sequence[_Running], tell: Callable[[str], None]) -> None:
    """Asks the workers to save and stop."""
    if running:
        tell(f"stopping: {len(running)} worker(s) asked to save")
    for each in running:
        each.process.send_signal(signal.SIGTERM)


def _start(pool: Pool, jobs: tuple[Job, ...], slot: Slot) -> _Running:
    """Starts a worker; the log of the first job has what it prints, those of the others say so."""
    command = [sys.executable, "-m", _WORKER, str(write_jobs(pool.paths, jobs)), "--with_launcher"]
    command.append(f"--cpus={','.join(map(str, slot.cpus))}")
    logs = [log_file(pool.paths, job) for job in jobs]
    for job, log in zip(jobs, logs, strict=True):
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a") as file:
            where = "" if job is jobs[0] else f", together with others, see {logs[0]}"
            print(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {job.name}, {slot.name}{where}", file=file)
    started = time.time()
    with open(logs[0], "a") as file:
        environment = {**worker_environment(pool.paths), **slot.environment}
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT, env=environment
        )
    for job in jobs:
        beside = f", together with {len(jobs) - 1} more" if len(jobs) > 1 else ""
        pool.tell(f"started: {job.name} on {slot.name}{', resumed' if job.state == INTERRUPTED else ''}{beside}")
    return _Running(list(jobs), slot, process, started)


def _reap(pool: Pool, ended: _Running) -> None:
    """Looks after a worker that has ended."""
    assert ended.process.stdin is not None
    ended.process.stdin.close()
    status, seconds = ended.process.returncode, time.time() - ended.started
    for job in ended.jobs:
        # Only some jobs of a group may have ended in a non-finite loss: each has left its own status.
        own = read_outcome(pool.paths, job.cell, job.seeds) if status == EXIT_NON_FINITE else status
        judge_exit(pool, job, status if own is None else own, seconds / len(ended.jobs))


def _settle_lost(pool: Pool, running: _Running) -> None:
    """Settles the jobs of a group at work whose loss is not finite any more, while the others go on."""
    for job in list(running.jobs) if len(running.jobs) > 1 else ():
        status = read_outcome(pool.paths, job.cell, job.seeds)
        if status == EXIT_NON_FINITE and outcome_time(pool.paths, job) >= running.started:
            running.jobs.remove(job)
            judge_exit(pool, job, status, (time.time() - running.started) / (len(running.jobs) + 1))
