"""Lanczos on matrices whose eigenvalues are known, in the limits where it breaks down, and its early stop."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.sparse.linalg import eigsh

from imbal_jax.curvature.lanczos import LanczosState, ends_have_converged, lanczos, matrix_operator, ritz
from imbal_jax.errors import InputError

SIZE = 24
KEY = jax.random.key(1)
EPSILON = {np.float32: 1e-6, np.float64: 1e-14}


def basis(size, seed=0):
    """Random orthonormal columns."""
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]


def with_eigenvalues(eigenvalues, seed=0):
    """A symmetric float64 matrix in a random basis."""
    vectors = basis(len(eigenvalues), seed)
    return (vectors * np.asarray(eigenvalues, np.float64)) @ vectors.T


def gaussian(probes, size, seed=2):
    return np.random.default_rng(seed).normal(size=(probes, size))


def run(matrix, order, starts=None, *, host=True, key=KEY, **options):
    """Lanczos in the matrix's type by one of the two drivers."""
    dtype = np.asarray(matrix).dtype
    starts = gaussian(1, len(matrix)) if starts is None else starts
    with jax.enable_x64(True) if dtype == np.float64 else contextlib.nullcontext():
        operator = matrix_operator(matrix)._replace(traceable=not host)
        return lanczos(operator, jnp.asarray(starts, dtype), order, key=key, **options)


def seen_vectors(matrix, order, starts):
    """The vectors that Lanczos asks products of, [order, probes, size]: its basis."""
    operator, seen = matrix_operator(matrix), []

    def product(operands, vectors, draw):
        seen.append(np.asarray(vectors, np.float64))
        return operator.product(operands, vectors, draw)

    lanczos(operator._replace(product=product, traceable=False), jnp.asarray(starts), order, key=KEY)
    return np.stack(seen)


LOW_RANK = np.r_[np.zeros(SIZE - 3), 1.0, 2, -3]
SPECTRA = {
    "spread": np.linspace(-1, 3, SIZE),
    "identity": np.ones(SIZE),
    "minus identity": -np.ones(SIZE),
    "zero": np.zeros(SIZE),
    "rank one": np.r_[np.zeros(SIZE - 1), 5.0],
    "negative rank one": np.r_[np.zeros(SIZE - 1), -5.0],
    "rank three": LOW_RANK,
    "repeated": np.repeat([-2.0, 0.5, 3, 4], SIZE // 4),
    "both ends repeated": np.r_[-2.0, -2, -2, np.linspace(-1, 1, SIZE - 6), 2, 2, 2],
    "nearly repeated": np.repeat([-2.0, 0.5, 3, 4], SIZE // 4) + 1e-7 * np.arange(SIZE),
    "ill-conditioned": np.logspace(-12, 0, SIZE),
    "tiny": 1e-30 * np.linspace(-1, 3, SIZE),
    "tiny rank three": 1e-30 * LOW_RANK,
    "huge": 1e30 * np.linspace(-1, 3, SIZE),
    "huge rank three": 1e30 * LOW_RANK,
}


@pytest.mark.parametrize("host", [True, False], ids=["host", "traced"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", SPECTRA)
def test_as_many_steps_as_dimensions_give_all_eigenvalues_as_often_as_they_occur(name, dtype, host):
    eigenvalues = np.sort(SPECTRA[name])
    for order in (SIZE, SIZE + 30):
        found = run(with_eigenvalues(eigenvalues).astype(dtype), order, host=host)
        assert found.steps == SIZE and found.diagonal.dtype == np.float64
        (one,) = ritz(found)
        scale = np.max(np.abs(eigenvalues)) or 1.0
        np.testing.assert_allclose(one.values, eigenvalues, rtol=0, atol=10 * EPSILON[dtype] * scale)
        assert one.weights.sum() == pytest.approx(1, rel=1e-13) and np.all(one.weights >= 0)
        assert np.all(one.residuals <= 20 * EPSILON[dtype] * scale)


@pytest.mark.parametrize("host", [True, False], ids=["host", "traced"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("chosen", [[5], [0], [3, 7, 20]])
def test_a_start_in_an_invariant_subspace(chosen, dtype, host):
    eigenvalues, vectors = np.linspace(-1, 3, SIZE), basis(SIZE)
    amounts = np.arange(1, len(chosen) + 1)
    start = vectors[:, chosen] @ amounts
    found = run(with_eigenvalues(eigenvalues).astype(dtype), SIZE, start[None], host=host)
    # The space is exhausted after as many steps. In float32 the start itself has rounding errors along the others.
    assert found.off_diagonal[0, len(chosen) - 1] < 1e-5
    (one,) = ritz(found)
    np.testing.assert_allclose(one.values, eigenvalues, atol=10 * EPSILON[dtype])
    expected = np.zeros(SIZE)
    expected[chosen] = amounts**2 / np.sum(amounts**2)
    np.testing.assert_allclose(one.weights, expected, atol=100 * EPSILON[dtype])


def test_the_quadrature_of_repeated_eigenvalues():
    eigenvalues, vectors = np.repeat([-2.0, 0.5, 3, 4], SIZE // 4), basis(SIZE)
    start = gaussian(1, SIZE)
    (one,) = ritz(run(with_eigenvalues(eigenvalues), SIZE, start))
    shares = (start[0] @ vectors / np.linalg.norm(start)) ** 2
    for value in np.unique(eigenvalues):
        near = np.abs(one.values - value) < 1e-9
        assert near.sum() == SIZE // 4
        assert one.weights[near].sum() == pytest.approx(shares[eigenvalues == value].sum(), rel=1e-10)


@pytest.mark.parametrize("host", [True, False], ids=["host", "traced"])
def test_moments_of_the_quadrature_are_exact(host):
    matrix, starts = with_eigenvalues(np.r_[np.linspace(-1, 1, SIZE - 2), 3, 4]), gaussian(3, SIZE)
    found = run(matrix, SIZE, starts, host=host)
    for order in (1, 2, 6):  # fewer steps give the same entries
        for start, one in zip(starts, ritz(found._replace(steps=order)), strict=True):
            vector = power = start / np.linalg.norm(start)
            for k in range(2 * order):
                assert np.sum(one.weights * one.values**k) == pytest.approx(vector @ power, rel=1e-11, abs=1e-12)
                power = matrix @ power
            # One more is not: the quadrature would be the whole measure.
            assert abs(np.sum(one.weights * one.values ** (2 * order)) - vector @ power) > 1e-6


def test_residuals_are_those_of_the_ritz_vectors():
    matrix, start = with_eigenvalues(np.linspace(-1, 3, SIZE)), gaussian(1, SIZE)
    with jax.enable_x64(True):
        lines = seen_vectors(matrix, SIZE, start)[:7, 0]
    (one,) = ritz(run(matrix, SIZE, start)._replace(steps=7))
    values, inner = np.linalg.eigh(lines @ matrix @ lines.T)
    np.testing.assert_allclose(one.values, values, atol=1e-13)
    vectors = lines.T @ inner
    expected = np.linalg.norm(matrix @ vectors - vectors * values, axis=0)
    np.testing.assert_allclose(one.residuals, expected, atol=1e-12)
    assert np.all(np.min(np.abs(np.linspace(-1, 3, SIZE)[:, None] - values), axis=0) <= expected + 1e-12)


@pytest.mark.parametrize("host", [True, False], ids=["host", "traced"])
def test_one_and_two_dimensions(host):
    for value in (3.0, -3.0, 0.0):
        (one,) = ritz(run(np.array([[value]]), 5, host=host))
        assert one.values.tolist() == [value] and one.weights.tolist() == [1] and one.residuals.tolist() == [0]
    matrix = np.array([[1.0, 2], [2, -3]])
    (one,) = ritz(run(matrix, 9, host=host))
    np.testing.assert_allclose(one.values, np.linalg.eigvalsh(matrix), rtol=1e-14)


def test_a_single_step():
    (one,) = ritz(run(np.array([[1.0, 2], [2, -3]]), 1, np.array([[1.0, 0]])))
    np.testing.assert_allclose([one.values, one.weights, one.residuals], [[1], [1], [2]], rtol=1e-14)


LARGE = np.r_[np.random.default_rng(3).normal(size=190, scale=0.01), [-2.0, -0.5, -0.1, 1, 2, 3, 5, 10, 30, 100]]


def plain_lanczos(matrix, start, order):
    """Ritz values without any re-orthogonalisation, as some published code computes them."""
    before, now = np.zeros_like(start), start / np.linalg.norm(start)
    diagonal, off_diagonal = [], [np.float32(0)]
    for _ in range(order):
        after = matrix @ now - off_diagonal[-1] * before
        diagonal.append(now @ after)
        after = after - diagonal[-1] * now
        off_diagonal.append(np.linalg.norm(after))
        before, now = now, after / off_diagonal[-1]
    inner = np.asarray(off_diagonal[1:-1], np.float64)
    return np.linalg.eigvalsh(np.diag(np.asarray(diagonal, np.float64)) + np.diag(inner, 1) + np.diag(inner, -1))


@pytest.fixture(scope="module")
def outliers():
    """A float32 matrix with outliers, a start, and Lanczos's 90 steps by both drivers."""
    matrix, start = with_eigenvalues(LARGE).astype(np.float32), gaussian(1, len(LARGE)).astype(np.float32)
    return matrix, start, {host: ritz(run(matrix, 90, start, host=host))[0] for host in (True, False)}


def test_no_ghosts_in_single_precision(outliers):
    matrix, start, found = outliers
    for value in (-2.0, -0.5, 5, 10, 30, 100):
        for host in (True, False):
            assert np.sum(np.abs(found[host].values - value) < 1e-2 * abs(value)) == 1
    # The matrix is one that has ghosts.
    assert np.sum(np.abs(plain_lanczos(matrix, start[0], 90) - 100) < 1) > 1


def test_accuracy_in_single_precision(outliers):
    _, start, found = outliers
    (exact,) = ritz(run(with_eigenvalues(LARGE), 90, start))
    for one in found.values():
        np.testing.assert_allclose(one.values[[0, 1, -1, -2, -3, -4]], [-2, -0.5, 100, 30, 10, 5], rtol=1e-5)
        outer = np.abs(exact.values) > 0.05
        np.testing.assert_allclose(one.values[outer], exact.values[outer], rtol=1e-4)
        np.testing.assert_allclose(one.weights[outer], exact.weights[outer], rtol=1e-3)
        share = np.sum(one.weights * (one.values < 0))
        assert share == pytest.approx(np.sum(exact.weights * (exact.values < 0)), abs=1e-3)


def test_the_basis_is_orthonormal_in_single_precision(outliers):
    matrix, start, _ = outliers
    lines = seen_vectors(matrix, 90, start)[:, 0]
    np.testing.assert_allclose(lines @ lines.T, np.eye(90), atol=2e-6)
    # Also across restarts.
    for low in (LOW_RANK, 1e-30 * LOW_RANK, 1e30 * LOW_RANK):
        lines = seen_vectors(with_eigenvalues(low).astype(np.float32), SIZE, gaussian(1, SIZE).astype(np.float32))[:, 0]
        np.testing.assert_allclose(lines @ lines.T, np.eye(SIZE), atol=2e-6)


def test_against_arpack(outliers):
    matrix, _, found = outliers
    ends = np.sort(eigsh(matrix.astype(np.float64), k=2, which="BE", tol=1e-10)[0])
    np.testing.assert_allclose(found[True].values[[0, -1]], ends, rtol=1e-6)


@pytest.mark.parametrize("host", [True, False], ids=["host", "traced"])
@pytest.mark.parametrize("name", ["spread", "rank three"])
def test_several_starts_are_each_its_own(name, host):
    matrix, starts = with_eigenvalues(SPECTRA[name]), gaussian(3, SIZE)
    together = run(matrix, SIZE, starts, host=host)
    other = run(matrix, SIZE, np.concatenate([starts[:1], gaussian(2, SIZE, seed=9)]), host=host)
    np.testing.assert_array_equal(together.diagonal[0], other.diagonal[0])
    np.testing.assert_array_equal(together.off_diagonal[0], other.off_diagonal[0])
    assert np.abs(together.diagonal[1:] - other.diagonal[1:]).max() > 1e-3
    for i, start in enumerate(starts):
        alone = run(matrix, SIZE, start[None], host=host)
        np.testing.assert_allclose(alone.diagonal[0], together.diagonal[i], atol=1e-11)
        np.testing.assert_allclose(alone.off_diagonal[0], together.off_diagonal[i], atol=1e-11)


def test_a_breakdown_of_one_start_leaves_the_others_alone():
    matrix = with_eigenvalues(SPECTRA["spread"])
    starts = np.concatenate([basis(SIZE)[:, [4]].T, gaussian(2, SIZE)])
    together, alone = run(matrix, SIZE, starts), run(matrix, SIZE, starts[1:2])
    assert together.off_diagonal[0, 0] < 1e-13
    np.testing.assert_allclose(together.diagonal[1], alone.diagonal[0], atol=1e-11)
    np.testing.assert_allclose(together.off_diagonal[1], alone.off_diagonal[0], atol=1e-11)


@pytest.mark.parametrize("host", [True, False], ids=["host", "traced"])
def test_products_are_counted(host):
    """Every product is told its number, from one."""
    operator = matrix_operator(np.eye(SIZE, dtype=np.float32))

    def product(operands, vectors, draw):
        return vectors * jnp.asarray(draw, jnp.float32)

    found = lanczos(operator._replace(product=product, traceable=not host), jnp.ones((1, SIZE)), SIZE, key=KEY)
    np.testing.assert_allclose(found.diagonal[0], np.arange(1, SIZE + 1), rtol=1e-6)


# Early stop.

EARLY = 60  # most steps

NETWORK_LIKE = {
    "both ends apart": np.r_[np.random.default_rng(4).normal(size=292) ** 3 * 1e-3, -2, -1, 1, 3, 5, 10, 30, 60],
    "bulk only": np.random.default_rng(5).normal(size=300),
    "two close at the top": np.r_[np.random.default_rng(6).normal(size=297) * 0.01, -3, 99.9, 100],
    "decaying": np.r_[100 * np.exp(-np.arange(150) / 3), -10 * np.exp(-np.arange(150) / 3)],
    "small negative end": np.r_[np.random.default_rng(7).normal(size=297) ** 3 * 1e-4, -0.5, 50, 100],
}


@pytest.mark.parametrize("tolerance", [1e-2, 1e-3])
@pytest.mark.parametrize("name", NETWORK_LIKE)
def test_it_stops_when_both_ends_are_right(name, tolerance):
    eigenvalues = NETWORK_LIKE[name]
    matrix = np.diag(eigenvalues)
    for seed in range(3):
        start = gaussian(1, len(matrix), seed=seed + 20)
        found = run(matrix, EARLY, start, tolerance=tolerance)
        assert found.steps < EARLY
        ends = ritz(found)[0].values[[0, -1]]
        np.testing.assert_allclose(ends, [eigenvalues.min(), eigenvalues.max()], rtol=tolerance)
        # It did not go on when it could have stopped.
        (before,) = ritz(found._replace(steps=found.steps - 1))
        bounds = tolerance * np.maximum(np.abs(before.values[[0, -1]]), 1e-3 * np.max(np.abs(before.values)))
        assert np.any(before.residuals[[0, -1]] > bounds)


def test_both_drivers_stop_at_the_same_step_and_not_before_all_starts_have_converged():
    matrix, starts = np.diag(NETWORK_LIKE["both ends apart"]), gaussian(3, 300)
    alone = [run(matrix, EARLY, start[None], tolerance=1e-6).steps for start in starts]
    host = run(matrix, EARLY, starts, tolerance=1e-6)
    traced = run(matrix, EARLY, starts, tolerance=1e-6, host=False)
    assert host.steps == traced.steps == max(alone) < EARLY
    for found in (host, traced):
        assert found.diagonal.shape == (3, EARLY)
        assert not found.diagonal[:, found.steps :].any() and not found.off_diagonal[:, found.steps :].any()
    np.testing.assert_allclose(host.diagonal, traced.diagonal, atol=1e-9)


def test_least_and_order_bound_the_steps():
    matrix = np.diag(NETWORK_LIKE["both ends apart"])
    free = run(matrix, EARLY, tolerance=1e-3).steps
    assert 5 < free < 30
    for least, steps in ((free - 1, free), (free + 3, free + 3), (500, EARLY)):
        assert run(matrix, EARLY, tolerance=1e-3, least=least).steps == steps
    assert run(matrix, EARLY, tolerance=1e-3, least=free + 3, host=False).steps == free + 3
    assert run(matrix, free - 2, tolerance=1e-3).steps == free - 2
    assert run(matrix, EARLY, tolerance=0.0).steps == EARLY


@pytest.mark.parametrize("amount", [1e-2, 1e-4])
def test_it_does_not_overlook_an_end_that_the_start_hardly_sees(amount):
    eigenvalues = NETWORK_LIKE["both ends apart"]
    for hidden in (int(np.argmin(eigenvalues)), int(np.argmax(eigenvalues))):
        start = gaussian(1, 300, seed=31)
        start[0, hidden] = amount  # instead of about 1
        found = run(np.diag(eigenvalues), EARLY, start, tolerance=1e-3)
        ends = ritz(found)[0].values[[0, -1]]
        np.testing.assert_allclose(ends, [eigenvalues.min(), eigenvalues.max()], rtol=1e-3)


@pytest.mark.parametrize("host", [True, False], ids=["host", "traced"])
@pytest.mark.parametrize("name", ["identity", "zero", "rank one", "rank three", "tiny rank three"])
def test_an_exhausted_space_has_converged(name, host):
    eigenvalues = SPECTRA[name]
    found = run(with_eigenvalues(eigenvalues).astype(np.float32), SIZE, tolerance=1e-3, host=host)
    assert found.steps == len(np.unique(eigenvalues))
    assert found.off_diagonal[0, found.steps - 1] == 0  # so that the weights of what follows are zero
    scale = np.max(np.abs(eigenvalues)) or 1.0
    ends = ritz(found)[0].values[[0, -1]]
    np.testing.assert_allclose(ends, [eigenvalues.min(), eigenvalues.max()], rtol=0, atol=1e-5 * scale)


def test_one_step_has_converged_only_on_an_eigenvector():
    with jax.enable_x64(True):

        def state(coupling):
            entries = jnp.array([[2.0, 0, 0, 0], [coupling, 0, 0, 0]])
            return LanczosState(jnp.zeros((5, 0)), *entries, jnp.float64(2), jnp.int32(1), KEY)

        assert not ends_have_converged(state(0.1), 0.04)
        assert ends_have_converged(state(0.1), 0.06)
        assert ends_have_converged(state(0.0), 1e-12)


def test_refusals():
    matrix = np.eye(3, dtype=np.float32)
    with pytest.raises(InputError, match=r"^order: expected a number >= 1, got 0$"):
        run(matrix, 0)
    for shape in ((3,), (2, 4)):
        with pytest.raises(InputError, match=r"^starts: expected shape \[probes, 3\], got \("):
            run(matrix, 2, np.ones(shape))
