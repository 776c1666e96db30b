"""The task spectrum on runs of a tiny network: its numbers, its files, and what it refuses."""

import json
import shutil
from typing import NamedTuple

import jax
import numpy as np
import pytest

from experiments import hessian_density
from imbal_jax import tasks
from imbal_jax.build import build_experiment
from imbal_jax.main import EXIT_INPUT, guarded, run
from imbal_jax.resolve import resolve
from imbal_jax.training.folders import read_config
from imbal_jax.training.programs import compile_programs
from imbal_jax.training.run import restored_run
from tests.conftest import ROOT

DIGITS = f"--config={ROOT}/configs/digits.py"
# The learning rate of the second epoch is so large that the first one's parameters stay the best.
TINY = [
    "--config.model.name=mlp",
    "--config.model.hidden=(4,)",
    "--config.correction.name=inverse_frequency",
    "--config.schedule.name=multi_step",
    "--config.schedule.boundaries=(1,)",
    "--config.schedule.factors=(100.0,)",
    "--config.training.epochs=2",
    "--config.training.checkpoint_every_epochs=1",
    "--config.record.figures=false",
    "--config.record.tensorboard=false",
]
SIZE = 5 * 10  # of the last layer
LAST_LAYER = [
    "--config.spectrum.parameters=last_layer",
    f"--config.spectrum.order={SIZE}",
    "--config.spectrum.probes=2",
    "--config.spectrum.tolerance=0",
    "--config.spectrum.precision=float64",
]
QUICK = ["--config.spectrum.parameters=last_layer", "--config.spectrum.order=3", "--config.spectrum.probes=1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a finished run of two seeds."""
    workdir = tmp_path_factory.mktemp("run")
    assert guarded(run, [DIGITS, f"--workdir={workdir}", *TINY, "--config.seeds=0,1"]) == 0
    return workdir


@pytest.fixture(scope="module")
def augmented(tmp_path_factory):
    """The folder of a run with augmentation."""
    workdir = tmp_path_factory.mktemp("augmented")
    options = ["--config.augmentation.name=crop_flip", "--config.augmentation.padding=1", "--config.training.epochs=1"]
    assert guarded(run, [DIGITS, f"--workdir={workdir}", *TINY, *options]) == 0
    return workdir


@pytest.fixture
def undrawn(monkeypatch):
    """Leaves out the figures, which take longer than the rest."""
    monkeypatch.setattr(tasks, "draw_spectra", lambda spectra, folder: [])


def take(workdir, *options):
    return guarded(run, ["--task=spectrum", f"--run={workdir}", *options])


def read(folder):
    """The JSON and the arrays of a spectrum folder."""
    with np.load(folder / "spectrum.npz") as arrays:
        return json.loads((folder / "spectrum.json").read_text()), dict(arrays)


def one_line_error(capsys):
    """The one line on standard error that begins with "error:"."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


class Reference(NamedTuple):
    """Dense matrices of the last layer of a stored run, by explicit formulas in float64."""

    labels: np.ndarray
    inputs: np.ndarray  # of the last layer, with a one for the bias
    p: np.ndarray  # softmax
    steps: dict[str, int]

    def matrix(self, coefficients):
        """sum_n coefficients[n] of the Hessians of the losses."""
        p, x = self.p, self.inputs
        bend = np.einsum("n,nk,kl->nkl", coefficients, p, np.eye(10)) - np.einsum("n,nk,nl->nkl", coefficients, p, p)
        return np.einsum("ni,nj,nkl->ikjl", x, x, bend).reshape(SIZE, SIZE)

    @property
    def counts(self):
        return np.bincount(self.labels, minlength=10)

    @property
    def weights(self):
        """Inverse frequencies with the mean one."""
        return 1 / self.counts / np.mean(1 / self.counts)

    def of_class(self, index):
        return self.matrix((self.labels == index) / self.counts[index])


def reference(workdir, seed, which):
    """Reads the best or the last parameters of a run."""
    experiment = build_experiment(resolve(read_config_dict(workdir)))
    restored = restored_run(compile_programs(experiment, stacked=False), workdir, seed)
    params = restored.best["params"] if which == "best" else restored.state[1]
    layers = {name: (np.float64(layer["kernel"]), np.float64(layer["bias"])) for name, layer in params.items()}
    images = experiment.data.train.images.astype(np.float64)
    images = ((images - images.mean()) / images.std()).reshape(len(images), -1)
    hidden = np.maximum(images @ layers["dense1"][0] + layers["dense1"][1], 0)
    logits = hidden @ layers["classifier"][0] + layers["classifier"][1]
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    steps = {"best": int(restored.notes["best_step"]), "last": restored.step}
    inputs = np.c_[hidden, np.ones(len(hidden))]
    return Reference(experiment.data.train.labels, inputs, p / p.sum(axis=1, keepdims=True), steps)


def read_config_dict(workdir):
    from ml_collections import ConfigDict

    return ConfigDict(read_config(workdir))


def assert_group(told, nodes, matrix):
    """The numbers of a group, and all its eigenvalues."""
    expected = np.linalg.eigvalsh(matrix)
    scale = expected[-1]
    for row in nodes:
        np.testing.assert_allclose(row, expected, atol=3e-6 * scale)
        assert np.sum(row) == pytest.approx(np.trace(matrix), rel=1e-5)
    assert told["lambda_max"] == pytest.approx(scale, rel=3e-6)
    assert told["lambda_min"] == pytest.approx(expected[0], abs=3e-6 * scale)
    assert told["ratio"] == pytest.approx(abs(expected[0] / scale), abs=3e-6)
    assert told["lambda_max_residual"] < 1e-9 * scale and told["lambda_min_residual"] < 1e-9 * scale
    assert told["lambda_max_standard_error"] < 1e-9 * scale  # both probes see all there is
    assert abs(told["trace"] - np.trace(matrix)) < 12 * told["trace_standard_error"]
    assert told["steps"] == [SIZE] * 2


@pytest.fixture(scope="module")
def measured(trained, tmp_path_factory):
    """JSON and arrays of all classes, in the run folder, with figures."""
    assert take(trained, *LAST_LAYER) == 0
    return read(trained / "spectra" / "fixed" / "seed_0")


def test_the_best_parameters_of_the_first_seed_against_dense_matrices(trained, measured):
    facts, arrays = measured
    dense = reference(trained, 0, "best")
    assert dense.steps["best"] < dense.steps["last"]
    assert facts["step"] == dense.steps["best"] and facts["seed"] == facts["spectrum_seed"] == 0
    whole, *classes = facts["groups"]
    assert_group(whole, arrays["nodes"][0], dense.matrix(dense.weights[dense.labels] / len(dense.labels)))
    assert (whole["name"], whole["class"], whole["examples"]) == ("all", None, len(dense.labels))
    for index, told in enumerate(classes):
        assert (told["name"], told["class"]) == (str(index), index)
        assert told["examples"] == told["count"] == facts["class_counts"][index] == dense.counts[index]
        assert_group(told, arrays["nodes"][1 + index], dense.weights[index] * dense.of_class(index))
    shares = dense.counts / dense.counts.sum()
    np.testing.assert_allclose(shares @ arrays["traces"][1:], arrays["traces"][0], rtol=1e-10)


def test_the_files_say_what_was_measured(trained, measured):
    facts, arrays = measured
    folder = trained / "spectra" / "fixed" / "seed_0"
    assert {path.name for path in folder.iterdir()} == {
        "spectrum.json", "spectrum.npz", "density.png", "density.pdf", "ratios.png", "ratios.pdf",
    }  # fmt: skip
    expected = {"matrix": "hessian", "loss": "corrected", "statistics": "running", "augmentation": "none"}
    expected |= {"parameters": "last_layer", "num_parameters": SIZE, "split": "train", "checkpoint": "best"}
    expected |= {"protocol": "fixed", "precision": "float64", "order": SIZE, "probes": 2, "distribution": "gaussian"}
    expected |= {"data": "digits", "correction": "inverse_frequency", "direction": "gradient", "skipped": []}
    assert {key: facts[key] for key in expected} == expected
    assert "not re-normalised" in facts["normalisation"] and facts["machine"]["packages"]["jax"]
    shape = (11, 2, SIZE)
    assert arrays["nodes"].shape == arrays["weights"].shape == arrays["residuals"].shape == shape
    assert arrays["traces"].shape == shape[:2] and arrays["names"].tolist() == ["all", *map(str, range(10))]
    np.testing.assert_allclose(arrays["weights"].sum(axis=2), 1)
    for told in facts["groups"]:
        assert told["checks"]["change"] == 0 and told["checks"]["asymmetry"] < 1e-12 and told["seconds"] > 0


def test_accuracies_are_those_of_the_records(trained, measured):
    facts, _ = measured
    records = [json.loads(line) for line in (trained / "seed_0" / "metrics.jsonl").read_text().splitlines()]
    (record,) = (one for one in records if one["step"] == facts["step"])
    assert facts["accuracy_split"] == "validation"
    assert facts["groups"][0]["accuracy"] == pytest.approx(record["validation/accuracy"])
    found = [told["accuracy"] for told in facts["groups"][1:]]
    np.testing.assert_allclose(found, record["validation/per_class_recall"], rtol=1e-6)


def test_again_gives_the_same_numbers_elsewhere(trained, measured, undrawn, tmp_path, capsys):
    assert take(trained, *LAST_LAYER, f"--output={tmp_path}/new/out") == 0
    assert f"written to {tmp_path}/new/out/seed_0" in capsys.readouterr().out
    again = (tmp_path / "new" / "out" / "seed_0" / "spectrum.npz").read_bytes()
    assert again == (trained / "spectra" / "fixed" / "seed_0" / "spectrum.npz").read_bytes()


def test_the_files_are_what_the_comparison_reads(trained, measured, tmp_path, capsys):
    assert guarded(hessian_density.run, [str(trained), f"--output={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    assert printed.count(f"| {trained.name} |") == 11
    assert f"{measured[0]['groups'][3]['lambda_max']:.4g}" in printed
    assert (tmp_path / "density.png").exists() and (tmp_path / "ratios.pdf").exists()


def test_cross_entropy_has_no_class_weights(trained, measured, undrawn, tmp_path):
    loss = "--config.spectrum.loss=cross_entropy"
    assert take(trained, *LAST_LAYER, loss, "--config.spectrum.classes=5,2", f"--output={tmp_path}") == 0
    facts, arrays = read(tmp_path / "seed_0")
    dense = reference(trained, 0, "best")
    assert [told["class"] for told in facts["groups"]] == [None, 5, 2]
    for place, index in ((1, 5), (2, 2)):
        corrected = measured[1]["nodes"][1 + index]
        np.testing.assert_allclose(dense.weights[index] * arrays["nodes"][place], corrected, rtol=1e-6, atol=1e-12)
    assert_group(
        facts["groups"][0], arrays["nodes"][0], dense.matrix(np.full(len(dense.labels), 1 / len(dense.labels)))
    )


def test_the_last_parameters_of_another_seed(trained, undrawn, capsys):
    options = [
        "--seed=1",
        "--config.spectrum.checkpoint=last",
        "--config.spectrum.classes=3",
        "--config.spectrum.seed=5",
    ]
    assert take(trained, *LAST_LAYER, *options, "--config.spectrum.whole=false") == 0
    facts, arrays = read(trained / "spectra" / "fixed" / "seed_1")
    dense = reference(trained, 1, "last")
    assert (facts["seed"], facts["step"], facts["checkpoint"]) == (1, dense.steps["last"], "last")
    assert facts["spectrum_seed"] == 5
    (told,) = facts["groups"]
    assert_group(told, arrays["nodes"][0], dense.weights[3] * dense.of_class(3))
    assert "| digits | 3 |" in capsys.readouterr().out


def test_what_was_measured_before_a_failure_is_kept(trained, undrawn, tmp_path, monkeypatch, capsys):
    class_spectra, reached = tasks.class_spectra, []

    def failing(*arguments):
        for each in class_spectra(*arguments):
            if len(reached) == 2:
                raise OSError(28, "No space left on device")
            reached.append(each)
            yield each

    monkeypatch.setattr(tasks, "class_spectra", failing)
    assert take(trained, *QUICK, f"--output={tmp_path}") == EXIT_INPUT
    assert "No space left" in one_line_error(capsys)
    facts, arrays = read(tmp_path / "seed_0")
    assert [told["name"] for told in facts["groups"]] == ["all", "0"] and len(arrays["nodes"]) == 2


def test_a_folder_from_before_there_were_spectra(trained, undrawn, tmp_path):
    old = shutil.copytree(trained, tmp_path / "old")
    config = json.loads((old / "config.json").read_text())
    del config["spectrum"]
    config["record"] = {key: value for key, value in config["record"].items() if not key.startswith("curvature")}
    (old / "config.json").write_text(json.dumps(config))
    assert take(old, *QUICK, "--config.spectrum.classes=1") == 0
    assert take(old, DIGITS, *TINY, "--config.seeds=0,1", *QUICK, "--config.spectrum.classes=1") == 0


def test_how_spectra_are_taken_is_no_part_of_a_run(trained, undrawn, tmp_path, capsys):
    options = [DIGITS, *TINY, "--config.seeds=0,1"]
    assert guarded(run, [*options, f"--workdir={trained}", "--config.spectrum.order=7"]) == 0
    assert guarded(run, [*options, f"--workdir={trained}", "--config.spectrum.name=published"]) == 0
    assert take(trained, *options, *QUICK, "--config.spectrum.classes=1", f"--output={tmp_path}") == 0
    assert read(tmp_path / "seed_0")[0]["order"] == 3
    assert take(trained, *options, "--config.profile.alpha=0.25") == EXIT_INPUT
    assert "has another config: profile.alpha: stored 0.5, given 0.25" in one_line_error(capsys)
    assert take(trained, "--config.training.epochs=3") == EXIT_INPUT
    assert "training.epochs: stored 2, given 3" in one_line_error(capsys)


@pytest.mark.slow
def test_copies_are_one_matrix_and_another_than_of_the_images_themselves(augmented, undrawn, tmp_path):
    found = {}
    copies = ["--config.spectrum.augmentation=copies", "--config.spectrum.copies=2"]
    for name, options in {"none": [], "copies": copies, "again": copies}.items():
        chosen = ["--config.spectrum.classes=7", "--config.spectrum.whole=false"]
        common = [*QUICK, *chosen, f"--output={tmp_path}/{name}"]
        assert take(augmented, *common, *options) == 0
        found[name] = read(tmp_path / name / "seed_0")
    np.testing.assert_array_equal(found["copies"][1]["nodes"], found["again"][1]["nodes"])
    assert np.abs(found["copies"][1]["nodes"] / found["none"][1]["nodes"] - 1).max() > 1e-3
    assert all(told["checks"]["change"] == 0 for told in found["copies"][0]["groups"])
    assert (found["copies"][0]["augmentation"], found["copies"][0]["copies"]) == ("copies", 2)


@pytest.mark.slow
def test_the_published_protocol_records_that_its_matrix_changes(augmented, undrawn):
    published = ["--config.spectrum.name=published", "--config.spectrum.order=8", "--config.spectrum.classes=7"]
    published += ["--config.spectrum.examples=20"]
    assert take(augmented, *published) == 0
    facts, arrays = read(augmented / "spectra" / "published" / "seed_0")
    assert (facts["protocol"], facts["augmentation"], facts["loss"]) == ("published", "redrawn", "cross_entropy")
    assert arrays["nodes"].shape == (2, 1, 8)
    for told in facts["groups"]:
        assert told["checks"]["change"] > 0.01 and told["checks"]["asymmetry"] > 0.01
        assert told["trace_standard_error"] is None  # of a single probe


@pytest.mark.slow
def test_classes_without_examples(tmp_path, capsys):
    """Class 3 has none to train on but some to test on, where its weight is zero and so is its matrix."""
    counts = "--config.profile.counts=(20,20,20,0,20,20,20,20,20,20)"
    options = ["--config.profile.name=counts", counts, "--config.training.empty_classes=mask"]
    assert guarded(run, [DIGITS, f"--workdir={tmp_path}", *TINY, *options, "--config.training.epochs=1"]) == 0
    assert take(tmp_path, *QUICK, "--config.spectrum.classes=3") == EXIT_INPUT
    assert "classes: class 3 has no example to look at" in one_line_error(capsys)
    assert take(tmp_path, *QUICK) == 0
    facts, _ = read(tmp_path / "spectra" / "fixed" / "seed_0")
    assert [told["class"] for told in facts["groups"]] == [None, 0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert facts["skipped"] == [{"class": 3, "name": "3", "reason": "no example in the train split"}]
    assert take(tmp_path, *QUICK, "--config.spectrum.split=test", "--config.spectrum.classes=3,4") == 0
    facts, _ = read(tmp_path / "spectra" / "fixed" / "seed_0")
    zero = facts["groups"][1]
    assert zero["lambda_max"] == zero["lambda_min"] == zero["trace"] == 0 and zero["ratio"] is None
    assert facts["groups"][2]["lambda_max"] > 0 and facts["skipped"] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--config.spectrum.order=311"], "spectrum.order: expected at most the 310 parameters of 'all', got 311"),
        ([*QUICK, "--config.spectrum.order=51"], "at most the 50 parameters of 'last_layer', got 51"),
        (["--config.spectrum.ordr=5"], "config.spectrum: fixed takes no 'ordr'; did you mean 'order'?"),
        (["--config.spectrum.name=fix"], "config.spectrum.name: no 'fix'; did you mean 'fixed'?"),
        (
            ["--config.spectrum.name=published", "--config.spectrum.matrix=gauss_newton"],
            "config.spectrum: published takes no 'matrix'",
        ),
        (["--config.spectrum.matrix=fisher"], "spectrum.matrix: no 'fisher'"),
        (["--config.spectrum.probes=0"], "spectrum.probes: expected a number >= 1, got 0"),
        (["--config.spectrum.probes=ten"], "spectrum.probes"),
        (["--config.spectrum.classes=10"], "classes: expected class indices in 0..9, got 10"),
        (["--config.spectrum.parameters=conv*"], "parameters: no 'conv*'"),
        (["--config.spectrum.augmentation=copies"], "'copies' needs a run with augmentation, this has none"),
        (["--config.spectrum.name=published"], "'redrawn' needs a run with augmentation, this has none"),
        (["--seed=2"], "--seed: expected one of the run's seeds (0, 1), got 2"),
        (["--run=/nowhere"], "workdir: expected a run folder with a config.json, found none at /nowhere/config.json"),
    ],
    ids=lambda value: value[-1].rpartition("--config.")[2] if isinstance(value, list) else "",
)
def test_bad_input_is_told_in_one_line(trained, tmp_path, capsys, options, message):
    assert take(trained, f"--output={tmp_path}/out", *options) == EXIT_INPUT
    assert message in one_line_error(capsys)
    assert not (tmp_path / "out").exists()


def test_a_run_folder_is_needed(capsys):
    assert guarded(run, ["--task=spectrum", DIGITS]) == EXIT_INPUT
    assert "--workdir: expected a path for --task=spectrum, got none" in one_line_error(capsys)


def test_a_run_without_checkpoints(trained, tmp_path, capsys):
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(trained / "config.json", bare)
    assert take(bare, *QUICK) == EXIT_INPUT
    assert "workdir: expected checkpoints of seed 0" in one_line_error(capsys)
    (bare / "seed_0" / "checkpoints").mkdir(parents=True)
    assert take(bare, *QUICK) == EXIT_INPUT
    assert "no complete checkpoint of seed 0" in one_line_error(capsys)


def test_parameters_that_are_not_finite(trained, tmp_path, capsys, monkeypatch):
    original = tasks.trained_parameters

    def damaged(*arguments):
        found = original(*arguments)
        found.variables["params"]["classifier"]["bias"][4] = np.nan
        return found

    monkeypatch.setattr(tasks, "trained_parameters", damaged)
    assert take(trained, *QUICK, f"--output={tmp_path}") == EXIT_INPUT
    assert "params: classifier/bias holds NaN or infinite values; there is no spectrum" in one_line_error(capsys)


@pytest.mark.parametrize(
    "error",
    [MemoryError(), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99999999 bytes.")],
    ids=["host", "device"],
)
def test_exhausted_memory_is_told_with_advice(trained, tmp_path, capsys, monkeypatch, error):
    def exhausted(*arguments, **options):
        raise error

    monkeypatch.setattr("imbal_jax.analysis.class_spectra.check_operator", exhausted)
    assert take(trained, *QUICK, "--config.spectrum.micro_batch=24", f"--output={tmp_path}") == EXIT_INPUT
    assert "micro_batch: out of memory with 24 examples at once; choose fewer" in one_line_error(capsys)
