"""Searches for learning rates and dampings, each method along values of its own."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.study import Axis, Cell, Search, Study, Table

NO_DAMPING = "none"  # on the axis of dampings, of a direction without one


def make_search(
    name: str,
    config: str,
    candidates: Mapping[str, tuple[Sequence[str], Sequence[str]]],
    overrides: Mapping[str, Any],
    *,
    seeds: tuple[int, ...] = (0, 1, 2),
    metric: str = "validation/cross_entropy",
    largest: bool = False,
) -> Study:
    """A study that searches every method's learning rate and damping on a grid.

    Args:
      name: of the study's file.
      config: with "{method}" in it.
      candidates: by method, learning rates and dampings; no dampings where its direction has none.
      overrides: leaves that differ from the config in every run.
      seeds: of every candidate.
      metric: of the validation set, that chooses.
      largest: whether more is better.
    """
    by_method = {method: (rates, dampings or (NO_DAMPING,)) for method, (rates, dampings) in candidates.items()}

    def is_candidate(cell: Cell) -> bool:
        rates, dampings = by_method[cell["method"]]
        return cell["learning_rate"] in rates and cell["damping"] in dampings

    def overrides_of(cell: Cell) -> dict[str, str]:
        return {} if cell["damping"] == NO_DAMPING else {"direction.damping": cell["damping"]}

    return Study(
        name=name,
        config=config,
        axes=(
            Axis("method", tuple(by_method)),
            Axis("learning_rate", _union(rates for rates, _ in by_method.values()), key="schedule.learning_rate"),
            Axis("damping", _union(dampings for _, dampings in by_method.values())),
        ),
        tables=(Table("accuracy", f"Candidates of {name}", rows="method"),),
        seeds=seeds,
        overrides=overrides,
        overrides_of=overrides_of,
        where=is_candidate,
        search=Search(("learning_rate", "damping"), metric, largest),
    )


def _union(many: Any) -> tuple[str, ...]:
    """All different values, in the order of their first appearance."""
    return tuple(dict.fromkeys(value for values in many for value in values))
