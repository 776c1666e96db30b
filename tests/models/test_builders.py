"""What every image model promises: outputs, collections, names, keys and refused arguments."""

import functools

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imbal_jax.errors import InputError
from imbal_jax.models.basic_resnet import resnet18, resnet34
from imbal_jax.models.bottleneck import resnet50, resnet152
from imbal_jax.models.cnn import cnn
from imbal_jax.models.cnn8 import cnn8
from imbal_jax.models.mlp import mlp
from imbal_jax.models.resnet import resnet32
from imbal_jax.models.vgg import vgg11_bn

# name: (builder, image shape, number of features, has batch statistics)
MODELS = {
    "mlp": (functools.partial(mlp, hidden=(7, 5)), (6, 5, 2), 5, False),
    "softmax_regression": (functools.partial(mlp, hidden=()), (3, 3, 2), 18, False),
    "cnn": (functools.partial(cnn, width=3), (8, 8, 1), 6, True),
    "cnn8": (cnn8, (8, 9, 3), 256, True),
    "resnet18": (functools.partial(resnet18, width=2), (8, 8, 3), 16, True),
    "resnet32": (functools.partial(resnet32, width=4), (8, 8, 3), 16, True),
    "resnet50": (functools.partial(resnet50, width=2), (8, 8, 3), 64, True),
    "resnet152": (functools.partial(resnet152, width=1), (8, 8, 3), 32, True),
    "resnet34": (functools.partial(resnet34, width=2), (8, 8, 3), 16, True),
    "vgg11_bn": (vgg11_bn, (32, 32, 3), 4096, True),
}
EVERY_MODEL = pytest.mark.parametrize("name", MODELS)
EVERY_CLASSIFIER = pytest.mark.parametrize("classifier", ["linear", "cosine"])


def images_of(name, batch=2):
    return jnp.asarray(np.random.default_rng(0).normal(size=(batch, *MODELS[name][1])), jnp.float32)


def shapes_of(model, images):
    """Shapes of the variables and of evaluation's (logits, features), without computing them."""
    variables = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)
    outputs = jax.eval_shape(functools.partial(model.apply, train=False), variables, images)
    return variables, outputs


@functools.cache
def evaluated(name, classifier):
    """Variables and evaluation's outputs of a model with three classes, in one compilation."""

    @jax.jit
    def run(key, images):
        (logits, features), variables = model.init_with_output(key, images, train=False)
        return variables, logits, features

    model = MODELS[name][0](3, classifier=classifier)
    return run(jax.random.key(0), images_of(name))


@EVERY_MODEL
@EVERY_CLASSIFIER
def test_shapes_and_collections(name, classifier):
    builder, _, num_features, has_statistics = MODELS[name]
    variables, (logits, features) = shapes_of(builder(3, classifier=classifier), images_of(name))
    assert (logits.shape, logits.dtype) == ((2, 3), jnp.float32)
    assert (features.shape, features.dtype) == ((2, num_features), jnp.float32)
    assert set(variables) == ({"params", "batch_stats"} if has_statistics else {"params"})
    shapes = {key: leaf.shape for key, leaf in variables["params"]["classifier"].items()}
    bias = {"bias": (3,)} if classifier == "linear" else {}
    assert shapes == {"kernel": (num_features, 3), **bias}


# ResNet-32 and VGG11 are compiled once more, with the linear classifier, in test_torch_parity.py.
@pytest.mark.parametrize("name", ["mlp", "softmax_regression", "cnn"])
@EVERY_CLASSIFIER
def test_features_are_what_enters_the_classifier(name, classifier):
    variables, logits, features = evaluated(name, classifier)
    layer = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"]["classifier"])
    features = np.asarray(features, np.float64)
    if classifier == "linear":
        expected = features @ layer["kernel"] + layer["bias"]
    else:
        expected = features / np.linalg.norm(features, axis=1, keepdims=True)
        expected = expected @ (layer["kernel"] / np.linalg.norm(layer["kernel"], axis=0))
    assert np.ptp(expected) > 1e-3
    np.testing.assert_allclose(logits, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["cnn", "cnn8", "resnet18", "resnet32", "resnet34", "vgg11_bn"])
def test_training_updates_the_running_statistics(name):
    builder = MODELS[name][0]
    model = builder(3, dropout=0.0) if name == "vgg11_bn" else builder(3)
    variables, _ = shapes_of(model, images_of(name))
    _, new = jax.eval_shape(
        functools.partial(model.apply, train=True, mutable=["batch_stats"]), variables, images_of(name)
    )
    assert jax.tree.structure(new["batch_stats"]) == jax.tree.structure(variables["batch_stats"])
    assert jax.tree.map(jnp.shape, new["batch_stats"]) == jax.tree.map(jnp.shape, variables["batch_stats"])


def test_dropout_zeroes_and_rescales_features_in_training_only():
    model = mlp(3, hidden=(4000,), dropout=0.25)
    images = jnp.ones((1, 2, 2, 1))
    variables = model.init(jax.random.key(0), images, train=False)
    _, kept = model.apply(variables, images, train=False)
    _, dropped = model.apply(variables, images, train=True, rngs={"dropout": jax.random.key(1)})
    kept, dropped = np.asarray(kept), np.asarray(dropped)
    alive = kept > 0
    zeroed = dropped[alive] == 0
    np.testing.assert_allclose(zeroed.mean(), 0.25, atol=0.04)  # four standard errors of about 2,000 draws
    np.testing.assert_allclose(dropped[alive][~zeroed], kept[alive][~zeroed] / 0.75, rtol=1e-5)


def test_only_positive_dropout_needs_a_key():
    images = jnp.ones((2, 2, 2, 1))
    silent, noisy = mlp(3, dropout=0.0), mlp(3, dropout=0.5)
    variables = silent.init(jax.random.key(0), images, train=True)
    training, _ = silent.apply(variables, images, train=True)
    evaluating, _ = noisy.apply(variables, images, train=False)
    np.testing.assert_array_equal(training, evaluating)
    with pytest.raises(flax.errors.InvalidRngError):
        noisy.apply(variables, images, train=True)


def test_the_mlp_is_dense_layers_with_relu():
    variables, logits, _ = evaluated("mlp", "linear")
    hidden = np.asarray(images_of("mlp"), np.float64).reshape(2, -1)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    for name in ("dense1", "dense2"):
        hidden = np.maximum(hidden @ params[name]["kernel"] + params[name]["bias"], 0)
        bound = 1 / np.sqrt(len(params[name]["kernel"]))
        assert 0.5 * bound < np.abs(params[name]["kernel"]).max() <= bound
        assert 0 < np.abs(params[name]["bias"]).max() <= bound
    np.testing.assert_allclose(
        logits, hidden @ params["classifier"]["kernel"] + params["classifier"]["bias"], atol=1e-5
    )


def test_the_cnn_has_the_documented_size():
    variables, _ = shapes_of(cnn(10), jnp.zeros((1, 8, 8, 1)))
    # Two convolutions, their scales and biases, the classifier.
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == (
        9 * 16 + 2 * 16 + 9 * 16 * 32 + 2 * 32 + 32 * 10 + 10
    )


@pytest.mark.parametrize("shape", [(4, 4, 1), (5, 9, 2), (32, 32, 3)])
def test_the_cnn_takes_any_image_of_at_least_four_pixels_a_side(shape):
    _, (logits, features) = shapes_of(cnn(10, width=2), jnp.zeros((3, *shape)))
    assert (logits.shape, features.shape) == ((3, 10), (3, 4))


@pytest.mark.parametrize(("builder", "side"), [(cnn, 3), (cnn8, 7), (vgg11_bn, 31)])
def test_smaller_images_are_refused(builder, side):
    with pytest.raises(InputError, match=f"images: .* height and width >= {side + 1}, got shape"):
        shapes_of(builder(3), jnp.zeros((1, side + 5, side, 3)))


@pytest.mark.slow
def test_one_model_is_vmapped_over_seeds():
    model = cnn(3, width=2)
    images = images_of("cnn")
    initialise = functools.partial(model.init, train=False)
    each = [initialise(jax.random.key(seed), images) for seed in (0, 1)]
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    step = functools.partial(model.apply, train=True, mutable=["batch_stats"])
    (logits, _), new = jax.jit(jax.vmap(step, in_axes=(0, None)))(together, images)
    for seed, variables in enumerate(each):
        (expected, _), expected_new = jax.jit(step)(variables, images)
        np.testing.assert_allclose(logits[seed], expected, atol=1e-5)
        jax.tree.map(lambda a, b, seed=seed: np.testing.assert_allclose(a[seed], b, atol=1e-5), new, expected_new)


@pytest.mark.parametrize("builder", [mlp, cnn, cnn8, resnet18, resnet32, resnet34, vgg11_bn])
def test_builders_refuse_a_bad_last_layer(builder):
    with pytest.raises(InputError, match="classifier: expected one of linear, cosine, got 'mlp'"):
        builder(3, classifier="mlp")
    with pytest.raises(InputError, match="num_classes: expected a whole number >= 2, got 1"):
        builder(1)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: mlp(3, dropout=1.0), r"dropout: expected a rate in \[0, 1\), got 1.0"),
        (lambda: vgg11_bn(3, dropout=-0.5), r"dropout: expected a rate in \[0, 1\), got -0.5"),
        (lambda: mlp(3, hidden=(64, 0)), "hidden: expected a whole number >= 1, got 0"),
        (lambda: mlp(3, hidden=64), "hidden: expected a tuple of layer sizes, got 64"),
        (lambda: cnn(3, width=0), "width: expected a whole number >= 1, got 0"),
        (lambda: resnet18(3, width=0), "width: expected a whole number >= 1, got 0"),
        (lambda: resnet32(3, width=-16), "width: expected a whole number >= 1, got -16"),
    ],
)
def test_builders_refuse_bad_sizes(build, message):
    with pytest.raises(InputError, match=message):
        build()


def test_byte_images_are_refused():
    with pytest.raises(InputError, match="images: expected standardised floating-point numbers, got uint8"):
        shapes_of(mlp(3), jnp.zeros((1, 8, 8, 1), jnp.uint8))
