"""What a training step does to the loss of every example, by class (thesis Eqs. 3.15 to 3.17).

The quantities that the thesis argues from, for the update Delta that the run itself would make from where it stands,
with its augmentation, correction, direction, momentum, decay and learning rate:

- the projection kappa_n = Delta^T g_n / ||g_n||. It is negative where the loss falls, as in Eq. 3.16: -eta / ||g_n||
  for EF and -eta s_n / ||g_n|| for iEF. Eq. 3.17 is printed without the minus sign, as a length;
- the linearised change Delta^T g_n of the loss, Eq. 3.15: -eta for EF and -eta s_n for iEF;
- the actual change l_n(params + Delta) - l_n(params).

The losses l_n are those of the run in training mode, modulation and margins included, without their class weights: a
class weight says how much a loss counts, not how much of it a step takes away. g_n is row n of the Jacobian as the
second-order directions see it, see `linearise`. Where a model takes batch statistics, that is the share of the batch's
gradient that passes through example n: kappa_n and the linearised change then leave out what the step does to example n
through the statistics of the others, which the actual change contains.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from imbal_jax.class_counts import ClassCounts
from imbal_jax.curvature.linearisation import Linearised, linearise
from imbal_jax.losses import Reduction
from imbal_jax.training.objective import draw_condition, make_objective, step_key_of
from imbal_jax.training.state import TrainState
from imbal_jax.training.step import DeviceData, make_step
from imbal_jax.training.streaming import Load, key_words
from imbal_jax.types import Array, Batch, Correction, Direction, Objective, Params, Proposal, PyTree


class StepEffects(NamedTuple):
    """The effects of one step on the examples of its own batch, each [batch]."""

    labels: Array | np.ndarray  # int32
    kappa: Array | np.ndarray  # in units of the parameters; 0 where the gradient is 0
    linearised: Array | np.ndarray  # nats
    actual: Array | np.ndarray  # nats
    moved: Array | np.ndarray  # bool, whether the step changes any parameter


class _Handed(NamedTuple):
    """What a step hands to its direction, carried out of it in the place of the direction's state."""

    batch: Batch
    key: Array


def make_step_effects(
    model: nn.Module,
    correction: Correction,
    reduction: Reduction,
    direction: Direction,
    step_rule: optax.GradientTransformation,
    augment: Callable[[Array, Array], Array],
    pixel_statistics: tuple[Any, Any],
    total_steps: int,
) -> Callable[[TrainState, DeviceData, Array, Array], StepEffects]:
    """The function (state, data, indices [batch], key) -> StepEffects of the step that the state stands before.

    It is pure: the state stays as it is. The arguments are those of `make_step`, whose step it takes.
    """
    parts = (model, correction, reduction, _handing_out(direction), step_rule, augment, pixel_statistics, total_steps)
    step = make_step(*parts)

    def step_effects(state: TrainState, data: DeviceData, indices: Array, key: Array) -> StepEffects:
        after, _ = step(state, data, indices, key)
        batch, model_key = after.direction_state
        change = jax.tree.map(jnp.subtract, after.params, state.params)
        progress = state.step / total_steps
        drawn, _ = draw_condition(correction, model_key)  # its condition is among the inputs
        objective = make_objective(
            model,
            drawn,
            reduction,
            model_state=state.model_state,
            progress=progress,
            train=True,
            constants=data.constants,
            step_key=step_key_of(model_key),
        )

        def linearised_at(params: Params) -> Linearised:
            # On GPU and TPU default products are too coarse for differences of losses.
            with jax.default_matmul_precision("highest"):
                return linearise(objective, params, batch, model_key, with_class_weights=False)

        # Both losses come from the same engine, because engines draw different dropout masks; what else the second
        # linearisation has is not used and therefore not computed.
        now, later = linearised_at(state.params), linearised_at(after.params)
        linearised = now.products(change)
        norms = jnp.sqrt(jnp.diagonal(now.gram))
        return StepEffects(
            batch.labels,
            jnp.where(norms > 0, linearised / jnp.where(norms > 0, norms, 1), 0),
            linearised,
            _unweighted_losses(later) - _unweighted_losses(now),
            jnp.full(batch.labels.shape, jnp.any(jnp.stack([jnp.any(leaf != 0) for leaf in jax.tree.leaves(change)]))),
        )

    return step_effects


def _handing_out(direction: Direction) -> Direction:
    """The same direction, with what it was handed as its new state."""

    def propose(objective: Objective, params: Params, batch: Batch, state: PyTree, key: Array) -> Proposal:
        proposal = direction.propose(objective, params, batch, state, key)
        return proposal._replace(state=_Handed(batch, key))

    return direction._replace(propose=propose)


def _unweighted_losses(linearised: Linearised) -> Array:
    """The losses [batch] without their class weights; 0 where the weight is 0, as their gradients are."""
    weights = linearised.class_weights
    return jnp.where(weights == 0, 0, linearised.evidence.losses / jnp.where(weights == 0, 1, weights))


def over_first_batches(
    step_effects: Callable[..., StepEffects],
    batches: int,
    *,
    stacked: bool,
    load: Load | None = None,
) -> Callable[..., list[StepEffects]]:
    """The function (state, data, indices [steps, batch], key) -> StepEffects of each of the first batches.

    Every batch is tried from the same state and with the same key: none sees the effect of another. Nothing is donated.

    Args:
      step_effects: from `make_step_effects`.
      batches: how many.
      stacked: whether states, indices, keys and results have a leading axis of seeds.
      load: of `imbal_jax.training.streaming.batch_loader`, where examples come from the host and not out of the data.
    """
    step_effects = jax.vmap(step_effects, in_axes=(0, None, 0, 0)) if stacked else step_effects

    def at(state, data, indices, key, i):
        return step_effects(state, data, indices[:, i] if stacked else indices[i], key)

    if load is not None:
        single = jax.jit(step_effects)

        def of_loaded(state, data, row, key):
            inputs, labels = load(row, (*key_words(key), int(state.step)))
            return single(state, DeviceData(inputs, labels, data.constants), jnp.arange(len(labels)), key)

        return lambda state, data, indices, key: [
            of_loaded(state, data, row, key) for row in np.asarray(indices)[:batches]
        ]
    compiled = jax.jit(at)
    return lambda state, data, indices, key: [compiled(state, data, indices, key, i) for i in range(batches)]


def minority_classes(counts: ClassCounts) -> np.ndarray:
    """The classes with at most the median number of training examples, bool [num_classes].

    The median is that of the classes present, and absent ones are neither minority nor majority. Of an odd number of
    classes the middle one belongs to the minority, and of equally frequent ones all do.
    """
    return counts.present & (counts.counts <= np.median(counts.counts[counts.present]))


def by_class(effects: list[StepEffects], counts: ClassCounts) -> dict[str, Any]:
    """Averages the effects of some steps by class, in float64.

    Steps that change no parameter, as after the end of a schedule that falls to zero, are left out.

    Args:
      effects: of each step, in host memory.
      counts: of the training set.

    Returns:
      The means "kappa", "linearised" and "actual", the share "falls" of the examples whose loss actually falls and
      their "count", each [num_classes]; "minority_falls" and "majority_falls", the same shares of all the examples of
      the classes that are, or are not, `minority_classes`; "minority", whether a class is one of them, [num_classes].
      NaN where there is no example.
    """
    joined = StepEffects(*(np.concatenate(column) for column in zip(*effects, strict=True)))
    labels = joined.labels[joined.moved]
    count = np.bincount(labels, minlength=counts.num_classes)

    def sums(values: Array | np.ndarray) -> np.ndarray:
        taken = np.asarray(values, np.float64)[joined.moved]
        return np.bincount(labels, weights=taken, minlength=counts.num_classes)

    minority = minority_classes(counts)
    falls = sums(joined.actual < 0)
    return {
        "kappa": _share(sums(joined.kappa), count),
        "linearised": _share(sums(joined.linearised), count),
        "actual": _share(sums(joined.actual), count),
        "falls": _share(falls, count),
        "count": count,
        "minority_falls": float(_share(falls[minority].sum(), count[minority].sum())),
        "majority_falls": float(_share(falls[~minority].sum(), count[~minority].sum())),
        "minority": minority,
    }


def _share(sums: Any, counts: Any) -> np.ndarray:
    """Sums divided by counts, NaN where the count is 0."""
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
