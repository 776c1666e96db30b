"""LoRA, the noise of training, gradients example by example under it, and what the curvature's taps make of it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from imbal_jax.curvature.linearisation import linearise
from imbal_jax.errors import InputError
from imbal_jax.losses import cross_entropy_losses
from imbal_jax.models.hubert import hubert, initial_params, random_frozen
from imbal_jax.models.hubert_layers import (
    HUBERT_BASE,
    Features,
    HubertConfig,
    deterministic,
    hf_train,
    span_mask,
)
from imbal_jax.models.lora import TARGETS, FrozenConv, FrozenDense, FrozenLayerNorm, LoraDense, LoraSpec
from imbal_jax.types import Batch, Objective, Prediction, Waveforms

QUICK = {"xla_backend_optimization_level": 0}
quick = functools.partial(jax.jit, compiler_options=QUICK)
SMALL = HubertConfig(
    conv_dim=(6, 8),
    conv_kernel=(4, 3),
    conv_stride=(2, 2),
    hidden_size=12,
    num_hidden_layers=1,
    num_attention_heads=3,
    intermediate_size=10,
    num_conv_pos_embeddings=5,
    num_conv_pos_embedding_groups=3,
    mask_time_length=3,
    mask_feature_length=2,
)
DEEPER = dataclasses.replace(SMALL, num_hidden_layers=2)
LENGTHS, LABELS = np.array([60, 31, 45, 28]), np.array([0, 2, 1, 2])
CLASSES = 3


def waveforms():
    samples = np.random.default_rng(0).normal(size=(len(LENGTHS), 60))
    return Waveforms(jnp.where(np.arange(60) < LENGTHS[:, None], samples, 0), jnp.asarray(LENGTHS))


def make(config, **options):
    """A model and its weights in float64, none of them zero."""
    model = hubert(CLASSES, **({"config": config, "projection": 5, "lora": LoraSpec(rank=2)} | options))
    rng = np.random.default_rng(1)

    def draw(initialise):
        shapes = jax.eval_shape(functools.partial(initialise, model), jax.random.key(0))
        return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.4), shapes)

    return model, draw(initial_params), draw(random_frozen) if model.blueprint.frozen else {}


def test_the_update_is_added():
    rng = np.random.default_rng(0)
    inputs, kernel, bias = rng.normal(size=(3, 5, 4)), rng.normal(size=(4, 6)), rng.normal(size=6)
    down, up = rng.normal(size=(4, 2)), rng.normal(size=(2, 6))
    variables = {
        "frozen": {"kernel": kernel, "bias": bias},
        "params": {"lora_A": {"kernel": down}, "lora_B": {"kernel": up}},
    }
    for stabilised, scale in ((False, 3 / 2), (True, 3 / np.sqrt(2))):
        layer = LoraDense(FrozenDense(6), LoraSpec(rank=2, alpha=3.0, rank_stabilised=stabilised))
        with jax.enable_x64(True):
            got = layer.apply(jax.tree.map(jnp.asarray, variables), jnp.asarray(inputs), False)
        np.testing.assert_allclose(got, inputs @ kernel + bias + scale * inputs @ down @ up, rtol=1e-12)


def test_the_update_starts_at_zero_and_trains_nothing_else():
    layer = LoraDense(FrozenDense(500), LoraSpec(rank=40))
    inputs = jax.random.normal(jax.random.key(1), (2, 3, 400))
    variables = layer.init(jax.random.key(0), inputs, False)
    down, up = variables["params"]["lora_A"]["kernel"], variables["params"]["lora_B"]["kernel"]
    assert jax.tree.structure(variables["params"]) == jax.tree.structure(
        {n: {"kernel": 0} for n in ("lora_A", "lora_B")}
    )
    assert 0.999 / 20 < jnp.abs(down).max() <= 1 / 20 and down.shape == (400, 40)
    np.testing.assert_allclose(jnp.std(down), 1 / 20 / np.sqrt(3), rtol=0.02)
    np.testing.assert_array_equal(up, np.zeros((40, 500)))
    expected = inputs @ variables["frozen"]["kernel"] + variables["frozen"]["bias"]
    np.testing.assert_allclose(layer.apply(variables, inputs, False), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("pair", "arguments"),
    [((nn.Dense, FrozenDense), [4]), ((nn.Conv, FrozenConv), [4, (3,)]), ((nn.LayerNorm, FrozenLayerNorm), [])],
)
def test_frozen_layers_differ_only_in_where_their_weights_are(pair, arguments):
    trained, frozen = (kind(*arguments) for kind in pair)
    inputs = jax.random.normal(jax.random.key(1), (2, 5, 6))
    weights = trained.init(jax.random.key(0), inputs)["params"]
    assert jax.tree.map(jnp.shape, frozen.init(jax.random.key(0), inputs)) == {
        "frozen": jax.tree.map(jnp.shape, weights)
    }
    outputs = frozen.apply({"frozen": weights}, inputs), trained.apply({"params": weights}, inputs)
    np.testing.assert_allclose(*outputs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank: expected a whole number >= 1, got 0"),
        ({"alpha": -1}, "alpha: expected a number > 0, got -1"),
        ({"alpha": float("nan")}, "alpha: expected a number > 0, got nan"),
        ({"dropout": 1.0}, r"dropout: expected a rate in \[0, 1\), got 1.0"),
        ({"targets": ("q_prj",)}, "targets: no 'q_prj'; did you mean 'q_proj'"),
        ({"targets": ()}, "targets: expected a tuple of different entries"),
        ({"targets": ("q_proj", "q_proj")}, "targets: expected a tuple of different entries"),
        ({"layers": (0, -1)}, "layers: expected indices >= 0"),
        ({"layers": [0]}, "layers: expected a tuple of different entries"),
    ],
)
def test_impossible_specifications_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        LoraSpec(**options)


def test_layers_that_do_not_exist_are_refused():
    with pytest.raises(InputError, match=r"layers: expected indices below 2, the number of layers, got \(1, 2\)"):
        hubert(CLASSES, config=DEEPER, lora=LoraSpec(layers=(1, 2)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"padding": "same"}, "padding: expected one of exact, hf_mask, hf_nomask, got 'same'"),
        ({"projection": 0}, "projection: expected a whole number >= 1, got 0"),
        ({"dtype": np.int32}, "dtype: expected a floating type"),
    ],
)
def test_models_that_cannot_be_built_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        hubert(3, **options)


def test_targets_and_layers_are_chosen():
    params = make(DEEPER, lora=LoraSpec(rank=2, targets=("k_proj", "output_dense"), layers=(1,)))[1]
    adapted = {"lora_A", "lora_B"}
    assert params["hubert"]["encoder"].keys() == {"layers_1"}
    layer = params["hubert"]["encoder"]["layers_1"]
    assert layer["attention"].keys() == {"k_proj"} and layer["attention"]["k_proj"].keys() == adapted
    assert layer["feed_forward"].keys() == {"output_dense"} and layer["feed_forward"]["output_dense"].keys() == adapted
    assert layer["feed_forward"]["output_dense"]["lora_A"]["kernel"].shape == (10, 2)


def losses_of(model, frozen, train):
    """A function from parameters, clips, labels, the key of dropout and that of dropped layers to losses."""

    def losses(params, inputs, labels, key, layerdrop):
        rngs = {"dropout": key, "layerdrop": layerdrop}
        logits, _ = model.apply({"params": params, "frozen": frozen}, inputs, train=train, rngs=rngs)
        return cross_entropy_losses(logits, labels)

    return losses


def off(config=SMALL, **changes):
    return dataclasses.replace(deterministic(config), **changes)


RATES = dict.fromkeys(("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout"), 0.3)
NOISES = {
    "none": (off(), 0.0),
    "dropout": (off(**RATES), 0.0),
    "LoRA's dropout": (off(), 0.4),
    "dropped layers": (off(layerdrop=0.5), 0.0),
    "SpecAugment": (off(apply_spec_augment=True, mask_feature_prob=0.3), 0.0),
    "all": (dataclasses.replace(SMALL, layerdrop=0.3, mask_feature_prob=0.3, **RATES), 0.4),
}


def leaves_of(*trees):
    return zip(*map(jax.tree.leaves, trees), strict=True)


# Together they take half a minute; "all" contains the others.
@pytest.mark.parametrize(
    "noise",
    [noise if noise in ("dropped layers", "all") else pytest.param(noise, marks=pytest.mark.slow) for noise in NOISES],
)
def test_gradients_of_examples_at_once_and_one_by_one(noise):
    config, dropout = NOISES[noise]
    with jax.enable_x64(True):
        model, params, frozen = make(config, lora=LoraSpec(rank=2, dropout=dropout))
        losses = losses_of(model, frozen, train=True)

        def gradient(example, label, key, layerdrop):
            single = jax.tree.map(lambda leaf: leaf[None], example)
            return jax.grad(lambda params: losses(params, single, label[None], key, layerdrop)[0])(params)

        # The convolutions come before all noise; compiling them once is enough.
        inputs, labels = waveforms(), jnp.asarray(LABELS)
        if noise != "all":
            inputs = Features(jax.random.normal(jax.random.key(5), (4, 13, 8)), jnp.array([13, 6, 9, 5]))
        keys, layerdrop = jax.random.split(jax.random.key(0), len(LABELS)), jax.random.key(3)
        together = quick(jax.vmap(gradient, in_axes=(0, 0, 0, None)))(inputs, labels, keys, layerdrop)
        alone = quick(gradient)
        each = [alone(jax.tree.map(lambda leaf, n=n: leaf[n], inputs), labels[n], keys[n], layerdrop) for n in range(4)]
        for got, *expected in leaves_of(together, *each):
            np.testing.assert_allclose(got, jnp.stack(expected), rtol=1e-8, atol=1e-12)
        other = alone(jax.tree.map(lambda leaf: leaf[0], inputs), labels[0], jax.random.key(9), jax.random.key(4))
        assert any(not np.array_equal(a, b) for a, b in leaves_of(other, each[0])) == (noise != "none")


def test_a_layer_is_dropped_for_all_clips_or_none():
    with jax.enable_x64(True):
        model, params, frozen = make(off(DEEPER, layerdrop=0.5))
        losses = losses_of(model, frozen, train=True)
        inputs, labels, key = waveforms(), jnp.asarray(LABELS), jax.random.key(0)
        rows = quick(lambda layerdrop: jax.jacrev(losses)(params, inputs, labels, key, layerdrop))
        seen = set()
        for seed in range(12):
            gradients = rows(jax.random.key(seed))["hubert"]["encoder"]
            zero = {
                name: {bool((leaf[n] == 0).all()) for leaf in jax.tree.leaves(gradients[name]) for n in range(4)}
                for name in ("layers_0", "layers_1")
            }
            assert all(len(values) == 1 for values in zero.values())
            seen.add((*zero["layers_0"], *zero["layers_1"]))
        assert len(seen) == 4


def test_layers_are_dropped_only_by_a_key_of_their_own():
    model, params, frozen = make(off(layerdrop=0.5))
    apply = functools.partial(model.apply, train=True, rngs={"dropout": jax.random.key(0)})
    with pytest.raises(InputError, match="layerdrop: expected the random stream 'layerdrop', one key for all clips"):
        jax.eval_shape(apply, {"params": params, "frozen": frozen}, waveforms())


def test_both_engines_linearise_alike():
    with jax.enable_x64(True):
        adaptation = LoraSpec(rank=2, targets=TARGETS)
        model, params, frozen = make(off(), lora=adaptation, head_bias=True, weighted_layer_sum=True)
        batch = Batch(waveforms(), jnp.asarray(LABELS))

        def predict(params, batch, key):
            return Prediction(*model.apply({"params": params, "frozen": frozen}, batch.inputs, train=True))

        def losses(prediction, batch):
            return cross_entropy_losses(prediction.logits, batch.labels)

        @functools.partial(quick, static_argnums=0)
        def parts(engine):
            result = linearise(Objective(predict, losses), params, batch, jax.random.key(0), engine=engine)
            change = jax.tree.map(jnp.cos, params)
            return result.evidence.losses, result.gram, result.pullback(jnp.arange(1.0, 5)), result.products(change)

        gram, vmap = parts("gram"), parts("vmap")
        for got, expected in leaves_of(gram, vmap):
            np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


def test_all_weights_can_be_trained():
    with jax.enable_x64(True):
        model, params, frozen = make(off(), frozen=False, lora=None)
        assert frozen == {}
        assert params["hubert"].keys() == {"feature_extractor", "feature_projection", "encoder", "masked_spec_embed"}
        losses = losses_of(model, frozen, train=False)
        key = jax.random.key(0)
        gradients = quick(jax.grad(lambda params: losses(params, waveforms(), LABELS, key, key).sum()))(params)
        for path, leaf in jax.tree_util.tree_flatten_with_path(gradients)[0]:
            name = jax.tree_util.keystr(path)
            # A bias of keys shifts all scores of a query alike.
            idle = "masked_spec_embed" in name or ("k_proj" in name and "bias" in name)
            assert (np.abs(leaf).max() < 1e-14) == idle, name


def test_frozen_convolutions_are_not_differentiated():
    model, params, frozen = make(off())

    def total(samples):
        inputs = waveforms()._replace(samples=samples)
        return model.apply({"params": params, "frozen": frozen}, inputs, train=False)[0].sum()

    np.testing.assert_array_equal(quick(jax.grad(total))(waveforms().samples), 0)


def test_presets_of_noise():
    assert hf_train(deterministic(HUBERT_BASE)) == HUBERT_BASE
    quiet = deterministic(dataclasses.replace(HUBERT_BASE, feat_proj_dropout=0.1))
    rates = ("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout", "layerdrop")
    assert [getattr(quiet, name) for name in rates] == [0.0] * 5 and not quiet.apply_spec_augment
    assert quiet.has_mask_embedding
    kept = hf_train(dataclasses.replace(HUBERT_BASE, feat_proj_dropout=0.1, layerdrop=0.7, mask_time_length=3))
    assert kept == dataclasses.replace(HUBERT_BASE, feat_proj_dropout=0.1)
    with pytest.raises(InputError, match="expected masked_spec_embed for SpecAugment"):
        hf_train(dataclasses.replace(HUBERT_BASE, mask_time_prob=0.0))


def draw_as_published(rng, length, share, span, least):
    """The mask of one clip as `_compute_mask_indices` of transformers draws it."""
    count = max(int(share * length / span + rng.random()), least)
    if count * span > length:
        count = length // span
    count = min(count, length - span + 1)
    mask = np.zeros(length)
    for start in rng.choice(length - span + 1, count, replace=False):
        mask[start : start + span] = 1
    return mask


@pytest.mark.parametrize(("length", "share", "span", "least"), [(40, 0.3, 5, 1), (30, 0.05, 10, 2), (15, 0.5, 10, 2)])
def test_spans_are_distributed_as_published(length, share, span, least):
    rng, draws = np.random.default_rng(0), 4000
    expected = np.mean([draw_as_published(rng, length, share, span, least) for _ in range(draws)], axis=0)
    draw = functools.partial(span_mask, frames=45, share=share, span=span, least=least)
    keys = jax.random.split(jax.random.key(0), draws)
    masks = np.asarray(jax.jit(jax.vmap(lambda key: draw(key, jnp.array([length]))[0]))(keys))
    assert not masks[:, length:].any()
    # Four standard errors of the difference of two means.
    np.testing.assert_allclose(masks[:, :length].mean(axis=0), expected, atol=4 * np.sqrt(0.5 / draws))
    np.testing.assert_allclose(masks.sum(axis=1).mean(), expected.sum(), rtol=0.03)


def test_spans_are_as_many_as_asked_for():
    draw = jax.jit(functools.partial(span_mask, frames=50, share=0.1, span=1, least=3))
    counts = np.array([draw(jax.random.key(seed), jnp.array([45, 20, 2, 0])).sum(axis=1) for seed in range(30)])
    # 4.5 rounded up or down, 2 raised to 3, all there are, and none.
    assert set(counts[:, 0]) == {4, 5}
    np.testing.assert_array_equal(counts[:, 1:], [[3, 2, 0]] * 30)


def test_published_masking_needs_clips_of_a_span():
    model = hubert(3, config=hf_train(SMALL), padding="hf_mask", lora=None)
    frozen = jax.eval_shape(functools.partial(random_frozen, model), jax.random.key(0))
    features = Features(jnp.zeros((1, 2, 8)), jnp.array([2]))
    rngs = dict.fromkeys(("dropout", "layerdrop"), jax.random.key(0))
    with pytest.raises(InputError, match="mask_time_length: expected at most 2, all frames, got 10"):
        jax.eval_shape(functools.partial(model.apply, train=True, rngs=rngs), {"frozen": frozen}, features)
