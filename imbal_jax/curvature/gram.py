"""Gram matrices of per-example gradients of layers, without the gradients where that is cheaper.

A layer that multiplies rows x_nt by a kernel has the per-example gradient G_n = sum_t x_nt dy_nt^T. Its Gram matrix
K_nm = <G_n, G_m> can be had in two forms, of which the cheaper one is taken:

- position form: K_nm = sum_{t,s} (x_nt . x_ms)(dy_nt . dy_ms), for few positions and many parameters;
- gradient form: G_n explicitly, then their inner products, for many positions and few parameters.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from imbal_jax.types import Array

Form = Literal["position", "gradient"]

# Gradients of a layer that are held at once, in numbers; beyond, output features are taken block by block.
_MOST_HELD = 2**23
_MOST_BLOCKS = 16
# What a number that is written and read again costs, in multiply-adds of a large product. Fitted to the fourteen
# layers of VGG11 and HuBERT with LoRA at batches of 32 and 128 on two CPU cores; gradients come from small products.
_COST_OF_GRADIENT = 300
_COST_OF_PAIR = 30
# Rows beyond which the symmetry of the position form is used.
_WORTH_CUTTING = 512
_HIGHEST = jax.lax.Precision.HIGHEST  # on GPU and TPU the default is too coarse for a matrix that is to be inverted


def form_costs(examples: int, positions: int, inputs: int, outputs: int) -> dict[Form, float]:
    """The cost of both forms in multiply-adds, memory traffic included.

    Args:
      examples: N.
      positions: rows per example, T.
      inputs: length of a row x, a.
      outputs: length of a row dy, g.
    """
    rows, gradient = examples * positions, inputs * outputs
    blocks = _position_blocks(examples, positions)
    share = (blocks + 1) / (2 * blocks)
    position = share * rows**2 * (inputs + outputs + _COST_OF_PAIR)
    explicit = examples * gradient * (positions + examples + _COST_OF_GRADIENT)
    return {"position": float(position), "gradient": float(explicit)}


def cheapest_form(examples: int, positions: int, inputs: int, outputs: int) -> Form:
    """The form with the lower cost; arguments as in `form_costs`."""
    costs = form_costs(examples, positions, inputs, outputs)
    return "position" if costs["position"] <= costs["gradient"] else "gradient"


def layer_gram(rows: Array, cotangents: Array, form: Form | None = None) -> Array:
    """The Gram matrix [batch, batch] of the per-example kernel gradients of a layer.

    Args:
      rows: what the kernel multiplies, [batch, positions, inputs].
      cotangents: of the products, [batch, positions, outputs].
      form: the cheapest by default.
    """
    examples, positions, inputs = rows.shape
    form = form or cheapest_form(examples, positions, inputs, cotangents.shape[-1])
    return _position_form(rows, cotangents) if form == "position" else _gradient_form(rows, cotangents)


def explicit_gram(gradients: Array) -> Array:
    """The Gram matrix [batch, batch] of gradients [batch, ...]."""
    flat = gradients.reshape(len(gradients), -1)
    return jnp.matmul(flat, flat.T, precision=_HIGHEST)


def _position_form(rows: Array, cotangents: Array) -> Array:
    """Products of all pairs of positions, summed within pairs of examples.

    The matrix is symmetric: of its blocks of examples only those on and above the diagonal are computed.
    """
    count = _position_blocks(len(rows), rows.shape[1])
    pieces = list(zip(jnp.array_split(rows, count), jnp.array_split(cotangents, count), strict=True))
    blocks: list[list[Array]] = [[] for _ in pieces]
    for i, one in enumerate(pieces):
        for j, other in enumerate(pieces):
            blocks[i].append(_position_block(*one, *other) if i <= j else blocks[j][i].T)
    return jnp.block(blocks)


def _position_blocks(examples: int, positions: int) -> int:
    """Into how many blocks of examples the position form is cut; small products are not worth it."""
    return 4 if examples >= 8 and examples * positions >= _WORTH_CUTTING else 1


def _position_block(rows: Array, cotangents: Array, other_rows: Array, other_cotangents: Array) -> Array:
    """The position form of some examples with some others."""

    def products(left: Array, right: Array) -> Array:
        flat_left, flat_right = left.reshape(-1, left.shape[-1]), right.reshape(-1, right.shape[-1])
        return jnp.matmul(flat_left, flat_right.T, precision=_HIGHEST)

    pairs = products(rows, other_rows) * products(cotangents, other_cotangents)
    return pairs.reshape(len(rows), rows.shape[1], len(other_rows), other_rows.shape[1]).sum(axis=(1, 3))


def _gradient_form(rows: Array, cotangents: Array) -> Array:
    """Inner products of explicit gradients, block by block of outputs where there are many."""
    examples, outputs = len(rows), cotangents.shape[-1]
    needed = -(-examples * rows.shape[-1] * outputs // _MOST_HELD)
    width = -(-outputs // min(needed, _MOST_BLOCKS, outputs))
    gram = jnp.zeros((examples, examples), jnp.result_type(rows, cotangents))
    for first in range(0, outputs, width):
        block = cotangents[..., first : first + width]
        gram += explicit_gram(jnp.einsum("nta,ntg->nag", rows, block, precision=_HIGHEST))
    return gram
