"""The conditioned Dirichlet draw, against plain rejection and against an exact integral where rejection never ends."""

import time

import numpy as np
import pytest
from scipy import stats

from imbal_jax.data import dirichlet
from imbal_jax.data.dirichlet import dirichlet_counts
from imbal_jax.errors import InputError

DRAWS = 800
# The draws are seeded, so these tests pass or fail always; a sound sampler fails one of them once in a thousand seeds.
LEAST_P = 1e-3

CASES = {
    "alpha < 1": {"alpha": 0.3, "total": 60, "min_count": 3, "available": [60] * 4},
    "alpha = 1": {"alpha": 1.0, "total": 60, "min_count": 5, "available": [60] * 4},
    "alpha > 1": {"alpha": 5.0, "total": 60, "min_count": 8, "available": [60] * 4},
    "no bound": {"alpha": 0.5, "total": 60, "min_count": 0, "available": [60] * 4},
    "few examples available": {"alpha": 0.3, "total": 60, "min_count": 3, "available": [12, 60, 25, 40]},
}


def by_rejection(*, alpha, total, min_count, available, draws=600_000):
    """Counts of normalised gamma variates, those outside of the bounds thrown away."""
    gamma = np.random.default_rng(1).standard_gamma(alpha, (draws, len(available)))
    counts = np.floor(gamma / gamma.sum(axis=1, keepdims=True) * total).astype(int)
    return counts[((counts > min_count) & (counts <= available)).all(axis=1)]


@pytest.fixture
def small_batches(monkeypatch):
    """Fewer draws at a time: the distribution must not depend on how many there are."""

    def reduce(pilot_draws):
        monkeypatch.setattr(dirichlet, "_PILOT_DRAWS", pilot_draws)
        monkeypatch.setattr(dirichlet, "_BATCH", 500)

    return reduce


# After a pilot of 100 draws the best proposal is used; after one of a single draw nearly any of them.
@pytest.mark.parametrize("pilot_draws", [1, 100])
@pytest.mark.parametrize("case", CASES)
def test_draws_are_distributed_as_by_rejection(case, pilot_draws, small_batches):
    small_batches(pilot_draws)
    rng = np.random.default_rng(0)
    drawn = np.array([dirichlet_counts(rng, **CASES[case]) for _ in range(DRAWS)])
    expected = by_rejection(**CASES[case])
    assert len(expected) > 3000
    for name, one, other in (("sorted", np.sort(drawn), np.sort(expected)), ("by class", drawn, expected)):
        for column in range(one.shape[1]):
            p = stats.ks_2samp(one[:, column], other[:, column]).pvalue
            assert p > LEAST_P, f"{name} {column}: {p}"
    # Jointly: which class is the largest, and how large it is.
    edges = np.quantile(expected.max(axis=1), [1 / 3, 2 / 3])

    def cells(counts):
        return np.bincount(counts.argmax(axis=1) * 3 + np.digitize(counts.max(axis=1), edges), minlength=12)

    table = np.stack([cells(drawn), cells(expected)])
    p = stats.chi2_contingency(table[:, table.sum(axis=0) > 0]).pvalue
    assert p > LEAST_P, f"joint: {p}"


def largest_count_distribution(*, alpha, total, min_count, num_classes):
    """P(largest count <= m) for m = 0..total, from the C-fold convolution of the bounded density x^(alpha - 1).

    Given their sum the classes are independent, and P(max <= m) is the ratio of two convolutions at that sum. A count
    stands for the middle of its cell, so that the counts above the bound add up to spare - C / 2.
    """
    spare = total - num_classes * (min_count + 1)
    edges = (min_count + 1 + np.arange(spare + 1)) ** alpha
    mass = np.diff(edges) / (edges[-1] - edges[0])
    length = 1 << int(np.ceil(np.log2(num_classes * spare)))

    def at_the_sum(masses):
        convolved = np.fft.irfft(np.fft.rfft(masses, length) ** num_classes, length)
        return convolved[spare - num_classes // 2]

    whole = at_the_sum(mass)
    below = np.arange(total + 1) - min_count  # how many cells a largest count of m leaves
    knots = np.unique(np.linspace(0, spare, 150).astype(int))
    values = [at_the_sum(np.where(np.arange(spare) < knot, mass, 0.0)) / whole for knot in knots]
    return np.interp(below, knots, values)


def test_thesis_setting_is_distributed_as_the_exact_integral_says(small_batches):
    # One unconditional draw in two million passes here, so rejection is no reference.
    setting = {"alpha": 0.1, "total": 4500, "min_count": 100}
    small_batches(500)
    rng = np.random.default_rng(0)
    drawn = np.array([dirichlet_counts(rng, **setting, available=np.full(10, 4500)) for _ in range(400)])
    distribution = largest_count_distribution(**setting, num_classes=10)
    assert stats.kstest(drawn.max(axis=1), lambda m: distribution[np.asarray(m, int)]).pvalue > LEAST_P
    # No class is preferred.
    largest = np.bincount(drawn.argmax(axis=1), minlength=10)
    assert stats.chisquare(largest).pvalue > LEAST_P


def test_exact_integral_agrees_with_rejection_where_both_work():
    setting = {"alpha": 0.5, "total": 400, "min_count": 10}
    expected = by_rejection(**setting, available=[400] * 4).max(axis=1)
    distribution = largest_count_distribution(**setting, num_classes=4)
    empirical = np.searchsorted(np.sort(expected), np.arange(401), side="right") / len(expected)
    np.testing.assert_allclose(distribution, empirical, atol=0.01)


@pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0])
def test_thesis_settings_are_drawn_within_seconds(alpha):
    start = time.process_time()
    for seed in range(3):
        counts = dirichlet_counts(
            np.random.default_rng(seed), alpha=alpha, total=4500, min_count=100, available=np.full(10, 4500)
        )
        assert counts.dtype == np.int64
        assert counts.min() > 100
        assert 4490 < counts.sum() <= 4500  # ten floors lose less than ten
    assert time.process_time() - start < 15


def test_seed_decides_the_draw():
    def draw(seed):
        rng = np.random.default_rng(seed)
        return dirichlet_counts(rng, alpha=1.0, total=300, min_count=5, available=np.full(5, 300)).tolist()

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)


def test_a_class_never_gets_more_than_it_has(small_batches):
    small_batches(20)
    available = np.array([21, 30, 200, 200])
    rng = np.random.default_rng(0)
    drawn = np.array(
        [dirichlet_counts(rng, alpha=0.5, total=200, min_count=20, available=available) for _ in range(300)]
    )
    assert (drawn <= available).all()
    assert (drawn > 20).all()
    assert (drawn[:, 0] == 21).all()  # the only count between the bounds
    assert drawn[:, 1].max() == 30  # the bound is reached


@pytest.mark.parametrize(("spare", "alpha"), [(0, 0.1), (0, 5.0), (1, 0.5)])
def test_a_bound_that_leaves_nothing_to_share_out(spare, alpha):
    # 4 x 10 = 40: with a total of 40 or 41 every class must have exactly 10.
    counts = dirichlet_counts(
        np.random.default_rng(0), alpha=alpha, total=40 + spare, min_count=9, available=np.full(4, 50)
    )
    np.testing.assert_array_equal(counts, np.full(4, 10), strict=True)


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.5, 0.9, 1.0, 3.0])
def test_no_acceptance_probability_is_above_one(alpha):
    # One above 1 would be clipped, and the draw biased. The largest must be close to the bound, or draws are wasted.
    rng = np.random.default_rng(0)
    num_classes, total, min_count = 4, 200, 9
    spare = total - num_classes * (min_count + 1)
    points = np.concatenate(
        [rng.dirichlet(np.full(num_classes, c), 4000) for c in (0.1, 1.0, 20.0)] + [np.full((1, num_classes), 0.25)]
    )
    for concentration in np.linspace(min(alpha, 1.0), 1.0, 9):
        logs = dirichlet._log_acceptance(points, alpha, float(concentration), total, spare, min_count)
        assert logs.max() <= 1e-9, concentration
        target = (alpha - 1) * np.log((min_count + 1) / total + spare / total * points).sum(axis=1)
        with np.errstate(divide="ignore"):
            proposal = (concentration - 1) * np.log(points).sum(axis=1) if concentration != 1 else np.zeros(len(points))
        kept = np.isfinite(logs) & np.isfinite(proposal)
        difference = (target - proposal - logs)[kept]
        np.testing.assert_allclose(difference, difference[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": 0.0}, r"^alpha: expected a number > 0, got 0\.0$"),
        ({"alpha": -1.0}, r"^alpha: expected a number > 0, got -1\.0$"),
        ({"alpha": float("nan")}, r"^alpha: expected a number > 0, got nan$"),
        ({"alpha": float("inf")}, r"^alpha: expected a number > 0, got inf$"),
        ({"min_count": -1}, r"^min_count: expected a number >= 0, got -1$"),
        (
            {"min_count": 10},
            r"^min_count: 4 classes with more than 10 .* need at least 4 x 11 = 44 examples, but total is 40$",
        ),
        (
            {"available": [40, 40, 5, 40]},
            r"^min_count: class 2 has 5 examples, but every class must keep more than 5$",
        ),
        (
            {"available": [9, 9, 9, 9]},
            r"^total: the classes have 36 examples together \(\[9, 9, 9, 9\]\), too few for .* about 40$",
        ),
    ],
)
def test_refuses_the_impossible_with_the_arithmetic(changes, message):
    arguments = {"alpha": 1.0, "total": 40, "min_count": 5, "available": [40] * 4} | changes
    with pytest.raises(InputError, match=message):
        dirichlet_counts(np.random.default_rng(0), **arguments)


def test_gives_up_on_the_improbable(monkeypatch):
    monkeypatch.setattr(dirichlet, "_PILOT_DRAWS", 10)
    monkeypatch.setattr(dirichlet, "_BATCH", 100)
    monkeypatch.setattr(dirichlet, "_MAX_DRAWS", 1000)
    with pytest.raises(InputError, match=r"^profile: none of 1000 draws of Dir\(alpha=1\.0\) with total=3000 gave"):
        dirichlet_counts(np.random.default_rng(0), alpha=1.0, total=3000, min_count=0, available=np.full(3, 1000))
