"""The tables of the thesis as studies, see `experiments/studies/thesis_*.py`.

Tables that share runs are also together in one study each (`thesis_cifar10`, `thesis_crema_d`, `thesis_msp_podcast`),
so that none is trained twice.
"""

from collections.abc import Callable, Mapping
from typing import Any

from experiments.study import Axis, Cell, Published, Study, Table

# The methods of Table 4.1 and the variants of 4.1.5, as the thesis calls them.
LABELS = {
    "baseline": "Baseline",
    "focal": "Focal Loss",
    "alpha_focal": "alpha-Weighted Focal Loss",
    "inverse_frequency": "Re-Weighting",
    "class_balanced": "Class Balance",
    "ldam": "LDAM",
    "ldam_drw": "LDAM-DRW",
    "influence_balanced": "Influence Balanced",
    "sgd_sampler": "SGD Sampler",
    "sampler": "AdamW Sampler",
    **{
        f"{direction}_{variant}": f"{name} {written}"
        for direction, name in (("ekfac", "EKFAC"), ("ief", "iEF"), ("ef", "EF"), ("gdn", "GDN"))
        for variant, written in (("raw", "Raw"), ("sampler", "Sampler"), ("irw", "IRW"), ("drw", "DRW"))
    },
}
LOSSES = tuple(LABELS)[:8]
BALANCED = "balanced"
ALPHAS = ("0.1", "1.0", "10.0", BALANCED)
# Rows of the tables; iEF and EF on CIFAR-10 are new here.
CIFAR10 = {
    "thesis_4_2": (*LOSSES, "ekfac_raw", "ief_raw", "ef_raw"),
    "thesis_5_1": ("baseline", "sgd_sampler", "ekfac_raw", "ekfac_sampler"),
    "thesis_5_4": ("baseline", "ekfac_raw", "ekfac_irw", "ekfac_drw"),
}
_FIRST = ("baseline", "inverse_frequency", "class_balanced", "focal", "alpha_focal", *LOSSES[5:])
_RAW_AND_SAMPLER = ("baseline", "sampler", "ief_raw", "ief_sampler", "gdn_raw", "gdn_sampler")
_WEIGHTED = ("baseline", "ief_irw", "ief_drw", "gdn_irw", "gdn_drw")
_ALL = (
    *("baseline", "sampler", "inverse_frequency", "class_balanced", "focal", "alpha_focal", *LOSSES[5:]),
    *(f"{direction}_{variant}" for direction in ("ief", "gdn") for variant in ("raw", "sampler", "irw", "drw")),
)
CREMA_D = {
    "thesis_4_3": (*_FIRST, "ief_irw", "gdn_sampler"),
    "thesis_5_2": _RAW_AND_SAMPLER,
    "thesis_5_5": _WEIGHTED,
    "thesis_B_8": _ALL,
}
MSP_PODCAST = {
    "thesis_4_4": (*_FIRST, "ief_drw", "gdn_drw"),
    "thesis_5_3": _RAW_AND_SAMPLER,
    "thesis_5_6": _WEIGHTED,
    "thesis_B_9": _ALL,
}
ACCURACIES, MACRO_F1 = ("accuracy", "balanced_accuracy"), ("macro_f1",)
WORDS = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "macro_f1": "macro F1"}


def cifar10(name: str, tables: tuple[str, ...] = tuple(CIFAR10)) -> Study:
    """VGG11-BN on CIFAR-10 at four degrees of imbalance: Tables 4.2, 5.1 and 5.4.

    Args:
      name: of the study.
      tables: of CIFAR10.
    """
    methods = tuple(dict.fromkeys(method for table in tables for method in CIFAR10[table]))
    return Study(
        name=name,
        config="configs/cifar10_vgg11.py:{method}",
        axes=(Axis("alpha", ALPHAS), Axis("method", methods)),
        tables=tuple(
            Table(
                table,
                f"{_title(table)}: VGG11-BN on CIFAR-10",
                rows="method",
                metrics=("test/accuracy",),
                published=Published(table, _row, _cifar10_column),
                labels={**LABELS, BALANCED: BALANCED},
                where=_methods_in(CIFAR10[table]),
            )
            for table in tables
        ),
        overrides_of=_overrides,
    )


def speech(name: str, config: str, tables: Mapping[str, tuple[str, ...]], sets: Mapping[str, str], raw: str) -> Study:
    """HuBERT with LoRA on recordings of emotions.

    Args:
      name: of the study.
      config: its file.
      tables: the methods of each.
      sets: what the paper calls the test sets, by the name in results.
      raw: how the paper writes "Raw" in these tables.
    """
    methods = tuple(dict.fromkeys(method for rows in tables.values() for method in rows))

    def row(cell: Cell, metric: str) -> str:
        return LABELS[cell["method"]].replace("Raw", raw)

    def column(cell: Cell, metric: str) -> str:
        test, _, measure = metric.partition("/")
        return f"{sets[test]} / {WORDS[measure]}"

    return Study(
        name=name,
        config=f"{config}:{{method}}",
        axes=(Axis("method", methods),),
        tables=tuple(
            Table(
                table,
                f"{_title(table)}: HuBERT with LoRA on {next(iter(sets.values())).removesuffix(' TS1')}",
                rows="method",
                metrics=tuple(f"{test}/{metric}" for test in sets for metric in _metrics(table)),
                published=Published(table, row, column),
                labels=LABELS,
                where=_methods_in(rows),
            )
            for table, rows in tables.items()
        ),
    )


def crema_d(name: str, tables: tuple[str, ...] = tuple(CREMA_D)) -> Study:
    """Tables 4.3, 5.2, 5.5 and B.8.

    Args:
      name: of the study.
      tables: of CREMA_D.
    """
    return speech(name, "configs/crema_d.py", {each: CREMA_D[each] for each in tables}, {"test": "CREMA-D"}, "RAW")


def msp_podcast(name: str, tables: tuple[str, ...] = tuple(MSP_PODCAST)) -> Study:
    """Tables 4.4, 5.3, 5.6 and B.9.

    Args:
      name: of the study.
      tables: of MSP_PODCAST.
    """
    sets = {"test": "MSP-Podcast TS1", "test_2": "MSP-Podcast TS2"}
    return speech(name, "configs/msp_podcast.py", {each: MSP_PODCAST[each] for each in tables}, sets, "Raw")


def gradient_norms(study: Study, name: str, methods: tuple[str, ...], where: Callable[[Cell], bool] | None) -> Study:
    """The runs of Figures 5.1 to 5.3, which record the norm of each class's gradient.

    Args:
      study: with the table of these methods.
      name: of the study to make.
      methods: three of its methods.
      where: which of its cells; all by default.
    """
    axes = tuple(axis._replace(values=methods) if axis.name == "method" else axis for axis in study.axes)
    tables = tuple(table._replace(name=name, title=f"Runs of {_title(name)}") for table in study.tables)
    overrides = {"record.class_gradient_norms": True}
    return study._replace(name=name, axes=axes, tables=tables, where=where, overrides=overrides)


def _overrides(cell: Cell) -> dict[str, Any]:
    """The counts of Table B.1, or all of the balanced training set; the learning rate as in Table B.5.

    It has a single one for EKFAC-DRW, whereas Table B.7 halves those of directions when the weights begin.
    """
    profile = {"profile.name": "natural"} if cell["alpha"] == BALANCED else {"profile.alpha": cell["alpha"]}
    return {**profile, "schedule.factor": 1.0} if cell["method"] == "ekfac_drw" else profile


def _row(cell: Cell, metric: str) -> str:
    """A method on CIFAR-10."""
    return LABELS[cell["method"]]


def _cifar10_column(cell: Cell, metric: str) -> str:
    """A degree of imbalance."""
    place = BALANCED if cell["alpha"] == BALANCED else f"alpha={cell['alpha']}"
    return f"CIFAR-10 / {place} / accuracy"


def _methods_in(rows: tuple[str, ...]) -> Callable[[Cell], bool]:
    """Whether a cell's method is one of a table's."""
    return lambda cell: cell["method"] in rows


def _metrics(table: str) -> tuple[str, ...]:
    """What a table of speech runs reports: macro F1 in the appendix."""
    return MACRO_F1 if "_B_" in table else ACCURACIES


def _title(name: str) -> str:
    """The thesis's name of "thesis_4_2", Thesis Table 4.2, or of "thesis_figure_5_1", Thesis Figure 5.1."""
    kind, chapter, number = name.rsplit("_", 2)
    return f"Thesis {'Figure' if 'figure' in kind else 'Table'} {chapter}.{number}"
