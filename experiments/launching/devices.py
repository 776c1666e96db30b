"""What each worker computes on: its share of the CPU's cores, or of the GPUs."""

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import NamedTuple

_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")  # without one of them jax computes on the CPU
_CORES_PER_WORKER = 4  # by default, where cores are many
_MEMORY_SHARE = 90  # percent of a GPU's memory that its workers share


class Slot(NamedTuple):
    """Where one worker computes."""

    name: str  # as it is told
    cpus: tuple[int, ...]  # that its threads may run on
    environment: Mapping[str, str]  # beside the launcher's


def visible_gpus(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The GPUs that jax would compute on; found without jax, which would take their memory.

    Args:
      environment: as in `os.environ`.
    """
    if environment.get("JAX_PLATFORMS", "").startswith("cpu"):
        return ()
    if not any(importlib.util.find_spec(plugin) for plugin in _PLUGINS):
        return ()
    if (visible := environment.get("CUDA_VISIBLE_DEVICES")) is not None:
        return tuple(part for part in visible.split(",") if part)
    if shutil.which("nvidia-smi") is None:
        return ()
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout.splitlines()
    return tuple(str(i) for i in range(sum(line.startswith("GPU ") for line in listed)))


def usable_cpus() -> tuple[int, ...]:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def default_workers(gpus: Sequence[str], cpus: Sequence[int]) -> int:
    """One for every GPU; else one for every four cores, and two where there are only two or three."""
    if gpus:
        return len(gpus)
    return max(len(cpus) // _CORES_PER_WORKER, min(len(cpus), 2))


def divide(workers: int, gpus: Sequence[str], cpus: Sequence[int]) -> list[Slot]:
    """Shares the devices out.

    Args:
      workers: how many, >= 1; where they are more than the GPUs, or without any than the cores, several share one.
      gpus: to share; where there are none, workers compute on the cores.
      cpus: to share.
    """
    slots = []
    for i in range(workers):
        if not gpus:
            own = _share(cpus, i, workers)
            slots.append(Slot(f"CPU {_ranges(own)}", own, {"OMP_NUM_THREADS": str(len(own))}))
            continue
        gpu = gpus[i % len(gpus)]
        # Workers on one GPU share its cores: each needs many while it compiles and hardly one afterwards.
        own = _share(cpus, i % len(gpus), min(workers, len(gpus)))
        environment = {"OMP_NUM_THREADS": str(len(own))}
        beside = len(range(i % len(gpus), workers, len(gpus)))  # workers on this GPU
        environment["CUDA_VISIBLE_DEVICES"] = gpu
        if beside > 1:
            environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{_MEMORY_SHARE // beside / 100:.2f}"
        slots.append(Slot(f"GPU {gpu}", own, environment))
    return slots


def _share(cpus: Sequence[int], i: int, workers: int) -> tuple[int, ...]:
    """The i-th of as equal parts as possible; a single core where there are more workers than cores."""
    if workers >= len(cpus):
        return (cpus[i % len(cpus)],)
    return tuple(cpus[i * len(cpus) // workers : (i + 1) * len(cpus) // workers])


def _ranges(cpus: Sequence[int]) -> str:
    """Cores for people to read: "0-3"."""
    return str(cpus[0]) if len(cpus) == 1 else f"{cpus[0]}-{cpus[-1]}"
