"""Trained LoRA weights and heads in peft's files: adapter_config.json and adapter_model.safetensors."""

import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from imbal_jax.errors import InputError
from imbal_jax.models.hubert_config import HubertConfig
from imbal_jax.models.hubert_weights import check_names, check_values, read_tensors, stored_name
from imbal_jax.models.lora import ATTENTION_TARGETS, TARGETS, LoraSpec
from imbal_jax.types import Params

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_HEAD = ("projector", "classifier")
# What an adapter_config.json may say besides the fields of `LoraSpec`; any other key must be neutral.
_ONLY: Mapping[str, tuple] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "fan_in_fan_out": (False,),
    "init_lora_weights": (True, False, "gaussian"),  # the others change the weights that are adapted
    "layers_pattern": (None, "layers", ["layers"], []),
}
_READ = {"r", "lora_alpha", "lora_dropout", "target_modules", "layers_to_transform", "use_rslora"}
_HARMLESS = {
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "modules_to_save", "peft_version", "revision"),
    *("task_type", "megatron_core", "qalora_group_size", "runtime_config"),
}
_NEUTRAL: tuple = (None, False, {}, [])


class PeftCounts(NamedTuple):
    """Numbers of parameters of a model with LoRA and a head."""

    trainable: int
    total: int  # with the frozen ones
    as_peft: int  # what peft prints as the total: it keeps the head it replaces, and counts both


def count_as_peft(params: Params, frozen_count: int) -> PeftCounts:
    """Counts parameters, once right and once as peft does.

    Args:
      params: the trainable ones, arrays or shapes.
      frozen_count: of the others, by `imbal_jax.models.hubert_weights.count_stored`.
    """
    trainable = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
    head = sum(int(np.prod(leaf.shape)) for name in _HEAD for leaf in jax.tree.leaves(params[name]))
    return PeftCounts(trainable, frozen_count + trainable, frozen_count + trainable + head)


def write_adapter(folder: str | pathlib.Path, params: Params, spec: LoraSpec, *, base_model: str | None = None) -> None:
    """Writes the trained weights of a HuBERT with LoRA, replacing those of an earlier call.

    Args:
      folder: made if it does not exist. It must not be the pretrained model's: finding an adapter there, Hugging Face's
        from_pretrained puts it into the model.
      params: the collection "params": LoRA and head, nothing else.
      spec: of the LoRA weights.
      base_model: a name or path of the pretrained model, for the record.

    Raises:
      InputError: the folder holds a model, or the weights are not those of the specification.
    """
    folder = pathlib.Path(folder).expanduser()
    if (folder / "config.json").exists():
        raise InputError(
            f"folder: expected one without config.json, got {folder}: transformers loads an adapter that lies beside a"
            " model into it"
        )
    tensors = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        path = tuple(key.key for key in keys)
        tensors[_adapter_name(path)] = np.ascontiguousarray(np.transpose(leaf) if path[-1] == "kernel" else leaf)
    found = [name for name in params.get("hubert", {}).get("encoder", {}) if name.startswith("layers_")]
    layers = range(len(found)) if spec.layers is None else spec.layers
    paths = _lora_paths(spec, layers) + [(name, leaf) for name in _HEAD for leaf in ("kernel", *_bias(name, tensors))]
    check_names("params", tensors, map(_adapter_name, paths))
    ranks = {tensor.shape[0] for name, tensor in tensors.items() if ".lora_A." in name}
    if ranks != {spec.rank}:
        raise InputError(f"spec: expected the rank of the weights, {sorted(ranks)}, got {spec.rank}")
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})
    content = json.dumps(_describe(spec, base_model), indent=2)
    (folder / _CONFIG).write_text(content + "\n", encoding="utf-8")


def read_adapter(
    folder: str | pathlib.Path, config: HubertConfig, *, dtype: Any = np.float32
) -> tuple[Params, LoraSpec]:
    """Reads an adapter of a HuBERT with its head.

    Args:
      folder: with adapter_config.json and adapter_model.safetensors.
      config: of the model that is adapted.
      dtype: of the weights in memory.

    Returns:
      The collection "params" of `imbal_jax.models.hubert.hubert` with that configuration, and its LoRA specification;
      the sizes of the head, and whether it has biases, are those of the weights.

    Raises:
      InputError: a file is missing or damaged, says something that is not implemented, or does not fit the model.
    """
    folder = pathlib.Path(folder).expanduser()
    spec = _read_spec(folder / _CONFIG)
    file = folder / _WEIGHTS
    tensors = read_tensors(file)
    layers = range(config.num_hidden_layers) if spec.layers is None else spec.layers
    if max(layers) >= config.num_hidden_layers:
        raise InputError(f"{folder / _CONFIG}: expected layers below {config.num_hidden_layers}, got {spec.layers}")
    paths = _lora_paths(spec, layers) + [(name, leaf) for name in _HEAD for leaf in ("kernel", *_bias(name, tensors))]
    names = {_adapter_name(path): path for path in paths}
    check_names(file, tensors, names)
    check_values(file, tensors, {name: _shape(path, tensors, spec, config) for name, path in names.items()})
    params: Params = {}
    for name, path in names.items():
        place = params
        for part in path[:-1]:
            place = place.setdefault(part, {})
        tensor = np.transpose(tensors[name]) if path[-1] == "kernel" else tensors[name]
        place[path[-1]] = jnp.asarray(tensor.astype(dtype))
    return params, spec


def _describe(spec: LoraSpec, base_model: str | None) -> dict[str, Any]:
    """An adapter_config.json."""
    alpha = int(spec.alpha) if float(spec.alpha).is_integer() else float(spec.alpha)
    return {
        "peft_type": "LORA",
        "task_type": None,
        "r": spec.rank,
        "lora_alpha": alpha,
        "lora_dropout": spec.dropout,
        "bias": "none",
        "target_modules": list(spec.targets),
        "layers_to_transform": None if spec.layers is None else list(spec.layers),
        "layers_pattern": None if spec.layers is None else "layers",
        "modules_to_save": list(_HEAD),
        "fan_in_fan_out": False,
        "use_rslora": spec.rank_stabilised,
        "use_dora": False,
        "inference_mode": True,
        "base_model_name_or_path": base_model,
    }


def _read_spec(path: pathlib.Path) -> LoraSpec:
    """The specification in an adapter_config.json."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected peft's adapter_config.json: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict) or not {"peft_type", "r", "lora_alpha", "target_modules"} <= content.keys():
        raise InputError(f"{path}: expected peft's adapter_config.json of a LoRA adapter, got something else")
    for name, value in content.items():
        if name in _ONLY and value not in _ONLY[name]:
            raise InputError(f"{path}: {name}: expected {_ONLY[name][0]!r}, got {value!r}")
        if name not in _ONLY and name not in _READ | _HARMLESS and value not in _NEUTRAL:
            raise InputError(f"{path}: {name}: expected it to be off, which is all that is implemented, got {value!r}")
    targets, layers = content["target_modules"], content.get("layers_to_transform")
    if not isinstance(targets, list):
        raise InputError(f"{path}: target_modules: expected a list of names, got {targets!r}")
    try:
        return LoraSpec(
            rank=content["r"],
            alpha=content["lora_alpha"],
            dropout=content.get("lora_dropout", 0.0),
            targets=tuple(sorted(targets, key=lambda name: TARGETS.index(name) if name in TARGETS else -1)),
            layers=tuple(layers) if isinstance(layers, list) else layers if layers is None else (layers,),
            rank_stabilised=bool(content.get("use_rslora", False)),
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _lora_paths(spec: LoraSpec, layers: Iterable[int]) -> list[tuple[str, ...]]:
    """Where the LoRA weights of a model are."""
    return [
        ("hubert", "encoder", f"layers_{layer}", part, target, matrix, "kernel")
        for layer in layers
        for target in spec.targets
        for part in ("attention" if target in ATTENTION_TARGETS else "feed_forward",)
        for matrix in ("lora_A", "lora_B")
    ]


def _bias(name: str, tensors: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """The bias of a layer of the head, if it has one."""
    return ("bias",) if f"{_PREFIX}{name}.bias" in tensors else ()


def _adapter_name(path: tuple[str, ...]) -> str:
    """Peft's name of a weight."""
    own = stored_name(path) if path[0] == "hubert" else stored_name(("", *path))
    return f"{_PREFIX}hubert.{own}" if path[0] == "hubert" else f"{_PREFIX}{own}"


def _shape(
    path: tuple[str, ...], tensors: Mapping[str, np.ndarray], spec: LoraSpec, config: HubertConfig
) -> tuple[int, ...]:
    """The shape that a weight must have as it is stored; the head's sizes are its own."""
    sizes = [tensors[f"{_PREFIX}{name}.weight"].shape[:1] for name in _HEAD]
    if path[0] in _HEAD:
        place = _HEAD.index(path[0])
        inputs = (config.hidden_size,) if place == 0 else sizes[0]
        return sizes[place] if path[-1] == "bias" else (*sizes[place], *inputs)
    target, matrix = path[4:6]
    if matrix == "lora_A":
        return (spec.rank, config.intermediate_size if target == "output_dense" else config.hidden_size)
    return (config.intermediate_size if target == "intermediate_dense" else config.hidden_size, spec.rank)
