"""Validation splits and class-wise draws."""

import numpy as np
import pytest

from imbal_jax.data.splits import draw_per_class, split_off, validation_counts
from imbal_jax.errors import InputError

COUNTS = np.array([50, 20, 30])
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(3), COUNTS))


@pytest.mark.parametrize(
    ("fraction", "balanced", "wanted"),
    [
        (0.1, True, [2, 2, 2]),
        (0.1, False, [5, 2, 3]),
        (0.25, True, [5, 5, 5]),
        (0.25, False, [12, 5, 7]),
        (0.0, True, [0, 0, 0]),
        (0.0, False, [0, 0, 0]),
    ],
)
def test_validation_counts(fraction, balanced, wanted):
    counts = validation_counts(COUNTS, fraction=fraction, balanced=balanced)
    np.testing.assert_array_equal(counts, np.array(wanted), strict=True)


def test_rounding_takes_no_example_away():
    # 0.29 * 100 is 28.999999999999996 in floating point.
    assert validation_counts(np.array([100, 200]), fraction=0.29, balanced=False).tolist() == [29, 58]
    every = np.arange(1, 400) * 10
    np.testing.assert_array_equal(validation_counts(every, fraction=0.1, balanced=False), every // 10)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_refuses_a_fraction_out_of_range(fraction):
    with pytest.raises(InputError, match=rf"^validation\.fraction: expected a number in \[0, 1\), got {fraction}$"):
        validation_counts(COUNTS, fraction=fraction, balanced=True)


def test_refuses_a_class_without_a_validation_example():
    message = r"^validation\.fraction: 0\.04 of class 1's 20 examples is less than one; raise it, .* or set it to 0$"
    with pytest.raises(InputError, match=message):
        validation_counts(COUNTS, fraction=0.04, balanced=False)


def test_refuses_a_class_without_a_balanced_validation_example():
    with pytest.raises(InputError, match=r"^validation\.fraction: 0\.04 of class 1's 20 examples is less than one"):
        validation_counts(COUNTS, fraction=0.04, balanced=True)


def test_draw_per_class_is_stratified_and_sorted():
    chosen = draw_per_class(np.random.default_rng(0), LABELS, [4, 20, 0])
    assert np.bincount(LABELS[chosen], minlength=3).tolist() == [4, 20, 0]
    assert (np.diff(chosen) > 0).all()
    assert chosen.dtype == np.int64


def test_draw_per_class_is_uniform_within_a_class():
    rng = np.random.default_rng(0)
    times = np.zeros(len(LABELS))
    for _ in range(2000):
        times[draw_per_class(rng, LABELS, [5, 2, 3])] += 1
    # Each example comes with probability 0.1; five standard deviations of the binomial.
    np.testing.assert_allclose(times / 2000, 0.1, atol=5 * np.sqrt(0.1 * 0.9 / 2000))


def test_split_off_shares_out_every_example_once():
    kept, away = split_off(np.random.default_rng(0), LABELS, [5, 2, 3])
    assert np.bincount(LABELS[away]).tolist() == [5, 2, 3]
    assert np.bincount(LABELS[kept]).tolist() == [45, 18, 27]
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, away])), np.arange(len(LABELS)))
    for indices in (kept, away):
        assert (np.diff(indices) > 0).all()


def test_split_off_nothing():
    kept, away = split_off(np.random.default_rng(0), LABELS, [0, 0, 0])
    np.testing.assert_array_equal(kept, np.arange(len(LABELS)))
    assert away.shape == (0,)
    assert LABELS[away].shape == (0,)  # still usable as indices


@pytest.mark.parametrize("function", [draw_per_class, split_off])
def test_the_generator_decides(function):
    def away(seed):
        result = function(np.random.default_rng(seed), LABELS, [5, 2, 3])
        return result[1] if isinstance(result, tuple) else result

    np.testing.assert_array_equal(away(1), away(1))
    assert (away(1) != away(2)).any()


@pytest.mark.parametrize("function", [draw_per_class, split_off])
def test_refuses_more_than_there_is(function):
    with pytest.raises(InputError, match=r"^class counts: class 1 should get 21 examples, but only 20 are left$"):
        function(np.random.default_rng(0), LABELS, [5, 21, 40])
