"""Our training loop as it is, and the one of a plain JAX example."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax.training.train_state import TrainState

from imbal_jax.losses import cross_entropy_losses
from imbal_jax.training.experiment import Experiment
from imbal_jax.training.interruption import StopRequest

# Private there; called here so that what is timed cannot drift from what runs.
from imbal_jax.training.loop import _run_epoch
from imbal_jax.training.programs import Programs


class Loop(Protocol):
    """What is timed."""

    def epoch(self) -> Any:
        """Takes an epoch of steps and waits for the last."""


class OurLoop:
    """The product's epochs; stands in for the group of seeds that `fit` trains.

    Args:
      experiment: the parts of the run.
      programs: compiled for this number of seeds.
      seeds: one, or several to train together.
    """

    def __init__(self, experiment: Experiment, programs: Programs, seeds: tuple[int, ...]):
        self.experiment, self.programs, self.seeds = experiment, programs, seeds
        self.keys, self.state = programs.keys(seeds), programs.initial(seeds)
        self.partial = np.zeros((0, 2, len(seeds)))
        self.alive = range(len(seeds))
        self.upcoming = None
        self.epochs_taken = 0

    def epoch(self) -> np.ndarray:
        """Takes an epoch; returns its losses [steps, 2, seeds]."""
        losses = _run_epoch(self, self.keys, self.epochs_taken, StopRequest())  # type: ignore[arg-type]
        jax.block_until_ready(self.state)
        self.epochs_taken += 1
        return losses


class InTurn:
    """Loops one after the other, as one."""

    def __init__(self, loops: Sequence[Loop]):
        self.loops = loops

    def epoch(self) -> None:
        """Takes an epoch of each."""
        for loop in self.loops:
            loop.epoch()


class PlainLoop:
    """Training as in a plain JAX example.

    Args:
      experiment: its data, model, step rule and horizon are followed; the loss is cross-entropy, without augmentation.
      variables: initial weights and running statistics.
    """

    def __init__(self, experiment: Experiment, variables: Mapping[str, Any]):
        self.data, self.model = experiment.data, experiment.model
        self.shape = (experiment.horizon.steps_per_epoch, experiment.training.batch_size)
        self.generator, self.key = np.random.default_rng(0), jax.random.key(0)
        params, self.batch_stats = jax.tree.map(jnp.asarray, (variables["params"], variables.get("batch_stats", {})))
        self.state = TrainState.create(apply_fn=self.model.apply, params=params, tx=experiment.step_rule)
        self.step = jax.jit(self._step)

    def epoch(self) -> list[float]:
        """Takes an epoch in a new random order; returns its losses."""
        order = self.generator.permutation(len(self.data.train.labels))
        return self.take(order[: self.shape[0] * self.shape[1]].reshape(self.shape))

    def take(self, batches: np.ndarray) -> list[float]:
        """Takes one step per row of indices [steps, batch]; returns their losses."""
        losses = []
        for indices in batches:
            images = (self.data.train.images[indices].astype(np.float32) - self.data.mean) / self.data.std
            images, labels = jnp.asarray(images), jnp.asarray(self.data.train.labels[indices])
            self.state, self.batch_stats, loss = self.step(self.state, self.batch_stats, images, labels, self.key)
            losses.append(float(loss))
        return losses

    @staticmethod
    def _step(state, batch_stats, images, labels, key):
        """One step of the step rule."""

        def loss_of(params):
            (logits, _), new = state.apply_fn(
                {"params": params, "batch_stats": batch_stats},
                images,
                train=True,
                rngs={"dropout": jax.random.fold_in(key, state.step)},
                mutable=["batch_stats"],
            )
            return jnp.mean(cross_entropy_losses(logits, labels)), new

        (loss, new), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        return state.apply_gradients(grads=gradients), new.get("batch_stats", batch_stats), loss
