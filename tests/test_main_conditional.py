"""Loss-conditional training from the command line, on two groups of the bundled digits."""

import json
import shutil

import numpy as np
import pytest
from sklearn.datasets import load_digits

from experiments import lct_figures
from imbal_jax.data.digits import digits
from imbal_jax.evaluation.binary_metrics import BINARY_METRICS, binary_metrics
from imbal_jax.main import EXIT_INPUT, guarded, run
from imbal_jax.training.checkpoints import Checkpoints
from tests.conftest import ROOT

CONFIG = f"--config={ROOT}/configs/lct.py:vs_lct-digits"
SHORT = [
    "--config.seeds=0,1",
    "--config.training.epochs=6",
    "--config.model.width=8",
    "--config.evaluation.grid=((0,0.3),(0,1,4))",
    "--config.record.tensorboard=false",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a finished run of two seeds."""
    workdir = tmp_path_factory.mktemp("run") / "lct"
    assert guarded(run, [CONFIG, f"--workdir={workdir}", *SHORT]) == 0
    return workdir


def read(path):
    return json.loads(path.read_text())


def printed(capsys, arguments):
    """The JSON that a command prints."""
    capsys.readouterr()
    assert guarded(run, arguments) == 0
    return json.loads(capsys.readouterr().out)


def failed(capsys, arguments):
    """The error that a command ends with."""
    capsys.readouterr()
    assert guarded(run, arguments) == EXIT_INPUT
    return capsys.readouterr().err


def test_it_learns_and_its_predictions_vary_with_the_condition(trained):
    for seed in (0, 1):
        result = read(trained / f"seed_{seed}" / "result.json")
        assert result["test/auc"] > 0.8
        with np.load(trained / f"seed_{seed}" / "scores.npz") as scores:
            at_conditions, conditions = scores["log_odds_at_conditions"], scores["conditions"]
        assert conditions.tolist() == [[g, t] for g in (0.0, 0.3) for t in (0.0, 1.0, 4.0)]
        assert np.ptp(at_conditions, axis=0).mean() > 0.3
        # A larger tau asks for larger log-odds of the minority in training; what the model says by itself follows.
        assert np.corrcoef(conditions[:, 1], at_conditions.mean(axis=1))[0, 1] > 0.8


def test_results_hold_the_binary_metrics_of_the_scores(trained):
    result = read(trained / "seed_0" / "result.json")
    with np.load(trained / "seed_0" / "scores.npz") as scores:
        expected = binary_metrics(scores["labels"], scores["log_odds"])
        assert scores["labels"].tolist() == (digits().test.labels >= 5).astype(int).tolist()
        accuracy = np.mean((scores["log_odds"] > 0) == scores["labels"])
    for name, value in expected.items():
        assert result[f"test/{name}"] == pytest.approx(value, rel=1e-6), name
    assert result["test/accuracy"] == pytest.approx(accuracy)


def test_records_hold_the_binary_metrics_of_validation(trained):
    records = [json.loads(line) for line in (trained / "seed_1" / "metrics.jsonl").read_text().splitlines()]
    assert len(records) == 6
    assert all({f"validation/{name}" for name in BINARY_METRICS} <= set(record) for record in records)


def test_the_best_condition_by_metric_is_told(trained):
    report, result = (read(trained / "seed_0" / name) for name in ("conditions.json", "result.json"))
    validation = report["validation"]["auc"]
    chosen = int(np.argmax(validation))
    assert report["best"]["auc"]["condition"] == report["conditions"][chosen]
    assert result["tuned/auc"] == report["test"]["auc"][chosen]
    with np.load(trained / "seed_0" / "scores.npz") as scores:
        expected = binary_metrics(scores["labels"], scores["log_odds_at_conditions"][chosen])
    assert result["tuned/auc"] == pytest.approx(expected["auc"])
    summary = read(trained / "summary.json")
    per_seed = [read(trained / f"seed_{seed}" / "result.json")["tuned/auc"] for seed in (0, 1)]
    assert summary["tuned/auc"] == pytest.approx(np.mean(per_seed))


def test_figures(trained, capsys):
    for seed in (0, 1):
        assert (trained / f"seed_{seed}" / "figures" / "precision_recall_roc.pdf").exists()
    assert guarded(lct_figures.run, [str(trained), "--output", str(trained / "paper")]) == 0
    names = {path.name for path in (trained / "paper").iterdir()}
    assert names == {f"{name}.{end}" for name in ("precision_at_recall", "adaptability") for end in ("png", "pdf")}


def test_evaluation_at_other_conditions_after_training(trained, capsys):
    stored = read(trained / "seed_0" / "result.json")
    again = printed(capsys, ["--task=evaluate", f"--workdir={trained}"])["per_seed"]["0"]
    assert again["test/auc"] == pytest.approx(stored["test/auc"])
    assert again["conditions"] == read(trained / "seed_0" / "conditions.json")
    other = printed(capsys, ["--task=evaluate", f"--workdir={trained}", "--config.evaluation.grid=((0,),(0.5,2))"])
    assert other["per_seed"]["1"]["conditions"]["conditions"] == [[0.0, 0.5], [0.0, 2.0]]
    error = failed(capsys, ["--task=evaluate", f"--workdir={trained}", "--config.evaluation.condition=(0,1)"])
    assert "another config" in error


def test_predictions_at_a_condition(trained, tmp_path, capsys):
    np.savez(tmp_path / "images.npz", x=load_digits().images[:40].astype(np.float32))
    options = ["--task=predict", f"--workdir={trained}", f"--input={tmp_path}/images.npz"]
    found = {}
    for condition in ("", "0,0", "0,4", "auc", "0.2,1.495"):
        output = tmp_path / f"at_{condition}.npz"
        assert guarded(run, [*options, f"--output={output}", f"--condition={condition}"]) == 0
        with np.load(output) as archive:
            found[condition] = archive["probabilities"]
            assert archive["class_names"].tolist() == ["low", "high"]
    np.testing.assert_allclose(found[""], found["0.2,1.495"], atol=1e-5)  # the means of the densities
    assert found["0,4"][:, 1].mean() > found["0,0"][:, 1].mean() + 0.005
    best = read(trained / "seed_0" / "conditions.json")["best"]["auc"]["condition"]
    named = ",".join(map(str, best))
    assert guarded(run, [*options, f"--output={tmp_path}/best.npz", f"--condition={named}"]) == 0
    with np.load(tmp_path / "best.npz") as archive:
        np.testing.assert_array_equal(archive["probabilities"], found["auc"])
    refused = {"0": "expected 2 numbers", "acu": "did you mean 'auc'", "0,-1": "expected a number >= 0"}
    for condition, told in refused.items():
        assert told in failed(capsys, [*options, f"--condition={condition}"])


def test_describe_counts_the_block_and_the_groups(capsys):
    described = printed(capsys, [CONFIG, "--task=describe"])
    film = sum(each["size"] for each in described["parameters"] if each["name"].startswith("film/"))
    assert film == 2 * (2 * 128 + 128 + 128 * 32 + 32)
    assert described["num_classes"] == 2
    negatives, positives = described["class_counts"]
    assert positives == negatives // 10
    pair = printed(capsys, [f"--config={ROOT}/configs/lct.py:vs-auto_truck", "--task=describe"])
    assert pair["class_counts"] == [4500, 45]
    whole = [f"--config={ROOT}/configs/lct.py:vs-household", "--task=describe", "--config.validation.fraction=0"]
    assert printed(capsys, whole)["class_counts"] == [2500, 25]


def test_check_tells_classes_that_do_not_exist(capsys):
    capsys.readouterr()
    assert guarded(run, [CONFIG, "--task=check", "--config.classes.positive=('8','10')"]) == 1
    assert "no '10'" in json.loads(capsys.readouterr().out)["faults"][0]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--config.classes.positive=('8','10')"], "classes.positive: no '10'"),
        (["--config.profile.beta=0.5"], "beta: expected the largest count over the smallest"),
        (["--config.correction.additive=(1,3,2)"], "additive: expected h_b in [0, 1]"),
        (["--config.correction.name=cross_entropy", "--config.evaluation.grid=()"], "model.film: needs a correction"),
        (["--config.correction.name=cross_entropy", "--config.model.name=cnn"], "evaluation.grid: needs a conditional"),
        (["--config.model.name=mlp", "--config.model.film.name=film"], "mlp takes no 'film'"),
        (["--config.evaluation.condition=(0.1,)"], "evaluation.condition: expected 2 numbers"),
        (["--config.evaluation.grid=((0,),(-1,))"], "evaluation.grid (additive): expected a number >= 0"),
        (
            ["--config.classes.name=all", "--config.profile.name=natural", "--config.correction.weight=(0.5,)"],
            "weight: expected two classes, got 10",
        ),
    ],
)
def test_faulty_configs_are_told(options, told, tmp_path, capsys):
    assert told in failed(capsys, [CONFIG, f"--workdir={tmp_path}", *options])


def test_binary_metrics_select_a_checkpoint_of_two_classes_only(tmp_path, capsys):
    error = failed(
        capsys,
        [
            f"--config={ROOT}/configs/digits.py",
            f"--workdir={tmp_path}",
            "--config.training.select=validation/auc",
        ],
    )
    assert "training.select: 'validation/auc' needs two classes, got 10" in error


@pytest.mark.slow
def test_a_run_continues_exactly(trained, tmp_path):
    """From the last checkpoint but one: the draws depend on the step alone."""
    copied = tmp_path / "run"
    shutil.copytree(trained, copied)
    for name in ("result.json", "conditions.json", "scores.npz"):
        (copied / "seed_0" / name).unlink()
    checkpoints = Checkpoints(copied / "seed_0" / "checkpoints")
    steps = checkpoints.steps()
    checkpoints.discard_after(steps[-2])
    checkpoints.close()
    assert guarded(run, [CONFIG, f"--workdir={copied}", *SHORT]) == 0
    for name in ("result.json", "conditions.json"):
        before, after = read(trained / "seed_0" / name), read(copied / "seed_0" / name)
        assert before | {"seconds_per_epoch": None} == after | {"seconds_per_epoch": None}


@pytest.mark.slow
def test_seeds_together_are_those_alone(tmp_path):
    options = [CONFIG, "--config.training.epochs=1", "--config.model.width=2", "--config.evaluation.grid=((0,),(0,3))"]
    options += ["--config.record.tensorboard=false", "--config.record.figures=false"]
    together = [*options, "--config.seeds=0,1", "--config.training.seeds_together=yes"]
    assert guarded(run, [*together, f"--workdir={tmp_path}/together"]) == 0
    assert guarded(run, [*options, "--config.seeds=1", f"--workdir={tmp_path}/alone"]) == 0
    found, expected = (read(tmp_path / name / "seed_1" / "conditions.json") for name in ("together", "alone"))
    for split in ("validation", "test"):
        assert np.ptp(found[split]["brier_score"]) > 1e-5
        for name, values in expected[split].items():
            if None not in values:
                assert found[split][name] == pytest.approx(values, abs=2e-3), name
