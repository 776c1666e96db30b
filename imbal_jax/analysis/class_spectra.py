"""The spectra of a trained run: of the whole data set and of each class, with their accuracy."""

import contextlib
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from imbal_jax.analysis.options import SpectrumOptions
from imbal_jax.curvature.class_samples import Group, class_groups, sample_classes
from imbal_jax.curvature.lanczos import Operator
from imbal_jax.curvature.products import Data, make_operator
from imbal_jax.curvature.spectrum import (
    Checks,
    Spectrum,
    check_operator,
    memory_advice,
    require_finite,
    require_memory,
    require_symmetric,
    spectrum,
)
from imbal_jax.curvature.subsets import Subset, select_parameters
from imbal_jax.data.dataset import Split
from imbal_jax.errors import InputError
from imbal_jax.evaluation.evaluate import read_sums
from imbal_jax.evaluation.metrics import metrics_from_confusion
from imbal_jax.training.class_curvature import Moment, class_problem, operands_of, resident_examples
from imbal_jax.training.experiment import Experiment
from imbal_jax.training.loop import best_in
from imbal_jax.training.programs import Programs, has_convolutions
from imbal_jax.training.run import restored_run
from imbal_jax.training.state import TrainState
from imbal_jax.types import Array, PyTree

Report = Callable[[str, int], None]  # (group, probes done)


class Trained(NamedTuple):
    """What a spectrum is of."""

    variables: PyTree  # {"params": ..., "model_state": ...}, in host memory
    step: int
    progress: float


class GroupSpectrum(NamedTuple):
    """The spectrum of one group of examples."""

    group: Group
    accuracy: float | None  # on `accuracy_split`; None where that has no example of the class
    checks: Checks
    spectrum: Spectrum
    seconds: float


def class_spectra(
    experiment: Experiment,
    programs: Programs,
    trained: Trained,
    options: SpectrumOptions,
    report: Report = lambda name, done: None,
) -> Iterator[GroupSpectrum]:
    """Takes the spectrum of each group of examples in turn.

    Args:
      experiment: the parts of the run.
      programs: compiled for one seed.
      trained: the parameters.
      options: see `imbal_jax.analysis.options`.
      report: called when a probe is done.

    Raises:
      InputError: a parameter is not finite, the order exceeds the number of parameters, a chosen class has no examples,
        the basis does not fit into memory or memory runs out.
      OperatorError: the products are not finite, or under the protocol "fixed" not those of one symmetric matrix.
    """
    require_finite(trained.variables["params"])
    subset = select_parameters(trained.variables["params"], options.parameters)
    together = _probes_together(experiment, options)
    require_order(subset, options, together)
    split = split_of(experiment, options.split)
    groups = groups_of(experiment, split, options)
    accuracies = _accuracies(experiment, programs, trained)
    with memory_advice(options.micro_batch):
        data, placed = resident_examples(split, groups)
        operator_of = _operators(experiment, programs, trained, data, subset, options)
    keys = _keys(options)
    for group, resident in zip(groups, placed, strict=True):
        started = time.perf_counter()
        # Entered anew for every group: what the caller does in between has the precision that was there before.
        with _precision(options), memory_advice(options.micro_batch):
            operator = operator_of(resident)
            checks = _checked(operator, options, keys.checks)
            found = spectrum(
                operator,
                order=options.order,
                probes=options.probes,
                tolerance=options.tolerance,
                least=options.least,
                distribution=options.distribution,
                together=together,
                key=keys.probes,
                report=lambda done, name=group.name: report(name, done),  # type: ignore[misc]
            )
        yield GroupSpectrum(group, accuracies[group.class_index], checks, found, time.perf_counter() - started)


def _operators(
    experiment: Experiment,
    programs: Programs,
    trained: Trained,
    data: Data,
    subset: Subset,
    options: SpectrumOptions,
) -> Callable[[Group], Operator]:
    """The function from a group to its operator; all share the data on the device and their programs."""
    dtype = jnp.float64 if options.precision == "float64" else jnp.float32
    problem = class_problem(
        experiment,
        subset,
        matrix=options.matrix,
        loss=options.loss,
        statistics=options.statistics,
        augmentation=options.augmentation,
        dtype=dtype,
    )
    make = make_operator(problem, driver=options.driver, linearise_below=options.linearise_gib * 2**30)
    key = _keys(options).data
    params, state = jax.tree.map(jnp.asarray, (trained.variables["params"], trained.variables["model_state"]))
    moment = Moment({**state, **(programs.train_data.constants or {})}, trained.progress)
    return lambda group: make(operands_of(params, moment, data, group.batches, key, dtype))


class _Keys(NamedTuple):
    """What is random. The same for all groups: a mixture of classes is made of the copies and probes of the classes."""

    data: Array  # copies and dropout
    checks: Array
    probes: Array


def _keys(options: SpectrumOptions) -> _Keys:
    """The keys of a seed."""
    return _Keys(*(jax.random.fold_in(jax.random.key(options.seed), i) for i in range(3)))


def require_order(subset: Subset, options: SpectrumOptions, together: bool) -> None:
    """Raises InputError when there are fewer parameters than Lanczos steps, or the basis cannot fit into memory."""
    if options.order > subset.size:
        raise InputError(
            f"spectrum.order: expected at most the {subset.size} parameters of {options.parameters!r}, got"
            f" {options.order}"
        )
    require_memory(
        subset.size, options.order, options.probes if together else 1, 4 if options.precision == "float32" else 8
    )


def split_of(experiment: Experiment, name: str) -> Split:
    """A split of the run's data; raises InputError when there is none of that name."""
    split = getattr(experiment.data, name)
    if split is None:
        raise InputError(f"spectrum.split: the run has no {name} split")
    return split


def groups_of(experiment: Experiment, split: Split, options: SpectrumOptions) -> list[Group]:
    """The groups of examples to look at; raises InputError when a chosen class has none."""
    names, labels = experiment.data.class_names, np.asarray(split.labels)
    samples = sample_classes(labels, len(names), options.examples, options.seed)
    return class_groups(
        labels,
        names,
        samples,
        options.classes or None,
        whole=options.whole,
        copies=options.copies if options.augmentation == "copies" else 1,
        size=options.micro_batch,
        mixed=options.statistics == "batch",
        seed=options.seed,
    )


def trained_parameters(
    experiment: Experiment, programs: Programs, workdir: pathlib.Path, seed: int, which: str
) -> Trained:
    """The best or the last parameters of one seed of a run.

    Raises:
      CheckpointError: it has no checkpoint that can be read.
    """
    restored = restored_run(programs, workdir, seed)
    if which == "best":
        best = best_in(restored)
        variables, step = best.variables, best.step
    else:
        state = TrainState(*restored.state)
        variables, step = {"params": state.params, "model_state": state.model_state}, restored.step
    return Trained(variables, step, step / experiment.horizon.total_steps)


def _probes_together(experiment: Experiment, options: SpectrumOptions) -> bool:
    """Whether all probes go into one product."""
    if options.probes_together == "auto":
        return options.probes > 1 and not has_convolutions(experiment)
    return options.probes_together == "yes"


def _checked(operator: Operator, options: SpectrumOptions, key: Array) -> Checks:
    """The checks of an operator; refuses what is no fixed symmetric matrix unless that is the protocol."""
    checks = check_operator(operator, key)
    if options.protocol == "fixed":
        require_symmetric(checks, operator.dtype)
    return checks


def _precision(options: SpectrumOptions) -> contextlib.AbstractContextManager:
    """What puts the type of the computation in force."""
    return jax.enable_x64(True) if options.precision == "float64" else contextlib.nullcontext()


def accuracy_split(experiment: Experiment) -> str:
    """The split whose accuracy is told beside a spectrum."""
    return "test" if experiment.data.validation is None else "validation"


def _accuracies(experiment: Experiment, programs: Programs, trained: Trained) -> dict[int | None, float | None]:
    """The recall of each class on `accuracy_split`, and under None the accuracy."""
    split = programs.place_split(split_of(experiment, accuracy_split(experiment)))
    variables = programs.place(trained.variables)
    sums = read_sums(
        programs.evaluate(variables["params"], variables["model_state"], np.float32(trained.progress), split)
    )
    metrics = metrics_from_confusion(np.rint(sums.confusion).astype(np.int64))
    recalls: dict[int | None, float | None] = {
        index: None if np.isnan(recall) else float(recall) for index, recall in enumerate(metrics["per_class_recall"])
    }
    return {None: metrics["accuracy"], **recalls}
