"""Items made ahead of time by a thread."""

import gc
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from imbal_jax.data.prefetching import Prefetcher
from imbal_jax.errors import InputError


def prefetchers():
    """The threads that run."""
    return [thread for thread in threading.enumerate() if thread.name == "prefetcher"]


def wait_for_none():
    """Waits until no thread runs."""
    deadline = time.monotonic() + 10
    while prefetchers() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not prefetchers()


@pytest.mark.parametrize("ahead", [1, 2, 50])
def test_items_come_in_order_from_any_row(ahead):
    rng = np.random.default_rng(0)
    values, rows = rng.normal(size=(5, 8_000)), rng.integers(0, 5, (7, 3))
    whole = list(Prefetcher(rows, lambda row: values[row], ahead=ahead))
    assert len(whole) == 7
    for item, row in zip(whole, rows, strict=True):
        np.testing.assert_array_equal(item, values[row])
    for first in (3, 7):
        with Prefetcher(rows, lambda row: values[row], first=first, ahead=ahead) as resumed:
            assert resumed.row == first
            rest = list(resumed)
            assert resumed.row == 7
        assert len(rest) == 7 - first
        for item, expected in zip(rest, whole[first:], strict=True):
            np.testing.assert_array_equal(item, expected)
    wait_for_none()


def test_no_more_than_stated_is_made_ahead():
    made, gate = [], threading.Semaphore(0)

    def make(row):
        made.append(row)
        gate.release()
        return row

    with Prefetcher(range(100), make, ahead=3) as items:
        for _ in range(4):  # three wait and one is made
            assert gate.acquire(timeout=10)
        time.sleep(0.1)
        assert made == [0, 1, 2, 3]
        assert next(items) == 0
        assert items.row == 1


def test_an_error_is_raised_where_its_item_was_expected():
    def make(row):
        if row == 2:
            raise InputError("row 2 is bad")
        return row

    items = Prefetcher(range(5), make, ahead=9)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(InputError, match=r"^row 2 is bad$"):
        next(items)
    assert items.row == 2
    assert list(items) == []
    wait_for_none()


@pytest.mark.parametrize("taken", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("ahead", [1, 2])
def test_closing_ends_the_thread_whatever_waits(taken, ahead):
    for _ in range(20):
        items = Prefetcher(range(5), lambda row: row, ahead=ahead)
        for _ in range(taken):
            next(items)
        for _ in range(2):
            closer = threading.Thread(target=items.close, daemon=True)
            closer.start()
            closer.join(20)
            assert not closer.is_alive()
        assert not items._thread.is_alive()
        assert list(items) == []
        assert items.row == taken


def test_letting_go_ends_the_thread():
    items = Prefetcher(range(1_000), lambda row: row)
    assert next(items) == 0
    del items
    gc.collect()
    wait_for_none()


def test_a_program_that_forgets_it_ends():
    program = (
        "import time; from imbal_jax.data.prefetching import Prefetcher\n"
        "items = Prefetcher(range(1000), lambda row: time.sleep(0.01) or row); print(next(items))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_prefetching_refuses_invalid_numbers():
    for first in (-1, 4):
        with pytest.raises(InputError, match=rf"^first: expected a row in 0\.\.3, got {first}$"):
            Prefetcher(range(3), lambda row: row, first=first)
    with pytest.raises(InputError, match=r"^ahead: expected a number >= 1, got 0$"):
        Prefetcher(range(3), lambda row: row, ahead=0)
    assert not prefetchers()
