"""Runs on wrong labels: what they tell of them, that clean labels teach nothing, and that robust losses bear them."""

import json

import numpy as np
import pytest

from imbal_jax.build import build_experiment
from imbal_jax.config import load_config, parse_overrides
from imbal_jax.reports.records import plain, read
from imbal_jax.resolve import resolve
from imbal_jax.training.checkpoints import CheckpointError
from imbal_jax.training.folders import claim
from imbal_jax.training.run import train
from tests.conftest import ROOT

BASE = [
    "--config.model.name=mlp",
    "--config.profile.name=natural",
    "--config.training.checkpoint_every_epochs=100",
    "--config.record.figures=false",
    "--config.record.tensorboard=false",
]
SHORT = [*BASE, "--config.model.hidden=(8,)", "--config.training.epochs=2"]
NOISY = ["--config.label_noise.name=symmetric", "--config.label_noise.rate=0.2"]


def experiment_of(*options):
    """A run on the digits and its config."""
    config = resolve(load_config(f"{ROOT}/configs/digits.py:baseline"), parse_overrides(list(options)))
    return build_experiment(config), plain(config.to_dict())


def told(workdir, seed=0):
    """The records of a seed without the times, its result, and the hash of its last checkpoint."""
    folder = workdir / f"seed_{seed}"
    records, result = read(folder / "metrics.jsonl"), json.loads((folder / "result.json").read_text())
    for each in (*records, result):
        each.pop("seconds", None)
        each.pop("seconds_per_epoch", None)
    (path,) = (folder / "checkpoints").glob("*/notes/metadata")
    return records, result, json.loads(path.read_text())["digest"]


@pytest.mark.slow
def test_clean_labels_are_for_evaluation_only(tmp_path):
    experiment, config = experiment_of(*SHORT, *NOISY)
    train(experiment, config, tmp_path / "right")
    garbage = experiment.data._replace(clean_labels=np.zeros_like(experiment.data.clean_labels))
    train(experiment._replace(data=garbage), config, tmp_path / "wrong")
    records, right, digest = told(tmp_path / "right")
    other_records, wrong, other_digest = told(tmp_path / "wrong")
    assert (other_records, other_digest) == (records, digest)
    assert {key for key in right if wrong[key] != right[key]} == {"train/label_noise", "train/clean_accuracy"}


def test_results_tell_the_noise_and_both_accuracies(tmp_path):
    experiment, config = experiment_of(*SHORT, *NOISY, "--config.seeds=0,1", "--config.training.seeds_together=yes")
    summary = train(experiment, config, tmp_path)
    data = experiment.data
    share = np.mean(data.train.labels != data.clean_labels)
    assert 0.19 < share <= 0.2
    assert summary["train/label_noise"] == pytest.approx(share)
    assert summary["class_counts"] == np.bincount(data.train.labels).tolist()  # of the labels trained on
    for seed in (0, 1):
        result = told(tmp_path, seed)[1]
        assert 0 < result["train/accuracy"] < 0.85
        assert result["train/accuracy"] < result["train/clean_accuracy"]
        # An example is right by one kind of label at most where they differ, by both or none elsewhere.
        assert result["train/clean_accuracy"] - result["train/accuracy"] <= share


def test_runs_without_noise_tell_nothing_of_it(tmp_path):
    train(*experiment_of(*SHORT), tmp_path)
    assert not [key for key in told(tmp_path)[1] if key.startswith("train/")]


# Twelve epochs on the bundled digits, of whose labels a fifth are wrong.
ROBUST = {
    "symmetric_cross_entropy": ["name=symmetric_cross_entropy", "beta=0.3"],
    "generalized_cross_entropy": ["name=generalized_cross_entropy"],
    "pruned_by_epochs": [
        "name=generalized_cross_entropy",
        "q=0.3",
        "truncation=0.3",
        "refresh=epochs",
        "start=4",
        "every=2",
    ],
    "pruned_by_batch": [
        "name=deferred",
        "at=0.5",
        "after.name=generalized_cross_entropy",
        "after.q=0.3",
        "after.truncation=0.3",
    ],
}
LONGER = [*BASE, *NOISY, "--config.model.hidden=(64,)", "--config.training.epochs=12"]
STEADY = ["--config.schedule.name=constant", "--config.schedule.learning_rate=0.1", "--config.training.select=last"]


def trained_on_noise(workdir, *correction):
    """The result and the records of a run on noisy digits."""
    options = [f"--config.correction.{option}" for option in correction]
    train(*experiment_of(*LONGER, *STEADY, *options), workdir)
    records, result, _ = told(workdir)
    return result, records


@pytest.fixture(scope="module")
def cross_entropy(tmp_path_factory):
    """What cross-entropy makes of the noise."""
    return trained_on_noise(tmp_path_factory.mktemp("cross_entropy"), "name=cross_entropy")


@pytest.mark.slow
@pytest.mark.parametrize("name", ROBUST)
def test_robust_losses_learn_the_clean_labels(name, cross_entropy, tmp_path):
    result, records = trained_on_noise(tmp_path, *ROBUST[name])
    plain_result, plain_records = cross_entropy
    assert result["test/accuracy"] > max(0.9, plain_result["test/accuracy"] + 0.01)
    assert result["train/clean_accuracy"] > plain_result["train/clean_accuracy"]
    assert records[-1]["train/loss"] != plain_records[-1]["train/loss"]


def test_a_folder_from_before_the_noise_continues(tmp_path):
    _, config = experiment_of(*SHORT)
    earlier = {key: value for key, value in config.items() if key != "label_noise"}

    def complete(stored):
        return {**stored, "label_noise": config["label_noise"]}

    claim(tmp_path, earlier, "data")
    with pytest.raises(CheckpointError, match=r"label_noise\.name: stored 'nothing', given 'none'"):
        claim(tmp_path, config, "data")
    assert claim(tmp_path, config, "data", complete)
    noisy = {**config, "label_noise": {"name": "symmetric"}}
    with pytest.raises(CheckpointError, match=r"label_noise\.name: stored 'none', given 'symmetric'"):
        claim(tmp_path, noisy, "data", complete)
