"""Layers that are dropped at random: alike for all examples of a step, also where these are predicted one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imbal_jax.corrections.weights import cross_entropy
from imbal_jax.curvature.linearisation import linearise
from imbal_jax.directions.empirical_fisher import improved_empirical_fisher
from imbal_jax.errors import InputError
from imbal_jax.models.hubert import hubert
from imbal_jax.models.hubert_layers import HubertConfig
from imbal_jax.models.lora import LoraSpec
from imbal_jax.training.objective import make_objective, step_key_of
from imbal_jax.types import Batch, Waveforms

DROPPING = HubertConfig(
    conv_dim=(4,),
    conv_kernel=(400,),
    conv_stride=(160,),
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=12,
    num_conv_pos_embeddings=4,
    num_conv_pos_embedding_groups=2,
    hidden_dropout=0.0,
    activation_dropout=0.0,
    attention_dropout=0.0,
    layerdrop=0.5,
    apply_spec_augment=False,
)


@pytest.fixture(scope="module")
def dropping():
    """(parameters, batch, function from a step key to an objective) of a HuBERT with dropped layers, in float64."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        lengths = np.array([1_000, 1_600, 800], np.int32)
        samples = rng.normal(size=(3, 1_600)) * (np.arange(1_600) < lengths[:, None])
        batch = Batch(Waveforms(jnp.asarray(samples), jnp.asarray(lengths)), jnp.array([0, 2, 1]))
        model = hubert(3, config=DROPPING, lora=LoraSpec(rank=2), projection=4)
        shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), batch.inputs, train=False))
        variables = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), shapes)

        def objective(step_key):
            options = {"model_state": {}, "progress": 0.0, "train": True, "step_key": step_key}
            return make_objective(model, cross_entropy(), "mean", constants={"frozen": variables["frozen"]}, **options)

        return variables["params"], batch, objective


def gradients_of_layers(tree):
    """The norms of a direction in the adapters of each layer."""
    layers = tree["hubert"]["encoder"]
    return [float(sum(np.abs(leaf).sum() for leaf in jax.tree.leaves(layers[f"layers_{i}"]))) for i in (0, 1)]


@pytest.mark.slow
def test_engines_drop_the_same_layers_for_all_examples_of_a_step(dropping):
    params, batch, objective = dropping
    directions = [improved_empirical_fisher(engine=engine, precision="float64") for engine in ("gram", "vmap")]

    @jax.jit
    def proposed(key):
        bound = objective(step_key_of(key))
        return [direction.propose(bound, params, batch, (), key) for direction in directions]

    seen = set()
    with jax.enable_x64(True):
        for seed in range(8):
            tapped, one_by_one = proposed(jax.random.key(seed))
            assert tapped.aux.losses.dtype == jnp.float64
            np.testing.assert_allclose(tapped.aux.losses, one_by_one.aux.losses, rtol=1e-12)
            for got, expected in zip(*map(jax.tree.leaves, (tapped.direction, one_by_one.direction)), strict=True):
                np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)
            # A dropped layer has no gradient in any example.
            seen.add(tuple(norm > 0 for norm in gradients_of_layers(tapped.direction)))
    assert len(seen) == 4  # each layer dropped and not


@pytest.mark.parametrize("engine", ["gram", "vmap"])
def test_without_a_key_for_the_step_layers_are_not_dropped_one_by_one(dropping, engine):
    params, batch, objective = dropping
    with jax.enable_x64(True), pytest.raises(InputError, match="layerdrop: expected the random stream 'layerdrop'"):
        jax.eval_shape(
            lambda: linearise(objective(None), params, batch, jax.random.key(1), engine=engine).gram,
        )


def test_the_key_of_a_step_is_none_of_its_examples():
    key = jax.random.key(3)
    examples = jax.vmap(lambda n: jax.random.key_data(jax.random.fold_in(key, n)))(jnp.arange(1_000))
    assert not (np.asarray(examples) == np.asarray(jax.random.key_data(step_key_of(key)))).all(axis=1).any()
