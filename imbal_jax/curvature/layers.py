"""Layers seen through their taps: inputs, output cotangents and the per-example gradients that follow from them."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from imbal_jax.curvature.gram import explicit_gram, layer_gram
from imbal_jax.types import Array, Params


class Layer(Protocol):
    """The share of one module's parameters in the per-example gradients J [batch, parameters]."""

    def gram(self) -> Array:
        """J J^T, [batch, batch]."""

    def pullback(self, coefficients: Array) -> Params:
        """J^T v for v [batch], as the module's parameters."""

    def products(self, change: Params) -> Array:
        """J d, [batch], for d like the module's parameters."""


class ProductLayer(NamedTuple):
    """A layer that multiplies rows by a kernel and may add a bias: dense layers and convolutions."""

    rows: Array  # [batch, positions, inputs] what the kernel multiplies
    cotangents: Array  # [batch, positions, outputs] of the products
    kernel: jax.ShapeDtypeStruct  # its shape reshapes to [inputs, outputs]
    bias: jax.ShapeDtypeStruct | None
    bias_is_absorbed: bool  # by batch statistics: any gradient it has sums to zero over the batch

    def gram(self) -> Array:
        """J J^T, [batch, batch]."""
        gram = layer_gram(self.rows, self.cotangents)
        return gram + explicit_gram(self.cotangents.sum(axis=1)) if self._has_live_bias() else gram

    def pullback(self, coefficients: Array) -> Params:
        """J^T v for v [batch], as {"kernel": ..., "bias": ...}."""
        weighted = coefficients[:, None, None] * self.cotangents
        inputs, outputs = self.rows.shape[-1], weighted.shape[-1]
        kernel = self.rows.reshape(-1, inputs).T @ weighted.reshape(-1, outputs)
        result = {"kernel": kernel.reshape(self.kernel.shape).astype(self.kernel.dtype)}
        if self.bias is not None:
            bias = weighted.sum(axis=(0, 1)) if self._has_live_bias() else jnp.zeros(self.bias.shape)
            result["bias"] = bias.astype(self.bias.dtype)
        return result

    def products(self, change: Params) -> Array:
        """J d, [batch], for d = {"kernel": ..., "bias": ...}."""
        changed = self.rows @ change["kernel"].reshape(self.rows.shape[-1], -1)
        if self._has_live_bias():
            changed = changed + change["bias"]
        return jnp.sum(self.cotangents * changed, axis=(1, 2))

    def _has_live_bias(self) -> bool:
        """Whether there is a bias that counts."""
        return self.bias is not None and not self.bias_is_absorbed


class ExplicitLayer(NamedTuple):
    """A layer with few parameters, or of unknown kind: its per-example gradients are held."""

    gradients: Params  # leaves [batch, ...]

    def gram(self) -> Array:
        """J J^T, [batch, batch]."""
        return jnp.sum(jnp.stack([explicit_gram(leaf) for leaf in jax.tree.leaves(self.gradients)]), axis=0)

    def pullback(self, coefficients: Array) -> Params:
        """J^T v for v [batch], as the module's parameters."""
        return jax.tree.map(lambda leaf: jnp.tensordot(coefficients.astype(leaf.dtype), leaf, 1), self.gradients)

    def products(self, change: Params) -> Array:
        """J d, [batch], for d like the module's parameters."""
        flat = jax.tree.map(lambda leaf, d: leaf.reshape(len(leaf), -1) @ d.reshape(-1), self.gradients, change)
        return jnp.sum(jnp.stack(jax.tree.leaves(flat)), axis=0)


def merge_calls(calls: Sequence[Layer]) -> Layer:
    """One layer of all the calls of a module that is applied several times (weight sharing)."""
    first = calls[0]
    if len(calls) == 1:
        return first
    if isinstance(first, ExplicitLayer):
        return ExplicitLayer(jax.tree.map(lambda *leaves: sum(leaves), *(call.gradients for call in calls)))  # type: ignore[attr-defined]
    products: list[ProductLayer] = list(calls)  # type: ignore[arg-type]
    return products[0]._replace(
        rows=jnp.concatenate([call.rows for call in products], axis=1),
        cotangents=jnp.concatenate([call.cotangents for call in products], axis=1),
        bias_is_absorbed=all(call.bias_is_absorbed for call in products),
    )
