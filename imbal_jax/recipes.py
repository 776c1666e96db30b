"""The corrections of the thesis as config sections, for config files to choose from by name.

Hyper-parameters are those of thesis Table B.5, in our normalisation of the weights (they average one over the classes;
the thesis's sum to one); methods outside of the thesis have their authors' defaults.
"""

from typing import Any

from imbal_jax.errors import choose

METHODS = (
    "baseline",
    "focal",
    "alpha_focal",
    "inverse_frequency",
    "drw",
    "class_balanced",
    "ldam",
    "ldam_drw",
    "influence_balanced",
    "logit_adjustment",
    "vector_scaling",
    "class_dependent_temperatures",
)


def correction(method: str, *, at: float = 0.5, deferred_weight: dict[str, Any] | None = None) -> dict[str, Any]:
    """The config section of a correction.

    Args:
      method: one of METHODS.
      at: the fraction of training at which deferred corrections start: the thesis's 0.5, or 0.8 as in the published
        LDAM-DRW.
      deferred_weight: the section of the weights that are deferred; inverse frequency, as in the thesis, by default.

    Raises:
      InputError: there is no such method; the nearest are named.
    """
    ldam = {"name": "ldam", "max_margin": 0.5}
    reweighting = {"name": "deferred", "at": at, "after": deferred_weight or {"name": "inverse_frequency"}}
    influence = {"name": "influence_balanced", "alpha": 1000.0}
    sections = {
        "baseline": {"name": "cross_entropy"},
        "focal": {"name": "focal", "gamma": 1.0},
        "alpha_focal": {"name": "alpha_focal", "gamma": 2.0},
        "inverse_frequency": {"name": "inverse_frequency"},  # IRW
        "drw": reweighting,
        "class_balanced": {"name": "class_balanced", "beta": 0.999},
        "ldam": ldam,
        "ldam_drw": {"name": "composed", "margin": ldam, "weight": reweighting},
        "influence_balanced": {"name": "deferred", "at": at, "after": influence},
        "logit_adjustment": {"name": "logit_adjustment", "tau": 1.0},
        "vector_scaling": {"name": "vector_scaling", "multiplicative": 0.3, "additive": 1.0},
        "class_dependent_temperatures": {"name": "class_dependent_temperatures", "multiplicative": 0.3},
    }
    return choose(sections, method)


def classifier_of(method: str) -> str:
    """The classifier a method is made for: LDAM's margins are in cosines."""
    return "cosine" if method.startswith("ldam") else "linear"
