"""How the spectra of a run are taken."""

from typing import NamedTuple

from imbal_jax.curvature.products import DRIVERS, MATRICES, check_choice
from imbal_jax.curvature.spectrum import PROBES
from imbal_jax.errors import InputError, check_number
from imbal_jax.training.class_curvature import AUGMENTATIONS, LOSSES, STATISTICS


class SpectrumOptions(NamedTuple):
    """See `fixed`."""

    protocol: str
    matrix: str
    loss: str
    statistics: str
    parameters: str
    checkpoint: str
    split: str
    classes: tuple[int, ...]
    whole: bool
    examples: int
    augmentation: str
    copies: int
    order: int
    probes: int
    distribution: str
    tolerance: float
    least: int
    micro_batch: int
    precision: str
    driver: str
    probes_together: str
    linearise_gib: float
    seed: int


def fixed(
    *,
    matrix: str = "hessian",
    loss: str = "corrected",
    statistics: str = "running",
    parameters: str = "all",
    checkpoint: str = "best",
    split: str = "train",
    classes: tuple[int, ...] = (),
    whole: bool = True,
    examples: int = 0,
    augmentation: str = "none",
    copies: int = 20,
    order: int = 90,
    probes: int = 10,
    distribution: str = "gaussian",
    tolerance: float = 1e-4,
    least: int = 40,
    micro_batch: int = 32,
    precision: str = "float32",
    driver: str = "auto",
    probes_together: str = "auto",
    linearise_gib: float = 1.0,
    seed: int = 0,
) -> SpectrumOptions:
    """Spectra of one fixed matrix for each class, on fixed data.

    Args:
      matrix: "hessian", "gauss_newton" (for cross-entropy the Fisher matrix) or "empirical_fisher".
      loss: "corrected", the run's own, or "cross_entropy".
      statistics: of batch normalisation, "running" (evaluation mode) or "batch" (training mode, with dropout: batches
        of `micro_batch` examples of all classes in one fixed order).
      parameters: "all", "last_layer", "lora_and_head", or patterns of paths such as "stage3*,classifier/*".
      checkpoint: "best" or "last" parameters of the run.
      split: "train", "validation" or "test".
      classes: indices; none for all classes.
      whole: also the whole split.
      examples: of each class, a fixed sample; 0 for all.
      augmentation: "none", or "copies" of each example under the run's augmentation, drawn once.
      copies: how many.
      order: Lanczos steps, at most the number of parameters.
      probes: random starts; Ghorbani et al. 2019 use 10 of 90 steps.
      distribution: of the starts, "gaussian" or "rademacher".
      tolerance: a probe stops early when the residuals of both ends are at most this fraction of them; 0 for never.
      least: steps before that, for the sake of the density.
      micro_batch: examples in one product; under statistics=running it changes speed and memory, not the result.
      precision: "float32" or "float64".
      driver: "calls", "compiled" or "auto", see `imbal_jax.curvature.products.make_operator`.
      probes_together: "yes": all probes in one product; "no": one after the other; "auto": together unless the model
        convolves (on CPU 1.35 to 1.6 times slower per probe; on other devices not measured).
      linearise_gib: GiB of intermediate results that may be kept from one product to the next; 0 for none.
      seed: of samples, copies and probes.

    Raises:
      InputError: an option is out of range.
    """
    if augmentation == "redrawn":
        raise InputError("augmentation: 'redrawn' is what spectrum.name=published does; expected 'none' or 'copies'")
    return _checked(SpectrumOptions(protocol="fixed", **locals()))


def published(
    *,
    checkpoint: str = "best",
    split: str = "train",
    classes: tuple[int, ...] = (),
    whole: bool = True,
    examples: int = 0,
    order: int = 100,
    probes: int = 1,
    micro_batch: int = 128,
    driver: str = "auto",
    seed: int = 0,
) -> SpectrumOptions:
    """As the script of Rangwani et al. 2022 does it: the images are augmented anew in every product.

    There is then no one matrix whose spectrum this would be: successive products disagree, and the disagreement shows
    as eigenvalues of both signs. Otherwise PyHessian's defaults, which the script uses: the Hessian of plain
    cross-entropy with running statistics, 100 Lanczos steps from one Rademacher probe, micro-batches of 128.

    Args:
      checkpoint: see `fixed`, as all others.
      split: "train", "validation" or "test".
      classes: indices; none for all classes.
      whole: also the whole split.
      examples: of each class; 0 for all.
      order: Lanczos steps.
      probes: random starts.
      micro_batch: examples in one product.
      driver: "calls", "compiled" or "auto".
      seed: of samples, augmentation and probes.

    Raises:
      InputError: an option is out of range.
    """
    given = locals()
    rest = fixed(
        distribution="rademacher", loss="cross_entropy", tolerance=0.0, linearise_gib=0.0, probes_together="no"
    )
    return _checked(rest._replace(protocol="published", augmentation="redrawn", copies=1, **given))


def _checked(options: SpectrumOptions) -> SpectrumOptions:
    """The options, or InputError."""
    choices = {
        "matrix": MATRICES,
        "loss": LOSSES,
        "statistics": STATISTICS,
        "checkpoint": ("best", "last"),
        "split": ("train", "validation", "test"),
        "augmentation": AUGMENTATIONS,
        "distribution": PROBES,
        "precision": ("float32", "float64"),
        "driver": DRIVERS,
        "probes_together": ("auto", "yes", "no"),
    }
    for name, valid in choices.items():
        check_choice(f"spectrum.{name}", getattr(options, name), valid)
    for name in ("copies", "order", "probes", "least", "micro_batch"):
        if getattr(options, name) < 1:
            raise InputError(f"spectrum.{name}: expected a number >= 1, got {getattr(options, name)}")
    for name in ("examples", "tolerance", "linearise_gib"):
        check_number(f"spectrum.{name}", getattr(options, name), ">= 0")
    if not 0 <= options.seed < 2**32:  # beyond, keys of single precision repeat
        raise InputError(f"spectrum.seed: expected a whole number in 0..{2**32 - 1}, got {options.seed}")
    if len(set(options.classes)) < len(options.classes):
        raise InputError(f"spectrum.classes: expected different class indices, got {options.classes}")
    return options
