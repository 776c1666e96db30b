"""A worker that trains nothing: it sleeps and ends as the job's config says; and a launcher of such workers.

python -m tests.experiments.fake_worker JOB.json ...: as `experiments.launching.worker`
python -m tests.experiments.fake_worker --launch ROOT JOB JOB ...: prints "NAME STATE" for every job
"""

import pathlib
import sys
import time
from unittest import mock

from experiments.launching import worker
from experiments.launching.devices import Slot
from experiments.launching.jobs import PENDING, Job, Paths
from imbal_jax.errors import InputError, NonFiniteLossError
from imbal_jax.reports.records import JsonLines, read, write_json
from imbal_jax.training.interruption import Interrupted, StopRequest

MODULE = "tests.experiments.fake_worker"
SLOTS = [Slot("CPU 0", (0,), {}), Slot("CPU 0", (0,), {})]


def fake_job(cell, *, sleep=0.0, statuses=(0,), seeds=(0,)):
    """A job; each try ends with the next status, the last one stays."""
    return Job(cell, tuple(seeds), PENDING, {"sleep": sleep, "statuses": list(statuses)})


def fake_train(jobs, stop, own):
    for job in sorted(jobs, key=lambda job: job["config"]["sleep"]):
        try:
            own[job["name"]] = fake_train_one(job, stop)
        except NonFiniteLossError as error:
            worker._tell_lost(job, error, shared=job is not jobs[0])
            own[job["name"]] = 3
    return max(own.values())


def fake_train_one(job, stop):
    folder = pathlib.Path(job["folder"])
    write_json(folder / "config.json", job["config"])
    diary = JsonLines(folder / "tries.jsonl")
    diary.append({"try": 1})
    end = time.monotonic() + job["config"]["sleep"]
    while time.monotonic() < end:
        time.sleep(0.02)
        if stop.requested:
            raise Interrupted("saved")
    statuses = job["config"]["statuses"]
    status = statuses[min(len(read(diary.path)), len(statuses)) - 1]
    if status:
        if status == "no such file":
            raise FileNotFoundError(2, "the last words of a worker", "somewhere")
        if status == "input or output":
            raise OSError(5, "the last words of a worker")
        raise {1: RuntimeError, 2: InputError, 3: NonFiniteLossError}[status]("the last words of a worker")
    for seed in job["seeds"]:
        write_json(folder / f"seed_{seed}" / "result.json", {})
    write_json(folder / "summary.json", {})
    return 0


def launch(root, jobs, *, retries=1, stop=None, tell=print):
    """`run_jobs` with fake workers."""
    from experiments.launching import local  # slow to import, and workers do not need it

    with mock.patch.object(local, "_WORKER", MODULE):
        return local.run_jobs(Paths(pathlib.Path(root)), jobs, SLOTS, retries, stop or StopRequest(), tell=tell)


if __name__ == "__main__":
    if sys.argv[1] == "--launch":
        # A job called crashes... ends with status 1 in its first try.
        statuses = {name: (1, 0) if name.startswith("crashes") else (0,) for name in sys.argv[3:]}
        jobs = [fake_job(name, sleep=0.4, statuses=statuses[name]) for name in sys.argv[3:]]
        results = launch(sys.argv[2], jobs, stop=StopRequest().install(), tell=lambda line: None)
        print("\n".join(f"{result.job.cell} {result.state}" for result in results))
    else:
        worker._train = fake_train
        sys.exit(worker.run(sys.argv[1:]))
