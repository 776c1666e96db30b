"""Pictures in a folder, and the lists that say which of them form a split and what they show."""

import hashlib
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import PIL.Image

from imbal_jax.data.dataset import Dataset, Split
from imbal_jax.data.image_set import IMAGENET_MEAN, IMAGENET_STD, ImageSet, View, check_view, decoded
from imbal_jax.errors import InputError

_SHOWN = 10  # faulty lines and missing files named in a message


class Listed(NamedTuple):
    """What a list says."""

    names: list[str]  # paths relative to the folder of the pictures
    labels: np.ndarray  # int64 [n]


class PictureFiles:
    """Pictures that are files below a folder."""

    def __init__(self, root: pathlib.Path, names: Sequence[str], *, argument: str = "data.root"):
        """Looks whether all files exist.

        Args:
          root: the folder.
          names: paths relative to it.
          argument: the option that the files come from, for messages.

        Raises:
          InputError: files are missing; they are counted and the first ten named.
        """
        if not root.is_dir():
            raise InputError(f"{argument}: expected the folder of the pictures, found none at {root}")
        self.root, self.names = root, names
        self.sizes = np.fromiter(map(_size, (root / name for name in names)), np.int64, len(names))  # in bytes
        missing = np.flatnonzero(self.sizes < 0).tolist()
        if missing:
            shown = listing([names[row] for row in missing])
            raise InputError(f"{argument}: {len(missing)} of {len(names)} pictures are missing in {root}: {shown}")

    def open(self, row: int) -> PIL.Image.Image:
        """A picture in RGB; InputError, naming it, if it cannot be decoded."""
        path = self.root / self.names[row]
        return decoded(path, str(path))

    def digest(self, rows: np.ndarray) -> bytes:
        """A hash of the names and sizes of some of the files: reading all their content would take too long."""
        found = hashlib.blake2b(np.ascontiguousarray(self.sizes[rows]).data, digest_size=16)
        for row in rows:
            found.update(self.names[row].encode() + b"\n")
        return found.digest()


def image_list(
    *,
    root: str,
    train: str,
    test: str,
    validation: str = "",
    num_classes: int = 0,
    size: int = 224,
    resize: int = 256,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    threads: int = 0,
) -> Dataset:
    """Pictures in a folder with published lists of splits, such as those of ImageNet-LT (Liu et al. 2019).

    A list has a line for each picture: its path relative to the folder, blanks, and its class, a whole number from 0
    on. The lists are text files in UTF-8; empty lines are ignored. Pictures are decoded when they are needed: their
    content is checked by --task=check alone.

    Args:
      root: the folder of the pictures.
      train: the list of the training pictures.
      test: likewise.
      validation: likewise; empty for none.
      num_classes: the number of classes; 0 for as many as the training list needs.
      size: height and width of the images.
      resize: of the shorter side, before the square in its middle is cut out for evaluation.
      mean: of the channels, in units of full scale, for standardisation; ImageNet's by default.
      std: likewise.
      threads: that decode at a time; 0 for one per core.

    Raises:
      InputError: an option is out of its range; a list is missing, empty or has faulty lines; or pictures are missing.
    """
    view = check_view(View(size, resize, mean, std, threads))
    files = {"train": train, "test": test, **({"validation": validation} if validation else {})}
    listed = {name: read_list(pathlib.Path(file).expanduser(), f"data.{name}") for name, file in files.items()}
    count = num_classes or largest_class(listed["train"].labels) + 1
    for name, each in listed.items():
        check_classes(each.labels, count, files[name], f"data.{name}")
    name = pathlib.Path(train).stem.removesuffix("_train")
    return dataset_of(name, tuple(map(str, range(count))), pathlib.Path(root).expanduser(), listed, view)


def read_list(path: pathlib.Path, argument: str) -> Listed:
    """Reads a list of pictures and classes.

    Args:
      path: of the list.
      argument: its name, for messages.

    Raises:
      InputError: it is missing, empty, no text, or has lines of another form; these are counted, the first ten named.
    """
    names, labels, faulty = [], [], []
    for number, line in read_lines(path, argument):
        parts = line.rsplit(maxsplit=1)
        if len(parts) == 2 and parts[1].isascii() and parts[1].isdigit() and len(parts[1]) < 10:
            names.append(parts[0])
            labels.append(int(parts[1]))
        else:
            faulty.append(f"line {number}: {line!r}")
    if faulty:
        raise InputError(
            f"{argument}: expected lines 'path class' with a whole number >= 0 in {path}, got {len(faulty)} others:"
            f" {listing(faulty)}"
        )
    return Listed(names, np.asarray(labels, np.int64))


def read_lines(path: pathlib.Path, argument: str) -> list[tuple[int, str]]:
    """The lines of a text file that are not empty, without surrounding blanks, and their numbers from 1.

    Raises:
      InputError: the file is missing, has no such line, or is no text.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{argument}: expected a text file, got {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{argument}: expected text in UTF-8 in {path}: {error}") from error
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if not lines:
        raise InputError(f"{argument}: expected at least one picture in {path}, which is empty")
    return lines


def largest_class(labels: np.ndarray) -> int:
    """The largest label that is not out of all proportion: smaller than the number of examples, at least 1."""
    return max(1, int(labels[labels < len(labels)].max(initial=1)))


def check_classes(labels: np.ndarray, num_classes: int, file: str, argument: str) -> None:
    """Refuses labels that are no class.

    Raises:
      InputError: there are such labels; they are counted, and the first ten named with the pictures' numbers.
    """
    outside = np.flatnonzero(labels >= num_classes)
    if len(outside):
        shown = listing([f"{labels[row]} of picture {row + 1}" for row in outside])
        raise InputError(f"{argument}: expected classes in 0..{num_classes - 1} in {file}, got {shown}")


def dataset_of(
    name: str, class_names: tuple[str, ...], root: pathlib.Path, listed: dict[str, Listed], view: View
) -> Dataset:
    """A data set of pictures in one folder.

    Args:
      name: of the data set.
      class_names: in the order of the labels.
      root: the folder.
      listed: what each split has: "train", "test" and optionally "validation".
      view: what is made of the pictures.

    Raises:
      InputError: pictures are missing.
    """
    pictures = PictureFiles(root, [each for one in listed.values() for each in one.names])
    splits, first = {}, 0
    for split, one in listed.items():
        rows = np.arange(first, first + len(one.names))
        splits[split] = Split(ImageSet(pictures, rows, view), one.labels.astype(np.int32))
        first += len(rows)
    return Dataset(name, class_names, splits["train"], splits["test"], splits.get("validation"))


def _size(path: pathlib.Path) -> int:
    """The bytes of a file, -1 where there is none."""
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def listing(texts: Sequence[str]) -> str:
    """The first ten of some texts, and how many more there are."""
    more = f"; and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return "; ".join(texts[:_SHOWN]) + more
