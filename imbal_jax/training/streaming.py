"""Examples that come from the host batch by batch, such as clips of speech: the same step, fed ahead of time."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from imbal_jax.curvature.products import Data
from imbal_jax.data.clips import Prefetcher
from imbal_jax.data.dataset import Split
from imbal_jax.data.speech import ClipSet
from imbal_jax.training.step import DeviceData, Driver, Step, compiler_options
from imbal_jax.types import Array, Params, PyTree


class HostSplit(NamedTuple):
    """A split that stays on the host, in batches of similar lengths."""

    split: Split
    rows: np.ndarray  # int64 [batches, batch]; the last batch is filled up with its first row
    counted: np.ndarray  # float32 [batches, batch], 0 for what fills it up
    buckets: tuple[int, ...]

    def batch(self, i: int) -> tuple[PyTree, np.ndarray, np.ndarray]:
        """Inputs, labels and what counts of a batch."""
        rows = self.rows[i]
        return self.split.images.batch(rows, self.buckets), self.split.labels[rows], self.counted[i]


def host_split(split: Split, batch_size: int, buckets: tuple[int, ...]) -> HostSplit:
    """Sorts a split by length and cuts it into batches of one size.

    Args:
      split: of clips.
      batch_size: most clips in a batch.
      buckets: lengths to pad to.
    """
    order = np.argsort(split.images.lengths, kind="stable")
    size = min(batch_size, len(order))
    batches = -(-len(order) // size)
    rows = np.full(batches * size, order[0])
    rows[: len(order)] = order
    counted = (np.arange(batches * size) < len(order)).astype(np.float32)
    return HostSplit(split, rows.reshape(batches, size), counted.reshape(batches, size), buckets)


def make_stream_driver(step: Step, split: Split, buckets: tuple[int, ...]) -> Driver:
    """A driver whose batches are made on the host by a thread that is ahead of the device.

    A batch is padded to the smallest bucket that holds it; every bucket compiles once.

    Args:
      step: the pure step.
      split: the training set.
      buckets: lengths to pad to.
    """
    compiled = jax.jit(step, donate_argnums=0, compiler_options=compiler_options())
    load = batch_loader(split, buckets)

    def drive(state: Any, data: DeviceData, indices: Any, key: Array, first: int, count: int) -> tuple[Any, list]:
        metrics = []
        with Prefetcher(np.asarray(indices)[first : first + count], load) as batches:
            for inputs, labels in batches:
                now = DeviceData(inputs, labels, data.constants)
                state, told = compiled(state, now, jnp.arange(len(labels)), key)
                metrics.append(told)
        return state, metrics

    return drive


def batch_loader(split: Split, buckets: tuple[int, ...]) -> Callable[[np.ndarray], tuple[PyTree, np.ndarray]]:
    """The function from indices [batch] to inputs and labels, in host memory."""
    return lambda row: (split.images.batch(row, buckets), split.labels[row])


def make_stream_evaluate(batch_function: Callable[..., Any]) -> Callable[..., list[Any]]:
    """The function (params, model_state, progress, `HostSplit`) -> results per batch, left on the device.

    Args:
      batch_function: (params, model_state, progress, inputs, labels, counted) -> result of one batch.
    """
    compiled = jax.jit(batch_function)

    def evaluate(params: Params, model_state: PyTree, progress: Any, split: HostSplit) -> list[Any]:
        return [compiled(params, model_state, progress, *batch) for batch in _batches(split)]

    return evaluate


def _batches(split: HostSplit) -> Iterator[Any]:
    """The batches of a split, made ahead of time."""
    with Prefetcher(np.arange(len(split.rows)), split.batch) as batches:
        yield from batches


def is_streamed(images: Any) -> bool:
    """Whether a split's examples stay on the host."""
    return isinstance(images, ClipSet)


def example_of(images: Any) -> Any:
    """What one example is like, see `imbal_jax.training.objective.inputs_like`."""
    return images.example() if is_streamed(images) else tuple(images.shape[1:])


def resident_split(split: Split) -> Data:
    """A whole split on the device, as products with its Hessian need it; clips padded to the longest of them."""
    if not is_streamed(split.images):
        return Data(jnp.asarray(split.images), jnp.asarray(split.labels))
    clips = split.images.batch(np.arange(len(split.images)), (int(split.images.lengths.max()),))
    return Data(jax.tree.map(jnp.asarray, clips), jnp.asarray(split.labels))
