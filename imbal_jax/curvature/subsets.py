"""Subsets of a network's parameters as one vector: what a Hessian is taken with respect to."""

import fnmatch
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from imbal_jax.errors import InputError, not_found
from imbal_jax.types import Array, Params

# Subsets by name, as patterns of parameter paths.
NAMED_SUBSETS = {
    "all": ("*",),
    "last_layer": ("classifier/*",),
    "lora_and_head": ("*lora*", "*projector/*", "*classifier/*"),
}


class Subset(NamedTuple):
    """Some of the leaves of a parameter tree, in the tree's order."""

    paths: tuple[str, ...]  # "stage1_block1/norm1/scale"
    sizes: tuple[int, ...]

    @property
    def size(self) -> int:
        """The number of parameters."""
        return sum(self.sizes)

    def extract(self, params: Params) -> Array:
        """The parameters of the subset as one vector [size]."""
        leaves = dict(_named_leaves(params))
        return jnp.concatenate([jnp.ravel(leaves[path]) for path in self.paths])

    def insert(self, params: Params, vector: Array) -> Params:
        """The whole tree, with the subset's parameters taken from a vector [size]."""
        starts = dict(zip(self.paths, _starts(self.sizes), strict=True))

        def put(path: tuple, leaf: Array) -> Array:
            start = starts.get(_name(path))
            return leaf if start is None else vector[start : start + leaf.size].reshape(leaf.shape)

        return jax.tree_util.tree_map_with_path(put, params)


def select_parameters(params: Params, which: str = "all") -> Subset:
    """Chooses parameters by name.

    Args:
      params: a tree of arrays or shapes.
      which: a name in `NAMED_SUBSETS`, or patterns of paths separated by commas, in which * stands for anything:
        "stage3*,classifier/*". Every pattern must find a parameter.

    Raises:
      InputError: a pattern finds nothing.
    """
    leaves = _named_leaves(params)
    patterns = NAMED_SUBSETS.get(which) or tuple(part.strip() for part in which.split(",") if part.strip())
    chosen = set()
    for pattern in patterns or (which,):
        found = {path for path, _ in leaves if fnmatch.fnmatchcase(path, pattern)}
        # A head may lack a projector, but a network without LoRA has no subset of that name.
        if not found and pattern != "*projector/*":
            valid = (*NAMED_SUBSETS, *(path for path, _ in leaves))
            raise InputError(f"parameters: {not_found(pattern, valid)[:500]}; * in a pattern stands for anything")
        chosen |= found
    pairs = [(path, math.prod(leaf.shape)) for path, leaf in leaves if path in chosen]
    return Subset(tuple(path for path, _ in pairs), tuple(size for _, size in pairs))


def _named_leaves(params: Params) -> list[tuple[str, Array]]:
    """The leaves with their paths."""
    return [(_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)]


def _name(path: tuple) -> str:
    """A path as text."""
    return "/".join(str(key.key) for key in path)


def _starts(sizes: tuple[int, ...]) -> list[int]:
    """Where each of several consecutive pieces begins."""
    return [sum(sizes[:i]) for i in range(len(sizes))]
