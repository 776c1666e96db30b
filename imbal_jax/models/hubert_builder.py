"""HuBERT as a choice of a config: an architecture, its noise, its adapters, and where its weights come from."""

import dataclasses
import hashlib
import logging
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from imbal_jax.errors import InputError, not_found
from imbal_jax.models import hubert as core
from imbal_jax.models.adapters import read_adapter
from imbal_jax.models.hubert_config import (
    HUBERT_BASE,
    HUBERT_TINY,
    HubertConfig,
    deterministic,
    frame_lengths,
    hf_train,
)
from imbal_jax.models.hubert_inputs import EncoderInput, Features
from imbal_jax.models.hubert_weights import load_hubert, read_hubert_config
from imbal_jax.models.lora import LoraSpec
from imbal_jax.types import PyTree, Waveforms

SIZES = {"base": HUBERT_BASE, "tiny": HUBERT_TINY}
NOISES = {"deterministic": deterministic, "hf_train": hf_train, "config": lambda config: config}
DTYPES = {"float32": None, "bfloat16": jnp.bfloat16}
CACHES = ("none", "memory", "disk")
CACHE_STAGES = ("convolutions", "encoder_input")
CACHE_DTYPES = ("float32", "float16")
# What a stage depends on beside its weights.
_CONVOLUTIONS = ("conv_dim", "conv_kernel", "conv_stride", "conv_bias", "feat_extract_norm")
_EMBEDDING = (
    *("feat_proj_layer_norm", "hidden_size", "num_conv_pos_embeddings", "num_conv_pos_embedding_groups"),
    *("layer_norm_eps", "do_stable_layer_norm"),
)

_log = logging.getLogger(__name__)


class FrozenEncoder(NamedTuple):
    """The first modules of a HuBERT on clips, and how their output is to be kept."""

    encode: Callable[[Waveforms], Features | EncoderInput]
    count: Callable[[Any], Any]  # how many frames clips of so many samples have
    channels: int
    inputs: Callable[[Any, Any], Features | EncoderInput]  # from padded frames and their numbers to a model's inputs
    identity: str  # a hash of everything that the frames depend on beside the clips
    dtype: np.dtype  # that they are kept in
    folder: str  # that they are kept in; empty for memory


def hubert(
    num_classes: int,
    *,
    path: str = "",
    size: str = "base",
    noise: str = "deterministic",
    lora_rank: int = 8,
    lora_alpha: float = 16.0,
    lora_dropout: float = 0.0,
    lora_targets: tuple[str, ...] = ("q_proj", "v_proj"),
    lora_layers: tuple[int, ...] = (),
    adapter: str = "",
    projection: int = 256,
    head_bias: bool = False,
    weighted_layer_sum: bool = False,
    padding: str = "exact",
    frozen: bool = True,
    dtype: str = "float32",
    weights_seed: int = 0,
    cache: str = "none",
    cache_stage: str = "convolutions",
    cache_dir: str = "",
    cache_dtype: str = "float32",
) -> nn.Module:
    """HuBERT with LoRA and a head, the thesis's setting by default; see `imbal_jax.models.hubert.hubert`.

    What the frozen convolutions make of a clip can be cached: nothing before it is random, so a run is the same up to
    rounding, and a step takes about a sixth less time. So can what the transformer's layers receive, if neither
    SpecAugment nor dropout comes before it, which saves a little more. A second of speech takes 102 kB in float32, or
    154 kB as the transformer's input; half of that in float16.

    Args:
      num_classes: the number of logits.
      path: a folder with Hugging Face's config.json and model.safetensors; empty for random weights. Where the folder
        is missing the model can be described, in the architecture of `size`, but not trained.
      size: "base" or "tiny" where there is no path.
      noise: "deterministic" for none, "hf_train" for that of Hugging Face's training mode (dropouts, layerdrop,
        SpecAugment), or "config" for that of the config.json.
      lora_rank: r; 0 for no adapters.
      lora_alpha: the update is multiplied by alpha / r.
      lora_dropout: of the adapters' inputs.
      lora_targets: projections of transformer layers, "q_proj", "k_proj", "v_proj", "out_proj", "intermediate_dense" or
        "output_dense".
      lora_layers: indices of the layers, from 0; empty for all.
      adapter: a folder with peft's adapter_config.json and adapter_model.safetensors, whose LoRA weights and head
        training starts from; empty to start from new ones. They must be of the sizes that the other options say.
      projection: units of the head's first layer.
      head_bias: whether the head has biases.
      weighted_layer_sum: pool a trained mixture of all layers.
      padding: "exact", "hf_mask" or "hf_nomask".
      frozen: False trains the whole network, from the weights of `path`.
      dtype: of the computation, "float32" or "bfloat16".
      weights_seed: of random weights.
      cache: keep what the first modules make of every clip in "memory" or on "disk", or "none". Needs frozen weights,
        and the padding "exact": under the others a clip's frames depend on the length that its batch is padded to.
      cache_stage: "convolutions" keeps their output, "encoder_input" what comes after projection, positional
        convolution and norm. The latter needs a noise without SpecAugment and feat_proj_dropout.
      cache_dir: the folder for "disk". What it holds counts only for the same weights, clips and options. Files there
        whose name holds ".partial" are left by runs that were killed, and are never read.
      cache_dtype: "float32", or "float16" for half the size and about three decimal digits.

    Raises:
      InputError: an option is out of range, or the config.json is damaged or of another architecture.
    """
    del weights_seed, adapter  # of `frozen_weights` and `pretrained`
    _check_cache(cache, cache_stage, cache_dir, cache_dtype, frozen, padding)
    for name, value, valid in (("size", size, SIZES), ("noise", noise, NOISES), ("dtype", dtype, DTYPES)):
        if value not in valid:
            raise InputError(f"model.{name}: {not_found(value, valid)}")
    config = NOISES[noise](_architecture(path, size))
    if cache != "none" and cache_stage == "encoder_input" and config.has_early_noise:
        raise InputError(
            f"model.cache_stage: 'encoder_input' needs a noise without SpecAugment and feat_proj_dropout, such as"
            f" model.noise='deterministic', got {noise!r}, which changes it from step to step; 'convolutions' comes"
            " before all noise"
        )
    lora = None
    if lora_rank:
        layers = tuple(lora_layers) or None
        lora = LoraSpec(lora_rank, lora_alpha, lora_dropout, targets=tuple(lora_targets), layers=layers)
    return core.hubert(
        num_classes,
        config=config,
        lora=lora,
        projection=projection,
        head_bias=head_bias,
        weighted_layer_sum=weighted_layer_sum,
        padding=padding,  # type: ignore[arg-type]
        frozen=frozen,
        dtype=DTYPES[dtype],
    )


def frozen_weights(model: Any, *, path: str, weights_seed: int, frozen: bool, **options: Any) -> PyTree | None:
    """The collections of a HuBERT that training does not change, {"frozen": ...}; None where it changes all.

    Args:
      model: of `hubert`.
      path: of the pretrained weights; empty for random ones, which is said.
      weights_seed: of these.
      frozen: as of `hubert`.
      **options: the others of `hubert`, which do not matter here.

    Raises:
      InputError: the weights are missing, damaged, incomplete or of another architecture.
    """
    del options
    if not frozen:
        return None
    if path:
        return {"frozen": load_hubert(pathlib.Path(path).expanduser())[1]}
    _log.warning("model.path: none given, so the frozen weights of HuBERT are random: nothing was learned before")
    return {"frozen": core.random_frozen(model, jax.random.key(weights_seed))}


def pretrained(model: Any, *, path: str, frozen: bool, adapter: str, **options: Any) -> PyTree | None:
    """The parameters that training starts from in the place of random ones; None where all are random.

    Args:
      model: of `hubert`.
      path: of the pretrained weights, which are parameters where they are not frozen.
      frozen: as of `hubert`.
      adapter: of LoRA weights and head.
      **options: the others of `hubert`, which the model has.

    Raises:
      InputError: the weights are missing, damaged, incomplete or of another architecture, or the adapter is not of the
        model's sizes.
    """
    del options
    given: dict[str, Any] = {}
    if path and not frozen:
        given |= load_hubert(pathlib.Path(path).expanduser())[1]
    elif not frozen:
        _log.warning("model.path: none given, so training starts from random weights of HuBERT")
    if adapter:
        read, spec = read_adapter(adapter, model.blueprint.config)
        _check_adapter(adapter, read, spec, model)
        given = _merged(given, read)
    return {"params": given} if given else None


def _check_adapter(adapter: str, params: PyTree, spec: LoraSpec, model: Any) -> None:
    """Refuses an adapter that is not of the model's sizes."""
    wanted = model.blueprint.lora
    if wanted is None or dataclasses.replace(spec, dropout=wanted.dropout) != wanted:
        raise InputError(f"model.adapter: expected {wanted or 'none, for lora_rank is 0'}, got {spec} in {adapter}")
    shapes = jax.eval_shape(lambda: core.initial_params(model, jax.random.key(0)))
    for name in ("projector", "classifier"):
        ours, theirs = ({leaf: value.shape for leaf, value in tree[name].items()} for tree in (shapes, params))
        if ours != theirs:
            raise InputError(f"model.adapter: expected a {name} of {ours}, got {theirs} in {adapter}")


def _merged(first: PyTree, second: PyTree) -> PyTree:
    """Nested dictionaries put together; they share no leaf."""
    both = first.keys() & second.keys()
    return {**first, **second, **{name: _merged(first[name], second[name]) for name in both}}


def frozen_encoder(
    model: Any,
    constants: PyTree | None,
    *,
    cache: str,
    cache_stage: str,
    cache_dir: str,
    cache_dtype: str,
    **options: Any,
) -> FrozenEncoder | None:
    """What makes the frames that are to be cached; None where nothing is.

    Args:
      model: of `hubert`.
      constants: of `frozen_weights`.
      cache: as of `hubert`, which has checked it.
      cache_stage: as of `hubert`.
      cache_dir: as of `hubert`.
      cache_dtype: as of `hubert`.
      **options: the others of `hubert`, which the model has.
    """
    del options
    if cache == "none" or constants is None:
        return None
    config, dtype = model.blueprint.config, model.blueprint.dtype
    at_encoder = cache_stage == "encoder_input"
    weights = _first_weights(constants["frozen"]["hubert"], at_encoder)

    @jax.jit
    def encode(weights: PyTree, clips: Waveforms) -> Features | EncoderInput:
        if at_encoder:
            return model.apply({"frozen": weights}, clips, method="encoder_input")
        return core.encode(config, weights, clips, padding="exact", dtype=dtype)

    facts = [cache_stage] + [getattr(config, name) for name in _CONVOLUTIONS + (_EMBEDDING if at_encoder else ())]
    return FrozenEncoder(
        encode=lambda clips: encode(weights, clips),
        count=lambda samples: frame_lengths(config, samples),
        channels=config.hidden_size if at_encoder else config.conv_dim[-1],
        inputs=EncoderInput if at_encoder else Features,
        identity=_identity(weights, [*facts, np.dtype(dtype or np.float32).name]),
        dtype=np.dtype(cache_dtype),
        folder=cache_dir if cache == "disk" else "",
    )


def _first_weights(hubert: PyTree, at_encoder: bool) -> PyTree:
    """The weights of the modules before what is cached."""
    names = ["feature_extractor"] + (["feature_projection", "masked_spec_embed"] if at_encoder else [])
    weights = {name: hubert[name] for name in names if name in hubert}
    if at_encoder:
        encoder = hubert["encoder"]
        weights["encoder"] = {name: encoder[name] for name in ("pos_conv_embed", "layer_norm")}
    return {"hubert": weights}


def _identity(weights: PyTree, facts: list[Any]) -> str:
    """A hash of weights, and of what is done with them."""
    found = hashlib.blake2b(repr(facts).encode(), digest_size=16)
    for path, leaf in jax.tree_util.tree_leaves_with_path(weights):
        found.update(jax.tree_util.keystr(path).encode())
        found.update(np.ascontiguousarray(leaf).data)
    return found.hexdigest()


def _check_cache(cache: str, cache_stage: str, cache_dir: str, cache_dtype: str, frozen: bool, padding: str) -> None:
    """Refuses a cache that cannot be kept, or that would not hold what the model computes."""
    choices = (
        ("cache", cache, CACHES),
        ("cache_stage", cache_stage, CACHE_STAGES),
        ("cache_dtype", cache_dtype, CACHE_DTYPES),
    )
    for name, value, valid in choices:
        if value not in valid:
            raise InputError(f"model.{name}: {not_found(value, valid)}")
    if cache == "none":
        return
    if cache == "disk" and not cache_dir:
        raise InputError("model.cache_dir: expected a folder for model.cache='disk', got ''")
    if not frozen:
        raise InputError(f"model.cache: {cache!r} needs model.frozen=true: convolutions that are trained change")
    if padding != "exact":
        raise InputError(
            f"model.cache: {cache!r} needs model.padding='exact', got {padding!r}, under which a clip's frames depend"
            " on the length that its batch is padded to"
        )


def _architecture(path: str, size: str) -> HubertConfig:
    """The config of the pretrained weights, else that of a size."""
    folder = pathlib.Path(path).expanduser()
    if path and folder.is_dir():
        return read_hubert_config(folder)
    if path:  # enough to describe the model; to train it, the weights are looked for and missed
        _log.warning("model.path: %s is no folder; the architecture is taken to be that of size %r", path, size)
    return SIZES[size]
