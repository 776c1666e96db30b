"""Speakers and recordings shared out among splits."""

import itertools

import numpy as np
import pytest

from imbal_jax.data.speaker_splits import split_by_speaker
from imbal_jax.errors import InputError


def draw_speakers(seed, num_speakers=20, examples=800, num_classes=3):
    rng = np.random.default_rng(seed)
    speakers = rng.zipf(1.5, examples) % num_speakers
    return [f"s{speaker}" for speaker in speakers], np.minimum(rng.geometric(0.5, examples) - 1, num_classes - 1)


@pytest.mark.parametrize("seed", range(3))
def test_speakers_are_shared_out_whole(seed):
    speakers, labels = draw_speakers(seed, num_speakers=40, num_classes=4)
    parts = split_by_speaker(speakers, labels, seed=seed)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
    sets = [{speakers[index] for index in part} for part in parts]
    assert all(not one & other for one, other in itertools.combinations(sets, 2))
    for part in parts:
        assert (np.diff(part) > 0).all()
        assert (np.bincount(labels[part], minlength=4) > 0).all()


def cost_of(places, labels, fractions):
    """How far the shares of every class are from the fractions; infinite if a class is absent from a split."""
    cost = 0.0
    for label in set(labels):
        mine = [place for place, other in zip(places, labels, strict=True) if other == label]
        for place, fraction in enumerate(fractions):
            cost += (mine.count(place) / len(mine) - fraction) ** 2 / fraction if place in mine else np.inf
    return cost


@pytest.mark.parametrize("seed", range(4))
def test_of_a_few_speakers_the_best_way_is_found(seed):
    rng = np.random.default_rng(seed)
    speakers, labels, fractions = rng.integers(0, 7, 90).tolist(), rng.integers(0, 3, 90).tolist(), (0.6, 0.15, 0.25)
    parts = split_by_speaker(speakers, labels, fractions, seed)
    places = [next(place for place, part in enumerate(parts) if index in part) for index in range(90)]
    ways = itertools.product(range(3), repeat=7)
    best = min(cost_of([way[speaker] for speaker in speakers], labels, fractions) for way in ways)
    assert best <= cost_of(places, labels, fractions) + 1e-12 <= 1.001 * best


def test_rare_classes_reach_every_split():
    # Each of six classes has only three speakers of a hundred, two of whom have two such classes.
    speakers = [*range(100), *range(16), 0, 1]
    labels = ["common"] * 100 + [f"rare{number // 3}" for number in range(18)]
    parts = split_by_speaker(speakers, labels)
    assert all(len({labels[index] for index in part}) == 7 for part in parts)
    assert abs(len(parts[0]) / len(labels) - 0.7) < 0.1
    # Two speakers do for two splits.
    parts = split_by_speaker(["a", "a", "b", "b"], [0, 1, 0, 1], (0.5, 0, 0.5))
    assert [len(part) for part in parts] == [2, 0, 2]


def test_the_seed_decides_and_the_order_does_not():
    speakers, labels = draw_speakers(0)
    first, again, other = (split_by_speaker(speakers, labels, seed=seed) for seed in (0, 0, 1))
    assert first[2].tolist() == again[2].tolist() != other[2].tolist()
    order = np.random.default_rng(1).permutation(len(labels))
    shuffled = split_by_speaker([speakers[index] for index in order], labels[order])
    assert [np.sort(order[part]).tolist() for part in shuffled] == [part.tolist() for part in first]


BAD_SPLITS = [
    ("aaaa", [0, 1, 0, 1], (0.7, 0.1, 0.2), r"^speakers: expected 3 or more .* got one speaker only$"),
    ("abcdab", [0, 0, 0, 0, 1, 1], (0.7, 0.1, 0.2), r"got 4 speakers, classes with too few: 1 of 2 \(1\)$"),
    # Neither c nor d may be where a or b is, so they are together, and the third class is absent somewhere.
    ("abcabdcda", [0, 0, 0, 1, 1, 1, 2, 2, 2], (0.7, 0.1, 0.2), r"^speakers: expected a way .* found none; give the"),
    *(
        ("abc", [0, 0, 0], fractions, r"^fractions: expected three shares of 1, of train and test not 0, got")
        for fractions in [(0.7, 0.3), (0.7, 0.1, 0.1), (1, 0, 0), (1.2, -0.4, 0.2), (np.nan, 0.5, 0.5)]
    ),
]


@pytest.mark.parametrize(("speakers", "labels", "fractions", "message"), BAD_SPLITS)
def test_refuses_what_cannot_be_split(speakers, labels, fractions, message):
    with pytest.raises(InputError, match=message):
        split_by_speaker(list(speakers), labels, fractions)
