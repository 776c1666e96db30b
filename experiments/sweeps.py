"""Sweeps of alpha, from strong imbalance to none, see `experiments/studies/alpha_sweep*.py`."""

from experiments.study import Axis, Curve, Study, Table
from imbal_jax.recipes import DIRECTIONS, METHODS
from imbal_jax.robust_recipes import WRAPPERS

BALANCED = "balanced"
ALPHAS = ("0.05", "0.1", "0.2", "0.5", "1", "2", "5", "10", "100", BALANCED)


def alpha_sweep(name: str, title: str, config: str, *, total: int, min_count: int) -> Study:
    """Every method over alpha, with a plot of balanced accuracy against imbalance.

    Args:
      name: of the study.
      title: of its table.
      config: a file whose argument is a method.
      total: training examples, about, of every alpha.
      min_count: every class has more.
    """
    counts = {"profile.name": "dirichlet", "profile.total": total, "profile.min_count": min_count}
    balanced = {"profile.name": "balanced", "profile.per_class": total // 10}
    metric = "test/balanced_accuracy"
    return Study(
        name=name,
        config=f"{config}:{{method}}",
        axes=(Axis("alpha", ALPHAS), Axis("method", (*METHODS, *DIRECTIONS, *WRAPPERS))),
        tables=(Table("balanced_accuracy", title, "method", (metric,), labels={BALANCED: BALANCED}),),
        overrides_of=lambda cell: balanced if cell["alpha"] == BALANCED else {**counts, "profile.alpha": cell["alpha"]},
        curves=(Curve("alpha_sweep", "Balanced accuracy against imbalance", "imbalance", "method", (metric,)),),
    )
