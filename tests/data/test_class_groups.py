"""Groups of classes as a binary problem."""

import numpy as np
import pytest

from imbal_jax.data.class_groups import all_classes, group_classes, group_counts, groups
from imbal_jax.data.dataset import Dataset, Split
from imbal_jax.data.known import KNOWN
from imbal_jax.errors import InputError

NAMES = ("airplane", "automobile", "bird", "cat", "deer")


def dataset(labels=(4, 1, 0, 1, 2, 3)):
    """Images that hold their labels, in every split."""
    labels = np.array(labels, np.int64)
    images = np.tile(labels[:, None, None, None], (1, 2, 2, 1)).astype(np.float32)
    split = Split(images, labels)
    return Dataset("named", NAMES, split, split, split, {"test_2": split})


def test_all_classes_change_nothing():
    given = dataset()
    assert group_classes(given, all_classes()) is given


def test_groups_relabel_and_leave_out_in_every_split():
    grouping = groups(negative=("deer", "automobile"), positive=("cat",), names=("others", "cats"))
    found = group_classes(dataset(), grouping)
    assert found.class_names == ("others", "cats")
    assert set(found.splits) == {"train", "validation", "test", "test_2"}
    for split in found.splits.values():
        assert split.labels.tolist() == [0, 0, 0, 1]
        assert split.labels.dtype == np.int32
        assert split.images[:, 0, 0, 0].tolist() == [4, 1, 1, 3]


def test_two_classes_of_two_may_change_their_places():
    two = Dataset("two", ("a", "b"), *[Split(np.zeros((3, 1, 1, 1), np.float32), np.array([0, 0, 1]))] * 2)
    found = group_classes(two, groups(negative=("b",), positive=("a",)))
    assert found.train.labels.tolist() == [1, 1, 0]


def test_two_classes_of_two_may_change_their_names_only():
    two = Dataset("two", ("a", "b"), *[Split(np.zeros((3, 1, 1, 1), np.float32), np.array([0, 0, 1]))] * 2)
    found = group_classes(two, groups(negative=("a",), positive=("b",)))
    assert found.class_names == ("negative", "positive")
    assert found.train.labels.tolist() == [0, 0, 1]


def test_counts_of_groups():
    names, mapped = groups(negative=("deer", "automobile"), positive=("cat",))(NAMES)
    assert names == ("negative", "positive")
    assert group_counts(np.array([1, 20, 300, 4000, 50000]), mapped, 2).tolist() == [50020, 4000]


@pytest.mark.parametrize(
    ("negative", "positive", "told"),
    [
        (("automobil",), ("deer",), "classes.negative: no 'automobil'; did you mean 'automobile'?"),
        (("deer",), ("kat",), "classes.positive: no 'kat'; did you mean 'cat'?"),
        (("deer",), ("spaceship",), "classes.positive: no 'spaceship'"),
    ],
)
def test_classes_that_do_not_exist_are_told_with_the_nearest(negative, positive, told):
    with pytest.raises(InputError) as raised:
        group_classes(dataset(), groups(negative=negative, positive=positive))
    assert str(raised.value).startswith(told)
    assert "valid: airplane, automobile, bird, cat, deer" in str(raised.value)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"negative": (), "positive": ("cat",)}, "classes.negative: expected at least one class"),
        ({"negative": ("cat",), "positive": ()}, "classes.positive: expected at least one class"),
        ({"negative": ("cat", "deer"), "positive": ("deer",)}, "classes: expected every class once, got 'deer'"),
        ({"negative": ("cat",), "positive": ("deer",), "names": ("x", "x")}, "classes.names: expected two different"),
        ({"negative": ("cat",), "positive": ("deer",), "names": ("x",)}, "classes.names: expected two different"),
    ],
)
def test_faulty_groups_are_told(options, told):
    with pytest.raises(InputError, match=f"^{told}"):
        groups(**options)


def test_labels_outside_of_the_classes_are_told_before_they_are_grouped():
    with pytest.raises(InputError, match=r"y_train: expected labels in 0\.\.4, got 7"):
        group_classes(dataset((0, 7)), groups(negative=("cat",), positive=("deer",)))


def test_the_names_of_the_paper_s_tasks_exist():
    household = ("clock", "keyboard", "lamp", "telephone", "television", "bed", "chair", "couch", "table", "wardrobe")
    assert set(household) <= set(KNOWN["cifar100"].class_names)
