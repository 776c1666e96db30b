"""Jobs on a SLURM cluster: job arrays by submitit, requeued when they are preempted or out of time.

Shortly before the time limit SLURM sends SIGUSR1: the worker saves and exits with 85, and its job goes back into the
queue. A preempted job is saved likewise and requeued by SLURM itself. Which jobs are under way is read off `squeue`,
which every cluster has; accounting is not needed.
"""

import contextlib
import importlib.util
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.launching.jobs import Job, Paths, log_file, outcome_file, read_notes, read_outcome, write_jobs
from experiments.launching.pool import STOPPED, Pool, Result, judge_exit, take_ready, worker_environment
from imbal_jax.errors import InputError
from imbal_jax.main import EXIT_INTERRUPTED
from imbal_jax.reports.records import write_json
from imbal_jax.training.interruption import StopRequest

DEFAULTS = {"time": 240, "cpus_per_task": 2}  # minutes; cores
_SECONDS_TO_SAVE = 120  # before the time limit
_MOST_TIMEOUTS = 1000  # a run may take many time limits
_POLL_SECONDS = 2.0
_ENVIRONMENT = ("PYTHONPATH", "JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")


class Task:
    """What submitit runs on a node: a worker in a process of its own."""

    def __init__(self, job_file: str, log: str) -> None:
        self.job_file, self.log, self.pid = job_file, log, 0

    def __call__(self) -> int:
        """Runs the worker; returns its exit status, and exits with 85 where it was interrupted."""
        command = [sys.executable, "-m", "experiments.launching.worker", self.job_file]
        with open(self.log, "a") as file:
            print(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} SLURM job on {os.uname().nodename}", file=file, flush=True)
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
        self.pid = process.pid
        status = process.wait()
        if status == EXIT_INTERRUPTED:
            sys.exit(EXIT_INTERRUPTED)  # no result: SLURM, or the launcher, lets it go on
        return status

    def checkpoint(self) -> Any:
        """Lets the worker save; called by submitit, which then puts the job back into the queue."""
        import submitit

        if self.pid:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):  # it has just ended
                os.kill(self.pid, signal.SIGTERM)
                # Without reaping it, which is under way in `__call__`, whom this interrupts.
                os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        return submitit.helpers.DelayedSubmission(Task(self.job_file, self.log))


def run_jobs(
    paths: Paths,
    jobs: Sequence[Job],
    workers: int | None,
    parameters: Mapping[str, str],
    retries: int,
    stop: StopRequest,
    *,
    may_diverge: bool = False,
    tell: Callable[[str], None] = print,
) -> list[Result]:
    """`experiments.launching.local.run_jobs` on a cluster.

    A launcher that was killed finds its jobs again. One that is asked to stop cancels them, and they save.

    Args:
      paths: of the study.
      jobs: to train.
      workers: at most so many at once; None for as many as the cluster lets.
      parameters: of submitit's SlurmExecutor, such as partition, time and gpus_per_node.
      retries: further tries of a job that failed.
      stop: when requested the jobs are cancelled, and waited for.
      may_diverge: whether a non-finite loss is a result, as in a search, and no failure.
      tell: receives lines to show.

    Raises:
      InputError: submitit is not installed, or does not know a parameter.
    """
    executor = make_executor(paths, workers, parameters)
    pool = Pool(paths, retries, may_diverge, tell, list(jobs))
    submitted = _adopt(pool)
    cancelled = False
    while submitted or (pool.queue and not stop.requested):
        alive = under_way()
        for name in [name for name, (_, number, _) in submitted.items() if alive is not None and number not in alive]:
            job, number, started = submitted.pop(name)
            judge_exit(pool, job, exit_status(paths, job, number), time.monotonic() - started)
        if stop.requested and submitted and not cancelled:
            cancelled = True
            tell(f"stopping: {len(submitted)} SLURM job(s) cancelled, which save")
            subprocess.run(["scancel", *(number for _, number, _ in submitted.values())])
        if not stop.requested and pool.queue:
            ready = take_ready(pool, len(pool.queue))
            submitted |= _submit(pool, executor, [job for jobs in ready for job in jobs])  # groups are for one machine
        _remember(paths, submitted)
        time.sleep(_POLL_SECONDS)
    return pool.results + [Result(job, STOPPED) for job in pool.queue]


def make_executor(paths: Paths, workers: int | None, parameters: Mapping[str, str]) -> Any:
    """Submitit's executor.

    Raises:
      InputError: submitit is not installed, or does not know a parameter.
    """
    if importlib.util.find_spec("submitit") is None:
        raise InputError("--executor: slurm needs submitit; pip install 'imbal_jax[slurm]'")
    os.environ["SUBMITIT_PREEMPT_SIGNAL"] = "USR1"  # which workers understand too; read when submitit is imported
    from submitit.slurm.slurm import SlurmExecutor

    try:
        executor = SlurmExecutor(folder=paths.launch / "slurm")
    except RuntimeError as error:
        raise InputError(f"--executor: {error}") from error
    given = {key: int(value) if value.isdecimal() else value for key, value in parameters.items()}
    environment = {**worker_environment(paths), "SUBMITIT_PREEMPT_SIGNAL": "USR1"}
    exports = [f"export {name}={shlex.quote(environment[name])}" for name in (*_ENVIRONMENT, "SUBMITIT_PREEMPT_SIGNAL")]
    most = {} if workers is None else {"array_parallelism": workers}
    fixed = {"setup": exports, "signal_delay_s": _SECONDS_TO_SAVE, "additional_parameters": {"requeue": True}, **most}
    try:
        executor.update_parameters(**{"job_name": paths.root.name, **DEFAULTS, **given, **fixed})
    except (ValueError, TypeError, NotImplementedError) as error:
        raise InputError(f"--slurm: {' '.join(str(error).split())}") from error
    executor.max_num_timeout = _MOST_TIMEOUTS
    return executor


_Submitted = dict[str, tuple[Job, str, float]]  # by the job's name: itself, its SLURM number, since when


def _submit(pool: Pool, executor: Any, jobs: Sequence[Job]) -> _Submitted:
    """Submits jobs as one array."""
    if not jobs:
        return {}
    tasks = []
    for job in jobs:
        log = log_file(pool.paths, job)
        log.parent.mkdir(parents=True, exist_ok=True)
        outcome_file(pool.paths, job.cell, job.seeds).unlink(missing_ok=True)  # what lies there then is new
        tasks.append(Task(str(write_jobs(pool.paths, [job])), str(log)))
    with executor.batch():
        handles = [executor.submit(task) for task in tasks]
    for job, handle in zip(jobs, handles, strict=True):
        pool.tell(f"submitted: {job.name} as SLURM job {handle.job_id}")
    return {job.name: (job, handle.job_id, time.monotonic()) for job, handle in zip(jobs, handles, strict=True)}


def _remember(paths: Paths, submitted: _Submitted) -> None:
    """Writes the numbers of the jobs under way, for a launcher after this one."""
    write_json(paths.launch / "slurm.json", {name: number for name, (_, number, _) in submitted.items()})


def _adopt(pool: Pool) -> _Submitted:
    """Takes jobs out of the queue that an earlier launcher has submitted and that are under way."""
    numbers = read_notes(pool.paths.launch / "slurm.json")
    alive = under_way() or set()
    adopted = {}
    for job in [job for job in pool.queue if numbers.get(job.name) in alive]:
        pool.queue.remove(job)
        pool.tell(f"submitted before: {job.name} as SLURM job {numbers[job.name]}")
        adopted[job.name] = (job, numbers[job.name], time.monotonic())
    return adopted


def under_way() -> set[str] | None:
    """The numbers of this user's jobs that wait, run or end just now; None where SLURM does not answer."""
    told = subprocess.run(["squeue", "--me", "--noheader", "--array", "--format=%i"], capture_output=True, text=True)
    return set(told.stdout.split()) if told.returncode == 0 else None


def exit_status(paths: Paths, job: Job, number: str) -> int:
    """The exit status of a worker whose SLURM job is gone; as of a killed one where it has left none.

    Args:
      paths: of the study.
      job: that it had.
      number: of the SLURM job.
    """
    from submitit.slurm.slurm import SlurmJob

    handle: Any = SlurmJob(folder=paths.launch / "slurm", job_id=number, tasks=[0])
    if handle.paths.result_pickle.exists() and handle.exception() is None:
        return handle.result()
    status = read_outcome(paths, job.cell, job.seeds)
    return -signal.SIGKILL if status is None else status
