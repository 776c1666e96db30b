"""The training step against NumPy, and its two drivers against each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from imbal_jax.corrections.weights import cross_entropy, inverse_frequency
from imbal_jax.data import augmentation
from imbal_jax.directions.gradient import gradient
from imbal_jax.errors import InputError
from imbal_jax.training import schedules, step_rules
from imbal_jax.training.state import count_parameters, initial_state, keys_of
from imbal_jax.training.step import DeviceData, StepMetrics, make_driver, make_step, read_metrics
from imbal_jax.types import Corrected, Correction, Direction, Evidence, Proposal

CLASSES, EXAMPLES, BATCH, STEPS = 3, 40, 6, 6
SHAPE = (4, 4, 2)
SEEDS = (0, 3, 7)
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (EXAMPLES, *SHAPE), dtype=np.uint8)
LABELS = RNG.integers(0, CLASSES, EXAMPLES).astype(np.int32)
COUNTS = np.bincount(LABELS)
MEAN, STD = np.array([120.0, 130.0], np.float32), np.array([70.0, 75.0], np.float32)
DATA = DeviceData(jnp.asarray(IMAGES), jnp.asarray(LABELS))


class SoftmaxRegression(nn.Module):
    """No hidden layer, no running statistics."""

    @nn.compact
    def __call__(self, inputs, *, train):
        del train
        features = inputs.reshape(len(inputs), -1)
        return nn.Dense(CLASSES, name="classifier")(features), features


class SmallNetwork(nn.Module):
    """Batch normalisation and dropout in a hidden layer."""

    @nn.compact
    def __call__(self, inputs, *, train):
        hidden = nn.Dense(6)(inputs.reshape(len(inputs), -1))
        features = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(hidden))
        features = nn.Dropout(0.25, deterministic=not train)(features)
        return nn.Dense(CLASSES, name="classifier")(features), features


def indices_of(epoch):
    """An epoch's batches [steps, batch]."""
    rng = np.random.default_rng(epoch)
    return jnp.asarray(rng.permutation(EXAMPLES)[: STEPS * BATCH].reshape(STEPS, BATCH), jnp.int32)


def step_rule():
    return step_rules.sgd(
        schedules.cosine(schedules.Horizon(STEPS, 2), learning_rate=0.1), momentum=0.9, weight_decay=0.01
    )


class Trainer:
    """A small network, augmented data and the drivers of its step, which are compiled once for all tests."""

    def __init__(self):
        self.model = SmallNetwork()
        self.traces = {(kind, stacked): 0 for kind in ("calls", "scan") for stacked in (False, True)}
        self.drivers = {which: self._driver(which) for which in self.traces}
        self.initial = jax.jit(self._initial)
        self.initial_stacked = jax.jit(jax.vmap(self._initial))

    def _driver(self, which):
        crop = augmentation.crop_flip(padding=1)

        def augment(key, images):
            self.traces[which] += 1  # runs when the step is traced, not when it runs
            return crop(key, images)

        step = make_step(
            self.model,
            inverse_frequency(COUNTS),
            "weighted_mean",
            gradient(),
            step_rule(),
            augment,
            (MEAN, STD),
            total_steps=2 * STEPS,
        )
        kind, stacked = which
        return make_driver(step, kind, stacked=stacked)

    def _initial(self, seed):
        return initial_state(self.model, gradient(), step_rule(), SHAPE, seed)

    def start(self, seed):
        """A state, the step key and the first epoch's indices."""
        return self.initial(jnp.uint32(seed)), keys_of(seed).step, indices_of(0)

    def start_stacked(self):
        """The same of all seeds; every seed has an order of its own."""
        seeds = jnp.asarray(SEEDS, jnp.uint32)
        indices = jnp.stack([jnp.roll(indices_of(0), seed, axis=1) for seed in SEEDS])
        return self.initial_stacked(seeds), jax.vmap(keys_of)(seeds).step, indices

    def train(self, kind, seed, *, epochs=1, chunk=STEPS):
        """A run of one seed, `chunk` steps a time: the final state and the metrics [steps]."""
        (state, key, _), metrics = self.start(seed), []
        for epoch in range(epochs):
            for first in range(0, STEPS, chunk):
                state, told = self.drivers[kind, False](state, DATA, indices_of(epoch), key, first, chunk)
                metrics.append(read_metrics(told))
        return state, StepMetrics(*map(np.concatenate, zip(*metrics, strict=True)))

    def train_stacked(self, kind):
        """One epoch of all seeds together."""
        state, keys, indices = self.start_stacked()
        state, told = self.drivers[kind, True](state, DATA, indices, keys, 0, STEPS)
        return state, read_metrics(told)


@pytest.fixture(scope="module")
def trainer():
    return Trainer()


@pytest.fixture(scope="module")
def by_calls(trainer):
    """Two epochs of seed 3, one call per step."""
    return trainer.train("calls", 3, epochs=2)


def assert_trees_close(one, other, *, atol):
    """Same structure and types, values within atol."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=atol)


def assert_trees_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


# --- the step itself ---------------------------------------------------------------------------------------------


def half_as_sharp():
    """A correction with weights, a modulation, the progress in the logits, and another predictive distribution."""
    weights = jnp.array([0.5, 1.0, 3.0])

    def correct(prediction, labels, progress):
        logits = prediction.logits + progress * jnp.arange(CLASSES)
        return Corrected(logits, weights[labels], jnp.full(labels.shape, 0.7))

    return Correction(correct, lambda logits, progress: logits * 0.5 * (1 + progress))


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def numpy_run(kernel, bias, reduction, *, rate, momentum, weight_decay):
    """Softmax regression by hand, two epochs in float64: parameters, losses and cross-entropies [steps]."""
    class_weights = np.array([0.5, 1.0, 3.0])
    velocity_kernel, velocity_bias = np.zeros_like(kernel), np.zeros_like(bias)
    losses, entropies = [], []
    for step in range(2 * STEPS):
        rows = np.asarray(indices_of(step // STEPS))[step % STEPS]
        inputs = ((IMAGES[rows] - MEAN.astype(np.float64)) / STD).reshape(BATCH, -1)
        labels, progress = LABELS[rows], step / (2 * STEPS)
        logits = inputs @ kernel + bias
        corrected = softmax(logits + progress * np.arange(CLASSES))
        weights = class_weights[labels]
        weights_per_example = 0.7 * weights / (BATCH if reduction == "mean" else weights.sum())
        picked = np.arange(BATCH), labels
        losses.append(np.sum(-weights_per_example * np.log(corrected[picked])))
        entropies.append(-np.mean(np.log(softmax(logits * 0.5 * (1 + progress))[picked])))
        error = corrected.copy()
        error[picked] -= 1
        error *= weights_per_example[:, None]
        velocity_kernel = momentum * velocity_kernel + inputs.T @ error + weight_decay * kernel
        velocity_bias = momentum * velocity_bias + error.sum(axis=0) + weight_decay * bias
        kernel, bias = kernel - rate * velocity_kernel, bias - rate * velocity_bias
    return kernel, bias, np.array(losses), np.array(entropies)


@pytest.mark.parametrize(("reduction", "kind"), [("mean", "calls"), ("weighted_mean", "scan")])
def test_softmax_regression_equals_numpy(reduction, kind):
    horizon = schedules.Horizon(STEPS, 2)
    rule = step_rules.sgd(schedules.constant(horizon, learning_rate=0.05), momentum=0.8, weight_decay=0.1)
    model = SoftmaxRegression()
    step = make_step(
        model, half_as_sharp(), reduction, gradient(), rule, augmentation.none(), (MEAN, STD), horizon.total_steps
    )
    state = initial_state(model, gradient(), rule, SHAPE, 0)
    start = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), state.params["classifier"])
    drive, metrics = make_driver(step, kind, stacked=False), []
    for epoch in range(2):
        state, told = drive(state, DATA, indices_of(epoch), keys_of(0).step, 0, STEPS)
        metrics.append(read_metrics(told))
    kernel, bias, losses, entropies = numpy_run(
        start["kernel"], start["bias"], reduction, rate=0.05, momentum=0.8, weight_decay=0.1
    )
    assert np.abs(kernel - start["kernel"]).max() > 0.1
    np.testing.assert_allclose(state.params["classifier"]["kernel"], kernel, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state.params["classifier"]["bias"], bias, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.concatenate([told.loss for told in metrics]), losses, rtol=1e-4)
    np.testing.assert_allclose(np.concatenate([told.cross_entropy for told in metrics]), entropies, rtol=1e-4)
    assert int(state.step) == 2 * STEPS
    assert state.model_state == {}


def test_running_statistics_are_kept(trainer, by_calls):
    state, _ = by_calls
    start = trainer.initial(jnp.uint32(3))
    assert jax.tree.structure(state) == jax.tree.structure(start)
    mean, first = (s.model_state["batch_stats"]["BatchNorm_0"]["mean"] for s in (state, start))
    assert (np.abs(mean - first) > 1e-3).any()


def test_every_step_and_use_has_its_own_key():
    def augment(key, images):
        return jnp.zeros_like(images, jnp.float32) + jax.random.uniform(key)

    def propose(objective, params, batch, state, key):
        prediction = objective.predict(params, batch, key)
        drawn = jnp.stack([batch.inputs[0, 0, 0, 0], jax.random.uniform(key)])
        return Proposal(params, Evidence(objective.losses(prediction, batch), prediction), drawn)

    direction = Direction(lambda params: jnp.zeros(2), propose)
    rule, model = step_rules.sgd(lambda count: 0.0), SoftmaxRegression()
    step = jax.jit(
        make_step(model, cross_entropy(), "mean", direction, rule, augment, (np.zeros(2), np.ones(2)), total_steps=4)
    )

    def drawn(seed):
        state, values = initial_state(model, direction, rule, SHAPE, 0), []
        for _ in range(4):
            state, _ = step(state, DATA, indices_of(0)[0], keys_of(seed).step)
            values.append(state.direction_state)
        return np.array(values)

    assert len(np.unique(np.concatenate([drawn(1), drawn(2)]))) == 16
    np.testing.assert_array_equal(drawn(1), drawn(1))


# --- drivers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [STEPS, STEPS // 2])
def test_scan_equals_calls(trainer, by_calls, chunk):
    state, metrics = trainer.train("scan", 3, epochs=2, chunk=chunk)
    assert_trees_close(state, by_calls[0], atol=1e-6)
    assert_trees_close(metrics, by_calls[1], atol=1e-6)


def test_chunks_of_calls_change_nothing(trainer, by_calls):
    state, metrics = trainer.train("calls", 3, epochs=2, chunk=2)
    assert_trees_equal(state, by_calls[0])
    assert_trees_equal(metrics, by_calls[1])


def test_a_resumed_run_is_the_same_to_the_bit(trainer, by_calls):
    drive = trainer.drivers["calls", False]
    state, key, indices = trainer.start(3)
    state, _ = drive(state, DATA, indices, key, 0, 4)
    saved = jax.tree.map(np.asarray, state)
    state, _ = drive(jax.tree.map(jnp.array, saved), DATA, indices, key, 4, STEPS - 4)
    state, _ = drive(state, DATA, indices_of(1), key, 0, STEPS)
    assert_trees_equal(state, by_calls[0])


@pytest.mark.parametrize("kind", ["calls", "scan"])
def test_stacked_seeds_equal_separate_runs(trainer, kind):
    state, metrics = trainer.train_stacked(kind)
    for i, seed in enumerate(SEEDS):
        alone, key, _ = trainer.start(seed)
        indices = jnp.roll(indices_of(0), seed, axis=1)
        alone, told = trainer.drivers["calls", False](alone, DATA, indices, key, 0, STEPS)
        assert_trees_close(jax.tree.map(lambda leaf: leaf[i], state), alone, atol=1e-5)  # noqa: B023
        assert_trees_close(StepMetrics(*(column[:, i] for column in metrics)), read_metrics(told), atol=1e-5)
    kernels = np.asarray(state.params["classifier"]["kernel"])
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-2


@pytest.mark.parametrize("kind", ["calls", "scan"])
def test_metrics_have_a_row_per_step(trainer, kind):
    _, metrics = trainer.train(kind, 0)
    assert metrics.loss.shape == metrics.cross_entropy.shape == (STEPS,)
    _, metrics = trainer.train_stacked(kind)
    assert metrics.loss.shape == metrics.cross_entropy.shape == (STEPS, len(SEEDS))
    assert all(isinstance(column, np.ndarray) and np.isfinite(column).all() for column in metrics)


@pytest.mark.parametrize("kind", ["calls", "scan"])
def test_the_state_is_donated(trainer, kind):
    state, key, indices = trainer.start(0)
    # A buffer that cannot be reused would warn, and warnings are errors here.
    after, _ = trainer.drivers[kind, False](state, DATA, indices, key, 0, STEPS)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((after, DATA)))


@pytest.mark.parametrize("kind", ["calls", "scan"])
@pytest.mark.parametrize("stacked", [False, True])
def test_nothing_is_traced_again(trainer, kind, stacked):
    # Whatever tests ran before: a step called singly is traced once, a scan once for each length of a chunk.
    chunks = (STEPS,) if stacked else (STEPS, STEPS // 2)
    for chunk in chunks:
        state, keys, indices = trainer.start_stacked() if stacked else trainer.start(3)
        for epoch in range(2):
            for first in range(0, STEPS, chunk):
                state, _ = trainer.drivers[kind, stacked](state, DATA, (indices + epoch) % EXAMPLES, keys, first, chunk)
        assert (np.asarray(state.step) == 2 * STEPS).all()
    assert trainer.traces[kind, stacked] == (len(chunks) if kind == "scan" else 1)


def test_auto_chooses_calls_on_cpu(trainer):
    drive = make_driver(lambda state, data, row, key: (state, StepMetrics(key, key)), "auto", stacked=False)
    state = trainer.initial(jnp.uint32(0))
    _, metrics = drive(state, DATA, indices_of(0), jnp.float32(0), 0, 2)
    assert isinstance(metrics, list) == (jax.default_backend() == "cpu")


def test_refuses_an_unknown_driver():
    with pytest.raises(InputError, match=r"^training\.driver: expected 'auto', 'calls' or 'scan', got 'loop'$"):
        make_driver(lambda *arguments: None, "loop", stacked=False)


# --- the state ---------------------------------------------------------------------------------------------------


def test_initial_states_are_decided_by_the_seed(trainer):
    one, same, other = (trainer.initial(jnp.uint32(seed)) for seed in (1, 1, 2))
    assert_trees_equal(one, same)
    kernels = [state.params["classifier"]["kernel"] for state in (one, other)]
    assert (np.asarray(kernels[0]) != np.asarray(kernels[1])).all()
    stacked = trainer.initial_stacked(jnp.asarray([1, 2], jnp.uint32))
    assert_trees_close(jax.tree.map(lambda leaf: leaf[1], stacked), other, atol=1e-6)
    assert one.step.dtype == jnp.int32
    assert set(one.model_state) == {"batch_stats"}


def test_keys_differ_in_use_and_seed():
    keys = [jax.random.key_data(key).tolist() for seed in (0, 1) for key in keys_of(seed)]
    assert len({tuple(key) for key in keys}) == 6


def test_count_parameters(trainer):
    # Dense 32 x 6 + 6, batch normalisation 2 x 6, classifier 6 x 3 + 3.
    assert count_parameters(trainer.initial(jnp.uint32(0)).params) == 32 * 6 + 6 + 12 + 18 + 3
