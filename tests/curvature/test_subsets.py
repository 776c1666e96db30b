"""Subsets of parameters: patterns, order, and the way there and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from imbal_jax.curvature.subsets import NAMED_SUBSETS, select_parameters
from imbal_jax.errors import InputError

SHAPES = {
    "stage1_block1": {"norm1": {"scale": (2,), "bias": (2,)}, "convolution1": {"kernel": (3, 3, 1, 2)}},
    "stage2_block1": {"norm1": {"scale": (4,)}},
    "attention": {"q_proj": {"kernel": (2, 2), "lora_A": {"kernel": (2, 1)}, "lora_B": {"kernel": (1, 2)}}},
    "temperature": (),
    "projector": {"kernel": (4, 2)},
    "classifier": {"kernel": (2, 3), "bias": (3,)},
}


def numbered(tree=SHAPES, start=0):
    """Every parameter has a number of its own, in the tree's order."""
    leaves, structure = jax.tree.flatten(tree, is_leaf=lambda node: isinstance(node, tuple))
    ends = np.cumsum([int(np.prod(shape)) for shape in leaves])
    values = np.split(np.arange(start, start + ends[-1], dtype=np.float32), ends[:-1])
    pairs = zip(values, leaves, strict=True)
    return jax.tree.unflatten(structure, [jnp.asarray(value.reshape(shape)) for value, shape in pairs])


PARAMS = numbered()
ALL = select_parameters(PARAMS)


@pytest.mark.parametrize(
    ("which", "paths"),
    [
        ("last_layer", ["classifier/bias", "classifier/kernel"]),
        (
            "lora_and_head",
            [
                "attention/q_proj/lora_A/kernel",
                "attention/q_proj/lora_B/kernel",
                "classifier/bias",
                "classifier/kernel",
                "projector/kernel",
            ],
        ),
        ("temperature", ["temperature"]),
        ("classifier/*, stage1*", ["classifier/bias", "classifier/kernel", *[p for p in ALL.paths if "stage1" in p]]),
        ("*/norm1/*", [p for p in ALL.paths if "norm1" in p]),
        ("*kernel,*kernel,classifier/kernel", [p for p in ALL.paths if p.endswith("kernel")]),
        ("stage?_block1/norm1/[s]*", ["stage1_block1/norm1/scale", "stage2_block1/norm1/scale"]),
    ],
)
def test_patterns(which, paths):
    subset = select_parameters(PARAMS, which)
    assert list(subset.paths) == paths  # in the tree's order, whatever that of the patterns
    vector = subset.extract(PARAMS)
    assert vector.shape == (subset.size,) and len(set(vector.tolist())) == subset.size
    np.testing.assert_array_equal(vector, np.sort(vector))  # leaf by leaf, each row by row


def test_everything_is_everything_in_the_order_of_the_leaves():
    assert ALL.size == sum(leaf.size for leaf in jax.tree.leaves(PARAMS)) == len(ALL.extract(PARAMS))
    np.testing.assert_array_equal(ALL.extract(PARAMS), ravel_pytree(PARAMS)[0])


@pytest.mark.parametrize("which", [*NAMED_SUBSETS, "temperature", "*norm1*,classifier/bias"])
def test_there_and_back(which):
    subset, other = select_parameters(PARAMS, which), numbered(start=1000)
    vector = subset.extract(other)
    put = subset.insert(PARAMS, vector)
    np.testing.assert_array_equal(subset.extract(put), vector)
    assert jax.tree.map(jnp.shape, put) == jax.tree.map(jnp.shape, PARAMS)
    # The rest is left alone, and what is put is where it was.
    back = subset.insert(put, subset.extract(PARAMS))
    jax.tree.map(np.testing.assert_array_equal, back, PARAMS)
    for path, leaf in jax.tree_util.tree_leaves_with_path(put):
        source = other if "/".join(key.key for key in path) in subset.paths else PARAMS
        for key in path:
            source = source[key.key]
        np.testing.assert_array_equal(leaf, source)


def test_shapes_will_do_and_inserting_can_be_traced_and_differentiated():
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), PARAMS)
    subset = select_parameters(shapes, "temperature,classifier/*")
    assert subset == select_parameters(PARAMS, "temperature,classifier/*")

    def total(vector):
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(subset.insert(PARAMS, vector)))

    vector = subset.extract(PARAMS)
    np.testing.assert_allclose(jax.jit(jax.grad(total))(vector), 2 * vector)


def test_a_head_may_lack_a_projector_but_lora_must_exist():
    rest = {name: leaf for name, leaf in PARAMS.items() if name != "projector"}
    assert len(select_parameters(rest, "lora_and_head").paths) == 4
    with pytest.raises(InputError, match=r"^parameters: no '\*lora\*'"):
        select_parameters({name: leaf for name, leaf in PARAMS.items() if name != "attention"}, "lora_and_head")


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("clasifier/*", r"^parameters: no 'clasifier/\*'.* \(valid: all, last_layer, .*stands for anything$"),
        ("last_leyer", r"^parameters: no 'last_leyer'; did you mean 'last_layer'\?"),
        ("classifier", r"^parameters: no 'classifier'"),
        ("classifier/*,nothing*", r"^parameters: no 'nothing\*'"),
        ("", r"^parameters: no ''"),
        (" , ", r"^parameters: no ' , '"),
        ("Classifier/*", r"^parameters: no 'Classifier/\*'"),
    ],
)
def test_a_pattern_that_finds_nothing_is_refused(which, message):
    with pytest.raises(InputError, match=message) as error:
        select_parameters(PARAMS, which)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600
