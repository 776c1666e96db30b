"""The only reader of a resolved config: sections become the parts of a run. Nothing here has defaults of its own."""

import inspect
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from ml_collections import ConfigDict

from imbal_jax.analysis.options import SpectrumOptions
from imbal_jax.builders import (
    CONSTANTS,
    CORRECTIONS,
    DIRECTIONS,
    ENCODERS,
    FROZEN,
    NAMED,
    PRETRAINED,
    SPEECH_MODELS,
    Builders,
    nested_builders,
    options_of,
)
from imbal_jax.class_counts import ClassCounts
from imbal_jax.corrections.conditional import with_default
from imbal_jax.data import augmentation
from imbal_jax.data.class_groups import Grouping, group_classes
from imbal_jax.data.dataset import Dataset
from imbal_jax.data.features import with_features
from imbal_jax.data.image_set import ImageSet
from imbal_jax.data.label_noise import LabelNoise
from imbal_jax.data.pictures import PictureAugmentation
from imbal_jax.data.pipeline import TrainingData, ValidationSplit, training_data
from imbal_jax.data.profiles import Profile
from imbal_jax.data.samplers import steps_per_epoch
from imbal_jax.data.speech import SpeechSource
from imbal_jax.errors import InputError
from imbal_jax.models.hubert_weights import count_stored
from imbal_jax.training.conditions import condition_grid
from imbal_jax.training.experiment import (
    EvaluationOptions,
    Experiment,
    RecordOptions,
    TrainingOptions,
    check_evaluation_options,
    check_keeping,
    check_record_options,
    check_training_options,
)
from imbal_jax.training.objective import make_structure, takes_condition
from imbal_jax.training.step_rules import leaving
from imbal_jax.training.streaming import example_of, is_streamed
from imbal_jax.types import Array, Correction, Horizon, Prediction


def seeds_of(config: ConfigDict) -> tuple[int, ...]:
    """The run's seeds, from text such as "0,1,2".

    Raises:
      InputError: the text is no list of different whole numbers in 0..2^32-1.
    """
    try:
        seeds = tuple(int(part) for part in config.seeds.strip("()[] ").split(",") if part.strip())
    except ValueError:
        seeds = ()
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0 or max(seeds) >= 2**32:
        raise InputError(f"config.seeds: expected different whole numbers such as '0,1,2', got {config.seeds!r}")
    return seeds


def _construct(section: ConfigDict, builders: Builders, *provided: Any) -> Any:
    """Calls the builder of a section with what the run provides and its options."""
    builder = builders[section.name]
    options = _options(section)
    for key, parameter in options_of(builder).items():
        nested = nested_builders(parameter.annotation)
        if nested is not None and options[key] is not None:
            options[key] = _construct(options[key], nested, *provided)
    positional = [p for p in inspect.signature(builder).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    return builder(*provided[: len(positional)], **options)


def build_source(config: ConfigDict) -> Dataset | SpeechSource:
    """The source that a resolved config names: images as they are read, recordings before they are decoded."""
    return _construct(config.data, NAMED["data"])


def build_dataset(config: ConfigDict) -> Dataset:
    """Reads the source that a resolved config names, with the classes that it wants to tell apart.

    Faults in the data are not raised here, but for unusable recordings and where classes are grouped.

    Raises:
      InputError: recordings meet a model or an augmentation of images, or images a model of recordings; or a class to
        group does not exist.
    """
    source = build_source(config)
    _check_modality(config, isinstance(source, SpeechSource))
    return group_classes(source.load() if isinstance(source, SpeechSource) else source, build_classes(config))


def build_classes(config: ConfigDict) -> Grouping:
    """Which classes a resolved config tells apart."""
    return _construct(config.classes, NAMED["classes"])


def _check_modality(config: ConfigDict, recordings: bool) -> None:
    """Refuses a model and an augmentation that are not for what the source has."""
    has, takes = ("recordings", "images") if recordings else ("images", "recordings")
    if (config.model.name in SPEECH_MODELS) != recordings:
        raise InputError(
            f"model.name: {config.model.name!r} is for {takes}, but data.name={config.data.name!r} has {has}"
        )
    if recordings and config.augmentation.name != "none":
        raise InputError(f"augmentation.name: expected 'none' for recordings, got {config.augmentation.name!r}")


def build_validation(config: ConfigDict) -> ValidationSplit:
    """The validation split of a resolved config."""
    return ValidationSplit(**config.validation)


def build_profile(config: ConfigDict) -> Profile:
    """The profile of a resolved config."""
    return _construct(config.profile, NAMED["profile"])


def build_label_noise(config: ConfigDict) -> LabelNoise:
    """The label noise of a resolved config."""
    return _construct(config.label_noise, NAMED["label_noise"])


def build_schedule(config: ConfigDict, horizon: Horizon) -> optax.Schedule:
    """The learning-rate schedule of a resolved config."""
    return _construct(config.schedule, NAMED["schedule"], horizon)


def build_model(config: ConfigDict, num_classes: int) -> nn.Module:
    """The Flax module of a resolved config."""
    return _construct(config.model, NAMED["model"], num_classes)


def build_correction(config: ConfigDict, counts: ClassCounts) -> Correction:
    """The correction of a resolved config, evaluated at the condition that it wants."""
    correction = _construct(config.correction, CORRECTIONS, counts)
    condition = tuple(config.evaluation.condition)
    return with_default(correction, condition, name="evaluation.condition") if condition else correction


def _check_film(config: ConfigDict, model: nn.Module, correction: Correction) -> None:
    """Refuses a FiLM block that nothing is told to; a conditional correction without a block is an ablation."""
    if takes_condition(model) and correction.conditional is None:
        raise InputError(
            "model.film: needs a correction whose hyper-parameters are drawn, such as conditional_vector_scaling, got"
            f" {config.correction.name!r}"
        )


def build_spectrum_options(config: ConfigDict) -> SpectrumOptions:
    """How the spectra of a run are to be taken."""
    return _construct(config.spectrum, NAMED["spectrum"])


def _with_augmentation(config: ConfigDict, data: TrainingData) -> tuple[TrainingData, Callable[[Array, Array], Array]]:
    """The data, whose training pictures know how they are drawn on the host, and the augmentation on the device.

    Raises:
      InputError: an augmentation of pictures meets images that are arrays.
    """
    chosen = _construct(config.augmentation, NAMED["augmentation"])
    if not isinstance(chosen, PictureAugmentation):
        return data, chosen
    images = data.train.images
    if not isinstance(images, ImageSet):
        raise InputError(
            f"augmentation.name: {config.augmentation.name!r} is for pictures that are decoded batch by batch, but"
            f" data.name={config.data.name!r} has arrays"
        )
    train = data.train._replace(images=replace(images, augment=chosen))
    return data._replace(train=train), augmentation.none()


def build_constants(config: ConfigDict, model: nn.Module) -> dict[str, Any] | None:
    """The variables of a model that never change, such as pretrained weights; None where it has none."""
    maker = CONSTANTS.get(config.model.name)
    return None if maker is None else maker(model, **_options(config.model))


def build_pretrained(config: ConfigDict, model: nn.Module) -> dict[str, Any] | None:
    """The variables that training starts from in the place of random ones; None where all are random."""
    maker = PRETRAINED.get(config.model.name)
    return None if maker is None else maker(model, **_options(config.model))


def build_frozen(config: ConfigDict, model: nn.Module) -> frozenset[str]:
    """The names of a model's layers that are not trained."""
    finder = FROZEN.get(config.model.name)
    return frozenset() if finder is None else finder(model, **_options(config.model))


def _with_cached_features(
    config: ConfigDict, model: nn.Module, constants: dict[str, Any] | None, data: TrainingData
) -> TrainingData:
    """The data with what a frozen encoder makes of clips in their place, if the model's section asks for it."""
    maker = ENCODERS.get(config.model.name)
    encoder = None if maker is None else maker(model, constants, **_options(config.model))
    return data if encoder is None else with_features(data, encoder)


def _options(section: ConfigDict) -> dict[str, Any]:
    """What a section says beside its name."""
    return {key: value for key, value in section.items() if key != "name"}


def build_experiment(config: ConfigDict) -> Experiment:
    """Reads the data and builds every part of a run.

    Args:
      config: from `resolve`.

    Raises:
      InputError: an option is out of range, or the data are missing or faulty.
    """
    seeds, training = seeds_of(config), TrainingOptions(**config.training)
    evaluation, validation, profile = (
        EvaluationOptions(**config.evaluation),
        build_validation(config),
        build_profile(config),
    )
    check_evaluation_options(evaluation)
    empty_classes: Any = training.empty_classes
    data = training_data(build_dataset(config), validation, profile, empty_classes, build_label_noise(config))
    check_training_options(training, data.validation is not None, len(data.class_names))
    provided = (data.train.labels, data.counts, training.batch_size)
    sampler = _construct(config.sampler, NAMED["sampler"], *provided)
    steps = steps_per_epoch(len(data.train.labels), training.batch_size)
    horizon = Horizon(steps, training.epochs)
    record = RecordOptions(**config.record)
    check_record_options(record, horizon)
    schedule = build_schedule(config, horizon)
    correction = build_correction(config, data.counts)
    condition_grid(correction, evaluation.grid)
    check_keeping(correction.keeping, training.epochs, is_streamed(data.train.images))
    if config.sampler.name != "uniform":
        _warn_if_weighted(config.sampler.name, correction, data)
    model = build_model(config, len(data.class_names))
    _check_film(config, model, correction)
    constants, frozen = build_constants(config, model), build_frozen(config, model)
    data, augment = _with_augmentation(config, _with_cached_features(config, model, constants, data))
    reduction: Any = training.reduction
    example = example_of(data.train.images)
    structure = make_structure(model, correction, reduction, example, training.batch_size, constants, horizon)
    return Experiment(
        data=data,
        model=model,
        correction=correction,
        direction=_construct(config.direction, DIRECTIONS, structure),
        schedule=schedule,
        step_rule=leaving(_construct(config.step_rule, NAMED["step_rule"], schedule), frozen),
        sampler=sampler,
        augmentation=augment,
        horizon=horizon,
        training=training,
        evaluation=evaluation,
        record=record,
        seeds=seeds,
        constants=constants,
        num_constants=0 if constants is None else count_stored(constants["frozen"]),
        pretrained=build_pretrained(config, model),
        frozen=frozen,
    )


def _warn_if_weighted(sampler: str, correction: Correction, data: TrainingData) -> None:
    """Warns when a sampler and class weights correct the same imbalance twice."""
    labels = jnp.asarray(np.flatnonzero(data.counts.present))
    num_classes = len(data.class_names)
    neutral = Prediction(jnp.zeros((len(labels), num_classes)), jnp.ones((len(labels), 1)))
    for progress in (0.0, 1.0):
        given = np.asarray(correction.correct(neutral, labels, progress).weights)
        if np.ptp(given) > 1e-6 * np.abs(given).max():
            warnings.warn(
                f"sampler {sampler!r} and class weights both correct the class proportions, so minority classes are"
                " favoured twice",
                stacklevel=3,
            )
            return
