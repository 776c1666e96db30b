"""Batch normalisation against PyTorch and float64 NumPy."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imbal_jax.errors import InputError
from imbal_jax.models.batch_norm import BatchNorm


def variables_of(scale, bias, mean, var):
    """Float32 variables of a BatchNorm."""
    cast = lambda values: jnp.asarray(values, jnp.float32)  # noqa: E731
    return {
        "params": {"scale": cast(scale), "bias": cast(bias)},
        "batch_stats": {"mean": cast(mean), "var": cast(var)},
    }


@jax.jit
def train_step(variables, inputs):
    return BatchNorm().apply(variables, inputs, train=True, mutable=["batch_stats"])


@jax.jit
def train_gradients(variables, inputs, cotangent):
    def weighted(params, inputs):
        return jnp.sum(cotangent * train_step({**variables, "params": params}, inputs)[0])

    return jax.grad(weighted, argnums=(0, 1))(variables["params"], inputs)


@jax.jit
def evaluation(variables, inputs):
    return BatchNorm().apply(variables, inputs, train=False)


def numpy_normalise(inputs, scale, bias):
    """Training-mode outputs, batch mean and unbiased variance in float64."""
    flat = np.asarray(inputs, np.float64).reshape(-1, inputs.shape[-1])
    outputs = scale * (flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5) + bias
    return outputs.reshape(inputs.shape), flat.mean(0), flat.var(0, ddof=1)


def test_initial_variables():
    variables = BatchNorm().init(jax.random.key(0), jnp.ones((2, 3)) * 7, train=True)
    expected = variables_of(np.ones(3), np.zeros(3), np.zeros(3), np.ones(3))
    jax.tree.map(np.testing.assert_array_equal, variables, expected)
    assert jax.tree.structure(variables) == jax.tree.structure(expected)


@pytest.mark.parametrize("shape", [(6, 3), (4, 5, 3), (2, 3, 4, 3), (2, 2, 2, 2, 3)])
def test_training_and_evaluation_match_numpy_for_any_leading_axes(shape):
    random = np.random.default_rng(0)
    inputs = random.normal(2.0, 3.0, shape)
    scale, bias, mean, var = random.uniform(0.5, 2, (4, 3))
    variables = variables_of(scale, bias, mean, var)
    outputs, new = train_step(variables, jnp.asarray(inputs, jnp.float32))
    expected, batch_mean, batch_var = numpy_normalise(inputs, scale, bias)
    np.testing.assert_allclose(outputs, expected, atol=1e-5)
    np.testing.assert_allclose(new["batch_stats"]["mean"], 0.9 * mean + 0.1 * batch_mean, atol=1e-5)
    np.testing.assert_allclose(new["batch_stats"]["var"], 0.9 * var + 0.1 * batch_var, atol=1e-5)
    running = scale * (inputs - mean) / np.sqrt(var + 1e-5) + bias
    np.testing.assert_allclose(evaluation(variables, jnp.asarray(inputs, jnp.float32)), running, atol=1e-5)


def test_three_steps_match_torch_with_gradients():
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(1)
    layer = torch.nn.BatchNorm2d(3)
    scale, bias = random.uniform(0.5, 2, (2, 3)).astype(np.float32)
    layer.weight.data, layer.bias.data = torch.tensor(scale), torch.tensor(bias)
    variables = variables_of(scale, bias, np.zeros(3), np.ones(3))
    for _ in range(3):
        inputs = random.normal(1.0, 2.0, (2, 4, 4, 3)).astype(np.float32)
        cotangent = random.normal(size=inputs.shape).astype(np.float32)
        gradients, input_gradient = train_gradients(variables, inputs, cotangent)
        outputs, new = train_step(variables, inputs)
        variables = {**variables, **new}
        theirs = torch.tensor(inputs.transpose(0, 3, 1, 2), requires_grad=True)
        layer.zero_grad()
        torch_outputs = layer(theirs)
        torch_outputs.backward(torch.tensor(cotangent.transpose(0, 3, 1, 2)))
        for ours, expected in (
            (outputs, torch_outputs.detach().permute(0, 2, 3, 1)),
            (input_gradient, theirs.grad.permute(0, 2, 3, 1)),
            (gradients["scale"], layer.weight.grad),
            (gradients["bias"], layer.bias.grad),
            (variables["batch_stats"]["mean"], layer.running_mean),
            (variables["batch_stats"]["var"], layer.running_var),
        ):
            np.testing.assert_allclose(ours, expected.numpy(), atol=1e-5)
    layer.eval()
    expected = layer(torch.tensor(inputs.transpose(0, 3, 1, 2))).detach().permute(0, 2, 3, 1)
    np.testing.assert_allclose(evaluation(variables, inputs), expected.numpy(), atol=1e-5)


def test_evaluation_gradients_match_torch():
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(2)
    inputs, cotangent = random.normal(size=(2, 5, 3)).astype(np.float32)
    scale, bias, mean, var = random.uniform(0.5, 2, (4, 3)).astype(np.float32)
    variables = variables_of(scale, bias, mean, var)

    def weighted(params, inputs):
        return jnp.sum(cotangent * evaluation({**variables, "params": params}, inputs))

    gradients, input_gradient = jax.grad(weighted, argnums=(0, 1))(variables["params"], jnp.asarray(inputs))
    theirs, weight, shift = (torch.tensor(values, requires_grad=True) for values in (inputs, scale, bias))
    outputs = torch.nn.functional.batch_norm(theirs, torch.tensor(mean), torch.tensor(var), weight, shift)
    outputs.backward(torch.tensor(cotangent))
    np.testing.assert_allclose(input_gradient, theirs.grad.numpy(), atol=1e-5)
    np.testing.assert_allclose(gradients["scale"], weight.grad.numpy(), atol=1e-5)
    np.testing.assert_allclose(gradients["bias"], shift.grad.numpy(), atol=1e-5)


def test_the_variance_survives_a_large_mean():
    inputs = np.random.default_rng(3).normal(3000.0, 1.0, (4, 8, 8, 3)).astype(np.float32)
    _, new = train_step(variables_of(np.ones(3), np.zeros(3), np.zeros(3), np.zeros(3)), inputs)
    _, _, expected = numpy_normalise(inputs, np.ones(3), np.zeros(3))
    np.testing.assert_allclose(new["batch_stats"]["var"], 0.1 * expected, rtol=1e-4)


def test_half_precision_inputs_have_float32_statistics():
    inputs = jnp.asarray(np.random.default_rng(4).normal(100.0, 1.0, (2000, 2)), jnp.bfloat16)
    outputs, new = train_step(variables_of(np.ones(2), np.zeros(2), np.zeros(2), np.ones(2)), inputs)
    _, mean, _ = numpy_normalise(np.asarray(inputs.astype(jnp.float32)), np.ones(2), np.zeros(2))
    assert new["batch_stats"]["mean"].dtype == jnp.float32
    np.testing.assert_allclose(new["batch_stats"]["mean"], 0.1 * mean, rtol=1e-6)
    np.testing.assert_allclose(np.asarray(outputs, np.float64).mean(0), 0.0, atol=1e-3)


def test_training_leaves_immutable_statistics_alone_but_normalises_by_the_batch():
    inputs = jnp.asarray(np.random.default_rng(5).normal(3.0, 2.0, (6, 3)), jnp.float32)
    variables = variables_of(np.ones(3), np.zeros(3), np.zeros(3), np.ones(3))
    outputs = BatchNorm().apply(variables, inputs, train=True)
    np.testing.assert_allclose(outputs, numpy_normalise(np.asarray(inputs), np.ones(3), np.zeros(3))[0], atol=1e-5)


def test_vmap_over_seeds_equals_one_seed_after_the_other():
    random = np.random.default_rng(6)
    inputs = jnp.asarray(random.normal(size=(3, 4, 5)), jnp.float32)
    each = [variables_of(*random.uniform(0.5, 2, (4, 5))) for _ in range(3)]
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    outputs, new = jax.vmap(train_step)(together, inputs)
    for seed, variables in enumerate(each):
        expected, expected_new = train_step(variables, inputs[seed])
        np.testing.assert_allclose(outputs[seed], expected, atol=1e-6)
        jax.tree.map(lambda a, b, seed=seed: np.testing.assert_allclose(a[seed], b, atol=1e-6), new, expected_new)


@pytest.mark.parametrize("shape", [(1, 3), (1, 1, 1, 3)])
def test_one_value_per_channel_is_refused_in_training_only(shape):
    variables = variables_of(np.ones(3), np.zeros(3), np.zeros(3), np.ones(3))
    with pytest.raises(InputError, match="expected at least 2 values per channel"):
        train_step(variables, jnp.ones(shape))
    np.testing.assert_allclose(
        evaluation(variables, jnp.ones(shape)), 1 / np.sqrt(1 + 1e-5) * np.ones(shape), rtol=1e-6
    )


SHARDED = """
import jax, numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from imbal_jax.models.batch_norm import BatchNorm
inputs = np.random.default_rng(0).normal(2.0, 3.0, (8, 3)).astype(np.float32)
variables = BatchNorm().init(jax.random.key(0), inputs, train=False)
mesh = Mesh(np.array(jax.devices()), ("batch",), axis_types=(AxisType.Auto,))
shared = jax.device_put(inputs, NamedSharding(mesh, PartitionSpec("batch")))
step = jax.jit(lambda v, x: BatchNorm().apply(v, x, train=True, mutable=["batch_stats"]))
outputs, new = step(variables, shared)
assert len(outputs.sharding.device_set) == 4, outputs.sharding
np.testing.assert_allclose(outputs, (inputs - inputs.mean(0)) / np.sqrt(inputs.var(0) + 1e-5), atol=1e-5)
np.testing.assert_allclose(new["batch_stats"]["mean"], 0.1 * inputs.mean(0), atol=1e-6)
"""


@pytest.mark.slow
def test_statistics_are_those_of_the_global_batch_on_several_devices():
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    result = subprocess.run([sys.executable, "-c", SHARDED], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
