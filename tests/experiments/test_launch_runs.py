"""The launcher with real training: by commands, and on SLURM. See `test_launch_kills.py` for kills."""

import json
import shutil
import subprocess
import sys
import time

import pytest

from experiments.launch import run
from imbal_jax.main import EXIT_INPUT, guarded
from imbal_jax.reports.records import read
from tests.conftest import ROOT

# Two cells of a network that compiles fast.
STUDY = f"""
from experiments.study import Axis, Study

def get_study():
    return Study(
        name="tiny",
        config="{ROOT}/configs/digits.py:{{method}}",
        axes=(Axis("method", ("baseline", "focal")),),
        tables=(),
        seeds=(0,),
        overrides={{
            "model.name": "mlp",
            "model.hidden": "(8,)",
            "training.epochs": 2,
            "record.figures": False,
            "record.tensorboard": False,
        }},
    )
"""


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """The folder and the arguments of a launch that is done."""
    folder = tmp_path_factory.mktemp("launch")
    (folder / "tiny.py").write_text(STUDY)
    arguments = [str(folder / "tiny.py"), f"--workdir={folder}"]
    assert guarded(run, arguments) == 0
    return folder, arguments


def test_every_cell_has_a_run_folder_and_the_status_is_told(launched):
    folder, _ = launched
    runs = folder / "tiny" / "runs"
    assert sorted(path.parent.relative_to(runs).as_posix() for path in runs.rglob("result.json")) == [
        "method=baseline/seeds_0/seed_0",
        "method=focal/seeds_0/seed_0",
    ]
    assert all((path / "summary.json").exists() for path in runs.glob("*/*"))
    status = json.loads((folder / "tiny" / "launch" / "status.json").read_text())
    assert status == {"method=baseline": {"seeds_0": "finished"}, "method=focal": {"seeds_0": "finished"}}


def test_the_same_command_again_trains_nothing(launched, capsys):
    folder, arguments = launched
    before = {path: path.stat().st_mtime_ns for path in (folder / "tiny" / "runs").rglob("*")}
    assert guarded(run, arguments) == 0
    assert "2 of 2 finished" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (folder / "tiny" / "runs").rglob("*")}


def test_other_options_for_the_same_folder_are_refused(launched, capsys):
    _, arguments = launched
    assert guarded(run, [*arguments, "--config.training.epochs=3"]) == EXIT_INPUT
    assert "training.epochs: stored 2, given 3" in capsys.readouterr().err


def has_slurm():
    """Whether a SLURM cluster answers."""
    if not shutil.which("slurmctld") or not shutil.which("squeue"):
        return False
    return subprocess.run(["squeue"], capture_output=True).returncode == 0


# How a cluster interrupts: the signal before a time limit, after which submitit puts the job back into the queue; and
# what preemption does, SIGTERM to all processes of the job, which SLURM then puts back itself.
INTERRUPTIONS = {"method=focal": ("scancel", "--signal=USR1"), "method=baseline": ("scontrol", "requeue")}
EPOCHS = 1000


@pytest.fixture(scope="module")
def interrupted_on_slurm(tmp_path_factory):
    """The study's folder, and what the launcher printed while each of its two jobs was interrupted once."""
    pytest.importorskip("submitit")
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "tiny.py").write_text(STUDY)
    command = [sys.executable, "-m", "experiments.launch", str(folder / "tiny.py"), f"--workdir={folder}"]
    command += ["--executor=slurm", "--slurm=cpus_per_task=1", "--slurm=time=10", f"--config.training.epochs={EPOCHS}"]
    launcher = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    waiting = dict(INTERRUPTIONS)
    while waiting:
        assert launcher.poll() is None
        begun = [cell for cell in waiting if records_of(folder / "tiny", cell).exists()]
        for cell in begun:
            number = json.loads((folder / "tiny" / "launch" / "slurm.json").read_text())[f"{cell} seeds_0"]
            subprocess.run([*waiting.pop(cell), number], check=True)
        time.sleep(0.2)
    printed, _ = launcher.communicate(timeout=900)
    assert launcher.returncode == 0, printed
    return folder / "tiny", printed


def records_of(study, cell):
    """The file of a cell's records of training."""
    return study / "runs" / cell / "seeds_0" / "seed_0" / "metrics.jsonl"


@pytest.mark.slow
@pytest.mark.skipif(not has_slurm(), reason="needs a SLURM cluster on this machine, see CONTRIBUTING.md")
@pytest.mark.parametrize("cell", INTERRUPTIONS)
def test_slurm_requeues_what_is_interrupted_and_it_goes_on_where_it_was(interrupted_on_slurm, cell):
    study, printed = interrupted_on_slurm
    assert printed.count(f"submitted: {cell}") == 1  # SLURM put it back into the queue, not the launcher
    log = (study / "launch" / "logs" / cell / "seeds_0.log").read_text()
    assert log.count("SLURM job on") == 2
    assert log.count("stopped after step") == 1  # it has saved
    assert [record["epoch"] for record in read(records_of(study, cell))] == list(range(1, EPOCHS + 1))
    assert json.loads((study / "launch" / "status.json").read_text())[cell] == {"seeds_0": "finished"}
