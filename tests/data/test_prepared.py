"""Directories that tensorflow-datasets prepared."""

import io
import os
import pathlib
import struct
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets
from array_record.python.array_record_module import ArrayRecordWriter
from tensorboardX.record_writer import RecordWriter

from imbal_jax.data.dataset import faults, require_valid
from imbal_jax.data.prepared import read_tfrecords, tfds
from imbal_jax.errors import InputError

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
FEATURES = tensorflow_datasets.features


def png(image):
    """The image as PNG."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, format="PNG")
    return buffer.getvalue()


def frame(record):
    """A record as TFRECORD frames it, by hand; the checksums are left zero."""
    return struct.pack("<QI", len(record), 0) + record + struct.pack("<I", 0)


def write(directory, splits, *, features=None, records=None, file_format="array_record", name="cifar10", shards=1):
    """Writes a version's directory with the library's own metadata.

    Args:
      directory: the version's directory.
      splits: images and labels by split.
      features: by name; by default a picture and a class of four.
      records: by split, in place of the serialised images and labels.
      file_format: the ending, "array_record" or "tfrecord".
      name: the data set's name.
      shards: files per split.
    """
    directory.mkdir(parents=True)
    shape = next(iter(splits.values()))[0].shape[1:]
    if features is None:
        features = {"image": FEATURES.Image(shape=shape), "label": FEATURES.ClassLabel(names=["a", "b", "c", "d"])}
    features = FEATURES.FeaturesDict(features)
    template = tensorflow_datasets.core.ShardedFileTemplate(
        data_dir=directory, dataset_name=name, filetype_suffix=file_format
    )
    infos = []
    for split, (images, labels) in splits.items():
        encoded = [png(each) for each in images] if isinstance(features["image"], FEATURES.Image) else images
        serialised = (records or {}).get(split) or [
            features.serialize_example({"image": image, "label": label})
            for image, label in zip(encoded, labels, strict=True)
        ]
        parts = [list(part) for part in np.array_split(np.arange(len(serialised)), shards)]
        for number, part in enumerate(parts):
            file = template.replace(split=split).sharded_filepath(shard_index=number, num_shards=shards)
            if file_format == "array_record":
                writer = ArrayRecordWriter(os.fspath(file), "group_size:1")
                for index in part:
                    writer.write(serialised[index])
                writer.close()
            else:
                pathlib.Path(file).write_bytes(b"".join(frame(serialised[index]) for index in part))
        infos.append(
            tensorflow_datasets.core.SplitInfo(
                name=split, shard_lengths=[len(part) for part in parts], num_bytes=1, filename_template=template
            )
        )
    tensorflow_datasets.folder_dataset.write_metadata(
        data_dir=directory, features=features, split_infos=infos, check_data=False
    )


def examples(shape=(6, 5, 3), number=9, seed=0):
    """Images and labels of two splits."""
    generator = np.random.default_rng(seed)
    return {
        split: (generator.integers(0, 256, (count, *shape), dtype=np.uint8), generator.integers(0, 4, count))
        for split, count in (("train", number), ("test", number - 2))
    }


def require_equal(dataset, splits):
    """Asserts that the data set holds exactly these splits."""
    require_valid(dataset)
    assert set(dataset.splits) == set(splits)
    for split, (images, labels) in splits.items():
        np.testing.assert_array_equal(dataset.splits[split].images, images)
        np.testing.assert_array_equal(dataset.splits[split].labels, labels)
        assert dataset.splits[split].labels.dtype == np.int32


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
@pytest.mark.parametrize("shape", [(6, 5, 3), (7, 7, 1), (4, 6, 4)])
def test_reads_pictures_bit_for_bit_in_order(tmp_path, file_format, shape):
    splits = examples(shape)
    write(tmp_path / "cifar10" / "3.0.2", splits, file_format=file_format, shards=2)
    dataset = tfds(dataset="cifar10", path=str(tmp_path))
    require_equal(dataset, splits)
    assert dataset.name == "cifar10"
    assert dataset.class_names == ("a", "b", "c", "d")
    assert dataset.train.images.dtype == np.uint8


def test_reads_more_records_than_are_fetched_at_a_time(tmp_path):
    splits = examples((2, 2, 1), number=2500)
    write(tmp_path / "cifar10" / "3.0.2", splits)
    require_equal(tfds(dataset="cifar10", path=str(tmp_path)), splits)


def test_reads_the_validation_split_and_leaves_others(tmp_path):
    splits = examples()
    splits |= {"validation": splits["test"], "extra": splits["train"]}
    write(tmp_path / "cifar10" / "3.0.2", splits)
    del splits["extra"]
    require_equal(tfds(dataset="cifar10", path=str(tmp_path)), splits)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_reads_images_stored_as_arrays_with_plain_labels(tmp_path, dtype):
    splits = {name: (images.astype(dtype), labels) for name, (images, labels) in examples().items()}
    features = {
        "image": FEATURES.Tensor(shape=(6, 5, 3), dtype=dtype, encoding="bytes"),
        "label": FEATURES.Scalar(np.int64),
    }
    write(tmp_path / "cifar10" / "3.0.2", splits, features=features)
    dataset = tfds(dataset="cifar10", path=str(tmp_path))
    require_equal(dataset, splits)
    assert dataset.train.images.dtype == (np.uint8 if dtype == np.uint8 else np.float32)
    assert dataset.class_names == ("0", "1", "2", "3")


def test_pictures_stored_with_other_channels_are_converted(tmp_path):
    splits = examples()
    grey = splits["train"][0][..., :1]
    features = {"image": FEATURES.Image(shape=(6, 5, 3)), "label": FEATURES.ClassLabel(num_classes=4)}
    records = [FEATURES.FeaturesDict(features).serialize_example({"image": png(each), "label": 0}) for each in grey]
    write(tmp_path / "cifar10" / "3.0.2", splits, features=features, records={"train": records})
    dataset = tfds(dataset="cifar10", path=str(tmp_path))
    np.testing.assert_array_equal(dataset.train.images, np.repeat(grey, 3, axis=-1))
    assert dataset.class_names == ("0", "1", "2", "3")


def test_missing_labels_are_left_for_the_check(tmp_path):
    splits = examples()
    splits["train"][1][4] = -1  # the library's sign for an unlabelled example
    write(tmp_path / "cifar10" / "3.0.2", splits)
    found = faults(tfds(dataset="cifar10", path=str(tmp_path)))
    assert found == ["y_train: expected labels in 0..3, got -1 at index 4 (1 such labels)"]


def test_finds_the_newest_version_a_configuration_or_the_version_itself(tmp_path, monkeypatch):
    old, new = examples(seed=1), examples(seed=2)
    write(tmp_path / "cifar10" / "9.0.0", old)
    write(tmp_path / "cifar10" / "10.0.0", new)
    (tmp_path / "cifar10" / "incomplete.ABC_11.0.0").mkdir()
    (tmp_path / "cifar10" / "12.0.0").mkdir()  # without metadata: not prepared
    require_equal(tfds(dataset="cifar10", path=str(tmp_path)), new)
    require_equal(tfds(dataset="cifar10", path=str(tmp_path / "cifar10" / "9.0.0")), old)
    monkeypatch.setenv("HOME", str(tmp_path))
    require_equal(tfds(dataset="cifar10", path="~"), new)
    write(tmp_path / "other" / "small" / "1.0.0", old, name="other")
    require_equal(tfds(dataset="other", path=str(tmp_path)), old)
    write(tmp_path / "other" / "large" / "1.0.0", new, name="other")
    require_equal(tfds(dataset="other/large", path=str(tmp_path)), new)
    with pytest.raises(
        InputError, match=r"'other' has several configurations in .*; expected one of other/large, other/sm"
    ):
        tfds(dataset="other", path=str(tmp_path))


def test_missing_cifar_is_told_with_place_source_terms_and_command(tmp_path):
    with pytest.raises(InputError) as caught:
        tfds(dataset="cifar10", path=str(tmp_path))
    message = str(caught.value)
    assert "\n" not in message
    assert f"{tmp_path} or in {tmp_path}/cifar10/<version>" in message
    assert "https://www.cs.toronto.edu/~kriz/cifar.html" in message
    assert "licence: none stated" in message
    command = f"python -m imbal_jax.main --task=prepare --input=cifar-10-binary.tar.gz --output={tmp_path}"
    assert message.endswith(command)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (
            "svhn_cropped",
            "non-commercial use only.*where TensorFlow is installed with tfds build svhn_cropped --data_dir=",
        ),
        ("cifar-10", "did you mean 'cifar10'.; prepare it where TensorFlow is installed"),
        ("places_lt", "found no dataset_info.json in .*, and nothing is downloaded; prepare it where"),
    ],
)
def test_other_missing_sets_are_prepared_by_the_library(tmp_path, dataset, message):
    with pytest.raises(InputError, match=message):
        tfds(dataset=dataset, path=str(tmp_path / "none"))


@pytest.mark.parametrize("dataset", ["", "../cifar10", "a/b/c", "/etc", "a/..", "cifar 10"])
def test_refuses_names_that_are_none(tmp_path, dataset):
    with pytest.raises(InputError, match="dataset: expected a name such as 'cifar10'"):
        tfds(dataset=dataset, path=str(tmp_path))


def test_refuses_a_directory_of_another_set(tmp_path):
    write(tmp_path / "cifar10" / "3.0.2", examples())
    with pytest.raises(InputError, match=r"expected 'mnist', but .*3\.0\.2 holds 'cifar10'"):
        tfds(dataset="mnist", path=str(tmp_path / "cifar10" / "3.0.2"))


def test_refuses_missing_splits_and_features(tmp_path):
    splits = examples()
    write(tmp_path / "cifar10" / "1.0.0", {"train": splits["train"]})
    with pytest.raises(InputError, match=r"has the splits \['train'\]; expected train and test"):
        tfds(dataset="cifar10", path=str(tmp_path))
    write(tmp_path / "cifar10" / "2.0.0", splits)
    metadata = tmp_path / "cifar10" / "2.0.0" / "features.json"
    metadata.write_text(
        metadata.read_text().replace('"image": {\n                "image"', '"photo": {\n                "image"')
    )
    with pytest.raises(InputError, match=r"has the features \['label', 'photo'\]; expected image and label"):
        tfds(dataset="cifar10", path=str(tmp_path))


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"label": FEATURES.Scalar(np.float32)}, "expected one whole number as label"),
        ({"label": FEATURES.Tensor(shape=(1,), dtype=np.int64)}, "expected one whole number as label"),
        (
            {"image": FEATURES.Tensor(shape=(6, 5, 3), dtype=np.int32)},
            "expected uint8 or floating-point images, got int32",
        ),
        ({"image": FEATURES.Image(shape=(6, 5, 3), dtype=np.uint16)}, "expected uint8 pictures of 1, 3 or 4 channels"),
    ],
)
def test_refuses_features_of_other_types(tmp_path, features, message):
    both = {"image": FEATURES.Image(shape=(6, 5, 3)), "label": FEATURES.ClassLabel(num_classes=4)} | features
    write(tmp_path / "cifar10" / "1.0.0", examples(), features=both, records={"train": [b""], "test": [b""]})
    with pytest.raises(InputError, match=message):
        tfds(dataset="cifar10", path=str(tmp_path))


def test_refuses_images_of_several_sizes(tmp_path):
    features = {"image": FEATURES.Image(shape=(None, None, 3)), "label": FEATURES.ClassLabel(num_classes=4)}
    sizes = [np.zeros((6, 5, 3), np.uint8), np.zeros((6, 5, 3), np.uint8), np.zeros((5, 6, 3), np.uint8)]
    records = [FEATURES.FeaturesDict(features).serialize_example({"image": png(each), "label": 0}) for each in sizes]
    write(tmp_path / "cifar10" / "1.0.0", examples(), features=features, records={"test": records})
    with pytest.raises(
        InputError,
        match=r"cannot read test of .*: expected images of one size, got \(6, 5, 3\), then \(5, 6, 3\) at index 2",
    ):
        tfds(dataset="cifar10", path=str(tmp_path))


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("content", ["", "{", "[1]", '{"a": 1}'])
def test_refuses_damaged_metadata(tmp_path, file, content):
    write(tmp_path / "cifar10" / "1.0.0", examples())
    (tmp_path / "cifar10" / "1.0.0" / file).write_text(content)
    with pytest.raises(InputError, match="unreadable metadata in "):
        tfds(dataset="cifar10", path=str(tmp_path))


def test_refuses_features_of_an_unknown_kind(tmp_path):
    write(tmp_path / "cifar10" / "1.0.0", examples())
    metadata = tmp_path / "cifar10" / "1.0.0" / "features.json"
    metadata.write_text(metadata.read_text().replace("tensorflow_datasets.core", "no_such_library.core"))
    with pytest.raises(InputError, match="unreadable metadata in "):
        tfds(dataset="cifar10", path=str(tmp_path))


def test_refuses_metadata_without_features(tmp_path):
    write(tmp_path / "cifar10" / "1.0.0", examples())
    (tmp_path / "cifar10" / "1.0.0" / "features.json").unlink()
    with pytest.raises(InputError, match="unreadable metadata in "):
        tfds(dataset="cifar10", path=str(tmp_path))


def damage(file, kind):
    """Damages a file of records."""
    content = file.read_bytes()
    if kind == "missing":
        file.unlink()
    elif kind == "truncated":
        file.write_bytes(content[: len(content) // 2 + 3])
    elif kind == "empty":
        file.write_bytes(b"")
    else:
        file.write_bytes(b"garbage" * 20_000)


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
@pytest.mark.parametrize("kind", ["missing", "truncated", "empty", "garbage"])
def test_refuses_damaged_records(tmp_path, file_format, kind):
    directory = tmp_path / "cifar10" / "1.0.0"
    write(directory, examples(), file_format=file_format)
    damage(next(directory.glob("*-test.*")), kind)
    with pytest.raises(InputError, match="dataset: cannot read test of ") as caught:
        tfds(dataset="cifar10", path=str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("record", [b"\xff\xff\xff", b"", b"picture"])
@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_refuses_damaged_examples(tmp_path, record, file_format):
    features = FEATURES.FeaturesDict(
        {"image": FEATURES.Image(shape=(6, 5, 3)), "label": FEATURES.ClassLabel(names=["a", "b", "c", "d"])}
    )
    good = features.serialize_example({"image": png(np.zeros((6, 5, 3), np.uint8)), "label": 1})
    bad = features.serialize_example({"image": record, "label": 1}) if record == b"picture" else record
    write(tmp_path / "cifar10" / "1.0.0", examples(), records={"train": [good, good, bad]}, file_format=file_format)
    with pytest.raises(InputError, match=r"cannot read train of .*: record 2 is damaged: "):
        tfds(dataset="cifar10", path=str(tmp_path))


@pytest.mark.parametrize("change", [1, -1])
def test_refuses_another_number_of_tfrecords_than_the_metadata(tmp_path, change):
    directory = tmp_path / "cifar10" / "1.0.0"
    write(directory, examples(), file_format="tfrecord")
    metadata = directory / "dataset_info.json"
    metadata.write_text(metadata.read_text().replace('"9"', f'"{9 + change}"'))
    with pytest.raises(InputError, match="cannot read train of "):
        tfds(dataset="cifar10", path=str(tmp_path))


def test_refuses_other_formats(tmp_path):
    directory = tmp_path / "cifar10" / "1.0.0"
    write(directory, examples(), file_format="tfrecord")
    metadata = directory / "dataset_info.json"
    metadata.write_text(metadata.read_text().replace('"tfrecord"', '"riegeli"'))
    with pytest.raises(InputError, match="expected records in array_record or tfrecord, got riegeli"):
        tfds(dataset="cifar10", path=str(tmp_path))


def test_tfrecords_of_another_writer_are_read(tmp_path):
    records = [b"", b"a", os.urandom(5000), b"last"]
    writer = RecordWriter(str(tmp_path / "records"))
    for record in records:
        writer.write(record)
    writer.close()
    assert list(read_tfrecords(tmp_path / "records")) == records


@pytest.mark.parametrize("missing", [1, 4, 5, 17, 21, 30])
def test_truncated_tfrecords_are_refused(tmp_path, missing):
    file = tmp_path / "records"
    content = frame(b"abc") + frame(b"abcdefgh")
    file.write_bytes(content[:-missing])
    with pytest.raises(ValueError, match="ends within a record"):
        list(read_tfrecords(file))


def test_slow_libraries_are_imported_only_when_used():
    script = (
        "import sys; import imbal_jax.data.arrays, imbal_jax.data.digits, imbal_jax.data.known;"
        "import imbal_jax.data.prepare, imbal_jax.data.prepared;"
        "print([name for name in ('tensorflow_datasets', 'sklearn', 'array_record') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert done.stdout.strip() == "[]"


def test_reading_never_needs_tensorflow(tmp_path):
    splits = examples()
    write(tmp_path / "cifar10" / "1.0.0", splits)
    script = (
        "import sys; from imbal_jax.data.prepared import tfds;"
        f"print(len(tfds(dataset='cifar10', path={str(tmp_path)!r}).train.labels), 'tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert done.stdout.strip() == "9 False"
    assert "OpenCV" not in done.stderr
