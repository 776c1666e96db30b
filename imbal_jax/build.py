"""The only reader of a config: names become builders, options their keyword arguments.

Every section is either the options of one fixed record, or a `name` and the options of the builder of that name. A
builder's keyword-only parameters are its options, with their types and defaults; its positional parameters are what
a run provides (class counts, labels, ...). An option that no builder takes is an error. Nothing here has defaults of
its own.
"""

import inspect
import types
import typing
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from imbal_jax.config import not_found, parse_value
from imbal_jax.corrections import compose, margins, modulations, weights
from imbal_jax.data import arrays, augmentation, digits, prepared, profiles, samplers
from imbal_jax.data.dataset import Dataset
from imbal_jax.data.pipeline import TrainingData, ValidationSplit, training_data
from imbal_jax.directions import gradient
from imbal_jax.errors import InputError
from imbal_jax.models import cnn, mlp, resnet, vgg
from imbal_jax.training import schedules, step_rules
from imbal_jax.training.experiment import (
    EvaluationOptions,
    Experiment,
    RecordOptions,
    TrainingOptions,
    check_evaluation_options,
    check_training_options,
)
from imbal_jax.types import Correction, Direction, Prediction

Builders = Mapping[str, Callable]

CORRECTIONS: Builders = {
    "cross_entropy": weights.cross_entropy,
    "inverse_frequency": weights.inverse_frequency,
    "class_balanced": weights.class_balanced,
    "focal": modulations.focal,
    "alpha_focal": modulations.alpha_focal,
    "ldam": margins.ldam,
    "influence": modulations.influence,
    "influence_balanced": modulations.influence_balanced,
    "logit_adjustment": margins.logit_adjustment,
    "vector_scaling": margins.vector_scaling,
    "class_dependent_temperatures": margins.class_dependent_temperatures,
    "composed": compose.composed,
    "deferred": compose.deferred,
}
DIRECTIONS: Builders = {"gradient": gradient.gradient}

# Sections that choose a builder by name.
NAMED: Mapping[str, Builders] = {
    "data": {"digits": digits.digits, "arrays": arrays.arrays, "tfds": prepared.tfds},
    "profile": {
        "natural": profiles.natural,
        "balanced": profiles.balanced,
        "dirichlet": profiles.dirichlet,
        "long_tail": profiles.long_tail,
        "step": profiles.step,
        "counts": profiles.counts,
        "thesis_table_b1": profiles.thesis_table_b1,
    },
    "sampler": {
        "uniform": samplers.uniform,
        "class_balanced": samplers.class_balanced,
        "effective_number": samplers.effective_number,
        "minority_in_every_batch": samplers.minority_in_every_batch,
    },
    "augmentation": {"none": augmentation.none, "crop_flip": augmentation.crop_flip},
    "model": {"mlp": mlp.mlp, "cnn": cnn.cnn, "vgg11_bn": vgg.vgg11_bn, "resnet32": resnet.resnet32},
    "correction": CORRECTIONS,
    "direction": DIRECTIONS,
    "step_rule": {"sgd": step_rules.sgd, "adamw": step_rules.adamw},
    "schedule": {
        "constant": schedules.constant,
        "linear": schedules.linear,
        "cosine": schedules.cosine,
        "multi_step": schedules.multi_step,
    },
}
# Sections with one fixed set of options.
FIXED: Mapping[str, Callable] = {
    "validation": ValidationSplit,
    "training": TrainingOptions,
    "evaluation": EvaluationOptions,
    "record": RecordOptions,
}
SECTIONS = ("seeds", *NAMED, *FIXED)
# Options of these types are sections themselves.
_NESTED: Mapping[type, Builders] = {Correction: CORRECTIONS, Direction: DIRECTIONS}


def options_of(builder: Callable) -> dict[str, inspect.Parameter]:
    """A builder's options: its keyword-only parameters, or the fields of a NamedTuple."""
    parameters = inspect.signature(builder).parameters
    if isinstance(builder, type):
        return dict(parameters)
    return {name: p for name, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}


def resolve(config: ConfigDict, overrides: Mapping[str, str] | None = None) -> ConfigDict:
    """Applies overrides, checks every key and type, and fills in the builders' defaults.

    Overriding a section's `name` with another one drops the section's other options, which belonged to the old builder.

    Args:
      config: as a config file returns it.
      overrides: texts by dotted key, {"profile.alpha": "0.1"}.

    Returns:
      A locked config in which every option of every chosen builder stands.

    Raises:
      InputError: an unknown section, builder or option (the nearest valid ones are named), or a value of the wrong type.
    """
    tree = config.to_dict()
    overrides = dict(overrides or {})
    names = {key: value for key, value in overrides.items() if key.endswith(".name")}
    for key in sorted(names, key=lambda key: key.count(".")):
        _rename(tree, key.removesuffix(".name"), names[key])
    for section in tree:
        if section not in SECTIONS:
            raise InputError(f"config: {not_found(section, SECTIONS)}")
    missing = [section for section in NAMED if section not in tree]
    if missing:
        raise InputError(f"config: expected the sections {', '.join(NAMED)}; missing: {', '.join(missing)}")
    resolved: dict[str, Any] = {"seeds": _checked("seeds", tree.get("seeds", "0"), str)}
    for section, builders in NAMED.items():
        resolved[section] = _resolve_named(section, tree[section], builders)
    for section, builder in FIXED.items():
        resolved[section] = _resolve_options(section, tree.get(section, {}), builder)
    for key, text in overrides.items():
        if key not in names:
            _override(resolved, key, text)
    result = ConfigDict(resolved)
    result.lock()
    return result


def _rename(tree: dict[str, Any], section: str, name: str) -> None:
    """Sets a section's builder; options of another builder are dropped."""
    *above, last = section.split(".")
    for part in above:
        tree = tree.get(part) or {}
    old = tree.get(last)
    if not isinstance(old, dict) or old.get("name") != name:
        tree[last] = {"name": name}


def _resolve_named(where: str, section: Any, builders: Builders) -> dict[str, Any]:
    """A section with a name, completed."""
    if not isinstance(section, dict) or "name" not in section:
        raise InputError(f"config.{where}: expected a section with a 'name', got {section!r}")
    name = section["name"]
    if name not in builders:
        raise InputError(f"config.{where}.name: {not_found(str(name), builders)}")
    options = {key: value for key, value in section.items() if key != "name"}
    return {"name": name, **_resolve_options(where, options, builders[name])}


def _resolve_options(where: str, given: Any, builder: Callable) -> dict[str, Any]:
    """A builder's options, checked and completed."""
    if not isinstance(given, dict):
        raise InputError(f"config.{where}: expected a section, got {given!r}")
    valid = options_of(builder)
    for key in given:
        if key not in valid:
            raise InputError(f"config.{where}: {_builder_name(builder)} takes {not_found(key, valid)}")
    resolved = {}
    for key, parameter in valid.items():
        if key not in given and parameter.default is inspect.Parameter.empty:
            raise InputError(f"config.{where}.{key}: {_builder_name(builder)} needs this option")
        value = given.get(key, parameter.default)
        nested = _nested_builders(parameter.annotation)
        if nested is not None and value is not None:
            resolved[key] = _resolve_named(f"{where}.{key}", value, nested)
        elif nested is not None:
            resolved[key] = None
        else:
            resolved[key] = _checked(f"{where}.{key}", value, _plain_type(parameter.annotation))
    return resolved


def _builder_name(builder: Callable) -> str:
    """A builder's name in messages."""
    return "this section" if isinstance(builder, type) else builder.__name__


def _nested_builders(annotation: Any) -> Builders | None:
    """The builders of an option that is a section itself, else None."""
    members = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    return next((_NESTED[member] for member in members if member in _NESTED), None)


def _plain_type(annotation: Any) -> type:
    """The type of a leaf: tuple for tuple[int, ...]."""
    return typing.get_origin(annotation) or annotation


def _checked(where: str, value: Any, expected: type) -> Any:
    """A leaf of the expected type; whole numbers pass as floats, lists as tuples."""
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if expected is tuple and isinstance(value, list):
        return tuple(value)
    if not isinstance(value, expected) or (expected is not bool and isinstance(value, bool)):
        raise InputError(f"config.{where}: expected {expected.__name__}, got {value!r}")
    return value


def _override(resolved: dict[str, Any], key: str, text: str) -> None:
    """Sets a leaf of a resolved config from the command line."""
    *above, last = key.split(".")
    section, where = resolved, "config"
    for part in above:
        if not isinstance(section.get(part), dict):
            raise InputError(f"{where}: {not_found(part, section)}")
        section, where = section[part], f"{where}.{part}"
    if last not in section:
        raise InputError(f"{where}: {not_found(last, section)}")
    if isinstance(section[last], dict) or section[last] is None:
        raise InputError(f"{where}.{last}: is a section; set {where}.{last}.name")
    section[last] = parse_value(text, type(section[last]), key)


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
    options = {key: value for key, value in section.items() if key != "name"}
    for key, parameter in options_of(builder).items():
        nested = _nested_builders(parameter.annotation)
        if nested is not None and options[key] is not None:
            options[key] = _construct(options[key], nested, *provided)
    positional = [p for p in inspect.signature(builder).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    return builder(*provided[: len(positional)], **options)


def build_dataset(config: ConfigDict) -> Dataset:
    """Reads the source that a resolved config names; faults in it are not raised here."""
    return _construct(config.data, NAMED["data"])


def build_validation(config: ConfigDict) -> ValidationSplit:
    """The validation split of a resolved config."""
    return ValidationSplit(**config.validation)


def build_profile(config: ConfigDict) -> profiles.Profile:
    """The profile of a resolved config."""
    return _construct(config.profile, NAMED["profile"])


def build_model(config: ConfigDict, num_classes: int) -> Any:
    """The Flax module of a resolved config."""
    return _construct(config.model, NAMED["model"], num_classes)


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
    data = training_data(build_dataset(config), validation, profile, training.empty_classes)  # type: ignore[arg-type]
    check_training_options(training, data.validation is not None)
    provided = (data.train.labels, data.counts, training.batch_size)
    sampler = _construct(config.sampler, NAMED["sampler"], *provided)
    steps = samplers.steps_per_epoch(len(data.train.labels), training.batch_size)
    horizon = schedules.Horizon(steps, training.epochs)
    schedule = _construct(config.schedule, NAMED["schedule"], horizon)
    correction = _construct(config.correction, CORRECTIONS, data.counts)
    if config.sampler.name != "uniform":
        _warn_if_weighted(config.sampler.name, correction, data)
    return Experiment(
        data=data,
        model=build_model(config, len(data.class_names)),
        correction=correction,
        direction=_construct(config.direction, DIRECTIONS),
        schedule=schedule,
        step_rule=_construct(config.step_rule, NAMED["step_rule"], schedule),
        sampler=sampler,
        augmentation=_construct(config.augmentation, NAMED["augmentation"]),
        horizon=horizon,
        training=training,
        evaluation=evaluation,
        record=RecordOptions(**config.record),
        seeds=seeds,
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
                f"sampler {sampler!r} and class weights both correct the class proportions: minority classes are favoured"
                " twice",
                stacklevel=3,
            )
            return
