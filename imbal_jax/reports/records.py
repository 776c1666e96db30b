"""What a run writes while it goes: JSON lines, JSON files and TensorBoard events.

All JSON is strict: a NaN or an infinite number becomes null, so that every parser can read it.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from imbal_jax.errors import InputError

Record = dict[str, Any]


def plain(value: Any) -> Any:
    """Turns a value into what strict JSON can hold.

    Args:
      value: nested mappings, lists, tuples, NumPy or JAX arrays and scalars, strings, paths, None.

    Returns:
      The same in dicts, lists and Python scalars; None in the place of a NaN or infinite number.

    Raises:
      InputError: something in it has no JSON form.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "__array__"):
        array = np.asarray(value)
        # bfloat16 and the like are no NumPy types and would not come out of tolist() as Python numbers.
        return plain((array if array.dtype.kind in "biufUO" else array.astype(np.float64)).tolist())
    raise InputError(f"record: expected numbers, strings, lists and mappings, got a {type(value).__name__}")


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes one strict JSON document, keys in the order given; the file is either the old one or the whole new one.

    Raises:
      InputError: something in the value has no JSON form.
    """
    _replace(Path(path), json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def print_json(value: Any) -> None:
    """Prints one JSON document on standard output.

    Raises:
      InputError: something in the value has no JSON form.
    """
    print(json.dumps(plain(value), indent=2))


class JsonLines:
    """Appends records to a file, one JSON object a line.

    Each record is handed to the operating system before `append` returns, and no file stays open in between. Opening
    a file drops the half line that a killed process may have left at its end.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists() and not self.path.read_bytes().endswith(b"\n"):
            _rewrite(self.path, read(self.path))

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds one record.

        Raises:
          InputError: something in the record has no JSON form.
        """
        line = _line(record)
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:  # a failed write does not name its file
            raise OSError(error.errno, error.strerror, str(self.path)) from error


def read(path: str | os.PathLike) -> list[Record]:
    """Reads the records of a file of JSON lines; a half-written last line is left out.

    Raises:
      InputError: there is no such file, or a whole line is no JSON object.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        raise InputError(f"records: expected a file of JSON lines, found none at {path}") from None
    records: list[Record] = []
    for number, line in enumerate(lines, start=1):
        record = _parsed(line)
        if record is not None:
            records.append(record)
        elif line.endswith(b"\n"):
            raise InputError(f"records: expected a JSON object on line {number} of {path}, got {line[:40]!r}")
    return records


def truncate_after(path: str | os.PathLike, step: int) -> list[Record]:
    """Drops what a run wrote after the step it resumes from.

    The file is replaced in one move, so a second kill leaves the old or the new one. Records without a "step" stay.
    A missing file stays missing: a run may be killed before its first record.

    Args:
      path: the file of JSON lines.
      step: the last step to keep, that of the checkpoint.

    Returns:
      The records kept.

    Raises:
      InputError: a whole line is no JSON object.
    """
    if not Path(path).exists():
        return []
    kept = [record for record in read(path) if record.get("step", step) <= step]
    _rewrite(Path(path), kept)
    return kept


def tensorboard_writer(directory: str | os.PathLike, *, resumed_step: int | None = None):
    """Opens a TensorBoard event file; close it with its `close()`.

    Args:
      directory: where event files lie; created if missing.
      resumed_step: the step of the checkpoint that a run continues from. TensorBoard then hides the events that the
        interrupted run wrote after it. None for a new run.

    Returns:
      A `tensorboardX.SummaryWriter`, which needs no TensorFlow.
    """
    from tensorboardX import SummaryWriter  # imports slowly, and only some runs want events

    if resumed_step is None:
        return SummaryWriter(os.fspath(directory))
    # File names hold the time in whole seconds: the suffix keeps a quick restart from overwriting the first file.
    purged = resumed_step + 1
    return SummaryWriter(os.fspath(directory), purge_step=purged, filename_suffix=f".from{purged}")


def write_scalars(writer: Any, record: Mapping[str, Any]) -> None:
    """Writes the finite numbers of a record as TensorBoard scalars at its "step"; lists and nulls are left out.

    Raises:
      InputError: the record has no "step".
    """
    if "step" not in record:
        raise InputError(f"record: expected a key 'step', got {sorted(record)}")
    for key, value in plain(record).items():
        if key != "step" and isinstance(value, int | float):
            writer.add_scalar(key, value, record["step"])


def _line(record: Mapping[str, Any]) -> str:
    """One record as one line."""
    return json.dumps(plain(record), allow_nan=False) + "\n"


def _parsed(line: bytes) -> Record | None:
    """The object on a line; None where there is no whole one."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _rewrite(path: Path, records: Iterable[Record]) -> None:
    """Replaces a file of JSON lines."""
    _replace(path, "".join(map(_line, records)))


def _replace(path: Path, text: str) -> None:
    """Writes a temporary neighbour and moves it over the file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
