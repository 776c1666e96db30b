"""Tables of loss-conditional training as studies, see `experiments/studies/lct_*.py`.

The paper trains sixteen models a method, one for every combination of Table 2, and tells the best. `lct_3` and `lct_4`
train one each, the usual model of configs/lct.py; `search_lct_3` and `search_lct_4` train all sixteen. A model with LCT
is read at the condition that is best on validation.
"""

from experiments.study import Axis, Cell, Choice, Search, Study, Table

MODELS = tuple(map(str, range(16)))  # of configs/lct.py

LABELS = {
    "focal": "Focal",
    "focal_lct": "Focal + LCT",
    "focal_lct_no_film": "Focal + LCT without FiLM",
    "vs": "VS",
    "vs_lct": "VS + LCT",
    "vs_lct_no_film": "VS + LCT without FiLM",
    "vs_sam": "VS + SAM",
    "vs_sam_lct": "VS + SAM + LCT",
    "vs_sam_lct_no_film": "VS + SAM + LCT without FiLM",
    "auto_deer": "CIFAR-10/100 / Auto Deer",
    "auto_truck": "CIFAR-10/100 / Auto Truck",
    "animal_vehicle": "CIFAR-10/100 / Animal Vehicle",
    "household": "CIFAR-10/100 / Household",
    **{f"melanoma_{beta}": f"SIIM-ISIC Melanoma / beta={beta}" for beta in (10, 100, 200)},
    **{f"aptos_{beta}": f"APTOS / beta={beta}" for beta in (100, 200)},
}
METHODS, DATASETS = tuple(LABELS)[:9], tuple(LABELS)[9:]


def result_key(cell: Cell, metric: str) -> str:
    """The result of a conditional model is that of the condition chosen on validation."""
    return metric.replace("test/", "tuned/") if "_lct" in cell["method"] else metric


def all_models(study: Study, name: str) -> Study:
    """The paper's protocol: sixteen models a method, of which the tables tell the best.

    Each table is there twice: once with the models, and their conditions, that are the best on validation; and once
    with those that are the best on the test set, as the paper has it, whose numbers are too good by that choice.

    Args:
      study: with one model a method.
      name: of the study to make.
    """
    return study._replace(
        name=name,
        config=f"{study.config}-{{model}}",
        axes=(*study.axes, Axis("model", MODELS)),
        tables=tuple(_best(table, split) for table in study.tables for split in ("validation", "test")),
        search=Search(("model",), "validation/auc", largest=True),
    )


def _best(table: Table, split: str) -> Table:
    """A table of the best of sixteen models."""
    title = f"{table.title}, best of sixteen models on {'validation' if split == 'validation' else 'the test set'}"
    return table._replace(name=f"{table.name}_{split}", title=title, best=Choice("model", split))
