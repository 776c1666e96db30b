"""Runs that are really killed, and then continued by the same command."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.conftest import ROOT

EPOCHS = 12
OPTIONS = [
    f"--config={ROOT}/configs/digits.py:drw",
    f"--config.training.epochs={EPOCHS}",
    "--config.training.checkpoint_every_epochs=1",
    "--config.training.steps_per_call=4",
    "--config.step_rule.momentum=0.9",
    "--config.augmentation.name=crop_flip",
    "--config.augmentation.padding=1",
    "--config.record.figures=false",
]
NARROW = ["--config.model.width=2"]
TOGETHER = ["--config.seeds=0,1", "--config.training.seeds_together=yes"]
RUN_TIME = 120  # seconds; far more than a run takes


def command(workdir, *extra):
    """The training command."""
    model = [] if "--config.model.name=mlp" in extra else NARROW
    return [sys.executable, "-m", "imbal_jax.main", f"--workdir={workdir}", *OPTIONS, *model, *extra]


def environment():
    """One CPU device, and no variables of the test runner."""
    return {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}


def finish(workdir, *extra, status=0):
    """Runs to the end; returns what was printed as errors."""
    done = subprocess.run(
        command(workdir, *extra), env=environment(), capture_output=True, text=True, timeout=RUN_TIME, check=False
    )
    assert done.returncode == status, done.stderr
    return done.stderr


def start_and_wait(workdir, records, *extra):
    """Starts a run and waits until its first seed has written a number of records."""
    process = subprocess.Popen(
        command(workdir, *extra), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    path, deadline = workdir / "seed_0" / "metrics.jsonl", time.monotonic() + RUN_TIME
    while not path.exists() or path.read_bytes().count(b"\n") < records:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return process


def ending(workdir, seed=0):
    """Everything by which two finished runs can differ, without the times."""
    folder = workdir / f"seed_{seed}"
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    result = json.loads((folder / "result.json").read_text())
    for record in records:
        record.pop("seconds")
    result.pop("seconds_per_epoch")
    return records, result, digest(newest_checkpoint(folder))


def newest_checkpoint(folder) -> pathlib.Path:
    """The folder of the checkpoint with the most steps."""
    return max(
        (path for path in (folder / "checkpoints").iterdir() if path.name.isdigit()), key=lambda path: int(path.name)
    )


def digest(checkpoint):
    """The hash of all arrays of a checkpoint, which its reader verifies."""
    return json.loads((checkpoint / "notes" / "metadata").read_text())["digest"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The ending of a run that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("uninterrupted")
    finish(workdir)
    return ending(workdir)


@pytest.mark.slow
def test_sigkill_at_random_moments(uninterrupted, tmp_path):
    delays = random.Random(0)
    for records in (1, 4, 8):
        process = start_and_wait(tmp_path, records)
        time.sleep(delays.uniform(0.0, 0.05))  # between or during the saves that follow a record
        process.kill()
        process.communicate()
    finish(tmp_path)
    assert ending(tmp_path) == uninterrupted


@pytest.mark.slow
def test_sigterm_saves_in_the_middle_of_an_epoch(uninterrupted, tmp_path):
    process = start_and_wait(tmp_path, 2)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=RUN_TIME)
    assert process.returncode == 85, errors
    assert "the same command continues" in errors
    finish(tmp_path)
    assert ending(tmp_path) == uninterrupted


@pytest.mark.slow
def test_seeds_trained_together_continue_too(tmp_path):
    finish(tmp_path / "whole", *TOGETHER)
    process = start_and_wait(tmp_path / "killed", 3, *TOGETHER)
    process.kill()
    process.communicate()
    finish(tmp_path / "killed", *TOGETHER)
    for seed in (0, 1):
        assert ending(tmp_path / "killed", seed) == ending(tmp_path / "whole", seed)


# Counters, a moving average and an inner direction's matrices: all of it is in the checkpoint.
WRAPPED = [
    *("--config.direction.name=attentional_bias", "--config.direction.at=0.2"),
    *("--config.direction.inner.name=perturbed", "--config.direction.inner.form=ball"),
    *("--config.direction.inner.threshold=1.0", "--config.direction.inner.period=3"),
    *("--config.direction.inner.inner.name=sharpness_aware", "--config.direction.inner.inner.boundaries=3"),
    *("--config.direction.inner.inner.rhos=0.1", "--config.direction.inner.inner.inner.name=gdn"),
    *("--config.direction.inner.inner.inner.period=5", "--config.model.name=mlp", "--config.model.hidden=(4,)"),
]


@pytest.mark.slow
def test_wrapped_directions_continue_too(tmp_path):
    finish(tmp_path / "whole", *WRAPPED)
    process = start_and_wait(tmp_path / "killed", 5, *WRAPPED)
    process.kill()
    process.communicate()
    finish(tmp_path / "killed", *WRAPPED)
    assert ending(tmp_path / "killed") == ending(tmp_path / "whole")


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder of a run that was killed with two checkpoints written."""
    workdir = tmp_path_factory.mktemp("killed")
    process = start_and_wait(workdir, 5)
    process.kill()
    process.communicate()
    return workdir


def damage(checkpoint, how):
    """Spoils the arrays of a checkpoint."""
    files = [path for path in checkpoint.rglob("*") if path.is_file() and path.parent.name == "d"]
    assert files
    for path in files:
        content = bytearray(path.read_bytes())
        if how == "truncated":
            content = content[: len(content) // 2]
        elif how == "empty":
            content = bytearray()
        else:
            content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)


@pytest.mark.parametrize("how", ["truncated", "flipped"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(uninterrupted, killed, tmp_path, how):
    workdir = copy(killed, tmp_path / "run")
    newest = newest_checkpoint(workdir / "seed_0")
    damage(newest, how)
    errors = finish(workdir)
    assert f"checkpoint of step {newest.name}" in errors
    assert "falling back to the checkpoint before" in errors
    assert ending(workdir) == uninterrupted


def test_only_damaged_checkpoints_are_refused(killed, tmp_path):
    workdir = copy(killed, tmp_path / "run")
    for checkpoint in (workdir / "seed_0" / "checkpoints").iterdir():
        damage(checkpoint, "empty")
    errors = finish(workdir, status=2)
    assert "error: checkpoints: none can be read" in errors


def test_a_half_written_checkpoint_is_ignored(uninterrupted, killed, tmp_path):
    workdir = copy(killed, tmp_path / "run")
    newest = newest_checkpoint(workdir / "seed_0")
    later = newest.with_name(f"{int(newest.name) + 45}.orbax-checkpoint-tmp")
    copy(newest, later)
    finish(workdir)
    assert ending(workdir) == uninterrupted


def copy(source, target):
    """A copy of a folder."""
    import shutil

    shutil.copytree(source, target)
    return target


def test_a_run_on_other_data_is_refused(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"x_train": rng.integers(0, 256, (40, 4, 4, 1), np.uint8), "y_train": np.arange(40) % 2}
    arrays |= {"x_test": arrays["x_train"][:4], "y_test": arrays["y_train"][:4]}
    data = tmp_path / "images.npz"
    options = ["--config.data.name=arrays", f"--config.data.path={data}", "--config.profile.name=natural"]
    options += ["--config.model.name=mlp", "--config.training.epochs=1", "--config.training.batch_size=4"]
    np.savez(data, **arrays)
    finish(tmp_path / "run", *options)
    arrays["x_train"][0, 0, 0, 0] ^= 1
    np.savez(data, **arrays)
    errors = finish(tmp_path / "run", *options, status=2)
    assert "holds a run on other data" in errors


DISK_FULL = """
import resource, sys
import numpy as np
from pathlib import Path
from imbal_jax.errors import CheckpointError
from imbal_jax.training.checkpoints import Checkpoints

tree = {"w": np.random.default_rng(0).normal(size=100_000).astype(np.float32)}
checkpoints = Checkpoints(Path(sys.argv[1]))
checkpoints.save(1, tree, tree, {})
checkpoints.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
try:
    checkpoints.save(2, tree, tree, {})
    checkpoints.wait()
except CheckpointError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
again = Checkpoints(Path(sys.argv[1]))
print(again.steps(), np.array_equal(again.restore(1, tree, tree).state["w"], tree["w"]))
"""


def test_a_disk_that_fills_up_is_told_and_the_last_checkpoint_stays(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", DISK_FULL, str(tmp_path / "checkpoints")],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=RUN_TIME,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    error, kept = done.stdout.strip().splitlines()
    assert error.startswith("checkpoints: cannot write to")
    assert error.endswith("the checkpoint of step 1 is kept")
    assert kept == "[1] True"


@pytest.mark.slow
@pytest.mark.parametrize("direction", [("gdn", "period"), ("ekfac", "refresh_period")], ids=lambda pair: pair[0])
def test_a_direction_with_state_continues_exactly(direction, tmp_path):
    name, period = direction
    options = ["--config.model.name=mlp", f"--config.direction.name={name}", f"--config.direction.{period}=5"]
    finish(tmp_path / "whole", *options)
    process = start_and_wait(tmp_path / "stopped", 2, *options)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    finish(tmp_path / "stopped", *options)
    assert ending(tmp_path / "stopped") == ending(tmp_path / "whole")
