"""Splits of recordings for tables that have none: by speaker, or by recording within every class."""

from collections.abc import Sequence

import numpy as np

from imbal_jax.data.corpora import some
from imbal_jax.data.splits import split_off
from imbal_jax.errors import InputError

_STARTS = 256  # random ways of sharing out the speakers that are improved, and of which the best is taken
_WORK = 20_000  # speakers in all starts together; with many speakers, few starts do
_ABSENT = 1e6  # what it costs there that a class is absent from a split; a wrong share costs far less


def split_by_speaker(
    speakers: Sequence[str], labels: Sequence, fractions: Sequence[float] = (0.7, 0.1, 0.2), seed: int = 0
) -> tuple[np.ndarray, ...]:
    """Shares speakers out among train, validation and test, with every class in every split.

    Of several ways found from random starts, the one is taken in which the shares of every class are closest to the
    fractions. The order of the examples has no influence on which speaker goes where.

    Args:
      speakers: of every example, [n].
      labels: of every example, [n].
      fractions: wanted shares of the examples; a split of fraction 0 stays empty.
      seed: of the random starts; of few speakers, all seeds may find the same way.

    Returns:
      Indices of the examples of train, validation and test, ascending.

    Raises:
      InputError: the fractions are no shares of 1, the seed is negative, some class has fewer speakers than there are
        splits, or no way was found to have every class in every split.
    """
    shares = _checked_shares(fractions, seed)
    used = np.flatnonzero(shares)
    names, speaker_of = np.unique(np.asarray(speakers), return_inverse=True)
    classes, label_of = np.unique(np.asarray(labels), return_inverse=True)
    table = np.zeros((len(names), len(classes)), np.int64)
    np.add.at(table, (speaker_of, label_of), 1)
    few = [f"{c} of {n}" for c, n in zip(classes, (table > 0).sum(axis=0), strict=True) if n < len(used)]
    if len(names) < len(used) or few:
        got = "one speaker only" if len(names) == 1 else f"{len(names)} speakers, classes with too few: {some(few)}"
        raise InputError(f"speakers: expected {len(used)} or more in every class, one for each split, got {got}")
    rng = np.random.default_rng(seed)
    start = np.searchsorted(np.cumsum(shares[used]), (np.arange(len(names)) + 0.5) / len(names)).clip(max=len(used) - 1)
    starts = min(_STARTS, max(8, _WORK // len(names)))
    found = [_improved(rng.permutation(start), table, shares[used]) for _ in range(starts)]
    places, cost = min(found, key=lambda each: each[1])
    if cost >= _ABSENT:
        raise InputError("speakers: expected a way to have every class in every split, found none; give the splits")
    return tuple(np.flatnonzero(used[places][speaker_of] == split) for split in range(len(shares)))


def _improved(places: np.ndarray, table: np.ndarray, shares: np.ndarray) -> tuple[np.ndarray, float]:
    """Moves speakers, one by one, as long as that lowers the cost; the splits' numbers [speakers] and the cost."""

    def cost(held: np.ndarray) -> np.ndarray:
        """Of a split's examples [..., splits, classes] by split, [..., splits]."""
        distance = np.square(held / table.sum(axis=0) - shares[:, None]) / shares[:, None]
        return np.where(held > 0, distance, distance + _ABSENT).sum(axis=-1)

    places, everyone = places.copy(), np.arange(len(table))
    while True:
        held = np.stack([table[places == split].sum(axis=0) for split in range(len(shares))])
        now = cost(held)
        loss = (cost(held - table[:, None]) - now)[everyone, places]
        change = cost(held + table[:, None]) - now + loss[:, None]
        change[everyone, places] = 0
        speaker, split = np.unravel_index(change.argmin(), change.shape)
        if change[speaker, split] > -1e-9:
            return places, float(now.sum())
        places[speaker] = split


def split_by_label(labels: Sequence, fractions: Sequence[float], seed: int) -> tuple[np.ndarray, ...]:
    """As `split_by_speaker`, but by example: every class is shared out, at least one example to every split.

    Raises:
      InputError: the fractions are none, or a class has too few examples.
    """
    shares = _checked_shares(fractions, seed)
    classes, label_of, sizes = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    few = [f"{c} has {n}" for c, n in zip(classes, sizes, strict=True) if n < (shares > 0).sum()]
    if few:
        raise InputError(f"labels: expected an example of every class for every split, got too few: {some(few)}")
    validation = np.rint(shares[1] * sizes).clip(shares[1] > 0, sizes - 2).astype(np.int64)
    rng = np.random.default_rng(seed)
    rest, test = split_off(rng, label_of, np.rint(shares[2] * sizes).clip(1, sizes - validation - 1).astype(np.int64))
    train, held_out = split_off(rng, label_of[rest], validation)
    return rest[train], rest[held_out], test


def _checked_shares(fractions: Sequence[float], seed: int) -> np.ndarray:
    """The shares of train, validation and test, float64 [3]."""
    if seed < 0:
        raise InputError(f"seed: expected a whole number >= 0, got {seed}")
    shares = np.asarray(fractions, np.float64)
    if shares.shape != (3,) or not (shares >= 0).all() or abs(shares.sum() - 1) > 1e-6 or min(shares[[0, 2]]) == 0:
        raise InputError(f"fractions: expected three shares of 1, of train and test not 0, got {tuple(fractions)}")
    return shares
