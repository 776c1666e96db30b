"""What the command line of `experiments.launch` asks for."""

import argparse
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

from experiments.launching.jobs import Paths
from experiments.seeds import parse_seeds
from experiments.selection import parse_only, select
from experiments.study import Study, load_study, study_names
from imbal_jax.config import parse_overrides
from imbal_jax.errors import InputError

_SLURM = "partition, time (minutes), cpus_per_task, gpus_per_node, mem, ... as in submitit; repeatable"


class Options(NamedTuple):
    """What the command line asks for."""

    study: Study
    whole: bool  # whether it has all its cells
    paths: Paths
    seeds: tuple[int, ...]
    overrides: Mapping[str, str]
    executor: str
    slurm: Mapping[str, str]
    workers: int | None
    retries: int
    dry_run: bool
    estimate: bool


def parse(arguments: list[str], description: str | None) -> Options:
    """Reads and checks the command line.

    Args:
      arguments: of the command line.
      description: of the command, for --help.

    Raises:
      InputError: an argument is unknown or out of range, or the study is none.
    """
    parser = argparse.ArgumentParser(
        prog="python -m experiments.launch",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("study", metavar="STUDY", help=f"a study's file, or one of {', '.join(study_names())}")
    parser.add_argument("--executor", choices=("local", "slurm"), default="local", help="where (default: local)")
    parser.add_argument("--workers", type=int, metavar="N", help="runs at once (default: by the GPUs or cores)")
    parser.add_argument("--seeds", metavar="0,1,2", help="instead of the study's")
    parser.add_argument("--workdir", default="runs", metavar="DIR", help="default: runs")
    parser.add_argument("--dry-run", action="store_true", help="show what would be trained, and train nothing")
    parser.add_argument("--estimate", action="store_true", help="time a few steps, predict time and memory, stop there")
    parser.add_argument("--only", action="append", default=[], metavar="AXIS=V1,V2", help="some cells; repeatable")
    parser.add_argument("--slurm", action="append", default=[], metavar="KEY=VALUE", help=_SLURM)
    parser.add_argument("--retries", type=int, default=1, metavar="N", help="of a failed run (default: 1)")
    given, rest = parser.parse_known_args(arguments)
    for name, least in (("workers", 1), ("retries", 0)):
        value = getattr(given, name)
        if value is not None and value < least:
            raise InputError(f"--{name}: expected a whole number >= {least}, got {value}")
    if given.estimate and given.dry_run:
        raise InputError("--estimate: expected it without --dry-run, which times nothing")
    workdir = _folder(given.workdir)
    study = select(load_study(given.study, workdir), parse_only(given.only))
    if not any(True for _ in study.cells()):
        raise InputError(f"--only: expected at least one cell, got none with {' '.join(given.only)}")
    overrides = parse_overrides(rest)
    if "seeds" in overrides:
        raise InputError(f"--config.seeds: expected --seeds={overrides['seeds']} in its place")
    return Options(
        study=study,
        whole=not given.only,
        paths=Paths(workdir / study.name),
        seeds=study.seeds if given.seeds is None else parse_seeds(given.seeds),
        overrides=overrides,
        executor=given.executor,
        slurm=parse_slurm(given.slurm, given.executor),
        workers=given.workers,
        retries=given.retries,
        dry_run=given.dry_run,
        estimate=given.estimate,
    )


def _folder(text: str) -> pathlib.Path:
    """The folder of all studies, which need not be there yet."""
    path = pathlib.Path(text).expanduser().absolute()
    if not text or (path.exists() and not path.is_dir()):
        raise InputError(f"--workdir: expected a folder, got {text!r}")
    return path


def parse_slurm(texts: list[str], executor: str) -> dict[str, str]:
    """Reads "key=value" of every --slurm.

    Raises:
      InputError: a text is something else, or the executor is another.
    """
    if texts and executor != "slurm":
        raise InputError(f"--slurm: expected --executor=slurm beside it, got {executor}")
    pairs = [text.partition("=") for text in texts]
    for text, (key, equals, value) in zip(texts, pairs, strict=True):
        if not key or not equals or not value:
            raise InputError(f"--slurm: expected KEY=VALUE, got {text!r}")
    return {key: value for key, _, value in pairs}
