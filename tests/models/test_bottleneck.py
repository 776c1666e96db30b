"""ResNet-50 and ResNet-152: sizes, shapes, initial weights, and values against a network written here in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imbal_jax.errors import InputError
from imbal_jax.models.bottleneck import BottleneckBlock, BottleneckResNet, resnet50, resnet152
from imbal_jax.models.bottleneck_weights import torchvision_name
from imbal_jax.models.pooling import max_pool_3x3

# Compilation dominates these tests; the values are the same without XLA's optimisations.
QUICK = {"xla_backend_optimization_level": 0}


def shapes_of(model, images):
    return jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)


def initialised(model, images):
    """Variables as they are at first."""
    return jax.jit(functools.partial(model.init, train=False), compiler_options=QUICK)(jax.random.key(0), images)


def random_variables(model, images):
    """Variables of random numbers of which none is special, float32."""
    random = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key in ("scale", "var"):
            return random.uniform(0.7, 1.4, leaf.shape).astype(np.float32)
        fan_in = np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 100
        return random.normal(0, fan_in**-0.5, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes_of(model, images))


# The reference, float64, on tensors by torchvision's names, which its modules' forward functions read in this order.


def tensors_of(variables):
    """The variables in float64 under torchvision's names, kernels as here: [height, width, inputs, outputs]."""
    return {
        torchvision_name(tuple(key.key for key in keys[1:])): np.asarray(leaf, np.float64)
        for keys, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]
    }


def convolve(images, kernel, stride, padding):
    side = kernel.shape[0]
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    rows = range(0, padded.shape[1] - side + 1, stride)
    columns = range(0, padded.shape[2] - side + 1, stride)
    windows = [[padded[:, i : i + side, j : j + side] for j in columns] for i in rows]
    return np.einsum("ijbhwc,hwco->bijo", np.array(windows), kernel)


def normalise(images, tensors, name, batch_statistics):
    mean, variance = tensors[f"{name}.running_mean"], tensors[f"{name}.running_var"]
    if batch_statistics:
        mean, variance = images.mean((0, 1, 2)), images.var((0, 1, 2))
    return (images - mean) / np.sqrt(variance + 1e-5) * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]


def pool(images):
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    rows, columns = range(0, padded.shape[1] - 2, 2), range(0, padded.shape[2] - 2, 2)
    return np.stack([np.stack([padded[:, i : i + 3, j : j + 3].max((1, 2)) for j in columns], 1) for i in rows], 1)


def block_of(images, tensors, prefix, stride, batch_statistics=False):
    def layer(hidden, number, stride=1):
        kernel = tensors[f"{prefix}conv{number}.weight"]
        hidden = convolve(hidden, kernel, stride, kernel.shape[0] // 2)
        return normalise(hidden, tensors, f"{prefix}bn{number}", batch_statistics)

    hidden = np.maximum(layer(images, 1), 0)
    hidden = layer(np.maximum(layer(hidden, 2, stride), 0), 3)
    if f"{prefix}downsample.0.weight" in tensors:
        images = convolve(images, tensors[f"{prefix}downsample.0.weight"], stride, 0)
        images = normalise(images, tensors, f"{prefix}downsample.1", batch_statistics)
    return np.maximum(hidden + images, 0)


def network_of(images, tensors, blocks):
    hidden = np.maximum(normalise(convolve(images, tensors["conv1.weight"], 2, 3), tensors, "bn1", False), 0)
    hidden = pool(hidden)
    for stage, count in enumerate(blocks, start=1):
        for block in range(count):
            stride = 2 if stage > 1 and block == 0 else 1
            hidden = block_of(hidden, tensors, f"layer{stage}.{block}.", stride)
    features = hidden.mean((1, 2))
    return features @ tensors["fc.weight"] + tensors["fc.bias"], features


@pytest.mark.parametrize(("builder", "published"), [(resnet50, 25_557_032), (resnet152, 60_192_808)])
def test_parameter_counts_are_torchvision_s(builder, published):
    variables = shapes_of(builder(1000), jnp.zeros((1, 224, 224, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == published
    outputs = jax.eval_shape(
        functools.partial(builder(1000).apply, train=False), variables, jnp.zeros((2, 224, 224, 3))
    )
    assert [each.shape for each in outputs] == [(2, 1000), (2, 2048)]


def test_layers_have_torchvision_s_names_and_strides():
    variables = shapes_of(resnet50(10), jnp.zeros((1, 32, 32, 3)))
    names = {
        torchvision_name(tuple(key.key for key in keys[1:]))
        for keys, _ in jax.tree_util.tree_leaves_with_path(variables)
    }
    assert len(names) == 53 * 5 + 2  # a convolution and four tensors of its normalisation each, and the classifier
    assert {"layer1.0.downsample.0.weight", "layer3.5.bn3.running_var", "layer4.2.conv3.weight", "fc.bias"} <= names
    assert not [name for name in names if "downsample" in name and ".0.downsample" not in name]


@pytest.mark.parametrize("shape", [(2, 33, 38, 3), (1, 64, 64, 3)])
def test_a_network_is_the_one_written_here(shape):
    blocks = (1, 2, 1, 1)
    model = BottleneckResNet(3, blocks, 2, "linear", False, "all")
    images = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    variables = random_variables(model, images)
    apply = jax.jit(functools.partial(model.apply, train=False), compiler_options=QUICK)
    expected = network_of(images.astype(np.float64), tensors_of(variables), blocks)
    for got, reference in zip(apply(variables, images), expected, strict=True):
        assert np.ptp(reference) > 1e-2
        np.testing.assert_allclose(got, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("channels", "stride"), [(2, 1), (2, 2), (3, 1)])
def test_a_block_in_training_is_the_one_written_here(channels, stride):
    block = BottleneckBlock(channels, stride, False)
    images = np.random.default_rng(2).normal(size=(3, 5, 6, 8)).astype(np.float32)
    variables = random_variables(block, images)
    assert ("shortcut_convolution" in variables["params"]) == ((channels, stride) != (2, 1))
    train = jax.jit(functools.partial(block.apply, train=True, mutable=["batch_stats"]), compiler_options=QUICK)
    got, new = train(variables, images)
    tensors = tensors_of(variables)
    expected = block_of(images.astype(np.float64), tensors, "", stride, batch_statistics=True)
    assert got.shape == expected.shape == (3, -(-5 // stride), -(-6 // stride), 4 * channels)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    first = convolve(images.astype(np.float64), tensors["conv1.weight"], 1, 0)
    np.testing.assert_allclose(
        new["batch_stats"]["norm1"]["mean"], 0.9 * tensors["bn1.running_mean"] + 0.1 * first.mean((0, 1, 2)), atol=1e-6
    )


def test_a_zero_last_scale_starts_every_block_as_its_shortcut():
    images = np.abs(np.random.default_rng(0).normal(size=(2, 4, 4, 8))).astype(np.float32)
    for zero in (True, False):
        block = BottleneckBlock(2, 1, zero)
        variables = initialised(block, images)
        assert (variables["params"]["norm3"]["scale"] == (0 if zero else 1)).all()
        assert (variables["params"]["norm1"]["scale"] == 1).all()
        apply = jax.jit(functools.partial(block.apply, train=False), compiler_options=QUICK)
        assert np.allclose(apply(variables, images), images) == zero


def test_the_option_of_the_last_scale_reaches_every_block():
    model = resnet50(2, width=1, zero_last_scale=True)
    assert model.zero_last_scale and not resnet50(2, width=1).zero_last_scale


def test_initial_kernels_are_kaiming_normal_of_the_outputs():
    block = BottleneckBlock(64, 2, False)
    params = initialised(block, jnp.zeros((1, 2, 2, 64)))["params"]
    fans = {"convolution1": 64, "convolution2": 9 * 64, "convolution3": 256, "shortcut_convolution": 256}
    for name, fan_out in fans.items():
        np.testing.assert_allclose(jnp.std(params[name]["kernel"]), np.sqrt(2 / fan_out), rtol=0.05)


def test_the_pool_is_that_of_every_window():
    images = np.random.default_rng(0).integers(0, 4, (2, 7, 8, 3)).astype(np.float32)  # with ties
    np.testing.assert_array_equal(max_pool_3x3(jnp.asarray(images)), pool(images))


def test_at_ties_the_gradient_of_the_pool_goes_to_the_first_of_the_window():
    images = jnp.asarray([[0.0, 0.0, 0.0, 2.0], [0.0, 1.0, 1.0, 2.0], [0.0, 1.0, 1.0, 2.0], [0.0, 0.0, 0.0, 2.0]])
    gradient = jax.jit(jax.grad(lambda images: max_pool_3x3(images).sum()))(images[None, :, :, None])[0, :, :, 0]
    expected = np.zeros((4, 4))
    expected[1, 1] = 2  # rows 0 to 1 and rows 1 to 3 of the first two columns
    expected[0, 3] = expected[1, 3] = 1
    np.testing.assert_array_equal(gradient, expected)


def test_a_cosine_classifier_has_no_bias():
    variables = shapes_of(resnet50(7, width=2, classifier="cosine"), jnp.zeros((1, 32, 32, 3)))
    assert jax.tree.map(jnp.shape, variables["params"]["classifier"]) == {"kernel": (64, 7)}


@pytest.mark.parametrize("builder", [resnet50, resnet152])
def test_bad_arguments_are_refused(builder):
    with pytest.raises(InputError, match="width: expected a whole number >= 1, got 0"):
        builder(3, width=0)
    with pytest.raises(InputError, match="classifier: expected one of linear, cosine, got 'mlp'"):
        builder(3, classifier="mlp")
    with pytest.raises(InputError, match="num_classes: expected a whole number >= 2, got 1"):
        builder(1)


@pytest.mark.parametrize(
    ("trained", "moving"),
    [("last_block", {"stage4_block1", "classifier"}), ("classifier", {"classifier"}), ("all", None)],
)
def test_what_is_not_trained_has_no_gradient_and_keeps_its_statistics(trained, moving):
    model = BottleneckResNet(3, (1, 1, 1, 1), 1, "linear", False, trained)
    images = np.random.default_rng(3).normal(size=(3, 32, 32, 3)).astype(np.float32)
    variables = random_variables(model, images)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def gradient(params):
        def loss(params):
            (logits, _), new = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
            return jnp.sum(logits**2), new["batch_stats"]

        return jax.grad(loss, has_aux=True)(params)

    gradients, statistics = gradient(variables["params"])
    moving = set(variables["params"]) if moving is None else moving
    assert model.frozen_layers() == set(variables["params"]) - moving
    for name, each in gradients.items():
        assert all(bool((leaf != 0).any()) == (name in moving) for leaf in jax.tree.leaves(each)), name
    for name, before in variables["batch_stats"].items():
        after = jax.tree.leaves(statistics[name])
        changed = [bool((a != b).any()) for a, b in zip(jax.tree.leaves(before), after, strict=True)]
        assert all(changed) if name in moving else not any(changed), name


def test_frozen_layers_of_the_published_networks():
    last = resnet152(3, trained="last_block").frozen_layers()
    assert {"convolution", "norm", "stage1_block1", "stage3_block36", "stage4_block2"} <= last
    assert resnet152(3, trained="classifier").frozen_layers() - last == {"stage4_block3"}
    assert resnet50(3).frozen_layers() == frozenset()
    with pytest.raises(InputError, match=r"model\.trained: no 'fc'"):
        resnet50(3, trained="fc")
