"""Densities against SciPy, closed forms and spectra known in full."""

import numpy as np
import pytest
from scipy import integrate, stats

from imbal_jax.curvature import density as dense
from imbal_jax.curvature.density import Quadrature
from imbal_jax.errors import InputError


def random_quadrature(probes=3, order=7, padded=2, seed=0):
    """Probes of which the last stopped early."""
    rng = np.random.default_rng(seed)
    nodes, weights = np.sort(rng.normal(size=(probes, order))), rng.random((probes, order))
    nodes[-1, order - padded :], weights[-1, order - padded :] = np.nan, 0
    return Quadrature(nodes, weights / weights.sum(axis=1, keepdims=True))


def points_of(quadrature):
    """Nodes and weights of the mean over probes, without padding."""
    kept = quadrature.weights > 0
    return quadrature.nodes[kept], quadrature.weights[kept] / len(quadrature.weights)


def exact_quadrature(matrix, probes, order):
    """Stochastic Lanczos quadrature of a dense matrix by explicit Krylov spaces, in float64."""
    rng, nodes, weights = np.random.default_rng(1), [], []
    for _ in range(probes):
        basis = [start := rng.normal(size=len(matrix))]
        basis[0] = start / np.linalg.norm(start)
        while len(basis) < order:
            vector = matrix @ basis[-1]
            for _ in range(2):
                vector = vector - np.array(basis).T @ (np.array(basis) @ vector)
            basis.append(vector / np.linalg.norm(vector))
        projected = np.array(basis) @ matrix @ np.array(basis).T
        values, vectors = np.linalg.eigh((projected + projected.T) / 2)
        nodes.append(values)
        weights.append(vectors[0] ** 2)
    return Quadrature(np.array(nodes), np.array(weights))


def test_smoothing_is_the_mean_of_gaussian_mixtures():
    quadrature, grid = random_quadrature(), np.linspace(-4, 4, 201)
    places, masses = points_of(quadrature)
    expected = sum(mass * stats.norm.pdf(grid, place, 0.3) for place, mass in zip(places, masses, strict=True))
    np.testing.assert_allclose(dense.smoothed(quadrature, grid, 0.3), expected, rtol=1e-12)
    shuffled = np.random.default_rng(1).permutation(len(grid))
    np.testing.assert_allclose(dense.smoothed(quadrature, grid[shuffled], 0.3), expected[shuffled], rtol=1e-12)


def test_narrow_kernels_far_apart():
    quadrature = Quadrature(np.array([[-1e4, 0.0, 1e4]]), np.array([[0.25, 0.5, 0.25]]))
    grid = np.array([-1e4, -5e3, 0.0, 1e-3, 1e4])
    peak = 1 / (1e-3 * np.sqrt(2 * np.pi))
    expected = [0.25 * peak, 0, 0.5 * peak, 0.5 * peak * np.exp(-0.5), 0.25 * peak]
    np.testing.assert_allclose(dense.smoothed(quadrature, grid, 1e-3), expected, rtol=1e-12)


@pytest.mark.parametrize("kernel", ["ghorbani", "relative"])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0, 1e5])
def test_a_density_loses_nothing_whatever_the_range(kernel, scale):
    quadrature = random_quadrature()
    found = dense.density(Quadrature(quadrature.nodes * scale, quadrature.weights), kernel, points=500)
    assert found.probes.shape == (3, len(found.grid)) and len(found.grid) >= 500
    spacing = np.diff(found.grid)
    assert spacing.max() < 0.51 * found.sigma or len(found.grid) == dense.MAX_POINTS
    if len(found.grid) < dense.MAX_POINTS:
        np.testing.assert_allclose(integrate.trapezoid(found.probes, found.grid, axis=1), 1, atol=1e-6)
    again = dense.smoothed(Quadrature(quadrature.nodes * scale, quadrature.weights), found.grid, found.sigma)
    np.testing.assert_allclose(found.mean, again, rtol=1e-13)


def test_normalisation_as_published():
    quadrature = random_quadrature()
    grid = dense.grid_of(-1.0, 1.0)  # cuts kernels off
    published = dense.sums_to_one(dense.smoothed(quadrature, grid, 0.3), grid)
    np.testing.assert_allclose(published.sum() * (grid[1] - grid[0]), 1, rtol=1e-12)
    ratio = published / dense.smoothed(quadrature, grid, 0.3)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-12)
    assert ratio[0] > 1.05


def test_published_kernel_and_grid():
    # sigma^2 = 1e-5 max(1, lambda_max - lambda_min), 10,000 points, 0.01 beyond the ends.
    assert dense.ghorbani_sigma(-1.0, 9.0) == pytest.approx(0.01, rel=1e-12)
    assert dense.ghorbani_sigma(-0.1, 0.1) == pytest.approx(0.0031622776601683794, rel=1e-12)
    assert dense.relative_sigma(-0.1, 0.1) == pytest.approx(0.00063245553203367588, rel=1e-12)
    assert dense.relative_sigma(0.0, 1.0) == dense.ghorbani_sigma(0.0, 1.0)
    assert dense.relative_sigma(2.0, 2.0) > 0 and dense.relative_sigma(0.0, 0.0) > 0
    grid = dense.grid_of(-1.0, 9.0)
    assert len(grid) == 10_000
    np.testing.assert_allclose(grid[[0, -1]], [-1.01, 9.01], rtol=1e-14)


def test_shares_and_moments_of_probes():
    nodes = np.array([[-2.0, 0.0, 1.0], [-1.0, 3.0, np.nan]])
    quadrature = Quadrature(nodes, np.array([[0.2, 0.3, 0.5], [0.4, 0.6, 0.0]]))
    assert dense.share_below(quadrature, 0.0) == pytest.approx((0.3, 0.1))  # of 0.2 and 0.4; the error is half of it
    assert dense.share_below(quadrature, -5.0) == (0, 0) and dense.share_below(quadrature, np.inf)[0] == 1
    assert dense.moment(quadrature, 1) == pytest.approx(((0.1 + 1.4) / 2, 0.65))
    assert dense.moment(quadrature, 2) == pytest.approx(((1.3 + 5.8) / 2, 2.25))
    assert dense.moment(quadrature, 0) == pytest.approx((1, 0))
    single = Quadrature(nodes[:1], quadrature.weights[:1])
    assert dense.share_below(single, 0.5) == (0.5, None)


def test_estimates_of_a_known_matrix():
    rng = np.random.default_rng(0)
    eigenvalues = np.concatenate([rng.normal(scale=0.1, size=190), [-2.0, -1.5, 3, 4, 5, 6, 7, 8, 9, 20]])
    orthogonal = np.linalg.qr(rng.normal(size=(200, 200)))[0]
    matrix = (orthogonal * eigenvalues) @ orthogonal.T
    quadrature = exact_quadrature(matrix, probes=80, order=40)
    share, error = dense.share_below(quadrature, -1.0)
    assert abs(share - 2 / 200) < 3 * error < 0.01
    for k in (1, 2, 3):
        mean, error = dense.moment(quadrature, k)
        assert abs(mean - np.mean(eigenvalues**k)) < 3.5 * error
    # The weights of the outer eigenvalues, |lambda| / 200 away from the others, have relative errors sqrt(2 / probes).
    scale = np.sum(np.abs(eigenvalues[190:])) / 200
    few = Quadrature(quadrature.nodes[:5], quadrature.weights[:5])
    assert dense.wasserstein(quadrature, eigenvalues, sigma=0.05) < 2 * scale * np.sqrt(2 / 80)
    assert dense.wasserstein(few, eigenvalues, sigma=0.05) > 0.2 * scale * np.sqrt(2 / 5)
    # In the whole space and averaged over all unit vectors, the quadrature is the spectrum.
    whole = Quadrature(np.tile(np.sort(eigenvalues), (200, 1)), np.full((200, 200), 1 / 200))
    assert dense.wasserstein(whole, eigenvalues, sigma=0.05) < 1e-10


@pytest.mark.parametrize("seed", range(3))
def test_distance_without_smoothing_is_scipys(seed):
    rng = np.random.default_rng(seed)
    first, values = random_quadrature(seed=seed), rng.normal(size=11)
    places, masses = points_of(first)
    expected = stats.wasserstein_distance(places, values, masses)
    assert dense.wasserstein(first, values) == pytest.approx(expected, rel=1e-12)
    second = random_quadrature(probes=2, seed=seed + 10)
    others, shares = points_of(second)
    expected = stats.wasserstein_distance(places, others, masses, shares)
    assert dense.wasserstein(first, second) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("sigma", [0.02, 0.3, 2.0])
def test_smoothed_distance_is_the_integral_between_distribution_functions(sigma):
    first, values = random_quadrature(), np.random.default_rng(2).normal(size=11)
    places, masses = points_of(first)

    def gap(t):
        return abs(stats.norm.cdf((t - places) / sigma) @ masses - stats.norm.cdf((t - values) / sigma).mean())

    t = np.linspace(-4 - 8 * sigma, 4 + 8 * sigma, 20_001)
    expected = integrate.trapezoid([gap(one) for one in t], t)
    assert dense.wasserstein(first, values, sigma) == pytest.approx(expected, rel=1e-3)
    assert dense.wasserstein(first, values, sigma) < dense.wasserstein(first, values)


def test_distance_of_a_shift_and_in_limits():
    first = random_quadrature()
    moved = Quadrature(first.nodes + 0.37, first.weights)
    for sigma in (0.0, 1e-9, 0.01, 1.0, 50.0):
        assert dense.wasserstein(first, moved, sigma) == pytest.approx(0.37, rel=1e-5)
        assert dense.wasserstein(moved, first, sigma) == pytest.approx(0.37, rel=1e-5)
        assert dense.wasserstein(first, first, sigma) == pytest.approx(0, abs=1e-12)
    one = Quadrature(np.array([[2.0]]), np.array([[1.0]]))
    assert dense.wasserstein(one, np.full(3, 2.0), 0.1) == pytest.approx(0, abs=1e-15)


GOOD = random_quadrature()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dense.smoothed(GOOD, [0.0, 1.0], 0.0), r"^sigma: expected a number > 0, got 0.0$"),
        (lambda: dense.wasserstein(GOOD, [0.0], -1.0), r"^sigma: expected a number >= 0, got -1.0$"),
        (lambda: dense.density(GOOD, "gauss"), r"^kernel: expected one of \['ghorbani', 'relative'\], got 'gauss'$"),
        (lambda: dense.grid_of(0.0, 1.0, points=1), r"^points: expected a number >= 2, got 1$"),
        (lambda: dense.grid_of(1.0, 0.0), r"^lambda_min, lambda_max: expected finite ends in order, got 1.0, 0.0$"),
        (lambda: dense.ghorbani_sigma(np.nan, 0.0), r"^lambda_min, lambda_max: .* got nan, 0.0$"),
        (lambda: dense.moment(GOOD, -1), r"^k: expected a number >= 0, got -1$"),
        (lambda: dense.moment(Quadrature(np.ones(3), np.ones(3)), 1), r"\[probes, order\], got \(3,\), \(3,\)$"),
        (lambda: dense.share_below(Quadrature(np.ones((1, 2)), np.ones((1, 2))), 0), r"add up to 1 .* got \[2.0\]$"),
        (
            lambda: dense.wasserstein(Quadrature(np.array([[np.nan, 0]]), np.array([[0.5, 0.5]])), [0.0]),
            r"^quadrature: expected weights >= 0 and finite nodes where they are not 0$",
        ),
        (
            lambda: dense.wasserstein(GOOD, [np.inf]),
            r"^other: expected a Quadrature or finite eigenvalues \[n\], got shape \(1,\)$",
        ),
    ],
)
def test_refusals(call, message):
    with pytest.raises(InputError, match=message):
        call()
