"""Pictures of any size in directories that tensorflow-datasets prepared, read one by one."""

import numpy as np
import PIL.Image
import pytest

from imbal_jax.data import prepared_pictures
from imbal_jax.data.dataset import faults
from imbal_jax.data.prepared_pictures import record_places, tfds_pictures
from imbal_jax.errors import InputError
from tests.data.test_prepared import FEATURES, png, write

PICTURES = {"image": FEATURES.Image(shape=(None, None, 3)), "label": FEATURES.ClassLabel(names=["a", "b", "c"])}
SMALL = {"dataset": "imagenet_lt", "size": 4, "resize": 4}


def splits_of(counts=(("train", 9), ("validation", 4), ("test", 5)), side=(4, 4)):
    rng = np.random.default_rng(0)
    return {
        name: (rng.integers(0, 256, (count, *side, 3), np.uint8), rng.integers(0, 3, count)) for name, count in counts
    }


def records_of(splits):
    """Pictures of different heights: the first rows are those of the images."""
    made = {}
    for name, (images, labels) in splits.items():
        encoded = [png(np.concatenate([image, image[:index]])) for index, image in enumerate(images)]
        made[name] = [
            FEATURES.FeaturesDict(PICTURES).serialize_example({"image": each, "label": label})
            for each, label in zip(encoded, labels, strict=True)
        ]
    return made


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_pictures_are_those_of_the_records(tmp_path, file_format):
    splits = splits_of()
    write(
        tmp_path / "imagenet_lt" / "1.0.0",
        splits,
        features=PICTURES,
        file_format=file_format,
        name="imagenet_lt",
        shards=2,
    )
    data = tfds_pictures(**SMALL, path=str(tmp_path))
    assert faults(data) == [] and data.class_names == ("a", "b", "c") and data.name == "imagenet_lt"
    for name, (images, labels) in splits.items():
        found = data.splits[name]
        np.testing.assert_array_equal(found.labels, labels)
        assert found.labels.dtype == np.int32
        order = np.random.default_rng(1).permutation(len(labels))
        np.testing.assert_array_equal(found.images.batch(order), images[order])
    assert data.train.images[np.arange(4)].digest() != data.train.images[np.arange(5)].digest()
    assert data.train.images[np.arange(4)].digest() != data.test.images[np.arange(4)].digest()


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_pictures_may_have_any_size(tmp_path, file_format):
    splits = splits_of()
    records = records_of(splits)
    write(
        tmp_path / "imagenet_lt" / "1.0.0",
        splits,
        features=PICTURES,
        records=records,
        file_format=file_format,
        name="imagenet_lt",
    )
    images = tfds_pictures(**SMALL, path=str(tmp_path)).train.images
    assert [images.pictures.open(row).size for row in range(4)] == [(4, 4), (4, 5), (4, 6), (4, 7)]
    np.testing.assert_array_equal(np.asarray(images.pictures.open(3))[:4], splits["train"][0][3])
    assert images.batch(np.arange(9)).shape == (9, 4, 4, 3)


def test_labels_that_are_not_public_leave_the_validation_split_to_test_on(tmp_path):
    splits = splits_of()
    splits["test"][1][:] = -1
    write(tmp_path / "imagenet_lt" / "1.0.0", splits, features=PICTURES, name="imagenet_lt")
    assert "got -1" in faults(tfds_pictures(**SMALL, path=str(tmp_path)))[0]
    data = tfds_pictures(**SMALL, path=str(tmp_path), test="validation")
    assert data.validation is None and faults(data) == []
    np.testing.assert_array_equal(data.test.labels, splits["validation"][1])
    with pytest.raises(InputError, match=r"^data\.test: expected one of the splits \['test', 'train', .* got 'dev'"):
        tfds_pictures(**SMALL, path=str(tmp_path), test="dev")


def test_cached_labels_are_read_while_the_files_are_the_same(tmp_path, monkeypatch):
    splits, cache = splits_of(), tmp_path / "cache"
    write(tmp_path / "imagenet_lt" / "1.0.0", splits, features=PICTURES, name="imagenet_lt")
    first = tfds_pictures(**SMALL, path=str(tmp_path), cache=str(cache))
    kept = sorted(cache.iterdir())
    assert len(kept) == 3 and all(path.suffix == ".npy" and "partial" not in path.name for path in kept)
    kept[0].write_bytes(kept[0].read_bytes()[:40])  # damaged, and so made again
    read = []
    monkeypatch.setattr(
        prepared_pictures, "_read_labels", lambda pictures, *_: read.append(1) or np.zeros(pictures.count, np.int32)
    )
    again = tfds_pictures(**SMALL, path=str(tmp_path), cache=str(cache))
    assert len(read) == 1
    same = [np.array_equal(first.splits[name].labels, again.splits[name].labels) for name in splits]
    assert sum(same) == 2
    write(
        tmp_path / "imagenet_lt" / "1.0.1",
        splits_of((("train", 3), ("test", 3))),
        features=PICTURES,
        name="imagenet_lt",
    )
    tfds_pictures(**SMALL, path=str(tmp_path), cache=str(cache))
    assert len(read) == 3


def test_damaged_pictures_are_named(tmp_path):
    splits = splits_of()
    records = records_of(splits)
    example = FEATURES.FeaturesDict(PICTURES).serialize_example({"image": b"no picture", "label": 1})
    records["train"][6] = example
    write(tmp_path / "imagenet_lt" / "1.0.0", splits, features=PICTURES, records=records, name="imagenet_lt")
    images = tfds_pictures(**SMALL, path=str(tmp_path)).train.images
    with pytest.raises(InputError, match=r"^data: cannot decode the picture of record 6 of train in .*1\.0\.0: "):
        images.batch(np.array([2, 6]))
    assert len(images.faults()) == 1


def test_truncated_files_are_refused(tmp_path):
    splits = splits_of()
    home = tmp_path / "imagenet_lt" / "1.0.0"
    write(home, splits, features=PICTURES, file_format="tfrecord", name="imagenet_lt")
    file = next(home.glob("*train*"))
    places = record_places(file)
    assert len(places) == 9 and places[0][0] == 12
    with PIL.Image.open(_picture_of(file, places[0])) as picture:
        np.testing.assert_array_equal(np.asarray(picture), splits["train"][0][0])
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"^dataset: cannot read train of .*: .* ends within a record"):
        tfds_pictures(**SMALL, path=str(tmp_path))


def _picture_of(file, place):
    """The PNG within a record, found by its signature."""
    import io

    content = file.read_bytes()[place[0] : place[0] + place[1]]
    return io.BytesIO(content[content.index(b"\x89PNG") :])


def test_images_that_are_arrays_and_missing_data_are_refused(tmp_path):
    splits = splits_of()
    features = {"image": FEATURES.Tensor(shape=(4, 4, 3), dtype=np.uint8), "label": FEATURES.ClassLabel(num_classes=3)}
    write(tmp_path / "imagenet_lt" / "1.0.0", splits, features=features, name="imagenet_lt")
    with pytest.raises(
        InputError, match=r"^dataset: expected images stored as pictures in .*; read it with data\.name=tfds"
    ):
        tfds_pictures(**SMALL, path=str(tmp_path))
    with pytest.raises(InputError, match=r"^dataset: expected 'imagenet_lt' prepared by tensorflow-datasets, found no"):
        tfds_pictures(**SMALL, path=str(tmp_path / "nowhere"))
