"""Step rules: optax chains from a direction to an update. The minus sign lives here and nowhere else."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from imbal_jax.errors import InputError, check_number
from imbal_jax.types import Params, PyTree


def sgd(
    learning_rate: optax.Schedule,
    *,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    decay_vectors: bool = True,
    clip_norm: float = 0.0,
) -> optax.GradientTransformation:
    """Stochastic gradient descent, in PyTorch's convention: v <- momentum v + d, params <- params - lr v.

    Args:
      learning_rate: schedule.
      momentum: in [0, 1).
      nesterov: Nesterov's momentum.
      weight_decay: >= 0.
      decoupled: decay times the learning rate acts on the parameters beside the direction, outside of the momentum
        (as in AdamW); otherwise it is added to the direction, as PyTorch's SGD does.
      decay_vectors: also decay biases and normalisation parameters, as PyTorch does by default.
      clip_norm: largest global norm of the direction, before decay; 0 for no clipping.

    Raises:
      InputError: an argument is out of range.
    """
    check_number("momentum", momentum, "in [0, 1)")
    if nesterov and not momentum:
        raise InputError("nesterov: needs momentum > 0, got momentum 0")
    decay = _decay(weight_decay, decay_vectors)
    accumulate = [optax.trace(momentum, nesterov=nesterov)] if momentum else []
    middle = [*accumulate, *decay] if decoupled else [*decay, *accumulate]
    return optax.chain(*_clip(clip_norm), *middle, optax.scale_by_learning_rate(learning_rate))


def adamw(
    learning_rate: optax.Schedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    decay_vectors: bool = True,
    clip_norm: float = 0.0,
    bias_correction: bool = True,
) -> optax.GradientTransformation:
    """AdamW with decoupled decay (Loshchilov and Hutter 2019), in PyTorch's convention and defaults.

    The thesis uses b2 = 0.99 and weight_decay = 0.1 for speech (4.1.4).

    Args:
      learning_rate: schedule.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: added to the root of the second moment, > 0.
      weight_decay: >= 0.
      decay_vectors: also decay biases and normalisation parameters, as PyTorch does by default.
      clip_norm: largest global norm of the direction; 0 for no clipping.
      bias_correction: divide the moments by the weight that they have gathered since they began at 0. Without it,
        under the direction `attentional_bias`, this is ABAdam (ABSGD's paper, Eq. 9), whose G_0 is eps.

    Raises:
      InputError: an argument is out of range.
    """
    check_number("b1", b1, "in [0, 1)")
    check_number("b2", b2, "in [0, 1)")
    check_number("eps", eps, "> 0")
    decay = _decay(weight_decay, decay_vectors)
    scale = optax.scale_by_adam(b1=b1, b2=b2, eps=eps) if bias_correction else _uncorrected_adam(b1, b2, eps)
    return optax.chain(*_clip(clip_norm), scale, *decay, optax.scale_by_learning_rate(learning_rate))


class _Moments(NamedTuple):
    """What Adam without bias correction keeps."""

    first: Params
    second: Params


def _uncorrected_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam's m / (sqrt(v) + eps), with the moments m and v as they are."""

    def init(params: Params) -> _Moments:
        return _Moments(jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params))

    def update(direction: Params, state: _Moments, params: Params | None = None) -> tuple[Params, _Moments]:
        del params
        first = jax.tree.map(lambda old, new: b1 * old + (1 - b1) * new, state.first, direction)
        second = jax.tree.map(lambda old, new: b2 * old + (1 - b2) * jnp.square(new), state.second, direction)
        updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), first, second)
        return updates, _Moments(first, second)

    return optax.GradientTransformation(init, update)


def leaving(step_rule: optax.GradientTransformation, frozen: frozenset[str]) -> optax.GradientTransformation:
    """The step rule for all but some layers, which stay as they are: neither steps nor decay reach them.

    Args:
      step_rule: for the others.
      frozen: names at the top of the tree of parameters.
    """

    def labels(params: Params) -> PyTree:
        return {
            name: jax.tree.map(lambda _: "frozen" if name in frozen else "trained", each)  # noqa: B023
            for name, each in params.items()
        }

    return optax.multi_transform({"trained": step_rule, "frozen": optax.set_to_zero()}, labels) if frozen else step_rule


def _decay(weight_decay: float, decay_vectors: bool) -> list[optax.GradientTransformation]:
    """Adds weight_decay times the parameters, or nothing."""
    if not check_number("weight_decay", weight_decay, ">= 0"):
        return []
    mask = None if decay_vectors else lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)
    return [optax.add_decayed_weights(weight_decay, mask)]


def _clip(clip_norm: float) -> list[optax.GradientTransformation]:
    """Clips the global norm, or nothing."""
    return [optax.clip_by_global_norm(clip_norm)] if check_number("clip_norm", clip_norm, ">= 0") else []
