"""The compiled functions of a run, and where its arrays live."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from imbal_jax.data.dataset import Split
from imbal_jax.data.padding import PaddedSplit, pad_split
from imbal_jax.evaluation.class_gradients import make_class_gradients
from imbal_jax.evaluation.evaluate import (
    make_batch_factors,
    make_batch_sums,
    make_evaluate,
    make_probabilities,
    make_scored_sums,
)
from imbal_jax.training.class_curvature import make_class_extremes
from imbal_jax.training.experiment import Experiment
from imbal_jax.training.objective import at_default, inputs_like, standardise, with_condition
from imbal_jax.training.state import Keys, TrainState, initial_state, keys_of
from imbal_jax.training.step import DeviceData, Driver, make_driver, make_step
from imbal_jax.training.step_effects import StepEffects, make_step_effects, over_first_batches
from imbal_jax.training.streaming import (
    HostSplit,
    batch_loader,
    host_split,
    is_streamed,
    make_stream_driver,
    make_stream_evaluate,
)
from imbal_jax.types import Array, Correction, PyTree

PlacedSplit = PaddedSplit | HostSplit


class Programs(NamedTuple):
    """What a training loop calls; with several seeds every state and key has a leading axis of seeds."""

    keys: Callable[[tuple[int, ...]], Keys]
    initial: Callable[[tuple[int, ...]], TrainState]
    draw: Callable[[Array, int], Array]  # (order keys, epoch) -> indices [steps, batch]
    drive: Driver
    evaluate: Callable[..., list]  # (params, model_state, progress, padded split) -> sums per batch
    # The same with (progress, condition [k]) in the place of the progress; None unless the correction is conditional
    evaluate_at: Callable[..., list] | None
    class_gradients: Callable[..., list]  # likewise -> class sums of classifier gradients per batch
    # Likewise -> factors [batch] of the losses of each batch; None unless the correction remembers the examples.
    example_factors: Callable[..., list] | None
    step_effects: Callable[..., list[StepEffects]]  # (state, train data, indices, step keys) -> of the first batches
    # (params, model_state, progress, train data) of one seed -> extreme eigenvalues; None unless they are recorded
    class_extremes: Callable[..., dict[str, list]] | None
    probabilities: Callable[..., Array]  # (params, model_state, progress, images) of one seed
    all_finite: Callable[[PyTree], Array]  # bool, or [seeds]
    place: Callable[[PyTree], PyTree]  # onto every device
    place_split: Callable[[Split], PlacedSplit]  # batches shared out among the devices
    train_data: DeviceData


def batch_mesh(devices: str) -> Mesh:
    """A mesh with the one axis "batch" over one device or all local ones."""
    chosen = jax.local_devices() if devices == "all" else jax.local_devices()[:1]
    return Mesh(np.array(chosen), ("batch",), axis_types=(AxisType.Auto,))


def compile_programs(experiment: Experiment, *, stacked: bool) -> Programs:
    """Prepares the functions of a run; each is compiled at its first call.

    Args:
      experiment: the parts of the run.
      stacked: train several seeds together, with a leading axis of seeds on states, keys and indices.
    """
    mesh = batch_mesh(experiment.training.devices)
    everywhere = NamedSharding(mesh, PartitionSpec())
    shared = NamedSharding(mesh, PartitionSpec(*([None] * (2 if stacked else 1)), "batch"))
    data, correction = experiment.data, experiment.correction

    def normalise(images: Array) -> Array:
        return at_default(experiment.model, correction, standardise(images, data.mean, data.std))

    def over_seeds(function: Callable, axes: tuple) -> Callable:
        return jax.vmap(function, in_axes=axes) if stacked else function

    constants = None if experiment.constants is None else jax.device_put(experiment.constants, everywhere)

    def with_constants(function: Callable) -> Callable:
        if constants is None:
            return function
        return lambda params, model_state, *rest: function(params, {**model_state, **constants}, *rest)

    def first_state(seed, pretrained):
        parts = (experiment.model, experiment.direction, experiment.step_rule)
        return initial_state(
            *parts,
            experiment.example,
            seed,
            constants=experiment.constants,
            pretrained=pretrained,
            remembered_examples=0 if correction.keeping is None else len(data.train.labels),
        )

    def seeds_array(seeds: tuple[int, ...]) -> Array:
        return jnp.asarray(seeds if stacked else seeds[0], jnp.uint32)

    def draw(order_key, epoch):
        return experiment.sampler(jax.random.fold_in(order_key, epoch))

    def all_finite(tree):
        return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))

    batch_sums, sums_at = make_evaluation(experiment)
    gradients = make_class_gradients(experiment.model, correction, normalise, len(data.class_names))
    reduction: Any = experiment.training.reduction
    streamed = is_streamed(data.train.images)
    parts = (
        experiment.model,
        correction,
        reduction,
        experiment.direction,
        experiment.step_rule,
        experiment.augmentation,
        (data.mean, data.std),
        experiment.horizon.total_steps,
    )
    effects, batches = make_step_effects(*parts), experiment.record.step_effects_batches
    step, size = make_step(*parts), experiment.evaluation.batch_size
    buckets = data.train.images.buckets(experiment.training.batch_size) if streamed else ()

    def make_over_batches(batch_function: Callable, *, additive: bool = False) -> Callable:
        if streamed:
            return with_constants(make_stream_evaluate(batch_function, additive=additive))
        return with_constants(make_evaluate(batch_function, stacked=stacked))

    train_data = DeviceData(None, np.zeros(0, np.int32), constants)  # batches come from the host
    if not streamed:
        train_data = jax.device_put(DeviceData(data.train.images, data.train.labels, constants), everywhere)
    of_batches = NamedSharding(mesh, PartitionSpec("batch"))
    load = batch_loader(data.train, buckets, of_batches) if streamed else None

    def place_split(split: Split) -> PlacedSplit:
        if streamed:
            return host_split(split, size, buckets, sharding=of_batches, multiple_of=mesh.size)
        return _place_split(split, size, mesh)

    factors = None
    if correction.keeping is not None:
        factors = make_over_batches(make_batch_factors(experiment.model, correction.keeping, normalise))
    drive = None if load is None else make_stream_driver(step, load)
    extremes = make_class_extremes(experiment, constants) if experiment.record.curvature_every else None
    initial = jax.jit(over_seeds(first_state, (0, None)), out_shardings=everywhere)
    make_keys = jax.jit(over_seeds(keys_of, (0,)), out_shardings=everywhere)
    return Programs(
        keys=lambda seeds: make_keys(seeds_array(seeds)),
        initial=lambda seeds: initial(seeds_array(seeds), experiment.pretrained),
        draw=jax.jit(over_seeds(draw, (0, None)), out_shardings=shared),
        drive=drive or make_driver(step, experiment.training.driver, stacked=stacked),
        evaluate=make_over_batches(batch_sums, additive=len(data.class_names) > 2),  # with two there are scores
        evaluate_at=None if sums_at is None else make_over_batches(sums_at),
        probabilities=with_constants(make_probabilities(experiment.model, correction, normalise)),
        class_gradients=make_over_batches(gradients, additive=True),
        example_factors=factors,
        step_effects=over_first_batches(effects, batches, stacked=stacked, load=load),
        class_extremes=extremes,
        all_finite=jax.jit(over_seeds(all_finite, (0,))),
        place=lambda tree: jax.device_put(tree, everywhere),
        place_split=place_split,
        train_data=train_data,
    )


def make_evaluation(experiment: Experiment) -> tuple[Callable, Callable | None]:
    """What evaluates a batch: at the default condition; and, of a conditional correction, at any.

    Returns:
      The function (params, model_state, progress, images, labels, counted) -> sums, with scores if there are two
      classes; and the function with (progress, condition [k]) in the place of the progress, or None.
    """
    model, correction, data = experiment.model, experiment.correction, experiment.data

    def sums_of(member: Correction, inputs_of: Callable) -> Callable:
        def prepare(images: Any) -> Any:
            return inputs_of(standardise(images, data.mean, data.std))

        if len(data.class_names) == 2:
            return make_scored_sums(model, member, prepare)
        return make_batch_sums(model, member, prepare, len(data.class_names))

    def sums_at(params: PyTree, model_state: PyTree, moment: tuple[Array, Array], *batch: Array) -> Any:
        progress, condition = moment
        member = correction.conditional.at(condition)  # type: ignore[union-attr]
        evaluate = sums_of(member, lambda inputs: with_condition(model, inputs, condition))
        return evaluate(params, model_state, progress, *batch)

    at_rest = sums_of(correction, lambda inputs: at_default(model, correction, inputs))
    return at_rest, None if correction.conditional is None else sums_at


def _place_split(split: Split, batch_size: int, mesh: Mesh) -> PaddedSplit:
    """Pads a split to batches that divide among the devices, and shares them out."""
    padded = pad_split(split, batch_size, multiple_of=mesh.size)
    return jax.device_put(padded, NamedSharding(mesh, PartitionSpec(None, "batch")))


def train_seeds_together(experiment: Experiment) -> bool:
    """Whether to train all seeds at once by vmap; never where examples come from the host.

    Batched kernels become grouped convolutions: on CPU twice as slow as one seed after the other. Networks without
    convolutions gain, because their small products become larger ones.
    """
    choice = experiment.training.seeds_together
    if len(experiment.seeds) == 1 or choice == "no" or is_streamed(experiment.data.train.images):
        return False
    return choice == "yes" or not has_convolutions(experiment)


def has_convolutions(experiment: Experiment) -> bool:
    """Whether the model convolves, read off its trace."""
    inputs = inputs_like(experiment.example, 1)

    def initialise(inputs: Any) -> PyTree:
        return experiment.model.init(jax.random.key(0), inputs, train=False)

    return "conv_general_dilated" in str(jax.make_jaxpr(initialise)(inputs))
