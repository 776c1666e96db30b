"""Label noise: wrong labels given to training examples on purpose.

A corruption maps labels, int [n], and the number of classes to noisy labels, int32 [n]. It draws class by class: how
many examples of each class come out depends on the class counts and the seed alone, not on the order of the examples.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from imbal_jax.class_counts import count_labels
from imbal_jax.data.known import KNOWN
from imbal_jax.errors import InputError, check_number

Pair = tuple[int, ...]  # (class, what it is mistaken for)

# Wang et al. 2019 and Patrini et al. 2017, in the order of the published code: truck -> automobile, bird -> airplane,
# cat <-> dog, deer -> horse.
CIFAR10_PAIRS: tuple[Pair, ...] = ((9, 1), (2, 0), (3, 5), (5, 3), (4, 7))
# The superclasses of CIFAR-100 (Krizhevsky 2009), each with its classes in the order of their labels.
CIFAR100_SUPERCLASSES = {
    "aquatic_mammals": ("beaver", "dolphin", "otter", "seal", "whale"),
    "fish": ("aquarium_fish", "flatfish", "ray", "shark", "trout"),
    "flowers": ("orchid", "poppy", "rose", "sunflower", "tulip"),
    "food_containers": ("bottle", "bowl", "can", "cup", "plate"),
    "fruit_and_vegetables": ("apple", "mushroom", "orange", "pear", "sweet_pepper"),
    "household_electrical_devices": ("clock", "keyboard", "lamp", "telephone", "television"),
    "household_furniture": ("bed", "chair", "couch", "table", "wardrobe"),
    "insects": ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
    "large_carnivores": ("bear", "leopard", "lion", "tiger", "wolf"),
    "large_man-made_outdoor_things": ("bridge", "castle", "house", "road", "skyscraper"),
    "large_natural_outdoor_scenes": ("cloud", "forest", "mountain", "plain", "sea"),
    "large_omnivores_and_herbivores": ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
    "medium_mammals": ("fox", "porcupine", "possum", "raccoon", "skunk"),
    "non-insect_invertebrates": ("crab", "lobster", "snail", "spider", "worm"),
    "people": ("baby", "boy", "girl", "man", "woman"),
    "reptiles": ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
    "small_mammals": ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
    "trees": ("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
    "vehicles_1": ("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
    "vehicles_2": ("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
}


_DRAWS = ("per_class", "independent")


class LabelNoise(NamedTuple):
    """How labels are made wrong, and where beside the training set."""

    corrupt: Callable[[np.ndarray, int], np.ndarray]  # (labels [n], number of classes) -> noisy labels, int32 [n]
    validation: bool = False  # also in the validation set


def cifar100_pairs() -> tuple[Pair, ...]:
    """Every class of CIFAR-100 and the next one of its superclass, the last and the first (Patrini et al. 2017)."""
    label = {name: index for index, name in enumerate(KNOWN["cifar100"].class_names)}
    return tuple(
        (label[names[i]], label[names[(i + 1) % len(names)]])
        for names in CIFAR100_SUPERCLASSES.values()
        for i in range(len(names))
    )


def none() -> LabelNoise:
    """Labels as they are."""
    return LabelNoise(lambda labels, num_classes: np.asarray(labels, np.int32))


def symmetric(*, rate: float = 0.2, draw: str = "per_class", seed: int = 0, validation: bool = False) -> LabelNoise:
    """Gives a share of the examples another class, uniformly at random (Wang et al. 2019; ABSGD, section 5).

    Args:
      rate: share of wrong labels, in [0, 1).
      draw: "per_class", floor(rate * n_c) examples of every class; "independent", each example with probability
        `rate`; "published", int(int(rate * n) / C) examples of every class, as in code for balanced sets.
      seed: of the noise, apart from all others.
      validation: also in the validation set, as where it is taken from data that are labelled like the training set.

    Raises:
      InputError: the rate is outside [0, 1), or the draw is unknown. On use: "published" asks for more examples of a
        class than there are, as it does on most long-tailed sets.
    """
    _check(rate, seed, draw, (*_DRAWS, "published"))

    def corrupt(labels: np.ndarray, num_classes: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        noisy = np.array(labels, np.int32)
        equal_share = _published_share(labels, num_classes, rate) if draw == "published" else None
        for c in range(num_classes):
            members = np.flatnonzero(labels == c)
            number = _number(rng, len(members), rate, draw) if equal_share is None else equal_share
            rows = rng.choice(members, number, replace=False)
            others = rng.integers(0, num_classes - 1, len(rows))
            noisy[rows] = others + (others >= c)
        return noisy

    return LabelNoise(corrupt, validation)


def asymmetric(
    *,
    rate: float = 0.2,
    pairs: tuple[tuple[int, ...], ...] = (),
    dataset: str = "cifar10",
    draw: str = "per_class",
    order: str = "clean",
    seed: int = 0,
    validation: bool = False,
) -> LabelNoise:
    """Gives a share of the examples of some classes the class that each is mistaken for (Patrini et al. 2017).

    Args:
      rate: share of wrong labels in each of these classes, in [0, 1).
      pairs: (class, what it is mistaken for), each class at most once; those of `dataset` by default.
      dataset: "cifar10": truck -> automobile, bird -> airplane, cat <-> dog, deer -> horse; "cifar100": the next class
        of the same superclass, and the first for the last.
      draw: "per_class", floor(rate * n_c) examples of a class, or "independent", each with probability `rate`.
      order: "clean", from the labels as they were; "sequential", pair after pair from the labels as they are by then,
        as in the published code of CIFAR-10: of the cats that became dogs some are turned back, and dogs that were
        cats take the place of others, so that fewer labels are wrong than `rate` says.
      seed: of the noise, apart from all others.
      validation: also in the validation set, as where it is taken from data that are labelled like the training set.

    Raises:
      InputError: the rate is outside [0, 1), or an option is unknown. On use: a pair names a class that does not exist.
    """
    _check(rate, seed, draw, _DRAWS)
    if order not in ("clean", "sequential"):
        raise InputError(f"order: expected 'clean' or 'sequential', got {order!r}")
    if dataset not in ("cifar10", "cifar100"):
        raise InputError(f"dataset: expected 'cifar10' or 'cifar100', got {dataset!r}")
    chosen = pairs or (CIFAR10_PAIRS if dataset == "cifar10" else cifar100_pairs())
    _check_pairs(chosen)

    def corrupt(labels: np.ndarray, num_classes: int) -> np.ndarray:
        outside = [tuple(pair) for pair in chosen if min(pair) < 0 or max(pair) >= num_classes]
        if outside:
            raise InputError(f"pairs: expected classes in 0..{num_classes - 1}, got {outside[0]}")
        rng = np.random.default_rng(seed)
        noisy = np.array(labels, np.int32)
        for source, target in chosen:
            members = np.flatnonzero((labels if order == "clean" else noisy) == source)
            noisy[rng.choice(members, _number(rng, len(members), rate, draw), replace=False)] = target
        return noisy

    return LabelNoise(corrupt, validation)


def _number(rng: np.random.Generator, count: int, rate: float, draw: str) -> int:
    """How many of so many examples get another label."""
    if draw == "independent":
        return int(rng.binomial(count, rate))
    return int(np.floor(rate * count + 1e-9))  # 0.29 * 100 must not become 28


def _published_share(labels: np.ndarray, num_classes: int, rate: float) -> int:
    """Wrong labels of every class, the same in all; truncated as in the published code."""
    counts = count_labels(labels, num_classes)
    share = int(int(rate * counts.sum()) / num_classes)
    if share > counts.min():
        c = int(counts.argmin())
        raise InputError(
            f"draw: 'published' changes {share} labels of every class, but class {c} has only {counts[c]} examples; use"
            " 'per_class'"
        )
    return share


def _check(rate: float, seed: int, draw: str, draws: tuple[str, ...]) -> None:
    """Raises InputError when an option of all kinds of noise is out of range."""
    check_number("rate", rate, "in [0, 1)")
    check_number("seed", seed, ">= 0")
    if draw not in draws:
        raise InputError(f"draw: expected one of {', '.join(draws)}, got {draw!r}")


def _check_pairs(pairs: tuple[Pair, ...]) -> None:
    """Raises InputError when pairs are no mapping of classes to other ones."""
    for pair in pairs:
        if len(pair) != 2 or pair[0] == pair[1]:
            raise InputError(f"pairs: expected (class, another class), got {tuple(pair)}")
    sources = [pair[0] for pair in pairs]
    if len(set(sources)) < len(sources):
        raise InputError(f"pairs: expected each class once in the first place, got {sources}")
