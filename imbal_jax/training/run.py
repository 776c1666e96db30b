"""A whole run: seeds together or one after the other, the test set once, the summary."""

import hashlib
import json
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from imbal_jax.data.dataset import Split
from imbal_jax.errors import CheckpointError, NonFiniteLossError
from imbal_jax.evaluation.binary_metrics import operating_points
from imbal_jax.evaluation.evaluate import Scores, read_sums
from imbal_jax.reports import figures
from imbal_jax.reports.binary_figures import binary_curves_figure
from imbal_jax.reports.progress import Progress
from imbal_jax.reports.records import plain, read, write_json
from imbal_jax.reports.summaries import summarise
from imbal_jax.training.checkpoints import Checkpoints, Restored, restore_newest
from imbal_jax.training.conditions import evaluate_conditions, write_scores
from imbal_jax.training.experiment import Experiment
from imbal_jax.training.folders import claim, describe_machine, seed_folder
from imbal_jax.training.interruption import StopRequest
from imbal_jax.training.loop import Best, Fitted, TellLost, best_in, fit, seeds_scores, split_metrics
from imbal_jax.training.members import Member, Run, members_of
from imbal_jax.training.programs import Programs, compile_programs, train_seeds_together
from imbal_jax.training.state import count_parameters, join_seeds, split_seeds, stored_form
from imbal_jax.training.streaming import is_streamed


def train(
    experiment: Experiment,
    config: dict[str, Any],
    workdir: pathlib.Path,
    stop: StopRequest | None = None,
    complete: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Trains every seed, tests its best parameters, and writes the run folder.

    A run folder that holds a part of this run is continued, a finished one only summarised again.

    Args:
      experiment: the parts of the run.
      config: the resolved config it was built from.
      workdir: the run folder.
      stop: asks for an early end; never by default.
      complete: gives the config of a folder the options that are newer than the folder; there are none by default.

    Returns:
      The content of summary.json, see `imbal_jax.reports.summaries.summarise`.

    Raises:
      CheckpointError: the folder cannot be used, see `claim`, or a checkpoint cannot be written or read.
      NonFiniteLossError: a loss or parameter became NaN or infinite; nothing is saved after it.
      Interrupted: see `fit`.
    """
    run = Run(config, workdir, experiment.schedule)
    outcome = train_together(experiment, [run], stop, complete)[0]
    if isinstance(outcome, NonFiniteLossError):
        raise outcome
    return outcome


def train_together(
    experiment: Experiment,
    runs: Sequence[Run],
    stop: StopRequest | None = None,
    complete: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    tell_lost: TellLost = lambda run, error: None,
) -> list[dict[str, Any] | NonFiniteLossError]:
    """Trains runs that differ only in their learning rates, all seeds of all at once, each into its own folder.

    Every folder becomes what `train` would make of it, up to the rounding of batched products, and can be continued by
    itself. Where examples come from the host, it is one after the other.

    Args:
      experiment: the parts of the first run.
      runs: one or several.
      stop: asks for an early end; never by default.
      complete: see `train`.
      tell_lost: called as soon as a run is given up, with its index and why.

    Returns:
      For every run the content of its summary.json, or why it was given up.

    Raises:
      InputError: the runs differ in something else.
      CheckpointError, Interrupted: see `train`.
    """
    for run in runs:
        claim(run.workdir, run.config, _fingerprint(experiment), complete)
    started, machine = time.perf_counter(), describe_machine() | {"runs_together": len(runs)}
    pending = [member for member in members_of(runs, experiment.seeds) if _result(member.folder) is None]
    begun = [runs[i] for i in sorted({member.run for member in pending})]
    for run in begun:
        write_json(run.workdir / "metadata.json", machine)
    lost = _train_members(experiment, pending, stop or StopRequest(), tell_lost, several=len(runs) > 1)
    for run in begun:  # each with its share
        seconds = (time.perf_counter() - started) / len(begun)
        write_json(run.workdir / "metadata.json", {**machine, "wall_seconds": seconds})
    return [lost[i] if i in lost else _summary(experiment, run.workdir) for i, run in enumerate(runs)]


def _train_members(
    experiment: Experiment, members: list[Member], stop: StopRequest, tell_lost: TellLost, *, several: bool
) -> dict[int, NonFiniteLossError]:
    """Trains and tests members, together or one after the other; returns why runs were given up, by run."""
    several = several and not is_streamed(experiment.data.train.images)
    together = len(members) > 1 and (several or train_seeds_together(experiment))
    groups = [members] if together else [[member] for member in members]
    programs = compile_programs(experiment, stacked=together) if members else None
    lost: dict[int, NonFiniteLossError] = {}
    with Progress(len(members) * experiment.horizon.epochs, experiment.data.name) as progress:
        for group in groups:
            if group[0].run in lost:
                continue
            assert programs is not None
            fitted = fit(experiment, programs, group, stop, progress.epoch, tell_lost)
            _test(experiment, programs, group, fitted)
            lost |= {member.run: one.lost for member, one in zip(group, fitted, strict=True) if one.lost is not None}
    return lost


def _fingerprint(experiment: Experiment) -> str:
    """A short hash of the data, and of the variables that come from elsewhere: constants, and what seeds start from."""
    given = jax.tree.leaves((experiment.constants, experiment.pretrained))
    if not given:
        return experiment.data.fingerprint
    digest = hashlib.blake2b(experiment.data.fingerprint.encode(), digest_size=16)
    for leaf in given:
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()


def _test(experiment: Experiment, programs: Programs, members: Sequence[Member], fitted: list[Fitted]) -> None:
    """Evaluates the best parameters of every member on the test set, once, and writes each result but of lost runs."""
    if all(one.lost is not None for one in fitted):
        return
    bests = [one.best for one in fitted]
    tested = _test_all(experiment, programs, bests)
    noise = noise_metrics(experiment, programs, bests)
    conditions = evaluate_conditions(experiment, programs, bests)
    of_members = zip(members, fitted, tested, noise, conditions, strict=True)
    for member, one, (metrics, scores), noisy, at_conditions in of_members:
        if one.lost is not None:
            continue
        params = one.best.variables["params"]
        result = {
            "num_params": count_parameters(params) + experiment.num_constants,
            "num_trainable": count_parameters(params, experiment.frozen),
            "class_counts": experiment.data.counts.counts,
            **metrics,
            **noisy,
            **({} if at_conditions is None else at_conditions.tuned()),
            "best_step": one.best.step,
            "seconds_per_epoch": one.seconds_per_epoch,
        }
        if experiment.record.figures:
            _draw(experiment, member.folder, metrics.get("test/confusion"), scores)
        write_scores(member.folder, scores, at_conditions)
        write_json(member.folder / "result.json", result)


def all_test_metrics(experiment: Experiment, programs: Programs, bests: list[Best]) -> list[dict[str, Any]]:
    """Metrics of every test split, under "test/..." and for further ones under their own names, for every seed.

    Of a conditional correction they are those at its default condition.

    Args:
      experiment: the parts of the run.
      programs: compiled for this number of seeds.
      bests: the parameters of every seed.
    """
    return [metrics for metrics, _ in _test_all(experiment, programs, bests)]


def _test_all(
    experiment: Experiment, programs: Programs, bests: list[Best]
) -> list[tuple[dict[str, Any], Scores | None]]:
    """`all_test_metrics`, with the scores of the test split where there are two classes."""
    found: list[dict[str, Any]] = [{} for _ in bests]
    kept: list[Scores | None] = [None] * len(bests)
    for name, split in {"test": experiment.data.test, **experiment.data.more_tests}.items():
        for i, (metrics, scores) in enumerate(_evaluated(experiment, programs, bests, split)):
            found[i].update({f"{name}/{key}": value for key, value in metrics.items()})
            kept[i] = scores if name == "test" else kept[i]
    return list(zip(found, kept, strict=True))


def noise_metrics(experiment: Experiment, programs: Programs, bests: list[Best]) -> list[dict[str, Any]]:
    """How the training set's wrong labels were taken, for every seed; nothing where there are none.

    Args:
      experiment: the parts of the run.
      programs: compiled for this number of seeds.
      bests: the parameters of every seed.

    Returns:
      "train/label_noise", the share of wrong labels; the accuracy on the training set by the labels that were trained
      on, "train/accuracy", and by those before the noise, "train/clean_accuracy", without augmentation.
    """
    clean, given = experiment.data.clean_labels, experiment.data.train
    if clean is None:
        return [{} for _ in bests]
    of_given = _evaluated(experiment, programs, bests, given)
    of_clean = _evaluated(experiment, programs, bests, given._replace(labels=clean))
    return [
        {
            "train/label_noise": float(np.mean(given.labels != clean)),
            "train/accuracy": by_given["accuracy"],
            "train/clean_accuracy": by_clean["accuracy"],
        }
        for (by_given, _), (by_clean, _) in zip(of_given, of_clean, strict=True)
    ]


def _evaluated(
    experiment: Experiment, programs: Programs, bests: list[Best], split: Split
) -> list[tuple[dict[str, Any], Scores | None]]:
    """Metrics of a split for every seed, with the confusion matrix if it is to be kept, and the scores."""
    # The correction is that of the moment the parameters are from: its predictive logits belong to them.
    progress = join_seeds([np.float32(best.step / experiment.horizon.total_steps) for best in bests])
    variables = programs.place(join_seeds([best.variables for best in bests]))
    placed = programs.place_split(split)
    batches = programs.evaluate(variables["params"], variables["model_state"], progress, placed)
    sums, scores = split_seeds(read_sums(batches), len(bests)), seeds_scores(batches, len(bests))
    found = [split_metrics(experiment, one, of_one) for one, of_one in zip(sums, scores, strict=True)]
    if experiment.record.confusion:
        for metrics, one in zip(found, sums, strict=True):
            metrics["confusion"] = one.confusion.astype(int).tolist()
    return list(zip(found, scores, strict=True))


def best_of_run(programs: Programs, workdir: pathlib.Path, seed: int) -> Best:
    """The best parameters in a run folder, in host memory; see `restored_run`."""
    return best_in(restored_run(programs, workdir, seed))


def restored_run(programs: Programs, workdir: pathlib.Path, seed: int) -> Restored:
    """The newest checkpoint in a run folder, in host memory.

    Args:
      programs: compiled for one seed.
      workdir: the run folder.
      seed: one of the run's seeds.

    Raises:
      CheckpointError: there is no readable checkpoint of this seed.
    """
    folder = seed_folder(workdir, seed) / "checkpoints"
    if not folder.is_dir():
        raise CheckpointError(f"workdir: expected checkpoints of seed {seed} in {folder}, found none; train first")
    checkpoints = Checkpoints(folder, read_only=True)
    state = jax.eval_shape(programs.initial, (seed,))
    best = {"params": state.params, "model_state": state.model_state}
    restored = restore_newest([checkpoints], stored_form(state), best)
    checkpoints.close()
    if restored is None:
        raise CheckpointError(f"workdir: no complete checkpoint of seed {seed} in {folder}; train first")
    return restored[0]


def _draw(
    experiment: Experiment, folder: pathlib.Path, confusion: list[list[int]] | None, scores: Scores | None
) -> None:
    """Writes the figures of one seed."""
    names = experiment.data.class_names
    if confusion is not None:
        figures.save_figure(figures.confusion_figure(confusion, names), folder / "figures" / "confusion")
    if scores is not None and len(np.unique(scores.labels)) == 2 and not np.isnan(scores.log_odds).any():
        curves = {"": operating_points(scores.labels, scores.log_odds)}
        figures.save_figure(binary_curves_figure(curves), folder / "figures" / "precision_recall_roc")
    if experiment.record.class_gradient_norms:
        drawn = figures.class_gradient_norms_figure(read(folder / "metrics.jsonl"), names)
        figures.save_figure(drawn, folder / "figures" / "class_gradient_norms")


def _result(folder: pathlib.Path) -> dict[str, Any] | None:
    """The result in the folder of a finished seed; None while there is none. A damaged one is a CheckpointError."""
    path = folder / "result.json"
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise CheckpointError(f"workdir: cannot read {path}: {error}; without it the seed is tested again") from error


def _summary(experiment: Experiment, workdir: pathlib.Path) -> dict[str, Any]:
    """Gathers the seeds' results, writes summary.json and the learning curves."""
    results = {seed: _result(seed_folder(workdir, seed)) for seed in experiment.seeds}
    summary = summarise({seed: result for seed, result in results.items() if result is not None})
    write_json(workdir / "summary.json", summary)
    if experiment.record.figures:
        records = {seed: read(seed_folder(workdir, seed) / "metrics.jsonl") for seed in experiment.seeds}
        figures.save_figure(figures.learning_curves_figure(records), workdir / "figures" / "learning_curves")
    return plain(summary)
