"""What can be tapped, what is refused and why: models that must never give a wrong Gram matrix silently."""

import logging
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from imbal_jax.curvature.linearisation import linearise
from imbal_jax.curvature.taps import plan_taps
from imbal_jax.errors import InputError
from imbal_jax.losses import cross_entropy_losses
from imbal_jax.models.batch_norm import BatchNorm
from imbal_jax.types import Batch, Objective, Prediction

EXAMPLES, CLASSES = 4, 3
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, CLASSES, EXAMPLES).astype(np.int32)
KEY = jax.random.key(0)
COEFFICIENTS = RNG.normal(size=EXAMPLES)


class Net(nn.Module):
    """Any body, and a dense layer on top."""

    body: Callable

    @nn.compact
    def __call__(self, inputs):
        hidden = self.body(inputs)
        return nn.Dense(CLASSES, name="head")(hidden.reshape(len(hidden), -1))


class Gate(nn.Module):
    """A parameter of its own, and inputs by position, keyword and within a tuple."""

    @nn.compact
    def __call__(self, inputs, gate=None, pair=None):
        scale = self.param("scale", nn.initializers.ones, inputs.shape[-1:])
        inputs = inputs if pair is None else inputs + pair[0] * pair[1]
        return inputs * scale * (1 if gate is None else gate)


class Around(nn.Module):
    """A parameter of its own around a module that belongs to another one."""

    inner: Callable

    @nn.compact
    def __call__(self, inputs):
        return self.inner(inputs) * self.param("scale", nn.initializers.ones, ())


class Wrapped(nn.Module):
    """A parameter of its own and a dense layer inside."""

    @nn.compact
    def __call__(self, inputs):
        return nn.Dense(3)(inputs) * self.param("scale", nn.initializers.ones, ())


class Doubled(nn.Dense):
    @nn.compact
    def __call__(self, inputs):
        return 2 * super().__call__(inputs)


class Block(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        return jnp.tanh(nn.Dense(inputs.shape[-1])(inputs))


class ScanBlock(nn.Module):
    @nn.compact
    def __call__(self, inputs, _):
        return jnp.tanh(nn.Dense(inputs.shape[-1])(inputs)), None


class SharedScope(nn.Module):
    """A dense layer whose parameters lie beside those of its adapter."""

    @nn.compact
    def __call__(self, inputs):
        dense = nn.Dense(4)
        nn.share_scope(self, dense)
        return dense(inputs) + nn.Dense(4, use_bias=False, name="B")(nn.Dense(2, use_bias=False, name="A")(inputs))


class Noise(nn.Module):
    @nn.compact
    def __call__(self, inputs, train=True):
        inputs = nn.Dropout(0.5, deterministic=not train)(inputs)
        return inputs * self.param("scale", nn.initializers.ones, inputs.shape[-1:])


def keyword_gate(x):
    return Gate()(jnp.tanh(nn.Dense(5)(x)), gate=nn.sigmoid(nn.Dense(5)(x)))


def tuple_gate(x):
    return Gate()(jnp.tanh(x), None, (nn.Dense(4)(x), nn.Dense(4)(x)))


def tied_by_hand(x):
    dense = nn.Dense(4, name="tied")
    return jnp.tanh(dense(x)) @ dense.variables["params"]["kernel"]


def tied_embedding(x):
    embed = nn.Embed(7, 4, name="tied")
    return embed.attend(nn.Dense(4)(embed(x)))


def foreign(x):
    dense = nn.Dense(4, name="tied")
    return Around(dense)(jnp.tanh(dense(x)))


def scanned(x):
    lifted = nn.scan(ScanBlock, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
    return lifted()(x, None)[0]


def vmapped(x):
    return nn.vmap(Block, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=None, axis_size=2)()(
        x
    ).transpose(1, 0, 2)


VECTORS, SEQUENCES, IMAGES = (RNG.normal(size=(EXAMPLES, *shape)) for shape in [(4,), (3, 4), (4, 4, 2)])
TOKENS = RNG.integers(0, 7, (EXAMPLES, 3))

# Layers of unknown kind, taken example by example: body, inputs, the paths that are opaque.
OPAQUE = {
    "own parameter": (lambda x: Gate()(jnp.tanh(nn.Dense(5)(x))), VECTORS, {"Gate_0"}),
    "around a dense layer": (lambda x: Wrapped()(jnp.tanh(nn.Dense(4)(x))), VECTORS, {"Wrapped_0"}),
    "array by keyword": (keyword_gate, VECTORS, {"Gate_0"}),
    "arrays in a tuple": (tuple_gate, VECTORS, {"Gate_0"}),
    "dense by keyword": (lambda x: nn.Dense(3)(inputs=x), VECTORS, {"Dense_0"}),
    "grouped convolution": (lambda x: nn.Conv(4, (3, 3), feature_group_count=2)(x), IMAGES, {"Conv_0"}),
    "circular convolution": (lambda x: nn.Conv(3, (3, 3), padding="CIRCULAR")(x), IMAGES, {"Conv_0"}),
    "subclass": (lambda x: jnp.tanh(Doubled(3)(x)), VECTORS, {"Doubled_0"}),
    "norm over several axes": (
        lambda x: nn.LayerNorm(reduction_axes=(1, 2), feature_axes=(1, 2))(x),
        SEQUENCES,
        {"LayerNorm_0"},
    ),
    "embedding": (lambda x: nn.Embed(7, 4)(x), TOKENS, {"Embed_0"}),
    "shared scope": (lambda x: SharedScope()(x), VECTORS, {"SharedScope_0"}),
    "dropout that is off": (lambda x: Noise()(x, train=False), VECTORS, {"Noise_0"}),
}
# Models that no tap fits: body, inputs, the reason.
REFUSED = {
    "tied by hand": (tied_by_hand, VECTORS, "tied/kernel: parameter tied/kernel is used outside of tied as well"),
    "tied embedding": (tied_embedding, TOKENS, "parameter tied/embedding is used outside of tied as well"),
    "foreign parameters": (foreign, VECTORS, "it contains tied, whose parameters are not its own"),
    "remat": (lambda x: nn.remat(Block)()(x), VECTORS, "inside of a transformation"),
    "jit": (lambda x: nn.jit(Block)()(x), VECTORS, "inside of a transformation"),
    "scan": (scanned, VECTORS, "inside of a transformation"),
    "vmap": (vmapped, VECTORS, "inside of a transformation"),
    "weight normalisation": (lambda x: nn.WeightNorm(nn.Dense(4))(x), VECTORS, "are computed from others"),
    "no axis of examples": (
        lambda x: nn.Dense(4)(x.reshape(-1, 4)).reshape(x.shape),
        SEQUENCES,
        "its inputs have no leading axis of examples",
    ),
}


def problem(body, inputs):
    """An objective in float64, its parameters and a batch."""
    inputs = jnp.asarray(inputs)
    model = Net(body)
    shapes = jax.eval_shape(lambda: model.init(KEY, inputs))["params"]
    random = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape)), shapes)

    def predict(params, batch, key):
        return Prediction(model.apply({"params": params}, batch.inputs, rngs={"dropout": key}))

    return objective_of(predict), params, Batch(inputs, jnp.asarray(LABELS))


def objective_of(predict):
    return Objective(predict, lambda prediction, batch: cross_entropy_losses(prediction.logits, batch.labels))


def check_against_explicit_jacobian(objective, params, batch, engine):
    """Gram matrix, J^T v and J d against the Jacobian of the vector of losses."""

    @jax.jit
    def compute(params):
        linearised = linearise(objective, params, batch, KEY, engine=engine)
        jacobian = jax.jacrev(lambda p: objective.losses(objective.predict(p, batch, KEY), batch))(params)
        parts = linearised.gram, linearised.pullback(jnp.asarray(COEFFICIENTS)), linearised.products(params)
        return parts, jacobian

    (gram, pulled, products), jacobian = compute(params)
    flat = np.concatenate([np.asarray(leaf).reshape(EXAMPLES, -1) for leaf in jax.tree.leaves(jacobian)], axis=1)
    vector = np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(params)])
    np.testing.assert_allclose(gram, flat @ flat.T, rtol=1e-10, atol=1e-12)
    assert jax.tree.structure(pulled) == jax.tree.structure(params)
    pulled = np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(pulled)])
    np.testing.assert_allclose(pulled, COEFFICIENTS @ flat, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(products, flat @ vector, rtol=1e-10, atol=1e-12)


@pytest.fixture(autouse=True)
def x64():
    """Compiled fast rather than well, in float64."""
    jax.config.update("jax_disable_most_optimizations", True)
    with jax.enable_x64(True):
        yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.parametrize("body, inputs, paths", OPAQUE.values(), ids=OPAQUE)
def test_layers_of_unknown_kind_are_right_and_logged(caplog, body, inputs, paths):
    objective, params, batch = problem(body, inputs)
    with caplog.at_level(logging.WARNING):
        check_against_explicit_jacobian(objective, params, batch, "gram")
    messages = [record.getMessage() for record in caplog.records]
    assert {message.split(" is differentiated example by example")[0] for message in messages} == paths
    assert all("is used outside of the layers that have taps" in message for message in messages)


@pytest.mark.parametrize("body, inputs, reason", REFUSED.values(), ids=REFUSED)
def test_what_has_no_taps_is_refused_with_the_reason(body, inputs, reason):
    objective, params, batch = problem(body, inputs)
    with pytest.raises(InputError, match=f"engine: 'gram' cannot tap the parameter .*{reason}.*use 'vmap'") as error:
        linearise(objective, params, batch, KEY, engine="gram")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["tied by hand", "foreign parameters", "scan"])
def test_auto_holds_the_gradients_instead_and_logs_the_reason(caplog, name):
    body, inputs, reason = REFUSED[name]
    objective, params, batch = problem(body, inputs)
    with caplog.at_level(logging.WARNING):
        check_against_explicit_jacobian(objective, params, batch, "auto")
    assert any(reason in record.getMessage() and "'vmap' is used" in record.getMessage() for record in caplog.records)


class WithStatistics(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        return BatchNorm()(inputs, True) * self.param("scale", nn.initializers.ones, ())


@pytest.mark.parametrize(
    "body, reason",
    [(lambda x: Noise()(x), "it contains dropout"), (lambda x: WithStatistics()(x), "it contains batch statistics")],
)
def test_layers_of_unknown_kind_may_not_be_random_or_couple_examples(body, reason):
    inputs = jnp.asarray(VECTORS)
    model = Net(body)
    rngs = {"params": KEY, "dropout": KEY}
    variables = jax.eval_shape(lambda: model.init(rngs, inputs))

    def predict(params, batch, key):
        state = {"batch_stats": jax.tree.map(jnp.zeros_like, variables.get("batch_stats", {}))}
        return Prediction(model.apply({"params": params, **state}, batch.inputs, rngs={"dropout": key}, mutable=[])[0])

    plan = plan_taps(predict, variables["params"], Batch(inputs, jnp.asarray(LABELS)), KEY)
    assert {leaf[-1] for leaf in plan.untapped} == {"scale"}
    assert set(plan.untapped.values()) == {reason}
    assert not plan.opaque


def test_a_parameter_outside_of_all_modules_is_named():
    def predict(params, batch, key):
        return Prediction(batch.inputs @ params["matrix"])

    params, batch = {"matrix": jnp.ones((4, CLASSES))}, Batch(jnp.asarray(VECTORS), jnp.asarray(LABELS))
    with pytest.raises(InputError, match="cannot tap the parameter matrix: no module that can be tapped uses it"):
        linearise(objective_of(predict), params, batch, KEY, engine="gram")
    check_against_explicit_jacobian(objective_of(predict), params, batch, "auto")


class TestParametersThatAreNotTheModulesOwn:
    """The trained parameters and those of the modules differ: a frozen part, another layout, a computed kernel."""

    body = staticmethod(lambda x: jnp.tanh(nn.Dense(5, name="base")(x)))

    def test_frozen_modules_have_no_taps(self):
        objective, params, batch = problem(self.body, VECTORS)
        frozen = {"base": params["base"]}
        part = objective_of(lambda p, batch, key: objective.predict({**p, **frozen}, batch, key))
        head = {"head": params["head"]}
        assert plan_taps(part.predict, head, batch, KEY).paths == {("head",)}
        check_against_explicit_jacobian(part, head, batch, "gram")

    @pytest.mark.parametrize("layout", ["half a module", "other names", "computed"])
    def test_others_are_not_mistaken_for_them(self, layout):
        objective, full, batch = problem(self.body, VECTORS)
        base, head = full["base"], full["head"]
        params, rebuild = {
            "half a module": (
                {"head": head, "base": {"bias": base["bias"]}},
                lambda p: {"head": p["head"], "base": {**base, **p["base"]}},
            ),
            "other names": ({"net": full}, lambda p: p["net"]),
            "computed": (full, lambda p: {**p, "base": jax.tree.map(lambda leaf: 2 * leaf, p["base"])}),
        }[layout]
        changed = objective_of(lambda p, batch, key: objective.predict(rebuild(p), batch, key))
        with pytest.raises(InputError, match="cannot tap the parameter"):
            linearise(changed, params, batch, KEY, engine="gram")
        check_against_explicit_jacobian(changed, params, batch, "auto")


def test_the_compiled_gram_engine_holds_nothing_of_the_size_of_the_jacobian():
    inputs = RNG.normal(size=(32, 256))
    model = Net(lambda x: nn.relu(nn.Dense(512)(x)))
    batch = Batch(jnp.asarray(inputs, jnp.float32), jnp.zeros(32, jnp.int32))
    params = jax.eval_shape(lambda: model.init(KEY, batch.inputs))["params"]
    objective = objective_of(lambda p, batch, key: Prediction(model.apply({"params": p}, batch.inputs)))

    def step(params, engine):
        linearised = linearise(objective, params, batch, KEY, engine=engine)
        return linearised.pullback(jnp.linalg.solve(linearised.gram + jnp.eye(32, dtype=jnp.float32), jnp.ones(32)))

    held = {
        engine: jax.jit(step, static_argnums=1).lower(params, engine).compile().memory_analysis().temp_size_in_bytes
        for engine in ("gram", "vmap")
    }
    jacobian = 32 * sum(leaf.size for leaf in jax.tree.leaves(params)) * 4
    assert held["gram"] < jacobian / 4
    assert held["vmap"] > jacobian / 2  # else the measure means nothing
