"""Checks of what a study's file describes, before anything is trained or reported.

The functions in it are called once for every cell, so that one that fails is told with its cell. Imports no jax.
"""

import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args, get_origin, get_type_hints

from experiments.study import CLASSES, ENDS, IMBALANCE, Axis, Cell, Curve, Study, Table, cell_name
from imbal_jax.errors import InputError, not_found

SPLITS = ("validation", "test")  # that a choice may be made on
LONGEST = 200  # characters of a folder's name; file systems take 255 bytes, and temporary names are longer
_SAFE = re.compile(r"[A-Za-z0-9_.+-]+")  # what an axis and its values may be made of: they name folders
_WORDS = {
    str: "text",
    int: "a whole number",
    bool: "True or False",
    type(None): "None",
    tuple[int, ...]: "a tuple of different whole numbers in 0..2^32-1",
}


def _words(hint: Any) -> str:
    """What a field of a study or of a part of it holds by its type, in words."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint in _WORDS:
        return _WORDS[hint]
    if origin is tuple:
        return f"a tuple of {_words(inner[0])}, with a comma behind a single one"
    if origin is Mapping:
        return "a mapping of text" + (" to text" if inner[1] is str else "")
    if origin is Callable:
        return "a function"
    return " or ".join(map(_words, inner)) or hint.__name__


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a field's type."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is tuple:  # a list does as well; a Table is a tuple, but one thing
        return type(value) in (tuple, list) and all(_fits(each, inner[0]) for each in value)
    if origin is Mapping:
        return isinstance(value, Mapping) and all(_fits(k, inner[0]) and _fits(v, inner[1]) for k, v in value.items())
    if origin is Callable:
        return callable(value)
    if inner:
        return any(_fits(value, each) for each in inner)
    return hint is Any or (type(value) is int if hint is int else isinstance(value, hint))  # True is no number


def check_study(study: Study) -> None:
    """Refuses what cannot name folders, be trained as it says, or fill tables and figures.

    Raises:
      InputError: a field is of another type; a name or a seed is none, or is there twice; a leaf is set twice; a table,
        a curve or a search names no axis; a curve would join cells of several values of a further axis; a function of
        the study fails for a cell; there is no cell.
    """
    _check_fields("study", study)
    _check_name("study: name", study.name)
    if not study.seeds or len(set(study.seeds)) < len(study.seeds) or not all(0 <= n < 2**32 for n in study.seeds):
        raise InputError(f"study: seeds: expected {_words(tuple[int, ...])}, got {study.seeds}")
    names = _check_axes(study.axes)
    _check_config(study.config, names)
    cells = _check_cells(study)
    _check_leaves(study, cells)
    for table in study.tables:
        _check_table(table, names, cells)
    for curve in study.curves:
        _check_curve(curve, names, cells)
    _check_different("tables", [table.name for table in study.tables])
    _check_different("curves", [curve.name for curve in study.curves])
    if study.search is not None:
        _check_fields("search", study.search)
        for name in study.search.axes:
            _check_known("search: axes", name, names)


def _check_fields(place: str, part: Any) -> None:
    """Refuses fields of a study or of a part of it that hold something else than their type, such as text for a tuple.

    Of values, metrics and searched axes there must be some.
    """
    for name, hint in get_type_hints(type(part)).items():
        given = getattr(part, name)
        if not _fits(given, hint) or (hint == tuple[str, ...] and not given):
            raise InputError(f"{place}: {name}: expected {_words(hint)}, got {given!r:.80}")


def _check_known(place: str, name: str, valid: Sequence[str]) -> None:
    """Refuses a name that there is none of."""
    if name not in valid:
        raise InputError(f"{place}: {not_found(name, valid)}")


def _check_different(place: str, names: Sequence[str]) -> None:
    """Refuses a name that is there twice."""
    if len(set(names)) < len(names):
        raise InputError(f"{place}: expected different names, got {list(names)}")


def _check_name(place: str, name: str) -> None:
    """Refuses what cannot name a file or folder."""
    if not _SAFE.fullmatch(name) or name.strip(".") == "" or len(name) > LONGEST:
        raise InputError(f"{place}: expected at most {LONGEST} letters, digits and ._+-, got {name!r}")


def _check_axes(axes: Sequence[Axis]) -> list[str]:
    """Refuses axes whose names or values cannot name folders, or that set the same leaf; returns their names."""
    if not axes:
        raise InputError("axes: expected at least one, got none")
    setting: dict[str, str] = {}
    for axis in axes:
        place = f"axis {axis.name}"
        _check_fields(place, axis)
        if len(set(axis.values)) < len(axis.values):
            raise InputError(f"{place}: expected different values, got {axis.values}")
        if bad := [text for text in (axis.name, *axis.values) if not _SAFE.fullmatch(text)]:
            raise InputError(f"{place}: expected letters, digits and ._+- in names and values, got {bad}")
        if axis.key == "seeds":
            raise InputError(f"{place}: key: expected Study.seeds in its place, got 'seeds'")
        if axis.key is not None and setting.setdefault(axis.key, axis.name) != axis.name:
            raise InputError(f"{place}: key: expected another than that of axis {setting[axis.key]}, got {axis.key!r}")
    _check_different("axes", [axis.name for axis in axes])
    return [axis.name for axis in axes]


def _check_config(config: str, names: Sequence[str]) -> None:
    """Refuses braces in a config that do not stand for the value of an axis."""
    try:
        parts = list(string.Formatter().parse(config))
    except ValueError as error:
        raise InputError(f"config: expected braces around the names of axes only, got {config!r}: {error}") from error
    for _, field, spec, conversion in parts:
        if field is not None:
            _check_known("config", field, names)
            if spec or conversion:
                raise InputError(f"config: expected nothing beside the axis in {{{field}}}, got {config!r}")


def _call(place: str, function: Callable[..., Any], cell: Cell, *others: Any) -> Any:
    """What a function of the study says of a cell."""
    try:
        return function(cell, *others)
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # whatever a user's function raises
        raise InputError(f"{place} failed for {cell_name(cell)}: {type(error).__name__}: {error}") from error


def _shown(place: str, where: Callable[[Cell], bool] | None, cells: list[dict[str, str]]) -> list[dict[str, str]]:
    """The cells that a part of the study is of."""
    if where is None:
        return cells
    return [cell for cell in cells if _call(f"{place}: where", lambda each: bool(where(each)), cell)]


def _check_cells(study: Study) -> list[dict[str, str]]:
    """Refuses a study without cells and cells that cannot name folders; returns the cells."""
    cells = _shown("study", study.where, list(study._replace(where=None).cells()))
    if not cells:
        raise InputError(f"study {study.name}: expected at least one cell, got none")
    if len(longest := max(map(cell_name, cells), key=len)) > LONGEST:
        told = f"got {len(longest)} in {longest!r}"
        raise InputError(f"axes: expected at most {LONGEST} characters in the name of a cell's folder, {told}")
    return cells


def _check_leaves(study: Study, cells: Sequence[Cell]) -> None:
    """Refuses leaves in `overrides` and `overrides_of` that an axis or the seeds would overwrite."""

    def leaves_of(cell: Cell) -> Any:
        try:
            return study.overrides_of(cell) if study.overrides_of is not None else {}
        except InputError:  # such as winners that are still to be found, without which a report can be made
            return {}

    found = [("overrides", study.overrides)]
    found += [(f"overrides_of, {cell_name(cell)}", _call("overrides_of", leaves_of, cell)) for cell in cells]
    setting = {axis.key: axis.name for axis in study.axes if axis.key is not None}
    for place, leaves in found:
        if not _fits(leaves, Mapping[str, Any]):
            raise InputError(f"{place}: expected a mapping of text, such as {{'training.epochs': 10}}, got {leaves!r}")
        if "seeds" in leaves:
            raise InputError(f"{place}: seeds: expected Study.seeds in its place, got {leaves['seeds']!r}")
        if twice := [key for key in leaves if key in setting]:
            axis = setting[twice[0]]
            raise InputError(f"{place}: expected leaves that no axis sets, got {twice[0]!r} of axis {axis}")


def _check_table(table: Table, names: Sequence[str], cells: list[dict[str, str]]) -> None:
    """Refuses a table that cannot be filled."""
    place, published = f"table {table.name}", table.published
    _check_fields(place, table)
    _check_known(f"{place}: rows", table.rows, names)
    if table.best is not None:
        _check_fields(f"{place}: best", table.best)
        _check_known(f"{place}: best", table.best.axis, [name for name in names if name != table.rows])
        _check_known(f"{place}: best: split", table.best.split, SPLITS)
    functions = {} if table.key is None else {"key": table.key}
    if published is not None:
        _check_fields(f"{place}: published", published)
        functions |= {"published: row": published.row, "published: column": published.column}
    for cell in _shown(place, table.where, cells):
        for metric in table.metrics:
            for name, function in functions.items():
                _call(f"{place}: {name}", function, cell, metric)


def _check_curve(curve: Curve, names: Sequence[str], cells: list[dict[str, str]]) -> None:
    """Refuses a figure that cannot be drawn."""
    place = f"curve {curve.name}"
    _check_fields(place, curve)
    _check_name(f"{place}: name", curve.name)
    of_classes = curve.lines == CLASSES
    _check_known(place, curve.x, names if of_classes else [*names, IMBALANCE])
    _check_known(place, curve.lines, [*names, CLASSES])
    for metric in curve.metrics if of_classes else ():
        _check_known(f"{place}: metrics", metric, ENDS)
    shown = _shown(place, curve.where, cells)
    if not of_classes:
        _check_lines(curve, names, shown)


def _check_lines(curve: Curve, names: Sequence[str], cells: Sequence[Cell]) -> None:
    """Refuses lines that would join cells which differ along a further axis, see `experiments.reporting.curves`.

    What makes the imbalance is not told before there are data: it is any one axis along which all cells of a line
    differ, be it that of the lines where each has a single cell.
    """
    along = [curve.x] if curve.x != IMBALANCE else [name for name in names if name != curve.lines] + [curve.lines]
    pairs = [pair for name in along if (pair := _same_place(cells, curve.lines, name)) is not None]
    if len(pairs) == len(along):
        further = [name for name in names if any(one[name] != other[name] for one, other in pairs)]
        told = " and ".join(map(cell_name, pairs[0]))
        expected = f"expected one value of axis {' or of '.join(further)} on every line, as where can choose"
        raise InputError(f"curve {curve.name}: {expected}, got {told} on one")


def _same_place(cells: Sequence[Cell], lines: str, along: str) -> tuple[Cell, Cell] | None:
    """Two cells of the same line and the same value of an axis, if there are any."""
    first: dict[tuple[str, str], Cell] = {}
    for cell in cells:
        other = first.setdefault((cell[lines], cell[along]), cell)
        if other is not cell:
            return other, cell
    return None
