"""Exact natural-gradient steps with the empirical Fisher matrix, and their improved form.

With the gradients of N losses as rows of J, the empirical Fisher matrix of a batch is F = J^T J (thesis Eq. 3.13). The
Woodbury identity turns (F + lambda I)^-1 J^T into J^T (J J^T + lambda I)^-1, a system of size N:

- EF, thesis Eq. 3.14: J^T (J J^T + lambda I)^-1 1, which lowers every loss by the same amount, well fitted or not;
- iEF, thesis Eq. 3.18: J^T (J J^T + lambda I)^-1 s with s_n = ||dl_n/dz_n||^2, z_n the logits: in proportion to what a
  step along the logits' own gradient would give (Wu et al. 2024).

Units. By default J and s are those of the mean loss, as in the published iEF code: J/N and s/N^2 stand for J and s, and
an absolute damping is added to J J^T / N^2. Then iEF is 1/N times Eq. 3.18 and EF is N times Eq. 3.14, both with
lambda_eff = N^2 damping: eta_eff = lr/N for iEF, lr N for EF. The learning rates of thesis Tables B.6 and B.7 (iEF 50,
10, 10 -> 5) are in these units; 50 at batch 64 is eta_eff = 0.78. ``units="sum"`` takes the equations literally.

Class weights w. Weighted losses in EF would lower the unweighted losses by 1/w_n: rare classes least. EF therefore uses
the unweighted J and the right-hand side w; iEF the weighted losses, which gives w_n s_n.
"""

import jax.numpy as jnp

from imbal_jax.curvature.linearisation import Linearised, check_engine, linearise
from imbal_jax.curvature.woodbury import check_system, solve_damped
from imbal_jax.errors import InputError
from imbal_jax.types import Array, Batch, Direction, Objective, Params, Proposal


def empirical_fisher(
    *,
    damping: float = 1e-3,
    damping_mode: str = "trace",
    units: str = "mean",
    engine: str = "auto",
    statistics: str = "batch",
    drop_above: float = 1.0,
    precision: str = "float32",
) -> Direction:
    """EF: every example's loss falls alike (thesis Eq. 3.14), or in proportion to its class weight.

    Args:
      damping: lambda, >= 0, in the units of `damping_mode`.
      damping_mode: "absolute", "trace" (times the mean diagonal entry of J J^T) or "max_diagonal" (times the largest).
      units: "mean" or "sum", see the module's docstring.
      engine: "gram", "vmap" or "auto", see `linearise`.
      statistics: of batch normalisation, "batch" or "running", see `linearise`.
      drop_above: of two gradients with a larger absolute cosine the shorter is left out (0.99 in the published iEF
        code); 1 keeps all.
      precision: of the N x N solution, "float32" or "float64".

    Raises:
      InputError: an option is out of range.
    """
    options = (damping, damping_mode, units, engine, statistics, drop_above, precision)
    return _exact(*options, improved=False)


def improved_empirical_fisher(
    *,
    damping: float = 1e-3,
    damping_mode: str = "trace",
    units: str = "mean",
    engine: str = "auto",
    statistics: str = "batch",
    drop_above: float = 1.0,
    precision: str = "float32",
) -> Direction:
    """iEF: every example's loss falls in proportion to its squared logit gradient (thesis Eq. 3.18).

    The options are those of `empirical_fisher`.

    Raises:
      InputError: an option is out of range.
    """
    options = (damping, damping_mode, units, engine, statistics, drop_above, precision)
    return _exact(*options, improved=True)


def squared_norms(gradients: Array) -> Array:
    """||dl_n/dz_n||^2, [N], of logit gradients [N, num_classes]."""
    return jnp.sum(jnp.square(gradients), axis=-1)


def _exact(damping, damping_mode, units, engine, statistics, drop_above, precision, *, improved: bool) -> Direction:
    """Both directions; they differ in the losses that are linearised and in the right-hand side."""
    check_system(damping, damping_mode, drop_above, precision)
    check_engine(engine, statistics)
    if units not in ("mean", "sum"):
        raise InputError(f"units: expected 'mean' or 'sum', got {units!r}")

    def propose(objective: Objective, params: Params, batch: Batch, state, key) -> Proposal:
        linearised = linearise(
            objective,
            params,
            batch,
            key,
            engine=engine,
            statistics=statistics,
            with_class_weights=improved,
        )
        right = squared_norms(linearised.logit_gradients) if improved else linearised.class_weights
        coefficients = _coefficients(linearised, right.astype(linearised.gram.dtype))
        return Proposal(linearised.pullback(coefficients), linearised.evidence, state)

    def _coefficients(linearised: Linearised, right: Array) -> Array:
        gram, count = linearised.gram, len(right)
        # With J/N for J: (K/N^2 + damping)^-1 r, then J^T/N.
        scale = 1 / count if units == "mean" else 1.0
        solution = solve_damped(
            gram * scale**2,
            right * scale**2 if improved else right,
            damping,
            mode=damping_mode,
            drop_above=drop_above,
            precision=precision,
        )
        return solution * scale

    return Direction(lambda params: (), propose)
