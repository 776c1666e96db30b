"""What the command line does with a config or a run folder."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from imbal_jax import build
from imbal_jax.analysis.class_spectra import GroupSpectrum, class_spectra, trained_parameters
from imbal_jax.analysis.spectrum_files import spectrum_header, write_spectra
from imbal_jax.analysis.spectrum_tables import draw_spectra, read_spectrum, table
from imbal_jax.class_counts import ClassCounts, class_counts, count_labels
from imbal_jax.corrections.conditional import with_default
from imbal_jax.data.arrays import read_images
from imbal_jax.data.audio import FORMATS
from imbal_jax.data.class_groups import group_classes, group_counts
from imbal_jax.data.corpora import counts
from imbal_jax.data.dataset import Dataset, faults
from imbal_jax.data.image_list import PictureFiles
from imbal_jax.data.image_set import PICTURE_ENDINGS, ImageSet
from imbal_jax.data.known import known_dataset
from imbal_jax.data.pipeline import profile_counts
from imbal_jax.data.prepare import prepare_cifar
from imbal_jax.data.speech import ClipSet, SpeechSource
from imbal_jax.errors import InputError, not_found
from imbal_jax.models.bottleneck import BottleneckResNet
from imbal_jax.models.bottleneck_weights import export_resnet
from imbal_jax.predictions import files_in, predict_streamed
from imbal_jax.reports.progress import ProbeProgress
from imbal_jax.reports.records import plain, write_json
from imbal_jax.reports.tables import BINARY_COLUMNS, COLUMNS, prediction_lines, results_table
from imbal_jax.resolve import resolve
from imbal_jax.speech_tasks import clips_of, corpus_report, export_adapter, parameter_counts
from imbal_jax.training.conditions import evaluate_conditions
from imbal_jax.training.experiment import Experiment
from imbal_jax.training.folders import describe_machine, seed_folder
from imbal_jax.training.interruption import StopRequest
from imbal_jax.training.objective import example_for, inputs_like
from imbal_jax.training.programs import compile_programs
from imbal_jax.training.run import all_test_metrics, best_of_run, train
from imbal_jax.training.state import count_parameters
from imbal_jax.training.streaming import is_streamed


def train_task(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Trains, prints the test metrics as a table and names the run folder."""
    stop = StopRequest().install()
    summary = train(build.build_experiment(config), plain(config.to_dict()), workdir, stop, _completed)
    title = f"{config.data.name}, {config.correction.name}, {len(summary['seeds'])} seed(s), test set"
    columns = (*COLUMNS, *(name for name in BINARY_COLUMNS if name in summary))
    Console().print(results_table({config.correction.name: summary}, columns, title=title))
    print(f"run folder: {workdir}")


def _completed(stored: dict[str, Any]) -> dict[str, Any]:
    """The config of a run folder with the options that are newer than it."""
    return plain(resolve(ConfigDict(stored)).to_dict())


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
    _print_json({"workdir": str(workdir), "per_seed": results})


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


def describe_task(config: ConfigDict) -> None:
    """Prints the model's parameters and the class counts the profile asks for, as JSON; reads data only if it must."""
    available, has_validation, example = _source_facts(config)
    counts, held_out = _wanted_counts(config, available, has_validation)
    model = build.build_model(config, counts.num_classes)
    inputs = inputs_like(example_for(model, build.build_correction(config, counts), example), 1)
    variables = jax.eval_shape(lambda inputs: model.init(jax.random.key(0), inputs, train=False), inputs)
    leaves = jax.tree_util.tree_leaves_with_path(variables["params"])
    total = count_parameters(variables["params"])
    trainable = count_parameters(variables["params"], build.build_frozen(config, model))
    sizes = {"num_params": total, "num_trainable": trainable}
    if "frozen" in variables:
        sizes = parameter_counts(variables)
    _print_json(
        {
            "model": config.model.name,
            "input_shape": jax.tree.leaves(inputs)[0].shape[1:],  # images, or samples
            "num_classes": counts.num_classes,
            **sizes,
            "parameters": [
                {"name": "/".join(key.key for key in path), "shape": leaf.shape, "size": leaf.size}
                for path, leaf in leaves
            ],
            "class_counts": counts.counts,
            "validation_class_counts": None if has_validation else held_out,
            "num_train": counts.total,
            "imbalance": counts.imbalance,
            "label_noise": _noise_report(config, counts),
            "steps_per_epoch": counts.total // config.training.batch_size,
        }
    )


def _wanted_counts(config: ConfigDict, available: np.ndarray, has_validation: bool) -> tuple[ClassCounts, np.ndarray]:
    """The training counts that the profile asks for, and those of the validation split."""
    validation, profile = build.build_validation(config), build.build_profile(config)
    wanted, held_out = profile_counts(available, has_validation, validation, profile)
    return class_counts(wanted, empty_classes=config.training.empty_classes), held_out


def _noise_report(config: ConfigDict, counts: ClassCounts) -> dict[str, Any]:
    """The label noise, and the class counts that it leaves: they depend on those before it and not on the examples.

    Raises:
      InputError: the noise is impossible with these counts.
    """
    labels = np.repeat(np.arange(counts.num_classes), counts.counts)
    noisy = build.build_label_noise(config).corrupt(labels, counts.num_classes)
    return {**config.label_noise.to_dict(), "class_counts": count_labels(noisy, counts.num_classes)}


def _source_facts(config: ConfigDict) -> tuple[np.ndarray, bool, Any]:
    """Training examples per class, whether there is a validation set, and what an example of a source is like."""
    known = known_dataset(config.data.get("dataset", ""))
    if known is not None and config.data.name != "tfds_pictures":  # which makes images of a size of its own
        return _grouped_counts(config, known.class_names, known.train_counts), False, tuple(known.image_shape)
    source = build.build_source(config)
    if isinstance(source, SpeechSource):  # its tables are enough
        corpus = source.corpus
        available = _grouped_counts(config, corpus.class_names, counts(corpus)["train"])
        return available, "validation" in corpus.splits, source.example()
    dataset = source
    available = count_labels(dataset.train.labels, dataset.num_classes)
    available = _grouped_counts(config, dataset.class_names, available)
    return available, dataset.validation is not None, tuple(dataset.train.images.shape[1:])


def _grouped_counts(config: ConfigDict, class_names: Sequence[str], available: Any) -> np.ndarray:
    """Examples of each class that a config tells apart, from those of the source's classes."""
    names, mapped = build.build_classes(config)(class_names)
    return group_counts(available, mapped, len(names))


def check_task(config: ConfigDict) -> int:
    """Scans the data set, prints its class counts per split and every fault found, as JSON.

    Returns:
      The exit status: 0, or 1 if there is a fault.
    """
    found: list[str] = []
    report: dict[str, Any] = {"source": config.data.name}
    try:
        dataset = build.build_source(config)
        if isinstance(dataset, SpeechSource):
            told, found = corpus_report(dataset)
            _print_json({**report, **told, "faults": found})
            return 1 if found else 0
    except InputError as error:
        found.append(str(error))
    else:
        found += faults(dataset)
        for split in dataset.splits.values():
            found += split.images.faults() if isinstance(split.images, ImageSet) else []
        try:
            dataset = dataset if found else group_classes(dataset, build.build_classes(config))
        except InputError as error:
            found.append(str(error))
        report |= {"dataset": dataset.name, "class_names": dataset.class_names, "splits": _split_report(dataset)}
        if not found:
            found += _profile_faults(config, dataset, report)
    _print_json({**report, "faults": found})
    return 1 if found else 0


def _split_report(dataset: Dataset) -> dict[str, Any]:
    """Sizes and class counts of every split, of the labels that are valid."""
    report = {}
    for name, (images, labels) in dataset.splits.items():
        valid = np.asarray([])
        if labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer):
            valid = labels[(labels >= 0) & (labels < dataset.num_classes)]
        report[name] = {
            "examples": len(images),
            "image_shape": images.shape[1:],
            "image_type": str(images.dtype),
            "class_counts": count_labels(valid.astype(np.int64), dataset.num_classes),
        }
    return report


def _profile_faults(config: ConfigDict, dataset: Dataset, report: dict[str, Any]) -> list[str]:
    """What is wrong with the profile and the validation split on this data; adds the counts they give to the report."""
    available = count_labels(dataset.train.labels, dataset.num_classes)
    try:
        counts, held_out = _wanted_counts(config, available, dataset.validation is not None)
        report["label_noise"] = _noise_report(config, counts)
    except InputError as error:
        return [str(error)]
    report["profile"] = {"class_counts": counts.counts, "imbalance": counts.imbalance}
    if dataset.validation is None:
        report["profile"]["validation_class_counts"] = held_out
    return []


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


def _print_json(value: Any) -> None:
    """Prints one JSON document on standard output."""
    print(json.dumps(plain(value), indent=2))
