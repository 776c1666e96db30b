"""Corpora of labelled recordings, as their tables tell them; the audio stays on disk."""

import collections
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from imbal_jax.class_counts import count_labels
from imbal_jax.errors import InputError

SPLITS = ("train", "validation", "test", "test_2")
_SHOWN = 10  # offending rows named in a message


class Recordings(NamedTuple):
    """The labelled recordings of one split; the audio stays on disk."""

    paths: tuple[pathlib.Path, ...]
    labels: np.ndarray  # int32 [n] class indices
    speakers: tuple[str, ...] | None = None  # "" where one is unknown, None where all are


class Corpus(NamedTuple):
    """What a table of recordings delivers."""

    name: str
    class_names: tuple[str, ...]  # in the order of the labels
    splits: dict[str, Recordings]  # those of `SPLITS` that exist, in that order
    notes: tuple[str, ...] = ()  # what was left out, made up or is suspicious, one line each

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)


class Row(NamedTuple):
    """One recording; "" stands for what is unknown."""

    path: str
    label: str  # the class's name
    split: str  # one of `SPLITS`
    speaker: str = ""
    line: int = 0  # of the table


def corpus_of(name: str, class_names: Sequence[str], rows: Sequence[Row], notes: Iterable[str] = ()) -> Corpus:
    """Groups recordings by split, in their order; notes classes absent from a split and speakers in several splits.

    Args:
      name: of the corpus.
      class_names: in the order of the labels; every row's label is one of them.
      rows: the recordings.
      notes: what is to be said already.

    Raises:
      InputError: there are no recordings.
    """
    if not rows:
        raise InputError(f"{name}: expected at least one recording, got none that is used")
    notes, splits = list(notes), {}
    index = {label: number for number, label in enumerate(class_names)}
    known = any(row.speaker for row in rows)
    for split in SPLITS:
        chosen = [row for row in rows if row.split == split]
        if chosen:
            labels = np.array([index[row.label] for row in chosen], np.int32)
            speakers = tuple(row.speaker for row in chosen) if known else None
            splits[split] = Recordings(tuple(pathlib.Path(row.path) for row in chosen), labels, speakers)
            empty = [label for label in class_names if index[label] not in labels]
            notes += [f"no recording in {split} of {some(empty)}"] if empty else []
    places: dict[str, set[str]] = collections.defaultdict(set)
    for row in rows:
        places[row.speaker].add(row.split)
    shared = sorted(speaker for speaker, where in places.items() if speaker and len(where) > 1)
    notes += [f"speakers in more than one split: {some(shared)}"] if shared else []
    return Corpus(name, tuple(class_names), splits, tuple(notes))


def counts(corpus: Corpus) -> dict[str, np.ndarray]:
    """Recordings per class, int64 [num_classes], by split."""
    return {name: count_labels(split.labels, corpus.num_classes) for name, split in corpus.splits.items()}


def fingerprint(corpus: Corpus) -> str:
    """SHA-256, in hexadecimal, of the class names and of every recording's split, path, label and speaker, in order.

    Paths count from the folder that holds them all, so a corpus that was moved keeps its fingerprint. The name, the
    notes and the audio itself do not count.
    """
    folders = {os.path.abspath(path.parent) for split in corpus.splits.values() for path in split.paths}
    common = os.path.commonpath(folders)
    listed = []
    for name, split in corpus.splits.items():
        paths = [pathlib.Path(os.path.relpath(path, common)).as_posix() for path in split.paths]
        listed.append((name, paths, split.labels.tolist(), split.speakers))
    return hashlib.sha256(json.dumps([corpus.class_names, listed]).encode()).hexdigest()


def some(items: Sequence[str]) -> str:
    """The first ten of a list, for a message, and how many there are."""
    return f"{', '.join(items[:_SHOWN])}{', ...' if len(items) > _SHOWN else ''} ({len(items)})"


def refuse(where: str, faults: dict[str, list[str]]) -> None:
    """Raises InputError with the first places of every kind of fault, if there are any."""
    told = [f"{kind}: {some(places)}" for kind, places in faults.items() if places]
    if told:
        raise InputError(f"{where}: {'; '.join(told)}")
