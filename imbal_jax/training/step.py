"""One pure training step, and the two drivers that repeat it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from imbal_jax.errors import InputError
from imbal_jax.losses import Reduction, cross_entropy_losses
from imbal_jax.training.objective import draw_condition, make_objective, standardise, step_key_of, with_condition
from imbal_jax.training.state import TrainState
from imbal_jax.types import Array, Batch, Correction, Direction, PyTree


class DeviceData(NamedTuple):
    """The training set on the device, raw; or the batch of one step, where it comes from the host."""

    images: Any  # [n, height, width, channels], or a tree of arrays of n examples
    labels: Array | np.ndarray  # int32 [n]
    constants: PyTree | None = None  # variables that never change, see `make_objective`


class StepMetrics(NamedTuple):
    """What a step tells, left on the device."""

    loss: Array | np.ndarray  # the corrected loss under its reduction, nats
    cross_entropy: Array | np.ndarray  # mean cross-entropy of the predictive distribution, nats


Step = Callable[[TrainState, DeviceData, Array, Array], tuple[TrainState, StepMetrics]]


def make_step(
    model: nn.Module,
    correction: Correction,
    reduction: Reduction,
    direction: Direction,
    step_rule: optax.GradientTransformation,
    augment: Callable[[Array, Array], Array],
    pixel_statistics: tuple[Any, Any],
    total_steps: int,
) -> Step:
    """The training step (state, data, indices [batch], key) -> (state, metrics); key is the seed's step key.

    Under a conditional correction every step draws its own condition, for the loss and the model's FiLM block.
    """

    def step(state: TrainState, data: DeviceData, indices: Array, key: Array) -> tuple[TrainState, StepMetrics]:
        augment_key, model_key = jax.random.split(jax.random.fold_in(key, state.step))
        images = augment(augment_key, jax.tree.map(lambda leaf: leaf[indices], data.images))
        drawn, condition = draw_condition(correction, model_key)
        inputs = with_condition(model, standardise(images, *pixel_statistics), condition)
        weights = None if isinstance(state.example_weights, tuple) else state.example_weights[indices]
        batch = Batch(inputs, data.labels[indices], weights)
        progress = state.step / total_steps
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
        proposal = direction.propose(objective, state.params, batch, state.direction_state, model_key)
        start = state.params
        if proposal.shift is not None:
            start = jax.tree.map(jnp.add, start, proposal.shift)
        updates, opt_state = step_rule.update(proposal.direction, state.opt_state, start)
        factor = state.learning_rate_factor
        if not isinstance(factor, tuple):
            updates = jax.tree.map(lambda update: factor * update, updates)
        losses, prediction = proposal.aux
        metrics = StepMetrics(
            jnp.mean(losses),
            jnp.mean(cross_entropy_losses(drawn.infer(prediction.logits, progress), batch.labels)),
        )
        params = optax.apply_updates(start, updates)
        after = (state.step + 1, params, prediction.aux, opt_state, proposal.state, state.example_weights, factor)
        return TrainState(*after), metrics

    return step


# (state, data, epoch indices [steps, batch], keys, first step of the epoch to take, number of steps)
#   -> (state, metrics per step, to be read with `read_metrics`)
Driver = Callable[[TrainState, DeviceData, Array, Array, int, int], tuple[TrainState, Any]]


def make_driver(step: Step, kind: str, *, stacked: bool) -> Driver:
    """Repeats a step without ever waiting for the device.

    XLA's CPU backend runs convolutions inside a scan single-threaded and naively (7 to 25 times slower, measured), so
    there each step is a call, dispatched without waiting; on GPU and TPU one call scans over many steps.

    Args:
      step: the pure step.
      kind: "calls", "scan", or "auto" to choose by the backend.
      stacked: whether states, indices and keys have a leading axis of seeds.

    Raises:
      InputError: the kind is unknown.
    """
    if kind not in ("auto", "calls", "scan"):
        raise InputError(f"training.driver: expected 'auto', 'calls' or 'scan', got {kind!r}")
    if kind == "auto":
        kind = "calls" if jax.default_backend() == "cpu" else "scan"
    step = jax.vmap(step, in_axes=(0, None, 0, 0)) if stacked else step
    return _calls_driver(step, stacked) if kind == "calls" else _scan_driver(step, stacked)


def compiler_options() -> dict[str, Any] | None:
    """What XLA is to be told for a single step.

    Without this option its CPU backend copies every donated parameter at every step: 112 MB for VGG11.
    """
    return {"xla_cpu_copy_insertion_use_region_analysis": True} if jax.default_backend() == "cpu" else None


def _calls_driver(step: Step, stacked: bool) -> Driver:
    """One jitted call per step."""

    def at(state, data, indices, key):
        steps = indices.shape[-2]
        now = (state.step[0] if stacked else state.step) % steps
        return step(state, data, indices[:, now] if stacked else indices[now], key)

    compiled = jax.jit(at, donate_argnums=0, compiler_options=compiler_options())

    def drive(state, data, indices, key, first, count):
        del first  # the state knows
        metrics = []
        for _ in range(count):
            state, told = compiled(state, data, indices, key)
            metrics.append(told)
        return state, metrics

    return drive


def _scan_driver(step: Step, stacked: bool) -> Driver:
    """One jitted call for many steps."""

    def run(state, data, indices, key):
        rows = jnp.swapaxes(indices, 0, 1) if stacked else indices
        return jax.lax.scan(lambda state, row: step(state, data, row, key), state, rows)

    compiled = jax.jit(run, donate_argnums=0)

    def drive(state, data, indices, key, first, count):
        return compiled(state, data, indices[..., first : first + count, :], key)

    return drive


def read_metrics(metrics: Any) -> StepMetrics:
    """Waits for a driver's metrics and returns them as NumPy arrays [steps] or [steps, seeds]."""
    # Array by array: device_get takes ten times as long for many scalars.
    fetched = jax.tree.map(np.asarray, metrics)
    if isinstance(fetched, StepMetrics):
        return fetched
    return StepMetrics(*(np.stack(column) for column in zip(*fetched, strict=True)))
