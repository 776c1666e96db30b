"""Locks that one process holds and the system releases when it dies."""

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Iterator, Sequence


@contextlib.contextmanager
def held(paths: Sequence[pathlib.Path]) -> Iterator[bool]:
    """Takes all locks or none, without waiting; they are released at the end, or when the process dies.

    Args:
      paths: of the lock files, created where they are missing. They stay: a file that is removed could be locked by
        two processes, one of which opened it before.

    Yields:
      Whether the locks are held.
    """
    opened: list[int] = []
    try:
        yield _take(sorted(paths), opened)
    finally:
        for descriptor in opened:
            os.close(descriptor)


def is_free(paths: Sequence[pathlib.Path]) -> bool:
    """Whether nobody holds any of the locks at this moment."""
    with held(paths) as got:
        return got


def _take(paths: Sequence[pathlib.Path], opened: list[int]) -> bool:
    """Locks the files in order; what was opened is added to the list. Stops at the first that another holds."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        opened.append(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666))
        try:
            fcntl.flock(opened[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
