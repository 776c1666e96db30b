"""The command line on pictures in files: train, evaluate, predict, describe, check and export."""

import json
import pathlib

import jax
import numpy as np
import PIL.Image
import pytest
from safetensors.numpy import load_file

from imbal_jax.main import guarded, run
from tests.conftest import ROOT
from tests.pictures import picture, write_pictures

SMALL = [
    *("--config.data.size=8", "--config.data.resize=10", "--config.augmentation.name=random_resized_crop"),
    *("--config.model.name=mlp", "--config.model.hidden=(6,)", "--config.training.batch_size=4"),
    *("--config.training.epochs=3", "--config.record.tensorboard=false", "--config.record.figures=false"),
]
CONFIG = f"--config={ROOT}/configs/arrays.py"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Arguments that name a list of pictures as the data."""
    lists = write_pictures(tmp_path_factory.mktemp("toy"))
    return ["--config.data.name=image_list", *(f"--config.data.{name}={value}" for name, value in lists.items())]


@pytest.fixture(scope="module")
def trained(source, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "toy"
    assert run([CONFIG, *source, *SMALL, f"--workdir={workdir}"]) == 0
    return workdir


def result_of(workdir):
    return json.loads((workdir / "seed_0" / "result.json").read_text())


def one_line_error(capsys, arguments):
    """The error of a command, which must be one line."""
    assert guarded(run, arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_training_writes_results_and_groups_of_classes(trained):
    result = result_of(trained)
    assert result["class_counts"] == [12, 7, 4]
    np.testing.assert_array_equal(np.sum(result["test/confusion"], axis=1), [3, 3, 2])
    assert result["test/recall_head"] is None and result["test/recall_tail"] is not None
    records = [json.loads(line) for line in (trained / "seed_0" / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == [1, 2, 3]


def test_evaluate_repeats_the_test_metrics(trained, capsys):
    assert run(["--task=evaluate", f"--workdir={trained}"]) == 0
    told = json.loads(capsys.readouterr().out)["per_seed"]["0"]
    result = result_of(trained)
    assert told["test/confusion"] == result["test/confusion"]
    assert told["test/cross_entropy"] == pytest.approx(result["test/cross_entropy"], rel=1e-6)


def test_predict_gives_what_was_evaluated(trained, source, tmp_path, capsys):
    root, test = (next(each for each in source if f".{name}=" in each).split("=", 1)[1] for name in ("root", "test"))
    found = np.zeros((3, 3), int)
    for label in range(3):
        folder = pathlib.Path(root) / "test" / f"class {label}"
        output = tmp_path / f"{label}.npz"
        assert run(["--task=predict", f"--workdir={trained}", f"--input={folder}", f"--output={output}"]) == 0
        with np.load(output) as told:
            np.testing.assert_allclose(told["probabilities"].sum(axis=1), 1, rtol=1e-5)
            np.testing.assert_array_equal(told["predictions"], told["probabilities"].argmax(axis=1))
            found[label] = np.bincount(told["predictions"], minlength=3)
            assert [pathlib.Path(each).suffix for each in told["files"]] == [".jpg"] * len(told["files"])
    assert found.tolist() == result_of(trained)["test/confusion"]
    assert len(pathlib.Path(test).read_text().splitlines()) == found.sum()
    assert "0.jpg: " in capsys.readouterr().out


@pytest.mark.parametrize("what", ["empty", "absent", "faulty"])
def test_predict_refuses_what_is_no_picture(trained, tmp_path, capsys, what):
    path = tmp_path / "input"
    if what == "empty":
        path.mkdir()
    elif what == "faulty":
        path.write_bytes(b"no picture")
    error = one_line_error(capsys, ["--task=predict", f"--workdir={trained}", f"--input={path}"])
    expected = {
        "empty": "error: --input: expected files of .jpg, .jpeg, .png, .bmp, .webp in",
        "absent": "error: --input: 1 of 1 pictures are missing in",
        "faulty": f"error: data: cannot decode the picture {path}",
    }
    assert error.startswith(expected[what])


def test_describe_needs_no_pictures_decoded(source, capsys, monkeypatch):
    monkeypatch.setattr(PIL.Image, "open", None)
    network = ["--config.model.name=resnet50", "--config.model.trained=last_block"]
    assert run([CONFIG, *source, *network, "--task=describe"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["input_shape"] == [224, 224, 3] and told["class_counts"] == [12, 7, 4]
    assert told["num_params"] == 25_557_032 - 2049 * 997
    # The last block has 1x1, 3x3 and 1x1 kernels of 512 channels and their normalisations.
    assert told["num_trainable"] == 2048 * 512 + 9 * 512**2 + 512 * 2048 + 2 * (512 + 512 + 2048) + 2049 * 3


def test_describe_does_not_take_the_published_size_for_that_of_the_view(tmp_path, capsys):
    data = ["--config.data.name=tfds_pictures", "--config.data.dataset=cifar10", f"--config.data.path={tmp_path}"]
    assert "expected 'cifar10' prepared" in one_line_error(capsys, [CONFIG, *data, "--task=describe"])


def test_check_finds_nothing_wrong(source, capsys):
    assert run([CONFIG, *source, *SMALL[:2], "--task=check"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["faults"] == [] and told["dataset"] == "Toy"
    assert told["splits"]["train"] == {
        "examples": 23,
        "image_shape": [8, 8, 3],
        "image_type": "uint8",
        "class_counts": [12, 7, 4],
    }


def test_check_lists_all_unreadable_pictures_and_training_names_one(tmp_path, capsys):
    lists = write_pictures(tmp_path, {"train": (5, 5), "test": (2, 2)})
    source = ["--config.data.name=image_list", *(f"--config.data.{name}={value}" for name, value in lists.items())]
    damaged = ["train/class 0/1.jpg", "train/class 1/4.jpg", "test/class 1/0.jpg"]
    for name in damaged:
        (tmp_path / "pictures" / name).write_bytes(b"no picture")
    assert run([CONFIG, *source, *SMALL[:2], "--task=check"]) == 1
    faults = json.loads(capsys.readouterr().out)["faults"]
    assert len(faults) == 3
    for fault, name in zip(faults, damaged, strict=True):
        assert f"cannot decode the picture {tmp_path / 'pictures' / name}" in fault
    arguments = [CONFIG, *source, *SMALL, "--config.validation.fraction=0.0", "--config.training.select=last"]
    error = one_line_error(capsys, [*arguments, f"--workdir={tmp_path / 'run'}"])
    assert error.startswith("error: data: cannot decode the picture")


def test_models_of_recordings_refuse_pictures(source, tmp_path, capsys):
    arguments = [CONFIG, *source, "--config.model.name=speech_cnn", f"--workdir={tmp_path / 'run'}"]
    assert "model.name: 'speech_cnn' is for recordings" in one_line_error(capsys, arguments)


def test_spectra_of_augmented_pictures_refuse_copies(trained, capsys):
    arguments = ["--task=spectrum", f"--run={trained}", "--config.spectrum.augmentation=copies"]
    assert "spectrum.augmentation: expected 'none' under augmentation.name=" in one_line_error(capsys, arguments)


def test_only_networks_with_a_form_of_export_are_exported(trained, tmp_path, capsys):
    arguments = ["--task=export", f"--workdir={trained}", f"--output={tmp_path / 'x.safetensors'}"]
    assert "expected 'hubert'" in one_line_error(capsys, arguments)


@pytest.mark.slow
def test_two_stages_of_a_resnet(tmp_path, capsys):
    """A run, its export, and a run of its last block and classifier from there, whose other weights do not move."""
    fake = ["--config.data.name=fake_images", "--config.data.num_classes=3", "--config.data.size=16"]
    network = ["--config.model.name=resnet50", "--config.model.width=1", *SMALL[5:]]
    common = [CONFIG, *fake, "--config.data.resize=16", *network, "--config.training.batch_size=8"]
    common += ["--config.training.epochs=1", "--config.training.select=last"]
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        stages = [tmp_path / "stage1.safetensors", tmp_path / "stage2.safetensors"]
        start: list[str] = []
        for stage, output in enumerate(stages):
            workdir = tmp_path / f"run{stage}"
            assert run([*common, *start, f"--workdir={workdir}"]) == 0
            assert run(["--task=export", f"--workdir={workdir}", f"--output={output}"]) == 0
            start = [f"--config.model.weights={output}", "--config.model.weights_classifier=true"]
            start += ["--config.model.trained=last_block"]
    finally:
        jax.config.update("jax_disable_most_optimizations", False)
    first, second = map(load_file, stages)
    changed = {name for name in first if (first[name] != second[name]).any()}
    assert changed == {name for name in first if name.startswith(("layer4.2.", "fc."))}
    assert result_of(tmp_path / "run1")["num_trainable"] < result_of(tmp_path / "run1")["num_params"]


def test_a_picture_alone_is_predicted(trained, tmp_path, capsys):
    path = tmp_path / "one.png"
    picture(1, np.random.default_rng(5)).save(path)
    output = tmp_path / "one.npz"
    assert run(["--task=predict", f"--workdir={trained}", f"--input={path}", f"--output={output}"]) == 0
    assert capsys.readouterr().out.startswith(f"{path}: ")
