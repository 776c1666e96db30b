"""Work that is done once in a while, also where several seeds are trained at once."""

import jax
import jax.numpy as jnp

from imbal_jax.types import Array


@jax.custom_batching.custom_vmap
def uniform(predicate: Array) -> Array:
    """Promises that a predicate is the same for all examples of a batch, and so keeps `jax.lax.cond` lazy.

    Under `jax.vmap` a cond whose predicate is batched becomes a select that computes both branches every time. Seeds
    that are trained together are all at the same step, so a predicate of the step number need not be batched. Should
    they differ after all, the work is done for all of them as soon as one of them needs it.

    Args:
      predicate: a boolean scalar.

    Returns:
      The predicate; under vmap whether it holds for any, without a batch axis.
    """
    return predicate


@uniform.def_vmap
def _any_of_batch(axis_size: int, in_batched: list[bool], predicate: Array) -> tuple[Array, bool]:
    """The batching rule: one predicate for the whole batch."""
    del axis_size
    # Again a promise, to a vmap around this one.
    return uniform(jnp.any(predicate, axis=0) if in_batched[0] else predicate), False
