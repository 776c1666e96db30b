"""Training on recordings, whose batches come from the host: what is trained, kept, counted and continued."""

import json
import os
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imbal_jax.build import build_experiment
from imbal_jax.config import load_config
from imbal_jax.data.dataset import Split
from imbal_jax.data.features import FeatureSet
from imbal_jax.errors import CheckpointError
from imbal_jax.evaluation.evaluate import read_sums
from imbal_jax.resolve import resolve
from imbal_jax.training import streaming
from imbal_jax.training.checkpoints import Checkpoints
from imbal_jax.training.interruption import Interrupted, StopRequest
from imbal_jax.training.loop import fit, split_metrics
from imbal_jax.training.members import Run, members_of
from imbal_jax.training.programs import compile_programs, train_seeds_together
from imbal_jax.training.run import train
from imbal_jax.training.state import initial_state, keys_of, stored_form
from imbal_jax.training.step import DeviceData, make_step, read_metrics
from imbal_jax.training.streaming import host_split, make_stream_evaluate, resident_split
from imbal_jax.types import Waveforms
from tests.conftest import ROOT
from tests.recordings import write_corpus, write_hubert

SHORT = {
    "seeds": "0",
    "training.epochs": "2",
    "training.batch_size": "4",
    "training.steps_per_call": "2",
    "model.name": "hubert",
    "model.projection": "4",
    "record.tensorboard": "false",
    "record.figures": "false",
}


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Compilation dominates these tests; the values are the same without XLA's optimisations."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def small(table, tmp_path_factory):
    """Overrides for a small HuBERT on the corpus."""
    folder = write_hubert(tmp_path_factory.mktemp("hubert") / "small", num_hidden_layers=1)
    return SHORT | {"data.path": str(table), "model.path": str(folder)}


def experiment_of(overrides, **more):
    config = resolve(load_config(f"{ROOT}/configs/speech.py"), overrides | more)
    return build_experiment(config)


def driven(experiment, programs, steps):
    """The state after some steps of the first epoch, and their losses."""
    keys = programs.keys((0,))
    indices = programs.draw(keys.order, 0)
    state, told = programs.drive(programs.initial((0,)), programs.train_data, indices, keys.step, 0, steps)
    return state, read_metrics(told)


def assert_close(got, expected, tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), got, expected)


@pytest.fixture(scope="module")
def run(small):
    """A run without noise and its compiled functions."""
    experiment = experiment_of(small, **{"data.buckets": "2"})
    return experiment, compile_programs(experiment, stacked=False)


@pytest.fixture(scope="module")
def three_steps(run):
    return driven(*run, 3)


def test_steps_are_those_on_the_same_batches_by_hand(run, three_steps):
    experiment, programs = run
    keys = keys_of(0)
    clips, labels = experiment.data.train
    parts = (experiment.model, experiment.correction, "mean", experiment.direction, experiment.step_rule)
    step = jax.jit(make_step(*parts, experiment.augmentation, (None, None), experiment.horizon.total_steps))
    indices = np.asarray(experiment.sampler(jax.random.fold_in(keys.order, 0)))
    state = programs.initial((0,))
    longest = (int(clips.buckets(1)[-1]),)  # one length, whatever the clips
    for row in indices[:3]:
        batch = DeviceData(clips.batch(row, longest), labels[row], experiment.constants)
        state, _ = step(state, batch, jnp.arange(4), keys.step)
    assert int(state.step) == int(three_steps[0].step) == 3
    assert_close(three_steps[0].params, state.params, 1e-5)
    before = programs.initial((0,)).params
    assert not np.allclose(before["projector"]["kernel"], state.params["projector"]["kernel"], atol=1e-4)


def test_driving_in_two_parts_is_driving_at_once(run, three_steps):
    programs = run[1]
    keys = programs.keys((0,))
    indices, state = programs.draw(keys.order, 0), programs.initial((0,))
    for first, count in ((0, 1), (1, 2)):
        state, _ = programs.drive(state, programs.train_data, indices, keys.step, first, count)
    jax.tree.map(np.testing.assert_array_equal, state.params, three_steps[0].params)


def test_buckets_change_nothing(small, run, three_steps):
    assert len(run[0].data.train.images.buckets(4)) == 2
    experiment = experiment_of(small, **{"data.buckets": "1"})
    assert len(experiment.data.train.images.buckets(4)) == 1
    state, metrics = driven(experiment, compile_programs(experiment, stacked=False), 3)
    assert_close(state.params, three_steps[0].params, 1e-5)
    assert_close(metrics, three_steps[1], 1e-5)


def test_an_error_in_the_making_of_a_batch_reaches_the_run(run, monkeypatch):
    programs = run[1]
    keys = programs.keys((0,))
    indices = programs.draw(keys.order, 0).at[1, 2].set(10**6)
    with pytest.raises(IndexError, match="1000000"):
        programs.drive(programs.initial((0,)), programs.train_data, indices, keys.step, 0, 3)
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetcher"]


def test_few_batches_wait_for_the_device(monkeypatch):
    waited = []
    monkeypatch.setattr(streaming.jax, "block_until_ready", waited.append)
    split = Split(_Numbers(np.arange(10)), np.arange(10))
    evaluate = make_stream_evaluate(lambda params, state, progress, inputs, labels, counted: inputs.sum())
    results = evaluate(None, None, 0.0, host_split(split, 1, ()))
    assert [int(each) for each in results] == list(range(10))
    assert [int(each) for each in waited] == list(range(10 - streaming._UNDER_WAY))


def test_sums_of_all_but_the_last_batches_may_be_added_up_in_float64():
    numbers = 2**24 + np.arange(10)  # in float32 the even ones alone exist
    split = Split(_Numbers(numbers), np.arange(10))
    evaluate = make_stream_evaluate(
        lambda params, state, progress, inputs, labels, counted: inputs.sum(), additive=True
    )
    sums = evaluate(None, None, 0.0, host_split(split, 1, ()))
    assert len(sums) == streaming._UNDER_WAY + 1
    assert isinstance(sums[0], np.ndarray | np.float64) and sums[0].dtype == np.float64
    assert [int(each) for each in sums] == [sum(numbers[:6]), *numbers[6:]]


class _Numbers:
    """Stands for clips: each is a number and as long."""

    def __init__(self, numbers):
        self.lengths = numbers

    def batch(self, rows, buckets):
        return self.lengths[rows]


@pytest.mark.parametrize("size", [1, 3, 4, 7, 10, 500])
@pytest.mark.parametrize("multiple_of", [1, 4])
def test_every_clip_counts_once_whatever_the_batch(size, multiple_of):
    lengths = np.random.default_rng(0).permutation(10)
    split = host_split(Split(_Numbers(lengths), lengths % 3), size, (), multiple_of=multiple_of)
    assert split.rows.shape[1] % multiple_of == 0 and split.rows.shape[1] <= max(size, 10) + 3
    counted = split.counted.astype(bool)
    assert sorted(split.rows[counted]) == list(range(10))
    assert (np.diff(lengths[split.rows[counted]]) >= 0).all()  # of similar lengths together
    evaluate = make_stream_evaluate(
        lambda params, state, progress, inputs, labels, counted: jnp.zeros(3).at[labels].add(counted * inputs)
    )
    found = sum(np.asarray(each) for each in evaluate(None, None, 0.0, split))
    np.testing.assert_allclose(found, [lengths[lengths % 3 == label].sum() for label in range(3)])


def test_metrics_are_the_same_for_every_evaluation_batch(small, run):
    experiment, programs = run
    state = programs.initial((0,))
    told = []
    for size in (3, 500):
        options = experiment.evaluation._replace(batch_size=size)
        placed = compile_programs(experiment._replace(evaluation=options), stacked=False)
        sums = placed.evaluate(state.params, state.model_state, 0.0, placed.place_split(experiment.data.test))
        total = read_sums(sums)
        np.testing.assert_array_equal(total.confusion.sum(axis=1), [2, 3, 3])
        told.append(split_metrics(experiment, total))
    assert told[0].pop("cross_entropy") == pytest.approx(told[1].pop("cross_entropy"), rel=1e-5)
    assert told[0].pop("loss") == pytest.approx(told[1].pop("loss"), rel=1e-5)
    assert str(told[0]) == str(told[1])


# Constants.


def test_frozen_weights_are_no_part_of_the_state_and_the_same_for_every_seed(run):
    experiment, programs = run
    states = [programs.initial((seed,)) for seed in (0, 1)]
    for state in states:
        names = {str(key) for path, _ in jax.tree_util.tree_leaves_with_path(state) for key in path}
        assert "['projector']" in names and "['lora_A']" in names
        assert not {"['frozen']", "['feature_extractor']"} & names
    assert not np.array_equal(*(state.params["projector"]["kernel"] for state in states))
    jax.tree.map(np.testing.assert_array_equal, programs.train_data.constants, experiment.constants)
    model, example = experiment.model, experiment.data.train.images.example()
    parts = (model, experiment.direction, experiment.step_rule, example)
    fresh = jax.eval_shape(lambda: initial_state(*parts, 0))
    assert "frozen" in fresh.model_state  # so it is the constants that keep them out


class _StopAt(StopRequest):
    """Asks to stop when it is looked at for the n-th time."""

    def __init__(self, looks):
        super().__init__()
        self.looks = looks

    @property
    def requested(self):
        self.looks -= 1
        return self.looks <= 0

    @requested.setter
    def requested(self, value):
        pass


def ending(folder):
    """Everything by which two runs can differ, without the times."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        record.pop("seconds")
    checkpoints = {int(path.name): path for path in (folder / "checkpoints").iterdir() if path.name.isdigit()}
    return records, json.loads((checkpoints[max(checkpoints)] / "notes" / "metadata").read_text())["digest"]


@pytest.fixture(scope="module")
def noisy(small):
    """A run with all noise, cached, of two seeds, and its compiled functions."""
    options = {"seeds": "0,1", "model.noise": "hf_train", "model.cache": "memory", "data.buckets": "1"}
    experiment = experiment_of(small, **options)
    return experiment, compile_programs(experiment, stacked=False)


def fitted(noisy, workdir, seed=0, stop=None):
    """Trains a seed of the noisy run."""
    return fit(
        *noisy, members_of([Run({}, workdir, noisy[0].schedule)], [seed]), stop or StopRequest(), lambda records: None
    )


@pytest.fixture(scope="module")
def uninterrupted(noisy, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    before = jax.tree.map(np.array, noisy[1].train_data.constants)
    for seed in (0, 1):
        fitted(noisy, workdir, seed)
    return workdir, before


def test_frozen_weights_do_not_change(noisy, uninterrupted):
    jax.tree.map(np.testing.assert_array_equal, noisy[1].train_data.constants, uninterrupted[1])
    jax.tree.map(np.testing.assert_array_equal, noisy[0].constants, uninterrupted[1])


def test_checkpoints_hold_no_frozen_weights(noisy, uninterrupted):
    for seed in (0, 1):
        folder = uninterrupted[0] / f"seed_{seed}" / "checkpoints"
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert any(b"projector" in path.read_bytes() for path in files)
        assert not any(word in path.read_bytes() for path in files for word in (b"frozen", b"feature_extractor"))
        checkpoints = Checkpoints(folder, read_only=True)
        state = jax.eval_shape(noisy[1].initial, (0,))
        restored = checkpoints.restore(
            12, stored_form(state), {"params": state.params, "model_state": state.model_state}
        )
        assert restored.best["model_state"] == {}
        checkpoints.close()


@pytest.mark.parametrize("looks", [2, 5])
def test_a_run_stopped_within_an_epoch_continues_bitwise(noisy, uninterrupted, tmp_path, looks):
    with pytest.raises(Interrupted, match=r"stopped after step (4|8);"):
        fitted(noisy, tmp_path, stop=_StopAt(looks))
    assert not (tmp_path / "seed_0" / "result.json").exists()
    fitted(noisy, tmp_path)
    assert ending(tmp_path / "seed_0") == ending(uninterrupted[0] / "seed_0")
    assert ending(tmp_path / "seed_0") != ending(uninterrupted[0] / "seed_1")


def test_recordings_are_not_trained_by_several_seeds_at_once(noisy):
    options = noisy[0].training._replace(seeds_together="yes")
    assert not train_seeds_together(noisy[0]._replace(training=options))


def test_a_run_on_other_frozen_weights_is_refused(run, tmp_path):
    experiment = run[0]._replace(horizon=run[0].horizon._replace(epochs=0))  # nothing to train
    (tmp_path / "seed_0").mkdir()
    (tmp_path / "seed_0" / "result.json").write_text('{"test/accuracy": 0.5}')
    train(experiment, {"a": 1}, tmp_path)
    train(experiment, {"a": 1}, tmp_path)
    other = jax.tree.map(lambda leaf: leaf.at[(0,) * leaf.ndim].add(1e-3), experiment.constants)
    with pytest.raises(CheckpointError, match="holds a run on other data or frozen weights"):
        train(experiment._replace(constants=other), {"a": 1}, tmp_path)


# The cache of the convolutions' output.


def test_training_from_the_cache_is_training_without(noisy, small):
    experiment = experiment_of(small, **{"model.noise": "hf_train", "data.buckets": "1"})
    assert isinstance(experiment.data.train.images.batch(np.arange(2), (16_000,)), Waveforms)
    assert isinstance(noisy[0].data.train.images, FeatureSet)
    state, metrics = driven(experiment, compile_programs(experiment, stacked=False), 6)
    cached_state, cached_metrics = driven(*noisy, 6)
    assert_close(cached_metrics, metrics, 1e-4)
    # AdamW's first steps have the signs of gradients, which rounding can turn where they vanish.
    for got, expected in zip(jax.tree.leaves(cached_state.params), jax.tree.leaves(state.params), strict=True):
        assert np.mean(np.abs(got - expected) > 1e-4) < 0.05


def test_training_from_the_encoder_s_input_is_training_without(small):
    options = {"model.cache": "memory", "model.cache_stage": "encoder_input", "data.buckets": "1"}
    cached, plain = (experiment_of(small, **each) for each in (options, {"data.buckets": "1"}))
    assert isinstance(cached.data.train.images, FeatureSet)
    metrics = [driven(each, compile_programs(each, stacked=False), 3)[1] for each in (cached, plain)]
    assert_close(*metrics, 1e-4)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0.0), ("float16", 1e-3)])
def test_the_cache_on_disk_holds_what_the_one_in_memory_does(noisy, small, tmp_path, dtype, tolerance):
    options = {"model.cache": "disk", "model.cache_dir": str(tmp_path), "model.cache_dtype": dtype}
    kept, held = experiment_of(small, **options).data, noisy[0].data
    for name in ("train", "validation", "test"):
        chosen = np.arange(len(getattr(held, name).labels))
        batches = [getattr(data, name).images.batch(chosen, (16_000,)) for data in (kept, held)]
        assert batches[0].frames.dtype == dtype
        np.testing.assert_allclose(batches[0].frames, batches[1].frames, rtol=tolerance, atol=tolerance)
        np.testing.assert_array_equal(batches[0].lengths, batches[1].lengths)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_whole_split_on_the_device(noisy, run):
    for experiment in (noisy[0], run[0]):
        split = experiment.data.validation
        data = resident_split(split)
        assert jax.tree.leaves(data)[0].shape[0] == len(split.labels)
        np.testing.assert_array_equal(data.labels, split.labels)


TWO_DEVICES = """
import sys
import jax, numpy as np
from tests.training.test_streaming import driven, experiment_of, read_sums
from imbal_jax.training.programs import compile_programs

overrides, found = dict(item.split("=", 1) for item in sys.argv[1:]), []
for devices in ("one", "all"):
    experiment = experiment_of(overrides, **{"training.devices": devices})
    programs = compile_programs(experiment, stacked=False)
    state, metrics = driven(experiment, programs, 3)
    sums = programs.evaluate(state.params, state.model_state, 0.0, programs.place_split(experiment.data.test))
    batch = programs.place_split(experiment.data.test).batch(0)
    assert len(batch[1].sharding.device_set) == (2 if devices == "all" else 1)
    found.append((state.params, metrics, read_sums(sums)))
assert len(jax.devices()) == 2
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *found)
"""


@pytest.mark.slow
def test_two_devices_share_the_batches(small):
    options = small | {"data.buckets": "1", "evaluation.batch_size": "5"}
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-c", TWO_DEVICES, *(f"{key}={value}" for key, value in options.items())]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
