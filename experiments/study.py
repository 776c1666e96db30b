"""Studies: a base config, axes over its options and seeds, and the tables they fill.

A study is a short Python file with a function `get_study() -> Study`, see `experiments/studies/quick.py`. Its cells are
the combinations of its axes' values, and every cell is trained with every seed. A study that reads what other studies
have left takes the folder of all studies, `get_study(workdir) -> Study`, see `experiments.winners`.
"""

import importlib
import inspect
import itertools
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from imbal_jax.config import load_config, run_python_file
from imbal_jax.errors import InputError, not_found

STUDIES = pathlib.Path(__file__).parent / "studies"
ROOT = pathlib.Path(__file__).parent.parent  # where the paths of config files start

IMBALANCE, CLASSES = "imbalance", "classes"  # what a curve may have in place of an axis
ENDS = ("ratio", "lambda_max", "lambda_min")  # of the spectrum of each class's Hessian, and |lambda_min / lambda_max|

Cell = Mapping[str, str]  # the name of every axis -> one of its values, as text


class Axis(NamedTuple):
    """What a study varies."""

    name: str
    values: tuple[str, ...]  # as on the command line
    key: str | None = None  # the config's leaf; None where only the config's argument names the axis


class Published(NamedTuple):
    """Where a paper prints what a table holds, see `experiments.published_tables`."""

    table: str  # such as "thesis_4_2"
    row: Callable[[Cell, str], str]  # (cell, metric) -> the paper's row
    column: Callable[[Cell, str], str]  # (cell, metric) -> the paper's column
    seeds: int = 3  # that its means are over
    deviations: bool = False  # whether what stands after its ± are standard deviations rather than standard errors


class Choice(NamedTuple):
    """Candidates of which each place of a table shows the best, see `experiments.reporting.choice`."""

    axis: str  # that the candidates differ along
    split: str = "validation"  # that chooses; "test" as papers do that hold nothing out


class Table(NamedTuple):
    """A table of a study: rows of one axis, columns of metrics and of the values of the other axes."""

    name: str  # of its files
    title: str
    rows: str  # an axis
    metrics: tuple[str, ...] = ("test/accuracy", "test/balanced_accuracy", "test/macro_f1")
    published: Published | None = None
    labels: Mapping[str, str] = {}  # value of an axis -> how it is written; itself by default
    where: Callable[[Cell], bool] | None = None  # which cells the table shows; all by default
    percent: bool = True  # whether numbers are fractions shown in %, as the paper's; else they stay as they are
    key: Callable[[Cell, str], str] | None = None  # (cell, metric) -> the key of a cell's result; the metric by default
    best: Choice | None = None  # an axis that has no columns, because only its best is shown


class Curve(NamedTuple):
    """A figure of a study: metrics over an axis, a line for every value of another or for every class."""

    name: str  # of its files
    title: str
    x: str  # an axis with numbers, or IMBALANCE: examples of the most frequent class per one of the rarest
    lines: str  # an axis, or CLASSES: of ENDS, which runs with record.curvature_every have
    metrics: tuple[str, ...] = ("test/balanced_accuracy",)
    where: Callable[[Cell], bool] | None = None  # which cells the figure shows; all by default


class Search(NamedTuple):
    """What a study looks for: the best values of some axes for every combination of the others."""

    axes: tuple[str, ...]  # that are searched
    metric: str = "validation/cross_entropy"  # of the selected checkpoint, mean over seeds
    largest: bool = False  # whether more is better


class Study(NamedTuple):
    """What `python -m experiments.launch` trains and `python -m experiments.report` reads."""

    name: str  # of its file
    config: str  # FILE or FILE:ARGUMENT, from the project's root; "{axis}" in it stands for the cell's value
    axes: tuple[Axis, ...]
    tables: tuple[Table, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    overrides: Mapping[str, Any] = {}  # leaves that differ from the config in every cell
    overrides_of: Callable[[Cell], Mapping[str, Any]] | None = None  # leaves that depend on the cell
    where: Callable[[Cell], bool] | None = None  # which combinations are cells; all by default
    search: Search | None = None  # of a study that chooses hyper-parameters
    curves: tuple[Curve, ...] = ()  # figures beside those that every report has

    def cells(self) -> Iterator[dict[str, str]]:
        """The combinations of the axes' values that are cells, the last axis running fastest."""
        names = [axis.name for axis in self.axes]
        for values in itertools.product(*(axis.values for axis in self.axes)):
            cell = dict(zip(names, values, strict=True))
            if self.where is None or self.where(cell):
                yield cell

    def options(self, cell: Cell) -> dict[str, str]:
        """The leaves in which a cell differs from its config file, as text."""
        of_axes = {axis.key: cell[axis.name] for axis in self.axes if axis.key is not None}
        of_cell = {} if self.overrides_of is None else self.overrides_of(cell)
        return {key: str(value) for key, value in {**self.overrides, **of_cell, **of_axes}.items()}


def study_names() -> list[str]:
    """The studies that come with the project."""
    return sorted(path.stem for path in STUDIES.glob("*.py") if path.stem != "__init__")


def load_study(name: str, workdir: pathlib.Path = pathlib.Path("runs")) -> Study:
    """Loads a study.

    Args:
      name: of a study that comes with the project, or a path to a file with a function `get_study`. The path of its
        config may then also start at the file's folder.
      workdir: where the results of all studies lie.

    Raises:
      InputError: there is none of this name, the nearest are given; the file fails; what it describes is no study.
    """
    if name.endswith(".py"):
        return _read_study(pathlib.Path(name).expanduser(), workdir)
    if name not in study_names():
        raise InputError(f"STUDY: {_no_study(name)}")
    study = _call_get_study(importlib.import_module(f"experiments.studies.{name}"), name, workdir)
    check_study(study)
    return study


def _no_study(name: str) -> str:
    """What is told of a name that no study has: the file that may be meant, or the nearest names."""
    file = pathlib.Path(f"{name}.py")
    if file.expanduser().is_file():
        return f"no such file: {name!r}; did you mean {str(file)!r}?"
    if len(file.parts) > 1:
        return f"no such file: {name!r}; expected the path of a .py file, or one of {', '.join(study_names())}"
    return f"{not_found(name, study_names())}, or a path to a .py file"


def _read_study(path: pathlib.Path, workdir: pathlib.Path) -> Study:
    """A study of a user's file."""
    if not path.is_file():
        raise InputError(f"STUDY: no such file: {str(path)!r}")
    study = _call_get_study(run_python_file(path, "STUDY"), str(path), workdir)
    check_study(study)
    file, colon, argument = study.config.partition(":")
    if not (path.parent / file).is_file():
        return study
    folder = str(path.parent.absolute()).replace("{", "{{").replace("}", "}}")  # braces there are no axis
    return study._replace(config=f"{pathlib.Path(folder) / file}{colon}{argument}")


def _call_get_study(module: Any, name: str, workdir: pathlib.Path) -> Study:
    """Calls a file's get_study, with the folder if it takes one, and checks what it returns."""
    get_study = getattr(module, "get_study", None)
    if get_study is None:
        raise InputError(f"STUDY: expected a function get_study in {name}, found none")
    try:
        study = get_study(workdir) if inspect.signature(get_study).parameters else get_study()
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # whatever a user's function raises
        raise InputError(f"STUDY: get_study of {name} failed: {type(error).__name__}: {error}") from error
    if not isinstance(study, Study):
        raise InputError(f"STUDY: expected a Study from get_study of {name}, got {type(study).__name__}")
    return study


def check_study(study: Study) -> None:
    """Refuses a study that cannot be trained or reported as it says.

    Raises:
      InputError: see `experiments.study_checks.check_study`.
    """
    from experiments import study_checks  # takes the types from here

    study_checks.check_study(study)


def cell_name(cell: Cell) -> str:
    """A cell's folder, "alpha=0.1,method=drw"."""
    return ",".join(f"{name}={value}" for name, value in cell.items())


def config_spec(study: Study, cell: Cell) -> str:
    """The FILE:ARGUMENT of a cell's config, an absolute path."""
    return str(ROOT / study.config.format(**cell))


def cell_config(study: Study, cell: Cell, seeds: tuple[int, ...], overrides: Mapping[str, str] = {}) -> ConfigDict:
    """The resolved config of a cell's run.

    Args:
      study: the study.
      cell: one of its cells.
      seeds: that the run trains.
      overrides: leaves, as text, that differ from what the study says.

    Raises:
      InputError: the config or one of the options is no valid one.
    """
    from imbal_jax.resolve import resolve  # imports jax, which a report needs not

    given = {**study.options(cell), **overrides, "seeds": ",".join(map(str, seeds))}
    try:
        return resolve(load_config(config_spec(study, cell)), given)
    except InputError as error:
        raise InputError(f"{cell_name(cell)}: {error}") from error
