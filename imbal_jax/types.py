"""The words shared by all parts: batches, predictions, corrections, objectives, directions.

This module is imported by every other one and imports none of them.
"""

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


class Prediction(NamedTuple):
    """What a model says about a batch."""

    logits: Array  # [batch, num_classes]
    features: Array | None = None  # [batch, num_features] what enters the classifier
    aux: PyTree = None  # the model's new non-trainable state (running statistics)


class Corrected(NamedTuple):
    """What a correction makes of a prediction.

    The loss of example n is ``weights[n] * modulation[n] * cross_entropy(logits[n], label[n])`` in nats.
    The two factors are kept apart because a weighted mean divides by the weights alone.
    """

    logits: Array  # [batch, num_classes] what the softmax sees
    weights: Array  # [batch] by class: the data proportion, C1 of the thesis, Eq. 3.9
    modulation: Array  # [batch] by example: the data fit, C2 of the thesis, Eq. 3.9


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


class Evidence(NamedTuple):
    """What a direction saw on the way, always taken at the parameters it was given."""

    losses: Array  # [batch] in nats, as the objective gives them
    prediction: Prediction  # its aux are the running statistics to keep


class Proposal(NamedTuple):
    """What a direction proposes in place of the gradient."""

    direction: Params  # gradient-like, the tree of the trainable parameters
    aux: Evidence
    state: PyTree


class Direction(NamedTuple):
    """A rule that stands where the gradient stands, as a pair of pure functions."""

    init: Callable[[Params], PyTree]
    propose: Callable[[Objective, Params, Batch, PyTree, Array], Proposal]


class Structure(NamedTuple):
    """The shapes of a run, for directions whose state mirrors the model's layers; all of it is for tracing only."""

    objective: Objective  # of the run's model
    params: Params  # ShapeDtypeStruct leaves, or arrays
    batch: Batch  # likewise


class Conditioned(NamedTuple):
    """What a model with a FiLM block receives: its inputs, and the hyper-parameters of the loss that it is to serve."""

    inputs: PyTree  # [batch, ...]
    condition: Array  # [batch, k], in training the same for all examples of a step


class Waveforms(NamedTuple):
    """Clips of sound, padded to one length."""

    samples: Array  # [batch, samples] floating, zeros after each clip's end
    lengths: Array  # int32 [batch] samples of each clip, before the padding
