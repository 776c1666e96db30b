"""The small damped system behind exact empirical-Fisher directions."""

from typing import Literal

import jax
import jax.numpy as jnp

from imbal_jax.errors import InputError, check_number
from imbal_jax.types import Array

DampingMode = Literal["absolute", "trace", "max_diagonal"]
DAMPING_MODES = ("absolute", "trace", "max_diagonal")
PRECISIONS = ("float32", "float64")


def check_system(damping: float, damping_mode: str, drop_above: float, precision: str) -> None:
    """Refuses options of the system.

    Raises:
      InputError: the damping is negative, the cosine not in (0, 1], or the mode or the precision unknown.
    """
    check_number("damping", damping, ">= 0")
    check_number("drop_above", drop_above, "in (0, 1]")
    for name, value, valid in (
        ("damping_mode", damping_mode, DAMPING_MODES),
        ("precision", precision, PRECISIONS),
    ):
        if value not in valid:
            raise InputError(f"{name}: expected one of {', '.join(valid)}, got {value!r}")


def damping_of(gram: Array, damping: float | Array, mode: DampingMode) -> Array:
    """The number added to the diagonal of a Gram matrix [N, N].

    "absolute" adds the damping itself, "trace" that times the mean of the diagonal, "max_diagonal" that times its
    largest entry (a negative damping in the published iEF code).
    """
    diagonal = jnp.diagonal(gram)
    scales = {"absolute": jnp.ones((), gram.dtype), "trace": jnp.mean(diagonal), "max_diagonal": jnp.max(diagonal)}
    return damping * scales[mode]


def rounding_floor(gram: Array) -> Array:
    """The size of a Gram matrix's own rounding errors: twice the machine epsilon times its largest diagonal entry."""
    return 2 * jnp.finfo(gram.dtype).eps * jnp.max(jnp.diagonal(gram))


def kept_rows(gram: Array, drop_above: float) -> Array:
    """Which rows stay, bool [N], when of every near-parallel pair the shorter one is dropped.

    As in the published iEF code: a pair counts when the absolute cosine exceeds the threshold (0.99 there), every pair
    counts, dropped rows included, and of equal rows the first stays. Rows of length zero are parallel to none.
    """
    lengths = jnp.sqrt(jnp.diagonal(gram))
    parallel = jnp.abs(gram) > drop_above * (lengths[:, None] * lengths[None, :])
    first = jnp.tri(len(gram), k=-1, dtype=bool)  # [n, m]: m comes before n
    beaten = (lengths[None, :] > lengths[:, None]) | ((lengths[None, :] == lengths[:, None]) & first)
    return ~jnp.any(parallel & beaten, axis=1)


def solve_damped(
    gram: Array,
    right: Array,
    damping: float | Array,
    *,
    mode: DampingMode,
    drop_above: float = 1.0,
    precision: str = "float32",
) -> Array:
    """Solves (K + lambda I) v = r by Cholesky factorisation (the inverse in thesis Eqs. 3.14 and 3.18).

    Args:
      gram: K, [N, N], symmetric and positive semi-definite up to rounding.
      right: r, [N].
      damping: see `damping_of`. Never less than `rounding_floor` is added, and more where the factorisation needs it,
        as it may on batches with exact duplicates.
      mode: likewise.
      drop_above: rows with a larger absolute cosine to a longer row get v = 0; 1 keeps all.
      precision: of the factorisation; "float64" works without jax_enable_x64, and never narrows a wider Gram matrix.

    Returns:
      v, [N], in the type of r; finite whenever K and r are, and 0 for K = 0.
    """
    added = jnp.maximum(damping_of(gram, damping, mode), rounding_floor(gram))
    if drop_above < 1:
        keep = kept_rows(gram, drop_above)
        gram = jnp.where(keep[:, None] & keep[None, :], gram, 0)
        right = jnp.where(keep, right, 0)
    # In units of the largest diagonal entry, because squares of small gradients leave the range of float32.
    unit = jnp.max(jnp.diagonal(gram))
    unit = jnp.where(unit > 0, unit, 1)
    wide = jnp.float64 if precision == "float64" else gram.dtype
    with jax.enable_x64(jax.config.read("jax_enable_x64") or precision == "float64"):
        # Widened before it is divided: rounding of the quotients would count as much as that of the factorisation.
        gram, added, unit = (value.astype(wide) for value in (gram, added, unit))
        factor = _factorise(gram / unit, added / unit)
        solution = jax.scipy.linalg.cho_solve((factor, True), right.astype(wide)) / unit
        solution = solution.astype(right.dtype)
    return jnp.where(jnp.any(gram), solution, 0)


def _factorise(gram: Array, damping: Array) -> Array:
    """The lower Cholesky factor of the damped Gram matrix, with the damping raised fourfold until it exists."""
    identity = jnp.eye(len(gram), dtype=gram.dtype)

    def factor(damping: Array) -> Array:
        return jnp.linalg.cholesky(gram + damping * identity, symmetrize_input=False)

    def failed(carry: tuple[Array, Array]) -> Array:
        damping, factor = carry
        return ~jnp.all(jnp.isfinite(factor)) & (damping < 1)

    def retry(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        damping = 4 * jnp.maximum(carry[0], jnp.finfo(gram.dtype).eps)
        return damping, factor(damping)

    return jax.lax.while_loop(failed, retry, (damping, factor(damping)))[1]
