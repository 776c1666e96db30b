"""The launcher with real training: by commands, killed, and on SLURM."""

import json
import os
import random
import shutil
import signal
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
RECORDS = ("metrics.jsonl", "result.json")
TIMES = ("seconds", "seconds_per_epoch")


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


def contents(runs):
    """What runs have left but for times, by file."""
    found = {}
    for path in sorted(path for path in runs.rglob("*") if path.name in RECORDS):
        texts = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        records = [json.loads(text) for text in texts]
        kept = [{key: value for key, value in record.items() if key not in TIMES} for record in records]
        found[path.relative_to(runs).as_posix()] = kept
    return found


@pytest.mark.slow
def test_ten_random_kills_leave_what_an_undisturbed_launch_leaves(tmp_path):
    """A part of `quick`, longer runs; SIGKILL and SIGTERM, to the launcher alone and with its workers."""
    command = [sys.executable, "-m", "experiments.launch", "quick", "--workers=2", "--only=alpha=1", "--seeds=0,1"]
    command += ["--only=method=baseline,ief", "--config.training.epochs=200"]
    undisturbed, disturbed = ([*command, f"--workdir={tmp_path / name}"] for name in ("undisturbed", "disturbed"))
    subprocess.run(undisturbed, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    draw = random.Random(0)
    kinds = [(number, group) for number in (signal.SIGKILL, signal.SIGTERM) for group in (False, True)] * 3
    draw.shuffle(kinds)
    for number, group in kinds[:10]:
        # A session of its own, so that the workers can be killed with it.
        launcher = subprocess.Popen(disturbed, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
        time.sleep(draw.uniform(2, 14))
        (os.killpg if group else os.kill)(launcher.pid, number)
        status = launcher.wait(timeout=120)
        assert status in (0, 85, -number)  # -SIGTERM: before it listened
    final = subprocess.run(disturbed, cwd=ROOT, capture_output=True, text=True)
    assert final.returncode == 0, final.stdout
    expected = contents(tmp_path / "undisturbed" / "quick" / "runs")
    assert len(expected) == 8
    assert contents(tmp_path / "disturbed" / "quick" / "runs") == expected


def has_slurm():
    """Whether a SLURM cluster answers."""
    if not shutil.which("slurmctld") or not shutil.which("squeue"):
        return False
    return subprocess.run(["squeue"], capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not has_slurm(), reason="needs a SLURM cluster on this machine, see CONTRIBUTING.md")
def test_slurm_requeues_what_is_signalled_before_its_time_limit(tmp_path):
    pytest.importorskip("submitit")
    (tmp_path / "tiny.py").write_text(STUDY)
    command = [sys.executable, "-m", "experiments.launch", str(tmp_path / "tiny.py"), f"--workdir={tmp_path}"]
    command += ["--executor=slurm", "--slurm=cpus_per_task=1", "--slurm=time=10", "--config.training.epochs=3000"]
    launcher = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    study = tmp_path / "tiny"
    records = study / "runs" / "method=focal" / "seeds_0" / "seed_0" / "metrics.jsonl"
    while not records.exists():
        assert launcher.poll() is None
        time.sleep(0.2)
    number = json.loads((study / "launch" / "slurm.json").read_text())["method=focal seeds_0"]
    subprocess.run(["scancel", "--signal=USR1", number], check=True)
    printed, _ = launcher.communicate(timeout=600)
    assert launcher.returncode == 0, printed
    assert printed.count("submitted: method=focal") == 1  # SLURM put it back into the queue, not the launcher
    log = (study / "launch" / "logs" / "method=focal" / "seeds_0.log").read_text()
    assert log.count("SLURM job on") == 2
    assert "stopped after step" in log
    assert [record["epoch"] for record in read(records)] == list(range(1, 3001))
