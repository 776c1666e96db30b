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
import numpy as np
from flax import linen as nn
from flax.core import tracers
from jax.interpreters import partial_eval

from imbal_jax.curvature.recognition import Call, Kind, kind_of, product_rows, uses_batch_statistics
from imbal_jax.types import Array, Batch, Params, Prediction

Path = tuple[str, ...]
Predict = Callable[[Params, Batch, Array], Prediction]


class Plan(NamedTuple):
    """Which modules are tapped, found by tracing once without computing."""

    outputs: tuple[jax.ShapeDtypeStruct, ...]  # of the calls, in order
    opaque: Mapping[Path, str]  # modules of unknown kind, taken as a whole, and why
    untapped: Mapping[Path, str]  # parameters that no tap covers, and why
    paths: frozenset[Path]  # of all tapped modules
    absorbed: frozenset[Path]  # see `absorbed_biases`


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
    refused: dict[Path, str] = {}
    while True:
        watcher, known = _Watcher(len(batch.labels), opaque, refused), len(refused)
        loose = _used_parameters(predict, watcher, params, batch, key)
        owners = {leaf: _owner(leaf, watcher) for leaf in loose} if len(refused) == known else {}
        for leaf, owner in owners.items():
            if owner in opaque:
                refused[owner] = f"parameter {'/'.join(leaf)} is used outside of {'/'.join(owner)} as well"
        new = {owner: _reason(owner, leaf) for leaf, owner in owners.items() if owner is not None}
        opaque = {path: why for path, why in (new | opaque).items() if path not in refused}
        if len(refused) == known and not new:
            break
    untapped = {leaf: watcher.refusal(leaf) for leaf in loose}
    used = {path: why for path, why in opaque.items() if path in watcher.tapped}
    outputs = tuple(jax.ShapeDtypeStruct(out.shape, out.dtype) for out in watcher.outputs)
    absorbed = absorbed_biases(predict, params, batch, key) if watcher.couples_examples else frozenset()
    return Plan(outputs, used, untapped, frozenset(watcher.tapped), absorbed)


def absorbed_biases(predict: Predict, params: Params, batch: Batch, key: Array) -> frozenset[Path]:
    """The layers whose bias goes straight into batch statistics, which subtract it, and nowhere else.

    Their gradient of the batch is zero, but not the gradients with respect to the copies that single examples use.

    Args:
      predict: of an objective.
      params: arrays, tracers or ShapeDtypeStructs.
      batch: likewise.
      key: of the step.
    """
    outputs: list[tuple[Path, Array, Array]] = []  # of layers with a bias: as it is, and without the bias
    candidates: set[Path] = set()

    def follow(next_fun: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        module = context.module
        if context.method_name != "__call__" or not args:
            return next_fun(*args, **kwargs)
        if uses_batch_statistics(module, args, kwargs):
            for path, output, without in outputs:
                if output is args[0]:
                    candidates.add(path)
                    return next_fun(without, *args[1:], **kwargs)
        output = next_fun(*args, **kwargs)
        if kind_of(module) == "product" and "bias" in module.variables.get("params", {}):
            outputs.append((tuple(module.path), output, jnp.zeros_like(output) + 0 * jnp.sum(args[0])))
        return output

    used = set(_used_parameters(predict, follow, params, batch, key))
    return frozenset(path for path in candidates if (*path, "bias") not in used)


def tap(predict: Predict, plan: Plan, params: Params, batch: Batch, key: Array) -> Tapped:
    """Predicts with taps on all layers of a plan."""
    calls: list[Call] = []

    def forward(zeros: tuple[Array, ...]) -> tuple[tuple[Array, Array | None], Any]:
        tapper = _Tapper(len(batch.labels), plan, zeros)
        with nn.intercept_methods(tapper):
            prediction = predict(params, batch, key)
        calls.extend(tapper.calls)
        seen = [(_arrays((call.args, call.kwargs)), call.collections) for call in tapper.calls]
        return (prediction.logits, prediction.features), (prediction.aux, seen)

    zeros = tuple(jnp.zeros(out.shape, out.dtype) for out in plan.outputs)
    (logits, features), pullback, (aux, seen) = jax.vjp(forward, zeros, has_aux=True)
    # The calls hold tracers of the differentiation; what came out of it replaces them.
    values = tuple(
        _with_arrays(call, arrays)._replace(collections=collections)
        for call, (arrays, collections) in zip(calls, seen, strict=True)
    )
    return Tapped(Prediction(logits, features, aux), values, lambda cotangents: pullback(cotangents)[0])


class Products(NamedTuple):
    """What the calls of dense layers and convolutions had to do with their kernels, by module."""

    modules: dict[Path, nn.Module]
    rows: dict[Path, list[Array]]  # of every call, [batch, positions, inputs], constant to differentiation
    outputs: dict[Path, list[Array]]  # of every call
    refused: dict[Path, str]  # those whose rows cannot be had, and why


def predict_with_products(
    predict: Predict, params: Params, batch: Batch, key: Array, taps: Mapping[Path, list[Array]]
) -> tuple[Prediction, Products]:
    """Predicts and records what the kernels of dense layers and convolutions multiply; may be differentiated.

    Args:
      predict: of an objective.
      params: of the model.
      batch: of examples.
      key: of the step.
      taps: zeros, added to the outputs of the calls of some modules, by module; their cotangents are the outputs'.
    """
    recorder = _Recorder(len(batch.labels), taps)
    with nn.intercept_methods(recorder):
        prediction = predict(params, batch, key)
    return prediction, recorder.products


def _arrays(arguments: Any) -> list[Array | np.ndarray]:
    """The arrays among arguments, wherever in them."""
    return [leaf for leaf in jax.tree.leaves(arguments) if isinstance(leaf, jax.Array | np.ndarray)]


def _with_arrays(call: Call, arrays: list[Array]) -> Call:
    """The call with other arrays among its arguments."""
    replacement = iter(arrays)
    args, kwargs = jax.tree.map(
        lambda leaf: next(replacement) if isinstance(leaf, jax.Array | np.ndarray) else leaf, (call.args, call.kwargs)
    )
    return call._replace(args=args, kwargs=kwargs)


class _Interceptor:
    """What planning and tapping have in common: the calls of modules that are tapped, in order."""

    def __init__(self, batch_size: int, opaque: Mapping[Path, str]):
        self.batch_size, self.opaque = batch_size, opaque
        self.inside: Path | None = None  # the tapped module whose body is running
        self.trace = tracers.current_trace()

    def __call__(self, next_fun: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        """Handles one method call of one module."""
        module = context.module
        if context.method_name != "__call__":
            return next_fun(*args, **kwargs)
        path = tuple(module.path)
        self.visit(module, path, args, kwargs)
        kind = self.kind(module, path, args) if self.at_top() else None
        if kind is None or not self.may_tap(module, path) or not self.leads_with_batch((args, kwargs)):
            return next_fun(*args, **kwargs)
        collections = {name: value for name, value in module.variables.items() if name != "params"}
        self.inside = path
        try:
            output = next_fun(*args, **kwargs)
        finally:
            self.inside = None
        call = Call(kind, path, module.clone(parent=None), args, kwargs, collections)
        return self.replace(call, output)

    def at_top(self) -> bool:
        """Whether this is no part of a tapped module, nor of what jit, remat, scan or vmap trace within the model."""
        return self.inside is None and tracers.current_trace() == self.trace

    def kind(self, module: nn.Module, path: Path, args: tuple) -> Kind | None:
        """As what a module is tapped, if it is."""
        if path in self.opaque:
            return "opaque"
        # Scopes that modules share hold more than the module's own parameters.
        alone = set(module.variables.get("params", {})) <= {"kernel", "scale", "bias"}
        return kind_of(module) if alone and args and isinstance(args[0], jax.Array) else None

    def may_tap(self, module: nn.Module, path: Path) -> bool:
        """Whether a module of a kind that can be tapped is to be tapped."""
        return True

    def leads_with_batch(self, arguments: Any) -> bool:
        """Whether every array among the arguments has an axis of examples first."""
        shapes = [leaf.shape for leaf in _arrays(arguments)]
        return bool(shapes) and all(len(shape) > 1 and shape[0] == self.batch_size for shape in shapes)

    def visit(self, module: nn.Module, path: Path, args: tuple, kwargs: dict) -> None:
        """Looks at a module before it is applied."""

    def replace(self, call: Call, output: Array) -> Array:
        """The output that the rest of the model sees."""
        raise NotImplementedError


class _Watcher(_Interceptor):
    """Cuts the parameters of tapped modules off from the prediction, so that those used elsewhere remain."""

    def __init__(self, batch_size: int, opaque: Mapping[Path, str], refused: dict[Path, str]):
        super().__init__(batch_size, opaque)
        self.params: Params = {}
        self.visited: set[Path] = set()
        self.tapped: list[Path] = []
        self.outputs: list[Array] = []
        self.refused = refused  # modules that cannot be tapped, and why; new ones are added
        self.couples_examples = False

    def visit(self, module: nn.Module, path: Path, args: tuple, kwargs: dict) -> None:
        """Notes what can be opaque, and what an opaque module may not contain."""
        couples = uses_batch_statistics(module, args, kwargs)
        self.couples_examples |= couples
        if self.at_top():
            self.visited.add(path)
            if path in self.opaque and not self.leads_with_batch((args, kwargs)):
                self.refused[path] = "its inputs have no leading axis of examples"
        elif self.inside is None:
            self.refused[path] = "it is applied inside of a transformation, such as jit, remat, scan or vmap"
        elif self.inside in self.opaque:
            random = isinstance(module, nn.Dropout) and module.rate > 0 and not module.deterministic
            if couples or random:
                self.refused[self.inside] = "it contains batch statistics" if couples else "it contains dropout"
            elif path[: len(self.inside)] != self.inside and jax.tree.leaves(_within(self.params, path)):
                self.refused[self.inside] = f"it contains {'/'.join(path)}, whose parameters are not its own"

    def enter(self, params: Params) -> None:
        """Begins with a trace of a prediction from these parameters."""
        self.params, self.trace = params, tracers.current_trace()

    def may_tap(self, module: nn.Module, path: Path) -> bool:
        """Whether the module's parameters are those that are differentiated, just as they are."""
        own, given = jax.tree.leaves(module.variables.get("params", {})), jax.tree.leaves(_within(self.params, path))
        same = len(own) == len(given) and all(a is b for a, b in zip(own, given, strict=True))
        if given and not same:
            self.refused[path] = "its parameters are computed from others, or not all of them are trained"
        return bool(given) and same

    def replace(self, call: Call, output: Array) -> Array:
        """Zeros that depend on the inputs but not on the parameters."""
        if not isinstance(output, jax.Array) or output.shape[:1] != (self.batch_size,):
            self.refused[call.path] = "its output has no leading axis of examples"
            return output
        self.tapped.append(call.path)
        self.outputs.append(output)
        arrays = _arrays((call.args, call.kwargs))
        touched = jnp.sum(jnp.stack([jnp.sum(array).astype(output.dtype) for array in arrays]))
        return jnp.zeros_like(output) + 0 * touched

    def refusal(self, leaf: Path) -> str:
        """Why a parameter is not tapped."""
        around = [path for path in self.refused if leaf[: len(path)] == path]
        return self.refused[max(around, key=len)] if around else "no module that can be tapped uses it"


class _Tapper(_Interceptor):
    """Adds the zeros and records the calls."""

    def __init__(self, batch_size: int, plan: Plan, zeros: tuple[Array, ...]):
        super().__init__(batch_size, plan.opaque)
        self.plan, self.zeros = plan, zeros
        self.calls: list[Call] = []

    def may_tap(self, module: nn.Module, path: Path) -> bool:
        """As planned."""
        return path in self.plan.paths

    def replace(self, call: Call, output: Array) -> Array:
        """The output with its tap."""
        tapped = output + self.zeros[len(self.calls)]
        self.calls.append(call._replace(bias_is_absorbed=call.path in self.plan.absorbed))
        return tapped


class _Recorder(_Interceptor):
    """Records the rows of "product" modules and adds taps to the outputs of some of them."""

    def __init__(self, batch_size: int, taps: Mapping[Path, list[Array]]):
        super().__init__(batch_size, {})
        self.taps, self.products = taps, Products({}, {}, {}, {})

    def visit(self, module: nn.Module, path: Path, args: tuple, kwargs: dict) -> None:
        """Notes what cannot be recorded."""
        if kind_of(module) == "product" and not self.at_top():
            self.products.refused[path] = "it is applied inside of a transformation, such as jit, remat, scan or vmap"
        elif kind_of(module) == "product" and not self.leads_with_batch((args, kwargs)):
            self.products.refused[path] = "its inputs have no leading axis of examples"

    def replace(self, call: Call, output: Array) -> Array:
        """The output, with its tap where there is one."""
        products, path = self.products, call.path
        if call.kind != "product" or path in products.refused:
            return output
        rows = product_rows(call, jnp.promote_types(output.dtype, jnp.float32))
        products.modules[path] = call.module
        products.rows.setdefault(path, []).append(jax.lax.stop_gradient(rows))
        products.outputs.setdefault(path, []).append(output)
        return output + self.taps[path][len(products.outputs[path]) - 1] if path in self.taps else output


def _used_parameters(predict: Predict, interceptor: Callable, params: Params, batch: Batch, key: Array) -> list[Path]:
    """Paths of the parameters that reach the prediction past an interceptor."""

    def intercepted(params: Params, batch: Batch, key: Array) -> tuple[Array, Array | None]:
        if isinstance(interceptor, _Watcher):
            interceptor.enter(params)
        with nn.intercept_methods(interceptor):
            prediction = predict(params, batch, key)
        return prediction.logits, prediction.features

    jaxpr = jax.make_jaxpr(intercepted)(params, batch, key).jaxpr
    used = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[1]
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    names = [tuple(str(getattr(part, "key", part)) for part in path) for path in paths]
    return [name for name, is_used in zip(names, used, strict=False) if is_used]


def _within(params: Params, path: Path) -> Params:
    """A module's subtree of the parameters, None where it has none."""
    for name in path:
        params = params.get(name) if isinstance(params, Mapping) else None
    return params


def _owner(leaf: Path, watcher: _Watcher) -> Path | None:
    """The smallest module around a parameter that may be made opaque."""
    around = [leaf[:length] for length in range(len(leaf) - 1, 0, -1)]
    return next((path for path in around if path in watcher.visited and path not in watcher.refused), None)


def _reason(owner: Path, leaf: Path) -> str:
    """Why a module is opaque."""
    return f"{'/'.join(owner)}: parameter {'/'.join(leaf)} is used outside of the layers that have taps"
