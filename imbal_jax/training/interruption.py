"""Stopping between two steps when the system asks for it."""

import signal
from types import FrameType


class Interrupted(Exception):  # noqa: N818  (not an error: the run can be continued)
    """The run was asked to stop and has saved its state; the same command continues it."""


class StopRequest:
    """Remembers that SIGTERM, SIGUSR1 or the first Ctrl-C arrived; the training loop looks at it between steps."""

    def __init__(self) -> None:
        self.requested = False

    def install(self) -> "StopRequest":
        """Starts listening; must be called from the main thread."""
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._remember)
        return self

    def _remember(self, number: int, frame: FrameType | None) -> None:
        """Sets the flag; a second Ctrl-C interrupts at once."""
        if number == signal.SIGINT and self.requested:
            raise KeyboardInterrupt
        self.requested = True
