"""Every name that a config can choose, and what it builds.

A builder's keyword-only parameters are its options, with their types and defaults; its positional parameters are what a
run provides (class counts, labels, ...; for directions the `Structure` of the run).
"""

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from imbal_jax.analysis import options
from imbal_jax.corrections import compose, conditional, margins, modulations, noise_robust, weights
from imbal_jax.data import (
    arrays,
    augmentation,
    class_groups,
    clothing1m,
    digits,
    fake_images,
    image_list,
    label_noise,
    pictures,
    prepared,
    prepared_pictures,
    profiles,
    samplers,
    speech,
)
from imbal_jax.data.pipeline import ValidationSplit
from imbal_jax.directions import (
    attentional_bias,
    ekfac,
    empirical_fisher,
    gdn,
    gradient,
    low_pass,
    perturbed,
    sharpness_aware,
)
from imbal_jax.models import (
    basic_resnet,
    bottleneck,
    bottleneck_weights,
    cnn,
    cnn8,
    film,
    hubert_builder,
    mlp,
    resnet,
    speech_cnn,
    vgg,
)
from imbal_jax.training import schedules, step_rules
from imbal_jax.training.experiment import EvaluationOptions, RecordOptions, TrainingOptions
from imbal_jax.types import Correction, Direction

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
    "minority_weight": weights.minority_weight,
    "symmetric_cross_entropy": noise_robust.symmetric_cross_entropy,
    "generalized_cross_entropy": noise_robust.generalized_cross_entropy,
    "conditional_vector_scaling": conditional.conditional_vector_scaling,
    "conditional_focal": conditional.conditional_focal,
    "composed": compose.composed,
    "deferred": compose.deferred,
}
DIRECTIONS: Builders = {
    "gradient": gradient.gradient,
    "empirical_fisher": empirical_fisher.empirical_fisher,
    "improved_empirical_fisher": empirical_fisher.improved_empirical_fisher,
    "gdn": gdn.gdn,
    "ekfac": ekfac.ekfac,
    "sharpness_aware": sharpness_aware.sharpness_aware,
    "perturbed": perturbed.perturbed,
    "low_pass": low_pass.low_pass,
    "attentional_bias": attentional_bias.attentional_bias,
    "exponentiated_gradient": attentional_bias.exponentiated_gradient,
}

# Sections that choose a builder by name.
NAMED: Mapping[str, Builders] = {
    "data": {
        "digits": digits.digits,
        "arrays": arrays.arrays,
        "tfds": prepared.tfds,
        "tfds_pictures": prepared_pictures.tfds_pictures,
        "image_list": image_list.image_list,
        "clothing1m": clothing1m.clothing1m,
        "fake_images": fake_images.fake_images,
        "manifest": speech.manifest,
        "crema_d": speech.crema_d,
        "msp_podcast": speech.msp_podcast,
    },
    "classes": {"all": class_groups.all_classes, "groups": class_groups.groups},
    "profile": {
        "natural": profiles.natural,
        "balanced": profiles.balanced,
        "dirichlet": profiles.dirichlet,
        "long_tail": profiles.long_tail,
        "step": profiles.step,
        "binary": profiles.binary,
        "counts": profiles.counts,
        "thesis_table_b1": profiles.thesis_table_b1,
    },
    "label_noise": {
        "none": label_noise.none,
        "symmetric": label_noise.symmetric,
        "asymmetric": label_noise.asymmetric,
    },
    "sampler": {
        "uniform": samplers.uniform,
        "class_balanced": samplers.class_balanced,
        "effective_number": samplers.effective_number,
        "minority_in_every_batch": samplers.minority_in_every_batch,
    },
    "augmentation": {
        "none": augmentation.none,
        "crop_flip": augmentation.crop_flip,
        # of pictures, on the host
        "random_resized_crop": pictures.random_resized_crop,
        "resize_random_crop": pictures.resize_random_crop,
    },
    "model": {
        "mlp": mlp.mlp,
        "cnn": cnn.cnn,
        "vgg11_bn": vgg.vgg11_bn,
        "cnn8": cnn8.cnn8,
        "resnet18": basic_resnet.resnet18,
        "resnet32": resnet.resnet32,
        "resnet34": basic_resnet.resnet34,
        "resnet50": bottleneck.resnet50,
        "resnet152": bottleneck.resnet152,
        "hubert": hubert_builder.hubert,
        "speech_cnn": speech_cnn.speech_cnn,
    },
    "correction": CORRECTIONS,
    "direction": DIRECTIONS,
    "step_rule": {"sgd": step_rules.sgd, "adamw": step_rules.adamw},
    "schedule": {
        "constant": schedules.constant,
        "linear": schedules.linear,
        "cosine": schedules.cosine,
        "multi_step": schedules.multi_step,
        "switch": schedules.switch,
    },
    "spectrum": {"fixed": options.fixed, "published": options.published},
}
# (model, the section's options) -> the collections of variables of a model that never change.
CONSTANTS: Builders = {"hubert": hubert_builder.frozen_weights}
# (model, these collections, the section's options) -> what makes the features that are kept in the place of clips.
ENCODERS: Builders = {"hubert": hubert_builder.frozen_encoder}
# (model, the section's options) -> variables that training starts from in the place of random ones, or None.
PRETRAINED: Builders = {
    "resnet50": bottleneck_weights.pretrained,
    "resnet152": bottleneck_weights.pretrained,
    "hubert": hubert_builder.pretrained,
}
# (model, the section's options) -> the names of its layers that are not trained.
FROZEN: Builders = {"resnet50": bottleneck.frozen_layers, "resnet152": bottleneck.frozen_layers}
# Models of recordings; the others are of images.
SPEECH_MODELS = ("hubert", "speech_cnn")
# What a config file may leave out.
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "classes": {"name": "all"},
    "label_noise": {"name": "none"},
    "spectrum": {"name": "fixed"},
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
NESTED: Mapping[type, Builders] = {
    Correction: CORRECTIONS,
    Direction: DIRECTIONS,
    film.FilmOptions: {"film": film.film},
}


def options_of(builder: Callable) -> dict[str, inspect.Parameter]:
    """A builder's options: its keyword-only parameters, or the fields of a NamedTuple."""
    parameters = inspect.signature(builder).parameters
    if isinstance(builder, type):
        return dict(parameters)
    return {name: p for name, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}


def nested_builders(annotation: Any) -> Builders | None:
    """The builders of an option that is a section itself, else None."""
    members = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    return next((NESTED[member] for member in members if member in NESTED), None)
