"""The command line, run in this process on a tiny network."""

import json

import numpy as np
import pytest

from imbal_jax.main import EXIT_INPUT, EXIT_NON_FINITE, guarded, run
from tests.conftest import ROOT

DIGITS = f"--config={ROOT}/configs/digits.py"
TINY = [
    "--config.model.name=mlp",
    "--config.model.hidden=(8,)",
    "--config.training.epochs=2",
    "--config.training.checkpoint_every_epochs=1",
    "--config.seeds=0,1",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a finished run of two seeds."""
    workdir = tmp_path_factory.mktemp("run")
    options = ["--config.record.class_gradient_norms=true"]
    assert guarded(run, [DIGITS, f"--workdir={workdir}", *TINY, *options]) == 0
    return workdir


def test_training_fills_the_run_folder(trained):
    names = {path.relative_to(trained).as_posix() for path in trained.rglob("*") if path.is_file()}
    expected = {"config.json", "metadata.json", "summary.json", "data_fingerprint.txt"}
    expected |= {f"figures/learning_curves.{ending}" for ending in ("png", "pdf")}
    for seed in (0, 1):
        expected |= {f"seed_{seed}/metrics.jsonl", f"seed_{seed}/result.json"}
        expected |= {f"seed_{seed}/figures/{name}.png" for name in ("confusion", "class_gradient_norms")}
        assert any(name.startswith(f"seed_{seed}/events/events.out.tfevents") for name in names)
        assert any(name.startswith(f"seed_{seed}/checkpoints/") for name in names)
    assert expected <= names


def test_summary_has_the_documented_keys(trained):
    summary = json.loads((trained / "summary.json").read_text())
    scalars = ("test/accuracy", "test/balanced_accuracy", "test/macro_f1", "test/cross_entropy", "seconds_per_epoch")
    for key in scalars:
        values = [summary["per_seed"][seed][key] for seed in ("0", "1")]
        assert summary[key] == pytest.approx(np.mean(values))
        assert summary["standard_error"][key] == pytest.approx(np.std(values, ddof=1) / np.sqrt(2))
    assert summary["num_params"] == summary["num_trainable"] == 64 * 8 + 8 + 8 * 10 + 10
    assert len(summary["class_counts"]) == len(summary["test/per_class_recall"]) == 10
    assert len(summary["best_step"]) == 2
    assert np.shape(summary["per_seed"]["0"]["test/confusion"]) == (10, 10)


def test_records_hold_the_metrics_of_every_epoch(trained):
    records = [json.loads(line) for line in (trained / "seed_1" / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == [1, 2]
    for record in records:
        names = (
            "loss",
            "cross_entropy",
            "accuracy",
            "balanced_accuracy",
            "macro_f1",
            "per_class_recall",
            "recall_head",
        )
        assert {f"validation/{name}" for name in names} <= set(record)
        assert {"train/loss", "train/cross_entropy", "learning_rate", "step", "seconds"} <= set(record)
        assert len(record["class_gradient_norms"]) == 10


def test_metadata_says_where_a_result_comes_from(trained):
    metadata = json.loads((trained / "metadata.json").read_text())
    assert metadata["packages"]["jax"]
    assert metadata["wall_seconds"] > 0
    assert metadata["cores"] >= 1
    assert metadata["devices"]


def test_the_same_command_again_only_summarises(trained):
    before = (trained / "seed_0" / "metrics.jsonl").read_bytes(), (trained / "summary.json").read_bytes()
    assert guarded(run, [DIGITS, f"--workdir={trained}", *TINY, "--config.record.class_gradient_norms=true"]) == 0
    assert before == ((trained / "seed_0" / "metrics.jsonl").read_bytes(), (trained / "summary.json").read_bytes())


def test_another_config_in_the_same_folder_is_refused(trained, capsys):
    arguments = [DIGITS, f"--workdir={trained}", *TINY, "--config.profile.alpha=0.25"]
    assert guarded(run, arguments) == EXIT_INPUT
    error = one_line_error(capsys)
    assert "profile.alpha: stored 0.5, given 0.25" in error
    assert "record.class_gradient_norms: stored True, given False" in error


def test_evaluate_repeats_the_test_metrics(trained, capsys):
    assert guarded(run, ["--task=evaluate", f"--workdir={trained}"]) == 0
    told = json.loads(capsys.readouterr().out)
    summary = json.loads((trained / "summary.json").read_text())
    for seed in ("0", "1"):
        for key in ("test/accuracy", "test/cross_entropy", "test/confusion"):
            np.testing.assert_allclose(told["per_seed"][seed][key], summary["per_seed"][seed][key], rtol=1e-5)
    assert (trained / "evaluation.json").exists()


def test_evaluate_leaves_a_run_that_may_be_saving_alone(trained):
    """Half-written checkpoints are cleaned up by the run that continues, not by a reader beside it."""
    half_written = trained / "seed_0" / "checkpoints" / "999.orbax-checkpoint-tmp"
    half_written.mkdir()
    assert guarded(run, ["--task=evaluate", f"--workdir={trained}"]) == 0
    assert half_written.is_dir()
    half_written.rmdir()


def test_predict_writes_the_probabilities_that_were_evaluated(trained, tmp_path, capsys):
    from imbal_jax.data.digits import digits

    test = digits().test
    np.savez(tmp_path / "x.npz", x=test.images)
    arguments = ["--task=predict", f"--workdir={trained}", f"--input={tmp_path}/x.npz", "--seed=1"]
    assert guarded(run, [*arguments, f"--output={tmp_path}/p.npz"]) == 0
    with np.load(tmp_path / "p.npz") as told:
        np.testing.assert_allclose(told["probabilities"].sum(axis=1), 1.0, rtol=1e-5)
        accuracy = np.mean(told["predictions"] == test.labels)
        loss = -np.mean(np.log(told["probabilities"][np.arange(len(test.labels)), test.labels]))
        assert told["class_names"].tolist() == [str(digit) for digit in range(10)]
    result = json.loads((trained / "seed_1" / "result.json").read_text())
    assert accuracy == pytest.approx(result["test/accuracy"])
    assert loss == pytest.approx(result["test/cross_entropy"], rel=1e-4)


def test_the_test_set_sees_the_correction_of_the_best_parameters_moment(tmp_path):
    """Parameters from before the switch to LDAM have raw logits; scaled by 30 their losses would be far larger."""
    switch = ["--config.correction.name=deferred", "--config.correction.after.name=ldam", "--config.correction.at=0.75"]
    options = [*TINY, *switch, "--config.seeds=0", "--config.record.figures=false"]
    assert guarded(run, [DIGITS, f"--workdir={tmp_path}", *options]) == 0
    first = json.loads((tmp_path / "seed_0" / "metrics.jsonl").read_text().splitlines()[0])
    result = json.loads((tmp_path / "seed_0" / "result.json").read_text())
    assert result["best_step"] == first["step"]
    assert result["test/cross_entropy"] == pytest.approx(first["validation/cross_entropy"], rel=0.2)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((2, 9, 8, 1), np.float32)}, "expected images of shape (8, 8, 1), got (9, 8, 1)"),
        ({"x": np.full((2, 8, 8, 1), np.nan, np.float32)}, "NaN or infinite pixels in 2 images"),
        ({"x": np.array([None])}, "pickled"),
        ({"a": np.zeros(3), "b": np.zeros(3)}, "expected the array x"),
        ({"x": np.zeros((0, 8, 8, 1), np.float32)}, "n >= 1, got shape (0, 8, 8, 1)"),
    ],
)
def test_predict_refuses_faulty_images(trained, tmp_path, capsys, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    arguments = ["--task=predict", f"--workdir={trained}", f"--input={tmp_path}/x.npz", f"--output={tmp_path}/p.npz"]
    assert guarded(run, arguments) == EXIT_INPUT
    assert message in one_line_error(capsys)
    assert not (tmp_path / "p.npz").exists()


def test_predict_refuses_a_seed_that_was_not_trained(trained, tmp_path, capsys):
    np.savez(tmp_path / "x.npz", x=np.zeros((1, 8, 8, 1), np.float32))
    assert (
        guarded(run, ["--task=predict", f"--workdir={trained}", f"--input={tmp_path}/x.npz", "--seed=7"]) == EXIT_INPUT
    )
    assert "--seed: expected one of the run's seeds (0, 1), got 7" in one_line_error(capsys)


def test_print_config_shows_the_resolved_config(capsys):
    assert guarded(run, [DIGITS, "--print_config", "--config.profile.alpha=0.1"]) == 0
    config = json.loads(capsys.readouterr().out)
    assert config["profile"]["alpha"] == 0.1
    assert config["training"]["reduction"] == "mean"


def test_describe_needs_no_data_for_well_known_sets(capsys):
    arguments = [f"--config={ROOT}/configs/cifar10_vgg11.py", "--task=describe", "--config.data.path=/nowhere"]
    assert guarded(run, arguments) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["num_params"] == told["num_trainable"] == 28_149_514
    assert told["class_counts"] == [118, 271, 306, 150, 211, 305, 110, 170, 2339, 515]
    assert sum(row["size"] for row in told["parameters"]) == told["num_params"]
    assert told["validation_class_counts"] == [500] * 10


def test_describe_counts_the_long_tail(capsys):
    assert guarded(run, [f"--config={ROOT}/configs/cifar10_resnet32.py", "--task=describe"]) == 0
    assert json.loads(capsys.readouterr().out)["class_counts"] == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]


NOISE = ["--config.label_noise.name=asymmetric", "--config.label_noise.rate=0.4"]


def test_describe_and_check_show_the_label_noise(capsys):
    assert guarded(run, [f"--config={ROOT}/configs/cifar10_resnet32.py", "--task=describe", *NOISE]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["class_counts"][-1] == 50  # 5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50 before the noise
    assert told["label_noise"]["rate"] == 0.4
    assert told["label_noise"]["class_counts"] == [5718, 3017, 1078, 801, 387, 663, 232, 397, 83, 30]
    assert guarded(run, [DIGITS, "--task=check", *NOISE]) == 0
    told = json.loads(capsys.readouterr().out)
    assert sum(told["label_noise"]["class_counts"]) == sum(told["profile"]["class_counts"])
    assert told["label_noise"]["class_counts"] != told["profile"]["class_counts"]


def test_describe_and_check_say_what_the_noise_is_trained_on(capsys):
    """The counts that they show are those of the run."""
    from imbal_jax.build import build_experiment
    from imbal_jax.config import load_config, parse_overrides
    from imbal_jax.resolve import resolve

    noise = ["--config.label_noise.name=symmetric", "--config.label_noise.draw=independent"]
    for task in ("describe", "check"):
        assert guarded(run, [DIGITS, f"--task={task}", *noise]) == 0
        told = json.loads(capsys.readouterr().out)["label_noise"]["class_counts"]
        experiment = build_experiment(resolve(load_config(DIGITS.removeprefix("--config=")), parse_overrides(noise)))
        assert told == experiment.data.counts.counts.tolist()


def test_noise_that_cannot_be_is_told(capsys):
    noise = ["--config.label_noise.name=symmetric", "--config.label_noise.draw=published"]
    assert guarded(run, [DIGITS, "--task=check", *noise]) == 1
    assert "'published' changes" in json.loads(capsys.readouterr().out)["faults"][0]
    assert guarded(run, [DIGITS, "--task=describe", *noise]) == EXIT_INPUT
    assert "draw: 'published' changes" in one_line_error(capsys)


def test_check_reports_counts_and_exits_cleanly(capsys):
    assert guarded(run, [DIGITS, "--task=check"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["faults"] == []
    assert sum(told["splits"]["train"]["class_counts"]) + sum(told["splits"]["test"]["class_counts"]) == 1797


def test_check_lists_every_fault(tmp_path, capsys):
    images = np.zeros((6, 4, 4, 1), np.float32)
    images[2] = np.nan
    path = tmp_path / "faulty.npz"
    np.savez(path, x_train=images, y_train=[0, 1, 0, 1, 0, -3], x_test=images[:1], y_test=[0.5])
    arguments = [f"--config={ROOT}/configs/arrays.py", f"--config.data.path={path}", "--task=check"]
    assert guarded(run, arguments) == 1
    told = json.loads(capsys.readouterr().out)
    assert len(told["faults"]) == 3
    assert "got -3 at index 5" in told["faults"][0]
    assert "first at index 2" in told["faults"][1]
    assert "y_test: expected integers" in told["faults"][2]
    assert told["splits"]["train"]["class_counts"] == [3, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y_train": np.array([0, 1, 0, 9, 0, -1])}, "y_train: expected labels in"),
        ({"y_train": np.array([0.0, 1, 0, 1, 0, 1])}, "y_train: expected integers"),
        ({"y_train": np.array([0, 1, 0])}, "expected the same length, got 6 and 3"),
        ({"x_train": np.full((6, 4, 4, 1), np.inf, np.float32)}, "NaN or infinite pixels in 6 images"),
        ({"y_train": np.array([0, 0, 0, 2, 2, 2])}, "classes [1] have no training example"),
        ({"y_train": np.array([0, 1, 0, 1, 0, None])}, "pickled objects, which are never unpickled"),
    ],
)
def test_training_refuses_faulty_arrays(tmp_path, capsys, change, message):
    arrays = {"x_train": np.zeros((6, 4, 4, 1), np.float32), "y_train": np.array([0, 1, 0, 1, 0, 1])}
    arrays |= {"x_test": np.zeros((2, 4, 4, 1), np.float32), "y_test": np.array([0, 1])}
    path = tmp_path / "images.npz"
    np.savez(path, **(arrays | change))
    options = ["--config.validation.fraction=0", "--config.training.select=last", "--config.training.batch_size=2"]
    arguments = [f"--config={ROOT}/configs/arrays.py", f"--config.data.path={path}", f"--workdir={tmp_path}/run"]
    assert guarded(run, [*arguments, *options]) == EXIT_INPUT
    assert message in one_line_error(capsys)


def test_missing_data_are_told_with_the_command_that_prepares_them(tmp_path, capsys):
    arguments = [
        f"--config={ROOT}/configs/cifar10_vgg11.py",
        f"--config.data.path={tmp_path}",
        f"--workdir={tmp_path}/r",
    ]
    assert guarded(run, arguments) == EXIT_INPUT
    error = one_line_error(capsys)
    for part in ("cifar10", str(tmp_path), "--task=prepare --input=cifar-10-binary.tar.gz", "https://"):
        assert part in error


def test_an_unwritable_workdir_is_told(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert guarded(run, [DIGITS, f"--workdir={tmp_path}/file/run", *TINY]) == EXIT_INPUT
    assert "workdir: cannot create" in one_line_error(capsys)


def test_a_non_finite_loss_stops_the_run_and_keeps_the_checkpoint(tmp_path, capsys):
    steep = [
        "--config.schedule.name=multi_step",
        "--config.schedule.boundaries=(1,)",
        "--config.schedule.factors=(1e30,)",
    ]
    assert guarded(run, [DIGITS, f"--workdir={tmp_path}/run", *TINY, *steep]) == EXIT_NON_FINITE
    error = one_line_error(capsys)
    assert "of seed 0 is" in error or "of seed 1 is" in error
    assert "at step 17; the checkpoint of step 15 is kept" in error
    assert (tmp_path / "run" / "seed_0" / "checkpoints" / "15").is_dir()
    assert not (tmp_path / "run" / "seed_0" / "result.json").exists()


def test_missing_options_are_told(capsys):
    for arguments, part in (
        ([], "--config: expected a config file"),
        ([DIGITS], "--workdir: expected a path for --task=train"),
        (["--task=evaluate", "--workdir=/nowhere"], "expected a run folder with a config.json"),
        (["--task=prepare"], "--input: expected a path"),
    ):
        assert guarded(run, arguments) == EXIT_INPUT
        assert part in one_line_error(capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([DIGITS, "--workdir=run", "--seed=0"], "--seed: --task=train takes --config, --workdir, --print_config; got"),
        ([DIGITS, "--workdir=run", "--condition=auc"], "--condition: --task=train takes"),
        ([DIGITS, "--task=describe", "--input=x.npz"], "got --input=x.npz"),
        ([DIGITS, "--task=check", "--output=x"], "got --output=x"),
        (["--task=evaluate", "--workdir=run", "--seed=9"], "got --seed=9"),
        (["--task=spectrum", "--workdir=run", "--condition=auc"], "got --condition=auc"),
        (["--task=export", "--workdir=run", "--output=x", "--input=y"], "got --input=y"),
        (["--task=prepare", "--input=a", "--output=b", "--workdir=run"], "--task=prepare takes --input, --output; got"),
        (["--task=prepare", "--input=a", "--output=b", "--config.seeds=0"], "got --config.seeds=0"),
    ],
)
def test_options_that_a_task_does_not_take_are_refused(capsys, arguments, message):
    assert guarded(run, arguments) == EXIT_INPUT
    assert message in one_line_error(capsys)


def test_help_is_useful(capsys):
    with pytest.raises(SystemExit) as stopped:
        run(["--help"])
    assert stopped.value.code == 0
    told = capsys.readouterr().out
    for word in ("train", "evaluate", "predict", "describe", "check", "prepare", "--config.profile.alpha=0.1"):
        assert word in told


def one_line_error(capsys):
    """The one line on standard error that begins with "error:"."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]
