"""How a study stands: a table for the terminal, and the same as JSON."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from experiments.launching.jobs import Paths
from experiments.launching.plan import Plan
from experiments.launching.pool import FAILED, FINISHED, Result, meaning
from experiments.seeds import run_name
from imbal_jax.reports.records import write_json

_STYLES = {FAILED: "bold red", FINISHED: "green"}


def states(plan: Plan, results: Sequence[Result]) -> dict[str, list[tuple[str, str]]]:
    """The state of every seed's run, by cell: (run or seeds, state).

    Args:
      plan: what there was to do.
      results: what became of it.
    """
    found: dict[str, list[tuple[str, str]]] = {
        cell: [(run_name(seeds), "finished before")] if seeds else [] for cell, seeds in plan.finished.items()
    }
    for result in results:
        told = result.state
        if result.status is not None:
            told += f" ({meaning(result.status)})"
        if result.attempts > 1:
            told += f", {result.attempts} tries"
        found[result.job.cell].append((result.job.run, told))
    return found


def status_table(title: str, plan: Plan, results: Sequence[Result]) -> Table:
    """The states as a table."""
    table = Table(title=title)
    for name in ("cell", "run", "state", "seconds"):
        table.add_column(name, justify="right" if name == "seconds" else "left", overflow="fold")
    seconds = {(result.job.cell, result.job.run): result.seconds for result in results}
    for cell, runs in states(plan, results).items():
        for run, state in runs:
            spent = seconds.get((cell, run), 0.0)
            style = _STYLES.get(state.split()[0], "")
            table.add_row(Text(cell), run, Text(state, style=style), f"{spent:.0f}" if spent else "")
    return table


def write_status(paths: Paths, plan: Plan, results: Sequence[Result]) -> None:
    """Writes launch/status.json: the states by cell and run."""
    write_json(paths.launch / "status.json", {cell: dict(runs) for cell, runs in states(plan, results).items()})
