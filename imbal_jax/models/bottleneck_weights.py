"""Pretrained weights of bottleneck ResNets under torchvision's names."""

import pathlib
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from safetensors.numpy import save_file

from imbal_jax.errors import InputError
from imbal_jax.models.hubert_weights import PICKLED, check_names, check_values, conversion_of, read_tensors
from imbal_jax.types import PyTree

# The batches that a normalisation has seen, which PyTorch counts and nothing here uses.
_COUNTERS = ".num_batches_tracked"
_CLASSIFIER = "fc."
_LAYERS = {
    "convolution": "conv1",
    "norm": "bn1",
    "shortcut_convolution": "downsample.0",
    "shortcut_norm": "downsample.1",
    "classifier": "fc",
}
_VALUES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def pretrained(model: nn.Module, *, weights: str, weights_classifier: bool, **options: Any) -> PyTree | None:
    """The variables that training starts from in the place of random ones; None where all are random.

    Args:
      model: of `imbal_jax.models.bottleneck.resnet50` or `resnet152`.
      weights: the safetensors file; empty for none.
      weights_classifier: take its classifier as well.
      **options: the others of the builders, which the model has.

    Raises:
      InputError: see `load_resnet`; or a classifier is asked for without a file.
    """
    del options
    if weights_classifier and not weights:
        raise InputError("model.weights_classifier: needs a file in model.weights, got ''")
    return load_resnet(weights, model, with_classifier=weights_classifier) if weights else None


def load_resnet(path: str | pathlib.Path, model: nn.Module, *, with_classifier: bool) -> PyTree:
    """Reads a ResNet from a safetensors file with torchvision's names.

    Every tensor of the file must be one of the model's, and the other way round, but for PyTorch's counters of batches,
    and for the classifier (fc.weight and fc.bias) where that of the file is not asked for.

    Args:
      path: of the file.
      model: whose weights they are to be.
      with_classifier: whether to take the classifier as well.

    Returns:
      {"params": ..., "batch_stats": ...} of float32, without "classifier" unless asked for.

    Raises:
      InputError: the file is missing, damaged or of another format, or a tensor is missing, unexpected, of the wrong
        shape or not finite.
    """
    file = pathlib.Path(path).expanduser()
    if file.suffix in PICKLED:
        raise InputError(f"model.weights: {conversion_of(file, file.with_suffix('.safetensors'))}")
    if not file.is_file():
        raise InputError(f"model.weights: expected a safetensors file, found none at {file}")
    stored = read_tensors(file, skip=_COUNTERS)
    layout = _layout(model)
    if not with_classifier:
        stored = {name: tensor for name, tensor in stored.items() if not name.startswith(_CLASSIFIER)}
        layout = {name: entry for name, entry in layout.items() if not name.startswith(_CLASSIFIER)}
    check_names(file, stored, layout)
    check_values(file, stored, {name: entry.shape for name, entry in layout.items()})
    variables: PyTree = {}
    for name, entry in layout.items():
        tree = variables
        for part in entry.path[:-1]:
            tree = tree.setdefault(part, {})
        tree[entry.path[-1]] = np.ascontiguousarray(_from_torch(stored[name]), np.float32)
    return variables


def export_resnet(model: nn.Module, variables: PyTree, file: str | pathlib.Path) -> None:
    """Writes a ResNet to a safetensors file with torchvision's names.

    Args:
      model: whose variables they are.
      variables: {"params": ..., "batch_stats": ...}.
      file: to write, *.safetensors.

    Raises:
      InputError: the file exists or has another ending, or the variables are not those of the model.
    """
    file = pathlib.Path(file)
    if file.suffix != ".safetensors" or file.exists():
        raise InputError(f"--output: expected a new file that ends in .safetensors, got {file}")
    leaves = {_path(keys): leaf for keys, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]}
    layout = _layout(model)
    check_names("variables", map("/".join, leaves), {"/".join(entry.path) for entry in layout.values()})
    tensors = {name: np.ascontiguousarray(_to_torch(np.asarray(leaves[entry.path]))) for name, entry in layout.items()}
    check_values("variables", tensors, {name: entry.shape for name, entry in layout.items()})
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file, metadata={"format": "pt"})


class _Entry(NamedTuple):
    """A tensor as it is stored, and where it goes."""

    path: tuple[str, ...]  # with the collection first
    shape: tuple[int, ...]


def _layout(model: nn.Module) -> dict[str, _Entry]:
    """All tensors of a ResNet for colour images by torchvision's names, read off the model itself."""
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(lambda key, images: model.init(key, images, train=False), jax.random.key(0), images)
    layout = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]:
        path = _path(keys)
        layout[torchvision_name(path[1:])] = _Entry(path, _to_torch(np.broadcast_to(0, leaf.shape)).shape)
    return layout


def torchvision_name(path: tuple[str, ...]) -> str:
    """The name of a weight: stage1_block2/convolution3/kernel is layer1.1.conv3.weight."""
    *modules, value = path
    names = []
    for module in modules:
        block = re.fullmatch(r"stage(\d+)_block(\d+)", module)
        numbered = re.fullmatch(r"(convolution|norm)(\d)", module)
        if block:
            names.append(f"layer{block[1]}.{int(block[2]) - 1}")
        elif numbered:
            names.append(f"{'conv' if numbered[1] == 'convolution' else 'bn'}{numbered[2]}")
        else:
            names.append(_LAYERS[module])
    return ".".join([*names, _VALUES.get(value, value)])


def _to_torch(leaf: np.ndarray) -> np.ndarray:
    """A kernel [height, width, inputs, outputs] or [inputs, outputs] with PyTorch's order of axes; others as is."""
    return leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else leaf.T


def _from_torch(tensor: np.ndarray) -> np.ndarray:
    """The inverse of `_to_torch`."""
    return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T


def _path(keys: tuple) -> tuple[str, ...]:
    """The names on the way to a leaf."""
    return tuple(key.key for key in keys)
