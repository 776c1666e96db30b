"""The spectra of a trained run: of the whole data set and of each class, with their accuracy."""

import contextlib
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

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
from imbal_jax.training.class_curvature import Moment, class_problem, operands_of
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
    params = trained.variables["params"]
    require_finite(params)
    subset = select_parameters(params, options.parameters)
    together = _probes_together(experiment, options)
    require_order(subset, options, together)
    split = split_of(experiment, options.split)
    groups = groups_of(experiment, split, options)
    accuracies = _accuracies(experiment, programs, trained)
    with _precision(options.precision) as dtype, memory_advice(options.micro_batch):
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
        moment = Moment(trained.variables["model_state"], trained.progress)
        data = Data(jnp.asarray(split.images), jnp.asarray(split.labels))
        for group in groups:
            started = time.perf_counter()
            # One key for all groups: a mixture of classes is made of the same copies and probes as the classes are.
            key = jax.random.key(options.seed)
            operator = make(operands_of(params, moment, data, group.batches, jax.random.fold_in(key, 0), dtype))
            checks = _checked(operator, options, jax.random.fold_in(key, 1))
            found = spectrum(
                operator,
                order=options.order,
                probes=options.probes,
                tolerance=options.tolerance,
                least=options.least,
                distribution=options.distribution,
                together=together,
                key=jax.random.fold_in(key, 2),
                report=lambda done, name=group.name: report(name, done),  # type: ignore[misc]
            )
            accuracy = accuracies[group.class_index]
            yield GroupSpectrum(group, accuracy, checks, found, time.perf_counter() - started)


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


@contextlib.contextmanager
def _precision(name: str) -> Iterator[Any]:
    """The type of the computation, for as long as it is in force."""
    with jax.enable_x64(True) if name == "float64" else contextlib.nullcontext():
        yield jnp.float64 if name == "float64" else jnp.float32


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
