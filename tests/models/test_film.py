"""The FiLM block: its formula, its places, its parameters, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imbal_jax.curvature.linearisation import linearise
from imbal_jax.errors import InputError
from imbal_jax.models.cnn import cnn
from imbal_jax.models.film import FiLM, film
from imbal_jax.models.resnet import resnet32
from imbal_jax.models.vgg import vgg11_bn
from imbal_jax.training.state import count_parameters
from imbal_jax.types import Batch, Conditioned, Objective, Prediction

RNG = np.random.default_rng(0)
HIDDEN = RNG.normal(size=(3, 2, 2, 5))
CONDITION = RNG.uniform(size=(3, 2))
# Compilation dominates these tests; the values are the same without XLA's optimisations.
QUICK = {"xla_backend_optimization_level": 0}
# name: (builder, image shape, channels after the last convolution)
MODELS = {
    "cnn": (functools.partial(cnn, width=3), (4, 4, 1), 6),
    "resnet32": (functools.partial(resnet32, width=4), (4, 4, 3), 16),
    "vgg11_bn": (functools.partial(vgg11_bn, dropout=0.0), (32, 32, 3), 512),
}


def network(params, name, condition):
    """Two dense layers, in NumPy."""
    hidden = np.maximum(condition @ params[f"{name}_hidden"]["kernel"] + params[f"{name}_hidden"].get("bias", 0), 0)
    return hidden @ params[f"{name}_output"]["kernel"] + params[f"{name}_output"].get("bias", 0)


def reference(options, params, hidden, condition):
    """The formulas of the paper; with the ReLU "before", hidden has had it."""
    sigma, mu = (network(params, name, condition)[:, None, None, :] for name in ("sigma", "mu"))
    sigma = sigma + 1 if options.around_one else sigma
    if options.activation == "before":
        return sigma * hidden + mu  # Eq. 34
    if options.activation == "between":
        return np.maximum(sigma * hidden, 0) + mu  # Eq. 36
    return np.maximum(sigma * hidden + mu, 0)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("around_one", [False, True])
@pytest.mark.parametrize("activation", ["before", "between", "after"])
def test_formulas(activation, around_one, bias):
    options = film(activation=activation, around_one=around_one, units=7, bias=bias)
    with jax.enable_x64(True):
        found, variables = FiLM(options).init_with_output(
            jax.random.key(0), jnp.asarray(HIDDEN), jnp.asarray(CONDITION)
        )
        params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    np.testing.assert_allclose(found, reference(options, params, HIDDEN, CONDITION), rtol=1e-6, atol=1e-7)


def test_features_without_positions():
    features = RNG.normal(size=(3, 5))
    found, variables = FiLM(film(units=7)).init_with_output(
        jax.random.key(0), jnp.asarray(features), jnp.asarray(CONDITION)
    )
    expected = reference(film(units=7), variables["params"], features[:, None, None], CONDITION)[:, 0, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("bias", "number"), [(True, 17_280), (False, 2 * 8_448)])
def test_parameters_are_those_of_the_paper_and_of_its_code(bias, number):
    shapes = jax.eval_shape(FiLM(film(bias=bias)).init, jax.random.key(0), jnp.zeros((1, 8, 8, 64)), jnp.zeros((1, 2)))
    assert count_parameters(shapes["params"]) == number
    assert 8_448 == 128 + 128 + 128 * 64  # of one network with one input and a bias in its first layer, the text's


@pytest.mark.parametrize("position", ["convolution", "pooling"])
@pytest.mark.parametrize("name", MODELS)
def test_a_block_adds_its_parameters_and_nothing_else(name, position):
    builder, shape, channels = MODELS[name]
    plain = jax.eval_shape(functools.partial(builder(2).init, train=False), jax.random.key(0), jnp.zeros((1, *shape)))
    inputs = Conditioned(jnp.zeros((1, *shape)), jnp.zeros((1, 3)))
    model = builder(2, film=film(position=position))
    variables = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), inputs)
    block = variables["params"].pop("film")
    assert count_parameters(block) == 2 * (3 * 128 + 128 + 128 * channels + channels)
    assert jax.tree.structure(variables) == jax.tree.structure(plain)
    assert [leaf.shape for leaf in jax.tree.leaves(variables)] == [leaf.shape for leaf in jax.tree.leaves(plain)]


def test_resnet32_of_the_paper_has_17280_more_parameters():
    inputs = Conditioned(jnp.zeros((1, 32, 32, 3)), jnp.zeros((1, 2)))
    shapes = jax.eval_shape(functools.partial(resnet32(10, film=film()).init, train=False), jax.random.key(0), inputs)
    assert count_parameters(shapes["params"]) == 464_154 + 17_280


@functools.cache
def outputs(name, position, activation="before"):
    """Logits and features of four images under two conditions, and without the block, of the same other parameters."""
    builder, shape, _ = MODELS[name]
    model = builder(2, film=film(position=position, activation=activation, units=8, around_one=True))
    images = jnp.asarray(np.random.default_rng(1).normal(size=(4, *shape)), jnp.float32)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(key):
        def at(*condition):
            return Conditioned(images, jnp.broadcast_to(jnp.array(condition, jnp.float32), (4, 2)))

        variables = model.init(key, at(0, 0), train=False)
        inner = {**variables, "params": {k: v for k, v in variables["params"].items() if k != "film"}}
        return (
            model.apply(variables, at(0, 0), train=False),
            model.apply(variables, at(1, 3), train=False),
            builder(2).apply(inner, images, train=False),
        )

    return jax.device_get(run(jax.random.key(0)))


@pytest.mark.parametrize("activation", ["before", "between"])
@pytest.mark.parametrize("name", ["cnn", pytest.param("resnet32", marks=pytest.mark.slow)])
def test_the_condition_changes_what_a_model_says(name, activation):
    (first, _), (second, _), (without, _) = outputs(name, "convolution", activation)
    assert np.abs(first - second).max() > 1e-3
    assert np.abs(first - without).max() > 1e-4


@pytest.mark.parametrize("name", ["cnn", pytest.param("resnet32", marks=pytest.mark.slow)])
def test_on_the_map_and_on_its_averages_a_block_after_the_activation_is_one_function(name):
    # Scales are positive here, so that ReLU(sigma f) + mu on the map is sigma ReLU(f) + mu there.
    on_map, on_averages = outputs(name, "convolution", "between"), outputs(name, "convolution")
    for one, other in zip(on_map, on_averages, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one, other)
    jax.tree.map(np.testing.assert_array_equal, on_averages, outputs(name, "pooling"))


@pytest.mark.slow
def test_the_place_of_the_activation_matters_where_channels_are_negative():
    builder, shape, _ = MODELS["cnn"]
    inputs = Conditioned(jnp.ones((2, *shape)), jnp.ones((2, 2)))
    found = []
    for activation in ("before", "between", "after"):
        model = builder(2, film=film(activation=activation, units=8))
        variables = model.init(jax.random.key(0), inputs, train=False)
        shifted = {**variables["params"]["norm2"], "bias": jnp.array([-5.0, 5.0] * 3)}
        params = {**variables["params"], "norm2": shifted}
        found.append(model.apply({**variables, "params": params}, inputs, train=False)[1])
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(found[i] - found[j]).max() > 1e-3


def neutral(model, variables):
    """The variables with a block that does nothing: sigma 1, mu 0."""
    params = jax.tree.map(lambda leaf: leaf, variables["params"])
    block = jax.tree.map(jnp.zeros_like, params["film"])
    return {**variables, "params": {**params, "film": block}}


@pytest.mark.parametrize(
    ("position", "activation"),
    [
        ("convolution", "between"),
        ("pooling", "before"),
        *(pytest.param("convolution", name, marks=pytest.mark.slow) for name in ("before", "after")),
    ],
)
def test_a_neutral_block_leaves_the_model_as_it_is(position, activation):
    builder, shape, _ = MODELS["cnn"]
    images = jnp.asarray(RNG.normal(size=(4, *shape)), jnp.float32)
    model = builder(2, film=film(position=position, activation=activation, units=4, around_one=True))
    inputs = Conditioned(images, jnp.ones((4, 2)))
    variables = neutral(model, model.init(jax.random.key(0), inputs, train=False))
    inner = {**variables, "params": {k: v for k, v in variables["params"].items() if k != "film"}}
    found = model.apply(variables, inputs, train=False)
    expected = builder(2).apply(inner, images, train=False)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_per_example_gradients_are_the_same_by_taps_and_example_by_example():
    model = cnn(2, width=2, film=film(units=3))
    inputs = Conditioned(
        jnp.asarray(RNG.normal(size=(5, 4, 4, 1)), jnp.float32), jnp.broadcast_to(jnp.array([0.2, 1.5]), (5, 2))
    )
    batch = Batch(inputs, jnp.array([0, 1, 1, 0, 1]))
    variables = model.init(jax.random.key(0), inputs, train=False)
    state = {"batch_stats": variables["batch_stats"]}

    def predict(params, batch, key):
        (logits, features), new = model.apply(
            {"params": params, **state}, batch.inputs, train=True, mutable=["batch_stats"]
        )
        return Prediction(logits, features, new)

    def losses(prediction, batch):
        return -jax.nn.log_softmax(prediction.logits)[jnp.arange(len(batch.labels)), batch.labels]

    def gram(engine):
        made = linearise(Objective(predict, losses), variables["params"], batch, jax.random.key(0), engine=engine)
        return made.gram, made.pullback(jnp.arange(5.0))

    by_taps, by_examples = jax.jit(lambda: (gram("gram"), gram("vmap")))()
    assert np.abs(by_examples[1]["film"]["mu_hidden"]["kernel"]).max() > 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), by_taps, by_examples)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"position": "input"}, "film.position: expected one of convolution, pooling, got 'input'"),
        ({"activation": "never"}, "film.activation: expected one of before, after, between, got 'never'"),
        ({"position": "pooling", "activation": "after"}, "film.activation: expected 'before' with position 'pooling'"),
        ({"units": 0}, "film.units: expected a whole number >= 1, got 0"),
    ],
)
def test_faulty_options_are_told(options, told):
    with pytest.raises(InputError, match=f"^{told}"):
        film(**options)


def test_a_condition_without_a_block_and_a_block_without_a_condition_are_told():
    images = jnp.zeros((2, 4, 4, 1))
    with pytest.raises(InputError, match="no FiLM block"):
        cnn(2).init(jax.random.key(0), Conditioned(images, jnp.zeros((2, 1))), train=False)
    with pytest.raises(InputError, match="needs a condition"):
        cnn(2, film=film()).init(jax.random.key(0), images, train=False)
    for shape in ((3, 1), (2,)):
        with pytest.raises(InputError, match=r"^condition: expected \[batch, k\] with batch 2"):
            cnn(2, film=film()).init(jax.random.key(0), Conditioned(images, jnp.zeros(shape)), train=False)
