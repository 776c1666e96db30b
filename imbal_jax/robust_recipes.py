"""First-order methods that wrap the gradient, as config sections, and the rows of tables that compare them.

A method is one of WRAPPERS alone or with anything that `imbal_jax.recipes.parse_method` reads behind a direction:
"sam", "sam_ldam_drw", "absgd_cb".
"""

from typing import Any

# Rangwani et al. 2022 give no settings of PGD; those of SAM, ASAM and LPF-SGD are their authors' for CIFAR (Foret et
# al. 2021; Kwon et al. 2021; Bisla et al. 2022, ResNets). ABSGD's paper searches its temperature for every set. In its
# code weights begin after 160 of 200 epochs, and after 80 of 120 where they are against noisy labels.
WRAPPERS: dict[str, dict[str, Any]] = {
    "sam": {"name": "sharpness_aware", "rho": 0.05},
    "asam": {"name": "sharpness_aware", "rho": 0.5, "adaptive": True},
    "pgd": {"name": "perturbed", "radius": 0.1},
    "lpf_sgd": {"name": "low_pass", "std": 0.002, "evidence": "noisy"},
    "absgd": {"name": "attentional_bias", "temperature": 5.0, "at": 0.8},
    "eg": {"name": "exponentiated_gradient", "temperature": -1.0, "at": 2 / 3},
}
# Direction, learning rate and momentum for small networks: those of the plain gradient, and weights that begin earlier.
SMALL_WRAPPERS: dict[str, tuple[dict[str, Any], float, float]] = {
    **{name: (section, 0.05, 0.9) for name, section in WRAPPERS.items()},
    **{name: ({**WRAPPERS[name], "at": 0.5}, 0.05, 0.9) for name in ("absgd", "eg")},
}

# Rangwani et al. 2022, Tables 1, 2 and 4 on CIFAR: set and imbalance of each setting.
SADDLE_SETTINGS = {
    "cifar10_lt": ("cifar10", "long_tail"),
    "cifar100_lt": ("cifar100", "long_tail"),
    "cifar10_step": ("cifar10", "step"),
    "cifar100_step": ("cifar100", "step"),
}
_TABLES_1_AND_2 = ("baseline", "sam", "drw", "sam_drw", "ldam_drw", "sam_ldam_drw", "vs", "sam_vs")
_TABLE_4 = ("pgd_drw", "lpf_sgd_drw")
SADDLE_ROWS = tuple(
    f"{setting}/{method}"
    for setting, (_, profile) in SADDLE_SETTINGS.items()
    for method in (*_TABLES_1_AND_2, *(_TABLE_4 if profile == "long_tail" else ()))
)
# rho by set and correction, from the commands published with the code. That of VS is not among them; the paper has "0.5
# or 0.8 for most methods", and what DRW takes is taken here.
SADDLE_RHO = {
    "cifar10": {"baseline": 0.1, "drw": 0.5, "ldam_drw": 0.8, "vector_scaling": 0.5},
    "cifar100": {"baseline": 0.2, "drw": 0.8, "ldam_drw": 0.8, "vector_scaling": 0.8},
}
