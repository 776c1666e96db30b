"""What the command line tells of a config before anything is trained: parameters, class counts, faults of the data."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from imbal_jax import build
from imbal_jax.class_counts import ClassCounts, class_counts, count_labels
from imbal_jax.data.class_groups import group_classes, group_counts
from imbal_jax.data.corpora import counts
from imbal_jax.data.dataset import Dataset, faults
from imbal_jax.data.image_set import ImageSet
from imbal_jax.data.known import known_dataset
from imbal_jax.data.pipeline import profile_counts
from imbal_jax.data.speech import SpeechSource
from imbal_jax.errors import InputError
from imbal_jax.reports.records import print_json
from imbal_jax.speech_tasks import corpus_report, parameter_counts
from imbal_jax.training.objective import example_for, inputs_like
from imbal_jax.training.state import count_parameters


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
    print_json(
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
            print_json({**report, **told, "faults": found})
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
    print_json({**report, "faults": found})
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
