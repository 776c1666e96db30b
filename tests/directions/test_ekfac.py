"""EKFAC against NumPy in float64, and what a run asks of it; test_ekfac_layers.py has what it does not know."""

import itertools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from imbal_jax.corrections.modulations import influence
from imbal_jax.corrections.weights import inverse_frequency
from imbal_jax.directions.ekfac import ekfac
from imbal_jax.directions.gradient import gradient
from imbal_jax.losses import reducible_losses
from imbal_jax.models.batch_norm import BatchNorm
from imbal_jax.models.convolution import Convolution3x3
from imbal_jax.types import Batch, Objective, Prediction, Structure

CLASSES = 3
LABELS = np.arange(12) % CLASSES
COUNTS = np.asarray([30, 8, 2])
KEY = jax.random.key(0)
DAMPING = 0.03


# The reference: rows and cotangents of every layer by taps, everything else in NumPy.


class Net(nn.Module):
    """Layers one after the other, ReLU between them, and a mean over all positions at the end."""

    layers: tuple

    @nn.compact
    def __call__(self, inputs):
        hidden = inputs
        for layer in self.layers[:-1]:
            hidden = layer(hidden, True) if isinstance(layer, BatchNorm) else layer(hidden)
            hidden = hidden if isinstance(layer, BatchNorm) else jnp.tanh(hidden)
        features = hidden.reshape(len(hidden), -1, hidden.shape[-1]).mean(axis=1)
        return self.layers[-1](features), features


class Sequence(nn.Module):
    """Low-rank adapters and dense layers over a sequence, with a layer norm."""

    @nn.compact
    def __call__(self, inputs):
        frozen = jnp.sin(jnp.arange(inputs.shape[-1] * 5.0)).reshape(-1, 5)
        low = nn.Dense(2, use_bias=False, name="A")(inputs)
        hidden = nn.LayerNorm()(inputs @ frozen + nn.Dense(5, use_bias=False, name="B")(low))
        features = jnp.tanh(nn.Dense(4)(hidden)).mean(axis=1)
        return nn.Dense(CLASSES)(features), features


CASES = {
    "mlp": (Net((nn.Dense(5), nn.Dense(CLASSES))), (4,)),
    "convolution": (Net((nn.Conv(4, (3, 3)), nn.Dense(CLASSES))), (5, 5, 2)),
    "stride, valid": (
        Net((nn.Conv(4, (3, 2), strides=(2, 1), padding="VALID", use_bias=False), nn.Dense(CLASSES))),
        (6, 5, 2),
    ),
    "patches": (Net((Convolution3x3(4), Convolution3x3(3, use_bias=False), nn.Dense(CLASSES))), (2, 2, 3)),
    "batch norm": (Net((Convolution3x3(5, stride=2), BatchNorm(), nn.Dense(CLASSES))), (6, 6, 5)),
    "sequence": (Sequence(), (6, 4)),
}
EVERY_LAYER = (nn.Dense, nn.Conv, Convolution3x3)


def patches(images, kernel, layer):
    """Rows [batch, positions, a] of a convolution, position by position."""
    height, width = kernel.shape[:2]
    stride = np.broadcast_to(getattr(layer, "strides", None) or getattr(layer, "stride", 1), 2)
    if getattr(layer, "padding", "SAME") == "SAME":  # odd kernels, where it is one pixel on each side
        images = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    places = itertools.product(
        range(0, images.shape[1] - height + 1, stride[0]), range(0, images.shape[2] - width + 1, stride[1])
    )
    rows = [images[:, row : row + height, column : column + width].reshape(len(images), -1) for row, column in places]
    return np.stack(rows, axis=1)


def rows_and_cotangents(model, params, inputs, losses):
    """What enters each layer, and the cotangents of what leaves it in the summed losses, by taps."""
    entered, left = {}, {}

    def run(taps):
        def tap(call, args, kwargs, context):
            output = call(*args, **kwargs)
            if isinstance(context.module, EVERY_LAYER) and context.method_name == "__call__":
                name = "/".join(context.module.path)
                entered[name], left[name] = args[0], jnp.zeros_like(output)
                output = output + taps.get(name, 0.0)
            return output

        with nn.intercept_methods(tap):
            (logits, features), _ = model.apply({"params": params}, inputs, mutable=["batch_stats"])
        return losses(Prediction(logits, features)).sum(), dict(entered)

    run({})
    cotangents, rows = jax.grad(run, has_aux=True)(dict(left))
    return rows, cotangents


def with_patches(model, params, rows, cotangents):
    """Rows with a one for the bias [batch, positions, a] and cotangents [batch, positions, g] of each layer."""
    found = {}
    for name, x in rows.items():
        kernel, g = np.asarray(params[name]["kernel"]), cotangents[name]
        if kernel.ndim == 4:
            x = patches(x, kernel, model.layers[int(name.removeprefix("layers_"))])
        else:
            x = x.reshape(len(x), -1, x.shape[-1])
        if "bias" in params[name]:
            x = np.concatenate([x, np.ones((*x.shape[:2], 1))], axis=2)
        found[name] = x, g.reshape(len(g), x.shape[1], -1)
    return found


def factors(x, g):
    return [np.einsum("nti,ntj->ij", rows, rows) / (rows.shape[0] * rows.shape[1]) for rows in (x, g)]


def preconditioned(x, g, input_basis, output_basis, moments=None):
    """The direction of a layer [a, g] in a basis, and N times the squared mean gradient there."""
    rotated = np.einsum("ai,nta,ntg,gj->nij", input_basis, x, g, output_basis, optimize=True)
    mean = rotated.mean(axis=0)
    moments = (rotated**2).mean(axis=0) if moments is None else moments
    return input_basis @ (mean / (moments + DAMPING)) @ output_basis.T, len(x) * mean**2


def joined(layer):
    """Kernel and bias of a tree as one matrix."""
    kernel = np.asarray(layer["kernel"])
    kernel = kernel.reshape(-1, kernel.shape[-1])
    return np.vstack([kernel, layer["bias"]]) if "bias" in layer else kernel


def plain_losses(prediction, batch):
    return -jnp.take_along_axis(jax.nn.log_softmax(prediction.logits), batch.labels[:, None], axis=1)[:, 0]


def corrected_by(correction, reduction="mean"):
    def losses(prediction, batch):
        return reducible_losses(correction.correct(prediction, batch.labels, 0.5), batch.labels, reduction)

    return losses


def objective_of(model, losses=plain_losses):
    def predict(params, batch, key):
        (logits, features), _ = model.apply(
            {"params": params}, batch.inputs, mutable=["batch_stats"], rngs={"dropout": key}
        )
        return Prediction(logits, features)

    return Objective(predict, losses)


def setting(name, losses=plain_losses, dtype=jnp.float64):
    """Objective, parameters and three batches of a case."""
    model, shape = CASES[name]
    rng = np.random.default_rng(1)
    batches = [Batch(jnp.asarray(rng.normal(size=(12, *shape)), dtype), jnp.asarray(LABELS)) for _ in range(3)]
    params = model.init({"params": KEY}, batches[0].inputs)["params"]
    params = jax.tree.map(lambda leaf: leaf.astype(dtype) + 0.1, params)  # biases other than zero
    return model, objective_of(model, losses), params, batches


def check_against_numpy(name, losses=plain_losses):
    with jax.enable_x64(True):
        model, objective, params, (batch, *_) = setting(name, losses)
        direction = ekfac(Structure(objective, params, batch), damping=DAMPING)

        @jax.jit
        def compute(params, state):
            found = rows_and_cotangents(model, params, batch.inputs, lambda prediction: losses(prediction, batch))
            plain = gradient().propose(objective, params, batch, (), KEY)
            return direction.propose(objective, params, batch, state, KEY), plain, found

        proposal, plain, found = jax.tree.map(np.asarray, compute(params, direction.init(params)))
    chex.assert_trees_all_close(proposal.aux, plain.aux, rtol=1e-9)
    assert {layer.removesuffix(".kernel") for layer in proposal.state.layers} == set(found[0])
    for layer, (x, g) in with_patches(model, params, *found).items():
        np.testing.assert_allclose(joined(plain.direction[layer]), np.einsum("nta,ntg->ag", x, g) / 12, atol=1e-10)
        bases = [np.linalg.eigh(factor)[1] for factor in factors(x, g)]
        expected, _ = preconditioned(x, g, *bases)
        np.testing.assert_allclose(joined(proposal.direction[layer]), expected, rtol=1e-6, atol=1e-8)
    for norm in set(params) - set(found[0]):
        chex.assert_trees_all_close(proposal.direction[norm], plain.direction[norm], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_first_direction_equals_numpy(name):
    check_against_numpy(name)


@pytest.mark.parametrize(
    "losses",
    [
        corrected_by(inverse_frequency(COUNTS)),
        corrected_by(inverse_frequency(COUNTS), "weighted_mean"),
        corrected_by(influence(alpha=10.0)),
    ],
    ids=["weights", "weighted mean", "features"],
)
def test_the_curvature_is_that_of_the_corrected_losses(losses):
    check_against_numpy("mlp", losses)


@pytest.mark.parametrize("second_moments", ["batch", "running"])
def test_later_directions_equal_numpy(second_moments):
    """Refreshed at steps 0 and 2, with the moments of each batch or a moving average of them."""
    with jax.enable_x64(True):
        model, objective, params, batches = setting("patches")
        direction = ekfac(
            Structure(objective, params, batches[0]),
            damping=DAMPING,
            refresh_period=2,
            second_moments=second_moments,
            moment_decay=0.6,
        )

        @jax.jit
        def compute(batch, state):
            found = rows_and_cotangents(model, params, batch.inputs, lambda prediction: plain_losses(prediction, batch))
            return direction.propose(objective, params, batch, state, KEY), found

        state, moments, bases = direction.init(params), {}, {}
        for step, batch in enumerate(batches):
            proposal, found = jax.tree.map(np.asarray, compute(batch, state))
            state = proposal.state
            for name, (x, g) in with_patches(model, params, *found).items():
                kept = state.layers[f"{name}.kernel"]
                basis = [np.asarray(kept.inputs), np.asarray(kept.outputs)]
                if step != 1:
                    values = [np.diag(u.T @ factor @ u) for u, factor in zip(basis, factors(x, g), strict=True)]
                    moments[name], bases[name] = x.shape[1] * np.outer(*values), basis
                np.testing.assert_array_equal(basis[0], bases[name][0])
                if second_moments == "running":
                    _, squares = preconditioned(x, g, *basis)
                    moments[name] = 0.6 * moments[name] + 0.4 * squares
                    np.testing.assert_allclose(kept.second_moments, moments[name], rtol=1e-7, atol=1e-14)
                used = moments[name] if second_moments == "running" else None
                expected, _ = preconditioned(x, g, *basis, used)
                np.testing.assert_allclose(joined(proposal.direction[name]), expected, rtol=1e-6, atol=1e-8)


def test_every_option_changes_the_direction():
    _, objective, params, batches = setting("mlp", dtype=jnp.float32)

    def third(**options):
        direction = ekfac(Structure(objective, params, batches[0]), **options)
        propose = jax.jit(lambda batch, state: direction.propose(objective, params, batch, state, KEY))
        state = direction.init(params)
        for batch in batches:
            proposal = propose(batch, state)
            state = proposal.state
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(proposal.direction)])

    variants = [
        third(damping=0.1, refresh_period=10),
        third(damping=0.2, refresh_period=10),
        third(damping=0.1, refresh_period=2),
        third(damping=0.1, refresh_period=10, second_moments="running"),
        third(damping=0.1, refresh_period=10, second_moments="running", moment_decay=0.5),
    ]
    for one, other in itertools.combinations(variants, 2):
        assert np.abs(one - other).max() > 1e-3 * np.abs(one).max()


def test_precision_is_that_of_the_products_with_eigenvectors():
    _, objective, params, batches = setting("mlp", dtype=jnp.float32)

    def precise_products(precision):
        direction = ekfac(Structure(objective, params, batches[0]), precision=precision)
        propose = jax.make_jaxpr(lambda batch, state: direction.propose(objective, params, batch, state, KEY))
        return str(propose(batches[0], direction.init(params))).count("Precision.HIGHEST, Precision.HIGHEST")

    # Of each of two layers four: two for the moments, two rotate back. The rows are rotated only where it is cheaper.
    assert precise_products("highest") - precise_products("default") >= 8
    assert precise_products("default") > 0  # that find the eigenvectors


def test_much_damping_gives_the_gradient_with_the_same_dropout():
    model = Net((nn.Dense(8), nn.Dropout(0.5, deterministic=False), nn.Dense(CLASSES)))
    batch = Batch(jax.random.normal(KEY, (12, 4)), jnp.asarray(LABELS))
    params = model.init({"params": KEY, "dropout": KEY}, batch.inputs)["params"]
    objective = objective_of(model)
    direction = ekfac(Structure(objective, params, batch), damping=1e6)
    proposal, plain = jax.jit(
        lambda params, state: (
            direction.propose(objective, params, batch, state, KEY),
            gradient().propose(objective, params, batch, (), KEY),
        )
    )(params, direction.init(params))
    scaled = jax.tree.map(lambda leaf: 1e6 * leaf, proposal.direction)
    chex.assert_trees_all_close(scaled, plain.direction, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(proposal.aux, plain.aux, rtol=1e-6)


def test_well_fitted_examples_are_not_rounded_away():
    """Cotangents far below the rounding of the logits."""
    with jax.enable_x64(True):
        model, objective, params, (batch, *_) = setting("mlp")

        def tiny(prediction, batch):
            return 1e-12 * plain_losses(prediction, batch)

        def directions(losses, damping):
            objective = objective_of(model, losses)
            direction = ekfac(Structure(objective, params, batch), damping=damping)
            propose = jax.jit(lambda params, state: direction.propose(objective, params, batch, state, KEY))
            return propose(params, direction.init(params)).direction

        # Losses times c and damping times c^2 give the direction divided by c.
        scaled = jax.tree.map(lambda leaf: 1e-12 * leaf, directions(tiny, 1e-26))
        chex.assert_trees_all_close(scaled, directions(objective.losses, 1e-2), rtol=1e-6, atol=1e-9)


def test_seeds_together_equal_seeds_alone_and_share_the_refresh():
    _, objective, params, batches = setting("mlp", dtype=jnp.float32)
    direction = ekfac(Structure(objective, params, batches[0]), damping=0.1, refresh_period=2)
    several = jax.tree.map(lambda leaf: jnp.stack([leaf, 1.5 * leaf]), params)
    keys = jax.random.split(KEY, 2)

    def propose(params, state, batch, key):
        return direction.propose(objective, params, batch, state, key)

    together, alone = jax.jit(jax.vmap(propose, in_axes=(0, 0, None, 0))), jax.jit(propose)
    states = jax.vmap(direction.init)(several)
    singles = [direction.init(params)] * 2
    for batch in batches[:2]:
        proposal = together(several, states, batch, keys)
        states = proposal.state
        for seed in range(2):
            own = jax.tree.map(lambda leaf: leaf[seed], several)  # noqa: B023
            expected = alone(own, singles[seed], batch, keys[seed])
            singles[seed] = expected.state
            actual = jax.tree.map(lambda leaf: leaf[seed], proposal.direction)  # noqa: B023
            chex.assert_trees_all_close(actual, expected.direction, rtol=2e-3, atol=1e-4)
    text = str(jax.make_jaxpr(jax.vmap(propose, in_axes=(0, 0, None, 0)))(several, states, batches[0], keys))
    assert len(re.findall(r"\bcond\[", text)) == 2  # a refresh per layer; a select would compute it at every step


@pytest.mark.parametrize("second_moments", ["batch", "running"])
def test_resumes_exactly_from_saved_arrays(second_moments):
    _, objective, params, batches = setting("mlp", dtype=jnp.float32)
    direction = ekfac(Structure(objective, params, batches[0]), refresh_period=2, second_moments=second_moments)
    propose = jax.jit(lambda batch, state: direction.propose(objective, params, batch, state, KEY))
    start = direction.init(params)
    first = propose(batches[0], start)
    chex.assert_trees_all_equal_shapes_and_dtypes(first.state, start)
    assert int(first.state.step) == 1
    saved = jax.tree.map(np.asarray, first.state)
    resumed = propose(batches[1], jax.tree.map(jnp.asarray, saved))
    chex.assert_trees_all_equal(resumed, propose(batches[1], first.state))


def test_nothing_of_a_trace_outlives_it():
    _, objective, params, (batch, *_) = setting("mlp", dtype=jnp.float32)
    direction = ekfac(Structure(objective, params, batch))

    def propose(shift, state):
        moved = objective._replace(predict=lambda *args: objective.predict(*args)._replace(aux=shift))
        moved = moved._replace(losses=lambda prediction, batch: shift * objective.losses(prediction, batch))
        return direction.propose(moved, params, batch, state, KEY).direction

    with jax.checking_leaks():
        compiled = jax.jit(propose)
        once, twice = (compiled(jnp.float32(shift), direction.init(params)) for shift in (1.0, 2.0))
        again = jax.jit(lambda shift, state: propose(shift, state))(jnp.float32(1.0), direction.init(params))
    chex.assert_trees_all_equal(once, again)
    assert not np.allclose(once["layers_0"]["kernel"], twice["layers_0"]["kernel"])
