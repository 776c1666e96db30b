"""The run folder: what lies where, and what must match when a run continues."""

import datetime
import json
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Any

import jax

from imbal_jax.errors import CheckpointError
from imbal_jax.reports.records import write_json

# Versions recorded beside every result.
_PACKAGES = ("imbal_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy", "scikit-learn")


def seed_folder(workdir: pathlib.Path, seed: int) -> pathlib.Path:
    """Where one seed's records, checkpoints and figures lie."""
    return workdir / f"seed_{seed}"


def claim(
    workdir: pathlib.Path,
    config: dict[str, Any],
    fingerprint: str,
    complete: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> bool:
    """Starts a run in a folder, or continues the run that it holds.

    Args:
      workdir: the run folder; created if missing.
      config: the resolved config, nested dicts.
      fingerprint: of the data, and of frozen weights where there are any.
      complete: gives a stored config the options that are newer than the run.

    Returns:
      Whether the folder held this run already.

    Raises:
      CheckpointError: the folder cannot be written, or holds a run of another config or other data; the differing keys
        are named.
    """
    _require_writable(workdir)
    stored = read_config(workdir, missing_ok=True)
    marker = workdir / "data_fingerprint.txt"
    if stored is None:
        _write_text(marker, fingerprint)
        write_json(workdir / "config.json", config)
        return False
    differences = config_differences(stored, config)
    if differences and complete is not None:
        differences = config_differences(complete(stored), config)
    if differences:
        raise CheckpointError(
            f"workdir: {workdir} holds a run of another config: {'; '.join(differences)}; use another workdir"
        )
    seen = marker.read_text().strip() if marker.exists() else "nothing"
    if seen != fingerprint:
        raise CheckpointError(
            f"workdir: {workdir} holds a run on other data or frozen weights (fingerprint {seen}, now {fingerprint});"
            " use another workdir"
        )
    return True


def read_config(workdir: pathlib.Path, *, missing_ok: bool = False) -> dict[str, Any] | None:
    """The resolved config of a run folder.

    Raises:
      CheckpointError: there is none, unless missing_ok, or it cannot be read.
    """
    path = workdir / "config.json"
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        if missing_ok:
            return None
        raise CheckpointError(f"workdir: expected a run folder with a config.json, found none at {path}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"workdir: cannot read {path}: {error}") from error


def config_differences(stored: dict[str, Any], given: dict[str, Any]) -> list[str]:
    """The leaves in which two configs of runs differ, "key: stored X, given Y".

    How a run is looked at is no part of it: the section `spectrum` and the option `evaluation.grid` may differ.
    """
    old, new = _leaves(json.loads(json.dumps(stored))), _leaves(json.loads(json.dumps(given)))
    looks = ("spectrum.", "evaluation.grid")
    old, new = ({key: leaf for key, leaf in each.items() if not key.startswith(looks)} for each in (old, new))
    absent = "nothing"
    return [
        f"{key}: stored {old.get(key, absent)!r}, given {new.get(key, absent)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, absent) != new.get(key, absent)
    ]


def _leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A nested dict as {dotted key: leaf}."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        name: leaf
        for key, value in tree.items()
        for name, leaf in _leaves(value, f"{prefix}.{key}" if prefix else key).items()
    }


def describe_machine() -> dict[str, Any]:
    """Versions, device and commit: what a result needs beside it to be believed."""
    devices = jax.local_devices()
    return {
        "command": sys.argv,
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "backend": jax.default_backend(),
        "devices": [device.device_kind for device in devices],
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _processor() -> str | None:
    """The processor's name, where the system tells it."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)


def _version(package: str) -> str | None:
    """An installed package's version."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit of the source tree, with "+changes" if it is not clean; None outside of git."""
    here = pathlib.Path(__file__).parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10)
        changes = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if commit.returncode:
        return None
    return commit.stdout.strip() + ("+changes" if changes.stdout.strip() else "")


def _require_writable(directory: pathlib.Path) -> None:
    """Creates a directory and writes into it, or raises CheckpointError."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"workdir: cannot create {directory}: {error.strerror or error}") from error
    _write_text(directory / ".writable", "")
    (directory / ".writable").unlink(missing_ok=True)


def _write_text(path: pathlib.Path, text: str) -> None:
    """Writes a small file, or raises CheckpointError."""
    try:
        path.write_text(text)
    except OSError as error:
        raise CheckpointError(f"workdir: cannot write to {path.parent}: {error.strerror or error}") from error
