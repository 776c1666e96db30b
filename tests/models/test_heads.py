"""The classifier layers against float64 NumPy and PyTorch, and the checks of arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imbal_jax.errors import InputError
from imbal_jax.models.heads import (
    CosineClassifier,
    check_classifier,
    check_dropout,
    check_images,
    check_size,
    normalise,
)


def numpy_cosines(features, kernel):
    """Cosines of the angles in float64."""
    features, kernel = np.asarray(features, np.float64), np.asarray(kernel, np.float64)
    lengths = np.linalg.norm(features, axis=1)[:, None] * np.linalg.norm(kernel, axis=0)[None]
    return features @ kernel / lengths


@pytest.fixture(scope="module")
def features_and_kernel():
    random = np.random.default_rng(0)
    features = random.normal(size=(5, 4)) * np.array([[1e-6], [0.1], [1.0], [10.0], [1e6]])
    return jnp.asarray(features, jnp.float32), jnp.asarray(3 * random.normal(size=(4, 3)), jnp.float32)


def cosines(kernel, features):
    return CosineClassifier(kernel.shape[1]).apply({"params": {"kernel": kernel}}, features)


def test_cosine_logits_match_numpy_at_every_length(features_and_kernel):
    features, kernel = features_and_kernel
    np.testing.assert_allclose(cosines(kernel, features), numpy_cosines(features, kernel), atol=1e-6)
    aligned = cosines(kernel, kernel.T)
    np.testing.assert_allclose(np.diag(aligned), 1.0, atol=1e-6)
    np.testing.assert_allclose(np.diag(cosines(kernel, -kernel.T)), -1.0, atol=1e-6)


def test_cosine_gradients_match_torch(features_and_kernel):
    torch = pytest.importorskip("torch")
    features, kernel = features_and_kernel
    # A zero vector and one shorter than the smallest norm.
    features = jnp.concatenate([features, jnp.zeros((1, 4)), jnp.full((1, 4), 2e-13)])
    cotangent = np.random.default_rng(1).normal(size=(7, 3)).astype(np.float32)
    logits, pull_back = jax.vjp(cosines, kernel, features)
    kernel_gradient, feature_gradient = pull_back(jnp.asarray(cotangent))
    inputs = torch.tensor(np.asarray(features), requires_grad=True)
    weight = torch.tensor(np.asarray(kernel), requires_grad=True)
    outputs = torch.nn.functional.normalize(inputs, dim=1) @ torch.nn.functional.normalize(weight, dim=0)
    outputs.backward(torch.tensor(cotangent))
    assert np.isfinite(feature_gradient).all()
    np.testing.assert_allclose(logits, outputs.detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(kernel_gradient, weight.grad.numpy(), rtol=1e-4, atol=1e-6)
    lengths = np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    np.testing.assert_allclose(feature_gradient * lengths, inputs.grad.numpy() * lengths, atol=1e-5)


def test_zero_features_have_zero_cosines_and_finite_gradients():
    kernel = jnp.asarray(np.random.default_rng(2).normal(size=(4, 3)), jnp.float32)
    logits, pull_back = jax.vjp(cosines, kernel, jnp.zeros((2, 4)))
    np.testing.assert_array_equal(logits, 0.0)
    kernel_gradient, feature_gradient = pull_back(jnp.ones((2, 3)))
    np.testing.assert_array_equal(kernel_gradient, 0.0)
    expected = np.asarray(normalise(kernel, axis=0), np.float64).sum(1) * 1e12
    np.testing.assert_allclose(feature_gradient, np.tile(expected, (2, 1)), rtol=1e-4)


def test_cosine_classifier_has_one_parameter_of_unit_columns():
    variables = CosineClassifier(3).init(jax.random.key(0), jnp.ones((1, 8)))
    assert list(variables["params"]) == ["kernel"]
    kernel = np.asarray(variables["params"]["kernel"])
    assert kernel.shape == (8, 3)
    np.testing.assert_allclose(np.linalg.norm(kernel, axis=0), 1.0, atol=1e-6)


@pytest.mark.parametrize("num_classes", [1, 0, -2, 2.5, True, "ten"])
def test_num_classes_is_a_whole_number_of_at_least_two(num_classes):
    with pytest.raises(InputError, match=r"num_classes: expected a whole number >= 2, got "):
        check_classifier(num_classes, "linear")


def test_an_unknown_classifier_is_answered_with_the_known_ones():
    with pytest.raises(InputError, match="classifier: expected one of linear, cosine, got 'cosin'"):
        check_classifier(10, "cosin")


@pytest.mark.parametrize("rate", [-0.1, 1, 1.5, float("nan"), "0.5", None])
def test_dropout_is_a_rate_below_one(rate):
    with pytest.raises(InputError, match=r"dropout: expected a rate in \[0, 1\), got "):
        check_dropout(rate)


@pytest.mark.parametrize("size", [0, -1, 1.0, False])
def test_a_size_is_a_positive_whole_number(size):
    with pytest.raises(InputError, match=r"width: expected a whole number >= 1, got "):
        check_size("width", size)


def test_valid_arguments_pass():
    check_classifier(np.int64(2), "cosine")
    check_dropout(0)
    check_dropout(0.999)
    check_size("width", 1)
    check_images(jnp.zeros((1, 4, 5, 1)), least_side=4)


@pytest.mark.parametrize("shape", [(8, 8, 1), (1, 8, 3, 1), (1, 3, 8, 1)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(InputError, match=r"images: expected \[batch.* height and width >= 4, got shape \("):
        check_images(jnp.zeros(shape), least_side=4)


def test_raw_bytes_are_refused():
    with pytest.raises(InputError, match="images: expected standardised floating-point numbers, got uint8"):
        check_images(jnp.zeros((1, 8, 8, 1), jnp.uint8))
