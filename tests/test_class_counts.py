"""Training counts: what is refused, what is kept, and the numbers derived from them."""

import re

import numpy as np
import pytest

from imbal_jax.class_counts import ClassCounts, class_counts, count_labels
from imbal_jax.errors import InputError


def test_counts_of_a_long_tail():
    counts = class_counts((5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50))
    assert counts.counts.dtype == np.int64
    assert counts.num_classes == 10
    assert counts.total == 12406
    assert counts.imbalance == 100.0
    assert counts.present.all()
    np.testing.assert_allclose(counts.priors[[0, 9]], [5000 / 12406, 50 / 12406], rtol=1e-15)
    assert counts.priors.dtype == np.float64


@pytest.mark.parametrize("given", [(3, 5), [3, 5], np.array([3, 5], np.int32), np.array([3.0, 5.0], np.float32)])
def test_whole_numbers_of_any_type_become_int64(given):
    np.testing.assert_array_equal(class_counts(given).counts, np.array([3, 5], np.int64), strict=True)


def test_counts_do_not_alias_their_argument():
    given = np.array([3, 5], np.int64)
    counts = class_counts(given)
    given[0] = 7
    assert counts.counts[0] == 3


def test_masked_classes_are_kept_apart():
    counts = class_counts([6, 0, 2], empty_classes="mask")
    assert counts.present.tolist() == [True, False, True]
    assert counts.num_classes == 3
    assert counts.total == 8
    assert counts.imbalance == 3.0
    assert counts.priors.tolist() == [0.75, 0.0, 0.25]


@pytest.mark.parametrize("empty_classes", ["refuse", "mask"])
def test_validated_counts_pass_through(empty_classes):
    counts = class_counts([6, 0, 2], empty_classes="mask")
    assert class_counts(counts, empty_classes=empty_classes) is counts
    assert isinstance(counts, ClassCounts)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([6, 0, 2, 0], "classes [1, 3] have no training example in [6, 0, 2, 0]"),
        ([0, 0], "every class is empty, got [0, 0]"),
        ([6, -1], "expected whole numbers >= 0, got [6, -1]"),
        ([6, 1.5], "expected whole numbers >= 0, got [6.0, 1.5]"),
        ([6, float("nan")], "expected whole numbers >= 0, got [6.0, nan]"),
        ([6, float("inf")], "expected whole numbers >= 0, got [6.0, inf]"),
        ([6], "expected a vector of at least two classes, got shape (1,)"),
        ([], "expected a vector of at least two classes, got shape (0,)"),
        (6, "expected a vector of at least two classes, got shape ()"),
        ([[6, 2], [1, 1]], "expected a vector of at least two classes, got shape (2, 2)"),
    ],
)
def test_faulty_counts_are_told(given, told):
    with pytest.raises(InputError, match="^class counts: " + re.escape(told)) as raised:
        class_counts(given)
    assert "\n" not in str(raised.value)


def test_masking_still_needs_one_example():
    with pytest.raises(InputError, match=r"^class counts: every class is empty, got \[0, 0, 0\]"):
        class_counts([0, 0, 0], empty_classes="mask")


def test_unknown_treatment_of_empty_classes_is_told():
    with pytest.raises(InputError, match=r"^empty_classes: expected 'refuse' or 'mask', got 'drop'"):
        class_counts([6, 2], empty_classes="drop")


def test_count_labels_counts_absent_classes_too():
    labels = np.array([2, 0, 2, 2], np.uint8)
    np.testing.assert_array_equal(count_labels(labels, 4), np.array([1, 0, 3, 0], np.int64), strict=True)
    np.testing.assert_array_equal(count_labels(np.zeros(0, np.int32), 2), np.zeros(2, np.int64), strict=True)
