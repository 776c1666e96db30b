"""GDN against (A / k + damping I)^-1 G in NumPy, for every option and kind of layer."""

import logging

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from imbal_jax.corrections.weights import inverse_frequency
from imbal_jax.directions.gdn import gdn
from imbal_jax.directions.gradient import gradient
from imbal_jax.errors import InputError
from imbal_jax.models.cnn import cnn
from imbal_jax.training.objective import make_objective, make_structure
from imbal_jax.types import Batch, Objective, Prediction, Structure

EXAMPLES, CLASSES = 6, 3
KEY = jax.random.key(0)
PUBLISHED = {
    "damping": 100.0,
    "convention": "published",
    "positions": "sum",
    "decay": 0.95,
    "period": 100,
    "cold_start": "first_batch",
    "biases": "gradient",
}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


class Mixed(nn.Module):
    """A strided convolution, a sequence through two low-rank layers and a wide one, and one layer applied twice."""

    @nn.compact
    def __call__(self, images):
        hidden = nn.tanh(nn.Conv(4, (3, 2), strides=2, padding="VALID", name="convolution")(images))
        tokens = hidden.reshape(len(images), -1, 4)
        low = nn.Dense(2, use_bias=False, name="down")(tokens)
        tokens = nn.LayerNorm(name="norm")(tokens + nn.Dense(4, use_bias=False, name="up")(low))
        wide = nn.tanh(nn.Dense(64, name="wide")(tokens))  # more outputs than its 54 rows, unlike the others
        hidden = nn.Dense(5, name="narrow")(wide).mean(axis=1)
        shared = nn.Dense(5, name="shared")
        features = shared(nn.tanh(shared(hidden)))
        return nn.Dense(CLASSES, name="classifier")(features), features


def patches(images, size, stride, pad=0):
    """Every receptive field as a row, [batch, positions, a], by loops."""
    images = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    corners = [
        (y, x)
        for y in range(0, images.shape[1] - size[0] + 1, stride)
        for x in range(0, images.shape[2] - size[1] + 1, stride)
    ]
    fields = [images[:, y : y + size[0], x : x + size[1]].reshape(len(images), -1) for y, x in corners]
    return np.stack(fields, axis=1)


def rows_of_mixed(params, images):
    """What the kernels multiply, call by call: {layer: [[batch, positions, a], ...]}."""

    def apply(name, rows):
        kernel = params[name]["kernel"]
        return rows @ kernel.reshape(-1, kernel.shape[-1]) + params[name].get("bias", 0)

    rows = {"convolution": [patches(images, (3, 2), 2)]}
    tokens = np.tanh(apply("convolution", rows["convolution"][0]))
    rows["down"] = [tokens]
    rows["up"] = [apply("down", tokens)]
    tokens = tokens + apply("up", rows["up"][0])
    tokens = (tokens - tokens.mean(-1, keepdims=True)) / np.sqrt(tokens.var(-1, keepdims=True) + 1e-6)
    rows["wide"] = [tokens * params["norm"]["scale"] + params["norm"]["bias"]]
    rows["narrow"] = [np.tanh(apply("wide", rows["wide"][0]))]
    hidden = apply("narrow", rows["narrow"][0]).mean(axis=1)
    rows["shared"] = [hidden[:, None], np.tanh(apply("shared", hidden))[:, None]]
    rows["classifier"] = [apply("shared", rows["shared"][1])]
    return rows


def losses(prediction, batch):
    return -jnp.take_along_axis(nn.log_softmax(prediction.logits), batch.labels[:, None], axis=1)[:, 0]


def objective_of(model):
    return Objective(lambda params, batch, key: Prediction(*model.apply({"params": params}, batch.inputs)), losses)


def random_batch(seed, shape=(7, 6, 2), examples=EXAMPLES):
    random = np.random.default_rng(seed)
    return Batch(
        jnp.asarray(random.normal(size=(examples, *shape))), jnp.asarray(random.integers(0, CLASSES, examples))
    )


def random_params(model, batch, seed=0, **arguments):
    random = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: model.init(KEY, batch.inputs, **arguments))["params"]
    return jax.tree.map(lambda leaf: jnp.asarray(random.normal(0.2, 0.6, leaf.shape)), shapes)


MIXED = objective_of(Mixed())
CONVOLUTIONS = {"convolution", "convolution1", "convolution2"}


def structure_of_mixed():
    # The run's batches are smaller than those of its structure.
    batch = random_batch(9, examples=EXAMPLES + 2)
    return Structure(MIXED, random_params(Mixed(), batch), batch)


class Reference:
    """The update as the paper and the authors' code have it."""

    def __init__(self, **options):
        self.options = PUBLISHED | options
        self.matrices, self.inverses, self.weight, self.step = {}, {}, 0.0, 0

    def direction(self, gradient, rows):
        """The direction for a gradient {layer: {"kernel", ...}}; both of float64 arrays."""
        options = self.options
        decay, fresh = options["decay"], 1 - options["decay"]
        self.weight = decay * self.weight + fresh
        plain = gradient if options["biases"] != "frozen" else jax.tree.map(np.zeros_like, gradient)
        result = {layer: dict(leaves) if isinstance(leaves, dict) else leaves for layer, leaves in plain.items()}
        for layer, calls in rows.items():
            joint = options["biases"] == "joint" and "bias" in gradient[layer]
            if joint:
                calls = [np.concatenate([call, np.ones((*call.shape[:2], 1))], axis=2) for call in calls]
            moments = sum(self._moments(call, layer in CONVOLUTIONS) for call in calls)
            self.matrices[layer] = decay * self.matrices.get(layer, 0) + fresh * moments
            if self.step == 0:
                self.inverses[layer] = np.zeros_like(moments)
                if options["cold_start"] == "first_batch":
                    self._invert(layer)
            kernel = gradient[layer]["kernel"]
            flat = kernel.reshape(-1, kernel.shape[-1])
            stacked = np.concatenate([flat, gradient[layer]["bias"][None]]) if joint else flat
            scaled = self.inverses[layer] @ stacked
            result[layer]["kernel"] = scaled[: len(flat)].reshape(kernel.shape)
            if joint:
                result[layer]["bias"] = scaled[-1]
        self.step += 1
        if self.step % options["period"] == 0:
            for layer in rows:
                self._invert(layer)
        return result

    def _moments(self, rows, is_convolution):
        convention = {"published": "mean" if is_convolution else "sum"}.get(
            self.options["convention"], self.options["convention"]
        )
        of_examples = np.einsum("nta,ntb->nab", rows, rows)
        if self.options["positions"] == "mean":
            of_examples = of_examples / rows.shape[1]
        return of_examples.sum(axis=0) if convention == "sum" else of_examples.mean(axis=0)

    def _invert(self, layer):
        matrix = self.matrices[layer] / self.weight
        self.inverses[layer] = np.linalg.inv(matrix + self.options["damping"] * np.eye(len(matrix)))


def in_numpy(tree):
    return jax.tree.map(np.asarray, tree)


def mixed_gradient(params, batch):
    return jax.grad(lambda params: jnp.mean(losses(MIXED.predict(params, batch, KEY), batch)))(params)


@pytest.fixture(scope="module")
def steps():
    """Parameters, batches and gradients of a few steps, which need not follow the direction."""
    with jax.enable_x64(True):
        compiled = jax.jit(mixed_gradient)
        batches = [random_batch(seed) for seed in range(4)]
        params = [random_params(Mixed(), batches[0], seed) for seed in range(4)]
        return [(p, b, in_numpy(compiled(p, b))) for p, b in zip(params, batches, strict=True)]


OPTIONS = {
    "default": {},
    "small damping": {"damping": 0.5},
    "authors' code": {"damping": 2.0, "period": 2, "cold_start": "zero", "biases": "frozen"},
    "sum": {"damping": 2.0, "convention": "sum", "period": 2},
    "mean": {"damping": 0.1, "convention": "mean", "period": 3, "decay": 0.5},
    "mean over positions": {"damping": 0.1, "positions": "mean", "period": 1},
    "joint": {"damping": 0.5, "biases": "joint", "period": 2, "decay": 0.0},
    "joint, zero": {"damping": 0.5, "biases": "joint", "convention": "mean", "cold_start": "zero", "period": 1},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_equals_the_explicit_formula(options, steps):
    direction, reference = gdn(structure_of_mixed(), **options), Reference(**options)
    propose = jax.jit(direction.propose, static_argnums=0)
    state = direction.init(steps[0][0])
    for params, batch, plain in steps:
        # Through NumPy, as a checkpoint would have it.
        proposal = propose(MIXED, params, batch, jax.tree.map(jnp.asarray, in_numpy(state)), KEY)
        expected = reference.direction(plain, rows_of_mixed(in_numpy(params), np.asarray(batch.inputs)))
        chex.assert_trees_all_close(proposal.direction, expected, rtol=1e-9, atol=1e-12)
        chex.assert_trees_all_equal_shapes_and_dtypes(proposal.state, state)
        state = proposal.state
    for name, layer in state.layers.items():
        np.testing.assert_allclose(layer.matrix, reference.matrices[name], rtol=1e-10, atol=1e-13)
        np.testing.assert_allclose(layer.weight, reference.weight, rtol=1e-12)
    assert set(state.layers) == set(reference.matrices)


def dense(inputs, examples):
    """A model that is one dense layer."""
    model, batch = nn.Dense(CLASSES), random_batch(0, (inputs,), examples)
    objective = Objective(lambda params, batch, key: Prediction(model.apply({"params": params}, batch.inputs)), losses)
    params = random_params(model, batch)
    plain = jax.jit(lambda params: gradient().propose(objective, params, batch, (), KEY).direction)(params)
    return Structure(objective, params, batch), in_numpy(plain)


def test_large_damping_gives_the_gradient_and_small_damping_something_else():
    structure, plain = dense(inputs=7, examples=20)

    def kernel(damping):
        direction = gdn(structure, damping=damping)
        state = direction.init(structure.params)
        return np.asarray(direction.propose(*structure[:3], state, KEY).direction["kernel"]) * damping

    def cosine(one, other):
        return np.sum(one * other) / np.linalg.norm(one) / np.linalg.norm(other)

    np.testing.assert_allclose(kernel(1e9), plain["kernel"], rtol=1e-5)
    assert cosine(kernel(0.1), plain["kernel"]) < 0.95


def test_a_large_layer_equals_its_formula():
    structure, plain = dense(inputs=515, examples=1100)
    direction = gdn(structure, damping=30.0)
    proposal = direction.propose(*structure[:3], direction.init(structure.params), KEY)
    rows = np.asarray(structure.batch.inputs)
    expected = np.linalg.solve(rows.T @ rows + 30 * np.eye(515), plain["kernel"])
    np.testing.assert_allclose(proposal.direction["kernel"], expected, rtol=1e-7, atol=1e-12)
    np.testing.assert_array_equal(proposal.direction["bias"], plain["bias"])


def test_cnn_with_batch_norm_and_class_weights():
    model, batch = cnn(CLASSES, width=3), random_batch(0, (6, 6, 1), examples=10)
    correction = inverse_frequency([50, 20, 5])
    narrow = make_structure(model, correction, "mean", (6, 6, 1), 10)  # parameters in float32
    params = random_params(model, batch, train=False)
    shapes = jax.eval_shape(lambda: model.init(KEY, batch.inputs, train=False))["batch_stats"]
    state = {"batch_stats": jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), shapes)}
    objective = make_objective(model, correction, "mean", model_state=state, progress=0.0, train=True)
    options = {"damping": 0.3, "biases": "joint"}
    direction = gdn(narrow._replace(params=params), **options)
    proposal = jax.jit(lambda params, state: direction.propose(objective, params, batch, state, KEY))(
        params, direction.init(params)
    )

    plain = jax.jit(lambda params: gradient().propose(objective, params, batch, (), KEY))(params)
    weights = plain.aux.losses / losses(plain.aux.prediction, batch)
    assert np.ptp(weights) > 0.1
    variables = {"params": params, **state}
    captured = jax.jit(
        lambda variables: model.apply(variables, batch.inputs, train=True, capture_intermediates=True, mutable=True)
    )(variables)[1]
    normalised = np.asarray(captured["intermediates"]["norm1"]["__call__"][0])
    hidden = np.maximum(normalised, 0).reshape(10, 3, 2, 3, 2, 3).max(axis=(2, 4))
    rows = {
        "convolution1": [patches(np.asarray(batch.inputs), (3, 3), 1, pad=1)],
        "convolution2": [patches(hidden, (3, 3), 1, pad=1)],
        "classifier": [np.asarray(plain.aux.prediction.features)[:, None]],
    }
    expected = Reference(**options).direction(in_numpy(plain.direction), rows)
    chex.assert_trees_all_close(proposal.direction, expected, rtol=1e-8, atol=1e-11)
    chex.assert_trees_all_close(proposal.aux, plain.aux, rtol=1e-9)
    # The state keeps its type also where the parameters turn out wider than the run's.
    direction = gdn(narrow, **options)
    state = direction.init(params)
    wide = jax.eval_shape(lambda: direction.propose(objective, params, batch, state, KEY))
    chex.assert_trees_all_equal_shapes_and_dtypes(wide.state, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(wide.direction, params)


def stack(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def test_seeds_together_equal_seeds_one_by_one_and_invert_once_in_a_while(steps):
    direction = gdn(structure_of_mixed(), damping=0.5, period=2)

    def propose(params, state, batch):
        proposal = direction.propose(MIXED, params, batch, state, KEY)
        return proposal.direction, proposal.state

    def run(propose, params, state):
        directions = []
        for _, batch, _ in steps[:3]:
            taken, state = propose(params, state, batch)
            directions.append(taken)
        return directions, state

    seeds = [params for params, _, _ in steps[:2]]
    states = stack([direction.init(params) for params in seeds])
    over_seeds = jax.vmap(propose, in_axes=(0, 0, None))
    together, single = run(jax.jit(over_seeds), stack(seeds), states), jax.jit(propose)
    one_by_one = stack([run(single, params, direction.init(params)) for params in seeds])
    chex.assert_trees_all_close(together, one_by_one, rtol=1e-9, atol=1e-12)
    # Inside of a cond, and not of a select, the matrices are factorised only when it is time.
    outside = {
        equation.primitive.name for equation in jax.make_jaxpr(over_seeds)(stack(seeds), states, steps[0][1]).eqns
    }
    assert "cond" in outside
    assert "cholesky" not in outside


class Tied(nn.Module):
    """A kernel that acts both in its layer, with few rows, and elsewhere; a layer inside of remat; a bare parameter."""

    @nn.compact
    def __call__(self, inputs):
        layer = nn.Dense(12, name="tied")
        hidden = nn.tanh(layer(inputs)) + layer.variables["params"]["kernel"].sum(axis=0)
        hidden = nn.remat(nn.Dense)(12, name="checkpointed")(hidden) * self.param("scale", nn.initializers.ones, (12,))
        return nn.Dense(CLASSES, name="classifier")(hidden), hidden


def test_parameters_outside_of_known_layers_keep_the_gradient_and_are_named(caplog):
    objective, batch = objective_of(Tied()), random_batch(0, (5,))
    params = random_params(Tied(), batch)
    with caplog.at_level(logging.WARNING):
        direction = gdn(Structure(objective, params, batch), damping=0.5)
    [record] = caplog.records
    assert "plain gradient for parameters outside of known layers: " in record.message
    assert "checkpointed/kernel" in record.message
    assert "scale" in record.message
    assert "remat" in record.message
    assert "tied/kernel" not in record.message
    proposal = jax.jit(lambda params, state: direction.propose(objective, params, batch, state, KEY))(
        params, direction.init(params)
    )
    plain = gradient().propose(objective, params, batch, (), KEY)
    rows = {
        "tied": [np.asarray(batch.inputs)[:, None]],
        "classifier": [np.asarray(plain.aux.prediction.features)[:, None]],
    }
    expected = Reference(damping=0.5).direction(in_numpy(plain.direction), rows)
    chex.assert_trees_all_close(proposal.direction, expected, rtol=1e-9, atol=1e-12)


def test_a_model_without_layers_follows_the_gradient(caplog):
    def predict(params, batch, key):
        return Prediction(batch.inputs @ params[0] + params[1])

    objective, batch = Objective(predict, losses), random_batch(0, (5,))
    params = [jnp.ones((5, CLASSES)), jnp.zeros(CLASSES)]
    with caplog.at_level(logging.WARNING):
        direction = gdn(Structure(objective, params, batch))
    assert "no dense layers or convolutions" in caplog.text
    proposal = direction.propose(objective, params, batch, direction.init(params), KEY)
    chex.assert_trees_all_close(
        proposal.direction, gradient().propose(objective, params, batch, (), KEY).direction, rtol=1e-12
    )
    with pytest.raises(InputError, match=r"^biases: 'frozen' moves nothing"):
        gdn(Structure(objective, params, batch), biases="frozen")


def test_another_model_than_the_structures_is_refused(steps):
    params, batch, _ = steps[0]
    direction = gdn(structure_of_mixed())
    other = objective_of(Tied())
    batch = random_batch(0, (5,))
    with pytest.raises(InputError, match=r"^gdn: expected the layers that it was built for, .*narrow.*, got .*tied"):
        direction.propose(other, random_params(Tied(), batch), batch, direction.init(params), KEY)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("damping", -1.0, "a number > 0, got -1.0"),
        ("damping", 0.0, "a number > 0, got 0.0"),
        ("damping", float("nan"), "a number > 0, got nan"),
        ("decay", 1.0, r"a number in \[0, 1\), got 1.0"),
        ("period", 0, "a whole number >= 1, got 0"),
        ("period", 2.5, "a whole number >= 1, got 2.5"),
        ("convention", "means", "did you mean 'mean'"),
        ("positions", "published", "no 'published'"),
        ("cold_start", "none", "no 'none'"),
        ("biases", "free", "no 'free'"),
    ],
)
def test_bad_options_are_refused(name, value, expected):
    with pytest.raises(InputError, match=rf"^{name}: .*{expected}"):
        gdn(Structure(MIXED, None, None), **{name: value})
