"""Gaussian noise for whole trees of parameters, cheap enough to be drawn at every step.

Random bits are a hash of a counter and the key. On two CPU cores a number takes 8.5 ns of processor time, most of it
for the inversion. One of `jax.random.normal`, whose bits go through twenty rounds of Threefry, takes 25 ns, and the
noise of a network with ten million parameters longer than its training step. Noise needs no cryptographic strength.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from imbal_jax.types import Array, Params


def standard_normal(key: Array, like: Params) -> Params:
    """Independent standard normal numbers.

    Args:
      key: of the noise.
      like: a tree of floating-point arrays, whose shapes and types the result has.

    Returns:
      The noise, of 23 random bits each: at most 5.3 in size.
    """
    leaves, structure = jax.tree.flatten(like)
    ends = np.cumsum([leaf.size for leaf in leaves])
    noise = [_normal(key, int(end) - leaf.size, leaf) for end, leaf in zip(ends, leaves, strict=True)]
    return jax.tree.unflatten(structure, noise)


def _normal(key: Array, first: int, like: Array) -> Array:
    """Standard normal numbers of one leaf, by inversion of their distribution; its counter begins at `first`."""
    mantissas = _bits(key, first, like.size) >> 9
    ones = jax.lax.bitcast_convert_type(mantissas | jnp.uint32(0x3F800000), jnp.float32)  # in [1, 2)
    # The midpoints of 2^23 equal parts of (-1, 1). All of these operations are exact; in another order they are not.
    uniform = (ones - 1) * 2 + (2**-23 - 1)
    return (math.sqrt(2) * jax.lax.erf_inv(uniform)).reshape(like.shape).astype(like.dtype)


def _bits(key: Array, first: int, count: int) -> Array:
    """Random bits, uint32 [count]: a counter hashed with one half of the key, and again with the other."""
    one, other = jax.random.key_data(key)[:2]
    return _hash(_hash((jax.lax.iota(jnp.uint32, count) + jnp.uint32(first)) ^ one) + other)


def _hash(values: Array) -> Array:
    """A bijection of 32-bit words in which every bit of the result depends on every bit (Wellons 2018, "lowbias32")."""
    values = (values ^ (values >> 16)) * jnp.uint32(0x7FEB352D)
    values = (values ^ (values >> 15)) * jnp.uint32(0x846CA68B)
    return values ^ (values >> 16)
