"""Products with the Hessian, or a matrix like it, of a mean loss over chosen examples, by micro-batches.

The mean loss is sum_n coefficients[n] * losses[n], with the losses of the `Objective` that was trained. Nothing is
re-normalised inside of a micro-batch, so the result does not depend on how the examples are cut, class weights do not
cancel, and with coefficients 1/n_c of the examples of class c and pi_c = n_c / N, sum_c pi_c H_c is the Hessian of the
mean over all. Micro-batches have one shape, filled up with examples of coefficient zero: one compiled program serves
all classes, in constant memory. Their sums are float64.

On the CPU the loop over micro-batches is the host's, because XLA runs convolutions inside of a loop much slower there;
elsewhere it is part of the compiled program that Lanczos runs in.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from imbal_jax.curvature.lanczos import Operator
from imbal_jax.curvature.subsets import Subset
from imbal_jax.errors import InputError, not_found
from imbal_jax.types import Array, Batch, Objective, Params, Prediction, PyTree

MATRICES = ("hessian", "gauss_newton", "empirical_fisher")
DRIVERS = ("auto", "calls", "compiled")


class MicroBatches(NamedTuple):
    """Examples cut into batches of one shape."""

    indices: Array | np.ndarray  # int32 [batches, size], into the data
    copies: Array | np.ndarray  # int32 [batches, size], which augmented copy of the example
    coefficients: Array | np.ndarray  # float64 [batches, size], of its loss; 0 for padding
    filled: Array | np.ndarray | int  # the batches that hold any example; the others are skipped


class Data(NamedTuple):
    """Examples on the device, as their source delivers them."""

    images: PyTree  # [n, ...]
    labels: Array  # int32 [n]


class Operands(NamedTuple):
    """The arrays that a product reads."""

    params: Params
    context: PyTree  # whatever else the objective is made of, such as running statistics
    data: Data
    batches: MicroBatches
    key: Array  # of augmentation and dropout


class Problem(NamedTuple):
    """The functions that a product is made of."""

    objective: Callable[[PyTree], Objective]  # of Operands.context
    prepare: Callable[[Array, PyTree], PyTree]  # (keys [size], raw images [size, ...]) -> the model's inputs
    subset: Subset
    matrix: str = "hessian"
    redraw: bool = False  # other random numbers in every product, as the published script
    dtype: Any = jnp.float32


def check_choice(name: str, value: str, valid: tuple[str, ...]) -> None:
    """Raises InputError unless a value is one of the valid ones."""
    if value not in valid:
        raise InputError(f"{name}: {not_found(value, valid)}")


def make_operator(
    problem: Problem, *, driver: str = "auto", linearise_below: float = 0.0
) -> Callable[[Operands], Operator]:
    """The function from operands to the operator of their matrix; operators of one such function share their programs.

    Args:
      problem: what to differentiate. Its matrix is "hessian"; "gauss_newton" (J^T B J with the Jacobian J of the
        model's outputs and B the Hessian of the losses with respect to these; for cross-entropy it is the Fisher
        matrix); or "empirical_fisher" (sum_n coefficients[n] g_n g_n^T of the losses' gradients g_n).
      driver: "calls": a loop on the host over compiled products of micro-batches; "compiled": all in one program;
        "auto": calls on CPU, compiled elsewhere.
      linearise_below: bytes of intermediate results that may be kept between products with the driver "calls", so that
        only the linear part is computed again; 0 for none.

    Raises:
      InputError: the matrix or the driver does not exist.
    """
    check_choice("matrix", problem.matrix, MATRICES)
    check_choice("driver", driver, DRIVERS)
    if driver == "auto":
        driver = "calls" if jax.default_backend() == "cpu" else "compiled"
    prepared = make_linear(problem)

    def add(operands: Operands, i: Array | int, vectors: Array, draw: Array | int, total: Array) -> Array:
        contribution = _over_probes(prepared(operands, i, draw), vectors)
        with jax.enable_x64(True):
            return total + contribution.astype(jnp.float64)

    def product(operands: Operands, vectors: Array, draw: Array | int) -> Array:
        total = jax.lax.fori_loop(
            0, operands.batches.filled, lambda i, total: add(operands, i, vectors, draw, total), _zeros(vectors)
        )
        return total.astype(problem.dtype)

    host = _HostProducts(prepared, add, problem, linearise_below)

    def operator(operands: Operands) -> Operator:
        if driver == "compiled":
            return Operator(problem.subset.size, problem.dtype, operands, product, traceable=True)
        return Operator(problem.subset.size, problem.dtype, operands, host.of(operands), traceable=False)

    return operator


class _HostProducts:
    """Products by a loop on the host; compiled once for all operands of one shape."""

    def __init__(self, linear: Callable, add: Callable, problem: Problem, linearise_below: float):
        self._add = jax.jit(add, donate_argnums=4)
        self._linearise = jax.jit(lambda operands, i: linear(operands, i, 0))
        self._apply = jax.jit(_add_linear, donate_argnums=2)
        self._problem, self._linearise_below = problem, linearise_below

    def of(self, operands: Operands) -> Callable[[Operands, Array, Array | int], Array]:
        """The product of the given operands."""
        count, kept = int(operands.batches.filled), None
        if self._linearise_below and not self._problem.redraw and self._kept_bytes(operands) <= self._linearise_below:
            kept = [self._linearise(operands, i) for i in range(count)]

        def product(operands: Operands, vectors: Array, draw: Array | int) -> Array:
            total = _zeros(vectors)
            for i in range(count):
                if kept is None:
                    total = self._add(operands, i, vectors, draw, total)
                else:
                    total = self._apply(kept[i], vectors, total)
            return total.astype(self._problem.dtype)

        return product

    def _kept_bytes(self, operands: Operands) -> int:
        """The size of what linearising all micro-batches would keep."""
        one = jax.eval_shape(self._linearise, operands, 0)
        return int(operands.batches.filled) * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(one))


def make_linear(problem: Problem) -> Callable[[Operands, Array | int, Array | int], Callable[[Array], Array]]:
    """The function (operands, micro-batch, draw) -> the linear map of a vector [size] to its product, a pytree."""

    def linear(operands: Operands, i: Array | int, draw: Array | int) -> Callable[[Array], Array]:
        objective = problem.objective(operands.context)
        batch, coefficients, key = _micro_batch(problem, operands, i, draw)

        def outputs(vector: Array) -> tuple[Array, Array | None]:
            prediction = objective.predict(problem.subset.insert(operands.params, vector), batch, key)
            return prediction.logits, prediction.features

        def losses(outputs: tuple[Array, Array | None]) -> Array:
            return objective.losses(Prediction(*outputs), batch)

        at = problem.subset.extract(operands.params)
        # On GPU and TPU default products are too coarse for second derivatives.
        with jax.default_matmul_precision("highest"):
            return _LINEAR[problem.matrix](outputs, losses, coefficients, at)

    return linear


def _hessian(outputs: Callable, losses: Callable, coefficients: Array, at: Array) -> Callable[[Array], Array]:
    """v -> H v, forward over reverse."""

    def mean_loss(vector: Array) -> Array:
        return jnp.vdot(coefficients, losses(outputs(vector)))

    return jax.linearize(jax.grad(mean_loss), at)[1]


def _gauss_newton(outputs: Callable, losses: Callable, coefficients: Array, at: Array) -> Callable[[Array], Array]:
    """v -> J^T B J v."""
    predicted, push = jax.linearize(outputs, at)
    _, pull = jax.vjp(outputs, at)
    bend = jax.linearize(jax.grad(lambda outputs: jnp.vdot(coefficients, losses(outputs))), predicted)[1]
    return jax.tree_util.Partial(_chain, push, bend, pull)


def _empirical_fisher(outputs: Callable, losses: Callable, coefficients: Array, at: Array) -> Callable[[Array], Array]:
    """v -> sum_n coefficients[n] g_n g_n^T v."""
    _, push = jax.linearize(lambda vector: losses(outputs(vector)), at)
    _, pull = jax.vjp(lambda vector: losses(outputs(vector)), at)
    return jax.tree_util.Partial(_chain, push, jax.tree_util.Partial(jnp.multiply, coefficients), pull)


_LINEAR = {"hessian": _hessian, "gauss_newton": _gauss_newton, "empirical_fisher": _empirical_fisher}


def _chain(push: Callable, middle: Callable, pull: Callable, vector: Array) -> Array:
    """A product of three linear maps, the last of them transposed."""
    return pull(middle(push(vector)))[0]


def _micro_batch(problem: Problem, operands: Operands, i: Array | int, draw: Array | int) -> tuple[Batch, Array, Array]:
    """The i-th micro-batch as the model receives it, the coefficients of its losses, and the key of its dropout."""
    indices, copies = operands.batches.indices[i], operands.batches.copies[i]
    key = jax.random.fold_in(operands.key, draw if problem.redraw else 0)
    # A key for every example and copy, so that what is random does not depend on how the examples are cut.
    keys = jax.vmap(lambda index, copy: jax.random.fold_in(jax.random.fold_in(key, index), copy))(indices, copies)
    images, labels = operands.data
    inputs = problem.prepare(keys, jax.tree.map(lambda leaf: leaf[indices], images))
    batch = Batch(jax.tree.map(lambda leaf: _cast(leaf, problem.dtype), inputs), labels[indices])
    # By the first example, not by i: the same mixed batch stands at another place among those of another class.
    return batch, operands.batches.coefficients[i].astype(problem.dtype), jax.random.fold_in(keys[0], 1)


def _cast(leaf: Array, dtype: Any) -> Array:
    """Numbers in the type of the computation; whole ones, such as lengths, as they are."""
    return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def _over_probes(linear: Callable[[Array], Array], vectors: Array) -> Array:
    """The map of each vector [probes, size]; a single one without vmap, which slows convolutions down."""
    return linear(vectors[0])[None] if len(vectors) == 1 else jax.vmap(linear)(vectors)


def _add_linear(linear: Callable[[Array], Array], vectors: Array, total: Array) -> Array:
    """The sum so far and the map of each vector, in float64."""
    mapped = _over_probes(linear, vectors)
    with jax.enable_x64(True):
        return total + mapped.astype(jnp.float64)


def _zeros(vectors: Array) -> Array:
    """An empty sum."""
    with jax.enable_x64(True):
        return jnp.zeros(vectors.shape, jnp.float64)
