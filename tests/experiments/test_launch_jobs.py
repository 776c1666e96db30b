"""Worker processes under the launcher, with workers that train nothing: real processes, locks and signals."""

import signal
import subprocess
import sys
import threading
import time

import pytest

from experiments.launching.jobs import Paths, locks_of, read_outcome
from experiments.launching.locks import held, is_free
from experiments.launching.pool import FAILED, FINISHED, STOPPED
from imbal_jax.reports.records import read
from imbal_jax.training.interruption import StopRequest
from tests.conftest import ROOT
from tests.experiments.fake_worker import MODULE, fake_job, launch


def tries(root, cell):
    return len(read(root / "runs" / cell / "seeds_0" / "tries.jsonl"))


def start(root, *cells):
    command = [sys.executable, "-m", MODULE, "--launch", str(root), *cells]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def test_chance_failures_are_tried_again_and_each_is_shown_with_the_end_of_its_log(tmp_path):
    told = []
    jobs = [
        fake_job("crashes_once", statuses=(1, 0)),
        fake_job("crashes", statuses=(1,)),
        fake_job("diverges", statuses=(3,)),
        fake_job("bad", statuses=(2,)),
    ]
    results = {result.job.cell: result for result in launch(tmp_path, jobs, retries=1, tell=told.append)}
    states = {name: (result.state, result.status) for name, result in results.items()}
    assert states == {
        "crashes_once": (FINISHED, None),
        "crashes": (FAILED, 1),
        "diverges": (FAILED, 3),
        "bad": (FAILED, 2),
    }
    assert {cell: tries(tmp_path, cell) for cell in states} == {
        "crashes_once": 2,
        "crashes": 2,
        "diverges": 1,
        "bad": 1,
    }
    assert results["crashes_once"].attempts == 2
    failures = [line for line in told if line.startswith("FAILED")]
    assert len(failures) == 5
    assert all("the last words of a worker" in failure for failure in failures)
    assert any("diverges" in failure and "non-finite loss; given up" in failure for failure in failures)
    assert read_outcome(Paths(tmp_path), "diverges", (0,)) == 3


def test_an_error_of_the_machine_may_be_chance_and_one_of_a_path_is_not(tmp_path):
    jobs = [fake_job("disk", statuses=("input or output", 0)), fake_job("path", statuses=("no such file",))]
    results = {result.job.cell: result for result in launch(tmp_path, jobs, tell=lambda line: None)}
    assert {cell: (result.state, result.status) for cell, result in results.items()} == {
        "disk": (FINISHED, None),
        "path": (FAILED, 2),
    }
    assert (tries(tmp_path, "disk"), tries(tmp_path, "path")) == (2, 1)


@pytest.mark.parametrize("kind", ["cell", "crashes"])
def test_two_launchers_on_one_folder_share_the_work(tmp_path, kind):
    cells = [f"{kind}_{i}" for i in range(3)]
    launchers = [start(tmp_path, *cells), start(tmp_path, *cells)]
    for each in launchers:
        output, _ = each.communicate(timeout=120)
        assert each.returncode == 0
        assert sorted(output.split("\n")[:-1]) == [f"{cell} finished" for cell in cells]
    assert [tries(tmp_path, cell) for cell in cells] == [2 if kind == "crashes" else 1] * 3


def test_a_stop_lets_the_workers_save_and_the_jobs_are_counted_as_stopped(tmp_path):
    stop = StopRequest()
    begun = tmp_path / "runs" / "long" / "seeds_0" / "tries.jsonl"

    def stop_soon():
        wait_for(begun.exists)
        stop.requested = True

    thread = threading.Thread(target=stop_soon)
    thread.start()
    jobs = [fake_job("long", sleep=60), fake_job("longer", sleep=60), fake_job("never")]
    results = launch(tmp_path, jobs, stop=stop)
    thread.join()
    assert {result.job.cell: result.state for result in results} == {
        "long": STOPPED,
        "longer": STOPPED,
        "never": STOPPED,
    }
    assert read_outcome(Paths(tmp_path), "long", (0,)) == 85


def test_workers_of_a_killed_launcher_save_and_stop(tmp_path):
    paths, job = Paths(tmp_path), fake_job("cell")
    command = [sys.executable, "-c", f"from {MODULE} import *; launch({str(tmp_path)!r}, [fake_job('cell', sleep=60)])"]
    launcher = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    wait_for((tmp_path / "runs" / "cell" / "seeds_0" / "tries.jsonl").exists)
    assert not is_free(locks_of(paths, job))
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    wait_for(lambda: read_outcome(paths, "cell", (0,)) == 85)
    wait_for(lambda: is_free(locks_of(paths, job)))


def test_locks_are_all_or_none(tmp_path):
    first, second = tmp_path / "a.lock", tmp_path / "b.lock"
    with held([second]) as got:
        assert got
        assert not is_free([first, second])
        assert is_free([first])  # nothing is kept of what was taken in vain
    assert is_free([first, second])


@pytest.mark.parametrize("seeds", [(0, 1), (1,)])
def test_a_run_with_a_seed_that_another_has_finished_leaves_it_out(tmp_path, seeds):
    launch(tmp_path, [fake_job("cell", seeds=(1,))])
    trained = []

    def tell(line):
        trained.append(line)

    (result,) = launch(tmp_path, [remade(fake_job("cell", seeds=seeds))], tell=tell)
    assert result.state == FINISHED
    assert any(line == "started: cell seeds_0 on CPU 0" for line in trained) == (seeds == (0, 1))


def remade(job):
    """With the leaves that a job's config needs to be grouped otherwise."""
    return job._replace(config={**job.config, "training": {"seeds_together": "yes"}})
