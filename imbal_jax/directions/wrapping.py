"""What directions share that wrap another one."""

import jax
import jax.numpy as jnp

from imbal_jax.directions.gradient import gradient
from imbal_jax.errors import InputError
from imbal_jax.types import Array, Direction, Horizon, Objective, Params, PyTree, Structure


def inner_direction(inner: Direction | None) -> Direction:
    """The direction that is wrapped: the plain gradient where none is given."""
    return gradient() if inner is None else inner


def noise_key(key: Array) -> Array:
    """The key of a wrapper's own noise, apart from the keys that the wrapped direction draws from `key`."""
    return jax.random.fold_in(key, 2**31 + 1)


def run_length(structure: Structure, option: str) -> Horizon:
    """How long the run is.

    Raises:
      InputError: the structure does not tell; `option` is the one that needs it.
    """
    if structure.horizon is None:
        raise InputError(f"{option}: needs to know how long the run is, got a structure without a horizon")
    return structure.horizon


def with_model_state(objective: Objective, model_state: PyTree) -> Objective:
    """The objective with other running statistics.

    Raises:
      InputError: it cannot be had.
    """
    if objective.continued is None:
        raise InputError("objective: expected one that can go on from other running statistics (`continued`), got none")
    return objective.continued(model_state)


def global_norm(tree: Params) -> Array:
    """The Euclidean norm of all leaves jointly, in float32 or wider."""
    squares = [jnp.sum(jnp.square(_wide(leaf))) for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(jnp.sum(jnp.stack(squares)))


def moved(params: Params, change: Params) -> Params:
    """The sum of two trees in the types of the first."""
    return jax.tree.map(lambda leaf, step: (leaf + step).astype(leaf.dtype), params, change)


def _wide(leaf: Array) -> Array:
    """A leaf in float32 or wider."""
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
