"""The examples of each class, or of all, as weighted micro-batches."""

from typing import Any, NamedTuple

import numpy as np

from imbal_jax.curvature.products import MicroBatches
from imbal_jax.errors import InputError


class Group(NamedTuple):
    """Examples whose mean loss is looked at."""

    name: str
    class_index: int | None  # None for the whole data set
    available: int  # examples in the split
    sampled: int  # of them looked at
    batches: MicroBatches


def sample_classes(labels: np.ndarray, num_classes: int, examples: int, seed: int) -> list[np.ndarray]:
    """Chooses examples of every class, the same for the same seed whatever the other classes.

    Args:
      labels: int [n].
      num_classes: C.
      examples: of each class; 0 for all. A class with fewer gives all it has.
      seed: of the choice.

    Returns:
      Ascending indices for each class, int64.

    Raises:
      InputError: examples < 0.
    """
    if examples < 0:
        raise InputError(f"examples: expected a number >= 0 (0 for all of a class), got {examples}")
    chosen = []
    for index in range(num_classes):
        members = np.flatnonzero(labels == index)
        if 0 < examples < len(members):
            rng = np.random.default_rng([seed, index])
            members = np.sort(rng.choice(members, examples, replace=False))
        chosen.append(members)
    return chosen


def class_groups(
    labels: np.ndarray,
    class_names: tuple[str, ...],
    samples: list[np.ndarray],
    wanted: tuple[int, ...] | None = None,
    *,
    whole: bool = True,
    copies: int = 1,
    size: int,
    mixed: bool = False,
    seed: int = 0,
) -> list[Group]:
    """The whole data set and its classes as micro-batches of one shape.

    The coefficients of a class with k_c examples in the sample are 1/k_c, those of the whole data set pi_c / k_c with
    the class's share pi_c of all labels: H = sum_c pi_c H_c whatever the sample.

    Args:
      labels: of the split, int [n].
      class_names: C of them.
      samples: indices of each class, from `sample_classes`.
      wanted: class indices; None for all classes that have examples.
      whole: whether the whole data set comes first.
      copies: augmented copies of each example.
      size: most examples in a micro-batch.
      mixed: every micro-batch holds examples of all classes in one fixed random order, as in training, for networks
        that look at the statistics of a batch; what does not fill a last batch is left out. Otherwise a group has
        micro-batches of its own examples only, the last one filled up.
      seed: of that order.

    Raises:
      InputError: a wanted class does not exist or has no examples, there are none at all, or an option is < 1.
    """
    for name, value in (("copies", copies), ("micro_batch", size)):
        if value < 1:
            raise InputError(f"{name}: expected a number >= 1, got {value}")
    counts = np.bincount(labels, minlength=len(class_names))
    chosen = _wanted_classes(wanted, counts)
    if mixed:
        order = _mixed_order(np.concatenate(samples), size, seed)
        samples = [order[labels[order] == index] for index in range(len(class_names))]
        needed = np.flatnonzero(counts) if whole else chosen
        _wanted_classes(tuple(needed), np.array([len(each) for each in samples]))
    else:
        order = np.concatenate(samples)
    shares = counts / counts.sum()
    weights = {index: _weights(samples, {index: 1.0}, labels) for index in chosen}
    members: list[tuple[str, int | None, np.ndarray]] = []
    if whole:
        members.append(("all", None, _weights(samples, dict(enumerate(shares)), labels)))
    members += [(class_names[index], index, weights[index]) for index in chosen]
    if not members:
        raise InputError("classes: expected at least one class or the whole data set, got neither")
    longest = max(int(np.count_nonzero(each)) for _, _, each in members)
    size = size if mixed else min(size, longest * copies)
    cut = _cut_mixed if mixed else _cut_own
    batches = [cut(order, each[order], copies, size) for _, _, each in members]
    most = max(len(each.indices) for each in batches)
    return [
        Group(
            name,
            index,
            int(counts.sum() if index is None else counts[index]),
            int(np.count_nonzero(each)),
            _padded(cut, most),
        )
        for (name, index, each), cut in zip(members, batches, strict=True)
    ]


def _weights(samples: list[np.ndarray], shares: dict[int, float], labels: np.ndarray) -> np.ndarray:
    """The coefficient of every example of the split, [n]: the share of its class over the class's sampled examples."""
    weights = np.zeros(len(labels))
    for index, share in shares.items():
        weights[samples[index]] = share / max(len(samples[index]), 1)
    return weights


def _cut_own(indices: np.ndarray, weights: np.ndarray, copies: int, size: int) -> MicroBatches:
    """Micro-batches of the examples with a weight; the last one is filled up."""
    taken, weights = indices[weights > 0], weights[weights > 0]
    count = -(-len(taken) * copies // size)

    def cut(values: np.ndarray, dtype: type) -> np.ndarray:
        flat: np.ndarray = np.zeros(count * size, dtype)
        flat[: len(values)] = values
        return flat.reshape(count, size)

    return MicroBatches(
        cut(np.repeat(taken, copies), np.int32),
        cut(np.tile(np.arange(copies), len(taken)), np.int32),
        cut(np.repeat(weights / copies, copies), np.float64),
        count,
    )


def _cut_mixed(indices: np.ndarray, weights: np.ndarray, copies: int, size: int) -> MicroBatches:
    """The micro-batches that hold any example with a weight, as they are, once for each copy."""
    rows = indices.reshape(-1, size)
    weights = weights.reshape(-1, size)
    rows, weights = rows[weights.any(axis=1)], weights[weights.any(axis=1)]
    which = np.repeat(np.arange(copies), len(rows))[:, None]
    return MicroBatches(
        np.tile(rows, (copies, 1)).astype(np.int32),
        np.broadcast_to(which, (len(which), size)).astype(np.int32),
        np.tile(weights / copies, (copies, 1)),
        len(which),
    )


def _padded(batches: MicroBatches, most: int) -> MicroBatches:
    """The same micro-batches followed by empty ones, so that all groups have the same shape."""

    def pad(array: Any) -> np.ndarray:
        return np.pad(array, ((0, most - len(array)), (0, 0)))

    indices, copies, coefficients, filled = batches
    return MicroBatches(pad(indices), pad(copies), pad(coefficients), filled)


def _mixed_order(indices: np.ndarray, size: int, seed: int) -> np.ndarray:
    """A fixed random order of examples, without the rest that does not fill a batch."""
    if len(indices) < size:
        raise InputError(f"micro_batch: expected at most the {len(indices)} examples there are, got {size}")
    shuffled = np.random.default_rng(seed).permutation(indices)
    return shuffled[: len(indices) // size * size]


def _wanted_classes(wanted: tuple[int, ...] | None, counts: np.ndarray) -> list[int]:
    """The classes to look at."""
    if counts.sum() == 0:
        raise InputError("labels: expected at least one example, got none")
    if wanted is None:
        return [int(index) for index in np.flatnonzero(counts)]
    for index in wanted:
        if not 0 <= index < len(counts):
            raise InputError(f"classes: expected class indices in 0..{len(counts) - 1}, got {index}")
        if counts[index] == 0:
            raise InputError(f"classes: class {index} has no example to look at")
    return list(wanted)
