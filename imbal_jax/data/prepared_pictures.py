"""Pictures that tensorflow-datasets has prepared, decoded batch by batch, without TensorFlow and never downloaded."""

import contextlib
import hashlib
import os
import pathlib
import struct
import threading
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image

from imbal_jax.data.arrays import numbered_classes
from imbal_jax.data.dataset import Dataset, Split
from imbal_jax.data.image_set import IMAGENET_MEAN, IMAGENET_STD, ImageSet, View, check_view, decoded
from imbal_jax.data.prepared import DAMAGE, find_version, one_line, open_builder, records_of
from imbal_jax.errors import InputError

_HEADER = 12  # bytes before a record in a TFRECORD file: its length in 8, the length's checksum in 4


class RecordPictures:
    """The pictures of one split, each in a record of its own."""

    def __init__(self, builder: Any, split: str):
        """Finds the records; nothing is decoded.

        Args:
          builder: of tensorflow-datasets.
          split: one of its splits.

        Raises:
          ValueError: the records' files are damaged.
        """
        import tensorflow_datasets  # slow to import

        self._features, self._split, self._home = builder.info.features, split, builder.data_dir
        self._skip = {"image": tensorflow_datasets.decode.SkipDecoding()}
        self._read = _reader(builder, split)
        self.count = builder.info.splits[split].num_examples
        self._facts = repr((builder.name, str(builder.version), split, self.count, _file_sizes(builder, split)))

    def open(self, row: int) -> PIL.Image.Image:
        """A picture in RGB; InputError, naming it, if it cannot be decoded."""
        name = f"of record {row} of {self._split} in {self._home}"
        try:
            content = self.example(self._read(row))["image"]
        except DAMAGE as error:
            raise InputError(f"data: cannot read the picture {name}: {one_line(error)}") from error
        return decoded(content, name)

    def example(self, record: bytes) -> dict[str, Any]:
        """The features of a record, with the picture as it is stored."""
        return self._features.deserialize_example_np(record, decoders=self._skip)

    def digest(self, rows: np.ndarray) -> bytes:
        """A hash of the numbers of some of the records and of the sizes of the files."""
        return hashlib.blake2b(self.identity + np.ascontiguousarray(rows, np.int64).tobytes(), digest_size=16).digest()

    @property
    def identity(self) -> bytes:
        """A hash of the data set's name and version and of the sizes of the files."""
        return hashlib.blake2b(self._facts.encode(), digest_size=16).digest()


def tfds_pictures(
    *,
    dataset: str,
    path: str = "~/tensorflow_datasets",
    test: str = "test",
    cache: str = "",
    size: int = 224,
    resize: int = 256,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    threads: int = 0,
) -> Dataset:
    """Reads pictures of any size that tensorflow-datasets has prepared, such as imagenet_lt and i_naturalist2018.

    As `imbal_jax.data.prepared.tfds`, but pictures stay on disk until a batch of them is needed. The labels lie among
    them: to learn these, every record is read once at the start, unless a cache holds them.

    Args:
      dataset: the name, as of `tfds`.
      path: the data directory, as of `tfds`.
      test: the split to test on; "validation" where the labels of "test" are not public, as of i_naturalist2018, and
        then there is no validation set.
      cache: a folder for the labels; empty for none. What it holds counts only for files of the same sizes.
      size: see `imbal_jax.data.image_list.image_list`, as all others.
      resize: of the shorter side.
      mean: of the channels.
      std: likewise.
      threads: that decode at a time.

    Raises:
      InputError: an option is out of its range; or nothing is prepared there, or the directory is damaged or holds
        other data than labelled pictures.
    """
    view = check_view(View(size, resize, mean, std, threads))
    directory = find_version(dataset, pathlib.Path(path).expanduser().absolute())
    builder = open_builder(directory, dataset)
    _require_pictures(builder)
    if test not in builder.info.splits:
        raise InputError(f"data.test: expected one of the splits {sorted(builder.info.splits)}, got {test!r}")
    names = {"train": "train", "test": test}
    if "validation" in builder.info.splits and test != "validation":
        names["validation"] = "validation"
    splits = {}
    for name, split in names.items():
        try:
            pictures = RecordPictures(builder, split)
            labels = _labels(pictures, builder, split, cache)
        except DAMAGE as error:
            raise InputError(f"dataset: cannot read {split} of {directory}: {one_line(error)}") from error
        splits[name] = Split(ImageSet(pictures, np.arange(len(labels)), view), labels)
    classes = getattr(builder.info.features["label"], "names", None)
    class_names = tuple(classes) if classes else numbered_classes(list(splits.values()))
    return Dataset(dataset, class_names, splits["train"], splits["test"], splits.get("validation"))


def _require_pictures(builder: Any) -> None:
    """Refuses images that are stored as arrays."""
    import tensorflow_datasets

    if not isinstance(builder.info.features["image"], tensorflow_datasets.features.Image):
        raise InputError(
            f"dataset: expected images stored as pictures in {builder.data_dir}, got {builder.info.features['image']};"
            " read it with data.name=tfds"
        )


def _reader(builder: Any, split: str) -> Callable[[int], bytes]:
    """A function from the number of a record to the record, for use by several threads."""
    import tensorflow_datasets

    info = builder.info.splits[split]
    if builder.info.file_format is not None and builder.info.file_format.value == "tfrecord":
        places = [(file, *place) for file in map(pathlib.Path, info.filepaths) for place in record_places(file)]
        if len(places) != info.num_examples:
            raise ValueError(f"expected {info.num_examples} records, found {len(places)}")

        def read(row: int) -> bytes:
            file, start, length = places[row]
            with file.open("rb") as stream:
                stream.seek(start)
                return stream.read(length)

        return read
    source = builder.as_data_source(
        split=split, deserialize_method=tensorflow_datasets.decode.DeserializeMethod.RAW_BYTES
    )
    lock = threading.Lock()

    def read_locked(row: int) -> bytes:
        with lock:
            return source[row]

    return read_locked


def record_places(file: pathlib.Path) -> list[tuple[int, int]]:
    """Where the records of a TFRECORD file begin and how long they are, in bytes.

    Raises:
      ValueError: the file ends within a record.
    """
    total, position, places = file.stat().st_size, 0, []
    with file.open("rb") as stream:
        while position < total:
            stream.seek(position)
            header = stream.read(_HEADER)
            length = struct.unpack("<Q", header[:8])[0] if len(header) == _HEADER else total
            places.append((position + _HEADER, length))
            position += _HEADER + length + 4  # the data's checksum
    if position != total:
        raise ValueError(f"{file} ends within a record: damaged or truncated")
    return places


def _labels(pictures: RecordPictures, builder: Any, split: str, cache: str) -> np.ndarray:
    """The labels of a split, int32 [n], kept in a folder if there is one."""
    if not cache:
        return _read_labels(pictures, builder, split)
    file = pathlib.Path(cache).expanduser() / f"labels-{pictures.identity.hex()}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):  # there are none yet, or they are damaged
        found = np.load(file, allow_pickle=False)
        if found.shape == (pictures.count,) and found.dtype == np.int32:
            return found
    labels = _read_labels(pictures, builder, split)
    partial = file.with_name(f"{file.name}.partial-{uuid.uuid4().hex}.npy")
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        np.save(partial, labels)
        os.replace(partial, file)
    except OSError as error:
        raise InputError(f"data.cache: {file.parent} cannot be written: {error.strerror or error}") from error
    return labels


def _read_labels(pictures: RecordPictures, builder: Any, split: str) -> np.ndarray:
    """The labels of a split, of one pass over all records."""
    labels = np.fromiter((pictures.example(record)["label"] for record in records_of(builder, split)), np.int32)
    if len(labels) != pictures.count:
        raise ValueError(f"expected {pictures.count} records, found {len(labels)}")
    return labels


def _file_sizes(builder: Any, split: str) -> list[int]:
    """The bytes of the files of a split."""
    return [os.stat(file).st_size for file in builder.info.splits[split].filepaths]
