"""The speech network: its size, its values, padding that changes nothing, and gradients of each clip."""

import functools

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import optax
import pytest

from imbal_jax.curvature.linearisation import linearise
from imbal_jax.errors import InputError
from imbal_jax.losses import cross_entropy_losses
from imbal_jax.models.speech_cnn import mean_and_deviation, speech_cnn
from imbal_jax.types import Batch, Objective, Prediction, Waveforms

# Compilation dominates these tests; the values are the same without XLA's optimisations.
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

LENGTHS = np.array([4_000, 3_999, 2_345, 720, 400], np.int32)
TINY = {"channels": (6, 7, 5), "n_mels": 20}


def clips(lengths=LENGTHS, size=4_000, seed=0):
    """Noise of changing level, zero after each clip's end."""
    noise = np.random.default_rng(seed).normal(size=(len(lengths), size)) * np.linspace(0.2, 1, size)
    samples = np.where(np.arange(size) < lengths[:, None], noise, 0)
    return Waveforms(jnp.asarray(samples, jnp.float32), jnp.asarray(lengths))


def variables_of(model, inputs, seed=0):
    """Initial variables with norms that are not neutral."""
    variables = compiled(functools.partial(model.init, train=False))(jax.random.key(seed), inputs)
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: leaf + jnp.asarray(0.1 * rng.normal(size=leaf.shape), leaf.dtype), variables)


@pytest.fixture(scope="module")
def tiny():
    """A model, its variables and its jitted application."""
    model = speech_cnn(3, **TINY)
    return model, variables_of(model, clips()), compiled(functools.partial(model.apply, train=False))


def test_parameter_count():
    inputs = Waveforms(jnp.zeros((1, 16_000)), jnp.array([16_000]))
    shapes = jax.eval_shape(functools.partial(speech_cnn(8).init, train=False), jax.random.key(0), inputs)
    assert set(shapes) == {"params"}
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 259_016
    convolutions = 5 * (64 * 96 + 96 * 128 + 128 * 128 + 128 * 128)
    assert convolutions + 2 * (96 + 3 * 128) + 256 * 8 + 8 == 259_016


def reference(params, clip, standardise):
    """Logits and features of one clip in float64: librosa, then convolutions as sums over windows."""
    options = {"sr": 16_000, "n_fft": 400, "hop_length": 160, "n_mels": 20, "center": False, "dtype": np.float64}
    frames = np.log(np.maximum(librosa.feature.melspectrogram(y=clip, **options).T, 1e-10))
    if standardise == "clip":
        frames = (frames - frames.mean()) / np.sqrt(frames.var() + 1e-5)
    elif standardise == "band":
        frames = (frames - frames.mean(0)) / np.sqrt(frames.var(0) + 1e-5)
    else:
        frames = (frames + 8) / 4
    for layer in (1, 2, 3):
        kernel = np.asarray(params[f"convolution{layer}"]["kernel"], np.float64)
        padded = np.pad(frames, ((2, 2), (0, 0)))
        count = -(-len(frames) // 2)
        hidden = np.stack([np.einsum("ki,kio->o", padded[2 * t : 2 * t + 5], kernel) for t in range(count)])
        norm = {name: np.asarray(leaf, np.float64) for name, leaf in params[f"norm{layer}"].items()}
        hidden = (hidden - hidden.mean(0)) / np.sqrt(hidden.var(0) + 1e-5) * norm["scale"] + norm["bias"]
        frames = np.maximum(hidden, 0)
    features = np.concatenate([frames.mean(0), np.sqrt(frames.var(0) + 1e-5)])
    classifier = {name: np.asarray(leaf, np.float64) for name, leaf in params["classifier"].items()}
    return features @ classifier["kernel"] + classifier["bias"], features


@pytest.mark.parametrize("standardise", ["clip", "band", "none"])
def test_values_are_those_of_the_definition(standardise):
    model = speech_cnn(3, **TINY, standardise=standardise)
    inputs = clips()
    variables = variables_of(model, inputs)
    clipwise = [np.asarray(row[:length], np.float64) for row, length in zip(inputs.samples, LENGTHS, strict=True)]
    expected = [reference(variables["params"], clip, standardise) for clip in clipwise]
    apply = compiled(functools.partial(model.apply, train=False))
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (variables, inputs.samples))
        logits, features = apply(wide[0], inputs._replace(samples=wide[1]))
        assert logits.dtype == features.dtype == jnp.float64
        np.testing.assert_allclose(logits, [each for each, _ in expected], atol=1e-8)
        np.testing.assert_allclose(features, [each for _, each in expected], atol=1e-8)
    if standardise == "clip":
        logits, features = apply(variables, inputs)
        assert logits.dtype == features.dtype == jnp.float32
        np.testing.assert_allclose(logits, [each for each, _ in expected], atol=1e-3)
        np.testing.assert_allclose(features, [each for _, each in expected], atol=1e-3)


def test_a_padded_clip_is_as_alone(tiny):
    _, variables, apply = tiny
    inputs = clips()
    logits, features = apply(variables, inputs)
    longer = inputs._replace(samples=jnp.pad(inputs.samples, ((0, 0), (0, 1_777))))
    for ours, theirs in zip((logits, features), apply(variables, longer), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    for row, length in enumerate(LENGTHS):
        alone = Waveforms(inputs.samples[row : row + 1, :length], inputs.lengths[row : row + 1])
        alone_logits, alone_features = apply(variables, alone)
        np.testing.assert_allclose(logits[row], alone_logits[0], atol=1e-5)
        np.testing.assert_allclose(features[row], alone_features[0], atol=1e-5)


def test_the_other_clips_do_not_matter_in_training_either(tiny):
    _, variables, evaluate = tiny
    inputs = clips()
    quiet = speech_cnn(3, **TINY, dropout=0.0)
    apply = compiled(functools.partial(quiet.apply, train=True))
    logits, _ = apply(variables, inputs)
    some = Waveforms(inputs.samples[1:3], inputs.lengths[1:3])
    np.testing.assert_allclose(apply(variables, some)[0], logits[1:3], atol=1e-5)
    np.testing.assert_allclose(evaluate(variables, inputs)[0], logits, atol=1e-5)


def test_dropout_acts_in_training_alone(tiny):
    model, variables, apply = tiny
    inputs = clips()
    train = compiled(functools.partial(model.apply, train=True))
    _, features = apply(variables, inputs)
    _, dropped = train(variables, inputs, rngs={"dropout": jax.random.key(1)})
    kept = np.asarray(dropped != 0)
    np.testing.assert_allclose(dropped[kept], 2 * features[kept], rtol=1e-5)
    assert 0.2 < kept[:, -5:].mean() < 0.8  # the deviations are never zero by themselves


def test_clips_shorter_than_a_frame_are_finite(tiny):
    model, variables, apply = tiny
    inputs = clips(np.array([0, 399, 4_000], np.int32))
    logits, _ = apply(variables, inputs)
    np.testing.assert_array_equal(logits[0], logits[1])

    def total(params):
        return (model.apply({"params": params}, inputs, train=False)[0] ** 2).sum()

    gradient = compiled(jax.grad(total))(variables["params"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((logits, gradient)))


def test_mean_and_deviation_are_over_the_frames_that_count():
    rng = np.random.default_rng(0)
    counts = np.array([6, 3, 1])
    frames = np.where(np.arange(6)[:, None] < counts[:, None, None], rng.normal(size=(3, 6, 4)) + 2, 0)
    result = mean_and_deviation(jnp.asarray(frames, jnp.float32), jnp.asarray(counts))
    for row, clip, count in zip(result, frames, counts, strict=True):
        np.testing.assert_allclose(row[:4], clip[:count].mean(0), atol=1e-6)
        np.testing.assert_allclose(row[4:], np.sqrt(clip[:count].var(0) + 1e-5), atol=1e-6)


def objective_of(model):
    """Cross-entropy of the model without noise."""

    def predict(params, batch, key):
        del key
        return Prediction(*model.apply({"params": params}, batch.inputs, train=False))

    return Objective(predict, lambda prediction, batch: cross_entropy_losses(prediction.logits, batch.labels))


def test_gradients_of_each_clip_are_found_by_both_engines():
    model = speech_cnn(3, channels=(4, 5), n_mels=8)
    inputs = clips(np.array([1_600, 1_000, 400], np.int32), size=1_600)
    params = variables_of(model, inputs)["params"]
    batch = Batch(inputs, jnp.array([0, 2, 1]))
    objective = objective_of(model)

    def loss_of(params, row):
        alone = Batch(Waveforms(inputs.samples[row][None], inputs.lengths[row][None]), batch.labels[row][None])
        return objective.losses(objective.predict(params, alone, None), alone)[0]

    gradient_of = compiled(jax.grad(loss_of))
    rows = [gradient_of(params, row) for row in range(3)]
    jacobian = np.stack([np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(row)]) for row in rows])
    coefficients = jnp.array([0.5, -1.0, 2.0])
    vector = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])

    @compiled
    def both(params):
        found = [linearise(objective, params, batch, jax.random.key(0), engine=engine) for engine in ("gram", "vmap")]
        return [(each.gram, each.pullback(coefficients), each.products(params)) for each in found]

    for gram, pulled, products in both(params):
        np.testing.assert_allclose(gram, jacobian @ jacobian.T, rtol=1e-3, atol=1e-4)
        flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(pulled)])
        np.testing.assert_allclose(flat, coefficients @ jacobian, atol=1e-3)
        np.testing.assert_allclose(products, jacobian @ vector, atol=1e-3)


def test_it_learns_which_tone_is_heard():
    rng = np.random.default_rng(0)
    labels = np.arange(12) % 2
    time = np.arange(3_200) / 16_000
    tones = np.sin(2 * np.pi * np.where(labels, 1_500, 400)[:, None] * time + rng.uniform(0, 6, (12, 1)))
    samples = tones + 0.3 * rng.normal(size=tones.shape)
    batch = Waveforms(jnp.asarray(samples, jnp.float32), jnp.full(12, 3_200))
    model = speech_cnn(2, channels=(8, 8), n_mels=20, dropout=0.1)
    params = compiled(functools.partial(model.init, train=False))(jax.random.key(0), batch)["params"]
    optimiser = optax.adam(1e-2)

    @compiled
    def step(params, state, key):
        def loss(params):
            logits, _ = model.apply({"params": params}, batch, train=True, rngs={"dropout": key})
            return cross_entropy_losses(logits, labels).mean()

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimiser.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    state, losses = optimiser.init(params), []
    for index in range(60):
        params, state, value = step(params, state, jax.random.key(index))
        losses.append(float(value))
    assert np.mean(losses[-5:]) < 0.2 < 0.5 < losses[0]


def test_initial_weights():
    inputs = clips()
    params = compiled(functools.partial(speech_cnn(4).init, train=False))(jax.random.key(0), inputs)["params"]
    for layer, channels in enumerate((64, 96, 128, 128), start=1):
        kernel = params[f"convolution{layer}"]["kernel"]
        np.testing.assert_allclose(jnp.std(kernel), np.sqrt(2 / (5 * channels)), rtol=0.03)
        assert "bias" not in params[f"convolution{layer}"]
    assert np.abs(params["classifier"]["kernel"]).max() <= 1 / 16


def test_the_cosine_classifier_and_other_rates():
    inputs = Waveforms(jnp.ones((2, 500)), jnp.array([500, 500]))
    model = speech_cnn(3, channels=[4], n_mels=8, sample_rate=8_000, classifier="cosine")
    shapes = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), inputs)
    assert set(shapes["params"]["classifier"]) == {"kernel"}
    logits, features = jax.eval_shape(functools.partial(model.apply, train=False), shapes, inputs)
    assert (logits.shape, features.shape) == ((2, 3), (2, 8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 1}, r"^num_classes: expected a whole number >= 2, got 1$"),
        ({"channels": ()}, r"^channels: expected a tuple of at least one number of channels, got \(\)$"),
        ({"channels": 8}, r"^channels: expected a tuple of at least one number of channels, got 8$"),
        ({"channels": (8, 0)}, r"^channels: expected a whole number >= 1, got 0$"),
        ({"n_mels": 300}, r"^n_mels: \d+ of 300 bands "),
        ({"sample_rate": 99}, r"^sample_rate: expected a whole number >= 100, got 99$"),
        ({"standardise": "batch"}, r"^standardise: expected one of none, clip, band, got 'batch'$"),
        ({"classifier": "svm"}, r"^classifier: expected one of linear, cosine, got 'svm'$"),
        ({"dropout": 1.0}, r"^dropout: expected a rate in \[0, 1\), got 1\.0$"),
    ],
)
def test_invalid_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        speech_cnn(**{"num_classes": 3, **options})


def test_inputs_of_another_kind_are_refused():
    model = speech_cnn(3, **TINY)
    with pytest.raises(InputError, match=r"^inputs: expected Waveforms, got ArrayImpl"):
        model.init(jax.random.key(0), jnp.zeros((1, 4_000)), train=False)
    with pytest.raises(
        InputError, match=r"^samples: expected \[batch, samples\], samples >= 400, got shape \(1, 399\)"
    ):
        model.init(jax.random.key(0), Waveforms(jnp.zeros((1, 399)), jnp.array([399])), train=False)
