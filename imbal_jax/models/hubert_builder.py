"""HuBERT as a choice of a config: an architecture, its noise, its adapters, and where its weights come from."""

import logging
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from imbal_jax.errors import InputError, not_found
from imbal_jax.models import hubert as core
from imbal_jax.models.hubert_layers import HUBERT_BASE, HUBERT_TINY, HubertConfig, deterministic, hf_train
from imbal_jax.models.hubert_weights import load_hubert, read_hubert_config
from imbal_jax.models.lora import LoraSpec
from imbal_jax.types import PyTree

SIZES = {"base": HUBERT_BASE, "tiny": HUBERT_TINY}
NOISES = {"deterministic": deterministic, "hf_train": hf_train, "config": lambda config: config}
DTYPES = {"float32": None, "bfloat16": jnp.bfloat16}

_log = logging.getLogger(__name__)


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
    projection: int = 256,
    head_bias: bool = False,
    weighted_layer_sum: bool = False,
    padding: str = "exact",
    frozen: bool = True,
    dtype: str = "float32",
    weights_seed: int = 0,
) -> nn.Module:
    """HuBERT with LoRA and a head, the thesis's setting by default; see `imbal_jax.models.hubert.hubert`.

    Args:
      num_classes: the number of logits.
      path: a folder with Hugging Face's config.json and model.safetensors; empty for random weights.
      size: "base" or "tiny" where there is no path.
      noise: "deterministic" for none, "hf_train" for that of Hugging Face's training mode (dropouts, layerdrop,
        SpecAugment), or "config" for that of the config.json.
      lora_rank: r; 0 for no adapters.
      lora_alpha: the update is multiplied by alpha / r.
      lora_dropout: of the adapters' inputs.
      lora_targets: projections of all transformer layers.
      projection: units of the head's first layer.
      head_bias: whether the head has biases.
      weighted_layer_sum: pool a trained mixture of all layers.
      padding: "exact", "hf_mask" or "hf_nomask".
      frozen: False trains the whole network.
      dtype: of the computation, "float32" or "bfloat16".
      weights_seed: of random weights.

    Raises:
      InputError: an option is out of range, or the config.json is missing or of another architecture.
    """
    del weights_seed  # of `frozen_weights`
    for name, value, valid in (("size", size, SIZES), ("noise", noise, NOISES), ("dtype", dtype, DTYPES)):
        if value not in valid:
            raise InputError(f"model.{name}: {not_found(value, valid)}")
    config = NOISES[noise](_architecture(path, size))
    lora = None
    if lora_rank:
        lora = LoraSpec(rank=lora_rank, alpha=lora_alpha, dropout=lora_dropout, targets=tuple(lora_targets))
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


def _architecture(path: str, size: str) -> HubertConfig:
    """The config of the pretrained weights, else that of a size."""
    return read_hubert_config(pathlib.Path(path).expanduser()) if path else SIZES[size]
