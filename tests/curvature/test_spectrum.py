"""The spectrum of matrices that are known, its error estimates, and the checks of an operator."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imbal_jax.curvature import spectrum as module
from imbal_jax.curvature.lanczos import matrix_operator
from imbal_jax.curvature.spectrum import (
    Checks,
    OperatorError,
    Spectrum,
    check_operator,
    memory_advice,
    require_finite,
    require_memory,
    require_symmetric,
    spectrum,
    standard_error,
)
from imbal_jax.errors import InputError

SIZE = 40
KEY = jax.random.key(3)


def with_eigenvalues(eigenvalues, seed=0):
    vectors = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(eigenvalues),) * 2))[0]
    return (vectors * np.asarray(eigenvalues)) @ vectors.T


EIGENVALUES = np.r_[np.random.default_rng(1).normal(size=SIZE - 5) * 0.1, -2, -0.5, 1, 4, 10]
MATRIX = with_eigenvalues(EIGENVALUES).astype(np.float32)


def host(matrix):
    """The operator of a matrix, by the loop on the host, which compiles less."""
    return matrix_operator(matrix)._replace(traceable=False)


def found(matrix=MATRIX, *, order=SIZE, probes=4, key=KEY, **options):
    return spectrum(host(matrix), order=order, probes=probes, key=key, **options)


def test_all_of_a_spectrum():
    result = found(order=100)
    assert result.values.shape == result.weights.shape == result.residuals.shape == (4, SIZE)
    assert result.traces.shape == (4,) and result.steps.tolist() == [SIZE] * 4
    np.testing.assert_allclose(result.values, np.tile(np.sort(EIGENVALUES), (4, 1)), atol=2e-5)
    np.testing.assert_allclose(result.weights.sum(axis=1), 1, rtol=1e-12)
    assert result.lambda_max == pytest.approx(10, rel=1e-5) and result.lambda_min == pytest.approx(-2, rel=1e-5)
    assert result.ratio == pytest.approx(0.2, rel=1e-5)
    assert np.all(result.residuals < 1e-4)


@pytest.mark.parametrize("rank_three", [False, True])
def test_probes_are_the_same_alone_beside_others_and_side_by_side(rank_three):
    """Also where they break down."""
    matrix = with_eigenvalues(np.r_[np.zeros(SIZE - 3), 1, 2, -3]).astype(np.float32) if rank_three else MATRIX
    alone, fewer = found(matrix), found(matrix, probes=2)
    together = found(matrix, together=True)
    for one, two in zip(alone, fewer, strict=True):
        np.testing.assert_array_equal(one[:2], two)
    np.testing.assert_allclose(together.values, alone.values, atol=3e-5)
    np.testing.assert_allclose(together.traces, alone.traces, rtol=1e-5)
    assert np.ptp(alone.traces) > 1
    assert not np.array_equal(found(matrix, key=jax.random.key(4)).traces, alone.traces)


def test_probes_that_stop_early_are_padded():
    result = found(tolerance=1e-3, probes=6)
    assert len(set(result.steps)) > 1 and result.steps.max() < SIZE
    for row, steps in enumerate(result.steps):
        assert np.isfinite(result.values[row, :steps]).all() and np.isnan(result.values[row, steps:]).all()
        assert np.isfinite(result.residuals[row, :steps]).all() and np.isnan(result.residuals[row, steps:]).all()
        assert np.all(result.weights[row, steps:] == 0)
        assert result.weights[row].sum() == pytest.approx(1, rel=1e-12)
    np.testing.assert_allclose([result.lambda_min, result.lambda_max], [-2, 10], rtol=1e-3)
    together = found(tolerance=1e-3, probes=6, together=True)
    assert together.steps.tolist() == [result.steps.max()] * 6
    longer = found(tolerance=1e-3, probes=2, least=30)
    assert longer.steps.tolist() == [30, 30]


def test_ritz_values_do_not_leave_the_spectrum():
    for order in (1, 5):
        result = found(order=order, probes=3)
        assert result.steps.tolist() == [order] * 3
        assert -2 - 1e-5 <= result.lambda_min <= result.lambda_max <= 10 + 1e-5


def test_the_summary():
    result = found(order=5)
    summary = result.summary()
    for name, ends, index in (("lambda_max", np.max, -1), ("lambda_min", np.min, 0)):
        single = result.values[:, index]
        assert summary[name] == getattr(result, name) == ends(single)
        assert summary[f"{name}_standard_error"] == pytest.approx(np.std(single, ddof=1) / 2)
        row = int(np.flatnonzero(single == summary[name])[0])
        assert summary[f"{name}_residual"] == result.residuals[row, index] > 0
        # The residual bounds the distance to the nearest eigenvalue.
        assert np.min(np.abs(EIGENVALUES - summary[name])) <= summary[f"{name}_residual"]
    assert summary["ratio"] == result.ratio == abs(summary["lambda_min"] / summary["lambda_max"])
    assert summary["trace"] == pytest.approx(np.mean(result.traces))
    assert summary["trace_standard_error"] == pytest.approx(np.std(result.traces, ddof=1) / 2)
    assert all(isinstance(value, float) for value in summary.values())
    alone = found(order=5, probes=1).summary()
    errors = [name for name in alone if name.endswith("standard_error")]
    assert len(errors) == 3 and all(math.isnan(alone[name]) for name in errors)
    assert standard_error(np.array([1.0, 3])) == 1 and math.isnan(standard_error(np.array([1.0])))


def test_ratios_in_limits():
    def ratio(*values):
        rows = np.array([values])
        return Spectrum(rows, np.full(rows.shape, 1 / rows.size), 0 * rows, np.zeros(1), np.array([rows.size])).ratio

    assert ratio(-1.0, 4.0) == ratio(1.0, 4.0) == 0.25 and ratio(-4.0, -1.0) == 4 and ratio(0.0, 2.0) == 0
    assert math.isnan(ratio(0.0, 0.0)) and math.isnan(ratio(-1.0, 0.0)) and ratio(-1.0, 2.0, np.nan) == 0.5


# The trace.


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
def test_the_trace_is_unbiased_and_its_standard_error_is_right(distribution):
    trace = np.trace(MATRIX)
    many = found(order=1, probes=600, distribution=distribution, together=True)
    assert abs(many.trace - trace) < 3 * many.trace_standard_error
    squares = np.sum(MATRIX.astype(np.float64) ** 2)
    if distribution == "gaussian":  # of random directions
        variance = 2 * SIZE / (SIZE + 2) * (squares - trace**2 / SIZE)
    else:
        variance = 2 * (squares - np.sum(np.diag(MATRIX) ** 2))
    assert np.std(many.traces) == pytest.approx(math.sqrt(variance), rel=0.12)
    # Of 60 means of 10 probes, 57 are expected within 3 standard errors: 95 % in 20,000 trials. Probes are skewed
    # by the outlier, and ten of them do not say how wide they scatter as well as ten normal numbers would, 98.5 %.
    groups = many.traces.reshape(60, 10)
    errors = np.std(groups, axis=1, ddof=1) / math.sqrt(10)
    assert np.sum(np.abs(groups.mean(axis=1) - trace) < 3 * errors) >= 50


def test_rademacher_probes_are_signs():
    """And the trace of a diagonal matrix by them is exact, also in single precision."""
    seen, diagonal = [], np.random.default_rng(5).normal(size=SIZE).astype(np.float32)
    operator = host(np.diag(diagonal))

    def product(operands, vectors, draw):
        seen.append(np.asarray(vectors))
        return operator.product(operands, vectors, draw)

    result = spectrum(operator._replace(product=product), order=1, probes=3, distribution="rademacher", key=KEY)
    for vectors in seen:
        np.testing.assert_allclose(np.abs(vectors), 1 / math.sqrt(SIZE), rtol=1e-6)
    assert len({tuple(np.sign(vectors[0])) for vectors in seen}) == 3
    np.testing.assert_allclose(result.traces, np.sum(diagonal.astype(np.float64)), rtol=3e-6)


def test_progress_is_reported():
    told = []
    found(order=1, probes=3, report=told.append)
    found(order=1, probes=3, together=True, report=told.append)
    assert told == [1, 2, 3, 3]


def test_double_precision():
    with jax.enable_x64(True):
        result = found(with_eigenvalues(EIGENVALUES), probes=2)
    np.testing.assert_allclose(result.values, np.tile(np.sort(EIGENVALUES), (2, 1)), atol=1e-13)


# Checks.


def asymmetric(share, spread, seed):
    """A matrix whose antisymmetric part is a share of the symmetric one's Frobenius norm; and ||H - H^T|| / ||H||."""
    rng = np.random.default_rng(seed)
    symmetric = with_eigenvalues(np.exp(-np.arange(SIZE) / 5) if spread else rng.normal(size=SIZE), seed)
    noise = rng.normal(size=(SIZE, SIZE))
    noise = noise - noise.T
    noise *= share * np.linalg.norm(symmetric) / np.linalg.norm(noise)
    matrix = (symmetric + noise).astype(np.float32)
    return matrix, 2 * share / math.sqrt(1 + share**2)


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_asymmetry_is_found_and_measured(share, spread):
    measured = []
    for seed in range(25):
        matrix, expected = asymmetric(share, spread, seed)
        checks = check_operator(host(matrix), jax.random.key(seed))
        assert checks.change == 0
        with pytest.raises(OperatorError, match=r"^the products are not those of a symmetric matrix: asymmetry"):
            require_symmetric(checks, jnp.float32)
        measured.append(checks.asymmetry)
    assert math.sqrt(np.mean(np.square(measured))) == pytest.approx(expected, rel=0.35)


@pytest.mark.parametrize(
    "matrix",
    [
        with_eigenvalues(np.logspace(-6, 0, 200)),
        with_eigenvalues(np.r_[np.random.default_rng(2).normal(size=198) * 1e-6, 1, -0.3]),
        1e-30 * with_eigenvalues(np.linspace(-1, 3, SIZE)),
        1e30 * with_eigenvalues(np.linspace(-1, 3, SIZE)),
        np.eye(SIZE),
        np.zeros((SIZE, SIZE)),
        np.array([[2.0]]),
        np.array([[0.0, 1], [1, 0]]),
    ],
    ids=["ill-conditioned", "outliers", "tiny", "huge", "identity", "zero", "scalar", "indefinite"],
)
def test_symmetric_matrices_pass_in_single_precision(matrix):
    for seed in range(3):
        checks = check_operator(host(matrix.astype(np.float32)), jax.random.key(seed))
        require_symmetric(checks, jnp.float32)
        assert checks.change == 0 and checks.asymmetry < 1e-5


@pytest.mark.parametrize("size", [1e-3, 0.1])
def test_changing_products_are_found(size):
    operator = host(MATRIX)

    def product(operands, vectors, draw):
        return operator.product(operands, vectors, draw) * (1 + size * draw)

    checks = check_operator(operator._replace(product=product), KEY)
    assert checks.change > 1.5 * size
    with pytest.raises(OperatorError, match=r"^the products with the matrix change from one to the next, by \d"):
        require_symmetric(checks, jnp.float64)


def test_bounds_of_the_checks():
    for good in (Checks(9e-3, 9e-3), Checks(0.0, 0.0)):
        require_symmetric(good, jnp.float32)
    for bad in (Checks(1.1e-2, 0), Checks(0, 1.1e-2), Checks(math.nan, 0), Checks(0, math.nan)):
        with pytest.raises(OperatorError):
            require_symmetric(bad, jnp.float32)
    require_symmetric(Checks(9e-7, 9e-7), jnp.float64)
    with pytest.raises(OperatorError, match=r"asymmetry 2.0e-06$"):
        require_symmetric(Checks(0, 2e-6), jnp.float64)
    with pytest.raises(OperatorError, match=r"asymmetry 2.0e-02; examples fitted to losses below 1e-5 need float64$"):
        require_symmetric(Checks(0, 2e-2), jnp.float32)
    assert issubclass(OperatorError, InputError)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_products_that_are_not_finite_are_refused(bad):
    operator = host(MATRIX)

    def product(operands, vectors, draw):
        exact = operator.product(operands, vectors, draw)
        return exact.at[0, 3].set(bad) if draw == 3 else exact

    failing = operator._replace(product=product)
    for tolerance in (0.0, 1e-3):
        with pytest.raises(OperatorError, match=r"^the products with the matrix are not finite$"):
            spectrum(failing, order=6, probes=1, tolerance=tolerance, key=KEY)
    with pytest.raises(OperatorError, match=r"^the products with the matrix are not finite$"):
        check_operator(failing, KEY)


def test_refusals_of_options():
    for options, message in (
        ({"order": 0}, r"^order: expected a number >= 1, got 0$"),
        ({"order": -3}, r"^order: expected a number >= 1, got -3$"),
        ({"probes": 0}, r"^probes: expected a number >= 1, got 0$"),
        ({"tolerance": -1.0}, r"^tolerance: expected a number >= 0, got -1.0$"),
        ({"tolerance": math.nan}, r"^tolerance: expected a number >= 0, got nan$"),
        ({"distribution": "normal"}, r"^distribution: no 'normal' \(valid: gaussian, rademacher\)$"),
    ):
        with pytest.raises(InputError, match=message):
            found(**options)


def test_parameters_that_are_not_finite_are_refused():
    params = {"dense": {"kernel": np.ones((2, 2)), "bias": np.zeros(2)}, "classifier": {"bias": np.zeros(3)}}
    require_finite(params)
    for bad in (np.nan, -np.inf):
        params["dense"]["bias"][1] = bad
        with pytest.raises(InputError, match=r"^params: dense/bias holds NaN or infinite values; there is no spectrum"):
            require_finite(params)
    with pytest.raises(InputError, match=r"^checkpoint: dense/bias"):
        require_finite(params, "checkpoint")


def test_a_basis_beyond_memory_is_refused(monkeypatch):
    with pytest.raises(InputError, match=r"^order: a Lanczos basis of 91 x 1000000000000 numbers for 1 probe\(s\) "):
        require_memory(10**12, 90, 1)
    require_memory(1000, 90, 10)
    monkeypatch.setattr(module, "_memory", lambda: 2**30)
    require_memory(2**20, 2**7 - 1, 2)  # 2**30 bytes
    for arguments in ((2**20, 2**7, 2), (2**20 + 1, 2**7 - 1, 2), (2**20, 2**7 - 1, 3), (2**20, 2**7 - 1, 2, 8)):
        with pytest.raises(InputError, match=r"GiB, there are 1\.0; choose a subset of the parameters, fewer steps"):
            require_memory(*arguments)


def test_exhausted_memory_is_told_in_one_line():
    for error in (MemoryError(), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes")):
        told = pytest.raises(InputError, match=r"^micro_batch: out of memory with 32 examples at once; choose fewer")
        with told, memory_advice(32):
            raise error
    for other in (jax.errors.JaxRuntimeError("INTERNAL: something else"), ValueError("x")):
        with pytest.raises(type(other), match=str(other)), memory_advice(32):
            raise other
    with memory_advice(32):
        pass
