"""Jobs on this machine: a process for each, as many at once as there are slots."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from experiments.launching.devices import Slot
from experiments.launching.jobs import INTERRUPTED, Job, Paths, log_file, write_job
from experiments.launching.pool import STOPPED, Pool, Result, judge_exit, take_ready, worker_environment
from imbal_jax.training.interruption import StopRequest

_WORKER = "experiments.launching.worker"
_POLL_SECONDS, _LOCK_POLL_SECONDS = 0.1, 0.5


class _Running(NamedTuple):
    """A process at work."""

    job: Job
    slot: Slot
    process: subprocess.Popen
    started: float


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
        if stop.requested and not told_to_stop:
            told_to_stop = True
            _forward(running, tell)
        now = time.monotonic()
        if not stop.requested and free and pool.queue and (ended or now - last_look > _LOCK_POLL_SECONDS):
            last_look = now
            running += [_start(pool, job, free.pop(0)) for job in take_ready(pool, len(free))]
        time.sleep(_POLL_SECONDS)
    return pool.results + [Result(job, STOPPED) for job in pool.queue]


def _forward(running: Sequence[_Running], tell: Callable[[str], None]) -> None:
    """Asks the workers to save and stop."""
    if running:
        tell(f"stopping: {len(running)} worker(s) asked to save")
    for each in running:
        each.process.send_signal(signal.SIGTERM)


def _start(pool: Pool, job: Job, slot: Slot) -> _Running:
    """Starts a worker."""
    command = [sys.executable, "-m", _WORKER, str(write_job(pool.paths, job)), "--with_launcher"]
    command.append(f"--cpus={','.join(map(str, slot.cpus))}")
    log = log_file(pool.paths, job)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a") as file:
        print(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {job.name}, {slot.name}", file=file, flush=True)
        environment = {**worker_environment(pool.paths), **slot.environment}
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT, env=environment
        )
    pool.tell(f"started: {job.name} on {slot.name}{', resumed' if job.state == INTERRUPTED else ''}")
    return _Running(job, slot, process, time.monotonic())


def _reap(pool: Pool, ended: _Running) -> None:
    """Looks after a worker that has ended."""
    assert ended.process.stdin is not None
    ended.process.stdin.close()
    judge_exit(pool, ended.job, ended.process.returncode, time.monotonic() - ended.started)
