"""Checkpoints that survive being killed, by orbax.

One checkpoint holds the state to continue from and the best one so far together: they are written and renamed into
place as one, so no order of kills can part them, and orbax's habit of deleting the newest checkpoint when it also
keeps the best ones does not matter. The newest two are kept; when one cannot be read, the other is.
"""

import hashlib
import logging
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from imbal_jax.errors import CheckpointError
from imbal_jax.types import PyTree

_log = logging.getLogger(__name__)


class Restored(NamedTuple):
    """A checkpoint read back, in host memory."""

    step: int
    state: PyTree
    best: PyTree
    notes: dict[str, Any]


class Checkpoints:
    """The checkpoints of one seed."""

    def __init__(self, directory: pathlib.Path, *, read_only: bool = False):
        """Opens or creates the directory.

        Args:
          directory: of the checkpoints.
          read_only: change nothing, not even what a killed run left half-written: a run may be writing there.

        Raises:
          CheckpointError: it cannot be created.
        """
        self._directory = directory.absolute()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2, cleanup_tmp_directories=not read_only, read_only=read_only
        )
        try:
            self._manager = ocp.CheckpointManager(self._directory, options=options)
        except OSError as error:
            raise CheckpointError(f"checkpoints: cannot write to {self._directory}: {error}") from error

    def save(self, step: int, state: PyTree, best: PyTree, notes: dict[str, Any]) -> None:
        """Starts writing a checkpoint in the background; the one before is complete afterwards.

        Args:
          step: steps taken.
          state: what to continue from, in host memory and not to be changed any more.
          best: the best parameters so far, likewise.
          notes: anything else, as JSON.

        Raises:
          CheckpointError: this or the previous checkpoint could not be written, for instance for want of space.
        """
        self._write(
            lambda: self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    best=ocp.args.StandardSave(best),
                    notes=ocp.args.JsonSave({**notes, "digest": _digest(state, best)}),
                ),
                force=True,
            )
        )

    def wait(self) -> None:
        """Waits until the last checkpoint is complete.

        Raises:
          CheckpointError: it could not be written.
        """
        self._write(self._manager.wait_until_finished)

    def _write(self, action) -> None:
        """Runs an action of the manager; its many kinds of errors become one line."""
        try:
            action()
            self._manager.check_for_errors()
        except Exception as error:  # tensorstore and orbax raise ValueError, OSError, RuntimeError and others
            kept = self._manager.latest_step()
            last = f"; the checkpoint of step {kept} is kept" if kept is not None else ""
            raise CheckpointError(
                f"checkpoints: cannot write to {self._directory}: {_first_line(error)}{last}"
            ) from error

    def restore(self, step: int, state: PyTree, best: PyTree) -> Restored:
        """Reads the checkpoint of a step.

        Args:
          step: one of `steps()`.
          state: a tree of arrays or shapes like the one saved.
          best: likewise.

        Raises:
          CheckpointError: it is damaged, or of another shape.
        """
        items = {"state": _host_like(state), "best": _host_like(best)}
        args = {name: ocp.args.StandardRestore(tree) for name, tree in items.items()}
        try:
            read = self._manager.restore(step, args=ocp.args.Composite(**args, notes=ocp.args.JsonRestore()))
        except Exception as error:  # a damaged file can fail anywhere in the reader
            raise CheckpointError(f"checkpoint of step {step} cannot be read: {_first_line(error)}") from error
        notes = dict(read["notes"])
        if notes.pop("digest", None) != _digest(read["state"], read["best"]):
            raise CheckpointError(f"checkpoint of step {step} is damaged: its contents do not match their digest")
        return Restored(step, read["state"], read["best"], notes)

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def discard_after(self, step: int) -> None:
        """Deletes the checkpoints beyond a step, which will be taken again."""
        for later in [s for s in self._manager.all_steps() if s > step]:
            self._manager.delete(later)

    def close(self) -> None:
        """Waits and releases the manager's threads."""
        self.wait()
        self._manager.close()


def to_host(tree: PyTree) -> PyTree:
    """Copies a tree into host memory. A copy: on CPU a fetched array may alias a buffer that is donated later."""
    return jax.tree.map(lambda leaf: np.array(leaf), jax.device_get(tree))


def restore_newest(group: list[Checkpoints], state: PyTree, best: PyTree) -> list[Restored] | None:
    """Reads the newest checkpoint that every seed of a group has and that can be read.

    Args:
      group: the checkpoints of seeds that are trained together.
      state: a tree of arrays or shapes like that of one seed.
      best: likewise.

    Returns:
      One for each seed, all of the same step; None where there is no common step.

    Raises:
      CheckpointError: there are common steps, but none can be read.
    """
    common = set.intersection(*(set(checkpoints.steps()) for checkpoints in group))
    failure = None
    for step in sorted(common, reverse=True):
        try:
            restored = [checkpoints.restore(step, state, best) for checkpoints in group]
        except CheckpointError as error:
            failure = error
            _log.warning("%s; falling back to the checkpoint before", error)
            continue
        return restored
    if failure is not None:
        raise CheckpointError(f"checkpoints: none can be read; {failure}; start anew in another workdir")
    return None


def _digest(state: PyTree, best: PyTree) -> str:
    """A hash of all arrays: the reader does not notice every damaged byte by itself."""
    digest = hashlib.blake2b(digest_size=16)
    for leaf in jax.tree.leaves((state, best)):
        digest.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    """The first line of an error's message, or its type; want of space in few words."""
    if "No space left" in str(error):
        return "no space left on the device"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def _host_like(tree: PyTree) -> PyTree:
    """Empty NumPy arrays of the shapes and types of a tree: what to restore into."""
    return jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), tree)
