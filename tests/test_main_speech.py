"""The command line on recordings: small models, small tones, and the tables of CREMA-D."""

import csv
import json
import logging
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from ml_collections import ConfigDict

from imbal_jax.build import build_experiment
from imbal_jax.config import load_config
from imbal_jax.data.crema_d import CLASS_NAMES, PUBLISHED_COUNTS
from imbal_jax.errors import InputError
from imbal_jax.main import EXIT_INPUT, guarded, run
from imbal_jax.models import hubert_builder
from imbal_jax.models.adapters import read_adapter
from imbal_jax.models.speech_cnn import speech_cnn
from imbal_jax.resolve import resolve
from imbal_jax.speech_tasks import export_adapter
from imbal_jax.training.loop import Best
from imbal_jax.training.programs import compile_programs
from imbal_jax.training.run import best_of_run
from imbal_jax.training.step import read_metrics
from tests.conftest import ROOT
from tests.recordings import COUNTS, write_corpus, write_hubert

SPEECH = f"--config={ROOT}/configs/speech.py"
CREMA_D = f"--config={ROOT}/configs/crema_d.py"
SHORT = [
    "--config.model.name=hubert",
    "--config.model.projection=4",
    "--config.training.epochs=2",
    "--config.training.batch_size=4",
    "--config.data.buckets=1",
    "--config.record.tensorboard=false",
    "--config.record.figures=false",
    "--config.record.class_gradient_norms=true",
    "--config.record.step_effects_batches=1",
]


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Compilation dominates these tests; the values are the same without XLA's optimisations."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), COUNTS | {"test_2": (1, 2, 1)})


@pytest.fixture(scope="module")
def hubert(tmp_path_factory):
    return write_hubert(tmp_path_factory.mktemp("hubert") / "small", num_hidden_layers=1)


@pytest.fixture(scope="module")
def options(table, hubert):
    return [SPEECH, f"--config.data.path={table}", *SHORT, f"--config.model.path={hubert}"]


@pytest.fixture(scope="module")
def trained(options, tmp_path_factory):
    """The folder of a finished run."""
    workdir = tmp_path_factory.mktemp("run")
    assert guarded(run, [*options, f"--workdir={workdir}"]) == 0
    return workdir


@pytest.fixture(autouse=True)
def logs():
    """The command line's way of logging is undone."""
    yield
    logging.captureWarnings(False)


def result_of(workdir):
    return json.loads((workdir / "seed_0" / "result.json").read_text())


def experiment_config(workdir):
    return json.loads((workdir / "config.json").read_text())


def one_line_error(capsys):
    """The one line on standard error that begins with "error:"."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def test_every_test_set_is_evaluated(trained):
    result, summary = result_of(trained), json.loads((trained / "summary.json").read_text())
    for name, counts in (("test", (2, 3, 3)), ("test_2", (1, 1, 2))):
        confusion = np.array(result[f"{name}/confusion"])
        assert confusion.sum(axis=1).tolist() == list(counts)
        assert result[f"{name}/accuracy"] == pytest.approx(np.trace(confusion) / sum(counts))
        assert summary[f"{name}/accuracy"] == result[f"{name}/accuracy"]
    # low: 12, middle: 7, high: 5, in alphabetical order.
    assert summary["class_counts"] == [5, 12, 7]


def test_parameters_are_counted_with_the_frozen_ones(trained, options, capsys):
    assert guarded(run, [*options, "--task=describe"]) == 0
    told = json.loads(capsys.readouterr().out)
    result = result_of(trained)
    assert result["num_trainable"] == told["num_trainable"] == 2 * 2 * 8 * 8 + 8 * 4 + 4 * 3
    assert result["num_params"] == told["num_params"] > 2 * told["num_trainable"]
    assert told["input_shape"] == [96_000]
    assert told["class_counts"] == [5, 12, 7]


def test_records_hold_the_metrics_of_every_epoch(trained):
    records = [json.loads(line) for line in (trained / "seed_0" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [6, 12]
    for record in records:
        assert 0 <= record["validation/macro_f1"] <= 1
        assert len(record["class_gradient_norms"]) == 3
        assert sum(record["step_effects"]["count"]) == 4


def test_evaluate_repeats_the_test_metrics(trained, capsys):
    assert guarded(run, ["--task=evaluate", f"--workdir={trained}"]) == 0
    told = json.loads(capsys.readouterr().out)["per_seed"]["0"]
    for key in ("test/accuracy", "test/confusion", "test_2/confusion", "test_2/cross_entropy"):
        np.testing.assert_allclose(told[key], result_of(trained)[key], rtol=1e-5)


def test_predict_gives_the_probabilities_that_were_evaluated(trained, table, tmp_path, capsys):
    with table.open() as stream:
        listed = [row for row in csv.DictReader(stream) if row["split"] == "test"]
    for row in listed:
        shutil.copy(table.parent / row["path"], tmp_path)
    output = tmp_path / "p.npz"
    arguments = ["--task=predict", f"--workdir={trained}", f"--input={tmp_path}", f"--output={output}"]
    assert guarded(run, arguments) == 0
    with np.load(output) as told:
        names, files = told["class_names"].tolist(), [str(file).rsplit("/", 1)[1] for file in told["files"]]
        probabilities = told["probabilities"]
    assert files == sorted(row["path"] for row in listed)
    label_of = {row["path"]: names.index(row["label"]) for row in listed}
    labels = np.array([label_of[file] for file in files])
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=1e-5)
    result = result_of(trained)
    confusion = np.zeros((3, 3), int)
    np.add.at(confusion, (labels, probabilities.argmax(axis=1)), 1)
    assert confusion.tolist() == result["test/confusion"]
    loss = -np.mean(np.log(probabilities[np.arange(8), labels]))
    assert loss == pytest.approx(result["test/cross_entropy"], rel=1e-4)
    printed = capsys.readouterr().out
    assert all(file in printed for file in files)


def test_predict_takes_one_file_as_well_as_many(trained, table, tmp_path):
    """A clip is what it is alone, whatever is predicted beside it."""
    files = sorted(table.parent.glob("test_*.wav"))
    for source, name in ((files[0], "one"), (table.parent, "all")):
        arguments = ["--task=predict", f"--workdir={trained}", f"--input={source}", f"--output={tmp_path}/{name}.npz"]
        assert guarded(run, arguments) == 0
    with np.load(tmp_path / "one.npz") as one, np.load(tmp_path / "all.npz") as every:
        row = every["files"].tolist().index(str(files[0]))
        np.testing.assert_allclose(one["probabilities"][0], every["probabilities"][row], rtol=1e-4)


@pytest.mark.parametrize("what", ["empty", "absent", "faulty"])
def test_predict_refuses_what_is_no_recording(trained, tmp_path, capsys, what):
    folder = tmp_path / "sounds"
    if what != "absent":
        folder.mkdir()
    if what == "faulty":
        for name in ("a.wav", "b.wav"):
            (folder / name).write_bytes(b"RIFF")
    message = {"empty": "--input: expected files of", "absent": "sounds", "faulty": "2 of 2 recordings cannot be used"}
    assert guarded(run, ["--task=predict", f"--workdir={trained}", f"--input={folder}"]) == EXIT_INPUT
    assert message[what] in one_line_error(capsys)


def test_export_writes_the_best_parameters_as_an_adapter(trained, options, tmp_path, capsys):
    folder = tmp_path / "adapter"
    assert guarded(run, ["--task=export", f"--workdir={trained}", f"--output={folder}"]) == 0
    experiment = build_experiment(resolve(ConfigDict(experiment_config(trained))))
    params, spec = read_adapter(folder, experiment.model.blueprint.config)
    assert spec == experiment.model.blueprint.lora
    best = best_of_run(compile_programs(experiment, stacked=False), trained, 0).variables["params"]
    chex.assert_trees_all_equal(params, jax.tree.map(jnp.asarray, best))
    assert float(jnp.abs(params["hubert"]["encoder"]["layers_0"]["attention"]["q_proj"]["lora_B"]["kernel"]).max()) > 0
    again = build_experiment(resolve(ConfigDict(experiment_config(trained)), {"model.adapter": str(folder)}))
    chex.assert_trees_all_equal(compile_programs(again, stacked=False).initial((0,)).params, params)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    arguments = ["--task=export", f"--workdir={trained}", f"--output={tmp_path}/model"]
    assert guarded(run, arguments) == EXIT_INPUT
    assert "expected one without config.json" in one_line_error(capsys)


def test_export_refuses_models_without_adapters(table):
    best = Best(0, None, {"params": {}, "model_state": {}})
    with pytest.raises(InputError, match="expected 'hubert' to export an adapter, got a run of SpeechCNN"):
        export_adapter(speech_cnn(3), best, "", table.parent / "adapter")
    with pytest.raises(InputError, match="expected lora_rank >= 1"):
        export_adapter(hubert_builder.hubert(3, size="tiny", lora_rank=0), best, "", table.parent / "adapter")
    assert not (table.parent / "adapter").exists()


def test_a_finished_run_is_only_summarised_again(trained, options):
    before = (trained / "seed_0" / "metrics.jsonl").read_bytes()
    assert guarded(run, [*options, f"--workdir={trained}"]) == 0
    assert before == (trained / "seed_0" / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_the_curvature_of_every_class_is_recorded(options, tmp_path):
    curvature = ["--config.record.curvature_every=2", "--config.record.curvature_order=4"]
    assert guarded(run, [*options, *curvature, f"--workdir={tmp_path}"]) == 0
    records = [json.loads(line) for line in (tmp_path / "seed_0" / "metrics.jsonl").read_text().splitlines()]
    assert len(records[1]["class_curvature"]["lambda_max"]) == 3
    assert np.isfinite(records[1]["class_curvature"]["lambda_max"]).all()


# Tables.


def write_crema_d(folder):
    """The table of a clone of CREMA-D with ten actors, and no audio."""
    lines = ["FileName,VoiceVote,FaceVote,MultiModalVote"]
    for actor in range(1001, 1011):
        for code, letter in zip(("NEU", "HAP", "SAD", "ANG", "FEA", "DIS"), "NHSAFD", strict=True):
            lines.append(f"{actor}_IEO_{code}_XX,{letter},{letter},{letter}")
    (folder / "summaryTable.csv").write_text("\n".join(lines))
    return folder


def test_describe_counts_hubert_base_without_weights_or_audio(tmp_path, capsys):
    assert guarded(run, [CREMA_D, "--task=describe", f"--config.data.root={write_crema_d(tmp_path)}"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["num_trainable"] == 493_056
    assert told["num_params_as_peft_counts"] == 95_062_912
    assert told["num_params"] == 94_864_768
    assert sum(row["size"] for row in told["parameters"]) == told["num_trainable"]
    assert told["class_counts"] == [7] * 6
    assert told["num_classes"] == 6


def test_check_reproduces_the_published_counts_and_tells_missing_audio_apart(shared_path, capsys):
    root = shared_path("data/crema_d")
    assert guarded(run, [CREMA_D, "--task=check", f"--config.data.root={root}"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["class_names"] == list(CLASS_NAMES)
    for split, counts in PUBLISHED_COUNTS.items():
        assert told["splits"][split]["class_counts"] == list(counts)
        assert told["splits"][split]["examples"] == sum(counts)
    assert {split: sum(counts) for split, counts in PUBLISHED_COUNTS.items()} == {
        "train": 4692,
        "validation": 670,
        "test": 1431,
    }
    assert told["faults"] == []
    assert told["missing_audio"]["files"] == 4692 + 670 + 1431
    assert len(told["missing_audio"]["first"]) == 10
    assert told["git_lfs_pointers"]["files"] == 0


def test_check_scans_the_audio_there_is(tmp_path, capsys):
    table = write_corpus(tmp_path)
    options = [SPEECH, f"--config.data.path={table}", "--config.data.missing_files=ignore", "--task=check"]
    (tmp_path / "train_low_0.wav").unlink()
    (tmp_path / "train_low_1.wav").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert guarded(run, options) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["missing_audio"]["files"], told["git_lfs_pointers"]["files"]) == (1, 1)
    assert told["splits"]["train"]["class_counts"] == [5, 12, 7]
    soundfile.write(tmp_path / "test_low_0.wav", np.zeros(8_000), 16_000)
    (tmp_path / "test_low_1.wav").write_bytes(b"RIFF")
    assert guarded(run, options) == 1
    faults = json.loads(capsys.readouterr().out)["faults"]
    assert any("test_low_0.wav" in fault for fault in faults) and any("test_low_1.wav" in fault for fault in faults)


def test_check_tells_a_faulty_table(tmp_path, capsys):
    table = tmp_path / "recordings.csv"
    table.write_text("path,label\nmissing.wav,a\n,b\n")
    assert guarded(run, [SPEECH, f"--config.data.path={table}", "--task=check"]) == 1
    (fault,) = json.loads(capsys.readouterr().out)["faults"]
    assert "no path: line 3" in fault and "missing files" in fault


# What training refuses.


def test_faulty_recordings_are_refused_all_at_once(tmp_path, capsys):
    table = write_corpus(tmp_path)
    for name in ("train_low_3.wav", "test_high_0.wav", "validation_middle_1.wav"):
        (tmp_path / name).write_bytes(b"no sound")
    assert guarded(run, [SPEECH, f"--config.data.path={table}", f"--workdir={tmp_path}/run"]) == EXIT_INPUT
    error = one_line_error(capsys)
    assert "3 of 40 recordings cannot be used" in error
    for name in ("train_low_3.wav", "test_high_0.wav", "validation_middle_1.wav"):
        assert name in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--config.model.name=cnn"], "model.name: 'cnn' is for images, but data.name='manifest' has recordings"),
        (
            ["--config.augmentation.name=crop_flip"],
            "augmentation.name: expected 'none' for recordings, got 'crop_flip'",
        ),
        (["--config.model.path=/nowhere"], "/nowhere"),
        (["--config.model.classifier=cosine"], "config.model: hubert takes no 'classifier'"),
        (["--config.model.cache=disk"], "model.cache_dir: expected a folder"),
        (["--config.model.padding=hf_mask", "--config.model.cache=memory"], "needs model.padding='exact'"),
        (["--config.data.path=/nowhere.csv"], "expected a csv file, found none"),
    ],
)
def test_what_does_not_go_together_is_refused(options, tmp_path, capsys, overrides, message):
    if overrides == ["--config.model.name=cnn"]:
        options = [option for option in options if ".model." not in option]
    assert guarded(run, [*options, *overrides, f"--workdir={tmp_path}/run"]) == EXIT_INPUT
    assert message in one_line_error(capsys)
    assert not (tmp_path / "run").exists()


def test_images_are_refused_by_a_model_of_recordings(tmp_path, capsys):
    arguments = [f"--config={ROOT}/configs/digits.py", "--config.model.name=speech_cnn", f"--workdir={tmp_path}/run"]
    assert guarded(run, arguments) == EXIT_INPUT
    assert "model.name: 'speech_cnn' is for recordings, but data.name='digits' has images" in one_line_error(capsys)


# Everything that a run is made of.


def two_losses(method, table, overrides):
    """The losses of two steps."""
    short = {"data.path": str(table), "data.buckets": "1", "training.batch_size": "4", "training.epochs": "2"}
    config = resolve(load_config(f"{ROOT}/configs/speech.py:{method}"), short | overrides)
    experiment = build_experiment(config)
    programs = compile_programs(experiment, stacked=False)
    keys = programs.keys((0,))
    _, told = programs.drive(programs.initial((0,)), programs.train_data, programs.draw(keys.order, 0), keys.step, 0, 2)
    return experiment, read_metrics(told).loss


@pytest.mark.parametrize(
    ("model", "method", "overrides", "counts"),
    [
        ("hubert", "ldam_drw", {"profile.name": "long_tail", "profile.ratio": "5"}, [5, 2, 1]),
        ("hubert", "ief_sampler", {"correction.name": "logit_adjustment"}, [5, 12, 7]),
        ("hubert", "gdn", {"sampler.name": "effective_number"}, [5, 12, 7]),
        ("speech_cnn", "focal", {"profile.name": "dirichlet", "profile.total": "14", "profile.min_count": "1"}, None),
        ("speech_cnn", "vector_scaling", {"sampler.name": "class_balanced"}, [5, 12, 7]),
        ("speech_cnn", "ief_drw", {"profile.name": "step", "profile.ratio": "2"}, None),
        pytest.param("hubert", "ef_irw", {}, [5, 12, 7], marks=pytest.mark.slow),
        pytest.param("hubert", "ekfac_drw", {}, [5, 12, 7], marks=pytest.mark.slow),
        pytest.param("speech_cnn", "gdn_sampler", {}, [5, 12, 7], marks=pytest.mark.slow),
    ],
)
def test_profiles_samplers_corrections_and_directions_work_on_recordings(
    model, method, overrides, counts, table, hubert
):
    models = {"model.channels": "(4,)", "model.n_mels": "6"}
    if model == "hubert":
        models = {"model.name": "hubert", "model.path": str(hubert), "model.projection": "4"}
        if method == "ldam_drw":
            models |= {"correction.margin.scale": "1"}
    experiment, losses = two_losses(method, table, models | overrides)
    assert np.isfinite(losses).all() and losses[0] != losses[1]
    if counts is not None:
        assert experiment.data.counts.counts.tolist() == counts
