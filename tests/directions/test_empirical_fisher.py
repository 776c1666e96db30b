"""EF and iEF against dense float64 references: what they do to the losses, units, class weights, bad batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from imbal_jax.corrections import compose, weights
from imbal_jax.directions.empirical_fisher import empirical_fisher, improved_empirical_fisher, squared_norms
from imbal_jax.errors import InputError
from imbal_jax.training.objective import make_objective
from imbal_jax.types import Batch

EXAMPLES, INPUTS, CLASSES = 6, 5, 3
COUNTS = (60, 12, 3)
RNG = np.random.default_rng(0)
LABELS = np.array([0, 1, 2, 1, 0, 2], np.int32)
KEY = jax.random.key(0)
BUILDERS = {"EF": empirical_fisher, "iEF": improved_empirical_fisher}
WEIGHTED = weights.inverse_frequency(COUNTS)
ETA = 1e-3


class Net(nn.Module):
    dropout: float = 0.0

    @nn.compact
    def __call__(self, inputs, train):
        features = jnp.tanh(nn.Dense(8)(inputs))
        features = nn.Dropout(self.dropout, deterministic=not train)(features)
        return nn.Dense(CLASSES)(features), features


def objective_of(correction=None, reduction="mean", progress=0.0, dropout=0.0):
    return make_objective(
        Net(dropout), correction or weights.cross_entropy(), reduction, model_state={}, progress=progress, train=True
    )


def problem(dtype=np.float64, size=1.0):
    """Parameters and a batch."""
    random = np.random.default_rng(1)
    shapes = {"Dense_0": ((INPUTS, 8), (8,)), "Dense_1": ((8, CLASSES), (CLASSES,))}
    params = {
        name: {"kernel": jnp.asarray(random.normal(size=k), dtype), "bias": jnp.asarray(random.normal(size=b), dtype)}
        for name, (k, b) in shapes.items()
    }
    inputs = random.normal(size=(EXAMPLES, INPUTS)) * size
    return params, Batch(jnp.asarray(inputs, dtype), jnp.asarray(LABELS))


def propose(direction, objective, params, batch):
    return jax.jit(lambda p: direction.propose(objective, p, batch, direction.init(p), KEY).direction)(params)


def ravel(tree):
    return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(tree)])


def class_weights(objective, params, batch):
    return jax.jit(lambda p: objective.class_weights(objective.predict(p, batch, KEY), batch))(params)


def dense_reference(objective, params, batch):
    """J [N, P] and squared logit norms [N] of the objective's losses, by explicit differentiation."""

    @jax.jit
    def compute(params):
        jacobian = jax.jacrev(lambda p: objective.losses(objective.predict(p, batch, KEY), batch))(params)
        prediction = objective.predict(params, batch, KEY)
        by_logits = jax.jacrev(lambda z: objective.losses(prediction._replace(logits=z), batch))(prediction.logits)
        return jacobian, jnp.einsum("nnc->nc", by_logits)

    jacobian, by_logits = compute(params)
    flat = np.concatenate([np.asarray(leaf).reshape(EXAMPLES, -1) for leaf in jax.tree.leaves(jacobian)], axis=1)
    return flat, np.sum(np.asarray(by_logits) ** 2, axis=1)


def step(jacobian, right, damping):
    """J^T (J J^T + damping I)^-1 r."""
    return jacobian.T @ np.linalg.solve(jacobian @ jacobian.T + damping * np.eye(len(right)), right)


@pytest.fixture(autouse=True)
def fast():
    """Compiled fast rather than well."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.usefixtures("x64")
class TestInFloat64:
    def test_ef_is_the_damped_fishers_inverse_times_the_gradient(self):
        params, batch = problem()
        objective = objective_of()
        jacobian, _ = dense_reference(objective, params, batch)
        fisher, gradient = jacobian.T @ jacobian, jacobian.sum(axis=0)
        expected = np.linalg.solve(fisher + 0.1 * np.eye(len(fisher)), gradient)
        for engine in ("gram", "vmap"):
            direction = empirical_fisher(damping=0.1, damping_mode="absolute", units="sum", engine=engine)
            np.testing.assert_allclose(ravel(propose(direction, objective, params, batch)), expected, rtol=1e-9)

    @pytest.mark.parametrize("name", BUILDERS)
    def test_units_and_damping_modes(self, name):
        """Mean: J and s of the losses divided by N, literally; right-hand side 1 for EF."""
        params, batch = problem()
        objective = objective_of()
        whole, norms = dense_reference(objective, params, batch)
        options = [(units, mode) for units in ("mean", "sum") for mode in ("absolute", "trace", "max_diagonal")]
        found = jax.jit(
            lambda p: [
                BUILDERS[name](damping=0.2, damping_mode=mode, units=units)
                .propose(objective, p, batch, (), KEY)
                .direction
                for units, mode in options
            ]
        )(params)
        for (units, mode), direction in zip(options, found, strict=True):
            count = EXAMPLES if units == "mean" else 1
            jacobian = whole / count
            diagonal = np.sum(jacobian**2, axis=1)
            damping = 0.2 * {"absolute": 1, "trace": diagonal.mean(), "max_diagonal": diagonal.max()}[mode]
            expected = step(jacobian, norms / count**2 if name == "iEF" else np.ones(EXAMPLES), damping)
            np.testing.assert_allclose(ravel(direction), expected, rtol=1e-9)

    @pytest.mark.parametrize("name, factor", [("EF", EXAMPLES), ("iEF", 1 / EXAMPLES)])
    def test_effective_learning_rate_and_damping(self, name, factor):
        params, batch = problem()
        objective = objective_of()
        by_units = {
            units: propose(
                BUILDERS[name](damping=damping, damping_mode="absolute", units=units), objective, params, batch
            )
            for units, damping in (("mean", 0.01), ("sum", 0.01 * EXAMPLES**2))
        }
        np.testing.assert_allclose(ravel(by_units["mean"]), factor * ravel(by_units["sum"]), rtol=1e-9)

    @pytest.mark.parametrize("name", BUILDERS)
    @pytest.mark.parametrize("correction, reduction", [(None, "mean"), (WEIGHTED, "mean"), (WEIGHTED, "weighted_mean")])
    def test_linearised_change_of_the_unweighted_losses(self, name, correction, reduction):
        """-eta w_n for EF and -eta w_n s_n for iEF, in the units of the sum; s of the unweighted losses."""
        params, batch = problem()
        objective, plain = objective_of(correction, reduction), objective_of()
        jacobian, norms = dense_reference(plain, params, batch)
        per_class = np.asarray(class_weights(objective, params, batch))
        direction = BUILDERS[name](damping=0.0, units="sum")
        change = -ETA * jacobian @ ravel(propose(direction, objective, params, batch))
        expected = -ETA * per_class * (norms if name == "iEF" else 1)
        np.testing.assert_allclose(change, expected, rtol=1e-6)
        assert (np.ptp(per_class) > 0.5) == (correction is not None)

    def test_weighted_losses_with_right_hand_side_one_would_be_inverted(self):
        params, batch = problem()
        objective, plain = objective_of(WEIGHTED), objective_of()
        (naive, _), (jacobian, _) = (dense_reference(each, params, batch) for each in (objective, plain))
        per_class = np.asarray(class_weights(objective, params, batch))
        np.testing.assert_allclose(jacobian @ step(naive, np.ones(EXAMPLES), 0.0), 1 / per_class, rtol=1e-6)

    @pytest.mark.parametrize("name", BUILDERS)
    def test_the_actual_losses_follow(self, name):
        """To first order in the step, not only in the linear model."""
        params, batch = problem()
        objective = objective_of(WEIGHTED)
        proposal = propose(BUILDERS[name](damping=0.0, units="sum"), objective, params, batch)
        plain = objective_of()
        _, norms = dense_reference(plain, params, batch)
        moved = jax.tree.map(lambda value, change: value - 1e-6 * change, params, proposal)
        losses = jax.jit(lambda p: plain.losses(plain.predict(p, batch, KEY), batch))
        before, after = losses(params), losses(moved)
        per_class = class_weights(objective, params, batch)
        expected = -1e-6 * per_class * (norms if name == "iEF" else 1)
        np.testing.assert_allclose(after - before, expected, rtol=1e-2)

    def test_examples_without_weight_have_no_part(self):
        params, batch = problem()
        objective = objective_of(weights.weighted(np.array([1.0, 2.0, 0.0])))
        jacobian, _ = dense_reference(objective_of(), params, batch)
        direction = ravel(
            propose(empirical_fisher(damping=0.1, damping_mode="absolute", units="sum"), objective, params, batch)
        )
        keep = LABELS != 2
        expected = step(jacobian[keep], np.array([1.0, 2.0])[LABELS[keep]], 0.1)
        np.testing.assert_allclose(direction, expected, rtol=1e-9)

    @pytest.mark.parametrize("name", BUILDERS)
    def test_near_parallel_gradients_are_left_out_by_option(self, name):
        params, batch = problem()
        batch = Batch(batch.inputs.at[3].set(batch.inputs[1]), batch.labels)  # of the same class
        objective = objective_of()
        jacobian, norms = dense_reference(objective, params, batch)
        keep = np.arange(EXAMPLES) != 3
        expected = step(jacobian[keep], (norms if name == "iEF" else np.ones(EXAMPLES))[keep], 20.0)
        options = {"damping": 20.0, "damping_mode": "absolute", "units": "sum"}
        dropped = ravel(propose(BUILDERS[name](drop_above=0.9999, **options), objective, params, batch))
        np.testing.assert_allclose(dropped, expected, rtol=1e-8)
        kept = ravel(propose(BUILDERS[name](**options), objective, params, batch))
        assert np.abs(kept - dropped).max() > 1e-3 * np.abs(dropped).max()

    def test_squared_norms(self):
        np.testing.assert_allclose(squared_norms(jnp.asarray([[3.0, 4.0], [0.0, 1.0]])), [25.0, 1.0])


class TestInFloat32:
    @pytest.mark.parametrize("name", BUILDERS)
    def test_precision_by_option(self, name):
        """Of an ill-conditioned system the float64 solution follows the losses more closely."""
        params, batch = problem(np.float32)
        inputs = batch.inputs.at[3].set(batch.inputs[1] * 1.01)
        batch, objective = Batch(inputs, batch.labels), objective_of()
        options = {"damping": 1e-4, "units": "sum"}
        single, double = (
            ravel(propose(BUILDERS[name](precision=precision, **options), objective, params, batch))
            for precision in ("float32", "float64")
        )
        assert double.dtype == np.float32
        assert not np.array_equal(single, double)
        np.testing.assert_allclose(single, double, atol=1e-2 * np.abs(double).max())

    @pytest.mark.parametrize("name", BUILDERS)
    def test_several_seeds_at_once(self, name):
        pairs = [problem(np.float32, size) for size in (1.0, 0.5, 2.0)]
        params, batches = jax.tree.map(lambda *leaves: jnp.stack(leaves), *pairs)
        direction, objective = BUILDERS[name](precision="float64", drop_above=0.99), objective_of(WEIGHTED)

        @jax.jit
        def one(params, batch):
            return direction.propose(objective, params, batch, (), KEY).direction

        together = jax.jit(jax.vmap(one))(params, batches)
        for i, pair in enumerate(pairs):
            alone, each = ravel(one(*pair)), ravel(jax.tree.map(lambda leaf, i=i: leaf[i], together))
            np.testing.assert_allclose(each, alone, rtol=1e-3, atol=1e-4 * np.abs(alone).max())

    @pytest.mark.parametrize("engine", ["gram", "vmap"])
    def test_traced_progress_switches_the_weights(self, engine):
        params, batch = problem(np.float32)
        correction = compose.deferred(after=WEIGHTED, at=0.5)
        direction = empirical_fisher(engine=engine)

        @jax.jit
        def at(progress):
            objective = objective_of(correction, progress=progress)
            return direction.propose(objective, params, batch, (), KEY).direction

        for progress, objective in ((0.2, objective_of()), (0.8, objective_of(WEIGHTED))):
            expected = ravel(propose(direction, objective, params, batch))
            np.testing.assert_allclose(ravel(at(progress)), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())

    @pytest.mark.parametrize("name", BUILDERS)
    def test_scans(self, name):
        params, batch = problem(np.float32)
        direction, objective = BUILDERS[name](precision="float64"), objective_of()

        def move(params, _):
            proposal = direction.propose(objective, params, batch, (), KEY)
            params = jax.tree.map(lambda value, change: value - 0.01 * change, params, proposal.direction)
            return params, jnp.mean(proposal.aux.losses)

        _, history = jax.jit(lambda p: jax.lax.scan(move, p, None, length=5))(params)
        assert np.all(np.diff(history) < 0)

    @pytest.mark.parametrize("name", BUILDERS)
    @pytest.mark.parametrize("damping", [0.0, 1e-12])
    def test_all_examples_equal(self, name, damping):
        params, batch = problem(np.float32)
        equal = Batch(jnp.tile(batch.inputs[:1], (EXAMPLES, 1)), jnp.zeros(EXAMPLES, jnp.int32))
        objective = objective_of()
        direction = propose(BUILDERS[name](damping=damping, units="sum"), objective, params, equal)
        with jax.enable_x64(True):
            wide = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), (params, equal.inputs))
            jacobian, norms = dense_reference(objective, wide[0], Batch(wide[1], equal.labels))
        np.testing.assert_allclose(
            jacobian @ ravel(direction), norms if name == "iEF" else np.ones(EXAMPLES), rtol=1e-2
        )

    @pytest.mark.parametrize("name", BUILDERS)
    @pytest.mark.parametrize("size", [0.0, 1e-15, 1e15])
    def test_gradients_of_any_size(self, name, size):
        """The losses are scaled, by a modulation so that they are no class weights."""
        params, batch = problem(np.float32)
        plain = objective_of()
        scaled = plain._replace(losses=lambda prediction, batch: size * plain.losses(prediction, batch))
        direction = ravel(propose(BUILDERS[name](), scaled, params, batch))
        assert np.all(np.isfinite(direction))
        # J^T K^-1 r with r = 1 is of the order 1 / size; with r = s, of the order of size.
        expected = ravel(propose(BUILDERS[name](), plain, params, batch)).astype(np.float64)
        expected = expected * (size if name == "iEF" else (1 / size if size else 0))
        np.testing.assert_allclose(direction, expected, rtol=1e-2, atol=1e-3 * np.abs(expected).max())

    @pytest.mark.parametrize("name", BUILDERS)
    def test_a_batch_of_one(self, name):
        params, batch = problem(np.float32)
        single = Batch(batch.inputs[:1], batch.labels[:1])
        proposal = jax.jit(lambda p: BUILDERS[name](damping=0.0).propose(objective_of(), p, single, (), KEY))(params)
        objective = objective_of()
        gradient = jax.grad(lambda p: objective.losses(objective.predict(p, single, KEY), single)[0])
        gradient = ravel(jax.jit(gradient)(params))
        found = ravel(proposal.direction)
        cosine = found @ gradient / np.linalg.norm(found) / np.linalg.norm(gradient)
        np.testing.assert_allclose(cosine, 1, rtol=1e-5)

    @pytest.mark.parametrize("engine", ["gram", "vmap"])
    def test_dropout_draws_from_the_key(self, engine):
        params, batch = problem(np.float32)
        direction, objective = improved_empirical_fisher(engine=engine), objective_of(dropout=0.5)
        compiled = jax.jit(lambda key: direction.propose(objective, params, batch, (), key))
        one, same, other = (compiled(jax.random.key(seed)) for seed in (0, 0, 1))
        np.testing.assert_array_equal(ravel(one.direction), ravel(same.direction))
        assert np.abs(ravel(one.direction) - ravel(other.direction)).max() > 1e-4
        if engine == "gram":
            # The masks are those of the batch, as another direction with this key draws them.
            np.testing.assert_allclose(
                one.aux.losses, objective.losses(objective.predict(params, batch, KEY), batch), rtol=1e-5
            )


@pytest.mark.parametrize("builder", BUILDERS.values(), ids=BUILDERS)
@pytest.mark.parametrize(
    "options, message",
    [
        ({"damping": -1e-3}, "damping: expected a number >= 0, got -0.001"),
        ({"damping_mode": "max"}, "damping_mode: expected one of"),
        ({"units": "average"}, "units: expected 'mean' or 'sum', got 'average'"),
        ({"engine": "ghost"}, "engine: expected one of auto, gram, vmap, got 'ghost'"),
        ({"statistics": "eval"}, "statistics: expected one of batch, running, got 'eval'"),
        ({"drop_above": 0.0}, "drop_above: expected a number in"),
        ({"precision": "double"}, "precision: expected one of float32, float64, got 'double'"),
    ],
)
def test_bad_options(builder, options, message):
    with pytest.raises(InputError, match=message) as error:
        builder(**options)
    assert "\n" not in str(error.value)
