"""Every wrapper of the gradient trains on the bundled digits, and elsewhere than the gradient does."""

import jax
import numpy as np
import pytest

from imbal_jax.build import build_experiment
from imbal_jax.config import load_config
from imbal_jax.resolve import resolve
from imbal_jax.robust_recipes import WRAPPERS
from imbal_jax.training.programs import compile_programs
from imbal_jax.training.step import read_metrics
from tests.conftest import ROOT

EPOCHS = 6
SHORT = {"model.name": "mlp", "model.hidden": "(16,)", "training.epochs": str(EPOCHS)}


def train(method, overrides):
    """Mean cross-entropy of every epoch, and the last parameters as one vector."""
    config = resolve(load_config(str(ROOT / "configs" / f"digits.py:{method}")), {**SHORT, **overrides})
    programs = compile_programs(build_experiment(config), stacked=False)
    keys, state, told = programs.keys((0,)), programs.initial((0,)), []
    for epoch in range(EPOCHS):
        indices = programs.draw(keys.order, epoch)
        state, metrics = programs.drive(state, programs.train_data, indices, keys.step, 0, len(indices))
        told.append(read_metrics(metrics).cross_entropy.mean())
    return np.array(told), np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state.params)])


@pytest.fixture(scope="module")
def plain():
    return train("baseline", {})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "overrides"),
    [
        *((name, {}) for name in WRAPPERS),
        ("sam", {"direction.inner.name": "ekfac", "direction.inner.damping": "0.1", "step_rule.momentum": "0.0"}),
        ("absgd", {"step_rule.name": "adamw", "step_rule.bias_correction": "false", "schedule.learning_rate": "0.003"}),
    ],
    ids=str,
)
def test_it_learns_the_digits_in_its_own_way(method, overrides, plain):
    losses, params = train(method, overrides)
    assert losses[0] > 1.0
    assert losses[-1] < 0.4 * losses[0]
    assert np.isfinite(params).all()
    assert np.abs(params - plain[1]).max() > 1e-3
    if not overrides:  # the same start, step rule and batches: not far from where the gradient gets
        assert losses[-1] < 2 * plain[0][-1]
