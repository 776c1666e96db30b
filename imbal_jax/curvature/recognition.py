"""What kind of layer a Flax module is, and its per-example gradients from what its tap saw."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
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
    """The kind of a module that is known to treat its examples alike, else None."""
    if isinstance(module, nn.Dense | Convolution3x3) or (isinstance(module, nn.Conv) and _is_plain(module)):
        return "product"
    return "normalisation" if isinstance(module, _NORMALISATIONS) else None


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
    size = _each(module.kernel_size, inputs.ndim - 2)
    padding: Any = module.padding
    if not isinstance(padding, str):
        padding = [(each, each) if isinstance(each, int) else tuple(each) for each in _each(padding, len(size))]
    strides, dilation = _each(module.strides, len(size)), _each(module.kernel_dilation, len(size))
    return extract_patches(inputs, size, strides, padding, dilation)


def _product_layer(call: Call, params: Params, cotangents: Array) -> ProductLayer:
    """A dense layer or convolution."""
    dtype = jnp.promote_types(cotangents.dtype, jnp.float32)
    shapes = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in params.items()}
    flat = cotangents.astype(dtype).reshape(len(cotangents), -1, cotangents.shape[-1])
    return ProductLayer(product_rows(call, dtype), flat, shapes["kernel"], shapes.get("bias"), call.bias_is_absorbed)


def _normalisation_layer(call: Call, params: Params, cotangents: Array) -> ExplicitLayer:
    """Scale and shift of normalised inputs; the normalised inputs are the output with scale 1 and shift 0."""
    neutral = {name: (jnp.ones_like if name == "scale" else jnp.zeros_like)(leaf) for name, leaf in params.items()}
    normalised = _apply(call, neutral, call.args)
    factors = {"scale": normalised * cotangents, "bias": cotangents}
    axes = tuple(range(1, cotangents.ndim - 1))
    return ExplicitLayer({name: factors[name].sum(axes).astype(leaf.dtype) for name, leaf in params.items()})


def _opaque_layer(call: Call, params: Params, cotangents: Array) -> ExplicitLayer:
    """Any module that treats its examples one by one: its own gradient, example by example."""
    batched = [isinstance(arg, jax.Array) for arg in call.args]

    def gradient(arrays: tuple[Any, ...], cotangent: Array) -> Params:
        args = [arg[None] if is_array else arg for arg, is_array in zip(arrays, batched, strict=True)]
        return jax.vjp(lambda params: _apply(call, params, args), params)[1](cotangent[None])[0]

    arrays = tuple(arg if is_array else None for arg, is_array in zip(call.args, batched, strict=True))
    others = tuple(None if is_array else arg for arg, is_array in zip(call.args, batched, strict=True))

    def of_example(arrays: tuple[Any, ...], cotangent: Array) -> Params:
        joined = tuple(a if is_array else o for a, o, is_array in zip(arrays, others, batched, strict=True))
        return gradient(joined, cotangent)

    return ExplicitLayer(jax.vmap(of_example)(arrays, cotangents))


def _apply(call: Call, params: Params, args: Sequence[Any]) -> Array:
    """The module's output for other parameters or inputs."""
    variables = {"params": params, **call.collections}
    output = call.module.apply(variables, *args, **call.kwargs, mutable=list(call.collections))
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
