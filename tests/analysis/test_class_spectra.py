"""The spectra of a network's classes against dense float64 matrices of losses written out here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from imbal_jax.curvature.spectrum import OperatorError
from imbal_jax.models.heads import classify
from imbal_jax.training import class_curvature
from imbal_jax.training.streaming import resident_split
from tests.analysis.toy_runs import (
    CLASSES,
    COUNTS,
    IMAGES,
    LABELS,
    SHARES,
    VALIDATION,
    WEIGHTS,
    Normalised,
    assert_spectra,
    class_matrices,
    cross_entropy,
    examples_of,
    linear,
    listening_setup,
    make_setup,
    network,
    standardised,
    with_whole,
    write_data,
)


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """What chooses the data and the network."""
    return write_data(tmp_path_factory.mktemp("data") / "toy.npz")


@pytest.fixture(scope="module")
def plain(flags):
    return make_setup(flags)


@pytest.fixture(scope="module")
def matrices(plain):
    """Of cross-entropy, by class."""
    return class_matrices(plain.params, cross_entropy)


# The matrices.


def test_the_hessian_of_every_class_and_of_all(plain, matrices):
    found = plain.spectra(probes=2)
    assert_spectra(found, with_whole(matrices))
    assert [each.group.class_index for each in found.values()] == [None, 0, 1, 2]
    assert [each.group.available for each in found.values()] == [15, 9, 4, 2]
    assert [each.group.sampled for each in found.values()] == [15, 9, 4, 2]
    assert all(each.spectrum.lambda_min < -0.01 for each in found.values())  # no Gauss-Newton matrix
    # The same probes see every class, so that even the estimates of the trace mix as the matrices do.
    traces = np.stack([found[name].spectrum.traces for name in "012"])
    np.testing.assert_allclose(SHARES @ traces, found["all"].spectrum.traces, rtol=1e-12)


def test_accuracies_are_those_of_the_validation_split(plain):
    logits = np.asarray(network(plain.params, np.asarray(standardised(VALIDATION.images))))
    right = logits.argmax(axis=1) == VALIDATION.labels
    found = plain.spectra(order=1)
    assert found["all"].accuracy == pytest.approx(right.mean())
    for index in (0, 1):
        assert found[str(index)].accuracy == pytest.approx(right[VALIDATION.labels == index].mean())
    assert found["2"].accuracy is None


def last_layer(setup, index):
    """Inputs of the last layer with a one for the bias, probabilities and gradients, of the examples of a class."""
    images = np.asarray(standardised(IMAGES))[index == LABELS].reshape(-1, 4)
    layers = {name: (np.float64(layer["kernel"]), np.float64(layer["bias"])) for name, layer in setup.params.items()}
    hidden = np.maximum(images @ layers["dense1"][0] + layers["dense1"][1], 0)
    logits = hidden @ layers["classifier"][0] + layers["classifier"][1]
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return np.c_[hidden, np.ones(len(hidden))], p


@pytest.mark.parametrize("matrix", ["hessian", "gauss_newton", "empirical_fisher"])
def test_the_matrices_of_the_last_layer_by_explicit_formulas(plain, matrix):
    expected = {}
    for index in range(CLASSES):
        total = 0
        for x, p in zip(*last_layer(plain, index), strict=True):
            error = p - np.eye(CLASSES)[index]
            inner = np.outer(error, error) if matrix == "empirical_fisher" else np.diag(p) - np.outer(p, p)
            total = total + np.kron(np.outer(x, x), inner) / COUNTS[index]
        expected[str(index)] = total
    found = plain.spectra(matrix=matrix, parameters="last_layer", order=12)
    assert_spectra(found, with_whole(expected))


def test_the_fisher_matrix_of_the_whole_network(plain):
    def scores(params):
        return jax.nn.log_softmax(network(params, standardised(IMAGES)))

    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), plain.params)
        flat, unravel = jax.flatten_util.ravel_pytree(wide)
        jacobian = np.asarray(jax.jacobian(lambda vector: scores(unravel(vector)))(flat))
        p = np.exp(np.asarray(scores(wide)))
    matrices = {
        str(index): np.einsum("nk,nki,nkj->ij", *(each[index == LABELS] for each in (p, jacobian, jacobian))) / count
        for index, count in enumerate(COUNTS)
    }
    found = plain.spectra(matrix="gauss_newton")
    assert_spectra(found, with_whole(matrices))
    assert found["0"].spectrum.lambda_min > -1e-9


def test_a_pattern_of_parameters(plain, matrices):
    # ravel_pytree's order: the classifier's bias and kernel, the hidden layer's bias and kernel.
    kept = np.r_[0:3, 15:27]
    found = plain.spectra(parameters="classifier/bias, dense1/kernel", order=15)
    assert_spectra(found, with_whole({name: matrix[np.ix_(kept, kept)] for name, matrix in matrices.items()}))


# The loss.


@pytest.mark.parametrize("reduction", ["mean", "weighted_mean"])
def test_class_weights_scale_the_matrices_and_do_not_cancel(flags, matrices, reduction):
    correction = ["--config.correction.name=inverse_frequency", f"--config.training.reduction={reduction}"]
    setup = make_setup(flags, *correction)
    corrected, bare = setup.spectra(), setup.spectra(loss="cross_entropy")
    for index, weight in enumerate(WEIGHTS):
        name = str(index)
        np.testing.assert_allclose(
            corrected[name].spectrum.values, weight * bare[name].spectrum.values, rtol=1e-5, atol=1e-6
        )
        np.testing.assert_allclose(corrected[name].spectrum.traces, weight * bare[name].spectrum.traces, rtol=1e-6)
    assert_spectra(bare, with_whole(matrices))
    mixture = sum(SHARES[i] * WEIGHTS[i] * matrix for i, matrix in enumerate(matrices.values()))
    assert_spectra({"all": corrected["all"]}, {"all": mixture})


def ldam(logits, labels):
    margins = 0.5 * COUNTS**-0.25 / np.max(COUNTS**-0.25)
    return cross_entropy(4 * (logits - np.eye(CLASSES)[labels] * margins[labels][:, None]), labels)


def adjusted(logits, labels):
    return cross_entropy(logits + 2 * np.log(SHARES), labels)


def scaled(logits, labels):
    return cross_entropy(4 * logits, labels)


@pytest.mark.parametrize(
    ("overrides", "corrected", "inferred"),
    [
        (["--config.correction.name=ldam", "--config.correction.scale=4"], ldam, scaled),
        (["--config.correction.name=logit_adjustment", "--config.correction.tau=2"], adjusted, cross_entropy),
    ],
    ids=["ldam", "logit_adjustment"],
)
def test_the_runs_own_loss_and_the_cross_entropy_of_what_it_predicts(flags, overrides, corrected, inferred):
    setup = make_setup(flags, *overrides)
    assert_spectra(setup.spectra(), with_whole(class_matrices(setup.params, corrected)))
    found = setup.spectra(loss="cross_entropy", classes=(1,), whole=False)
    assert_spectra(found, {"1": class_matrices(setup.params, inferred)["1"]})


def test_a_deferred_correction_is_that_of_the_parameters_moment(flags, matrices):
    setup = make_setup(
        flags,
        "--config.correction.name=deferred",
        "--config.correction.after.name=logit_adjustment",
        "--config.correction.at=0.6",
    )
    late = class_matrices(setup.params, lambda logits, labels: cross_entropy(logits + np.log(SHARES), labels))
    assert_spectra(setup.spectra(classes=(2,), whole=False), {"2": late["2"]})
    early = setup._replace(trained=setup.trained._replace(progress=0.5))
    assert_spectra(early.spectra(classes=(2,), whole=False), {"2": matrices["2"]})


def test_a_factor_that_the_gradient_holds_constant_stays_constant(flags):
    """The influence loss as its paper derives it: the Hessian is that of the losses times their present factors."""
    option = ["--config.correction.name=influence", "--config.correction.stop_gradient_factor=true"]
    setup = make_setup(flags, *option, "--config.correction.alpha=10", "--config.correction.epsilon=0.1")
    with jax.enable_x64(True):
        images = standardised(IMAGES)
        losses = np.asarray(cross_entropy(network(setup.params, images), LABELS))
        layer = setup.params["dense1"]
        hidden = np.maximum(np.asarray(images).reshape(-1, 4) @ layer["kernel"] + layer["bias"], 0)
    factors = 10 / (2 * (1 - np.exp(-losses)) * np.abs(hidden).sum(axis=1) + 0.1)
    matrices = class_matrices(setup.params, lambda logits, labels: factors * cross_entropy(logits, labels))
    assert_spectra(setup.spectra(classes=(1,), whole=False), {"1": matrices["1"]}, rtol=1e-5)


@jax.custom_jvp
def crooked(logits):
    """The identity, with a derivative that is none."""
    return logits


crooked.defjvp(lambda primals, tangents: (*primals, tangents[0] * (1 + primals[0][:, ::-1])))


def test_what_is_no_hessian_is_refused(flags, plain):
    def correct(prediction, labels, progress):
        corrected = plain.experiment.correction.correct(prediction, labels, progress)
        return corrected._replace(logits=crooked(corrected.logits))

    setup = make_setup(flags, correction=plain.experiment.correction._replace(correct=correct))
    for precision in ("float32", "float64"):
        with pytest.raises(OperatorError, match=r"^the products are not those of a symmetric matrix: asymmetry \d"):
            setup.spectra(precision=precision)


# Batch normalisation and noise.


def normalised(statistics):
    """The logits of `Normalised` with given statistics; None for those of the batch."""

    def forward(params, images):
        hidden = images.reshape(len(images), -1) @ params["dense"]["kernel"]
        mean, var = statistics or (hidden.mean(axis=0), hidden.var(axis=0))
        hidden = (hidden - mean) / jnp.sqrt(var + 1e-5) * params["norm"]["scale"] + params["norm"]["bias"]
        return jnp.tanh(hidden) @ params["classifier"]["kernel"] + params["classifier"]["bias"]

    return forward


def test_running_and_batch_statistics(flags):
    setup = make_setup(flags, model=Normalised())
    running = setup.trained.variables["model_state"]["batch_stats"]["norm"]
    forward = normalised((np.float64(running["mean"]), np.float64(running["var"])))
    matrices = with_whole(class_matrices(setup.params, cross_entropy, forward=forward))
    assert_spectra(setup.spectra(order=21), matrices)
    # One batch of all examples: every class is seen among the others.
    together = with_whole(class_matrices(setup.params, cross_entropy, forward=normalised(None)))
    assert_spectra(setup.spectra(order=21, statistics="batch", micro_batch=15), together)
    assert abs(np.trace(together["1"]) / np.trace(matrices["1"]) - 1) > 0.1


class Skipping(nn.Module):
    """Noise that all examples of a step share, as of skipped layers."""

    @nn.compact
    def __call__(self, images, train):
        features = images.reshape(len(images), -1)
        if train:
            features = features * jax.random.uniform(self.make_rng("layerdrop"))
        return classify(features, "linear", CLASSES), features


def test_noise_of_a_step_is_that_of_a_micro_batch(flags):
    setup = make_setup(flags, model=Skipping())
    bare, noisy = (setup.spectra(order=15, statistics=name, micro_batch=15)["all"] for name in ("running", "batch"))
    assert noisy.checks.asymmetry < 1e-12 and noisy.checks.change == 0
    assert noisy.spectrum.lambda_max < 0.99 * bare.spectrum.lambda_max


# Clips, which stay on the host while training, and variables that never change.


def test_clips_and_frozen_variables(flags):
    setup, features = listening_setup(flags)
    matrices = with_whole(class_matrices(setup.params, cross_entropy, forward=linear(features)))
    found = setup.spectra(order=9)
    assert_spectra(found, matrices)
    logits = np.asarray(linear(features)(setup.params, None))[:9]
    assert found["0"].accuracy == pytest.approx(np.mean(logits.argmax(axis=1) == 0))  # of the test split
    assert_spectra(setup.spectra(order=9, statistics="batch", micro_batch=15), matrices)


def test_of_clips_only_those_looked_at_are_brought_to_the_device(flags, monkeypatch):
    setup, features = listening_setup(flags)
    brought = []

    def spy(split):
        brought.append(len(split.labels))
        return resident_split(split)

    monkeypatch.setattr(class_curvature, "resident_split", spy)
    found = setup.spectra(order=9, examples=2)
    rows = np.concatenate([examples_of(found[name].group) for name in "012"])
    assert brought == [len({0, *rows})]  # the first example fills up what is empty
    forward = linear(features[rows])
    assert_spectra(found, with_whole(class_matrices(setup.params, cross_entropy, IMAGES[rows], LABELS[rows], forward)))
