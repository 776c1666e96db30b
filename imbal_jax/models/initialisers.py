"""Initial values of weights, under the names and with the distributions of the published PyTorch models.

Kernels have the output axis last: dense [inputs, outputs], convolution [height, width, inputs, outputs].
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer

from imbal_jax.types import Array


def kaiming_normal(fan: Literal["fan_in", "fan_out"]) -> Initializer:
    """N(0, 2 / fan), not truncated, for layers before a ReLU (He et al. 2015, Eq. 10 and 14)."""
    return jax.nn.initializers.variance_scaling(2.0, fan, "normal")


def fan_in_uniform() -> Initializer:
    """U(-b, b) with b = 1 / sqrt(fan_in): PyTorch's default for the weights of dense and convolution layers.

    PyTorch writes it as kaiming_uniform with a = sqrt(5).
    """
    return jax.nn.initializers.variance_scaling(1.0 / 3.0, "fan_in", "uniform")


def bias_uniform(fan_in: int) -> Initializer:
    """U(-b, b) with b = 1 / sqrt(fan_in): PyTorch's default for biases, whose shape does not tell the fan-in.

    Args:
      fan_in: the number of inputs of one output unit.
    """
    bound = fan_in**-0.5

    def initialise(key: Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> Array:
        del out_sharding
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return initialise


def unit_columns(key: Array, shape: Any, dtype: Any = jnp.float32) -> Array:
    """Columns of independent U(-1, 1), each scaled to unit Euclidean norm: the cosine classifier's initial weights.

    Args:
      key: of the random numbers.
      shape: [inputs, outputs].
      dtype: floating.
    """
    entries = jax.random.uniform(key, shape, dtype, -1.0, 1.0)
    return entries / jnp.linalg.norm(entries, axis=0, keepdims=True)
