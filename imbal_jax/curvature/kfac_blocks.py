"""Curvature blocks for kfac-jax: the diagonal of the empirical Fisher matrix in a Kronecker-factored eigenbasis.

A layer multiplies rows x_nt, with a one appended for the bias, by a kernel; g_nt is the cotangent of its output in the
sum of the losses. With A = E[x x^T] and G = E[g g^T], over examples and positions, and their eigenvectors U_A and U_G,
EKFAC (George et al. 2018, Algorithm 1) takes the Fisher matrix of the layer as diagonal in the basis of the outer
products of columns of U_A and U_G, with the second moments of the per-example gradients there in place of the products
of eigenvalues. kfac-jax finds the layers, pulls the cotangents back to all of them at once and hands both to the blocks
here; its own ways to multiply by a block are not used.

Importing this module imports kfac-jax, which takes about a second.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular

from imbal_jax.curvature.kfac_compatibility import load_kfac_jax
from imbal_jax.curvature.patches import extract_patches
from imbal_jax.types import Array

kfac_jax = load_kfac_jax()
tags, tag_graph_matcher = kfac_jax.layers_and_loss_tags, kfac_jax.tag_graph_matcher

# Per-example gradients of a layer that are held at once, in numbers. The CPU backend multiplies small batches of
# matrices as fast as one by one and large ones, of more than 2^19 numbers, three to ten times slower.
_MOST_HELD, _MOST_HELD_ON_CPU = 2**23, 2**16
_PRODUCT_OF_PATCHES = "product_of_patches"

# Types of kfac-jax, which mypy must not follow: an equation that marks a layer, a curvature block, the estimator.
Tag: TypeAlias = Any
Block: TypeAlias = Any
Estimator: TypeAlias = Any
_IdentityBlock: Any = kfac_jax.ScaledIdentity
_HIGHEST = jax.lax.Precision.HIGHEST
_matmul = functools.partial(jnp.matmul, precision=_HIGHEST)


class Eigenbasis(NamedTuple):
    """What a layer keeps from step to step; a = inputs of the kernel with the bias, g = outputs."""

    inputs: Array  # [a, a], eigenvectors of A as columns
    outputs: Array  # [g, g], likewise of G
    second_moments: Array | tuple  # [a, g] a moving average, or () where they are those of each batch


class Estimate(NamedTuple):
    """What a block makes of a batch."""

    basis: Eigenbasis | tuple  # () where the layer has none
    direction: tuple[Array, ...]  # in place of the gradient, as the layer's parameters


class PlainGradient(_IdentityBlock):
    """A layer that keeps its gradient: normalisations, and whatever kfac-jax recognises as no layer."""

    def update_curvature_matrix_estimate(
        self, state, estimation_data, ema_old, ema_new, identity_weight, batch_size
    ) -> Estimate:
        """The gradient of the mean loss; kfac-jax has pulled it back together with everything else."""
        del state, ema_old, ema_new, identity_weight
        return Estimate((), tuple(gradient / batch_size for gradient in estimation_data.tangents.params))


class EigenbasisBlock(_IdentityBlock):
    """A layer that multiplies rows by a kernel.

    Attributes:
      shape: a and g, the sizes of the two factors.
    """

    def __init__(
        self, tag: Tag, batch_size: int, refresh: Array | bool = True, precision: jax.lax.Precision = _HIGHEST
    ):
        """Args: the layer; the number of examples; see `curvature_estimator` for the others."""
        kernel, *bias = tags.layer_eqn_data(tag).params
        outputs = _outputs_of(tag)
        self.shape = kernel.aval.size // outputs + len(bias), outputs
        self._batch_size, self._refresh, self._precision = batch_size, refresh, precision
        super().__init__(tag)

    def update_curvature_matrix_estimate(
        self, state: Eigenbasis, estimation_data, ema_old, ema_new, identity_weight, batch_size
    ) -> Estimate:
        """Refreshes the basis where it is time to, and divides the gradient by the second moments in it.

        Args:
          state: the basis of the last step.
          estimation_data: kfac-jax's inputs, parameters and their cotangents in the sum of the losses.
          ema_old: the share of the old second moments in their moving average, where there is one.
          ema_new: the share of this batch's.
          identity_weight: added to the second moments.
          batch_size: the number of examples, N.
        """
        running = not isinstance(state.second_moments, tuple)
        multiply = functools.partial(jnp.matmul, precision=self._precision)

        def refresh(_) -> Eigenbasis:
            return fresh_basis(*self._rows(estimation_data), running)

        basis = jax.lax.cond(self._refresh, refresh, lambda basis: basis, state)
        if running:
            summed = self._join(estimation_data.tangents.params)
            gradient = multiply(multiply(basis.inputs.T, summed), basis.outputs) / batch_size
            moments = ema_old * basis.second_moments + ema_new * batch_size * gradient**2
            basis = basis._replace(second_moments=moments)
        else:
            gradient, moments = projected_moments(*self._rows(estimation_data), basis, self._precision)
        scaled = gradient / (moments + identity_weight)
        return Estimate(basis, self._split(multiply(multiply(basis.inputs, scaled), basis.outputs.T)))

    def _rows(self, data) -> tuple[Array, Array]:
        """Rows [batch, positions, a] and cotangents [batch, positions, g]."""
        [inputs], [cotangents] = data.primals.inputs, data.tangents.outputs
        if self._layer_tag_eq.params["meta"].variant == "conv2d":
            options = self.layer_tag_extra_params
            inputs = extract_patches(
                inputs,
                self.parameters_shapes[0][:2],
                options["window_strides"],
                options["padding"],
                options["rhs_dilation"],
            )
        has_bias = self.number_of_parameters == 2
        rows = inputs.reshape(self._batch_size, -1, self.shape[0] - has_bias)
        if has_bias:
            rows = jnp.concatenate([rows, jnp.ones((*rows.shape[:2], 1), rows.dtype)], axis=-1)
        return rows, cotangents.reshape(*rows.shape[:2], self.shape[1])

    def _join(self, params: tuple[Array, ...]) -> Array:
        """Kernel and bias as one matrix [a, g]."""
        return jnp.concatenate([param.reshape(-1, self.shape[1]) for param in params])

    def _split(self, matrix: Array) -> tuple[Array, ...]:
        """The inverse of `_join`."""
        sizes = [math.prod(shape) // self.shape[1] for shape in self.parameters_shapes]
        parts = jnp.split(matrix, np.cumsum(sizes)[:-1])
        return tuple(part.reshape(shape) for part, shape in zip(parts, self.parameters_shapes, strict=True))


def initial_basis(shape: tuple[int, int], dtype: Any, running: bool) -> Eigenbasis:
    """A basis for a layer of shape (a, g), which its first step replaces."""
    inputs, outputs = (jnp.eye(size, dtype=dtype) for size in shape)
    return Eigenbasis(inputs, outputs, jnp.zeros(shape, dtype) if running else ())


def fresh_basis(rows: Array, cotangents: Array, running: bool) -> Eigenbasis:
    """The eigenvectors of both factors of a batch; a moving average of second moments starts from their eigenvalues.

    Args:
      rows: [batch, positions, a].
      cotangents: [batch, positions, g].
      running: whether the second moments are a moving average.
    """
    input_values, inputs = second_moment_basis(rows.reshape(-1, rows.shape[-1]))
    output_values, outputs = second_moment_basis(cotangents.reshape(-1, cotangents.shape[-1]))
    # Rounding makes the zero eigenvalues of few rows slightly negative.
    values = jnp.outer(jnp.maximum(input_values, 0), jnp.maximum(output_values, 0))
    return Eigenbasis(inputs, outputs, values * rows.shape[1] if running else ())


def second_moment_basis(rows: Array) -> tuple[Array, Array]:
    """Eigenvalues [size] and eigenvectors [size, size], as columns, of rows^T rows / n, in no particular order.

    Few rows leave a large null space, of which any orthonormal basis will do. The eigenvectors then come from a QR
    decomposition of the rows and a small eigenproblem: on two busy CPU cores 0.8 s instead of a minute for 512 rows of
    4609. Q = I - V T V^T is put together from the Householder vectors V (Puglisi 1992 for T), because LAPACK's own
    routine for all columns of Q took 29 s.

    Args:
      rows: [n, size].
    """
    count, size = rows.shape
    if 2 * count > size:
        return jnp.linalg.eigh(_matmul(rows.T, rows) / count)
    packed, scales = jnp.linalg.qr(rows.T, mode="raw")
    reflects = scales != 0  # not where a row depends on those before it
    vectors = jnp.where(reflects, jnp.tril(packed.T, -1) + jnp.eye(size, count, dtype=rows.dtype), 0)
    diagonal = 1 / jnp.where(reflects, scales, 1)
    inverse_t = jnp.triu(_matmul(vectors.T, vectors), 1) + jnp.diag(diagonal)
    basis = jnp.eye(size, dtype=rows.dtype) - _matmul(vectors, solve_triangular(inverse_t, vectors.T))
    triangle = jnp.triu(packed.T[:count])
    values, rotation = jnp.linalg.eigh(_matmul(triangle, triangle.T) / count)
    rotated = jnp.concatenate([_matmul(basis[:, :count], rotation), basis[:, count:]], axis=1)
    return jnp.concatenate([values, jnp.zeros(size - count, values.dtype)]), rotated


def projected_moments(
    rows: Array, cotangents: Array, basis: Eigenbasis, precision: jax.lax.Precision = _HIGHEST
) -> tuple[Array, Array]:
    """Mean and second moment of the per-example gradients in the basis, both [a, g].

    Without positions nothing of the size of the per-example gradients exists; with positions a block of
    them does, or at least one example's. The rows are rotated, or their products are, whichever is the cheaper.

    Args:
      rows: [batch, positions, a].
      cotangents: [batch, positions, g].
      basis: U_A and U_G.
      precision: of the products.
    """
    multiply = functools.partial(jnp.matmul, precision=precision)
    (examples, positions, inputs), outputs = rows.shape, cotangents.shape[-1]
    rotate_rows = positions * (inputs**2 + outputs**2) <= inputs**2 * outputs + inputs * outputs**2
    if rotate_rows:
        rows, cotangents = multiply(rows, basis.inputs), multiply(cotangents, basis.outputs)
    if positions == 1:
        x, y = rows[:, 0], cotangents[:, 0]
        return multiply(x.T, y) / examples, multiply((x**2).T, y**2) / examples

    def add_block(sums, block):
        gradients = multiply(jnp.swapaxes(block[0], 1, 2), block[1])
        if not rotate_rows:
            gradients = multiply(multiply(basis.inputs.T, gradients), basis.outputs)
        return (sums[0] + gradients.sum(axis=0), sums[1] + jnp.square(gradients).sum(axis=0)), None

    # A scan over blocks; convolutions must not be in one on CPU, products may.
    most = _MOST_HELD_ON_CPU if jax.default_backend() == "cpu" else _MOST_HELD
    least = -(-examples * inputs * outputs // most)
    blocks = next(count for count in range(min(least, examples), examples + 1) if examples % count == 0)
    zeros = jnp.zeros((inputs, outputs), rows.dtype)
    split = [array.reshape(blocks, examples // blocks, *array.shape[1:]) for array in (rows, cotangents)]
    (first, second), _ = jax.lax.scan(add_block, (zeros, zeros), split)
    return first / examples, second / examples


def curvature_estimator(
    function: Callable, batch_size: int, refresh: Array | bool, precision: jax.lax.Precision = _HIGHEST
) -> Estimator:
    """kfac-jax's estimator with these blocks, for one trace: it keeps what `function` and `refresh` close over.

    Args:
      function: of the parameters, which registers its losses.
      batch_size: the number of examples.
      refresh: whether this step finds new eigenvectors, may be traced.
      precision: of the products with eigenvectors; the eigenvectors themselves are found with the highest.
    """
    layer = functools.partial(_make_block, batch_size=batch_size, refresh=refresh, precision=precision)
    variants = dict.fromkeys(("dense", "repeated_dense", "conv2d", _PRODUCT_OF_PATCHES), layer)
    patterns = (*_patch_patterns(), *tag_graph_matcher.DEFAULT_GRAPH_PATTERNS)
    return kfac_jax.BlockDiagonalCurvature(
        function,
        layer_tag_to_block_ctor={**variants, "scale_and_shift": PlainGradient, "generic": PlainGradient},
        auto_register_kwargs={"graph_patterns": patterns},
    )


def register_squared_error(prediction: Array, targets: Array) -> None:
    """Registers 0.5 (prediction - targets)^2, summed over everything, as a loss."""
    kfac_jax.register_normal_predictive_distribution(prediction, targets, variance=1.0)


def is_normalisation(block: Block) -> bool:
    """Whether kfac-jax recognised a scale and shift."""
    return block.layer_tag_extra_params["meta"].variant == "scale_and_shift"


def _make_block(tag: Tag, batch_size: int, refresh: Array | bool, precision: jax.lax.Precision) -> Block:
    """A block with an eigenbasis if the layer is of a supported kind."""
    supported = _is_supported(tag, batch_size)
    return EigenbasisBlock(tag, batch_size, refresh, precision) if supported else PlainGradient(tag)


def _is_supported(tag: Tag, batch_size: int) -> bool:
    """Whether the layer's outputs are products of rows of examples, in order, and a kernel."""
    layer = tags.layer_eqn_data(tag)
    [inputs], [outputs], (_, *bias) = layer.inputs, layer.outputs, layer.params
    if outputs.aval.shape[0] != batch_size or any(vector.aval.size != _outputs_of(tag) for vector in bias):
        return False
    options, variant = tag.params, tag.params["meta"].variant
    if variant == _PRODUCT_OF_PATCHES:
        return inputs.aval.shape[0] % batch_size == 0
    if variant != "conv2d":
        return inputs.aval.shape[0] == batch_size
    numbers = jax.lax.conv_dimension_numbers(inputs.aval.shape, layer.params[0].aval.shape, ("NHWC", "HWIO", "NHWC"))
    plain = options["feature_group_count"] == options["batch_group_count"] == 1
    return plain and options["dimension_numbers"] == numbers and set(options["lhs_dilation"]) == {1}


def _outputs_of(tag: Tag) -> int:
    """The size of the factor g of a layer."""
    kernel = tags.layer_eqn_data(tag).params[0].aval.shape
    if tag.params["meta"].variant in ("dense", "repeated_dense"):
        contracted = tag.params["dimension_numbers"][0][1]
        return math.prod(kernel[len(contracted) :])
    return kernel[-1]


@functools.cache
def _patch_patterns() -> tuple[Any, ...]:
    """How kfac-jax recognises a convolution that is computed as a product of patches and its reshaped kernel."""

    def convolve(patches: Array, params: list[Array]) -> Array:
        kernel, *bias = params
        images = (patches @ kernel.reshape(-1, kernel.shape[-1])).reshape(2, 3, 3, -1)
        return images + bias[0] if bias else images

    def pattern(with_bias: bool) -> Any:
        params_index = (2, 3) if with_bias else (2,)
        params = [np.zeros((3, 3, 5, 4)), np.zeros(4)]
        return tag_graph_matcher.GraphPattern(
            name=f"{_PRODUCT_OF_PATCHES}_{'with' if with_bias else 'no'}_bias",
            tag_primitive=tags.layer_tag,
            compute_func=convolve,
            parameters_extractor_func=lambda _: {
                "meta": tags.LayerMetaData(
                    variant=_PRODUCT_OF_PATCHES, outputs_index=(0,), inputs_index=(1,), params_index=params_index
                )
            },
            example_args=[np.zeros((18, 45)), params[: len(params_index)]],
        )

    return pattern(True), pattern(False)
