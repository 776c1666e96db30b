"""Which examples go where, and with which coefficients."""

import numpy as np
import pytest

from imbal_jax.curvature.class_samples import class_groups, sample_classes
from imbal_jax.errors import InputError

NAMES = ("a", "b", "empty", "single")
LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 3], [20, 7, 1])).astype(np.int32)
COUNTS = np.bincount(LABELS, minlength=4)


def groups_of(examples=0, wanted=None, *, labels=LABELS, size=6, **options):
    samples = sample_classes(labels, len(NAMES), examples, seed=0)
    return class_groups(labels, NAMES, samples, wanted, size=size, **options)


def contents(group):
    """(index, copy) -> coefficient of everything with a coefficient; each pair may occur once."""
    pairs = list(zip(np.ravel(group.batches.indices), np.ravel(group.batches.copies), strict=True))
    held = {
        tuple(map(int, pair)): float(each)
        for pair, each in zip(pairs, np.ravel(group.batches.coefficients), strict=True)
        if each != 0
    }
    assert len(held) == np.count_nonzero(group.batches.coefficients)
    return held


def weight_of_class(group, index):
    """The sum of the coefficients of a class's examples."""
    return sum(each for (example, _), each in contents(group).items() if LABELS[example] == index)


# Samples.


def test_all_examples_of_each_class():
    samples = sample_classes(LABELS, 4, 0, seed=0)
    for index, members in enumerate(samples):
        np.testing.assert_array_equal(members, np.flatnonzero(index == LABELS))


def test_a_sample_of_each_class_does_not_depend_on_the_others():
    samples = sample_classes(LABELS, 4, 5, seed=3)
    assert [len(members) for members in samples] == [5, 5, 0, 1]
    for index, members in enumerate(samples):
        assert np.all(LABELS[members] == index) and np.all(np.diff(members) > 0)
    for members, again in zip(samples, sample_classes(LABELS, 4, 5, seed=3), strict=True):
        np.testing.assert_array_equal(members, again)
    # Other labels of the others, same positions of class 1.
    moved = np.where(LABELS == 1, 1, 0)
    np.testing.assert_array_equal(sample_classes(moved, 4, 5, seed=3)[1], samples[1])
    assert any(list(sample_classes(LABELS, 4, 5, seed=seed)[0]) != list(samples[0]) for seed in range(4, 8))
    assert len(sample_classes(LABELS, 4, 7, seed=3)[1]) == 7


# Groups.


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize(("examples", "copies"), [(0, 1), (4, 1), (0, 3), (4, 3)])
def test_shapes_and_sums(examples, copies, mixed):
    size = 3 if examples else 4  # of 28, or of 4 + 4 + 1
    groups = groups_of(examples, copies=copies, size=size, mixed=mixed)
    assert [(group.name, group.class_index) for group in groups] == [("all", None), ("a", 0), ("b", 1), ("single", 3)]
    assert len({group.batches.indices.shape for group in groups}) == 1
    assert groups[0].batches.indices.shape[1] == size
    for group in groups:
        batches = group.batches
        assert batches.indices.shape == batches.copies.shape == batches.coefficients.shape
        assert batches.indices.dtype == batches.copies.dtype == np.int32 and batches.coefficients.dtype == np.float64
        assert batches.coefficients.sum() == pytest.approx(1, rel=1e-12) and np.all(batches.coefficients >= 0)
        # Every batch that counts holds something, none beyond it does.
        filled = batches.coefficients.any(axis=1)
        assert filled[: batches.filled].all() and not filled[batches.filled :].any()
        held = contents(group)
        assert len(held) == group.sampled * copies
        assert {copy for _, copy in held} == set(range(copies))
        if group.class_index is not None:
            assert group.available == COUNTS[group.class_index]
            assert weight_of_class(group, group.class_index) == pytest.approx(1)
            np.testing.assert_allclose(list(held.values()), 1 / len(held))
    assert groups[0].available == len(LABELS) and groups[0].sampled == sum(group.sampled for group in groups[1:])
    # The whole is the classes by their shares of all examples, whatever the sample.
    for index in (0, 1, 3):
        assert weight_of_class(groups[0], index) == pytest.approx(COUNTS[index] / len(LABELS))
    mixture = {}
    for group in groups[1:]:
        for pair, each in contents(group).items():
            mixture[pair] = COUNTS[group.class_index] / len(LABELS) * each
    assert mixture.keys() == contents(groups[0]).keys()
    np.testing.assert_allclose([mixture[pair] for pair in contents(groups[0])], list(contents(groups[0]).values()))


def test_own_batches_hold_their_class_only():
    for group in groups_of(copies=2)[1:]:
        filled = -(-2 * group.sampled // 6)
        assert group.batches.filled == filled
        held = contents(group)
        assert {example for example, _ in held} == set(np.flatnonzero(group.class_index == LABELS))
        # Only the last one is filled up.
        assert np.all(group.batches.coefficients[: filled - 1] > 0)


def test_a_size_beyond_the_largest_group_is_cut():
    groups = groups_of(size=1000)
    assert groups[0].batches.indices.shape == (1, 28)
    assert groups_of(size=1000, whole=False)[0].batches.indices.shape == (1, 20)
    assert groups_of(size=1000, whole=False, wanted=(3,), copies=5)[0].batches.indices.shape == (1, 5)


def test_mixed_batches_are_the_same_for_all_groups():
    whole, *classes = groups_of(size=5, mixed=True, copies=2, seed=4)
    held = whole.batches.indices[: whole.batches.filled // 2]
    assert held.shape == (5, 5) and len(set(held.ravel())) == 25  # 3 of 28 are left out
    rows = {tuple(row) for row in held}
    for group in classes:
        for row, copy in zip(group.batches.indices[: group.batches.filled], group.batches.copies, strict=False):
            assert tuple(row) in rows and len(set(copy)) == 1
            assert group.class_index in LABELS[row]
    again = groups_of(size=5, mixed=True, copies=2, seed=4)[0]
    np.testing.assert_array_equal(again.batches.indices, whole.batches.indices)
    other = groups_of(size=14, mixed=True, seed=5)[0]
    assert other.batches.indices.tolist() != groups_of(size=14, mixed=True, seed=4)[0].batches.indices.tolist()


def test_wanted_classes_keep_their_order_and_the_whole_comes_first():
    assert [group.class_index for group in groups_of(wanted=(3, 0))] == [None, 3, 0]
    assert [group.class_index for group in groups_of(wanted=(3, 0), whole=False)] == [3, 0]
    assert [group.class_index for group in groups_of(wanted=())] == [None]
    (only,) = groups_of(wanted=(1,), whole=False, size=100)
    assert only.batches.indices.tolist() == [np.flatnonzero(LABELS == 1).tolist()]


def test_a_single_class_and_a_single_example():
    labels = np.array([3], np.int32)
    for mixed in (False, True):
        whole, single = groups_of(labels=labels, size=1, mixed=mixed)
        assert whole.batches.coefficients.tolist() == single.batches.coefficients.tolist() == [[1.0]]


def lost(mixed_seed):
    """Whether the single example of class 3 is in no batch of 9."""
    order = np.random.default_rng(mixed_seed).permutation(np.concatenate(sample_classes(LABELS, 4, 0, 0)))
    return LABELS[order[-1]] == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, r"^micro_batch: expected a number >= 1, got 0$"),
        ({"copies": 0}, r"^copies: expected a number >= 1, got 0$"),
        ({"examples": -1}, r"^examples: expected a number >= 0 \(0 for all of a class\), got -1$"),
        ({"wanted": (4,)}, r"^classes: expected class indices in 0..3, got 4$"),
        ({"wanted": (0, -1)}, r"^classes: expected class indices in 0..3, got -1$"),
        ({"wanted": (0, 2)}, r"^classes: class 2 has no example to look at$"),
        ({"wanted": (), "whole": False}, r"^classes: expected at least one class or the whole data set, got neither$"),
        ({"labels": np.zeros(0, np.int32)}, r"^labels: expected at least one example, got none$"),
        ({"size": 29, "mixed": True}, r"^micro_batch: expected at most the 28 examples there are, got 29$"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(InputError, match=message):
        groups_of(**options)


def test_a_class_that_no_mixed_batch_holds_is_refused():
    """Also where only the whole data set needs it."""
    seed = next(seed for seed in range(1000) if lost(seed))
    for options in ({}, {"wanted": (3,), "whole": False}, {"wanted": (0,)}):
        with pytest.raises(InputError, match=r"^classes: class 3 has no example to look at$"):
            groups_of(size=9, mixed=True, seed=seed, **options)
    assert groups_of(size=9, mixed=True, seed=seed, wanted=(0,), whole=False)[0].name == "a"
