"""One run on one device and on eight gives the same losses."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import ROOT


def losses(workdir, devices, *options):
    """Training and validation losses of a run on virtual CPU devices."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    arguments = [f"--config={ROOT}/configs/digits.py:drw", "--config.training.epochs=2", "--config.model.width=4"]
    arguments += ["--config.record.figures=false", "--config.training.devices=all", f"--workdir={workdir}", *options]
    done = subprocess.run(
        [sys.executable, "-m", "imbal_jax.main", *arguments],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    metadata = json.loads((workdir / "metadata.json").read_text())
    assert len(metadata["devices"]) == devices
    keys = ("train/loss", "train/cross_entropy", "validation/loss", "validation/cross_entropy")
    lines = (workdir / "seed_0" / "metrics.jsonl").read_text().splitlines()
    return np.array([[json.loads(line)[key] for key in keys] for line in lines])


@pytest.mark.slow
@pytest.mark.parametrize("driver", ["calls", "scan"])
def test_eight_devices_give_the_losses_of_one(tmp_path, driver):
    option = f"--config.training.driver={driver}"
    one, eight = losses(tmp_path / "one", 1, option), losses(tmp_path / "eight", 8, option)
    np.testing.assert_allclose(eight, one, rtol=1e-5, atol=1e-5)


def test_a_batch_that_does_not_divide_is_refused(tmp_path):
    with pytest.raises(AssertionError, match="expected a multiple of the 8 devices, got 20"):
        losses(tmp_path, 8, "--config.training.batch_size=20")
