"""Corrections that remember single examples: in the step, in runs, in checkpoints."""

import json
import logging
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imbal_jax.build import build_experiment
from imbal_jax.config import load_config, parse_overrides
from imbal_jax.corrections.noise_robust import generalized_cross_entropy
from imbal_jax.corrections.weights import cross_entropy, inverse_frequency
from imbal_jax.directions import attentional_bias, ekfac, empirical_fisher, gdn
from imbal_jax.directions.gradient import gradient
from imbal_jax.errors import InputError
from imbal_jax.models.mlp import mlp
from imbal_jax.reports.records import plain, read
from imbal_jax.resolve import resolve
from imbal_jax.training import schedules, step_rules
from imbal_jax.training.checkpoints import Checkpoints, to_host
from imbal_jax.training.experiment import check_keeping
from imbal_jax.training.interruption import Interrupted
from imbal_jax.training.objective import make_objective, make_structure, standardise
from imbal_jax.training.programs import compile_programs
from imbal_jax.training.run import train
from imbal_jax.training.state import TrainState, initial_state, stored_form
from imbal_jax.training.step import DeviceData, make_step
from imbal_jax.types import Batch, Params
from tests.conftest import ROOT
from tests.training.test_step_effects_in_runs import StopAfter

EXAMPLES, BATCH, CLASSES = 12, 6, 3
_RNG = np.random.default_rng(0)
DATA = DeviceData(
    jnp.float32(_RNG.normal(size=(EXAMPLES, 2, 2, 1))), jnp.asarray(_RNG.integers(0, CLASSES, EXAMPLES), jnp.int32)
)
INDICES = jnp.array([7, 2, 2, 11, 0, 5])
KEY = jax.random.key(1)


def stepped(correction, state, reduction="mean"):
    """The state after one step of gradient descent with rate 1."""
    rule = step_rules.sgd(schedules.constant(schedules.Horizon(2, 2), learning_rate=1.0))
    parts = (mlp(CLASSES, hidden=()), correction, reduction, gradient(), rule, lambda key, images: images, (None, None))
    return jax.jit(make_step(*parts, 4))(state, DATA, INDICES, KEY)[0]


def fresh(remembered=0):
    rule = step_rules.sgd(schedules.constant(schedules.Horizon(2, 2), learning_rate=1.0))
    parts = (mlp(CLASSES, hidden=()), gradient(), rule, (2, 2, 1))
    return initial_state(*parts, 0, remembered_examples=remembered)


def test_a_state_remembers_every_example_or_none():
    assert fresh().example_weights == ()
    np.testing.assert_array_equal(fresh(EXAMPLES).example_weights, np.ones(EXAMPLES, np.float32))


@pytest.mark.parametrize("reduction", ["mean", "weighted_mean"])
def test_weights_of_one_change_nothing(reduction):
    correction = inverse_frequency((5, 4, 3))
    with_weights = stepped(correction, fresh(EXAMPLES), reduction)
    without = stepped(correction, fresh(), reduction)
    jax.tree.map(np.testing.assert_array_equal, with_weights.params, without.params)
    np.testing.assert_array_equal(with_weights.example_weights, 1.0)


def test_every_example_counts_by_its_own_weight():
    weights = np.float32(_RNG.uniform(size=EXAMPLES) * (np.arange(EXAMPLES) != 2))
    state = fresh(EXAMPLES)._replace(example_weights=jnp.asarray(weights))
    after = stepped(cross_entropy(), state)
    inputs = np.asarray(DATA.images, np.float64).reshape(EXAMPLES, -1)[INDICES]
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), state.params["classifier"])
    exponentials = np.exp(inputs @ params["kernel"] + params["bias"])
    errors = exponentials / exponentials.sum(axis=1, keepdims=True) - np.eye(CLASSES)[np.asarray(DATA.labels)[INDICES]]
    by_logits = weights[INDICES][:, None] * errors / BATCH
    np.testing.assert_allclose(
        after.params["classifier"]["kernel"], params["kernel"] - inputs.T @ by_logits, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(after.example_weights, weights)


DIRECTIONS = {
    "gradient": lambda structure: gradient(),
    "ief_gram": lambda structure: empirical_fisher.improved_empirical_fisher(engine="gram"),
    "ief_vmap": lambda structure: empirical_fisher.improved_empirical_fisher(engine="vmap"),
    "gdn": gdn.gdn,
    "ekfac": ekfac.ekfac,
    "attentional_bias": attentional_bias.attentional_bias,
}


@pytest.mark.parametrize("name", DIRECTIONS)
def test_every_direction_sees_the_weights(name):
    """An example of weight 0 has no part in what is proposed; weights of 1 leave it as it is."""
    model = mlp(CLASSES, hidden=(4,))
    structure = make_structure(model, cross_entropy(), "mean", (2, 2, 1), BATCH)
    direction = DIRECTIONS[name](structure)
    params = model.init(jax.random.key(3), DATA.images[:1], train=False)["params"]
    objective = make_objective(model, cross_entropy(), "mean", model_state={}, progress=0.0, train=True)

    @jax.jit
    def propose(labels, weights):
        batch = Batch(DATA.images[:BATCH], labels, weights)
        return direction.propose(objective, params, batch, direction.init(params), KEY).direction

    labels, ones = DATA.labels[:BATCH], jnp.ones(BATCH)
    without_first = ones.at[0].set(0.0)
    relabelled = labels.at[0].set((labels[0] + 1) % CLASSES)
    plain = propose(labels, None)

    def difference(one, other):
        return max(float(jnp.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True))

    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(plain))
    assert difference(propose(labels, ones), plain) < 1e-5 * scale
    assert difference(propose(labels, without_first), plain) > 1e-3 * scale
    # Not even its label matters. (What curvature is made of its inputs, or of drawn labels, may stay.)
    unseen = difference(propose(labels, without_first), propose(relabelled, without_first))
    assert unseen < 1e-5 * scale < difference(propose(relabelled, ones), plain)


# ---- runs

EPOCHS, START, EVERY = 5, 2, 2
TINY = [
    "--config.model.name=mlp",
    "--config.model.hidden=(16,)",
    f"--config.training.epochs={EPOCHS}",
    "--config.training.checkpoint_every_epochs=1",
    "--config.training.steps_per_call=8",
    "--config.schedule.name=constant",
    "--config.schedule.learning_rate=0.3",
    "--config.step_rule.momentum=0.0",
    "--config.label_noise.name=symmetric",
    "--config.profile.name=natural",
    "--config.record.figures=false",
    "--config.record.tensorboard=false",
]
PRUNED = [
    "--config.correction.name=generalized_cross_entropy",
    "--config.correction.q=0.3",
    "--config.correction.truncation=0.3",
    "--config.correction.refresh=epochs",
    f"--config.correction.start={START}",
    f"--config.correction.every={EVERY}",
]


def experiment_of(*extra, pruned=True):
    """A tiny run on noisy digits and its config."""
    overrides = parse_overrides([*TINY, *(PRUNED if pruned else []), *extra])
    config = resolve(load_config(f"{ROOT}/configs/digits.py:baseline"), overrides)
    return build_experiment(config), plain(config.to_dict())


def ending(workdir, seed):
    """The records of a seed without the times, its result, and the hashes of its checkpoints."""
    folder = workdir / f"seed_{seed}"
    records, result = read(folder / "metrics.jsonl"), json.loads((folder / "result.json").read_text())
    for each in (*records, result):
        each.pop("seconds", None)
        each.pop("seconds_per_epoch", None)
    paths = (folder / "checkpoints").glob("*/notes/metadata")
    return records, result, {path.parent.parent.name: json.loads(path.read_text())["digest"] for path in paths}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of an undisturbed run of seed 1."""
    workdir = tmp_path_factory.mktemp("alone")
    train(*experiment_of("--config.seeds=1"), workdir)
    return workdir


def restored(experiment, workdir, seed, epoch):
    """The state and the best variables of the checkpoint after an epoch."""
    state = jax.eval_shape(compile_programs(experiment, stacked=False).initial, (seed,))
    best = {"params": state.params, "model_state": state.model_state}
    checkpoints = Checkpoints(workdir / f"seed_{seed}" / "checkpoints", read_only=True)
    found = checkpoints.restore(epoch * experiment.horizon.steps_per_epoch, stored_form(state), best)
    return TrainState(*found.state), found.best


def chosen_by(experiment, params):
    """Which training examples have a probability above 0.3 of their own label."""
    split = experiment.data.train
    inputs = standardise(split.images, experiment.data.mean, experiment.data.std)
    logits, _ = experiment.model.apply({"params": params}, inputs, train=False)
    exponentials = np.exp(np.asarray(logits, np.float64))
    of_truth = exponentials[np.arange(len(logits)), split.labels] / exponentials.sum(axis=1)
    assert np.abs(of_truth - 0.3).min() > 1e-6
    return of_truth > 0.3


def test_examples_are_chosen_anew_and_noise_is_left_out(alone):
    """After two epochs, and again after four."""
    experiment, _ = experiment_of()
    (before, best), (after, _) = (restored(experiment, alone, 1, epoch) for epoch in (4, 5))
    np.testing.assert_array_equal(after.example_weights, chosen_by(experiment, best["params"]))
    assert (np.asarray(before.example_weights) != after.example_weights).any()
    wrong = experiment.data.train.labels != experiment.data.clean_labels
    assert np.mean(after.example_weights[wrong]) < 0.2
    assert np.mean(after.example_weights[~wrong]) > 0.8


def test_the_best_parameters_choose_and_not_the_last(tmp_path):
    extra = ["--config.profile.name=dirichlet", "--config.profile.alpha=0.5", "--config.profile.total=500"]
    experiment, config = experiment_of("--config.seeds=1", "--config.profile.min_count=4", *extra)
    train(experiment, config, tmp_path)
    (before, best), (after, _) = (restored(experiment, tmp_path, 1, epoch) for epoch in (4, 5))
    by_best, by_last = chosen_by(experiment, best["params"]), chosen_by(experiment, before.params)
    assert (by_best != by_last).any()  # here pruning has not made the parameters better
    np.testing.assert_array_equal(after.example_weights, by_best)


def test_the_share_that_is_kept_is_recorded(alone):
    kept = [record["train/kept"] for record in ending(alone, 1)[0]]
    assert kept[:START] == [1.0] * START
    assert kept[2] == kept[3] < 1
    assert kept[4] == pytest.approx(np.mean(restored(experiment_of()[0], alone, 1, EPOCHS)[0].example_weights))


def test_pruning_changes_the_run_from_its_start_on(alone, tmp_path):
    train(*experiment_of("--config.seeds=1", f"--config.correction.start={EPOCHS - 1}"), tmp_path)
    early, late = ending(alone, 1)[0], ending(tmp_path, 1)[0]
    assert [one["train/loss"] for one in early[:START]] == [one["train/loss"] for one in late[:START]]
    assert early[START]["train/loss"] != late[START]["train/loss"]


@pytest.mark.slow
def test_a_run_interrupted_in_an_epoch_that_began_with_a_choice_continues_exactly(alone, tmp_path):
    with pytest.raises(Interrupted):
        train(*experiment_of("--config.seeds=1"), tmp_path, StopAfter(18))
    assert len(read(tmp_path / "seed_1" / "metrics.jsonl")) == START
    train(*experiment_of("--config.seeds=1"), tmp_path)
    assert ending(tmp_path, 1) == ending(alone, 1)


@pytest.mark.slow
def test_seeds_together_choose_each_for_itself(alone, tmp_path):
    train(*experiment_of("--config.seeds=0,1", "--config.training.seeds_together=yes"), tmp_path)
    for one, other in zip(ending(tmp_path, 1)[0], ending(alone, 1)[0], strict=True):
        assert one["train/kept"] == pytest.approx(other["train/kept"], abs=0.02)
        assert one["train/loss"] == pytest.approx(other["train/loss"], rel=0.02)
    assert ending(tmp_path, 0)[0][-1]["train/kept"] != ending(tmp_path, 1)[0][-1]["train/kept"]


def test_a_choice_of_none_is_told(tmp_path, caplog):
    extra = ["--config.seeds=1", "--config.correction.start=0", "--config.correction.truncation=0.99"]
    with caplog.at_level(logging.WARNING, logger="imbal_jax.training.loop"):
        train(*experiment_of(*extra, "--config.training.epochs=1"), tmp_path)
    assert caplog.messages == ["seed 1: no training example is kept, so nothing is learned; let it start later"]


def test_a_run_that_ends_before_it_chooses_is_refused():
    with pytest.raises(InputError, match=r"^start: expected fewer than the run's 5 epochs, got 5$"):
        experiment_of(f"--config.correction.start={EPOCHS}")


def test_examples_from_the_host_cannot_be_remembered():
    keeping = generalized_cross_entropy(truncation=0.5, refresh="epochs").keeping
    check_keeping(keeping, 120, False)
    check_keeping(None, 1, True)
    with pytest.raises(InputError, match=r"^refresh: 'epochs' needs examples that lie on the device, not from"):
        check_keeping(keeping, 120, True)


# ---- checkpoints of earlier versions


class EarlierState(NamedTuple):
    """The state as it was before it could remember examples."""

    step: Any
    params: Params
    model_state: Any
    opt_state: Any
    direction_state: Any


def test_earlier_checkpoints_can_be_read_and_are_still_written(tmp_path):
    state = to_host(fresh())
    best = {"params": state.params, "model_state": state.model_state}
    with_field, without = Checkpoints(tmp_path / "new"), Checkpoints(tmp_path / "old")
    without.save(3, EarlierState(*state[:5]), best, {})
    without.wait()
    found = TrainState(*without.restore(3, stored_form(state), best).state)
    jax.tree.map(np.testing.assert_array_equal, found, state)
    with_field.save(3, stored_form(state), best, {})
    with_field.wait()
    read_back = with_field.restore(3, EarlierState(*state[:5]), best).state
    jax.tree.map(np.testing.assert_array_equal, tuple(read_back), tuple(state[:5]))
