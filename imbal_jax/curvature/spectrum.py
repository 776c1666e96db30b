"""The spectrum of a symmetric matrix by stochastic Lanczos quadrature, with what it takes to believe it.

Ghorbani et al. 2019, section 2: Lanczos from random starts gives, for each, a Gaussian quadrature of the density of
eigenvalues as the start sees it; their mean over starts converges to the density itself.
"""

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from imbal_jax.curvature.lanczos import Operator, lanczos, ritz
from imbal_jax.curvature.products import check_choice
from imbal_jax.errors import InputError, check_number
from imbal_jax.types import Array, Params

PROBES = ("gaussian", "rademacher")


class OperatorError(InputError):
    """A matrix whose spectrum cannot be believed: its products change, are not symmetric or not finite."""


class Checks(NamedTuple):
    """How far products are from those of one symmetric matrix."""

    change: float  # between two products with the same vector, relative
    asymmetry: float  # an estimate of ||H - H^T|| / ||H||, Frobenius norms


class Spectrum(NamedTuple):
    """What the probes saw; [probes, order] arrays are padded with NaN values of weight 0."""

    values: np.ndarray  # Ritz values, ascending, float64
    weights: np.ndarray  # of the quadrature, summing to 1 over a row
    residuals: np.ndarray  # of the Ritz vectors
    traces: np.ndarray  # [probes] unbiased estimates of the trace
    steps: np.ndarray  # [probes] int, Lanczos steps taken

    @property
    def lambda_max(self) -> float:
        """The largest Ritz value of any probe; the largest eigenvalue is not less (Courant-Fischer)."""
        return float(np.nanmax(self.values))

    @property
    def lambda_min(self) -> float:
        """The smallest Ritz value of any probe; the smallest eigenvalue is not greater."""
        return float(np.nanmin(self.values))

    @property
    def ratio(self) -> float:
        """|lambda_min / lambda_max|, the measure of non-convexity of Rangwani et al. 2022; NaN if lambda_max is 0."""
        return abs(self.lambda_min / self.lambda_max) if self.lambda_max else math.nan

    @property
    def trace(self) -> float:
        """The mean of the probes' estimates."""
        return float(np.mean(self.traces))

    @property
    def trace_standard_error(self) -> float:
        """Over probes; NaN for a single one."""
        return standard_error(self.traces)

    def summary(self) -> dict[str, float]:
        """The extreme eigenvalues, their ratio and the trace, each with its error estimates.

        `*_residual` bounds the distance of a value to the nearest eigenvalue; `*_standard_error` is the spread of the
        single probes' values over the square root of their number (NaN for one probe).
        """
        ends = {"lambda_max": np.nanargmax(self.values), "lambda_min": np.nanargmin(self.values)}
        single = {"lambda_max": np.nanmax(self.values, axis=1), "lambda_min": np.nanmin(self.values, axis=1)}
        told = {"ratio": self.ratio, "trace": self.trace, "trace_standard_error": self.trace_standard_error}
        for name, place in ends.items():
            told[name] = float(self.values.flat[place])
            told[f"{name}_residual"] = float(self.residuals.flat[place])
            told[f"{name}_standard_error"] = standard_error(single[name])
        return told


def standard_error(values: np.ndarray) -> float:
    """Of the mean of independent values; NaN for a single one."""
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def spectrum(
    operator: Operator,
    *,
    order: int = 90,
    probes: int = 10,
    tolerance: float = 0.0,
    least: int = 1,
    distribution: str = "gaussian",
    together: bool = False,
    key: Array,
    report: Callable[[int], None] = lambda done: None,
) -> Spectrum:
    """Runs Lanczos from random starts.

    Args:
      operator: the symmetric matrix.
      order: most Lanczos steps for each probe; no more than the matrix's size are taken. The number of steps matters
        more than that of probes.
      probes: random starts.
      tolerance: see `lanczos`; 0 takes all steps.
      least: steps before that.
      distribution: of the starts, "gaussian" or "rademacher" (+1 or -1).
      together: all probes side by side, in products of several vectors; otherwise one after the other.
      key: of the starts.
      report: called with the number of probes that are done.

    Raises:
      InputError: an option is out of range.
      OperatorError: a product is not finite.
    """
    check_choice("distribution", distribution, PROBES)
    check_number("tolerance", tolerance, ">= 0")
    for name, value in (("order", order), ("probes", probes)):
        if value < 1:
            raise InputError(f"{name}: expected a number >= 1, got {value}")
    start_key, block_key = jax.random.split(key)
    draw = jax.random.normal if distribution == "gaussian" else jax.random.rademacher
    values, weights, residuals = (np.full((probes, min(order, operator.size)), fill) for fill in (np.nan, 0.0, np.nan))
    traces, steps = np.zeros(probes), np.zeros(probes, np.int64)
    block = probes if together else 1
    for first in range(0, probes, block):
        # Every probe has a key of its own, so that it is the same whether alone or beside others.
        keys = [jax.random.fold_in(start_key, i) for i in range(first, first + block)]
        starts = jnp.stack([draw(each, (operator.size,), operator.dtype) for each in keys])
        found = lanczos(operator, starts, order, tolerance=tolerance, least=least, key=block_key)
        if not (np.isfinite(found.diagonal).all() and np.isfinite(found.off_diagonal).all()):
            raise OperatorError("the products with the matrix are not finite")
        for i, one in enumerate(ritz(found), first):
            taken = len(one.values)
            values[i, :taken], weights[i, :taken], residuals[i, :taken] = one
            # For a start of random direction, start^T H start / start^T start has the mean trace / size.
            traces[i], steps[i] = operator.size * found.diagonal[i - first, 0], taken
        report(first + block)
    return Spectrum(values, weights, residuals, traces, steps)


def check_operator(operator: Operator, key: Array) -> Checks:
    """Measures whether products are those of one symmetric matrix, by four of them.

    Raises:
      OperatorError: a product is not finite.
    """
    starts = [jax.random.normal(each, (1, operator.size), operator.dtype) for each in jax.random.split(key, 3)]

    def product(vector: Array, draw: int) -> np.ndarray:
        result = np.asarray(operator.product(operator.operands, vector, draw), np.float64)
        if not np.isfinite(result).all():
            raise OperatorError("the products with the matrix are not finite")
        return result[0]

    products = [product(start, draw) for draw, start in enumerate(starts)]
    change = np.linalg.norm(product(starts[0], len(starts)) - products[0])
    # For Gaussian u and v, u^T A v has mean square ||A||_F^2, and ||H u|| has ||H||_F^2: the asymmetry is not lost in
    # the dimensions. Three pairs, because a single one is below a twentieth of its mean in one case of 25.
    there = np.array([[np.dot(np.asarray(start[0], np.float64), each) for each in products] for start in starts])
    gaps = (there - there.T)[np.triu_indices(len(starts), 1)]
    size = math.sqrt(np.mean([np.dot(each, each) for each in products])) or 1.0
    return Checks(float(change / size), math.sqrt(np.mean(gaps**2)) / size)


def require_symmetric(checks: Checks, dtype: jnp.dtype) -> None:
    """Refuses a matrix by its `Checks`.

    Raises:
      OperatorError: two products with the same vector differ, or the matrix is not symmetric, beyond rounding.
    """
    single = jnp.finfo(dtype).bits == 32
    bound = 1e-2 if single else 1e-6
    if not checks.change <= bound:
        raise OperatorError(
            f"the products with the matrix change from one to the next, by {checks.change:.1e} relative"
        )
    if not checks.asymmetry <= bound:
        # The softmax cancels: the relative error of a product is that of rounding over the loss of the examples.
        advice = "; examples fitted to losses below 1e-5 need float64" if single else ""
        raise OperatorError(
            f"the products are not those of a symmetric matrix: asymmetry {checks.asymmetry:.1e}{advice}"
        )


def require_finite(params: Params, what: str = "params") -> None:
    """Raises InputError when a parameter is NaN or infinite, naming the first such leaf."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not np.isfinite(np.asarray(leaf)).all():
            name = "/".join(str(key.key) for key in path)
            raise InputError(f"{what}: {name} holds NaN or infinite values; there is no spectrum of them")


def require_memory(size: int, order: int, together: int, bytes_per_number: int = 4) -> None:
    """Refuses a basis that cannot fit into memory, before anything is computed.

    Args:
      size: of the vectors.
      order: Lanczos steps.
      together: probes side by side.
      bytes_per_number: 4 or 8.

    Raises:
      InputError: the basis is larger than the memory of the device.
    """
    needed, available = (order + 1) * size * together * bytes_per_number, _memory()
    if needed > available:
        raise InputError(
            f"order: a Lanczos basis of {order + 1} x {size} numbers for {together} probe(s) needs"
            f" {needed / 2**30:.1f} GiB, there are {available / 2**30:.1f}; choose a subset of the parameters, fewer"
            " steps, or one probe at a time"
        )


def _memory() -> int:
    """Bytes of memory of the device."""
    told = jax.local_devices()[0].memory_stats() or {}
    return int(told.get("bytes_limit", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")))


@contextlib.contextmanager
def memory_advice(micro_batch: int) -> Iterator[None]:
    """Turns the errors of exhausted memory into one line of advice.

    Raises:
      InputError: memory ran out inside.
    """
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error) or "ut of memory" in str(error):
            raise InputError(
                f"micro_batch: out of memory with {micro_batch} examples at once; choose fewer, probes one after the"
                " other, or a subset of the parameters"
            ) from error
        raise
