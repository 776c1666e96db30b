"""Tables of loss-conditional training as studies, see `experiments/studies/lct_*.py`.

The paper trains sixteen models a method and tells the best; these studies train one each, the usual model of
configs/lct.py. A model with LCT is read at the condition that is best on validation.
"""

from experiments.study import Cell

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
