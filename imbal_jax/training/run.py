"""A whole run: seeds together or one after the other, the test set once, the summary."""

import hashlib
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from imbal_jax.data.dataset import Split
from imbal_jax.errors import CheckpointError
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
from imbal_jax.training.loop import Best, Fitted, best_in, fit, seeds_scores, split_metrics
from imbal_jax.training.programs import Programs, compile_programs, train_seeds_together
from imbal_jax.training.state import count_parameters, join_seeds, split_seeds, stored_form


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
      NonFiniteLossError, Interrupted: see `fit`.
    """
    claim(workdir, config, _fingerprint(experiment), complete)
    started, machine = time.perf_counter(), describe_machine()
    pending = tuple(seed for seed in experiment.seeds if _result(workdir, seed) is None)
    if pending:
        write_json(workdir / "metadata.json", machine)
    together = train_seeds_together(experiment) and len(pending) > 1
    groups = [pending] if together else [(seed,) for seed in pending]
    programs = compile_programs(experiment, stacked=together) if pending else None
    with Progress(len(pending) * experiment.horizon.epochs, experiment.data.name) as progress:
        for seeds in groups:
            assert programs is not None
            fitted = fit(experiment, programs, seeds, workdir, stop or StopRequest(), progress.epoch)
            _test(experiment, programs, seeds, fitted, workdir)
    if pending:
        write_json(workdir / "metadata.json", {**machine, "wall_seconds": time.perf_counter() - started})
    return _summary(experiment, workdir)


def _fingerprint(experiment: Experiment) -> str:
    """A short hash of the data, and of the variables that come from elsewhere: constants, and what seeds start from."""
    given = jax.tree.leaves((experiment.constants, experiment.pretrained))
    if not given:
        return experiment.data.fingerprint
    digest = hashlib.blake2b(experiment.data.fingerprint.encode(), digest_size=16)
    for leaf in given:
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()


def _test(
    experiment: Experiment, programs: Programs, seeds: tuple[int, ...], fitted: list[Fitted], workdir: pathlib.Path
) -> None:
    """Evaluates the best parameters of every seed on the test set, once, and writes each result."""
    bests = [one.best for one in fitted]
    tested = _test_all(experiment, programs, bests)
    noise = noise_metrics(experiment, programs, bests)
    conditions = evaluate_conditions(experiment, programs, bests)
    of_seeds = zip(seeds, fitted, tested, noise, conditions, strict=True)
    for seed, one, (metrics, scores), noisy, at_conditions in of_seeds:
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
        folder = seed_folder(workdir, seed)
        if experiment.record.figures:
            _draw(experiment, folder, metrics.get("test/confusion"), scores)
        write_scores(folder, scores, at_conditions)
        write_json(folder / "result.json", result)


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


def _result(workdir: pathlib.Path, seed: int) -> dict[str, Any] | None:
    """The result of a finished seed; None while there is none."""
    path = seed_folder(workdir, seed) / "result.json"
    return json.loads(path.read_text()) if path.exists() else None


def _summary(experiment: Experiment, workdir: pathlib.Path) -> dict[str, Any]:
    """Gathers the seeds' results, writes summary.json and the learning curves."""
    results = {seed: _result(workdir, seed) for seed in experiment.seeds}
    summary = summarise({seed: result for seed, result in results.items() if result is not None})
    write_json(workdir / "summary.json", summary)
    if experiment.record.figures:
        records = {seed: read(seed_folder(workdir, seed) / "metrics.jsonl") for seed in experiment.seeds}
        figures.save_figure(figures.learning_curves_figure(records), workdir / "figures" / "learning_curves")
    return plain(summary)
