"""Turns the authors' CIFAR archives into a directory that tensorflow-datasets reads, without TensorFlow."""

import gzip
import io
import os
import pathlib
import shutil
import tarfile
import tempfile
import zlib
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

from imbal_jax.data.known import KNOWN
from imbal_jax.errors import InputError

_PIXELS = 3 * 32 * 32  # bytes of an image: the red plane, the green and the blue, row by row
_VERSION = "3.0.2"  # the version of tensorflow-datasets' own cifar10 and cifar100, whose features are written here
_LARGEST_MEMBER = 50_000 * (2 + _PIXELS)  # bytes of CIFAR-100's train.bin, the largest file of both archives


class _Layout(NamedTuple):
    """The files of an archive."""

    files: dict[str, tuple[str, ...]]  # by split; a record is one byte per label, then the pixels
    names: dict[str, str]  # by label, in the order of the label bytes: the file with the classes' names

    @property
    def members(self) -> list[str]:
        """All files that are read."""
        return [*self.names.values(), *(file for files in self.files.values() for file in files)]


_LAYOUTS = {
    "cifar10": _Layout(
        files={"train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)), "test": ("test_batch.bin",)},
        names={"label": "batches.meta.txt"},
    ),
    "cifar100": _Layout(
        files={"train": ("train.bin",), "test": ("test.bin",)},
        names={"coarse_label": "coarse_label_names.txt", "label": "fine_label_names.txt"},
    ),
}


class CifarSplit(NamedTuple):
    """One split of an archive."""

    images: np.ndarray  # uint8 [n, 32, 32, 3]
    labels: dict[str, np.ndarray]  # uint8 [n] each: "label" and, in CIFAR-100, "coarse_label"


class CifarArchive(NamedTuple):
    """What an archive holds."""

    name: str  # "cifar10" or "cifar100"
    class_names: dict[str, tuple[str, ...]]  # by label
    splits: dict[str, CifarSplit]  # "train" and "test"


def prepare_cifar(archive: str, data_dir: str) -> pathlib.Path:
    """Writes the binary CIFAR-10 or CIFAR-100 archive as array_record, readable by `prepared.tfds`.

    The directory has the name, version and features of tensorflow-datasets' own, so that library reads it too; the
    records keep the authors' order, which the library's own preparation shuffles. Images are stored as PNG. The
    directory appears complete or not at all.

    Args:
      archive: cifar-10-binary.tar.gz or cifar-100-binary.tar.gz as the authors publish it; nothing is unpacked to disk.
      data_dir: the directory that gets <name>/<version>; made if absent.

    Returns:
      The version's directory.

    Raises:
      InputError: the archive is missing, damaged, another one, or not of the published size; the directory exists
        already or cannot be written.
    """
    contents = read_cifar_archive(archive)
    _require_published_counts(contents)
    return write_prepared(contents, data_dir)


def read_cifar_archive(archive: str) -> CifarArchive:
    """Parses an archive and checks its sizes and labels, but not the number of examples.

    Args:
      archive: path of the .tar.gz; "~" stands for the home directory.

    Raises:
      InputError: the archive is missing, damaged or another one; a file's size or a label is impossible.
    """
    path = pathlib.Path(archive).expanduser()
    members = _read_members(path)
    name = "cifar10" if "data_batch_1.bin" in members else "cifar100"
    layout = _LAYOUTS[name]
    missing = [file for file in layout.members if file not in members]
    if missing:
        raise InputError(f"input: {path} lacks {', '.join(missing)}; expected {KNOWN[name].archive} complete")
    class_names = {label: _parse_names(file, members[file]) for label, file in layout.names.items()}
    return CifarArchive(
        name=name,
        class_names=class_names,
        splits={
            split: _parse_split({file: members[file] for file in files}, class_names)
            for split, files in layout.files.items()
        },
    )


def _read_members(path: pathlib.Path) -> dict[str, bytes]:
    """The files of interest by name without folder, read into memory in one pass; their paths are never written to."""
    if not path.is_file():
        raise InputError(f"input: expected {_archives()}, found no file {path.absolute()}")
    wanted = {file for layout in _LAYOUTS.values() for file in layout.members}
    members: dict[str, bytes] = {}
    others = []
    try:
        with gzip.open(path) as stream:
            with tarfile.open(fileobj=stream, mode="r|") as tar:
                for member in tar:
                    file = pathlib.PurePosixPath(member.name).name
                    if not member.isfile() or file not in wanted:
                        others.append(member.name)
                        continue
                    if file in members or member.size > _LARGEST_MEMBER:
                        raise InputError(
                            f"input: expected {member.name} once in {path} and of at most {_LARGEST_MEMBER} bytes"
                        )
                    members[file] = tar.extractfile(member).read()  # type: ignore[union-attr]
            while stream.read(1 << 20):  # to the end, where gzip's checksum of the whole is verified
                pass
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise InputError(
            f"input: {path} is damaged, truncated or no .tar.gz: {error}; expected {_archives()}"
        ) from error
    if not {"data_batch_1.bin", "train.bin"} & members.keys():
        raise InputError(_wrong_archive(path, others))
    return members


def _archives() -> str:
    """The archives that can be prepared."""
    return " or ".join(known.archive for known in KNOWN.values() if known.archive)


def _wrong_archive(path: pathlib.Path, names: list[str]) -> str:
    """What is wrong with an archive without CIFAR's binary files."""
    binary = f"expected the binary version, {_archives()}"
    if any("-batches-py" in name or "cifar-100-python" in name for name in names):
        return f"input: {path} is the python version, whose pickles are never loaded; {binary}"
    if any(name.endswith(".mat") for name in names):
        return f"input: {path} is the Matlab version; {binary}"
    return f"input: expected {_archives()}, got {path}, which holds {', '.join(names[:5]) or 'nothing'}"


def _parse_names(file: str, content: bytes) -> tuple[str, ...]:
    """The names of the classes, one a line."""
    try:
        names = tuple(line.strip() for line in content.decode("ascii").splitlines() if line.strip())
    except UnicodeDecodeError as error:
        raise InputError(f"input: {file}: expected one class name a line, got {error}") from error
    if len(names) < 2 or len(set(names)) < len(names):
        raise InputError(
            f"input: {file}: expected distinct class names, got {len(names)} of which {len(set(names))} differ"
        )
    return names


def _parse_split(files: dict[str, bytes], class_names: dict[str, tuple[str, ...]]) -> CifarSplit:
    """The records of a split's files, in order."""
    size = len(class_names) + _PIXELS
    for file, content in files.items():
        if not content or len(content) % size:
            raise InputError(f"input: {file}: expected records of {size} bytes, got {len(content)} bytes in all")
    records = np.concatenate([np.frombuffer(content, np.uint8) for content in files.values()]).reshape(-1, size)
    labels = {label: records[:, position].copy() for position, label in enumerate(class_names)}
    for label, values in labels.items():
        outside = np.flatnonzero(values >= len(class_names[label]))
        if len(outside):
            raise InputError(
                f"input: {', '.join(files)}: expected {label} in 0..{len(class_names[label]) - 1}, got"
                f" {values[outside[0]]} at record {outside[0]}"
            )
    planes = records[:, len(class_names) :].reshape(-1, 3, 32, 32)
    return CifarSplit(np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels)


def _require_published_counts(archive: CifarArchive) -> None:
    """Refuses an archive with other numbers of examples per class than published."""
    known = KNOWN[archive.name]
    for split, published in (("train", known.train_counts), ("test", known.test_counts)):
        counts = np.bincount(archive.splits[split].labels["label"], minlength=known.num_classes)
        if counts.tolist() != list(published):
            raise InputError(
                f"input: expected {sum(published)} {split} examples of {archive.name}, {published[0]} in each of"
                f" {known.num_classes} classes, got {counts.sum()}, {counts.min()} to {counts.max()} in"
                f" {len(counts)} classes"
            )


def write_prepared(archive: CifarArchive, data_dir: str) -> pathlib.Path:
    """Writes an archive's contents to <data_dir>/<name>/<version>.

    Args:
      archive: the contents.
      data_dir: the data directory, made if absent; "~" stands for the home directory.

    Returns:
      The version's directory.

    Raises:
      InputError: it exists already or cannot be written.
    """
    root = pathlib.Path(data_dir).expanduser().absolute()
    final = root / archive.name / _VERSION
    if final.exists():
        raise InputError(f"output: {final} exists already; read it, or remove it to prepare {archive.name} again")
    temporary = None
    try:
        root.mkdir(parents=True, exist_ok=True)
        temporary = pathlib.Path(tempfile.mkdtemp(prefix=".prepare-", dir=root))
        building = temporary / _VERSION
        building.mkdir()
        _write_records(archive, building)
        final.parent.mkdir(exist_ok=True)
        os.rename(building, final)
    except (OSError, RuntimeError) as error:  # array_record raises RuntimeError when it cannot write
        raise InputError(f"output: cannot write {final}: {error}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return final


def _write_records(archive: CifarArchive, directory: pathlib.Path) -> None:
    """One array_record file per split and the metadata of the whole."""
    # Imported here because only this task needs them and they are slow.
    import tensorflow_datasets
    from array_record.python.array_record_module import ArrayRecordWriter

    features = _features(archive)
    template = tensorflow_datasets.core.ShardedFileTemplate(
        data_dir=directory, dataset_name=archive.name, filetype_suffix="array_record"
    )
    infos = []
    for name, split in archive.splits.items():
        file = template.replace(split=name).sharded_filepath(shard_index=0, num_shards=1)
        # One record a group, as tensorflow-datasets writes it: the readers fetch records one by one.
        writer = ArrayRecordWriter(os.fspath(file), "group_size:1")
        num_bytes = 0
        for index, image in enumerate(split.images):
            labels = {label: int(values[index]) for label, values in split.labels.items()}
            record = features.serialize_example({"id": f"{name}_{index:05d}", "image": _png(image), **labels})
            writer.write(record)
            num_bytes += len(record)
        writer.close()
        infos.append(
            tensorflow_datasets.core.SplitInfo(
                name=name, shard_lengths=[len(split.images)], num_bytes=num_bytes, filename_template=template
            )
        )
    known = KNOWN[archive.name]
    tensorflow_datasets.folder_dataset.write_metadata(
        data_dir=directory,
        features=features,
        split_infos=infos,
        version=_VERSION,
        check_data=False,  # the check needs TensorFlow
        description=f"{archive.name} from {known.archive}, in the authors' order. Terms: {known.licence}.",
        homepage=known.source,
        supervised_keys=("image", "label"),
        disable_shuffling=True,
    )


def _features(archive: CifarArchive) -> Any:
    """The features of tensorflow-datasets' own cifar10 and cifar100."""
    from tensorflow_datasets import features

    labels = {label: features.ClassLabel(names=list(names)) for label, names in archive.class_names.items()}
    return features.FeaturesDict({"id": features.Text(), "image": features.Image(shape=(32, 32, 3)), **labels})


def _png(image: np.ndarray) -> bytes:
    """The image as PNG, which is lossless; the library itself would need TensorFlow to make one."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()
