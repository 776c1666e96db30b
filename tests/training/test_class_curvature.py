"""Extreme eigenvalues by class in the records: their values, when they are taken, and that nothing else changes."""

import json

import jax
import numpy as np
import pytest

from experiments import class_curves
from imbal_jax.build import build_experiment
from imbal_jax.errors import InputError
from imbal_jax.main import guarded
from imbal_jax.reports.records import plain, read
from imbal_jax.training import class_curvature
from imbal_jax.training.class_curvature import class_problem, make_class_extremes
from imbal_jax.training.interruption import Interrupted, StopRequest
from imbal_jax.training.programs import compile_programs
from imbal_jax.training.run import restored_run, train
from tests.analysis.toy_runs import (
    IMAGES,
    LABELS,
    PROGRESS,
    SIZE,
    WEIGHTS,
    class_matrices,
    cross_entropy,
    linear,
    listening_setup,
    make_setup,
    resolved,
)

EPOCHS = 3
ENDS = ("lambda_max", "lambda_min")
RUN = [
    "--config.correction.name=inverse_frequency",
    f"--config.training.epochs={EPOCHS}",
    "--config.training.checkpoint_every_epochs=1",
    "--config.training.select=last",
    "--config.training.empty_classes=mask",
    "--config.training.steps_per_call=2",
    "--config.schedule.name=constant",
    "--config.validation.fraction=0",
    "--config.seeds=0,1",
    "--config.record.figures=false",
    "--config.record.tensorboard=false",
]
# As many steps as there are parameters: a network of a fourth class, without examples to train on.
OUTPUTS = 4
EXACT = [
    f"--config.record.curvature_order={SIZE + 4}",
    "--config.record.curvature_tolerance=0",
    "--config.record.curvature_examples=0",
    "--config.record.curvature_micro_batch=4",
]


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Data of three classes and a fourth one that only the test set has."""
    path = tmp_path_factory.mktemp("data") / "toy.npz"
    np.savez(path, x_train=IMAGES, y_train=LABELS, x_test=IMAGES[:4], y_test=[0, 1, 2, 3])
    network = ["--config.training.batch_size=5", "--config.model.name=mlp", "--config.model.hidden=(3,)"]
    return [f"--config.data.path={path}", *network, *RUN]


def run_of(flags, *more, every=2):
    """A run and its config."""
    config = resolved([*flags, *EXACT, f"--config.record.curvature_every={every}", *more])
    return build_experiment(config), plain(config.to_dict())


def records_of(workdir, seed):
    """The records of a seed without the times, and their curvature."""
    records = read(workdir / f"seed_{seed}" / "metrics.jsonl")
    for record in records:
        record.pop("seconds")
    return records, [record.pop("class_curvature", None) for record in records]


def digests(workdir, seed):
    """The hashes of all arrays of all checkpoints."""
    paths = (workdir / f"seed_{seed}" / "checkpoints").glob("*/notes/metadata")
    return {path.parent.parent.name: json.loads(path.read_text())["digest"] for path in paths}


@pytest.fixture(scope="module")
def recorded(flags, tmp_path_factory):
    """The folder of a run of two seeds together that records every second epoch."""
    workdir = tmp_path_factory.mktemp("recorded")
    train(*run_of(flags), workdir)
    return workdir


def test_every_second_epoch_and_the_last_are_recorded(recorded):
    for seed in (0, 1):
        records, curvature = records_of(recorded, seed)
        assert [record["epoch"] for record in records] == [1, 2, 3]
        assert [each is not None for each in curvature] == [False, True, True]


def assert_extremes(told, matrices, weights=WEIGHTS):
    """Both ends of every class, and null for the class without examples."""
    for key in (*ENDS, *(f"{end}_residual" for end in ENDS)):
        assert len(told[key]) == OUTPUTS and told[key][3] is None
    for index, matrix in enumerate(matrices.values()):
        values = weights[index] * np.linalg.eigvalsh(matrix)
        scale = np.abs(values).max()
        assert told["lambda_max"][index] == pytest.approx(values[-1], abs=1e-5 * scale)
        assert told["lambda_min"][index] == pytest.approx(values[0], abs=1e-5 * scale)
        assert all(0 <= told[f"{end}_residual"][index] < 1e-4 * scale for end in ENDS)


def test_records_are_the_ends_of_dense_matrices_at_the_recorded_parameters(flags, recorded):
    experiment, _ = run_of(flags)
    programs = compile_programs(experiment._replace(seeds=(0,)), stacked=False)
    for seed in (0, 1):
        restored = restored_run(programs, recorded, seed)
        assert restored.step == EPOCHS * experiment.horizon.steps_per_epoch
        matrices = class_matrices(restored.state[1], cross_entropy)
        assert_extremes(records_of(recorded, seed)[1][-1], matrices)
    assert matrices["0"].shape == (SIZE + 4, SIZE + 4)


def test_recording_does_not_change_training(flags, recorded, tmp_path):
    train(*run_of(flags, every=0), tmp_path)
    for seed in (0, 1):
        with_curvature, without = records_of(recorded, seed), records_of(tmp_path, seed)
        assert with_curvature[0] == without[0] and without[1] == [None] * EPOCHS
        assert digests(recorded, seed) == digests(tmp_path, seed) and digests(recorded, seed)


class StopAfter(StopRequest):
    """Asks for an end when it has been looked at a number of times."""

    def __init__(self, looks):
        super().__init__()
        self.looks = looks

    @property
    def requested(self):
        self.looks -= 1
        return self.looks < 0

    @requested.setter
    def requested(self, value):
        pass


@pytest.mark.slow
def test_a_seed_alone_and_interrupted_records_the_same(flags, recorded, tmp_path):
    alone = run_of(flags, "--config.seeds=1")
    train(*alone, tmp_path / "at_once")
    with pytest.raises(Interrupted, match="after step 8"):  # a chunk of two steps in the third epoch of three
        train(*alone, tmp_path / "in_two", StopAfter(6))
    assert len(read(tmp_path / "in_two" / "seed_1" / "metrics.jsonl")) == 2
    train(*alone, tmp_path / "in_two")
    assert records_of(tmp_path / "at_once", 1) == records_of(tmp_path / "in_two", 1)
    for one, together in zip(records_of(tmp_path / "at_once", 1)[1], records_of(recorded, 1)[1], strict=True):
        assert (one is None) == (together is None)
        for end in ENDS if one else ():
            np.testing.assert_allclose(one[end][:3], together[end][:3], rtol=1e-3, atol=1e-5)


def test_the_curves_of_the_classes_are_drawn(recorded, tmp_path, monkeypatch):
    seen = {}
    figure_of = class_curves.class_curves_figure

    def spy(curves, *rest):
        seen.update(curves)
        return figure_of(curves, *rest)

    monkeypatch.setattr(class_curves, "class_curves_figure", spy)
    assert guarded(class_curves.run, [str(recorded), "--quantity=curvature", f"--output={tmp_path}"]) == 0
    assert (tmp_path / "curvature.png").read_bytes().startswith(b"\x89PNG")
    (curves,) = seen.values()
    np.testing.assert_array_equal(curves.epochs, [2, 3])
    told = [records_of(recorded, seed)[1][-1] for seed in (0, 1)]
    for seed in (0, 1):
        ratios = [abs(told[seed]["lambda_min"][c] / told[seed]["lambda_max"][c]) for c in range(3)]
        np.testing.assert_allclose(curves.values["ratio"][seed, -1, :3], ratios, rtol=1e-12)
    assert np.isnan(curves.values["ratio"][:, :, 3]).all()


# The function by itself.


def extremes_of(setup, progress=PROGRESS):
    """What it tells of a run at its parameters."""
    variables = jax.device_put(setup.trained.variables)
    constants = setup.programs.train_data.constants
    found = make_class_extremes(setup.experiment, constants)
    return found(variables["params"], variables["model_state"], progress, setup.programs.train_data)


def test_the_correction_is_that_of_the_moment(flags):
    switch = ["--config.correction.name=deferred", "--config.correction.after.name=inverse_frequency"]
    setup = make_setup(flags, *EXACT, *switch, "--config.correction.at=0.5")
    matrices = class_matrices(setup.params, cross_entropy)
    assert_extremes(extremes_of(setup, 0.4), matrices, np.ones(3))
    assert_extremes(extremes_of(setup, 0.6), matrices)


def test_a_fixed_sample_of_each_class(flags):
    setup = make_setup(flags, *EXACT, "--config.record.curvature_examples=3", "--config.record.curvature_micro_batch=2")
    told = extremes_of(setup)
    assert told == extremes_of(setup)
    rows = sample_of(3)
    assert_extremes(told, class_matrices(setup.params, cross_entropy, IMAGES[rows], LABELS[rows]))


def sample_of(size):
    """The examples looked at: a draw for each class from a generator of its own."""
    rows = []
    for index in range(3):
        members = np.flatnonzero(index == LABELS)
        rng = np.random.default_rng([0, index])
        rows.append(members if len(members) <= size else rng.choice(members, size, replace=False))
    return np.concatenate(rows)


def test_the_steps_stop_when_both_ends_have_converged(flags):
    exact = extremes_of(make_setup(flags, *EXACT))
    loose = extremes_of(make_setup(flags, *EXACT, "--config.record.curvature_tolerance=0.2"))
    for index in range(3):
        for end in ENDS:
            assert loose[f"{end}_residual"][index] > 0
            floor = max(abs(loose[end][index]), 1e-3 * loose["lambda_max"][index])
            assert loose[f"{end}_residual"][index] <= 0.2 * floor
            assert abs(loose[end][index] - exact[end][index]) <= 0.2 * floor
    assert loose["lambda_max"] != exact["lambda_max"]


def test_clips_and_frozen_variables(flags):
    sample = ["--config.record.curvature_examples=3", "--config.correction.name=cross_entropy"]
    setup, features = listening_setup([*flags, *EXACT, *sample])
    told = extremes_of(setup)
    rows = sample_of(3)
    matrices = class_matrices(setup.params, cross_entropy, IMAGES[rows], LABELS[rows], linear(features[rows]))
    for index, matrix in enumerate(matrices.values()):
        values = np.linalg.eigvalsh(matrix)
        for end, value in zip(ENDS, (values[-1], values[0]), strict=True):
            assert told[end][index] == pytest.approx(value, abs=1e-5 * values[-1])


# What is refused.


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("curvature_every=-1", r"^record\.curvature_every: expected a number >= 0, got -1"),
        ("curvature_examples=-1", r"^record\.curvature_examples: expected a number >= 0, got -1"),
        ("curvature_order=0", r"^record\.curvature_order: expected a number >= 1, got 0"),
        ("curvature_tolerance=-0.1", r"^record\.curvature_tolerance: expected a number >= 0, got -0\.1"),
        ("curvature_micro_batch=0", r"^record\.curvature_micro_batch: expected a number >= 1, got 0"),
    ],
)
def test_options_out_of_range(flags, option, message):
    with pytest.raises(InputError, match=message):
        build_experiment(resolved([*flags, f"--config.record.{option}"]))


@pytest.mark.parametrize("name", ["loss", "statistics", "augmentation"])
def test_problems_of_unknown_kinds(flags, name):
    with pytest.raises(InputError, match=f"^{name}: no 'other'"):
        class_problem(build_experiment(resolved(flags)), None, **{name: "other"})


def test_a_basis_beyond_the_memory_is_refused_before_training(flags, tmp_path, monkeypatch):
    monkeypatch.setattr("imbal_jax.curvature.spectrum._memory", lambda: 1000)
    with pytest.raises(InputError, match=r"^order: a Lanczos basis of 32 x 31 numbers for 1 probe\(s\) needs"):
        train(*run_of(flags), tmp_path)
    assert not list(tmp_path.glob("seed_*"))


def test_exhausted_memory_becomes_advice(flags, monkeypatch):
    def exhausted(*arguments, **options):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.")

    monkeypatch.setattr(class_curvature, "spectrum", exhausted)
    with pytest.raises(InputError, match=r"^micro_batch: out of memory with 4 examples at once; choose fewer"):
        extremes_of(make_setup(flags, *EXACT))
