"""HuBERT's weights in Hugging Face's files: config.json and model.safetensors."""

import json
import pathlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from imbal_jax.errors import InputError
from imbal_jax.models.hubert import hubert, random_frozen
from imbal_jax.models.hubert_config import HubertConfig
from imbal_jax.types import Array, PyTree

_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
_CONVERTER = "python -m experiments.convert_checkpoint"
# What is not part of a HuBERT, but may lie in the same file.
_HEADS = ("lm_head.", "projector.", "classifier.", "layer_weights")
_POSITIONAL = "encoder.pos_conv_embed.conv"
_G, _V = f"{_POSITIONAL}.parametrizations.weight.original0", f"{_POSITIONAL}.parametrizations.weight.original1"
_OLD_NAMES = {f"{_POSITIONAL}.weight_g": _G, f"{_POSITIONAL}.weight_v": _V}
_OPTIONAL = "masked_spec_embed"
# What a config.json must say where it says anything, because nothing else is implemented.
_ONLY: Mapping[str, tuple] = {
    "model_type": ("hubert",),
    "hidden_act": ("gelu",),
    "feat_extract_activation": ("gelu",),
    "conv_pos_batch_norm": (False,),
    "add_adapter": (False,),
    "adapter_attn_dim": (None,),
    "quantization_config": (None,),
}
_TYPES = ("float16", "bfloat16", "float32", "float64")
PICKLED = (".bin", ".pt", ".pth")  # endings of PyTorch's own files
_POINTER = b"version https://git-lfs"
_MOST_LISTED = 10


def read_hubert_config(path: str | pathlib.Path) -> HubertConfig:
    """Reads Hugging Face's config.json of a HuBERT.

    What it does not say has Hugging Face's defaults; what does not concern the architecture or the noise of training is
    left alone.

    Args:
      path: of the file, or of the folder it is in.

    Raises:
      InputError: it is missing or damaged, or describes another kind of model or one that is not implemented.
    """
    path = pathlib.Path(path).expanduser()
    path = path / _CONFIG if path.is_dir() else path
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected Hugging Face's {_CONFIG}: {_first_line(error)}") from error
    if not isinstance(content, dict) or content.get("model_type") is None:
        raise InputError(f"{path}: expected Hugging Face's {_CONFIG} with a model_type, got something else")
    for name, valid in _ONLY.items():
        if name in content and content[name] not in valid:
            raise InputError(f"{path}: {name}: expected {valid[0]!r}, got {content[name]!r}")
    known = {field.name for field in fields(HubertConfig)}
    values: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in content.items() if name in known
    }
    try:
        config = HubertConfig(**values)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    count = content.get("num_feat_extract_layers", len(config.conv_dim))
    if count != len(config.conv_dim):
        raise InputError(
            f"{path}: num_feat_extract_layers: expected {len(config.conv_dim)} as conv_dim has, got {count}"
        )
    return config


def load_hubert(path: str | pathlib.Path, *, dtype: Any = np.float32) -> tuple[HubertConfig, PyTree]:
    """Reads a HuBERT from a folder with config.json and model.safetensors.

    The weights of the positional convolution are put together from direction and size once and for all. Heads that
    lie in the same file are ignored.

    Args:
      path: of the folder.
      dtype: of the weights in memory; stored they may be in 16, 32 or 64 bits.

    Returns:
      The configuration, and the collection "frozen" of `imbal_jax.models.hubert.hubert` with it.

    Raises:
      InputError: a file is missing, damaged or of another format, or a tensor is missing, unexpected, of the wrong
        shape or not finite.
    """
    folder = pathlib.Path(path).expanduser()
    file = _find_weights(folder)
    config = read_hubert_config(folder / _CONFIG)
    layout = _layout(config)
    stored = _backbone(file, read_tensors(file))
    if _OPTIONAL not in layout:
        stored.pop(_OPTIONAL, None)
    check_names(file, stored, layout)
    check_values(file, stored, {name: entry.shape for name, entry in layout.items()})
    frozen: PyTree = {}
    for name, entry in layout.items():
        if name == _G:
            continue
        tensor = _folded(stored[_G], stored[_V]) if name == _V else stored[name]
        leaf = jnp.asarray(np.transpose(tensor).astype(dtype) if entry.is_kernel else tensor.astype(dtype))
        _insert(frozen, entry.path, leaf)
    return config, frozen


def export_hubert(config: HubertConfig, frozen: PyTree, folder: str | pathlib.Path) -> None:
    """Writes config.json and model.safetensors under Hugging Face's names.

    Args:
      config: of the weights.
      frozen: the collection "frozen", or {"hubert": ...} out of "params" where HuBERT itself was trained.
      folder: to write into, made if it does not exist.

    Raises:
      InputError: one of the files exists, or the weights are not those of the configuration.
    """
    folder = pathlib.Path(folder).expanduser()
    for name in (_CONFIG, _WEIGHTS):
        if (folder / name).exists():
            raise InputError(f"folder: expected one without {name}, got {folder}")
    layout = _layout(config)
    leaves = {
        _path(keys): leaf
        for keys, leaf in jax.tree_util.tree_flatten_with_path({"hubert": frozen.get("hubert", {})})[0]
    }
    check_names("frozen", map("/".join, leaves), {"/".join(entry.path) for entry in layout.values()})
    tensors = {}
    for name, entry in layout.items():
        leaf = np.asarray(leaves[entry.path])
        tensors[name] = np.ascontiguousarray(np.transpose(leaf) if entry.is_kernel else leaf)
    tensors[_G] = _norms(tensors[_V]).astype(tensors[_V].dtype)
    check_values("frozen", tensors, {name: entry.shape for name, entry in layout.items()})
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})
    content = {name: valid[0] for name, valid in _ONLY.items() if valid[0] is not None}
    content |= {"architectures": ["HubertModel"], "num_feat_extract_layers": len(config.conv_dim), **asdict(config)}
    (folder / _CONFIG).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def count_stored(frozen: PyTree) -> int:
    """The number of a backbone's parameters as Hugging Face counts them: 94,371,712 for HuBERT Base.

    The positional convolution there has a size for every place of its kernel in addition.

    Args:
      frozen: the collection "frozen", arrays or shapes.
    """
    places = frozen["hubert"]["encoder"]["pos_conv_embed"]["conv"]["kernel"].shape[0]
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(frozen)) + places


def read_tensors(file: pathlib.Path, *, skip: str | tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file.

    Args:
      file: to read.
      skip: endings of the names of tensors that are left out.

    Raises:
      InputError: it is missing, damaged, or only a pointer to the file; or a tensor is no floating-point array.
    """
    try:
        with safe_open(file, framework="numpy") as opened:
            names = [name for name in opened.keys() if not name.endswith(skip)]  # noqa: SIM118 (no mapping)
            tensors = {name: opened.get_tensor(name) for name in names}
    except (OSError, SafetensorError, ValueError, TypeError, KeyError, AttributeError) as error:
        if file.is_file() and _is_pointer(file):
            raise InputError(
                f"{file}: expected tensors, got a Git LFS pointer; fetch the file: git lfs pull"
            ) from error
        raise InputError(f"{file}: expected a complete safetensors file: {_first_line(error)}") from error
    for name, tensor in tensors.items():
        if tensor.dtype.name not in _TYPES:
            raise InputError(f"{file}: {name}: expected one of {', '.join(_TYPES)}, got {tensor.dtype}")
    return tensors


def check_names(where: str | pathlib.Path, given: Iterable[str], expected: Iterable[str]) -> None:
    """Refuses other names than those expected.

    Raises:
      InputError: names are missing or unexpected; they are listed.
    """
    given, expected = set(given), set(expected)
    missing, unexpected = sorted(expected - given), sorted(given - expected)
    parts = [
        f"{what} {_listed(names)}" for what, names in (("lacks", missing), ("has unexpected", unexpected)) if names
    ]
    if parts:
        raise InputError(f"{where}: {'; '.join(parts)}")


def check_values(
    where: str | pathlib.Path, tensors: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuses tensors of other shapes than those expected, or with numbers that are not finite.

    Raises:
      InputError: there are such tensors; they are listed.
    """
    pairs = [(name, tensors[name].shape, shape) for name, shape in shapes.items()]
    wrong = [f"{name} {got} instead of {shape}" for name, got, shape in pairs if got != shape]
    if wrong:
        raise InputError(f"{where}: expected other shapes of {_listed(wrong)}")
    broken = [name for name in shapes if not np.isfinite(tensors[name].astype(np.float32)).all()]
    if broken:
        raise InputError(f"{where}: expected finite numbers, got others in {_listed(broken)}")


class _Entry(NamedTuple):
    """A tensor as it is stored, and where it goes."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    is_kernel: bool  # the axes are reversed


def _layout(config: HubertConfig) -> dict[str, _Entry]:
    """All tensors of a HuBERT by Hugging Face's names, read off the model itself."""
    model = hubert(2, config=config, lora=None)
    frozen = jax.eval_shape(lambda key: random_frozen(model, key), jax.random.key(0))
    layout = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(frozen)[0]:
        path = _path(keys)
        is_kernel = path[-1] == "kernel"
        layout[stored_name(path)] = _Entry(path, leaf.shape[::-1] if is_kernel else leaf.shape, is_kernel)
    positional = layout.pop(f"{_POSITIONAL}.weight")
    layout[_V] = positional
    layout[_G] = positional._replace(shape=(1, 1, positional.shape[-1]))
    return layout


def stored_name(path: tuple[str, ...]) -> str:
    """Hugging Face's name of a weight: encoder/layers_3/layer_norm/scale is encoder.layers.3.layer_norm.weight."""
    modules = [re.sub(r"_(\d+)$", r".\1", part) for part in path[1:-1]]
    return ".".join([*modules, {"kernel": "weight", "scale": "weight"}.get(path[-1], path[-1])])


def _find_weights(folder: pathlib.Path) -> pathlib.Path:
    """The file of the weights, or what to do where there is another one."""
    if folder.suffix in PICKLED and folder.is_file():
        raise InputError(f"path: {conversion_of(folder, folder.parent / _WEIGHTS)}")
    if not folder.is_dir():
        raise InputError(f"path: expected a folder with {_CONFIG} and {_WEIGHTS}, got {folder}")
    file = folder / _WEIGHTS
    if file.is_file():
        return file
    pickled = sorted(each for each in folder.iterdir() if each.suffix in PICKLED)
    if pickled:
        raise InputError(f"path: {conversion_of(pickled[0], file)}")
    if (folder / f"{_WEIGHTS}.index.json").exists():
        raise InputError(f"path: expected {_WEIGHTS} in one piece, got several in {folder}")
    raise InputError(f"path: expected {_WEIGHTS}, found none in {folder}")


def conversion_of(pickled: pathlib.Path, output: pathlib.Path) -> str:
    """What to do about PyTorch's own files, which are programs."""
    return f"expected {output.name}, got {pickled.name}; convert it with {_CONVERTER} {pickled} {output}"


def _backbone(file: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors without heads, under today's names of a HubertModel."""
    result: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        if name.startswith(_HEADS):
            continue
        today = name.removeprefix("hubert.")
        today = _OLD_NAMES.get(today, today)
        if today in result:
            raise InputError(f"{file}: expected every tensor once, got {today} twice")
        result[today] = tensor
    return result


def _listed(names: list[str]) -> str:
    """Names for a message, the first ones of many."""
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return ", ".join(names[:_MOST_LISTED]) + more


def _norms(directions: np.ndarray) -> np.ndarray:
    """The size of a kernel [outputs, inputs, places] at every place, [1, 1, places]."""
    return np.sqrt(np.square(directions.astype(np.float64)).sum(axis=(0, 1), keepdims=True))


def _folded(sizes: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """The kernel of a weight-normalised convolution (Salimans and Kingma 2016, Eq. 2)."""
    return directions.astype(np.float64) * (sizes.astype(np.float64) / _norms(directions))


def _insert(tree: dict, path: tuple[str, ...], leaf: Array) -> None:
    """Puts a leaf into nested dictionaries."""
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = leaf


def _is_pointer(file: pathlib.Path) -> bool:
    """Whether a file only says where Git LFS keeps the file that was meant."""
    with file.open("rb") as opened:
        return opened.read(len(_POINTER)) == _POINTER


def _path(keys: tuple) -> tuple[str, ...]:
    """The names on the way to a leaf."""
    return tuple(key.key for key in keys)


def _first_line(error: Exception) -> str:
    """The first line of an error's message, or its type."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
