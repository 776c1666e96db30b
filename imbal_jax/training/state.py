"""The state of a run, and the keys it draws."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from imbal_jax.training.objective import zeros_like_inputs
from imbal_jax.types import Array, Direction, Params, PyTree


class Keys(NamedTuple):
    """The keys of one seed: everything random is a function of them, the epoch and the step."""

    init: Array
    order: Array  # folded with the epoch
    step: Array  # folded with the step


class TrainState(NamedTuple):
    """Everything that training changes."""

    step: Array  # int32, steps taken
    params: Params
    model_state: PyTree  # running statistics
    opt_state: PyTree
    direction_state: PyTree
    example_weights: PyTree = ()  # float32 [n], of the training examples; empty unless the correction remembers them
    # float32, of the updates; empty unless runs with other learning rates are trained together with this one
    learning_rate_factor: PyTree = ()


class _Forgetful(NamedTuple):
    """A state without example weights: the fields of checkpoints where there are none, also of earlier versions."""

    step: Array
    params: Params
    model_state: PyTree
    opt_state: PyTree
    direction_state: PyTree


class _Remembering(NamedTuple):
    """A state with example weights: the fields of checkpoints where there are some."""

    step: Array
    params: Params
    model_state: PyTree
    opt_state: PyTree
    direction_state: PyTree
    example_weights: PyTree


def stored_form(state: TrainState) -> PyTree:
    """What a checkpoint holds of a state; `TrainState(*stored)` is the state again, but for its learning rate's factor.

    The factor is left out because it says how runs are grouped, which may be otherwise when they continue.
    """
    forgetful = isinstance(state.example_weights, tuple)
    return _Forgetful(*state[:-2]) if forgetful else _Remembering(*state[:-1])


def keys_of(seed: Array | int) -> Keys:
    """The keys of a seed; works under vmap."""
    return Keys(*jax.random.split(jax.random.key(seed), 3))


def initial_state(
    model: nn.Module,
    direction: Direction,
    step_rule: optax.GradientTransformation,
    input_shape: Any,
    seed: Array | int,
    constants: PyTree | None = None,
    pretrained: PyTree | None = None,
    remembered_examples: int = 0,
) -> TrainState:
    """A fresh state.

    Args:
      model: called as model.apply(variables, inputs, train=...) -> (logits, features).
      direction: its state is initialised with the parameters.
      step_rule: likewise.
      input_shape: of one example, see `imbal_jax.training.objective.inputs_like`.
      seed: of the run.
      constants: collections of variables that never change and are no part of the state.
      pretrained: variables by collection that take the place of the model's random ones; those it lacks stay random.
      remembered_examples: training examples, where the correction has a factor for each; they begin at 1.
    """
    variables = model.init(keys_of(seed).init, zeros_like_inputs(input_shape, 1), train=False)
    variables = _replaced(variables, pretrained or {})
    params = variables["params"]
    model_state = {name: value for name, value in variables.items() if name not in ("params", *(constants or ()))}
    weights = jnp.ones(remembered_examples) if remembered_examples else ()
    return TrainState(jnp.int32(0), params, model_state, step_rule.init(params), direction.init(params), weights)


def _replaced(variables: PyTree, given: PyTree) -> PyTree:
    """Nested dictionaries with the leaves of others in the place of their own."""
    if not isinstance(variables, Mapping):
        return given
    return {name: _replaced(each, given[name]) if name in given else each for name, each in variables.items()}


def split_seeds(tree: PyTree, num_seeds: int) -> list[PyTree]:
    """One tree per seed; a single seed has no leading axis."""
    if num_seeds == 1:
        return [tree]
    return [jax.tree.map(lambda leaf: leaf[i], tree) for i in range(num_seeds)]  # noqa: B023


def join_seeds(trees: list[PyTree]) -> PyTree:
    """The inverse of `split_seeds`, in host memory."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees) if len(trees) > 1 else trees[0]


def count_parameters(params: Params, frozen: frozenset[str] = frozenset()) -> int:
    """The number of parameters but for those of some layers, by their names at the top of the tree."""
    return sum(leaf.size for name, each in params.items() if name not in frozen for leaf in jax.tree.leaves(each))
