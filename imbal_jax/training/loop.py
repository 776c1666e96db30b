"""The training loop: epochs of un-awaited steps, records, the best parameters, checkpoints."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from imbal_jax.errors import NonFiniteLossError
from imbal_jax.evaluation.class_gradients import class_gradient_norms
from imbal_jax.evaluation.evaluate import Scores, Sums, metrics_of, read_scores, read_sums, score_metrics
from imbal_jax.reports.records import JsonLines, tensorboard_writer, truncate_after, write_scalars
from imbal_jax.training.checkpoints import Checkpoints, Restored, restore_newest, to_host
from imbal_jax.training.experiment import SELECTION, Experiment
from imbal_jax.training.interruption import Interrupted, StopRequest
from imbal_jax.training.members import Member, factors_of
from imbal_jax.training.programs import PlacedSplit, Programs
from imbal_jax.training.state import Keys, TrainState, join_seeds, split_seeds, stored_form
from imbal_jax.training.step import StepMetrics, read_metrics
from imbal_jax.training.step_effects import by_class
from imbal_jax.types import Array, PyTree

_log = logging.getLogger(__name__)

Report = Callable[[dict[tuple[int, int], dict[str, Any]]], None]  # receives records by run and seed
TellLost = Callable[[int, NonFiniteLossError], None]  # receives a run that is given up, and why


class Best(NamedTuple):
    """The best parameters of one seed so far, in host memory."""

    step: int
    value: float | None  # of the selecting metric; None before the first epoch
    variables: PyTree  # {"params": ..., "model_state": ...}


class Fitted(NamedTuple):
    """What training leaves for one seed of one run."""

    best: Best
    seconds_per_epoch: float | None  # median over this process's epochs but the first, which compiles
    lost: NonFiniteLossError | None  # what has ended its run early


class _Group:
    """Members trained together: their files, and the host's side of their progress.

    Where a loss of one is not finite, its run is lost: its members stay in the arrays, which compute on, and nothing of
    them is written any more. The other runs go on, and nothing is compiled again.
    """

    def __init__(self, experiment: Experiment, programs: Programs, members: Sequence[Member], tell_lost: TellLost):
        self.experiment, self.programs, self.members, self.tell_lost = experiment, programs, members, tell_lost
        self.seeds = tuple(member.seed for member in members)
        self.lost: dict[int, NonFiniteLossError] = {}  # by run
        folders = [member.folder for member in members]
        self.checkpoints = [Checkpoints(folder / "checkpoints") for folder in folders]
        self.partial = np.zeros((0, 2, len(members)))  # losses of the epoch's steps so far: corrected, cross-entropy
        self.upcoming: Array | None = None  # the next epoch's indices
        self.state, self.best = self._begin()
        step = self.saved_step = self.steps_taken()
        for folder in folders:
            truncate_after(folder / "metrics.jsonl", step)
        self.records = [JsonLines(folder / "metrics.jsonl") for folder in folders]
        self.events = []
        if experiment.record.tensorboard:
            resumed = step or None
            self.events = [tensorboard_writer(folder / "events", resumed_step=resumed) for folder in folders]

    def _begin(self) -> tuple[TrainState, list[Best]]:
        """A fresh state, or that of the newest checkpoint."""
        factors = self.programs.place(factors_of(self.members))
        fresh = self.programs.initial(self.seeds)._replace(learning_rate_factor=factors)
        hosts = self.split(to_host(fresh))
        restored = restore_newest(self.checkpoints, stored_form(hosts[0]), _variables(hosts[0]))
        for checkpoints in self.checkpoints:
            checkpoints.discard_after(-1 if restored is None else restored[0].step)
        if restored is None:
            return fresh, [Best(0, None, _variables(host)) for host in hosts]
        self.partial = np.stack([np.reshape(one.notes["partial"], (-1, 2)) for one in restored], axis=-1)
        state = join_seeds([TrainState(*one.state) for one in restored])
        placed = self.programs.place(state)._replace(learning_rate_factor=factors)
        return placed, [best_in(one) for one in restored]

    @property
    def alive(self) -> list[int]:
        """The members whose runs are not lost."""
        return [i for i, member in enumerate(self.members) if member.run not in self.lost]

    def split(self, tree: PyTree) -> list[PyTree]:
        """One tree per member."""
        return split_seeds(tree, len(self.members))

    def steps_taken(self) -> int:
        """Steps of the present state; waits for it."""
        return int(np.ravel(jax.device_get(self.state.step))[0])

    def save(self) -> None:
        """Writes a checkpoint of every member, in the background; does nothing if the state is saved already."""
        hosts = self.split(to_host(self.state))
        step = int(hosts[0].step)
        if step == self.saved_step:
            return
        for i in self.alive:
            best = self.best[i]
            notes = {"best_step": best.step, "best_value": best.value, "partial": self.partial[..., i].tolist()}
            self.checkpoints[i].save(step, stored_form(hosts[i]), best.variables, notes)
        self.saved_step = step

    def close(self) -> None:
        """Waits for the last checkpoint and closes all files."""
        for checkpoints in self.checkpoints:
            checkpoints.close()
        for writer in self.events:
            writer.close()


def fit(
    experiment: Experiment,
    programs: Programs,
    members: Sequence[Member],
    stop: StopRequest,
    report: Report,
    tell_lost: TellLost = lambda run, error: None,
) -> list[Fitted]:
    """Trains members together to the end, from their newest checkpoint if there is one.

    Args:
      experiment: the parts of the run, or of the first of several.
      programs: compiled for this number of members.
      members: one, or several to train together.
      stop: looked at between chunks of steps.
      report: called after every epoch.
      tell_lost: called when a run is given up.

    Returns:
      The best parameters of every member. A run in which a loss or parameter became NaN or infinite is lost: nothing of
      it is saved after that.

    Raises:
      Interrupted: a stop was requested; the state is saved.
      CheckpointError: a checkpoint cannot be written or read.
    """
    group = _Group(experiment, programs, members, tell_lost)
    keys = programs.keys(group.seeds)
    validation = experiment.data.validation
    padded = None if validation is None else programs.place_split(validation)
    gradient_norms, keeping = experiment.record.class_gradient_norms, experiment.correction.keeping
    training_split = None
    if gradient_norms or keeping is not None:
        training_split = programs.place_split(experiment.data.train)
    horizon, every = experiment.horizon, experiment.training.checkpoint_every_epochs
    durations = []
    try:
        for epoch in range(group.steps_taken() // horizon.steps_per_epoch, horizon.epochs):
            started = time.perf_counter()
            if keeping is not None and epoch >= keeping.start and (epoch - keeping.start) % keeping.every == 0:
                _choose_examples(group, training_split, epoch / horizon.epochs)
            losses = _run_epoch(group, keys, epoch, stop)
            if not group.alive:
                break
            moment = (epoch + 1) / horizon.epochs
            measured = _measure(group, padded, training_split if gradient_norms else None, moment)
            if not group.alive:
                break
            _add_step_effects(group, keys, measured)
            _add_class_curvature(group, epoch + 1, measured)
            durations.append(time.perf_counter() - started)
            _finish_epoch(group, epoch, losses, measured, durations[-1], report)
            if (epoch + 1) % every == 0 or epoch + 1 == horizon.epochs:
                group.save()
            if stop.requested and epoch + 1 < horizon.epochs:
                _interrupt(group)
    finally:
        group.close()
    seconds = float(np.median(durations[1:] or durations)) / len(members) if durations else None
    lost = [group.lost.get(member.run) for member in members]
    return [Fitted(best, seconds, error) for best, error in zip(group.best, lost, strict=True)]


def _choose_examples(group: _Group, training_split: PlacedSplit | None, progress: float) -> None:
    """Lets the best parameters so far decide what each training example counts; the same again after a resumption."""
    programs = group.programs
    assert programs.example_factors is not None
    best = programs.place(join_seeds([best.variables for best in group.best]))
    moment = join_seeds([np.float32(progress)] * len(group.members))
    factors = programs.example_factors(best["params"], best["model_state"], moment, training_split)
    weights = jnp.concatenate(factors, axis=-1)[..., : len(group.experiment.data.train.labels)]
    for seed, any_kept in zip(group.seeds, group.split(jax.device_get(jnp.any(weights > 0, -1))), strict=True):
        if not any_kept:
            _log.warning("seed %d: no training example is kept, so nothing is learned; let it start later", seed)
    group.state = group.state._replace(example_weights=programs.place(weights))


def _run_epoch(group: _Group, keys: Keys, epoch: int, stop: StopRequest) -> np.ndarray:
    """Takes the rest of an epoch's steps; returns its losses, float64 [steps, 2, members].

    The host reads a chunk's losses only after the next chunk is under way, so the device never waits for it.
    """
    programs, steps = group.programs, group.experiment.horizon.steps_per_epoch
    chunks = -(-steps // group.experiment.training.steps_per_call)
    chunk = -(-steps // chunks)  # of even size, because every size is another program to compile
    indices = programs.draw(keys.order, epoch) if group.upcoming is None else group.upcoming
    first = len(group.partial)
    pending: Any = None
    while first < steps:
        count = min(chunk, steps - first)
        group.state, metrics = programs.drive(group.state, programs.train_data, indices, keys.step, first, count)
        if pending is not None:
            _collect(group, epoch, pending)
        pending, first = metrics, first + count
        if not group.alive:
            return group.partial
        if stop.requested and first < steps:
            _collect(group, epoch, pending)
            if group.alive:
                _interrupt(group)
            return group.partial
    group.upcoming = programs.draw(keys.order, epoch + 1)  # before the host waits for the last chunk
    if pending is not None:
        _collect(group, epoch, pending)
    losses, group.partial = group.partial, group.partial[:0]
    return losses


def _collect(group: _Group, epoch: int, metrics: Any) -> None:
    """Waits for a chunk's losses and adds them to the epoch's; runs with one that is NaN or infinite are lost."""
    told: StepMetrics = read_metrics(metrics)
    losses = np.stack([told.loss, told.cross_entropy], axis=1).astype(np.float64).reshape(len(told.loss), 2, -1)
    before = epoch * group.experiment.horizon.steps_per_epoch + len(group.partial)
    for row, i in np.argwhere(~np.isfinite(losses[:, 0])):
        _lose(group, "the training loss", losses[row, 0, i], before + int(row) + 1, int(i))
    group.partial = np.concatenate([group.partial, losses])


def _measure(
    group: _Group, padded: PlacedSplit | None, training_split: PlacedSplit | None, progress: float
) -> list[dict[str, Any]]:
    """Validation metrics and class gradient norms of every member, after an epoch.

    Runs with a parameter or a validation loss that is NaN or infinite are lost.
    """
    state, programs, data = group.state, group.programs, group.experiment.data
    moment = join_seeds([np.float32(progress)] * len(group.members))
    sums = None if padded is None else programs.evaluate(state.params, state.model_state, moment, padded)
    gradients = None
    if training_split is not None:
        gradients = programs.class_gradients(state.params, state.model_state, moment, training_split)
    finite = np.ravel(jax.device_get(programs.all_finite((state.params, state.model_state))))
    for lost in np.flatnonzero(~finite):
        _lose(group, "a parameter", float("nan"), group.steps_taken(), int(lost))
    measured: list[dict[str, Any]] = [{} for _ in group.members]
    if sums is not None:
        split, scores = group.split(read_sums(sums)), seeds_scores(sums, len(group.members))
        for i in group.alive:
            measured[i].update(validation_metrics(group.experiment, split[i], scores[i]))
            loss = measured[i]["validation/cross_entropy"]
            if not np.isfinite(loss):
                _lose(group, "the validation loss", loss, group.steps_taken(), i)
    if group.experiment.correction.keeping is not None:
        for one, weights in zip(measured, group.split(jax.device_get(state.example_weights)), strict=True):
            one["train/kept"] = float(np.mean(weights, dtype=np.float64))
    if gradients is not None:
        for i, of_one in enumerate(zip(*(group.split(batch) for batch in jax.device_get(gradients)), strict=True)):
            norms = class_gradient_norms(list(of_one), len(data.train.labels))
            measured[i]["class_gradient_norms"] = norms.tolist()
    return measured


def _add_step_effects(group: _Group, keys: Keys, measured: list[dict[str, Any]]) -> None:
    """Adds what the first steps of the next epoch would do, if it is to be recorded."""
    programs, counts = group.programs, group.experiment.data.counts
    effects = jax.device_get(programs.step_effects(group.state, programs.train_data, group.upcoming, keys.step))
    for i, batches in enumerate(zip(*(group.split(batch) for batch in effects), strict=True)):
        measured[i]["step_effects"] = by_class(list(batches), counts)


def _add_class_curvature(group: _Group, epochs: int, measured: list[dict[str, Any]]) -> None:
    """Adds the extreme eigenvalues of every class's Hessian, in the epochs in which they are to be recorded."""
    every, last = group.experiment.record.curvature_every, group.experiment.horizon.epochs
    extremes_of = group.programs.class_extremes
    if extremes_of is None or (epochs % every and epochs != last):
        return
    states = group.split(group.state)
    for i in group.alive:
        measured[i]["class_curvature"] = extremes_of(
            states[i].params, states[i].model_state, epochs / last, group.programs.train_data
        )


def validation_metrics(experiment: Experiment, sums: Sums, scores: Scores | None = None) -> dict[str, Any]:
    """Metrics of the validation split by their keys in the records."""
    return {f"validation/{name}": value for name, value in split_metrics(experiment, sums, scores).items()}


def seeds_scores(sums: list[Any], num_seeds: int) -> list[Scores | None]:
    """The scores of every seed; None where there are not two classes."""
    scores = read_scores(sums)
    if scores is None:
        return [None] * num_seeds
    return [scores._replace(log_odds=each) for each in np.reshape(scores.log_odds, (num_seeds, -1))]


def split_metrics(experiment: Experiment, sums: Sums, scores: Scores | None = None) -> dict[str, Any]:
    """Metrics of a split, see `metrics_of`, and of two classes also `binary_metrics`."""
    groups = {"head_above": experiment.evaluation.head_above, "tail_below": experiment.evaluation.tail_below}
    reduction: Any = experiment.training.reduction
    metrics = metrics_of(sums, reduction, experiment.data.counts.counts, **groups)
    return metrics if scores is None else {**metrics, **score_metrics(scores)}


def _finish_epoch(
    group: _Group,
    epoch: int,
    losses: np.ndarray,
    measured: list[dict[str, Any]],
    seconds: float,
    report: Report,
) -> None:
    """Records an epoch and keeps the best parameters."""
    step = (epoch + 1) * group.experiment.horizon.steps_per_epoch
    with np.errstate(invalid="ignore"):  # the losses of lost runs
        means = losses.mean(axis=0)
    records = {}
    for i in group.alive:
        record = {
            "step": step,
            "epoch": epoch + 1,
            "learning_rate": float(group.members[i].schedule(step - 1)),
            "train/loss": float(means[0, i]),
            "train/cross_entropy": float(means[1, i]),
            **measured[i],
            "seconds": seconds,
        }
        records[i] = record
        group.records[i].append(record)
        if group.events:
            scalars = {f"step_effects/{key}": value for key, value in record.get("step_effects", {}).items()}
            write_scalars(group.events[i], record | scalars)
    _keep_best(group, step, records)
    report({(group.members[i].run, group.seeds[i]): record for i, record in records.items()})


def _keep_best(group: _Group, step: int, records: dict[int, dict[str, Any]]) -> None:
    """Replaces the best parameters of every member that improved; the first of equals stays."""
    select = group.experiment.training.select
    for i, record in records.items():
        value, best = record.get(select), group.best[i].value
        if value is not None and best is not None and not (value < best if SELECTION[select] else value > best):
            continue
        group.best[i] = Best(step, value, to_host(group.split(_variables(group.state))[i]))


def _interrupt(group: _Group) -> None:
    """Saves the state and raises Interrupted."""
    group.save()
    for checkpoints in group.checkpoints:
        checkpoints.wait()
    raise Interrupted(f"stopped after step {group.steps_taken()}; the same command continues")


def _lose(group: _Group, what: str, value: float, step: int, i: int) -> None:
    """Gives up the run of a member, unless it is lost already, with an error that names the step and what is kept."""
    if group.members[i].run in group.lost:
        return
    group.checkpoints[i].wait()
    kept = group.checkpoints[i].steps()
    last = f"the checkpoint of step {kept[-1]} is kept" if kept else "no checkpoint was written before"
    error = NonFiniteLossError(
        f"{what} of seed {group.seeds[i]} is {value} at step {step}; {last}; try a smaller learning rate"
    )
    group.lost[group.members[i].run] = error
    group.tell_lost(group.members[i].run, error)


def _variables(state: TrainState) -> PyTree:
    """What is needed to predict."""
    return {"params": state.params, "model_state": state.model_state}


def best_in(restored: Restored) -> Best:
    """The best parameters in a checkpoint."""
    return Best(restored.notes["best_step"], restored.notes["best_value"], restored.best)
