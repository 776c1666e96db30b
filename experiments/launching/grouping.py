"""Whether seeds and learning rates are trained together by vmap: where it is faster and the memory holds them."""

import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments.launching.devices import Slot
from experiments.launching.jobs import Paths, read_notes
from experiments.launching.plan import Together, with_seeds
from experiments.launching.pool import worker_environment
from imbal_jax.errors import InputError
from imbal_jax.reports.records import plain, write_json

_GAIN = 1.05  # by how much together must be faster: apart, workers share the seeds and lose less when killed
# Learning rates may even lose a little: one process starts and compiles in the place of several.
_GAIN_OF_RATES = 0.9
# What the answer depends on: on a CPU only the kind of network.
_ON_CPU = ("data", "classes", "model")
_ON_ACCELERATOR = (*_ON_CPU, "augmentation", "correction", "direction", "step_rule", "training")


def decide(
    paths: Paths,
    configs: Mapping[str, ConfigDict],
    cells: Sequence[str],
    seeds: tuple[int, ...],
    slot: Slot,
    at_once: int | None = None,
) -> dict[str, Together]:
    """Decides for some cells; what has been measured before is read from launch/grouping.json.

    Args:
      paths: of the study.
      configs: of all cells.
      cells: those to decide for.
      seeds: to train of each.
      slot: where it is measured.
      at_once: given by `decide_rates`.

    Raises:
      InputError: a measurement failed; the last lines it printed are given.
    """
    on_gpu = _is_gpu(slot)
    file = paths.launch / "grouping.json"
    known = read_notes(file)
    decisions, keys = {}, {}
    for cell in cells:
        config = plain(configs[cell].to_dict())
        choice = config["training"]["seeds_together"]
        if choice != "auto":
            decisions[cell] = Together(choice == "yes", f"training.seeds_together={choice}")
            continue
        if on_gpu or at_once is not None:
            keys[cell] = signature(config, seeds, _ON_ACCELERATOR, f"{slot.name}, {at_once} at once")
        else:
            keys[cell] = signature(config, (), _ON_CPU, "CPU")
    to_measure = {key: cell for cell, key in keys.items() if key not in known}
    requests = [with_seeds(plain(configs[cell].to_dict()), seeds, "auto") for cell in to_measure.values()]
    # On an accelerator a process for each, because the peak of memory is that of a process.
    batches = [[request] for request in requests] if on_gpu else [requests] if requests else []
    answers = [answer for batch in batches for answer in ask(paths, "seeds", batch, slot, at_once)]
    for (key, cell), answer in zip(to_measure.items(), answers, strict=True):
        known[key] = {"cell": cell, **judge(answer, len(seeds), at_once)._asdict(), "measured": answer}
    if to_measure:
        write_json(file, known)
    return {
        cell: decisions.get(cell) or Together(known[keys[cell]]["together"], known[keys[cell]]["why"]) for cell in cells
    }


def decide_rates(
    paths: Paths, configs: Mapping[str, ConfigDict], cell: str, seeds: int, at_once: int, slot: Slot
) -> Together:
    """Decides for cells that differ only in their learning rates.

    Another learning rate costs what another seed costs: as many seeds of one cell are timed as all cells have together.
    What convolves on a CPU is not timed.

    Args:
      paths: of the study.
      configs: of all cells.
      cell: one of these.
      seeds: of all of these.
      at_once: how many seeds of one cell are trained together.
      slot: where it is measured.

    Raises:
      InputError: see `decide`.
    """
    given = (paths, configs, [cell], tuple(range(seeds)), slot)
    if not _is_gpu(slot) and not (of_network := decide(*given)[cell]).together:
        return of_network
    return decide(*given, at_once)[cell]


def _is_gpu(slot: Slot) -> bool:
    """Whether a worker computes on a GPU."""
    return slot.name.startswith("GPU")


def judge(answer: Mapping[str, Any], seeds: int, at_once: int | None = None) -> Together:
    """What a measurement says.

    Args:
      answer: of `experiments.launching.probe`.
      seeds: how many would be trained together.
      at_once: of learning rates, how many seeds would else be; None of seeds, which would be one after the other.
    """
    if answer["streamed"]:
        return Together(False, "examples come from the host")
    if "apart" not in answer:
        if answer["convolutions"]:
            return Together(False, "convolutions on a CPU: vmap makes slower, grouped ones of them")
        return Together(True, "no convolutions: small products become larger ones")
    if answer["together"] is None:
        return Together(False, f"the memory does not hold {seeds} seeds")
    apart, together = seeds / (at_once or 1) * answer["apart"]["seconds"], answer["together"]["seconds"]
    else_how = "one after the other" if at_once in (None, 1) else f"{at_once} at a time"
    told = f"a step of {seeds} seeds takes {1e3 * together:.3g} ms together, {1e3 * apart:.3g} ms {else_how}"
    if at_once is None:
        return Together(together * _GAIN < apart, told)
    return Together(together * _GAIN_OF_RATES < apart, f"{told}; apart, each cell starts and compiles for itself")


def signature(config: Mapping[str, Any], seeds: Sequence[int], sections: Sequence[str], device: str) -> str:
    """A short hash of what a measurement depends on."""
    parts = [device, len(seeds), *(config.get(section) for section in sections)]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).hexdigest()


def ask(paths: Paths, what: str, configs: Sequence[Mapping[str, Any]], slot: Slot, at_once: int | None = None) -> Any:
    """Has something measured in a process of its own, see `experiments.launching.probe`.

    Raises:
      InputError: the process failed; the last lines it printed are given.
    """
    with tempfile.TemporaryDirectory() as folder:
        request, answer = Path(folder) / "request.json", Path(folder) / "answer.json"
        # Its own compiled programs: what is measured is a first run.
        environment = {
            **worker_environment(paths),
            **slot.environment,
            "JAX_COMPILATION_CACHE_DIR": f"{folder}/compiled",
        }
        asked = {"what": what, "cpus": slot.cpus, "started": time.time(), "configs": configs, "at_once": at_once}
        write_json(request, asked)
        command = [sys.executable, "-m", "experiments.launching.probe", str(request), str(answer)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise InputError(f"measuring failed: {' / '.join(done.stderr.splitlines()[-3:])}")
        return json.loads(answer.read_text())
