"""What a finished seed's selected parameters reach on validation, for choices among runs."""

import json
import pathlib

from imbal_jax.errors import InputError
from imbal_jax.reports.records import read

VALIDATION = "validation/"


def validation_score(seed_folder: pathlib.Path, metric: str) -> float | None:
    """A metric of the selected parameters; for a model with a grid of conditions, at the condition that is best for it.

    Args:
      seed_folder: with result.json and metrics.jsonl, and conditions.json where there is a grid.
      metric: such as "validation/auc".

    Returns:
      None where it is no number or was not measured.

    Raises:
      InputError: a file cannot be read.
    """
    try:
        conditions = seed_folder / "conditions.json"
        if conditions.exists():
            best = json.loads(conditions.read_text())["best"].get(metric.removeprefix(VALIDATION))
            return None if best is None else best["validation"]
        step = json.loads((seed_folder / "result.json").read_text()).get("best_step")
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"--workdir: cannot read the results in {seed_folder}: {error}") from error
    if not (seed_folder / "metrics.jsonl").exists():
        return None
    return {record.get("step"): record for record in read(seed_folder / "metrics.jsonl")}.get(step, {}).get(metric)
