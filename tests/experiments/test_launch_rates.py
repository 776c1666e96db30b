"""Cells that differ only in their learning rates under the launcher: which it groups, and what becomes of a group."""

import json
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from experiments.launch import run
from experiments.launching.jobs import INTERRUPTED, Paths, in_processes, read_outcome, run_folder
from experiments.launching.plan import Together, make_plan, resolved_cells
from experiments.launching.pool import FAILED, FINISHED
from experiments.launching.rates import common_step, with_groups
from experiments.study import Axis, Study
from imbal_jax import main
from imbal_jax.main import EXIT_NON_FINITE, guarded
from imbal_jax.reports.records import read, write_json
from tests.conftest import ROOT
from tests.experiments.fake_worker import fake_job, launch
from tests.experiments.test_launch_kills import records as records_of

AXES = (Axis("method", ("baseline", "focal")), Axis("rate", ("0.1", "0.2", "0.4"), key="schedule.learning_rate"))
STUDY = Study("toy", "configs/digits.py:{method}", AXES, ())
# One cell diverges; no hidden layer, so that rounding stays rounding.
SEARCH = f"""
from experiments.searching import make_search

def get_study():
    overrides = {{
        "model.name": "mlp",
        "model.hidden": "()",
        "training.epochs": 3,
        "training.checkpoint_every_epochs": 1,
        "training.seeds_together": "yes",  # nothing is measured
        "record.figures": False,
        "record.tensorboard": False,
    }}
    candidates = {{"baseline": (("0.05", "0.2", "1e38"), ())}}
    return make_search("tiny", "{ROOT}/configs/digits.py:{{method}}", candidates, overrides, seeds=(0, 1))
"""


@pytest.fixture(scope="module")
def configs():
    return resolved_cells(STUDY, (0, 1), {})


def grouped(paths, configs, *, seeds=True, rates=True, workers=1):
    """The planned jobs of each process, and the decisions."""
    plan = make_plan(paths, configs, (0, 1), lambda cell: Together(seeds, ""))
    jobs, decided = with_groups(paths, plan.jobs, workers, lambda jobs: Together(rates, "why"))
    names = [[job.cell.replace("method=", "").replace("rate=", "") for job in each] for each in in_processes(jobs)]
    return names, decided


def test_cells_that_differ_only_in_the_learning_rate_share_a_process(tmp_path, configs):
    names, decided = grouped(Paths(tmp_path), configs)
    assert names == [[f"{method},{rate}" for rate in ("0.1", "0.2", "0.4")] for method in ("baseline", "focal")]
    assert [len(jobs) for jobs, _ in decided] == [3, 3]


def test_where_it_is_not_faster_each_cell_has_its_process(tmp_path, configs):
    names, decided = grouped(Paths(tmp_path), configs, rates=False)
    assert len(names) == 6
    assert decided[0][1] == Together(False, "why")


def test_seeds_apart_are_grouped_seed_by_seed(tmp_path, configs):
    names, _ = grouped(Paths(tmp_path), configs, seeds=False)
    assert [len(each) for each in names] == [3] * 4


def test_groups_leave_work_for_every_worker(tmp_path, configs):
    assert [len(each) for each in grouped(Paths(tmp_path), configs, workers=2)[0]] == [3, 3]
    assert sorted(len(each) for each in grouped(Paths(tmp_path), configs, workers=3)[0]) == [1, 1, 2, 2]


def test_only_runs_that_are_equally_far_share_a_process(tmp_path, configs):
    paths = Paths(tmp_path)
    for job in make_plan(paths, configs, (0, 1), lambda cell: Together(True, "")).jobs:
        folder = run_folder(paths, job)
        write_json(folder / "config.json", job.config)
        for seed in job.seeds if "rate=0.4" not in job.cell else ():
            (folder / f"seed_{seed}" / "checkpoints" / "30").mkdir(parents=True)
    names, _ = grouped(paths, configs)
    assert names == [
        ["baseline,0.1", "baseline,0.2"],
        ["baseline,0.4"],
        ["focal,0.1", "focal,0.2"],
        ["focal,0.4"],
    ]
    (paths.runs / "method=focal,rate=0.1" / "seeds_0_1" / "seed_0" / "checkpoints" / "45").mkdir()
    assert common_step(paths.runs / "method=focal,rate=0.1" / "seeds_0_1", (0, 1)) == 30


def group(*jobs):
    return [job._replace(group="all") for job in jobs]


def test_a_job_of_a_group_that_diverges_is_its_own_failure(tmp_path):
    told = []
    jobs = group(fake_job("good"), fake_job("bad", statuses=(3,)), fake_job("fine"))
    results = {result.job.cell: (result.state, result.status) for result in launch(tmp_path, jobs, tell=told.append)}
    assert results == {"good": (FINISHED, None), "bad": (FAILED, 3), "fine": (FINISHED, None)}
    assert [read_outcome(Paths(tmp_path), cell, (0,)) for cell in ("good", "bad", "fine")] == [0, 3, 0]
    assert sum("together with 2 more" in line for line in told) == 3


def test_it_is_told_at_once_with_its_reason_while_the_others_go_on(tmp_path):
    told = []
    jobs = group(fake_job("long", sleep=1.5), fake_job("lost", statuses=(3,)))
    launch(tmp_path, jobs, tell=told.append)
    ends = [line for line in told if not line.startswith("started")]
    assert ends[0].startswith("FAILED: lost seeds_0: exit status 3, non-finite loss; given up")
    assert "error: lost seeds_0: the last words of a worker" in ends[0]
    assert ends[1].startswith("finished: long")


def test_a_group_that_fails_is_tried_again_job_by_job(tmp_path):
    told = []
    jobs = group(fake_job("bad", statuses=(2,)), fake_job("fine"))
    results = {result.job.cell: (result.state, result.status) for result in launch(tmp_path, jobs, tell=told.append)}
    assert results == {"bad": (FAILED, 2), "fine": (FINISHED, None)}
    assert sum("to be tried apart" in line for line in told) == 2
    assert len(read(tmp_path / "runs" / "bad" / "seeds_0" / "tries.jsonl")) == 2


def test_what_another_run_has_finished_leaves_its_group(tmp_path):
    launch(tmp_path, [fake_job("one")])
    told = []
    results = launch(tmp_path, group(fake_job("one"), fake_job("two")), tell=told.append)
    assert {result.job.cell: result.state for result in results} == {"one": FINISHED, "two": FINISHED}
    assert len(read(tmp_path / "runs" / "one" / "seeds_0" / "tries.jsonl")) == 1


def arguments(folder, *extra):
    """A launch of the search in a folder, by one worker."""
    folder.mkdir(exist_ok=True)
    (folder / "tiny.py").write_text(SEARCH)
    return [str(folder / "tiny.py"), f"--workdir={folder}", "--workers=1", *extra]


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """The folder of a search that is done."""
    folder = tmp_path_factory.mktemp("search")
    assert guarded(run, arguments(folder)) == 0
    return folder


def test_a_search_is_one_process_with_a_run_folder_for_every_cell(searched):
    study = searched / "tiny"
    cells = [f"method=baseline,learning_rate={rate},damping=none" for rate in ("0.05", "0.2", "1e38")]
    assert len(list((study / "launch" / "jobs").rglob("*.json"))) == 1
    assert (
        len({json.loads(path.read_text())["process"] for path in (study / "launch" / "outcomes").rglob("*.json")}) == 1
    )
    status = json.loads((study / "launch" / "status.json").read_text())
    assert [status[cell]["seeds_0_1"].split()[0] for cell in cells] == ["finished", "finished", "diverged"]
    assert read_outcome(Paths(study), cells[2], (0, 1)) == EXIT_NON_FINITE
    assert "the training loss of seed 0 is" in (study / "launch" / "logs" / cells[2] / "seeds_0_1.log").read_text()
    assert json.loads((study / "winners.json").read_text())["winners"][0]["cell"]["learning_rate"] == "0.2"
    for cell, rate in zip(cells, (0.05, 0.2), strict=False):
        records = read(study / "runs" / cell / "seeds_0_1" / "seed_0" / "metrics.jsonl")
        assert 0.5 * rate < records[0]["learning_rate"] < rate
        assert guarded(main.run, [f"--workdir={study / 'runs' / cell / 'seeds_0_1'}"]) == 0


def contents(runs):
    """What runs have left, by the seed's folder."""
    return {str(path.parent.relative_to(runs)): records_of(path.parent) for path in sorted(runs.rglob("result.json"))}


def assert_close(one, other):
    """Compares what runs have left, but for rounding."""
    assert one.keys() == other.keys() and one
    for file in one:
        assert jax.tree.structure(one[file]) == jax.tree.structure(other[file])
        np.testing.assert_allclose(jax.tree.leaves(one[file]), jax.tree.leaves(other[file]), rtol=1e-4, err_msg=file)


def test_it_finds_what_cells_apart_find(searched, tmp_path):
    assert guarded(run, arguments(tmp_path, "--only=learning_rate=0.05")) == 0
    apart = contents(tmp_path / "tiny" / "runs")
    assert_close({file: both for file, both in contents(searched / "tiny" / "runs").items() if file in apart}, apart)


@pytest.mark.slow
def test_a_search_that_is_killed_goes_on(searched, tmp_path, capsys):
    longer = ["--config.training.epochs=100", "--config.training.checkpoint_every_epochs=10"]
    command = [sys.executable, "-m", "experiments.launch", *arguments(tmp_path / "killed", *longer)]
    launcher = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    cell = tmp_path / "killed" / "tiny" / "runs" / "method=baseline,learning_rate=0.05,damping=none" / "seeds_0_1"
    while common_step(cell, (0, 1)) == 0:
        assert launcher.poll() is None
        time.sleep(0.02)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(timeout=120) == 85
    assert not list(cell.rglob("result.json"))
    capsys.readouterr()
    assert guarded(run, arguments(tmp_path / "killed", *longer)) == 0
    printed = capsys.readouterr().out
    assert "learning rates together (vmap), 2 run(s), such as 0.05, 0.2 for method=baseline" in printed
    assert printed.count("resumed, together with 1 more") == 2
    assert guarded(run, arguments(tmp_path / "whole", *longer)) == 0
    assert_close(*(contents(tmp_path / name / "tiny" / "runs") for name in ("killed", "whole")))


def test_an_interrupted_job_keeps_no_group(tmp_path):
    jobs = group(fake_job("one", statuses=(1, 0)), fake_job("two"))
    results = launch(tmp_path, jobs, tell=lambda line: None)
    assert all(result.job.group == "" and result.job.state == INTERRUPTED for result in results)
