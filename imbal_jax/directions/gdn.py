"""Gradient Descent on Neurons (GDN), also known as FOOF: gradients divided by the second moments of a layer's inputs.

A layer multiplies rows x_nt, example n at position t, by a kernel. The direction for the kernel [inputs, outputs] is

    (A / k + damping I)^-1 G,    A <- decay A + (1 - decay) S,    k <- decay k + (1 - decay),

with the gradient G of the mean loss, S the sum of x_nt x_nt^T over a batch, and k, from 0, the weight that A has
gathered. For small damping the outputs of the layer then follow their own gradients as closely as the layer allows.
Labels do not enter, nor do class weights, except through G.

Source: Benzing 2022, "Gradient Descent on Neurons and its Link to Approximate Second-Order Optimization", where it is
called FOOF; with ``convention="published", biases="frozen", cold_start="zero"`` it is the authors' code.
"""

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from imbal_jax.curvature.periodic import uniform
from imbal_jax.curvature.taps import Path, plan_taps, predict_with_products
from imbal_jax.errors import InputError, check_number, not_found
from imbal_jax.types import Array, Batch, Direction, Evidence, Objective, Params, Proposal, PyTree, Structure

_log = logging.getLogger(__name__)

CONVENTIONS = ("published", "sum", "mean")
POSITIONS = ("sum", "mean")
BIASES = ("gradient", "frozen", "joint")
COLD_STARTS = ("first_batch", "zero")
# From so many rows and inputs only the blocks of S on and above the diagonal are computed, of four by four. Measured on
# two CPU cores: 2048 rows of 2304 inputs take 0.75 of the time, but 512 of 4608 take 1.15 for joining the blocks.
_ROWS_WORTH_CUTTING, _INPUTS_WORTH_CUTTING, _BLOCKS = 1024, 512, 4
_HIGHEST = jax.lax.Precision.HIGHEST  # on GPU and TPU the default is too coarse for a matrix that is to be inverted


class LayerCurvature(NamedTuple):
    """What GDN keeps of a layer from step to step; a = inputs of the kernel, and one more for a joint bias."""

    matrix: Array  # A, [a, a]
    weight: Array  # k, a scalar
    inverse: Array  # (A / k + damping I)^-1 of the last inversion, [a, a]; zeros before the first


class GDNState(NamedTuple):
    """What GDN keeps from step to step."""

    step: Array  # int32, steps taken
    layers: dict[str, LayerCurvature]  # by the path of the module, such as "stage1/convolution"


def gdn(
    structure: Structure,
    *,
    damping: float = 100.0,
    convention: str = "published",
    positions: str = "sum",
    decay: float = 0.95,
    period: int = 100,
    cold_start: str = "first_batch",
    biases: str = "gradient",
) -> Direction:
    """Preconditioning by the inverse second moments of the inputs of dense layers and convolutions.

    Rows of a layer that is applied several times in a step add up. Layers of other kinds, and those whose inputs cannot
    be seen (without a leading axis of examples, or inside of remat, scan or vmap), have no matrix; what becomes of
    their parameters `biases` says, and the log names them. With no layer at all the direction is the plain gradient.

    Where damping dominates the direction is G / damping: the ratio of learning rate to damping is what to search first
    (Benzing 2022). The published learning rate is 30.

    A step multiplies rows with themselves and with the inverse, and holds two matrices per layer as large as its inputs
    squared. On two CPU cores, where inputs are as many as outputs or more, it takes three to four times as long as the
    gradient's: 3.7 for VGG11 with batch normalisation at batch 32, 3.2 for an MLP 3072-2048-2048-10 at batch 256.

    Args:
      structure: of the run; its layers are those the state has.
      damping: > 0, in the units of A / k. In float32 it should stay well above 1e-6 of the largest eigenvalue of A / k,
        or the factorisation fails and the direction is NaN.
      convention: S sums over the examples of a batch ("sum") or takes their mean ("mean"); "published" sums in dense
        layers and takes the mean in convolutions.
      positions: of sequences in dense layers, and of convolutions: their "sum" (published) or "mean" in S.
      decay: the share of the old in A, in [0, 1).
      period: the inverse is computed after every period-th step, >= 1, and used from the next step on.
      cold_start: "first_batch" also computes the inverse from the first batch, before the first step; "zero"
        (published) leaves the kernels where they are for the first `period` steps.
      biases: "gradient", the plain gradient for all parameters without a matrix, biases and normalisations among them;
        "frozen" (published), zeros for all of them; "joint", a one appended to the rows, so that kernel and bias of a
        layer share a matrix, and the plain gradient for the others.

    Returns:
      A direction; several seeds at once (`jax.vmap`) invert together.

    Raises:
      InputError: an option is out of its range, or nothing would move.
    """
    options = _Options(damping, convention, positions, decay, period, cold_start, biases)
    _check(options)
    layers, covered = _layers_of_run(structure, biases)

    def init(params: Params) -> GDNState:
        del params
        fresh = {
            layer.name: LayerCurvature(
                jnp.zeros((layer.inputs,) * 2, layer.dtype),
                jnp.zeros((), layer.dtype),
                jnp.zeros((layer.inputs,) * 2, layer.dtype),
            )
            for layer in layers.values()
        }
        return GDNState(jnp.int32(0), fresh)

    def propose(objective: Objective, params: Params, batch: Batch, state: GDNState, key: Array) -> Proposal:
        seen = _find_layers(objective, params, batch, key, biases)[0]
        if seen.keys() != layers.keys():
            raise InputError(f"gdn: expected the layers that it was built for, {_names(layers)}, got {_names(seen)}")
        tapped = [path for path, layer in seen.items() if path in covered and layer.has_few_rows]
        backward = _differentiate(objective, params, batch, key, seen, tapped)
        first = state.step == 0 if cold_start == "first_batch" else jnp.zeros((), bool)
        due = uniform(first | ((state.step + 1) % period == 0))
        kept, direction = {}, {} if biases == "frozen" else dict(backward.gradient)
        for path, layer in seen.items():
            old = state.layers[layer.name]
            layer = layer._replace(dtype=old.matrix.dtype)
            moments = _second_moments(layer, backward.rows[path], len(batch.labels), options)
            new = _invert_if(due, _accumulate(old, moments, decay), damping)
            direction |= _precondition_by(uniform(first), path, layer, new.inverse, old.inverse, backward)
            kept[layer.name] = new
        tree = jax.tree_util.tree_map_with_path(lambda p, leaf: direction.get(_path(p), jnp.zeros_like(leaf)), params)
        return Proposal(tree, backward.evidence, GDNState(state.step + 1, kept))

    return Direction(init, propose)


class _Options(NamedTuple):
    """The options of `gdn`."""

    damping: float
    convention: str
    positions: str
    decay: float
    period: int
    cold_start: str
    biases: str


class _Layer(NamedTuple):
    """What is known of a layer before anything is computed."""

    name: str
    is_dense: bool
    has_joint_bias: bool
    inputs: int  # a, the length of a row, with the one for a joint bias
    dtype: jnp.dtype  # of the matrices
    outputs: list[jax.ShapeDtypeStruct]  # of its calls
    has_few_rows: bool  # fewer, over all calls, than outputs of the kernel


class _Backward(NamedTuple):
    """What one forward and backward pass gives; leaves and layers by path."""

    gradient: dict[Path, Any]  # of the mean loss
    cotangents: dict[Path, list[Array]]  # of the outputs of the tapped layers' calls
    evidence: Evidence
    rows: dict[Path, list[Array]]  # of the layers' calls, [batch, positions, a]


def _check(options: _Options) -> None:
    """Raises InputError for an option that is out of its range."""
    check_number("damping", options.damping, "> 0")
    check_number("decay", options.decay, "in [0, 1)")
    if not isinstance(options.period, int) or isinstance(options.period, bool) or options.period < 1:
        raise InputError(f"period: expected a whole number >= 1, got {options.period!r}")
    for name, valid in (
        ("convention", CONVENTIONS),
        ("positions", POSITIONS),
        ("cold_start", COLD_STARTS),
        ("biases", BIASES),
    ):
        if getattr(options, name) not in valid:
            raise InputError(f"{name}: {not_found(getattr(options, name), valid)}")


def _find_layers(
    objective: Objective, params: Params, batch: Batch, key: Array, biases: str
) -> tuple[dict[Path, _Layer], dict[Path, str]]:
    """The layers with a matrix, by tracing shapes only, and those that cannot have one, with the reason."""
    layers: dict[Path, _Layer] = {}
    refused: dict[Path, str] = {}
    shapes = _by_path(params)

    def trace(params: Params, batch: Batch, key: Array) -> None:
        products = predict_with_products(objective.predict, params, batch, key, {})[1]
        refused.update(products.refused)
        for path, module in products.modules.items():
            rows, outputs = products.rows[path], products.outputs[path]
            width = rows[0].shape[-1]
            kernel: Any = shapes.get((*path, "kernel"))
            if kernel is None or kernel.size != width * outputs[0].shape[-1]:
                refused[path] = "the parameters have no kernel of its shape at its place"
            if path in refused:
                continue
            joint = biases == "joint" and (*path, "bias") in shapes
            count = sum(each.shape[0] * each.shape[1] for each in rows)
            layers[path] = _Layer(
                name="/".join(path),
                is_dense=isinstance(module, nn.Dense),
                has_joint_bias=joint,
                inputs=width + joint,
                dtype=jnp.promote_types(kernel.dtype, jnp.float32),
                outputs=[jax.ShapeDtypeStruct(each.shape, each.dtype) for each in outputs],
                has_few_rows=count < kernel.shape[-1],
            )

    jax.eval_shape(trace, params, batch, key)
    return layers, refused


def _layers_of_run(structure: Structure, biases: str) -> tuple[dict[Path, _Layer], set[Path]]:
    """The layers of a run, and those whose kernels act through their recorded outputs alone; logs the others.

    Raises:
      InputError: there is no layer and all else is frozen.
    """
    objective, params, batch, *_ = structure
    key = jax.eval_shape(lambda: jax.random.key(0))
    layers, refused = _find_layers(objective, params, batch, key, biases)
    fate = "no step" if biases == "frozen" else "the plain gradient"
    if not layers:
        if biases == "frozen":
            raise InputError("biases: 'frozen' moves nothing, because the model has no dense layers or convolutions")
        _log.warning("gdn: the model has no dense layers or convolutions; %s for all parameters", fate)
        return {}, set()
    plans = []  # a plan is no tree of arrays
    jax.eval_shape(lambda *shapes: plans.append(plan_taps(objective.predict, *shapes)), params, batch, key)
    strangers = refused.keys() | plans[0].opaque.keys() | {path[:-1] for path in plans[0].untapped}
    known = plans[0].paths - strangers
    preconditioned = {(*path, "kernel") for path in layers}
    preconditioned |= {(*path, "bias") for path, layer in layers.items() if layer.has_joint_bias}
    others = [path for path in _by_path(params) if path not in preconditioned]
    expected = [path for path in others if path[:-1] in known | layers.keys()]
    unknown = [path for path in others if path not in expected]
    if expected:
        _log.info("gdn: %s for biases and normalisations: %s", fate, _names(expected))
    if unknown:
        reasons = "".join(f"; {'/'.join(path)}: {reason}" for path, reason in refused.items())
        _log.warning("gdn: %s for parameters outside of known layers: %s%s", fate, _names(unknown), reasons)
    return layers, {path for path in layers if path in known}


def _differentiate(
    objective: Objective, params: Params, batch: Batch, key: Array, layers: dict[Path, _Layer], tapped: list[Path]
) -> _Backward:
    """The gradient of the mean loss, with the rows of all layers and the output cotangents of the tapped ones."""

    def loss(params: Params, taps: dict[Path, list[Array]]) -> tuple[Array, tuple[Evidence, dict]]:
        prediction, products = predict_with_products(objective.predict, params, batch, key, taps)
        losses = objective.losses(prediction, batch)
        return jnp.mean(losses), (Evidence(losses, prediction), {path: products.rows[path] for path in layers})

    taps = {path: [jnp.zeros(out.shape, out.dtype) for out in layers[path].outputs] for path in tapped}
    (gradient, cotangents), (evidence, rows) = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, taps)
    for path in (path for path, layer in layers.items() if layer.has_joint_bias):
        rows[path] = [jnp.pad(each, ((0, 0), (0, 0), (0, 1)), constant_values=1) for each in rows[path]]
    return _Backward(_by_path(gradient), cotangents, evidence, rows)


def _second_moments(layer: _Layer, rows: list[Array], examples: int, options: _Options) -> Array:
    """S: x x^T, summed over calls, and summed or averaged over examples and positions."""
    per_example = options.convention == "mean" or (options.convention == "published" and not layer.is_dense)
    total = jnp.zeros((layer.inputs, layer.inputs), layer.dtype)
    for each in rows:
        count = (examples if per_example else 1) * (each.shape[1] if options.positions == "mean" else 1)
        total += _product_with_itself(each.reshape(-1, layer.inputs).astype(layer.dtype)) / count
    return total


def _product_with_itself(rows: Array) -> Array:
    """X^T X of [rows, a]; the matrix is symmetric, and of a large one little more than half is computed."""
    if rows.shape[0] < _ROWS_WORTH_CUTTING or rows.shape[1] < _INPUTS_WORTH_CUTTING:
        return jnp.matmul(rows.T, rows, precision=_HIGHEST)
    pieces = jnp.array_split(rows, _BLOCKS, axis=1)
    blocks: list[list[Array]] = [[] for _ in pieces]
    for i, one in enumerate(pieces):
        for j, other in enumerate(pieces):
            blocks[i].append(jnp.matmul(one.T, other, precision=_HIGHEST) if i <= j else blocks[j][i].T)
    return jnp.block(blocks)


def _accumulate(curvature: LayerCurvature, moments: Array, decay: float) -> LayerCurvature:
    """One step of the moving average, whose weight grows from 0 to 1."""
    matrix = decay * curvature.matrix + (1 - decay) * moments
    return curvature._replace(matrix=matrix, weight=decay * curvature.weight + (1 - decay))


def _invert_if(due: Array, curvature: LayerCurvature, damping: float) -> LayerCurvature:
    """The curvature with a new inverse, if it is time for one."""

    def invert(curvature: LayerCurvature) -> Array:
        identity = jnp.eye(len(curvature.matrix), dtype=curvature.matrix.dtype)
        damped = curvature.matrix / curvature.weight + damping * identity
        factor = jnp.linalg.cholesky(damped, symmetrize_input=False)
        root = jax.scipy.linalg.solve_triangular(factor, identity, lower=True)
        # LAPACK's results are column-major, and a cond that returns one transposes the old inverse at every step; the
        # product is row-major. A product with the inverse is at least twice as fast as two triangular solutions.
        return jnp.matmul(root.T, root, precision=_HIGHEST)

    inverse = jax.lax.cond(due, invert, lambda curvature: curvature.inverse, curvature)
    return curvature._replace(inverse=inverse)


def _precondition_by(
    first: Array, path: Path, layer: _Layer, new: Array, old: Array, backward: _Backward
) -> dict[Path, Array]:
    """The direction by the old inverse, but in the first step by the new one.

    The products are what the cond chooses, not the inverses, because it would copy the one that it chose.
    """
    return jax.lax.cond(
        first,
        lambda new, old: _precondition(path, layer, new, backward),
        lambda new, old: _precondition(path, layer, old, backward),
        new,
        old,
    )


def _precondition(path: Path, layer: _Layer, inverse: Array, backward: _Backward) -> dict[Path, Array]:
    """The direction for the kernel of a layer, and for its bias where they share the matrix."""
    kernel: Any = backward.gradient[*path, "kernel"]
    bias: Any = backward.gradient.get((*path, "bias"))
    outputs = kernel.shape[-1]
    if path in backward.cotangents:
        # P G = (X P)^T dY costs less than P G where there are fewer rows than outputs; G itself is then not needed.
        joined = jnp.zeros((layer.inputs, outputs), layer.dtype)
        for each, cotangents in zip(backward.rows[path], backward.cotangents[path], strict=True):
            scaled = jnp.matmul(each.reshape(-1, layer.inputs).astype(layer.dtype), inverse, precision=_HIGHEST)
            joined += jnp.matmul(scaled.T, cotangents.reshape(-1, outputs).astype(layer.dtype), precision=_HIGHEST)
    else:
        gradient = kernel.reshape(-1, outputs).astype(layer.dtype)
        if layer.has_joint_bias:
            gradient = jnp.concatenate([gradient, bias[None].astype(layer.dtype)])
        joined = jnp.matmul(inverse, gradient, precision=_HIGHEST)
    result = {(*path, "kernel"): joined[: kernel.size // outputs].reshape(kernel.shape).astype(kernel.dtype)}
    if layer.has_joint_bias:
        result[*path, "bias"] = joined[-1].astype(bias.dtype)
    return result


def _path(keys: tuple) -> Path:
    """The path of a leaf as Flax names it."""
    return tuple(str(getattr(key, "key", key)) for key in keys)


def _by_path(tree: PyTree) -> dict[Path, Any]:
    """The leaves by their paths."""
    return {_path(keys): leaf for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _names(paths: Mapping | list[Path]) -> str:
    """Paths as a person reads them."""
    return ", ".join("/".join(path) for path in paths)
