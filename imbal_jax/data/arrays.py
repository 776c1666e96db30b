"""A user's own images, as arrays in one .npz file."""

import pathlib
import tokenize
import zipfile
import zlib
from collections.abc import Callable

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
    members = _read_members(file, _require_expected)
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


def _read_members(file: pathlib.Path, choose: Callable[[pathlib.Path, list[str]], list[str]]) -> dict[str, np.ndarray]:
    """Arrays of an .npz by name: those of its members that `choose` returns, which may also refuse the file."""
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
            return {name: _read_member(file, archive, name) for name in choose(file, archive.files)}
    except InputError:
        raise
    except (ValueError, zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
        raise InputError(f"path: {file.absolute()} is damaged or truncated: {error}") from error


def _require_expected(file: pathlib.Path, names: list[str]) -> list[str]:
    """All arrays, or InputError if one is missing or unknown."""
    missing = [name for name in _REQUIRED if name not in names]
    if missing:
        raise InputError(f"path: {file.absolute()} lacks {', '.join(missing)}; {_EXPECTED}, found {', '.join(names)}")
    if ("x_val" in names) != ("y_val" in names):
        given, absent = ("x_val", "y_val") if "x_val" in names else ("y_val", "x_val")
        raise InputError(f"path: {file.absolute()} holds {given} without {absent}; expected both or neither")
    unknown = [name for name in names if name not in _REQUIRED + _OPTIONAL]
    if unknown:
        raise InputError(f"path: {file.absolute()} holds unknown arrays {', '.join(unknown)}; {_EXPECTED}")
    return names


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

    Args:
      path: the .npz file.

    Returns:
      [n, height, width, channels], uint8 or float32.

    Raises:
      InputError: the file is missing or damaged, has several arrays and none is `x`, holds pickled objects, or the
        images have another type or rank, no examples, or NaN or infinite pixels.
    """
    ((name, array),) = _read_members(path.expanduser(), _only_images).items()
    images = _as_images(name, array)
    if images.ndim != 4 or len(images) == 0:
        raise InputError(f"{name}: expected images [n, height, width, channels], n >= 1, got shape {images.shape}")
    bad = np.flatnonzero(~np.isfinite(images.reshape(len(images), -1)).all(axis=1))
    if len(bad):
        raise InputError(f"{name}: NaN or infinite pixels in {len(bad)} images, first at index {int(bad[0])}")
    return images


def _only_images(file: pathlib.Path, names: list[str]) -> list[str]:
    """The array to predict on."""
    if "x" in names or len(names) == 1:
        return ["x"] if "x" in names else names
    raise InputError(f"path: expected the array x in {file}, or a single array, found {', '.join(names) or 'none'}")
