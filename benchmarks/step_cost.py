"""Time and temporary memory of a training step of every method, against the SGD step of the same run.

  python -m benchmarks.step_cost
  python -m benchmarks.step_cost --model=cnn,mlp --batch=32 --methods=adamw,ief_gram,ekfac --output=cost.jsonl
  python -m benchmarks.step_cost --model=vgg11_bn --no-refresh --plot=runs/step_cost

Models are vgg11_bn, the MLP 3072-2048-2048-10 and the small CNN, on random 32x32 images of ten classes. The step is
that of training, compiled with its options: one call per step, state donated, learning rate 1e-6 so that nothing moves
far. Directions have their default options; EF and iEF run with both engines. LPF-SGD has eight micro-batches, as
published and with clean losses; `sgd_x8` are eight SGD steps, each on an eighth of the batch, to which its
`compared_ratio` is. `lct` has a VS loss whose hyper-parameters are drawn, and a model with a FiLM block, but for the
MLP, which has none.

Time: methods take turns, SGD first, after a pause; a turn is several steps of which the first, which finds the caches
and the allocator as the method before left them, is not counted. `step_seconds` is the median over the turns of a
turn's mean; `time_ratio` the median of the ratios to SGD's turn in the same round, `time_ratio_range` the least and the
largest. A method whose turns have taken --seconds takes no more.

EKFAC and GDN work every `period` steps. An ordinary step and one that refreshes (`refresh_seconds`) are timed apart,
and `seconds`, ratio and range are those of step_seconds + (refresh_seconds - step_seconds) / period. A refresh can take
minutes on a CPU; --no-refresh leaves it out ("amortised": false).

Memory: the temporaries of the compiled program, of the refresh too, from XLA's analysis; `state_mebibytes` are the
parameters, the optimiser's state and what the direction keeps. A program that would need more than --memory-limit,
state and data included, is not run, and its line says why ("skipped").

Prints one JSON object a line: the conditions first, then one per model, batch size and method. --plot=DIR takes one
model, batches 8 to 512 unless told otherwise, and writes step_cost.png and .pdf: time per example and temporary memory
against the batch size. Every batch size and method is a program of its own to compile.
"""

import argparse
import datetime
import inspect
import json
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from benchmarks.step_methods import METHODS, Method
from imbal_jax.builders import DIRECTIONS, NAMED, options_of
from imbal_jax.corrections.conditional import conditional_vector_scaling
from imbal_jax.corrections.weights import cross_entropy
from imbal_jax.data.augmentation import none
from imbal_jax.errors import InputError, check_number, not_found
from imbal_jax.main import guarded
from imbal_jax.models.film import film
from imbal_jax.reports.figures import COLOURS, GREY, save_figure
from imbal_jax.reports.records import JsonLines, Record, plain
from imbal_jax.training.folders import describe_machine
from imbal_jax.training.objective import example_for, make_structure
from imbal_jax.training.schedules import Horizon, constant
from imbal_jax.training.state import TrainState, initial_state, keys_of
from imbal_jax.training.step import DeviceData, Step, compiler_options, make_step

MODELS: dict[str, dict[str, Any]] = {"vgg11_bn": {}, "mlp": {"hidden": (2048, 2048)}, "cnn": {}}
BATCHES, PLOTTED_BATCHES = (32, 128), (8, 16, 32, 64, 128, 256, 512)
IMAGE_SHAPE, NUM_CLASSES = (32, 32, 3), 10
LEARNING_RATE = 1e-6
MARKERS = ".x+"  # one for every time round the colours
PAUSE = 0.3  # seconds before a turn
MOST_STEPS = 1000  # counted in a turn
MOST_REFRESHES = 3  # timed
NEVER = 2**30  # steps
MEBIBYTE, GIBIBYTE = 2**20, 2**30


class Training(NamedTuple):
    """A step and what it needs."""

    step: Step
    initial: Callable[[], TrainState]
    period: int  # steps between two refreshes, 1 where there are none
    refresh_at: int  # the direction's counter there; no other step near refreshes
    inputs: tuple[DeviceData, jax.Array, jax.Array]  # after the state: images on the device, indices, key
    calls: int  # of the step for what counts as one


def training_of(model: str, batch: int, method: Method) -> Training:
    """A method's training of one of MODELS on random images.

    Raises:
      InputError: the direction cannot be built for this model or batch size, or not on this machine.
    """
    if batch % method.calls:
        raise InputError(f"batch: {method.name} needs a multiple of {method.calls}, got {batch}")
    batch //= method.calls
    module, correction = NAMED["model"][model](NUM_CLASSES, **MODELS[model]), cross_entropy()
    if method.conditional:
        block = {"film": film()} if "film" in options_of(NAMED["model"][model]) else {}
        module = NAMED["model"][model](NUM_CLASSES, **MODELS[model], **block)
        correction = conditional_vector_scaling(np.arange(NUM_CLASSES, 0, -1))
    builder = DIRECTIONS[method.direction]
    options: dict[str, Any] = dict(method.options) | ({} if method.engine is None else {"engine": method.engine})
    period = 1
    if method.period is not None:
        period = options_of(builder)[method.period].default
        options |= {method.period: NEVER} if period > 1 else {}  # a turn must not meet a refresh by chance
    provided = (make_structure(module, correction, "mean", IMAGE_SHAPE, batch),)
    takes_structure = len(inspect.signature(builder).parameters) > len(options_of(builder))
    direction = builder(*provided[: int(takes_structure)], **options)
    schedule = constant(Horizon(steps_per_epoch=NEVER, epochs=1), learning_rate=LEARNING_RATE)
    step_rule = NAMED["step_rule"][method.step_rule](schedule)
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (batch, *IMAGE_SHAPE), np.uint8)
    pixels = np.mean(images, (0, 1, 2)), np.std(images, (0, 1, 2))
    data = DeviceData(jnp.asarray(images), jnp.asarray(np.arange(batch, dtype=np.int32) % NUM_CLASSES))
    indices = jnp.asarray(generator.permutation(batch).astype(np.int32))
    return Training(
        make_step(module, correction, "mean", direction, step_rule, none(), pixels, NEVER),
        # Not compiled as a whole: its parts are the same for the next method.
        lambda: initial_state(module, direction, step_rule, example_for(module, correction, IMAGE_SHAPE), 0),
        period,
        method.refresh_at % NEVER,
        (data, indices, keys_of(0).step),
        method.calls,
    )


class Case:
    """A compiled step and, from `start` on, its state and its turns."""

    def __init__(self, training: Training):
        self.training, self.period = training, training.period
        abstract = jax.eval_shape(training.initial)
        self.state_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract))
        jitted = jax.jit(training.step, donate_argnums=0, compiler_options=compiler_options())
        self.step = jitted.lower(abstract, *training.inputs).compile()
        memory: Any = self.step.memory_analysis()
        # The peak that the analysis also tells leaves temporaries out on the CPU.
        self.temporary_bytes = memory.temp_size_in_bytes
        kept = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        self.needed_bytes = kept + self.temporary_bytes
        self.state: Any = None
        self.metrics: Any = None  # of the last step
        self.refresh_seconds: float | None = None
        self.steps_per_turn = 1
        self.turns: dict[int, float] = {}  # mean seconds of a step by round
        self.spent = 0.0

    def start(self, seconds: float, repeats: int, with_refresh: bool) -> None:
        """Makes the state, times the refresh and chooses the number of steps in a turn.

        Args:
          seconds: for all turns, and for the refreshes after the first.
          repeats: turns.
          with_refresh: whether to time it.
        """
        self.state = self.training.initial()
        self._set_counter(1)
        self.take(1)
        if self.period > 1 and with_refresh:
            taken: list[float] = []
            while not taken or (len(taken) < MOST_REFRESHES and sum(taken) < seconds):
                self._set_counter(self.training.refresh_at)
                taken.append(self.take(1))
            self.refresh_seconds = statistics.median(taken)
            self._set_counter(1)
            self.take(1)
        fitting = int(seconds / repeats / self.take(1)) - 1
        self.steps_per_turn = min(max(fitting, 1), MOST_STEPS)

    def turn(self, number: int) -> None:
        """Takes the turn of a round."""
        first = self.take(1)
        counted = self.take(self.steps_per_turn)
        self.turns[number] = counted / self.steps_per_turn
        self.spent += first + counted

    def take(self, count: int) -> float:
        """Takes steps and waits for the last; returns the seconds."""
        started = time.perf_counter()
        for _ in range(count * self.training.calls):
            self.state, self.metrics = self.step(self.state, *self.training.inputs)
        jax.block_until_ready(self.state)
        return time.perf_counter() - started

    def _set_counter(self, step: int) -> None:
        """Sets the counter of a direction with periodic work."""
        if self.period > 1:
            counted = self.state.direction_state._replace(step=np.int32(step))
            self.state = self.state._replace(direction_state=counted)


def measure(model: str, batch: int, names: Sequence[str], options: argparse.Namespace) -> Iterator[Record]:
    """Measures methods, SGD first, in turn; yields a record for each, those that cannot be run first."""
    cases: dict[str, Case] = {}
    for name in names:
        case, reason = None, "there is no SGD step to compare with"
        if name == "sgd" or "sgd" in cases:
            case, reason = _prepare(model, batch, METHODS[name], options)
        if case is None:
            yield {**_head(model, batch, METHODS[name]), "skipped": reason}
        else:
            cases[name] = case
    for number in range(options.repeats):
        for name, case in cases.items():
            if number == 0 or name == "sgd" or case.spent < options.seconds:
                time.sleep(PAUSE)
                case.turn(number)
    for name, case in cases.items():
        other = METHODS[name].compared
        compared = {"compared": other, "compared_ratio": ratio(case, cases[other])} if other in cases else {}
        yield {**_head(model, batch, METHODS[name]), **costs(case, cases["sgd"], not options.no_refresh), **compared}


def _prepare(model: str, batch: int, method: Method, options: argparse.Namespace) -> tuple[Case | None, str]:
    """A case that is ready for its turns, or None and the reason."""
    try:
        case = Case(training_of(model, batch, method))
        limit = options.memory_limit * GIBIBYTE
        if case.needed_bytes > limit:
            needed = f"{case.needed_bytes / GIBIBYTE:.1f} GiB needed"
            return None, f"{needed}, more than the limit of {options.memory_limit:.1f} GiB"
        case.start(options.seconds, options.repeats, not options.no_refresh)
    except InputError as error:
        return None, str(error)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None, str(error).splitlines()[0]
    return case, ""


def costs(case: Case, sgd: Case, with_refresh: bool) -> Record:
    """What the turns of a case tell, beside those of SGD in the same rounds."""
    seconds, share = statistics.median(case.turns.values()), 0.0
    if case.refresh_seconds is not None:
        share = (case.refresh_seconds - seconds) / case.period
    share_of_sgd = share / statistics.median(sgd.turns[number] for number in case.turns)
    ratios = [taken / sgd.turns[number] + share_of_sgd for number, taken in case.turns.items()]
    return {
        "time_ratio": statistics.median(ratios),
        "time_ratio_range": [min(ratios), max(ratios)],
        "temp_memory_ratio": case.temporary_bytes / max(sgd.temporary_bytes, 1),
        "seconds": seconds + share,
        "step_seconds": seconds,
        "refresh_seconds": case.refresh_seconds,
        "period": case.period if case.period > 1 else None,
        "amortised": with_refresh if case.period > 1 else None,
        "temp_mebibytes": case.temporary_bytes / MEBIBYTE,
        "state_mebibytes": case.state_bytes / MEBIBYTE,
        "turns": len(case.turns),
        "steps_per_turn": case.steps_per_turn,
        "cross_entropy": case.metrics.cross_entropy,  # of the last step: nothing has diverged
    }


def ratio(case: Case, other: Case) -> float:
    """The median of the ratios of two cases' turns in the same rounds."""
    rounds = case.turns.keys() & other.turns.keys()
    return statistics.median(case.turns[number] / other.turns[number] for number in rounds)


def _head(model: str, batch: int, method: Method) -> Record:
    """What a record is about, and where and when it was made."""
    return {
        "model": model,
        "batch": batch,
        "method": method.name,
        "engine": method.engine,
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def cost_figure(records: Sequence[Record]) -> Figure:
    """Time per example and temporary memory of one model against the batch size; skipped records are left out."""
    figure = Figure(figsize=(9, 4.2), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
    time_axes, memory_axes = figure.subplots(1, 2)
    records = [record for record in records if "skipped" not in record]
    names = list(dict.fromkeys(record["method"] for record in records))
    for name, engine in dict.fromkeys((record["method"], record["engine"]) for record in records):
        own = [record for record in records if (record["method"], record["engine"]) == (name, engine)]
        label = name if engine is None else f"{name}, {engine}"
        label += " without refresh" if own[0]["amortised"] is False else ""
        line = "dashed" if engine == "vmap" else "solid"
        turn, colour = divmod(names.index(name), len(COLOURS))
        style: Any = {"color": COLOURS[colour], "linestyle": line, "marker": MARKERS[turn]}
        batches = [record["batch"] for record in own]
        time_axes.plot(batches, [1000 * record["seconds"] / record["batch"] for record in own], label=label, **style)
        memory_axes.plot(batches, [record["temp_mebibytes"] for record in own], **style)
    ticks = sorted({record["batch"] for record in records})
    for axes, title in ((time_axes, "milliseconds per example"), (memory_axes, "temporary memory, MiB")):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set(xlabel="batch size", title=title)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color=GREY, alpha=0.25, linewidth=0.6)
    if records:
        figure.suptitle(f"{records[0]['model']} on {records[0]['device']}", fontsize=11)
        figure.legend(loc="outside right center", frameon=False, fontsize=9)
    return figure


def default_memory_limit() -> float:
    """Three quarters of the device's memory, GiB."""
    stats = jax.devices()[0].memory_stats() or {}
    total = stats.get("bytes_limit") or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 0.75 * total / GIBIBYTE


def parse(arguments: list[str]) -> argparse.Namespace:
    """Reads and checks the command line.

    Raises:
      InputError: a model or method is unknown, a number out of range, or a plot asked for of several models.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step_cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", metavar="A,B,...", help=f"of {', '.join(MODELS)} (default: all; with --plot vgg11_bn)")
    add("--batch", metavar="A,B,...", help="examples per step (default: 32,128; with --plot 8,16,...,512)")
    add("--methods", metavar="A,B,...", help=f"beside sgd, of {', '.join(METHODS)} (default: all)")
    add("--repeats", type=int, default=5, help="turns of every method (default: 5)")
    add("--seconds", type=float, default=20.0, help="most for the turns of a method at a batch size (default: 20)")
    add("--memory-limit", type=float, metavar="GIB", help="of a step (default: three quarters of the device's)")
    add("--no-refresh", action="store_true", help="leave out the periodic work of EKFAC and GDN")
    add("--output", type=pathlib.Path, metavar="FILE", help="append the JSON lines to this file as well")
    add("--plot", type=pathlib.Path, metavar="DIR", help="write step_cost.png and .pdf of one model")
    options = parser.parse_args(arguments)
    options.model = _names("model", options.model, MODELS, ["vgg11_bn"] if options.plot else list(MODELS))
    options.methods = list(dict.fromkeys(["sgd", *_names("methods", options.methods, METHODS, list(METHODS))]))
    options.batch = _sizes(options.batch) or list(PLOTTED_BATCHES if options.plot else BATCHES)
    if options.memory_limit is None:
        options.memory_limit = default_memory_limit()
    if options.repeats < 1:
        raise InputError(f"--repeats: expected a number >= 1, got {options.repeats}")
    check_number("--seconds", options.seconds, "> 0")
    check_number("--memory-limit", options.memory_limit, "> 0")
    if options.plot and len(options.model) > 1:
        raise InputError(f"--model: expected one model with --plot, got {', '.join(options.model)}")
    return options


def _names(option: str, text: str | None, valid: dict[str, Any], default: list[str]) -> list[str]:
    """Reads different names separated by commas, or raises InputError."""
    if text is None:
        return default
    names = list(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in valid:
            raise InputError(f"--{option}: {not_found(name, valid)}")
    return names


def _sizes(text: str | None) -> list[int]:
    """Reads whole numbers >= 1 separated by commas, or raises InputError; none for None."""
    parts = [] if text is None else text.split(",")
    if not all(part.isdecimal() and int(part) >= 1 for part in parts):
        raise InputError(f"--batch: expected whole numbers >= 1 separated by commas, got {text!r}")
    return sorted({int(part) for part in parts})


def run(arguments: list[str]) -> int:
    """Measures what the arguments ask for; returns the exit status."""
    options = parse(arguments)
    file = options.output and JsonLines(options.output)

    def tell(record: Record) -> None:
        print(json.dumps(plain(record)), flush=True)
        if file:
            file.append(record)

    settings = {name: value for name, value in vars(options).items() if name not in ("output", "plot")}
    conditions = {"image_shape": IMAGE_SHAPE, "learning_rate": LEARNING_RATE, "pause_seconds": PAUSE}
    machine = {**describe_machine(), "cpu_count": os.cpu_count()}
    tell({"benchmark": "step_cost", **settings, **conditions, "models": MODELS, "machine": machine})
    records = []
    for model in options.model:
        for batch in options.batch:
            for record in measure(model, batch, options.methods, options):
                tell(record)
                records.append(plain(record))
    if options.plot:
        save_figure(cost_figure(records), options.plot / "step_cost")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(run, sys.argv[1:]))
