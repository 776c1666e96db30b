"""What is trained together: seeds of one run, or of several runs that differ only in their learning rates."""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import optax

from imbal_jax.errors import InputError
from imbal_jax.training.folders import config_differences, seed_folder


class Run(NamedTuple):
    """One of the runs that a process trains: a run folder with all its seeds."""

    config: dict[str, Any]  # resolved
    workdir: pathlib.Path
    schedule: optax.Schedule  # of this config


class Member(NamedTuple):
    """One seed of one run."""

    run: int  # which of the process's runs
    seed: int
    folder: pathlib.Path  # of the seed
    schedule: optax.Schedule  # of its run, for the records
    # By which the step rule's updates are multiplied; None where there is only one learning rate
    factor: float | None = None


def members_of(runs: Sequence[Run], seeds: Sequence[int]) -> list[Member]:
    """All seeds of all runs.

    Every schedule is proportional to its learning rate, and every update to the schedule, so the update under another
    learning rate is the first run's times their ratio.

    Args:
      runs: the step rule has the learning rate of the first.
      seeds: of each.

    Raises:
      InputError: the runs differ in something else than their learning rates; it is named.
    """
    members = []
    for i, run in enumerate(runs):
        factor = None
        if len(runs) > 1:
            if differences := config_differences(without_rate(runs[0].config), without_rate(run.config)):
                raise InputError(f"runs trained together may differ in learning rates only: {'; '.join(differences)}")
            factor = run.config["schedule"]["learning_rate"] / runs[0].config["schedule"]["learning_rate"]
        members += [Member(i, seed, seed_folder(run.workdir, seed), run.schedule, factor) for seed in seeds]
    return members


def without_rate(config: dict[str, Any]) -> dict[str, Any]:
    """A resolved config without its learning rate."""
    return {**config, "schedule": {key: value for key, value in config["schedule"].items() if key != "learning_rate"}}


def factors_of(members: Sequence[Member]) -> Any:
    """What a state has as its factor of the learning rate: float32 [members], a number of one; () for none."""
    if members[0].factor is None:
        return ()
    factors = np.asarray([member.factor for member in members], np.float32)
    return factors if len(members) > 1 else factors[0]
