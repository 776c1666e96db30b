"""One backward pass that sees every layer: per-example gradients without differentiating example by example.

Every layer's output gets zeros added, with respect to which the losses are differentiated. What comes back are the
cotangents of the outputs, of all layers and examples at once; with the recorded inputs they give each example's
gradient. Under batch statistics this is the decomposition of the true backward pass: the gradient with respect to the
copy of the parameters that example n uses, which sums to the batch's gradient over the examples.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.interpreters import partial_eval

from imbal_jax.curvature.recognition import Call, kind_of, uses_batch_statistics
from imbal_jax.types import Array, Batch, Params, Prediction

Path = tuple[str, ...]
Predict = Callable[[Params, Batch, Array], Prediction]


class Plan(NamedTuple):
    """Which modules are tapped, found by tracing once without computing."""

    outputs: tuple[jax.ShapeDtypeStruct, ...]  # of the calls, in order
    opaque: Mapping[Path, str]  # modules of unknown kind, taken as a whole, and why
    untapped: Mapping[Path, str]  # parameters that no tap covers, and why
    paths: frozenset[Path]  # of all tapped modules
    couples_examples: bool  # some layer takes statistics over the batch


class Tapped(NamedTuple):
    """A prediction and what the taps saw of it."""

    prediction: Prediction
    calls: tuple[Call, ...]
    pullback: Callable[[tuple[Array, Array | None]], tuple[Array, ...]]  # (logits', features') -> outputs' of the calls


def plan_taps(predict: Predict, params: Params, batch: Batch, key: Array) -> Plan:
    """Finds the modules to tap so that every parameter is covered, if that is possible.

    Dense layers, convolutions and normalisations are known. A parameter that is used anywhere else makes the smallest
    module around it opaque: its gradients are then taken example by example, if it treats examples one by one.

    Args:
      predict: of an objective.
      params: arrays, tracers or ShapeDtypeStructs.
      batch: likewise.
      key: of the step.
    """
    opaque: dict[Path, str] = {}
    while True:
        watcher = _Watcher(len(batch.labels), opaque)
        loose = _loose_parameters(predict, watcher, params, batch, key)
        opaque = {path: reason for path, reason in opaque.items() if path not in watcher.refused}
        owners = {leaf: _owner(leaf, watcher) for leaf in loose}
        new = {owner: _reason(owner, leaf) for leaf, owner in owners.items() if owner is not None}
        if not set(new) - set(opaque):
            break
        opaque |= {owner: why for owner, why in new.items() if owner not in opaque}
    untapped = {leaf: watcher.refusal(leaf) for leaf in loose}
    used = {path: why for path, why in opaque.items() if path in watcher.tapped}
    outputs = tuple(jax.ShapeDtypeStruct(out.shape, out.dtype) for out in watcher.outputs)
    return Plan(outputs, used, untapped, frozenset(watcher.tapped), watcher.couples_examples)


def tap(predict: Predict, plan: Plan, params: Params, batch: Batch, key: Array) -> Tapped:
    """Predicts with taps on all layers of a plan."""
    calls: list[Call] = []

    def forward(zeros: tuple[Array, ...]) -> tuple[tuple[Array, Array | None], Any]:
        tapper = _Tapper(len(batch.labels), plan.opaque, zeros)
        with nn.intercept_methods(tapper):
            prediction = predict(params, batch, key)
        calls.extend(tapper.calls)
        seen = [(_arrays(call.args), call.collections) for call in tapper.calls]
        return (prediction.logits, prediction.features), (prediction.aux, seen)

    zeros = tuple(jnp.zeros(out.shape, out.dtype) for out in plan.outputs)
    (logits, features), pullback, (aux, seen) = jax.vjp(forward, zeros, has_aux=True)
    # The calls hold tracers of the differentiation; what came out of it replaces them.
    values = tuple(
        call._replace(args=_with_arrays(call.args, arrays), collections=collections)
        for call, (arrays, collections) in zip(calls, seen, strict=True)
    )
    return Tapped(Prediction(logits, features, aux), values, lambda cotangents: pullback(cotangents)[0])


def _arrays(args: tuple) -> list[Array]:
    """The arrays among arguments."""
    return [arg for arg in args if isinstance(arg, jax.Array)]


def _with_arrays(args: tuple, arrays: list[Array]) -> tuple:
    """The arguments with other arrays."""
    replacement = iter(arrays)
    return tuple(next(replacement) if isinstance(arg, jax.Array) else arg for arg in args)


class _Interceptor:
    """What planning and tapping have in common: the calls of modules that are tapped, in order."""

    def __init__(self, batch_size: int, opaque: Mapping[Path, str]):
        self.batch_size, self.opaque = batch_size, opaque
        self.inside: Path | None = None  # the tapped module whose body is running

    def __call__(self, next_fun: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        """Handles one method call of one module."""
        module = context.module
        if context.method_name != "__call__":
            return next_fun(*args, **kwargs)
        path = tuple(module.path)
        kind = "opaque" if path in self.opaque else kind_of(module)
        self.visit(module, path, args, kwargs)
        if self.inside is not None or kind is None or not self.leads_with_batch(args):
            return next_fun(*args, **kwargs)
        collections = {name: value for name, value in module.variables.items() if name != "params"}
        self.inside = path
        try:
            output = next_fun(*args, **kwargs)
        finally:
            self.inside = None
        call = Call(kind, path, module.clone(parent=None), args, kwargs, collections)
        return self.replace(call, output)

    def leads_with_batch(self, args: tuple) -> bool:
        """Whether every array among the arguments has an axis of examples first."""
        shapes = [arg.shape for arg in _arrays(args)]
        return bool(shapes) and all(len(shape) > 1 and shape[0] == self.batch_size for shape in shapes)

    def visit(self, module: nn.Module, path: Path, args: tuple, kwargs: dict) -> None:
        """Looks at a module before it is applied."""

    def replace(self, call: Call, output: Array) -> Array:
        """The output that the rest of the model sees."""
        raise NotImplementedError


class _Watcher(_Interceptor):
    """Cuts the parameters of tapped modules off from the prediction, so that those used elsewhere remain."""

    def __init__(self, batch_size: int, opaque: Mapping[Path, str]):
        super().__init__(batch_size, opaque)
        self.visited: set[Path] = set()
        self.tapped: list[Path] = []
        self.outputs: list[Array] = []
        self.refused: dict[Path, str] = {}  # modules that cannot be opaque, and why
        self.couples_examples = False

    def visit(self, module: nn.Module, path: Path, args: tuple, kwargs: dict) -> None:
        """Notes what an opaque module may not contain."""
        self.visited.add(path)
        couples = uses_batch_statistics(module, args, kwargs)
        self.couples_examples |= couples
        random = isinstance(module, nn.Dropout) and module.rate > 0 and not module.deterministic
        if path in self.opaque and not self.leads_with_batch(args):
            self.refused[path] = "its inputs have no leading axis of examples"
        if self.inside is not None and self.inside in self.opaque and (couples or random):
            self.refused[self.inside] = "it contains batch statistics" if couples else "it contains dropout"

    def replace(self, call: Call, output: Array) -> Array:
        """Zeros that depend on the inputs but not on the parameters."""
        if not isinstance(output, jax.Array) or output.shape[:1] != (self.batch_size,):
            self.refused[call.path] = "its output has no leading axis of examples"
            return output
        self.tapped.append(call.path)
        self.outputs.append(output)
        touched = jnp.sum(jnp.stack([jnp.sum(arg).astype(output.dtype) for arg in _arrays(call.args)]))
        return jnp.zeros_like(output) + 0 * touched

    def refusal(self, leaf: Path) -> str:
        """Why a parameter is not tapped."""
        around = [path for path in self.refused if leaf[: len(path)] == path]
        return self.refused[max(around, key=len)] if around else "no module that can be tapped uses it"


class _Tapper(_Interceptor):
    """Adds the zeros and records the calls."""

    def __init__(self, batch_size: int, opaque: Mapping[Path, str], zeros: tuple[Array, ...]):
        super().__init__(batch_size, opaque)
        self.zeros = zeros
        self.calls: list[Call] = []
        self.last: list[Any] = []  # outputs as the model sees them

    def visit(self, module: nn.Module, path: Path, args: tuple, kwargs: dict) -> None:
        """Marks the bias of a layer whose output goes straight into batch statistics."""
        if uses_batch_statistics(module, args, kwargs):
            for i, output in enumerate(self.last):
                if output is args[0]:
                    self.calls[i] = self.calls[i]._replace(bias_is_absorbed=True)

    def replace(self, call: Call, output: Array) -> Array:
        """The output with its tap."""
        tapped = output + self.zeros[len(self.calls)]
        self.calls.append(call)
        self.last.append(tapped)
        return tapped


def _loose_parameters(predict: Predict, watcher: _Watcher, params: Params, batch: Batch, key: Array) -> list[Path]:
    """Paths of the parameters that reach the prediction past all taps."""

    def cut(params: Params, batch: Batch, key: Array) -> tuple[Array, Array | None]:
        with nn.intercept_methods(watcher):
            prediction = predict(params, batch, key)
        return prediction.logits, prediction.features

    jaxpr = jax.make_jaxpr(cut)(params, batch, key).jaxpr
    used = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[1]
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    names = [tuple(str(getattr(part, "key", part)) for part in path) for path in paths]
    return [name for name, is_used in zip(names, used, strict=False) if is_used]


def _owner(leaf: Path, watcher: _Watcher) -> Path | None:
    """The smallest module around a parameter that may be made opaque."""
    around = [leaf[:length] for length in range(len(leaf) - 1, 0, -1)]
    return next((path for path in around if path in watcher.visited and path not in watcher.refused), None)


def _reason(owner: Path, leaf: Path) -> str:
    """Why a module is opaque."""
    return f"{'/'.join(owner)}: parameter {'/'.join(leaf)} is used outside of the layers that have taps"
