"""Loss-conditional training, Table 4, by the paper's protocol: sixteen models a method, and the best of them.

python -m experiments.launch search_lct_4 --workdir=runs
python -m experiments.report search_lct_4 --workdir=runs

The models are all combinations of Table 2, see configs/lct.py. The first table has the models that are the best on
validation, the next, as the paper has it, those that are the best on the test set. For GPUs: sixteen times lct_4.
"""

from experiments.lct import all_models
from experiments.studies import lct_4
from experiments.study import Study


def get_study() -> Study:
    """The study."""
    return all_models(lct_4.get_study(), "search_lct_4")
