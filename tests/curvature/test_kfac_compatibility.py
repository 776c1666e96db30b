"""kfac-jax with the jax at hand."""

import importlib.metadata
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imbal_jax.curvature import kfac_compatibility
from imbal_jax.errors import InputError


@pytest.mark.parametrize(("kfac_version", "jax_version"), [("0.0.8", "0.9.2"), ("0.0.9", "0.10.2"), ("0.0.8", "1.0.0")])
def test_an_untested_pair_is_refused(kfac_version, jax_version):
    with pytest.raises(InputError) as caught:
        kfac_compatibility.adaptations(kfac_version, jax_version)
    message = str(caught.value)
    assert f"got kfac-jax {kfac_version} with jax {jax_version}" in message
    assert "kfac-jax 0.0.8 with jax 0.10.*, kfac-jax 0.0.8 with jax 0.11.*" in message
    assert "\n" not in message


def test_only_the_series_counts():
    first, second = (kfac_compatibility.adaptations("0.0.8", version) for version in ("0.10.0", "0.10.2"))
    assert first == second
    assert len(kfac_compatibility.adaptations("0.0.8", "0.11.0")) > len(first)


def test_a_missing_package_is_told(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(InputError, match="expected kfac-jax to be installed"):
        kfac_compatibility.load_kfac_jax()


def test_adapting_twice_changes_nothing():
    kfac_jax = kfac_compatibility.load_kfac_jax()
    matcher = kfac_jax.tag_graph_matcher
    before = dict(vars(matcher))
    assert kfac_compatibility.load_kfac_jax() is kfac_jax
    changed = {name for name, value in vars(matcher).items() if before.get(name) is not value}
    assert matcher.eval_jaxpr_eqn is before["eval_jaxpr_eqn"]
    assert changed <= {"to_closed_jaxpr"}  # an equal function


def test_kfac_jax_updates_its_own_blocks():
    """Its Kronecker factors of a dense layer, which no update reached without the adaptation."""
    kfac_jax = kfac_compatibility.load_kfac_jax()
    rng = np.random.default_rng(0)
    x, targets = rng.normal(size=(7, 4)), rng.normal(size=(7, 3))
    params = {"kernel": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32), "bias": jnp.ones(3, jnp.float32)}
    shift = jnp.float32(0.5)

    def update(params, shift):
        def function(params, x):
            outputs = jax.nn.relu(x) @ params["kernel"] + params["bias"] + shift  # relu: a function within a function
            kfac_jax.register_squared_error_loss(outputs, jnp.asarray(targets, jnp.float32), weight=0.5)
            return 0.0

        args = (params, jnp.asarray(x, jnp.float32))
        estimator = kfac_jax.BlockDiagonalCurvature(function)
        state = estimator.init(jax.random.key(0), args, None, None)
        state = estimator.update_curvature_matrix_estimate(
            state, 0.0, 1.0, 0.0, 7, jax.random.key(0), args, estimation_mode="fisher_empirical"
        )
        return [factor.value for factor in state.blocks_states[0].factors]

    inputs, outputs = jax.jit(update)(params, shift)
    rows = np.c_[np.maximum(x, 0), np.ones(7)]
    errors = np.maximum(x, 0) @ np.asarray(params["kernel"], np.float64) + 1.5 - targets
    np.testing.assert_allclose(inputs, rows.T @ rows / 7, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(outputs, errors.T @ errors / 7**2, rtol=1e-4, atol=1e-4)


def test_the_direction_imports_kfac_jax_only_when_built():
    code = "import sys, imbal_jax.directions.ekfac; sys.exit('kfac_jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
