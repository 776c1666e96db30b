"""Progress of a run: a bar on a terminal, plain lines in a log."""

import sys
from typing import Any

from rich import progress as bars
from rich.console import Console

_LINES = 20  # in a log, over the whole run


class Progress:
    """Counts epochs over all seeds; use it as a context manager."""

    def __init__(self, total_epochs: int, title: str):
        self._total, self._title, self._told = total_epochs, title, 0
        # Finished, by run and seed; a continued run does not begin at 0
        self._epochs: dict[tuple[int, int], int] = {}
        self._bar: bars.Progress | None = None
        self._task = bars.TaskID(0)

    def __enter__(self) -> "Progress":
        """Shows the bar if standard error is a terminal."""
        if self._total and sys.stderr.isatty():
            self._bar = bars.Progress(
                bars.TextColumn("{task.description}"),
                bars.BarColumn(bar_width=12),  # everything fits into 80 columns
                bars.MofNCompleteColumn(),
                bars.TextColumn("epochs"),
                bars.TimeRemainingColumn(),
                bars.TextColumn("{task.fields[told]}"),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=self._total, told="")
        return self

    def __exit__(self, *error: object) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.stop()

    def epoch(self, records: dict[tuple[int, int], dict[str, Any]]) -> None:
        """Counts an epoch of some seeds, by run and seed, and tells the metrics of the first."""
        self._epochs |= {member: record["epoch"] for member, record in records.items()}
        seeds = [seed for _, seed in records]
        done, record = sum(self._epochs.values()), next(iter(records.values()))
        if self._bar is not None:
            self._bar.update(self._task, completed=done, told=_describe_briefly(seeds, record))
        elif done == self._total or done - self._told >= self._total / _LINES:
            self._told = done
            told = _describe(seeds, record)
            print(f"{self._title}: {done}/{self._total} epochs, {told}", file=sys.stderr, flush=True)


def _describe(seeds: list[int], record: dict[str, Any]) -> str:
    """The numbers to watch, in a line."""
    parts = [f"seed {seeds[0]}" if len(seeds) == 1 else f"seed {seeds[0]} of {len(seeds)}"]
    parts += [f"epoch {record['epoch']}", f"loss {record['train/loss']:.4g}"]
    if "validation/balanced_accuracy" in record:
        parts.append(f"validation balanced accuracy {record['validation/balanced_accuracy']:.3f}")
    return ", ".join(parts)


def _describe_briefly(seeds: list[int], record: dict[str, Any]) -> str:
    """The same beside a bar."""
    balanced = record.get("validation/balanced_accuracy")
    score = "" if balanced is None else f", balanced {balanced:.2f}"
    return f"seed {seeds[0]}, loss {record['train/loss']:.3g}{score}"


class ProbeProgress:
    """Tells which probe of which group is done, on a terminal; use it as a context manager."""

    def __init__(self, probes: int):
        self._probes = probes
        self._status = Console(stderr=True).status("compiling") if sys.stderr.isatty() else None

    def __enter__(self) -> "ProbeProgress":
        """Shows the line if standard error is a terminal."""
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Takes the line away."""
        if self._status is not None:
            self._status.stop()

    def probe(self, group: str, done: int) -> None:
        """Reports a finished probe; in a log, the last one of a group."""
        line = f"{group}: probe {done} of {self._probes}"
        if self._status is not None:
            self._status.update(line)
        elif done == self._probes:
            print(line, file=sys.stderr, flush=True)
