"""Any method over alpha, from 0.05 to balanced, on the bundled digits: balanced accuracy against imbalance.

python -m experiments.launch alpha_sweep --workdir=runs --only=method=baseline,ldam_drw,ief
python -m experiments.report alpha_sweep --workdir=runs

All methods take an hour or so on two CPU cores, three of them minutes. With VGG11-BN it is alpha_sweep_vgg11.
"""

from experiments.study import Study
from experiments.sweeps import alpha_sweep


def get_study() -> Study:
    """The study."""
    title = "Bundled digits, Dirichlet draws of imbalance"
    return alpha_sweep("alpha_sweep", title, "configs/digits.py", total=500, min_count=4)
