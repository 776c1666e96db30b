"""Data that tensorflow-datasets has prepared, read without TensorFlow and never downloaded."""

import difflib
import io
import pathlib
import re
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import PIL.Image
from google.protobuf.json_format import ParseError
from google.protobuf.message import DecodeError

from imbal_jax.data.arrays import numbered_classes
from imbal_jax.data.dataset import Dataset, Split
from imbal_jax.data.known import KNOWN, known_dataset
from imbal_jax.errors import InputError

_NAME = re.compile(r"[\w-]+(/\w[\w.-]*)?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_METADATA = "dataset_info.json"
_CHUNK = 1024  # records read at a time
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's name for a picture of so many channels
# What the libraries raise on damaged metadata, records and pictures.
DAMAGE = (
    OSError,
    ValueError,
    LookupError,
    ImportError,  # an unknown kind of feature
    AttributeError,
    TypeError,
    OverflowError,
    RuntimeError,
    SyntaxError,  # Pillow's word for a broken PNG
    struct.error,
    ParseError,
    DecodeError,
)


def tfds(*, dataset: str, path: str = "~/tensorflow_datasets") -> Dataset:
    """Reads a data set that tensorflow-datasets or the prepare task wrote.

    The splits train and test are required, validation is taken where there is one, others are left alone. Records are
    array_record or TFRECORD; the features are found by the names "image" and "label". Records keep their order.

    Args:
      dataset: the name, as "cifar10", or with a configuration, as "name/configuration".
      path: the data directory that holds <dataset>/<version> or <dataset>/<configuration>/<version>, of which the
        newest version is read; or such a version's own directory.

    Raises:
      InputError: nothing is prepared there (the message says what to do), or the directory is damaged or holds other
        data than labelled images of one size.
    """
    root = pathlib.Path(path).expanduser().absolute()
    builder = open_builder(find_version(dataset, root), dataset)
    splits = {
        name: _read_split(builder, name) for name in ("train", "test", "validation") if name in builder.info.splits
    }
    names = getattr(builder.info.features["label"], "names", None)
    return Dataset(
        name=dataset,
        class_names=tuple(names) if names else numbered_classes(list(splits.values())),
        train=splits["train"],
        test=splits["test"],
        validation=splits.get("validation"),
    )


def find_version(dataset: str, root: pathlib.Path) -> pathlib.Path:
    """The directory of the version to read; InputError where there is none."""
    if not _NAME.fullmatch(dataset):
        raise InputError(f"dataset: expected a name such as 'cifar10' or 'name/configuration', got {dataset!r}")
    if (root / _METADATA).is_file():
        return root
    home = root / dataset
    version = _newest_version(home)
    if version is not None:
        return version
    configurations = sorted(each.name for each in home.iterdir() if _newest_version(each)) if home.is_dir() else []
    if len(configurations) > 1:
        choices = ", ".join(f"{dataset}/{name}" for name in configurations)
        raise InputError(f"dataset: {dataset!r} has several configurations in {home}; expected one of {choices}")
    chosen = _newest_version(home / configurations[0]) if configurations else None
    if chosen is None:
        raise InputError(_missing(dataset, root))
    return chosen


def _newest_version(directory: pathlib.Path) -> pathlib.Path | None:
    """The directory of the highest version in there, or None."""
    if not directory.is_dir():
        return None
    versions = [each for each in directory.iterdir() if _VERSION.fullmatch(each.name) and (each / _METADATA).is_file()]
    return max(versions, key=lambda each: tuple(int(part) for part in each.name.split(".")), default=None)


def _missing(dataset: str, root: pathlib.Path) -> str:
    """What was looked for, where, where it comes from and what prepares it."""
    message = (
        f"dataset: expected {dataset!r} prepared by tensorflow-datasets, found no {_METADATA} in {root} or in"
        f" {root / dataset / '<version>'}, and nothing is downloaded"
    )
    known = known_dataset(dataset)
    if known is not None:
        message += f"; its source is {known.source}, its licence: {known.licence}"
    if known is not None and known.archive:
        return (
            f"{message}; prepare it from {known.archive} with"
            f" python -m imbal_jax.main --task=prepare --input={known.archive} --output={root}"
        )
    nearest = difflib.get_close_matches(dataset, KNOWN, n=1)
    if known is None and nearest:
        message += f"; did you mean {nearest[0]!r}?"
    return f"{message}; prepare it where TensorFlow is installed with tfds build {dataset} --data_dir={root}"


def open_builder(directory: pathlib.Path, dataset: str) -> Any:
    """The library's builder of a version's directory, once it is known to hold labelled images in two splits.

    Raises:
      InputError: the metadata cannot be read, or are of something else.
    """
    # Imported here because only this source needs it and it is slow.
    import tensorflow_datasets

    try:
        builder = tensorflow_datasets.builder_from_directory(directory)
    except DAMAGE as error:
        raise InputError(f"dataset: unreadable metadata in {directory}: {one_line(error)}") from error
    features, splits = builder.info.features, builder.info.splits
    if builder.name != dataset.split("/")[0]:
        raise InputError(f"dataset: expected {dataset!r}, but {directory} holds {builder.name!r}")
    if not {"image", "label"} <= set(features):
        raise InputError(f"dataset: {directory} has the features {sorted(features)}; expected image and label")
    if not {"train", "test"} <= set(splits):
        raise InputError(f"dataset: {directory} has the splits {sorted(splits)}; expected train and test")
    label = features["label"]
    if label.shape != () or not np.issubdtype(label.np_dtype, np.integer):
        raise InputError(f"dataset: in {directory}, expected one whole number as label, got {label}")
    return builder


def _read_split(builder: Any, name: str) -> Split:
    """Decodes one split into arrays."""
    try:
        return _stack(
            records_of(builder, name), _decoder(builder.info.features), builder.info.splits[name].num_examples
        )
    except DAMAGE as error:
        raise InputError(f"dataset: cannot read {name} of {builder.data_dir}: {one_line(error)}") from error


def _stack(records: Iterator[bytes], decode: Callable, number: int) -> Split:
    """Decodes a known number of records into arrays made once, so that memory is not held twice."""
    images, labels = None, np.empty(number, np.int32)
    index = -1
    for index, record in enumerate(records):
        try:
            image, labels[index] = decode(record)
        except DAMAGE as error:
            raise ValueError(f"record {index} is damaged: {error}") from error
        if images is None:
            images = np.empty((number, *image.shape), image.dtype)
        if image.shape != images.shape[1:]:
            raise ValueError(
                f"expected images of one size, got {images.shape[1:]}, then {image.shape} at index {index}"
            )
        images[index] = image
    if images is None or index + 1 != number:
        raise ValueError(f"expected {number} records, found {index + 1}")
    return Split(images, labels)


def _decoder(features: Any) -> Callable[[bytes], tuple[np.ndarray, int]]:
    """A function from a record to its image, uint8 or float32, and label."""
    import tensorflow_datasets

    image_feature = features["image"]
    if not isinstance(image_feature, tensorflow_datasets.features.Image):
        dtype = np.dtype(image_feature.np_dtype)
        if dtype != np.uint8 and not np.issubdtype(dtype, np.floating):
            raise ValueError(f"expected uint8 or floating-point images, got {dtype}")

        def decode_array(record: bytes) -> tuple[np.ndarray, int]:
            example = features.deserialize_example_np(record)
            image = example["image"]
            return (image if dtype == np.uint8 else image.astype(np.float32)), example["label"]

        return decode_array

    mode = _MODES.get(image_feature.shape[-1])
    if mode is None or image_feature.np_dtype != np.uint8:
        raise ValueError(f"expected uint8 pictures of 1, 3 or 4 channels, got {image_feature}")
    # The library's own decoder takes twice as long, and tells the user to install OpenCV.
    skip = {"image": tensorflow_datasets.decode.SkipDecoding()}

    def decode_picture(record: bytes) -> tuple[np.ndarray, int]:
        example = features.deserialize_example_np(record, decoders=skip)
        with PIL.Image.open(io.BytesIO(example["image"])) as picture:
            image = np.asarray(picture if picture.mode == mode else picture.convert(mode))
        return (image[..., None] if image.ndim == 2 else image), example["label"]

    return decode_picture


def records_of(builder: Any, name: str) -> Iterator[bytes]:
    """The serialised examples of a split, in order."""
    import tensorflow_datasets

    info, split = builder.info, builder.info.splits[name]
    file_format = info.file_format.value if info.file_format else "an unnamed format"
    if file_format == "array_record":
        raw = tensorflow_datasets.decode.DeserializeMethod.RAW_BYTES
        source = builder.as_data_source(split=name, deserialize_method=raw)
        for start in range(0, len(source), _CHUNK):
            yield from source.__getitems__(list(range(start, min(start + _CHUNK, len(source)))))
    elif file_format == "tfrecord":
        for file, expected in zip(split.filepaths, split.shard_lengths, strict=True):
            found = 0
            for record in read_tfrecords(pathlib.Path(file)):
                found += 1
                yield record
            if found != expected:
                raise ValueError(f"expected {expected} records in {file}, found {found}")
    else:
        raise ValueError(f"expected records in array_record or tfrecord, got {file_format}")


def read_tfrecords(file: pathlib.Path) -> Iterator[bytes]:
    """The records of a TFRECORD file.

    A record is its length in 8 bytes (little-endian), the length's checksum in 4, the data, and their checksum in 4.
    Checksums are not verified: in Python that would take longer than all the rest. Lengths are.

    Args:
      file: an uncompressed TFRECORD file.

    Raises:
      ValueError: the file ends within a record.
    """
    remaining = file.stat().st_size
    with file.open("rb") as stream:
        while remaining:
            header = stream.read(12)
            length = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else remaining
            remaining -= 12 + length + 4
            if remaining < 0:
                raise ValueError(f"{file} ends within a record: damaged or truncated")
            yield stream.read(length)
            stream.seek(4, io.SEEK_CUR)


def one_line(error: Exception) -> str:
    """The error's message without line breaks."""
    return " ".join(str(error).split())
