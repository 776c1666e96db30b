"""Runs on fifteen images of four pixels, at random parameters, and dense float64 matrices of their losses."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from imbal_jax.analysis.class_spectra import Trained, class_spectra
from imbal_jax.analysis.options import fixed
from imbal_jax.build import build_experiment
from imbal_jax.config import load_config, parse_overrides
from imbal_jax.data.clips import Clips
from imbal_jax.data.dataset import Split
from imbal_jax.data.speech import ClipSet
from imbal_jax.models.batch_norm import BatchNorm
from imbal_jax.models.heads import classify
from imbal_jax.resolve import resolve
from imbal_jax.training.experiment import Experiment
from imbal_jax.training.programs import Programs, compile_programs
from tests.conftest import ROOT

CLASSES = 3
COUNTS = np.array([9, 4, 2])
LABELS = np.repeat(np.arange(CLASSES), COUNTS)
SHARES = COUNTS / COUNTS.sum()
WEIGHTS = 1 / COUNTS * CLASSES / np.sum(1 / COUNTS)  # inverse frequencies with the mean one
_RNG = np.random.default_rng(0)
IMAGES = _RNG.normal(size=(len(LABELS), 2, 2, 1)).astype(np.float32)
VALIDATION = Split(_RNG.normal(size=(8, 2, 2, 1)).astype(np.float32), np.array([0, 0, 0, 0, 0, 1, 1, 1]))  # no class 2
SIZE = 4 * 3 + 3 + 3 * CLASSES + CLASSES  # of the network with one hidden layer of three units
PROGRESS = 0.75


class Setup(NamedTuple):
    """A run at some parameters."""

    experiment: Experiment
    programs: Programs
    trained: Trained

    def spectra(self, **changes):
        """By group, with as many Lanczos steps as there are parameters, in float64 unless told."""
        given = {"precision": "float64", "order": SIZE, "probes": 1, "tolerance": 0.0, "micro_batch": 4, **changes}
        return {each.group.name: each for each in self.take(fixed(**given))}

    def take(self, options):
        return list(class_spectra(*self, options))

    @property
    def params(self):
        return self.trained.variables["params"]


def write_data(path):
    """Writes an .npz for the config of arrays; returns the options that choose it and a tiny network."""
    arrays = {"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES[::-1], "y_test": LABELS[::-1]}
    np.savez(path, **arrays, x_val=VALIDATION.images, y_val=VALIDATION.labels)
    return [
        f"--config.data.path={path}",
        "--config.training.batch_size=5",
        "--config.model.name=mlp",
        "--config.model.hidden=(3,)",
    ]


def resolved(flags):
    """The config of arrays with overrides."""
    return resolve(load_config(f"{ROOT}/configs/arrays.py"), parse_overrides(flags))


def make_setup(flags, *more, seed=1, **replaced):
    """A run at random parameters; parts of the experiment can be replaced."""
    experiment = build_experiment(resolved([*flags, *more]))._replace(**replaced)
    programs = compile_programs(experiment, stacked=False)
    state = jax.eval_shape(programs.initial, (0,))
    rng = np.random.default_rng(seed)
    params, model_state = (
        jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), tree)
        for tree in (state.params, state.model_state)
    )
    variables = {"params": params, "model_state": jax.tree.map(np.abs, model_state)}  # variances are positive
    return Setup(experiment, programs, Trained(variables, 3, PROGRESS))


def standardised(images):
    """By mean and standard deviation of the training pixels."""
    train = IMAGES.astype(np.float64)
    return jnp.asarray((images - train.mean()) / train.std())


def network(params, images):
    """Logits of the network with one hidden layer."""
    hidden = images.reshape(len(images), -1) @ params["dense1"]["kernel"] + params["dense1"]["bias"]
    return jnp.maximum(hidden, 0) @ params["classifier"]["kernel"] + params["classifier"]["bias"]


def cross_entropy(logits, labels):
    return jax.nn.logsumexp(logits, axis=1) - logits[jnp.arange(len(labels)), labels]


def class_matrices(params, losses, images=IMAGES, labels=LABELS, forward=network):
    """The Hessians of the mean loss of every class, from losses(logits, labels)."""
    with jax.enable_x64(True):
        flat, unravel = jax.flatten_util.ravel_pytree(jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params))

        def mean(vector, own):
            return own @ losses(forward(unravel(vector), standardised(images)), labels) / jnp.sum(own)

        hessian = jax.jit(jax.hessian(mean))
        present = np.unique(labels)
        return {str(index): np.asarray(hessian(flat, jnp.asarray(labels == index, jnp.float64))) for index in present}


def with_whole(matrices, shares=SHARES):
    """The Hessian of all classes before theirs."""
    return {"all": sum(share * matrix for share, matrix in zip(shares, matrices.values(), strict=True)), **matrices}


def assert_spectra(found, matrices, rtol=2e-6):
    """All eigenvalues of every group, from every probe; the extremes, their ratio and the trace."""
    assert list(found) == list(matrices)
    for name, matrix in matrices.items():
        expected = np.linalg.eigvalsh(matrix)
        scale = np.abs(expected).max()
        seen = found[name].spectrum
        for values in seen.values:
            np.testing.assert_allclose(values, expected, atol=rtol * scale)
        assert seen.lambda_max == pytest.approx(expected[-1], abs=rtol * scale)
        assert seen.lambda_min == pytest.approx(expected[0], abs=rtol * scale)
        assert seen.ratio == pytest.approx(abs(expected[0] / expected[-1]), abs=10 * rtol)
        assert np.all(seen.residuals[:, [0, -1]] < 1e-9 * scale)
        np.testing.assert_allclose(np.sum(seen.values, axis=1), np.trace(matrix), atol=SIZE * rtol * scale)
        # The quadrature's first moment is start^T H start / start^T start, and the estimate of the trace made of it.
        np.testing.assert_allclose(len(expected) * np.sum(seen.weights * seen.values, axis=1), seen.traces, rtol=1e-9)
        assert found[name].checks.change == 0 and found[name].checks.asymmetry < 1e-12


class Normalised(nn.Module):
    """A hidden layer with batch normalisation."""

    @nn.compact
    def __call__(self, images, train):
        hidden = nn.Dense(2, use_bias=False, name="dense")(images.reshape(len(images), -1))
        features = nn.tanh(BatchNorm(name="norm")(hidden, train))
        return classify(features, "linear", CLASSES), features


class Listener(nn.Module):
    """Mean and mean square of a clip, times frozen factors."""

    @nn.compact
    def __call__(self, clips, train):
        factors = self.variable("frozen", "factors", jnp.ones, (2,)).value
        inside = jnp.arange(clips.samples.shape[1]) < clips.lengths[:, None]
        kept = jnp.where(inside, clips.samples + 1, 0)  # what pads a clip must not count
        features = factors * jnp.stack([kept.sum(axis=1), (kept**2).sum(axis=1)], axis=1) / clips.lengths[:, None]
        return classify(features, "linear", CLASSES), features


def listening_setup(flags):
    """A run of `Listener` on clips of several lengths, and its features written out."""
    rng = np.random.default_rng(2)
    lengths = 400 * rng.integers(1, 9, size=len(LABELS))
    samples = rng.normal(size=lengths.sum()).astype(np.float32)
    starts, zeros = np.r_[0, np.cumsum(lengths)], np.zeros(len(LABELS), np.float32)
    clips = ClipSet(Clips(samples, starts, zeros, zeros + 1), np.arange(len(LABELS)))
    data = build_experiment(resolved(flags)).data
    data = data._replace(train=Split(clips, data.train.labels), validation=None, mean=None, std=None)
    data = data._replace(test=Split(clips[:9], LABELS[:9].astype(np.int32)))
    frozen = {"frozen": {"factors": np.array([2.0, 0.5], np.float32)}}
    pieces = [samples[start:end].astype(np.float64) + 1 for start, end in itertools.pairwise(starts)]
    features = np.array([[2 * piece.mean(), 0.5 * np.mean(piece**2)] for piece in pieces])
    return make_setup(flags, model=Listener(), constants=frozen, data=data), features


def linear(features):
    """The forward pass of a last layer on given features."""
    return lambda params, images: features @ params["classifier"]["kernel"] + params["classifier"]["bias"]


def examples_of(group):
    """The indices of the examples that count."""
    return np.unique(group.batches.indices[group.batches.coefficients > 0])
