"""Training on pictures whose batches come from the host: what is trained, by what chance, and how it continues."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imbal_jax.build import build_experiment
from imbal_jax.config import load_config
from imbal_jax.data.image_set import ImageSet
from imbal_jax.errors import CheckpointError, InputError
from imbal_jax.evaluation.evaluate import read_sums
from imbal_jax.resolve import resolve
from imbal_jax.training.interruption import Interrupted
from imbal_jax.training.loop import Best, fit, split_metrics
from imbal_jax.training.members import Run, members_of
from imbal_jax.training.programs import compile_programs
from imbal_jax.training.run import all_test_metrics, train
from imbal_jax.training.state import keys_of
from imbal_jax.training.step import DeviceData, make_step, read_metrics
from imbal_jax.training.step_effects import make_step_effects
from imbal_jax.training.streaming import key_words
from tests.conftest import ROOT
from tests.pictures import write_pictures
from tests.training.test_streaming import _StopAt, ending

OPTIONS = {
    "seeds": "0",
    "data.size": "8",
    "data.resize": "10",
    "augmentation.name": "random_resized_crop",
    "augmentation.brightness": "0.4",
    "model.name": "mlp",
    "model.hidden": "(6,)",
    "training.epochs": "2",
    "training.batch_size": "4",
    "training.steps_per_call": "2",
    "record.tensorboard": "false",
    "record.figures": "false",
}


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    lists = write_pictures(tmp_path_factory.mktemp("toy"))
    return {"data.name": "image_list"} | {f"data.{name}": value for name, value in lists.items()} | OPTIONS


def experiment_of(options, **more):
    if "augmentation.name" in more:
        options = {key: value for key, value in options.items() if not key.startswith("augmentation.")}
    return build_experiment(resolve(load_config(f"{ROOT}/configs/arrays.py"), options | more))


@pytest.fixture(scope="module")
def run(options):
    experiment = experiment_of(options)
    return experiment, compile_programs(experiment, stacked=False)


def driven(run, steps, first=0, state=None):
    """The state after some steps of the first epoch."""
    programs = run[1]
    keys = programs.keys((0,))
    state = programs.initial((0,)) if state is None else state
    indices = programs.draw(keys.order, 0)
    state, told = programs.drive(state, programs.train_data, indices, keys.step, first, steps)
    return state, read_metrics(told)


def assert_same(got, expected):
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_steps_are_those_on_the_same_crops_by_hand(run):
    experiment, programs = run
    data, keys = experiment.data, keys_of(0)
    assert isinstance(data.train.images, ImageSet) and data.train.images.augment is not None
    assert data.test.images.augment is None and data.validation.images.augment is None
    parts = (experiment.model, experiment.correction, "mean", experiment.direction, experiment.step_rule)
    statistics = data.train.images.pixel_statistics()
    step = jax.jit(make_step(*parts, lambda key, images: images, statistics, experiment.horizon.total_steps))
    state, words = programs.initial((0,)), key_words(keys.step)
    for number, row in enumerate(np.asarray(experiment.sampler(jax.random.fold_in(keys.order, 0)))[:3]):
        images = data.train.images.training_batch(row, (*words, number))
        state, _ = step(state, DeviceData(images, data.train.labels[row]), jnp.arange(4), keys.step)
    found, _ = driven(run, 3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found.params, state.params)


def test_driving_in_two_parts_is_driving_at_once(run):
    whole, _ = driven(run, 4)
    first, _ = driven(run, 1)
    assert_same(driven(run, 3, first=1, state=first)[0].params, whole.params)


def test_a_state_from_elsewhere_is_driven_from_its_own_step(run):
    """Steps are remembered between calls: those of another state must be read."""
    whole, _ = driven(run, 4)
    early, _ = driven(run, 2)
    host = jax.device_get(early)
    driven(run, 4)  # which is remembered
    fresh = (run[0], compile_programs(run[0], stacked=False))
    for programs in (run, fresh):
        again, _ = driven(programs, 2, first=2, state=run[1].place(host))
        assert_same(again.params, whole.params)


def test_augmentation_changes_the_steps(run, options):
    plain = experiment_of(options, **{"augmentation.name": "none"})
    without, _ = driven((plain, compile_programs(plain, stacked=False)), 1)
    assert not np.allclose(without.params["dense1"]["kernel"], driven(run, 1)[0].params["dense1"]["kernel"], atol=1e-5)


@pytest.fixture(scope="module")
def uninterrupted(run, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    fit(*run, members_of([Run({}, workdir, run[0].schedule)], [0]), _StopAt(10**6), lambda records: None)
    return ending(workdir / "seed_0")


@pytest.mark.parametrize("looks", [2, 4])
def test_a_run_stopped_within_an_epoch_continues_bitwise(run, options, uninterrupted, tmp_path, looks):
    with pytest.raises(Interrupted, match=r"stopped after step"):
        fit(*run, members_of([Run({}, tmp_path, run[0].schedule)], [0]), _StopAt(looks), lambda records: None)
    again = compile_programs(run[0], stacked=False)  # which remembers nothing
    fit(run[0], again, members_of([Run({}, tmp_path, run[0].schedule)], [0]), _StopAt(10**6), lambda records: None)
    assert ending(tmp_path / "seed_0") == uninterrupted


def test_metrics_are_the_same_for_every_evaluation_batch(run):
    experiment, programs = run
    state, told = programs.initial((0,)), []
    for size in (1, 3, 500):
        evaluation = experiment.evaluation._replace(batch_size=size)
        placed = compile_programs(experiment._replace(evaluation=evaluation), stacked=False)
        split = placed.place_split(experiment.data.test)
        total = read_sums(placed.evaluate(state.params, state.model_state, 0.0, split))
        np.testing.assert_array_equal(total.confusion.sum(axis=1), [3, 3, 2])
        told.append(split_metrics(experiment, total))
    for each in told[:2]:
        assert each.pop("cross_entropy") == pytest.approx(told[2]["cross_entropy"], rel=1e-5)
        assert each.pop("loss") == pytest.approx(told[2]["loss"], rel=1e-5)
        assert {name: str(value) for name, value in each.items()} == {name: str(told[2][name]) for name in each}


def test_two_classes_have_the_scores_of_all_examples_whatever_the_batch(tmp_path):
    lists = write_pictures(tmp_path, {"train": (6, 4), "val": (2, 2), "test": (6, 7)})
    named = {"data.name": "image_list"} | {f"data.{name}": value for name, value in lists.items()}
    experiment, told = experiment_of(named | OPTIONS), []
    for size in (1, 500):
        evaluation = experiment.evaluation._replace(batch_size=size)
        programs = compile_programs(experiment._replace(evaluation=evaluation), stacked=False)
        state = programs.initial((0,))
        best = Best(0, None, {"params": state.params, "model_state": state.model_state})
        told += all_test_metrics(experiment, programs, [best])
    assert 0 < told[0]["test/brier_score"] < 1
    for name in ("test/auc", "test/brier_score", "test/accuracy", "test/cross_entropy"):
        assert told[0][name] == pytest.approx(told[1][name], rel=1e-5)


def test_the_effects_of_the_next_step_are_those_of_its_crops(options):
    experiment = experiment_of(options, **{"record.step_effects_batches": "1", "training.epochs": "1"})
    programs = compile_programs(experiment, stacked=False)
    keys, state = programs.keys((0,)), programs.initial((0,))
    indices = programs.draw(keys.order, 0)
    (effects,) = programs.step_effects(state, programs.train_data, indices, keys.step)
    images, row = experiment.data.train.images, np.asarray(indices)[0]
    batch = images.training_batch(row, (*key_words(keys.step), 0))
    assert (batch != images.batch(row)).any()
    parts = (experiment.model, experiment.correction, "mean", experiment.direction, experiment.step_rule)
    of_batch = jax.jit(
        make_step_effects(*parts, experiment.augmentation, images.pixel_statistics(), experiment.horizon.total_steps)
    )
    data = DeviceData(batch, experiment.data.train.labels[row])
    expected = of_batch(state, data, jnp.arange(4), keys.step)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), effects, expected)
    assert np.abs(effects.actual).max() > 1e-3


@pytest.mark.slow
def test_the_confusion_matrix_can_be_left_out_of_the_results(options, tmp_path):
    for keep in (True, False):
        more = {"record.confusion": str(keep).lower(), "record.figures": "true", "training.epochs": "1"}
        train(experiment_of(options, **more), {"a": 1}, tmp_path / str(keep))
        result = json.loads((tmp_path / str(keep) / "seed_0" / "result.json").read_text())
        assert ("test/confusion" in result) == keep
        assert (tmp_path / str(keep) / "seed_0" / "figures" / "confusion.png").exists() == keep
        assert result["test/accuracy"] >= 0


@pytest.mark.parametrize("name", ["random_resized_crop", "resize_random_crop"])
def test_augmentations_of_pictures_refuse_arrays(name):
    with pytest.raises(
        InputError, match=rf"augmentation\.name: '{name}' is for pictures .* data\.name='digits' has arr"
    ):
        build_experiment(resolve(load_config(f"{ROOT}/configs/digits.py"), {"augmentation.name": name}))


def test_augmentations_on_the_device_take_pictures(options):
    experiment = experiment_of(options, **{"augmentation.name": "crop_flip", "augmentation.padding": "2"})
    assert experiment.data.train.images.augment is None
    assert np.isfinite(driven((experiment, compile_programs(experiment, stacked=False)), 1)[1].loss).all()


# What training starts from.


def test_pretrained_variables_take_the_place_of_random_ones(run):
    experiment = run[0]
    random = run[1].initial((0,))
    given = np.full_like(random.params["dense1"]["kernel"], 0.25)
    pretrained = {"params": {"dense1": {"kernel": given}}}
    programs = compile_programs(experiment._replace(pretrained=pretrained), stacked=False)
    for seed in (0, 1):
        state = programs.initial((seed,))
        np.testing.assert_array_equal(state.params["dense1"]["kernel"], given)
    assert_same(programs.initial((0,)).params["classifier"], random.params["classifier"])
    np.testing.assert_array_equal(programs.initial((0,)).params["dense1"]["bias"], random.params["dense1"]["bias"])


def test_several_seeds_start_from_the_same_pretrained_variables(run):
    given = np.full_like(run[1].initial((0,)).params["dense1"]["kernel"], 0.25)
    experiment = run[0]._replace(pretrained={"params": {"dense1": {"kernel": given}}}, seeds=(0, 1))
    params = compile_programs(experiment, stacked=True).initial((0, 1)).params
    np.testing.assert_array_equal(params["dense1"]["kernel"], np.stack([given, given]))
    assert (params["classifier"]["kernel"][0] != params["classifier"]["kernel"][1]).any()


def test_a_run_from_other_pretrained_variables_is_refused(run, tmp_path):
    experiment = run[0]._replace(horizon=run[0].horizon._replace(epochs=0))  # nothing to train
    (tmp_path / "seed_0").mkdir()
    (tmp_path / "seed_0" / "result.json").write_text('{"test/accuracy": 0.5}')
    start = [{"params": {"dense1": {"kernel": np.full(3, value)}}} for value in (1.0, 2.0)]
    train(experiment._replace(pretrained=start[0]), {"a": 1}, tmp_path)
    train(experiment._replace(pretrained=start[0]), {"a": 1}, tmp_path)
    with pytest.raises(CheckpointError, match="holds a run on other data or frozen weights"):
        train(experiment._replace(pretrained=start[1]), {"a": 1}, tmp_path)
