"""Measures jobs in a process of its own: python -m experiments.launching.probe REQUEST.json ANSWER.json.

A process of its own, because the launcher must not take the memory of a GPU, and because the peak of memory is that of
a process.
"""

import json
import os
import pathlib
import resource
import sys
import tempfile
import time
from typing import Any

# Of a timed training: enough for a steady epoch after those that compile.
_EPOCHS, _STEPS = 4, 10
_REPETITIONS, _MOST_REPETITIONS, _SECONDS = 3, 30, 0.5  # of steps that are timed; more than the fewest if they are fast


def run(arguments: list[str]) -> int:
    """Answers a request.

    The request has "what", "seeds" or "jobs"; the "cpus" to run on; the time at which the process was "started";
    "configs", resolved; and for seeds that stand for learning rates how many would be trained "at_once" if not all.
    """
    request = json.loads(pathlib.Path(arguments[0]).read_text())
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(request["cpus"]))
    from imbal_jax.reports.records import write_json  # jax: after the cores have been chosen

    answer = _of_seeds(request) if request["what"] == "seeds" else _of_jobs(request)
    write_json(arguments[1], answer)
    return 0


def _of_seeds(request: dict[str, Any]) -> list[dict[str, Any]]:
    """What decides whether the seeds of each config are trained together.

    On a CPU whether the model convolves; on an accelerator, and of learning rates where it does not, the time of a step
    and the memory, apart and together.
    """
    import jax

    from imbal_jax.training.programs import has_convolutions
    from imbal_jax.training.streaming import is_streamed

    answers = []
    for config in request["configs"]:
        experiment = _build(config)
        answer: dict[str, Any] = {"backend": jax.default_backend()}
        answer["streamed"] = is_streamed(experiment.data.train.images)
        answer["convolutions"] = has_convolutions(experiment)
        known = answer["backend"] == "cpu" and (request["at_once"] is None or answer["convolutions"])
        if not known and not answer["streamed"]:
            answer["apart"] = time_steps(experiment, experiment.seeds[: request["at_once"] or 1])
            answer["together"] = _time_together(experiment)
        answers.append(answer)
    return answers


def _time_together(experiment: Any) -> dict[str, Any] | None:
    """The steps of all seeds at once; None where the memory does not hold them."""
    import jax

    try:
        return time_steps(experiment, experiment.seeds)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower():
            return None
        raise


def _of_jobs(request: dict[str, Any]) -> dict[str, Any]:
    """The times and the memory of the first config's job, and the lengths of all, which differ only in these.

    A short training of a few epochs of a few steps tells everything but a step: once with its compilation, once with
    the compiled programs at hand, as later seeds find them.
    """
    import jax

    from imbal_jax.training.programs import train_seeds_together
    from imbal_jax.types import Horizon

    experiment = _build(request["configs"][0])
    startup = time.time() - request["started"]
    steps = min(experiment.horizon.steps_per_epoch, _STEPS)
    short = experiment._replace(horizon=Horizon(steps, min(experiment.horizon.epochs, _EPOCHS)))
    # Seeds one after the other in one run take their epochs one after the other.
    repeats = 1 if train_seeds_together(short) else len(short.seeds)
    first, _ = _time_training(short)
    jax.clear_caches()
    again, epoch = _time_training(short)
    step = time_steps(short, short.seeds if repeats == 1 else short.seeds[:1])["seconds"]
    horizons = [_build(config).horizon for config in request["configs"]]
    return {
        "startup": startup,
        "first": first,
        "again": again,
        "epochs": short.horizon.epochs * repeats,
        "repeats": repeats,
        "steps": steps,
        "epoch": max(epoch - steps * step, 0.0),  # beside the steps: validation and records
        "step": step,
        "bytes": _peak_bytes(),
        "horizons": [[horizon.steps_per_epoch, horizon.epochs] for horizon in horizons],
    }


def _time_training(experiment: Any) -> tuple[float, float]:
    """Seconds of a whole run in a folder that is thrown away, and of its last epochs."""
    import numpy as np

    from imbal_jax.reports.records import read
    from imbal_jax.training.run import train

    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        train(experiment, {}, pathlib.Path(folder))
        seconds = time.perf_counter() - started
        records = read(pathlib.Path(folder) / f"seed_{experiment.seeds[0]}" / "metrics.jsonl")
    return seconds, float(np.median([record["seconds"] for record in records][len(records) // 2 :]))


def time_steps(experiment: Any, seeds: tuple[int, ...]) -> dict[str, Any]:
    """The seconds of a training step after compilation, and the peak of memory of this process so far.

    Args:
      experiment: the parts of the run.
      seeds: one, or several to train together.
    """
    from imbal_jax.training.programs import compile_programs
    from imbal_jax.training.step import read_metrics

    stacked = len(seeds) > 1
    programs = compile_programs(experiment, stacked=stacked)
    state, keys = programs.initial(seeds), programs.keys(seeds)
    indices = programs.draw(keys.order, 0)
    count = min(experiment.horizon.steps_per_epoch, experiment.training.steps_per_call)
    seconds: list[float] = []
    while len(seconds) < _REPETITIONS or (len(seconds) < _MOST_REPETITIONS and sum(seconds[1:]) * count < _SECONDS):
        started = time.perf_counter()
        state, metrics = programs.drive(state, programs.train_data, indices, keys.step, 0, count)
        read_metrics(metrics)
        seconds.append((time.perf_counter() - started) / count)
    return {"seconds": min(seconds[1:]), "bytes": _peak_bytes()}


def _build(config: dict[str, Any]) -> Any:
    """The parts of a run."""
    from ml_collections import ConfigDict

    from imbal_jax.build import build_experiment
    from imbal_jax.resolve import resolve

    return build_experiment(resolve(ConfigDict(config)))


def _peak_bytes() -> int:
    """The most memory in use so far: of the accelerator, or of the process where there is none."""
    import jax

    statistics = jax.local_devices()[0].memory_stats() or {}
    in_kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(statistics.get("peak_bytes_in_use", in_kilobytes * 1024))


if __name__ == "__main__":
    from imbal_jax.main import guarded

    sys.exit(guarded(run, sys.argv[1:]))
