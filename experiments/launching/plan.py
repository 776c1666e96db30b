"""From a study to jobs: what its folders hold already and what is still to be trained."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from experiments.launching.jobs import INTERRUPTED, PENDING, Job, Paths, run_folder
from experiments.seeds import cell_runs, finished_seeds, read_object, result_file
from experiments.study import Cell, Study, cell_config, cell_name
from imbal_jax.errors import InputError
from imbal_jax.reports.records import plain
from imbal_jax.resolve import completed
from imbal_jax.training.experiment import (
    EvaluationOptions,
    TrainingOptions,
    check_evaluation_options,
    check_training_options,
)
from imbal_jax.training.folders import config_differences, read_config


class Together(NamedTuple):
    """Whether the seeds of a cell, or several cells, are trained at once, and why."""

    together: bool
    why: str


class Plan(NamedTuple):
    """What there is to do."""

    jobs: tuple[Job, ...]
    finished: Mapping[str, tuple[int, ...]]  # by cell, of the seeds asked for


def resolved_cells(study: Study, seeds: tuple[int, ...], overrides: Mapping[str, str]) -> dict[str, ConfigDict]:
    """The config of every cell, all checked before anything starts.

    Raises:
      InputError: a config or one of its options is no valid one; the cell is named.
    """
    configs = {}
    for cell in study.cells():
        config = cell_config(study, cell, seeds, overrides)
        check_options(cell, config)
        configs[cell_name(cell)] = config
    return configs


def check_options(cell: Cell, config: ConfigDict) -> None:
    """Checks what can be checked without the data.

    Raises:
      InputError: an option of the sections training or evaluation is out of range.
    """
    try:
        check_training_options(TrainingOptions(**config.training), config.validation.fraction > 0)
        check_evaluation_options(EvaluationOptions(**config.evaluation))
    except InputError as error:
        raise InputError(f"{cell_name(cell)}: {error}") from error


def check_stored(paths: Paths, configs: Mapping[str, ConfigDict]) -> None:
    """Refuses run folders that were trained with another config; seeds may have been grouped otherwise.

    Raises:
      InputError: a run has another config; the differing leaves are named. Or a file of it is damaged.
    """
    for cell, config in configs.items():
        given = plain(config.to_dict())
        for seeds, run in cell_runs(paths.runs / cell).items():
            stored = _stored_config(run)
            _check_results(run, seeds)
            differences = config_differences(stored, with_seeds(given, seeds, _together(stored)))
            if differences:
                raise InputError(
                    f"--workdir: {run} holds a run of another config: {'; '.join(differences)}; use another workdir"
                )


def _stored_config(run: pathlib.Path) -> dict[str, Any]:
    """The config of a run folder, with the options that are newer than it; one that is none is told with its file."""
    try:
        return completed(read_config(run) or {})
    except (InputError, AttributeError, TypeError, ValueError) as error:
        raise InputError(f"--workdir: {run / 'config.json'} is no resolved config: {error}") from error


def _check_results(run: pathlib.Path, seeds: Sequence[int]) -> None:
    """Refuses a damaged result, which would count as a finished seed."""
    for file in (result_file(run, seed) for seed in seeds):
        try:
            if file.exists():
                read_object(file)
        except InputError as error:
            raise InputError(f"--workdir: {file} is damaged; without it the seed is tested again") from error


def with_seeds(config: dict[str, Any], seeds: Sequence[int], together: str) -> dict[str, Any]:
    """The config of a run of some seeds of a cell."""
    training = {**config["training"], "seeds_together": together}
    return {**config, "seeds": ",".join(map(str, seeds)), "training": training}


def _together(config: dict[str, Any]) -> str:
    """How a config groups its seeds."""
    return config["training"]["seeds_together"]


def make_plan(
    paths: Paths,
    configs: Mapping[str, ConfigDict],
    seeds: tuple[int, ...],
    together: Callable[[str], Together],
) -> Plan:
    """What lies in the folders, and the jobs for the rest.

    Args:
      paths: of the study.
      configs: of the cells, see `resolved_cells`.
      seeds: to train of every cell.
      together: by cell, whether seeds that nothing is known of yet are trained together.
    """
    jobs: list[Job] = []
    finished = {}
    for cell, config in configs.items():
        of_cell = cell_jobs(paths, cell, plain(config.to_dict()), seeds, together)
        jobs += of_cell
        left = {seed for job in of_cell for seed in job.seeds}
        finished[cell] = tuple(seed for seed in seeds if seed not in left)
    # What has begun first, then seed by seed: later seeds find programs compiled, and all cells show results soon.
    jobs.sort(key=lambda job: (job.state != INTERRUPTED, seeds.index(job.seeds[0]) if job.seeds[0] in seeds else 0))
    return Plan(tuple(jobs), finished)


def cell_jobs(
    paths: Paths,
    cell: str,
    config: dict[str, Any],
    seeds: tuple[int, ...],
    together: Callable[[str], Together],
) -> list[Job]:
    """The jobs of one cell: runs that have begun are resumed as they are, the other seeds are grouped anew."""
    folder = paths.runs / cell
    done = finished_seeds(folder)
    missing = [seed for seed in seeds if seed not in done]
    jobs = []
    for run_seeds, run in cell_runs(folder).items():
        left = [seed for seed in run_seeds if seed not in done]
        if any(seed in done and done[seed] != run for seed in run_seeds):
            continue  # resumed, it would train again what another run has finished
        # A run that was killed after its last result lacks its summary, which takes no training.
        unsummarised = not left and set(run_seeds) <= set(seeds) and not (run / "summary.json").exists()
        if unsummarised or (left and set(left) <= set(missing)):
            stored = _stored_config(run)
            jobs.append(Job(cell, run_seeds, INTERRUPTED, with_seeds(config, run_seeds, _together(stored))))
            missing = [seed for seed in missing if seed not in run_seeds]
    if not missing:
        return jobs
    grouped = len(missing) > 1 and together(cell).together
    groups = [tuple(missing)] if grouped else [(seed,) for seed in missing]
    choice = "yes" if grouped else _together(config)
    return jobs + [Job(cell, group, PENDING, with_seeds(config, group, choice)) for group in groups]


def remaining(paths: Paths, job: Job) -> Job | None:
    """A job without the seeds that other runs have finished since it was planned, which then leaves its group.

    None where nothing is left to do.
    """
    run, done = run_folder(paths, job), finished_seeds(paths.runs / job.cell)
    left = tuple(seed for seed in job.seeds if seed not in done or done[seed] == run)
    if not left:
        return None
    if left != job.seeds:
        config = with_seeds(job.config, left, _together(job.config))
        return remaining(paths, job._replace(seeds=left, config=config, group=""))
    return None if set(left) <= set(done) and (run / "summary.json").exists() else job
