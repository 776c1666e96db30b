"""The parts of a run, built and checked, before anything is compiled."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from flax import linen as nn

from imbal_jax.data.pipeline import TrainingData
from imbal_jax.data.samplers import Sampler
from imbal_jax.errors import InputError, check_number
from imbal_jax.evaluation.binary_metrics import BINARY_METRICS
from imbal_jax.losses import check_reduction
from imbal_jax.training.objective import example_for
from imbal_jax.training.streaming import example_of
from imbal_jax.types import Array, Correction, Direction, Horizon, Keeping, PyTree

# What the best checkpoint is chosen by, and whether less is better.
SELECTION = {
    "validation/cross_entropy": True,
    "validation/loss": True,
    "validation/accuracy": False,
    "validation/balanced_accuracy": False,
    "validation/macro_f1": False,
    # Of two classes; a sum orders as its mean does.
    **{f"validation/{name}": less for name, less in BINARY_METRICS.items() if name != "brier_score_sum"},
}


class TrainingOptions(NamedTuple):
    """How a run goes.

    Attributes:
      epochs: passes over the training set.
      batch_size: examples per step, over all devices.
      reduction: of the corrected losses, "mean" or "weighted_mean" (divide by the sum of the class weights).
      empty_classes: "refuse" or "mask" classes without training examples.
      select: the validation metric that picks the best checkpoint ("validation/cross_entropy" as in the thesis's
        CIFAR-10 runs, "validation/macro_f1" as in its speech runs, ...), or "last".
      checkpoint_every_epochs: epochs between checkpoints.
      driver: "calls" (one call per step), "scan" (many steps per call) or "auto": calls on CPU, scan elsewhere.
      steps_per_call: most steps that are under way without the host looking at their losses.
      seeds_together: "yes" trains all seeds at once by vmap, "no" one after the other, "auto": together unless the
        model has convolutions, which vmap over seeds turns into slower grouped ones. The launcher reads it also for
        learning rates.
      devices: "one", or "all" local devices, each with its share of every batch.
    """

    epochs: int = 100
    batch_size: int = 32
    reduction: str = "mean"
    empty_classes: str = "refuse"
    select: str = "validation/cross_entropy"
    checkpoint_every_epochs: int = 1
    driver: str = "auto"
    steps_per_call: int = 100
    seeds_together: str = "auto"
    devices: str = "one"


class EvaluationOptions(NamedTuple):
    """How a split is evaluated.

    Attributes:
      batch_size: examples per call.
      head_above: classes with more training examples are the head.
      tail_below: classes with fewer are the tail; the rest is in the middle.
      condition: of a conditional correction, the hyper-parameters that the model is told in validation, in testing and
        in predictions, in the order of the correction; empty for the means of their densities.
      grid: of a conditional correction, for each of the hyper-parameters the values that the trained model is evaluated
        at, in all combinations; empty for none. It may change after training, for the task evaluate.
    """

    batch_size: int = 500
    head_above: int = 100
    tail_below: int = 20
    condition: tuple[float, ...] = ()
    grid: tuple[tuple[float, ...], ...] = ()


class RecordOptions(NamedTuple):
    """What is recorded beside the metrics.

    Attributes:
      class_gradient_norms: the norm of every class's contribution to the gradient of the final layer, each epoch.
      step_effects_batches: after each epoch, what a step on each of so many batches, the first of the next epoch, would
        do to the losses of its examples, by class; 0 for none. The first of these steps is the run's next.
      curvature_every: after every so many epochs, and after the last, the largest and the smallest eigenvalue of the
        Hessian of each class's mean loss; 0 for never. See `imbal_jax.training.class_curvature`.
      curvature_examples: of each class for that, a fixed sample; 0 for all.
      curvature_order: most Lanczos steps for a class.
      curvature_tolerance: they stop early when the residuals of both ends are at most this fraction of them.
      curvature_micro_batch: examples in one product.
      tensorboard: write TensorBoard events.
      figures: write learning curves and confusion matrices as PNG and PDF.
      confusion: keep the confusion matrix of the test set in the results; of thousands of classes it is too large.
    """

    class_gradient_norms: bool = False
    step_effects_batches: int = 0
    curvature_every: int = 0
    curvature_examples: int = 256
    curvature_order: int = 40
    curvature_tolerance: float = 1e-2
    curvature_micro_batch: int = 32
    tensorboard: bool = True
    figures: bool = True
    confusion: bool = True


class Experiment(NamedTuple):
    """Everything a run is made of."""

    data: TrainingData
    model: nn.Module
    correction: Correction
    direction: Direction
    schedule: optax.Schedule
    step_rule: optax.GradientTransformation
    sampler: Sampler
    augmentation: Callable[[Array, Array], Array]
    horizon: Horizon
    training: TrainingOptions
    evaluation: EvaluationOptions
    record: RecordOptions
    seeds: tuple[int, ...]
    constants: PyTree | None = None  # collections of variables that never change
    num_constants: int = 0  # parameters among them, as the file has them that they come from
    frozen: frozenset[str] = frozenset()  # names of layers that training leaves as they are
    pretrained: PyTree | None = None  # what training starts from in the place of random variables

    @property
    def example(self) -> Any:
        """What an example is like as the model receives it, see `imbal_jax.training.objective.inputs_like`."""
        return example_for(self.model, self.correction, example_of(self.data.train.images))


def check_training_options(options: TrainingOptions, has_validation: bool, num_classes: int = 2) -> None:
    """Raises InputError when an option is out of range, or needs a validation set or two classes that there are not."""
    for name in ("epochs", "batch_size", "checkpoint_every_epochs", "steps_per_call"):
        if getattr(options, name) < 1:
            raise InputError(f"training.{name}: expected a number >= 1, got {getattr(options, name)}")
    check_reduction(options.reduction)
    choices = {
        "select": (*SELECTION, "last"),
        "driver": ("auto", "calls", "scan"),
        "seeds_together": ("auto", "yes", "no"),
        "devices": ("one", "all"),
        "empty_classes": ("refuse", "mask"),
    }
    for name, valid in choices.items():
        if getattr(options, name) not in valid:
            raise InputError(f"training.{name}: expected one of {', '.join(valid)}, got {getattr(options, name)!r}")
    if options.select != "last" and not has_validation:
        raise InputError(
            f"training.select: {options.select!r} needs a validation set, but validation.fraction is 0; use 'last'"
        )
    if num_classes != 2 and options.select.removeprefix("validation/") in BINARY_METRICS:
        raise InputError(f"training.select: {options.select!r} needs two classes, got {num_classes}")
    devices = len(jax.local_devices()) if options.devices == "all" else 1
    if options.batch_size % devices:
        raise InputError(f"training.batch_size: expected a multiple of the {devices} devices, got {options.batch_size}")


def check_keeping(keeping: Keeping | None, epochs: int, streamed: bool) -> None:
    """Raises InputError when a correction is to remember examples and cannot, or would never use it."""
    if keeping is None:
        return
    if streamed:
        raise InputError("refresh: 'epochs' needs examples that lie on the device, not from the host; use 'batch'")
    if keeping.start >= epochs:
        raise InputError(f"start: expected fewer than the run's {epochs} epochs, got {keeping.start}")


def check_evaluation_options(options: EvaluationOptions) -> None:
    """Raises InputError when an option is out of range."""
    if options.batch_size < 1:
        raise InputError(f"evaluation.batch_size: expected a number >= 1, got {options.batch_size}")
    if options.tail_below > options.head_above:
        raise InputError(
            f"evaluation.tail_below: expected at most head_above ({options.head_above}), got {options.tail_below}"
        )


def check_record_options(options: RecordOptions, horizon: Horizon) -> None:
    """Raises InputError when an option is out of range."""
    if not 0 <= options.step_effects_batches <= horizon.steps_per_epoch:
        raise InputError(
            f"record.step_effects_batches: expected a number in 0..{horizon.steps_per_epoch}, the batches of an epoch,"
            f" got {options.step_effects_batches}"
        )
    for name in ("curvature_order", "curvature_micro_batch"):
        if getattr(options, name) < 1:
            raise InputError(f"record.{name}: expected a number >= 1, got {getattr(options, name)}")
    for name in ("curvature_every", "curvature_examples", "curvature_tolerance"):
        check_number(f"record.{name}", getattr(options, name), ">= 0")
