"""Which classes a run tells apart: those of the source, or groups of them as the two classes of a binary problem.

A grouping maps the names of the source's classes to the names of the run's and, int64 [source classes], the run's class
of each, -1 for one that is left out.
"""

from collections.abc import Callable, Sequence

import numpy as np

from imbal_jax.data.dataset import Dataset, Split, require_valid
from imbal_jax.errors import InputError, not_found

Grouping = Callable[[Sequence[str]], tuple[tuple[str, ...], np.ndarray]]


def all_classes() -> Grouping:
    """The classes of the source, all of them."""
    return lambda names: (tuple(names), np.arange(len(names)))


def groups(
    *, negative: tuple[str, ...], positive: tuple[str, ...], names: tuple[str, ...] = ("negative", "positive")
) -> Grouping:
    """Two groups of classes as classes 0 and 1; examples of all other classes are left out, in every split.

    The positives are meant to be the minority: see the profile `binary`.

    Args:
      negative: names of classes, as the source has them; at least one.
      positive: likewise, and none of the negative ones.
      names: of the two classes.

    Raises:
      InputError: a group is empty, a class is named twice, or the names are not two different ones. On use: the source
        has no such class; the nearest are named.
    """
    named = {"negative": negative, "positive": positive}
    for option, members in named.items():
        if not members:
            raise InputError(f"classes.{option}: expected at least one class, got none")
    listed = [*negative, *positive]
    twice = sorted({name for name in listed if listed.count(name) > 1})
    if twice:
        raise InputError(f"classes: expected every class once, got {', '.join(map(repr, twice))} more than once")
    if len(names) != 2 or names[0] == names[1]:
        raise InputError(f"classes.names: expected two different names, got {tuple(names)}")

    def grouping(source: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
        mapped = np.full(len(source), -1)
        for label, (option, members) in enumerate(named.items()):
            for name in members:
                if name not in source:
                    raise InputError(f"classes.{option}: {not_found(name, source)}")
                mapped[list(source).index(name)] = label
        return tuple(names), mapped

    return grouping


def group_classes(dataset: Dataset, grouping: Grouping) -> Dataset:
    """A data set with the classes of a grouping.

    Args:
      dataset: from a source; returned as it is where the grouping keeps all classes, whatever its faults.
      grouping: see the module's docstring.

    Raises:
      InputError: the source has no such class, or, under other than all classes, the data set has faults.
    """
    names, mapped = grouping(dataset.class_names)
    if names == tuple(dataset.class_names) and (mapped == np.arange(len(names))).all():
        return dataset
    require_valid(dataset)

    def regrouped(split: Split) -> Split:
        labels = mapped[split.labels]
        kept = np.flatnonzero(labels >= 0)
        return Split(split.images[kept], labels[kept].astype(np.int32))

    more = dataset.more_tests
    return dataset._replace(
        class_names=names,
        train=regrouped(dataset.train),
        test=regrouped(dataset.test),
        validation=None if dataset.validation is None else regrouped(dataset.validation),
        more_tests=None if more is None else {name: regrouped(split) for name, split in more.items()},
    )


def group_counts(available: np.ndarray, mapped: np.ndarray, num_classes: int) -> np.ndarray:
    """Examples of each class of a grouping, int64 [num_classes].

    Args:
      available: of each class of the source.
      mapped: of a grouping.
      num_classes: of the run.
    """
    kept = mapped >= 0
    return np.bincount(mapped[kept], weights=np.asarray(available)[kept], minlength=num_classes).astype(np.int64)
