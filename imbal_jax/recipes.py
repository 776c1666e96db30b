"""The methods of the thesis as config sections, for config files to choose from by name.

A method is a correction ("ldam_drw"), a second-order direction ("ief"), or a direction with a variant of thesis 4.1.5
("ief_sampler", "ief_irw", "ief_drw") or any correction ("ief_ldam"). The wrappers of `imbal_jax.robust_recipes` stand
where directions stand ("sam_ldam_drw").

Hyper-parameters are those of thesis Table B.5, in our normalisation of the weights: they average one over the classes,
where the thesis's sum to one, as those of the influence-balanced loss do here too. Methods outside of the thesis have
their authors' defaults.
"""

from typing import Any, NamedTuple

from imbal_jax.errors import InputError, choose, not_found
from imbal_jax.robust_recipes import SMALL_WRAPPERS, WRAPPERS

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
# Short names of corrections.
_SHORT = {"ce": "baseline", "cb": "class_balanced", "la": "logit_adjustment", "vs": "vector_scaling"}
# Second-order directions of the thesis (3.5), beside the plain gradient.
DIRECTIONS = ("ef", "ief", "gdn", "ekfac")
# What a direction is combined with (thesis 4.1.5): correction and sampler.
_VARIANTS = {
    "raw": ("baseline", "uniform"),
    "sampler": ("baseline", "minority_in_every_batch"),
    "irw": ("inverse_frequency", "uniform"),
    "drw": ("drw", "uniform"),
}
# Direction, learning rate and momentum for small networks, chosen by validation cross-entropy on the bundled digits.
SMALL_NETWORKS: dict[str, tuple[dict[str, Any], float, float]] = {
    "gradient": ({"name": "gradient"}, 0.05, 0.9),
    "ef": ({"name": "empirical_fisher", "damping": 0.001}, 0.01, 0.0),
    "ief": ({"name": "improved_empirical_fisher", "damping": 0.01, "statistics": "running"}, 60.0, 0.0),
    "gdn": ({"name": "gdn", "damping": 3.0}, 3.0, 0.0),
    "ekfac": ({"name": "ekfac", "damping": 0.001}, 0.05, 0.0),
    **SMALL_WRAPPERS,
}
DIRECTED_METHODS = tuple(f"{direction}_{variant}" for direction in DIRECTIONS for variant in _VARIANTS)
# The directions of the thesis's speech runs. It gives no damping: these are the builders' defaults.
_SPEECH_DIRECTIONS = {
    "ief": {"name": "improved_empirical_fisher", "damping": 1e-3},
    "gdn": {"name": "gdn", "damping": 100.0},
}
# The rows of thesis Tables B.6 and B.7.
SPEECH_METHODS = (
    *("baseline", "sampler", "focal", "alpha_focal", "inverse_frequency", "class_balanced", "ldam", "ldam_drw"),
    *("influence_balanced", *(f"{direction}_{variant}" for direction in _SPEECH_DIRECTIONS for variant in _VARIANTS)),
)
# SAM's step schedule in the published code of Rangwani et al. 2022, for 200 epochs; of large sets their text gives 0.05
# at first and an increase by steps.
STEPPED_SAM = {"name": "sharpness_aware", "rho": 0.05, "boundaries": (5.0, 160.0, 180.0), "rhos": (0.1, 0.5, 0.6)}


class Method(NamedTuple):
    """The parts that a method's name stands for."""

    direction: str  # "gradient", one of DIRECTIONS or one of WRAPPERS
    correction: str  # one of METHODS
    sampler: str  # of `imbal_jax.builders`


def parse_method(name: str) -> Method:
    """Reads a method's name, see the module's docstring.

    Raises:
      InputError: there is no such method; the nearest are named.
    """
    named = (each for each in (*DIRECTIONS, *WRAPPERS) if f"{name}_".startswith(f"{each}_"))
    direction = next(named, "gradient")
    rest = name if direction == "gradient" else name[len(direction) + 1 :] or "raw"
    if direction != "gradient" and rest in _VARIANTS:
        return Method(direction, *_VARIANTS[rest])
    if rest not in METHODS and rest not in _SHORT:
        valid = (*METHODS, *_SHORT, *DIRECTIONS, *DIRECTED_METHODS, *WRAPPERS)
        raise InputError(f"method: {not_found(name, valid)}")
    return Method(direction, _SHORT.get(rest, rest), "uniform")


def parse_speech_method(name: str) -> Method:
    """Reads the name of a method of the thesis's speech runs: one of SPEECH_METHODS, or another of their kind.

    These are all corrections, "sampler" (the plain gradient with the thesis's sampler), and the directions iEF and GDN.

    Raises:
      InputError: there is no such method, or the thesis has no settings of its direction for speech.
    """
    if name == "sampler":
        return Method("gradient", *_VARIANTS["sampler"])
    try:
        method = parse_method(name)
    except InputError as error:
        raise InputError(f"method: {not_found(name, dict.fromkeys((*SPEECH_METHODS, *METHODS)))}") from error
    if method.direction not in ("gradient", *_SPEECH_DIRECTIONS):
        raise InputError(f"method: no settings of {name!r} for speech (valid: {', '.join(SPEECH_METHODS)})")
    return method


def speech_steps(method: Method, learning_rate: float, *, switch_factor: float = 1.0) -> dict[str, Any]:
    """The config sections that say how the thesis's speech runs step (4.1.4).

    AdamW with a linear schedule for the plain gradient; iEF and GDN as they are, without momentum, decay or schedule.
    The thesis does not say what noise training had: here it is that of Hugging Face's training mode for the plain
    gradient, and none for directions, which are made of the gradients of single examples.

    Args:
      method: from `parse_speech_method`.
      learning_rate: at the start.
      switch_factor: of the learning rate once deferred weights begin, under a direction.

    Returns:
      The sections "direction", "step_rule" and "schedule", and the model's "noise".
    """
    if method.direction == "gradient":
        return {
            "direction": {"name": "gradient"},
            "step_rule": {"name": "adamw", "b1": 0.9, "b2": 0.99, "eps": 1e-8, "weight_decay": 0.1},
            "schedule": {"name": "linear", "learning_rate": learning_rate},
            "noise": "hf_train",
        }
    steady = {"name": "constant", "learning_rate": learning_rate}
    return {
        "direction": dict(_SPEECH_DIRECTIONS[method.direction]),
        "step_rule": {"name": "sgd"},
        "schedule": steady if switch_factor == 1 else schedule(method, learning_rate, factor=switch_factor),
        "noise": "deterministic",
    }


def schedule(method: Method, learning_rate: float, *, at: float = 0.5, factor: float = 0.5) -> dict[str, Any]:
    """The config section of a learning rate that is constant but for second-order directions under deferred weights.

    There it changes by a factor at the switch: thesis Table B.7 has 10 -> 5 for iEF DRW and GDN DRW.
    """
    if method.direction in DIRECTIONS and method.correction == "drw":
        return {"name": "switch", "learning_rate": learning_rate, "at": at, "factor": factor}
    return {"name": "constant", "learning_rate": learning_rate}


def correction(
    method: str,
    *,
    at: float = 0.5,
    deferred_weight: dict[str, Any] | None = None,
    cosines: bool = True,
    max_margin: float = 0.5,
    beta: float = 0.999,
) -> dict[str, Any]:
    """The config section of a correction.

    Args:
      method: one of METHODS.
      at: the fraction of training at which deferred corrections start: the thesis's 0.5, or 0.8 as in the published
        LDAM-DRW.
      deferred_weight: the section of the weights that are deferred; inverse frequency, as in the thesis, by default.
      cosines: whether logits are cosines. Otherwise LDAM's margins are in logits as they are, as the thesis writes it,
        3.4, rather than in cosines times 30.
      max_margin: LDAM's largest; 0.5 on CIFAR, 0.3 on ImageNet-LT and iNaturalist (Cao et al. 2019).
      beta: of class-balanced weights that are not deferred; 0.999 in the thesis.

    Raises:
      InputError: there is no such method; the nearest are named.
    """
    ldam = {"name": "ldam", "max_margin": max_margin, "scale": 30.0 if cosines else 1.0}
    reweighting = {"name": "deferred", "at": at, "after": deferred_weight or {"name": "inverse_frequency"}}
    influence = {"name": "influence_balanced", "alpha": 1000.0, "normalization": "sum_one"}  # thesis Table 4.1
    sections = {
        "baseline": {"name": "cross_entropy"},
        "focal": {"name": "focal", "gamma": 1.0},
        "alpha_focal": {"name": "alpha_focal", "gamma": 2.0},
        "inverse_frequency": {"name": "inverse_frequency"},  # IRW
        "drw": reweighting,
        "class_balanced": {"name": "class_balanced", "beta": beta},
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
