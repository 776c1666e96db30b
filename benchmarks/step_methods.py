"""The methods whose steps `benchmarks.step_cost` compares."""

from collections.abc import Mapping
from typing import Any, NamedTuple

MICRO_BATCHES = 8


class Method(NamedTuple):
    """What takes a step."""

    name: str
    direction: str  # a name of builders.DIRECTIONS
    engine: str | None = None
    step_rule: str = "sgd"
    period: str | None = None  # the direction's option for the steps between two refreshes
    refresh_at: int = 0  # its counter, modulo the period, at the step that refreshes
    options: Mapping[str, Any] = {}  # of the direction, where they are not the defaults
    calls: int = 1  # small steps that stand for one, each on as many times fewer examples
    compared: str | None = None  # another method that it is set against, beside SGD
    conditional: bool = False  # loss-conditional training: a loss that is drawn, and a FiLM block


_LOW_PASS = {"micro_batches": MICRO_BATCHES}
_SMALL_STEPS = f"sgd_x{MICRO_BATCHES}"
METHODS = {
    "sgd": Method("sgd", "gradient"),
    "adamw": Method("adamw", "gradient", step_rule="adamw"),
    _SMALL_STEPS: Method(_SMALL_STEPS, "gradient", calls=MICRO_BATCHES),
    "sam": Method("sam", "sharpness_aware"),
    "pgd": Method("pgd", "perturbed"),
    # As published, and with a pass of its own for the losses and statistics at the parameters given.
    "lpf_sgd": Method("lpf_sgd", "low_pass", options={**_LOW_PASS, "evidence": "noisy"}, compared=_SMALL_STEPS),
    "lpf_sgd_clean": Method("lpf_sgd_clean", "low_pass", options=_LOW_PASS, compared=_SMALL_STEPS),
    "lct": Method("lct", "gradient", conditional=True),
    "absgd": Method("absgd", "attentional_bias"),
    "ef_gram": Method("ef", "empirical_fisher", "gram"),
    "ef_vmap": Method("ef", "empirical_fisher", "vmap"),
    "ief_gram": Method("ief", "improved_empirical_fisher", "gram"),
    "ief_vmap": Method("ief", "improved_empirical_fisher", "vmap"),
    "gdn": Method("gdn", "gdn", period="period", refresh_at=-1),
    "ekfac": Method("ekfac", "ekfac", period="refresh_period"),
}
