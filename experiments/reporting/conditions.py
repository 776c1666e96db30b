"""Under what conditions the runs of a table were made, and where they differ."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.reporting.collect import CellResults, unexpected
from experiments.seeds import read_object
from experiments.study import cell_name
from imbal_jax.data.known import known_dataset
from imbal_jax.reports.tables import readable

UNKNOWN = "not recorded"
MOST_NAMED = 3  # cells that are named beside a condition of theirs; of more, the number is told
MOST_VALUES = 6  # of one condition; of more, the number is told
_OBJECT = (dict, "an object")
_KINDS: Mapping[str, tuple[Any, str]] = {  # of what config.json and metadata.json hold
    **dict.fromkeys(("data", "model", "training", "direction", "packages"), _OBJECT),
    "devices": (list, "a list of names"),
    "wall_seconds": (int | float, "a number"),
}


class Condition(NamedTuple):
    """One fact about runs."""

    name: str
    values: tuple[str, ...]  # one where all runs agree; else each with the cells it holds for


def conditions_of(cells: Sequence[CellResults], data: str | None = None) -> list[Condition]:
    """The conditions of all runs that cells have results from; none where there are no results.

    Args:
      cells: of a table.
      data: what the images are to be called; by default what the configs say.

    Raises:
      InputError: see `read_if_there`.
    """
    found: dict[str, dict[str, list[str]]] = {}
    dates, seconds = [], 0.0
    for cell in cells:
        for run in cell.runs:
            config, machine = read_if_there(run / "config.json"), read_if_there(run / "metadata.json")
            for name, value in {**_of_config(config, data), **_of_machine(machine)}.items():
                named = found.setdefault(name, {}).setdefault(value, [])
                if cell_name(cell.cell) not in named:
                    named.append(cell_name(cell.cell))
            dates.append(str(machine.get("started", ""))[:10])
            seconds += machine.get("wall_seconds") or 0.0
    conditions = [Condition(name, _told(values)) for name, values in found.items()]
    if not dates:
        return []
    known = sorted({date for date in dates if date}) or [UNKNOWN]
    dated = Condition("date", (" to ".join(dict.fromkeys((known[0], known[-1]))),))
    return [*conditions, dated, Condition("training time", (f"{duration(seconds)} in all, {len(dates)} runs",))]


def duration(seconds: float) -> str:
    """A time in the largest unit that fits."""
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def read_if_there(path: pathlib.Path) -> dict[str, Any]:
    """The config or the metadata of a run; nothing where there is no file.

    Raises:
      InputError: the file cannot be read, or something in it is of another kind than a run writes.
    """
    found = read_object(path) if path.exists() else {}
    for key, (kind, expected) in _KINDS.items():
        value = found.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, kind)):
            raise unexpected(path, key, expected, value)
    return found


def _told(values: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """The values of a condition, each with its cells where there are several."""
    if len(values) == 1:
        return tuple(values)
    if len(values) > MOST_VALUES:
        return (f"{len(values)} different ones, see the run folders; the first is {next(iter(values))}",)
    return tuple(
        f"{value} ({', '.join(cells) if len(cells) <= MOST_NAMED else f'{len(cells)} cells'})"
        for value, cells in values.items()
    )


def _of_config(config: Mapping[str, Any], data: str | None) -> dict[str, str]:
    """What a run's config says."""
    section = {name: config.get(name) or {} for name in ("data", "model", "training")}
    training = section["training"]
    return {
        "data": data or data_name(section["data"]),
        "model": str(section["model"].get("name", UNKNOWN)),
        "epochs": str(training.get("epochs", UNKNOWN)),
        "batch size": str(training.get("batch_size", UNKNOWN)),
        "parameters tested": chosen_by(training.get("select")),
    }


def chosen_by(select: str | None) -> str:
    """Which parameters of a run were tested."""
    if select is None:
        return UNKNOWN
    return "the last" if select == "last" else f"the best by {readable(str(select))}"


def _of_machine(machine: Mapping[str, Any]) -> dict[str, str]:
    """What a run's metadata say."""
    devices = list(map(str, machine.get("devices") or []))
    packages = {"python": machine.get("python"), **(machine.get("packages") or {})}
    kinds = [f"{devices.count(kind)} x {kind}" for kind in dict.fromkeys(devices)]
    if machine.get("backend") == "cpu" and machine.get("processor"):
        kinds = [f"{machine.get('cores')} core(s) of {machine['processor']}"]
    return {
        "hardware": f"{', '.join(kinds)} ({machine.get('backend')}; {machine.get('platform')})" if kinds else UNKNOWN,
        "versions": ", ".join(f"{name} {version}" for name, version in packages.items() if version) or UNKNOWN,
        "commit": str(machine.get("git_commit") or UNKNOWN),
    }


def data_name(data: Mapping[str, Any]) -> str:
    """The name of a data set in a config, and the file or folder of a copy that has no name."""
    name = str(data.get("dataset") or data.get("name") or UNKNOWN)
    source = next((pathlib.PurePath(str(data[key])).name for key in ("path", "root") if data.get(key)), "")
    return f"{name} ({source})" if source and source != name else name


def class_names(data: Mapping[str, Any], num_classes: int) -> tuple[str, ...]:
    """The names of a run's classes where its data set is well known, else their numbers.

    Args:
      data: the section of its config.
      num_classes: how many there are.
    """
    for name in (data.get("dataset"), data.get("name")):
        known = known_dataset(str(name))
        if known is not None and known.num_classes == num_classes:
            return known.class_names
    return tuple(str(label) for label in range(num_classes))
