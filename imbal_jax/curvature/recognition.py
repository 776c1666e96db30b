"""What kind of layer a Flax module is, and its per-example gradients from what its tap saw."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from imbal_jax.curvature.layers import ExplicitLayer, Layer, ProductLayer
from imbal_jax.curvature.patches import extract_patches
from imbal_jax.models.batch_norm import BatchNorm
from imbal_jax.models.convolution import Convolution3x3
from imbal_jax.types import Array, Params, PyTree

Kind = Literal["product", "normalisation", "opaque"]

_NORMALISATIONS = (BatchNorm, nn.BatchNorm, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


class Call(NamedTuple):
    """One application of a module."""

    kind: Kind
    path: tuple[str, ...]
    module: nn.Module  # unbound
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    collections: Mapping[str, PyTree]  # its variables other than parameters
    bias_is_absorbed: bool = False


def kind_of(module: nn.Module) -> Kind | None:
    """The kind of a module that is known to treat its examples alike, else None.

    A subclass may do anything and is not known.
    """
    if type(module) in (nn.Dense, Convolution3x3) or (type(module) is nn.Conv and _is_plain(module)):
        return "product"
    # Channels elsewhere than last are not known either.
    channels_last = getattr(module, "feature_axes", getattr(module, "axis", -1)) == -1
    return "normalisation" if type(module) in _NORMALISATIONS and channels_last else None


def uses_batch_statistics(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether this call couples the examples of a batch through their mean and variance."""
    if isinstance(module, BatchNorm):
        return bool(kwargs.get("train", args[1] if len(args) > 1 else None))
    if isinstance(module, nn.BatchNorm):
        given = kwargs.get("use_running_average", args[1] if len(args) > 1 else None)
        return not (module.use_running_average if given is None else given)
    return False


def layer_of(call: Call, params: Params, cotangents: Array) -> Layer:
    """The per-example gradients of one application of a module.

    Args:
      call: what its tap saw.
      params: of the module.
      cotangents: of its output, [batch, ...].
    """
    if call.kind == "product":
        return _product_layer(call, params, cotangents)
    if call.kind == "normalisation":
        return _normalisation_layer(call, params, cotangents)
    return _opaque_layer(call, params, cotangents)


def product_rows(call: Call, dtype: Any) -> Array:
    """What the kernel of a "product" multiplies, [batch, positions, inputs]."""
    inputs, module = call.args[0].astype(dtype), call.module
    if isinstance(module, nn.Dense):
        return inputs.reshape(len(inputs), -1, inputs.shape[-1])
    if isinstance(module, Convolution3x3):
        return extract_patches(inputs, (3, 3), (module.stride,) * 2, ((1, 1), (1, 1)), (1, 1))
    assert isinstance(module, nn.Conv)
    rank = 1 if isinstance(module.kernel_size, int) else len(module.kernel_size)
    size = _each(module.kernel_size, rank)
    padding: Any = module.padding
    if not isinstance(padding, str):
        padding = [(each, each) if isinstance(each, int) else tuple(each) for each in _each(padding, len(size))]
    strides, dilation = _each(module.strides, len(size)), _each(module.kernel_dilation, len(size))
    # Axes between examples and image, such as time, are further positions.
    images = inputs.reshape(-1, *inputs.shape[-1 - rank :])
    patches = extract_patches(images, size, strides, padding, dilation)
    return patches.reshape(len(inputs), -1, patches.shape[-1])


def _product_layer(call: Call, params: Params, cotangents: Array) -> ProductLayer:
    """A dense layer or convolution."""
    dtype = jnp.promote_types(cotangents.dtype, jnp.float32)
    shapes = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in params.items()}
    flat = cotangents.astype(dtype).reshape(len(cotangents), -1, cotangents.shape[-1])
    return ProductLayer(product_rows(call, dtype), flat, shapes["kernel"], shapes.get("bias"), call.bias_is_absorbed)


def _normalisation_layer(call: Call, params: Params, cotangents: Array) -> ExplicitLayer:
    """Scale and shift of normalised inputs; the normalised inputs are the output with scale 1 and shift 0."""
    neutral = {name: (jnp.ones_like if name == "scale" else jnp.zeros_like)(leaf) for name, leaf in params.items()}
    normalised = _apply(call, neutral)
    factors = {"scale": normalised * cotangents, "bias": cotangents}
    axes = tuple(range(1, cotangents.ndim - 1))
    return ExplicitLayer({name: factors[name].sum(axes).astype(leaf.dtype) for name, leaf in params.items()})


def _opaque_layer(call: Call, params: Params, cotangents: Array) -> ExplicitLayer:
    """Any module that treats its examples one by one: its own gradient, example by example."""
    leaves, structure = jax.tree.flatten((call.args, call.kwargs))
    batched = [isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves]

    def of_example(arrays: list[Array], cotangent: Array) -> Params:
        replacement = iter(arrays)
        single = [next(replacement)[None] if is_array else leaf for leaf, is_array in zip(leaves, batched, strict=True)]
        args, kwargs = jax.tree.unflatten(structure, single)
        alone = call._replace(args=args, kwargs=kwargs)
        return jax.vjp(lambda params: _apply(alone, params), params)[1](cotangent[None])[0]

    arrays = [jnp.asarray(leaf) for leaf, is_array in zip(leaves, batched, strict=True) if is_array]
    return ExplicitLayer(jax.vmap(of_example)(arrays, cotangents))


def _apply(call: Call, params: Params) -> Array:
    """The module's output for other parameters."""
    variables = {"params": params, **call.collections}
    output = call.module.apply(variables, *call.args, **call.kwargs, mutable=list(call.collections))
    return output[0]


def _is_plain(module: nn.Conv) -> bool:
    """Whether a convolution is one product of patches and kernel."""
    return (
        module.feature_group_count == 1
        and module.mask is None
        and module.padding not in ("CIRCULAR", "REFLECT", "CAUSAL")
        and set(_each(module.input_dilation, 1)) == {1}
    )


def _each(value: Any, rank: int) -> tuple:
    """One value per spatial axis, as flax.linen.Conv reads its arguments."""
    if value is None or isinstance(value, int):
        return (1 if value is None else value,) * rank
    return tuple(value)
