"""The curvature of a run's loss, class by class: what products are made of, and the extreme eigenvalues over epochs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from imbal_jax.curvature.class_samples import Group, class_groups, sample_classes
from imbal_jax.curvature.lanczos import Operator
from imbal_jax.curvature.products import Data, MicroBatches, Operands, Problem, check_choice, make_operator
from imbal_jax.curvature.spectrum import memory_advice, require_memory, spectrum
from imbal_jax.curvature.subsets import Subset, select_parameters
from imbal_jax.data.dataset import Split
from imbal_jax.losses import cross_entropy_losses
from imbal_jax.training.experiment import Experiment
from imbal_jax.training.objective import at_default, make_objective, standardise, step_key_of, zeros_like_inputs
from imbal_jax.training.streaming import is_streamed, resident_split
from imbal_jax.types import Array, Batch, Objective, Params, Prediction, PyTree

LOSSES = ("corrected", "cross_entropy")
STATISTICS = ("running", "batch")
AUGMENTATIONS = ("none", "copies", "redrawn")


class Moment(NamedTuple):
    """What an objective depends on beside the parameters."""

    model_state: PyTree
    progress: Array | float


def class_problem(
    experiment: Experiment,
    subset: Subset,
    *,
    matrix: str = "hessian",
    loss: str = "corrected",
    statistics: str = "running",
    augmentation: str = "none",
    dtype: Any = jnp.float32,
) -> Problem:
    """What the products of a run are made of.

    Args:
      experiment: the parts of the run.
      subset: of the parameters.
      matrix: see `imbal_jax.curvature.products`.
      loss: "corrected", the run's own, with its class weights as they are and never re-normalised; or "cross_entropy"
        of the predictive distribution.
      statistics: of batch normalisation: "running", as in evaluation, or "batch", as in training, with dropout.
      augmentation: "none", "copies" (each copy of an example augmented in its own fixed way) or "redrawn" (anew in
        every product, so that there is no matrix any more; as the published script).
      dtype: of the computation.

    Raises:
      InputError: an option does not exist.
    """
    for name, value, valid in (
        ("loss", loss, LOSSES),
        ("statistics", statistics, STATISTICS),
        ("augmentation", augmentation, AUGMENTATIONS),
    ):
        check_choice(name, value, valid)
    data, correction = experiment.data, experiment.correction

    def objective(moment: Moment) -> Objective:
        state, progress = moment

        def bound(key: Array | None = None) -> Objective:
            noise = None if key is None else step_key_of(key)  # a micro-batch stands for a step
            made: dict[str, Any] = {"model_state": state, "progress": progress, "train": statistics == "batch"}
            return make_objective(experiment.model, correction, "mean", **made, step_key=noise)

        def predict(params: Params, batch: Batch, key: Array) -> Prediction:
            return bound(key).predict(params, batch, key)

        def plain(prediction: Prediction, batch: Batch) -> Array:
            return cross_entropy_losses(correction.infer(prediction.logits, progress), batch.labels)

        return Objective(predict, bound().losses if loss == "corrected" else plain)

    def prepare(keys: Array, images: Array) -> Array:
        if augmentation != "none":
            images = jax.vmap(lambda key, image: experiment.augmentation(key, image[None])[0])(keys, images)
        return at_default(experiment.model, correction, standardise(images, data.mean, data.std))

    return Problem(objective, prepare, subset, matrix, augmentation == "redrawn", dtype)


def operands_of(
    params: Params, moment: Moment, data: Data, batches: MicroBatches, key: Array, dtype: Any = jnp.float32
) -> Operands:
    """The arrays of a product, on the device and in the type of the computation."""

    def cast(leaf: Any) -> Array:
        leaf = jnp.asarray(leaf)
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return Operands(
        jax.tree.map(cast, params), jax.tree.map(cast, moment), data, jax.tree.map(jnp.asarray, batches), key
    )


def resident_examples(split: Split, groups: list[Group]) -> tuple[Data, list[Group]]:
    """A split on the device, and groups of its examples that index it there.

    Of examples that come from the host, which may be more than the device can hold, only those that a group looks at.
    """
    if not is_streamed(split.images):
        return resident_split(split), groups
    rows = np.unique(np.concatenate([np.ravel(group.batches.indices) for group in groups]))

    def moved(group: Group) -> Group:
        indices = np.searchsorted(rows, group.batches.indices).astype(np.int32)
        return group._replace(batches=group.batches._replace(indices=indices))

    return resident_split(Split(split.images[rows], split.labels[rows])), [moved(group) for group in groups]


def make_class_extremes(
    experiment: Experiment, constants: PyTree | None = None
) -> Callable[[Params, PyTree, float, Any], dict[str, list]]:
    """The function (params, model_state, progress, training data) -> extreme eigenvalues of every class's Hessian.

    Of the run's own loss with running statistics, by a single probe on a fixed sample of each class, see
    `RecordOptions`. The lists under "lambda_max", "lambda_min" and their "*_residual" have an entry for each class,
    None where it has no training example. `constants` are the variables that never change, on the device.

    Raises:
      InputError: the basis does not fit into memory; by the function, if memory runs out.
      OperatorError: by the function, if the products are not finite.
    """
    record, data = experiment.record, experiment.data
    names = data.class_names
    labels = np.asarray(data.train.labels)
    samples = sample_classes(labels, len(names), record.curvature_examples, seed=0)
    present = [index for index, members in enumerate(samples) if len(members)]
    groups = class_groups(labels, names, samples, tuple(present), whole=False, size=record.curvature_micro_batch)
    variables = jax.eval_shape(
        lambda: experiment.model.init(jax.random.key(0), zeros_like_inputs(experiment.example, 1), train=False)[
            "params"
        ]
    )
    subset = select_parameters(variables)
    require_memory(subset.size, min(record.curvature_order, subset.size), 1)
    resident: Data | None = None  # images lie on the device already
    if is_streamed(data.train.images):
        with memory_advice(record.curvature_micro_batch):
            resident, groups = resident_examples(data.train, groups)
    make = make_operator(class_problem(experiment, subset))

    def extremes(params: Params, model_state: PyTree, progress: float, train: Any) -> dict[str, list]:
        told: dict[str, list] = {
            key: [None] * len(names)
            for key in ("lambda_max", "lambda_min", "lambda_max_residual", "lambda_min_residual")
        }
        for index, group in zip(present, groups, strict=True):
            moment = Moment({**model_state, **(constants or {})}, jnp.float32(progress))
            examples = resident or Data(train.images, train.labels)
            with memory_advice(record.curvature_micro_batch):
                operands = operands_of(params, moment, examples, group.batches, jax.random.key(0))
                summary = _ends(make(operands), record.curvature_order, record.curvature_tolerance)
            for key in told:
                told[key][index] = summary[key]
        return told

    return extremes


def _ends(operator: Operator, order: int, tolerance: float) -> dict[str, float]:
    """The summary of one probe, stopped as soon as both ends have converged."""
    found = spectrum(operator, order=order, probes=1, tolerance=tolerance, key=jax.random.key(0))
    return found.summary()
