"""Images per second of our training loop, of a plain JAX loop and of PyTorch, measured side by side in one run.

  python -m benchmarks.epoch_throughput --models=cnn,mlp
  python -m benchmarks.epoch_throughput --models=vgg11_bn --batch=32 --repeats=5
  python -m benchmarks.epoch_throughput --models=cnn,mlp --seeds=3

Every contender has the same model, initial weights, batch, SGD, schedule and cross-entropy, without augmentation:

- ours: the epochs of `imbal_jax.training.loop`, as a run has them but without validation, records and checkpoints;
- plain_jax: what a JAX example does: NumPy batches shuffled, gathered and standardised on the host, one jitted step
  without donation, and the loss read at every step;
- torch: the same in PyTorch, if it is installed for this kind of device, with the data standardised beforehand; both
  memory formats are measured, the ratio is to the faster one.

cnn and mlp train on the digits as in configs/digits.py; vgg11_bn and resnet32 on synthetic 32x32 images otherwise as in
configs/cifar10_vgg11.py. Contenders take turns, A B C A B C ..., so that a machine's changing load meets all of them;
a ratio is taken within each turn, and its median and range over the turns are reported. One more epoch at the start,
which compiles, is timed apart. With --seeds=N also: N seeds trained together by vmap against one after the other.

Prints one JSON object per model and comparison.
"""

import argparse
import importlib.util
import json
import math
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax.training.train_state import TrainState
from ml_collections import ConfigDict

from imbal_jax.build import build_experiment
from imbal_jax.config import load_config
from imbal_jax.errors import InputError, not_found
from imbal_jax.losses import cross_entropy_losses
from imbal_jax.main import guarded
from imbal_jax.reports.records import plain
from imbal_jax.resolve import resolve
from imbal_jax.training.experiment import Experiment
from imbal_jax.training.folders import describe_machine
from imbal_jax.training.interruption import StopRequest

# Private there; called here so that what is timed cannot drift from what runs.
from imbal_jax.training.loop import _run_epoch
from imbal_jax.training.programs import Programs, compile_programs

_CONFIGS = pathlib.Path(__file__).resolve().parent.parent / "configs"
# Least number of steps in a turn, for turns of about half a second to five seconds on two CPU cores.
_STEPS = {"cnn": 300, "mlp": 600, "vgg11_bn": 16, "resnet32": 16}
_ON_DIGITS = ("cnn", "mlp")
_NUM_CLASSES = 10


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
        self.epochs_taken = 0

    def epoch(self) -> np.ndarray:
        """Takes an epoch; returns its losses [steps, 2, seeds]."""
        losses = _run_epoch(self, self.keys, self.epochs_taken, StopRequest())  # type: ignore[arg-type]
        jax.block_until_ready(self.state)
        self.epochs_taken += 1
        return losses


class InTurn:
    """Loops one after the other, as one."""

    def __init__(self, loops: list[Loop]):
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


def time_in_turns(
    loops: Mapping[str, Loop], epochs: int, repeats: int
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Times loops that take turns.

    Args:
      loops: by name.
      epochs: of a turn.
      repeats: turns of each loop.

    Returns:
      Seconds of every turn, [repeats], and seconds that the first epoch, before all turns, took longer than later ones.
    """
    first = {name: _seconds(loop.epoch) for name, loop in loops.items()}
    turns: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(repeats):
        for name, loop in loops.items():
            turns[name].append(_seconds(lambda loop=loop: [loop.epoch() for _ in range(epochs)]))
    seconds = {name: np.array(taken) for name, taken in turns.items()}
    return seconds, {name: max(0.0, first[name] - float(np.median(seconds[name])) / epochs) for name in loops}


def _seconds(action: Callable[[], Any]) -> float:
    """How long an action takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def spread(values: np.ndarray) -> dict[str, float]:
    """Median and range."""
    return {"median": float(np.median(values)), "min": float(np.min(values)), "max": float(np.max(values))}


def build(model: str, batch: int, steps: int, repeats: int, folder: pathlib.Path) -> tuple[Experiment, ConfigDict, int]:
    """The experiment of a model, its config, and the epochs of a turn of at least `steps` steps.

    Args:
      model: one of _STEPS.
      batch: examples per step.
      steps: least number of steps in a turn.
      repeats: turns, for the length of the schedule.
      folder: where synthetic images are written.
    """
    overrides = {"model.name": model, "training.batch_size": str(batch), "training.select": "last"}
    if model in _ON_DIGITS:
        source = load_config(str(_CONFIGS / "digits.py"))
    else:
        source = load_config(str(_CONFIGS / "cifar10_vgg11.py"))
        path = write_synthetic(folder / "synthetic.npz", max(steps * batch, _NUM_CLASSES))
        overrides |= {"data.name": "arrays", "data.path": str(path), "profile.name": "natural"}
        overrides |= {"validation.fraction": "0.0", "schedule.learning_rate": "0.01"}
    config = resolve(source, overrides)
    epochs = math.ceil(steps / build_experiment(config).horizon.steps_per_epoch)
    config = resolve(config, {"training.epochs": str(1 + epochs * repeats)})
    return build_experiment(config), config, epochs


def write_synthetic(path: pathlib.Path, num_examples: int) -> pathlib.Path:
    """Writes an .npz of uint8 images [num_examples, 32, 32, 3]: a pattern per class under noise."""
    generator = np.random.default_rng(0)
    patterns = generator.integers(0, 128, (_NUM_CLASSES, 32, 32, 3), np.uint8)
    labels = np.arange(num_examples, dtype=np.int32) % _NUM_CLASSES
    images = patterns[labels] + generator.integers(0, 128, (num_examples, 32, 32, 3), np.uint8)
    few = slice(_NUM_CLASSES)
    np.savez(path, x_train=images, y_train=labels, x_test=images[few], y_test=labels[few])
    return path


def torch_device() -> str | None:
    """PyTorch's name of the kind of device that JAX uses; None if PyTorch is not installed for it."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    device = {"cpu": "cpu", "gpu": "cuda"}.get(jax.default_backend())
    return None if device == "cuda" and not torch.cuda.is_available() else device


def compare_loops(experiment: Experiment, config: ConfigDict, epochs: int, repeats: int) -> dict[str, Any]:
    """Our loop against a plain JAX loop and PyTorch."""
    ours = OurLoop(experiment, compile_programs(experiment, stacked=False), (0,))
    variables = jax.device_get({"params": ours.state.params, **ours.state.model_state})
    loops: dict[str, Loop] = {"ours": ours, "plain_jax": PlainLoop(experiment, variables)}
    device = torch_device()
    if device is not None:
        import torch

        from benchmarks.torch_models import MEMORY_FORMATS, TorchLoop

        torch.set_num_threads(os.cpu_count() or 1)
        for name in MEMORY_FORMATS:
            loops[f"torch_{name}"] = TorchLoop(experiment, config.step_rule, variables, name, device)
    seconds, compiling = time_in_turns(loops, epochs, repeats)
    rivals = {"plain_jax": "plain_jax"}
    in_torch = [name for name in loops if name.startswith("torch_")]
    if in_torch:
        rivals["torch"] = min(in_torch, key=lambda name: np.median(seconds[name]))
    ratios = {f"ours_over_{name}": spread(seconds[rival] / seconds["ours"]) for name, rival in rivals.items()}
    return {
        "comparison": "loops",
        **report(experiment, seconds, compiling, epochs, seeds=1),
        "ratios": {"ours_over_torch": None, **ratios},
        "torch": rivals.get("torch"),
    }


def compare_seeds(experiment: Experiment, epochs: int, repeats: int, num_seeds: int) -> dict[str, Any]:
    """Seeds trained together against one after the other."""
    seeds = tuple(range(num_seeds))
    single = compile_programs(experiment, stacked=False)
    loops: dict[str, Loop] = {
        "together": OurLoop(experiment, compile_programs(experiment, stacked=True), seeds),
        "one_after_another": InTurn([OurLoop(experiment, single, (seed,)) for seed in seeds]),
    }
    seconds, compiling = time_in_turns(loops, epochs, repeats)
    ratio = spread(seconds["one_after_another"] / seconds["together"])
    return {
        "comparison": "seeds",
        "seeds": num_seeds,
        **report(experiment, seconds, compiling, epochs, seeds=num_seeds),
        "ratios": {"together_over_one_after_another": ratio},
    }


def report(
    experiment: Experiment,
    seconds: Mapping[str, np.ndarray],
    compiling: Mapping[str, float],
    epochs: int,
    *,
    seeds: int,
) -> dict[str, Any]:
    """What both comparisons tell."""
    steps, batch = experiment.horizon.steps_per_epoch * epochs, experiment.training.batch_size
    return {
        "data": experiment.data.name,
        "batch": batch,
        "steps": steps,
        "epochs": epochs,
        "repeats": len(next(iter(seconds.values()))),
        "images_per_second": {name: spread(seeds * steps * batch / taken) for name, taken in seconds.items()},
        "compile_seconds": dict(compiling),
    }


def machine() -> dict[str, Any]:
    """Versions and device, as beside every result, with the number of cores and PyTorch's version."""
    described = describe_machine()
    if torch_device() is not None:
        import torch

        described["packages"]["torch"] = torch.__version__
    return {**described, "cpu_count": os.cpu_count()}


def run(arguments: list[str]) -> int:
    """Measures what the arguments ask for; returns the exit status.

    Raises:
      InputError: a model is unknown or a number too small.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.epoch_throughput",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--models", default="cnn,mlp", metavar="A,B,...", help=f"of {', '.join(_STEPS)}")
    parser.add_argument("--batch", type=int, default=32, help="examples per step")
    parser.add_argument("--steps", type=int, help="least number of steps in a turn; by default fitting the model")
    parser.add_argument("--repeats", type=int, default=5, help="turns of every contender")
    parser.add_argument("--seeds", type=int, default=1, help="also train this many seeds together and one by one")
    options = parser.parse_args(arguments)
    models = [model for model in options.models.split(",") if model]
    for model in models:
        if model not in _STEPS:
            raise InputError(f"--models: {not_found(model, _STEPS)}")
    for name in ("batch", "repeats", "seeds") + (("steps",) if options.steps is not None else ()):
        if getattr(options, name) < 1:
            raise InputError(f"--{name}: expected a number >= 1, got {getattr(options, name)}")
    for model in models:
        _measure(model, options)
    return 0


def _measure(model: str, options: argparse.Namespace) -> None:
    """Prints the comparisons of a model."""
    steps = options.steps or _STEPS[model]
    with tempfile.TemporaryDirectory() as folder:
        experiment, config, epochs = build(model, options.batch, steps, options.repeats, pathlib.Path(folder))
    _print({"model": model, **compare_loops(experiment, config, epochs, options.repeats)})
    if options.seeds > 1:
        _print({"model": model, **compare_seeds(experiment, epochs, options.repeats, options.seeds)})


def _print(result: dict[str, Any]) -> None:
    """Prints a result with the machine it comes from."""
    print(json.dumps(plain({**result, "machine": machine()})), flush=True)


if __name__ == "__main__":
    sys.exit(guarded(run, sys.argv[1:]))
