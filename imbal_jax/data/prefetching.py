"""Batches made ahead of time by a thread of their own."""

import queue
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from imbal_jax.errors import InputError

Item = TypeVar("Item")


class _End(NamedTuple):
    """The last thing in a queue: why there is no more."""

    error: BaseException | None


class Prefetcher(Generic[Item]):
    """An iterator whose items are made ahead of time, one after the other, by a thread of its own.

    Items come in the order of the rows whatever the timing, so a run that is resumed at a row sees what it would have
    seen. An error in the making is raised where its item was expected. Closing it, leaving its `with` block or letting
    go of it ends the thread.

    Attributes:
      row: the index of the row whose item comes next.
    """

    def __init__(self, rows: Sequence | np.ndarray, make: Callable[..., Item], *, first: int = 0, ahead: int = 2):
        """Starts the thread.

        Args:
          rows: for instance the example indices of each step, [steps, batch].
          make: from a row to an item, for instance a batch; called in the thread.
          first: the row to begin with, in 0..len(rows).
          ahead: most items that wait, >= 1.

        Raises:
          InputError: first or ahead is out of its range.
        """
        if not 0 <= first <= len(rows):
            raise InputError(f"first: expected a row in 0..{len(rows)}, got {first}")
        if ahead < 1:
            raise InputError(f"ahead: expected a number >= 1, got {ahead}")
        self.row = first
        self._items: queue.Queue = queue.Queue(ahead)
        self._stop = threading.Event()
        # The thread knows the queue but not this object, which can so be collected while the thread waits.
        self._thread = threading.Thread(
            target=_make_all, args=(rows, make, first, self._items, self._stop), name="prefetcher", daemon=True
        )
        self._finalizer = weakref.finalize(self, _release, self._items, self._stop)
        self._thread.start()

    def __iter__(self) -> Iterator[Item]:
        """Itself."""
        return self

    def __next__(self) -> Item:
        """The next item.

        Raises:
          StopIteration: there are no more rows, or it was closed.
        """
        if self._stop.is_set():
            raise StopIteration
        item = self._items.get()
        if isinstance(item, _End):
            self.close()
            if item.error is not None:
                raise item.error
            raise StopIteration
        self.row += 1
        return item

    def __enter__(self) -> "Prefetcher[Item]":
        """Itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Closes it."""
        self.close()

    def close(self) -> None:
        """Ends the thread, after the item that it is making, and drops the items that wait; more calls do nothing."""
        self._finalizer()
        self._thread.join()


def _make_all(rows: Sequence, make: Callable, first: int, items: queue.Queue, stop: threading.Event) -> None:
    """The thread: every item from `first` on, then the end; nothing more once it is told to stop."""
    end = _End(None)
    try:
        for index in range(first, len(rows)):
            if stop.is_set():
                return
            items.put(make(rows[index]))
    except BaseException as error:
        end = _End(error)
    if not stop.is_set():
        items.put(end)


def _release(items: queue.Queue, stop: threading.Event) -> None:
    """Tells the thread to stop, and makes room so that it is not waiting to put an item; it puts at most one more."""
    stop.set()
    while True:
        try:
            items.get_nowait()
        except queue.Empty:
            return
