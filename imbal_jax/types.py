"""The words shared by all parts: batches, predictions, corrections, objectives, directions.

This module is imported by every other one and imports none of them.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Array = jax.Array
PyTree = Any
Params = PyTree


class Batch(NamedTuple):
    """Examples as a model receives them."""

    inputs: Array  # [batch, ...] standardised
    labels: Array  # [batch] int32 class indices
    example_weights: Array | None = None  # [batch] factors of the losses that a run remembers, see `Keeping`


class Prediction(NamedTuple):
    """What a model says about a batch."""

    logits: Array  # [batch, num_classes]
    features: Array | None = None  # [batch, num_features] what enters the classifier
    aux: PyTree = None  # the model's new non-trainable state (running statistics)


class Corrected(NamedTuple):
    """What a correction makes of a prediction.

    The loss of example n is ``weights[n] * (modulation[n] * cross_entropy(logits[n], label[n]) + added[n])`` in nats.
    The two factors are kept apart because a weighted mean divides by the weights alone.
    """

    logits: Array  # [batch, num_classes] what the softmax sees
    weights: Array  # [batch] by class: the data proportion, C1 of the thesis, Eq. 3.9
    modulation: Array  # [batch] by example: the data fit, C2 of the thesis, Eq. 3.9
    added: Array | None = None  # [batch] by example, in nats: what is no multiple of the cross-entropy; None for none


class Keeping(NamedTuple):
    """Which training examples a correction keeps, decided by a look at all of them from time to time.

    ``keep(prediction, labels, progress)`` gives a factor of each loss, [batch], 0 for an example that is left out. It
    is asked in evaluation mode with the best parameters so far, after `start` epochs and then after every `every`
    more; until then every example is kept. The factors are part of the state of the run.
    """

    keep: Callable[[Prediction, Array, Array | float], Array]
    start: int
    every: int


class Correction(NamedTuple):
    """A correction of the loss, as a pair of pure functions.

    ``correct(prediction, labels, progress)`` gives a `Corrected`; ``infer(logits, progress)`` gives the logits
    of the trained model's predictive distribution (the raw logits unless the correction scales them).
    ``progress`` is the fraction of training done, in [0, 1], and may be traced.

    A family of corrections to train over has a `conditional`; its own two functions are then those of the member at
    ``conditional.default``, by which a run is evaluated unless it is told another.
    """

    correct: Callable[[Prediction, Array, Array | float], Corrected]
    infer: Callable[[Array, Array | float], Array]
    keeping: Keeping | None = None  # of corrections that remember single examples
    conditional: "Conditional | None" = None


class Conditional(NamedTuple):
    """A family of corrections by k hyper-parameters, of which every training step draws one member."""

    names: tuple[str, ...]  # of the k hyper-parameters, in the order of a condition
    draw: Callable[[Array], Array]  # key -> condition [k]
    at: Callable[[Array], Correction]  # condition [k], which may be traced -> a correction that is not conditional
    default: tuple[float, ...]  # the condition [k] of evaluation
    intervals: tuple[str, ...]  # what the k hyper-parameters may be, as `imbal_jax.errors.check_number` reads it


class Objective(NamedTuple):
    """A model followed by a corrected loss."""

    predict: Callable[[Params, Batch, Array], Prediction]  # (params, batch, key)
    losses: Callable[[Prediction, Batch], Array]  # per-example losses [batch] in nats; their mean is minimised
    # Class weights [batch] that the losses contain as factors, already divided by the reduction; None for none.
    class_weights: Callable[[Prediction, Batch], Array] | None = None
    # The same objective with another non-trainable state of the model, as the aux of a prediction holds it, in place of
    # its own: for a second pass that goes on where a first one stopped. None where that cannot be done.
    continued: Callable[[PyTree], "Objective"] | None = None


class Evidence(NamedTuple):
    """What a direction saw on the way, always taken at the parameters it was given."""

    losses: Array  # [batch] in nats, as the objective gives them
    prediction: Prediction  # its aux are the running statistics to keep


class Proposal(NamedTuple):
    """What a direction proposes in place of the gradient."""

    direction: Params  # gradient-like, the tree of the trainable parameters
    aux: Evidence
    state: PyTree
    # Added to the parameters before the step rule takes its step from there, where a rule moves them itself.
    shift: Params | None = None


class Direction(NamedTuple):
    """A rule that stands where the gradient stands, as a pair of pure functions."""

    init: Callable[[Params], PyTree]
    propose: Callable[[Objective, Params, Batch, PyTree, Array], Proposal]


class Horizon(NamedTuple):
    """How long a run is."""

    steps_per_epoch: int
    epochs: int

    @property
    def total_steps(self) -> int:
        """Steps from start to end."""
        return self.steps_per_epoch * self.epochs

    # On the host, so that no rounding on the device can move a boundary by a step.
    def first_step_of(self, epoch: float) -> int:
        """The first step at or after a moment in 0-based epochs; half epochs are allowed."""
        return math.ceil(epoch * self.steps_per_epoch - 1e-9)

    def first_step_at(self, fraction: float) -> int:
        """The first step at or after a fraction of the run, in [0, 1]."""
        return math.ceil(fraction * self.total_steps - 1e-6)


class Structure(NamedTuple):
    """What a direction may know of a run in advance: the shapes, for tracing only, and how long it is."""

    objective: Objective  # of the run's model
    params: Params  # ShapeDtypeStruct leaves, or arrays
    batch: Batch  # likewise
    horizon: Horizon | None = None  # for what changes in the course of the run


class Conditioned(NamedTuple):
    """What a model with a FiLM block receives: its inputs, and the hyper-parameters of the loss that it is to serve."""

    inputs: PyTree  # [batch, ...]
    condition: Array  # [batch, k], in training the same for all examples of a step


class Waveforms(NamedTuple):
    """Clips of sound, padded to one length."""

    samples: Array  # [batch, samples] floating, zeros after each clip's end
    lengths: Array  # int32 [batch] samples of each clip, before the padding
