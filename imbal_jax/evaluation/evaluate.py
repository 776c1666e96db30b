"""Sums over a split, on the device: what every metric is computed from."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from imbal_jax.evaluation.binary_metrics import BINARY_METRICS, binary_metrics
from imbal_jax.evaluation.metrics import group_recalls, metrics_from_confusion
from imbal_jax.losses import Reduction, corrected_losses, cross_entropy_losses
from imbal_jax.types import Array, Correction, Keeping, Params, Prediction, PyTree


class Batches(Protocol):
    """A split cut into batches of one shape, as `imbal_jax.data.padding.PaddedSplit`."""

    images: Array  # [batches, batch, height, width, channels], raw
    labels: Array  # int32 [batches, batch]
    counted: Array  # float32 [batches, batch], 0 for padding


class Sums(NamedTuple):
    """Sums over the examples of a split or of a batch."""

    confusion: Array  # [num_classes, num_classes], rows are the truth
    corrected: Array  # of the corrected losses, nats
    weights: Array  # of the class weights
    cross_entropy: Array  # of the predictive distribution, nats


class Scores(NamedTuple):
    """The scores of single examples of two classes."""

    log_odds: Array | np.ndarray  # [batch] of class 1, in the predictive distribution
    labels: Array | np.ndarray  # [batch]
    counted: Array | np.ndarray  # [batch], 0 for padding


class ScoredSums(NamedTuple):
    """What is evaluated of a batch where there are two classes."""

    sums: Sums
    scores: Scores


def make_batch_sums(
    model: nn.Module, correction: Correction, standardise: Callable[[Array], Array], num_classes: int
) -> Callable[..., Sums]:
    """The function (params, model_state, progress, images, labels, counted) -> Sums of a batch, in evaluation mode."""
    evaluate = _make_sums_and_logits(model, correction, standardise, num_classes)
    return lambda *arguments: evaluate(*arguments)[0]


def make_scored_sums(
    model: nn.Module, correction: Correction, standardise: Callable[[Array], Array]
) -> Callable[..., ScoredSums]:
    """The same function for two classes, with the scores of the examples: -> ScoredSums of a batch."""
    evaluate = _make_sums_and_logits(model, correction, standardise, 2)

    def scored_sums(params: Params, model_state: PyTree, progress, images: Array, labels: Array, counted: Array):
        sums, logits = evaluate(params, model_state, progress, images, labels, counted)
        return ScoredSums(sums, Scores(logits[:, 1] - logits[:, 0], labels, counted))

    return scored_sums


def _make_sums_and_logits(
    model: nn.Module, correction: Correction, standardise: Callable[[Array], Array], num_classes: int
) -> Callable[..., tuple[Sums, Array]]:
    """The function (params, model_state, progress, images, labels, counted) -> Sums, predictive logits."""

    def evaluate(params: Params, model_state: PyTree, progress, images: Array, labels: Array, counted: Array):
        outputs = model.apply({"params": params, **model_state}, standardise(images), train=False)
        prediction = Prediction(*outputs)
        corrected = correction.correct(prediction, labels, progress)
        inferred = correction.infer(prediction.logits, progress)
        predicted = jnp.argmax(inferred, axis=-1)
        confusion = jnp.zeros((num_classes, num_classes)).at[labels, predicted].add(counted)
        # Whatever the padding evaluates to, it must not reach the sums: 0 * inf would.
        real = counted > 0
        sums = Sums(
            confusion,
            jnp.sum(jnp.where(real, corrected_losses(corrected, labels), 0.0)),
            jnp.sum(jnp.where(real, corrected.weights, 0.0)),
            jnp.sum(jnp.where(real, cross_entropy_losses(inferred, labels), 0.0)),
        )
        return sums, inferred

    return evaluate


def make_batch_factors(
    model: nn.Module, keeping: Keeping, standardise: Callable[[Array], Array]
) -> Callable[..., Array]:
    """The function (params, model_state, progress, images, labels, counted) -> factors of the losses, [batch]."""

    def batch_factors(params: Params, model_state: PyTree, progress, images: Array, labels: Array, counted: Array):
        del counted
        outputs = model.apply({"params": params, **model_state}, standardise(images), train=False)
        return keeping.keep(Prediction(*outputs), labels, progress)

    return batch_factors


def make_probabilities(
    model: nn.Module, correction: Correction, standardise: Callable[[Array], Array]
) -> Callable[..., Array]:
    """The function (params, model_state, progress, images) -> class probabilities [batch, num_classes], compiled."""

    def probabilities(params: Params, model_state: PyTree, progress, images: Array) -> Array:
        outputs = model.apply({"params": params, **model_state}, standardise(images), train=False)
        return jax.nn.softmax(correction.infer(Prediction(*outputs).logits, progress))

    return jax.jit(probabilities)


def make_evaluate(batch_function: Callable[..., Any], *, stacked: bool) -> Callable[..., list[Any]]:
    """The function (params, model_state, progress, padded split) -> results per batch, left on the device.

    Args:
      batch_function: (params, model_state, progress, images, labels, counted) -> result of one batch.
      stacked: whether params, model_state and progress have a leading axis of seeds.
    """
    if stacked:
        batch_function = jax.vmap(batch_function, in_axes=(0, 0, 0, None, None, None))

    def at(params, model_state, progress, split: Batches, i):
        return batch_function(params, model_state, progress, split.images[i], split.labels[i], split.counted[i])

    compiled = jax.jit(at)

    def evaluate(params: Params, model_state: PyTree, progress: Any, split: Batches) -> list[Any]:
        return [compiled(params, model_state, progress, split, i) for i in range(split.labels.shape[0])]

    return evaluate


def read_sums(sums: list[Sums] | list[ScoredSums]) -> Sums:
    """Waits for the batches' sums and adds them in float64; leaves [...] or [seeds, ...]."""
    fetched = jax.device_get([each.sums if isinstance(each, ScoredSums) else each for each in sums])
    return Sums(*(np.sum(np.stack(column).astype(np.float64), axis=0) for column in zip(*fetched, strict=True)))


def read_scores(sums: list[Sums] | list[ScoredSums]) -> Scores | None:
    """Waits for the scores of all examples that count; float64 log-odds [n] or [seeds, n]; None if none are told.

    Labels and what counts are those of the first seed: every seed sees the same split.
    """
    fetched = jax.device_get([each.scores for each in sums if isinstance(each, ScoredSums)])
    if not fetched:
        return None
    log_odds, labels, counted = (np.concatenate(column, axis=-1) for column in zip(*fetched, strict=True))
    labels, counted = (each.reshape(-1, each.shape[-1])[0] for each in (labels, counted))
    real = counted > 0
    return Scores(log_odds[..., real].astype(np.float64), labels[real], counted[real])


def metrics_of(
    sums: Sums, reduction: Reduction, train_counts: np.ndarray, *, head_above: int, tail_below: int
) -> dict[str, Any]:
    """The metrics of one split and seed.

    Args:
      sums: float64, of one seed.
      reduction: of the corrected loss.
      train_counts: training examples per class, for the head, mid and tail groups.
      head_above: a head class has more training examples.
      tail_below: a tail class has fewer.

    Returns:
      loss (corrected), cross_entropy, accuracy, balanced_accuracy, macro_f1, per_class_recall, recall_head, recall_mid,
      recall_tail and whatever else `metrics_from_confusion` gives.
    """
    count = sums.confusion.sum()
    denominator = count if reduction == "mean" else sums.weights
    # A split may hold no example of any weighted class; its weighted mean is undefined.
    loss = float(sums.corrected / denominator) if denominator else float("nan")
    metrics = metrics_from_confusion(np.rint(sums.confusion).astype(np.int64))
    groups = group_recalls(metrics["per_class_recall"], train_counts, many_above=head_above, few_below=tail_below)
    return {"loss": loss, "cross_entropy": float(sums.cross_entropy / count), **metrics, **groups}


def score_metrics(scores: Scores) -> dict[str, float | None]:
    """`binary_metrics` of one seed's scores; None each where a class is absent or a model has diverged."""
    labels, log_odds = np.asarray(scores.labels), np.asarray(scores.log_odds)
    if len(np.unique(labels)) < 2 or np.isnan(log_odds).any():
        return dict.fromkeys(BINARY_METRICS)
    return dict(binary_metrics(labels, log_odds))
