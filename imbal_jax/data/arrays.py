"""A user's own images, as arrays in one .npz file."""

import pathlib
import tokenize
import zipfile
import zlib

import numpy as np

from imbal_jax.data.dataset import Dataset, Split
from imbal_jax.data.known import known_dataset
from imbal_jax.errors import InputError

_REQUIRED = ("x_train", "y_train", "x_test", "y_test")
_OPTIONAL = ("x_val", "y_val")
_EXPECTED = f"expected {', '.join(_REQUIRED)} and optionally {', '.join(_OPTIONAL)}"


def arrays(*, path: str, dataset: str = "") -> Dataset:
    """Reads x_train, y_train, x_test, y_test and optionally x_val, y_val from an .npz file.

    Images are [n, height, width, channels] or [n, height, width], uint8 or floating-point (converted to float32);
    labels are whole numbers, [n] or [n, 1]. Nothing is ever unpickled. Faulty labels and pixels are left for
    `dataset.faults` to list.

    Args:
      path: the .npz file; "~" stands for the home directory.
      dataset: the name used in reports, by default the file's name without its ending. The name of a well-known set
        (`known.KNOWN`) also gives the classes their names; otherwise the classes are the labels up to the largest.

    Raises:
      InputError: the file is missing, damaged or no .npz; an array is missing, unknown, pickled, a scalar, or holds
        pixels of another type.
    """
    file = pathlib.Path(path).expanduser()
    members = _read_members(file)
    splits = {
        split: Split(_as_images(f"x_{split}", members[f"x_{split}"]), _as_labels(members[f"y_{split}"]))
        for split in ("train", "test", "val")
        if f"x_{split}" in members
    }
    known = known_dataset(dataset)
    return Dataset(
        name=dataset or file.stem,
        class_names=known.class_names if known else numbered_classes(list(splits.values())),
        train=splits["train"],
        test=splits["test"],
        validation=splits.get("val"),
    )


def _read_members(file: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz by name, after checking that exactly the expected ones are there."""
    if not file.is_file():
        raise InputError(f"path: expected an .npz file, found none at {file.absolute()}")
    if not zipfile.is_zipfile(file):
        raise InputError(
            f"path: expected an .npz file as numpy.savez writes it, got {file.absolute()}, which is no zip"
        )
    try:
        # Every byte first: NumPy checks a member only to the end of what its header announces.
        with zipfile.ZipFile(file) as members:
            damaged = members.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"the checksum of {damaged} differs")
        with np.load(file, allow_pickle=False) as archive:
            _require_expected(file, archive.files)
            return {name: _read_member(file, archive, name) for name in archive.files}
    except InputError:
        raise
    except (ValueError, zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
        raise InputError(f"path: {file.absolute()} is damaged or truncated: {error}") from error


def _require_expected(file: pathlib.Path, names: list[str]) -> None:
    """Refuses missing and unknown arrays."""
    missing = [name for name in _REQUIRED if name not in names]
    if missing:
        raise InputError(f"path: {file.absolute()} lacks {', '.join(missing)}; {_EXPECTED}, found {', '.join(names)}")
    if ("x_val" in names) != ("y_val" in names):
        given, absent = ("x_val", "y_val") if "x_val" in names else ("y_val", "x_val")
        raise InputError(f"path: {file.absolute()} holds {given} without {absent}; expected both or neither")
    unknown = [name for name in names if name not in _REQUIRED + _OPTIONAL]
    if unknown:
        raise InputError(f"path: {file.absolute()} holds unknown arrays {', '.join(unknown)}; {_EXPECTED}")


def _read_member(file: pathlib.Path, archive: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    """One array of the archive."""
    try:
        array = archive[name]
    except (ValueError, tokenize.TokenError) as error:  # the second is NumPy's on an unfinished header
        if "allow_pickle" in str(error):
            raise InputError(
                f"path: {name} in {file.absolute()} holds pickled objects, which are never unpickled because they can"
                " run code; save it as an array of numbers"
            ) from error
        raise InputError(f"path: {name} in {file.absolute()} is damaged or truncated: {error}") from error
    except MemoryError as error:
        raise InputError(f"path: {name} in {file.absolute()} does not fit in memory: {error}") from error
    if not isinstance(array, np.ndarray) or array.ndim == 0:  # NumPy hands over members that are no arrays as bytes
        raise InputError(f"path: {name} in {file.absolute()}: expected an array with one entry per example")
    return array


def _as_images(name: str, array: np.ndarray) -> np.ndarray:
    """Images uint8 or float32 with a channel axis."""
    if np.issubdtype(array.dtype, np.floating):
        # A value too large for float32 becomes infinite, which the check of the data reports.
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
    elif array.dtype != np.uint8:
        raise InputError(f"{name}: expected uint8 or floating-point pixels, got {array.dtype}")
    return array[..., None] if array.ndim == 3 else array


def _as_labels(array: np.ndarray) -> np.ndarray:
    """Labels int32 [n] where they are whole numbers of that range; otherwise as they are, for the check to report."""
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if not np.issubdtype(array.dtype, np.integer):
        return array
    limits = np.iinfo(np.int32)
    fits = array.size == 0 or (array.min() >= limits.min and array.max() <= limits.max)
    return array.astype(np.int32) if fits else array


def numbered_classes(splits: list[Split]) -> tuple[str, ...]:
    """Names "0", "1", ... up to the largest label, at least two.

    There are never more classes than examples: one stray label of a billion must be reported, not obeyed.
    """
    labels = [split.labels for split in splits if np.issubdtype(split.labels.dtype, np.integer) and split.labels.size]
    largest = max((int(each.max()) for each in labels), default=0)
    examples = sum(len(split.labels) for split in splits)
    return tuple(str(label) for label in range(max(2, min(largest + 1, examples))))


def read_images(path: pathlib.Path) -> np.ndarray:
    """Images to predict on: the array `x` of an .npz file, or its only array.

    Returns:
      [n, height, width, channels], uint8 or float32.

    Raises:
      InputError: the file is missing or damaged, has several arrays and none is `x`, holds pickled objects, or the
        images have another type, no examples, or NaN or infinite pixels.
    """
    raise InputError("x")
