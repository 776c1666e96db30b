"""Lanczos tridiagonalisation of symmetric matrices that are only known by their products.

Of our own, because no kept library does what networks need: matfree's loop lives inside one compiled program, where
XLA's CPU backend runs convolutions 24 times slower, and can neither stream micro-batches from the host, nor stop when
the ends of the spectrum have converged, nor survive a breakdown; SciPy's `eigsh` gives no quadrature. The tests hold
ours against dense matrices and against both.

Every basis vector is orthogonalised against all others twice (Giraud et al. 2005: twice is enough), so no eigenvalue
appears again as a ghost. Where the Krylov space is exhausted, the off-diagonal entry is zero and a random orthogonal
vector starts another block: nodes and weights of the start's quadrature stay what they are, and the values of the new
block, which the start could not see, join with weight zero. In float32 the scalars of the recurrence are float64 sums.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import eigh_tridiagonal

from imbal_jax.errors import InputError
from imbal_jax.types import Array, PyTree


class Operator(NamedTuple):
    """A symmetric matrix that is known by its products."""

    size: int
    dtype: Any  # of the vectors
    operands: PyTree  # the arrays that a product reads
    # (operands, vectors [probes, size], draw) -> [probes, size]; draw counts the products, for what is random in them.
    # Where `traceable`, it may be traced by jit; else it is a loop on the host over compiled parts.
    product: Callable[[PyTree, Array, Array | int], Array]
    traceable: bool = True


class Tridiagonals(NamedTuple):
    """Lanczos's results for each start, padded to one length; float64, in host memory."""

    diagonal: np.ndarray  # [probes, order]
    off_diagonal: np.ndarray  # [probes, order]; the last one taken couples to the vector that was not
    steps: int  # taken by all; what lies beyond is zero


class Ritz(NamedTuple):
    """The quadrature of one start: eigenvalues of its tridiagonal matrix; all [steps], float64."""

    values: np.ndarray  # ascending
    weights: np.ndarray  # squared first components of the eigenvectors; their sum is 1
    residuals: np.ndarray  # ||H x - value x|| of the Ritz vectors x, by the last components


class LanczosState(NamedTuple):
    """What one step of Lanczos changes, for one start."""

    basis: Array  # [order + 1, size], orthonormal rows; zero beyond `step`
    diagonal: Array  # float64 [order]
    off_diagonal: Array  # float64 [order]
    largest: Array  # float64, the largest norm of a product so far, a lower bound of the spectral norm
    step: Array  # int32, steps taken
    key: Array  # of the vectors that start new blocks


class _Stop(NamedTuple):
    """When to stop before all steps are taken; see `lanczos`."""

    tolerance: float
    least: int


def matrix_operator(matrix: Any) -> Operator:
    """The operator of a symmetric matrix [size, size] that is held in full."""
    matrix = jnp.asarray(matrix)
    return Operator(matrix.shape[0], matrix.dtype, matrix, _times_matrix)


def lanczos(
    operator: Operator, starts: Array, order: int, *, tolerance: float = 0.0, least: int = 1, key: Array
) -> Tridiagonals:
    """Tridiagonalises a matrix from several starts, side by side.

    Args:
      operator: the symmetric matrix.
      starts: [probes, size], not zero; of the operator's type.
      order: most steps; no more than `size` are taken.
      tolerance: stop when the residuals of both ends of every start's spectrum are at most this fraction of them, see
        `ends_have_converged`; 0 takes all steps.
      least: steps to take before that: the ends converge long before a density is resolved.
      key: of the vectors after a breakdown, which are the same for all starts.

    Raises:
      InputError: order < 1, or the starts are not of the operator's size.
    """
    if order < 1:
        raise InputError(f"order: expected a number >= 1, got {order}")
    if starts.ndim != 2 or starts.shape[1] != operator.size:
        raise InputError(f"starts: expected shape [probes, {operator.size}], got {starts.shape}")
    order = min(order, operator.size)
    state = _first_states(starts, key, order)
    run = _run_traced if operator.traceable else _run_on_host
    state = run(operator, state, order, _Stop(tolerance, max(least, 1)))
    diagonal, off_diagonal, steps = jax.device_get((state.diagonal, state.off_diagonal, state.step[0]))
    return Tridiagonals(diagonal, off_diagonal, int(steps))


def ritz(tridiagonals: Tridiagonals) -> list[Ritz]:
    """Eigenvalues, quadrature weights and residuals of each start's tridiagonal matrix, in float64."""
    found = []
    for diagonal, off_diagonal in zip(tridiagonals.diagonal, tridiagonals.off_diagonal, strict=True):
        steps = tridiagonals.steps
        values, vectors = eigh_tridiagonal(diagonal[:steps], off_diagonal[: steps - 1])
        found.append(Ritz(values, vectors[0] ** 2, np.abs(off_diagonal[steps - 1] * vectors[-1])))
    return found


def ends_have_converged(state: LanczosState, tolerance: float) -> Array:
    """Whether the residuals of the smallest and the largest Ritz value are small enough; bool, traceable.

    A residual bounds the distance to the nearest eigenvalue; the distance itself falls with its square. Small enough is
    a fraction `tolerance` of the value, or, for a value close to zero, of a thousandth of the largest in magnitude.
    """
    with jax.enable_x64(True):
        order = state.diagonal.shape[0]
        last = state.step - 1
        taken = jnp.arange(order) < state.step
        # Padding stands apart from the block and inside of its range, so that it is no end.
        diagonal = jnp.where(taken, state.diagonal, state.diagonal[0])
        coupling = jnp.where(jnp.arange(order) < last, state.off_diagonal, 0)[:-1]
        values, vectors = jnp.linalg.eigh(jnp.diag(diagonal) + jnp.diag(coupling, 1) + jnp.diag(coupling, -1))
        ends = values[jnp.array([0, -1])]
        # After one step the only Ritz value is that of the padding as well, whose vectors say nothing.
        components = jnp.where(last == 0, 1.0, vectors[last][jnp.array([0, -1])])
        residuals = jnp.abs(state.off_diagonal[last] * components)
        return jnp.all(residuals <= _bounds(ends, tolerance))


def _bounds(ends: Any, tolerance: float) -> Any:
    """The largest residuals of the two ends [2] that are small enough."""
    return tolerance * abs(ends).clip(min=1e-3 * abs(ends).max())


def _times_matrix(matrix: Array, vectors: Array, draw: Array | int) -> Array:
    """The product of a matrix that is held in full; one function, so that all of a shape share their programs."""
    del draw
    return jnp.matmul(vectors, matrix.T, precision="highest")


@functools.partial(jax.jit, static_argnums=2)
def _first_states(starts: Array, key: Array, order: int) -> LanczosState:
    """The states before the first step, with a leading axis of starts."""

    def first(start: Array) -> LanczosState:
        basis = jnp.zeros((order + 1, start.shape[0]), start.dtype).at[0].set(_normalised(start))
        with jax.enable_x64(True):
            zeros, zero = jnp.zeros(order, jnp.float64), jnp.zeros((), jnp.float64)
        return LanczosState(basis, zeros, zeros, zero, jnp.int32(0), key)

    return jax.vmap(first)(starts)


def _advance(states: LanczosState, products: Array) -> LanczosState:
    """One step of all starts, given the matrix's products with their newest basis vectors."""
    step = states.step[0]
    states, following, exhausted = jax.vmap(_recurrence)(states, products)

    def restarted() -> Array:
        keys = jax.vmap(jax.random.fold_in, (0, None))(states.key, step)
        return jnp.where(exhausted[:, None], jax.vmap(_another)(states.basis, keys), following)

    # One condition for all starts: vmap would compute both branches of a condition of each, at every step.
    following = jax.lax.cond(jnp.any(exhausted), restarted, lambda: following)
    return states._replace(basis=jax.lax.dynamic_update_index_in_dim(states.basis, following, step + 1, 1))


def _recurrence(state: LanczosState, product: Array) -> tuple[LanczosState, Array, Array]:
    """The new entries of one start, its next basis vector, and whether there is none because its space is exhausted."""
    now = state.step
    entry = _inner(state.basis[now], product)
    remainder = _orthogonalised(state.basis, product)
    size = _norm(remainder)
    largest = jnp.maximum(state.largest, _norm(product))
    with jax.enable_x64(True):
        # Below this, the remainder is rounding noise: the space is exhausted. A smaller bound would do no harm, because
        # noise is as good a random start; it only must not be divided by when it is zero.
        exhausted = size <= 10 * jnp.finfo(product.dtype).eps * largest
        coupling = jnp.where(exhausted, 0, size)
        divisor = jnp.where(exhausted, 1, size).astype(product.dtype)
        diagonal, off_diagonal = state.diagonal.at[now].set(entry), state.off_diagonal.at[now].set(coupling)
    state = state._replace(diagonal=diagonal, off_diagonal=off_diagonal, largest=largest, step=now + 1)
    return state, remainder / divisor, exhausted


def _another(basis: Array, key: Array) -> Array:
    """A random unit vector orthogonal to the rows of a basis; arbitrary where they span everything."""
    return _normalised(_orthogonalised(basis, jax.random.normal(key, basis.shape[1:], basis.dtype)))


def _orthogonalised(basis: Array, vector: Array) -> Array:
    """A vector without its components along the rows of a basis, by two passes of classical Gram-Schmidt."""
    for _ in range(2):
        components = jnp.matmul(basis, vector, precision="highest")
        vector = vector - jnp.matmul(components, basis, precision="highest")
    return vector


def _inner(left: Array, right: Array) -> Array:
    """The inner product, summed in float64."""
    with jax.enable_x64(True):
        return jnp.sum(left.astype(jnp.float64) * right.astype(jnp.float64))


def _norm(vector: Array) -> Array:
    """The Euclidean norm, summed in float64."""
    with jax.enable_x64(True):
        return jnp.sqrt(_inner(vector, vector))


def _normalised(vector: Array) -> Array:
    """The vector divided by its norm; unchanged where that is zero."""
    size = _norm(vector)
    with jax.enable_x64(True):
        return vector / jnp.where(size > 0, size, 1).astype(vector.dtype)


def _newest(state: LanczosState) -> Array:
    """The newest basis vector of each start, [probes, size]."""
    return jax.vmap(lambda basis, step: basis[step])(state.basis, state.step)


def _compiler_options() -> dict[str, Any] | None:
    """Keeps XLA's CPU backend from copying the donated basis at every step."""
    return {"xla_cpu_copy_insertion_use_region_analysis": True} if jax.default_backend() == "cpu" else None


@functools.cache
def _host_parts() -> tuple[Callable, Callable]:
    """The compiled parts of the loop on the host: the newest vectors, and a step."""
    return jax.jit(_newest), jax.jit(_advance, donate_argnums=0, compiler_options=_compiler_options())


def _run_on_host(operator: Operator, state: LanczosState, order: int, stop: _Stop) -> LanczosState:
    """A loop on the host, for products that are one themselves."""
    newest, advance = _host_parts()
    for step in range(1, order + 1):
        state = advance(state, operator.product(operator.operands, newest(state), step))
        if stop.tolerance > 0 and step >= stop.least and _all_have_converged(state, step, stop.tolerance):
            break
    return state


def _all_have_converged(state: LanczosState, steps: int, tolerance: float) -> bool:
    """`ends_have_converged` of all starts, on the host.

    A dense solver would start threads that compete with those of the products: with 80 steps and a busy machine, one
    test took a second instead of a millisecond.
    """
    diagonal, off_diagonal = jax.device_get((state.diagonal, state.off_diagonal))
    if not (np.isfinite(diagonal).all() and np.isfinite(off_diagonal).all()):
        return False
    found = ritz(Tridiagonals(diagonal, off_diagonal, steps))
    return all(bool(np.all(one.residuals[[0, -1]] <= _bounds(one.values[[0, -1]], tolerance))) for one in found)


def _run_traced(operator: Operator, state: LanczosState, order: int, stop: _Stop) -> LanczosState:
    """All steps in one compiled program, the products included."""
    return _traced_loop(operator.product, order, stop)(operator.operands, state)


@functools.lru_cache(maxsize=16)
def _traced_loop(product: Callable, order: int, stop: _Stop) -> Callable:
    """The compiled program (operands, state) -> state of one product."""

    def goes_on(state: LanczosState) -> Array:
        step = state.step[0]
        if stop.tolerance == 0:
            return step < order
        test = jax.vmap(lambda one: ends_have_converged(one, stop.tolerance))
        done = jax.lax.cond(step >= stop.least, lambda: jnp.all(test(_without_basis(state))), lambda: jnp.array(False))
        return (step < order) & ~done

    def loop(operands: PyTree, state: LanczosState) -> LanczosState:
        def body(state: LanczosState) -> LanczosState:
            return _advance(state, product(operands, _newest(state), state.step[0] + 1))

        return jax.lax.while_loop(goes_on, body, state)

    return jax.jit(loop, donate_argnums=1)


def _without_basis(state: LanczosState) -> LanczosState:
    """What the test of convergence looks at."""
    return state._replace(basis=state.basis[:, :0])
