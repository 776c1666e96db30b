"""Samplers: which examples form the batches of an epoch.

A sampler maps a key to the epoch's indices, int32 [steps, batch], drawn on the device; the last incomplete batch is
left out, so every batch has the same shape. Uniform and quota sampling reshuffle every epoch, so that all examples
are seen over time.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from imbal_jax.class_counts import ClassCounts, effective_numbers
from imbal_jax.errors import InputError
from imbal_jax.types import Array

Sampler = Callable[[Array], Array]


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Whole batches in a pass over the data.

    Raises:
      InputError: the batch is empty or larger than the data set.
    """
    if batch_size < 1:
        raise InputError(f"training.batch_size: expected a number >= 1, got {batch_size}")
    if batch_size > num_examples:
        raise InputError(
            f"training.batch_size: {batch_size} is larger than the training set of {num_examples} examples"
        )
    return num_examples // batch_size


def uniform(labels: np.ndarray, class_counts: ClassCounts, batch_size: int) -> Sampler:
    """Every example at most once an epoch, in random order.

    Args:
      labels: of the training set, [n].
      class_counts: of the training set.
      batch_size: examples per batch.

    Raises:
      InputError: the batch is larger than the data set.
    """
    del class_counts
    steps = steps_per_epoch(len(labels), batch_size)

    def draw(key: Array) -> Array:
        return jax.random.permutation(key, len(labels))[: steps * batch_size].reshape(steps, batch_size)

    return draw


def class_balanced(labels: np.ndarray, class_counts: ClassCounts, batch_size: int) -> Sampler:
    """Every class equally often: a uniform class, then a uniform example of it, with replacement.

    Args:
      labels: of the training set, [n].
      class_counts: of the training set.
      batch_size: examples per batch.

    Raises:
      InputError: the batch is larger than the data set.
    """
    return _by_class_probability(labels, class_counts, batch_size, class_counts.present.astype(np.float64))


def effective_number(
    labels: np.ndarray, class_counts: ClassCounts, batch_size: int, *, beta: float = 0.9999
) -> Sampler:
    """Examples weighted by (1 - beta) / (1 - beta^n_c), with replacement (Cao et al. 2019, DRS).

    So class c comes with a probability proportional to n_c (1 - beta) / (1 - beta^n_c): beta = 0 keeps the class
    proportions, beta towards 1 balances.

    Args:
      labels: of the training set, [n].
      class_counts: of the training set.
      batch_size: examples per batch.
      beta: in [0, 1).

    Raises:
      InputError: beta is outside [0, 1), or the batch is larger than the data set.
    """
    effective = effective_numbers(class_counts, beta)
    return _by_class_probability(labels, class_counts, batch_size, class_counts.counts / effective)


def _by_class_probability(
    labels: np.ndarray, class_counts: ClassCounts, batch_size: int, class_weights: np.ndarray
) -> Sampler:
    """A class by its weight, then a uniform example of it, with replacement."""
    steps = steps_per_epoch(len(labels), batch_size)
    by_class = jnp.asarray(np.argsort(labels, kind="stable"), jnp.int32)
    starts = jnp.asarray(np.cumsum(class_counts.counts) - class_counts.counts, jnp.int32)
    sizes = jnp.asarray(class_counts.counts, jnp.int32)
    probabilities = jnp.asarray(class_weights / class_weights.sum())

    def draw(key: Array) -> Array:
        class_key, example_key = jax.random.split(key)
        shape = (steps, batch_size)
        classes = jax.random.choice(class_key, len(sizes), shape, p=probabilities)
        within = jax.random.randint(example_key, shape, 0, sizes[classes])
        return by_class[starts[classes] + within]

    return draw


def minority_in_every_batch(
    labels: np.ndarray, class_counts: ClassCounts, batch_size: int, *, at_least: int = 1
) -> Sampler:
    """At least a stated number of examples of every class in each batch, the rest uniform (thesis 4.1.5, Sampler).

    The thesis does not give the algorithm. Here each class runs through its examples in random order, `at_least` a
    batch, starting anew when they are used up; the rest of the batch runs through the whole data set in random order.
    An example can so come twice in a batch, once in each role.

    Args:
      labels: of the training set, [n].
      class_counts: of the training set.
      batch_size: examples per batch.
      at_least: examples of every class in each batch.

    Raises:
      InputError: at_least < 1, a class has fewer examples than that, they do not fit into a batch, or the batch is
        larger than the data set.
    """
    steps = steps_per_epoch(len(labels), batch_size)
    present = np.flatnonzero(class_counts.present)
    _check_quota(class_counts, batch_size, at_least)
    starts = jnp.asarray((np.cumsum(class_counts.counts) - class_counts.counts)[present], jnp.int32)
    sizes = jnp.asarray(class_counts.counts[present], jnp.int32)
    rest = batch_size - at_least * len(present)
    device_labels = jnp.asarray(labels, jnp.int32)

    def draw(key: Array) -> Array:
        quota_key, rest_key = jax.random.split(key)
        by_class = jnp.lexsort((jax.random.uniform(quota_key, device_labels.shape), device_labels))
        turns = jnp.arange(steps * at_least).reshape(steps, 1, at_least)
        quota = by_class[starts[None, :, None] + turns % sizes[None, :, None]].reshape(steps, -1)
        filler = jax.random.permutation(rest_key, len(labels))[: steps * rest].reshape(steps, rest)
        return jnp.concatenate([quota, filler], axis=1)

    return draw


def _check_quota(class_counts: ClassCounts, batch_size: int, at_least: int) -> None:
    """Raises InputError when the quota cannot be met."""
    present = np.flatnonzero(class_counts.present)
    if at_least < 1:
        raise InputError(f"at_least: expected a number >= 1, got {at_least}")
    if at_least * len(present) > batch_size:
        raise InputError(
            f"at_least: {at_least} examples of {len(present)} classes make {at_least * len(present)}, more than the"
            f" batch of {batch_size}"
        )
    smallest = int(class_counts.counts[present].min())
    if smallest < at_least:
        raise InputError(f"at_least: {at_least} is more than the {smallest} examples of the smallest class")
