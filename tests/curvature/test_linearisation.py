"""Both engines against explicit Jacobians in float64."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from imbal_jax.corrections import margins, modulations, weights
from imbal_jax.corrections.compose import composed
from imbal_jax.curvature.linearisation import linearise
from imbal_jax.errors import InputError
from imbal_jax.models import cnn
from imbal_jax.models.batch_norm import BatchNorm
from imbal_jax.models.convolution import Convolution3x3
from imbal_jax.models.heads import CosineClassifier
from imbal_jax.models.pooling import max_pool_2x2
from imbal_jax.training.objective import make_objective
from imbal_jax.types import Batch

EXAMPLES, CLASSES = 5, 3
COUNTS = (60, 12, 3)
RNG = np.random.default_rng(0)
LABELS = np.array([0, 1, 2, 1, 0], np.int32)
COEFFICIENTS = RNG.normal(size=EXAMPLES)
KEY = jax.random.key(0)
VECTORS, SEQUENCES, IMAGES, MOVIES = (
    RNG.normal(size=(EXAMPLES, *shape)) for shape in [(4,), (6, 4), (6, 6, 2), (2, 5, 5, 2)]
)


class Net(nn.Module):
    """Any body, then a classifier; returns logits and features as all models do."""

    body: Callable
    cosine: bool = False

    @nn.compact
    def __call__(self, inputs, train):
        features = self.body(inputs, train)
        features = features.reshape(len(features), -1)
        head = CosineClassifier(CLASSES, name="head") if self.cosine else nn.Dense(CLASSES, name="head")
        return head(features), features


def adapted(x, train):
    """A frozen-like dense layer with a low-rank adapter, on a sequence."""
    return jnp.tanh(nn.Dense(5)(x) + 2 * nn.Dense(5, use_bias=False)(nn.Dense(2, use_bias=False)(x))).mean(axis=1)


def shared(x, train):
    """One dense layer applied twice, with a different number of positions, and one norm applied twice."""
    dense, norm = nn.Dense(4), nn.LayerNorm()
    hidden = norm(jnp.tanh(dense(x)))
    return norm(dense(hidden[:, :2])).mean(axis=1) + hidden.mean(axis=1)


def pooled(x, train):
    return max_pool_2x2(nn.relu(nn.Conv(3, (3, 3), padding="VALID")(x)))


def strided(x, train):
    hidden = nn.relu(Convolution3x3(3, stride=2)(x))
    return nn.Conv(2, (2, 2), strides=(2, 1), padding=((1, 0), (0, 1)), use_bias=False, kernel_dilation=(1, 2))(hidden)


def normalised(x, train):
    return nn.relu(BatchNorm()(nn.Conv(3, (3, 3), strides=2)(x), train))


BODIES = {
    "mlp": (lambda x, train: nn.relu(nn.Dense(6)(x)), VECTORS),
    "convolution, pooling": (pooled, IMAGES),
    "convolutions, stride": (strided, IMAGES),
    "1-d convolution": (lambda x, train: nn.relu(nn.Conv(3, 3, padding=1)(x)), SEQUENCES),
    "images in time": (lambda x, train: nn.relu(nn.Conv(3, (3, 3), strides=2)(x)), MOVIES),
    "normalisations": (lambda x, train: nn.GroupNorm(2)(nn.RMSNorm()(nn.LayerNorm()(nn.Dense(4)(x)))), SEQUENCES),
    "adapters": (adapted, SEQUENCES),
    "shared": (shared, SEQUENCES),
    "attention": (lambda x, train: nn.MultiHeadDotProductAttention(2)(x), SEQUENCES),
    "running statistics": (normalised, IMAGES),
}


def problem(model, inputs, correction=None, reduction="mean", *, train=False, dtype=jnp.float64):
    """An objective, its parameters and a batch, in one precision."""
    cast = lambda leaf: jnp.asarray(leaf, dtype)  # noqa: E731
    inputs = cast(inputs)
    shapes = jax.eval_shape(lambda: model.init(KEY, inputs, train=False))
    random = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: cast(0.7 * random.normal(size=leaf.shape)), shapes["params"])
    state = {name: value for name, value in shapes.items() if name != "params"}
    state = jax.tree.map(lambda leaf: cast(random.uniform(0.5, 2, leaf.shape)), state)
    objective = make_objective(
        model,
        correction or weights.cross_entropy(),
        reduction,
        model_state=state,
        progress=0.7,
        train=train,
    )
    return objective, params, Batch(inputs, jnp.asarray(LABELS))


def parts(objective, params, batch, **options):
    """What a linearisation gives, as arrays."""
    linearised = linearise(objective, params, batch, KEY, **options)
    coefficients = jnp.asarray(COEFFICIENTS, linearised.gram.dtype)
    return {
        "losses": linearised.evidence.losses,
        "gram": linearised.gram,
        "pullback": linearised.pullback(coefficients),
        "products": linearised.products(params),
        "round": linearised.products(linearised.pullback(coefficients)),
        "logits": linearised.logit_gradients,
    }


def flatten(jacobian):
    """J, [batch, parameters]."""
    return np.concatenate([np.asarray(leaf).reshape(EXAMPLES, -1) for leaf in jax.tree.leaves(jacobian)], axis=1)


def ravel(params):
    return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(params)])


def check(found, jacobian, params, tolerance=1e-10):
    """Gram matrix, J^T v, J d and J J^T v against J."""
    close = functools.partial(np.testing.assert_allclose, rtol=tolerance)
    gram = jacobian @ jacobian.T
    close(found["gram"], gram, atol=tolerance * np.abs(gram).max())
    close(ravel(found["pullback"]), COEFFICIENTS @ jacobian, atol=tolerance * np.abs(jacobian).max())
    close(found["products"], jacobian @ ravel(params), atol=tolerance * 10 * np.abs(jacobian).max())
    close(found["round"], gram @ COEFFICIENTS, atol=tolerance * np.abs(gram).max())
    assert jax.tree.structure(found["pullback"]) == jax.tree.structure(params)


@pytest.fixture(autouse=True)
def x64():
    """Compiled fast rather than well, in float64."""
    jax.config.update("jax_disable_most_optimizations", True)
    with jax.enable_x64(True):
        yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.parametrize("body, inputs", BODIES.values(), ids=BODIES)
def test_engines_equal_the_explicit_jacobian(body, inputs):
    objective, params, batch = problem(Net(body), inputs)

    @jax.jit
    def compute(params):
        engines = {engine: parts(objective, params, batch, engine=engine) for engine in ("gram", "vmap")}
        return engines, jax.jacrev(lambda p: objective.losses(objective.predict(p, batch, KEY), batch))(params)

    engines, jacobian = compute(params)
    for found in engines.values():
        check(found, flatten(jacobian), params)
        assert found["gram"].dtype == np.float64


@pytest.mark.parametrize("name", ["convolutions, stride", "adapters"])
def test_engines_agree_in_float32(name):
    body, inputs = BODIES[name]
    with jax.enable_x64(False):
        objective, params, batch = problem(Net(body), inputs, dtype=jnp.float32)
        gram, vmap = (
            jax.jit(lambda p, engine=engine: parts(objective, p, batch, engine=engine))(params)
            for engine in ("gram", "vmap")
        )
        for one, other in zip(jax.tree.leaves(gram), jax.tree.leaves(vmap), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * np.abs(other).max())
            assert one.dtype == np.float32


CORRECTIONS = {
    "ldam": (margins.ldam(COUNTS), True),
    "influence_balanced": (modulations.influence_balanced(COUNTS), False),
    "focal over logit adjustment": (
        composed(margin=margins.logit_adjustment(COUNTS), modulation=modulations.focal(gamma=2.0)),
        False,
    ),
    "inverse_frequency": (weights.inverse_frequency(COUNTS), True),
}


@pytest.mark.parametrize("correction, cosine", CORRECTIONS.values(), ids=CORRECTIONS)
def test_corrections_weighted_and_not(correction, cosine):
    model = Net(BODIES["mlp"][0], cosine=cosine)
    objective, params, batch = problem(model, VECTORS, correction, "weighted_mean")

    @jax.jit
    def compute(params):
        found = {
            (engine, weighted): parts(objective, params, batch, engine=engine, with_class_weights=weighted)
            for engine in ("gram", "vmap")
            for weighted in (True, False)
        }
        jacobian = jax.jacrev(lambda p: objective.losses(objective.predict(p, batch, KEY), batch))(params)
        return found, jacobian, linearise(objective, params, batch, KEY).class_weights

    found, jacobian, factors = compute(params)
    # What the weights of the batch are, under a reduction that divides by their sum.
    per_class = jax.jit(lambda p: correction.correct(objective.predict(p, batch, KEY), batch.labels, 0.7).weights)(
        params
    )
    np.testing.assert_allclose(factors, per_class * EXAMPLES / np.sum(per_class), rtol=1e-12)
    for (_, weighted), each in found.items():
        check(each, flatten(jacobian) / (1 if weighted else np.asarray(factors)[:, None]), params)
    assert (np.ptp(factors) > 0.1) == (
        correction in (CORRECTIONS["inverse_frequency"][0], CORRECTIONS["influence_balanced"][0])
    )


def normalise_by_batch(x, scale, bias):
    """Batch normalisation by hand; scale and bias of every example, [batch, 1, ..., channels]."""
    axes = tuple(range(x.ndim - 1))
    return (x - x.mean(axes)) / jnp.sqrt(x.var(axes) + 1e-5) * scale + bias


def batch_norm_losses(copies, inputs, skip):
    """The losses of convolution, batch normalisation, ReLU and dense layer, with a copy of all parameters per example.

    With `skip` the convolution's output also goes past the normalisation.
    """

    def convolve(image, params):
        numbers = ("NHWC", "HWIO", "NHWC")
        return (
            jax.lax.conv_general_dilated(image[None], params["kernel"], (2, 2), "SAME", dimension_numbers=numbers)[0]
            + params["bias"]
        )

    hidden = jax.vmap(convolve)(inputs, copies["Conv_0"])
    norm = {name: leaf[:, None, None] for name, leaf in copies["BatchNorm_0"].items()}
    features = jax.nn.relu(normalise_by_batch(hidden, **norm)) + (hidden if skip else 0)
    head = copies["head"]
    logits = jnp.einsum("nf,nfc->nc", features.reshape(EXAMPLES, -1), head["kernel"]) + head["bias"]
    return -jax.nn.log_softmax(logits)[jnp.arange(EXAMPLES), LABELS]


def with_skip(x, train):
    hidden = nn.Conv(3, (3, 3), strides=2)(x)
    return nn.relu(BatchNorm()(hidden, train)) + hidden


@pytest.mark.parametrize("skip", [False, True])
def test_batch_statistics_give_the_gradient_of_each_examples_copy(skip):
    objective, params, batch = problem(Net(with_skip if skip else normalised), IMAGES, train=True)

    @jax.jit
    def compute(params):
        engines = {engine: parts(objective, params, batch, engine=engine) for engine in ("gram", "vmap")}
        copies = jax.tree.map(lambda leaf: jnp.tile(leaf, (EXAMPLES, *(1,) * leaf.ndim)), params)
        by_hand, jacobian = jax.value_and_grad(lambda c: batch_norm_losses(c, batch.inputs, skip).sum())(copies)
        summed = linearise(objective, params, batch, KEY, engine="gram").pullback(jnp.ones(EXAMPLES))
        whole = jax.grad(lambda p: jnp.mean(objective.losses(objective.predict(p, batch, KEY), batch)))(params)
        return engines, by_hand, jacobian, summed, whole

    engines, by_hand, jacobian, summed, whole = compute(params)
    if not skip:
        # Its gradients sum to zero, but are none: they are left out because the bias has no effect.
        assert np.abs(jacobian["Conv_0"]["bias"]).max() > 1e-3
        np.testing.assert_allclose(jacobian["Conv_0"]["bias"].sum(axis=0), 0, atol=1e-12)
        jacobian["Conv_0"]["bias"] = jnp.zeros_like(jacobian["Conv_0"]["bias"])
    for found in engines.values():
        np.testing.assert_allclose(found["losses"].sum(), by_hand, rtol=1e-10)
        check(found, flatten(jacobian), params)
        moves = np.abs(found["pullback"]["Conv_0"]["bias"]).max() > 0
        assert moves == skip
    np.testing.assert_allclose(ravel(summed), EXAMPLES * ravel(whole), rtol=1e-9, atol=1e-12)


def dense_with_rest(x, train):
    """A dense bias before batch statistics, with an activation between, and one that is shared with another path."""
    shared_dense = nn.Dense(4, name="shared")
    hidden = BatchNorm()(jnp.tanh(nn.Dense(4, name="free")(x)), train)
    hidden = BatchNorm()(nn.Dense(4, name="absorbed")(hidden), train)
    return BatchNorm()(shared_dense(hidden), train) + jnp.tanh(shared_dense(x))


@pytest.mark.parametrize("engine", ["gram", "vmap"])
def test_only_biases_without_effect_are_left_out(engine):
    objective, params, batch = problem(Net(dense_with_rest), VECTORS, train=True)
    pulled = jax.jit(lambda p: parts(objective, p, batch, engine=engine)["pullback"])(params)
    still = {name for name, leaves in pulled.items() if "bias" in leaves and not np.any(leaves["bias"])}
    assert still == {"absorbed"}


@pytest.mark.parametrize("engine", ["gram", "vmap"])
def test_running_statistics_by_option(engine):
    objective, params, batch = problem(Net(normalised), IMAGES, train=True)
    evaluated, *_ = problem(Net(normalised), IMAGES, train=False)

    @jax.jit
    def compute(params):
        linearised = linearise(objective, params, batch, KEY, engine=engine, statistics="running")
        jacobian = jax.jacrev(lambda p: evaluated.losses(evaluated.predict(p, batch, KEY), batch))(params)
        kept = objective.predict(params, batch, KEY)
        found = parts(objective, params, batch, engine=engine, statistics="running")
        return found, jacobian, linearised.evidence, (objective.losses(kept, batch), kept)

    found, jacobian, evidence, kept = compute(params)
    check(found, flatten(jacobian), params)
    assert np.any(found["pullback"]["Conv_0"]["bias"])  # running statistics do not absorb it
    for one, other in zip(jax.tree.leaves(evidence), jax.tree.leaves(kept), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)
    assert evidence.prediction.aux.keys() == {"batch_stats"}


class Foreign(nn.Module):
    """The batch normalisation of Flax."""

    @nn.compact
    def __call__(self, inputs, train):
        hidden = nn.BatchNorm(use_running_average=not train, epsilon=1e-5)(nn.Conv(3, (3, 3), strides=2)(inputs))
        features = nn.relu(hidden).reshape(len(inputs), -1)
        return nn.Dense(CLASSES, name="head")(features), features


def test_flax_batch_norm_works_with_taps_alone():
    objective, params, batch = problem(Foreign(), IMAGES, train=True)
    ours, *_ = problem(Net(normalised), IMAGES, train=True)
    found = jax.jit(lambda p: parts(objective, p, batch, engine="gram"))(params)
    expected = jax.jit(lambda p: parts(ours, p, batch, engine="gram"))(params)
    np.testing.assert_allclose(found["gram"], expected["gram"], rtol=1e-8)
    with pytest.raises(InputError, match="'vmap' takes batch statistics of imbal_jax's BatchNorm only, got BatchNorm"):
        linearise(objective, params, batch, KEY, engine="vmap")
    with pytest.raises(InputError, match="statistics: 'running' needs imbal_jax's BatchNorm, got BatchNorm"):
        linearise(objective, params, batch, KEY, statistics="running")


@pytest.mark.parametrize("engine", ["gram", "vmap"])
def test_running_statistics_kept_of_a_batch_are_those_of_the_model(engine):
    objective, params, batch = problem(Net(normalised), IMAGES, train=True)
    evidence, kept = jax.jit(
        lambda p: (linearise(objective, p, batch, KEY, engine=engine).evidence, objective.predict(p, batch, KEY))
    )(params)
    for one, other in zip(jax.tree.leaves(evidence.prediction), jax.tree.leaves(kept), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10)


def test_bfloat16_layers():
    with jax.enable_x64(False):
        narrow, wide = (
            Net(lambda x, train, dtype=dtype: nn.relu(nn.Dense(16, dtype=dtype)(x)))
            for dtype in (jnp.bfloat16, jnp.float32)
        )
        found, expected = (
            jax.jit(lambda p, o=objective, b=batch: parts(o, p, b, engine="gram"))(params)
            for objective, params, batch in (problem(net, VECTORS, dtype=jnp.float32) for net in (narrow, wide))
        )
    scale = np.abs(expected["gram"]).max()
    np.testing.assert_allclose(found["gram"], expected["gram"], atol=0.05 * scale)
    assert not np.array_equal(found["gram"], expected["gram"])
    assert {leaf.dtype for leaf in jax.tree.leaves((found["pullback"], found["gram"]))} == {np.dtype(np.float32)}


@pytest.mark.parametrize("engine", ["gram", "vmap"])
def test_a_batch_of_one(engine):
    objective, params, batch = problem(Net(BODIES["mlp"][0]), VECTORS)
    single = Batch(batch.inputs[:1], batch.labels[:1])

    @jax.jit
    def compute(params):
        linearised = linearise(objective, params, single, KEY, engine=engine)
        gradient = jax.grad(lambda p: objective.losses(objective.predict(p, single, KEY), single)[0])(params)
        return linearised.pullback(jnp.ones(1)), linearised.gram, gradient

    pulled, gram, gradient = compute(params)
    np.testing.assert_allclose(ravel(pulled), ravel(gradient), rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(gram, [[np.sum(ravel(gradient) ** 2)]], rtol=1e-10)


@pytest.mark.parametrize("options", [{"engine": "ghost"}, {"statistics": "none"}])
def test_unknown_options(options):
    (name, value), objective = *options.items(), problem(Net(BODIES["mlp"][0]), VECTORS)
    with pytest.raises(InputError, match=f"{name}: expected one of .*, got '{value}'"):
        linearise(*objective, KEY, **options)


@pytest.mark.slow
def test_engines_agree_on_a_model_of_ours_without_biases_before_batch_norm():
    model = cnn.cnn(3, width=2)
    batch = Batch(jnp.asarray(np.random.default_rng(0).normal(size=(5, 4, 4, 1))), jnp.asarray([0, 1, 2, 0, 1]))
    variables = model.init(jax.random.key(0), batch.inputs, train=False)
    state = {"batch_stats": variables["batch_stats"]}
    objective = make_objective(model, weights.cross_entropy(), "mean", model_state=state, progress=0.0, train=True)
    grams = [
        linearise(objective, variables["params"], batch, jax.random.key(1), engine=engine).gram
        for engine in ("gram", "vmap")
    ]
    np.testing.assert_allclose(grams[0], grams[1], rtol=1e-5, atol=1e-5 * np.abs(grams[1]).max())
