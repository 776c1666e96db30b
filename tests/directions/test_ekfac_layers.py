"""EKFAC: options and models that it refuses, and layers that it does not know."""

import logging

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from imbal_jax.directions.ekfac import ekfac
from imbal_jax.directions.gradient import gradient
from imbal_jax.errors import InputError
from imbal_jax.models.heads import CosineClassifier
from imbal_jax.types import Batch, Structure
from tests.directions.test_ekfac import CASES, CLASSES, KEY, LABELS, Net, objective_of, setting


def structure_of(model, shape):
    batch = Batch(jax.ShapeDtypeStruct((12, *shape), jnp.float32), jax.ShapeDtypeStruct((12,), jnp.int32))
    params = jax.eval_shape(lambda: model.init({"params": KEY}, jnp.zeros((12, *shape))))["params"]
    return Structure(objective_of(model), params, batch)


MLP = structure_of(*CASES["mlp"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"damping": -1.0}, "damping: expected a number > 0, got -1.0"),
        ({"damping": 0.0}, "damping: expected a number > 0"),
        ({"damping": float("nan")}, "damping: expected a number > 0"),
        ({"refresh_period": 0}, "refresh_period: expected a whole number >= 1, got 0"),
        ({"refresh_period": 2.5}, "refresh_period: expected a whole number >= 1, got 2.5"),
        ({"second_moments": "bach"}, "second_moments: no 'bach'; did you mean 'batch'?"),
        ({"moment_decay": 1.0}, r"moment_decay: expected a number in \[0, 1\)"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        ekfac(MLP, **options)


class Shared(nn.Module):
    """A dense layer that is used twice, a bare parameter, and one that is neither."""

    @nn.compact
    def __call__(self, inputs):
        twice = nn.Dense(inputs.shape[-1], name="twice")
        bare = self.param("bare", nn.initializers.ones, (inputs.shape[-1],))
        features = jnp.tanh(twice(jnp.tanh(twice(inputs)))) * jnp.cos(bare)
        return nn.Dense(CLASSES, name="once")(features), features


def test_parameters_of_no_known_layer_keep_their_gradient_with_one_warning(caplog):
    structure = structure_of(Shared(), (4,))
    with caplog.at_level(logging.WARNING):
        direction = ekfac(structure)
    [record] = caplog.records
    assert record.getMessage().endswith("known layers: bare, twice.bias, twice.kernel")
    params = Shared().init({"params": KEY}, jnp.zeros((12, 4)))["params"]
    batch = Batch(jax.random.normal(KEY, (12, 4)), jnp.asarray(LABELS))
    caplog.clear()
    proposal, plain = jax.jit(
        lambda params, state: (
            direction.propose(structure.objective, params, batch, state, KEY),
            gradient().propose(structure.objective, params, batch, (), KEY).direction,
        )
    )(params, direction.init(params))
    assert not caplog.records
    assert list(proposal.state.layers) == ["once.kernel"]
    for name in ("bare", "twice"):
        chex.assert_trees_all_close(proposal.direction[name], plain[name], rtol=1e-4, atol=1e-6)
    assert np.abs(proposal.direction["once"]["kernel"] - plain["once"]["kernel"]).max() > 0.1


def test_the_cosine_classifier_keeps_its_gradient(caplog):
    direction = ekfac(structure_of(Net((nn.Dense(5), CosineClassifier(CLASSES))), (4,)))
    assert list(direction.init(None).layers) == ["layers_0.kernel"]
    assert "layers_1.kernel" in caplog.text


def test_a_model_without_layers_is_refused():
    with pytest.raises(InputError, match="expected a model with dense layers or convolutions"):
        ekfac(structure_of(Net((CosineClassifier(CLASSES),)), (4,)))


class Body(nn.Module):
    @nn.compact
    def __call__(self, hidden, _):
        return jnp.tanh(nn.Dense(4)(hidden)), None


class Scanned(nn.Module):
    """A stack of layers as one scan, which kfac-jax cannot trace."""

    @nn.compact
    def __call__(self, inputs):
        stack = nn.scan(Body, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        features, _ = stack()(inputs, None)
        return nn.Dense(CLASSES)(features), features


def test_a_model_that_kfac_jax_cannot_trace_is_refused():
    with pytest.raises(InputError, match="ekfac: expected a model whose layers kfac-jax recognises, got "):
        ekfac(structure_of(Scanned(), (4,)))


def test_another_model_than_that_of_the_structure_is_refused():
    direction = ekfac(MLP)
    _, objective, params, (batch, *_) = setting("convolution", dtype=jnp.float32)
    with pytest.raises(InputError, match="expected the layers that it was built for"):
        direction.propose(objective, params, batch, direction.init(params), KEY)
