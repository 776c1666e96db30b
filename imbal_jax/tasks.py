"""What the command line does with a run folder, and the training that makes one."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from imbal_jax import build
from imbal_jax.analysis.class_spectra import GroupSpectrum, class_spectra, trained_parameters
from imbal_jax.analysis.spectrum_files import spectrum_header, write_spectra
from imbal_jax.analysis.spectrum_tables import draw_spectra, read_spectrum, table
from imbal_jax.corrections.conditional import with_default
from imbal_jax.data.arrays import read_images
from imbal_jax.data.audio import FORMATS
from imbal_jax.data.image_list import PictureFiles
from imbal_jax.data.image_set import PICTURE_ENDINGS, ImageSet
from imbal_jax.data.prepare import prepare_cifar
from imbal_jax.data.speech import ClipSet, SpeechSource
from imbal_jax.errors import InputError, not_found
from imbal_jax.models.bottleneck import BottleneckResNet
from imbal_jax.models.bottleneck_weights import export_resnet
from imbal_jax.predictions import files_in, predict_streamed
from imbal_jax.reports.progress import ProbeProgress
from imbal_jax.reports.records import plain, print_json, write_json
from imbal_jax.reports.tables import BINARY_COLUMNS, COLUMNS, prediction_lines, results_table
from imbal_jax.resolve import completed
from imbal_jax.speech_tasks import clips_of, export_adapter
from imbal_jax.training.conditions import evaluate_conditions
from imbal_jax.training.experiment import Experiment
from imbal_jax.training.folders import describe_machine, seed_folder
from imbal_jax.training.interruption import StopRequest
from imbal_jax.training.programs import compile_programs
from imbal_jax.training.run import all_test_metrics, best_of_run, train
from imbal_jax.training.streaming import is_streamed


def train_task(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Trains, prints the test metrics as a table and names the run folder."""
    stop = StopRequest().install()
    summary = train(build.build_experiment(config), plain(config.to_dict()), workdir, stop, completed)
    method = config.correction.name
    if config.direction.name != "gradient":
        method = f"{config.direction.name}, {method}"
    title = f"{config.data.name}, {method}, {len(summary['seeds'])} seed(s), test set"
    columns = (*COLUMNS, *(name for name in BINARY_COLUMNS if name in summary))
    Console().print(results_table({method: summary}, columns, title=title))
    print(f"run folder: {workdir}")


def evaluate_task(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Restores the best parameters of every seed, evaluates them on the test set and prints the metrics as JSON.

    Of a conditional model also at every condition of `evaluation.grid`, which may be another than in training.
    """
    experiment = build.build_experiment(config)
    programs = compile_programs(experiment, stacked=False)
    results = {}
    for seed in experiment.seeds:
        bests = [best_of_run(programs, workdir, seed)]
        (results[seed],) = all_test_metrics(experiment, programs, bests)
        (conditions,) = evaluate_conditions(experiment, programs, bests)
        if conditions is not None:
            results[seed] |= {**conditions.tuned(), "conditions": conditions.report()}
    write_json(workdir / "evaluation.json", {"per_seed": results})
    print_json({"workdir": str(workdir), "per_seed": results})


def predict_task(
    config: ConfigDict,
    workdir: pathlib.Path,
    images_path: pathlib.Path,
    output: pathlib.Path,
    seed: int | None,
    condition: str = "",
) -> None:
    """Writes class probabilities for the images of a file; for recordings or pictures also prints them.

    The output holds `probabilities` float32 [n, num_classes], `predictions` int64 [n], `class_names`, and `files` of
    recordings or pictures.

    Args:
      config: resolved.
      workdir: the run folder.
      images_path: of the images, or of sound files.
      output: to write.
      seed: of the run, None for its first.
      condition: of a conditional model: "0.1,2", or a metric, for the condition that is best for it on validation;
        empty for that of the config.

    Raises:
      InputError: the file holds no images of the shape trained on, the seed is not one of the run's, or there is no
        such condition.
    """
    experiment = build.build_experiment(config)
    seed = _seed(experiment, seed)
    if condition:
        values = read_condition(condition, seed_folder(workdir, seed))
        correction = with_default(experiment.correction, values, name="--condition")
        experiment = experiment._replace(correction=correction)
    programs = compile_programs(experiment, stacked=False)
    best = best_of_run(programs, workdir, seed)
    progress = best.step / experiment.horizon.total_steps
    if is_streamed(experiment.data.train.images):
        paths, examples = _files_to_predict(config, experiment, images_path)
        predicted = predict_streamed(programs, examples, best, progress, experiment.evaluation.batch_size)
        print("\n".join(prediction_lines(paths, predicted, experiment.data.class_names)))
        _write_predictions(output, predicted, experiment.data.class_names, files=[str(path) for path in paths])
        return
    shape = experiment.data.train.images.shape[1:]
    images = read_images(images_path)
    if images.shape[1:] != shape:
        raise InputError(f"--input: expected images of shape {shape}, got {images.shape[1:]} in {images_path}")
    params, model_state = best.variables["params"], best.variables["model_state"]
    size = experiment.evaluation.batch_size
    predicted = np.concatenate(
        [
            programs.probabilities(params, model_state, np.float32(progress), images[first : first + size])
            for first in range(0, len(images), size)
        ]
    )
    _write_predictions(output, predicted, experiment.data.class_names)


def _files_to_predict(
    config: ConfigDict, experiment: Experiment, path: pathlib.Path
) -> tuple[list[pathlib.Path], ClipSet | ImageSet]:
    """The files to predict, and what is made of them as of the training set's."""
    images = experiment.data.train.images
    if isinstance(images, ImageSet):
        paths = files_in(path, PICTURE_ENDINGS)
        pictures = PictureFiles(pathlib.Path(), [str(each) for each in paths], argument="--input")
        return paths, ImageSet(pictures, np.arange(len(paths)), images.view)
    paths, source = files_in(path, FORMATS), build.build_source(config)
    assert isinstance(source, SpeechSource)
    return paths, clips_of(source, paths)


def _write_predictions(output: pathlib.Path, predicted: np.ndarray, class_names: Sequence[str], **more: Any) -> None:
    """Writes an .npz with probabilities, predictions and class names."""
    np.savez(output, probabilities=predicted, predictions=predicted.argmax(axis=1), class_names=class_names, **more)
    print(f"{len(predicted)} predictions written to {output}")


def spectrum_task(config: ConfigDict, workdir: pathlib.Path, output: pathlib.Path | None, seed: int | None) -> None:
    """Takes the spectra of one seed of a run and writes them after each group, so that nothing is lost.

    Raises:
      InputError: an option is out of range, the run has no checkpoint, or its matrix has no spectrum to believe.
    """
    options = build.build_spectrum_options(config)
    if options.augmentation != "none" and config.augmentation.name == "none":
        raise InputError(
            f"spectrum.augmentation: {options.augmentation!r} needs a run with augmentation, this has none"
        )
    experiment = build.build_experiment(config)
    images = experiment.data.train.images
    if options.augmentation != "none" and isinstance(images, ImageSet) and images.augment is not None:
        raise InputError(
            f"spectrum.augmentation: expected 'none' under augmentation.name={config.augmentation.name!r}, which is"
            f" drawn on the host, got {options.augmentation!r}"
        )
    seed = _seed(experiment, seed)
    programs = compile_programs(experiment, stacked=False)
    trained = trained_parameters(experiment, programs, workdir, seed, options.checkpoint)
    folder = (output or workdir / "spectra" / options.protocol) / f"seed_{seed}"
    header = {
        "run": str(workdir),
        "data": experiment.data.name,
        "correction": config.correction.name,
        "direction": config.direction.name,
        "seed": seed,
        "step": trained.step,
        **spectrum_header(experiment, trained, options),
        "machine": describe_machine(),
    }
    found: list[GroupSpectrum] = []
    with ProbeProgress(options.probes) as progress:
        for each in class_spectra(experiment, programs, trained, options, progress.probe):
            found.append(each)
            write_spectra(folder, header, found)
    spectra = {experiment.data.name: read_spectrum(folder)}
    draw_spectra(spectra, folder)
    print(table(spectra, None, threshold=0.01))
    print(f"written to {folder}: spectrum.json, spectrum.npz, density.png, ratios.png")


def export_task(config: ConfigDict, workdir: pathlib.Path, output: pathlib.Path, seed: int | None) -> None:
    """Writes the best parameters of one seed.

    Of a ResNet for large images a safetensors file with torchvision's names, of a HuBERT with LoRA an adapter that
    peft reads.

    Raises:
      InputError: the model is none of these or has no LoRA weights beside frozen ones, the seed is not one of the
        run's, or the file exists or the folder holds a model.
    """
    experiment = build.build_experiment(config)
    seed = _seed(experiment, seed)
    best = best_of_run(compile_programs(experiment, stacked=False), workdir, seed)
    if isinstance(experiment.model, BottleneckResNet):
        variables = {"params": best.variables["params"], **best.variables["model_state"]}
        export_resnet(experiment.model, variables, output)
        print(f"weights of seed {seed}, step {best.step}, written to {output}")
        return
    export_adapter(experiment.model, best, config.model.get("path", ""), output)
    print(f"adapter of seed {seed}, step {best.step}, written to {output}")


def prepare_task(archive: pathlib.Path, data_dir: pathlib.Path) -> None:
    """Turns an official archive into what the `tfds` source reads."""
    print(f"prepared {prepare_cifar(str(archive), str(data_dir))}")


def _seed(experiment: Experiment, seed: int | None) -> int:
    """The seed asked for, by default the first; raises InputError when the run has no such seed."""
    seed = experiment.seeds[0] if seed is None else seed
    if seed not in experiment.seeds:
        raise InputError(f"--seed: expected one of the run's seeds {experiment.seeds}, got {seed}")
    return seed


def read_condition(text: str, folder: pathlib.Path) -> tuple[float, ...]:
    """The condition that a text names.

    Args:
      text: numbers such as "0.1,2", or a metric of conditions.json.
      folder: of the seed.

    Raises:
      InputError: it is neither, or the run has evaluated no grid of conditions.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        pass
    try:
        best = json.loads((folder / "conditions.json").read_text())["best"]
    except OSError:
        raise InputError(f"--condition: expected numbers such as 0.1,2, got {text!r}; the run has no grid") from None
    if text not in best:
        raise InputError(f"--condition: expected numbers such as 0.1,2 or a metric; {not_found(text, best)}")
    return tuple(best[text]["condition"])
