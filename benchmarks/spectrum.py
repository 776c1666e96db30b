"""Hessian-vector products and spectra: ours beside PyHessian and curvlinops, measured side by side in one run.

  python -m benchmarks.spectrum
  python -m benchmarks.spectrum --what=classes,probes,examples --steps=5 --rounds=1 --output=runs/spectrum.jsonl
  python -m benchmarks.spectrum --what=all --rounds=1    (ten classes, ten probes: on a GPU)

All tools get one network with the same weights and running statistics, in evaluation mode, the same random images, on
the device beforehand, and the same starts. Before anything is timed, the product must agree with ours to 1e-3 of its
norm, or the extreme eigenvalues to 1e-3 of the largest in magnitude; a tool that does not agree, or is not installed,
has a line that says so ("skipped"). PyTorch has the memory format and number of threads that are fastest for it.

- ours: with the defaults of --task=spectrum. Its variants: ours_micro_N with micro-batches of N; ours_linearised_N
  keeping up to N GiB from one product to the next; ours_together or ours_one_by_one, the probes; ours_classes_by_vmap,
  all classes in one program (mlp and cnn).
- pyhessian: all examples at once, the graph of the gradient kept from one product to the next; pyhessian_loader:
  micro-batches as ours, and the graph made anew in every product. PyHessian 0.1 calls torch.eig, which PyTorch has
  removed: it gets torch.linalg.eigh in its place.
- curvlinops, curvlinops_batched: all examples at once, or micro-batches as ours; without its check of determinism and
  its search for the boundaries of the spectrum.

What is measured (--what): one product ("product"); the spectrum of one class with one probe ("spectrum"); the same with
more classes, one after the other ("classes"), probes ("probes") or other numbers of examples ("examples"); ten classes
with ten probes each ("all"). Each result tells what exactly was timed ("timed").

Tools take turns; `time_ratio` is the median over the rounds of a tool's time over ours in the same round, above 1 where
ours is faster. The first call, which compiles, is apart. Peak memory is that of getting ready and the first call, with
compilation, in a process of its own: what came on top of what was resident after imports and data, as Linux counts it
(None elsewhere), or on a GPU the framework's allocator.

Prints one JSON object a line: the conditions first, then one per setting and tool.
"""

import argparse
import concurrent.futures
import contextlib
import datetime
import importlib.metadata
import json
import multiprocessing
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.spectrum_tools import (
    IMAGE_SHAPE,
    KINDS,
    MODELS,
    NUM_CLASSES,
    PACKAGES,
    Case,
    Setting,
    Tool,
    fastest_torch,
    make_case,
    missing,
)
from imbal_jax.analysis.options import fixed
from imbal_jax.errors import InputError, not_found
from imbal_jax.main import guarded
from imbal_jax.reports.records import JsonLines, Record, plain
from imbal_jax.training.folders import describe_machine

WHAT = ("product", "spectrum", "classes", "probes", "examples", "all")
MICRO_BATCHES = (8, 16, 32, 64, 128)
ALL_PROBES = 10
PAUSE = 0.5  # seconds before a turn, see epoch_throughput
LEAST_SECONDS = 1.0  # of a turn
AGREEMENT = 1e-3
MEBIBYTE = 2**20


class Running(NamedTuple):
    """A tool after its first call."""

    action: Callable[[], Any]
    facts: Record


def settings_of(options: argparse.Namespace) -> list[Setting]:
    """What to measure."""
    usual = Setting("spectrum", 1, 1, options.examples, options.steps)
    of_what = {
        "product": [usual._replace(what="product")],
        "spectrum": [usual],
        "classes": [usual._replace(what="classes", classes=count) for count in options.classes],
        "probes": [usual._replace(what="probes", probes=count) for count in options.probes],
        "examples": [usual._replace(what="examples", examples=count) for count in options.sizes],
        "all": [usual._replace(what="all", classes=NUM_CLASSES, probes=ALL_PROBES)],
    }
    return [setting for what in options.what for setting in of_what[what]]


def tools_of(setting: Setting, model: str, micro_batch: int) -> list[Tool]:
    """All tools for a setting, ours first."""
    ours = Tool("ours", "ours", micro_batch, fixed().linearise_gib, together=model == "mlp" and setting.probes > 1)
    tools = [ours]
    if setting.what == "product":
        sizes = [size for size in MICRO_BATCHES if size != micro_batch and size <= setting.examples]
        tools += [ours._replace(name=f"ours_micro_{size}", micro_batch=size) for size in sizes]
    if setting.what in ("product", "spectrum"):
        tools += [ours._replace(name=f"ours_linearised_{gib}", linearise_gib=float(gib)) for gib in (0, 4)]
    if setting.probes > 1:
        name = "ours_one_by_one" if ours.together else "ours_together"
        tools.append(ours._replace(name=name, together=not ours.together))
    if setting.what == "classes" and setting.classes > 1 and model in ("cnn", "mlp"):
        tools.append(ours._replace(name="ours_classes_by_vmap", classes_by_vmap=True))
    return [
        *tools,
        Tool("pyhessian", "pyhessian", None),
        Tool("pyhessian_loader", "pyhessian", micro_batch),
        Tool("curvlinops", "curvlinops", None),
        Tool("curvlinops_batched", "curvlinops", micro_batch),
    ]


def measure(case: Case, setting: Setting, tools: Sequence[Tool], rounds: int, memory: bool) -> Iterator[Record]:
    """Measures a setting.

    Args:
      case: what the tools get.
      setting: what is measured.
      tools: ours first.
      rounds: turns of each.
      memory: whether to measure that too, in a process for each tool.

    Yields:
      A record for each tool, those that cannot be run first.
    """
    running, ours = {}, None
    for tool in tools:
        reason = missing(tool.kind)
        if reason is None:
            running[tool], found = _first_call(case, tool, setting)
            ours = found if ours is None else ours
            difference = running[tool].facts["difference"] = _difference(found, ours, setting)
            if not difference <= AGREEMENT:
                del running[tool]
                reason = f"does not agree with ours: a relative difference of {difference:.1e}"
        if reason is not None:
            yield {**_head(tool, setting), "skipped": reason}
    turns = take_turns({tool.name: running[tool].action for tool in running}, rounds)
    facts = {tool: running[tool].facts for tool in running}
    del running  # and what they keep
    peaks = {tool.name: in_own_process(peak_memory, case, tool, setting) if memory else None for tool in facts}
    for tool, known in facts.items():
        costs = costs_of(tool.name, turns, peaks)
        compiling = max(0.0, known["first_seconds"] - costs["seconds"])
        products = 1 if setting.what == "product" else setting.classes * setting.probes * setting.steps
        told = {"seconds_per_product": costs["seconds"] / products, "compile_seconds": compiling}
        yield {**_head(tool, setting), **costs, **told, **known, **(_best(turns, tools) if tool.name == "ours" else {})}


def work_of(made: Any, setting: Setting) -> Callable[[], Any]:
    """What of a tool is timed."""
    return made.product(setting) if setting.what == "product" else made.spectra(setting)


def _first_call(case: Case, tool: Tool, setting: Setting) -> tuple[Running, np.ndarray]:
    """A tool that is ready for its turns, and what it found."""
    made = KINDS[tool.kind](case, tool)
    started = time.perf_counter()
    action = work_of(made, setting)
    found = action()
    facts = {"first_seconds": time.perf_counter() - started, "timed": made.timed(setting.what)}
    if setting.what == "product":
        return Running(action, facts), made.read(found)
    return Running(action, {**facts, "extreme_eigenvalues": found}), np.array(found)


def _difference(found: np.ndarray, ours: np.ndarray, setting: Setting) -> float:
    """Of products relative to the norm, of eigenvalues to the largest in magnitude."""
    if setting.what == "product":
        return float(np.linalg.norm(found - ours) / np.linalg.norm(ours))
    return float(np.max(np.abs(found - ours)) / np.max(np.abs(ours)))


def take_turns(actions: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, np.ndarray]:
    """Seconds of a call in every turn of every action, [rounds]; a turn goes on for LEAST_SECONDS."""
    turns: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            time.sleep(PAUSE)
            started, calls, taken = time.perf_counter(), 0, 0.0
            while not calls or taken < LEAST_SECONDS:
                action()
                calls, taken = calls + 1, time.perf_counter() - started
            turns[name].append(taken / calls)
    return {name: np.array(seconds) for name, seconds in turns.items()}


def costs_of(name: str, turns: Mapping[str, np.ndarray], peaks: Mapping[str, int | None]) -> Record:
    """Time and memory of a tool, beside ours."""
    ratios, peak, ours = turns[name] / turns["ours"], peaks[name], peaks["ours"]
    return {
        "time_ratio": float(np.median(ratios)),
        "time_ratio_range": [float(ratios.min()), float(ratios.max())],
        "peak_memory_ratio": None if peak is None or not ours else peak / ours,
        "peak_mebibytes": None if peak is None else peak / MEBIBYTE,
        "seconds": float(np.median(turns[name])),
        "seconds_range": [float(turns[name].min()), float(turns[name].max())],
        "rounds": len(ratios),
    }


def _best(turns: Mapping[str, np.ndarray], tools: Sequence[Tool]) -> Record:
    """What is told of ours: the fastest of the others beside it, and the fastest micro-batch if several ran."""
    others = [tool.name for tool in tools if tool.kind != "ours" and tool.name in turns]
    told: Record = {"fastest_other": None, "ratio_of_fastest_other": None, "fastest_micro_batch": None}
    if others:
        fastest = min(others, key=lambda name: float(np.median(turns[name])))
        told |= {"fastest_other": fastest, "ratio_of_fastest_other": statistics.median(turns[fastest] / turns["ours"])}
    sizes = {
        tool.micro_batch: tool.name for tool in tools if tool.name.startswith("ours_micro_") and tool.name in turns
    }
    if sizes:
        told["fastest_micro_batch"] = min(sizes, key=lambda size: float(np.median(turns[sizes[size]])))
    return told


def _head(tool: Tool, setting: Setting) -> Record:
    """What a record is about, and when it was made."""
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    described = tool._asdict()
    return {"tool": described.pop("name"), **setting._asdict(), **described, "date": date}


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function in a new process."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def peak_memory(case: Case, tool: Tool, setting: Setting) -> int | None:
    """The most bytes that a tool needs at a time to get ready and run once, beyond imports and data."""
    made = KINDS[tool.kind](case, tool)
    return peak_growth(lambda: work_of(made, setting)(), lambda: _memory(case, tool))


def peak_growth(action: Callable[[], Any], memory: Callable[[], tuple[int, int] | None]) -> int | None:
    """How far the peak of `memory`, bytes now and at most, rises above what there is before an action."""
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # lowers the peak to what is resident now
    before = memory()
    action()
    after = memory()
    return None if before is None or after is None else after[1] - before[0]


def _memory(case: Case, tool: Tool) -> tuple[int, int] | None:
    """Bytes in use and their peak, of the GPU's allocator or of this process."""
    if tool.kind != "ours" and case.torch.device == "cuda":
        import torch

        return torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
    stats = jax.local_devices()[0].memory_stats() if tool.kind == "ours" else None
    return (stats["bytes_in_use"], stats["peak_bytes_in_use"]) if stats else resident_memory()


def resident_memory() -> tuple[int, int] | None:
    """Bytes of this process that are resident and their peak; None where the system does not tell.

    Not getrusage's ru_maxrss: on Linux a new process inherits that of the one that started it.
    """
    status = pathlib.Path("/proc/self/status")
    if not status.exists():
        return None
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return tuple(1024 * int(fields[name].split()[0]) for name in ("VmRSS", "VmHWM"))  # type: ignore[return-value]


def parse(arguments: list[str]) -> argparse.Namespace:
    """Reads and checks the command line.

    Raises:
      InputError: a name is unknown or a number out of range.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.spectrum",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", default="resnet32", help=f"one of {', '.join(MODELS)} (default: resnet32)")
    add("--what", default="product,spectrum", metavar="A,B,...", help=f"of {', '.join(WHAT)} (default: the first two)")
    add("--examples", type=int, default=256, help="of each class (default: 256)")
    add("--steps", type=int, default=20, help="of Lanczos (default: 20)")
    add("--micro-batch", type=int, default=fixed().micro_batch, help="examples (default: that of --task=spectrum)")
    add("--rounds", type=int, default=3, help="turns of every tool (default: 3)")
    add("--classes", default="1,2,4", metavar="A,B,...", help="numbers of classes for --what=classes (default: 1,2,4)")
    add("--probes", default="1,2,4", metavar="A,B,...", help="numbers of probes for --what=probes (default: 1,2,4)")
    add("--sizes", default="64,128,256", metavar="A,B,...", help="examples for --what=examples (default: 64,128,256)")
    add("--tools", metavar="A,B,...", help="beside ours, names or beginnings of names (default: all)")
    add("--no-memory", action="store_true", help="leave the memory out")
    add("--output", type=pathlib.Path, metavar="FILE", help="append the JSON lines to this file as well")
    options = parser.parse_args(arguments)
    options.what = options.what.split(",")
    for name, given, valid in (("model", [options.model], MODELS), ("what", options.what, WHAT)):
        for each in given:
            if each not in valid:
                raise InputError(f"--{name}: {not_found(each, valid)}")
    for name in ("examples", "steps", "micro_batch", "rounds"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name.replace('_', '-')}: expected a number >= 1, got {getattr(options, name)}")
    for name, most in (("classes", NUM_CLASSES), ("probes", None), ("sizes", None)):
        setattr(options, name, _counts(name, getattr(options, name), most))
    options.tools = options.tools and options.tools.split(",")
    known = {
        tool.name for setting in settings_of(options) for tool in tools_of(setting, options.model, options.micro_batch)
    }
    for name in options.tools or ():
        if not any(each.startswith(name) for each in known):
            raise InputError(f"--tools: {not_found(name, sorted(known))}")
    return options


def _counts(option: str, text: str, most: int | None) -> list[int]:
    """Reads whole numbers >= 1 separated by commas, or raises InputError."""
    parts = text.split(",")
    if not all(part.isdecimal() and 1 <= int(part) <= (most or int(part)) for part in parts):
        wanted = f"in 1..{most}" if most else ">= 1"
        raise InputError(f"--{option}: expected whole numbers {wanted} separated by commas, got {text!r}")
    return sorted({int(part) for part in parts})


def chosen_tools(tools: Sequence[Tool], names: Sequence[str] | None) -> list[Tool]:
    """Ours, and those whose names are or begin with one of the given; None for all."""
    beginnings = ("",) if names is None else tuple(names)
    return [tool for tool in tools if tool.name == "ours" or tool.name.startswith(beginnings)]


def run(arguments: list[str]) -> int:
    """Measures what the arguments ask for; returns the exit status."""
    options = parse(arguments)
    file = options.output and JsonLines(options.output)

    def tell(record: Record) -> None:
        print(json.dumps(plain(record)), flush=True)
        if file:
            file.append(record)

    settings = settings_of(options)
    most = [max(getattr(setting, name) for setting in settings) for name in ("classes", "examples", "probes")]
    case = make_case(options.model, *most)
    case = case._replace(torch=fastest_torch(case, min(options.examples, 64)))
    asked = {name: value for name, value in vars(options).items() if name != "output"}
    conditions = {
        "parameters": case.starts.shape[1],
        "image_shape": IMAGE_SHAPE,
        "pause_seconds": PAUSE,
        "least_seconds": LEAST_SECONDS,
        "torch": case.torch and case.torch._asdict(),
        "versions": {name: _version(name) for name in ("torch", *PACKAGES.values())},
        "machine": {**describe_machine(), "cpu_count": os.cpu_count(), "load_before": os.getloadavg()},
    }
    tell({"benchmark": "spectrum", **asked, **conditions})
    for setting in settings:
        tools = chosen_tools(tools_of(setting, options.model, options.micro_batch), options.tools)
        for record in measure(case, setting, tools, options.rounds, not options.no_memory):
            tell({"model": options.model, **record})
    return 0


def _version(package: str) -> str | None:
    """An installed package's version."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(guarded(run, sys.argv[1:]))
