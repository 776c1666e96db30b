"""Runs that record the effects of their steps: the records, and that nothing else changes."""

import json

import jax
import numpy as np
import pytest

from imbal_jax.build import build_experiment
from imbal_jax.config import load_config, parse_overrides
from imbal_jax.errors import InputError
from imbal_jax.reports.records import plain, read
from imbal_jax.resolve import resolve
from imbal_jax.training.interruption import Interrupted, StopRequest
from imbal_jax.training.programs import compile_programs
from imbal_jax.training.run import train
from imbal_jax.training.step_effects import StepEffects, by_class
from tests.conftest import ROOT

EPOCHS = 2
TINY = [
    "--config.model.name=mlp",
    "--config.model.hidden=(8,)",
    f"--config.training.epochs={EPOCHS}",
    "--config.training.checkpoint_every_epochs=1",
    "--config.training.steps_per_call=8",
    "--config.schedule.name=constant",
    "--config.seeds=0,1",
    "--config.record.figures=false",
]


def experiment_of(*extra, batches=3):
    """A tiny run on the digits and its config."""
    overrides = parse_overrides([*TINY, *extra, f"--config.record.step_effects_batches={batches}"])
    config = resolve(load_config(f"{ROOT}/configs/digits.py:baseline"), overrides)
    return build_experiment(config), plain(config.to_dict())


def records_of(workdir, seed):
    """The records of a seed without the times, and their step effects."""
    records = read(workdir / f"seed_{seed}" / "metrics.jsonl")
    for record in records:
        record.pop("seconds")
    return records, [record.pop("step_effects", None) for record in records]


def digests(workdir, seed):
    """The hashes of all arrays of all checkpoints."""
    paths = (workdir / f"seed_{seed}" / "checkpoints").glob("*/notes/metadata")
    return {path.parent.parent.name: json.loads(path.read_text())["digest"] for path in paths}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The folder of a run of two seeds together that records three batches."""
    workdir = tmp_path_factory.mktemp("recorded")
    train(*experiment_of(), workdir)
    return workdir


def test_recording_does_not_disturb_the_run(recorded, tmp_path):
    train(*experiment_of(batches=0), tmp_path)
    for seed in (0, 1):
        with_effects, without = records_of(recorded, seed), records_of(tmp_path, seed)
        assert with_effects[0] == without[0]
        assert without[1] == [None] * EPOCHS
        assert digests(recorded, seed) == digests(tmp_path, seed)
        assert len(digests(recorded, seed)) >= 1


def test_records_are_the_effects_of_the_next_epochs_first_steps(recorded):
    experiment, _ = experiment_of()
    programs = compile_programs(experiment, stacked=True)
    keys, state = programs.keys((0, 1)), programs.initial((0, 1))
    steps = experiment.horizon.steps_per_epoch
    for epoch in range(EPOCHS):
        state, _ = programs.drive(state, programs.train_data, programs.draw(keys.order, epoch), keys.step, 0, steps)
        upcoming = programs.draw(keys.order, epoch + 1)
        effects = jax.device_get(programs.step_effects(state, programs.train_data, upcoming, keys.step))
        for seed in (0, 1):
            own = [StepEffects(*(column[seed] for column in batch)) for batch in effects]
            labels = experiment.data.train.labels[np.asarray(upcoming[seed, :3])]
            np.testing.assert_array_equal(np.stack([batch.labels for batch in own]), labels)
            told = records_of(recorded, seed)[1][epoch]
            assert told == plain(by_class(own, experiment.data.counts))
            assert sum(told["count"]) == 3 * experiment.training.batch_size
            assert (
                told["minority"] == (experiment.data.counts.counts <= np.median(experiment.data.counts.counts)).tolist()
            )
            assert 0 <= told["minority_falls"] <= 1


class StopAfter(StopRequest):
    """Asks for an end when it has been looked at a number of times."""

    def __init__(self, looks):
        super().__init__()
        self.looks = looks

    @property
    def requested(self):
        self.looks -= 1
        return self.looks < 0

    @requested.setter
    def requested(self, value):
        pass


def test_a_seed_alone_interrupted_in_an_epoch_records_what_it_records_together(recorded, tmp_path):
    experiment, config = experiment_of("--config.seeds=1", "--config.record.tensorboard=false")
    with pytest.raises(Interrupted, match="step 23"):  # 15 in the first epoch, a chunk of 8 in the second
        train(experiment, config, tmp_path, StopAfter(3))
    assert len(read(tmp_path / "seed_1" / "metrics.jsonl")) == 1
    train(experiment, config, tmp_path)
    for alone, together in zip(records_of(tmp_path, 1)[1], records_of(recorded, 1)[1], strict=True):
        for key in ("kappa", "linearised", "actual"):
            np.testing.assert_allclose(*(np.array(one[key], float) for one in (alone, together)), rtol=1e-2, atol=1e-5)
        assert alone["count"] == together["count"]


def test_the_shares_reach_tensorboard(recorded):
    (path,) = (recorded / "seed_0" / "events").iterdir()
    content = path.read_bytes()
    assert b"step_effects/minority_falls" in content and b"step_effects/majority_falls" in content


def test_a_run_refuses_a_negative_number_of_batches(tmp_path):
    with pytest.raises(InputError, match=r"^record\.step_effects_batches: expected a number in 0\.\.15"):
        train(*experiment_of(batches=-1), tmp_path)
