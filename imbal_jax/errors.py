"""The errors a user can cause, told in one line."""

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any


class InputError(ValueError):
    """Bad input: a config, a label, a file or a checkpoint.

    The message names the argument, the value received and what was expected. The command line prints it
    without a traceback.
    """


class CheckpointError(InputError):
    """A checkpoint that cannot be written, read or used with this config."""


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; the last good checkpoint is kept."""


_INTERVALS = {
    "in (0, 1]": lambda value: 0 < value <= 1,
    ">= 0": lambda value: value >= 0,
    "> 0": lambda value: value > 0,
    "< 0": lambda value: value < 0,
    "in [0, 1)": lambda value: 0 <= value < 1,
    "in [0, 1]": lambda value: 0 <= value <= 1,
}


def check_number(name: str, value: float, interval: str) -> float:
    """Returns a finite number in an interval.

    Args:
      name: of the argument, for the message.
      value: to check.
      interval: ">= 0", "> 0", "< 0", "in [0, 1)", "in (0, 1]" or "in [0, 1]".

    Raises:
      InputError: the value is outside, infinite or NaN.
    """
    if not (math.isfinite(value) and _INTERVALS[interval](value)):
        raise InputError(f"{name}: expected a number {interval}, got {value}")
    return value


def choose(methods: Mapping[str, Any], name: str) -> Any:
    """Looks up a config file's argument among the variants it offers.

    Raises:
      InputError: there is no such variant; the nearest are named.
    """
    if name not in methods:
        raise InputError(f"--config: {not_found(name, methods)}")
    return methods[name]


def not_found(name: str, valid: Iterable[str]) -> str:
    """The end of an error message: no 'nmae'; did you mean 'name'? (valid: ...)."""
    valid = list(valid)
    close = difflib.get_close_matches(name, valid, n=2, cutoff=0.5)
    hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
    return f"no {name!r}{hint} (valid: {', '.join(valid) or 'none'})"
