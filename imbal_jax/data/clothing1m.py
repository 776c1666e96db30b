"""Clothing1M with the lists that its authors give out: noisy labels to train on, clean ones to test on."""

import pathlib

import numpy as np

from imbal_jax.data.dataset import Dataset
from imbal_jax.data.image_list import Listed, check_classes, dataset_of, listing, read_lines, read_list
from imbal_jax.data.image_set import IMAGENET_MEAN, IMAGENET_STD, View, check_view
from imbal_jax.errors import InputError

CLASSES = (
    *("T-Shirt", "Shirt", "Knitwear", "Chiffon", "Sweater", "Hoodie", "Windbreaker", "Jacket", "Downcoat", "Suit"),
    *("Shawl", "Dress", "Vest", "Underwear"),
)


def clothing1m(
    *,
    root: str,
    train: str = "noisy",
    size: int = 224,
    resize: int = 256,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    threads: int = 0,
) -> Dataset:
    """Clothing1M (Xiao et al. 2015): a million training pictures with noisy labels of 14 classes.

    The folder holds the pictures under images/, the lists of keys noisy_train_key_list.txt, clean_val_key_list.txt and
    clean_test_key_list.txt (and clean_train_key_list.txt), and the labels noisy_label_kv.txt and clean_label_kv.txt.
    A key is a picture's path relative to the folder. Validation and test pictures have clean labels.

    Args:
      root: the folder.
      train: "noisy" for the training pictures with noisy labels, or "clean" for the 50,000 with clean ones.
      size: see `imbal_jax.data.image_list.image_list`, as all others.
      resize: of the shorter side.
      mean: of the channels.
      std: likewise.
      threads: that decode at a time.

    Raises:
      InputError: an option is out of its range; a list is missing or faulty, or has keys without label; or pictures are
        missing.
    """
    if train not in ("noisy", "clean"):
        raise InputError(f"data.train: expected 'noisy' or 'clean', got {train!r}")
    view = check_view(View(size, resize, mean, std, threads))
    folder = pathlib.Path(root).expanduser()
    labels = {kind: _labels(folder / f"{kind}_label_kv.txt") for kind in dict.fromkeys((train, "clean"))}
    listed = {
        "train": _listed(folder / f"{train}_train_key_list.txt", labels[train]),
        "validation": _listed(folder / "clean_val_key_list.txt", labels["clean"]),
        "test": _listed(folder / "clean_test_key_list.txt", labels["clean"]),
    }
    return dataset_of("clothing1m", CLASSES, folder, listed, view)


def _labels(file: pathlib.Path) -> dict[str, int]:
    """The classes of the keys of a file."""
    read = read_list(file, "data.root")
    check_classes(read.labels, len(CLASSES), str(file), "data.root")
    return dict(zip(read.names, read.labels.tolist(), strict=True))


def _listed(file: pathlib.Path, labels: dict[str, int]) -> Listed:
    """The keys of a file with their classes."""
    keys = [key for _, key in read_lines(file, "data.root")]
    unknown = [key for key in keys if key not in labels]
    if unknown:
        raise InputError(f"data.root: {len(unknown)} keys of {file} have no label: {listing(unknown)}")
    return Listed(keys, np.array([labels[key] for key in keys], np.int64))
