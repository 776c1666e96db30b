"""Time and memory of a training step of HuBERT Base with LoRA, with and without caches, against transformers and peft.

  python -m benchmarks.hubert_step
  python -m benchmarks.hubert_step --cores=1 --repeats=7 --output=hubert.jsonl
  python -m benchmarks.hubert_step --noise=hf_train --contenders=adamw,torch
  python -m benchmarks.hubert_step --batch=32 --dtype=bfloat16        (the default on a GPU)

The architecture is the published one in full, with random weights: 94 million frozen ones and 493,056 trained, LoRA
with r = 8 on the query and value projections and a head to six classes. A batch is `--batch` clips of `--seconds`, of
one length. Contenders:

- sgd, adamw, ief: our step as in training (compiled, state donated), from waveforms, padding "exact";
- ..._conv_cache: the same from the kept output of the frozen convolutions;
- ..._encoder_cache: from what the transformer's layers receive; only without SpecAugment;
- torch, torch_conv_cache: transformers and peft in PyTorch with AdamW, with the faster of the eager and the fused
  attention, the convolutions frozen and, in the second, replaced by what they gave. Left out, with a line that says so,
  where torch, transformers or peft is not installed for this kind of device.

Contenders take turns of one step, A B C A B C ..., after a pause, so that a machine's changing load meets all of them.
Two clocks: wall time, and the processor time of all threads, which other processes on the machine change less (not on a
GPU). A ratio is taken within each round; medians are reported with the least and the largest. The first step of each,
which compiles, is not counted. `--cores=N` keeps the process, and so both libraries' threads, on N cores: with fewer
free cores than threads, PyTorch's spin at their barriers.

Memory is the temporaries of our compiled step.

Prints one JSON object a line: the conditions first, then one per contender.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from imbal_jax.builders import DIRECTIONS, NAMED
from imbal_jax.corrections.weights import cross_entropy
from imbal_jax.data.augmentation import none
from imbal_jax.errors import InputError, check_number, not_found
from imbal_jax.main import guarded
from imbal_jax.models import hubert_builder
from imbal_jax.models.hubert_config import HubertConfig
from imbal_jax.reports.records import JsonLines, Record, plain
from imbal_jax.training.folders import describe_machine
from imbal_jax.training.schedules import Horizon, constant
from imbal_jax.training.state import TrainState, initial_state, keys_of
from imbal_jax.training.step import DeviceData, compiler_options, make_step
from imbal_jax.types import PyTree, Waveforms

NUM_CLASSES, SAMPLE_RATE = 6, 16_000
LEARNING_RATE = 1e-6  # so that nothing moves far
PAUSE = 0.3  # seconds before a turn: PyTorch's threads spin on for 0.2 s after their last task
NEVER = 2**30  # steps
MEBIBYTE = 2**20
STAGES = {"": None, "_conv_cache": "convolutions", "_encoder_cache": "encoder_input"}
METHODS = {
    "sgd": ("gradient", "sgd", {}),
    "adamw": ("gradient", "adamw", {"b2": 0.99, "weight_decay": 0.1}),
    "ief": ("improved_empirical_fisher", "sgd", {}),
}
OURS = {method + suffix: (method, stage) for suffix, stage in STAGES.items() for method in METHODS}
THEIRS = {"torch": False, "torch_conv_cache": True}
DEFAULT = ("adamw", "ief", "adamw_conv_cache", "ief_conv_cache", "adamw_encoder_cache", *THEIRS)
# Which ratios are told, each over the other.
RATIOS = (
    *(("torch", name) for name in OURS),
    *(("torch_conv_cache", name) for name in OURS if name.endswith("_conv_cache")),
    *((f"ief{suffix}", f"{plain_step}{suffix}") for suffix in STAGES for plain_step in ("adamw", "sgd")),
    *(("adamw", f"adamw{suffix}") for suffix in list(STAGES)[1:]),
)
_TORCH_PACKAGES = ("torch", "transformers", "peft")


class Contender(Protocol):
    """What is timed."""

    def take(self) -> Any:
        """Takes a step and waits for it."""


class Clips(NamedTuple):
    """A batch and the model it is for."""

    waveforms: Waveforms  # NumPy
    labels: np.ndarray
    options: Mapping[str, Any]  # of `hubert_builder.hubert`


class OurStep:
    """A training step as it is.

    Args:
      method: one of METHODS.
      stage: of the cache, None for none.
      clips: the batch.
      weights: the collection "frozen".
    """

    def __init__(self, method: str, stage: str | None, clips: Clips, weights: PyTree):
        direction_name, rule, rule_options = METHODS[method]
        options = {**clips.options, "cache": "none" if stage is None else "memory", "cache_stage": stage or ""}
        model = hubert_builder.hubert(NUM_CLASSES, **(options if stage else clips.options))
        inputs: Any = clips.waveforms
        if stage is not None:
            encoder: Any = hubert_builder.frozen_encoder(
                model, weights, cache_dir="", cache_dtype="float32", **_without(options, "cache_dir", "cache_dtype")
            )
            inputs = encoder.encode(inputs)
        schedule = constant(Horizon(steps_per_epoch=NEVER, epochs=1), learning_rate=LEARNING_RATE)
        step_rule, direction = NAMED["step_rule"][rule](schedule, **rule_options), DIRECTIONS[direction_name]()
        step = make_step(model, cross_entropy(), "mean", direction, step_rule, none(), (None, None), NEVER)
        batch = jax.tree.map(jnp.asarray, (inputs, clips.labels))
        self.rest = (DeviceData(*batch, weights), jnp.arange(len(clips.labels)), keys_of(0).step)
        example = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), inputs)

        def initial() -> TrainState:
            return initial_state(model, direction, step_rule, example, 0, weights)

        self.state: Any = jax.jit(initial)()
        jitted = jax.jit(step, donate_argnums=0, compiler_options=compiler_options())
        self.step = jitted.lower(self.state, *self.rest).compile()
        memory: Any = self.step.memory_analysis()
        self.memory = {"temporary_mebibytes": memory.temp_size_in_bytes / MEBIBYTE}
        self.num_trainable = sum(leaf.size for leaf in jax.tree.leaves(self.state.params))

    def take(self) -> Any:
        """Takes a step."""
        self.state, metrics = self.step(self.state, *self.rest)
        return jax.block_until_ready((self.state, metrics))


def _without(options: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """The options but for some."""
    return {name: value for name, value in options.items() if name not in names}


def torch_device() -> str | None:
    """PyTorch's name of the kind of device that JAX uses; None where it or what is built on it is not installed."""
    if any(importlib.util.find_spec(name) is None for name in _TORCH_PACKAGES):
        return None
    import torch

    device = {"cpu": "cpu", "gpu": "cuda"}.get(jax.default_backend())
    return None if device == "cuda" and not torch.cuda.is_available() else device


def random_clips(batch: int, seconds: float, **options: Any) -> Clips:
    """Noise of unit variance, as normalised clips have it."""
    samples = round(seconds * SAMPLE_RATE)
    noise = np.random.default_rng(0).normal(size=(batch, samples)).astype(np.float32)
    labels = (np.arange(batch) % NUM_CLASSES).astype(np.int32)
    return Clips(Waveforms(noise, np.full(batch, samples, np.int32)), labels, options)


def take_turns(contenders: Mapping[str, Contender], repeats: int) -> dict[str, dict[str, np.ndarray]]:
    """Times one step of each contender per round.

    Returns:
      "seconds" and "processor_seconds" of every round by contender, [repeats].
    """
    for contender in contenders.values():
        contender.take()
    clocks: dict[str, Callable[[], float]] = {"seconds": time.perf_counter, "processor_seconds": time.process_time}
    taken: dict[str, dict[str, list[float]]] = {name: {clock: [] for clock in clocks} for name in contenders}
    for _ in range(repeats):
        for name, contender in contenders.items():
            time.sleep(PAUSE)
            started = {clock: read() for clock, read in clocks.items()}
            contender.take()
            for clock, read in clocks.items():
                taken[name][clock].append(read() - started[clock])
    return {name: {clock: np.array(values) for clock, values in each.items()} for name, each in taken.items()}


def ratios(taken: Mapping[str, Mapping[str, np.ndarray]], name: str) -> dict[str, dict[str, dict[str, float]]]:
    """The ratios of RATIOS that a contender is told with, by clock."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for over, under in RATIOS:
        # A rival's time over ours; iEF's over the plain step's; the plain step's over the one from a cache.
        if (over if over.startswith("ief") else under) == name and over in taken and under in taken:
            found[f"{over}_over_{under}"] = {
                clock: spread(taken[over][clock] / taken[under][clock]) for clock in taken[name]
            }
    return found


def spread(values: np.ndarray) -> dict[str, float]:
    """Median and range."""
    return {"median": statistics.median(values), "min": float(np.min(values)), "max": float(np.max(values))}


def build(options: argparse.Namespace) -> tuple[dict[str, Contender], dict[str, Any]]:
    """The contenders, and what is to be told of PyTorch."""
    clips = random_clips(options.batch, options.seconds, size=options.size, noise=options.noise, dtype=options.dtype)
    model = hubert_builder.hubert(NUM_CLASSES, **clips.options)
    config: HubertConfig = model.blueprint.config
    weights = hubert_builder.frozen_weights(model, path="", weights_seed=0, frozen=True)
    contenders: dict[str, Contender] = {}
    for name in options.contenders:
        if name in OURS:
            contenders[name] = OurStep(*OURS[name], clips, weights)
    wanted = [name for name in options.contenders if name in THEIRS]
    device = torch_device() if wanted else None
    if device is None:
        missing = f"{', '.join(_TORCH_PACKAGES)} are not all installed for this device" if wanted else "not asked for"
        return contenders, {"torch": None, "torch_left_out": missing}
    from benchmarks.torch_hubert import TorchStep, fastest_settings

    samples, labels = clips.waveforms.samples, clips.labels
    bfloat16 = options.dtype == "bfloat16"
    settings, tried = fastest_settings(config, NUM_CLASSES, samples, labels, device=device, bfloat16=bfloat16)
    for name in wanted:
        contenders[name] = TorchStep(config, NUM_CLASSES, samples, labels, settings, kept=THEIRS[name])
    versions = {name: importlib.import_module(name).__version__ for name in _TORCH_PACKAGES}
    return contenders, {"torch": {**settings._asdict(), "seconds_by_attention": tried, **versions}}


def parse(arguments: list[str]) -> argparse.Namespace:
    """Reads and checks the arguments.

    Raises:
      InputError: a name is unknown or a number out of its range.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.hubert_step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--batch", type=int, help="clips (default: 4, or 32 on a GPU)")
    add("--seconds", type=float, default=3.0, help="length of a clip (default: 3)")
    add("--size", default="base", help="base, or tiny to try this script out")
    add("--dtype", help="of the computation: float32 or bfloat16 (default: float32, or bfloat16 on a GPU)")
    add("--noise", default="deterministic", help="deterministic (default) or hf_train")
    add("--contenders", default=",".join(DEFAULT), metavar="A,B,...", help=f"of {', '.join([*OURS, *THEIRS])}")
    add("--repeats", type=int, default=5, help="rounds (default: 5)")
    add("--cores", type=int, help="keep the process on so many cores (default: all)")
    add("--output", type=pathlib.Path, metavar="FILE", help="append the JSON lines to this file as well")
    options = parser.parse_args(arguments)
    for name, valid in (("size", hubert_builder.SIZES), ("noise", ("deterministic", "hf_train"))):
        if getattr(options, name) not in valid:
            raise InputError(f"--{name}: {not_found(getattr(options, name), valid)}")
    if options.dtype is not None and options.dtype not in hubert_builder.DTYPES:
        raise InputError(f"--dtype: {not_found(options.dtype, hubert_builder.DTYPES)}")
    options.contenders = list(dict.fromkeys(options.contenders.split(",")))
    for name in options.contenders:
        if name not in OURS and name not in THEIRS:
            raise InputError(f"--contenders: {not_found(name, [*OURS, *THEIRS])}")
    if options.noise == "hf_train":  # SpecAugment comes before the encoder's input
        options.contenders = [name for name in options.contenders if not name.endswith("_encoder_cache")]
    for name in ("batch", "repeats", "cores"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"--{name}: expected a number >= 1, got {value}")
    check_number("--seconds", options.seconds, "> 0")
    return options


def keep_on_cores(count: int) -> None:
    """Keeps the process on some of its cores; before JAX makes its threads.

    Raises:
      InputError: the process may not use that many, or the system has no such setting.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise InputError("--cores: this system cannot keep a process on some cores")
    available = sorted(os.sched_getaffinity(0))
    if count > len(available):
        raise InputError(f"--cores: expected at most {len(available)}, got {count}")
    os.sched_setaffinity(0, available[-count:])


def run(arguments: list[str]) -> int:
    """Measures what the arguments ask for; returns the exit status."""
    options = parse(arguments)
    file = options.output and JsonLines(options.output)
    if options.cores is not None:
        keep_on_cores(options.cores)
    on_gpu = jax.default_backend() == "gpu"
    options.batch = options.batch or (32 if on_gpu else 4)
    options.dtype = options.dtype or ("bfloat16" if on_gpu else "float32")

    def tell(record: Record) -> None:
        print(json.dumps(plain(record)), flush=True)
        if file:
            file.append(record)

    contenders, told = build(options)
    settings = {name: value for name, value in vars(options).items() if name != "output"}
    load = {"load_average": list(os.getloadavg())} if hasattr(os, "getloadavg") else {}
    machine = {**describe_machine(), "cpu_count": os.cpu_count()}
    tell({"benchmark": "hubert_step", **settings, **told, **load, "machine": machine})
    taken = take_turns(contenders, options.repeats)
    for name, contender in contenders.items():
        tell(
            {
                "contender": name,
                "num_trainable": contender.num_trainable,  # type: ignore[attr-defined]
                **{clock: spread(values) for clock, values in taken[name].items()},
                **getattr(contender, "memory", {}),
                "ratios": ratios(taken, name),
            }
        )
    return 0


if __name__ == "__main__":
    sys.exit(guarded(run, sys.argv[1:]))
