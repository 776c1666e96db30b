"""Images per second of our training loop, of a plain JAX loop and of PyTorch, measured side by side in one run.

  python -m benchmarks.epoch_throughput --models=cnn,mlp
  python -m benchmarks.epoch_throughput --models=vgg11_bn --batch=32 --repeats=5
  python -m benchmarks.epoch_throughput --models=cnn,mlp --seeds=3

Every contender has the same model, initial weights, batch, SGD, schedule and cross-entropy, without augmentation:

- ours: the epochs of `imbal_jax.training.loop`, as a run has them but without validation, records and checkpoints;
- plain_jax: what a JAX example does: NumPy batches shuffled, gathered and standardised on the host, one jitted step
  without donation, and the loss read at every step;
- torch: the same in PyTorch, if it is installed for this kind of device, with the data standardised beforehand, and
  the memory format and number of threads that are fastest for it.

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
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks.loops import InTurn, Loop, OurLoop, PlainLoop
from imbal_jax.build import build_experiment
from imbal_jax.config import load_config
from imbal_jax.errors import InputError, not_found
from imbal_jax.main import guarded
from imbal_jax.reports.records import plain
from imbal_jax.resolve import resolve
from imbal_jax.training.experiment import Experiment
from imbal_jax.training.folders import describe_machine
from imbal_jax.training.programs import compile_programs

_CONFIGS = pathlib.Path(__file__).resolve().parent.parent / "configs"
# Least number of steps in a turn, for turns of about half a second to five seconds on two CPU cores.
_STEPS = {"cnn": 1500, "mlp": 3000, "vgg11_bn": 16, "resnet32": 16}
# Seconds between two turns: OpenMP's threads, which PyTorch computes with, spin on for 0.2 s after their last task and
# would take a core from whoever comes next.
_PAUSE = 0.5
_ON_DIGITS = ("cnn", "mlp")
_NUM_CLASSES = 10


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
    first = {name: _seconds(loop.epoch, 1) for name, loop in loops.items()}
    turns: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(repeats):
        for name, loop in loops.items():
            time.sleep(_PAUSE)
            turns[name].append(_seconds(loop.epoch, epochs))
    seconds = {name: np.array(taken) for name, taken in turns.items()}
    return seconds, {name: max(0.0, first[name] - float(np.median(seconds[name])) / epochs) for name in loops}


def _seconds(action: Callable[[], Any], times: int) -> float:
    """How long an action takes that many times."""
    started = time.perf_counter()
    for _ in range(times):
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
    device, settings = torch_device(), None
    if device is not None:
        from benchmarks.torch_models import TorchLoop, fastest_settings

        settings = fastest_settings(experiment, config.step_rule, variables, device)
        loops["torch"] = TorchLoop(experiment, config.step_rule, variables, settings)
    seconds, compiling = time_in_turns(loops, epochs, repeats)
    rivals = [name for name in loops if name != "ours"]
    return {
        "comparison": "loops",
        **report(experiment, seconds, compiling, epochs, seeds=1),
        "ratios": {f"ours_over_{name}": spread(seconds[name] / seconds["ours"]) for name in rivals},
        "torch": settings and settings._asdict(),
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
