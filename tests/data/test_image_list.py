"""Lists of pictures and classes: what they become, and every fault of theirs with its line."""

import pathlib

import numpy as np
import PIL.Image
import pytest

from imbal_jax.data.clothing1m import CLASSES, clothing1m
from imbal_jax.data.dataset import faults
from imbal_jax.data.image_list import image_list, read_list
from imbal_jax.errors import InputError
from tests.pictures import COUNTS, write_pictures

SMALL = {"size": 16, "resize": 20}


@pytest.fixture(scope="module")
def lists(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("toy"))


def test_splits_are_those_of_the_lists(lists):
    data = image_list(**lists, **SMALL)
    assert data.name == "Toy" and data.class_names == ("0", "1", "2")
    assert faults(data) == []
    for name, split in (("train", "train"), ("validation", "val"), ("test", "test")):
        np.testing.assert_array_equal(np.bincount(data.splits[name].labels), COUNTS[split])
        assert data.splits[name].labels.dtype == np.int32
    assert data.train.images.shape == (23, 16, 16, 3)


def test_every_picture_is_that_of_its_line(lists):
    data = image_list(**lists, **SMALL)
    for name, split in data.splits.items():
        lines = [line.rsplit(maxsplit=1) for line in pathlib.Path(lists[name]).read_text().splitlines()]
        batch = split.images.batch(np.arange(len(lines)))
        for image, (path, label) in zip(batch, lines, strict=True):
            assert abs(image.mean() - (60 + 60 * int(label))) < 10
            with PIL.Image.open(pathlib.Path(lists["root"]) / path) as picture:
                width, height = picture.size
                scale = 20 / min(width, height)
                resized = picture.resize((int(width * scale + 1e-6), int(height * scale + 1e-6)), PIL.Image.BILINEAR)
                left, top = round((resized.width - 16) / 2), round((resized.height - 16) / 2)
                expected = np.asarray(resized)[top : top + 16, left : left + 16]
            np.testing.assert_array_equal(image, expected)


def test_without_a_validation_list_there_is_no_validation_set(lists):
    without = {name: value for name, value in lists.items() if name != "validation"}
    assert image_list(**without, **SMALL).validation is None
    assert image_list(**without, **SMALL, num_classes=5).class_names == ("0", "1", "2", "3", "4")


def test_the_digest_knows_names_and_sizes_of_the_files(tmp_path):
    lists = write_pictures(tmp_path, {"train": (2, 2), "test": (1, 1)})
    before = image_list(**lists, **SMALL).train.images.digest()
    assert image_list(**lists, **SMALL).train.images.digest() == before
    assert image_list(**lists, **SMALL).test.images.digest() != before
    with (pathlib.Path(lists["root"]) / "train/class 0/0.jpg").open("ab") as stream:
        stream.write(b" ")
    assert image_list(**lists, **SMALL).train.images.digest() != before


def test_missing_pictures_are_counted_and_the_first_named(tmp_path):
    lists = write_pictures(tmp_path, {"train": (20, 2), "test": (1, 1)})
    for index in range(4, 17):
        (pathlib.Path(lists["root"]) / f"train/class 0/{index}.jpg").unlink()
    message = r"^data\.root: 13 of 24 pictures are missing in .*: train/class 0/4\.jpg; .*13\.jpg; and 3 more$"
    with pytest.raises(InputError, match=message):
        image_list(**lists, **SMALL)
    with pytest.raises(InputError, match=r"^data\.root: expected the folder of the pictures, found none at .*nowhere"):
        image_list(**lists | {"root": str(tmp_path / "nowhere")}, **SMALL)


def changed(lists, folder, name, content):
    """The options with another list in the place of one."""
    path = folder / "list.txt"
    path.write_bytes(content)
    return lists | {name: str(path)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"a.jpg 0\nb.jpg\n\nc.jpg x\nd.jpg -1\ne.jpg 1.0\n",
            "got 4 others: line 2: 'b.jpg'; line 4: 'c.jpg x'; line 5",
        ),
        (b"\n \n", r"expected at least one picture in .*list\.txt, which is empty"),
        (b"\xff\xfe a 0\n", "expected text in UTF-8"),
        (b"a.jpg 99999999999\n", "line 1: 'a.jpg 99999999999'"),
    ],
)
def test_faulty_lists_are_refused(lists, tmp_path, content, message):
    with pytest.raises(InputError, match=rf"^data\.test: .*{message}"):
        image_list(**changed(lists, tmp_path, "test", content), **SMALL)


def test_many_faulty_lines_are_counted(tmp_path):
    (tmp_path / "list.txt").write_text("\n".join(f"picture{index}" for index in range(30)))
    with pytest.raises(InputError, match=r"got 30 others: line 1: 'picture0'; .*line 10: 'picture9'; and 20 more$"):
        read_list(tmp_path / "list.txt", "data.train")


def test_labels_that_are_no_class_are_refused(lists, tmp_path):
    with pytest.raises(InputError, match=r"^data\.train: expected classes in 0\.\.1 in .*, got 2 of picture 20; 2 of"):
        image_list(**lists, **SMALL, num_classes=2)
    stray = b"train/class 0/0.jpg 0\ntrain/class 1/0.jpg 1\ntrain/class 2/0.jpg 900000000\n"
    with pytest.raises(InputError, match=r"^data\.train: expected classes in 0\.\.1 .* got 900000000 of picture 3$"):
        image_list(**changed(lists, tmp_path, "train", stray), **SMALL)


def test_missing_lists_are_refused(lists):
    with pytest.raises(InputError, match=r"^data\.train: expected a text file, got .*none\.txt: No such file"):
        image_list(**lists | {"train": "none.txt"}, **SMALL)


# Clothing1M.


@pytest.fixture
def clothing(tmp_path):
    """The folder of a small Clothing1M: two classes, and pictures with both kinds of labels."""
    lists = {
        "noisy_train_key_list.txt": "images/0/a.jpg\nimages/0/b.jpg\n",
        "clean_train_key_list.txt": "images/1/e.jpg\n",
        "clean_val_key_list.txt": "images/0/b.jpg\n",
        "clean_test_key_list.txt": "images/1/c.jpg\nimages/1/d.jpg\n",
        "noisy_label_kv.txt": "images/0/a.jpg 3\nimages/0/b.jpg 13\nimages/9/unused.jpg 1\n",
        "clean_label_kv.txt": "images/0/b.jpg 5\nimages/1/c.jpg 0\nimages/1/d.jpg 1\nimages/1/e.jpg 2\n",
    }
    for name, content in lists.items():
        (tmp_path / name).write_text(content)
    for name in ("0/a", "0/b", "1/c", "1/d", "1/e"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("RGB", (30, 30), (ord(name[-1]),) * 3).save(tmp_path / "images" / f"{name}.jpg")
    return tmp_path


def test_clothing1m_trains_on_noisy_labels_and_tests_on_clean_ones(clothing):
    data = clothing1m(root=str(clothing), **SMALL)
    assert data.class_names == CLASSES and len(CLASSES) == 14
    assert {name: split.labels.tolist() for name, split in data.splits.items()} == {
        "train": [3, 13],
        "validation": [5],
        "test": [0, 1],
    }
    shades = [split.images.batch(np.arange(len(split.labels)))[:, 0, 0, 0] for split in data.splits.values()]
    assert [chr(shade) for shade in np.concatenate(shades)] == ["a", "b", "b", "c", "d"]
    assert clothing1m(root=str(clothing), train="clean", **SMALL).train.labels.tolist() == [2]


def test_faults_of_clothing1m_are_told(clothing):
    with pytest.raises(InputError, match=r"^data\.train: expected 'noisy' or 'clean', got 'both'"):
        clothing1m(root=str(clothing), train="both")
    (clothing / "clean_test_key_list.txt").write_text("images/1/c.jpg\nimages/1/x.jpg\n")
    with pytest.raises(
        InputError, match=r"^data\.root: 1 keys of .*clean_test_key_list\.txt have no label: images/1/x"
    ):
        clothing1m(root=str(clothing), **SMALL)
    (clothing / "clean_label_kv.txt").write_text("images/0/b.jpg 14\n")
    with pytest.raises(InputError, match=r"expected classes in 0\.\.13 in .*clean_label_kv\.txt, got 14 of picture 1"):
        clothing1m(root=str(clothing), **SMALL)
    (clothing / "noisy_label_kv.txt").unlink()
    with pytest.raises(InputError, match=r"expected a text file, got .*noisy_label_kv\.txt: No such file"):
        clothing1m(root=str(clothing), **SMALL)
