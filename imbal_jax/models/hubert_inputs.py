"""What a HuBERT receives, and which of it counts."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from imbal_jax.errors import InputError
from imbal_jax.models.hubert_config import HubertConfig, least_samples
from imbal_jax.types import Array, Waveforms


class Features(NamedTuple):
    """What the convolutions make of clips."""

    frames: Array  # [batch, frames, channels] floating
    lengths: Array  # [batch] int32, frames of each clip


class EncoderInput(NamedTuple):
    """What the transformer's layers receive of clips, before the dropout on it."""

    frames: Array  # [batch, frames, hidden_size] floating
    lengths: Array  # [batch] int32, frames of each clip


def check_inputs(config: HubertConfig, inputs: Waveforms | Features | EncoderInput) -> None:
    """Refuses inputs that have no frames, or are no batch of clips; lengths are looked at where they are known.

    Raises:
      InputError: the shapes, types or lengths are wrong.
    """
    if isinstance(inputs, Waveforms):
        name, array, rank, least = "samples", inputs.samples, 2, least_samples(config)
    elif isinstance(inputs, Features | EncoderInput):
        name, array, rank, least = "frames", inputs.frames, 3, 1
    else:
        raise InputError(f"inputs: expected Waveforms, Features or EncoderInput, got {type(inputs).__name__}")
    if array.ndim != rank or array.shape[1] < least or not jnp.issubdtype(array.dtype, jnp.floating):
        expected = "[batch, length]" if rank == 2 else "[batch, frames, channels]"
        raise InputError(
            f"{name}: expected floating {expected} with at least {least} {name}, got {array.dtype} {array.shape}"
        )
    if inputs.lengths.shape != array.shape[:1] or not jnp.issubdtype(inputs.lengths.dtype, jnp.integer):
        raise InputError(
            f"lengths: expected {len(array)} whole numbers, got {inputs.lengths.dtype} {inputs.lengths.shape}"
        )
    if not isinstance(inputs.lengths, jax.core.Tracer):
        for clip, length in enumerate(np.asarray(inputs.lengths).tolist()):
            if not least <= length <= array.shape[1]:
                raise InputError(
                    f"lengths: expected {least} to {array.shape[1]} {name} in every clip, got {length} in clip {clip}"
                )


def frame_mask(lengths: Array, frames: int) -> Array:
    """Which of so many frames belong to the clips, [batch, frames]."""
    return jnp.arange(frames) < lengths[:, None]


def masked_mean(frames: Array, mask: Array | None) -> Array:
    """The mean over frames [batch, frames, channels] in float32 or wider; 0 where a clip has none.

    Args:
      frames: to average.
      mask: [batch, frames], which count; None for all.
    """
    wide = frames.astype(jnp.promote_types(frames.dtype, jnp.float32))
    if mask is None:
        return wide.mean(axis=1)
    count = jnp.maximum(mask.sum(axis=1), 1).astype(wide.dtype)
    return jnp.where(mask[..., None], wide, 0).sum(axis=1) / count[:, None]


def span_mask(key: Array, lengths: Array, frames: int, *, share: float, span: int, least: int) -> Array:
    """Random spans to mask, [batch, frames], as Hugging Face draws them for SpecAugment.

    Every clip has share * length / span spans, rounded up or down at random but alike for all clips, and no fewer than
    `least`, as far as they fit; they start anywhere, may overlap, and no two start at the same place.

    Args:
      key: of the random numbers.
      lengths: [batch], the spans lie within the first so many frames.
      frames: the length of the mask.
      share: upper bound of the share that is masked, but for `least`.
      span: frames of one span.
      least: number of spans.
    """
    rounding, order = jax.random.split(key)
    count = jnp.floor(share * lengths / span + jax.random.uniform(rounding)).astype(jnp.int32)
    starts = jnp.maximum(lengths - span + 1, 0)
    count = jnp.minimum(jnp.minimum(jnp.maximum(count, least), lengths // span), starts)
    possible = frame_mask(starts, frames)
    drawn = jnp.where(possible, jax.random.uniform(order, possible.shape), jnp.inf)
    # The indices of the possible places come first, as a random permutation of them.
    begins = (drawn.argsort(axis=1) < count[:, None]) & possible
    begun = jnp.cumsum(begins, axis=1)
    ended = jnp.pad(begun, ((0, 0), (span, 0)))[:, :frames]
    return begun > ended
