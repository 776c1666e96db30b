"""Examples that come from the host batch by batch, clips of speech or large images: the same step, fed in time."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from imbal_jax.curvature.products import Data
from imbal_jax.data.dataset import Split
from imbal_jax.data.features import FeatureSet
from imbal_jax.data.image_set import ImageSet
from imbal_jax.data.prefetching import Prefetcher
from imbal_jax.data.speech import ClipSet
from imbal_jax.training.step import DeviceData, Driver, Step, compiler_options
from imbal_jax.types import Array, Params, PyTree

_UNDER_WAY = 4  # batches that the device may have before it; each takes up memory there


class HostSplit(NamedTuple):
    """A split that stays on the host, in batches of similar lengths where these differ."""

    split: Split
    rows: np.ndarray  # int64 [batches, batch]; the last batch is filled up with the shortest clip
    counted: np.ndarray  # float32 [batches, batch], 0 for what fills it up
    buckets: tuple[int, ...]
    sharding: Sharding | None = None  # of batches; None leaves them on the host

    def batch(self, i: int) -> tuple[PyTree, Any, Any]:
        """Inputs, labels and what counts of a batch."""
        rows = self.rows[i]
        made = (self.split.images.batch(rows, self.buckets), self.split.labels[rows], self.counted[i])
        return made if self.sharding is None else jax.device_put(made, self.sharding)


def host_split(
    split: Split,
    batch_size: int,
    buckets: tuple[int, ...],
    *,
    sharding: Sharding | None = None,
    multiple_of: int = 1,
) -> HostSplit:
    """Sorts a split by length and cuts it into batches of one size.

    Args:
      split: of clips.
      batch_size: most clips in a batch.
      buckets: lengths to pad to.
      sharding: of batches among devices; None leaves them on the host.
      multiple_of: the batch is rounded up to a multiple of it, for sharing out.
    """
    order = np.argsort(split.images.lengths, kind="stable")
    size = -(-min(batch_size, len(order)) // multiple_of) * multiple_of
    batches = -(-len(order) // size)
    rows = np.full(batches * size, order[0])
    rows[: len(order)] = order
    counted = (np.arange(batches * size) < len(order)).astype(np.float32)
    return HostSplit(split, rows.reshape(batches, size), counted.reshape(batches, size), buckets, sharding)


# (indices [batch], what chance on the host is a function of) -> inputs and labels on the devices
Load = Callable[[np.ndarray, tuple[int, ...]], tuple[PyTree, Any]]


def make_stream_driver(step: Step, load: Load) -> Driver:
    """A driver whose batches are made on the host by a thread that is ahead of the device.

    A batch is padded to the smallest bucket that holds it; every bucket compiles once.

    Args:
      step: the pure step.
      load: of `batch_loader`.
    """
    compiled = jax.jit(step, donate_argnums=0, compiler_options=compiler_options())
    # To read numbers from a device that is at work is to wait for it: those of the last call are known.
    last: dict[str, Any] = {"step": None, "key": None}

    def begin(state: Any, key: Array) -> tuple[int, tuple[int, ...]]:
        """The steps taken, and the words of the key."""
        taken = last["taken"] if state.step is last["step"] else int(state.step)
        return taken, last["words"] if key is last["key"] else key_words(key)

    def drive(state: Any, data: DeviceData, indices: Any, key: Array, first: int, count: int) -> tuple[Any, list]:
        metrics: list = []
        taken, words = begin(state, key)
        rows = list(enumerate(np.asarray(indices)[first : first + count], start=taken))
        with Prefetcher(rows, lambda numbered: load(numbered[1], (*words, numbered[0]))) as batches:
            for inputs, labels in batches:
                now = DeviceData(inputs, labels, data.constants)
                state, told = compiled(state, now, jnp.arange(len(labels)), key)
                metrics.append(told)
                _keep_few_under_way(metrics)
        last.update(step=state.step, taken=taken + len(rows), key=key, words=words)
        return state, metrics

    return drive


def key_words(key: Array) -> tuple[int, ...]:
    """A key as whole numbers, for the host's own generators of random numbers."""
    return tuple(np.asarray(jax.random.key_data(key)).ravel().tolist())


def batch_loader(split: Split, buckets: tuple[int, ...], sharding: Sharding) -> Load:
    """The function from indices [batch], and what chance is a function of, to inputs and labels on the devices.

    Args:
      split: to take them from.
      buckets: lengths to pad to.
      sharding: of batches among devices.
    """

    def load(row: np.ndarray, entropy: tuple[int, ...]) -> tuple[PyTree, Any]:
        images = split.images
        made = images.training_batch(row, entropy) if isinstance(images, ImageSet) else images.batch(row, buckets)
        return jax.device_put((made, split.labels[row]), sharding)

    return load


def make_stream_evaluate(batch_function: Callable[..., Any], *, additive: bool = False) -> Callable[..., list[Any]]:
    """The function (params, model_state, progress, `HostSplit`) -> results per batch, left on the device.

    Args:
      batch_function: (params, model_state, progress, inputs, labels, counted) -> result of one batch.
      additive: the results are sums of which only the sum matters. All but the last few are then added up in host
        memory, in float64: the confusion matrix of thousands of classes takes up more than its batch.
    """
    compiled = jax.jit(batch_function)

    def evaluate(params: Params, model_state: PyTree, progress: Any, split: HostSplit) -> list[Any]:
        results: list = []
        for batch in _batches(split):
            results.append(compiled(params, model_state, progress, *batch))
            if not additive:
                _keep_few_under_way(results)
            elif len(results) > _UNDER_WAY + 1:
                results[:2] = [jax.tree.map(_total, *jax.device_get(results[:2]))]
        return results

    return evaluate


def _keep_few_under_way(results: list) -> None:
    """Waits until all but the last few results are there: what waits for the device holds its batch in memory."""
    if len(results) > _UNDER_WAY:
        jax.block_until_ready(results[-1 - _UNDER_WAY])


def _total(one: Any, other: Any) -> np.ndarray:
    """The sum in float64."""
    return np.add(one, other, dtype=np.float64)


def _batches(split: HostSplit) -> Iterator[Any]:
    """The batches of a split, made ahead of time."""
    with Prefetcher(np.arange(len(split.rows)), split.batch) as batches:
        yield from batches


def is_streamed(images: Any) -> bool:
    """Whether a split's examples stay on the host."""
    return isinstance(images, ClipSet | FeatureSet | ImageSet)


def example_of(images: Any) -> Any:
    """What one example is like, see `imbal_jax.training.objective.inputs_like`."""
    return images.example() if is_streamed(images) else tuple(images.shape[1:])


def resident_split(split: Split) -> Data:
    """A whole split on the device, as products with its Hessian need it; clips padded to the longest of them."""
    if not is_streamed(split.images):
        return Data(jnp.asarray(split.images), jnp.asarray(split.labels))
    clips = split.images.batch(np.arange(len(split.images)), (int(split.images.lengths.max()),))
    return Data(jax.tree.map(jnp.asarray, clips), jnp.asarray(split.labels))
