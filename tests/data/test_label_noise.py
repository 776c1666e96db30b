"""Label noise: how many labels of each class become which, by every way of drawing them."""

import numpy as np
import pytest

from imbal_jax.data.known import KNOWN
from imbal_jax.data.label_noise import (
    CIFAR10_PAIRS,
    CIFAR100_SUPERCLASSES,
    asymmetric,
    cifar100_pairs,
    none,
    symmetric,
)
from imbal_jax.errors import InputError

LONG_TAIL = (500, 299, 179, 107, 64, 38, 23, 13, 8, 5)
BALANCED = (100,) * 10


def labels_of(counts, seed=0):
    """So many labels of each class, in random order."""
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts)).astype(np.int32)


def transitions(clean, noisy, num_classes=10):
    """How many labels of each class became each, [num_classes, num_classes]."""
    pairs = np.bincount(clean * num_classes + noisy, minlength=num_classes**2)
    return pairs.reshape(num_classes, num_classes)


def noisy_of(noise, labels, num_classes=10):
    noisy = noise.corrupt(labels, num_classes)
    assert noisy.dtype == np.int32
    assert noisy.shape == labels.shape
    return noisy


def test_no_noise_leaves_the_labels():
    labels = labels_of(LONG_TAIL)
    np.testing.assert_array_equal(noisy_of(none(), labels), labels)
    np.testing.assert_array_equal(noisy_of(symmetric(rate=0.0), labels), labels)
    np.testing.assert_array_equal(noisy_of(asymmetric(rate=0.0), labels), labels)


@pytest.mark.parametrize("rate", [0.2, 0.29, 0.4, 0.9])
def test_symmetric_noise_moves_its_share_of_every_class(rate):
    clean = labels_of(LONG_TAIL)
    kept = clean.copy()
    moved = transitions(clean, noisy_of(symmetric(rate=rate), clean))
    np.testing.assert_array_equal(clean, kept)  # it works on a copy
    wanted = [int(round(rate * 100) * n // 100) for n in LONG_TAIL]  # in whole numbers
    np.testing.assert_array_equal(moved.sum(axis=1) - np.diag(moved), wanted)


def test_symmetric_noise_goes_to_all_other_classes_alike():
    clean = labels_of((20_000,) * 10)
    moved = transitions(clean, noisy_of(symmetric(rate=0.45), clean))
    away = moved[~np.eye(10, dtype=bool)]
    assert np.abs(away - 1000).max() < 5 * np.sqrt(1000)  # 90 counts of 1000 expected, five standard deviations


def test_independent_draws_have_the_rate_on_average():
    clean = labels_of((20_000,) * 10)
    for noise in (symmetric(rate=0.3, draw="independent"), asymmetric(rate=0.3, draw="independent")):
        moved = transitions(clean, noisy_of(noise, clean))
        changed = moved.sum(axis=1) - np.diag(moved)
        sources = slice(None) if moved[0, 1:].any() else [pair[0] for pair in CIFAR10_PAIRS]
        assert np.abs(changed[sources] - 6000).max() < 5 * np.sqrt(20_000 * 0.3 * 0.7)
        assert np.ptp(changed[sources]) > 0


def test_the_published_share_is_the_same_number_in_every_class():
    clean = labels_of((100,) * 9 + (97,))
    moved = transitions(clean, noisy_of(symmetric(rate=0.25, draw="published"), clean))
    share = int(int(0.25 * 997) / 10)
    np.testing.assert_array_equal(moved.sum(axis=1) - np.diag(moved), share)
    few = labels_of((1,) * 9)  # int(int(0.5 * 9) / 9) = 0
    np.testing.assert_array_equal(noisy_of(symmetric(rate=0.5, draw="published"), few, 9), few)


def test_the_published_share_does_not_fit_a_long_tail():
    clean = labels_of(LONG_TAIL)
    message = r"^draw: 'published' changes 24 labels of every class, but class 9 has only 5 examples; use 'per_class'$"
    with pytest.raises(InputError, match=message):
        symmetric(rate=0.2, draw="published").corrupt(clean, 10)


@pytest.mark.parametrize("counts", [BALANCED, LONG_TAIL])
def test_asymmetric_noise_follows_the_pairs_from_clean_labels(counts):
    clean = labels_of(counts)
    moved = transitions(clean, noisy_of(asymmetric(rate=0.4), clean))
    expected = np.diag(counts)
    for source, target in ((9, 1), (2, 0), (3, 5), (5, 3), (4, 7)):  # truck, bird, cat, dog, deer
        number = 4 * counts[source] // 10
        expected[source, source] -= number
        expected[source, target] += number
    np.testing.assert_array_equal(moved, expected)


def test_sequential_noise_turns_some_labels_back():
    clean = labels_of((5000,) * 10)
    moved = transitions(clean, noisy_of(asymmetric(rate=0.4, order="sequential"), clean))
    # 2000 cats become dogs, then int(0.4 * 7000) = 2800 of the dogs of both kinds become cats.
    assert moved[3, 5] + (moved[3, 3] - 3000) == 2000
    assert moved[5, 3] + (moved[3, 3] - 3000) == 2800
    assert 700 < moved[3, 3] - 3000 < 900  # 800 on average
    np.testing.assert_array_equal(np.diag(moved)[[2, 4, 9]], 3000)
    np.testing.assert_array_equal(moved[[2, 4, 9], [0, 7, 1]], 2000)


def test_pairs_of_ones_own():
    clean = labels_of((40, 20, 10))
    moved = transitions(clean, noisy_of(asymmetric(rate=0.5, pairs=((0, 2), (2, 1))), clean, 3), 3)
    np.testing.assert_array_equal(moved, [[20, 0, 20], [0, 20, 0], [0, 5, 5]])


def test_every_class_of_cifar_100_is_in_one_superclass():
    names = [name for members in CIFAR100_SUPERCLASSES.values() for name in members]
    assert len(CIFAR100_SUPERCLASSES) == 20
    assert {len(members) for members in CIFAR100_SUPERCLASSES.values()} == {5}
    assert sorted(names) == sorted(KNOWN["cifar100"].class_names)
    assert len(set(names)) == 100


def test_superclasses_list_their_classes_by_label():
    label = {name: index for index, name in enumerate(KNOWN["cifar100"].class_names)}
    for members in CIFAR100_SUPERCLASSES.values():
        assert [label[name] for name in members] == sorted(label[name] for name in members)


def test_cifar_100_pairs_go_round_in_each_superclass():
    following = dict(cifar100_pairs())
    assert len(following) == len(set(following.values())) == 100
    name = KNOWN["cifar100"].class_names
    label = {each: index for index, each in enumerate(name)}
    assert [name[following[label[each]]] for each in ("beaver", "dolphin", "whale", "worm", "bottle")] == [
        "dolphin",
        "otter",
        "beaver",
        "crab",
        "bowl",
    ]
    for start in range(100):
        seen, at = [start], following[start]
        while at != start:
            seen.append(at)
            at = following[at]
        assert len(seen) == 5


def test_cifar_100_noise():
    clean = labels_of((10,) * 100)
    moved = transitions(clean, noisy_of(asymmetric(rate=0.2, dataset="cifar100"), clean, 100), 100)
    np.testing.assert_array_equal(np.diag(moved), 8)
    for source, target in cifar100_pairs():
        assert moved[source, target] == 2


NOISES = [
    symmetric(rate=0.3),
    symmetric(rate=0.3, draw="independent"),
    asymmetric(rate=0.3),
    asymmetric(rate=0.3, order="sequential"),
    asymmetric(rate=0.3, draw="independent"),
]


@pytest.mark.parametrize("noise", NOISES)
def test_the_same_labels_get_the_same_noise(noise):
    labels = labels_of(LONG_TAIL)
    np.testing.assert_array_equal(noisy_of(noise, labels), noisy_of(noise, labels))


@pytest.mark.parametrize("noise", NOISES)
def test_counts_after_the_noise_depend_on_the_counts_before_it_alone(noise):
    one, other = (noisy_of(noise, labels_of(LONG_TAIL, seed)) for seed in (0, 1))
    assert (one != other).any()
    np.testing.assert_array_equal(np.bincount(one, minlength=10), np.bincount(other, minlength=10))


@pytest.mark.parametrize("kind", [symmetric, asymmetric])
def test_another_seed_is_another_noise(kind):
    labels = labels_of(BALANCED)
    assert (noisy_of(kind(seed=0), labels) != noisy_of(kind(seed=1), labels)).any()


@pytest.mark.parametrize("kind", [symmetric, asymmetric])
@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan")])
def test_rates_outside_their_range_are_told(kind, rate):
    with pytest.raises(InputError, match=rf"^rate: expected a number in \[0, 1\), got {rate}$"):
        kind(rate=rate)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: symmetric(draw="uniform"),
            r"^draw: expected one of per_class, independent, published, got 'uniform'$",
        ),
        (lambda: asymmetric(draw="published"), r"^draw: expected one of per_class, independent, got 'published'$"),
        (lambda: asymmetric(order="noisy"), r"^order: expected 'clean' or 'sequential', got 'noisy'$"),
        (lambda: asymmetric(dataset="mnist"), r"^dataset: expected 'cifar10' or 'cifar100', got 'mnist'$"),
        (lambda: symmetric(seed=-1), r"^seed: expected a number >= 0, got -1$"),
        (lambda: asymmetric(pairs=((1, 1),)), r"^pairs: expected \(class, another class\), got \(1, 1\)$"),
        (lambda: asymmetric(pairs=((1, 2, 3),)), r"^pairs: expected \(class, another class\), got \(1, 2, 3\)$"),
        (lambda: asymmetric(pairs=((1, 2), (1, 3))), r"^pairs: expected each class once in the first place, got"),
    ],
)
def test_faulty_options_are_told(build, message):
    with pytest.raises(InputError, match=message):
        build()


@pytest.mark.parametrize(
    ("noise", "pair"),
    [
        (asymmetric(), r"\(9, 1\)"),
        (asymmetric(pairs=((0, 3),)), r"\(0, 3\)"),
        (asymmetric(pairs=((-1, 0),)), r"\(-1, 0\)"),
    ],
)
def test_a_class_pair_that_does_not_exist_is_told(noise, pair):
    with pytest.raises(InputError, match=rf"^pairs: expected classes in 0\.\.2, got {pair}$"):
        noise.corrupt(labels_of((5, 5, 5)), 3)
