"""HuBERT against stored activations of the published implementation, and its other variants against NumPy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from scipy.special import erf, softmax

from imbal_jax.errors import InputError
from imbal_jax.losses import cross_entropy_losses
from imbal_jax.models.adapters import read_adapter
from imbal_jax.models.hubert import encode, hubert, initial_params, random_frozen
from imbal_jax.models.hubert_config import (
    HUBERT_BASE,
    HUBERT_TINY,
    HubertConfig,
    deterministic,
    frame_lengths,
    least_samples,
)
from imbal_jax.models.hubert_inputs import EncoderInput, Features
from imbal_jax.models.hubert_weights import load_hubert
from imbal_jax.types import Waveforms

FIXTURE = "fixtures/hubert_tiny"
PRECISIONS = pytest.mark.parametrize("dtype", [np.float64, np.float32])
# Compilation dominates these tests; the values are the same without XLA's optimisations.
QUICK = {"xla_backend_optimization_level": 0}
quick = functools.partial(jax.jit, compiler_options=QUICK)


@functools.cache
def stored(folder):
    return dict(np.load(folder / "inputs.npz")), dict(np.load(folder / "outputs.npz"))


def clips(folder, dtype, name="input_values", clip=None):
    inputs = stored(folder)[0]
    samples, lengths = inputs[name].astype(dtype), inputs["lengths"]
    if clip is not None:
        samples, lengths = samples[clip : clip + 1, : lengths[clip]], lengths[clip : clip + 1]
    return Waveforms(jnp.asarray(samples), jnp.asarray(lengths))


def assert_close(got, expected, dtype, label=""):
    tolerance = (1e-6 if dtype == np.float64 else 1e-5) * np.abs(expected).max()
    assert got.shape == expected.shape and got.dtype == dtype, label
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance, err_msg=label)


def load(folder, dtype, **options):
    """A function from a treatment of padding to the model, and its weights."""
    config, frozen = load_hubert(folder, dtype=dtype)
    params, spec = read_adapter(folder / "adapter", config, dtype=dtype)
    make = functools.partial(hubert, 6, config=config, lora=spec, projection=8, **options)
    return make, {"params": params, "frozen": frozen}


def without_lora(params):
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.zeros_like(leaf) if "lora_B" in jax.tree_util.keystr(path) else leaf, params
    )


def with_biases(params, biases):
    return params | {name: params[name] | {"bias": jnp.asarray(bias)} for name, bias in biases.items()}


def activations(model):
    """A compiled function to the hidden states, the logits, and every module's output by its path in HuBERT."""

    def both(module, inputs, masked_frames):
        states = module.hidden_states(inputs, False, masked_frames)
        return states, module.head(states)[0]

    @quick
    def apply(variables, inputs, masked_frames=None):
        options = {"method": both, "capture_intermediates": True, "mutable": ["intermediates"]}
        (states, logits), captured = model.apply(variables, inputs, masked_frames, **options)
        leaves = jax.tree_util.tree_flatten_with_path(captured["intermediates"]["hubert"])[0]
        outputs = {"/".join(key.key for key in path if hasattr(key, "key")): leaf for path, leaf in leaves}
        named = {f"conv_{i}": outputs[f"feature_extractor/conv_layers_{i}/__call__"] for i in range(3)}
        named |= {f"hidden_states_{i}": state for i, state in enumerate(states.layers)}
        named |= {"feature_extractor": named["conv_2"], "feature_projection": outputs["feature_projection/__call__"]}
        named |= {"pos_conv": outputs["encoder/pos_conv_embed/__call__"], "last_hidden_state": states.last}
        return named, states.mask, logits

    return apply


def assert_stored(folder, mode, named, dtype, count):
    compared = [name for name in named if f"{mode}/{name}" in stored(folder)[1]]
    assert len(compared) == count
    for name in compared:
        assert_close(named[name], stored(folder)[1][f"{mode}/{name}"], dtype, f"{mode}/{name}")


@PRECISIONS
@pytest.mark.parametrize(
    ("mode", "padding", "clip"),
    [("masked", "hf_mask", None), ("nomask", "hf_nomask", None), ("single0", "exact", 0), ("single1", "exact", 1)],
)
def test_every_stored_activation_and_logit(shared_path, mode, padding, clip, dtype):
    folder = shared_path(FIXTURE)
    given, expected = stored(folder)
    with jax.enable_x64(dtype == np.float64):
        make, variables = load(folder, dtype, head_bias=True)
        inputs, run = clips(folder, dtype, clip=clip), activations(make(padding=padding))
        biases = {
            name.split(".")[0]: value.astype(dtype)
            for name, value in load_file(folder / "head_bias.safetensors").items()
        }
        unmasked = jnp.zeros(expected[f"{mode}/feature_projection"].shape[:2], bool)
        for lora in ("base", "lora"):
            for bias in ("nobias", "bias"):
                params = variables["params"] if lora == "lora" else without_lora(variables["params"])
                added = biases if bias == "bias" else {name: np.zeros_like(value) for name, value in biases.items()}
                both = {"params": with_biases(params, added), "frozen": variables["frozen"]}
                named, mask, logits = run(both, inputs, unmasked)
                assert_close(logits, expected[f"{mode}/logits_{bias}_{lora}"], dtype, f"{bias} {lora}")
                if lora == "base":
                    assert_stored(folder, mode, named, dtype, 10)
        base = both | {"params": without_lora(both["params"])}
        if mode == "masked":
            np.testing.assert_array_equal(mask, expected["masked/feature_mask"])
            assert_stored(folder, "specaug", run(base, inputs, jnp.asarray(given["mask_time_indices"]))[0], dtype, 3)
        if mode == "nomask":
            louder = clips(folder, dtype, "input_values_norm_over_padding")
            assert_stored(folder, "normpad_nomask", run(base, louder, unmasked)[0], dtype, 1)


def test_a_weighted_sum_of_layers(shared_path):
    folder = shared_path(FIXTURE)
    with jax.enable_x64(True):
        make, variables = load(folder, np.float64, weighted_layer_sum=True)
        weights = jnp.asarray(stored(folder)[0]["layer_weights"], np.float64)
        params = without_lora(variables["params"]) | {"layer_mixture": {"weights": weights}}
        apply = quick(functools.partial(make(padding="hf_mask").apply, train=False))
        logits, features = apply(variables | {"params": params}, clips(folder, np.float64))
        assert_close(logits, stored(folder)[1]["masked/logits_nobias_weighted_layer_sum"], np.float64)
        assert features.shape == (2, 8)


def test_a_dropped_layer_is_passed_by(shared_path):
    folder = shared_path(FIXTURE)
    with jax.enable_x64(True):
        config, frozen = load_hubert(folder, dtype=np.float64)
        config = dataclasses.replace(deterministic(config), layerdrop=0.5)
        model, inputs = hubert(6, config=config, lora=None, padding="hf_mask"), clips(folder, np.float64)

        @quick
        def run(key):
            options = {"method": "hidden_states", "train": True, "rngs": {"layerdrop": key}}
            return model.apply({"frozen": frozen}, inputs, **options)

        patterns = set()
        for seed in range(30):
            states = run(jax.random.key(seed))
            skipped = tuple(np.array_equal(a, b) for a, b in zip(states.layers, states.layers[1:], strict=False))
            patterns.add(skipped)
            if skipped == (True, False):
                assert_close(states.last, stored(folder)[1]["layerdrop_skip0/last_hidden_state"], np.float64)
        assert len(patterns) == 4


@pytest.mark.parametrize(
    ("padding", "dtype"), [("exact", np.float64), ("hf_mask", np.float64), ("hf_mask", np.float32)]
)
def test_every_stored_gradient(shared_path, padding, dtype):
    folder = shared_path(FIXTURE)
    labels, expected = jnp.asarray(stored(folder)[0]["labels"]), stored(folder)[1]
    with jax.enable_x64(dtype == np.float64):
        make, variables = load(folder, dtype)

        @quick
        def rows(params, inputs):
            def losses(params):
                logits, _ = make(padding=padding).apply(variables | {"params": params}, inputs, train=False)
                return cross_entropy_losses(logits, labels)

            return jax.jacrev(losses)(params)

        both = rows(variables["params"], clips(folder, dtype))
        prefix = "masked/grad_{}/" if padding == "hf_mask" else "single{}/grad/"
        found = {prefix.format(i): jax.tree.map(lambda leaf, i=i: leaf[i], both) for i in (0, 1)}
        if padding == "hf_mask":
            found["masked/grad_mean/"] = jax.tree.map(lambda leaf: leaf.mean(axis=0), both)
        for prefix, tree in found.items():
            leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
            assert len(leaves) == sum(name.startswith(prefix) for name in expected) == 10
            for path, leaf in leaves:
                name = ".".join(part.key for part in path[:-1]).replace("layers_", "layers.")
                assert_close(leaf.T, expected[f"{prefix}base_model.model.{name}.weight"], dtype, name)


def test_padding_and_keeping_features_change_nothing(shared_path):
    folder = shared_path(FIXTURE)
    outputs = stored(folder)[1]
    with jax.enable_x64(True):
        make, variables = load(folder, np.float64)
        model, (samples, lengths) = make(), clips(folder, np.float64)
        # What is behind a clip does not count, whatever it is.
        longer = jnp.pad(samples, ((0, 0), (0, 333)))
        waveforms = Waveforms(jnp.where(jnp.arange(longer.shape[1]) < lengths[:, None], longer, 7.0), lengths)
        apply = quick(functools.partial(model.apply, train=False))
        features = quick(functools.partial(encode, model.blueprint.config))(variables["frozen"], waveforms)
        np.testing.assert_array_equal(features.lengths, [39, 26])
        logits, _ = apply(variables, waveforms)
        np.testing.assert_allclose(apply(variables, features)[0], logits, rtol=1e-12)
        for clip, frames in enumerate((39, 26)):
            assert_close(logits[clip : clip + 1], outputs[f"single{clip}/logits_nobias_lora"], np.float64)
            alone = outputs[f"single{clip}/feature_extractor"]
            assert_close(features.frames[clip : clip + 1, :frames], alone, np.float64)


VARIANT = HubertConfig(
    conv_dim=(6, 8),
    conv_kernel=(4, 3),
    conv_stride=(2, 2),
    conv_bias=True,
    feat_extract_norm="layer",
    hidden_size=12,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=20,
    num_conv_pos_embeddings=5,
    num_conv_pos_embedding_groups=3,
    layer_norm_eps=1e-4,
    do_stable_layer_norm=True,
)


def reference(config, weights, samples):
    """HuBERT of one clip in NumPy: [states, ...] and the last one, normalised where layers normalise first."""

    def gelu(x):
        return x * 0.5 * (1 + erf(x / np.sqrt(2)))

    def norm(x, w, axis=-1, epsilon=config.layer_norm_eps):
        return (x - x.mean(axis, keepdims=True)) / np.sqrt(x.var(axis, keepdims=True) + epsilon) * w["scale"] + w[
            "bias"
        ]

    def dense(x, w):
        return x @ w["kernel"] + w["bias"]

    def convolve(x, w, stride=1, groups=1):
        size, inputs, outputs = w["kernel"].shape
        result = np.zeros(((len(x) - size) // stride + 1, outputs))
        for t, o in np.ndindex(*result.shape):
            first = o // (outputs // groups) * inputs
            patch = x[t * stride : t * stride + size, first : first + inputs]
            result[t, o] = (patch * w["kernel"][:, :, o]).sum()
        return result + w.get("bias", 0)

    def attend(x, w):
        heads = [np.split(dense(x, w[f"{name}_proj"]), config.num_attention_heads, axis=1) for name in "qkv"]
        mixed = [softmax(q @ k.T / np.sqrt(k.shape[1]), axis=1) @ v for q, k, v in zip(*heads, strict=True)]
        return dense(np.concatenate(mixed, axis=1), w["out_proj"])

    def feed(x, w):
        return dense(gelu(dense(x, w["intermediate_dense"])), w["output_dense"])

    x = samples[:, None]
    for i, stride in enumerate(config.conv_stride):
        w = weights["feature_extractor"][f"conv_layers_{i}"]
        x = convolve(x, w["conv"], stride)
        if config.feat_extract_norm == "layer" or i == 0:
            x = norm(x, w["layer_norm"], axis=-1 if config.feat_extract_norm == "layer" else 0, epsilon=1e-5)
        x = gelu(x)
    w = weights["feature_projection"]
    x = dense(norm(x, w["layer_norm"]) if config.feat_proj_layer_norm else x, w["projection"])
    w, size = weights["encoder"], config.num_conv_pos_embeddings
    padded = np.pad(x, ((size // 2, size // 2), (0, 0)))
    x = x + gelu(convolve(padded, w["pos_conv_embed"]["conv"], groups=config.num_conv_pos_embedding_groups)[: len(x)])
    stable = config.do_stable_layer_norm
    states = [x if stable else norm(x, w["layer_norm"])]
    for i in range(config.num_hidden_layers):
        x, one = states[-1], w[f"layers_{i}"]
        if stable:
            x = x + attend(norm(x, one["layer_norm"]), one["attention"])
            x = x + feed(norm(x, one["final_layer_norm"]), one["feed_forward"])
        else:
            x = norm(x + attend(x, one["attention"]), one["layer_norm"])
            x = norm(x + feed(x, one["feed_forward"]), one["final_layer_norm"])
        states.append(x)
    return states, norm(states[-1], w["layer_norm"]) if stable else states[-1]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"feat_extract_norm": "group", "conv_bias": False, "num_conv_pos_embeddings": 6},
        {"do_stable_layer_norm": False, "feat_proj_layer_norm": False},
    ],
    ids=["large", "group norm, even kernel", "norms after, none before"],
)
def test_other_architectures_against_numpy(changes):
    config = dataclasses.replace(VARIANT, **changes)
    rng = np.random.default_rng(0)
    samples, lengths = rng.normal(size=(3, 60)), np.array([60, 31, least_samples(config)])
    with jax.enable_x64(True):
        model = hubert(2, config=config, lora=None)
        shapes = jax.eval_shape(functools.partial(random_frozen, model), jax.random.key(0))
        weights = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape) * 0.5, shapes)
        apply = quick(functools.partial(model.apply, method="hidden_states"))
        got = apply({"frozen": weights}, Waveforms(jnp.asarray(samples), jnp.asarray(lengths)))
        for clip, length in enumerate(lengths):
            states, last = reference(config, weights["hubert"], samples[clip, :length])
            assert len(last) == frame_lengths(config, int(length)) == got.mask[clip].sum()
            for state, expected in zip((*got.layers, got.last), (*states, last), strict=True):
                np.testing.assert_allclose(state[clip, : len(last)], expected, rtol=0, atol=1e-11)


def test_low_precision_and_clips_without_frames():
    config = dataclasses.replace(VARIANT, feat_extract_norm="group", do_stable_layer_norm=False)
    models = [hubert(3, config=config, projection=5, dtype=dtype) for dtype in (None, jnp.bfloat16)]
    rng = np.random.default_rng(0)
    key, samples = jax.random.key(0), jnp.asarray(rng.normal(size=(2, 60)), jnp.float32)
    shapes = {"params": jax.eval_shape(functools.partial(initial_params, models[0]), key)}
    shapes["frozen"] = jax.eval_shape(functools.partial(random_frozen, models[0]), key)
    variables = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) * 0.3, shapes)
    full, low = (quick(functools.partial(model.apply, train=False)) for model in models)
    expected, features = full(variables, Waveforms(samples, jnp.array([60, 31])))
    logits, _ = low(variables, Waveforms(samples, jnp.array([60, 31])))
    assert logits.dtype == features.dtype == jnp.float32
    assert 1e-4 < np.abs(logits - expected).max() / np.abs(expected).max() < 0.05
    # Where lengths are not known, as here, a clip without frames is no error; nothing becomes NaN.
    for apply in (full, low):
        logits, features = apply(variables, Waveforms(samples, jnp.array([60, 0])))
        np.testing.assert_allclose(logits[0], expected[0], rtol=0.05)
        np.testing.assert_array_equal(features[1], 0)


def test_low_precision_is_that_of_every_product_and_its_gradient_but_the_head_s():
    model = hubert(3, config=deterministic(HUBERT_TINY), projection=5, dtype=jnp.bfloat16)
    key, clip = jax.random.key(0), Waveforms(jnp.zeros((2, 3_200)), jnp.array([3_200, 2_000]))
    params, frozen = (jax.eval_shape(functools.partial(make, model), key) for make in (initial_params, random_frozen))

    def loss(params, frozen):
        logits, _ = model.apply({"params": params, "frozen": frozen}, clip, train=True)
        losses = cross_entropy_losses(logits, jnp.array([0, 1]))
        assert logits.dtype == losses.dtype == jnp.float32
        return jnp.mean(losses)

    traced = jax.make_jaxpr(jax.grad(loss))(params, frozen)
    assert {leaf.dtype for leaf in traced.out_avals} == {jnp.dtype(jnp.float32)}
    products = [{str(dtype) for dtype in types} for types in products_in(traced.jaxpr)]
    assert products.count({"bfloat16"}) >= 60
    # The head's two layers: forwards, for their kernels and for their inputs.
    assert len(products) - products.count({"bfloat16"}) == products.count({"float32"}) == 6


def products_in(jaxpr):
    """The types of the operands of all products and convolutions, also of those within calls."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield {operand.aval.dtype for operand in equation.invars}
        for inner in jax.core.jaxprs_in_params(equation.params):
            yield from products_in(inner)


@pytest.mark.slow
def test_the_full_size():
    model = hubert(6)
    params, frozen = initial_params(model, jax.random.key(0)), random_frozen(model, jax.random.key(1))
    noise = jax.random.normal(jax.random.key(2), (1, 16000))
    apply = jax.jit(functools.partial(model.apply, train=False))
    logits, features = apply({"params": params, "frozen": frozen}, Waveforms(noise, jnp.array([16000])))
    assert (logits.shape, features.shape) == ((1, 6), (1, 256))
    assert np.isfinite(logits).all() and np.abs(logits).max() > 0
    states = jax.eval_shape(
        functools.partial(model.apply, method="hidden_states"),
        {"params": params, "frozen": frozen},
        Waveforms(noise, jnp.array([16000])),
    )
    assert [state.shape for state in states.layers] == [(1, 49, 768)] * 13


def test_frames_of_clips():
    lengths = np.array([0, 399, 400, 719, 720, 16000, 48000])
    expected = [0, 0, 1, 1, 2, 49, 149]
    np.testing.assert_array_equal(frame_lengths(HUBERT_BASE, lengths), expected)
    assert [frame_lengths(HUBERT_BASE, int(length)) for length in lengths] == expected
    assert least_samples(HUBERT_BASE) == 400
    for config in (VARIANT, HUBERT_TINY):
        least = least_samples(config)
        assert [frame_lengths(config, least + more) for more in (-1, 0)] == [0, 1]


SAMPLES = np.zeros((2, 1000), np.float32)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (SAMPLES, "inputs: expected Waveforms, Features or EncoderInput, got ndarray"),
        (Waveforms(SAMPLES[0], np.array([9])), r"samples: expected floating \[batch, length\] with at least 400"),
        (Waveforms(SAMPLES[:, :399], np.array([399, 399])), r"at least 400 samples, got float32 \(2, 399\)"),
        (Waveforms(SAMPLES.astype(np.int16), np.array([500, 500])), r"samples: expected floating .* got int16"),
        (Waveforms(SAMPLES, np.array([1000])), r"lengths: expected 2 whole numbers, got int64 \(1,\)"),
        (Waveforms(SAMPLES, np.array([1000.0, 1.0])), "lengths: expected 2 whole numbers, got float64"),
        (
            Waveforms(SAMPLES, np.array([1000, 0])),
            "lengths: expected 400 to 1000 samples in every clip, got 0 in clip 1",
        ),
        (Waveforms(SAMPLES, np.array([1001, 400])), "lengths: expected 400 to 1000 samples in every clip, got 1001 in"),
        (EncoderInput(SAMPLES, np.array([1, 1])), r"frames: expected floating \[batch, frames, channels\]"),
        (Features(SAMPLES, np.array([1, 1])), r"frames: expected floating \[batch, frames, channels\]"),
        (Features(SAMPLES[..., None], np.array([1, 0])), "lengths: expected 1 to 1000 frames in every clip, got 0"),
    ],
)
def test_inputs_that_are_no_clips_are_refused(inputs, message):
    model = hubert(3, config=HUBERT_TINY)
    with pytest.raises(InputError, match=message):
        model.apply({"params": {}, "frozen": {}}, inputs, train=False)
