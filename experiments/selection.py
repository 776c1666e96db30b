"""--only=AXIS=VALUE,VALUE: a part of a study."""

from collections.abc import Mapping

from experiments.study import Study
from imbal_jax.errors import InputError, not_found


def parse_only(texts: list[str]) -> dict[str, tuple[str, ...]]:
    """Reads "axis=v1,v2" of every --only.

    Raises:
      InputError: a text is something else, or names an axis again.
    """
    only: dict[str, tuple[str, ...]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals or not values or name in only:
            raise InputError(f"--only: expected AXIS=VALUE,VALUE with an axis once, got {text!r}")
        only[name] = tuple(values.split(","))
    return only


def select(study: Study, only: Mapping[str, tuple[str, ...]]) -> Study:
    """The study with some values of some axes only, and with those of its tables that then have cells.

    Args:
      study: a study.
      only: values by axis.

    Raises:
      InputError: there is no such axis or value, the nearest are named; or no cell has all of these values.
    """
    by_name = {axis.name: axis for axis in study.axes}
    for name, values in only.items():
        if name not in by_name:
            raise InputError(f"--only: {not_found(name, by_name)}")
        for value in values:
            if value not in by_name[name].values:
                raise InputError(f"--only={name}: {not_found(value, by_name[name].values)}")
    kept = tuple(
        axis._replace(values=tuple(value for value in axis.values if value in only.get(axis.name, axis.values)))
        for axis in study.axes
    )
    part = study._replace(axes=kept)
    cells = list(part.cells())
    if not cells:
        told = " ".join(f"{name}={','.join(values)}" for name, values in only.items())
        raise InputError(f"--only: expected at least one cell, got none with {told}")
    return part._replace(
        tables=tuple(table for table in study.tables if table.where is None or any(map(table.where, cells)))
    )
